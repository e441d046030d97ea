"""The tests of a study and its report: ``python -m flows.inference study.toml``."""

from __future__ import annotations

import sys
from typing import Final

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.places import locate_study
from flows.shell import run_from_shell
from flows.walking import WAITING, Resources, finish, in_words, opened, walk
from kconn.study.workbench import prepare

STAGES: Final = ("test", "map-test", "map-correction")


@flow(
    name="kconn-inference",
    task_runner=ThreadPoolTaskRunner(max_workers=WAITING),  # type: ignore[arg-type]  # Prefect's own default is of this type
    log_prints=False,
    persist_result=False,
)
@in_words
def run_inference(
    study: str,
    workers: int | None = None,
    scheduler: str | None = None,
    step_minutes: float = 240.0,
    performance_report: bool = False,  # noqa: FBT001, FBT002 - parameters of flows are named
) -> str:
    """Test the contrasts that were not tested yet, write the report and return the digest of the store.

    Parameters
    ----------
    study
        The study file.
    workers, scheduler, step_minutes, performance_report
        As `flows.walking.Resources`.
    """
    resources = Resources(
        workers=workers, scheduler=scheduler, step_minutes=step_minutes, performance_report=performance_report
    )
    bench = prepare(locate_study(study))
    with opened(bench, resources, command="inference") as session:
        walk(session, stages=STAGES)
        return finish(session)


if __name__ == "__main__":
    sys.exit(run_from_shell(run_inference))
