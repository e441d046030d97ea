"""Results in plain words, and numbers as they are printed."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from kconn.infer.hypotheses import Hypothesis
from kconn.report.data import TestedContrast

MINUS: Final = "\N{MINUS SIGN}"
DASH: Final = "\N{EN DASH}"

#: Sidedness of a test -> words.
SIDES: Final = {
    "two-sided": "two-sided",
    "greater": "one-sided, towards higher values",
    "less": "one-sided, towards lower values",
}


def format_p(p: float, *, n_perm: int) -> str:
    """Return a p-value to the resolution of its permutations; it is never 0."""
    if not math.isfinite(p):
        return "n/a"
    return f"{p:.{max(4, math.ceil(math.log10(max(2, n_perm))))}f}"


def format_number(value: float, *, digits: int = 2) -> str:
    """Return a number with a true minus sign, none before what is rounded to 0; an en dash where there is no number."""
    if not math.isfinite(value):
        return DASH
    return f"{value:z.{digits}f}".replace("-", MINUS)


def format_alpha(alpha: float) -> str:
    """Return a threshold without its leading zero, as in ``.05``."""
    return f"{alpha:g}".removeprefix("0")


def count(number: int, noun: str) -> str:
    """Return ``1 connection`` or ``3 connections``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def headline(contrast: TestedContrast, *, alpha: float) -> str:
    """Return what the test found, in one sentence."""
    significant = contrast.significant(alpha)
    n_found, n_tested = int(significant.sum()), contrast.n_tested
    side = SIDES[contrast.alternative] if contrast.is_directed else f"{contrast.stat_kind}, all directions"
    decides = "false discovery rate" if contrast.stops_early else "family-wise error corrected p"
    rule = f"{decides} < {format_alpha(alpha)}, {side}"
    family = f" of the family {contrast.fact('family', '')}" if contrast.fact("family", "") else ""
    tested = f"{count(n_tested, contrast.noun)}{family}"
    none, some, rise, fall = _phrases(contrast)
    if n_found == 0:
        return f"No {contrast.noun} {none} after correction for {tested} ({rule})."
    if not contrast.is_directed:
        return f"{n_found:,} of {tested} {some[0] if n_found == 1 else some[1]} ({rule})."
    stat = contrast.result["stat"].to_numpy()[significant]
    up, down = int((stat > 0).sum()), int((stat < 0).sum())
    parts = [f"{number} {phrase}" for number, phrase in ((up, rise), (down, fall)) if number]
    verb = some[0] if n_found == 1 else some[1]
    return f"{n_found:,} of {tested} {verb} ({rule}): {' and '.join(parts)}."


def _phrases(contrast: TestedContrast) -> tuple[str, tuple[str, str], str, str]:
    """Return: none did so; one did so, several did so; upwards; downwards."""
    hypothesis = contrast.hypothesis
    change = hypothesis.span
    span = f" from {change[0]} to {change[1]}" if change else ""
    if hypothesis.test == "two-sample":
        reference, level = (*contrast.levels, "A", "B")[:2]
        if change:
            what = f"changed differently{span} in {level} than in {reference}"
            return what, (what, what), f"rose more in {level}", f"fell more in {level}"
        where = f"between {reference} and {level}"
        both = (f"differs {where}", f"differ {where}")
        return both[0], both, f"stronger in {level}", f"weaker in {level}"
    if hypothesis.test in _OTHER_PHRASES:
        return _phrase_other(hypothesis)
    if hypothesis.test == "covariate":
        effect = hypothesis.effect
        both = (f"goes with {effect}", f"go with {effect}")
        if change:
            both = (f"changed{span} in proportion to {effect}",) * 2
        return both[0], both, f"higher with higher {effect}", f"lower with higher {effect}"
    if change:
        what = f"changed{span}"
        return what, (what, what), "rose", "fell"
    return "differs from zero", ("differs from zero", "differ from zero"), "positive", "negative"


def _phrase_other(hypothesis: Hypothesis) -> tuple[str, tuple[str, str], str, str]:
    """Return the phrases of tests whose direction has no name of its own."""
    effects, sessions = " and ".join(hypothesis.effects), ", ".join(hypothesis.sessions or ())
    kind = "course" if hypothesis.test == "repeated" and effects else hypothesis.test
    one, several = (text.format(effects=effects, sessions=sessions) for text in _OTHER_PHRASES[kind])
    span = f" of the change from {hypothesis.span[0]} to {hypothesis.span[1]}" if hypothesis.span else ""
    return one + span, (one + span, several + span), "upwards", "downwards"


#: Test -> what one connection does, and what several do.
_OTHER_PHRASES: Final = {
    "f-test": ("shows an effect of {effects}", "show an effect of {effects}"),
    "interaction": ("shows an interaction of {effects}", "show an interaction of {effects}"),
    "repeated": ("differs between {sessions}", "differ between {sessions}"),
    "course": (
        "differs by {effects} in its course over {sessions}",
        "differ by {effects} in their course over {sessions}",
    ),
    "design": ("departs from the null hypothesis", "depart from the null hypothesis"),
}


def effect_unit(contrast: TestedContrast) -> str:
    """Return what the effect is measured in."""
    if contrast.hypothesis.test == "covariate":
        return f"{contrast.unit} per unit of {contrast.hypothesis.effect}"
    if contrast.hypothesis.test in {"interaction", "design"}:
        return f"{contrast.unit} per unit of the contrast"
    return contrast.unit


def critical_value(contrast: TestedContrast, *, alpha: float) -> float:
    """Return the lowest statistic that has ``p_fwe < alpha``; NaN if too few maxima are known for any."""
    null = np.sort(contrast.result["max_stat"].to_numpy()[np.isfinite(contrast.result["max_stat"].to_numpy())])[::-1]
    # k relabellings may reach it: k / n_perm < alpha. The slack keeps 0.05 * 5000 at 250.
    k = math.ceil(alpha * len(null) - 1e-9) - 1
    return float(null[k - 1]) if k >= 1 else float("nan")
