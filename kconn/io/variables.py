"""Arrays of a group, read in one go.

xarray and Zarr open and read one array after the other, and hand each over to a thread and back; a group of a study is
some dozens of small ones. Here all that are wanted are opened and read within one such handing over.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from zarr.api import asynchronous
from zarr.core.sync import sync

from kconn.chunks import plan_voxel_blocks

#: Variables with fewer elements than this are read when a group is opened.
_READ_AT_ONCE: Final = 1 << 18
#: What xarray notes of an array that is no attribute of the variable.
_NOTES: Final = frozenset({"_FillValue", "coordinates"})


def read_dataset(place: Any, names: Collection[str] | None = None) -> xr.Dataset:
    """Return a group that xarray wrote, or those of its variables that are named.

    Small variables are read; series of voxels and whatever else is large become Dask arrays, in the canonical voxel
    blocks or as they are stored.

    Parameters
    ----------
    place
        What Zarr reads.
    names
        Variables and coordinates that are wanted; names that the group lacks are passed over.
    """
    attrs, arrays = sync(_read_arrays(place, names))
    variables = {name: _as_variable(array, values) for name, (array, values) in arrays.items()}
    coords = {name for name, variable in variables.items() if variable.dims == (name,)}
    for notes in (attrs, *(array.attrs for array, _ in arrays.values())):
        coords.update(str(notes.get("coordinates", "")).split())
    return xr.Dataset(
        {name: variable for name, variable in variables.items() if name not in coords},
        coords={name: variable for name, variable in variables.items() if name in coords},
        attrs={name: value for name, value in attrs.items() if name not in _NOTES},
    )


async def _read_arrays(
    place: Any, names: Collection[str] | None
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any | None]]]:
    """Return the attributes of a group, and name -> (array, its values where it is small)."""
    group = await asynchronous.open_group(place, mode="r", zarr_format=3)
    arrays: dict[str, Any] = {}
    if names is None:
        arrays = {name: array async for name, array in group.members()}
    else:
        arrays = {name: array for name in names if (array := await group.get(name)) is not None}
    return dict(group.attrs), {
        name: (array, None if _is_large(array) else await array.getitem(...)) for name, array in arrays.items()
    }


def _is_large(array: Any) -> bool:
    return _is_voxelwise(array) or array.size >= _READ_AT_ONCE


def _is_voxelwise(array: Any) -> bool:
    return tuple(array.metadata.dimension_names or ()) == ("voxel", "time")


def _as_variable(array: Any, values: Any | None) -> xr.Variable:
    attrs = {note: value for note, value in array.attrs.items() if note not in _NOTES}
    dims = tuple(array.metadata.dimension_names or ())
    if values is not None:
        values = np.asarray(values)
        # Python strings: NumPy cannot compare its variable-length type with its fixed-length one.
        return xr.Variable(dims, values.astype(object) if values.dtype.kind in "TU" else values, attrs)
    chunks = (plan_voxel_blocks(*array.shape), array.shape[1]) if _is_voxelwise(array) else array.chunks
    return xr.Variable(dims, da.from_array(zarr.Array(array), chunks=chunks), attrs)
