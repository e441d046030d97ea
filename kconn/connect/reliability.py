"""Test-retest reliability of edges: ``netmat (observation, edge)`` -> ``icc (edge)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.errors import InputError, SchemaError
from kconn.kernels import reliability as kernel

IccKind = Literal["ICC(1,1)", "ICC(2,1)", "ICC(3,1)"]
#: Kind -> position in what the kernel returns.
KINDS: Final[dict[str, int]] = {"ICC(1,1)": 0, "ICC(2,1)": 1, "ICC(3,1)": 2}


def estimate_icc(ds: xr.Dataset, sessions: Sequence[str], *, kind: IccKind) -> xr.Dataset:
    """Return the intraclass correlation of every edge between sessions (or runs) of the same subjects.

    Only subjects with all of ``sessions`` count. An edge that is NaN in one of their observations is NaN.

    Parameters
    ----------
    ds
        A cohort cube with ``netmat (observation, edge)``, as z. To compare runs, assemble it with runs in place of
        sessions. Lazy input gives a lazy result.
    sessions
        The sessions to compare, two or more.
    kind
        ``ICC(1,1)`` one-way; ``ICC(2,1)`` two-way, absolute agreement: a change of the group's mean counts against
        it; ``ICC(3,1)`` two-way, consistency: such a change does not count. Each of a single session.

    Returns
    -------
    xr.Dataset
        ``icc (edge)`` with the coordinates of the edges; attrs ``kind``, ``sessions`` and ``n_subject``.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the kind is unknown or fewer than two sessions are named.
    InputError
        ``E-TOO-FEW`` if fewer than three subjects have all sessions.

    References
    ----------
    Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420.
    """
    schema.validate(ds, "netmat")
    if kind not in KINDS or len(set(sessions)) < 2:
        raise SchemaError(
            "E-ARGUMENT",
            f"kind is {kind!r}, sessions are {list(sessions)}",
            rule=f"kind is one of {', '.join(KINDS)}, and two sessions or more differ",
        )
    rows = _rows_of_complete_subjects(ds, sessions)
    netmat = ds["netmat"].isel(observation=rows.ravel())
    icc = xr.apply_ufunc(
        _estimate,
        netmat.chunk({"observation": -1, "edge": -1}) if netmat.chunks is not None else netmat,
        kwargs={"n_subject": rows.shape[0], "which": KINDS[kind]},
        input_core_dims=[["observation"]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    ends = {name: ds[name].variable for name in ds.coords if ds[name].dims == ("edge",)}
    attrs = {"kind": kind, "sessions": list(sessions), "n_subject": rows.shape[0]}
    return schema.annotate(xr.Dataset({"icc": icc.assign_attrs(attrs)}).assign_coords(ends))


def _rows_of_complete_subjects(ds: xr.Dataset, sessions: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the observations (subject, session) of the subjects that have them all."""
    place = {
        (str(subject), str(session)): i
        for i, (subject, session) in enumerate(zip(ds["subject"].to_numpy(), ds["session"].to_numpy(), strict=True))
    }
    subjects = sorted({subject for subject, _ in place})
    complete = [name for name in subjects if all((name, session) in place for session in sessions)]
    if len(complete) < 3:
        raise InputError(
            "E-TOO-FEW",
            f"{len(complete)} of {len(subjects)} subjects have all of {', '.join(sessions)}",
            rule="an intraclass correlation needs at least 3",
            fix=f"the sessions are {', '.join(sorted({session for _, session in place}))}",
        )
    return np.array([[place[name, session] for session in sessions] for name in complete])


def _estimate(edges: npt.NDArray[Any], *, n_subject: int, which: int) -> npt.NDArray[Any]:
    """Estimate of edges (edge, observation), the sessions of a subject side by side, the ICC (edge)."""
    x = np.ascontiguousarray(np.moveaxis(edges, -1, 0)).reshape(n_subject, -1, *edges.shape[:-1])
    return kernel.intraclass_correlations(x)[which]
