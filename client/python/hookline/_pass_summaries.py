"""The summary of several captures that follow each other in one pass over a source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hookline.types import CaptureSummary, HookPointSummary


def sum_of(
    before: CaptureSummary, then: CaptureSummary, widths: Mapping[str, int], repeated_rows: int
) -> CaptureSummary:
    """The summary of both. `widths` are those of the hook points, and `repeated_rows` the rows of `before` with which
    `then` began: they count once in `rows`, but twice in all that describes what was computed and sent, the statistics
    included. It ended as `then` did."""
    points = dict(before.hook_points)
    for name, point in then.hook_points.items():
        point = replace(point, rows=point.rows - repeated_rows)
        points[name] = _sum_of_points(points[name], point, widths[name]) if name in points else point
    batches = [before.batches, then.batches]
    return replace(
        then,
        hook_points=points,
        sequences=before.sequences + then.sequences,
        tokens=before.tokens + then.tokens,
        batches=sum(batches),
        mean_batch_fill=_mean([before.mean_batch_fill, then.mean_batch_fill], batches) if any(batches) else 0.0,
        total_seconds=before.total_seconds + then.total_seconds,
        queue_seconds=before.queue_seconds + then.queue_seconds,
        forward_seconds=before.forward_seconds + then.forward_seconds,
        copy_seconds=before.copy_seconds + then.copy_seconds,
        wire_seconds=before.wire_seconds + then.wire_seconds,
        reconnects=before.reconnects + then.reconnects,
    )


def _sum_of_points(before: HookPointSummary, then: HookPointSummary, width: int) -> HookPointSummary:
    rows = [before.statistics_rows, then.statistics_rows]
    # Means leave out what is not finite.
    values = [p.statistics_rows * width - p.nan_count - p.infinity_count for p in (before, then)]
    return HookPointSummary(
        rows=before.rows + then.rows,
        statistics_rows=sum(rows),
        mean_row_norm=_mean([before.mean_row_norm, then.mean_row_norm], rows),
        mean=_mean([before.mean, then.mean], values),
        rms=math.sqrt(_mean([before.rms**2, then.rms**2], values)),
        nan_count=before.nan_count + then.nan_count,
        infinity_count=before.infinity_count + then.infinity_count,
        overflow_count=before.overflow_count + then.overflow_count,
        conversion_error=_combined_error(before, then, values),
    )


def _combined_error(before: HookPointSummary, then: HookPointSummary, values: Sequence[int]) -> float:
    """The relative error of both, each weighed by the squares of its values."""
    points = (before, then)
    squares = [p.rms**2 * count if count else 0.0 for p, count in zip(points, values)]
    total = sum(squares)
    return math.sqrt(sum(p.conversion_error**2 * s for p, s in zip(points, squares)) / total) if total else 0.0


def _mean(means: Sequence[float], weights: Sequence[int]) -> float:
    """The mean of everything, from the means of parts and their sizes; NaN where there is nothing."""
    # A part without a finite value has NaN for its mean, and counts for nothing.
    parts = [(mean, weight) for mean, weight in zip(means, weights) if weight > 0 and not math.isnan(mean)]
    total = sum(weight for _, weight in parts)
    return sum(mean * weight for mean, weight in parts) / total if total else math.nan
