"""Connections to a server, and the methods that it offers."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

import grpc

from hookline import _calls, _library, _protocol, _shared_memory
from hookline._arguments import (
    CaptureArguments,
    EstimateArguments,
    PersistArguments,
    ScoreArguments,
    StatisticsArguments,
    SubstituteArguments,
)
from hookline._arrays import Allocator
from hookline._calls import Answer, UnaryCall
from hookline._connection import Connection, StreamCall
from hookline._counts import seconds
from hookline._joined import JoinedReceiver
from hookline._native import NativeReceiver
from hookline._notes import notes_of_end, notes_of_start
from hookline._receive import GrpcReceiver, Receiver
from hookline._request import CaptureOptions, capture_arguments, estimate_arguments
from hookline._security import Security
from hookline._session import Session
from hookline._two_way_call import TwoWayCall
from hookline.capture import Capture
from hookline.errors import DeadlineExceededError, HooklineError, InternalError
from hookline.evaluate import LossRecovered, loss_recovered
from hookline.examples import ExamplesReader, TopActivations, examples_request
from hookline.model import RemoteModel
from hookline.persist import PersistRun, merge_request, merged_recording, persist_request
from hookline.scores import Intervention, Scores, score_options
from hookline.statistics import Statistics, receiver_statistics, statistics_options
from hookline.substitute import Substituted, substitution
from hookline.types import (
    CaptureEstimate,
    CaptureStarted,
    Dataset,
    DatasetInfo,
    Dictionary,
    ModelInfo,
    Recording,
    RecordingInfo,
    Text,
    TokenizedText,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

AllocatorFactory = Callable[[CaptureStarted], Allocator]


class Client:
    """A connection to a server. Thread-safe. Also a context manager, which closes the connection."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        receiver: str,
        shared_memory: bool,
        security: Security,
    ) -> None:
        self.address = address
        if receiver == "native" and credentials is not None:
            raise ValueError(
                "receiver: the C++ client cannot use grpcio's credentials; give tls=hookline.Tls(...), or use "
                '"grpc" or "auto"'
            )
        functions = _library.find(receiver) if credentials is None else None
        self._connection = Connection(address, credentials, functions, shared_memory, security)
        self._offer_memory = _shared_memory.offers(address, shared_memory)
        self._receivers: weakref.WeakSet[Receiver] = weakref.WeakSet()
        self._arguments = (address, credentials, receiver, shared_memory, security)

    def close(self) -> None:
        """Closes the connection. Running captures end with a CancelledError, and every later call raises an error that
        says that the client is closed. Recordings that the server is making go on. Idempotent."""
        for receiver in list(self._receivers):
            receiver.close()
        self._connection.close()

    def __reduce__(self) -> Any:
        address, credentials, receiver, shared_memory, security = self._arguments
        if credentials is not None:
            raise TypeError(
                f"a client with credentials cannot be pickled; call hookline.connect({address!r}, credentials=...) in "
                "the other process"
            )
        return Client, (address, None, receiver, shared_memory, security)

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
        return self.call(_calls.list_models(), timeout)

    def model(self, name: str = "", *, timeout: float | None = None) -> RemoteModel:
        """A model of the server. `name` can be left out if there is only one."""
        return RemoteModel(self, self.call(_calls.get_model(name), timeout))

    def tokenize(
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
        return self.call(_calls.tokenize(texts, model, add_special_tokens), timeout)

    def detokenize(
        self,
        sequences: Sequence[Any],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """The text of each sequence of token ids."""
        return self.call(_calls.detokenize(sequences, model, skip_special_tokens), timeout)

    def datasets(self, *, timeout: float | None = None) -> tuple[DatasetInfo, ...]:
        """The token datasets that the server holds."""
        return self.call(_calls.list_datasets(), timeout)

    def dictionaries(self, *, timeout: float | None = None) -> tuple[Dictionary, ...]:
        """The sparse dictionaries that the server holds beside its models."""
        return self.call(_calls.list_dictionaries(), timeout)

    def dataset(self, name: str, *, timeout: float | None = None) -> DatasetInfo:
        """One dataset of the server."""
        return self.call(_calls.get_dataset(name), timeout)

    def recordings(self, *, timeout: float | None = None) -> tuple[RecordingInfo, ...]:
        """The recordings on the server, without their hook points."""
        found: list[RecordingInfo] = []
        token = ""
        while True:
            page, token = self.call(_calls.list_recordings(token), timeout)
            found.extend(page)
            if not token:
                return tuple(found)

    def recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """One recording on the server."""
        return self.call(_calls.get_recording(name), timeout)

    def persist(
        self, name: str, hook_points: str | Sequence[str], source: Any, **options: Unpack[PersistArguments]
    ) -> PersistRun:
        """Lets the server write a capture's rows, with provenance, to a recording of this name on its own disk. Returns
        an iterator of the progress; `persist(...).wait()` waits for the end.

        source: `hookline.Dataset`, `hookline.Text`, or token ids in a list, array or tensor, which are sent whole.
        options: `max_activations`, `max_activations_by_hook_point`, `dtype`, `model`, `selection`, `deterministic` and
            `top_k`, as for `capture`; and `part`, `(index, count)`, which records only part `index` (from 0) of `count`
            equal parts of the dataset's sequences, for `merge_recordings`. `max_activations` is then the budget of all
            parts together.

        The same call again joins a running recording, continues one that ended early, and returns a complete one.
        """
        settled, request = persist_request(name, hook_points, source, options)
        return PersistRun(StreamCall(self._connection, _protocol.PERSIST, request), settled)

    def score(
        self,
        source: Any,
        variants: Mapping[str, Sequence[Intervention]] | None = None,
        **outputs: Unpack[ScoreArguments],
    ) -> Scores:
        """Scores sequences as they are and under each variant, which is a name with a list of interventions. Returns an
        iterator of `SequenceScore`; `score(...).wait()` returns the summary alone.

        source: `hookline.Dataset`, `hookline.Text`, or token ids in a list, array or tensor, which are sent whole.
        outputs: what to compute beside the mean losses: `per_token_loss`, `kl` (from the clean pass), `top_logits` (how
            many at each position), `log_probability_token_ids`, `hook_points` (their rows, after the interventions),
            `rows_only` (no logits are computed), `loss_recovered`; and `model`.
        """
        options = score_options(source, variants, outputs)
        return Scores(StreamCall(self._connection, _protocol.SCORE, options.request), options)

    def substitute(
        self,
        source: Any,
        hook_point: str | Sequence[str],
        replace: Any,
        variants: Mapping[str, Sequence[Intervention]] | None = None,
        **options: Unpack[SubstituteArguments],
    ) -> Substituted:
        """Does what `score` does, with a variant "substituted" whose rows at one or several hook points are computed by
        `replace` in this program while the forward pass waits. It is meant for dictionaries that live in this program.

        replace: a torch module, or a function from the rows (tokens, width) of a forward pass to rows of the same
            shape; or a mapping with one of these for each hook point. A function can return None, which leaves all rows
            as they are, or rows and a mask (tokens,), which leaves rows as they are where it is False. It is called by
            the thread that iterates, hook points in order of depth; a module gets rows on its own device, in its dtype.
            An exception that it raises ends the call.
        variants: further variants, as for `score`, in the same forward passes.
        options: `positions`, `ignore_token_ids` and `head` as `Intervention` takes them; `variant`, another name than
            "substituted"; `places`, which calls functions with a second argument, a `RowsPlace`; `output`: "torch" or
            "numpy" rows, or "auto" as for `capture`; and the outputs of `score`.
        """
        settled = substitution(source, hook_point, replace, variants, options)
        return Substituted(TwoWayCall(self._connection, _protocol.SUBSTITUTE, settled.request), settled)

    def loss_recovered(
        self, sae: Any, hook_point: str, source: Any, *, model: str = "", ignore_token_ids: Sequence[int] = ()
    ) -> LossRecovered:
        """Measures an autoencoder as SAELens's `run_evals` does: the losses with the rows as they are, with their
        reconstruction and with zeros in their place, KL divergences, L0, explained variance and cosine similarity.

        sae: an object of SAELens, sparsify or dictionary_learning, or a torch module or function from rows (tokens,
            width) to rows. It runs in this program. The model runs on the server: clean, with the reconstruction and
            with zeros in one forward pass, which is computed once up to the hook point. An autoencoder of a single head
            (SAELens's `hook_head_index`) is given that head's rows, and only they are replaced.
        source: as for `score`.
        ignore_token_ids: rows of these tokens are left as they are, and do not count.
        """
        return loss_recovered(self, sae, hook_point, source, model=model, ignore_token_ids=ignore_token_ids)

    def top_activations(
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
        """Runs a dataset of the server once and finds, for each of these latents of one of the server's dictionaries,
        the tokens at which the latent is largest, how often it is above 0, and how the values above 0 are distributed.
        The results are exact over the dataset.

        top: how many tokens to keep for each latent.
        context: how many tokens to return with each kept token, itself included.
        ignore_token_ids: tokens at which every latent counts as 0, such as the first of a sequence.
        quantiles: the shares whose quantiles are wanted; empty: from 0.01 to 0.99.
        checkpoint: a file that keeps what was found so far, written after every `checkpoint_sequences` sequences. If
            the file exists, the call continues from it, with the same result. The file is removed at the end.
        """
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
        call = StreamCall(self._connection, _protocol.TOP_ACTIVATIONS, request.SerializeToString())
        try:
            for data in call:
                reader.read(data)
        except grpc.RpcError as error:
            raise call.exception(error) from None
        finally:
            call.cancel()
        return reader.finished()

    def stop_recording(self, name: str, *, timeout: float | None = None) -> RecordingInfo:
        """Stops a running recording. The rows written so far stay, and the recording can be continued."""
        return self.call(_calls.stop_recording(name), timeout)

    def delete_recording(self, name: str, *, timeout: float | None = None) -> int:
        """Removes a recording that is not running. Returns the number of bytes freed."""
        return self.call(_calls.delete_recording(name), timeout)

    def merge_recordings(self, name: str, parts: str | Sequence[str]) -> RecordingInfo:
        """Lets the server merge the recordings of consecutive parts of a dataset, which several servers wrote, into
        one, and verify all checksums.

        parts: in any order: `"NAME"` on this server, `"FOLDER/NAME"` of another server that shares its directory, or
            `"*/NAME"`, the recordings of this name in all folders (`--recordings-folder`).

        Files are linked, so the parts can be deleted afterwards. The same call again returns the recording that it
        made. FailedPreconditionError if two parts differ, overlap or leave a gap; it names them, with both values.
        """
        call = StreamCall(self._connection, _protocol.MERGE_RECORDINGS, merge_request(name, parts))
        last = b""
        try:
            for data in call:
                last = data
        except grpc.RpcError as error:
            raise call.exception(error) from None
        finally:
            call.cancel()
        return merged_recording(last)

    def capture(
        self,
        hook_points: str | Sequence[str],
        source: Any = None,
        *,
        text: str | Sequence[str] | Text | None = None,
        **options: Unpack[CaptureArguments],
    ) -> Capture:
        """Streams the rows of hook points. Returns an iterator of `{hook point: (rows, width) tensor}`.

        hook_points: names and wildcards (`"blocks.*.hook_resid_post"`, `"blocks.{2,5}.hook_mlp_out"`).
        source: a list, array or tensor of token ids (one sequence, or a batch of them), or an iterable of such batches,
            for example a DataLoader, streamed with backpressure both ways; `hookline.Dataset` or `hookline.Feed` for
            tokens that the server reads itself; `hookline.Recording` for rows that the server recorded, in one
            recording or several. Members of a batch beside the ids, such as targets, are left out.
        text: one or several texts instead of a source, which the model's tokenizer turns into sequences;
            `hookline.Text` has more options.
        max_activations: the most rows for each hook point; None: as many as the server allows.
        max_activations_by_hook_point: budgets of single hook points, by name.
        dtype: "float32", "bfloat16" or "float16", or torch's or numpy's dtype. The server converts. None: float32, or
            a recording's own dtype; for a recording any other is a ValueError. "float8_e4m3" and "int8" are sent with
            one scale per row, in a quarter of float32's bytes, and returned as float32; `summary` has the error of
            that conversion.
        batch_rows: the rows of every batch but the last; 4096 by default.
        model: the name of the model; can be left out if the server has only one.
        selection: which rows of a sequence are kept.
        provenance: whether batches carry `sequence`, `position` and `token_id` of each row.
        deterministic: whether rows must not depend on other clients' requests, not even in the last bit.
        top_k: sends only this many entries of each row, those of largest magnitude; batches then hold a
            `hookline.TopK`. 0: all entries.
        record_as: also writes the rows to a recording of this name on the server.
        shuffle_buffer: mixes rows through a buffer of this many rows; 0: rows come in the source's order.
        seed: of the mixing.
        prefetch: batches kept ready for the loop beside the one that is being received, at least 1; 2 by default. A
            larger number helps a loop with uneven steps. Each batch costs memory, and speed once they no longer fit
            into the processor's cache together.
        output: "torch", "numpy", or "auto", the default: torch if it is installed.
        pin_memory: allocates page-locked torch tensors, for copies to a GPU that overlap its work.
        max_message_bytes: the largest message to send; 0: the server's choice of about 1 MiB, which is fastest.
        retry: what to do when the connection breaks, `hookline.Retry()` by default; None: raise the error. After a
            reconnect no row is repeated or lost.

        An error of the server is raised by the first step of the iterator, or by `started`.
        """
        return self.run(capture_arguments(hook_points, source, text, options))

    def run(self, options: CaptureOptions) -> Capture:
        """Does what `capture` does, with checked options."""
        allocators = options.allocators()
        return Capture(self.receive(options, allocators), options, allocators)

    def receive(self, options: CaptureOptions, allocators: AllocatorFactory) -> Receiver:
        """Opens the receiver under a capture, for callers that receive into memory of their own."""
        receiver: Receiver
        if isinstance(options.source, Recording) and options.source.is_joined:
            receiver = JoinedReceiver(self._find_recording, options, allocators, None)
        elif self._connection.is_native:
            receiver = NativeReceiver(self._connection, options, allocators)
        else:
            session = Session(options, allocators, self._offer_memory)
            receiver = GrpcReceiver(self._connection, session, options.prefetch)
        self._receivers.add(receiver)
        return receiver

    def _find_recording(self, name: str) -> tuple[Client, str]:
        """Returns this client, and the name on this server of a recording in a list."""
        address, slash, own = name.rpartition("/")
        if slash and address != self.address:
            raise ValueError(
                f"source: recording {name!r} is on server {address!r}, but this client is of {self.address}"
            )
        return self, own

    def estimate(
        self,
        hook_points: str | Sequence[str],
        source: Any = None,
        *,
        text: str | Sequence[str] | Text | None = None,
        timeout: float | None = None,
        **options: Unpack[EstimateArguments],
    ) -> CaptureEstimate:
        """Estimates the rows, bytes and time of a capture with these arguments; nothing is run. TypeError if the source
        is an iterator, since reading it would use it up.

        options: `max_activations`, `max_activations_by_hook_point`, `dtype`, `model`, `selection` and `top_k`, as for
            `capture`.
        """
        settled = estimate_arguments(hook_points, source, text, options)
        try:
            return self.call(_calls.estimate_capture(settled), timeout)
        except HooklineError as error:
            raise settled.named(error) from None

    def statistics(
        self, hook_points: str | Sequence[str], source: Any, **options: Unpack[StatisticsArguments]
    ) -> Statistics:
        """Returns statistics of the rows of a capture with these arguments. The server computes them, and sends no
        rows. Blocks until the source or the budgets end.

        source: as for `capture`, except recordings.
        options: `max_activations`, `max_activations_by_hook_point`, `dtype`, `model`, `selection`, `deterministic`,
            `top_k` and `retry`, as for `capture`.
        """
        settled = statistics_options(hook_points, source, options)
        receiver = self.receive(settled, settled.allocators())
        try:
            while receiver.next() is not None:
                pass
            started, summary = receiver.started(), receiver.summary
            notes = notes_of_end(settled, started, summary) if summary is not None else []
            for note in [*notes_of_start(settled, started), *notes]:
                warnings.warn(note, stacklevel=2)
            return receiver_statistics(started, summary)
        finally:
            receiver.close()

    def call(self, unary: UnaryCall[Answer], timeout: float | None) -> Answer:
        """Makes a call with one answer. DeadlineExceededError after `timeout` seconds; None: no limit."""
        # Unary and streamed answers look alike on the wire, and a stream can be cancelled. grpcio's own deadlines are
        # times of the wall clock: they pass at once or never if the clock has been set since the program began.
        timeout = None if timeout is None else seconds("timeout", timeout)
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
            raise call.exception(error) from None
        finally:
            if timer is not None:
                timer.cancel()
            call.cancel()
        if len(answers) != 1:
            raise InternalError(f"the server answered with {len(answers)} messages instead of one")
        return unary.read(unary.response_class.FromString(answers[0]))
