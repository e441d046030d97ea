"""A study at hand: its file read, its inputs surveyed, its plan made. The shell and the flows work from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distributed import Client, performance_report

from kconn import cluster
from kconn.errors import ResourceError, SchemaError
from kconn.io import store
from kconn.plan import Plan, Step, make_plan
from kconn.stages import Job
from kconn.study import Study, read_study
from kconn.survey import Survey, survey_study


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
        root = self.study.store
        return [step for step in self.plan.steps if not store.is_published(root, step.address, step.key)]


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
        ``E-DISK``.
    """
    root = bench.study.store
    with store.locked(root):
        store.create_store(root)
        needed = sum(step.estimate.bytes_written for step in bench.pending())
        free = store.free_bytes(root)
        if needed > free:
            raise ResourceError(
                "E-DISK",
                f"the plan may write {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free",
                rule="there is room for every result before the first is computed",
                fix="free space, or put [study] store on another disk",
            )
        yield


@contextmanager
def connected(*, n_workers: int | None, address: str | None, n_runs: int) -> Iterator[Client | None]:
    """Open the workers of a run: none with ``n_workers=0``, never more local ones than there are runs."""
    if n_workers == 0:
        yield None
        return
    if address is None:
        n_workers = n_workers or min(cluster.cores(), max(1, n_runs))
    with cluster.connect(n_workers=n_workers, address=address) as client:
        yield client


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
