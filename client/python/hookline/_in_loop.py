"""The common part of the asyncio client's running calls: each belongs to one event loop."""

from __future__ import annotations

import asyncio

from hookline import _lifetime


class InLoop(_lifetime.Running):
    """A running call that belongs to the event loop in which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def _check_loop(self) -> None:
        kind = type(self).__name__
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"the {kind} was opened in another event loop, and ended with it; open one in each loop")
