"""The client for asyncio, on grpc.aio.

For example:

    async with hookline.aio.connect("localhost:7471") as client:
        async with client.capture("blocks.*.hook_resid_post", token_ids) as capture:
            async for batch in capture:
                ...
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from hookline import _calls, _lifetime, _memory, _network, _protocol, _security, _shared_memory
from hookline._arguments import (
    CaptureArguments,
    EstimateArguments,
    PersistArguments,
    ScoreArguments,
    StatisticsArguments,
    SubstituteArguments,
)
from hookline._async_capture import AsyncCapture
from hookline._async_sources import FromAsync
from hookline._async_streams import AsyncPersistRun, AsyncScores
from hookline._async_substitute import AsyncSubstituted
from hookline._calls import Answer, UnaryCall
from hookline._connection import channel_options, open_channel
from hookline._counts import seconds
from hookline._request import capture_arguments, estimate_arguments
from hookline._security import Security, TlsArgument
from hookline.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    HooklineError,
    from_rpc_error,
)
from hookline.evaluate import LossRecovered, Measurement, parts
from hookline.examples import ExamplesReader, TopActivations, examples_request
from hookline.persist import merge_request, merged_recording, persist_request
from hookline.scores import (
    Intervention,
    score_options,
)
from hookline.statistics import Statistics, receiver_statistics, statistics_options
from hookline.substitute import substitution
from hookline.types import (
    CaptureEstimate,
    Dataset,
    DatasetInfo,
    Dictionary,
    ModelInfo,
    RecordingInfo,
    Text,
    TokenizedText,
)

__all__ = ["AsyncCapture", "AsyncClient", "AsyncPersistRun", "AsyncScores", "connect"]

if TYPE_CHECKING:
    from typing_extensions import Unpack


def connect(
    address: str,
    *,
    tls: TlsArgument = None,
    token: str | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    shared_memory: bool = True,
) -> AsyncClient:
    """Returns a client of the server at `address` (`"host:port"`), for the running event loop. Nothing is sent yet. The
    arguments are those of `hookline.connect`. Like `hookline.connect`, it makes glibc keep freed memory mapped."""
    address, security = _security.settle(address, tls, token, credentials is not None)
    _memory.keep_freed_memory()
    return AsyncClient(address, credentials, shared_memory, security)


class AsyncClient:
    """A connection to a server, for use in one event loop. Also an async context manager, which closes
    the connection."""

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
        self._running: weakref.WeakSet[AsyncCapture | AsyncPersistRun | AsyncScores] = weakref.WeakSet()
        self._forked = False
        self._offer_memory = _shared_memory.offers(address, shared_memory)
        self._metadata = security.metadata
        self._channel = open_channel(grpc.aio, address, credentials, security, channel_options(address))
        _lifetime.opened(self)

    async def close(self) -> None:
        """Closes the connection. Running captures end with an error, and every later call raises an error that says
        that the client is closed. Idempotent."""
        if not self._closed:
            self._check("close")
            self._closed = True
            _lifetime.ended(self)
            for running in list(self._running):
                await running.aclose()
            await self._channel.close()

    def cancel(self) -> None:
        """Does nothing: calls that run in an event loop end with the loop."""

    def join(self, timeout: float) -> bool:
        return True

    def abandon(self) -> None:
        """Marks the client as unusable in a forked child, since the connection is the parent's."""
        self._forked = True
        _lifetime.keep_for_ever(self._channel)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"an asyncio client cannot be pickled; call hookline.aio.connect({self.address!r}) in the other process"
        )

    def _check(self, method: str) -> None:
        """Raises an error if a method cannot be called here and now."""
        if self._forked:
            raise _lifetime.of_the_parent()
        if self._closed:
            raise FailedPreconditionError("the client is closed; connect again")
        if _running_loop(method) is not self._loop:
            raise RuntimeError(
                f"{method}: this client was made in another event loop, and cannot be used in this one; call "
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
        """Describes one model, with its hook points. `name` can be left out if there is only one."""
        return await self._call(_calls.get_model(name), timeout)

    async def tokenize(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> tuple[TokenizedText, ...]:
        """The texts as tokens of a model, one result per text.

        add_special_tokens: None: what the tokenizer's own configuration says.
        """
        return await self._call(_calls.tokenize(texts, model, add_special_tokens), timeout)

    async def detokenize(
        self,
        sequences: Sequence[Any],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """The text of each sequence of token ids."""
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
        """Does what `Client.score` does, with the same arguments. Returns an async iterator of scores; `await
        score(...).wait()` returns the summary."""
        self._check("score")
        options = score_options(source, variants, outputs)
        call = self._channel.unary_stream(_protocol.SCORE)(options.request, metadata=self._metadata)
        scores = AsyncScores(call, options, self.address)
        self._running.add(scores)
        return scores

    def substitute(
        self,
        source: Any,
        hook_point: str | Sequence[str],
        replace: Any,
        variants: Mapping[str, Sequence[Intervention]] | None = None,
        **options: Unpack[SubstituteArguments],
    ) -> AsyncSubstituted:
        """Does what `Client.substitute` does, with the same arguments. Returns an async iterator of scores. Functions
        can be coroutines; others run on another thread, so that they do not block the event loop."""
        self._check("substitute")
        settled = substitution(source, hook_point, replace, variants, options)
        call = self._channel.stream_stream(_protocol.SUBSTITUTE)(metadata=self._metadata)
        scores = AsyncSubstituted(call, settled, self.address)
        self._running.add(scores)
        return scores

    async def loss_recovered(
        self, sae: Any, hook_point: str, source: Any, *, model: str = "", ignore_token_ids: Sequence[int] = ()
    ) -> LossRecovered:
        """Does what `Client.loss_recovered` does, with the same arguments. The autoencoder runs on another thread."""
        self._check("loss_recovered")
        measurement = Measurement(sae, await self.model(model), hook_point, ignore_token_ids)
        for part in parts(source):
            arguments = measurement.arguments(model)
            async with self.substitute(
                part, hook_point, measurement.replace, measurement.variants, **arguments
            ) as scores:
                async for score in scores:
                    measurement.add(score)
        return measurement.result()

    async def top_activations(
        self,
        dictionary: str | Dictionary,
        dataset: Dataset,
        latents: int | Iterable[int],
        *,
        top: int = 20,
        context: int = 32,
        ignore_token_ids: int | Iterable[int] = (),
        quantiles: Iterable[float] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_sequences: int = 1000,
    ) -> TopActivations:
        """Does what `Client.top_activations` does, with the same arguments."""
        self._check("top_activations")
        request = examples_request(
            dictionary,
            dataset,
            latents,
            top=top,
            context=context,
            ignore_token_ids=ignore_token_ids,
            quantiles=quantiles,
            checkpoint=checkpoint,
            checkpoint_sequences=checkpoint_sequences,
        )
        reader = ExamplesReader(request, checkpoint)
        call = self._channel.unary_stream(_protocol.TOP_ACTIVATIONS)(
            request.SerializeToString(), metadata=self._metadata
        )
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                # The reader may write a checkpoint, which blocks.
                await asyncio.to_thread(reader.read, data)
        except grpc.RpcError as error:
            raise _network.name_proxy(from_rpc_error(error), self.address) from None
        finally:
            call.cancel()
        return reader.finished()

    def persist(
        self, name: str, hook_points: str | Sequence[str], source: Any, **options: Unpack[PersistArguments]
    ) -> AsyncPersistRun:
        """Does what `Client.persist` does, with the same arguments. Returns an async iterator of the progress;
        `await persist(...).wait()` waits for the end. An error of the server is raised by the first step of the
        loop, or by `wait`."""
        self._check("persist")
        settled, request = persist_request(name, hook_points, source, options)
        persist = AsyncPersistRun(
            self._channel.unary_stream(_protocol.PERSIST)(request, metadata=self._metadata), settled, self.address
        )
        self._running.add(persist)
        return persist

    async def merge_recordings(self, name: str, parts: str | Sequence[str]) -> RecordingInfo:
        """Does what `Client.merge_recordings` does, with the same arguments."""
        self._check("merge_recordings")
        call = self._channel.unary_stream(_protocol.MERGE_RECORDINGS)(
            merge_request(name, parts), metadata=self._metadata
        )
        last = b""
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                last = data
        except grpc.RpcError as error:
            raise _network.name_proxy(from_rpc_error(error), self.address) from None
        finally:
            call.cancel()
        return merged_recording(last)

    async def stop_recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """Stops a running recording. The rows written so far stay, and the recording can be continued."""
        return await self._call(_calls.stop_recording(name), timeout)

    async def delete_recording(self, name: str, *, timeout: float | None = None) -> int:
        """Removes a recording that is not running. Returns the number of bytes freed."""
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
        """Does what `Client.estimate` does, with the same arguments."""
        settled = estimate_arguments(hook_points, source, text, options)
        try:
            return await self._call(_calls.estimate_capture(settled), timeout)
        except HooklineError as error:
            raise settled.named(error) from None

    async def statistics(
        self, hook_points: str | Sequence[str], source: Any, **options: Unpack[StatisticsArguments]
    ) -> Statistics:
        """Does what `Client.statistics` does, with the same arguments."""
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
        """Does what `Client.capture` does, with the same arguments. Returns an async iterator of batches. `source` can
        also be an async iterable of batches. A synchronous source is read on another thread, so that it does not block
        the event loop."""
        self._check("capture")
        if hasattr(source, "__aiter__"):
            source = FromAsync(source.__aiter__(), asyncio.get_running_loop())
        settled = capture_arguments(hook_points, source, text, options)
        capture = AsyncCapture(self, settled, settled.allocators())
        self._running.add(capture)
        return capture

    def _call_of(self, method: str, messages: Any, metadata: Any) -> Any:
        """Starts a capture's call. `messages` is one request, or an iterator of several."""
        self._check("capture")
        metadata = [*self._metadata, *metadata]
        if isinstance(messages, bytes):
            return self._channel.unary_stream(method)(messages, metadata=metadata)
        return self._channel.stream_stream(method)(messages, metadata=metadata)

    async def _call(self, unary: UnaryCall[Answer], timeout: float | None) -> Answer:
        self._check(unary.method.rpartition("/")[2])
        timeout = None if timeout is None else seconds("timeout", timeout)
        call = self._channel.unary_unary(unary.method)(unary.request.SerializeToString(), metadata=self._metadata)
        try:
            # grpcio's own deadlines are times of the wall clock, which can be set meanwhile.
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
