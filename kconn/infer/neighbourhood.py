"""Statistics of neighbouring features: what touches what, and from which threshold on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.errors import SchemaError
from kconn.infer.arguments import Convention, Statistic, refuse_missing, refuse_unused
from kconn.kernels import spatial
from kconn.kernels.clusters import CONNECTIVITY, Graph, Neighbours, Network, Tfce, build_graph, volume_pairs
from kconn.kernels.spatial import Enhancement


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What decides how a threshold is read."""

    convention: Convention
    two_sided: bool
    grouped: bool


def read_enhancement(
    statistic: Statistic,
    neighbours: int | npt.NDArray[np.integer] | Neighbours | None,
    threshold: float | None,
    tfce: Tfce | None,
    data: xr.DataArray,
    meaning: Meaning,
) -> Enhancement:
    """Return what is made of each map."""
    if meaning.grouped and spatial.RULES[meaning.convention].scale == "stat":
        raise SchemaError(
            "E-ARGUMENT",
            f"convention={meaning.convention!r} with variance_groups",
            rule="v and G are compared on z",
            fix="take the convention 'kconn' or 'palm'",
        )
    if statistic == "nbs":
        refuse_unused(statistic, neighbours=neighbours)
    else:
        refuse_missing(statistic, neighbours=neighbours)
    if statistic == "tfce":
        refuse_unused(statistic, threshold=threshold)
    else:
        refuse_unused(statistic, tfce=tfce)
        refuse_missing(statistic, threshold=threshold)
    kinds: dict[str, Literal["extent", "mass", "tfce"]] = {"cluster-mass": "mass", "tfce": "tfce"}
    return Enhancement(
        kind=kinds.get(statistic, "extent"),
        neighbours=_read_network(data) if statistic == "nbs" else _read_graph(neighbours, data),
        threshold=None if threshold is None else _read_threshold(threshold, meaning),
        tfce=tfce or Tfce(),
        rules=spatial.RULES[meaning.convention],
    )


def _read_threshold(threshold: float, meaning: Meaning) -> float | spatial.TailP:
    is_p = meaning.convention == "nilearn"
    if not 0 < threshold < (0.5 if is_p else np.inf):
        raise SchemaError(
            "E-ARGUMENT",
            f"threshold={threshold!r} under the convention {meaning.convention!r}",
            rule="a p between 0 and 0.5" if is_p else "above 0",
        )
    if not is_p:
        return float(threshold)
    return spatial.TailP(p=threshold / 2 if meaning.two_sided else threshold)


def _read_graph(neighbours: int | npt.NDArray[np.integer] | Neighbours | None, data: xr.DataArray) -> Graph:
    n_feature = int(np.prod(data.shape[1:]))
    if isinstance(neighbours, Neighbours):
        return build_graph(neighbours.pairs, n_feature, neighbours.sizes)
    if not isinstance(neighbours, int | np.integer):
        return build_graph(np.asarray(neighbours), n_feature)
    if neighbours not in CONNECTIVITY:
        raise SchemaError("E-ARGUMENT", f"neighbours={neighbours}", rule=f"one of {list(CONNECTIVITY)}, or pairs")
    ijk = _read_coordinates(data, ("i", "j", "k"), "voxels")
    if "vertex" in data.coords and (data["vertex"] >= 0).any():
        raise SchemaError(
            "E-ARGUMENT",
            f"neighbours={neighbours} for data with vertices of a surface",
            rule="vertices are neighbours along the edges of their surface",
            fix="pass neighbours=kconn.grayordinate_neighbours(data, triangles)",
        )
    return build_graph(volume_pairs(np.column_stack(ijk).astype(np.int64), int(neighbours)), n_feature)


def _read_network(data: xr.DataArray) -> Network:
    pairs = _read_coordinates(data, ("node_i", "node_j"), "edges")
    names, position = np.unique(np.concatenate(pairs).astype(str), return_inverse=True)
    node_i, node_j = position.reshape(2, -1)
    return Network(node_i=node_i, node_j=node_j, n_node=names.size)


def _read_coordinates(data: xr.DataArray, names: Sequence[str], what: str) -> list[npt.NDArray[Any]]:
    missing = [name for name in names if name not in data.coords]
    if data.ndim != 2 or missing:
        raise SchemaError(
            "E-SCHEMA",
            f"data has dims {tuple(data.dims)} and lacks the coordinates {missing}",
            rule=f"one dim of {what}, with coordinates {list(names)} along it",
        )
    return [data[name].to_numpy() for name in names]
