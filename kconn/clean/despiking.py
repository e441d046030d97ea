"""Despiking of a run, voxel by voxel."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn import schema
from kconn.chunks import plan_voxel_blocks
from kconn.kernels import despiking


def despike(ds: xr.Dataset) -> xr.Dataset:
    """Draw values of `bold` that lie far from the running median of their voxel towards it.

    The median is over 25 frames; deviations are measured in robust standard deviations of the voxel; beyond 2.5 they
    are squashed so that none exceeds 4, as in AFNI's ``3dDespike`` (which measures them from an L1 fit instead: see
    `kconn.kernels.despiking.despike`). This is the one step of denoising that is not linear: it comes before the
    others, and the choice of frames to keep should be made on the signal as it was.

    Parameters
    ----------
    ds
        A run: `bold` ``(voxel | column, time)``, lazy or in memory. Rows that are not finite stay as they are.

    Returns
    -------
    ds
        With `bold` as float32 (float64 for float64 input), and `despiked_share`, the share of its values that changed.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.

    References
    ----------
    Cox RW (1996). AFNI: software for analysis and visualization of functional magnetic resonance neuroimages.
    https://doi.org/10.1006/cbmr.1996.0014
    """
    schema.validate(ds, "bold")
    bold = ds["bold"]
    dtype = np.dtype(np.float64 if bold.dtype == np.float64 else np.float32)
    blocks = da.asarray(bold.data).rechunk((plan_voxel_blocks(*bold.shape), -1))
    data: Any = da.map_blocks(_values, blocks, dtype=dtype, meta=np.empty((0, 0), dtype))
    n_changed: Any = da.map_blocks(
        _count, blocks, drop_axis=1, chunks=((1,) * blocks.numblocks[0],), dtype=np.int64
    ).sum()
    if bold.chunks is None:
        data, n_changed = da.compute(data, n_changed, scheduler="synchronous")
    share = xr.DataArray(n_changed / max(1, bold.size))
    return schema.annotate(ds.assign(bold=bold.copy(data=data), despiked_share=share))


def _values(block: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    return despiking.despike(block)[0]


def _count(block: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    return np.array([despiking.despike(block)[1].sum()])
