"""Run one job: skip what is published, keep the arithmetic of every worker the same, name every error's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import dask

from kconn.errors import KconnError, ResourceError, unforeseen
from kconn.io.cubes import translated
from kconn.kernels.blas import single_thread
from kconn.stages.binding import Job
from kconn.stages.cohort import (
    assemble_amplitudes,
    assemble_cohort,
    average_blocks,
    estimate_edge_reliability,
    test_contrast,
    test_features,
)
from kconn.stages.dense import connect_voxels
from kconn.stages.group_ica import decompose_group, merge_runs, reduce_denoised_run, select_components
from kconn.stages.maps import assemble_map_cohort, correct_map_tests, estimate_run_maps, test_map
from kconn.stages.qc_fc import estimate_cohort_qc_fc
from kconn.stages.quality import collect_coverage, collect_quality, compare_run_motion
from kconn.stages.run import denoise_run, estimate_run_netmat, extract_nodes, ingest_run
from kconn.versions import code_version

__all__ = ["STAGES", "Job", "Outcome", "run_job"]

Outcome = Literal["made", "kept"]
Stage = Callable[[Job], None]

STAGES: Final[dict[str, Stage]] = {
    "ingest": ingest_run,
    "denoise": denoise_run,
    "reduce": reduce_denoised_run,
    "nodes": extract_nodes,
    "netmat": estimate_run_netmat,
    "map": estimate_run_maps,
    "quality": collect_quality,
    "coverage": collect_coverage,
    "motion": compare_run_motion,
    "merge": merge_runs,
    "ica": decompose_group,
    "select": select_components,
    "dense": connect_voxels,
    "cohort": assemble_cohort,
    "blocks": average_blocks,
    "amplitudes": assemble_amplitudes,
    "map-cohort": assemble_map_cohort,
    "qcfc": estimate_cohort_qc_fc,
    "reliability": estimate_edge_reliability,
    "test": test_contrast,
    "feature-test": test_features,
    "map-test": test_map,
    "map-correction": correct_map_tests,
}


def run_job(job: Job, *, scheduler: Any = None) -> Outcome:
    """Run one step unless its result is published.

    One BLAS thread and one canonical block grid make the bits the same on every worker.

    Parameters
    ----------
    job
        The step and where it reads and writes.
    scheduler
        A Dask client or ``"threads"`` for the tasks inside the step, or None to compute them one after the other.

    Returns
    -------
    ``"kept"`` if the result was there, ``"made"`` if it was computed.

    Raises
    ------
    KconnError
        Whatever went wrong, with its place; ``E-INTERNAL`` for what nobody foresaw, with the traceback in the log.
    """
    step = job.step
    if job.code != code_version():
        raise ResourceError(
            "E-CODE-VERSION",
            f"this worker runs kconn {code_version()}",
            where=step.where,
            rule=f"the plan was made with {job.code}",
            fix="install the same kconn on every machine",
        )
    if job.is_published():
        return "kept"
    try:
        with (
            translated(step.address),
            single_thread(),
            dask.config.set(scheduler=scheduler or "synchronous"),
        ):
            STAGES[step.stage](job)
    except KconnError as error:
        raise error.at(step.where) from error
    except MemoryError as error:
        raise ResourceError(
            "E-MEM",
            f"{step.stage} ran out of memory",
            where=step.where,
            rule=f"it needs about {step.estimate.memory / 1e6:.0f} MB",
            fix="run with fewer workers, or on a machine with more memory",
        ) from error
    except Exception as error:
        raise unforeseen(error, what=step.stage, where=step.where) from error
    return "made"
