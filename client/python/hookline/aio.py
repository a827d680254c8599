"""The client for asyncio, on grpc.aio.

For example:

    async with hookline.aio.connect("localhost:7471") as client:
        async with client.capture("blocks.*.hook_resid_post", token_ids) as capture:
            async for batch in capture:
                ...
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterator, List, Optional, Sequence, Tuple, Union

import grpc
import grpc.aio

from hookline import _memory, _protocol, _shared_memory
from hookline._arguments import CaptureArguments
from hookline._arrays import Allocator
from hookline._batches import RawBatch
from hookline._notes import notes_of_end, notes_of_start
from hookline._request import CaptureOptions, capture_options
from hookline._session import Session
from hookline.capture import Batch, Finisher
from hookline.client import channel_options, check_address
from hookline.errors import CancelledError, HooklineError, UnavailableError, from_rpc_error
from hookline.types import CaptureStarted, CaptureSummary, ModelInfo, model_info

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What grpc.aio says where a message is being sent as the call ends: its status has not arrived yet, and never does.
# Tokens are therefore not sent before the server has accepted the request, and what ends the call later is asked for
# once more.
_LOST_STATUS = "Internal error from Core"


def connect(
    address: str, *, credentials: Optional[grpc.ChannelCredentials] = None, shared_memory: bool = True
) -> "AsyncClient":
    """A client of the server at `address` (`"host:port"`), for the running event loop. Nothing is sent yet. `credentials`
    and `shared_memory` as for `hookline.connect`; like that, it tells glibc to keep freed memory mapped."""
    check_address(address)
    _memory.keep_freed_memory()
    return AsyncClient(address, credentials, shared_memory)


class AsyncClient:
    """A connection to a server. To be used in one event loop; an async context manager, which closes it."""

    def __init__(self, address: str, credentials: Optional[grpc.ChannelCredentials], shared_memory: bool) -> None:
        self.address = address
        self._offer_memory = _shared_memory.offers(address, shared_memory)
        options = channel_options()
        self._channel: Any = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )

    async def close(self) -> None:
        """Closes the connection; running captures end with an error."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def models(self, *, timeout: Optional[float] = None) -> Tuple[ModelInfo, ...]:
        """The models that the server holds, without their hook points."""
        answer = await self._call(
            _protocol.LIST_MODELS, _protocol.ListModelsRequest(), _protocol.ListModelsResponse, timeout
        )
        return tuple(map(model_info, answer.models))

    async def model(self, name: str = "", *, timeout: Optional[float] = None) -> ModelInfo:
        """What one model is, with its hook points. `name` may be left out where there is only one."""
        request = _protocol.GetModelRequest(name=name)
        return model_info(await self._call(_protocol.GET_MODEL, request, _protocol.Model, timeout))

    def capture(
        self, hook_points: Union[str, Sequence[str]], source: Any, **options: "Unpack[CaptureArguments]"
    ) -> "AsyncCapture":
        """`Client.capture`, with the same arguments, for `async for`. `source` may be an async iterable of batches, too.
        It is read on another thread, so that one that blocks does not hold the event loop."""
        if hasattr(source, "__aiter__"):
            source = _FromAsync(source.__aiter__(), asyncio.get_running_loop())
        settled = capture_options(hook_points, source, **options)
        return AsyncCapture(self._channel, settled, settled.allocators(), self._offer_memory)

    async def _call(self, method: str, request: Any, response: Any, timeout: Optional[float]) -> Any:
        call = self._channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        try:
            return await call(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


class AsyncCapture(AsyncIterator[Batch]):
    """A running capture: an async iterator of batches. `aclose`, or the end of `async with`, cancels the rest."""

    def __init__(
        self,
        channel: Any,
        options: CaptureOptions,
        make_allocator: Callable[[CaptureStarted], Allocator],
        offer_memory: Callable[[], Optional[_shared_memory.SharedMemory]],
    ) -> None:
        self._channel = channel
        self._options = options
        self._make_allocator = make_allocator
        self._session = Session(options, make_allocator, offer_memory)
        self._queue: "asyncio.Queue[Optional[RawBatch]]" = asyncio.Queue(options.prefetch)
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
    def summary(self) -> Optional[CaptureSummary]:
        """How the capture ended and what it brought; None until the last batch has been taken."""
        return self._session.summary

    async def __anext__(self) -> Batch:
        return await self._batches.__anext__()

    async def aclose(self) -> None:
        """Cancels what is not finished. Idempotent."""
        self._receiving.cancel()
        await asyncio.wait([self._receiving])

    async def __aenter__(self) -> "AsyncCapture":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _iterate(self) -> AsyncIterator[Batch]:
        started = await self.started()
        for note in notes_of_start(self._options, started):
            warnings.warn(note, stacklevel=3)
        finisher = Finisher(started, self._options, self._make_allocator(started))
        while True:
            raw = await self._next()
            if raw is None:
                break
            for batch in finisher.push(raw):
                yield batch
        for batch in finisher.finish():
            yield batch
        if self.summary is not None:
            for note in notes_of_end(self._options, started, self.summary):
                warnings.warn(note, stacklevel=3)

    async def _next(self) -> Optional[RawBatch]:
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
        finally:
            self._started.set()

    async def _run_call(self) -> Optional[HooklineError]:
        session = self._session
        method, first, metadata = session.call()
        next_sequence: "asyncio.Future[int]" = asyncio.get_running_loop().create_future()
        if session.feed is None:
            call = self._channel.unary_stream(method)(first, metadata=metadata)
        else:
            call = self._channel.stream_stream(method)(self._requests(first, next_sequence), metadata=metadata)
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
            return from_rpc_error(error)
        finally:
            next_sequence.cancel()
            call.cancel()
            session.hang_up()

    async def _requests(self, first: bytes, next_sequence: "asyncio.Future[int]") -> AsyncIterator[bytes]:
        yield first
        try:
            sequence = await next_sequence
        except asyncio.CancelledError:  # the call ended before it said from where
            return
        loop = asyncio.get_running_loop()
        while True:
            message = await loop.run_in_executor(None, self._session.tokens, sequence)
            if message is None:
                return
            yield message[0]
            sequence = message[1]


class _FromAsync(Iterator[Any]):
    """An async iterator's items for a thread that is not the event loop's."""

    def __init__(self, items: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self._loop = loop

    def __next__(self) -> Any:
        async def step() -> List[Any]:
            try:
                return [await self._items.__anext__()]
            except StopAsyncIteration:
                return []

        found = asyncio.run_coroutine_threadsafe(step(), self._loop).result()
        if not found:
            raise StopIteration
        return found[0]
