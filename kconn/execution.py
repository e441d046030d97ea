"""Walk a plan: run steps as futures on workers, cohort steps here, nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final, Literal

from distributed import Client, Future, KilledWorker, as_completed
from distributed.client import FutureCancelledError

from kconn import stages
from kconn.cluster.overdue import OVERDUE, begin_no_more, stop_work
from kconn.cluster.stalled import NO_DISK, NO_MEMORY
from kconn.errors import KconnError, ResourceError
from kconn.io.store import Address
from kconn.stages import Job, Outcome
from kconn.study.plan import Plan, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A step ended."""

    stage: str
    where: str
    outcome: Outcome | Literal["failed", "skipped"]
    seconds: float
    detail: str = ""


Listener = Callable[[Event], None]
#: Stage -> how Dask's dashboard groups its tasks, where not by the name of the stage.
TASK_GROUPS: Final = {"nodes": "connect-nodes", "netmat": "connect-netmat", "map": "connect-map"}
#: Errors that every other step would meet as well: none is begun after one of these.
_ENDS_ALL: Final = frozenset({"E-DISK"})
#: Reason with which steps are cancelled after such an error.
_NOT_BEGUN: Final = "not begun"
#: Runs whose steps the scheduler knows at a time: as one ends, the next is told.
_CHAINS_AT_ONCE: Final = 1000
#: Chains that must kill a worker on their own before the machine is held too small for all.
_ENOUGH: Final = 2


def each(*listeners: Listener) -> Listener:
    """Return a listener that tells others, one after the other."""

    def listen(event: Event) -> None:
        for tell in listeners:
            tell(event)

    return listen


def run_plan(plan: Plan, job: Callable[[Step], Job], *, client: Client | None, listen: Listener) -> None:
    """Run every step that is not yet published.

    A step that fails stops only those that need it; the others go on, so that nothing that could be finished has to
    be redone. Then the first error is raised. A full disk stops all at once.

    Parameters
    ----------
    plan
        The plan.
    job
        Binds a step to the store and folder of its study.
    client
        Workers for the run steps and for the permutations, or None to do everything in this process.
    listen
        Called once per step.

    Raises
    ------
    KconnError
        The first error of a step.
    """
    for phase in plan.phases():
        chains = [[job(step) for step in steps] for steps in phase.runs().values()]
        errors = _run_here(chains, listen) if client is None else _run_on(client, chains, listen)
        if not errors:
            errors = _run_cohort([job(step) for step in phase.cohort()], client, listen)
        if errors:
            raise errors[0]


def run_chain(jobs: Iterable[Job], client: Client | None, listen: Listener) -> None:
    """Run the steps of one run in order, on one worker, or here without a client.

    Raises
    ------
    KconnError
        The error of the step that failed.
    """
    chain = list(jobs)
    errors = _run_here([chain], listen) if client is None else _run_on(client, [chain], listen)
    if errors:
        raise errors[0]


def run_cohort_step(job: Job, client: Client | None, listen: Listener) -> None:
    """Run one step of the cohort in this process, its permutations on the workers of ``client``.

    Raises
    ------
    KconnError
        The error of the step.
    """
    errors = _run_cohort([job], client, listen)
    if errors:
        raise errors[0]


def _run_here(chains: Iterable[list[Job]], listen: Listener) -> list[KconnError]:
    errors: list[KconnError] = []
    for chain in chains:
        failed = _ended(errors)
        for job in chain:
            if failed:
                listen(_event(job, "skipped"))
                continue
            try:
                _timed(job, listen, partial(stages.run_job, job))
            except KconnError as error:
                errors.append(error)
                failed = True
    return errors


def _ended(errors: Iterable[KconnError]) -> bool:
    return any(error.code in _ENDS_ALL for error in errors)


def _run_cohort(jobs: Iterable[Job], client: Client | None, listen: Listener) -> list[KconnError]:
    errors: list[KconnError] = []
    missing = set()
    for job in jobs:
        if _ended(errors) or any(up.address in missing for up in job.step.upstream):
            missing.add(job.step.address)
            listen(_event(job, "skipped"))
            continue
        try:
            _timed(job, listen, partial(_run_over, client, job))
        except KconnError as error:
            missing.add(job.step.address)
            errors.append(error)
    return errors


def _run_over(client: Client | None, job: Job) -> Outcome:
    """Run one job here, the tasks inside it on workers; what befell these is told as it is for steps of runs."""
    try:
        return stages.run_job(job, scheduler=client or "threads")
    except KconnError as error:
        if isinstance(error.__cause__, FutureCancelledError):
            raise _cancelled(job, error.__cause__) from error
        if isinstance(error.__cause__, KilledWorker):
            raise _killed(job, error.__cause__) from error
        raise


def _timed(job: Job, listen: Listener, call: Callable[[], Outcome]) -> None:
    start = time.perf_counter()
    try:
        outcome = call()
    except KconnError as error:
        listen(_event(job, "failed", time.perf_counter() - start, str(error)))
        raise
    listen(_event(job, outcome, time.perf_counter() - start))


def _run_on(client: Client, chains: Iterable[list[Job]], listen: Listener) -> list[KconnError]:
    """Run chains on workers.

    A worker that dies takes the blame for every step that waited on it, whichever killed it. So the chains that it
    took along are tried again one by one, until two have shown that the fault is theirs; the rest share one more try.
    """
    errors, suspects = _submit(client, list(chains), listen, is_last_try=False)
    n_guilty = 0
    while suspects:
        together = suspects if n_guilty == _ENOUGH else suspects[:1]
        found, _ = _submit(client, together, listen, is_last_try=True)
        suspects = suspects[len(together) :]
        n_guilty += bool(found)
        errors += found
    return errors


def _submit(
    client: Client, chains: list[list[Job]], listen: Listener, *, is_last_try: bool
) -> tuple[list[KconnError], list[list[Job]]]:
    """Submit every step as a future that waits for the one before it in its run, so many runs at a time.

    Returns
    -------
    The errors, and unless this is the last try, what is left of the chains that a dying worker took along.
    """
    window = _Window(
        client=client,
        to_begin=enumerate(chains),
        is_last_try=is_last_try,
        completed=as_completed(loop=client.loop),
    )
    errors: list[KconnError] = []
    lost: set[Address] = set()
    try:
        window.begin(_CHAINS_AT_ONCE)
        for future in window.completed:
            job = window.waiting.pop(future)
            if not is_last_try and future.status == "error" and isinstance(future.exception(), KilledWorker):
                lost.add(job.step.address)
            elif (error := _report(future, job, listen)) is not None:
                if _ended([error]) and not _ended(errors):
                    begin_no_more(client, window.waiting, reason=_NOT_BEGUN)
                errors.append(error)
            if future.key in window.ends and not _ended(errors):
                window.begin(1)
    except BaseException:
        stop_work(client, list(window.waiting))
        raise
    for job in (job for _, of_run in window.to_begin for job in of_run):
        listen(_event(job, "skipped"))
    left = [[job for job in of_run if job.step.address in lost] for of_run in chains]
    return errors, [] if _ended(errors) else [of_run for of_run in left if of_run]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """The runs that the scheduler knows of.

    Scheduler and workers keep what they know of a step for as long as somebody holds its future; here that is until it
    is finished.

    Attributes
    ----------
    to_begin
        Position and steps of the runs that it does not know yet.
    completed
        Futures as they finish.
    waiting
        Those that are not finished, with their jobs.
    ends
        Keys of the last steps of runs.
    """

    client: Client
    to_begin: Iterator[tuple[int, list[Job]]]
    is_last_try: bool
    completed: as_completed
    waiting: dict[Future[Any], Job] = field(default_factory=dict)
    ends: set[Any] = field(default_factory=set)

    def begin(self, n_run: int) -> None:
        """Submit the steps of the next runs; earlier runs come first."""
        for position, jobs in islice(self.to_begin, n_run):
            before: Future[Any] | None = None
            for job in jobs:
                key = _task_key(job.step, again=self.is_last_try)
                before = self.client.submit(_run_after, before, job, key=key, priority=-position, pure=False)
                self.waiting[before] = job
                self.completed.add(before)
            if before is not None:
                self.ends.add(before.key)


def _task_key(step: Step, *, again: bool) -> str:
    """Return what Dask's dashboard calls a step: a name of its stage, no subject label, and what tells it apart."""
    return f"{TASK_GROUPS.get(step.stage, step.stage)}-{step.key}{'-again' if again else ''}"


def _run_after(before: Mapping[str, Any] | None, job: Job) -> dict[str, Any]:
    """Run one job on a worker, unless the step before it in its run failed; errors travel as values."""
    if before is not None and (before["error"] is not None or before["outcome"] == "skipped"):
        return {"outcome": "skipped", "seconds": 0.0, "error": None}
    start = time.perf_counter()
    try:
        outcome: str = stages.run_job(job)
    except KconnError as error:
        return {"outcome": "failed", "seconds": time.perf_counter() - start, "error": error}
    return {"outcome": outcome, "seconds": time.perf_counter() - start, "error": None}


def _report(future: Future[Any], job: Job, listen: Listener) -> KconnError | None:
    error: KconnError | None
    try:
        result = future.result()
    except KilledWorker as killed:
        if killed.task != future.key:  # the step before it killed the worker
            listen(_event(job, "skipped"))
            return None
        error = _killed(job, killed)
        result = {"outcome": "failed", "seconds": 0.0, "error": error}
    except FutureCancelledError as lost:
        before = lost.reason == OVERDUE and lost.msg != future.key  # it was the step before it that took too long
        if before or lost.reason == _NOT_BEGUN:
            listen(_event(job, "skipped"))
            return None
        error = _cancelled(job, lost)
        result = {"outcome": "failed", "seconds": 0.0, "error": error}
    except OSError as lost:
        error = _lost(job, lost)
        result = {"outcome": "failed", "seconds": 0.0, "error": error}
    error = result["error"]
    listen(_event(job, result["outcome"], result["seconds"], str(error or "")))
    return error


def _cancelled(job: Job, cancelled: FutureCancelledError) -> ResourceError:
    if cancelled.reason == OVERDUE:
        return _overdue(job)
    if cancelled.reason in {NO_DISK, NO_MEMORY}:
        return _stalled(job, cancelled.reason)
    return _lost(job, cancelled)


def _killed(job: Job, killed: KilledWorker) -> ResourceError:
    return ResourceError(
        "E-WORKER",
        f"{killed.allowed_failures + 1} workers died at {job.step.stage}",
        where=job.step.where,
        rule=f"a worker needs about {job.step.estimate.memory / 1e6:.0f} MB for this step",
        fix="give each worker more memory (fewer workers, or a larger limit) and run again",
    )


def _lost(job: Job, error: BaseException) -> ResourceError:
    return ResourceError(
        "E-WORKER",
        f"the scheduler was lost at {job.step.stage}: {error}",
        where=job.step.where,
        rule="the scheduler lives as long as the run",
        fix="run again: finished steps are kept",
    )


def _overdue(job: Job) -> ResourceError:
    return ResourceError(
        "E-WORKER",
        f"{job.step.stage} took longer than it may and was stopped",
        where=job.step.where,
        rule="a step ends within the time that the run was started with",
        fix="look whether the disk or the worker is slow, allow more minutes per step, and run again",
    )


def _stalled(job: Job, reason: str) -> ResourceError:
    return ResourceError(
        "E-DISK" if reason == NO_DISK else "E-MEM",
        f"{job.step.stage} cannot go on: {reason}",
        where=job.step.where,
        rule=f"a worker needs about {job.step.estimate.memory / 1e6:.0f} MB for this step, or room to spill to",
        fix="free space on the disk of temporary files, or give each worker more memory, and run again: "
        "finished steps are kept",
    )


def _event(job: Job, outcome: Any, seconds: float = 0.0, detail: str = "") -> Event:
    return Event(stage=job.step.stage, where=job.step.where, outcome=outcome, seconds=seconds, detail=detail)
