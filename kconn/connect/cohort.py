"""The cohort cube: network matrices of runs -> sessions -> ``netmat (observation, edge)``, and its group mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.connect.netmats import AR1_KINDS, NODE_LABELS, PARTIAL_KINDS, null_scale
from kconn.errors import InputError, SchemaError
from kconn.kernels import cohort as kernel
from kconn.kernels.blas import count_threads, single_thread
from kconn.kernels.netmats import count_nodes, pack_edges, unpack_edges
from kconn.kernels.tangent import geometric_mean
from kconn.kernels.tangent import project_tangent as project_tangent_space

#: Attrs of ``netmat`` that must agree before matrices are put together.
SAME_ATTRS: Final = ("kind", "rho", "alpha", "window_s", "step_s", "z", "ar1", "seed")
#: What is kept of the two nodes of an edge.
EDGE_COORDS: Final = tuple(f"{name}_{end}" for name in NODE_LABELS for end in "ij")
#: Kinds that are correlation matrices with a unit diagonal.
CORRELATIONS: Final = frozenset({"corr", "ledoit"})


def average_runs(runs: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the mean network matrix of the runs of one session.

    Every run weighs the same. An edge that is NaN in one run (a dead node there) is the mean over the other runs;
    ``n_run (edge)`` says over how many.

    Parameters
    ----------
    runs
        One Dataset with ``netmat (edge)`` per run, of the same nodes (joined by name). Take Fisher's z first: the
        mean of z is less biased than that of r.

    Returns
    -------
    xr.Dataset
        ``netmat (edge)`` and ``n_run (edge)``.

    Raises
    ------
    InputError
        ``E-NODES`` if there is no run, or two runs have different nodes.
    SchemaError
        ``E-SCHEMA`` if they differ in kind, penalty or z.

    References
    ----------
    Silver and Dunlap 1987, Averaging correlation coefficients, doi:10.1037/0021-9010.72.1.146.
    """
    places = [str(run.attrs.get("where", f"run {i + 1}")) for i, run in enumerate(runs)]
    matrices = [_Matrix.of(run, place) for run, place in zip(runs, places, strict=True)]
    stacked = _stack(matrices, "run")
    mean = _mean(stacked, "run")
    out = xr.Dataset({"netmat": mean, "n_run": stacked.notnull().sum("run", keep_attrs=False)})
    return schema.annotate(out.assign_coords(matrices[0].coords))


def scale_to_unrelated(runs: Sequence[xr.Dataset], *, seed: int = 0) -> list[xr.Dataset]:
    """Return the runs of a study with Fisher's z in units of its sd among unrelated series, as FSLNets does.

    All runs share one AR(1) coefficient, the median over all nodes of all runs; each has the scale of its own number
    of frames.

    Parameters
    ----------
    runs
        One Dataset per run: ``netmat (edge)`` of kind ``corr``, ``rcorr``, ``partial`` or ``ridgep`` as Fisher's z,
        ``ar1 (node)`` of `kconn.connect.netmats.estimate_ar1`, and ``n_kept``, the frames that both were made of.
    seed
        Of the simulation for partial correlations.

    Returns
    -------
    list
        With the attrs ``z`` = "ar1", ``ar1`` and, for partial correlations, ``seed`` of ``netmat``, and ``z_scale``.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if a variable is missing; ``E-ARGUMENT`` if ``netmat`` is of another kind, or no Fisher z.
    InputError
        ``E-NETMAT-RANK`` as `kconn.connect.netmats.null_scale`.

    References
    ----------
    FSLNets, nets_netmats; Smith et al. 2011, doi:10.1016/j.neuroimage.2010.08.063.
    """
    for run in runs:
        schema.validate(run, "netmat", "ar1", "n_kept")
        attrs = run["netmat"].attrs
        if attrs.get("kind") not in AR1_KINDS or attrs.get("z") != "fisher":
            raise SchemaError(
                "E-ARGUMENT",
                f"netmat is of kind {attrs.get('kind')!r} with z = {attrs.get('z')!r}",
                where=str(run.attrs.get("where", "")),
                rule=f"Fisher's z of {', '.join(sorted(AR1_KINDS))} is scaled once",
            )
    coefficients = [run["ar1"].to_numpy() for run in runs]
    ar1 = float(np.nanmedian(np.concatenate(coefficients)))
    scales: dict[tuple[int, int], float] = {}
    scaled = []
    for run, own in zip(runs, coefficients, strict=True):
        attrs = run["netmat"].attrs
        size = int(run["n_kept"]), int((~np.isnan(own)).sum())
        if size not in scales:
            with single_thread():
                scales[size] = null_scale(
                    ar1,
                    kind=attrs["kind"],
                    n_frame=size[0],
                    n_node=size[1],
                    seed=seed,
                    where=str(run.attrs.get("where", "")),
                )
        made = {"z": "ar1", "ar1": ar1, **({"seed": seed} if attrs["kind"] in PARTIAL_KINDS else {})}
        netmat = (run["netmat"] * scales[size]).assign_attrs({**attrs, **made})
        scaled.append(schema.annotate(run.assign(netmat=netmat, z_scale=scales[size])))
    return scaled


def assemble(sessions: Iterable[tuple[str, str, xr.Dataset]]) -> xr.Dataset:
    """Return the cohort cube of all sessions.

    Parameters
    ----------
    sessions
        Subject ("sub-01"), session ("ses-1", or "" where a study has none) and a Dataset with ``netmat (edge)``.

    Returns
    -------
    xr.Dataset
        ``netmat (observation, edge)``, sorted by subject and session, with the coordinates ``observation``
        ("sub-01_ses-1"), ``subject``, ``session``, ``node_i``, ``node_j``, and ``n_missing (edge)``: in how many
        observations an edge is NaN. `list_missing` names the nodes behind these.

    Raises
    ------
    InputError
        ``E-ID-DUPLICATE`` if a session comes twice, ``E-NODES`` if there is none or their nodes differ.
    SchemaError
        ``E-SCHEMA`` if they differ in kind, penalty or z.
    """
    rows: list[tuple[str, str, _Matrix]] = []
    for subject, session, ds in sessions:
        place = "_".join(part for part in (str(subject), str(session)) if part)
        matrix = _Matrix.of(ds, place, like=rows[-1][2] if rows else None)
        rows.append((str(subject), str(session), matrix))
    rows.sort(key=lambda row: row[:2])
    matrices = [row[2] for row in rows]
    ids = [matrix.place for matrix in matrices]
    _refuse_twins(ids)
    netmat = _stack(matrices, "observation")
    out = xr.Dataset({"netmat": netmat, "n_missing": netmat.isnull().sum("observation", keep_attrs=False)})
    ids_of = {
        "observation": np.array(ids),
        "subject": np.array([row[0] for row in rows]),
        "session": np.array([row[1] for row in rows]),
    }
    out = out.assign_coords({name: ("observation", values) for name, values in ids_of.items()})
    return schema.annotate(out.assign_coords(matrices[0].coords))


def _refuse_twins(ids: Sequence[str]) -> None:
    """Refuse names that are the same, or differ in case alone."""
    seen: dict[str, str] = {}
    for name in ids:
        if (key := name.casefold()) in seen:
            raise InputError(
                "E-ID-DUPLICATE",
                f"{seen[key]!r} and {name!r} claim one place in the cohort",
                rule="one matrix per subject and session, also when case is ignored",
                fix="average the runs of a session first",
            )
        seen[key] = name


def assemble_amplitude_cohort(runs: Iterable[tuple[str, str, xr.Dataset]]) -> xr.Dataset:
    """Return ``amplitude (observation, node)``: of each session the mean over its runs, sorted by id.

    Parameters
    ----------
    runs
        Subject, session and a Dataset with ``amplitude (node)`` of every run. A node that is NaN in one run has the
        mean of the others.

    Raises
    ------
    InputError
        ``E-NODES`` if there is no run, or their nodes differ.
    """
    sessions: dict[tuple[str, str], list[xr.DataArray]] = {}
    first: xr.DataArray | None = None
    for subject, session, ds in runs:
        schema.validate(ds, "amplitude")
        amplitude = ds["amplitude"]
        first = amplitude if first is None else first
        if not np.array_equal(amplitude["node"], first["node"]):
            raise InputError(
                "E-NODES",
                f"the nodes differ from those of the first run of {len(first['node'])}",
                where=str(ds.attrs.get("where", "")),
                rule="all runs of a cohort have the same nodes in the same order",
                fix="use one node set for all",
            )
        sessions.setdefault((str(subject), str(session)), []).append(amplitude.drop_vars(list(amplitude.coords)))
    if first is None:
        raise InputError("E-NODES", "there is no amplitude to put together", rule="at least one run")
    rows = sorted(sessions)
    mean = xr.concat([_mean(xr.concat(sessions[row], "run"), "run") for row in rows], "observation")
    ids_of = {
        "observation": np.array(["_".join(part for part in row if part) for row in rows]),
        "subject": np.array([row[0] for row in rows]),
        "session": np.array([row[1] for row in rows]),
    }
    nodes = {name: values.variable for name, values in first.coords.items() if values.dims == ("node",)}
    mean = mean.assign_attrs(kind="amplitude", z="none")
    out = xr.Dataset({"amplitude": mean}).assign_coords(nodes)
    return schema.annotate(out.assign_coords({name: ("observation", values) for name, values in ids_of.items()}))


def average_sessions(ds: xr.Dataset, sessions: Mapping[str, Sequence[str]]) -> xr.Dataset:
    """Return the cohort with several sessions of each subject averaged into one.

    Parameters
    ----------
    ds
        A cohort cube; every variable of floating type with the dimension ``observation`` is averaged, NaN passed over.
    sessions
        New session -> those it is the mean of, e.g. ``{"ses-baseline": ["ses-pre1", "ses-pre2"]}``. A subject that
        lacks some of them has the mean of the others. All other sessions stay.

    Returns
    -------
    xr.Dataset
        Sorted by id, with the coordinate ``n_session (observation)``: of how many sessions it is the mean.

    Raises
    ------
    InputError
        ``E-ID-MISSING`` if no subject has a session that is named; ``E-ID-DUPLICATE`` if one is named twice, or a new
        name is that of a session that stays.
    """
    old = [name for names in sessions.values() for name in names]
    present = set(ds["session"].to_numpy().tolist())
    if absent := [name for name in old if name not in present]:
        raise InputError(
            "E-ID-MISSING",
            f"no observation is of session {absent[0]!r}",
            rule="sessions to average exist",
            fix=f"the sessions are {', '.join(sorted(present))}",
        )
    if len(set(old)) < len(old) or (set(sessions) & (present - set(old))):
        raise InputError(
            "E-ID-DUPLICATE",
            f"the sessions {dict(sessions)} overlap with each other or with those that stay",
            rule="each session has one place",
        )
    becomes = {name: new for new, names in sessions.items() for name in names}
    keys = [
        (str(subject), becomes.get(str(session), str(session)))
        for subject, session in zip(ds["subject"].to_numpy(), ds["session"].to_numpy(), strict=True)
    ]
    wanted = sorted(set(keys))
    rows = {key: [i for i, mine in enumerate(keys) if mine == key] for key in wanted}
    data = {
        name: xr.concat(
            [_mean(variable.isel(observation=rows[key]), "observation") for key in wanted], "observation"
        ).assign_attrs(variable.attrs)
        for name, variable in ds.data_vars.items()
        if "observation" in variable.dims and variable.dtype.kind == "f"
    }
    rest = ds.drop_dims("observation").assign_coords(_edge_coords(ds))
    ids = {
        "observation": np.array(["_".join(part for part in key if part) for key in wanted]),
        "subject": np.array([key[0] for key in wanted]),
        "session": np.array([key[1] for key in wanted]),
        "n_session": np.array([len(rows[key]) for key in wanted]),
    }
    out = rest.assign({name: values.drop_vars(list(values.coords)) for name, values in data.items()})
    return out.assign_coords({name: ("observation", values) for name, values in ids.items()})


def group_mean(ds: xr.Dataset) -> xr.Dataset:
    """Return the mean over observations: ``netmat (edge)``; an edge counts where it is not NaN.

    Parameters
    ----------
    ds
        A cohort cube with ``netmat (observation, edge)``.
    """
    schema.validate(ds, "netmat")
    mean = _mean(ds["netmat"], "observation")
    return schema.annotate(xr.Dataset({"netmat": mean}).assign_coords(_edge_coords(ds)))


def project_tangent(ds: xr.Dataset) -> xr.Dataset:
    """Return the cohort seen from its geometric mean: ``netmat`` becomes the deviation of each observation from it.

    Correlation matrices lie on a curved surface, where differences of elements mix; in the tangent space at their
    geometric mean they are independent to first order. A node with a NaN edge in any observation is left out: all of
    its edges become NaN.

    Parameters
    ----------
    ds
        A cohort cube with ``netmat (observation, edge)`` of kind ``ledoit`` or ``corr``, as r (z = "none"). Lazy input
        gives a lazy result.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``netmat`` of kind "tangent" and ``reference (edge)``, the geometric mean. All observations make
        the reference, whatever their group.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if ``netmat`` is of another kind.
    InputError
        ``E-NETMAT-RANK`` if a matrix is not positive definite: ``corr`` with more nodes than frames.

    References
    ----------
    Varoquaux et al. 2010, doi:10.1007/978-3-642-15705-9_25; Dadi et al. 2019, doi:10.1016/j.neuroimage.2019.02.062.
    """
    schema.validate(ds, "netmat")
    attrs = ds["netmat"].attrs
    if attrs.get("kind") not in CORRELATIONS or attrs.get("z", "none") != "none":
        raise SchemaError(
            "E-ARGUMENT",
            f"netmat is of kind {attrs.get('kind')!r} with z = {attrs.get('z', 'none')!r}",
            rule="the tangent space is that of correlation matrices with a unit diagonal",
            fix="estimate kind 'ledoit' and leave z at 'none'",
        )
    netmat = ds["netmat"]
    tangent, reference = xr.apply_ufunc(
        _project,
        netmat.chunk({"observation": -1, "edge": -1}) if netmat.chunks is not None else netmat,
        input_core_dims=[["observation", "edge"]],
        output_core_dims=[["observation", "edge"], ["edge"]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64, np.float64],
    )
    made = {"kind": "tangent", "of": attrs["kind"], "z": "none"}
    return schema.annotate(ds.assign(netmat=tangent.assign_attrs(made), reference=reference))


def list_missing(ds: xr.Dataset) -> dict[str, tuple[str, ...]]:
    """Return node -> observations in which all edges of that node are NaN; computes ``netmat``.

    Parameters
    ----------
    ds
        A cohort cube with ``netmat (observation, edge)``.
    """
    schema.validate(ds, "netmat")
    names = node_names(ds)
    missing = kernel.find_missing_nodes(ds["netmat"].transpose("observation", "edge").to_numpy())
    ids = ds["observation"].to_numpy()
    return {str(names[i]): tuple(map(str, ids[missing[:, i]])) for i in np.flatnonzero(missing.any(axis=0))}


def ward_order(ds: xr.Dataset) -> npt.NDArray[np.intp]:
    """Return the order of nodes in a Ward tree of a full correlation matrix, as FSLNets draws it.

    Parameters
    ----------
    ds
        With ``netmat (edge)``, r or z: a group mean as a rule.

    Returns
    -------
    ndarray
        Positions of the nodes of `node_names`; nodes with a NaN edge come last, in their own order.

    References
    ----------
    Ward 1963, doi:10.1080/01621459.1963.10500845. See `kconn.kernels.cohort.ward_order` for the rule on ties.
    """
    schema.validate(ds, "netmat")
    return kernel.ward_order(ds["netmat"].to_numpy())


def node_names(ds: xr.Dataset) -> npt.NDArray[Any]:
    """Return the names of the nodes, in order, from the coordinates of the edges."""
    n = count_nodes(ds.sizes["edge"])
    return np.append(ds["node_i"].to_numpy()[:1], ds["node_j"].to_numpy()[: n - 1])


def _mean(values: xr.DataArray, dim: str) -> xr.DataArray:
    """Return the mean over ``dim`` of what is not NaN; attrs stay."""
    mean: xr.DataArray = xr.apply_ufunc(
        kernel.mean_present,
        values.chunk({dim: -1}) if values.chunks is not None else values,
        input_core_dims=[[dim]],
        keep_attrs=True,
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return mean


def _project(edges: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    matrices = unpack_edges(edges, diagonal=1)
    good = np.flatnonzero(kernel.find_complete(matrices.sum(axis=0)))
    tangent, reference = np.full_like(matrices, np.nan), np.full_like(matrices[0], np.nan)
    n_thread = count_threads()
    with single_thread():
        inner = matrices[:, good[:, None], good]
        mean = geometric_mean(inner, n_thread=n_thread)
        tangent[:, good[:, None], good] = project_tangent_space(inner, mean=mean, n_thread=n_thread)
        reference[np.ix_(good, good)] = mean
    return pack_edges(tangent), pack_edges(reference)


def _edge_coords(ds: xr.Dataset) -> dict[str, xr.Variable]:
    return {name: ds[name].variable for name in EDGE_COORDS if name in ds.coords}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """What is kept of one network matrix until all are there.

    Attributes
    ----------
    place
        Where it is from, for errors.
    netmat
        ``(edge)``, without coordinates.
    names
        Of the nodes, in order.
    coords
        Of the edges.
    """

    place: str
    netmat: xr.Variable
    names: npt.NDArray[Any]
    coords: Mapping[str, xr.Variable]

    @classmethod
    def of(cls, ds: xr.Dataset, place: str, *, like: _Matrix | None = None) -> _Matrix:
        """Return the matrix of a Dataset; it shares names and coordinates with ``like`` where they are the same."""
        schema.validate(ds, "netmat")
        netmat = ds["netmat"].variable
        if netmat.dims != ("edge",):
            raise SchemaError(
                "E-SCHEMA", f"netmat has dims {tuple(map(str, netmat.dims))}", where=place, rule="('edge',)"
            )
        coords = _edge_coords(ds)
        if like is not None and _are_same(coords, like.coords):
            return cls(place=place, netmat=netmat, names=like.names, coords=like.coords)
        return cls(place=place, netmat=netmat, names=node_names(ds), coords=coords)


def _are_same(coords: Mapping[str, xr.Variable], others: Mapping[str, xr.Variable]) -> bool:
    return coords.keys() == others.keys() and all(
        labels.equals(others[name])  # type: ignore[no-untyped-call]
        for name, labels in coords.items()
    )


def _stack(matrices: Sequence[_Matrix], dim: str) -> xr.DataArray:
    """Stack matrices along ``dim``, nodes joined by name, refusing what does not belong together."""
    if not matrices:
        raise InputError("E-NODES", "there is no network matrix to put together", rule="at least one")
    first = matrices[0]
    rows = []
    for matrix in matrices:
        _check_attrs(first, matrix)
        rows.append(_align(first, matrix))
    stacked: xr.Variable = xr.Variable.concat(rows, dim=dim)  # type: ignore[no-untyped-call]
    return xr.DataArray(stacked).assign_attrs(first.netmat.attrs)


def _check_attrs(first: _Matrix, matrix: _Matrix) -> None:
    mine, theirs = ({name: one.netmat.attrs.get(name) for name in SAME_ATTRS} for one in (matrix, first))
    if mine != theirs:
        raise SchemaError(
            "E-SCHEMA",
            f"netmat is {mine}, that of {first.place} is {theirs}",
            where=matrix.place,
            rule="matrices of one cohort are estimated in one way",
            fix="estimate them again with one kind, penalty and z",
        )


def _align(first: _Matrix, matrix: _Matrix) -> xr.Variable:
    """Return ``netmat`` with its edges in the order of ``first``."""
    if matrix.names is first.names or np.array_equal(matrix.names, first.names):
        return matrix.netmat
    strangers = sorted(map(str, set(matrix.names.tolist()) ^ set(first.names.tolist())))
    if strangers:
        raise InputError(
            "E-NODES",
            f"the nodes differ from those of {first.place}: {', '.join(map(repr, strangers[:5]))} "
            f"{'is' if len(strangers) == 1 else 'are'} in one of the two only",
            where=matrix.place,
            rule="all runs of a cohort have the same nodes",
            fix="use one node set for all",
        )
    return matrix.netmat.isel(edge=kernel.reorder_edges(matrix.names, first.names))
