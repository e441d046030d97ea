"""Tests of single features, from relabelled statistics to uncorrected p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kconn.infer.correction import Correction, Outcome, compare
from kconn.infer.permuting import Test, Work, run_tests
from kconn.infer.refining import refine_tests
from kconn.infer.scheduling import DataMatrix


def estimate_features(data: DataMatrix, tests: Sequence[Test], work: Work, correction: Correction) -> list[Outcome]:
    """Return the outcome of each test: ``correction`` says what is made of the counts."""
    found = run_tests(data, tests, work)
    outcomes = [compare(test, one, correction) for test, one in zip(tests, found, strict=True)]
    if correction.tail == "counts":
        return outcomes
    refined = refine_tests(data, outcomes, zero_beyond_end=correction.convention == "palm")
    return [replace(outcome, p_unc=p) for outcome, p in zip(outcomes, refined, strict=True)]
