"""Tests cut into tasks and joined: the same bits for any cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from kconn.infer.checkpoint import Checkpoint, Ranges, fingerprint
from kconn.infer.scheduling import DataMatrix, Source, compute_all, count_threads
from kconn.kernels import glm, spatial, tallies, tasks
from kconn.kernels.blas import single_thread
from kconn.kernels.permutation import Relabelling, Shuffling
from kconn.kernels.tallies import TAILS, Tally, join_features, join_ranges

Values = npt.NDArray[np.float64]
Transform = Callable[[Values], Values]


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
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMaps:
    """The same for a statistic of whole maps, which the identity has as ``enhanced (n_tail, n_feature)``."""

    observed: glm.Observed
    enhanced: npt.NDArray[np.float64]
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How tests are run.

    Attributes
    ----------
    dtype, max_mem
        As in `kconn.permutation_test`.
    on_z
        Whether ``max_stat`` of single features is on z.
    checkpoint
        Where finished ranges of relabellings are kept, or None.
    part
        Which of the features are tested here, in words; empty for all. Then maxima are not those of the whole test.
    """

    dtype: str
    max_mem: int
    on_z: bool = False
    checkpoint: Checkpoint | None = None
    part: str = ""


def run_tests(data: DataMatrix, tests: Sequence[Test], work: Work) -> list[Found]:
    """Run tests of each feature by itself."""
    threads = count_threads()
    budget = work.max_mem // threads.per_process
    problems = [measure(data, test, work) for test in tests]
    source = Source.of(data, tasks.plan_features(problems[0], max_mem=budget), threads)
    fits = observe_all(source, tests)
    cuts = []
    for test, problem, fit in zip(tests, problems, fits, strict=True):
        shown = _Shown(
            highest=np.stack([np.abs(fit.compared), fit.compared, -fit.compared]),
            to_stat=test.engine.to_z if work.on_z else test.engine.to_stat,
        )
        compared = [delayed(fit.compared[start:stop]) for start, stop in source.widths]
        cuts.append(
            _Cut(
                test=test,
                problem=problem,
                tally=tallies.tally,
                compared=compared,
                observed=compared,
                ranges=_find_ranges((test, problem), work, fit, shown),
            )
        )
    found = _tally_all(source, cuts, work)
    return [Found(observed=fit, tally=tally) for fit, tally in zip(fits, found, strict=True)]


def run_map_tests(
    data: DataMatrix, tests: Sequence[Test], enhancement: spatial.Enhancement, work: Work
) -> list[FoundMaps]:
    """Run tests of a statistic of whole maps."""
    threads = count_threads()
    budget = work.max_mem // threads.per_process
    problems = [measure(data, test, work, extra=spatial.COST[enhancement.kind]) for test in tests]
    for problem in problems:
        tasks.check_memory(problem, max_mem=budget)
    source = Source.of(data, [(0, data.n_feature)], threads)
    fits = observe_all(source, tests)
    shared = delayed(enhancement)
    graph = [
        delayed(spatial.observe_maps, pure=False)(fit.compared, test.engine, shared)
        for test, fit in zip(tests, fits, strict=True)
    ]
    maps: list[spatial.ObservedMaps] = compute_all(graph)
    cuts = [
        _Cut(
            test=test,
            problem=problem,
            tally=spatial.tally_maps,
            compared=[delayed(one.compared)],
            observed=[delayed(one)],
            ranges=_find_ranges((test, problem), work, one, _Shown(highest=one.enhanced, to_stat=_same)),
        )
        for test, problem, one in zip(tests, problems, maps, strict=True)
    ]
    found = _tally_all(source, cuts, work)
    return [
        FoundMaps(observed=fit, enhanced=one.enhanced, tally=tally)
        for fit, one, tally in zip(fits, maps, found, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """One test to be cut into tasks: ``tally`` compares relabellings with what was ``observed`` per feature range.

    ``compared`` tells for each range which features are tested.
    """

    test: Test
    problem: tasks.Problem
    tally: Callable[..., Tally]
    compared: list[Any]
    observed: list[Any]
    ranges: Ranges | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What the identity has on the compared scale, ``(n_tail, n_feature)``, and how ``max_stat`` shows it."""

    highest: Values
    to_stat: Transform


def _find_ranges(
    cut: tuple[Test, tasks.Problem], work: Work, observed: glm.Observed | spatial.ObservedMaps, shown: _Shown
) -> Ranges | None:
    """Return the ranges of a test in the checkpoint; their names hold a digest of data, model, table and precision.

    A test of one range is not worth a file: it is as fast to compute again.
    """
    test, problem = cut
    if work.checkpoint is None or len(tasks.plan_ranges(problem)) == 1 or np.isnan(observed.compared).all():
        return None
    return Ranges(
        checkpoint=work.checkpoint,
        fingerprint=fingerprint(test.name, test.engine, test.shuffling.sha256, observed, work.dtype, work.on_z),
        n_perm=test.shuffling.n_perm,
        n_feature=observed.compared.size,
        identity=shown.to_stat(np.nanmax(shown.highest, axis=1)),
        to_stat=shown.to_stat,
        name=test.name,
        part=work.part,
    )


def observe_all(source: Source, tests: Sequence[Test]) -> list[glm.Observed]:
    """Return the fit of each test as observed."""
    parts: list[list[glm.Observed]] = [[] for _ in tests]
    for _, blocks in source.waves():
        graph = [[delayed(_observe, pure=False)(copies[0], test.engine) for copies in blocks] for test in tests]
        for known, found in zip(parts, compute_all(graph), strict=True):
            known.extend(found)
    return [glm.join_observed(known) for known in parts]


def _tally_all(source: Source, cuts: list[_Cut], work: Work) -> list[Tally]:
    """Return what all relabellings found, taking finished ranges from the checkpoint."""
    pieces: list[list[tuple[list[tasks.Range], Tally]]] = [[] for _ in cuts]
    missing: list[list[tasks.Range]] = [[] for _ in cuts]
    for cut, known, left in zip(cuts, pieces, missing, strict=True):
        for one in tasks.plan_ranges(cut.problem):
            kept = cut.ranges.load(*one) if cut.ranges else None
            if kept is None:
                left.append(one)
            else:
                known.append(([one], kept))
    # Data that do not fit into one wave are read again for each range that is to be kept, but once if none is.
    if source.held is None and work.checkpoint is not None:
        groups = [list(group) for group in zip_longest(*([[one] for one in left] for left in missing), fillvalue=[])]
    else:
        groups = [missing]
    for group in groups:
        for known, ranges, tally in zip(pieces, group, _tally_group(source, cuts, group, work), strict=True):
            if tally is not None:
                known.append((ranges, tally))
    return [_join(cut.test.shuffling.n_perm, known) for cut, known in zip(cuts, pieces, strict=True)]


def _tally_group(source: Source, cuts: list[_Cut], group: list[list[tasks.Range]], work: Work) -> list[Tally | None]:
    """Return what some ranges of each test found over all features, and keep them."""
    if not any(group):
        return [None] * len(cuts)
    parts: list[list[Tally]] = [[] for _ in cuts]
    for here, blocks in source.waves():
        graph = [_plan_tasks(source, here, blocks, cut, ranges, work) for cut, ranges in zip(cuts, group, strict=True)]
        for found, tally in zip(parts, compute_all(graph), strict=True):
            found.append(tally)
    out: list[Tally | None] = []
    for cut, ranges, found in zip(cuts, group, parts, strict=True):
        whole = join_features(found) if ranges else None
        if whole is not None and cut.ranges is not None and source.held is None:
            cut.ranges.save(*ranges[0], whole)
        out.append(whole)
    return out


def _plan_tasks(
    source: Source, here: range, blocks: list[list[Any]], cut: _Cut, ranges: list[tasks.Range], work: Work
) -> Any:
    """Return one delayed tally of all ranges; where all features are at hand, each range is kept when it is whole."""
    threads, total = source.threads, None
    budget = work.max_mem // threads.per_process
    n_task = -(-tasks.TASKS_PER_THREAD * threads.total // max(1, len(ranges) * len(blocks)))
    prepared = [
        [delayed(_prepare, pure=False)(copy, cut.test.engine, cut.compared[i_part], work.dtype) for copy in of_part]
        for i_part, of_part in zip(here, blocks, strict=True)
    ]
    copies = [cycle(of_part) for of_part in prepared]
    for one in ranges:
        rows = tasks.split_range(one, cut.problem, n_part=len(source.widths), n_task=n_task, max_mem=budget)
        tables = [delayed(cut.test.shuffling.part(start, stop)) for start, stop in rows]
        parts = [
            delayed(join_ranges, pure=False)(
                [
                    delayed(permute, pure=False)(
                        cut.tally, next(of_part), cut.test.engine, table, cut.observed[i_part], work.dtype
                    )
                    for table in tables
                ]
            )
            for i_part, of_part in zip(here, copies, strict=True)
        ]
        whole = delayed(join_features, pure=False)(parts)
        if cut.ranges is not None and source.held is not None:
            whole = delayed(_keep, pure=False)(cut.ranges, one, whole)
        total = whole if total is None else delayed(join_ranges, pure=False)([total, whole])
    return total


def _join(n_perm: int, pieces: list[tuple[list[tasks.Range], Tally]]) -> Tally:
    """Return ranges in the order of the table."""
    highest = np.empty((len(TAILS), n_perm - 1))
    for ranges, tally in pieces:
        rows = np.concatenate([np.arange(start - 1, stop - 1) for start, stop in ranges])
        highest[:, rows] = tally.highest
    return Tally(highest=highest, counts=np.sum([tally.counts for _, tally in pieces], axis=0))


def measure(data: DataMatrix, test: Test, work: Work, *, extra: float = 0.0) -> tasks.Problem:
    """Return the size of a test."""
    return tasks.Problem(
        n_obs=len(data.values),
        n_feature=data.n_feature,
        n_perm=test.shuffling.n_perm,
        n_row=test.engine.n_row,
        dtype=work.dtype,
        extra=extra,
    )


def _observe(block: npt.NDArray[np.floating], engine: glm.Engine) -> glm.Observed:
    with single_thread():
        return tallies.observe_blocks(block, engine)


def _prepare(block: npt.NDArray[np.floating], engine: glm.Engine, compared: Values, dtype: str) -> tallies.Blocks:
    with single_thread():
        return list(tallies.iterate_blocks(block, engine, compared, dtype))


def permute(
    tally: Callable[..., Tally],
    blocks: tallies.Blocks,
    engine: glm.Engine,
    part: Relabelling,
    observed: Values | spatial.ObservedMaps,
    dtype: str,
) -> Tally:
    """Return what some relabellings found in some features. Its name is that of its tasks on Dask's dashboard."""
    with single_thread():
        return tally(blocks, engine, part, observed, dtype)


def _keep(ranges: Ranges, one: tasks.Range, tally: Tally) -> Tally:
    ranges.save(*one, tally)
    return tally


def _same(values: Values) -> Values:
    return values
