"""From counts and maxima over relabellings to p-values, their limits and corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.arguments import Alternative, Convention
from kconn.errors import DesignError
from kconn.kernels import glm, multiple_testing, spatial, tails
from kconn.kernels.spatial import Enhancement
from kconn.kernels.tallies import TAILS
from kconn.permuting import Found, FoundMaps, Test

#: Coverage of the limits of every p.
CI_LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """How counts become p-values."""

    alternative: Alternative
    fdr: str
    tail: str
    convention: Convention
    tie_rtol: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """One direction of one contrast, on the scale on which relabellings are compared.

    ``counts (n_feature,)`` of relabellings at least as extreme, identity included; ``highest (n_perm,)`` over features;
    ``limits (n_feature,)`` that ``highest`` must reach to count. ``to_z`` and ``to_stat`` turn them into z and into
    what ``max_stat`` shows; statistics of whole maps are left as they are.
    """

    counts: npt.NDArray[np.int64]
    highest: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]
    to_z: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    to_stat: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _same(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values


def compare(test: Test, found: Found | FoundMaps, correction: Correction) -> dict[str, Null]:
    """Return, for each tail, what relabellings say of a contrast; F and G have two names for one tail."""
    observed = found.observed
    if (observed.excluded != 0).all():
        raise DesignError(
            "E-NO-FEATURES",
            f"{observed.excluded.size} feature(s): {int((observed.excluded == 1).sum())} with missing values, "
            f"{int((observed.excluded == 2).sum())} without variance",
            where=test.name,
            rule="at least one feature varies and is known for every observation",
        )
    nulls = (
        _compare_maps(found, correction) if isinstance(found, FoundMaps) else _compare_features(test, found, correction)
    )
    return nulls if test.directed else dict.fromkeys(("two-sided", "greater"), nulls["greater"])


def _compare_features(test: Test, found: Found, correction: Correction) -> dict[str, Null]:
    compared, tally = found.observed.compared, found.tally
    limits = test.engine.limits(compared, correction.tie_rtol)
    seen = {
        "two-sided": (np.nanmax(np.abs(compared)), limits.beyond),
        "greater": (np.nanmax(compared), limits.above),
        "less": (np.nanmax(-compared), -limits.below),
    }
    to_z = test.engine.to_z
    to_stat = to_z if correction.convention == "palm" else test.engine.to_stat
    return {
        tail: Null(
            counts=1 + tally.counts[i_tail],
            highest=np.concatenate([[seen[tail][0]], tally.highest[i_tail]]),
            limits=seen[tail][1].astype(np.float64),
            to_z=to_z,
            to_stat=to_stat,
        )
        for i_tail, tail in enumerate(TAILS)
    }


def _compare_maps(found: FoundMaps, correction: Correction) -> dict[str, Null]:
    slack = correction.tie_rtol * np.maximum(found.enhanced, 1)
    missing = np.where(found.observed.excluded == 0, 0.0, np.nan)
    return {
        tail: Null(
            counts=1 + found.tally.counts[i_tail],
            highest=np.concatenate([[found.enhanced[i_tail].max()], found.tally.highest[i_tail]]),
            limits=found.enhanced[i_tail] - slack[i_tail] + missing,
            to_z=_same,
            to_stat=_same,
        )
        for i_tail, tail in enumerate(TAILS)
    }


def read_maps(
    test: Test, found: FoundMaps, enhancement: Enhancement, correction: Correction
) -> dict[str, npt.NDArray[Any]]:
    """Return the enhanced values and the clusters of the observed map."""
    shown = _shown(test, correction) if test.directed else "greater"
    missing = np.where(found.observed.excluded == 0, 0.0, np.nan)
    maps: dict[str, npt.NDArray[Any]] = {"enhanced": found.enhanced[TAILS.index(shown)] + missing}
    if enhancement.threshold is not None:
        maps["cluster"] = enhancement.number(spatial.fill(found.observed.compared), test.engine, shown)
        # Features of one cluster share its statistic: p by counts of each feature would say nothing more.
        nothing = np.full(missing.shape, np.nan)
        maps |= {"p_unc": nothing, "p_fdr": nothing}
        maps["p_unc_tails"] = np.full((len(TAILS), missing.size), np.nan)
        maps["p_unc_ci"] = np.full((2, missing.size), np.nan)
    return maps


def read_result(
    test: Test, found: Found | FoundMaps, nulls: dict[str, Null], correction: Correction
) -> dict[str, npt.NDArray[Any]]:
    """Return the numbers of one contrast: per feature, per tail and feature, or per permutation."""
    observed, n_perm = found.observed, test.shuffling.n_perm
    tested = observed.excluded == 0
    missing = np.where(tested, 0.0, np.nan)
    p_unc = np.full((len(TAILS), tested.size), np.nan)
    p_fwe = np.full((len(TAILS), tested.size), np.nan)
    fwe_counts: dict[str, npt.NDArray[np.float64]] = {}
    for tail, null in nulls.items():
        fwe_counts[tail] = missing + multiple_testing.count_at_least(null.highest, null.limits)
        p_unc[TAILS.index(tail)] = null.counts / n_perm + missing
        p_fwe[TAILS.index(tail)] = _correct(fwe_counts[tail] / n_perm, null, correction)

    shown = _shown(test, correction)
    i_shown = TAILS.index(shown)
    return {
        "effect": observed.effect,
        "stat": observed.stat,
        "dof": observed.dof,
        "zstat": observed.zstat,
        "cohen_d": observed.cohen_d,
        "partial_r": observed.partial_r,
        "p_unc": p_unc[i_shown],
        "p_fwe": p_fwe[i_shown],
        "p_fdr": multiple_testing.FDR[correction.fdr](p_unc[i_shown]),
        "p_unc_tails": p_unc,
        "p_fwe_tails": p_fwe,
        "p_unc_ci": _limits(missing + nulls[shown].counts, test),
        "p_fwe_ci": _limits(fwe_counts[shown], test),
        "excluded": observed.excluded,
        "max_stat": nulls[shown].to_stat(nulls[shown].highest),
    }


def _shown(test: Test, correction: Correction) -> str:
    return "two-sided" if not test.directed else correction.alternative


def _correct(p: npt.NDArray[np.float64], null: Null, correction: Correction) -> npt.NDArray[np.float64]:
    if correction.tail == "counts":
        return p
    return tails.refine_p_values(p, null.to_z(null.limits), null.to_z(null.highest))


def _limits(counts: npt.NDArray[np.float64], test: Test) -> npt.NDArray[np.float64]:
    if test.shuffling.exhaustive:
        return np.stack([counts / test.shuffling.n_perm] * 2)
    return np.stack(multiple_testing.binomial_limits(counts, test.shuffling.n_perm, level=CI_LEVEL))


def correct_jointly(
    results: list[dict[str, npt.NDArray[Any]]], tests: list[Test], nulls: list[dict[str, Null]], correction: Correction
) -> None:
    """Add p-values corrected over contrasts as well: the maximum is taken over all of them, as z."""
    chosen = [null[_shown(test, correction)] for test, null in zip(tests, nulls, strict=True)]

    def to_z(test: Test, null: Null, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        z = null.to_z(values)
        folded = test.directed and correction.alternative == "two-sided" and null.to_z is not _same
        return glm.fold_z(z) if folded else z

    highest = np.max([to_z(test, null, null.highest) for test, null in zip(tests, chosen, strict=True)], axis=0)
    stacked = np.stack([result["p_unc"] for result in results])
    fdr = multiple_testing.FDR[correction.fdr](stacked)
    for i_test, (result, test, null) in enumerate(zip(results, tests, chosen, strict=True)):
        limits = to_z(test, null, null.limits)
        p = multiple_testing.count_at_least(highest, limits) / test.shuffling.n_perm
        p = np.where(np.isnan(limits), np.nan, p)
        result["p_fwe_joint"] = p if correction.tail == "counts" else tails.refine_p_values(p, limits, highest)
        result["p_fdr_joint"] = fdr[i_test]
