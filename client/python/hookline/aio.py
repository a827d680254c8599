"""The client for asyncio, on grpc.aio.

For example:

    async with hookline.aio.connect("localhost:7471") as client:
        async with client.capture("blocks.*.hook_resid_post", token_ids) as capture:
            async for batch in capture:
                ...
"""

from __future__ import annotations

import asyncio
import queue
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable

import grpc
import grpc.aio

from hookline import _lifetime, _memory, _network, _protocol, _shared_memory
from hookline._arguments import CaptureArguments
from hookline._arrays import Allocator
from hookline._batches import RawBatch
from hookline._connection import channel_options
from hookline._notes import notes_of_end, notes_of_start
from hookline._request import CaptureOptions, capture_options
from hookline._session import Session
from hookline.capture import Batch, Finisher
from hookline.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    HooklineError,
    UnavailableError,
    from_rpc_error,
)
from hookline.types import CaptureStarted, CaptureSummary, ModelInfo, model_info

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What grpc.aio says where a message is being sent as the call ends: its status has not arrived yet, and never does.
# Tokens are therefore not sent before the server has accepted the request, and what ends the call later is asked for
# once more.
_LOST_STATUS = "Internal error from Core"


def connect(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, shared_memory: bool = True
) -> AsyncClient:
    """A client of the server at `address` (`"host:port"`), for the running event loop. Nothing is sent yet.
    `credentials` and `shared_memory` as for `hookline.connect`; like that, it tells glibc to keep freed memory
    mapped."""
    _network.check_address(address)
    _memory.keep_freed_memory()
    return AsyncClient(address, credentials, shared_memory)


class AsyncClient:
    """A connection to a server. To be used in one event loop; an async context manager, which closes it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, shared_memory: bool) -> None:
        _lifetime.check_process()
        self.address = address
        self._loop = _running_loop("hookline.aio.connect")
        self._closed = False
        self._captures: weakref.WeakSet[AsyncCapture] = weakref.WeakSet()
        self._forked = False
        self._offer_memory = _shared_memory.offers(address, shared_memory)
        options = channel_options(address)
        self._channel: Any = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        _lifetime.opened(self)

    async def close(self) -> None:
        """Closes the connection; running captures end with an error, and every further call says that the client is
        closed. Idempotent."""
        if not self._closed:
            self._check("close")
            self._closed = True
            _lifetime.ended(self)
            for capture in list(self._captures):
                await capture.aclose()
            await self._channel.close()

    def cancel(self) -> None:
        """Nothing: what runs in a loop ends with the loop."""

    def join(self, timeout: float) -> bool:
        return True

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        self._forked = True
        _lifetime.keep_for_ever(self._channel)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"an asyncio client cannot be pickled; call hookline.aio.connect({self.address!r}) in the other process"
        )

    def _check(self, method: str) -> None:
        """Raises why a method cannot be called here and now."""
        if self._forked:
            raise _lifetime.of_the_parent()
        if self._closed:
            raise FailedPreconditionError("the client is closed; connect again")
        if _running_loop(method) is not self._loop:
            raise RuntimeError(
                f"{method}: this client was made in another event loop, and belongs to that one; call "
                "hookline.aio.connect in each loop"
            )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """The models that the server holds, without their hook points."""
        answer = await self._call(
            _protocol.LIST_MODELS, _protocol.ListModelsRequest(), _protocol.ListModelsResponse, timeout
        )
        return tuple(map(model_info, answer.models))

    async def model(self, name: str = "", *, timeout: float | None = None) -> ModelInfo:
        """What one model is, with its hook points. `name` may be left out where there is only one."""
        request = _protocol.GetModelRequest(name=name)
        return model_info(await self._call(_protocol.GET_MODEL, request, _protocol.Model, timeout))

    def capture(
        self, hook_points: str | Sequence[str], source: Any, **options: Unpack[CaptureArguments]
    ) -> AsyncCapture:
        """`Client.capture`, with the same arguments, for `async for`. `source` may be an async iterable of batches,
        too. It is read on another thread, so that one that blocks does not hold the event loop."""
        self._check("capture")
        if hasattr(source, "__aiter__"):
            source = _FromAsync(source.__aiter__(), asyncio.get_running_loop())
        settled = capture_options(hook_points, source, **options)
        capture = AsyncCapture(self, settled, settled.allocators())
        self._captures.add(capture)
        return capture

    def _call_of(self, method: str, messages: Any, metadata: Any) -> Any:
        """A call of a capture: one request, or an iterator of them."""
        self._check("capture")
        if isinstance(messages, bytes):
            return self._channel.unary_stream(method)(messages, metadata=metadata)
        return self._channel.stream_stream(method)(messages, metadata=metadata)

    async def _call(self, method: str, request: Any, response: Any, timeout: float | None) -> Any:
        self._check(method.rpartition("/")[2])
        call = self._channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        try:
            # grpcio's own time-outs end at a time of the wall clock, which may be set meanwhile.
            return await asyncio.wait_for(call(request), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(f"{self.address} has not answered within {timeout} s") from None
        except grpc.RpcError as error:
            raise _network.name_proxy(from_rpc_error(error), self.address) from None


def _running_loop(caller: str) -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            f"{caller}: no event loop is running here; call it inside a coroutine, for example one that asyncio.run "
            "runs, or use hookline.connect"
        ) from None


class AsyncCapture(AsyncIterator[Batch]):
    """A running capture: an async iterator of batches. `aclose`, or the end of `async with`, cancels the rest."""

    def __init__(
        self, client: AsyncClient, options: CaptureOptions, make_allocator: Callable[[CaptureStarted], Allocator]
    ) -> None:
        self._client = client
        self._options = options
        self._make_allocator = make_allocator
        self._session = Session(options, make_allocator, client._offer_memory)
        self._queue: asyncio.Queue[RawBatch | None] = asyncio.Queue(options.prefetch)
        self._started = asyncio.Event()
        self._receiving = asyncio.get_running_loop().create_task(self._receive())
        self._batches = self._iterate()

    async def started(self) -> CaptureStarted:
        """What the server granted."""
        await self._started.wait()
        if self._session.started is None:
            await self._receiving
            raise CancelledError("the capture was closed before it started")
        return self._session.started

    @property
    def summary(self) -> CaptureSummary | None:
        """How the capture ended and what it brought; None until the last batch has been taken."""
        return self._session.summary

    async def __anext__(self) -> Batch:
        return await self._batches.__anext__()

    async def aclose(self) -> None:
        """Cancels what is not finished. Idempotent."""
        if self._receiving.get_loop().is_closed():  # its end has cancelled it
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
        finisher = Finisher(started, self._options, self._make_allocator(started))
        failure: Exception | None = None
        while True:
            try:
                raw = await self._next()
            except CancelledError:
                raise
            except Exception as error:  # rows that still wait to be mixed come before it
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
        """The next batch, or what ended the receiving."""
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
        except Exception:  # what had come of a batch until then comes first
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
        except asyncio.CancelledError:  # the call ended before it said from where
            return
        source = _SourceThread(self._session.tokens)
        try:
            while True:
                message = await source.tokens(sequence)
                if message is None:
                    return
                yield message[0]
                sequence = message[1]
        finally:
            source.end()


class _SourceThread:
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
        """No more will be asked for."""
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


class _FromAsync(Iterator[Any]):
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
