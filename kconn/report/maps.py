"""What a report says of maps: the tests of the maps of nodes, and the components of a group ICA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup
from matplotlib.figure import Figure

from kconn.export.maps import WORDS
from kconn.grayordinates import has_grayordinates
from kconn.report.data import GroupComponents, TestedContrast, TestedMap
from kconn.report.map_clusters import cluster_rows
from kconn.report.palette import DIVERGING, RULE
from kconn.report.slices import draw_axial, draw_planes, place_volume, structure_table
from kconn.report.svg import inline_svg
from kconn.report.tables import Table
from kconn.report.words import DASH, MINUS, SIDES, count, format_alpha, format_number, format_p
from kconn.study.connection_tables import MapKind

#: Name of the test, node set, kind of map.
_Key = tuple[str, str, MapKind]

#: Maps that are drawn, and clusters that are listed; the store holds all.
MAX_MAPS: Final = 12
MAX_CLUSTERS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPicture:
    """The map of one node: pictures, and its clusters."""

    title: str
    slices: Markup
    structures: Table | None
    clusters: Table | None
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSection:
    """What the page shows of one contrast over the maps of a node set."""

    anchor: str
    title: str
    headline: str
    question: str
    found: bool
    nodes: Table
    note: str
    pictures: tuple[MapPicture, ...]
    left_out: tuple[str, ...]
    tests: tuple[TestedContrast, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPicture:
    """One component: its picture, and what is said of it."""

    name: str
    accepted: bool
    caption: str
    slices: Markup
    structures: Table | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSection:
    """What the page shows of one group ICA."""

    anchor: str
    title: str
    lead: str
    table: Table
    templates: Table | None
    matches: Markup
    pictures: tuple[ComponentPicture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What one tested map is reduced to, so that one map at a time is in memory."""

    node: str
    row: tuple[str, ...]
    p: float
    n_found: int
    n_tested: int
    picture: MapPicture | None
    test: TestedContrast


def map_sections(maps: Iterable[TestedMap], *, alpha: float) -> list[MapSection]:
    """Return one section per contrast and kind of map; the maps are taken one by one."""
    seen: dict[_Key, list[_Seen]] = {}
    left_out: dict[_Key, list[str]] = {}
    for one in maps:
        key = (one.name, one.node_set, one.kind)
        if one.test is None:
            left_out.setdefault(key, []).append(f"{one.node}: {one.reason}")
            continue
        n_drawn = sum(other.picture is not None for other in seen.get(key, []))
        seen.setdefault(key, []).append(_look_at(one, one.test, alpha=alpha, draws=n_drawn < MAX_MAPS))
    keys = list(dict.fromkeys([*seen, *left_out]))
    return [_section(key, i, seen.get(key, []), tuple(left_out.get(key, ())), alpha) for i, key in enumerate(keys)]


def _look_at(one: TestedMap, test: TestedContrast, *, alpha: float, draws: bool) -> _Seen:
    result, significant = test.result, test.significant(alpha)
    stat, p = (result[name].to_numpy() for name in ("stat", test.deciding_p))
    clusters = cluster_rows(result, significant, test.deciding_p)
    strongest = int(np.nanargmax(np.where(np.isfinite(p), np.abs(stat), np.nan)))
    where = cluster_rows(result, np.arange(stat.size) == strongest, test.deciding_p)["place"][0]
    least = float(np.nanmin(p))
    row = (
        one.node,
        f"{test.n_tested:,}",
        f"{int(significant.sum()):,}",
        str(len(clusters)),
        format_number(float(stat[strongest])),
        str(where),
        *(() if one.regions is None else (str(one.regions[strongest]) or DASH,)),
        format_p(least, n_perm=test.n_perm),
        *(() if one.p_nodes is None else (format_p(float(np.nanmin(one.p_nodes)), n_perm=test.n_perm),)),
    )
    picture = _picture(one, test, significant, alpha) if draws and significant.any() else None
    light = replace(test, result=result.drop_dims("voxel"))
    return _Seen(
        node=one.node,
        row=row,
        p=least,
        n_found=int(significant.sum()),
        n_tested=test.n_tested,
        picture=picture,
        test=light,
    )


def _picture(one: TestedMap, test: TestedContrast, significant: npt.NDArray[np.bool_], alpha: float) -> MapPicture:
    result = test.result
    stat = result["stat"].to_numpy().astype(np.float64)
    volume = place_volume(result, stat, significant)
    is_drawn = volume is not None and volume.shown.any()
    structures = (
        structure_table(result, stat, significant, symbol=test.stat_kind) if has_grayordinates(result) else None
    )
    smallest = float(np.abs(stat[significant]).min())
    return MapPicture(
        title=one.node,
        slices=draw_axial(volume, what=f"Map of {one.node}") if volume is not None and is_drawn else Markup(),
        structures=structures,
        clusters=_cluster_table(one, test, significant),
        caption=(
            f"{test.stat_kind} of every {_unit(result)} with {_decides(test)} < {format_alpha(alpha)}, from "
            f"|{test.stat_kind}| = {smallest:.2f} on; {_colours(test)}"
            + ("; grey: what was tested. Left is left." if is_drawn else ".")
            + (" The bar is the range of all values, the box their middle half." if structures is not None else "")
        ),
    )


def _cluster_table(one: TestedMap, test: TestedContrast, significant: npt.NDArray[np.bool_]) -> Table:
    rows = cluster_rows(test.result, significant, test.deciding_p)
    has_regions, has_nodes = one.regions is not None, one.p_nodes is not None
    shown = []
    for _, cluster in rows.head(MAX_CLUSTERS).iterrows():
        peak = int(cluster["peak"])
        shown.append(
            (
                str(cluster["place"]),
                *((str(one.regions[peak]) or DASH,) if one.regions is not None else ()),
                f"{int(cluster['size']):,}",
                format_number(float(cluster["stat"])),
                format_p(float(cluster["p"]), n_perm=test.n_perm),
                *((format_p(float(one.p_nodes[peak]), n_perm=test.n_perm),) if one.p_nodes is not None else ()),
            )
        )
    columns = (
        "peak" if has_grayordinates(test.result) else "peak (x y z in mm)",
        *(("region",) if has_regions else ()),
        f"{_unit(test.result)}s",
        f"{test.stat_kind} at peak",
        _decides(test),
        *(("p FWE, all maps",) if has_nodes else ()),
    )
    first = 2 if has_regions else 1
    return Table(columns=columns, rows=tuple(shown), numeric=frozenset(range(first, len(columns))))


def _section(key: _Key, i: int, seen: Sequence[_Seen], left_out: tuple[str, ...], alpha: float) -> MapSection:
    name, node_set, kind = key
    words = WORDS[kind]
    found = [one for one in seen if one.n_found]
    tests = tuple(one.test for one in seen)
    question = str(tests[0].fact("question", "")) if tests else ""
    columns: tuple[str, ...] = ()
    if tests:
        has_regions = len(seen[0].row) - 7 - _has_joint(seen) > 0
        columns = (
            words.node,
            "tested",
            "significant",
            "clusters",
            f"strongest {tests[0].stat_kind}",
            "at",
            *(("region",) if has_regions else ()),
            f"least {_decides(tests[0])}",
            *(("over all maps",) if _has_joint(seen) else ()),
        )
    n_drawn = sum(one.picture is not None for one in seen)
    return MapSection(
        anchor=f"map{i}",
        title=f"{name} · {words.plural} of {node_set}",
        headline=_headline(seen, found, words.plural, alpha),
        question=question,
        found=bool(found),
        nodes=Table(
            columns=columns,
            rows=tuple(one.row for one in sorted(seen, key=lambda one: one.p)),
            numeric=frozenset({1, 2, 3, 4} | set(range(len(columns) - 1 - _has_joint(seen), len(columns)))),
        ),
        note=f"The first {n_drawn} of {len(found)} are drawn; `kconn export` writes all."
        if n_drawn < len(found)
        else "",
        pictures=tuple(one.picture for one in seen if one.picture is not None),
        left_out=left_out,
        tests=tests,
    )


def _has_joint(seen: Sequence[_Seen]) -> bool:
    return len(seen) > 1 and not seen[0].test.stops_early


def _headline(seen: Sequence[_Seen], found: Sequence[_Seen], plural: str, alpha: float) -> str:
    if not seen:
        return "No map could be tested."
    test = seen[0].test
    side = SIDES[test.alternative] if test.is_directed else f"{test.stat_kind}, all directions"
    rule = f"{_decides(test)} < {format_alpha(alpha)} in its map, {side}"
    if not found:
        return f"None of the {count(len(seen), 'map')} shows an effect anywhere ({rule})."
    names = ", ".join(one.node for one in found[:MAX_MAPS]) + (", ..." if len(found) > MAX_MAPS else "")
    verb = "shows" if len(found) == 1 else "show"
    return f"{len(found)} of {len(seen)} {plural} {verb} an effect somewhere ({rule}): {names}."


def _decides(test: TestedContrast) -> str:
    return "p FDR" if test.stops_early else "p FWE"


def _unit(result: xr.Dataset) -> str:
    return "grayordinate" if has_grayordinates(result) else "voxel"


def _colours(test: TestedContrast) -> str:
    return "red: higher, blue: lower" if test.is_directed else f"{test.stat_kind} has no direction"


def component_sections(groups: Iterable[GroupComponents]) -> list[ComponentSection]:
    """Return one section per group ICA."""
    return [_components(group, i) for i, group in enumerate(groups)]


def _components(group: GroupComponents, i: int) -> ComponentSection:
    ds = group.components
    names = ds["node"].to_numpy().astype(str).tolist()
    r = ds["template_correlation"].to_numpy() if "template_correlation" in ds else None
    known = ds["template"].to_numpy().astype(str).tolist() if r is not None else []
    n_accepted = int(group.accepted.sum())
    lead = (
        f"{count(len(names), 'component')} of {count(int(ds.attrs['n_run']), 'run')}, {n_accepted} accepted as "
        f"networks. {ds.attrs['n_converged']} of {count(int(ds.attrs['n_start']), 'start')} of FastICA converged; "
        f"the components explain {100 * float(ds['variance_share'].sum()):.0f} % of the variance that was decomposed."
    )
    matches = Markup()
    if r is not None:
        alt = f"Spatial correlation of {len(names)} components with {len(known)} templates."
        matches = inline_svg(plot_matches(r, names, known), name=f"ica{i}", alt=alt)
    return ComponentSection(
        anchor=f"ica{i}",
        title=f"Group ICA · {group.name}",
        lead=lead,
        table=_component_table(group, r, known),
        templates=None if r is None else _template_table(r, names, known),
        matches=matches,
        pictures=tuple(_component_picture(group, at, r, known) for at in range(len(names))),
    )


def _best(r: npt.NDArray[np.float64], known: Sequence[str], at: int) -> tuple[str, float]:
    if not np.isfinite(r[at]).any():
        return DASH, float("nan")
    best = int(np.nanargmax(np.abs(r[at])))
    return known[best], float(r[at, best])


def _component_table(group: GroupComponents, r: npt.NDArray[np.float64] | None, known: Sequence[str]) -> Table:
    ds = group.components
    rows = []
    for at, name in enumerate(ds["node"].to_numpy().astype(str)):
        match = () if r is None else _match_cells(*_best(r, known, at))
        rows.append(
            (
                str(name),
                "yes" if group.accepted[at] else "no",
                group.reason[at],
                format_number(float(ds["stability"][at])),
                format_number(100 * float(ds["variance_share"][at]), digits=1),
                *match,
            )
        )
    more = ("most like", "r") if r is not None else ()
    columns = ("component", "accepted", "rejected because", "stability", "% of variance", *more)
    numeric = {3, 4, 6} if r is not None else {3, 4}
    return Table(columns=columns, rows=tuple(rows), numeric=frozenset(numeric), prose=frozenset({2}))


def _match_cells(name: str, r: float) -> tuple[str, str]:
    return name, format_number(r)


def _template_table(r: npt.NDArray[np.float64], names: Sequence[str], known: Sequence[str]) -> Table:
    rows = []
    for at, template in enumerate(known):
        column = np.where(np.isfinite(r[:, at]), np.abs(r[:, at]), -1)
        order = np.argsort(-column, kind="stable")[:2]
        cells = [cell for best in order for cell in (names[best], format_number(float(r[best, at])))]
        rows.append((template, *cells, *[DASH] * (4 - len(cells))))
    columns = ("template", "most like it", "r", "next", "r")
    return Table(columns=columns, rows=tuple(rows), numeric=frozenset({2, 4}))


def plot_matches(r: npt.NDArray[np.float64], names: Sequence[str], known: Sequence[str]) -> Figure:
    """Show the correlation (component, template) as a matrix with one row per template."""
    n_component, n_template = r.shape
    left, bottom, top, width = 1.6, 0.75, 0.1, 7.2
    inner = min(width - left - 0.1, 0.3 * n_component)
    height = bottom + top + 0.2 * n_template
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((left / width, bottom / height, inner / width, 0.2 * n_template / height))
    colours = mpl.colormaps[DIVERGING].with_extremes(bad=RULE)
    ax.imshow(r.T, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(n_template), known, fontsize=7.5)
    step = max(1, n_component // 20)
    ax.set_xticks(range(0, n_component, step), names[::step], fontsize=6.5, rotation=90)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    bar = figure.add_axes((left / width, 0.22 / height, 1.6 / width, 0.09 / height))
    bar.imshow(np.linspace(0, 1, 128)[None, :], cmap=DIVERGING, aspect="auto", extent=(-1, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([-1, 0, 1], [f"{MINUS}1", "r = 0", "1"], fontsize=7)
    for side in bar.spines.values():
        side.set_visible(False)
    return figure


def _component_picture(
    group: GroupComponents, at: int, r: npt.NDArray[np.float64] | None, known: Sequence[str]
) -> ComponentPicture:
    ds = group.components
    name = str(ds["node"].to_numpy()[at])
    z = ds["ica_map"][at].to_numpy().astype(np.float64)
    shown = np.abs(z) > group.threshold
    volume = place_volume(ds, z, shown)
    parts = [f"stability {format_number(float(ds['stability'][at]))}"]
    if r is not None:
        like, value = _best(r, known, at)
        parts.append(f"{like} r = {format_number(value)}")
    if not group.accepted[at]:
        parts.append(f"rejected: {group.reason[at]}")
    return ComponentPicture(
        name=name,
        accepted=bool(group.accepted[at]),
        caption=" · ".join(parts),
        slices=draw_planes(volume, what=name) if volume is not None else Markup(),
        structures=structure_table(ds, z, shown, symbol="z") if has_grayordinates(ds) else None,
    )
