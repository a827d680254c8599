"""Computes which rows of a sequence a sampling selection keeps, as server/capture/selection.h specifies it."""

from __future__ import annotations

from typing import Any

import numpy as np

from hookline._order import mix
from hookline.types import Selection

_MASK = (1 << 64) - 1


def kept_rows(selection: Selection, sequence: int, ids: Any) -> np.ndarray[Any, Any]:
    """Returns a mask over the rows of a sequence that the selection keeps without `sample_rows`: True for the rows that
    it samples. `sequence`: the sequence's index in the source."""
    ids = np.asarray(ids)
    end = len(ids) + selection.position_end if selection.position_end < 0 else selection.position_end or len(ids)
    positions = np.arange(selection.skip_first, min(end, len(ids)), max(selection.position_stride, 1), dtype=np.uint64)
    if selection.exclude_token_ids:
        positions = positions[~np.isin(ids[positions.astype(np.int64)], selection.exclude_token_ids)]
    kept = np.zeros(len(positions), bool)
    key = np.uint64(mix((mix(selection.seed) + sequence) & _MASK))
    kept[np.argsort(_mix(key + positions), kind="stable")[: selection.sample_rows]] = True
    return kept


def _mix(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Computes `_order.mix` of each number; uint64 arithmetic wraps around as the server's does."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = x ^ (x >> np.uint64(31))
    return mixed
