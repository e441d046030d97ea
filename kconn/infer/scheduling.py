"""Where tasks run, and how data reach them: on the Dask scheduler that is current."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import dask.config
import numpy as np
import numpy.typing as npt
from dask.base import compute, persist
from dask.delayed import delayed
from dask.system import CPU_COUNT

from kconn.kernels.tasks import Range


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataMatrix:
    """``values (row, feature)``, NumPy or Dask, and the row at each canonical position of an observation."""

    values: Any
    order: npt.NDArray[np.intp]

    @property
    def n_feature(self) -> int:
        """Number of features."""
        return int(self.values.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Threads that will run the tasks, in all and in one process, and whether a cluster has them."""

    total: int
    per_process: int
    cluster: bool


def count_threads() -> Threads:
    """Return the threads of the scheduler that is current."""
    client = _current_client()
    if client is not None:
        n_threads = list(client.nthreads().values())
        return Threads(total=max(1, sum(n_threads)), per_process=max([1, *n_threads]), cluster=True)
    if dask.config.get("scheduler", None) in ("sync", "synchronous", "single-threaded"):
        return Threads(total=1, per_process=1, cluster=False)
    n_thread = int(dask.config.get("num_workers", None) or CPU_COUNT)
    return Threads(total=n_thread, per_process=n_thread, cluster=False)


def _current_client() -> Any:
    """Return the client that computes what is computed now, or None."""
    # A client can only exist if someone has imported distributed; importing it here would cost a second.
    distributed = sys.modules.get("distributed")
    chosen = dask.config.get("scheduler", None)
    if distributed is None:
        return None
    if isinstance(chosen, distributed.Client):
        return chosen
    if chosen not in (None, "dask.distributed", "distributed"):
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The data in feature ranges, read in waves that keep no more of them in memory than there are threads.

    ``held`` are the blocks if there is one wave: they are read once.
    """

    data: DataMatrix
    widths: list[Range]
    threads: Threads
    held: list[list[Any]] | None

    @classmethod
    def of(cls, data: DataMatrix, widths: list[Range], threads: Threads) -> Source:
        """Return the data in those ranges, rows in the canonical order."""
        held = None
        if len(widths) <= threads.total:
            blocks = [_read(data, width, threads, n_part=len(widths)) for width in widths]
            with _large_graphs(threads):
                held = list(persist(*blocks))
        return cls(data=data, widths=widths, threads=threads, held=held)

    def waves(self) -> Iterator[tuple[range, list[list[Any]]]]:
        """Yield positions of feature ranges and, for each, the tasks that read it, one per copy."""
        if self.held is not None:
            yield range(len(self.widths)), self.held
            return
        for first in range(0, len(self.widths), self.threads.total):
            here = range(first, min(first + self.threads.total, len(self.widths)))
            yield here, [_read(self.data, self.widths[i], self.threads, n_part=len(here)) for i in here]


def compute_all(graph: Any) -> Any:
    """Return a collection of delayed values as values."""
    with _large_graphs(count_threads()):
        return compute(graph)[0]


def _large_graphs(threads: Threads) -> AbstractContextManager[object]:
    """Allow blocks of data inside the graph: scattered ones would be lost with the worker that holds them."""
    if not threads.cluster:
        # Setting a key of distributed before distributed is imported would hide its other defaults from it.
        return nullcontext()
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "100GB"})


def _read(data: DataMatrix, width: Range, threads: Threads, *, n_part: int) -> list[Any]:
    """Return one task that reads a range of features, or on a cluster as many as it takes to give every thread one.

    A scheduler sends a task to where its input lies: with one copy, one worker would do all the work on it.
    """
    n_copy = max(1, threads.total // n_part) if threads.cluster else 1
    return [delayed(_read_block, pure=False)(data.values[:, slice(*width)], data.order) for _ in range(n_copy)]


def _read_block(block: npt.NDArray[np.generic], order: npt.NDArray[np.intp]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(np.asarray(block)[order])
