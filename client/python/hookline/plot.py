"""Plots of statistics. They need matplotlib: `pip install 'hookline[plot]'`.

For example:

    statistics = client.statistics("blocks.*.hook_resid_post", hookline.Dataset("pile", 256))
    hookline.plot.norms(statistics).savefig("norms.png")
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from hookline.statistics import Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def norms(statistics: Statistics, *, axes: Any = None) -> Figure:
    """Draws the rows' norms over the layers, with a colour for each kind of hook point: the median as a line, the mean
    as a dotted line, and the range from the 1 % to the 99 % quantile as an area, on a logarithmic axis. Hook points
    outside the blocks are left out. Returns the figure.

    statistics: what `Client.statistics` returned.
    axes: where to draw; None: a new figure.
    """
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name in statistics:
        match = _BLOCK.match(name)
        if match is not None:
            kinds.setdefault(name[match.end() :], []).append((int(match.group(1)), name))
    if not kinds:
        raise ValueError(f"statistics: none of the {len(statistics)} hook points is in a block")
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(layout="constrained").subplots()
    for number, (kind, points) in enumerate(kinds.items()):
        points.sort()
        layers = [layer for layer, _ in points]
        told = [statistics[name] for _, name in points]
        low, middle, high, mean = (
            np.array([getattr(point, name) for point in told])
            for name in ("row_norm_p1", "row_norm_p50", "row_norm_p99", "mean_row_norm")
        )
        colour = f"C{number % 10}"
        axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(layers, middle, color=colour, marker="o", label=kind)
        axes.plot(layers, mean, color=colour, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("norm of a row: median, mean (dotted), 1 % to 99 %")
    axes.legend()
    return axes.figure
