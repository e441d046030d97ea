"""Sequential tests of single features: the tasks and labels around `kconn.kernels.sequential`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from kconn.errors import ResourceError, SchemaError
from kconn.infer.arguments import refuse_together
from kconn.infer.correction import CI_LEVEL, Correction, Null, Outcome, leave
from kconn.infer.permuting import Test, Work, measure, observe_all
from kconn.infer.scheduling import DataMatrix, Source, Threads, compute_all, count_threads
from kconn.kernels import glm, multiple_testing, tasks
from kconn.kernels.blas import single_thread
from kconn.kernels.permutation import Relabelling
from kconn.kernels.sequential import GROUP, Sequential, Stopped, estimate_p, tally_sequentially
from kconn.kernels.tallies import TAILS


def check_stopping(stopping: Sequential, **options: object) -> None:
    """Refuse, with code ``E-ARGUMENT``, what needs all relabellings of all features."""
    if stopping.n_exceed < 1:
        raise SchemaError("E-ARGUMENT", f"stopping after {stopping.n_exceed} exceedances", rule="at least one")
    refuse_together(
        "stopping",
        options,
        rule="features that have stopped are in no maximum, cluster or fitted tail",
        fix="leave stopping out",
    )


def estimate_sequentially(
    data: DataMatrix,
    tests: Sequence[Test],
    work: Work,
    correction: Correction,
    stopping: Sequential,
) -> list[Outcome]:
    """Return the outcome of each test, whose features stop by themselves; parameters as in `estimate_features`.

    A test of all relabellings that exist does not stop: they are listed, not drawn.
    """
    threads = count_threads()
    problems = [measure(data, test, work) for test in tests]
    source = Source.of(data, _plan_groups(problems[0], work, threads), threads)
    fits = observe_all(source, tests)
    parts: list[list[Stopped]] = [[] for _ in tests]
    tables = [delayed(test.shuffling.part(1, test.shuffling.n_perm)) for test in tests]
    limits = [test.shuffling.n_perm if test.shuffling.exhaustive else stopping.n_exceed for test in tests]
    tails = [correction.alternative if test.directed else "greater" for test in tests]
    for here, blocks in source.waves():
        graph = [
            [
                delayed(permute, pure=False)(
                    copies[0],
                    test.engine,
                    tables[i_test],
                    fits[i_test].compared[slice(*source.widths[i_part])],
                    work.dtype,
                    tails[i_test],
                    limits[i_test],
                )
                for i_part, copies in zip(here, blocks, strict=True)
            ]
            for i_test, test in enumerate(tests)
        ]
        for known, found in zip(parts, compute_all(graph), strict=True):
            known.extend(found)
    return [
        _summarise(test, fit, _join(known), n_exceed, correction)
        for test, fit, known, n_exceed in zip(tests, fits, parts, limits, strict=True)
    ]


def _plan_groups(problem: tasks.Problem, work: Work, threads: Threads) -> list[tasks.Range]:
    """Return feature ranges of whole groups: as many as there are threads, or more to fit into memory."""
    budget = work.max_mem // threads.per_process
    start, stop = tasks.plan_features(problem, max_mem=budget)[0]
    n_fit = (stop - start) // GROUP
    if n_fit == 0 and stop < problem.n_feature:
        raise ResourceError(
            "E-MEM",
            f"max_mem={budget} bytes per thread is too small for {problem.n_obs} observations",
            rule=f"features that stop are tested in groups of {GROUP}",
            fix="raise max_mem, or leave stopping out",
        )
    n_group = -(-problem.n_feature // GROUP)
    width = GROUP * max(1, min(n_fit or n_group, -(-n_group // threads.total)))
    return [(first, min(first + width, problem.n_feature)) for first in range(0, problem.n_feature, width)]


def permute(
    block: npt.NDArray[np.floating],
    engine: glm.Engine,
    draws: Relabelling,
    compared: npt.NDArray[np.float64],
    dtype: str,
    tail: str,
    n_exceed: int,
) -> Stopped:
    """Return what relabellings found in some features. Its name is that of its tasks on Dask's dashboard."""
    with single_thread():
        return tally_sequentially(block, engine, draws, compared, dtype, tail=tail, n_exceed=n_exceed)


def _join(parts: list[Stopped]) -> Stopped:
    return Stopped(
        counts=np.concatenate([part.counts for part in parts]),
        n_draw=np.concatenate([part.n_draw for part in parts]),
        n_computed=sum(part.n_computed for part in parts),
    )


def _summarise(test: Test, fit: glm.Observed, stopped: Stopped, n_exceed: int, correction: Correction) -> Outcome:
    n_perm, n_feature = test.shuffling.n_perm, fit.compared.size
    p = estimate_p(stopped, n_perm, n_exceed)
    shown = correction.alternative if test.directed else "two-sided"
    tails = [shown] if test.directed else ["two-sided", "greater"]
    p_unc = np.full((len(TAILS), n_feature), np.nan)
    p_unc[[TAILS.index(tail) for tail in tails]] = p
    nothing = np.full(n_feature, np.nan)
    null = Null(
        counts=1 + stopped.counts,
        highest=np.full(n_perm, np.nan),
        values=nothing,
        limits=nothing,
        to_z=leave,
        to_stat=leave,
    )
    return Outcome(
        test=test,
        observed=fit,
        nulls=dict.fromkeys(tails, null),
        p_unc=p_unc,
        n_perm=np.full(n_feature, n_perm),
        exhaustive=np.full(n_feature, test.shuffling.exhaustive),
        all_exhaustive=test.shuffling.exhaustive,
        maps={
            "p_fwe": nothing,
            "p_fwe_tails": np.full((len(TAILS), n_feature), np.nan),
            "p_fwe_ci": np.full((2, n_feature), np.nan),
            "p_unc_ci": _limit(stopped, p, n_perm, n_exceed, exhaustive=test.shuffling.exhaustive),
            "n_used": np.where(stopped.n_draw == 0, 0, 1 + stopped.n_draw),
        },
    )


def _limit(
    stopped: Stopped, p: npt.NDArray[np.float64], n_perm: int, n_exceed: int, *, exhaustive: bool
) -> npt.NDArray[np.float64]:
    if exhaustive:
        return np.stack([p, p])
    missing = np.where(stopped.n_draw == 0, np.nan, 0.0)
    all_drawn = multiple_testing.binomial_limits(missing + stopped.counts + 1, n_perm, level=CI_LEVEL)
    early = multiple_testing.negative_binomial_limits(n_exceed, missing + stopped.n_draw, level=CI_LEVEL)
    return np.where(stopped.counts >= n_exceed, np.stack(early), np.stack(all_drawn))
