"""What a report says of quality: the way from all runs to the tests, motion between groups, QC-FC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib.figure import Figure

from kconn.exclusions import EVERYTHING, Exclusion, FlowStage
from kconn.report.data import ReportData, TestedContrast
from kconn.report.palette import MUTED, RULE, UP
from kconn.report.svg import inline_svg
from kconn.report.tables import Table
from kconn.report.words import DASH, count, format_number

#: Bins of the length of connections.
_N_BIN: Final = 12
_MOTION_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "mean_fd": ("mean FD", "mm"),
    "step_trans_x": ("step along x", "mm"),
    "step_trans_y": ("step along y", "mm"),
    "step_trans_z": ("step along z", "mm"),
    "step_rot_x": ("turn about x", "degree"),
    "step_rot_y": ("turn about y", "degree"),
    "step_rot_z": ("turn about z", "degree"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowBox:
    """One box of the flow: what is left, and beside it what was lost on the way to it."""

    name: str
    left: str
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QcFcFigure:
    """QC-FC of one node set and kind."""

    title: str
    verdict: str
    figure: Markup
    caption: str
    table: Table


def flow_boxes(flow: Sequence[FlowStage], contrasts: Sequence[TestedContrast]) -> tuple[list[FlowBox], list[FlowBox]]:
    """Return the way from everything that was found to what the tests share, and the tests."""
    boxes = []
    for stage in flow:
        parts = [count(stage.n_subject, "subject")]
        parts += [count(n, noun) for n, noun in ((stage.n_session, "session"), (stage.n_run, "run")) if n is not None]
        lost = tuple(f"{count(n, noun)}: {reason}" for n, noun, reason in stage.lost)
        boxes.append(FlowBox(name=stage.name, left=", ".join(parts), lost=lost))
    tests: dict[str, FlowBox] = {}
    for contrast in contrasts:
        reasons: dict[str, int] = {}
        for reason in contrast.left_out.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lost = tuple(f"{n:,} not in it: {reason}" for reason, n in sorted(reasons.items()))
        sizes = {level: contrast.groups.count(level) for level in contrast.levels if level}
        split = f" ({', '.join(f'{n:,} {level}' for level, n in sizes.items())})" if sizes else ""
        n_subject = contrast.observed.sizes["observation"]
        tests.setdefault(
            contrast.name, FlowBox(name=contrast.name, left=count(n_subject, "subject") + split, lost=lost)
        )
    return boxes, list(tests.values())


def exclusion_table(exclusions: Sequence[Exclusion]) -> Table:
    """Return every exclusion with its reason, those of one kind together."""
    gathered: dict[tuple[str, str, str], list[str]] = {}
    for exclusion in exclusions:
        of = exclusion.left_out_of
        name = of if of == EVERYTHING else of.split("/")[-1]
        places = gathered.setdefault((exclusion.step, name, exclusion.reason), [])
        if exclusion.where not in places:
            places.append(exclusion.where)
    rows = tuple(
        (step, what, reason.partition(" ")[2] if reason.startswith("E-") else reason, str(len(who)), ", ".join(who))
        for (step, what, reason), who in gathered.items()
    )
    columns = ("at", "left out of", "because", "n", "who")
    return Table(columns=columns, rows=rows, numeric=frozenset({3}), prose=frozenset({2, 4}))


def motion_tables(motion: xr.Dataset | None) -> tuple[Table, Table] | None:
    """Return motion between groups and visits: displacement with the least p of the six parameters, and all of it."""
    if motion is None:
        return None
    short, full = [], []
    for i in range(motion.sizes["comparison"]):
        one = motion.isel(comparison=i)
        words, n = _comparison_words(one), f"{int(one['n_first'].max())} / {int(one['n_second'].max())}"
        cells = [_motion_cells(one.sel(measure=name), name) for name in one["measure"].to_numpy()]
        p = one["p_unc"].to_numpy()[1:]
        least = int(np.nanargmin(p)) + 1 if np.isfinite(p).any() else None
        smallest = (
            DASH if least is None else f"{p[least - 1]:.3f} ({_MOTION_WORDS[str(one['measure'][least].item())][0]})"
        )
        short.append((words, n, *cells[0], smallest))
        full += [
            (words, f"{_MOTION_WORDS[str(name)][0]} ({_MOTION_WORDS[str(name)][1]})", *cell)
            for name, cell in zip(one["measure"].to_numpy(), cells, strict=True)
        ]
    head = ("first", "second", "t", "df", "p parametric", "p permuted")
    return (
        Table(
            columns=("comparison", "n", *(f"FD {head[i]}" if i < 2 else head[i] for i in range(6)), "least p of six"),
            rows=tuple(short),
            numeric=frozenset(range(1, 8)),
        ),
        Table(columns=("comparison", "measure", *head), rows=tuple(full), numeric=frozenset(range(2, 8))),
    )


def _comparison_words(one: xr.Dataset) -> str:
    # Levels are kept as text: of a column of numbers with a gap, 1.0 stands for 1.
    factor, first, second, at = (
        str(one[name].item()).removesuffix(".0") for name in ("factor", "first", "second", "at")
    )
    if str(one["test"].item()) == "groups":
        return f"{factor}: {second} against {first}" + (f", session {at}" if at else "")
    return f"session {second} against {first}" + (f", {at} alone" if at else "")


def _motion_cells(one: xr.Dataset, name: str) -> tuple[str, ...]:
    digits = 3 if name == "mean_fd" else 4
    means = [format_number(float(one[key]), digits=digits) for key in ("mean_first", "mean_second")]
    numbers = [format_number(float(one[key]), digits=places) for key, places in (("stat", 2), ("dof", 1))]
    return (*means, *numbers, *(format_number(float(one[key]), digits=3) for key in ("p_parametric", "p_unc")))


def qc_fc_figures(data: ReportData) -> list[QcFcFigure]:
    """Return QC-FC of every node set, and of every kind that is tested beside the full correlation."""
    return [_qc_fc_figure(title, found, f"qcfc{i}") for i, (title, found) in enumerate(data.estimated_qc_fc().items())]


def qc_fc_notes(data: ReportData) -> list[str]:
    """Return for what QC-FC could not be estimated, and why."""
    lines = ((title, found.attrs.get("not_estimated")) for title, found in data.qc_fc.items())
    return [f"{title}: QC-FC is not estimated: {reason}." for title, reason in lines if reason]


def _qc_fc_figure(title: str, found: xr.Dataset, name: str) -> QcFcFigure:
    figure = plot_qc_fc(found)
    alt = f"Histogram of the correlation of each connection of {title} with head motion."
    return QcFcFigure(
        title=title,
        verdict=_verdict(found),
        figure=inline_svg(figure, name=name, alt=alt),
        caption=_qc_fc_caption(found),
        table=_qc_fc_table(found),
    )


def _verdict(found: xr.Dataset) -> str:
    share, (low, high) = float(found["qc_fc_share"]), found["qc_fc_share_chance"].to_numpy().tolist()
    before = f", before it {float(found['qc_fc_share_before']):.1%}" if "qc_fc_share_before" in found else ""
    state = "no more than chance gives" if share <= high else "more than chance gives"
    return (
        f"After denoising {share:.1%} of the connections go with head motion (p < .05){before}: {state} "
        f"({low:.1%} to {high:.1%} in 95 of 100 relabellings of the subjects)."
    )


def _qc_fc_caption(found: xr.Dataset) -> str:
    what = f"Each connection's correlation with mean FD over {count(int(found.attrs['n_subject']), 'subject')}"
    nuisance = found.attrs.get("covariates") or []
    nuisance_words = f", {' and '.join(map(str, nuisance))} taken out" if len(nuisance) else ""
    right = "; right: its mean by the length of the connection" if "edge_length" in found else ""
    sessions = "Sessions of a subject are averaged first."
    filtered = (
        " Before denoising: filtered alike, no confound removed, no frame censored." if _has_before(found) else ""
    )
    return f"{what}{nuisance_words}{right}. {sessions}{filtered}"


def _has_before(found: xr.Dataset) -> bool:
    return "qc_fc_before" in found


def _qc_fc_table(found: xr.Dataset) -> Table:
    rows = []
    measures = (
        ("qc_fc_median", "median |r|", False),
        ("qc_fc_share", "connections with p < .05", True),
        ("qc_fc_share_fdr", "connections with p FDR < .05", True),
        ("qc_fc_distance", "rank correlation with length", False),
    )
    for name, words, is_share in measures:
        if name not in found:
            continue
        texts = [
            _number(float(found[key]), is_share=is_share) if key in found else DASH for key in (f"{name}_before", name)
        ]
        chance = f"{name}_chance"
        limits = found[chance].to_numpy().tolist() if chance in found else []
        texts.append(" to ".join(_number(value, is_share=is_share) for value in limits) or DASH)
        rows.append((words, *texts))
    columns = ("", "before", "after denoising", "by chance (95 %)")
    return Table(columns=columns, rows=tuple(rows), numeric=frozenset({1, 2, 3}))


def _number(value: float, *, is_share: bool) -> str:
    return f"{value:.1%}" if is_share and np.isfinite(value) else format_number(value, digits=3)


def plot_qc_fc(found: xr.Dataset) -> Figure:
    """Show how connections correlate with motion: a histogram, and by their length where that is known.

    Parameters
    ----------
    found
        ``qc_fc`` and, where there is one, ``qc_fc_before`` and ``edge_length (edge)``.
    """
    has_length = "edge_length" in found
    figure = Figure(figsize=(7.4 if has_length else 4.0, 2.5))
    width = 0.36 if has_length else 0.78
    ax = figure.add_axes((0.08 if has_length else 0.15, 0.2, width, 0.7))
    edges = np.linspace(-1, 1, 41)
    styles = (("qc_fc_before", MUTED, "before"), ("qc_fc", UP, "after denoising"))
    for name, colour, label in styles:
        if name in found:
            values = found[name].to_numpy()
            heights, _ = np.histogram(values[np.isfinite(values)], edges)
            ax.stairs(heights, edges, color=colour, linewidth=1.5, label=label)
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    ax.set_xlabel("correlation with mean FD")
    ax.set_ylabel("connections")
    ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=2)
    if has_length:
        right = figure.add_axes((0.58, 0.2, 0.38, 0.7))
        length = found["edge_length"].to_numpy()
        for name, colour, _ in styles:
            if name in found:
                x, y = _by_length(length, found[name].to_numpy())
                right.plot(x, y, color=colour, linewidth=1.5, marker="o", markersize=3)
        right.axhline(0, color=RULE, linewidth=0.8, zorder=0)
        right.set_xlabel("length of the connection (mm)")
        right.set_ylabel("mean correlation")
    return figure


def _by_length(
    length: np.ndarray[tuple[int, ...], np.dtype[np.float64]], r: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> tuple[list[float], list[float]]:
    there = np.isfinite(r) & np.isfinite(length)
    order = np.argsort(length[there], kind="stable")
    bins = [part for part in np.array_split(order, _N_BIN) if len(part)]
    return [float(length[there][part].mean()) for part in bins], [float(r[there][part].mean()) for part in bins]
