"""Adapts sources of tokens: blocking sources for an event loop, and async sources for a thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Callable


class SourceThread:
    """Reads the source for a coroutine, on a daemon thread, so that the program can end while the source blocks."""

    def __init__(self, tokens: Callable[[int], tuple[bytes, int] | None]) -> None:
        self._tokens = tokens
        self._loop = asyncio.get_running_loop()
        self._wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="hookline-send", daemon=True).start()

    async def tokens(self, sequence: int) -> tuple[bytes, int] | None:
        """Does what `Session.tokens` does."""
        future: asyncio.Future[tuple[bytes, int] | None] = self._loop.create_future()
        self._wanted.put((sequence, future))
        return await future

    def end(self) -> None:
        """Ends the thread; `tokens` is not called any more."""
        self._wanted.put(None)

    def _run(self) -> None:
        while True:
            wanted = self._wanted.get()
            if wanted is None:
                return
            sequence, future = wanted
            found = self._tokens(sequence)
            try:
                self._loop.call_soon_threadsafe(_settle, future, found)
            except RuntimeError:  # the loop has ended meanwhile
                return


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    """Sets a future's result, unless it was cancelled."""
    if not future.done():
        future.set_result(result)


class FromAsync(Iterator[Any]):
    """Iterates over an async iterator on a thread that is not the event loop's."""

    def __init__(self, items: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self._loop = loop

    def __next__(self) -> Any:
        async def step() -> list[Any]:
            try:
                return [await self._items.__anext__()]
            except StopAsyncIteration:
                return []

        found = asyncio.run_coroutine_threadsafe(step(), self._loop).result()
        if not found:
            raise StopIteration
        return found[0]
