"""A study that grows: ``python -m flows.watch study.toml`` looks once; `deploy/prefect.yaml` looks again and again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas import State
from prefect.states import Completed

from flows.announcing import tell_waiting
from flows.arriving import Arrivals, describe, look_for_arrivals
from flows.declaring import AS_THE_STUDY_SAYS, Resources, study_flow
from flows.places import locate_study
from flows.shell import run_from_shell
from flows.walking import finish, opened, walk, walk_runs
from kconn.errors import ResourceError, StoreError
from kconn.study.plan import RUN_STAGES


@study_flow("kconn-watch")
def run_watch(
    study: str,
    resources: Resources = AS_THE_STUDY_SAYS,
    settle_minutes: float = 10.0,
) -> str | State[Any]:
    """Compute what new and changed runs need, and the cohort and the report if that changes them.

    Runs that are still being copied, that lack a file or that cannot be read are left for the next time and listed.

    Parameters
    ----------
    study
        The study file.
    resources
        What it may use, where that is not what the study file says.
    settle_minutes
        A run waits while one of its files changed less than this ago.
    """
    path = locate_study(study)
    arrivals = look_for_arrivals(path, settle_seconds=60 * settle_minutes, refused={})
    n_step = 0
    if _has_work(arrivals):
        try:
            arrivals, n_step = _catch_up(path, arrivals, resources, settle_seconds=60 * settle_minutes)
        except StoreError as error:
            if error.code != "E-STORE-LOCKED":
                raise
            get_run_logger().warning("%s", error)
            return Completed(name="Skipped", message=str(error), data=str(error))
    tell_waiting(arrivals.waiting, cohort=arrivals.cohort_waits)
    for where, reason in sorted(arrivals.waiting.items()):
        get_run_logger().warning("left for the next time: %s: %s", where, reason)
    waits = f"; the cohort waits: {arrivals.cohort_waits}" if arrivals.cohort_waits else ""
    return f"{n_step} steps were missing, {len(arrivals.waiting)} runs are left for the next time{waits}"


def _has_work(arrivals: Arrivals) -> bool:
    if arrivals.bench is None:
        return False
    pending = arrivals.bench.pending()
    if arrivals.cohort_waits:
        return any(step.stage in RUN_STAGES for step in pending)
    return bool(pending) or not arrivals.bench.study.report.exists()


def _catch_up(path: Path, arrivals: Arrivals, resources: Resources, *, settle_seconds: float) -> tuple[Arrivals, int]:
    """Run what is missing of the runs, then, without those that turned out to be unusable, of the cohort."""
    bench = arrivals.bench
    assert bench is not None  # noqa: S101 - `_has_work` said so
    refused: dict[str, str] = {}
    n_step = 0
    with opened(bench, resources, command="watch") as session:
        while True:
            errors, n_missing = walk_runs(replace(session, bench=bench), bench.plan.phases()[0])
            n_step += n_missing
            if not errors:
                break
            for error in errors.values():
                if isinstance(error, (ResourceError, StoreError)) or error.code == "E-INTERNAL":
                    raise error
            refused |= {where: describe(error) for where, error in errors.items()}
            arrivals = look_for_arrivals(path, settle_seconds=settle_seconds, refused=refused)
            if arrivals.bench is None:
                return arrivals, n_step
            bench = arrivals.bench
        if not arrivals.cohort_waits:
            whole = replace(session, bench=bench)
            n_step += walk(whole)
            finish(whole)
    return arrivals, n_step


if __name__ == "__main__":
    sys.exit(run_from_shell(run_watch))
