"""The methods paragraph on the tests: said once for all of them, and for each what is particular to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from kconn.report.bibliography import Bibliography, join
from kconn.report.data import TestedContrast
from kconn.report.words import SIDES, format_alpha

_REGRESSIONS: Final = {
    "dekker": "permuting the tested part of the model after Dekker",
    "draper-stoneman": "permuting the tested part of the model after Draper and Stoneman",
    "ter-braak": "permuting residuals of the full model after ter Braak",
    "manly": "permuting the data after Manly",
}
_STATISTICS: Final = {
    "nbs": "components of edges with z of at least {threshold:g} that share nodes, by their number of edges",
    "cluster-extent": "clusters of {features} beyond {threshold:g} that {near}, by their number of {features}",
    "cluster-mass": "clusters of {features} beyond {threshold:g} that {near}, by their mass",
    "tfce": "threshold-free enhancement over {features} that {near}",
}
Feature = Literal["connection", "voxel"]
#: What one test is of, what its clusters are made of, and when two of these belong together.
_WHOLE: Final[dict[Feature, str]] = {"connection": "test", "voxel": "map"}
_NEIGHBOURS: Final[dict[Feature, tuple[str, str]]] = {
    "connection": ("edges", "share nodes"),
    "voxel": ("voxels", "touch"),
}
_CITED: Final = {"nbs": "zalesky", "tfce": "smith-nichols"}


def write_statistics(
    contrasts: Sequence[TestedContrast], alpha: float, bibliography: Bibliography, *, feature: Feature = "connection"
) -> str:
    """Return the paragraph; nothing is said that the results do not say of themselves.

    ``feature``: what each test is of, a word for one of them.
    """
    if not contrasts:
        return "No contrast was tested."
    models = {str(contrast.hypothesis.formula) for contrast in contrasts} - {"1"}
    numbers = sorted({contrast.n_perm for contrast in contrasts})
    sides = list(dict.fromkeys(SIDES[contrast.alternative] for contrast in contrasts if contrast.is_directed))
    sided = f" ({join(sides)})" if sides else ""
    formula = f" (models: {join(sorted(models))})" if models else ""
    exhaustive = [contrast.name for contrast in contrasts if contrast.fact("exhaustive", default=False)]
    every = f" Every distinct relabelling was used for {join(dict.fromkeys(exhaustive))}." if exhaustive else ""
    fdr = {str(contrast.fact("fdr", "bh")) for contrast in contrasts}
    two_stage = f" (two-stage{bibliography.cite('bky')})" if "bky" in fdr else ""
    nouns = [feature] if feature == "voxel" else [contrast.noun for contrast in contrasts]
    what = join(dict.fromkeys(nouns), last="or")
    how = join(_relabellings(contrasts, bibliography), last="or")
    shared = (
        f"Each {what} was tested in a linear model{formula} by {how}, with "
        f"{join(f'{number:,}' for number in numbers)} relabellings, the identity included; the smallest possible p is "
        f"therefore 1/{numbers[0]:,}{bibliography.cite('phipson')}.{every} "
        f"{_decision(contrasts, feature, bibliography)} {format_alpha(alpha)}{sided}. The uncorrected p and the false "
        f"discovery rate of Benjamini and Hochberg{bibliography.cite('benjamini')}{two_stage} are given beside it, and "
        f"{_standardised(contrasts)} as a standardised effect{bibliography.cite('lakens')}."
    )
    sentences = [shared]
    for contrast in {contrast.name: contrast for contrast in contrasts}.values():
        sentences += _particular(contrast, feature, bibliography)
    return " ".join(sentences)


def _decision(contrasts: Sequence[TestedContrast], feature: Feature, bibliography: Bibliography) -> str:
    """Return the rule, up to the number that p is compared with."""
    if all(contrast.stops_early for contrast in contrasts):
        return f"A {feature} counts as significant at a false discovery rate below"
    return (
        f"Family-wise error over all {feature}s of a {_WHOLE[feature]} was controlled by the distribution of the "
        "maximum statistic"
        f"{bibliography.cite('nichols')}; a {feature} counts as significant at p <"
    )


def _relabellings(contrasts: Sequence[TestedContrast], bibliography: Bibliography) -> list[str]:
    how = []
    kinds = {str(contrast.fact("shuffling", "permutations")) for contrast in contrasts}
    permuted = [c for c in contrasts if c.fact("shuffling", "permutations") != "sign-flips"]
    for regression in dict.fromkeys(str(contrast.fact("regression", "freedman-lane")) for contrast in permuted):
        if regression == "freedman-lane":
            how.append(f"permuting residuals after Freedman and Lane{bibliography.cite('freedman', 'winkler')}")
        else:
            how.append(_REGRESSIONS[regression] + bibliography.cite("winkler"))
    if kinds & {"sign-flips", "both"}:
        how.append(
            "flipping signs where a mean is tested"
            if how and kinds == {"permutations", "sign-flips"}
            else "flipping signs"
        )
    return how


def _standardised(contrasts: Sequence[TestedContrast]) -> str:
    by_r = [contrast.by_partial_r for contrast in contrasts]
    if all(by_r):
        return "the partial correlation"
    return "Cohen's d" + (" (for covariates and F the partial correlation)" if any(by_r) else "")


def _particular(contrast: TestedContrast, feature: Feature, bibliography: Bibliography) -> list[str]:
    """Return what holds for this test and need not hold for the others."""
    said = []
    if not contrast.is_directed:
        said.append("tests several columns at once, which has no direction")
    if exchange := str(contrast.fact("exchange", "")):
        said.append(f"exchanges observations {exchange}{bibliography.cite('winkler-blocks')}")
    if n_group := int(contrast.fact("n_variance_group", 0)):
        said.append(f"gives each of {n_group} groups its own variance ({contrast.stat_kind})")
    statistic = str(contrast.fact("statistic", "edge"))
    if statistic in _STATISTICS:
        words = _STATISTICS[statistic].format(
            threshold=float(contrast.fact("threshold", 0)),
            features=_NEIGHBOURS[feature][0],
            near=_NEIGHBOURS[feature][1],
        )
        said.append(f"looks at {words}{bibliography.cite(_CITED[statistic]) if statistic in _CITED else ''}")
    if (convention := str(contrast.fact("convention", "kconn"))) != "kconn":
        said.append(f"follows the conventions of {convention}")
    if str(contrast.fact("tail", "counts")) == "gpd":
        said.append(f"takes small p from a generalised Pareto tail{bibliography.cite('winkler-tail')}")
    if str(contrast.fact("missing", "exclude")) == "refit":
        said.append(f"tests a {feature} without data in some observation in the others")
    if contrast.stops_early:
        said.append(
            f"compares a {feature} until {contrast.fact('n_exceed', 0)} relabellings were at least as extreme"
            f"{bibliography.cite('besag')}, so that its decision is by the false discovery rate, not family-wise error"
        )
    said += _family(contrast)
    if "p_fwe_joint" in contrast.result:
        said.append("is corrected over all contrasts of its design as well")
    return [f"The test {contrast.name} {join(said)}."] if said else []


def _family(contrast: TestedContrast) -> list[str]:
    family = str(contrast.fact("family", ""))
    return [f"is over the connections of the family {family} alone, and corrected over them"] if family else []
