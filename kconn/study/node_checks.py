"""Node sets against the runs of a study: grids, brain models, numbers, kinds and maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.connect.dual_regression import check_dense_maps, check_kind, check_maps
from kconn.connect.kinds import KINDS
from kconn.connect.netmats import PARTIAL_KINDS, check_rank
from kconn.connect.nodes import AFFINE_TOLERANCE
from kconn.connect.parcellation import Columns, NodeSet, find_dense_members, find_members
from kconn.connect.sliding_windows import plan_windows
from kconn.connect.spatial_maps import DenseMaps, SpatialMaps
from kconn.errors import InputError, KconnError, StudyFileError
from kconn.grayordinates import has_grayordinates, read_grayordinates
from kconn.io import nifti
from kconn.kernels.parcellation import Members
from kconn.study.connection_tables import NodesTable
from kconn.study.examination import RunFacts, collected
from kconn.study.file import Study
from kconn.study.nodesets import load_nodes
from kconn.study.surfaces import find_surfaces, load_neighbours
from kconn.study.table import unless_off
from kconn.study.test_tables import OF_NEIGHBOURS

_NO_NODES: Final = xr.Dataset(coords={"node": np.array([], dtype=str)})


def check_brain_models(facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Refuse runs whose grayordinates are not those of most others: maps of a cohort need one row per place."""
    dense = [run for run in facts if has_grayordinates(run.template)]
    n_like = Counter(run.template.attrs["brain_models"] for run in dense)
    usual = max(dense, key=lambda run: n_like[run.template.attrs["brain_models"]], default=None)
    for run in dense:
        if usual is not None and run.template.attrs["brain_models"] != usual.template.attrs["brain_models"]:
            mine, others = (read_grayordinates(each.template).describe() for each in (run, usual))
            problems.append(
                InputError(
                    "E-BRAIN-MODELS",
                    f"it has {mine}; {usual.where} has {others}",
                    where=run.where,
                    rule="all runs have the same grayordinates, in the same order",
                    fix="make all runs with the same version and settings of their pipeline",
                )
            )
    if dense and len(dense) < len(facts):
        other = next(run for run in facts if not has_grayordinates(run.template))
        problems.append(
            InputError(
                "E-BRAIN-MODELS",
                "it is no series of grayordinates, others are",
                where=other.where,
                rule="all runs of a study are of one kind",
                fix="correct the pattern in [inputs]",
            )
        )


def check_nodes(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> dict[str, xr.Dataset]:
    """Load every node set, place it on the grid of every run, and return the coordinates of its nodes.

    A grid that was seen is not tried again.
    """
    found: dict[str, xr.Dataset] = {}
    for name, table in study.nodes.items():
        if table.ica is not None:
            found[name] = xr.Dataset(coords={"node": list(study.ica[table.ica].accepted())})
            _check_components(study, name, table, facts, problems)
            continue
        seen: dict[Any, xr.Dataset] = {}
        placed: dict[Any, Members | None] = {}
        filled: set[str] = set()
        for run in facts:
            grid = _grid(run)
            with collected(problems, run.where, of=f"nodes.{name}"):
                if grid not in seen:
                    seen[grid] = _NO_NODES
                    nodes = _load(study, name, run)
                    placed[grid] = _place(nodes, run)
                    seen[grid] = xr.Dataset(coords=nodes.coords())
                    if study.contrasts:
                        _check_number(table, nodes)
                if not filled.issuperset(names := seen[grid]["node"].to_numpy().astype(str)):
                    filled.update(names[_find_filled(placed[grid], names.size, _read_mask(study, run))])
                if table.netmats:
                    _check_kinds(study, run, names.size, stays=_stays(study, run))
        _check_longest(study, name, facts, seen, problems)
        found[name] = max(seen.values(), key=lambda coords: coords.sizes["node"], default=_NO_NODES)
        with collected(problems, of=f"nodes.{name}"):
            _refuse_empty([str(node) for node in found[name]["node"].to_numpy() if str(node) not in filled])
    return found


def _refuse_empty(nodes: list[str]) -> None:
    """Refuse nodes that lie in no run at all: they would be NaN everywhere."""
    if nodes:
        raise InputError(
            "E-NODES",
            f"{len(nodes)} nodes have no voxel in any run: {', '.join(map(repr, nodes[:5]))}",
            rule="each node lies in the field of view, and in the brain mask, of at least one run",
            fix="correct their coordinates, or leave them out with 'exclude'",
        )


def _check_components(
    study: Study, name: str, table: NodesTable, facts: list[RunFacts], problems: list[KconnError]
) -> None:
    """Check what is made of components that nobody has seen yet, from their number."""
    n_node = len(study.ica[str(table.ica)].accepted())
    for run in facts:
        with collected(problems, run.where, of=f"nodes.{name}"):
            if table.netmats:
                _check_kinds(study, run, n_node, stays=_stays(study, run))


def _check_number(table: NodesTable, nodes: NodeSet | SpatialMaps | DenseMaps) -> None:
    if table.netmats and len(nodes.names) < 2:
        raise InputError(
            "E-NODES",
            f"the node set has the node {nodes.names[0]!r} alone",
            rule="a connection that can be tested needs two nodes",
            fix="write netmats = false and seed_maps = true, or add nodes",
        )


def check_map_statistics(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Refuse surfaces that are not those of the runs, and statistics of clusters where neighbours are not known."""
    dense = next((run for run in facts if has_grayordinates(run.template)), None)
    places = None if dense is None else read_grayordinates(dense.template)
    if study.surfaces is not None:
        with collected(problems, of="surfaces"):
            if places is None or not find_surfaces(places):
                raise InputError(
                    "E-BRAIN-MODELS",
                    "no run has vertices of a surface",
                    rule="surfaces belong to CIFTI runs",
                    fix="take [surfaces] out of the study file",
                )
            files = {role: study.folder / path for role, path in study.surfaces.files().items()}
            load_neighbours(files, places, connectivity=None, extent=study.surfaces.extent)
    if not any(table.map_kinds() for table in study.nodes.values()):
        return
    for name in study.contrasts:
        options = study.permutation_of(name)
        if options.statistic not in OF_NEIGHBOURS:
            continue
        asked = f"contrasts.{name} has statistic = {options.statistic!r}"
        if options.neighbours is None and (places is None or (places.vertex < 0).any()):
            problems.append(
                StudyFileError(
                    "E-STUDY-VALUE",
                    f"{asked} and no neighbours, and there are maps",
                    rule="of voxels, 6, 18 or 26 are neighbours",
                    fix="write neighbours = 26 in the contrast or in [permutation]",
                )
            )
        if study.surfaces is None and places is not None and (structures := find_surfaces(places)):
            problems.append(
                StudyFileError(
                    "E-STUDY-VALUE",
                    f"{asked}, and the maps have vertices of {' and '.join(structures)} without a surface",
                    rule="vertices are neighbours along the edges of the triangles of their surface",
                    fix="name the GIFTI surfaces in [surfaces]",
                )
            )


def check_map_grids(study: Study, facts: list[RunFacts], problems: list[KconnError]) -> None:
    """Refuse runs on several grids where maps of them are to be put together."""
    if not any(table.map_kinds() for table in study.nodes.values()):
        return
    images = [run for run in facts if "affine" in run.template.attrs]
    for run in images[1:]:
        with collected(problems, run.where, of="maps"):
            first, here = (np.asarray(other.template.attrs["affine"]) for other in (images[0], run))
            shapes = [list(other.template.attrs["grid_shape"]) for other in (images[0], run)]
            if shapes[0] != shapes[1] or np.abs(first - here).max() > AFFINE_TOLERANCE:
                raise InputError(
                    "E-GRID",
                    f"the run is on a grid of {shapes[1]}, that of {images[0].where} on {shapes[0]}, or their affines "
                    "differ",
                    rule=f"maps of one cohort share one grid, shape equal and affine equal to {AFFINE_TOLERANCE:g} mm",
                    fix="resample the runs to one grid, or take seed_maps and subject_maps out of [nodes]",
                )


def _check_kinds(study: Study, run: RunFacts, n_node: int, *, stays: bool) -> None:
    """Refuse kinds of netmat that the longest series this run can give is too short for.

    ``stays`` says that frames and degrees of freedom count as denoising leaves them: else the run may be left out.
    """
    if run.left_out is not None:
        return
    table = study.connectivity
    for name in table.edge_kinds():
        kind = KINDS[name]
        if kind.needs_rank or (table.z == "ar1" and kind.estimator in PARTIAL_KINDS):
            n_frame, df_left = (run.n_kept, run.df_left) if stays else (run.n_time, None)
            check_rank(n_frame, n_node, df_left=df_left)
        if name == "corrsd":
            t_r = float(run.template.attrs["t_r"])
            plan_windows(run.n_time, t_r=t_r, window_s=table.window_s, step_s=table.step_s)


def _stays(study: Study, run: RunFacts) -> bool:
    """Say whether no limit on the quality of runs can leave this one out."""
    limits, t_r = study.quality, float(run.template.attrs["t_r"])
    if any(unless_off(limit) is not None for limit in (limits.max_mean_fd, limits.max_std_dvars, limits.max_censored)):
        return False
    return run.n_kept >= limits.min_frames and run.n_kept * t_r / 60 >= (unless_off(limits.min_minutes) or 0)


def _check_longest(
    study: Study, name: str, facts: list[RunFacts], seen: Mapping[Any, xr.Dataset], problems: list[KconnError]
) -> None:
    """Refuse kinds of netmat that no run is long enough for, whichever are left out."""
    runs = [run for run in facts if run.left_out is None and _grid(run) in seen]
    if not study.nodes[name].netmats or not runs or any(_stays(study, run) for run in runs):
        return
    longest = max(runs, key=lambda run: run.n_kept if run.df_left is None else run.df_left)
    with collected(problems, longest.where, of=f"nodes.{name}"):
        _check_kinds(study, longest, seen[_grid(longest)].sizes["node"], stays=True)


def _grid(run: RunFacts) -> Any:
    if "column" in run.template.coords:
        return tuple(run.template["column"].to_numpy())
    if has_grayordinates(run.template):
        return run.template.attrs["brain_models"]
    return (tuple(run.template.attrs["grid_shape"]), np.asarray(run.template.attrs["affine"]).tobytes())


def _load(study: Study, name: str, run: RunFacts) -> NodeSet | SpatialMaps | DenseMaps:
    files = {role: study.folder / path for role, path in study.node_files(name).items()}
    return load_nodes(study.node_params(name), files, run.template)


def _place(nodes: NodeSet | SpatialMaps | DenseMaps, run: RunFacts) -> Members | None:
    """Check nodes against a run and return what each has on its grid; None for columns and maps, which are whole."""
    if isinstance(nodes, NodeSet) and isinstance(nodes.source, Columns):
        return None
    if "column" in run.template.coords:
        raise InputError(
            "E-NODES",
            "an atlas, maps or spheres need images, these runs are tables of node series",
            rule="columns are the nodes of tables",
            fix='write columns = "all"',
        )
    is_dense = has_grayordinates(run.template)
    if not isinstance(nodes, NodeSet):
        check_kind(nodes, is_dense=is_dense, where=run.where)
    match nodes:
        case DenseMaps():
            check_dense_maps(nodes, read_grayordinates(run.template), where=run.where)
        case SpatialMaps():
            check_maps(nodes, *_read_grid(run), where=run.where)
        case NodeSet() if is_dense:
            return find_dense_members(nodes, read_grayordinates(run.template), where=run.where)
        case NodeSet():
            return find_members(nodes, *_read_grid(run), where=run.where)
    return None


def _find_filled(members: Members | None, n_node: int, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """Return which nodes (node,) have a voxel, in the mask where there is one."""
    filled = np.full(n_node, fill_value=members is None)
    if members is not None:
        inside = np.ones(members.voxel.size, dtype=np.bool_) if mask is None else mask.ravel(order="F")[members.voxel]
        filled[members.node[np.repeat(inside, np.diff(members.start))]] = True
    return filled


def _read_mask(study: Study, run: RunFacts) -> npt.NDArray[np.bool_] | None:
    if "mask" not in run.files:
        return None
    grid_shape, affine = _read_grid(run)
    return nifti.read_mask(study.folder / run.files["mask"], grid_shape=grid_shape, affine=affine, where=run.where)


def _read_grid(run: RunFacts) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    attrs = run.template.attrs
    n_i, n_j, n_k = (int(n) for n in attrs["grid_shape"])
    return (n_i, n_j, n_k), np.asarray(attrs["affine"], dtype=np.float64)
