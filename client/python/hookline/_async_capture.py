"""Receives captures for asyncio, on grpc.aio."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Callable

import grpc

from hookline import _network
from hookline._arrays import Allocator
from hookline._async_sources import SourceThread
from hookline._batches import RawBatch
from hookline._in_loop import InLoop
from hookline._notes import notes_of_end, notes_of_start
from hookline._request import CaptureOptions
from hookline._session import Session
from hookline.capture import Batch, Finisher
from hookline.errors import CancelledError, HooklineError, UnavailableError, from_rpc_error
from hookline.types import CaptureStarted, CaptureSummary

if TYPE_CHECKING:
    from hookline.aio import AsyncClient

# grpc.aio reports this if a message is being sent while the call ends: the call's status is then lost. Tokens are
# therefore only sent after the server has accepted the request, and a call that ends this way later is made again,
# which reports the reason.
_LOST_STATUS = "Internal error from Core"


class AsyncCapture(InLoop, AsyncIterator[Batch]):
    """A running capture: an async iterator of batches. `aclose`, or the end of `async with`, cancels the rest."""

    def __init__(
        self, client: AsyncClient, options: CaptureOptions, make_allocator: Callable[[CaptureStarted], Allocator]
    ) -> None:
        super().__init__()
        self._client = client
        self._options = options
        self._make_allocator = make_allocator
        self._session = Session(options, make_allocator, client._offer_memory)
        self._queue: asyncio.Queue[RawBatch | None] = asyncio.Queue(options.prefetch)
        self._started = asyncio.Event()
        self._receiving = self._loop.create_task(self._receive())
        self._batches = self._iterate()

    async def started(self) -> CaptureStarted:
        """Waits for the server's first answer and returns what it granted."""
        self._check_loop()
        await self._started.wait()
        if self._session.started is None:
            await self._receiving
            raise CancelledError("the capture was closed before it started")
        return self._session.started

    @property
    def summary(self) -> CaptureSummary | None:
        """Says how the capture ended; None until the last batch has been taken."""
        return self._session.summary

    async def __anext__(self) -> Batch:
        self._check_loop()
        return await self._batches.__anext__()

    async def aclose(self) -> None:
        """Cancels the rest of the capture. Idempotent."""
        if self._loop.is_closed():  # which has cancelled the capture
            return
        self._receiving.cancel()
        await asyncio.wait([self._receiving])

    async def __aenter__(self) -> AsyncCapture:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _iterate(self) -> AsyncIterator[Batch]:
        started = await self.started()
        for note in notes_of_start(self._options, started):
            warnings.warn(note, stacklevel=3)
        finisher = Finisher(started, self._options, self._make_allocator(started), self._session.token_texts)
        failure: Exception | None = None
        while True:
            try:
                raw = await self._next()
            except CancelledError:
                raise
            except Exception as error:  # rows that still wait to be mixed are returned first
                failure = error
                break
            if raw is None:
                break
            for batch in finisher.push(raw):
                yield batch
        for batch in finisher.finish():
            yield batch
        if failure is not None:
            raise failure
        if self.summary is not None:
            for note in notes_of_end(self._options, started, self.summary):
                warnings.warn(note, stacklevel=3)

    async def _next(self) -> RawBatch | None:
        """Returns the next batch, None at the end. Raises the error that ended the capture."""
        if self._queue.empty() and not self._receiving.done():
            getter = asyncio.ensure_future(self._queue.get())
            await asyncio.wait([getter, self._receiving], return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
            getter.cancel()
        if not self._queue.empty():
            return self._queue.get_nowait()
        if self._receiving.cancelled():
            raise CancelledError("the capture was closed")
        self._receiving.result()
        return None

    async def _receive(self) -> None:
        session = self._session
        try:
            while True:
                delay = session.end(await self._run_call())
                if delay is None:
                    for batch in session.finish():
                        await self._queue.put(batch)
                    return
                await asyncio.sleep(delay)
        except Exception:  # an incomplete batch is returned before the error
            for batch in session.broken():
                await self._queue.put(batch)
            raise
        finally:
            self._started.set()

    async def _run_call(self) -> HooklineError | None:
        session = self._session
        method, first, metadata = session.call()
        next_sequence: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        messages = first if session.feed is None else self._requests(first, next_sequence)
        call = self._client._call_of(method, messages, metadata)
        try:
            async for message in call:
                for batch in session.receive(message):
                    await self._queue.put(batch)
                if session.is_granted:
                    self._started.set()
                    if not next_sequence.done():
                        next_sequence.set_result(session.next_sequence or 0)
            return None
        except grpc.RpcError as error:
            if session.feed is not None and error.details() == _LOST_STATUS:
                return UnavailableError("the call ended while tokens were sent")
            return _network.name_proxy(from_rpc_error(error), self._client.address)
        finally:
            next_sequence.cancel()
            call.cancel()
            session.hang_up()

    async def _requests(self, first: bytes, next_sequence: asyncio.Future[int]) -> AsyncIterator[bytes]:
        yield first
        try:
            sequence = await next_sequence
        except asyncio.CancelledError:  # the call ended before the server named the first sequence
            return
        source = SourceThread(self._session.tokens)
        try:
            while True:
                message = await source.tokens(sequence)
                if message is None:
                    return
                yield message[0]
                sequence = message[1]
        finally:
            source.end()
