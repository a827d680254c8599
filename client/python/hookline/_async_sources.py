"""Sources of tokens between an event loop and threads: those that block, for the loop, and the loop's, for a thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Callable


class SourceThread:
    """Reads the source for a coroutine. A daemon: the end of the program does not wait for a source that blocks."""

    def __init__(self, tokens: Callable[[int], tuple[bytes, int] | None]) -> None:
        self._tokens = tokens
        self._loop = asyncio.get_running_loop()
        self._wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="hookline-send", daemon=True).start()

    async def tokens(self, sequence: int) -> tuple[bytes, int] | None:
        """`Session.tokens`."""
        future: asyncio.Future[tuple[bytes, int] | None] = self._loop.create_future()
        self._wanted.put((sequence, future))
        return await future

    def end(self) -> None:
        """Ends the thread: no more will be asked for."""
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
    """Gives a future its result, unless nobody waits for it any more."""
    if not future.done():
        future.set_result(result)


class FromAsync(Iterator[Any]):
    """An async iterator's items for a thread that is not the event loop's."""

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
