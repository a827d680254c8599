"""The running calls of asyncio's client, and the event loop that each belongs to."""

from __future__ import annotations

import asyncio

from hookline import _lifetime


class InLoop(_lifetime.Running):
    """A running call, which belongs to the event loop in which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def _check_loop(self) -> None:
        kind = type(self).__name__
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"the {kind} was opened in another event loop, and ended with it; open it in each loop")
