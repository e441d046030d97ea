"""Tests cut into tasks, run on the Dask scheduler that is current, and joined: the same bits for any cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import dask.config
import numpy as np
import numpy.typing as npt
from dask.base import compute
from dask.delayed import delayed
from dask.system import CPU_COUNT

from kconn.kernels import glm, spatial, tallies, tasks
from kconn.kernels.blas import single_thread
from kconn.kernels.permutation import Relabelling, Shuffling


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One contrast, ready to run."""

    __test__ = False  # no test class, whatever its name makes pytest think

    name: str
    shuffling: Shuffling
    kind: str
    note: str
    engine: glm.Engine

    @property
    def directed(self) -> bool:
        """Whether the statistic has a sign."""
        return self.engine.stat_kind in ("t", "v")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a test has found over all features: the fit, and the counts and extremes of relabellings."""

    observed: glm.Observed
    tally: tallies.Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMaps:
    """The same for a statistic of whole maps, which the identity has as ``enhanced (n_tail, n_feature)``."""

    observed: glm.Observed
    enhanced: npt.NDArray[np.float64]
    tally: spatial.MapTally


def run_tests(
    matrix: Any, order: npt.NDArray[np.intp], tests: Sequence[Test], *, dtype: str, max_mem: int
) -> list[Found]:
    """Run tests of each feature by itself.

    Parameters
    ----------
    matrix
        ``(observation, feature)``, NumPy or Dask.
    order
        Row of the matrix at each canonical position.
    tests
        What to test.
    dtype, max_mem
        As in `kconn.permutation_test`.
    """
    threads = count_threads()
    budget = max_mem // threads.per_process
    problems = [_measure(matrix, test, dtype) for test in tests]
    widths = tasks.plan_features(problems[0], max_mem=budget)
    ranges = [
        tasks.plan_permutations(problem, n_part=len(widths), n_thread=threads.total, max_mem=budget)
        for problem in problems
    ]
    found: list[list[Found]] = [[] for _ in tests]
    # One wave at a time keeps no more feature ranges in memory than there are threads to work on them.
    for first in range(0, len(widths), threads.total):
        wave = widths[first : first + threads.total]
        raw = [_read(matrix[:, start:stop], order, threads, n_part=len(wave)) for start, stop in wave]
        graph = [
            [
                (
                    delayed(_observe, pure=False)(copies[0], test.engine),
                    delayed(_join_ranges, pure=False)(
                        [
                            delayed(_tally, pure=False)(block, test.engine, test.shuffling.part(start, stop), dtype)
                            for block, (start, stop) in zip(cycle(copies), here, strict=False)
                        ]
                    ),
                )
                for copies in raw
            ]
            for test, here in zip(tests, ranges, strict=True)
        ]
        for i_test, parts in enumerate(_compute(graph, threads)):
            found[i_test].extend(Found(observed=observed, tally=tally) for observed, tally in parts)
    return [_join_features(parts) for parts in found]


def run_map_tests(
    matrix: Any,
    order: npt.NDArray[np.intp],
    tests: Sequence[Test],
    enhancement: spatial.Enhancement,
    *,
    dtype: str,
    max_mem: int,
) -> list[FoundMaps]:
    """Run tests of a statistic of whole maps; parameters as in `run_tests`."""
    threads = count_threads()
    budget = max_mem // threads.per_process
    cost = spatial.COST[enhancement.kind]
    graph = []
    raw = _read(matrix, order, threads, n_part=1)
    shared = delayed(enhancement)
    for test in tests:
        problem = _measure(matrix, test, dtype, extra=cost)
        tasks.check_memory(problem, max_mem=budget)
        ranges = tasks.plan_permutations(problem, n_part=1, n_thread=threads.total, max_mem=budget)
        observed = delayed(_observe, pure=False)(raw[0], test.engine)
        own = delayed(_fix, pure=False)(observed, test.engine, shared)
        enhanced = delayed(_enhance, pure=False)(observed, test.engine, own)
        parts = [
            delayed(_tally_maps, pure=False)(block, test.engine, own, test.shuffling.part(start, stop), enhanced, dtype)
            for block, (start, stop) in zip(cycle(raw), ranges, strict=False)
        ]
        graph.append((observed, enhanced, delayed(_join_maps, pure=False)(parts)))
    return [
        FoundMaps(observed=observed, enhanced=enhanced, tally=tally)
        for observed, enhanced, tally in _compute(graph, threads)
    ]


def _read(matrix: Any, order: npt.NDArray[np.intp], threads: Threads, *, n_part: int) -> list[Any]:
    """Return one task that reads a block, or on a cluster as many as it takes to give every thread one.

    A scheduler sends a task to where its input lies: with one copy, one worker would do all the work on it.
    """
    n_copy = max(1, threads.total // n_part) if threads.cluster else 1
    return [delayed(_read_block, pure=False)(matrix, order) for _ in range(n_copy)]


def _measure(matrix: Any, test: Test, dtype: str, *, extra: float = 0.0) -> tasks.Problem:
    n_obs, n_feature = matrix.shape
    return tasks.Problem(
        n_obs=n_obs,
        n_feature=n_feature,
        n_perm=test.shuffling.n_perm,
        n_row=test.engine.n_row,
        dtype=dtype,
        extra=extra,
    )


def _compute(graph: Any, threads: Threads) -> Any:
    with _large_graphs(threads):
        return compute(graph)[0]


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


def _large_graphs(threads: Threads) -> AbstractContextManager[object]:
    """Allow blocks of data inside the graph: scattered ones would be lost with the worker that holds them."""
    if not threads.cluster:
        # Setting a key of distributed before distributed is imported would hide its other defaults from it.
        return nullcontext()
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "100GB"})


def _read_block(block: npt.NDArray[np.generic], order: npt.NDArray[np.intp]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(np.asarray(block)[order])


def _observe(block: npt.NDArray[np.floating], engine: glm.Engine) -> glm.Observed:
    with single_thread():
        return tallies.observe_blocks(block, engine)


def _tally(block: npt.NDArray[np.floating], engine: glm.Engine, part: Relabelling, dtype: str) -> tallies.Tally:
    with single_thread():
        return tallies.tally(block, engine, part, dtype)


def _fix(observed: glm.Observed, engine: glm.Engine, enhancement: spatial.Enhancement) -> spatial.Enhancement:
    return enhancement.fixed(spatial.fill(observed.compared), engine)


def _enhance(observed: glm.Observed, engine: glm.Engine, enhancement: spatial.Enhancement) -> npt.NDArray[np.float64]:
    return enhancement.sides(spatial.fill(observed.compared), engine)


def _tally_maps(
    block: npt.NDArray[np.floating],
    engine: glm.Engine,
    enhancement: spatial.Enhancement,
    part: Relabelling,
    enhanced: npt.NDArray[np.float64],
    dtype: str,
) -> spatial.MapTally:
    with single_thread():
        return spatial.tally_maps(block, engine, enhancement, part, enhanced, dtype)


def _join_maps(parts: list[spatial.MapTally]) -> spatial.MapTally:
    return spatial.MapTally(
        highest=np.concatenate([part.highest for part in parts], axis=1),
        counts=np.sum([part.counts for part in parts], axis=0),
    )


def _join_ranges(parts: list[tallies.Tally]) -> tallies.Tally:
    return tallies.Tally(
        highest=np.concatenate([part.highest for part in parts]),
        lowest=np.concatenate([part.lowest for part in parts]),
        n_above=np.sum([part.n_above for part in parts], axis=0),
        n_below=np.sum([part.n_below for part in parts], axis=0),
        n_beyond=np.sum([part.n_beyond for part in parts], axis=0),
    )


def _join_features(parts: list[Found]) -> Found:
    found = [part.tally for part in parts]
    return Found(
        observed=glm.join_observed([part.observed for part in parts]),
        tally=tallies.Tally(
            highest=np.max([part.highest for part in found], axis=0),
            lowest=np.min([part.lowest for part in found], axis=0),
            n_above=np.concatenate([part.n_above for part in found]),
            n_below=np.concatenate([part.n_below for part in found]),
            n_beyond=np.concatenate([part.n_beyond for part in found]),
        ),
    )
