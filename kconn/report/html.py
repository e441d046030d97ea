"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kconn.connect.cohort import group_mean, list_missing, node_names, ward_order
from kconn.errors import some_of
from kconn.kernels.netmats import unpack_edges
from kconn.report import figures
from kconn.report.bibliography import Bibliography, Reference
from kconn.report.carpet import draw_carpet
from kconn.report.connectome import has_coordinates, plot_brain, plot_ring
from kconn.report.data import (
    Recovery,
    ReportData,
    TestedContrast,
    edge_table,
    kind_words,
    name_feature,
    recover_truth,
)
from kconn.report.maps import component_sections, map_sections
from kconn.report.methods import write_methods
from kconn.report.networks import block_tables, reliability_figures
from kconn.report.palette import group_colour
from kconn.report.quality import exclusion_table, flow_boxes, motion_tables, qc_fc_figures, qc_fc_notes
from kconn.report.svg import inline_svg, styled
from kconn.report.tables import (
    Table,
    parameter_table,
    run_table,
    study_table,
)
from kconn.report.words import (
    DASH,
    SIDES,
    count,
    critical_value,
    effect_unit,
    format_alpha,
    format_number,
    format_p,
    headline,
)

#: Rows of an edge table and panels of subjects that are shown; the store holds all.
MAX_ROWS: Final = 50
MAX_PANELS: Final = 12
#: Strongest connections that are listed when none is significant.
N_STRONGEST: Final = 5

_PANELS: Final[Mapping[str, str]] = {
    "mean_fd": "mean FD (mm)",
    "mean_std_dvars": "mean std. DVARS",
    "n_kept": "frames kept",
    "median_tsnr": "median tSNR",
    "df_left": "df left",
}
_PANEL_WORDS: Final[Mapping[str, str]] = {
    "mean_fd": "FD: framewise displacement (head motion).",
    "mean_std_dvars": "std. DVARS: change of the whole image, 1 is what noise makes.",
    "median_tsnr": "tSNR: temporal mean over temporal standard deviation.",
    "df_left": "df left: degrees of freedom after denoising.",
}
_MAX_LISTED: Final = 12
#: What is drawn below and above the diagonal, the first that the study has.
_FULL: Final = ("corr", "ledoit", "rcorr", "cov")
_PARTIAL: Final = ("ridgep", "partial", "glasso", "ledoitp")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRow:
    """One row of an edge table: text as printed beside the value that it stands for."""

    name: str
    planted: bool
    cells: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSection:
    """What the page shows of one test."""

    anchor: str
    title: str
    headline: str
    noun: str
    question: str
    found: bool
    caption: str
    columns: tuple[str, ...]
    rows: tuple[EdgeRow, ...]
    brain: Markup
    brain_caption: str
    panels: Markup
    panels_caption: str
    legend: tuple[tuple[str, str], ...]
    null: Markup
    null_caption: str
    facts: Table
    recovery: Recovery | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixFigure:
    """A group-mean matrix with its caption."""

    title: str
    figure: Markup
    caption: str
    missing: str


def write_report(data: ReportData, path: str | Path) -> Path:
    """Write the report of a study as one HTML file.

    The page loads nothing from elsewhere: style and figures are inside it. The same data give the same bytes.

    Parameters
    ----------
    data
        What is shown.
    path
        File to write; an older one is replaced in one step.

    Returns
    -------
    Path
        The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(render_report(data), encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105 - the same as Path.replace, named for what matters: it is atomic
    return path


def render_report(data: ReportData) -> str:
    """Return the report as HTML text."""
    environment = Environment(
        loader=PackageLoader("kconn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bibliography = Bibliography()
    with styled():
        map_tests = map_sections(data.maps, alpha=data.alpha)
        components = component_sections(data.components)
        tested = [test for section in map_tests for test in section.tests]
        flow, tests = flow_boxes(data.flow, [*data.contrasts, *tested])
        context: dict[str, Any] = {
            "css": Markup(files("kconn.report").joinpath("templates/report.css").read_text("utf-8")),  # noqa: S704 - ours
            "data": data,
            "alpha": format_alpha(data.alpha),
            "study_table": study_table(data),
            "flow": flow,
            "tests": tests,
            "exclusions": exclusion_table(data.exclusions),
            "motion": motion_tables(data.compared_motion()),
            "qc_fc": qc_fc_figures(data),
            "qc_fc_notes": qc_fc_notes(data),
            "carpets": _carpets(data),
            "quality": _quality_figure(data, panels := _known_panels(data)),
            "quality_words": [_PANEL_WORDS[name] for name in panels if name in _PANEL_WORDS],
            "run_table": run_table(data.sorted_runs()),
            "matrices": _matrix_figures(data),
            "blocks": block_tables(data),
            "reliability": reliability_figures(data),
            "sections": [_section(contrast, data, i) for i, contrast in enumerate(data.sorted_contrasts())],
            "maps": map_tests,
            "components": components,
            "methods": write_methods(data, bibliography, tested),
            "references": _references(bibliography, data),
            "parameters": parameter_table(data.parameters),
            "software": Table(columns=("software", "version"), rows=tuple(data.software.items())),
            "tables": _reproduction_table(data),
        }
    return environment.get_template("report.html.j2").render(context)


def _carpets(data: ReportData) -> list[tuple[str, str, Markup]]:
    """Return the place of each run, why it was left out, and its carpet plot."""
    threshold = data.parameters.get("denoise", {}).get("fd_threshold")
    reasons = {exclusion.where: exclusion.reason for exclusion in data.exclusions if exclusion.run}
    return [
        (
            where,
            reasons.get(where, ""),
            draw_carpet(run, label=where, fd_threshold=threshold if isinstance(threshold, int | float) else None),
        )
        for where, run in data.carpets
    ]


def _references(bibliography: Bibliography, data: ReportData) -> list[Reference]:
    bibliography.cite("abraham")
    if any(not _networks(data, node_set) for node_set, _ in data.cohorts):
        bibliography.cite("ward")
    return bibliography.references


def _known_panels(data: ReportData) -> dict[str, str]:
    return {
        name: title
        for name, title in _PANELS.items()
        if name in data.runs and np.isfinite(data.runs[name].to_numpy(dtype=np.float64)).any()
    }


def _quality_figure(data: ReportData, panels: Mapping[str, str]) -> Markup:
    if not panels:
        return Markup()
    quality = data.parameters.get("quality", {})
    limits = {
        name: float(quality[key])
        for name, key in (
            ("mean_fd", "max_mean_fd"),
            ("mean_std_dvars", "max_std_dvars"),
            ("n_kept", "min_frames"),
            ("df_left", "min_dof"),
        )
        if isinstance(quality.get(key), int | float)
    }
    runs = data.runs.assign(session=data.runs["session"].astype(str))
    figure = figures.plot_quality(runs, panels=panels, limits=limits, visits=data.visits())
    alt = f"Dots, one per run and visit: {', '.join(panels.values())}. Crosses are runs that were left out."
    return inline_svg(figure, name="quality", alt=alt)


def _matrix_figures(data: ReportData) -> list[MatrixFigure]:
    shown = []
    for i, node_set in enumerate(dict.fromkeys(name for name, _ in data.cohorts)):
        kinds = [kind for name, kind in data.cohorts if name == node_set]
        full = next((kind for kind in _FULL if kind in kinds), kinds[0])
        partial = next((kind for kind in _PARTIAL if kind in kinds and kind != full), full)
        below, above = (data.cohorts[node_set, kind] for kind in (full, partial))
        networks = _networks(data, node_set)
        names = node_names(below).astype(str)
        if networks:
            hemispheres = _labels(data, node_set, "hemisphere") or [""] * len(networks)
            order = np.lexsort([_rank(hemispheres), _rank(networks)])
            how = "ordered by network"
        else:
            order = ward_order(group_mean(below))
            how = "in the order of a Ward tree of the full correlations"
        n_observation = below.sizes["observation"]
        figure = figures.plot_netmats(
            _mean_matrix(below)[np.ix_(order, order)],
            _mean_matrix(above)[np.ix_(order, order)],
            networks=[networks[place] for place in order] if networks else [],
            names=names[order].tolist(),
            titles=(kind_words(full), kind_words(partial)),
        )
        caption = f"Mean over {count(n_observation, 'session')}, {count(len(names), 'node')}, {how}."
        if below["netmat"].attrs.get("z") == "fisher":
            caption += " Averaged as Fisher z, shown as r."
        shown.append(
            MatrixFigure(
                title=node_set,
                figure=inline_svg(
                    figure, name=f"netmat{i}", alt=f"Matrix of {kind_words(full)} of {node_set}. {caption}"
                ),
                caption=caption,
                missing=_missing_words(below),
            )
        )
    return shown


def _mean_matrix(cohort: xr.Dataset) -> npt.NDArray[np.float64]:
    mean = group_mean(cohort)["netmat"]
    values = mean.to_numpy().astype(np.float64)
    return unpack_edges(np.tanh(values) if mean.attrs.get("z") == "fisher" else values, diagonal=np.nan)


def _missing_words(cohort: xr.Dataset) -> str:
    missing = list_missing(cohort)
    if not missing:
        return ""
    parts = [f"{node} in {count(len(sessions), 'session')}" for node, sessions in missing.items()]
    nodes = some_of(parts, _MAX_LISTED)
    return f"Without data: {nodes}. Connections of these nodes are not tested where they are missing."


def _networks(data: ReportData, node_set: str) -> list[str]:
    """Return the network of each node in the order of the cohort, or nothing where some node has none."""
    networks = _labels(data, node_set, "network")
    return [] if "" in networks else networks


def _labels(data: ReportData, node_set: str, column: str) -> list[str]:
    """Return what the nodes have in a column, in the order of the cohort; empty for those that have none."""
    table = data.nodes.get(node_set)
    cohort = next(ds for (name, _), ds in data.cohorts.items() if name == node_set)
    if table is None or column not in table:
        return []
    return [str(of) for of in table.set_index("node")[column].reindex(node_names(cohort).astype(str)).fillna("")]


def _rank(labels: Sequence[str]) -> list[int]:
    """Return the place of each label among those that differ, in the order in which they occur."""
    place = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [place[label] for label in labels]


def _section(contrast: TestedContrast, data: ReportData, i_section: int) -> ContrastSection:
    table = edge_table(contrast)
    significant = table[table[contrast.deciding_p] < data.alpha]
    found = len(significant) > 0
    shown = significant.head(MAX_ROWS) if found else table.head(_n_strongest(contrast))
    panels = shown.head(MAX_PANELS)
    threshold = critical_value(contrast, alpha=data.alpha)
    name = f"contrast{i_section}"
    # A picture of connections that are not significant would be remembered without the word "not".
    is_drawn = found and contrast.noun == "connection"
    brain, view = _draw_connectome(contrast, significant, data, name) if is_drawn else (Markup(), "")
    dots = figures.plot_observations(contrast, panels)
    null = Markup()
    if not contrast.stops_early:
        drawn = figures.plot_null(contrast, found=contrast.significant(data.alpha), threshold=threshold)
        null = inline_svg(drawn, name=f"{name}-null", alt="Histogram of the maximum statistic of every relabelling.")
    words = f"significant {contrast.noun}s" if found else f"strongest {contrast.noun}s, none of them significant"
    return ContrastSection(
        anchor=name,
        title=data.title(contrast),
        headline=headline(contrast, alpha=data.alpha),
        noun=contrast.noun,
        question=str(contrast.fact("question", "")),
        found=found,
        caption=_table_caption(contrast, significant, table, alpha=data.alpha),
        columns=_columns(contrast),
        rows=tuple(_edge_rows(contrast, shown)),
        brain=brain,
        brain_caption=view,
        panels=inline_svg(dots, name=f"{name}-dots", alt=f"Every subject behind the {words}."),
        panels_caption=_panels_caption(contrast, len(panels), len(significant) if found else len(shown), found=found),
        legend=tuple((level, group_colour(level, contrast.levels)) for level in contrast.levels if level),
        null=null,
        null_caption=_null_caption(contrast, threshold, data.alpha, found=found),
        facts=_facts(contrast),
        recovery=None if contrast.planted is None else recover_truth(contrast, alpha=data.alpha),
    )


def _columns(contrast: TestedContrast) -> tuple[str, ...]:
    standardised = "partial r" if contrast.by_partial_r else "Cohen's d"
    more = ("p FWE joint",) if "p_fwe_joint" in contrast.result else ()
    last = ("relabellings",) if contrast.stops_early else ("p FWE", *more)
    first = ("cluster",) if "cluster" in contrast.result else ()
    return (
        *first,
        f"effect ({effect_unit(contrast)})",
        contrast.stat_kind,
        "df",
        standardised,
        "p",
        "p FDR",
        *last,
    )


def _edge_rows(contrast: TestedContrast, table: pd.DataFrame) -> list[EdgeRow]:
    digits = {"effect": 3, "stat": 2, "dof": 0, "partial_r" if contrast.by_partial_r else "cohen_d": 2}
    digits = {**({"cluster": 0} if "cluster" in contrast.result else {}), **digits}
    corrected = [name for name in ("p_fwe", "p_fwe_joint") if name in contrast.result and not contrast.stops_early]
    printed = ("p_unc", "p_fdr", *corrected)
    rows = []
    for _, edge in table.iterrows():
        cells = [
            (format_number(float(edge[name]), digits=places), float(edge[name])) for name, places in digits.items()
        ]
        for name in printed:
            cells += [(format_p(float(edge[name]), n_perm=contrast.n_perm), float(edge[name]))]
        if contrast.stops_early:
            cells += [(f"{int(edge['n_used']):,}", float(edge["n_used"]))]
        rows.append(
            EdgeRow(
                name=name_feature(str(edge["node_i"]), str(edge["node_j"])),
                planted=bool(edge["planted"]),
                cells=tuple(cells),
            )
        )
    return rows


def _n_strongest(contrast: TestedContrast) -> int:
    """Return how many rows are shown where none is significant: of blocks and nodes as many as have a panel."""
    return N_STRONGEST if contrast.noun == "connection" else MAX_PANELS


def _table_caption(contrast: TestedContrast, significant: pd.DataFrame, table: pd.DataFrame, *, alpha: float) -> str:
    p = "p FDR" if contrast.stops_early else "p FWE"
    if len(significant) == 0:
        lowest = format_p(float(table[contrast.deciding_p].min()), n_perm=contrast.n_perm)
        return (
            f"No {contrast.noun} reached {p} < {format_alpha(alpha)}; the smallest is {lowest}. These are the "
            f"{min(_n_strongest(contrast), len(table))} strongest of {count(len(table), contrast.noun)}, none of them "
            "significant."
        )
    if len(significant) > MAX_ROWS:
        return (
            f"The {MAX_ROWS} most significant of {count(len(significant), contrast.noun)}; the store holds all of them."
        )
    if len(significant) == 1:
        return f"The one {contrast.noun} with {p} < {format_alpha(alpha)}."
    return f"All {count(len(significant), contrast.noun)} with {p} < {format_alpha(alpha)}, the most significant first."


def _draw_connectome(contrast: TestedContrast, edges: pd.DataFrame, data: ReportData, name: str) -> tuple[Markup, str]:
    names = node_names(contrast.result).astype(str)
    place = {node: i for i, node in enumerate(names)}
    pairs = [(place[i], place[j]) for i, j in zip(edges["node_i"], edges["node_j"], strict=True)]
    signs = [1 if stat > 0 else -1 for stat in edges["stat"]]
    known = data.nodes.get(contrast.node_set)
    alt = f"{count(len(pairs), 'connection')}: {signs.count(1)} upwards in red, {signs.count(-1)} downwards in blue."
    colours = "Red: higher; blue: lower"
    if not contrast.is_directed:
        alt = f"{count(len(pairs), 'connection')}."
        colours = f"{contrast.stat_kind} has no direction"
    drawn = "The significant connections"
    if known is not None:
        table = known.set_index("node").reindex(names)
        if has_coordinates(table):
            figure = plot_brain(table, pairs, signs)
            view = f"{drawn} in a glass brain; each side view shows its own hemisphere. {colours}."
            return inline_svg(figure, name=f"{name}-brain", alt=alt), view
    figure = plot_ring(names.tolist(), _networks(data, contrast.node_set), pairs, signs)
    return inline_svg(figure, name=f"{name}-ring", alt=alt), f"{drawn} as chords of a ring of nodes. {colours}."


def _panels_caption(contrast: TestedContrast, n_shown: int, n_all: int, *, found: bool) -> str:
    what = "Each thin line is one subject; thick lines are group means"
    if contrast.covariate is not None:
        what = f"Each dot is one subject, against {contrast.hypothesis.effect}; the line is the plain least-squares fit"
    elif contrast.visits is None:
        what = "Each dot is one subject; bars are means with their 95 % confidence intervals"
    state = "" if found else " Not significant."
    cap = f" The first {n_shown} of {n_all} are drawn." if n_all > n_shown else ""
    return f"{what}. Values as measured, without adjustment for nuisance.{cap}{state}"


def _of_family(contrast: TestedContrast) -> str:
    family = str(contrast.fact("family", ""))
    return f" of the family {family}" if family else ""


def _null_caption(contrast: TestedContrast, threshold: float, alpha: float, *, found: bool) -> str:
    side = SIDES[contrast.alternative] if contrast.is_directed else "all directions"
    if contrast.stops_early:
        return (
            f"Each {contrast.noun} was compared with relabellings until {contrast.fact('n_exceed', 0)} of them were at "
            f"least as extreme as what was observed. Of {contrast.noun}s that stopped nothing more is known, so "
            "there is no distribution of the largest statistic and no p corrected for family-wise error; a "
            f"{contrast.noun} is significant at a false discovery rate below {format_alpha(alpha)} ({side})."
        )
    over = f"all {contrast.noun}s{_of_family(contrast)}"
    start = f"The largest statistic over {over} in each of {count(contrast.n_perm, 'relabelling')}."
    if not np.isfinite(threshold):
        return f"{start} With so few, no p can fall below {format_alpha(alpha)}."
    return (
        f"{start} A {contrast.noun} is significant (p FWE < {format_alpha(alpha)}, {side}) "
        f"from {contrast.compared} = {threshold:.2f} on; "
        + ("coloured marks are the observed ones." if found else "the mark is the strongest that was observed.")
    )


def _facts(contrast: TestedContrast) -> Table:
    exhaustive = " (every distinct one)" if contrast.fact("exhaustive", default=False) else ""
    rows = [
        ("test", contrast.hypothesis.test),
        ("model", f"~ {contrast.hypothesis.formula}"),
        ("sessions" if contrast.hypothesis.per_session else "subjects", f"{contrast.observed.sizes['observation']:,}"),
        (f"{contrast.noun}s tested", f"{contrast.n_tested:,} of {contrast.result.sizes['edge']:,}"),
        ("relabellings", f"{'at most ' if contrast.stops_early else ''}{contrast.n_perm:,}{exhaustive}"),
        ("sidedness", SIDES[contrast.alternative] if contrast.is_directed else "none: all directions"),
        *_options(contrast),
        ("seed", str(contrast.fact("seed", DASH))),
    ]
    return Table(columns=("", ""), rows=tuple(rows))


def _options(contrast: TestedContrast) -> list[tuple[str, str]]:
    """Return the options of the test that are not those of every test."""
    statistic = str(contrast.fact("statistic", "edge"))
    threshold = contrast.fact("threshold", None)
    n_group = int(contrast.fact("n_variance_group", 0))
    shown = {
        "family": str(contrast.fact("family", "")),
        "statistic": "" if statistic in {"edge", "voxel"} else statistic,
        "threshold": "" if threshold is None else f"{float(threshold):g}",
        "exchange": str(contrast.fact("exchange", "")),
        "variance": f"of each of {n_group} groups" if n_group else "",
    }
    usual = {"regression": "freedman-lane", "convention": "kconn", "tail": "counts", "missing": "exclude", "fdr": "bh"}
    shown |= {
        key: str(contrast.fact(key, default))
        for key, default in usual.items()
        if contrast.fact(key, default) != default
    }
    shown |= {"stopping": f"at {contrast.fact('n_exceed', 0)} as extreme"} if contrast.stops_early else {}
    shown |= {"corrected over contrasts": "yes"} if "p_fwe_joint" in contrast.result else {}
    return [(key, value) for key, value in shown.items() if value]


def _reproduction_table(data: ReportData) -> Table:
    rows: Sequence[tuple[str, ...]] = [
        (
            data.title(contrast),
            str(contrast.fact("seed", DASH)),
            f"{contrast.n_perm:,}",
            str(contrast.fact("table_sha256", DASH)),
        )
        for contrast in data.sorted_contrasts()
    ]
    columns = ("test", "seed", "relabellings", "SHA-256 of the relabelling table")
    return Table(columns=columns, rows=tuple(rows), numeric=frozenset({1, 2}))
