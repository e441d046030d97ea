"""What confounds a study removed, in words for the methods paragraph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kconn.clean.confounds import PRESETS, STRATEGIES, Strategy, find_strategy
from kconn.report.words import count

#: What is said, and the references for it.
Phrase = tuple[str, tuple[str, ...]]

_TISSUES: Final = "the mean signals of white matter and CSF"
_ALL_SIGNALS: Final = "the mean signals of white matter, CSF and the whole brain"
_MOTION: Final = "the six rigid-body motion parameters"
_EXPANDED: Final = "their backward differences and the squares of both"
_WORDS: Final[Mapping[str, Phrase]] = {
    "gsr": ("the mean signal of the whole brain", ()),
    "2P": (_TISSUES, ()),
    "6P": (_MOTION, ()),
    "8P": (f"{_MOTION}, {_TISSUES}", ()),
    "9P": (f"{_MOTION}, {_ALL_SIGNALS}", ()),
    "12P": (f"{_MOTION} and their backward differences", ()),
    "24P": (f"24 motion regressors (six rigid-body parameters, {_EXPANDED})", ("friston",)),
    "27P": (
        f"24 motion regressors (six rigid-body parameters, {_EXPANDED}), {_ALL_SIGNALS}",
        ("friston", "ciric"),
    ),
    "36P": (
        f"36 regressors (six rigid-body parameters and {_ALL_SIGNALS}, {_EXPANDED})",
        ("satterthwaite", "ciric"),
    ),
}
_REGIONS: Final = {
    "a": "white matter and CSF together",
    "c": "CSF",
    "t": "the most variable voxels",
    "w": "white matter",
}
_REMOVALS: Final = {
    "aggressive": "the noise components of an independent component analysis",
    "soft": (
        "the noise components of an independent component analysis, made orthogonal to its signal components, which "
        "keep what both share"
    ),
    "nonaggressive": (
        "the noise components of an independent component analysis, fitted together with its signal components"
    ),
}
_ICA: Final = {"fix": ("griffanti",), "aroma": ("pruim",), "aroma_gsr": ("pruim",), "aroma_aggressive": ("pruim",)}


def chosen_strategy(parameters: Mapping[str, Any]) -> Strategy:
    """Return the strategy of a study file as plain data."""
    confounds, named = parameters.get("denoise", {}).get("confounds", "none"), parameters.get("strategies", {})
    if isinstance(confounds, str) and confounds in named:
        return Strategy.of(named[confounds])
    return find_strategy(confounds)


def describe_confounds(parameters: Mapping[str, Any]) -> list[Phrase]:
    """Return what was removed beside trend and frequencies, one phrase each.

    Parameters
    ----------
    parameters
        The study file as plain data: its tables ``denoise``, ``strategies`` and ``compcor``.
    """
    confounds = parameters.get("denoise", {}).get("confounds", "none")
    strategy = chosen_strategy(parameters)
    phrases = _describe_columns(strategy)
    if strategy.compcor:
        phrases.append(_describe_compcor(strategy, parameters.get("compcor", {})))
    if strategy.components != "none":
        keys = _ICA.get(confounds, ()) if isinstance(confounds, str) and confounds in STRATEGIES else ()
        phrases.append((_REMOVALS[strategy.components], keys or ("griffanti", "pruim")))
    if strategy.spikes == "columns":
        phrases.append(("one regressor for each frame that the confound table calls an outlier", ()))
    if strategy.spikes == "censored":
        phrases.append(("one regressor for each censored frame", ()))
    return phrases


def _describe_columns(strategy: Strategy) -> list[Phrase]:
    phrases = [_WORDS[name] for name in strategy.columns if name in _WORDS]
    if names := [name for name in strategy.columns if name not in PRESETS]:
        phrases.append((f"the confound{'s' * (len(names) > 1)} {_listed(names)}", ()))
    for which, what in ((strategy.derivatives, "backward differences"), (strategy.squares, "squares")):
        if which is True:
            phrases.append((f"their {what}", ()))
        elif which:
            phrases.append((f"the {what} of {_listed(which)}", ()))
    return phrases


def _describe_compcor(strategy: Strategy, masks: Mapping[str, Any]) -> Phrase:
    if strategy.variance is not None:
        many = f"as many CompCor components as explain {strategy.variance:.0%} of the variance"
    elif strategy.n_component is not None:
        many = f"the first {count(strategy.n_component, 'CompCor component')}"
    else:
        many = "all CompCor components"
    each = " of each of" if len(strategy.compcor) > 1 else " of"
    source = "computed from masks" if any(masks.get(role) for role in ("white_matter", "csf")) else "with their cosines"
    return f"{many}{each} {_listed([_REGIONS[region] for region in strategy.compcor])} ({source})", ("behzadi",)


def _listed(words: list[str] | tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
