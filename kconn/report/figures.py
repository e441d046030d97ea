"""The figures of a report that need no brain: quality, network matrices, the null distribution, every subject."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

from kconn.report.data import TestedContrast
from kconn.report.palette import (
    DIVERGING,
    DOWN,
    GROUPS,
    INK,
    MUTED,
    PAPER,
    RULE,
    UP,
    group_colour,
    network_colours,
)
from kconn.report.words import MINUS

FloatArray = npt.NDArray[np.float64]

_GOLDEN: Final = (np.sqrt(5) - 1) / 2
_MAX_NAMED_NODES: Final = 40


def _grid(
    n_row: int,
    n_column: int,
    *,
    width: float = 2.15,
    height: float = 2.2,
    left: float = 0.5,
    bottom: float,
    top: float,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with rows of axes: fixed margins, since a layout engine would draw every figure twice."""
    figure = Figure(figsize=(width * n_column, height * n_row))
    inner = (width - left - 0.1) / (width * n_column), (height - bottom - top) / (height * n_row)
    rows = [
        [
            figure.add_axes(((i + left / width) / n_column, (n_row - 1 - j + bottom / height) / n_row, *inner))
            for i in range(n_column)
        ]
        for j in range(n_row)
    ]
    return figure, rows


def plot_quality(
    runs: pd.DataFrame, *, panels: Mapping[str, str], limits: Mapping[str, float], visits: Sequence[str]
) -> Figure:
    """Show each run as a dot per measure and visit; runs that were left out are crosses.

    Parameters
    ----------
    runs
        The run table.
    panels
        Column -> title, one panel each.
    limits
        Column -> limit of the study file, drawn as a line.
    visits
        Sessions, in the order in which they are drawn.
    """
    figure, rows = _grid(1, len(panels), bottom=0.3, top=0.3)
    axes = rows[0]
    used = runs["excluded"].to_numpy(dtype=str) == ""
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        values = runs[column].to_numpy(dtype=np.float64)
        for i_visit, visit in enumerate(visits):
            here = (runs["session"].to_numpy(dtype=str) == visit) & np.isfinite(values)
            for kept in (True, False):
                shown = values[here & (used == kept)]
                style = _dots(len(shown), colour=DOWN, alpha=0.65) if kept else _CROSS
                ax.plot(i_visit + _spread(len(shown), width=0.34), shown, **style)
            if (here & used).any():
                _tick(ax, i_visit, float(np.median(values[here & used])))
        if np.isfinite(limits.get(column, np.nan)):
            ax.axhline(limits[column], color=UP, linewidth=0.8, dashes=(4, 3), zorder=0)
        ax.set_title(title)
        ax.set_xticks(range(len(visits)), [visit or "all" for visit in visits])
        ax.set_xlim(-0.6, len(visits) - 0.4)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.tick_params(axis="x", length=0)
    return figure


#: As many marks are drawn in full.
_N_OPAQUE: Final = 200
_DOT: Final[dict[str, Any]] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.2,
    "markeredgewidth": 0,
}
_CROSS: Final[dict[str, Any]] = {
    "linestyle": "none",
    "marker": "x",
    "markersize": 4.5,
    "markeredgecolor": UP,
    "markeredgewidth": 1.2,
}


def plot_netmats(
    lower: FloatArray, upper: FloatArray, *, networks: Sequence[str], names: Sequence[str], titles: tuple[str, str]
) -> Figure:
    """Show two group-mean matrices in one square, the first below the diagonal and the second above.

    Parameters
    ----------
    lower, upper
        ``(node, node)``, symmetric, in the order in which they are drawn.
    networks
        Network of each node, or empty.
    names
        Name of each node; shown when there are few.
    titles
        What is below and above.
    """
    n_node = len(lower)
    width, height, left, bottom, side_length = 7.2, 6.1, 1.3, 0.75, 5.1  # inches
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((left / width, bottom / height, side_length / width, side_length / height))
    shared = titles[0] == titles[1]
    below = np.tril(np.ones((n_node, n_node), dtype=bool), -1)
    scales = [_scale(lower), _scale(lower if shared else upper)]
    colours = mpl.colormaps[DIVERGING].with_extremes(bad=RULE)
    for values, shown, scale in zip((lower, upper), (below, below.T), scales, strict=True):
        masked = np.ma.masked_where(~shown, values)
        rgba = colours(np.clip((masked / scale + 1) / 2, 0, 1))
        rgba[..., 3] = shown
        ax.imshow(rgba, interpolation="nearest", extent=(0, n_node, n_node, 0))
    ax.plot([0, n_node], [0, n_node], color=PAPER, linewidth=1.2)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    if networks:
        _draw_networks(ax, networks)
    elif n_node <= _MAX_NAMED_NODES:
        ax.set_yticks(np.arange(n_node) + 0.5, names, fontsize=6)
        ax.tick_params(axis="y", length=0)
    bars = [(titles[0] if shared else f"below the diagonal: {titles[0]}", scales[0])]
    if not shared:
        bars.append((f"above: {titles[1]}", scales[1]))
    for i_bar, (title, scale) in enumerate(bars):
        x = left + i_bar * (side_length / 2 + 0.1)
        bar = figure.add_axes((x / width, 0.3 / height, 2.2 / width, 0.1 / height))
        bar.imshow(np.linspace(0, 1, 128)[None, :], cmap=DIVERGING, aspect="auto", extent=(-scale, scale, 0, 1))
        bar.set_yticks([])
        bar.set_xticks([-scale, 0, scale], [f"{MINUS}{scale:g}", "0", f"{scale:g}"])
        bar.set_title(title, fontsize=8, pad=3)
        for side in bar.spines.values():
            side.set_visible(False)
    return figure


def _draw_networks(ax: Axes, networks: Sequence[str]) -> None:
    colours = network_colours(networks)
    n_node, strip = len(networks), len(networks) * 0.02
    starts = [i for i in range(n_node) if i == 0 or networks[i] != networks[i - 1]]
    for start, stop in zip(starts, [*starts[1:], n_node], strict=True):
        colour = colours[networks[start]]
        box: dict[str, Any] = {"color": colour, "linewidth": 0, "clip_on": False}
        ax.barh(start, strip, stop - start, left=-1.6 * strip, align="edge", **box)
        ax.bar(start, strip, stop - start, bottom=-1.6 * strip, align="edge", **box)
        ax.text(-2.2 * strip, (start + stop) / 2, networks[start], ha="right", va="center", fontsize=8)
        if start:
            for line in (ax.axhline, ax.axvline):
                line(start, color=PAPER, linewidth=0.7)
    ax.set_xlim(0, n_node)
    ax.set_ylim(n_node, 0)


def plot_null(contrast: TestedContrast, *, found: npt.NDArray[np.bool_], threshold: float) -> Figure:
    """Show the maximum statistic of every relabelling, the threshold and the edges that were ``found (edge,)``."""
    null = contrast.result["max_stat"].to_numpy()
    null = null[np.isfinite(null)]
    observed = contrast.towards()
    figure, rows = _grid(1, 1, width=4.6, height=2.3, left=0.6, bottom=0.45, top=0.1)
    ax = rows[0][0]
    ax.hist(null, bins=min(40, max(8, len(null) // 20)), color=MUTED, alpha=0.45, linewidth=0)
    top = ax.get_ylim()[1]
    if np.isfinite(threshold):
        ax.axvline(threshold, color=INK, linewidth=1, dashes=(4, 3))
        ax.annotate(
            f"threshold {threshold:.2f}",
            (threshold, top),
            xytext=(5, 0),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=8,
        )
    best = float(np.nanmax(observed))
    signs = np.sign(contrast.result["stat"].to_numpy())
    for value, sign in zip(observed[found], signs[found], strict=True):
        ax.plot([value, value], [0, top * 0.16], color=_colour_of(contrast, sign), linewidth=1.6, solid_capstyle="butt")
    if not found.any():
        ax.plot([best, best], [0, top * 0.16], color=INK, linewidth=1.6)
        ax.annotate("observed", (best, top * 0.17), ha="center", va="bottom", fontsize=8)
    ax.set_xlabel(f"largest {contrast.compared} over all {contrast.noun}s")
    ax.set_ylabel("relabellings")
    ax.set_ylim(0, top)
    return figure


def _colour_of(contrast: TestedContrast, sign: float) -> str:
    """Return the colour of a direction; that of ink where there is none."""
    return (UP if sign > 0 else DOWN) if contrast.is_directed else INK


def plot_observations(contrast: TestedContrast, edges: pd.DataFrame, *, columns: int = 4) -> Figure:
    """Show every subject behind each edge: lines between visits, dots by group, or dots against a covariate.

    Parameters
    ----------
    contrast
        With its values.
    edges
        Rows of `kconn.report.data.edge_table`, one panel each.
    columns
        Panels side by side.
    """
    n_row = -(-len(edges) // columns)
    figure, rows = _grid(n_row, columns, bottom=0.45 if contrast.covariate is not None else 0.3, top=0.42)
    axes = [ax for row in rows for ax in row]
    for ax, (_, edge) in zip(axes, edges.iterrows(), strict=False):
        i_edge = int(edge["edge"])
        if contrast.visits is not None and contrast.covariate is None:
            _draw_visits(ax, contrast, i_edge)
        elif contrast.covariate is not None:
            _draw_slope(ax, contrast.covariate, contrast.observed.to_numpy()[:, i_edge])
            ax.set_xlabel(str(contrast.hypothesis.effect), fontsize=8)
        else:
            _draw_groups(ax, contrast, i_edge)
        ax.set_title("\n".join(filter(None, (edge["node_i"], edge["node_j"]))), fontsize=7.5, linespacing=1.25)
        ax.axhline(0, color=RULE, linewidth=0.7, zorder=0)
        ax.locator_params(axis="y", nbins=4)
    for ax in axes[len(edges) :]:
        ax.set_axis_off()
    for row in rows:
        row[0].set_ylabel(contrast.unit, fontsize=8)
    return figure


def _draw_visits(ax: Axes, contrast: TestedContrast, i_edge: int) -> None:
    visits = contrast.visits
    if visits is None:
        raise ValueError("a contrast without visits has no lines between them")
    before, after = visits.to_numpy()[:, :, i_edge]
    groups = np.array(contrast.groups or [""] * len(before))
    levels = contrast.levels or ("",)
    ticks: list[float] = []
    for i_level, level in enumerate(levels):
        here = groups == level
        x = np.array([0.0, 1.0]) + 1.7 * i_level
        colour = group_colour(level, levels) if level else GROUPS[1]
        ax.plot(x, [before[here], after[here]], color=colour, linewidth=0.7, alpha=_fade(0.35, int(here.sum())))
        means = [np.nanmean(before[here]), np.nanmean(after[here])]
        ax.plot(x, means, color=colour, linewidth=2.2, marker="o", markersize=4, solid_capstyle="round")
        ticks.extend(x)
    names = [str(name) for name in visits["visit"].to_numpy()]
    ax.set_xticks(ticks, names * len(levels), fontsize=7)
    ax.set_xlim(-0.35, ticks[-1] + 0.35)
    ax.tick_params(axis="x", length=0)


def _draw_groups(ax: Axes, contrast: TestedContrast, i_edge: int) -> None:
    values = contrast.observed.to_numpy()[:, i_edge]
    groups = np.array(contrast.groups or [""] * len(values))
    levels = contrast.levels or ("",)
    for i_level, level in enumerate(levels):
        shown = values[(groups == level) & np.isfinite(values)]
        colour = group_colour(level, levels) if level else GROUPS[1]
        ax.plot(i_level + _spread(len(shown), width=0.3), shown, **_dots(len(shown), colour=colour, alpha=0.5))
        if len(shown) > 1:
            half = student.ppf(0.975, len(shown) - 1) * shown.std(ddof=1) / np.sqrt(len(shown))
            ax.plot([i_level] * 2, shown.mean() + np.array([-half, half]), color=colour, linewidth=1.6)
            mean = [shown.mean()]
            ax.plot([i_level], mean, marker="o", markersize=5.5, color=colour, markeredgecolor="w", markeredgewidth=0.8)
    ax.set_xticks(range(len(levels)), [level or "all" for level in levels], fontsize=7)
    ax.set_xlim(-0.6, len(levels) - 0.4)
    ax.tick_params(axis="x", length=0)


def _draw_slope(ax: Axes, covariate: FloatArray, values: FloatArray) -> None:
    known = np.isfinite(values) & np.isfinite(covariate)
    x, y = covariate[known], values[known]
    ax.plot(x, y, **_dots(len(x), colour=GROUPS[1], alpha=0.6))
    if len(x) > 2 and np.ptp(x) > 0:
        slope, intercept = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        ax.plot(ends, intercept + slope * ends, color=GROUPS[1], linewidth=1.6)


def _tick(ax: Axes, x: float, y: float) -> None:
    ax.plot([x - 0.28, x + 0.28], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")


def _dots(n: int, *, colour: str, alpha: float) -> dict[str, Any]:
    return {**_DOT, "markerfacecolor": colour, "alpha": _fade(alpha, n)}


def _fade(alpha: float, n: int) -> float:
    """Return the opacity of each of n marks, so that thousands of them show where they are dense."""
    return alpha * math.sqrt(min(1.0, _N_OPAQUE / max(n, 1)))


def _spread(n: int, *, width: float) -> FloatArray:
    """Return positions that fill ``-width`` to ``width`` evenly whatever their number: no randomness is needed."""
    return np.asarray(((np.arange(n) + 0.5) * _GOLDEN % 1 - 0.5) * 2 * width)


def _scale(matrix: FloatArray) -> float:
    """Return the limit of the colours: the 99th percentile of |value|, to one decimal or two below 0.1."""
    off = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    top = float(np.nanpercentile(off, 99)) if np.isfinite(off).any() else 1.0
    step = 0.1 if top >= 0.1 else 0.01
    return round(max(step, float(np.ceil(top / step)) * step), 2)
