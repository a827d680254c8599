"""The plain values that requests are made of and that servers answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hookline._counts import count, counts, flag, seconds, string

# A token id is at most this.
LARGEST_ID = 0xFFFFFFFF


def _settle_counts(value: Any, **least: int | None) -> None:
    """Converts these fields of a frozen dataclass to int, and checks that each is at least its value; None stays."""
    for name, smallest in least.items():
        given = getattr(value, name)
        if given is not None:
            object.__setattr__(value, name, count(name, given, smallest))


@dataclass(frozen=True)
class HookPoint:
    """A tensor inside the forward pass that can be captured."""

    name: str
    width: int  # values in a row; heads are flattened into it, head 0 first
    layer: int  # from 0; -1 for one before the first block, the number of layers for one after the last
    description: str
    aliases: tuple[str, ...] = ()  # other names by which it can be captured
    heads: int = 0  # the number of heads that the width is divided into; 0: not divided
    observation: bool = False  # True if nothing reads the value, so that an intervention there is refused


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
    dtype: str  # the dtype in which the model computes: "float32", "bfloat16" or "float16"
    device: str
    fingerprint: str
    parameters: int
    hook_points: tuple[HookPoint, ...]
    evaluates: bool = False  # whether it can be scored
    tokenizer: str = ""  # its file and size, or why there is none
    tokenizer_fingerprint: str = ""  # empty without a tokenizer
    special_tokens: tuple[SpecialToken, ...] = ()


@dataclass(frozen=True)
class Text:
    """Texts, which the model's tokenizer turns into sequences on the server."""

    texts: Sequence[str]  # or one str
    add_special_tokens: bool | None = None  # None: what the tokenizer's own configuration says
    long_texts: str = "refuse"  # or "truncate", "split": what happens to a text that is too long for a sequence

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
    """A text as tokens; each field has one entry per token."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]  # as the vocabulary spells them
    offsets: tuple[tuple[int, int], ...]  # the characters of the text that each covers; (0, 0) for an added token
    special: tuple[bool, ...]


@dataclass(frozen=True)
class Dictionary:
    """A sparse dictionary that the server holds beside a model."""

    name: str
    model: str
    hook_point: str  # the hook point whose rows it encodes
    architecture: str
    format: str  # the library whose files it was read from
    width: int  # of the rows
    latents: int
    max_active: int  # the most latents of a row that can differ from zero; 0: no limit
    fingerprint: str
    hook_points: tuple[str, ...]  # the dictionary's own hook points, which are captured like any other
    output_hook_point: str = ""  # the one whose rows it reconstructs: hook_point, or a transcoder's output
    head: int | None = None  # the head whose part of a row it encodes; None: whole rows


@dataclass(frozen=True)
class Dataset:
    """Consecutive sequences of a dataset that the server holds."""

    name: str
    sequence_length: int = 0  # tokens, without the prepended one; required for a stream of tokens
    first_sequence: int = 0
    sequence_count: int = 0  # 0: all that follow
    prepend_token_id: int | None = None  # usually BOS, which a stream has only where the dataset's author put it
    shuffle_seed: int | None = None  # decides the order, in which each sequence comes once per epoch; None: in order
    epochs: int = 1  # the number of times that all sequences are taken; each epoch is shuffled differently
    skip_sequences: int = 0  # sequences left out at the beginning of that order

    def __post_init__(self) -> None:
        string("name", self.name)
        _settle_counts(self, sequence_length=None, first_sequence=None, sequence_count=None, prepend_token_id=0)
        _settle_counts(self, shuffle_seed=0, epochs=1, skip_sequences=0)


@dataclass(frozen=True)
class Packing:
    """How `hookline.pack` made a dataset, as the sidecar beside the dataset records it."""

    tokenizer_fingerprint: str
    method: str
    options: Mapping[str, str]
    documents: int
    warning: str  # says that the sidecar does not match the dataset, or its tokenizer a model's; else empty


@dataclass(frozen=True)
class DatasetInfo:
    """Token ids on the server's disk."""

    name: str
    tokens: int
    row_length: int  # tokens in a row of the file; 0 for a stream, which is cut at the request's sequence_length
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
    """Selects rows of each sequence. All conditions must hold; rows that are left out do not count towards a budget."""

    skip_first: int = 0  # positions below this one are left out
    position_end: int = 0  # positions from here on are left out; negative: from the end, as in slices; 0: no end
    position_stride: int = 1  # keeps every n-th position, counted from skip_first
    exclude_token_ids: Sequence[int] = ()  # rows of these tokens are left out
    sample_rows: int = 0  # keeps this many of the remaining rows, per sequence; 0: all
    seed: int = 0  # of the sampling
    last_only: bool = False  # keeps only the last of the remaining rows, per sequence

    def __post_init__(self) -> None:
        _settle_counts(self, skip_first=None, position_end=None, position_stride=None, sample_rows=None, seed=None)
        object.__setattr__(self, "last_only", flag("last_only", self.last_only))
        object.__setattr__(
            self, "exclude_token_ids", counts("exclude_token_ids", self.exclude_token_ids, 0, LARGEST_ID)
        )

    def rows_of(self, ids: Any) -> int:
        """The number of rows that are kept of a sequence with these token ids."""
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
    """Lets a capture continue after UNAVAILABLE, with up to `attempts` reconnects in a row that receive no new row. The
    n-th of them waits `initial_seconds` * 2^(n-1), at most `max_seconds`. The defaults are those of every Hookline
    client (client/cpp/resumable_capture.h)."""

    attempts: int = 10
    initial_seconds: float = 0.25
    max_seconds: float = 8.0

    def __post_init__(self) -> None:
        _settle_counts(self, attempts=0)
        for name in ("initial_seconds", "max_seconds"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))

    def delay(self, failures: int) -> float | None:
        """The seconds to wait before the reconnect after this many failures in a row; None: give up."""
        if failures > self.attempts:
            return None
        return float(min(self.initial_seconds * 2.0 ** (failures - 1), self.max_seconds))


@dataclass(frozen=True)
class HookPointGrant:
    """The server's grant for one hook point."""

    name: str
    width: int
    max_activations: int  # rows
    clipped: bool  # True if the server's cap made it smaller than was asked for


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
    """Says what differs if the dataset was packed with a different tokenizer than the model's."""
    batch_tokens: int = 0  # the most tokens in a forward pass; 0: the server does not say


@dataclass(frozen=True)
class HookPointSummary:
    """Describes the rows of one hook point. The statistics cover `statistics_rows`: all rows except those of a call
    whose connection broke before the server sent its summary."""

    rows: int
    statistics_rows: int
    mean_row_norm: float
    mean: float
    rms: float
    nan_count: int
    infinity_count: int
    overflow_count: int = 0  # finite values that float16 made infinite
    conversion_error: float = 0.0  # of float8_e4m3 and int8: relative root mean square error
    truncated_rows: int = 0  # with top_k: rows that had more nonzero entries than were sent
    mean_vector: np.ndarray[Any, Any] | None = field(
        default=None, compare=False
    )  # this and the fields below are set by `Client.statistics` only
    row_norm_p1: float = 0.0
    row_norm_p50: float = 0.0
    row_norm_p99: float = 0.0
    outlier_row_share: float = 0.0


@dataclass(frozen=True)
class CaptureSummary:
    """Says how a capture ended. After reconnects, counts, times and statistics cover every call of the capture that
    sent a summary, which excludes calls whose connection broke."""

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
