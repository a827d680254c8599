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
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

import grpc
import grpc.aio

from hookline import _calls, _lifetime, _memory, _network, _protocol, _security, _shared_memory
from hookline._arguments import (
    CaptureArguments,
    EstimateArguments,
    PersistArguments,
    ScoreArguments,
    StatisticsArguments,
)
from hookline._arrays import Allocator
from hookline._async_sources import FromAsync, SourceThread
from hookline._batches import RawBatch
from hookline._calls import Answer, UnaryCall
from hookline._connection import channel_options, open_channel
from hookline._notes import notes_of_end, notes_of_start
from hookline._request import CaptureOptions, capture_options, options_among
from hookline._security import Security, TlsArgument
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
from hookline.persist import PersistProgress, finished_recording, persist_progress, persist_request
from hookline.scores import (
    Intervention,
    ScoreOptions,
    ScoreReader,
    ScoreSummary,
    SequenceScore,
    score_options,
)
from hookline.statistics import Statistics, receiver_statistics, statistics_options
from hookline.types import (
    CaptureEstimate,
    CaptureStarted,
    CaptureSummary,
    DatasetInfo,
    Dictionary,
    ModelInfo,
    RecordingInfo,
    Text,
    TokenizedText,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

# grpc.aio says this where a message is being sent as the call ends: its status has not arrived yet, and never does.
# Tokens are therefore not sent before the server has accepted the request, and what ends the call later is asked for
# once more.
_LOST_STATUS = "Internal error from Core"


def connect(
    address: str,
    *,
    tls: TlsArgument = None,
    token: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    shared_memory: bool = True,
) -> AsyncClient:
    """A client of the server at `address` (`"host:port"`), for the running event loop. Nothing is sent yet.
    `tls`, `token`, `credentials` and `shared_memory` as for `hookline.connect`; like that, it tells glibc to keep freed
    memory mapped."""
    address, security = _security.settle(address, tls, token, credentials is not None)
    _memory.keep_freed_memory()
    return AsyncClient(address, credentials, shared_memory, security)


class AsyncClient:
    """A connection to a server. To be used in one event loop; an async context manager, which closes it."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        shared_memory: bool,
        security: Security,
    ) -> None:
        _lifetime.check_process()
        self.address = address
        self._loop = _running_loop("hookline.aio.connect")
        self._closed = False
        self._running: weakref.WeakSet[AsyncCapture | AsyncPersist | AsyncScores] = weakref.WeakSet()
        self._forked = False
        self._offer_memory = _shared_memory.offers(address, shared_memory)
        self._metadata = security.metadata
        self._channel = open_channel(grpc.aio, address, credentials, security, channel_options(address))
        _lifetime.opened(self)

    async def close(self) -> None:
        """Closes the connection; running captures end with an error, and every further call says that the client is
        closed. Idempotent."""
        if not self._closed:
            self._check("close")
            self._closed = True
            _lifetime.ended(self)
            for running in list(self._running):
                await running.aclose()
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
        return await self._call(_calls.list_models(), timeout)

    async def model(self, name: str = "", *, timeout: float | None = None) -> ModelInfo:
        """Describes one model, with its hook points. `name` may be left out where there is only one."""
        return await self._call(_calls.get_model(name), timeout)

    async def tokenize(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> tuple[TokenizedText, ...]:
        """The texts as tokens of a model, one result a text. add_special_tokens: None, as the tokenizer itself does."""
        return await self._call(_calls.tokenize(texts, model, add_special_tokens), timeout)

    async def detokenize(
        self,
        sequences: Sequence[Any],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """The texts of sequences of token ids, one each."""
        return await self._call(_calls.detokenize(sequences, model, skip_special_tokens), timeout)

    async def datasets(self, *, timeout: float | None = None) -> tuple[DatasetInfo, ...]:
        """The token datasets that the server holds."""
        return await self._call(_calls.list_datasets(), timeout)

    async def dictionaries(self, *, timeout: float | None = None) -> tuple[Dictionary, ...]:
        """The sparse dictionaries that the server holds beside its models."""
        return await self._call(_calls.list_dictionaries(), timeout)

    async def dataset(self, name: str, *, timeout: float | None = None) -> DatasetInfo:
        """One dataset of the server."""
        return await self._call(_calls.get_dataset(name), timeout)

    async def recordings(self, *, timeout: float | None = None) -> tuple[RecordingInfo, ...]:
        """The recordings on the server, without their hook points."""
        found: list[RecordingInfo] = []
        token = ""
        while True:
            page, token = await self._call(_calls.list_recordings(token), timeout)
            found.extend(page)
            if not token:
                return tuple(found)

    async def recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """One recording on the server."""
        return await self._call(_calls.get_recording(name), timeout)

    def score(
        self,
        source: Any,
        variants: Mapping[str, Sequence[Intervention]] | None = None,
        **outputs: Unpack[ScoreArguments],
    ) -> AsyncScores:
        """`Client.score`, with the same arguments: an async iterator of scores. `await score(...).wait()` returns the
        summary."""
        self._check("score")
        options = score_options(source, variants, outputs)
        scores = AsyncScores(self._channel.unary_stream(_protocol.SCORE)(options.request), options, self.address)
        self._running.add(scores)
        return scores

    def persist(
        self, name: str, hook_points: str | Sequence[str], source: Any, **options: Unpack[PersistArguments]
    ) -> AsyncPersist:
        """`Client.persist`, with the same arguments: an async iterator of progress. `await persist(...).wait()` waits
        for the end. What the server objects to is raised by the first step of the loop, or by `wait`."""
        self._check("persist")
        settled, request = persist_request(name, hook_points, source, options)
        persist = AsyncPersist(
            self._channel.unary_stream(_protocol.PERSIST)(request, metadata=self._metadata), settled, self.address
        )
        self._running.add(persist)
        return persist

    async def stop_recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """Ends a running recording after its last rows; what is written stays and can be continued."""
        return await self._call(_calls.stop_recording(name), timeout)

    async def delete_recording(self, name: str, *, timeout: float | None = None) -> int:
        """Removes a recording that is not running. The bytes that this gave back."""
        return await self._call(_calls.delete_recording(name), timeout)

    async def estimate(
        self,
        hook_points: str | Sequence[str],
        source: Any = None,
        *,
        text: str | Sequence[str] | Text | None = None,
        timeout: float | None = None,
        **options: Unpack[EstimateArguments],
    ) -> CaptureEstimate:
        """The estimated rows, bytes and time of a capture with these arguments; nothing is run. TypeError for an
        iterator, which would be used up by it.

        options: `max_activations`, `max_activations_by_hook_point`, `dtype`, `model`, `selection` and `top_k`, as for
            `capture`.
        """
        settled = options_among(
            {*EstimateArguments.__annotations__, "text"}, "an estimate", hook_points, source, {**options, "text": text}
        )
        try:
            return await self._call(_calls.estimate_capture(settled), timeout)
        except HooklineError as error:
            raise settled.named(error) from None

    async def statistics(
        self, hook_points: str | Sequence[str], source: Any, **options: Unpack[StatisticsArguments]
    ) -> Statistics:
        """`Client.statistics`, with the same arguments."""
        self._check("statistics")
        if hasattr(source, "__aiter__"):
            source = FromAsync(source.__aiter__(), asyncio.get_running_loop())
        settled = statistics_options(hook_points, source, options)
        capture = AsyncCapture(self, settled, settled.allocators())
        self._running.add(capture)
        async with capture:
            async for _ in capture:
                pass
            return receiver_statistics(await capture.started(), capture.summary)

    def capture(
        self,
        hook_points: str | Sequence[str],
        source: Any = None,
        *,
        text: str | Sequence[str] | Text | None = None,
        **options: Unpack[CaptureArguments],
    ) -> AsyncCapture:
        """`Client.capture`, with the same arguments, for `async for`. `source` may be an async iterable of batches,
        too. It is read on another thread, so that one that blocks does not hold the event loop."""
        self._check("capture")
        if hasattr(source, "__aiter__"):
            source = FromAsync(source.__aiter__(), asyncio.get_running_loop())
        settled = capture_options(hook_points, source, text=text, **options)
        capture = AsyncCapture(self, settled, settled.allocators())
        self._running.add(capture)
        return capture

    def _call_of(self, method: str, messages: Any, metadata: Any) -> Any:
        """A call of a capture: one request, or an iterator of them."""
        self._check("capture")
        metadata = [*self._metadata, *metadata]
        if isinstance(messages, bytes):
            return self._channel.unary_stream(method)(messages, metadata=metadata)
        return self._channel.stream_stream(method)(messages, metadata=metadata)

    async def _call(self, unary: UnaryCall[Answer], timeout: float | None) -> Answer:
        self._check(unary.method.rpartition("/")[2])
        call = self._channel.unary_unary(unary.method)(unary.request.SerializeToString(), metadata=self._metadata)
        try:
            # grpcio's own time-outs end at a time of the wall clock, which may be set meanwhile.
            answer = await asyncio.wait_for(call, timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(f"{self.address} has not answered within {timeout} s") from None
        except grpc.RpcError as error:
            raise _network.name_proxy(from_rpc_error(error), self.address) from None
        return unary.read(unary.response_class.FromString(answer))


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
        """Waits for the server's first answer and returns what it granted."""
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
        finisher = Finisher(started, self._options, self._make_allocator(started), self._session.token_texts)
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


class AsyncScores(AsyncIterator[SequenceScore]):
    """Scores as they come, as `hookline.Scores`: an async iterator. `wait` reads the rest and returns the summary;
    `aclose`, or the end of `async with`, ends the work on the server."""

    def __init__(self, call: Any, options: ScoreOptions, address: str) -> None:
        self._call = call
        self._options = options
        self._address = address
        self._reader = ScoreReader(options)

    async def __anext__(self) -> SequenceScore:
        while self._reader.summary is None:
            try:
                data = await self._call.read()
            except grpc.RpcError as error:
                raise self._options.named(_network.name_proxy(from_rpc_error(error), self._address)) from None
            if data is grpc.aio.EOF:
                self._reader.finished()
            score = self._reader.read(data)
            if score is not None:
                return score
        raise StopAsyncIteration

    async def wait(self) -> ScoreSummary:
        """Reads what is left, and returns the totals."""
        async for _ in self:
            pass
        return self._reader.finished()

    async def aclose(self) -> None:
        """Ends the call. Idempotent."""
        self._call.cancel()

    async def __aenter__(self) -> AsyncScores:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class AsyncPersist(AsyncIterator[PersistProgress]):
    """Watches a recording being made, as `hookline.Persist` does: an async iterator of its progress, about one a
    second, the last one with the recording.

    The recording goes on when nobody watches any more; `AsyncClient.stop_recording` ends it. `aclose`, or the end of
    `async with`, stops watching.
    """

    def __init__(self, call: Any, options: CaptureOptions, address: str) -> None:
        self._call = call
        self._options = options
        self._address = address
        self._reading: asyncio.Future[PersistProgress | None] | None = None
        self._last: PersistProgress | None = None
        self._closed = False

    async def __anext__(self) -> PersistProgress:
        # A task of its own: where a waiting one is cancelled, by a time-out for example, grpcio would end the call.
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        await asyncio.wait([self._reading])
        reading, self._reading = self._reading, None
        progress = reading.result()
        if progress is None:
            raise StopAsyncIteration
        self._last = progress
        return progress

    async def _read(self) -> PersistProgress | None:
        """The next progress; None at the end of a complete recording."""
        try:
            message = await self._call.read()
        except asyncio.CancelledError:
            if self._closed:
                raise CancelledError("the recording is not watched any more") from None
            raise
        except grpc.RpcError as error:
            raise self._options.named(_network.name_proxy(from_rpc_error(error), self._address)) from None
        return None if message is grpc.aio.EOF else persist_progress(message)

    async def wait(self) -> RecordingInfo:
        """Waits for the end. The recording, complete; raises what it ended of otherwise: CancelledError where somebody
        stopped it, UnavailableError where the server went away. The same request continues such a recording."""
        async for _ in self:
            pass
        return finished_recording(self._last)

    async def aclose(self) -> None:
        """Watches no longer; the recording goes on. Idempotent."""
        self._closed = True
        self._call.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def __aenter__(self) -> AsyncPersist:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
