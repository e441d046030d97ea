"""The stages of group ICA: runs reduced, merged, decomposed, and the components that are accepted."""

from __future__ import annotations

import numpy as np
import xarray as xr

from kconn.connect.decomposition import find_components, match_templates, merge_reduced, reduce_run
from kconn.connect.dual_regression import place_any_maps
from kconn.errors import InputError, StudyFileError
from kconn.stages.binding import Job, excluded, exclusion, open_denoised
from kconn.study.nodesets import load_templates


def reduce_denoised_run(job: Job) -> None:
    """Reduce one denoised run to rows that stand for its frames."""
    if (opened := open_denoised(job)) is None:
        return
    _, run = opened
    params = job.step.params
    job.publish(reduce_run(run, n_component=params["n_row"], normalise=params["normalise"]))


def merge_runs(job: Job) -> None:
    """Merge reduced runs, or what was merged of them."""
    opened = [job.open(up.address) for up in job.step.upstream]
    parts = [part for part in opened if exclusion(part) is None]
    if not parts:
        job.publish(excluded("every run was left out"))
        return
    job.publish(merge_reduced(parts, n_component=job.step.params["n_row"]))


def decompose_group(job: Job) -> None:
    """Find the independent components of all runs, and compare them with the templates."""
    merged = job.open(job.step.upstream[0].address)
    if exclusion(merged) is not None:
        raise InputError(
            "E-NO-RUNS",
            "every run was left out",
            rule="at least one run is within the quality limits",
            fix="look at the reasons with `kconn status`, and at [quality] and [denoise] in the study file",
        )
    params = job.step.params
    n_component = None if params["n_components"] == "estimate" else params["n_components"]
    out = find_components(
        merged,
        n_component=n_component,
        n_start=params["n_start"],
        seed=params["seed"],
        min_share=params["min_share"],
    )
    if (templates := load_templates(job.paths())) is not None:
        out = match_templates(out, place_any_maps(templates, out).rename(node="template"))
    job.publish(out.assign_attrs(threshold=params["threshold"]))


def select_components(job: Job) -> None:
    """Keep which components are accepted, and why the others are not."""
    components = job.open(job.step.upstream[0].address)
    names = components["node"].to_numpy().astype(str)
    reject = job.step.params["reject"]
    if unknown := sorted(set(reject) - set(names.tolist())):
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"there is no component {unknown[0]!r} to reject",
            where=f"[{job.step.where.replace('/', '.')}] reject",
            rule=f"components are named {names[0]} to {names[-1]}",
        )
    reasons = np.array([reject.get(name, "") for name in names], dtype=object)
    accepted = np.array([name not in reject for name in names])
    if not accepted.any():
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"all {names.size} components are rejected",
            where=f"[{job.step.where.replace('/', '.')}] reject",
            rule="at least one component is a network",
        )
    job.publish(
        xr.Dataset(
            {"accepted": ("node", accepted), "reason": ("node", reasons)}, coords={"node": components["node"].variable}
        )
    )
