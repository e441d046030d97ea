"""Which confounds to remove: presets, patterns and strategies, resolved to columns and what is computed from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from kconn.errors import InputError, SchemaError
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

#: A noise region of CompCor: both tissues together, CSF, the most variable voxels, white matter.
Region = Literal["a", "c", "t", "w"]
#: How noise components leave. ``"aggressive"``: they are regressors like any other. ``"soft"``: only what is theirs
#: alone, beside the signal components, is a regressor. ``"nonaggressive"``: signal and noise are fitted together and
#: the fit of the noise is subtracted.
Removal = Literal["none", "aggressive", "soft", "nonaggressive"]
#: One regressor per bad frame: those that the table holds, or one for each frame that censoring drops.
Spikes = Literal["none", "columns", "censored"]

_PLAIN: Final = ("",)
_WITH_DERIVATIVE: Final = ("", "_derivative1")
_EXPANDED: Final = ("", "_derivative1", "_power2", "_derivative1_power2")


def _expand(bases: Iterable[str], suffixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(base + suffix for base in bases for suffix in suffixes)


#: Preset -> terms, in fMRIPrep's names. P counts the parameters; ``gsr`` is the global signal alone.
PRESETS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "gsr": GLOBAL,
    "2P": _expand(TISSUE, _PLAIN),
    "6P": _expand(MOTION, _PLAIN),
    "8P": _expand(MOTION + TISSUE, _PLAIN),
    "9P": _expand(MOTION + TISSUE + GLOBAL, _PLAIN),
    "12P": _expand(MOTION, _WITH_DERIVATIVE),
    "24P": _expand(MOTION, _EXPANDED),
    "27P": _expand(MOTION, _EXPANDED) + _expand(TISSUE + GLOBAL, _PLAIN),
    "36P": _expand(MOTION + TISSUE + GLOBAL, _EXPANDED),
}

#: Columns that are principal components of already high-passed noise regions, and the cosines of that high-pass.
_COMPONENT: Final = re.compile(r"(?:(?P<region>[actw])_comp_cor_|(?P<old_region>[at])CompCor)\d+")
_SPIKE: Final = re.compile(r"(?:motion_outlier|non_steady_state_outlier|NonSteadyStateOutlier)_?\d+")
#: Columns of fMRIPrep before 23.1, ICA components that ICA-AROMA calls motion; and the columns of a mixing matrix.
_AROMA: Final = re.compile(r"aroma_motion_\d+|AROMAAggrComp\d+")
_ICA: Final = re.compile(r"component_(?P<number>\d+)")
_COSINE: Final = re.compile(r"cosine_?\d+", re.IGNORECASE)

#: Other columns of preprocessing, no preset among them.
_OTHER: Final = re.compile(
    r"csf_wm|framewise_displacement|FramewiseDisplacement|rmsd|(?:std_|std|non\.std|vx\.wisestd)?dvars|dropped_\d+"
    r"|edge_comp_\d+|outlier_frame_\d+",
    re.IGNORECASE,
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What to remove, beside mean, trend and the frequencies outside the band.

    Parameters
    ----------
    columns
        Presets, names and patterns, as `select_terms` reads them.
    derivatives, squares
        True: the backward difference of each of ``columns``, and the square of each of them and of its difference.
        Or patterns for the names of those columns whose differences, or squares, are wanted.
    compcor
        Noise regions whose components are wanted.
    n_component, variance
        The first so many components of each region, or as many as explain this share of its variance. None: all.
    components
        What becomes of the ICA components that a list calls noise; see `Removal`.
    spikes
        See `Spikes`. With ``"censored"`` no frame is dropped: a dropped frame has a regressor of its own, and 0 as its
        residual.

    References
    ----------
    Pruim RHR et al. (2015). ICA-AROMA. https://doi.org/10.1016/j.neuroimage.2015.02.064
    Griffanti L et al. (2014). ICA-based artefact removal. https://doi.org/10.1016/j.neuroimage.2014.03.034
    """

    columns: tuple[str, ...] = ()
    derivatives: bool | tuple[str, ...] = False
    squares: bool | tuple[str, ...] = False
    compcor: tuple[Region, ...] = ()
    n_component: int | None = None
    variance: float | None = None
    components: Removal = "none"
    spikes: Spikes = "none"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Strategy:
        """Return the strategy that plain data describe."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**given)

    @property
    def needs_table(self) -> bool:
        """Whether it asks for anything that stands in a confound table."""
        named = set(self.columns) - {"none"}
        return bool(named or self.compcor or self.components != "none" or self.spikes == "columns")

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        SchemaError
            Code ``E-ARGUMENT``.
        """
        words: list[tuple[str, str, Any]] = [("components", self.components, Removal), ("spikes", self.spikes, Spikes)]
        words += [("compcor", region, Region) for region in self.compcor]
        for name, word, known in words:
            if word not in get_args(known):
                raise SchemaError("E-ARGUMENT", f"{name} = {word!r}", rule=f"one of {', '.join(get_args(known))}")
        if self.n_component is not None and self.variance is not None:
            raise SchemaError("E-ARGUMENT", "both n_component and variance are given", rule="one of them chooses")
        if not (self.n_component is None or self.n_component >= 1) or not (
            self.variance is None or 0 < self.variance <= 1
        ):
            raise SchemaError(
                "E-ARGUMENT",
                f"n_component = {self.n_component}, variance = {self.variance}",
                rule="n_component is at least 1, variance a share above 0 and at most 1",
            )


#: Named strategies that need more than base columns.
STRATEGIES: Final[dict[str, Strategy]] = {
    "acompcor": Strategy(columns=("12P",), compcor=("w", "c"), n_component=5),
    "acompcor_gsr": Strategy(columns=("12P", "gsr"), compcor=("w", "c"), n_component=5),
    "aroma": Strategy(columns=("2P",), components="soft"),
    "aroma_gsr": Strategy(columns=("2P", "gsr"), components="soft"),
    "aroma_aggressive": Strategy(columns=("2P",), components="aggressive"),
    "fix": Strategy(columns=("24P",), components="nonaggressive"),
}

#: What can be asked for: a preset, a strategy, names and patterns, or nothing.
Confounds = str | Sequence[str] | Strategy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known of a confound table beside its numbers.

    Parameters
    ----------
    names
        Its columns.
    compcor
        CompCor column -> its region and the share of variance explained up to it, where a sidecar says so.
    noise_components
        Numbers of the ICA components that are noise; None where no list is there.
    made_here
        CompCor columns that were computed here, with the high-pass of denoising: they need no cosines of the table.
    """

    names: tuple[str, ...]
    compcor: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    noise_components: tuple[int, ...] | None = None
    made_here: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], attrs: Mapping[str, Any]) -> Header:
        """Return the header of a table whose attrs hold what `attrs` returns."""
        noise = attrs.get("noise_components")
        return cls(
            names=tuple(names),
            compcor={name: (str(region), float(share)) for name, (region, share) in attrs.get("compcor", {}).items()},
            noise_components=None if noise is None else tuple(map(int, noise)),
            made_here=tuple(map(str, attrs.get("made_here", ()))),
        )

    @property
    def attrs(self) -> dict[str, Any]:
        """What is not a name, as plain data."""
        out: dict[str, Any] = {}
        if self.compcor:
            out["compcor"] = {name: list(entry) for name, entry in self.compcor.items()}
        if self.noise_components is not None:
            out["noise_components"] = list(self.noise_components)
        if self.made_here:
            out["made_here"] = list(self.made_here)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A strategy, resolved to the columns of one table.

    Parameters
    ----------
    terms
        What is regressed out.
    signal, noise
        ICA components that are fitted together, where they are not removed aggressively.
    components
        How the noise components leave.
    spikes
        Whether each dropped frame gets a regressor instead of being dropped.
    """

    terms: tuple[Term, ...] = ()
    signal: tuple[Term, ...] = ()
    noise: tuple[Term, ...] = ()
    components: Removal = "none"
    spikes: bool = False

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """Everything that is read from the table: what leaves first, the signal components last."""
        return self.terms + self.noise + self.signal


def find_strategy(confounds: Confounds) -> Strategy:
    """Return the strategy that is meant: itself, a named one, or one of columns alone."""
    if isinstance(confounds, Strategy):
        return confounds
    if isinstance(confounds, str) and confounds in STRATEGIES:
        return STRATEGIES[confounds]
    return Strategy(
        columns=() if confounds is None else (confounds,) if isinstance(confounds, str) else tuple(confounds)
    )


def select(header: Header, confounds: Confounds, *, has_high_pass: bool, where: str = "") -> Selection:
    """Resolve a strategy to the columns of a table, the cosines that CompCor components need among them.

    Parameters
    ----------
    header
        The table.
    confounds
        A `Strategy`, the name of one (`STRATEGIES`), or what `select_terms` takes.
    has_high_pass
        Whether denoising removes slow drifts anyway.
    where
        Place for error messages.

    Raises
    ------
    InputError
        Codes ``E-CONFOUND-COLUMN`` and ``E-COMPONENTS``.
    """
    strategy = find_strategy(confounds)
    terms = _expand_terms(select_terms(header.names, strategy.columns, where=where), strategy)
    for region in strategy.compcor:
        chosen = _choose_components(header, region, strategy, where=where)
        terms += tuple(Term(name=name, source=name) for name in chosen)
    if strategy.spikes == "columns":
        terms += tuple(Term(name=name, source=name) for name in header.names if _SPIKE.fullmatch(name))
    signal, noise = _split_components(header, strategy.components, where=where)
    if strategy.components == "aggressive":
        terms, signal, noise = terms + noise, (), ()
    terms = tuple({term.name: term for term in terms}.values())
    return Selection(
        terms=add_cosines(terms, header.names, made_here=header.made_here, has_high_pass=has_high_pass, where=where),
        signal=signal,
        noise=noise,
        components=strategy.components,
        spikes=strategy.spikes == "censored",
    )


def _expand_terms(terms: tuple[Term, ...], strategy: Strategy) -> tuple[Term, ...]:
    """Return the terms with their differences, and with the squares of both, where a strategy wants them."""
    differences = tuple(
        replace(term, name=f"{term.name}_derivative1", derivative=True)
        for term in terms
        if not term.name.endswith(("_derivative1", "_power2")) and _is_wanted(term, strategy.derivatives)
    )
    squares = tuple(
        replace(term, name=f"{term.name}_power2", squared=True)
        for term in terms + differences
        if not term.name.endswith("_power2") and _is_wanted(term, strategy.squares)
    )
    return tuple({term.name: term for term in terms + differences + squares}.values())


def _is_wanted(term: Term, which: bool | tuple[str, ...]) -> bool:  # noqa: FBT001 - all, none, or some by name
    base = term.name.removesuffix("_derivative1")
    return which if isinstance(which, bool) else any(re.fullmatch(entry, base) for entry in which)


def _choose_components(header: Header, region: Region, strategy: Strategy, *, where: str) -> list[str]:
    """Return the leading CompCor columns of a region."""
    names = [name for name in header.names if _region_of(name, header) == region]
    if not names:
        _refuse(f"{region}_comp_cor_00", header.names, where)
    if made := [name for name in names if name in header.made_here]:
        return made
    if strategy.variance is None:
        return names[: strategy.n_component]
    if unknown := [name for name in names if name not in header.compcor]:
        raise InputError(
            "E-CONFOUND-COLUMN",
            f"how much variance {unknown[0]!r} explains is not known",
            where=where,
            rule="it stands in the JSON sidecar of the confound table",
            fix="add the sidecar, or choose by n_component",
        )
    explained = [header.compcor[name][1] for name in names]
    n_enough = sum(share < strategy.variance for share in explained) + 1
    if n_enough > len(names):
        raise InputError(
            "E-CONFOUND-COLUMN",
            f"the {len(names)} components of region {region!r} explain {max(explained):.3g} of its variance, not"
            f" {strategy.variance:g}",
            where=where,
            rule="fMRIPrep keeps as many components as explain half of the variance, unless told otherwise",
            fix="lower variance, or compute the components here from masks ([compcor])",
        )
    return names[:n_enough]


def _region_of(name: str, header: Header) -> str | None:
    """Return the noise region of a CompCor column, as the sidecar says or else the name."""
    match = _COMPONENT.fullmatch(name)
    if match is None:
        return None
    return header.compcor[name][0] if name in header.compcor else match["region"] or match["old_region"]


def _split_components(header: Header, removal: Removal, *, where: str) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Return the ICA components that are signal and those that are noise."""
    if removal == "none":
        return (), ()
    numbers = {name: int(match["number"]) for name in header.names if (match := _ICA.fullmatch(name))}
    ready = tuple(Term(name=name, source=name) for name in header.names if _AROMA.fullmatch(name))
    if numbers and header.noise_components is not None:
        absent = set(header.noise_components) - set(numbers.values())
        if absent:
            raise InputError(
                "E-COMPONENTS",
                f"the list of noise components names {sorted(absent)}, the table has {len(numbers)} components",
                where=where,
                rule="components are numbered from 1",
                fix="give the list that belongs to this mixing matrix",
            )
        sides: dict[bool, list[Term]] = {True: [], False: []}
        for name, number in numbers.items():
            sides[number in header.noise_components].append(Term(name=name, source=name))
        return tuple(sides[False]), tuple(sides[True])
    if ready and removal == "aggressive":
        return (), ready
    lacks = "no list of noise components" if numbers else "no mixing matrix of an ICA"
    raise InputError(
        "E-COMPONENTS",
        f"the run has {lacks}" + (f", only its {len(ready)} noise components" if ready else ""),
        where=where,
        rule="'soft' and 'nonaggressive' need the series of all components, and which of them are noise",
        fix="name both files in [components]" + (', or set components = "aggressive"' if ready else ""),
    )


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
    terms: tuple[Term, ...],
    columns: Sequence[str],
    *,
    has_high_pass: bool,
    made_here: Sequence[str] = (),
    where: str = "",
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
    made_here
        Components that were computed here and need no cosines.
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
    components = [term.name for term in terms if _COMPONENT.fullmatch(term.source) and term.source not in made_here]
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
            rule="an entry is a preset, a column or a regular expression",
            fix=f"name one of {', '.join(columns)}",
        ) from error
    matched = tuple(Term(name=name, source=name) for name in columns if pattern.fullmatch(name))
    return matched or (_refuse(entry, columns, where),)


def is_known(name: str) -> bool:
    """Return whether a column, or what it is the difference or square of, is named as preprocessing names it."""
    parts = _TERM.fullmatch(name)
    base = name if parts is None else str(parts["base"])
    bases = {*MOTION, *TISSUE, *GLOBAL}
    patterns = (_COMPONENT, _SPIKE, _AROMA, _ICA, _COSINE, _OTHER)
    return base in bases | {OLD_NAMES[each] for each in bases} or any(each.fullmatch(base) for each in patterns)


def name_columns(strategy: Strategy) -> list[str]:
    """Return what a strategy asks for in names that are its own: those, and patterns, that `is_known` does not tell."""
    return [entry for entry in strategy.columns if entry not in PRESETS and not is_known(entry)]


def keep_columns(names: Sequence[str], named: Sequence[str]) -> list[int]:
    """Return the positions of the columns that may be kept.

    A table of another tool may hold anything, also about the person: what preprocessing does not name, and no strategy
    asks for, is left behind.

    Parameters
    ----------
    names
        The columns.
    named
        What `name_columns` found.
    """
    bases = {entry: str(parts["base"]) if (parts := _TERM.fullmatch(entry)) else entry for entry in named}
    wanted = {*bases, *bases.values()}
    asked = [re.compile(entry) for entry, base in bases.items() if not {entry, base} & set(names)]
    return [
        i
        for i, name in enumerate(names)
        if is_known(name) or name in wanted or any(pattern.fullmatch(name) for pattern in asked)
    ]


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
