"""Walk parts of a plan as Prefect tasks: one per run, then one per step of the cohort.

A task holds no array: it hands jobs to Dask workers, or runs one of the cohort's steps on them, and the store's seals
say what is finished. Prefect's caches and states never do. What may pass by itself (a worker that died, a full disk) is
tried again; bad input never is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from distributed import Client
from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.client.schemas.objects import TaskRun
from prefect.futures import as_completed
from prefect.tasks import Task

from flows.announcing import Progress, tell_dashboard, tell_finished, tell_if_excluded, tell_report
from flows.declaring import Resources, in_words
from kconn.chunks import GIB
from kconn.cluster import cores
from kconn.cluster.lost_workers import telling_of_lost_workers
from kconn.cluster.overdue import stop_work, watched
from kconn.cluster.stalled import watched_for_stalls
from kconn.errors import KconnError, StoreError, unforeseen
from kconn.execution import Event, run_chain, run_cohort_step
from kconn.io import store
from kconn.report.study import write_study_report
from kconn.run_log import RunLog, keep_log
from kconn.study.plan import COHORT_STAGES, RUN_STAGES, Plan, Step
from kconn.study.workbench import Workbench, connected, refuse_what_does_not_fit, reported, writing

#: Seconds before a step is tried again whose failure may pass by itself; Prefect varies them at random.
RETRY_DELAYS: Final[list[float]] = [15.0, 120.0]
JITTER: Final = 0.5
#: Failures that may pass by themselves.
TRANSIENT: Final = frozenset({"E-WORKER", "E-DISK", "E-ENDPOINT"})
#: Tag of steps that need much memory. `python -m flows.register` limits how many run at once, over all flows.
HEAVY_TAG: Final = "kconn-memory"
HEAVY_BYTES: Final = 2 * GIB

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the tasks of one flow run share; it lives in this process and Prefect never stores it.

    ``here`` is held by what computes in this process: no more runs at once than it has cores.
    """

    bench: Workbench
    client: Client | None
    log: RunLog
    stopping: threading.Event
    here: threading.BoundedSemaphore

    def listen(self, event: Event) -> None:
        """Log a step that ended."""
        self.log.listen(event)
        get_run_logger().info("%s: %s in %.1f s", event.stage, event.outcome, event.seconds)


@contextmanager
def opened(bench: Workbench, resources: Resources, *, command: str) -> Iterator[Session]:
    """Hold the store, keep a log, and open the workers; whatever happens, nothing writes any more when this ends."""
    log = get_run_logger()
    run_id = str(runtime.flow_run.id)
    with (
        _only_warnings("distributed"),
        writing(bench),
        keep_log(bench.study.work, command=command, run_id=run_id) as kept,
        connected(
            bench.study,
            n_workers=resources.workers,
            address=resources.scheduler,
            n_runs=_n_chains(bench),
            kind=resources.cluster,
            tls=resources.tls,
        ) as client,
        reported(client, _beside(bench) if resources.performance_report else None),
        watched(client, 60 * resources.step_minutes),
        watched_for_stalls(client),
        telling_of_lost_workers(client, lambda lost: log.warning("%s", lost)),
    ):
        log.info("run %s of kconn; log %s", run_id, kept.name)
        refuse_what_does_not_fit(bench, client)
        if client is not None:
            log.info("Dask dashboard: %s", client.dashboard_link)
            tell_dashboard(client, bench.pending())
        session = Session(
            bench=bench,
            client=client,
            log=kept,
            stopping=threading.Event(),
            here=threading.BoundedSemaphore(cores()),
        )
        try:
            yield session
        except BaseException:
            session.stopping.set()
            if client is not None:
                stop_work(client)
            raise


def walk(session: Session, *, stages: Sequence[str] = (*RUN_STAGES, *COHORT_STAGES)) -> int:
    """Run what is missing of some stages, phase after phase; return how many steps were missing.

    Raises
    ------
    KconnError
        The first error of a step, after all that does not need it was finished.
    StoreError
        ``E-STORE-UNSEALED`` if what these stages read from others is not there.
    """
    _refuse_other_inputs(session.bench, stages)
    n_step = 0
    for phase in session.bench.plan.phases():
        part = replace(phase, steps=tuple(step for step in phase.steps if step.stage in stages))
        errors, n_missing = walk_runs(session, part)
        for error in errors.values():
            raise error
        n_step += n_missing + walk_cohort(session, part)
    return n_step


def walk_runs(session: Session, plan: Plan) -> tuple[dict[str, KconnError], int]:
    """Run what is missing of each run, side by side; return the errors by place, and how many steps were missing."""
    log = get_run_logger()
    runs = plan.runs()
    chains = {where: left for where, steps in runs.items() if (left := session.bench.missing(steps))}
    if not runs:
        return {}, 0
    log.info("%d of %d runs are there", len(runs) - len(chains), len(runs))
    if not chains:
        return {}, 0
    progress = Progress(len(chains))
    futures = {}
    for where, steps in chains.items():
        futures[where] = _with_care(run_one_run, session, steps).submit(session, steps)
    for n_done, _ in enumerate(as_completed(list(futures.values())), start=1):
        progress.tell(n_done)
        if n_done % max(1, len(futures) // 8) == 0 or n_done == len(futures):
            log.info("%d of %d runs", n_done, len(futures))
    errors = {}
    for where, future in futures.items():
        future.wait()  # fetches the state with its data
        if not future.state.is_completed():
            errors[where] = _error_of(future.state)
    return errors, sum(map(len, chains.values()))


def walk_cohort(session: Session, plan: Plan) -> int:
    """Run what is missing of the cohort, one step after the other; return how many steps were missing."""
    log = get_run_logger()
    errors: list[KconnError] = []
    failed = set()
    missing = session.bench.missing(plan.cohort())
    for step in missing:
        if any(up.address in failed for up in step.upstream):
            failed.add(step.address)
            continue
        log.info("%s of %s", step.stage, step.where)
        one = _with_care(run_one_step, session, [step]).with_options(name=step.stage)
        state = one(session, step, return_state=True)
        if not state.is_completed():
            failed.add(step.address)
            errors.append(_error_of(state))
    if errors:
        raise errors[0]
    return len(missing)


def finish(session: Session) -> str:
    """Write the report, say that the study is whole, and return the digest of its store."""
    _raise_if_failed(_with_care(publish_report, session, []).with_options(name="report")(session, return_state=True))
    digest = store.digest_store(session.bench.study.store)
    tell_finished(session.bench, digest)
    return digest


def _refuse_other_inputs(bench: Workbench, stages: Sequence[str]) -> None:
    """Refuse stages whose inputs from other stages are missing: what lies there instead was made of other inputs."""
    own = {step.address for step in bench.plan.steps if step.stage in stages}
    for step in bench.missing(step for step in bench.plan.steps if step.address in own):
        for up in step.upstream:
            if up.address not in own and not store.is_published(bench.study.store, up.address, up.key):
                raise StoreError(
                    "E-STORE-UNSEALED",
                    f"{step.stage} reads {up.address}, which was not made from these inputs and parameters",
                    where=step.where,
                    rule="the flow of a stage runs after those of the stages before it",
                    fix="run the flows in their order (ingest, connectivity, inference), or the flow of the study",
                )


@task(name="run", cache_policy=NO_CACHE, persist_result=False)
@in_words
def run_one_run(session: Session, steps: Sequence[Step]) -> None:
    """Ingest, denoise and connect one run on one worker; what is published is skipped."""
    with session.here if session.client is None else nullcontext():
        run_chain([session.bench.bind(step) for step in steps], session.client, session.listen)
    for step in steps:
        if step.stage == "denoise":
            tell_if_excluded(session.bench, step)


@task(cache_policy=NO_CACHE, persist_result=False)
@in_words
def run_one_step(session: Session, step: Step) -> None:
    """Run one step of the cohort, its permutations on the workers."""
    run_cohort_step(session.bench.bind(step), session.client, session.listen)


@task(cache_policy=NO_CACHE, persist_result=False)
@in_words
def publish_report(session: Session) -> None:
    """Write the report and tell Prefect's pages of it, with the quality of every run and every exclusion."""
    write_study_report(session.bench)
    tell_report(session.bench)
    get_run_logger().info("report written")


def may_pass(error: object) -> bool:
    """Return whether a failure may pass by itself."""
    return isinstance(error, KconnError) and error.code in TRANSIENT


def _with_care(one: Task[P, R], session: Session, steps: Iterable[Step]) -> Task[P, R]:
    """Return a task with its retries, and with its tag where it needs much memory."""

    def tries_again(_: Any, run: TaskRun, state: State[Any]) -> bool:
        return run.run_count <= len(RETRY_DELAYS) and not session.stopping.is_set() and may_pass(state.data)

    heavy = max((step.estimate.memory for step in steps), default=0) >= HEAVY_BYTES
    return one.with_options(
        # One more than there are delays: `tries_again` ends them. When its own count ends them, Prefect logs a
        # traceback, and of a state that was returned there is none ("NoneType: None").
        retries=len(RETRY_DELAYS) + 1,
        retry_delay_seconds=list(RETRY_DELAYS),
        retry_jitter_factor=JITTER,
        retry_condition_fn=tries_again,
        tags=[HEAVY_TAG] if heavy else [],
    )


def _beside(bench: Workbench) -> Path:
    """Return where Dask's report of the run goes: beside the study's."""
    report = bench.study.report
    return report.with_name(f"{report.stem}-performance.html")


def _n_chains(bench: Workbench) -> int:
    return len({step.where for step in bench.pending()})


def _error_of(state: State[Any]) -> KconnError:
    """Return why a task did not complete."""
    try:
        state.result()
    except KconnError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever Prefect makes of a task that it stopped
        return unforeseen(error)
    return unforeseen(RuntimeError(state.name))


def _raise_if_failed(state: State[Any]) -> None:
    if not state.is_completed():
        raise _error_of(state)


@contextmanager
def _only_warnings(name: str) -> Iterator[None]:
    """Keep a library from telling every connection that opens: Prefect prints what it logs."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
