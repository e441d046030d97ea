"""What a report is made from: plain tables and Datasets, nothing that knows of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn import schema
from kconn.connect.kinds import KINDS, describe_unit
from kconn.errors import SchemaError
from kconn.exclusions import Exclusion, FlowStage
from kconn.infer.design import Hypothesis, name_row
from kconn.study.connection_tables import MapKind

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedContrast:
    """One tested contrast with the values behind it; `describe_contrast` makes one.

    Attributes
    ----------
    name, node_set, kind
        Name in the study file, node set and kind of netmat.
    hypothesis
        The test in the words of the study file.
    result
        ``effect stat dof p_unc p_fwe p_fdr (edge)`` and ``max_stat (permutation)`` as `kconn.permutation_test` returns
        them for one contrast.
    observed
        ``(observation, edge)``, what was tested; of maps without any voxel: those stay in the store.
    unit
        Of ``observed``, in words.
    visits
        ``(visit, observation, edge)``, the two visits of a change, else None.
    groups
        Level of the tested factor of each observation; empty strings where there is no factor.
    levels
        The levels in their order, the reference first.
    covariate
        ``(observation,)``, the tested covariate, else None.
    left_out
        Subject -> why it is not in the test.
    planted
        Edges that are known to differ, in simulated data: ``node_i node_j sign``. None for real data.
    noun
        What a feature is: a connection, or a block or a node, whose name is in ``node_i``.
    """

    __test__ = False  # no test class, whatever its name makes pytest think

    name: str
    node_set: str
    kind: str
    hypothesis: Hypothesis
    result: xr.Dataset
    observed: xr.DataArray
    unit: str
    visits: xr.DataArray | None = None
    groups: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    covariate: npt.NDArray[np.float64] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    planted: pd.DataFrame | None = None
    noun: str = "connection"

    @property
    def alternative(self) -> str:
        """``two-sided``, ``greater`` or ``less``; an F looks at all directions and at one side of its distribution."""
        return str(self.fact("alternative", "two-sided")) if self.is_directed else "greater"

    @property
    def n_perm(self) -> int:
        """Relabellings that were used, the identity included."""
        if self.stops_early:
            return int(self.fact("n_permutations", 0))
        return int(np.isfinite(self.result["max_stat"].to_numpy()).sum())

    @property
    def n_tested(self) -> int:
        """Edges that have a p-value."""
        return int(np.isfinite(self.result[self.deciding_p].to_numpy()).sum())

    @property
    def stops_early(self) -> bool:
        """Whether edges stopped by themselves, at their own relabelling: then nothing is known of maxima."""
        return self.fact("n_exceed", None) is not None

    @property
    def deciding_p(self) -> str:
        """Which p makes an edge significant: ``p_fwe``, or ``p_fdr`` where edges stopped by themselves."""
        return "p_fdr" if self.stops_early else "p_fwe"

    @property
    def stat_kind(self) -> str:
        """``t`` or ``v``, which have a direction; ``F`` or ``G``, which have none."""
        return str(self.fact("stat_kind", "t"))

    @property
    def is_directed(self) -> bool:
        """Whether an effect can be upwards or downwards."""
        return self.stat_kind not in {"F", "G"}

    def fact(self, name: str, default: Any) -> Any:
        """Return what the result says of itself, as an attribute or as a scalar coordinate."""
        if name in self.result.attrs:
            return self.result.attrs[name]
        return self.result[name].item() if name in self.result.coords and self.result[name].ndim == 0 else default

    def significant(self, alpha: float) -> BoolArray:
        """Return which edges have a `deciding_p` below ``alpha``: ``(edge,)``."""
        return np.asarray(self.result[self.deciding_p].to_numpy() < alpha)

    def towards(self) -> npt.NDArray[np.float64]:
        """Return the statistic in the direction that was tested, ``(edge,)``: what ``max_stat`` is the maximum of."""
        if "enhanced" in self.result:
            return np.asarray(self.result["enhanced"].to_numpy(), dtype=np.float64)
        stat = self.result["zstat" if self._is_on_z else "stat"].to_numpy().astype(np.float64)
        return {"two-sided": np.abs(stat), "greater": stat, "less": -stat}[self.alternative]

    @property
    def compared(self) -> str:
        """What ``max_stat`` is the maximum of, as a symbol or in words."""
        if "enhanced" in self.result:
            return _ENHANCED[str(self.fact("statistic", "tfce"))]
        symbol = "z" if self._is_on_z else self.stat_kind
        return {"two-sided": f"|{symbol}|", "greater": symbol, "less": f"\N{MINUS SIGN}{symbol}"}[self.alternative]

    @property
    def by_partial_r(self) -> bool:
        """Whether the partial correlation is the effect size to read: d of a slope depends on its unit, F has none."""
        return not self.is_directed or self.hypothesis.test in {"covariate", "interaction", "design"}

    @property
    def _is_on_z(self) -> bool:
        refit = self.fact("missing", "exclude") == "refit"
        return self.stat_kind in {"v", "G"} or self.fact("convention", "kconn") == "palm" or refit


#: Statistic of whole maps -> what is compared.
_ENHANCED: dict[str, str] = {
    "nbs": "edges of a component",
    "cluster-extent": "edges of a cluster",
    "cluster-mass": "mass of a cluster",
    "tfce": "enhanced value",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedMap:
    """The test of one contrast over the map of one node.

    Attributes
    ----------
    name, node_set, kind
        Name of the test in the study file, node set and kind of map.
    node
        The seed, or the component.
    test
        The test; its ``result`` is per voxel, with the coordinates and attrs that say where the voxels are, or None
        where the map could not be tested.
    reason
        Why it was not tested, else empty.
    regions
        (voxel,) region of an atlas that each voxel lies in, empty where it lies in none; None where the study has no
        atlas.
    p_nodes
        (voxel,) p corrected over the maps of all nodes, or None.
    """

    __test__ = False  # no test class, whatever its name makes pytest think

    name: str
    node_set: str
    kind: MapKind
    node: str
    test: TestedContrast | None
    reason: str = ""
    regions: npt.NDArray[np.object_] | None = None
    p_nodes: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupComponents:
    """One group ICA.

    Attributes
    ----------
    components
        As `kconn.find_components` returns them, with ``template_correlation`` where there were templates.
    accepted, reason
        (node,) which are networks, and why the others are not.
    threshold
        Absolute z above which a voxel is shown.
    """

    name: str
    components: xr.Dataset
    accepted: BoolArray
    reason: tuple[str, ...]
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that a report shows.

    Attributes
    ----------
    study
        Name of the study.
    date
        Day of the report in words, or empty; the report itself never reads a clock.
    runs
        One row per run: ``subject session run n_frames n_kept minutes_kept mean_fd max_fd median_tsnr df_left
        excluded``; ``excluded`` is the reason, or empty.
    participants
        Indexed by subject.
    cohorts
        (node set, kind) -> ``netmat (observation, edge)``.
    nodes
        Node set -> table with ``node`` and, where known, ``network`` and ``x y z`` in mm.
    contrasts
        The tests.
    parameters
        The study file as nested plain data, defaults filled in.
    software
        Name -> version.
    n_inputs
        Input files whose SHA-256 the store holds.
    group
        Column of ``participants`` that splits the tables, or None.
    alpha
        Threshold for the p that decides.
    notes
        Anything else that a reader must know, one sentence each.
    exclusions
        Everything that was left out.
    flow
        How much was left after each step that leaves out.
    motion
        Motion between groups and visits, as `kconn.compare_motion` returns it, or None.
    qc_fc
        Node set, with the kind where it is not the full correlation -> what `kconn.estimate_qc_fc` adds, and the same
        with ``_before``.
    blocks
        (node set, kind) -> ``family_mean (observation, family)`` and ``n_edge``, with the visits after the sessions.
    reliability
        Node set, kind and name of the comparison -> ``icc (edge)``, or the attr ``not_estimated``.
    maps
        Tests of maps, opened one by one as the page is written.
    components
        Group ICAs, opened likewise.
    carpets
        Runs with what `kconn.report.carpet.draw_carpet` needs, opened one by one as the page is written.
    """

    study: str
    date: str
    runs: pd.DataFrame
    participants: pd.DataFrame
    cohorts: Mapping[tuple[str, str], xr.Dataset]
    nodes: Mapping[str, pd.DataFrame]
    contrasts: Sequence[TestedContrast]
    parameters: Mapping[str, Any]
    software: Mapping[str, str]
    n_inputs: int
    group: str | None = None
    alpha: float = 0.05
    notes: Sequence[str] = ()
    exclusions: Sequence[Exclusion] = ()
    flow: Sequence[FlowStage] = ()
    motion: xr.Dataset | None = None
    qc_fc: Mapping[str, xr.Dataset] = field(default_factory=dict)
    blocks: Mapping[tuple[str, str], xr.Dataset] = field(default_factory=dict)
    reliability: Mapping[tuple[str, str, str], xr.Dataset] = field(default_factory=dict)
    maps: Iterable[TestedMap] = ()
    components: Iterable[GroupComponents] = ()
    carpets: Iterable[tuple[str, xr.Dataset]] = ()

    def compared_motion(self) -> xr.Dataset | None:
        """Return the comparison of motion if there was something to compare, and the motion of some run is known."""
        return self.motion if self.motion is not None and (self.motion["n_first"] > 0).any() else None

    def estimated_qc_fc(self) -> dict[str, xr.Dataset]:
        """Return QC-FC of those for which it could be estimated."""
        return {title: found for title, found in self.qc_fc.items() if "not_estimated" not in found.attrs}

    def visits(self) -> list[str]:
        """Return the sessions, those of a change in its own order first: "pre" comes before "post"."""
        sides = [side for contrast in self.contrasts for side in contrast.hypothesis.sides or ()]
        ordered = [session for side in sides for session in side]
        known = set(self.runs["session"].astype(str))
        return [session for session in dict.fromkeys([*ordered, *sorted(known)]) if session in known]

    def sorted_runs(self) -> pd.DataFrame:
        """Return the run table by subject, visit and run."""
        place = {session: i for i, session in enumerate(self.visits())}
        keys = self.runs.assign(session=self.runs["session"].astype(str).map(place))
        return self.runs.loc[keys.sort_values(["subject", "session", "run"], kind="stable").index]

    def sorted_contrasts(self) -> list[TestedContrast]:
        """Return the tests, those of one name side by side."""
        names = list(dict.fromkeys(contrast.name for contrast in self.contrasts))
        return sorted(self.contrasts, key=lambda contrast: names.index(contrast.name))

    def title(self, contrast: TestedContrast) -> str:
        """Return the name of a test, with node set and kind where there are several."""
        parts = [contrast.name]
        if len({other.node_set for other in self.contrasts}) > 1:
            parts.append(contrast.node_set)
        if len({other.kind for other in self.contrasts}) > 1:
            parts.append(kind_words(contrast.kind))
        if contrast.noun == "block":
            parts.append("blocks")
        return " · ".join(parts)


def kind_words(kind: str) -> str:
    """Return a kind of netmat in words."""
    return KINDS[kind].words if kind in KINDS else kind


def describe_contrast(  # noqa: PLR0913 - one argument per part of a test
    name: str,
    *,
    node_set: str,
    kind: str,
    result: xr.Dataset,
    cohort: xr.Dataset,
    participants: pd.DataFrame,
    hypothesis: Hypothesis,
    planted: pd.DataFrame | None = None,
    noun: str = "connection",
) -> TestedContrast:
    """Put a result together with the values behind it, joined by subject.

    Parameters
    ----------
    name, node_set, kind
        What was tested on what.
    result
        One contrast of `kconn.permutation_test`, with the subjects as coordinate ``observation``.
    cohort
        ``netmat (observation, edge)`` with ``subject`` and ``session`` along ``observation``.
    participants
        Indexed by subject.
    hypothesis
        As in the study file.
    planted
        Known answer of simulated data.
    noun
        What a feature is.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if a variable is missing, or a subject of the result has no row in the cohort.
    """
    schema.validate(result, "effect", "stat", "p_unc", "p_fwe", "p_fdr", "max_stat")
    schema.validate(cohort, "netmat")
    ids = [str(label) for label in result["observation"].to_numpy()]
    visits = None
    if hypothesis.per_session:
        values, people = _sessions(cohort, ids), _people_of_sessions(cohort, participants, ids)
    else:
        people = participants.loc[ids]
        if hypothesis.sides is not None and hypothesis.span is not None:
            before, after = (_rows(cohort, ids, side) for side in hypothesis.sides)
            visits = xr.concat([before, after], dim="visit").assign_coords(visit=list(hypothesis.span))
            values = after - before
        else:
            values = _rows(cohort, ids, hypothesis.sessions)
    return _put_together(
        TestedContrast(
            name=name,
            node_set=node_set,
            kind=kind,
            hypothesis=hypothesis,
            result=result,
            observed=values,
            unit=describe_unit(cohort["netmat"].attrs),
            visits=visits,
            planted=planted,
            noun=noun,
        ),
        people,
    )


def describe_map_test(  # noqa: PLR0913 - one argument per part of a test
    name: str,
    *,
    node_set: str,
    kind: MapKind,
    result: xr.Dataset,
    cohort: xr.Dataset,
    participants: pd.DataFrame,
    hypothesis: Hypothesis,
    unit: str,
) -> TestedContrast:
    """Return the test of a contrast over the map of one node; the maps themselves stay where they are.

    Parameters
    ----------
    name, node_set, kind
        What was tested on what.
    result
        One contrast of `kconn.permutation_test`, per voxel.
    cohort
        With ``subject`` and ``session`` along ``observation``.
    participants
        Indexed by subject.
    hypothesis
        As in the study file.
    unit
        Of the maps, in words.
    """
    ids = [str(label) for label in result["observation"].to_numpy()]
    people = _people_of_sessions(cohort, participants, ids) if hypothesis.per_session else participants.loc[ids]
    observed = xr.DataArray(np.empty((len(ids), 0)), dims=("observation", "voxel"), coords={"observation": ids})
    test = TestedContrast(
        name=name, node_set=node_set, kind=kind, hypothesis=hypothesis, result=result, observed=observed, unit=unit
    )
    return _put_together(test, people)


def _put_together(test: TestedContrast, people: pd.DataFrame) -> TestedContrast:
    """Add what the people behind its rows tell of a test."""
    groups, levels, covariate = _describe_effect(people, test.hypothesis)
    left_out = dict(str(line).split(": ", 1) for line in test.result.attrs.get("left_out", []) if ": " in str(line))
    return replace(test, groups=groups, levels=levels, covariate=covariate, left_out=left_out)


def name_feature(node_i: str, node_j: str) -> str:
    """Return the name of a connection, or of a block or node, which has no other end."""
    return f"{node_i} \N{EN DASH} {node_j}" if node_j else node_i


def edge_table(contrast: TestedContrast) -> pd.DataFrame:
    """Return one row per tested edge, the most significant first.

    Columns ``edge`` (position), ``node_i node_j effect stat dof cohen_d partial_r p_unc p_fwe p_fdr
    p_fwe_joint cluster n_used``, NaN where the test has none, and, for simulated data, ``planted``.
    """
    result = contrast.result
    table = pd.DataFrame(
        {
            "edge": np.arange(result.sizes["edge"]),
            "node_i": result["node_i"].to_numpy().astype(str),
            "node_j": result["node_j"].to_numpy().astype(str),
        }
    )
    for name in _EDGE_COLUMNS:
        values = result[name].to_numpy() if name in result else np.full(len(table), np.nan)
        table[name] = np.broadcast_to(values, len(table)).astype(np.float64)
    table["planted"] = _planted_sign(contrast) != 0
    table = table[np.isfinite(table[contrast.deciding_p])]
    # Adjusted p of the false discovery rate are often equal.
    first = ["p_fdr", "p_unc"] if contrast.stops_early else ["p_fwe"]
    table = table.assign(size=-np.abs(table["stat"])).sort_values([*first, "size", "edge"], kind="stable")
    return pd.DataFrame(table.drop(columns="size").reset_index(drop=True))


_EDGE_COLUMNS: Final = (
    *("effect", "stat", "dof", "cohen_d", "partial_r"),
    *("p_unc", "p_fwe", "p_fdr", "p_fwe_joint", "cluster", "n_used"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How well the planted edges of simulated data were found: counts of edges."""

    n_planted: int
    n_found: int
    n_wrong_sign: int
    n_false: int
    n_tested: int

    @property
    def sensitivity(self) -> float:
        """Share of the planted edges that were found with the right sign; NaN if none was planted."""
        return self.n_found / self.n_planted if self.n_planted else float("nan")


def recover_truth(contrast: TestedContrast, *, alpha: float) -> Recovery:
    """Compare the significant edges with the planted ones.

    Parameters
    ----------
    contrast
        With ``planted``; without, nothing counts as planted.
    alpha
        Threshold for the p that decides.
    """
    sign = _planted_sign(contrast)
    significant = contrast.significant(alpha)
    same = np.sign(contrast.result["stat"].to_numpy()) == sign
    return Recovery(
        n_planted=int((sign != 0).sum()),
        n_found=int((significant & (sign != 0) & same).sum()),
        n_wrong_sign=int((significant & (sign != 0) & ~same).sum()),
        n_false=int((significant & (sign == 0)).sum()),
        n_tested=contrast.n_tested,
    )


def _planted_sign(contrast: TestedContrast) -> npt.NDArray[np.int64]:
    """Return +1 or -1 for planted edges, 0 for others: ``(edge,)``."""
    known = {}
    if contrast.planted is not None:
        columns = (contrast.planted[name] for name in ("node_i", "node_j", "sign"))
        known = {frozenset((str(i), str(j))): int(sign) for i, j, sign in zip(*columns, strict=True)}
    pairs = zip(contrast.result["node_i"].to_numpy(), contrast.result["node_j"].to_numpy(), strict=True)
    return np.array([known.get(frozenset((str(i), str(j))), 0) for i, j in pairs], dtype=np.int64)


def _describe_effect(
    people: pd.DataFrame, hypothesis: Hypothesis
) -> tuple[tuple[str, ...], tuple[str, ...], npt.NDArray[np.float64] | None]:
    """Return the level of each row, the levels, and the tested covariate, as far as the test has them."""
    none = ("",) * len(people)
    if hypothesis.test == "repeated":
        return tuple(people["session"].astype(str)), hypothesis.sessions or (), None
    if len(hypothesis.effects) != 1 or hypothesis.effects[0] not in people or hypothesis.test == "interaction":
        return none, (), None
    column = people[hypothesis.effects[0]]
    is_number = pd.api.types.is_numeric_dtype(column)
    if hypothesis.test == "covariate" or (hypothesis.test == "f-test" and is_number):
        return none, (), column.to_numpy(dtype=np.float64)
    pair = None if isinstance(hypothesis.levels, Mapping) else hypothesis.levels
    levels = tuple(name_level(hypothesis.effects[0], level) for level in pair or ())
    groups = tuple(name_level(hypothesis.effects[0], value) for value in column)
    return groups, levels or tuple(sorted(set(groups))), None


def name_level(column: str, level: object) -> str:
    """Return a level in words: text as it is; a number, which says nothing alone, with the name of its column."""
    # A column with a gap holds 1.0 where the study file says 1.
    return f"{column} {level:g}" if pd.api.types.is_number(level) else str(level)


def _people_of_sessions(cohort: xr.Dataset, participants: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the participants table behind rows that are sessions."""
    places = _places(cohort)
    pairs = [places[row] for row in ids]
    rows = participants.loc[[subject for subject, _, _ in pairs]].set_axis(list(ids))
    return rows.assign(session=[session for _, session, _ in pairs])


def _sessions(cohort: xr.Dataset, ids: Sequence[str]) -> xr.DataArray:
    """Return ``(observation, edge)`` of rows that are sessions."""
    places = _places(cohort)
    for row in ids:
        if row not in places:
            raise SchemaError(
                "E-SCHEMA",
                f"observation {row!r} is in the result but has no row in the cohort",
                rule="result and cohort belong together",
            )
    netmat = cohort["netmat"].transpose("observation", "edge").to_numpy()
    return _label_rows(netmat[[places[row][2] for row in ids]], ids, cohort)


def _places(cohort: xr.Dataset) -> dict[str, tuple[str, str, int]]:
    """Return id -> subject, session and position."""
    labels = zip(cohort["subject"].to_numpy().astype(str), cohort["session"].to_numpy().astype(str), strict=True)
    return {name_row(subject, session): (subject, session, i) for i, (subject, session) in enumerate(labels)}


def _rows(cohort: xr.Dataset, subjects: Sequence[str], sessions: Sequence[str] | None) -> xr.DataArray:
    """Return ``(observation, edge)``: the mean over the given sessions, or over all, of each subject."""
    netmat = cohort["netmat"].transpose("observation", "edge").to_numpy()
    of_subject = cohort["subject"].to_numpy().astype(str)
    of_session = cohort["session"].to_numpy().astype(str)
    wanted = np.ones(len(of_session), dtype=bool) if sessions is None else np.isin(of_session, list(sessions))
    rows = []
    for subject in subjects:
        here = wanted & (of_subject == subject)
        if not here.any():
            raise SchemaError(
                "E-SCHEMA",
                f"subject {subject!r} is in the result but has no row in the cohort",
                rule="result and cohort belong together",
            )
        rows.append(netmat[here].mean(axis=0))
    return _label_rows(np.array(rows), subjects, cohort)


def _label_rows(values: npt.NDArray[np.floating], ids: Sequence[str], cohort: xr.Dataset) -> xr.DataArray:
    coords = {name: ("edge", cohort[name].to_numpy()) for name in ("node_i", "node_j")}
    return xr.DataArray(values, dims=("observation", "edge"), coords={"observation": list(ids), **coords})
