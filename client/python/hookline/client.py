"""Connections to a server, and the models it holds."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

import grpc

from hookline import _calls, _library, _memory, _network, _protocol, _shared_memory
from hookline._arguments import EstimateArguments, PersistArguments
from hookline._arrays import Allocator
from hookline._calls import Answer, UnaryCall
from hookline._connection import Connection, StreamCall
from hookline._native import NativeReceiver
from hookline._receive import GrpcReceiver, Receiver
from hookline._request import CaptureOptions, capture_options, options_among
from hookline._session import Session
from hookline.capture import Capture
from hookline.errors import DeadlineExceededError, HooklineError, InternalError, from_rpc_error
from hookline.model import RemoteModel
from hookline.persist import Persist, persist_request
from hookline.types import (
    CaptureEstimate,
    CaptureStarted,
    DatasetInfo,
    ModelInfo,
    RecordingInfo,
    Retry,
    Selection,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_RETRY = Retry()

AllocatorFactory = Callable[[CaptureStarted], Allocator]


def connect(
    address: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    receiver: str = "auto",
    shared_memory: bool = True,
) -> Client:
    """A client of the server at `address` (`"host:port"`). Nothing is sent yet.

    `credentials`: for a server behind TLS. `receiver` decides how rows are received, with the same results: "grpc" uses
    grpcio alone, "native" the C++ client's library, "auto" the library where it is found. `shared_memory`: whether rows
    come through memory shared with the server, several times as fast, where it runs on this machine and `address` is a
    loopback one; elsewhere, and with False, they come over the wire.

    The first call also tells glibc to keep freed memory mapped, which about doubles the speed of a capture;
    HOOKLINE_MALLOC=default in the environment leaves the allocator alone.
    """
    _network.check_address(address)
    if receiver not in ("auto", "grpc", "native"):
        raise ValueError(f"receiver: {receiver!r} is none of auto, grpc, native")
    _memory.keep_freed_memory()
    return Client(address, credentials, receiver, shared_memory)


class Client:
    """A connection to a server. Thread-safe. Usable as a context manager, which closes it."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None, receiver: str, shared_memory: bool
    ) -> None:
        self.address = address
        if receiver == "native" and credentials is not None:
            raise ValueError('receiver: the C++ client has no TLS; use "grpc" or "auto" with credentials')
        functions = _library.find(receiver) if credentials is None else None
        self._connection = Connection(address, credentials, functions, shared_memory)
        self._offer_memory = _shared_memory.offers(address, shared_memory)
        self._receivers: weakref.WeakSet[Receiver] = weakref.WeakSet()
        self._arguments = (address, credentials, receiver, shared_memory)

    def close(self) -> None:
        """Closes the connection: running captures end with a CancelledError, and every further call says that the
        client is closed. Recordings that the server makes by itself go on. Idempotent."""
        for receiver in list(self._receivers):
            receiver.close()
        self._connection.close()

    def __reduce__(self) -> Any:
        address, credentials, receiver, shared_memory = self._arguments
        if credentials is not None:
            raise TypeError(
                f"a client with credentials cannot be pickled; call hookline.connect({address!r}, credentials=...) in "
                "the other process"
            )
        return Client, (address, None, receiver, shared_memory)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def receiver(self) -> str:
        """How rows are received: "native" or "grpc"."""
        return "native" if self._connection.is_native else "grpc"

    def __repr__(self) -> str:
        return f"<hookline.Client of {self.address}>"

    def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """The models that the server holds, without their hook points."""
        return self._call(_calls.list_models(), timeout)

    def model(self, name: str = "", *, timeout: float | None = None) -> RemoteModel:
        """A model of the server. `name` may be left out where there is only one."""
        return RemoteModel(self, self._call(_calls.get_model(name), timeout))

    def datasets(self, *, timeout: float | None = None) -> tuple[DatasetInfo, ...]:
        """The token datasets that the server holds."""
        return self._call(_calls.list_datasets(), timeout)

    def dataset(self, name: str, *, timeout: float | None = None) -> DatasetInfo:
        """One dataset of the server."""
        return self._call(_calls.get_dataset(name), timeout)

    def recordings(self, *, timeout: float | None = None) -> tuple[RecordingInfo, ...]:
        """The recordings on the server, without their hook points."""
        found: list[RecordingInfo] = []
        token = ""
        while True:
            page, token = self._call(_calls.list_recordings(token), timeout)
            found.extend(page)
            if not token:
                return tuple(found)

    def recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """One recording on the server."""
        return self._call(_calls.get_recording(name), timeout)

    def persist(
        self, name: str, hook_points: str | Sequence[str], source: Any, **options: Unpack[PersistArguments]
    ) -> Persist:
        """Lets the server write a capture's rows, with provenance, to a recording of this name on its own disk; an
        iterator of its progress. `persist(...).wait()` waits for the end.

        source: `hookline.Dataset`, or token ids in a list, array or tensor, which are sent whole.
        options: `max_activations`, `max_activations_by_hook_point`, `dtype`, `model`, `selection` and `deterministic`,
            as for `capture`.

        The same call again joins a recording that runs, continues one that was ended early, and finds a complete one.
        """
        settled, request = persist_request(name, hook_points, source, options)
        try:
            return Persist(StreamCall(self._connection, _protocol.PERSIST, request))
        except HooklineError as error:
            raise settled.named(error) from None

    def stop_recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """Ends a running recording after its last rows; what is written stays and can be continued."""
        return self._call(_calls.stop_recording(name), timeout)

    def delete_recording(self, name: str, *, timeout: float | None = None) -> int:
        """Removes a recording that is not running. The bytes that this gave back."""
        return self._call(_calls.delete_recording(name), timeout)

    def capture(
        self,
        hook_points: str | Sequence[str],
        source: Any,
        *,
        max_activations: int | None = None,
        max_activations_by_hook_point: Mapping[str, int] | None = None,
        dtype: Any = None,
        batch_rows: int = 4096,
        model: str = "",
        selection: Selection | None = None,
        provenance: bool = False,
        deterministic: bool = False,
        record_as: str = "",
        shuffle_buffer: int = 0,
        seed: int = 0,
        prefetch: int = 2,
        output: str = "auto",
        pin_memory: bool = False,
        max_message_bytes: int = 0,
        retry: Retry | None = DEFAULT_RETRY,
    ) -> Capture:
        """Streams the rows of hook points; an iterator of `{hook point: (rows, width) tensor}`.

        hook_points: names and wildcards (`"blocks.*.hook_resid_post"`, `"blocks.{2,5}.hook_mlp_out"`).
        source: a list, array or tensor of token ids (one sequence, or a batch of them), or an iterable of such batches,
            for example a DataLoader, streamed with backpressure both ways; `hookline.Dataset` or `hookline.Feed` for
            tokens that the server reads itself; `hookline.Recording` for rows that it recorded. Members of a batch
            beside the ids, such as targets, are left out.
        max_activations: most rows for each hook point; None: as many as the server allows.
        max_activations_by_hook_point: budgets that differ, by name.
        dtype: "float32", "bfloat16" or "float16", or torch's or numpy's name of it. Converted by the server. None:
            float32, or a recording's own, in which its rows always come; another is a ValueError.
        batch_rows: rows of every batch but the last.
        model: which one; may be left out where the server has one.
        selection: which rows of a sequence are kept.
        provenance: whether batches carry `sequence`, `position` and `token_id` of each row.
        deterministic: whether rows must not depend on who else is connected, not even in the last bit.
        record_as: also writes the rows to a recording of this name on the server.
        shuffle_buffer: mixes rows through a buffer of that many; 0: in the source's order.
        seed: of the mixing.
        prefetch: batches kept ready for the loop beside the one that is being received, at least 1. More help a loop of
            uneven steps; each costs its memory, and speed once all no longer fit into the processor's cache.
        output: "torch", "numpy", or "auto": torch where it is installed.
        pin_memory: page-locked torch tensors, for copies to a GPU that overlap its work.
        max_message_bytes: largest message to send; 0: the server's choice of about 1 MiB, which is fastest.
        retry: what to do when the connection breaks; None: raise. Rows are neither repeated nor lost by it.

        What the server objects to is raised by the first step of the iterator, or by `started`.
        """
        options = capture_options(
            hook_points=hook_points,
            source=source,
            model=model,
            max_activations=max_activations,
            max_activations_by_hook_point=max_activations_by_hook_point,
            dtype=dtype,
            batch_rows=batch_rows,
            selection=selection,
            provenance=provenance,
            deterministic=deterministic,
            record_as=record_as,
            max_message_bytes=max_message_bytes,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            prefetch=prefetch,
            output=output,
            pin_memory=pin_memory,
            retry=retry,
        )
        return self.run(options)

    def run(self, options: CaptureOptions) -> Capture:
        """`capture` of options that are settled."""
        allocators = options.allocators()
        return Capture(self.receive(options, allocators), options, allocators)

    def receive(self, options: CaptureOptions, allocators: AllocatorFactory) -> Receiver:
        """The receiver under a capture, for callers that have memory of their own to receive into."""
        receiver: Receiver
        if self._connection.is_native:
            receiver = NativeReceiver(self._connection, options, allocators)
        else:
            session = Session(options, allocators, self._offer_memory)
            receiver = GrpcReceiver(self._connection, session, options.prefetch)
        self._receivers.add(receiver)
        return receiver

    def estimate(
        self,
        hook_points: str | Sequence[str],
        source: Any,
        *,
        timeout: float | None = None,
        **options: Unpack[EstimateArguments],
    ) -> CaptureEstimate:
        """The estimated rows, bytes and time of a capture with these arguments; nothing is run. TypeError for an
        iterator, which would be used up by it.

        options: `max_activations`, `max_activations_by_hook_point`, `dtype`, `model` and `selection`, as for `capture`.
        """
        settled = options_among(EstimateArguments.__annotations__, "an estimate", hook_points, source, options)
        try:
            return self._call(_calls.estimate_capture(settled), timeout)
        except HooklineError as error:
            raise settled.named(error) from None

    def _call(self, unary: UnaryCall[Answer], timeout: float | None) -> Answer:
        # On the wire a call of one answer is one of several, and this kind can be cancelled. grpcio's own time-outs end
        # at a time of the wall clock, at once or never where that has been set since the program began.
        call = StreamCall(self._connection, unary.method, unary.request.SerializeToString())
        passed = threading.Event()

        def end() -> None:
            passed.set()
            call.cancel()

        timer = None if timeout is None else threading.Timer(timeout, end)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            answers = list(call)
        except grpc.RpcError as error:
            if passed.is_set():
                raise DeadlineExceededError(f"{self.address} has not answered within {timeout} s") from None
            raise _network.name_proxy(from_rpc_error(error), self.address) from None
        finally:
            if timer is not None:
                timer.cancel()
            call.cancel()
        if len(answers) != 1:
            raise InternalError(f"the server answered with {len(answers)} messages instead of one")
        return unary.read(unary.response_class.FromString(answers[0]))
