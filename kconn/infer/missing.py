"""Features with missing observations: each pattern of missing ones is a test of its own on the observed rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from dask.base import compute
from dask.delayed import delayed

from kconn.errors import DesignError
from kconn.infer.arguments import refuse_together
from kconn.infer.correction import Correction, Null, Outcome, leave
from kconn.infer.feature_tests import estimate_features
from kconn.infer.permuting import Test, Work
from kconn.infer.relabelling import Plan, refuse_idle
from kconn.infer.scheduling import DataMatrix
from kconn.kernels import glm
from kconn.kernels.permutation import free_exchange, plan_shuffling, restrict_tree
from kconn.kernels.tallies import TAILS

#: Patterns that are refitted at most: each one plans relabellings and runs tasks of its own.
MAX_PATTERNS: Final = 256
#: Features whose missing observations are looked up together.
FEATURES_READ: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Features ``positions`` with the same ``observed (n_obs,)`` observations, in canonical order."""

    observed: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.intp]

    @property
    def n_obs(self) -> int:
        """Number of observations that are there."""
        return int(self.observed.sum())

    def derive_seed(self, seed: int) -> int:
        """Return the key of the pattern's own random stream: it depends on nothing but the seed and the pattern."""
        digest = hashlib.sha256(f"{seed} ".encode() + np.packbits(self.observed).tobytes())
        return int.from_bytes(digest.digest()[:8], "little")


def find_patterns(data: DataMatrix) -> list[Pattern]:
    """Return the patterns of missing observations, the one with the most observations first.

    Raises
    ------
    DesignError
        Code ``E-PATTERNS`` if there are more than `MAX_PATTERNS`.
    """
    starts = range(0, data.n_feature, FEATURES_READ)
    blocks = [data.values[:, first : first + FEATURES_READ] for first in starts]
    parts = compute([delayed(_pack, pure=False)(block, data.order) for block in blocks])
    rows, pattern = np.unique(np.concatenate(parts[0]), axis=0, return_inverse=True)
    observed = np.unpackbits(rows, axis=1, count=data.order.size).astype(bool)
    pattern = pattern.reshape(-1)
    if len(rows) > MAX_PATTERNS:
        rare = int((np.bincount(pattern) == 1).sum())
        raise DesignError(
            "E-PATTERNS",
            f"{len(rows)} patterns of missing observations, {rare} of them in one feature only",
            rule=f"at most {MAX_PATTERNS} patterns are refitted",
            fix="keep features that most observations cover, or leave the features out with missing='exclude'",
        )
    most_first = np.lexsort((np.arange(len(rows)), -observed.sum(axis=1)))
    return [Pattern(observed=observed[i], positions=np.flatnonzero(pattern == i)) for i in most_first]


def _pack(block: npt.NDArray[np.generic], order: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.packbits(np.isfinite(np.asarray(block)[order]), axis=0).T)


def check_refit(plan: Plan) -> None:
    """Refuse to refit what cannot be cut to the observed rows, with code ``E-ARGUMENT``."""
    refuse_together(
        "missing='refit'",
        {
            "feature_covariates": plan.model.has_feature_covariates,
            "a table of permutations": plan.exchange.permutations is not None,
        },
        rule="a permutation of all observations is none of those observed; covariates have a model per feature",
        fix="leave features with missing observations out: missing='exclude'",
    )


def estimate_patterns(
    data: DataMatrix,
    patterns: Sequence[Pattern],
    plan: Plan,
    work: Work,
    correction: Correction,
) -> list[Outcome]:
    """Test each feature on its own observations, and return the outcome of each test over all of them.

    Parameters
    ----------
    data, work, correction
        As in `kconn.infer.feature_tests.estimate_features`.
    patterns
        From `find_patterns`.
    plan
        The tests on all observations.
    """
    n_feature, seed = data.n_feature, plan.exchange.seed
    parts: list[list[tuple[Pattern, Outcome]]] = [[] for _ in plan.tests]
    for i_pattern, pattern in enumerate(patterns):
        planned = [_plan_pattern(pattern, i_test, plan) for i_test in range(len(plan.tests))]
        tests = {i_test: test for i_test, test in enumerate(planned) if test is not None}
        if not tests:
            continue
        values = data.values if pattern.positions.size == n_feature else data.values[:, pattern.positions]
        here = DataMatrix(values=values, order=data.order[pattern.observed])
        part = f"pattern {i_pattern + 1} of {len(patterns)}: {pattern.n_obs} observations"
        part_work = replace(work, part=part if len(patterns) > 1 else "")
        outcomes = estimate_features(here, list(tests.values()), part_work, correction)
        for i_test, outcome in zip(tests, outcomes, strict=True):
            parts[i_test].append((pattern, outcome))
    return [_join_outcomes(test, one, n_feature, seed=seed) for test, one in zip(plan.tests, parts, strict=True)]


def count_observed(patterns: Sequence[Pattern], n_feature: int) -> npt.NDArray[np.int64]:
    """Return how many observations each feature has."""
    counts = np.zeros(n_feature, dtype=np.int64)
    for pattern in patterns:
        counts[pattern.positions] = pattern.n_obs
    return counts


def _plan_pattern(pattern: Pattern, i_test: int, plan: Plan) -> Test | None:
    """Return the test of a contrast on the observations of a pattern; None where they do not allow it."""
    main, contrast, exchange = plan.tests[i_test], plan.contrasts[i_test], plan.exchange
    observed = pattern.observed
    if observed.all():
        return main
    if not observed.any():
        return None
    own = plan.model.restrict(observed)
    try:
        design, weights = glm.drop_dependent(own.matrix, contrast.weights)
        glm.check_design(design)
        partition = glm.split_design(design, weights)
        if main.kind in ("permutations", "both"):
            refuse_idle(own, contrast.weights)
            tree = free_exchange(observed.size) if exchange.tree is None else exchange.tree
            shuffling = plan_shuffling(
                own.label(contrast.tested),
                n_perm=exchange.n_perm,
                seed=pattern.derive_seed(exchange.seed),
                tree=restrict_tree(tree, observed),
                kind="permutations" if main.kind == "permutations" else "both",
            )
        else:
            shuffling = main.shuffling.restrict(observed)
        engine = own.plan(partition, shuffling)
    except DesignError:
        return None
    return replace(main, shuffling=shuffling, engine=engine)


def _join_outcomes(main: Test, parts: Sequence[tuple[Pattern, Outcome]], n_feature: int, *, seed: int) -> Outcome:
    """Return the outcome of all patterns as one, on z: their degrees of freedom differ.

    Relabelling b of the whole is relabelling b of each pattern. Sign flips are the same ones in every pattern. Each
    pattern permutes on its own; one with fewer relabellings than all observations allow repeats them at random.
    """
    parts = [(pattern, one) for pattern, one in parts if (one.observed.excluded == 0).any()]
    p_unc = np.full((len(TAILS), n_feature), np.nan)
    n_perm = np.ones(n_feature, dtype=np.int64)
    exhaustive = np.zeros(n_feature, dtype=bool)
    for pattern, one in parts:
        at = pattern.positions
        p_unc[:, at], n_perm[at], exhaustive[at] = one.p_unc, one.n_perm, one.exhaustive
    tails = parts[0][1].nulls if parts else ()
    return Outcome(
        test=main,
        observed=glm.scatter_observed([(pattern.positions, one.observed) for pattern, one in parts], n_feature),
        nulls={tail: _join_nulls(main, parts, tail, n_feature, seed=seed) for tail in tails},
        p_unc=p_unc,
        n_perm=n_perm,
        exhaustive=exhaustive,
        all_exhaustive=main.kind not in ("permutations", "both") and main.shuffling.exhaustive,
    )


def _join_nulls(main: Test, parts: Sequence[tuple[Pattern, Outcome]], tail: str, n_feature: int, *, seed: int) -> Null:
    n_perm = main.shuffling.n_perm
    highest = np.full(n_perm, -np.inf)
    counts = np.ones(n_feature, dtype=np.int64)
    values, limits = np.full((2, n_feature), np.nan)
    for pattern, one in parts:
        null = one.nulls[tail]
        z = null.to_z(null.highest)
        highest = np.maximum(highest, z[_repeat(z.size, n_perm, pattern.derive_seed(seed))])
        counts[pattern.positions] = null.counts
        values[pattern.positions], limits[pattern.positions] = null.to_z(null.values), null.to_z(null.limits)
    return Null(counts=counts, highest=highest, values=values, limits=limits, to_z=leave, to_stat=leave)


def _repeat(n_own: int, n_perm: int, seed: int) -> npt.NDArray[np.intp]:
    """Return which of a pattern's relabellings stands at each place: the identity first."""
    if n_own == n_perm:
        return np.arange(n_perm)
    stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(1,))))
    return np.concatenate([[0], stream.integers(0, n_own, n_perm - 1)])
