"""A study at hand: its file read, its inputs surveyed, its plan made. The shell and the flows work from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, performance_report
from distributed.system import MEMORY_LIMIT
from pydantic import ValidationError

from kconn import cluster
from kconn.cluster.table import ClusterKind, ClusterTable
from kconn.errors import ResourceError, SchemaError
from kconn.io import store
from kconn.io.storage import free_bytes
from kconn.stages import Job
from kconn.study.file import Study, read_study
from kconn.study.plan import Plan, Step, make_plan
from kconn.study.survey import Survey, survey_study


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """A study that was read, surveyed and planned."""

    study: Study
    survey: Survey
    plan: Plan

    def bind(self, step: Step) -> Job:
        """Return the job of a step: the step, and where it reads and writes."""
        return Job(step=step, folder=self.study.folder, root=self.study.store, code=self.plan.code)

    def pending(self) -> list[Step]:
        """Return the steps whose results are not published."""
        return self.missing(self.plan.steps)

    def missing(self, steps: Iterable[Step]) -> list[Step]:
        """Return those of some steps whose results are not published."""
        steps = list(steps)
        found = store.are_published(self.study.store, [(step.address, step.key) for step in steps])
        return [step for step, published in zip(steps, found, strict=True) if not published]


def prepare(path: str | Path, *, rehash: bool = False, without: Collection[str] = ()) -> Workbench:
    """Read a study file, look at all its inputs and make the plan; nothing is computed.

    Parameters
    ----------
    path
        The study file.
    rehash
        Read every input again instead of trusting size and time of change.
    without
        Places of runs that are treated as if they were not there (yet).

    Raises
    ------
    KconnError
        The first problem, before any compute.
    """
    study = read_study(path)
    survey = survey_study(study, without=without)
    survey.refuse_problems()
    return Workbench(study=study, survey=survey, plan=make_plan(study, survey, rehash=rehash))


@contextmanager
def writing(bench: Workbench) -> Iterator[None]:
    """Hold the store of a study for writing, after making sure that the disk has room for what is missing.

    Raises
    ------
    StoreError
        ``E-STORE-LOCKED`` or ``E-STORE-SCHEMA``.
    ResourceError
        ``E-DISK``; on object storage ``E-BUCKET``, ``E-CREDENTIALS``, ``E-ENDPOINT`` or ``E-TLS``.
    """
    root = bench.study.store
    with store.locked(root):
        store.create_store(root)
        needed = sum(step.estimate.bytes_written for step in bench.pending())
        free = free_bytes(root)
        if free is not None and needed > free:
            raise ResourceError(
                "E-DISK",
                f"the plan may write {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free",
                rule="there is room for every result before the first is computed",
                fix="free space, or put [study] store on another disk",
            )
        yield


def refuse_what_does_not_fit(bench: Workbench, client: Client | None) -> None:
    """Refuse, before any compute, a step that needs more memory than a worker has, or without workers this machine.

    Raises
    ------
    ResourceError
        ``E-MEM``.
    """
    if client is None:
        limits = [MEMORY_LIMIT]
    else:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [worker["memory_limit"] for worker in workers if worker["memory_limit"]]
    largest = max(bench.pending(), key=lambda step: step.estimate.memory, default=None)
    if largest is None or not limits or largest.estimate.memory <= min(limits):
        return
    raise ResourceError(
        "E-MEM",
        f"{largest.stage} needs about {largest.estimate.memory / 1e6:.0f} MB, a worker has {min(limits) / 1e6:.0f} MB",
        where=largest.where,
        rule="every step fits in the memory of a worker",
        fix="give each worker more memory: fewer workers on this machine, or a larger limit",
    )


@contextmanager
def connected(
    study: Study,
    *,
    n_workers: int | None,
    address: str | None,
    n_runs: int,
    kind: ClusterKind | None = None,
    tls: str | None = None,
) -> Iterator[Client | None]:
    """Open the workers of a run: those of ``[cluster]``, with what was asked for put over it.

    Parameters
    ----------
    study
        Its ``[cluster]`` says where the workers are.
    n_workers
        How many; 0 computes in this process and yields None. Never more local ones than there are runs by default.
    address
        A scheduler that is already running.
    n_runs
        Runs of the study.
    kind
        Another kind of cluster than the study file says.
    tls
        Folder of certificates, relative to the current folder.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if what was asked for does not go together.
    """
    table = choose_cluster(study.cluster, n_workers=n_workers, address=address, kind=kind, tls=tls)
    if table.kind == "local":
        if table.workers == 0:
            yield None
            return
        if table.workers is None and table.max_workers is None:
            table = table.model_copy(update={"workers": min(cluster.cores(), max(1, n_runs))})
    with cluster.connect(table, folder=study.folder) as client:
        yield client


def choose_cluster(
    table: ClusterTable, *, n_workers: int | None, address: str | None, kind: ClusterKind | None, tls: str | None
) -> ClusterTable:
    """Return ``[cluster]`` with what was asked for put over it.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if it does not go together.
    """
    asked: dict[str, Any] = {}
    if address is not None:
        asked |= {"kind": "address", "address": address}
    if kind is not None:
        asked |= {"kind": kind}
    if tls is not None:
        asked |= {"tls": str(Path(tls).resolve())}
    if n_workers is not None:
        asked |= {"workers": n_workers, "max_workers": None}
    if address is not None and kind not in {None, "address"}:
        raise _unfit(f"--scheduler names a scheduler that runs, --cluster {kind} starts one")
    try:
        return ClusterTable.model_validate({**table.model_dump(exclude_unset=True), **asked})
    except ValidationError as error:
        raise _unfit(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error


def _unfit(problem: str) -> SchemaError:
    return SchemaError(
        "E-ARGUMENT",
        problem,
        rule="what is asked for with --cluster, --workers, --scheduler and --tls fits [cluster] of the study file",
        fix="complete [cluster], see docs/clusters.md, or leave the option out",
    )


@contextmanager
def reported(client: Client | None, path: str | Path | None) -> Iterator[None]:
    """Write Dask's report of what its workers do meanwhile: tasks, bandwidth and profile on one self-contained page.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if there are no workers to report on.
    """
    if path is None:
        yield
        return
    if client is None:
        raise SchemaError(
            "E-ARGUMENT",
            "a performance report was asked for, and there are no workers",
            rule="Dask reports on its workers",
            fix="run with at least one worker",
        )
    with performance_report(filename=str(path), mode="inline"):
        yield
