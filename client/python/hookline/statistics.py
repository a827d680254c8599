"""Statistics of hook points' rows, which the server computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hookline._arguments import StatisticsArguments
from hookline._request import CaptureOptions, capture_options
from hookline.errors import InternalError
from hookline.types import CaptureStarted, CaptureSummary, Recording


@dataclass(frozen=True)
class HookPointStatistics:
    """Statistics of one hook point's rows. Values that are not finite are left out of means and norms."""

    rows: int
    mean_vector: np.ndarray[Any, Any]  # float32, (width,)
    mean: float  # of all values
    rms: float  # the root mean square of the values
    mean_row_norm: float  # of the rows' L2 norms, like the fields that follow
    row_norm_p1: float  # the 1 % quantile; quantiles are exact to 0.4 %
    row_norm_p50: float
    row_norm_p99: float
    outlier_row_share: float  # the share (0 to 1) of rows whose norm is above 10 medians
    nan_count: int
    infinity_count: int


@dataclass(frozen=True)
class Statistics(Mapping[str, HookPointStatistics]):
    """Maps each hook point to its statistics, in the order of the request; `array` returns one of them for all.

    statistics = client.statistics("blocks.*.hook_resid_post", hookline.Dataset("pile", 256))
    statistics["blocks.3.hook_resid_post"].mean_vector
    statistics.array("row_norm_p50")  # (hook points,)
    """

    hook_points: Mapping[str, HookPointStatistics]
    summary: CaptureSummary

    def __getitem__(self, hook_point: str) -> HookPointStatistics:
        return self.hook_points[hook_point]

    def __iter__(self) -> Iterator[str]:
        return iter(self.hook_points)

    def __len__(self) -> int:
        return len(self.hook_points)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The field `name` of `HookPointStatistics` for all hook points: (hook points,), or for `mean_vector` (hook
        points, width) if all have the same width."""
        return np.array([getattr(point, name) for point in self.hook_points.values()])


def statistics_options(hook_points: str | Sequence[str], source: Any, arguments: StatisticsArguments) -> CaptureOptions:
    """Makes the options from the arguments of `statistics`. TypeError for an argument that it does not take."""
    accepted = sorted(StatisticsArguments.__annotations__)
    unknown = sorted(arguments.keys() - set(accepted))
    if unknown:
        raise TypeError(f"{unknown[0]}: statistics take {', '.join(accepted)}")
    if isinstance(source, Recording):
        raise TypeError("source: statistics of a recording are not available; read its rows with Client.capture")
    # No rows come, so batches are as small as possible: the receiver still allocates one.
    return capture_options(hook_points, source, **arguments, statistics_only=True, batch_rows=1, prefetch=1)


def receiver_statistics(started: CaptureStarted, summary: CaptureSummary | None) -> Statistics:
    """Returns the statistics of a capture that has ended. InternalError if the server sent none."""
    if summary is None or any(point.mean_vector is None for point in summary.hook_points.values()):
        raise InternalError("the server sent no statistics; it is older than this client")
    points = {}
    for granted in started.hook_points:
        told = summary.hook_points[granted.name]
        assert told.mean_vector is not None
        points[granted.name] = HookPointStatistics(
            rows=told.rows,
            mean_vector=told.mean_vector,
            mean=told.mean,
            rms=told.rms,
            mean_row_norm=told.mean_row_norm,
            row_norm_p1=told.row_norm_p1,
            row_norm_p50=told.row_norm_p50,
            row_norm_p99=told.row_norm_p99,
            outlier_row_share=told.outlier_row_share,
            nan_count=told.nan_count,
            infinity_count=told.infinity_count,
        )
    return Statistics(points, summary)
