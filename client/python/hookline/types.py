"""The things that requests name and servers tell, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hookline._counts import count, counts, flag, seconds, string

# A token id is at most this.
LARGEST_ID = 0xFFFFFFFF


def _settle_counts(value: Any, **least: int | None) -> None:
    """Replaces these fields of a frozen dataclass by the whole numbers that they are; None stays."""
    for name, smallest in least.items():
        given = getattr(value, name)
        if given is not None:
            object.__setattr__(value, name, count(name, given, smallest))


@dataclass(frozen=True)
class HookPoint:
    """A tensor inside the forward pass that can be captured."""

    name: str
    width: int  # values in a row; heads are flattened into it, head 0 first
    layer: int  # from 0; -1 before the first block, the number of layers after the last
    description: str
    aliases: tuple[str, ...] = ()  # other names by which it can be captured
    heads: int = 0  # that the width is divided into; 0: it is not
    observation: bool = False  # nothing reads the value: an intervention there is refused


@dataclass(frozen=True)
class ModelInfo:
    """A model that the server holds. `hook_points` is empty in `Client.models()`."""

    name: str
    architecture: str
    variant: str
    details: str
    layers: int
    width: int
    heads: int
    key_value_heads: int
    context_length: int  # tokens
    vocabulary_size: int
    dtype: str  # in which the model computes: "float32", "bfloat16" or "float16"
    device: str
    fingerprint: str
    parameters: int
    hook_points: tuple[HookPoint, ...]
    evaluates: bool = False  # whether it can be scored
    tokenizer: str = ""  # its file and size, or why there is none
    tokenizer_fingerprint: str = ""  # empty without one
    special_tokens: tuple[SpecialToken, ...] = ()


@dataclass(frozen=True)
class Text:
    """Texts, which the model's tokenizer turns into sequences on the server."""

    texts: Sequence[str]  # or one str
    add_special_tokens: bool | None = None  # None: as the tokenizer itself does
    long_texts: str = "refuse"  # or "truncate", "split": what happens to more tokens than a sequence may have

    def __post_init__(self) -> None:
        texts = [self.texts] if isinstance(self.texts, str) else list(self.texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text: entry {index} is {type(text).__name__}, not str")
        if self.long_texts not in ("refuse", "truncate", "split"):
            raise ValueError(f"long_texts: {self.long_texts!r} is not one of refuse, truncate, split")
        object.__setattr__(self, "texts", tuple(texts))


@dataclass(frozen=True)
class SpecialToken:
    """A token that is not text, such as the one that begins a document."""

    role: str  # "bos", "eos", "pad" or "unk"; "" where the tokenizer's files do not say
    id: int
    token: str  # as the vocabulary spells it


@dataclass(frozen=True)
class TokenizedText:
    """A text as tokens; all have one entry a token."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]  # as the vocabulary spells them
    offsets: tuple[tuple[int, int], ...]  # the characters of the text that each covers; (0, 0) for one that was added
    special: tuple[bool, ...]


@dataclass(frozen=True)
class Dictionary:
    """A sparse dictionary that the server holds beside a model."""

    name: str
    model: str
    hook_point: str  # whose rows it encodes
    architecture: str
    format: str  # the library whose files it was read from
    width: int  # of the rows
    latents: int
    max_active: int  # latents of a row that can be other than zero; 0: no limit
    fingerprint: str
    hook_points: tuple[str, ...]  # its own, which are captured as any other
    output_hook_point: str = ""  # whose rows it reconstructs: hook_point, or a transcoder's output
    head: int | None = None  # the head whose part of a row it encodes; None: whole rows


@dataclass(frozen=True)
class Dataset:
    """Consecutive sequences of a dataset that the server holds."""

    name: str
    sequence_length: int = 0  # tokens, without the prepended one; required for a stream of tokens
    first_sequence: int = 0
    sequence_count: int = 0  # 0: all that follow
    prepend_token_id: int | None = None  # usually BOS, which a stream holds only where its maker put it
    shuffle_seed: int | None = None  # takes them in an order that it alone decides, each once an epoch; None: in order
    epochs: int = 1  # how many times, shuffled each time in another order
    skip_sequences: int = 0  # of that order, left out at its beginning

    def __post_init__(self) -> None:
        string("name", self.name)
        _settle_counts(self, sequence_length=None, first_sequence=None, sequence_count=None, prepend_token_id=0)
        _settle_counts(self, shuffle_seed=0, epochs=1, skip_sequences=0)


@dataclass(frozen=True)
class Packing:
    """The way in which `hookline.pack` made a dataset, from the sidecar beside it."""

    tokenizer_fingerprint: str
    method: str
    options: Mapping[str, str]
    documents: int
    warning: str  # if it is not the dataset's, or a model's tokenizer is another one; else empty


@dataclass(frozen=True)
class DatasetInfo:
    """Token ids on the server's disk."""

    name: str
    tokens: int
    row_length: int  # where the file holds rows; 0 for a stream, which is cut at the request's sequence_length
    token_dtype: str
    largest_token_id: int
    fingerprint: str  # equal for files with the same tokens, type and rows
    packing: Packing | None = None  # None without a sidecar


@dataclass(frozen=True)
class Feed:
    """One pass over a dataset that all captures naming the same feed share."""

    name: str
    dataset: Dataset
    start_when_subscribers: int = 0  # members to wait for before the first forward pass; 0 means 1
    on_lag: str = "detach"  # or "wait": the whole feed waits for its slowest member

    def __post_init__(self) -> None:
        string("name", self.name)
        _settle_counts(self, start_when_subscribers=None)


@dataclass(frozen=True)
class Recording:
    """Rows that the server recorded earlier; no model runs. They come in the recording's dtype.

    A list of names reads several recordings as one, in the order of the list. They must hold rows of the same weights
    at the same hook points, in the same form. With a client of several servers a name stands for the recording of the
    one server that has it; `"HOST:PORT/NAME"` says which server.
    """

    name: str | Sequence[str]
    first_row: int = 0
    row_count: int = 0  # 0: all that follow
    shuffle_seed: int | None = None  # sends the rows in an order that this seed alone decides; None: as recorded

    def __post_init__(self) -> None:
        if isinstance(self.name, str) or not isinstance(self.name, Sequence):
            string("name", self.name)
        else:
            names = tuple(string(f"name[{index}]", name) for index, name in enumerate(self.name))
            if not names:
                raise ValueError("name: an empty list; give the names of one or more recordings")
            twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
            if twice is not None:
                raise ValueError(f"name: {twice!r} is given twice")
            object.__setattr__(self, "name", names)
        _settle_counts(self, first_row=None, row_count=None, shuffle_seed=0)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the recordings that are read."""
        return (self.name,) if isinstance(self.name, str) else tuple(self.name)

    @property
    def is_joined(self) -> bool:
        """True if it is a list of recordings, read as one."""
        return not isinstance(self.name, str)


@dataclass(frozen=True)
class RecordedHookPoint:
    """One hook point of a recording."""

    name: str
    width: int
    max_activations: int  # rows asked for
    rows: int  # rows on disk


@dataclass(frozen=True)
class RecordingInfo:
    """Rows on the server's disk. `hook_points` is empty in `Client.recordings()`."""

    name: str
    state: str  # "running", "complete", "stopped", "interrupted" or "failed"
    error: str  # why it failed
    model: str
    fingerprint: str
    hook_points: tuple[RecordedHookPoint, ...]
    dtype: str
    rows: int  # of the hook point that has most
    bytes: int
    top_k: int = 0  # entries of each row; 0: all


@dataclass(frozen=True)
class Selection:
    """Selects rows of each sequence. All conditions must hold; what is dropped counts towards no budget."""

    skip_first: int = 0  # positions below are left out
    position_end: int = 0  # positions from here on are left out; negative: from the end, as in slices; 0: no end
    position_stride: int = 1  # keeps every n-th position, counted from skip_first
    exclude_token_ids: Sequence[int] = ()  # rows of these tokens are left out
    sample_rows: int = 0  # keeps this many of the rows left, per sequence; 0: all
    seed: int = 0  # of the sampling
    last_only: bool = False  # keeps the last of the rows left, per sequence

    def __post_init__(self) -> None:
        _settle_counts(self, skip_first=None, position_end=None, position_stride=None, sample_rows=None, seed=None)
        object.__setattr__(self, "last_only", flag("last_only", self.last_only))
        object.__setattr__(
            self, "exclude_token_ids", counts("exclude_token_ids", self.exclude_token_ids, 0, LARGEST_ID)
        )

    def rows_of(self, ids: Any) -> int:
        """Rows that a sequence with these token ids brings."""
        end = len(ids) + self.position_end if self.position_end < 0 else min(len(ids), self.position_end or len(ids))
        positions = range(self.skip_first, end, max(self.position_stride, 1))
        rows = len(positions)
        if self.exclude_token_ids:
            excluded = frozenset(self.exclude_token_ids)
            rows -= sum(int(ids[position] in excluded) for position in positions)
        most = 1 if self.last_only else self.sample_rows
        return min(rows, most) if most else rows


@dataclass(frozen=True)
class Retry:
    """Lets a capture go on after UNAVAILABLE: up to `attempts` reconnects without a new row between them, the n-th
    after `initial_seconds` * 2^(n-1), at most `max_seconds`. The defaults are those of every client of Hookline
    (client/cpp/resumable_capture.h)."""

    attempts: int = 10
    initial_seconds: float = 0.25
    max_seconds: float = 8.0

    def __post_init__(self) -> None:
        _settle_counts(self, attempts=0)
        for name in ("initial_seconds", "max_seconds"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))

    def delay(self, failures: int) -> float | None:
        """Seconds before the reconnect after this many failures in a row; None: give up."""
        if failures > self.attempts:
            return None
        return float(min(self.initial_seconds * 2.0 ** (failures - 1), self.max_seconds))


@dataclass(frozen=True)
class HookPointGrant:
    """The server's grant for one hook point."""

    name: str
    width: int
    max_activations: int  # rows
    clipped: bool  # whether the server's cap made it smaller than was asked for


@dataclass(frozen=True)
class CaptureStarted:
    """The server's grant."""

    model: str
    fingerprint: str
    hook_points: tuple[HookPointGrant, ...]
    dtype: str
    max_message_bytes: int
    next_sequence: int
    window_bytes: int
    shared_memory_bytes: int
    """Size of the memory shared with a server on this machine, through which rows come; 0: over the wire."""
    top_k: int = 0  # entries of each row; 0: all
    added_special_tokens: tuple[SpecialToken, ...] = ()
    """The special tokens that were added to each text."""
    tokenizer_warning: str = ""
    """Says what differs, if another tokenizer than the model's has packed the dataset."""
    batch_tokens: int = 0  # most tokens of a forward pass; 0: the server does not say


@dataclass(frozen=True)
class HookPointSummary:
    """The rows of one hook point. The statistics cover `statistics_rows`: all rows, but for those of a call whose
    connection broke before the server could sum it up."""

    rows: int
    statistics_rows: int
    mean_row_norm: float
    mean: float
    rms: float
    nan_count: int
    infinity_count: int
    overflow_count: int = 0  # finite values that float16 made infinite
    conversion_error: float = 0.0  # of float8_e4m3 and int8: relative, root of the mean of squares
    truncated_rows: int = 0  # with top_k: rows that had more entries other than 0 than were sent
    mean_vector: np.ndarray[Any, Any] | None = field(
        default=None, compare=False
    )  # of `Client.statistics`, as all below
    row_norm_p1: float = 0.0
    row_norm_p50: float = 0.0
    row_norm_p99: float = 0.0
    outlier_row_share: float = 0.0


@dataclass(frozen=True)
class CaptureSummary:
    """The end of a capture. After reconnects, counts, times and statistics cover every call of the capture whose
    summary came: that of a call whose connection broke did not."""

    stop_reason: str  # "budget", "source_ended", "cancelled", "shutting_down" or "error"
    hook_points: Mapping[str, HookPointSummary]
    sequences: int
    tokens: int
    batches: int
    mean_batch_fill: float
    total_seconds: float
    queue_seconds: float
    forward_seconds: float
    copy_seconds: float
    wire_seconds: float
    reconnects: int = field(default=0)


@dataclass(frozen=True)
class HookPointEstimate:
    """The estimated rows and bytes of one hook point."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class CaptureEstimate:
    """The estimated rows, bytes and time of a capture."""

    hook_points: Mapping[str, HookPointEstimate]
    sequences: int
    tokens: int
    bytes: int
    seconds: float | None  # None until the server has measured a forward pass
