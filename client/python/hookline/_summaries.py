"""Adds up what the calls of one capture say of themselves; client/cpp/merge_summaries.h in Python."""

from __future__ import annotations

import math
from typing import Any

from hookline import _protocol
from hookline.types import CaptureStarted


def merge_summaries(started: CaptureStarted, before: Any, now: Any) -> Any:
    """The CaptureSummary of a capture whose call with the summary `before` was continued by a call with the summary
    `now`. Counts and times are sums, and statistics cover the rows of both. The stop reason, `rows` and the resume
    token are those of `now`."""
    merged = _protocol.CaptureSummary.FromString(now.SerializeToString())
    for granted, a, b, point in zip(started.hook_points, before.hook_points, now.hook_points, merged.hook_points):
        if not b.mean_vector:  # statistics_only begins anew in each call
            _merge_hook_point(started.top_k or granted.width, a, b, point)
    for name in ("sequences", "tokens", "batches"):
        setattr(merged, name, getattr(before, name) + getattr(now, name))
    merged.mean_batch_fill = _mean(before.mean_batch_fill, before.batches, now.mean_batch_fill, now.batches)
    for field in merged.timing.DESCRIPTOR.fields:
        setattr(merged.timing, field.name, getattr(before.timing, field.name) + getattr(now.timing, field.name))
    return merged


def _merge_hook_point(width: int, a: Any, b: Any, merged: Any) -> None:
    """Means of values are weighted by the finite values, and norms by rows, as the server does within a call."""
    a_values, b_values = (p.statistics_rows * width - p.nan_count - p.infinity_count for p in (a, b))
    if a_values or b_values:
        # A row without a finite value has the norm 0 in the mean, unless there is no other row: then the mean is NaN.
        a_norm, b_norm = (p.mean_row_norm if values else 0.0 for p, values in ((a, a_values), (b, b_values)))
        merged.mean_row_norm = _mean(a_norm, a.statistics_rows, b_norm, b.statistics_rows)
    else:
        merged.mean_row_norm = a.mean_row_norm + b.mean_row_norm
    merged.mean = _mean(a.mean, a_values, b.mean, b_values)
    merged.rms = math.sqrt(_mean(a.rms**2, a_values, b.rms**2, b_values))
    a_squares, b_squares = (p.rms**2 * values if values else 0.0 for p, values in ((a, a_values), (b, b_values)))
    merged.conversion_error = math.sqrt(_mean(a.conversion_error**2, a_squares, b.conversion_error**2, b_squares))
    for name in ("statistics_rows", "nan_count", "infinity_count", "overflow_count"):
        setattr(merged, name, getattr(a, name) + getattr(b, name))


def _mean(a: float, a_weight: float, b: float, b_weight: float) -> float:
    """The weighted mean. A mean without weight counts for nothing, even if it is NaN because there were no values."""
    if a_weight == 0 and b_weight == 0:
        return a + b
    return ((a * a_weight if a_weight else 0.0) + (b * b_weight if b_weight else 0.0)) / (a_weight + b_weight)
