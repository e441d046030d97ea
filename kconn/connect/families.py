"""Means over named families of edges: networks, pairs of networks, and families from a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.errors import InputError, SchemaError
from kconn.kernels import netmats as kernel

BoolArray = npt.NDArray[np.bool_]

#: ``excluded`` of an edge that is outside of the family that was tested.
OUTSIDE: Final = 3


def average_networks(ds: xr.Dataset, *, networks: Mapping[str, str] | None = None) -> xr.Dataset:
    """Add the mean edge within each network and between each pair of networks.

    Parameters
    ----------
    ds
        With ``netmat (..., edge)``, as z. Lazy input gives a lazy result.
    networks
        Node -> network; the coordinates ``network_i network_j`` of ``edge`` if not given. Nodes that are not in it
        belong to no network.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``network_mean (..., block)`` and ``n_edge (..., block)``, over how many edges it is: those that
        are not NaN. Coordinates ``network_i network_j`` move to ``block``; networks come in the order of their nodes.
        A network of one node has no block within.

    Raises
    ------
    SchemaError
        ``E-SCHEMA`` if the networks of the nodes are unknown.
    InputError
        ``E-NODES`` if ``networks`` names a node that is not there, or no edge lies in a network.
    """
    schema.validate(ds, "netmat")
    of_i, of_j = _networks_of_edges(ds, networks)
    order = list(dict.fromkeys(name for name in [*of_i[:1], *of_j] if name))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i:]]
    members = [((of_i == a) & (of_j == b)) | ((of_i == b) & (of_j == a)) for a, b in pairs]
    kept = [i for i, member in enumerate(members) if member.any()]
    if not kept:
        raise InputError("E-NODES", "no edge lies within or between networks", rule="at least two nodes have a network")
    mean, count = _average(ds["netmat"], np.array([members[i] for i in kept]), "block")
    out = ds.drop_vars(["network_i", "network_j"], errors="ignore").assign(network_mean=mean, n_edge=count)
    return schema.annotate(
        out.assign_coords(
            network_i=("block", np.array([pairs[i][0] for i in kept])),
            network_j=("block", np.array([pairs[i][1] for i in kept])),
        )
    )


def average_families(
    ds: xr.Dataset, rows: Iterable[tuple[str, str, str]], *, networks: Mapping[str, str] | None = None
) -> xr.Dataset:
    """Add the mean over each named family of edges.

    Parameters
    ----------
    ds
        With ``netmat (..., edge)``, as z. Lazy input gives a lazy result.
    rows
        Family, and two names that are nodes, networks or hemispheres: every edge between the one and the other belongs
        to the family. The same network twice means the edges within it; several rows of one family add up.
    networks
        Node -> network; the coordinates ``network_i network_j`` of ``edge`` if not given and present.

    Returns
    -------
    xr.Dataset
        ``ds`` with ``family_mean (..., family)``, the coordinate ``family``, and ``n_edge (..., family)``, over how
        many edges it is: those that are not NaN.

    Raises
    ------
    InputError
        ``E-NODES`` if a name is no node, network or hemisphere, or several of them, or a family has no edge.
    """
    members = select_families(ds, rows, networks=networks)
    mean, count = _average(ds["netmat"], np.array(list(members.values())), "family")
    out = ds.assign(family_mean=mean, n_edge=count).assign_coords(family=np.array(list(members)))
    return schema.annotate(out)


def select_families(
    ds: xr.Dataset, rows: Iterable[tuple[str, str, str]], *, networks: Mapping[str, str] | None = None
) -> dict[str, BoolArray]:
    """Return family -> which edges (edge,) belong to it; parameters as in `average_families`.

    With this a correction can stay within a family: pick its edges, then test.

    Raises
    ------
    InputError
        As in `average_families`.
    """
    schema.validate(ds, "netmat")
    node_i, node_j = (ds[name].to_numpy() for name in ("node_i", "node_j"))
    known = networks is not None or "network_i" in ds.coords
    of_i, of_j = _networks_of_edges(ds, networks) if known else (np.zeros_like(node_i), np.zeros_like(node_j))
    sides = [(node_i, node_j), (of_i, of_j)]
    if "hemisphere_i" in ds.coords:
        sides.append((ds["hemisphere_i"].to_numpy(), ds["hemisphere_j"].to_numpy()))
    known_names = [set(i) | set(j) for i, j in sides]

    def ends(name: str) -> tuple[BoolArray, BoolArray]:
        of_i, of_j = sides[_find_meaning(name, known_names)]
        return np.asarray(of_i == name), np.asarray(of_j == name)

    members: dict[str, BoolArray] = {}
    for family, a, b in rows:
        (a_i, a_j), (b_i, b_j) = ends(a), ends(b)
        members[family] = members.get(family, np.zeros(len(node_i), dtype=bool)) | (a_i & b_j) | (b_i & a_j)
    empty = [family for family, member in members.items() if not member.any()]
    if empty or not members:
        raise InputError(
            "E-NODES",
            f"family {empty[0]!r} has no edge" if empty else "there is no family",
            rule="each family holds at least one edge; a node has none with itself",
            fix="correct the table of families",
        )
    return members


def spread_family(result: xr.Dataset, inside: BoolArray, ds: xr.Dataset) -> xr.Dataset:
    """Return the test of a family of edges with all edges of the cohort: those outside of it are not tested.

    Parameters
    ----------
    result
        Of a test of ``ds`` at the edges ``inside`` alone.
    inside
        (edge,) which edges of ``ds`` were tested.
    ds
        With the coordinates of all edges.

    Returns
    -------
    xr.Dataset
        Floats outside are NaN, ``excluded`` is 3, other integers are 0.
    """
    at = np.flatnonzero(inside)
    spread: dict[str, xr.Variable] = {}
    for name, values in result.data_vars.items():
        variable = values.variable
        if "edge" not in variable.dims:
            spread[str(name)] = variable
            continue
        last = variable.transpose(..., "edge")
        fill = np.nan if last.dtype.kind == "f" else OUTSIDE if name == "excluded" else 0
        whole = np.full((*last.shape[:-1], inside.size), fill, dtype=last.dtype)
        whole[..., at] = last.to_numpy()
        spread[str(name)] = xr.Variable(last.dims, whole, last.attrs)
    rest = {str(name): values.variable for name, values in result.coords.items() if "edge" not in values.dims}
    ends = {str(name): values.variable for name, values in ds.coords.items() if values.dims == ("edge",)}
    return xr.Dataset(spread, coords={**rest, **ends}, attrs=result.attrs)


def _find_meaning(name: str, known: Sequence[set[Any]]) -> int:
    """Return whether a name is a node (0), a network (1) or a hemisphere (2)."""
    found = [i for i, names in enumerate(known) if name in names and name]
    if len(found) != 1:
        meant = " and ".join(_MEANINGS[i] for i in found)
        raise InputError(
            "E-NODES",
            f"{name!r} is {f'both {meant}' if found else 'neither a node nor a network'}",
            rule="a family is defined by names of nodes, networks or hemispheres",
            fix="rename one of them in the label table"
            if found
            else f"the networks are {', '.join(sorted(map(str, known[1] - {''}))[:12]) or 'not given'}",
        )
    return found[0]


_MEANINGS: Final = ("a node", "a network", "a hemisphere")


def _networks_of_edges(ds: xr.Dataset, networks: Mapping[str, str] | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the network of both ends of each edge, "" where there is none."""
    ends = [ds[name].to_numpy() for name in ("node_i", "node_j")]
    if networks is None:
        if "network_i" not in ds.coords or ds["network_i"].dims != ("edge",):
            raise SchemaError(
                "E-SCHEMA",
                "the networks of the nodes are not known",
                rule="edges have coordinates network_i and network_j, or networks are given",
                fix="pass networks, node -> network",
            )
        return ds["network_i"].to_numpy(), ds["network_j"].to_numpy()
    absent = sorted(set(networks) - set(ends[0].tolist()) - set(ends[1].tolist()))
    if absent:
        raise InputError(
            "E-NODES",
            f"networks names {absent[0]!r} and {len(absent) - 1} more that are no node",
            rule="every node in the table exists",
            fix="correct the table of networks",
        )
    of_i, of_j = (np.array([networks.get(str(name), "") for name in end]) for end in ends)
    return of_i, of_j


def _average(netmat: xr.DataArray, members: BoolArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    mean, count = xr.apply_ufunc(
        kernel.average_edges,
        netmat.chunk({"edge": -1}) if netmat.chunks is not None else netmat,
        kwargs={"members": members},
        input_core_dims=[["edge"]],
        output_core_dims=[[dim], [dim]],
        keep_attrs=False,
        dask="parallelized",
        output_dtypes=[np.float64, np.int64],
        dask_gufunc_kwargs={"output_sizes": {dim: len(members)}},
    )
    kept = {name: netmat.attrs[name] for name in ("kind", "rho", "alpha", "z") if name in netmat.attrs}
    return mean.assign_attrs(kept), count
