"""The whole study as a Prefect flow: ``python -m flows.study study.toml``.

A task is one run (all its steps) or one step of the cohort. It holds no array: it hands jobs to Dask workers, or runs
one of the cohort's tests on them, and the store's seals say what is finished. Prefect's caches and states never do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from distributed import Client
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.futures import as_completed
from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from kconn.cli import EXIT_DONE, guarded
from kconn.errors import KconnError, unforeseen
from kconn.exclusions import list_exclusions
from kconn.execution import Event, run_chain, run_cohort_step
from kconn.io import store
from kconn.plan import Plan, Step
from kconn.report.study import write_study_report
from kconn.workbench import Workbench, connected, prepare, writing

#: Tasks that wait at the same time; each waits for one run on the workers.
_WAITING: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the tasks of one flow run share; it lives in this process and Prefect never stores it."""

    bench: Workbench
    client: Client | None


P = ParamSpec("P")
R = TypeVar("R")


def in_words(call: Callable[P, R]) -> Callable[P, R | State[Any]]:
    """Let a flow or task end as failed with an error in words, where Prefect would log a traceback.

    Whoever asks its state for the result gets the error raised.
    """

    @wraps(call)
    def ended(*args: P.args, **kwargs: P.kwargs) -> R | State[Any]:
        try:
            return call(*args, **kwargs)
        except KconnError as error:
            return Failed(message=str(error), data=error)
        except Exception as error:  # noqa: BLE001 - the border of the product
            found = unforeseen(error)
            return Failed(message=str(found), data=found)

    return ended


@flow(
    name="kconn-study",
    task_runner=ThreadPoolTaskRunner(max_workers=_WAITING),  # type: ignore[arg-type]  # Prefect's own default is of this type
    log_prints=False,
    persist_result=False,
)
@in_words
def run_study(study: str, workers: int | None = None, scheduler: str | None = None) -> str:
    """Run what is missing of a study, write its report and return the digest of the store.

    Parameters
    ----------
    study
        The study file.
    workers
        Processes of a local Dask cluster; 0 does everything in this process.
    scheduler
        Address of a running Dask scheduler, instead of a local cluster.
    """
    log = get_run_logger()
    bench = prepare(study)
    with (
        writing(bench),
        connected(n_workers=workers, address=scheduler, n_runs=len(bench.survey.runs)) as client,
    ):
        if client is not None:
            log.info("Dask dashboard: %s", client.dashboard_link)
        session = Session(bench=bench, client=client)
        for phase in bench.plan.phases():
            run_one_phase(session, phase)
        publish_report(session, return_state=True).result()
    return store.digest_store(bench.study.store)


def run_one_phase(session: Session, phase: Plan) -> None:
    """Run the runs of one phase side by side, then its steps of the cohort."""
    log = get_run_logger()
    futures = [run_one_run.submit(session, steps) for steps in phase.runs().values()]
    for n_done, _ in enumerate(as_completed(futures), start=1):
        if n_done % max(1, len(futures) // 8) == 0 or n_done == len(futures):
            log.info("%d of %d runs", n_done, len(futures))
    for future in futures:
        future.wait()  # fetches the state with its data
        future.state.result()
    for step in phase.cohort():
        log.info("%s of %s", step.stage, step.where)
        run_one_step.with_options(name=step.stage)(session, step, return_state=True).result()


@task(name="run", cache_policy=NO_CACHE, persist_result=False)
@in_words
def run_one_run(session: Session, steps: Sequence[Step]) -> None:
    """Ingest, denoise and connect one run on one worker; what is published is skipped."""
    run_chain([session.bench.bind(step) for step in steps], session.client, _log_event)


@task(cache_policy=NO_CACHE, persist_result=False)
@in_words
def run_one_step(session: Session, step: Step) -> None:
    """Run one step of the cohort, its permutations on the workers."""
    run_cohort_step(session.bench.bind(step), session.client, _log_event)


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
@in_words
def publish_report(session: Session) -> None:
    """Write the report and link it from Prefect's page, with every exclusion."""
    bench = session.bench
    write_study_report(bench)
    create_link_artifact(
        key="report", link=bench.study.report.resolve().as_uri(), link_text=f"{bench.study.study.name}: report"
    )
    rows = [f"| {found.where} | {found.left_out_of} | {found.reason} |" for found in list_exclusions(bench)]
    table = "\n".join(["| what | of | left out because |", "|---|---|---|", *rows]) if rows else "Nothing was left out."
    create_markdown_artifact(key="exclusions", markdown=table, description="What was left out, and why")
    get_run_logger().info("report written")


def _log_event(event: Event) -> None:
    get_run_logger().info("%s: %s in %.1f s", event.stage, event.outcome, event.seconds)


@contextmanager
def embedded_server() -> Iterator[None]:
    """Let Prefect start its own SQLite server for the time of the flow, unless PREFECT_API_URL names another."""
    patient: dict[Any, Any] = {
        # The default of 20 s is too short on a busy laptop.
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(updates=patient):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Run the flow on Prefect's embedded server, or on the one in PREFECT_API_URL."""
    parser = argparse.ArgumentParser(prog="python -m flows.study", description=run_study.description)
    parser.add_argument("study", help="the study file")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--scheduler")
    arguments = parser.parse_args(argv)

    def run() -> int:
        with embedded_server():
            run_study(arguments.study, workers=arguments.workers, scheduler=arguments.scheduler)
        return EXIT_DONE

    return guarded(run, study=arguments.study)


if __name__ == "__main__":
    sys.exit(main())
