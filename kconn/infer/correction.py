"""From counts and maxima over relabellings to p-values, their limits and corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.errors import DesignError
from kconn.infer.arguments import Alternative, Convention
from kconn.infer.permuting import Found, FoundMaps, Test
from kconn.kernels import glm, multiple_testing, spatial, tails
from kconn.kernels.spatial import Enhancement
from kconn.kernels.tallies import TAILS

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
    ``values (n_feature,)`` as observed, and the ``limits`` that ``highest`` must reach to count, ties included.
    ``to_z`` and ``to_stat`` turn them into z and into what ``max_stat`` shows; whole maps stay as they are.
    """

    counts: npt.NDArray[np.int64]
    highest: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]
    to_z: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    to_stat: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one contrast has found over all features.

    ``nulls`` by tail; ``p_unc (n_tail, n_feature)``; ``n_perm`` and ``exhaustive (n_feature,)`` of the relabellings
    behind the counts of each feature; ``all_exhaustive`` tells whether the maxima come from all relabellings. ``maps``:
    results that only a statistic of whole maps has, or that take the place of those of single features.
    """

    test: Test
    observed: glm.Observed
    nulls: dict[str, Null]
    p_unc: npt.NDArray[np.float64]
    n_perm: npt.NDArray[np.int64]
    exhaustive: npt.NDArray[np.bool_]
    all_exhaustive: bool
    maps: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def shown(self, correction: Correction) -> str:
        """Return the tail that ``p_unc`` and ``p_fwe`` are about."""
        return correction.alternative if self.test.directed else "two-sided"


def leave(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values that are on the wanted scale already."""
    return values


def compare(test: Test, found: Found, correction: Correction) -> Outcome:
    """Return what relabellings say of single features."""
    return _summarise(test, found.observed, _compare_features(test, found, correction))


def compare_maps(test: Test, found: FoundMaps, enhancement: Enhancement, correction: Correction) -> Outcome:
    """Return what relabellings say of a statistic of whole maps."""
    outcome = _summarise(test, found.observed, _compare_maps(found, correction))
    return replace(outcome, maps=_read_maps(outcome, found, enhancement, correction))


def _summarise(test: Test, observed: glm.Observed, nulls: dict[str, Null]) -> Outcome:
    # F and G have two names for one tail.
    nulls = nulls if test.directed else dict.fromkeys(("two-sided", "greater"), nulls["greater"])
    missing = np.where(observed.excluded == 0, 0.0, np.nan)
    p_unc = np.full((len(TAILS), missing.size), np.nan)
    for tail, null in nulls.items():
        p_unc[TAILS.index(tail)] = null.counts / test.shuffling.n_perm + missing
    return Outcome(
        test=test,
        observed=observed,
        nulls=nulls,
        p_unc=p_unc,
        n_perm=np.full(missing.size, test.shuffling.n_perm),
        exhaustive=np.full(missing.size, test.shuffling.exhaustive),
        all_exhaustive=test.shuffling.exhaustive,
    )


def _refuse_untestable(outcome: Outcome) -> None:
    excluded = outcome.observed.excluded
    if (excluded != 0).all():
        raise DesignError(
            "E-NO-FEATURES",
            f"{excluded.size} feature(s): {int((excluded == 1).sum())} with missing values, "
            f"{int((excluded == 2).sum())} without variance",
            where=outcome.test.name,
            rule="at least one feature varies and is known for every observation",
        )


def _compare_features(test: Test, found: Found, correction: Correction) -> dict[str, Null]:
    compared, tally = found.observed.compared, found.tally
    tested = found.observed.excluded == 0
    limits = test.engine.limits(compared, correction.tie_rtol)
    values = {
        "two-sided": (np.abs(compared), limits.beyond),
        "greater": (compared, limits.above),
        "less": (-compared, -limits.below),
    }
    to_z = test.engine.to_z
    to_stat = to_z if correction.convention == "palm" else test.engine.to_stat
    return {
        tail: Null(
            counts=1 + tally.counts[i_tail],
            highest=np.concatenate([[values[tail][0][tested].max(initial=-np.inf)], tally.highest[i_tail]]),
            values=values[tail][0],
            limits=np.asarray(values[tail][1], dtype=np.float64),
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
            values=found.enhanced[i_tail] + missing,
            limits=found.enhanced[i_tail] - slack[i_tail] + missing,
            to_z=leave,
            to_stat=leave,
        )
        for i_tail, tail in enumerate(TAILS)
    }


def _read_maps(
    outcome: Outcome, found: FoundMaps, enhancement: Enhancement, correction: Correction
) -> dict[str, npt.NDArray[Any]]:
    """Return the enhanced values and the clusters of the observed map."""
    shown = outcome.shown(correction) if outcome.test.directed else "greater"
    missing = np.where(found.observed.excluded == 0, 0.0, np.nan)
    maps: dict[str, npt.NDArray[Any]] = {"enhanced": found.enhanced[TAILS.index(shown)] + missing}
    if enhancement.threshold is not None:
        maps["cluster"] = enhancement.number(spatial.fill(found.observed.compared), outcome.test.engine, shown)
        # Features of one cluster share its statistic: p by counts of each feature would say nothing more.
        nothing = np.full(missing.shape, np.nan)
        maps |= {"p_unc": nothing, "p_fdr": nothing}
        maps["p_unc_tails"] = np.full((len(TAILS), missing.size), np.nan)
        maps["p_unc_ci"] = np.full((2, missing.size), np.nan)
    return maps


def read_result(outcome: Outcome, correction: Correction) -> dict[str, npt.NDArray[Any]]:
    """Return the numbers of one contrast: per feature, per tail and feature, or per permutation.

    Raises
    ------
    DesignError
        Code ``E-NO-FEATURES``.
    """
    _refuse_untestable(outcome)
    observed = outcome.observed
    missing = np.where(observed.excluded == 0, 0.0, np.nan)
    p_fwe = np.full((len(TAILS), missing.size), np.nan)
    fwe_counts: dict[str, npt.NDArray[np.float64]] = {}
    for tail, null in outcome.nulls.items():
        fwe_counts[tail] = missing + multiple_testing.count_at_least(null.highest, null.limits)
        p = fwe_counts[tail] / null.highest.size
        p_fwe[TAILS.index(tail)] = _refine(p, null.to_z(null.values), null.to_z(null.highest), correction)

    shown = outcome.shown(correction)
    null = outcome.nulls[shown]
    i_shown = TAILS.index(shown)
    return {
        "effect": observed.effect,
        "stat": observed.stat,
        "dof": observed.dof,
        "zstat": observed.zstat,
        "cohen_d": observed.cohen_d * (observed.span if correction.convention == "palm" else 1.0),
        "partial_r": observed.partial_r,
        "p_unc": outcome.p_unc[i_shown],
        "p_fwe": p_fwe[i_shown],
        "p_fdr": multiple_testing.FDR[correction.fdr](outcome.p_unc[i_shown]),
        "p_unc_tails": outcome.p_unc,
        "p_fwe_tails": p_fwe,
        "p_unc_ci": _limits(missing + null.counts, outcome.n_perm, outcome.exhaustive),
        "p_fwe_ci": _limits(fwe_counts[shown], np.array(null.highest.size), np.array(outcome.all_exhaustive)),
        "excluded": observed.excluded,
        "max_stat": null.to_stat(null.highest),
        **outcome.maps,
    }


def _refine(
    p: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    highest: npt.NDArray[np.float64],
    correction: Correction,
) -> npt.NDArray[np.float64]:
    if correction.tail == "counts":
        return p
    return tails.refine_p_values(p, values, highest, zero_beyond_end=correction.convention == "palm")


def _limits(
    counts: npt.NDArray[np.float64], n_perm: npt.NDArray[np.int64], exhaustive: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    drawn = np.stack(multiple_testing.binomial_limits(counts, n_perm, level=CI_LEVEL))
    return np.where(exhaustive, counts / n_perm, drawn)


def correct_jointly(
    results: list[dict[str, npt.NDArray[Any]]], outcomes: list[Outcome], correction: Correction
) -> None:
    """Add p-values corrected over contrasts as well: the maximum is taken over all of them, as z."""
    chosen = [outcome.nulls[outcome.shown(correction)] for outcome in outcomes]

    def to_z(outcome: Outcome, null: Null, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        two_sided = outcome.test.directed and correction.alternative == "two-sided"
        # PALM sets the size of a t's z beside the z of an F; their p would differ by a factor of two.
        folded = two_sided and not outcome.maps and correction.convention != "palm"
        return glm.fold_z(null.to_z(values)) if folded else null.to_z(values)

    pairs = list(zip(outcomes, chosen, strict=True))
    highest = np.max([to_z(outcome, null, null.highest) for outcome, null in pairs], axis=0)
    fdr = multiple_testing.FDR[correction.fdr](np.stack([result["p_unc"] for result in results]))
    for i_test, (result, (outcome, null)) in enumerate(zip(results, pairs, strict=True)):
        limits = to_z(outcome, null, null.limits)
        counts = np.where(np.isnan(limits), np.nan, multiple_testing.count_at_least(highest, limits))
        p = counts / highest.size
        result["p_fwe_joint"] = _refine(p, to_z(outcome, null, null.values), highest, correction)
        result["p_fwe_joint_ci"] = _limits(counts, np.array(highest.size), np.array(outcome.all_exhaustive))
        result["p_fdr_joint"] = fdr[i_test]
