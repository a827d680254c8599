"""Builds requests from the arguments that users write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from hookline import _protocol
from hookline._arguments import CaptureArguments, EstimateArguments
from hookline._arrays import RAW_DTYPES, Allocator, dtype_name, make_allocator
from hookline._counts import count, flag, string, strings
from hookline._rows import memory_dtype
from hookline._sources import is_server_source, name_place, place_in, source_batches
from hookline.errors import HooklineError
from hookline.types import CaptureStarted, Dataset, Feed, Recording, Retry, Selection, Text

_DTYPE_NUMBERS = {name: number for number, name in _protocol.DTYPES.items()}
DEFAULT_DTYPE = "float32"
_ON_LAG = {"detach": 1, "wait": 2}
_LONG_TEXTS = {"refuse": 1, "truncate": 2, "split": 3}


@dataclass(frozen=True)
class CaptureOptions:
    """The options of a capture, checked as far as the client can check them."""

    hook_points: Sequence[str]
    source: Any
    model: str = ""
    max_activations: int | None = None
    max_activations_by_hook_point: Mapping[str, int] = field(default_factory=dict)
    dtype: Any = None  # as it was asked for; `dtype_name` says what it means
    batch_rows: int = 4096
    selection: Selection | None = None
    provenance: bool = False
    deterministic: bool = False
    top_k: int = 0
    statistics_only: bool = False
    record_as: str = ""
    max_message_bytes: int = 0
    shuffle_buffer: int = 0
    seed: int = 0
    prefetch: int = 2
    output: str = "auto"
    pin_memory: bool = False
    retry: Retry | None = field(default_factory=Retry)
    skip_rows: int = 0  # rows at the start that are received and dropped
    goes_on: bool = False  # True if another capture follows this one, wherever it ends

    def __post_init__(self) -> None:
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_name(self.dtype))
        least = {"batch_rows": 1, "prefetch": 1, "shuffle_buffer": 0, "seed": 0, "max_message_bytes": 0, "top_k": 0}
        for name, smallest in least.items():
            object.__setattr__(self, name, count(name, getattr(self, name), smallest))
        for name in ("provenance", "deterministic", "pin_memory"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        string("output", self.output)
        for name in ("model", "record_as"):
            object.__setattr__(self, name, string(name, getattr(self, name) or ""))  # None means no name
        if self.max_activations is not None:
            object.__setattr__(self, "max_activations", count("max_activations", self.max_activations))
        by_hook_point = {
            name: count(f"max_activations_by_hook_point[{name!r}]", rows)
            for name, rows in self.max_activations_by_hook_point.items()
        }
        object.__setattr__(self, "max_activations_by_hook_point", by_hook_point)
        if isinstance(self.source, Recording):
            for name in ("model", "selection", "deterministic", "top_k", "statistics_only", "record_as"):
                if getattr(self, name):
                    raise ValueError(f"{name}: leave it out to read a recording, which was made with its own")

    @property
    def method(self) -> str:
        """The full name of the gRPC method that runs the capture."""
        if isinstance(self.source, Recording):
            return _protocol.READ_RECORDING
        return _protocol.CAPTURE_STREAM if self.streams_tokens else _protocol.CAPTURE

    def message(self) -> Any:
        """Makes the CaptureRequest, without a source if the client streams it; or the ReadRecordingRequest."""
        if isinstance(self.source, Recording):
            request = _recording_request(self.source)
        else:
            request = _protocol.CaptureRequest(
                model=self.model,
                dtype=_DTYPE_NUMBERS[self.dtype or DEFAULT_DTYPE],
                deterministic=self.deterministic,
                top_k=self.top_k,
                statistics_only=self.statistics_only,
                record_as=self.record_as,
            )
        request.hook_points.extend(self.hook_points)
        request.provenance = self.provenance
        request.max_message_bytes = self.max_message_bytes
        if self.max_activations is not None:
            request.max_activations = self.max_activations
        for name, rows in self.max_activations_by_hook_point.items():
            request.max_activations_by_hook_point[name] = rows
        if self.selection is not None:
            selection = self.selection
            request.selection.SetInParent()
            request.selection.skip_first = selection.skip_first
            request.selection.position_end = selection.position_end
            request.selection.position_stride = selection.position_stride
            request.selection.exclude_token_ids.extend(selection.exclude_token_ids)
            request.selection.sample_rows = selection.sample_rows
            request.selection.seed = selection.seed
            request.selection.last_only = selection.last_only
        if isinstance(self.source, Dataset):
            fill_dataset(request.dataset, self.source)
        elif isinstance(self.source, Text):
            fill_text(request.text, self.source)
        elif isinstance(self.source, Feed):
            if self.source.on_lag not in _ON_LAG:
                raise ValueError(f"on_lag: {self.source.on_lag!r} is not one of detach, wait")
            request.feed.name = self.source.name
            fill_dataset(request.feed.dataset, self.source.dataset)
            request.feed.start_when_subscribers = self.source.start_when_subscribers
            request.feed.on_lag = _ON_LAG[self.source.on_lag]
        return request

    def whole_message(self) -> Any:
        """Makes the CaptureRequest with its source, even if that is token ids."""
        if isinstance(self.source, Recording):
            raise TypeError("source: reading a recording runs no model; Client.recording says what it holds")
        if hasattr(self.source, "__next__"):
            raise TypeError("source: an iterator cannot be part of a request; give a list, tensor or server dataset")
        request = self.message()
        if self.streams_tokens:
            batches = source_batches(self.source)
            request.tokens.CopyFrom(token_batch([ids for batch in batches for ids in batch.sequences]))
        return request

    def named(self, error: HooklineError) -> HooklineError:
        """Adds the place in the source to an error about a sequence of `whole_message`."""
        if not self.streams_tokens:
            return error
        return name_place(error, lambda index: place_in(list(source_batches(self.source)), index))

    def check_granted(self, started: CaptureStarted) -> None:
        """Raises ValueError if rows have another dtype than was asked for, which can happen with a recording."""
        if self.dtype is not None and started.dtype != self.dtype:
            raise ValueError(
                f"dtype: the recording's rows are {started.dtype}, not {self.dtype}; leave dtype out and convert the "
                "batches"
            )

    def allocators(self) -> Callable[[CaptureStarted], Allocator]:
        """Returns a function that makes the allocator for a grant. ValueError at once for an output that is
        not possible."""
        dtype = self.dtype or DEFAULT_DTYPE
        make_allocator(self.output, dtype if dtype in RAW_DTYPES else "uint8", self.pin_memory)
        return lambda started: make_allocator(self.output, memory_dtype(started), self.pin_memory)

    @property
    def streams_tokens(self) -> bool:
        return not is_server_source(self.source)


def fill_text(message: Any, source: Text) -> None:
    """Fills a TextSource message."""
    fill_texts(message.texts, source.texts)
    message.long_texts = _LONG_TEXTS[source.long_texts]
    if source.add_special_tokens is not None:
        message.add_special_tokens = source.add_special_tokens


def fill_texts(field: Any, texts: Sequence[str]) -> None:
    """Adds the texts to a repeated field. ValueError names one that is not Unicode text."""
    for index, text in enumerate(texts):
        try:
            field.append(text)
        except (UnicodeEncodeError, ValueError) as error:
            raise ValueError(f"text: entry {index} cannot be written as UTF-8: {error}") from None


def source_of(source: Any, text: Any) -> Any:
    """Returns the source of a capture, which was given as `source` or as `text`."""
    if text is None:
        if source is None:
            raise TypeError("source: none was given; give token ids, a hookline.Dataset, or text=...")
        return source
    if source is not None:
        raise TypeError("text: given together with source; a capture takes only one of them")
    return text if isinstance(text, Text) else Text(text)


def capture_options(
    hook_points: str | Sequence[str],
    source: Any,
    max_activations_by_hook_point: Mapping[str, int] | None = None,
    text: Any = None,
    **options: Any,
) -> CaptureOptions:
    """Makes options from the arguments of a `capture` method. `hook_points` can be a single str."""
    source = source_of(source, text)
    return CaptureOptions(
        hook_points=strings("hook_points", hook_points),
        source=source,
        max_activations_by_hook_point=dict(max_activations_by_hook_point or {}),
        **options,
    )


def options_among(
    accepted: Collection[str], taker: str, hook_points: str | Sequence[str], source: Any, arguments: Mapping[str, Any]
) -> CaptureOptions:
    """Makes options from the arguments of a method that takes only those of a capture's that are in `accepted`.
    TypeError for others; its message begins with `taker`, such as "a recording"."""
    unknown = sorted(arguments.keys() - set(accepted))
    if unknown:
        raise TypeError(f"{unknown[0]}: {taker} takes {', '.join(sorted(accepted))}")
    return capture_options(hook_points, source, **arguments)


def capture_arguments(
    hook_points: str | Sequence[str], source: Any, text: Any, arguments: Mapping[str, Any]
) -> CaptureOptions:
    """Makes options from the arguments of `Client.capture`."""
    accepted = {*CaptureArguments.__annotations__, "text"}
    return options_among(accepted, "a capture", hook_points, source, {**arguments, "text": text})


def estimate_arguments(
    hook_points: str | Sequence[str], source: Any, text: Any, arguments: Mapping[str, Any]
) -> CaptureOptions:
    """Makes options from the arguments of `Client.estimate`."""
    accepted = {*EstimateArguments.__annotations__, "text"}
    return options_among(accepted, "an estimate", hook_points, source, {**arguments, "text": text})


def _recording_request(recording: Recording) -> Any:
    if not isinstance(recording.name, str):
        raise TypeError(
            "source: only a client of hookline.connect reads a list of recordings; hookline.aio reads one recording"
        )
    request = _protocol.ReadRecordingRequest(
        name=recording.name, first_row=recording.first_row, row_count=recording.row_count
    )
    if recording.shuffle_seed is not None:
        request.shuffle_seed = recording.shuffle_seed
    return request


def fill_dataset(message: Any, dataset: Dataset) -> None:
    """Fills a proto DatasetSource."""
    message.SetInParent()
    message.name = dataset.name
    message.sequence_length = dataset.sequence_length
    message.first_sequence = dataset.first_sequence
    message.sequence_count = dataset.sequence_count
    if dataset.epochs != 1:
        message.epochs = dataset.epochs
    message.skip_sequences = dataset.skip_sequences
    if dataset.shuffle_seed is not None:
        message.shuffle_seed = dataset.shuffle_seed
    if dataset.prepend_token_id is not None:
        message.prepend_token_id = dataset.prepend_token_id


def token_batch(sequences: Sequence[Any]) -> Any:
    """Makes a TokenBatch message of these sequences."""
    message = _protocol.CaptureStreamRequest()
    for ids in sequences:
        message.tokens.sequences.add().ids.extend(ids.tolist() if hasattr(ids, "tolist") else ids)
    return message.tokens
