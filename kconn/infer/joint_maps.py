"""Tests of the maps of several nodes, corrected for each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.errors import SchemaError
from kconn.kernels.multiple_testing import count_at_least


def correct_over_nodes(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return p-values of the same contrast of several nodes, corrected over all voxels of all of their maps.

    Every map was tested with one table of relabellings, so that the largest statistic over all maps of a relabelling
    is the largest of their ``max_stat``.

    Parameters
    ----------
    results
        One contrast of `kconn.permutation_test` per node, on the same observations.

    Returns
    -------
    xr.Dataset
        ``p_fwe_nodes (node, voxel)`` and ``max_stat (permutation)``.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the tests differ in relabellings or in statistic.
    """
    first = results[0]
    for name in ("table_sha256", "stat_kind"):
        if {str(ds[name].item()) for ds in results} != {str(first[name].item())}:
            raise SchemaError(
                "E-ARGUMENT",
                f"the tests differ in {name}",
                rule="nodes are corrected together where one table of relabellings and one statistic served all",
            )
    highest = np.max([ds["max_stat"].to_numpy() for ds in results], axis=0)
    rtol = float(first.attrs["tie_rtol"])
    p = [_count(_compared(ds), highest, rtol) for ds in results]
    out = xr.Dataset(
        {"p_fwe_nodes": (("node", "voxel"), np.stack(p)), "max_stat": ("permutation", highest)},
        coords={name: coord.variable for name, coord in first.coords.items() if coord.dims == ("voxel",)},
    )
    return schema.annotate(out)


def _compared(ds: xr.Dataset) -> npt.NDArray[np.float64]:
    """Return what ``max_stat`` is the maximum of: the enhanced map, or the statistic towards the alternative."""
    if "enhanced" in ds:
        return np.asarray(ds["enhanced"].to_numpy(), dtype=np.float64)
    kind = str(ds["stat_kind"].item())
    on_z = kind in {"v", "G"} or ds.attrs["convention"] == "palm" or ds.attrs["missing"] == "refit"
    values = np.asarray(ds["zstat" if on_z else "stat"].to_numpy(), dtype=np.float64)
    values = np.where(ds["excluded"].to_numpy() == 0, values, np.nan)
    if kind not in {"t", "v"}:
        return values
    return {"two-sided": np.abs(values), "greater": values, "less": -values}[ds.attrs["alternative"]]


def _count(observed: npt.NDArray[np.float64], highest: npt.NDArray[np.float64], rtol: float) -> npt.NDArray[np.float64]:
    limits = observed - rtol * np.maximum(np.abs(observed), 1)
    used = highest[np.isfinite(highest)]
    p: npt.NDArray[np.float64] = count_at_least(used, limits) / used.size
    return np.where(np.isfinite(observed), p, np.nan)
