"""The stages of maps: those of a run, their cohort, the test of each node's map, and the correction over nodes."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr

from kconn.chunks import plan_maps
from kconn.connect.cohort_maps import MapVariable, assemble_maps, mark_data
from kconn.connect.dual_regression import regress_series
from kconn.connect.seedmaps import estimate_seed_maps
from kconn.connect.voxels import PLACE_ATTRS
from kconn.errors import DesignError
from kconn.grayordinates import read_grayordinates
from kconn.infer.joint_maps import correct_over_nodes
from kconn.io import cubes
from kconn.kernels.clusters import Neighbours
from kconn.stages.binding import Job, excluded, exclusion
from kconn.stages.cohort import run_contrast, select_runs
from kconn.stages.quality import split_path, summarise_sessions
from kconn.study.connection_tables import MapKind
from kconn.study.surfaces import STRUCTURE_OF, load_neighbours

#: Kind of map -> the variable that holds it.
VARIABLE_OF: Final[dict[MapKind, MapVariable]] = {"seedmap": "seed_map", "subjectmap": "subject_map"}


def estimate_run_maps(job: Job) -> None:
    """Make the maps of one run from its denoised voxels and the series of one node set."""
    series = job.open(job.step.reads("nodes").address)
    if reason := exclusion(series):
        job.publish(excluded(reason))
        return
    raw = job.open(job.step.reads("ingest").address)
    run = cubes.join_steps(raw.drop_vars("bold"), job.open(job.step.reads("denoise").address))
    params = job.step.params
    if params["kind"] == "seedmap":
        out = estimate_seed_maps(run, series["timeseries"])
    else:
        joined = run.assign(timeseries=series["timeseries"])
        out = regress_series(joined, normalise=params["normalise"]).drop_vars(["subject_map_t", "timeseries"])
    variable = VARIABLE_OF[params["kind"]]
    out = mark_data(out, variable)
    node, voxel = plan_maps(*out[variable].shape)
    # Of the variables, not of DataArrays: those would take their coordinates along into chunks.
    maps = out[variable].variable.chunk({"node": node, "voxel": voxel})
    has_data = out["has_data"].variable.chunk({"voxel": voxel})
    job.publish(out[[variable, "has_data"]].assign({"has_data": has_data, variable: maps}))


def assemble_map_cohort(job: Job) -> None:
    """Average the maps of the runs of each session and stack the sessions, block by block of voxels."""
    params = job.step.params
    chosen = select_runs(
        job, {up.address.path: job.open_unchunked(up.address) for up in job.step.upstream if up.address.step == "map"}
    )
    runs = ((*split_path(path)[:2], ds) for path, ds in chosen.used.items())
    cube = assemble_maps(runs, variable=VARIABLE_OF[params["kind"]], min_share=params["min_share"])
    job.publish(cube.assign(summarise_sessions(chosen.rows, cube)).assign_attrs(chosen.left_out()))


def test_map(job: Job) -> None:
    """Test one contrast over the map of one node; a node without a map in some session is left out, with the reason."""
    params = job.step.params
    cohort = job.open(job.step.upstream[0].address)
    maps = cohort[VARIABLE_OF[params["kind"]]].isel(node=params["i_node"])
    name = str(maps["node"].item())
    try:
        result = run_contrast(
            job, maps, without_runs=cohort.attrs["without_runs"], neighbours=_find_neighbours(job, cohort)
        )
    except DesignError as error:
        if error.code != "E-NO-FEATURES":
            raise
        job.publish(excluded(f"{error.code} {error.problem}").assign_attrs(node=name))
        return
    place = {name: cohort.attrs[name] for name in PLACE_ATTRS if name in cohort.attrs}
    job.publish(result.assign_attrs(place, node=name))


def _find_neighbours(job: Job, cohort: xr.Dataset) -> Neighbours | None:
    """Return which grayordinates of a cohort touch, where the step has surfaces."""
    params = job.step.params
    files = {role: path for role in STRUCTURE_OF if (path := job.file(role)) is not None}
    if not files:
        return None
    connectivity = params["permutation"]["neighbours"]
    return load_neighbours(
        files, read_grayordinates(cohort), connectivity=connectivity, extent=params["surface_extent"]
    )


def correct_map_tests(job: Job) -> None:
    """Correct the tests of all nodes of one contrast for each other: the maximum is taken over all of their maps."""
    found = [ds for ds in (job.open(up.address) for up in job.step.upstream) if exclusion(ds) is None]
    if not found:
        job.publish(excluded("no node has a map that could be tested"))
        return
    place = {name: found[0].attrs[name] for name in PLACE_ATTRS if name in found[0].attrs}
    if "contrast" in found[0].dims:
        each = [correct_over_nodes([ds.isel(contrast=i) for ds in found]) for i in range(found[0].sizes["contrast"])]
        out = xr.concat(each, found[0]["contrast"], coords="minimal", compat="override", join="exact")
    else:
        out = correct_over_nodes(found)
    out = out.assign_attrs(place)
    job.publish(out.assign_coords(node=np.array([ds.attrs["node"] for ds in found], dtype=object)))
