"""NIfTI images out: maps and series of selected voxels, put back on their grid in files of reproducible bytes."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from kconn.errors import ResourceError, SchemaError
from kconn.io.nifti_header import GRID_TOLERANCE, grid_distance

#: The largest dimension that NIfTI-1 can state.
_MAX_NIFTI1_DIM: Final = 32_767
#: What zlib calls its default: the best trade of size for time.
_GZIP_LEVEL: Final = 6


def voxel_indices(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return (voxel, 3) indices i, j, k of a mask (i, j, k), in the order of the file: i fastest, then j, then k."""
    k, j, i = np.nonzero(mask.transpose(2, 1, 0))
    return np.stack([i, j, k], axis=1).astype(np.int32)


def write_image(  # noqa: PLR0913 - each is one fact of the file
    path: Path,
    values: npt.ArrayLike,
    *,
    ijk: npt.ArrayLike,
    grid_shape: tuple[int, int, int],
    affine: npt.ArrayLike,
    dtype: npt.DTypeLike = np.float32,
    t_r: float | None = None,
    form_code: int = 1,
) -> None:
    """Write values of voxels as a NIfTI image that other tools read: zero elsewhere, qform and sform both set.

    The file appears whole or not at all. Equal input gives equal bytes: the gzip header holds neither name nor time.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    values
        (voxel,) for a map, (voxel, time) for a series.
    ijk
        (voxel, 3) grid indices of the values.
    grid_shape
        Voxels along i, j, k. Beyond 32,767 along one of them, or in time, the file is NIfTI-2.
    affine
        (4, 4) voxel indices to mm.
    dtype
        Type on disk.
    t_r
        Repetition time in s; needed for a series, not allowed for a map.
    form_code
        NIfTI code of the space: 1 scanner, 2 aligned, 3 Talairach, 4 MNI 152, 5 another template.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if shapes do not fit, an index lies outside the grid or is there twice, or a value does not
        fit ``dtype``.
    ResourceError
        ``E-DISK`` if the disk is full.
    """
    voxels = np.asarray(values)
    if voxels.ndim not in (1, 2) or (t_r is None) != (voxels.ndim == 1):
        raise _argument(
            f"values have shape {voxels.shape} and t_r is {t_r}", "(voxel,) without t_r, or (voxel, time) with t_r"
        )
    frames = voxels[:, None] if voxels.ndim == 1 else voxels
    shape = (*map(int, grid_shape), *voxels.shape[1:])
    header = _header(shape, np.asarray(affine, float), np.dtype(dtype), t_r, form_code)
    _write(path, [frames], ijk=np.asarray(ijk), shape=shape, dtype=np.dtype(dtype), header=header)


def write_maps(
    path: Path,
    maps: npt.NDArray[Any],
    *,
    ijk: npt.ArrayLike,
    grid_shape: tuple[int, int, int],
    affine: npt.ArrayLike,
    form_code: int = 1,
    outside: float = 0.0,
) -> None:
    """Write one map, or several behind each other in a fourth dimension that is not time, as a float32 NIfTI image.

    Parameters
    ----------
    path, ijk, grid_shape, affine, form_code
        See `write_image`.
    maps
        (voxel,) for an image of three dimensions, (map, voxel) for one of four.
    outside
        What voxels without a value hold: NaN for maps of p, where 0 would look significant.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` as `write_image`.
    ResourceError
        ``E-DISK`` if the disk is full.
    """
    shape = (*map(int, grid_shape), *maps.shape[:-1])
    dtype = np.dtype(np.float32)
    header = _header(shape, np.asarray(affine, float), dtype, None, form_code)
    blocks = [row[:, None] for row in np.atleast_2d(maps)]
    _write(path, blocks, ijk=np.asarray(ijk), shape=shape, dtype=dtype, header=header, outside=outside)


def write_series(  # noqa: PLR0913 - each is one fact of the file
    path: Path,
    blocks: Iterable[npt.NDArray[Any]],
    *,
    n_time: int,
    ijk: npt.ArrayLike,
    grid_shape: tuple[int, int, int],
    affine: npt.ArrayLike,
    t_r: float,
    form_code: int = 1,
) -> None:
    """Write a series that comes in blocks of frames, so that it need not fit in memory, as a float32 NIfTI image.

    Parameters
    ----------
    path, ijk, grid_shape, affine, t_r, form_code
        See `write_image`.
    blocks
        (voxel, time) each, together ``n_time`` frames in their order.
    n_time
        Frames in all.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` as `write_image`, or if the blocks hold another number of frames; no file appears.
    ResourceError
        ``E-DISK`` if the disk is full.
    """
    shape = (*map(int, grid_shape), n_time)
    dtype = np.dtype(np.float32)
    header = _header(shape, np.asarray(affine, float), dtype, t_r, form_code)
    _write(path, blocks, ijk=np.asarray(ijk), shape=shape, dtype=dtype, header=header)


def _write(
    path: Path,
    blocks: Iterable[npt.NDArray[Any]],
    *,
    ijk: npt.NDArray[Any],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    header: bytes,
    outside: float = 0.0,
) -> None:
    """Write blocks (voxel, time) of an image of three or four dimensions."""
    flat, n_written, n_frame = np.empty(0, np.int64), 0, math.prod(shape[3:])
    with whole_file(path) as file:
        file.write(header)
        volume = np.full(math.prod(shape[:3]), outside, dtype)
        for block in blocks:
            if not n_written:
                flat = _flat_indices(ijk, shape[:3], n_voxel=len(block))
            stored = _cast(block, dtype)
            for i_time in range(stored.shape[1]):
                volume[flat] = stored[:, i_time]
                file.write(volume.data)
            n_written += stored.shape[1]
        if n_written != n_frame:
            raise _argument(f"there are {n_written} frames, announced were {n_frame}", "blocks hold every frame once")


def _flat_indices(ijk: npt.NDArray[Any], shape: tuple[int, ...], *, n_voxel: int) -> npt.NDArray[np.int64]:
    if ijk.shape != (n_voxel, 3) or ((ijk < 0) | (ijk >= shape)).any():
        raise _argument(
            f"ijk has shape {ijk.shape} for {n_voxel} values on the grid {shape}",
            "ijk is (voxel, 3) and lies inside the grid",
        )
    i, j, k = ijk.astype(np.int64).T
    flat: npt.NDArray[np.int64] = i + shape[0] * (j + shape[1] * k)
    if len(np.unique(flat)) < len(flat):
        raise _argument(f"ijk names {len(flat) - len(np.unique(flat))} voxels twice", "each voxel has one value")
    return flat


def _cast(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        stored = values.astype(dtype)
        is_kept = (stored == values) | (dtype.kind == "f")
    if not np.all(is_kept):
        raise _argument(
            f"{int((~is_kept).sum())} values do not fit {dtype}", "an integer type holds whole numbers only"
        )
    return stored


def _header(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64], dtype: np.dtype[Any], t_r: float | None, form_code: int
) -> bytes:
    is_large = max(shape) > _MAX_NIFTI1_DIM
    header_class: Any = nib.Nifti2Header if is_large else nib.Nifti1Header
    header = header_class(endianness="<")
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header.set_sform(affine, form_code)
    header.set_qform(affine, form_code, strip_shears=True)
    if grid_distance(affine, header.get_qform(), shape) > GRID_TOLERANCE:
        header.set_qform(None, 0)  # a sheared affine has no qform; a wrong one would mislead
    header.set_xyzt_units("mm", "sec" if t_r else "unknown")
    if t_r:
        header["pixdim"][4] = t_r
    header["magic"] = b"n+2" if is_large else b"n+1"
    header["vox_offset"] = header.single_vox_offset
    return bytes(header.binaryblock) + b"\0" * 4  # no extension follows


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes its name only after it was written to the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with staged.open("wb") as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0) as packed:
                    yield packed  # type: ignore[misc] # a GzipFile writes like any binary file
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        staged.replace(path)
    except OSError as exc:
        raise ResourceError(
            "E-DISK",
            f"an image cannot be written: {exc.strerror}",
            rule="the folder must be writable and have room",
            fix="free space, or choose another folder",
        ) from None
    finally:
        staged.unlink(missing_ok=True)


def _argument(problem: str, rule: str) -> SchemaError:
    return SchemaError("E-ARGUMENT", problem, rule=rule, fix="check the arguments of write_image")
