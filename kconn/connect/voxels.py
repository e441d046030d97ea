"""Where the voxels of runs are: what joins those of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.errors import InputError
from kconn.grayordinates import has_grayordinates

#: What runs must share before their voxels are joined.
GRID_ATTRS: Final = ("grid_shape", "affine")
#: Attrs of a run that say where its voxels or grayordinates lie.
PLACE_ATTRS: Final = (
    *GRID_ATTRS,
    "space",
    "brain_models",
    "structures",
    "n_vertices",
    "volume_affine",
    "volume_shape",
)


def voxel_key(ds: xr.Dataset) -> npt.NDArray[np.int64]:
    """Return one ascending number per voxel (voxel,) that says where it is: the same place, the same number.

    Grayordinates are numbered as they lie in the file: `check_same_grid` refuses runs that have others.
    """
    if has_grayordinates(ds) or "i" not in ds.coords:
        return np.arange(ds.sizes["voxel"], dtype=np.int64)
    n_i, n_j, _ = ds.attrs["grid_shape"]
    i, j, k = (ds[axis].to_numpy().astype(np.int64) for axis in "ijk")
    key: npt.NDArray[np.int64] = i + n_i * (j + n_j * k)
    return key


def check_same_grid(parts: Sequence[xr.Dataset]) -> None:
    """Refuse runs whose voxels cannot be joined.

    Raises
    ------
    InputError
        ``E-GRID``; ``E-BRAIN-MODELS`` if they have other grayordinates.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.attrs.get("brain_models") != first.attrs.get("brain_models"):
            raise InputError(
                "E-BRAIN-MODELS",
                "the runs have other grayordinates than each other",
                where=str(part.attrs.get("where", "")),
                rule="runs that are analysed together have the same grayordinates in the same order",
                fix="make all runs with the same version and settings of their pipeline",
            )
        same = all(
            np.array_equal(np.asarray(part.attrs.get(name, ())), np.asarray(first.attrs.get(name, ())))
            for name in GRID_ATTRS
        )
        if not same or ("i" not in first.coords and part.sizes["voxel"] != first.sizes["voxel"]):
            raise InputError(
                "E-GRID",
                f"runs lie on grids of {first.attrs.get('grid_shape')} and {part.attrs.get('grid_shape')} voxels",
                where=str(part.attrs.get("where", "")),
                rule="runs that are analysed together share shape and affine",
                fix="resample all runs to one space and resolution",
            )
