"""Adds up the summaries of one capture's calls, and of the captures of one pass over a source.

client/cpp/merge_summaries.h does the former in C++.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hookline import _protocol
from hookline.types import CaptureStarted, CaptureSummary, HookPointSummary


def merge_summaries(started: CaptureStarted, before: Any, now: Any) -> Any:
    """Merges the CaptureSummary messages of two calls of a capture, `before` and the call `now` that continued it.
    Counts and times are sums, and statistics cover the rows of both. The stop reason, `rows` and the resume token are
    those of `now`."""
    merged = _protocol.CaptureSummary.FromString(now.SerializeToString())
    for granted, a, b, point in zip(started.hook_points, before.hook_points, now.hook_points, merged.hook_points):
        if not b.mean_vector:  # with statistics_only, each call starts over
            for name, value in _statistics_of_both(started.top_k or granted.width, a, b).items():
                setattr(point, name, value)
    for name, value in _counts_of_both(before, now).items():
        setattr(merged, name, value)
    for field in merged.timing.DESCRIPTOR.fields:
        setattr(merged.timing, field.name, getattr(before.timing, field.name) + getattr(now.timing, field.name))
    return merged


def sum_of(
    before: CaptureSummary, then: CaptureSummary, widths: Mapping[str, int], repeated_rows: int
) -> CaptureSummary:
    """Adds up the summaries of two captures that follow each other in one pass. `widths` are those of the hook points.
    `repeated_rows` is how many of the last rows of `before` came again at the beginning of `then`: they count once in
    `rows`, but twice in everything that describes what was computed and sent, the statistics included. The stop reason
    is that of `then`."""
    points = dict(before.hook_points)
    for name, point in then.hook_points.items():
        point = replace(point, rows=point.rows - repeated_rows)
        points[name] = _sum_of_points(points[name], point, widths[name]) if name in points else point
    times = ("total_seconds", "queue_seconds", "forward_seconds", "copy_seconds", "wire_seconds", "reconnects")
    sums = {name: getattr(before, name) + getattr(then, name) for name in times}
    return replace(then, hook_points=points, **_counts_of_both(before, then), **sums)


def _sum_of_points(before: HookPointSummary, then: HookPointSummary, width: int) -> HookPointSummary:
    return replace(then, rows=before.rows + then.rows, **_statistics_of_both(width, before, then))


def _counts_of_both(a: Any, b: Any) -> dict[str, Any]:
    """Adds up the counts of `a` and `b`: CaptureSummary messages or dataclasses, whose fields have the same names."""
    counts: dict[str, Any] = {name: getattr(a, name) + getattr(b, name) for name in ("sequences", "tokens", "batches")}
    counts["mean_batch_fill"] = _mean(a.mean_batch_fill, a.batches, b.mean_batch_fill, b.batches)
    return counts


def _statistics_of_both(width: int, a: Any, b: Any) -> dict[str, Any]:
    """Combines the statistics of `a` and `b`: HookPointSummary messages or dataclasses, whose fields have the same
    names. Means of values are weighted by the number of finite values, and norms by rows, as the server does within
    a call."""
    a_values, b_values = (p.statistics_rows * width - p.nan_count - p.infinity_count for p in (a, b))
    if a_values or b_values:
        # A row without finite values counts with norm 0, unless no row has finite values: then the mean is NaN.
        a_norm, b_norm = (p.mean_row_norm if values else 0.0 for p, values in ((a, a_values), (b, b_values)))
        norm = _mean(a_norm, a.statistics_rows, b_norm, b.statistics_rows)
    else:
        norm = a.mean_row_norm + b.mean_row_norm
    counts = ("statistics_rows", "nan_count", "infinity_count", "overflow_count", "truncated_rows")
    statistics: dict[str, Any] = {name: getattr(a, name) + getattr(b, name) for name in counts}
    statistics["mean_row_norm"] = norm
    statistics["mean"] = _mean(a.mean, a_values, b.mean, b_values)
    statistics["rms"] = math.sqrt(_mean(a.rms**2, a_values, b.rms**2, b_values))
    a_squares, b_squares = (p.rms**2 * values if values else 0.0 for p, values in ((a, a_values), (b, b_values)))
    statistics["conversion_error"] = math.sqrt(
        _mean(a.conversion_error**2, a_squares, b.conversion_error**2, b_squares)
    )
    return statistics


def _mean(a: float, a_weight: float, b: float, b_weight: float) -> float:
    """The weighted mean. A mean of weight 0 does not count, even if it is NaN because there were no values."""
    if a_weight == 0 and b_weight == 0:
        return a + b
    return ((a * a_weight if a_weight else 0.0) + (b * b_weight if b_weight else 0.0)) / (a_weight + b_weight)
