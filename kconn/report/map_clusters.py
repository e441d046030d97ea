"""The clusters of significant voxels of a map, with the place of their peaks."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.export.contrasts import name_voxels
from kconn.grayordinates import has_grayordinates
from kconn.kernels.clusters import build_graph, find_clusters, number_clusters, volume_pairs
from kconn.report.words import MINUS

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

#: Voxels of one cluster touch by faces, edges or corners, where the test has formed no clusters of its own.
_CONNECTIVITY: Final = 26


def cluster_rows(result: xr.Dataset, significant: BoolArray, p: str) -> pd.DataFrame:
    """Return one row per cluster of significant voxels, the most significant first.

    Clusters are those of the test where it formed some, else voxels of one sign that touch; of vertices without a
    surface, those of one structure and sign.

    Parameters
    ----------
    result
        One contrast over the map of one node.
    significant
        (voxel,).
    p
        Name of the p that decides.

    Returns
    -------
    pd.DataFrame
        ``size``, ``peak`` (position), ``place`` (in mm, or structure and vertex), ``stat`` and ``p``, the least.
    """
    number = _number(result, significant)
    stat, p_of = (result[name].to_numpy() for name in ("stat", p))
    rows = []
    for label in np.unique(number[significant]):
        members = np.flatnonzero(significant & (number == label))
        peak = int(members[np.argmax(np.abs(stat[members]))])
        rows.append((members.size, peak, float(stat[peak]), float(p_of[members].min())))
    table = pd.DataFrame(rows, columns=["size", "peak", "stat", "p"])
    table = table.sort_values(["p", "size"], ascending=[True, False], kind="stable").reset_index(drop=True)
    places = name_voxels(result.isel(voxel=table["peak"].to_numpy(dtype=np.int64)))
    table["place"] = places if has_grayordinates(result) else [_set_numbers(place) for place in places]
    return table


def _set_numbers(place: str) -> str:
    """Return numbers with true minus signs, on one line."""
    return place.replace("-", MINUS).replace(" ", "\N{NO-BREAK SPACE}")


def _number(result: xr.Dataset, significant: BoolArray) -> IntArray:
    """Return the number of the cluster of each significant voxel."""
    if "cluster" in result:
        numbers: IntArray = result["cluster"].to_numpy()
        return numbers
    number = np.zeros(significant.size, dtype=np.int64)
    positive = result["stat"].to_numpy() > 0
    is_voxel = result["vertex"].to_numpy() < 0 if has_grayordinates(result) else np.ones(significant.size, dtype=bool)
    for side in (positive, ~positive):
        voxels = np.flatnonzero(significant & side & is_voxel)
        if voxels.size:
            ijk = np.stack([result[axis].to_numpy()[voxels] for axis in "ijk"], axis=1)
            graph = build_graph(volume_pairs(ijk, _CONNECTIVITY), voxels.size)
            found = number_clusters(find_clusters(np.arange(voxels.size), graph, voxels.size))
            number[voxels] = number.max() + found
        vertices = np.flatnonzero(significant & side & ~is_voxel)
        if vertices.size:
            number[vertices] = number.max() + 1 + result["structure"].to_numpy()[vertices].astype(np.int64)
    return number
