"""What the report shows of blocks of edges and of the reliability of each edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup
from matplotlib.figure import Figure

from kconn.connect.cohort import average_sessions, group_mean, node_names, ward_order
from kconn.connect.kinds import describe_unit
from kconn.kernels.netmats import unpack_edges
from kconn.report.data import ReportData, kind_words, name_level
from kconn.report.palette import DIVERGING, GROUPS, INK, MUTED, RULE
from kconn.report.svg import inline_svg
from kconn.report.tables import Table
from kconn.report.words import count, format_number

#: Lowest ICC of each grade, after Cicchetti 1994, doi:10.1037/1040-3590.6.4.284.
GRADES: Final = {"poor": -np.inf, "fair": 0.40, "good": 0.60, "excellent": 0.75}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTable:
    """Means of the blocks of one node set and kind, by group and visit."""

    title: str
    table: Table
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityFigure:
    """How alike the sessions or runs of one node set and kind are; no figure where it was not estimated."""

    title: str
    verdict: str
    figure: Markup | None
    caption: str


def block_tables(data: ReportData) -> list[BlockTable]:
    """Return mean and standard deviation over subjects of every block, by group and by session or visit."""
    visits = {name: list(table["sessions"]) for name, table in data.parameters.get("visits", {}).items()}
    found = []
    for (node_set, kind), ds in data.blocks.items():
        means = _means(ds[["family_mean"]].compute(), visits, data.visits())
        group_of = _groups(data)
        columns, cells = [], []
        for group in sorted(set(group_of.values())) or [""]:
            for session, (subjects, values) in means.items():
                chosen = [i for i, subject in enumerate(subjects) if not group_of or group_of.get(subject) == group]
                if chosen:
                    visit = "" if len(means) == 1 else f"session {session}" if session.isdecimal() else session
                    columns.append(" ".join(filter(None, (group, visit, f"(n={len(chosen):,})"))))
                    cells.append([_mean_sd(values[chosen, i]) for i in range(values.shape[1])])
        n_edge = ds["n_edge"].max("observation").to_numpy()
        rows = [
            (str(name), f"{int(n_edge[i]):,}", *(column[i] for column in cells))
            for i, name in enumerate(ds["family"].to_numpy())
        ]
        unit = describe_unit(ds["family_mean"].attrs)
        found.append(
            BlockTable(
                title=f"{node_set}, {kind_words(kind)}",
                table=Table(
                    columns=("block", "connections", *columns),
                    rows=tuple(rows),
                    numeric=frozenset(range(1, 2 + len(columns))),
                ),
                caption=f"Mean (standard deviation) over subjects of the mean connection of each block, {unit}."
                + "".join(f" {name} is the mean of {' and '.join(of)}." for name, of in visits.items()),
            )
        )
    return found


def _means(
    ds: xr.Dataset, visits: dict[str, list[str]], order: list[str]
) -> dict[str, tuple[list[str], npt.NDArray[np.float64]]]:
    """Return session or visit -> its subjects and the values ``(subject, block)``."""
    present = set(map(str, ds["session"].to_numpy()))
    known = [session for session in order if session in present]
    parts = dict.fromkeys(known, ds)
    for visit, sessions in visits.items():
        if set(sessions) <= set(known):
            parts[visit] = average_sessions(ds, {visit: sessions})
    found = {}
    for name, part in parts.items():
        rows = part.isel(observation=part["session"].to_numpy().astype(str) == name)
        values = rows["family_mean"].transpose("observation", "family").to_numpy()
        found[name] = [str(subject) for subject in rows["subject"].to_numpy()], values
    return found


def _groups(data: ReportData) -> dict[str, str]:
    if data.group is None or data.group not in data.participants:
        return {}
    levels = data.participants[data.group].dropna()
    return {str(subject): name_level(data.group, level) for subject, level in levels.items()}


def _mean_sd(values: npt.NDArray[np.float64]) -> str:
    there = values[np.isfinite(values)]
    if not there.size:
        return format_number(np.nan)
    spread = f" ({there.std(ddof=1):.3f})" if there.size > 1 else ""
    return f"{format_number(float(there.mean()), digits=3)}{spread}"


def reliability_figures(data: ReportData) -> list[ReliabilityFigure]:
    """Return the distribution of the ICC over edges, and its matrix, of every comparison."""
    shown = []
    for i, ((node_set, kind, name), ds) in enumerate(data.reliability.items()):
        title = f"{name}: {node_set}, {kind_words(kind)}"
        compared = f"the {ds.attrs['between']} {', '.join(map(str, ds.attrs['compared']))}"
        if "icc" not in ds:
            reason = f"Not estimated between {compared}: {ds.attrs['not_estimated']}."
            shown.append(ReliabilityFigure(title=title, verdict=reason, figure=None, caption=""))
            continue
        icc = ds["icc"].to_numpy()
        order, how = _order(ds, data.cohorts[node_set, kind])
        figure = plot_reliability(icc, order)
        caption = (
            f"Left: {ds.attrs['kind']} of {count(int(np.isfinite(icc).sum()), 'connection')}; the line is the median, "
            f"dotted lines divide poor, fair, good and excellent. Right: the same between all nodes, {how}."
        )
        shown.append(
            ReliabilityFigure(
                title=title,
                verdict=_verdict(icc, ds.attrs, compared),
                figure=inline_svg(figure, name=f"icc{i}", alt=f"Histogram and matrix of {ds.attrs['kind']}."),
                caption=caption,
            )
        )
    return shown


def _verdict(icc: npt.NDArray[np.float64], attrs: dict[Any, Any], compared: str) -> str:
    """Return the quartiles and the share of each grade, in words."""
    there = icc[np.isfinite(icc)]
    if not there.size:
        return f"No connection has an {attrs['kind']} between {compared}."
    low, middle, high = np.percentile(there, [25, 50, 75])
    tops = [*list(GRADES.values())[1:], np.inf]
    shares = [
        f"{grade} {100 * ((there >= least) & (there < top)).mean():.0f} %"
        for (grade, least), top in zip(GRADES.items(), tops, strict=True)
    ]
    return (
        f"Between {compared}, {attrs['kind']} over {count(int(attrs['n_subject']), 'subject')} has a median of "
        f"{format_number(middle)} (quartiles {format_number(low)} to {format_number(high)}): {', '.join(shares)}."
    )


def _order(ds: xr.Dataset, cohort: xr.Dataset) -> tuple[npt.NDArray[np.intp], str]:
    """Return the nodes by network, or in a Ward tree of the group mean where some have none."""
    n_node = node_names(ds).size
    if "network_i" in ds.coords:
        networks = np.append(ds["network_i"].to_numpy()[:1], ds["network_j"].to_numpy()[: n_node - 1]).astype(str)
        if (networks != "").all():
            place = {network: i for i, network in enumerate(dict.fromkeys(networks.tolist()))}
            return np.argsort([place[network] for network in networks.tolist()], kind="stable"), "ordered by network"
    return ward_order(group_mean(cohort)), "in the order of a Ward tree of the group mean"


def plot_reliability(icc: npt.NDArray[np.float64], order: npt.NDArray[np.intp]) -> Figure:
    """Show the distribution of ``icc (edge)`` and its matrix, the nodes in an order."""
    figure = Figure(figsize=(7.2, 3.1))
    left = figure.add_axes((0.08, 0.17, 0.4, 0.76))
    there = icc[np.isfinite(icc)]
    left.hist(there, bins=min(40, max(8, there.size // 10)), color=GROUPS[1], alpha=0.6, linewidth=0)
    left.axvline(float(np.median(there)), color=INK, linewidth=1.4)
    for least in list(GRADES.values())[1:]:
        left.axvline(least, color=MUTED, linewidth=1, linestyle=":")
    left.set_xlabel("ICC")
    left.set_ylabel("connections")
    right = figure.add_axes((0.57, 0.1, 0.32, 0.83))
    matrix = unpack_edges(icc, diagonal=np.nan)[np.ix_(order, order)]
    colours = mpl.colormaps[DIVERGING].with_extremes(bad=RULE)
    image = right.imshow(matrix, cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
    right.set_xticks([])
    right.set_yticks([])
    for side in right.spines.values():
        side.set_visible(False)
    bar = figure.add_axes((0.92, 0.2, 0.014, 0.63))
    figure.colorbar(image, cax=bar).outline.set_visible(False)
    return figure
