"""Which confounds to remove: presets and patterns, resolved to columns of a table and what is computed from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError
from kconn.kernels import motion

Array = npt.NDArray[np.float64]

MOTION: Final = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
TISSUE: Final = ("white_matter", "csf")
GLOBAL: Final = ("global_signal",)

#: Name since fMRIPrep 1.1 -> name before.
OLD_NAMES: Final = {
    "trans_x": "X",
    "trans_y": "Y",
    "trans_z": "Z",
    "rot_x": "RotX",
    "rot_y": "RotY",
    "rot_z": "RotZ",
    "white_matter": "WhiteMatter",
    "csf": "CSF",
    "global_signal": "GlobalSignal",
    "framewise_displacement": "FramewiseDisplacement",
}

_PLAIN: Final = ("",)
_WITH_DERIVATIVE: Final = ("", "_derivative1")
_EXPANDED: Final = ("", "_derivative1", "_power2", "_derivative1_power2")


def _expand(bases: Iterable[str], suffixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(base + suffix for base in bases for suffix in suffixes)


#: Preset -> terms, in fMRIPrep's names. P counts the parameters.
PRESETS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "2P": _expand(TISSUE, _PLAIN),
    "6P": _expand(MOTION, _PLAIN),
    "8P": _expand(MOTION + TISSUE, _PLAIN),
    "9P": _expand(MOTION + TISSUE + GLOBAL, _PLAIN),
    "12P": _expand(MOTION, _WITH_DERIVATIVE),
    "24P": _expand(MOTION, _EXPANDED),
    "36P": _expand(MOTION + TISSUE + GLOBAL, _EXPANDED),
}

#: Columns that are principal components of already high-passed noise regions, and the cosines of that high-pass.
_COMPONENT: Final = re.compile(r"[actw]_comp_cor_\d+|[at]CompCor\d+")
_COSINE: Final = re.compile(r"cosine_?\d+", re.IGNORECASE)

_TERM: Final = re.compile(r"(?P<base>.+?)(?P<derivative>_derivative1)?(?P<power>_power2)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A regressor: a column of the table, or its backward difference, or the square of either.

    Parameters
    ----------
    name
        What it is called in reports, in fMRIPrep's present names.
    source
        The column of the table that it is made from.
    derivative, squared
        What is done to the column, in this order.
    """

    name: str
    source: str
    derivative: bool = False
    squared: bool = False


def select_terms(columns: Sequence[str], confounds: str | Sequence[str] | None, *, where: str = "") -> tuple[Term, ...]:
    """Resolve presets, names and patterns to terms.

    Each entry of ``confounds`` is the first of these that fits: a preset (`PRESETS`); the name of a column; a name in
    fMRIPrep's present scheme whose column has the old one; such a name with ``_derivative1``, ``_power2`` or
    ``_derivative1_power2``, computed when the table does not hold it; a regular expression that matches whole names.
    The terms of presets are always computed from their base column, so that tables of all ages give the same numbers.

    Parameters
    ----------
    columns
        Names of the columns of the table.
    confounds
        One entry or several. None and ``"none"`` select nothing.
    where
        Place for error messages.

    Raises
    ------
    InputError
        Code ``E-CONFOUND-COLUMN``.

    References
    ----------
    Satterthwaite TD et al. (2013). An improved framework for confound regression and filtering (36P).
    https://doi.org/10.1016/j.neuroimage.2012.08.052
    """
    entries = () if confounds is None else (confounds,) if isinstance(confounds, str) else tuple(confounds)
    terms: dict[str, Term] = {}
    for entry in entries:
        for term in _resolve(entry, tuple(columns), where):
            terms.setdefault(term.name, term)
    return tuple(terms.values())


def add_cosines(
    terms: tuple[Term, ...], columns: Sequence[str], *, has_high_pass: bool, where: str = ""
) -> tuple[Term, ...]:
    """Return ``terms``, with the cosine columns of the table beside any CompCor component.

    fMRIPrep takes the components from high-passed series. Regressed without that high-pass, they bring slow drifts
    back that they were made free of.

    Parameters
    ----------
    terms
        What was selected.
    columns
        Names of the columns of the table.
    has_high_pass
        Whether denoising removes slow drifts anyway, so that a table without cosines will do.
    where
        Place for error messages.

    Raises
    ------
    InputError
        Code ``E-CONFOUND-COLUMN`` if there is neither a cosine column nor a high-pass.

    References
    ----------
    Behzadi Y et al. (2007). A component based noise correction method (CompCor) for BOLD and perfusion based fMRI.
    https://doi.org/10.1016/j.neuroimage.2007.04.042
    """
    components = [term.name for term in terms if _COMPONENT.fullmatch(term.source)]
    if not components:
        return terms
    cosines = [Term(name=name, source=name) for name in columns if _COSINE.fullmatch(name)]
    if not cosines and not has_high_pass:
        raise InputError(
            "E-CONFOUND-COLUMN",
            f"{components[0]!r} was made from high-passed series, but the table has no cosine columns",
            where=where,
            rule="CompCor components go with the high-pass that they were made with",
            fix="set high_pass (fMRIPrep's is 1/128 Hz = 0.0078)",
        )
    return tuple({term.name: term for term in (*terms, *cosines)}.values())


def _resolve(entry: str, columns: tuple[str, ...], where: str) -> tuple[Term, ...]:
    if entry in PRESETS:
        return tuple(
            compute_term(name, columns) or _refuse(name, columns, where, preset=entry) for name in PRESETS[entry]
        )
    if entry in columns:
        return (Term(name=entry, source=entry),)
    if (term := compute_term(entry, columns)) is not None:
        return (term,)
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise InputError(
            "E-CONFOUND-COLUMN",
            f"{entry!r} is neither a column nor a regular expression ({error})",
            where=where,
            fix=f"name one of {', '.join(columns)}",
        ) from error
    matched = tuple(Term(name=name, source=name) for name in columns if pattern.fullmatch(name))
    return matched or (_refuse(entry, columns, where),)


def compute_term(name: str, columns: Sequence[str]) -> Term | None:
    """Return the term for a name that is a base column with or without suffixes; None if its base is not there."""
    parts = _TERM.fullmatch(name)
    if parts is None:
        return None
    base = str(parts["base"])
    for source in (base, OLD_NAMES.get(base, base)):
        if source in columns:
            return Term(name=name, source=source, derivative=bool(parts["derivative"]), squared=bool(parts["power"]))
    return None


def _refuse(name: str, columns: tuple[str, ...], where: str, *, preset: str | None = None) -> Term:
    parts = _TERM.fullmatch(name)
    base = parts["base"] if parts else name
    old = OLD_NAMES.get(base)
    near = dict.fromkeys(
        match for word in (name, base, old) if word for match in get_close_matches(word, columns, 3, 0.5)
    )
    wanted = f"{base!r}" if preset is None else f"{base!r}, which the preset {preset!r} needs"
    raise InputError(
        "E-CONFOUND-COLUMN",
        f"the confound table has no column {wanted}; the nearest are {list(near) or list(columns)}",
        where=where,
        rule=f"presets are {', '.join(PRESETS)}; other entries are names or regular expressions of columns",
        fix="correct the name, or choose a preset that the table can serve",
    )


def build_columns(table: Array, columns: Sequence[str], terms: Sequence[Term]) -> Array:
    """Return the regressors ``(time, term)`` of a confound table ``(time, column)``.

    A column that is NaN in the first frame and nowhere else is a difference from the frame before: it gets 0 there.
    """
    position = {name: i for i, name in enumerate(columns)}
    source = table[:, [position[term.source] for term in terms]]
    late = np.isnan(source[1:]).any(axis=0)
    source = np.where(late, source, motion.fill_first_frame(source))
    out = np.empty_like(source)
    # Infinite values are for the caller to refuse, by name.
    with np.errstate(invalid="ignore", over="ignore"):
        for i, term in enumerate(terms):
            column = motion.backward_difference(source[:, i]) if term.derivative else source[:, i]
            out[:, i] = column**2 if term.squared else column
    return out
