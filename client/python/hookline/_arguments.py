"""The types of the keyword arguments that methods pass on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from hookline.types import Retry, Selection


class EstimateArguments(TypedDict, total=False):
    """The arguments of `Client.estimate`; `Client.capture` says what each means."""

    max_activations: int | None
    max_activations_by_hook_point: Mapping[str, int] | None
    dtype: Any
    model: str
    selection: Selection | None
    top_k: int


class RowsArguments(EstimateArguments, total=False):
    """The arguments of all methods that compute rows; `Client.capture` says what each means."""

    deterministic: bool


class PersistArguments(RowsArguments, total=False):
    """The arguments of `Client.persist`, which says what `part` means; `Client.capture` describes the others."""

    part: tuple[int, int] | None


class StatisticsArguments(RowsArguments, total=False):
    """The arguments of `Client.statistics`; `Client.capture` says what each means."""

    retry: Retry | None


class ScoreArguments(TypedDict, total=False):
    """The arguments of `Client.score`, which says what each means."""

    model: str
    per_token_loss: bool
    kl: bool
    top_logits: int
    log_probability_token_ids: Sequence[int]
    hook_points: str | Sequence[str]
    rows_only: bool
    loss_recovered: bool


class SubstituteArguments(ScoreArguments, total=False):
    """The arguments of `Client.substitute`, which says what each means."""

    positions: Sequence[int]
    ignore_token_ids: Sequence[int]
    head: int | None
    variant: str
    places: bool
    output: str


class CaptureArguments(RowsArguments, total=False):
    """The arguments of `Client.capture`, which says what each means."""

    batch_rows: int
    provenance: bool
    record_as: str
    shuffle_buffer: int
    seed: int
    prefetch: int
    output: str
    pin_memory: bool
    max_message_bytes: int
    retry: Retry | None
