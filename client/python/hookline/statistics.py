"""Statistics that the server computes of hook points' rows."""

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
    rms: float  # root of the mean of the values' squares
    mean_row_norm: float  # of L2 norms, as all below
    row_norm_p1: float  # 1 % of the rows are not above; quantiles are exact to 0.4 %
    row_norm_p50: float
    row_norm_p99: float
    outlier_row_share: float  # of the rows with more than 10 medians, 0 to 1
    nan_count: int
    infinity_count: int


@dataclass(frozen=True)
class Statistics(Mapping[str, HookPointStatistics]):
    """Hook point -> its statistics, in the order of the request; `array` has one number of all of them.

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
        """The values that `HookPointStatistics` calls `name`, of all hook points: (hook points,), or (hook points,
        width) of `mean_vector` where they have one width."""
        return np.array([getattr(point, name) for point in self.hook_points.values()])


def statistics_options(hook_points: str | Sequence[str], source: Any, arguments: StatisticsArguments) -> CaptureOptions:
    """Options from the arguments of a `statistics` method. TypeError for an argument that it does not take."""
    accepted = sorted(StatisticsArguments.__annotations__)
    unknown = sorted(arguments.keys() - set(accepted))
    if unknown:
        raise TypeError(f"{unknown[0]}: statistics take {', '.join(accepted)}")
    if isinstance(source, Recording):
        raise TypeError("source: a recording's rows are there already; read them with Client.capture")
    # Memory is made for a batch that never comes.
    return capture_options(hook_points, source, **arguments, statistics_only=True, batch_rows=1, prefetch=1)


def receiver_statistics(started: CaptureStarted, summary: CaptureSummary | None) -> Statistics:
    """The statistics from a capture that has ended. InternalError where the server sent no statistics."""
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
