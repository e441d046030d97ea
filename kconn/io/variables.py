"""Datasets as groups of Zarr arrays, written and read in one go.

xarray and Zarr make, fill, open and read one array after the other, and hand each over to a thread and back, several
times; a group of a study is some dozens of small ones. Here all of a group are dealt with within one such handing over,
on object storage many at a time. What is written is what xarray reads as the same Dataset.
"""

from __future__ import annotations

from asyncio import gather
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.api import asynchronous
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync

from kconn.chunks import plan_voxel_blocks

# Every chunk ends in a checksum: with Zarr's default codec a flipped bit comes back as changed data.
_FEW: Final = (Crc32cCodec(),)
_SMALL: Final = (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec())
_FLOAT: Final = (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec())
_INTEGER: Final = (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec())
#: Variables with no more elements than this fill a block of a disk at most, compressed or not.
_FEW_ELEMENTS: Final = 512
#: Variables with fewer elements than this are read when a group is opened.
_READ_AT_ONCE: Final = 1 << 18
#: Every chunk is written, also one that holds nothing but the fill value.
CONFIG: Final[Any] = {"write_empty_chunks": True}
#: What xarray notes in attributes that is none of the Dataset.
_NOTES: Final = frozenset({"_FillValue", "coordinates"})


def write_dataset(place: Any, ds: xr.Dataset) -> None:
    """Write a Dataset, lazy or not, as a new group.

    Chunks of Dask variables become chunks of the array, written by one task each.

    Parameters
    ----------
    place
        What Zarr writes to; there is nothing yet.
    ds
        With dimensions, attributes and coordinates of any kind but times.
    """
    # Read before anything is written: Zarr cannot be waited for within Zarr.
    held = {str(name): one.values for name, one in ds.variables.items() if one.chunks is None}
    arrays = sync(_write_arrays(place, ds, held))
    lazy = [name for name in arrays if name not in held]
    if lazy:
        # As one graph: what several variables are made of is computed once.
        targets: list[Any] = [zarr.Array(arrays[name]) for name in lazy]
        da.store([ds.variables[name].data for name in lazy], targets, lock=False)


async def _write_arrays(place: Any, ds: xr.Dataset, held: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Make a group with all arrays of a Dataset, and fill those whose values are at hand."""
    attrs = _plain(ds.attrs)
    if labels := sorted(map(str, set(ds.coords) - set(ds.dims))):
        attrs["coordinates"] = " ".join(labels)
    group = await asynchronous.create_group(store=place, attributes=attrs, zarr_format=3)

    async def write(name: str, variable: xr.Variable) -> Any:
        dtype = np.dtypes.StringDType() if variable.dtype.kind in "OU" else variable.dtype
        chunks = [sizes[0] for sizes in variable.chunks] if variable.chunks is not None else variable.shape
        array = await group.create_array(
            name,
            shape=variable.shape,
            chunks=tuple(max(1, size) for size in chunks),
            dtype=dtype,
            compressors=choose_compressors(dtype, variable.size),
            fill_value=np.nan if dtype.kind == "f" else None,
            attributes=_plain(variable.attrs),
            dimension_names=[str(dim) for dim in variable.dims],
            config=CONFIG,
        )
        if name in held and variable.size:
            await array.setitem((...,), np.asarray(held[name], dtype=dtype))
        return array

    names = list(map(str, ds.variables))
    return dict(zip(names, await _all(write(name, ds.variables[name]) for name in names), strict=True))


async def _all(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return what calls return, or raise the first error, once all have ended: none goes on writing behind it."""
    ended = await gather(*calls, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return ended


def choose_compressors(dtype: np.dtype[Any], size: int) -> tuple[Any, ...]:
    """Return the codecs of an array of so many elements; the last is a checksum."""
    if size <= _FEW_ELEMENTS:
        return _FEW
    if size < 1 << 16 or dtype.kind not in "iuf":
        return _SMALL
    return _FLOAT if dtype.kind == "f" else _INTEGER


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes as JSON knows them."""
    return {
        str(name): value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in attrs.items()
    }


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
        found = await _all(group.get(name) for name in names)
        arrays = {name: array for name, array in zip(names, found, strict=True) if array is not None}
    small = {name: array for name, array in arrays.items() if not _is_large(array)}
    values = dict(zip(small, await _all(array.getitem(...) for array in small.values()), strict=True))
    return dict(group.attrs), {name: (array, values.get(name)) for name, array in arrays.items()}


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
