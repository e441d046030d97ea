"""Datasets in and out of the store: one place that writes Zarr, one that opens it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from kconn.chunks import plan_bold, plan_voxel_blocks
from kconn.errors import KconnError, ResourceError, StoreError
from kconn.io import store, variables
from kconn.io.staging import Staging
from kconn.io.storage import Place, find_place
from kconn.io.store import Address, Target


def write_dataset(target: Target, ds: xr.Dataset) -> None:
    """Write a Dataset, lazy or not, as a sealed group and make it current.

    Chunks of Dask variables become chunks of the array, written by one task each.

    Raises
    ------
    ResourceError
        ``E-DISK`` if the disk is full; nothing is published.
    """
    with translated(target.address):
        staging = store.stage(target)
        lay_out(staging, ds)
        store.seal(target, staging)


def write_bold_stream(
    target: Target,
    frame_blocks: Iterable[npt.NDArray[Any]],
    *,
    flat_index: npt.NDArray[np.integer[Any]],
    n_time: int,
    dtype: np.dtype[Any],
    rest: xr.Dataset,
    bold_attrs: Mapping[str, Any],
) -> int:
    """Lay a stream of volumes out voxel-major, one row of chunks at a time, and make the group current.

    A row of chunks that an earlier, killed attempt finished is found in the journal and not written again.

    Parameters
    ----------
    target
        Where, under which content key, made from what.
    frame_blocks
        Arrays ``(frame, flat voxel)`` in file order, together ``n_time`` frames.
    flat_index
        Flat positions of the voxels to keep, shape ``(n_voxel,)``.
    n_time, dtype
        Frames in all and stored type.
    rest
        Everything else in the group: coordinates, confounds, attrs.
    bold_attrs
        Attributes of ``bold``: ``scl_slope`` and ``scl_inter``.

    Returns
    -------
    How many rows of chunks were written in this attempt.

    Raises
    ------
    ResourceError
        ``E-DISK`` if the disk is full; nothing is published, and finished rows are kept for the next attempt.
    """
    n_voxel = flat_index.size
    chunk_voxel, chunk_time = plan_bold(n_voxel, n_time, itemsize=dtype.itemsize)
    with translated(target.address):
        staging = store.stage(target)
        if not staging.is_laid_out():
            lay_out(staging, rest)
            like = _bold_like((n_voxel, n_time), dtype, bold_attrs)
            lay_out_array(staging.array("bold"), like, chunks=(chunk_voxel, chunk_time), fill_value=0)
        array = zarr.open_array(staging.array("bold"), mode="r+", zarr_format=3)
        done = staging.read_journal()
        n_written = 0
        row = np.empty((chunk_time, n_voxel), dtype=dtype)
        for start, volumes in _rows(frame_blocks, flat_index, row, n_time):
            if start not in done:
                # One chunk at a time: of a whole row Zarr would hold copies of all chunks at once.
                for first in range(0, n_voxel, chunk_voxel):
                    block = slice(first, first + chunk_voxel)
                    array[block, start : start + len(volumes)] = np.ascontiguousarray(volumes[:, block].T)
                column, n_block = start // chunk_time, -(-n_voxel // chunk_voxel)
                staging.write_journal(start, [f"bold/c/{i_block}/{column}" for i_block in range(n_block)])
                n_written += 1
        store.seal(target, staging)
    return n_written


def stage_array(
    staging: Staging, name: str, like: xr.Variable, *, rest: xr.Dataset, chunks: tuple[int, int], fill_value: float
) -> tuple[zarr.Array[Any], set[int]]:
    """Lay out a group with one array that is filled chunk by chunk, or find it as a killed attempt left it.

    Returns
    -------
    The array, open for writing, and the numbers of the chunks that are finished.
    """
    if not staging.is_laid_out():
        lay_out(staging, rest)
        lay_out_array(staging.array(name), like, chunks=chunks, fill_value=fill_value)
    return zarr.open_array(staging.array(name), mode="r+", zarr_format=3), staging.read_journal()


def write_bold_rows(
    target: Target,
    read_rows: Callable[[int, int], Iterator[npt.NDArray[Any]]],
    *,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    rest: xr.Dataset,
    bold_attrs: Mapping[str, Any],
) -> int:
    """Lay out a run that its file holds voxel-major already, one block of voxels at a time, and make it current.

    A block that an earlier, killed attempt finished is found in the journal and not read again.

    Parameters
    ----------
    target
        Where, under which content key, made from what.
    read_rows
        Given the first voxel and the voxels per block, yields arrays ``(voxel, time)`` from there to the last voxel.
    shape, dtype
        ``(n_voxel, n_time)`` and stored type.
    rest, bold_attrs
        As `write_bold_stream`.

    Returns
    -------
    How many blocks were written in this attempt.

    Raises
    ------
    ResourceError
        ``E-DISK`` if the disk is full; nothing is published, and finished blocks are kept for the next attempt.
    """
    n_voxel, n_time = shape
    n_block = plan_voxel_blocks(n_voxel, n_time)
    with translated(target.address):
        staging = store.stage(target)
        like = _bold_like(shape, dtype, bold_attrs)
        array, done = stage_array(staging, "bold", like, rest=rest, chunks=(n_block, n_time), fill_value=0)
        first = next((start for start in range(0, n_voxel, n_block) if start not in done), n_voxel)
        start = first
        for block in read_rows(first, n_block) if first < n_voxel else ():
            array[start : start + len(block)] = block
            staging.write_journal(start, [f"bold/c/{start // n_block}/0"])
            start += len(block)
        store.seal(target, staging)
    return -(-(start - first) // n_block)


def open_group(root: Place, address: Address, names: Collection[str] | None = None) -> xr.Dataset:
    """Open a current group lazily, in the canonical voxel blocks, with ``bold`` scaled to float32.

    Parameters
    ----------
    root, address
        Store and place.
    names
        Variables and coordinates that are wanted, all by default; names that the group lacks are passed over.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` or ``E-STORE-CORRUPT``.
    """
    with translated(address):
        ds = variables.read_dataset(store.published_group(root, address), names)
    return _scaled(ds) if "bold" in ds else ds


def open_unchunked(root: Place, address: Address) -> xr.Dataset:
    """Open a current group without reading or chunking its numbers: whoever indexes a variable reads that part of it.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` or ``E-STORE-CORRUPT``.
    """
    ds: xr.Dataset = xr.open_zarr(store.published_group(root, address), consolidated=False, chunks=None)
    text = [str(name) for name, variable in ds.variables.items() if variable.dtype.kind == "T"]
    # Python strings: NumPy cannot compare its variable-length type with its fixed-length one.
    ds = ds.assign_coords({name: ds[name].astype(object) for name in text if name in ds.coords})
    return ds.assign({name: ds[name].astype(object) for name in text if name not in ds.coords})


def open_study(path: str | Path) -> xr.DataTree:
    """Open a study store as one lazy tree.

    The groups of each path are joined: ``sub-01/ses-1/run-1`` holds ``bold``, ``confounds``, ``sample_mask`` and
    ``denoised``; below it one group per node set, and below that one per kind of netmat. ``cohort`` holds the group
    analysis.

    Parameters
    ----------
    path
        Folder of the store, or ``s3://bucket/prefix``, opened with the credentials of the environment.

    Returns
    -------
    xarray.DataTree
        Lazy: voxel-wise variables are Dask arrays in the canonical voxel blocks.

    Raises
    ------
    StoreError
        ``E-STORE-MISSING``, ``E-STORE-SCHEMA``, ``E-STORE-UNSEALED`` or ``E-STORE-CORRUPT``.
    ResourceError
        ``E-BUCKET``, ``E-CREDENTIALS``, ``E-ENDPOINT`` or ``E-TLS`` on object storage.
    """
    root = find_place(path)
    groups: dict[str, xr.Dataset] = {}
    order = {"ingest": 0, "denoise": 1}
    for address in sorted(store.find_published(root), key=lambda a: (a.path, order.get(a.step, 2), a.step)):
        ds = open_group(root, address)
        earlier = groups.get(address.path)
        groups[address.path] = ds if earlier is None else join_steps(earlier, ds)
    return xr.DataTree.from_dict({f"/{name}": ds for name, ds in groups.items()})


def join_steps(earlier: xr.Dataset, later: xr.Dataset) -> xr.Dataset:
    """Return one Dataset with the variables and attrs of two steps at the same path; the later step wins."""
    joined = earlier.assign({str(name): later[name] for name in later.data_vars})
    return joined.assign_attrs(later.attrs)


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Turn what the disk and Zarr raise into errors that a user can act on."""
    try:
        yield
    except KconnError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceError(
                "E-DISK",
                "the disk is full",
                where=str(address),
                rule="a step needs room for its result",
                fix="free space and run again: finished steps are kept",
            ) from error
        raise
    except ValueError as error:
        is_metadata = isinstance(error, json.JSONDecodeError)
        if is_metadata or "checksum" in str(error):  # the CRC-32C codec says so
            raise StoreError(
                "E-STORE-CORRUPT",
                "metadata of an array cannot be read" if is_metadata else "a stored chunk does not match its checksum",
                where=str(address),
                rule="every file matches the size and checksum of its seal",
                fix="run `kconn verify` to find it, then run the study again",
            ) from error
        raise


def lay_out(staging: Staging, ds: xr.Dataset) -> None:
    """Write a Dataset into a group that is made anew."""
    staging.begin()
    variables.write_dataset(staging.group(), ds)


def _bold_like(shape: tuple[int, int], dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> xr.Variable:
    """Return a variable that says what ``bold`` will be; it takes no memory."""
    return xr.Variable(("voxel", "time"), np.broadcast_to(dtype.type(0), shape), dict(attrs))


def lay_out_array(place: Any, like: xr.Variable, *, chunks: tuple[int, ...], fill_value: float) -> None:
    """Make an empty array of a staged group, at `Staging.array`, with the dims, shape, type and attrs of a variable.

    Every chunk is written when it is filled, also one that holds nothing but the fill value.
    """
    zarr.create_array(
        place,
        shape=like.shape,
        chunks=chunks,
        dtype=like.dtype,
        compressors=variables.choose_compressors(like.dtype, 1 << 30),
        fill_value=fill_value,
        dimension_names=[str(dim) for dim in like.dims],
        attributes=dict(like.attrs),
        zarr_format=3,
        config=variables.CONFIG,
    )


def _rows(
    frame_blocks: Iterable[npt.NDArray[Any]],
    flat_index: npt.NDArray[np.integer[Any]],
    row: npt.NDArray[Any],
    n_time: int,
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Gather blocks of volumes into rows of chunks; yields (first frame, view ``(frame, voxel)``)."""
    n_seen, n_in_row, n_row = 0, 0, len(row)
    for block in frame_blocks:
        used = 0
        while used < len(block):
            n_take = min(len(block) - used, n_row - n_in_row)
            np.take(block[used : used + n_take], flat_index, axis=1, out=row[n_in_row : n_in_row + n_take], mode="clip")
            used, n_in_row, n_seen = used + n_take, n_in_row + n_take, n_seen + n_take
            if n_in_row == n_row or n_seen == n_time:
                yield n_seen - n_in_row, row[:n_in_row]
                n_in_row = 0


def _scaled(ds: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with ``bold`` as float32 in the unit of the image: stored value x slope + intercept.

    The scaling leaves the attrs with that: whatever is made from ``bold`` must not be scaled again.
    """
    raw = ds["bold"]
    if "scl_slope" not in raw.attrs:
        return ds
    scaling = {name: raw.attrs[name] for name in ("scl_slope", "scl_inter")}
    bold = xr.apply_ufunc(_scale, raw, kwargs=scaling, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True)
    bold.attrs = {name: value for name, value in raw.attrs.items() if name not in scaling}
    return ds.assign(bold=bold)


def _scale(raw: npt.NDArray[Any], *, scl_slope: float, scl_inter: float) -> npt.NDArray[np.float32]:
    if (scl_slope, scl_inter) == (1.0, 0.0):
        return raw.astype(np.float32)
    scaled = raw * np.float64(scl_slope)
    scaled += scl_inter
    return scaled.astype(np.float32)


def read_attrs(root: Place, address: Address) -> dict[str, Any]:
    """Return the attributes of a current group without opening its arrays."""
    return {str(name): value for name, value in open_group(root, address, ()).attrs.items()}
