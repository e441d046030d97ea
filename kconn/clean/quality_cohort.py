"""Quality of a cohort: how far motion explains connections, and whether groups or visits move differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.clean.confounds import MOTION
from kconn.errors import InputError, some_of
from kconn.kernels import motion_tests, quality

#: What is compared between groups and visits.
MOTION_MEASURES: Final = ("mean_fd", *(f"step_{name}" for name in MOTION))
#: Observations that an error names.
_NAMED: Final = 5
#: What `compare_motion` says of each comparison, by measure.
COMPARED: Final = ("n_first", "n_second", "mean_first", "mean_second", "stat", "dof", "p_parametric", "p_unc")


def average_subjects(ds: xr.Dataset) -> xr.Dataset:
    """Return a cohort with one observation per subject: the mean of its sessions.

    Visits of one subject are alike, so that as rows of a correlation they would count as more people than there are.

    Parameters
    ----------
    ds
        ``(observation, ...)`` with the coordinate ``subject`` along ``observation``; in memory.

    Returns
    -------
    ds
        Every variable with the dimension ``observation`` averaged (a NaN stays one), ``observation`` and ``subject``
        being the label of the subject, sorted.
    """
    subjects, of_subject, n_session = np.unique(
        ds["subject"].to_numpy().astype(str), return_inverse=True, return_counts=True
    )
    sessions = np.split(np.argsort(of_subject, kind="stable"), np.cumsum(n_session)[:-1])
    rows = {name: values for name, values in ds.data_vars.items() if "observation" in values.dims}
    made = {}
    for name, values in rows.items():
        arrays = values.transpose("observation", ...).to_numpy().astype(np.float64)
        mean = np.stack([arrays[of_one].mean(axis=0) for of_one in sessions])
        dims = [dim for dim in values.dims if dim != "observation"]
        made[name] = xr.DataArray(mean, dims=("observation", *dims), attrs=values.attrs)
    labels = subjects.astype(object)
    out = ds.drop_dims("observation").assign(made)
    return out.assign_coords(observation=("observation", labels), subject=("observation", labels))


def estimate_qc_fc(
    ds: xr.Dataset,
    *,
    nuisance: xr.DataArray | None = None,
    positions: xr.DataArray | None = None,
    n_perm: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Add how far head motion explains connections between observations (QC-FC).

    Parameters
    ----------
    ds
        A cohort: `netmat` ``(observation, edge)`` and `mean_fd` ``(observation)`` in mm. Repeated visits count as if
        they were independent: `average_subjects` makes one of them.
    nuisance
        ``(observation, covariate)``, such as age and sex, taken out of both; joined by the label of the observation.
    positions
        ``(node, axis)`` in mm, joined by the label of the node: asks for the dependence on distance.
    n_perm
        Relabellings of the observations that tell what chance gives; 0 asks for none.
    seed
        Of the relabellings; number i depends on ``(seed, i)`` alone.

    Returns
    -------
    ds
        With `qc_fc` ``(edge)``, the correlation of each edge with mean displacement across observations, `qc_fc_p`
        (two-sided, uncorrected), both NaN for an edge that is NaN in any observation; and the scalars
        `qc_fc_median` (of absolute values), `qc_fc_share` (share of edges with p < 0.05; 0.05 is what chance gives on
        average), `qc_fc_share_fdr` (share with a Benjamini-Hochberg adjusted p < 0.05) and, with ``positions``,
        `edge_length` ``(edge)`` in mm and `qc_fc_distance`: Spearman's correlation of `qc_fc` with the length of the
        edge. With ``n_perm``, `qc_fc_median_chance`, `qc_fc_share_chance` and `qc_fc_distance_chance` ``(limit)``: the
        central 95 % of what each is when displacement is dealt out among the observations at random. After good
        denoising all lie within; a negative `qc_fc_distance` is the mark of motion. In memory.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.
    InputError
        Codes ``E-ID-MISSING``, ``E-COV-NAN`` and ``E-TOO-FEW``.

    References
    ----------
    Ciric R et al. (2017). Benchmarking of participant-level confound regression strategies for the control of motion
    artifact in studies of functional connectivity. https://doi.org/10.1016/j.neuroimage.2017.03.020
    """
    schema.validate(ds, "netmat", "mean_fd")
    score = ds["mean_fd"].to_numpy().astype(np.float64)
    covariates = _join(nuisance, ds, "observation")
    refuse_bad_scores(np.column_stack([score, covariates]), ds["observation"].to_numpy())

    netmat = ds["netmat"].transpose("observation", "edge").to_numpy()
    r, p = quality.correlate_across(netmat, score, covariates)
    made: dict[str, Any] = {"qc_fc": ("edge", r), "qc_fc_p": ("edge", p)}
    length = None
    if positions is not None:
        ends = [_positions_of(positions, ds[name].to_numpy()) for name in ("node_i", "node_j")]
        length = np.linalg.norm(ends[0] - ends[1], axis=1)
        made["edge_length"] = ("edge", length)
    summary = quality.summarise_correlations(r, p, distance=length)
    names = ("qc_fc_median", "qc_fc_share", "qc_fc_distance", "qc_fc_share_fdr")
    made |= {name: ((), value) for name, value in zip(names, summary, strict=True)}
    if n_perm:
        chance = quality.chance_of_correlations(netmat, score, covariates, distance=length, n_perm=n_perm, seed=seed)
        limits = np.quantile(chance, [0.025, 0.975], axis=0)
        made |= {f"{name}_chance": ("limit", limits[:, i]) for i, name in enumerate(names[:3])}
    if length is None:
        made = {name: value for name, value in made.items() if not name.startswith("qc_fc_distance")}
    return schema.annotate(ds.assign(made))


def _join(table: xr.DataArray | None, ds: xr.Dataset, dim: str) -> npt.NDArray[np.float64]:
    """Return the rows of a table in the order of the Dataset, joined by label."""
    if table is None:
        return np.empty((ds.sizes[dim], 0))
    missing = sorted(set(map(str, ds[dim].to_numpy())) - set(map(str, table[dim].to_numpy())))
    if missing:
        raise InputError("E-ID-MISSING", f"no covariates for {missing}", rule=f"every {dim} needs a row")
    return np.asarray(table.sel({dim: ds[dim].to_numpy()}).transpose(dim, ...), dtype=np.float64)


def _positions_of(positions: xr.DataArray, nodes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    missing = sorted(set(map(str, nodes)) - set(map(str, positions["node"].to_numpy())))
    if missing:
        raise InputError("E-ID-MISSING", f"no position for the nodes {missing}", rule="every node needs one")
    return np.asarray(positions.sel(node=nodes).transpose("node", ...), dtype=np.float64)


def refuse_bad_scores(scores: npt.NDArray[np.float64], observations: npt.NDArray[Any]) -> None:
    """Refuse what no correlation with motion can be made of.

    Parameters
    ----------
    scores
        ``(observation, score)``: mean displacement, and covariates.
    observations
        Their labels.

    Raises
    ------
    InputError
        Codes ``E-COV-NAN`` and ``E-TOO-FEW``.
    """
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        names = some_of(list(map(str, observations[bad])), _NAMED)
        raise InputError(
            "E-COV-NAN",
            f"mean displacement or a covariate of {names} is not a number",
            rule="every observation needs all of them",
            fix="leave those observations out",
        )
    if len(scores) < scores.shape[1] + 3:
        raise InputError(
            "E-TOO-FEW",
            f"{len(scores)} observations, {scores.shape[1] - 1} covariates",
            rule="a correlation needs 3 observations more than covariates, at least",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """Two sets of subjects, or of one the two visits, by the positions of their observations."""

    test: str
    factor: str
    first: str
    second: str
    at: str
    rows_first: tuple[int, ...]
    rows_second: tuple[int, ...]


def compare_motion(
    ds: xr.Dataset,
    *,
    factors: Mapping[str, Mapping[str, str]],
    changes: Sequence[tuple[str, str]],
    n_perm: int,
    seed: int,
) -> xr.Dataset:
    """Compare how much the head moved between groups at each visit, and between visits.

    Parameters
    ----------
    ds
        ``(observation)`` with the coordinates ``subject`` and ``session``: the variables `mean_fd` in mm and
        `step_trans_x` to `step_rot_z` as `kconn.clean.quality.estimate_motion` makes them, one observation per session.
    factors
        Column of the participants table -> subject -> its level. Every pair of levels is compared.
    changes
        Pairs of sessions: the second minus the first, within the same subjects, of all of them and of each level.
    n_perm
        Relabellings, the identity included.
    seed
        Of the relabellings.

    Returns
    -------
    ds
        ``(comparison, measure)``: `n_first n_second mean_first mean_second`, `stat` (Welch's t between groups, the
        paired t between visits) of second minus first, `dof`, `p_parametric` from them, and `p_unc` by permutation of
        the groups or sign flips of the changes, all two-sided and uncorrected: where the question is whether motion
        *may* explain a finding, a correction would hide it. NaN where there are fewer than two subjects. With the
        coordinates ``test factor first second at`` (comparison), where ``at`` is the session of a comparison of groups,
        or the level within which visits are compared.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.

    References
    ----------
    Motoyama Y et al. (2019) compare the six parameters so, Sahib AK et al. (2020) mean displacement.
    https://doi.org/10.1038/s41598-019-49360-1
    """
    schema.validate(ds, *MOTION_MEASURES)
    found = list(_find_comparisons(ds, factors, changes))
    tests = {"groups": motion_tests.compare_groups, "visits": motion_tests.compare_visits}
    table = np.full((len(COMPARED), len(found), len(MOTION_MEASURES)), np.nan)
    for i, comparison in enumerate(found):
        for j, measure in enumerate(MOTION_MEASURES):
            values = ds[measure].to_numpy().astype(np.float64)
            compared = tests[comparison.test](
                values[list(comparison.rows_first)],
                values[list(comparison.rows_second)],
                n_perm=n_perm,
                seed=(seed, i, j),
            )
            table[:, i, j] = [getattr(compared, name) for name in COMPARED]
    numbers = dict(zip(COMPARED, table, strict=True))
    for name in ("n_first", "n_second"):
        numbers[name] = numbers[name].astype(np.int64)
    words = {
        name: ("comparison", np.array([getattr(comparison, name) for comparison in found], dtype=object))
        for name in ("test", "factor", "first", "second", "at")
    }
    made = xr.Dataset({name: (("comparison", "measure"), values) for name, values in numbers.items()})
    return schema.annotate(made.assign_coords({"measure": list(MOTION_MEASURES), **words}))


def _find_comparisons(
    ds: xr.Dataset, factors: Mapping[str, Mapping[str, str]], changes: Sequence[tuple[str, str]]
) -> Iterator[_Comparison]:
    subjects, sessions = (ds[name].to_numpy().astype(str).tolist() for name in ("subject", "session"))
    place = {(subject, session): i for i, (subject, session) in enumerate(zip(subjects, sessions, strict=True))}
    for factor, levels in factors.items():
        for session in sorted(set(sessions)):
            for first, second in combinations(sorted(set(levels.values())), 2):
                rows = [
                    tuple(place[s, session] for s in sorted(levels) if levels[s] == level and (s, session) in place)
                    for level in (first, second)
                ]
                yield _Comparison(
                    test="groups",
                    factor=factor,
                    first=first,
                    second=second,
                    at=session,
                    rows_first=rows[0],
                    rows_second=rows[1],
                )
    everyone = {"": dict.fromkeys(subjects, "")}
    for first, second in changes:
        for factor, levels in {**everyone, **factors}.items():
            for level in sorted(set(levels.values())):
                both = [s for s in sorted(levels) if levels[s] == level and {(s, first), (s, second)} <= set(place)]
                yield _Comparison(
                    test="visits",
                    factor=factor,
                    first=first,
                    second=second,
                    at=level,
                    rows_first=tuple(place[s, first] for s in both),
                    rows_second=tuple(place[s, second] for s in both),
                )
