"""NIfTI images in and out: the header checked before any compute, the frames in one sequential pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.chunks import MIB
from kconn.errors import InputError
from kconn.io.nifti_header import (
    GRID_TOLERANCE,
    HEADER_BYTES,
    Affine,
    ImageHeader,
    grid_distance,
    parse_header,
    resolve_t_r,
)
from kconn.io.streams import ByteStream, check_content_size, open_stream

#: A sidecar of fMRIPrep holds some kilobytes.
_MAX_SIDECAR_BYTES: Final = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BoldHeader:
    """What kconn keeps of the header of a BOLD image. No text field, no extension, no path.

    Attributes
    ----------
    grid_shape
        Voxels along i, j, k.
    n_time
        Frames.
    affine
        Voxel indices to mm, four rows of four.
    t_r
        Repetition time in seconds.
    dtype
        NumPy type on disk with its byte order, as ``<i2``.
    scl_slope, scl_inter
        Value = stored * slope + inter; 1 and 0 where the file states no scaling.
    qform_code, sform_code, version, vox_offset, is_gzip
        As stored; version is 1 or 2.
    notes
        What a reader of the report should know, in words.
    """

    grid_shape: tuple[int, int, int]
    n_time: int
    affine: Affine
    t_r: float
    dtype: str
    scl_slope: float
    scl_inter: float
    qform_code: int
    sform_code: int
    version: int
    vox_offset: int
    is_gzip: bool
    notes: tuple[str, ...]

    @property
    def n_voxel(self) -> int:
        """Voxels of the whole grid."""
        i, j, k = self.grid_shape
        return i * j * k

    @property
    def is_scaled(self) -> bool:
        """Whether stored and true values differ."""
        return (self.scl_slope, self.scl_inter) != (1.0, 0.0)


def read_header(
    path: Path, *, where: str = "", t_r: float | None = None, sidecar_t_r: float | None = None
) -> BoldHeader:
    """Read and check the header of a 4-D BOLD image, plain or gzip, without its data.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    where
        Place for errors, as ``sub-01/ses-1/run-1``.
    t_r
        Repetition time in s that the user states; it wins over header and sidecar.
    sidecar_t_r
        Repetition time in s of the JSON sidecar (`read_sidecar_t_r`); header and sidecar must agree.

    Raises
    ------
    InputError
        ``E-FILE-MISSING E-GZIP E-NIFTI E-NIFTI-SIZE E-NIFTI-DIMS E-NIFTI-DTYPE E-NIFTI-SCALE E-AFFINE E-ORIENT
        E-TR-UNITS E-TR-RANGE E-TR-MISMATCH``.
    """
    what = "BOLD image"
    header, is_gzip = _read_image_header(path, where=where, what=what)
    shape = header.shape
    if len(shape) < 4 or any(n > 1 for n in shape[4:]) or shape[3] < 2:
        raise _dims_error(shape, what, "x, y, z and at least two frames", where)
    n_surplus = check_content_size(path, header.n_bytes, n_spare=header.n_frame_bytes - 1, where=where, what=what)
    surplus_notes = (f"{n_surplus} bytes after the last frame were ignored",) if n_surplus else ()
    seconds, t_r_notes = resolve_t_r(header.pixdim_time, header.time_unit, stated=t_r, sidecar=sidecar_t_r, where=where)
    return BoldHeader(
        grid_shape=(shape[0], shape[1], shape[2]),
        n_time=shape[3],
        affine=header.affine,
        t_r=seconds,
        dtype=header.dtype,
        scl_slope=header.scl_slope,
        scl_inter=header.scl_inter,
        qform_code=header.qform_code,
        sform_code=header.sform_code,
        version=header.version,
        vox_offset=header.vox_offset,
        is_gzip=is_gzip,
        notes=header.notes + surplus_notes + t_r_notes,
    )


def read_sidecar_t_r(path: Path, *, where: str = "") -> float | None:
    """Return ``RepetitionTime`` (s) of a BIDS JSON sidecar, or None where it states none. No other key is kept.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``; ``E-SIDECAR`` if the file is no JSON object or the value is no number.
    """
    with open_stream(path, where=where, what="JSON sidecar") as stream:
        raw = stream.read_up_to(_MAX_SIDECAR_BYTES + 1)
    try:
        if len(raw) > _MAX_SIDECAR_BYTES:
            raise ValueError  # noqa: TRY301 - joins the malformed ones
        content = json.loads(raw.decode("utf-8-sig"))
        value = content.get("RepetitionTime")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError  # noqa: TRY301 - joins the malformed ones
        return float(value)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(
            "E-SIDECAR",
            f"the JSON sidecar ({len(raw)} bytes) holds no readable RepetitionTime",
            where=where,
            rule="a JSON object whose RepetitionTime, where present, is a number of seconds",
            fix="correct the sidecar, or state t_r (s) in the study file",
        ) from None


def stream_frames(
    path: Path, header: BoldHeader, *, frames_per_block: int, where: str = ""
) -> Iterator[npt.NDArray[Any]]:
    """Yield the frames in order, in blocks (frame, voxel), reading the file once from start to end.

    Blocks are as stored (no scaling, see `scale_block`), in native byte order and C-contiguous. All voxels of the
    grid are there, in the order of the file: i fastest, then j, then k. Each block is a new array, so memory is that of
    the blocks that the caller holds and one more. The last block is yielded only after the end of the file was checked:
    no frame is left, and in a gzip stream CRC and length agree.

    Parameters
    ----------
    path
        The file that `header` was read from.
    header
        From `read_header`.
    frames_per_block
        Frames per block; the last block may have fewer.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-GZIP`` if the compressed stream is damaged, ``E-NIFTI-SIZE`` if it holds fewer or more bytes than the
        header states.
    """
    shape = (header.n_time, header.n_voxel)
    with open_stream(path, where=where, what="BOLD image") as stream:
        yield from _blocks(stream, header.vox_offset, shape, header.dtype, frames_per_block)


def scale_block(block: npt.NDArray[Any], header: BoldHeader) -> npt.NDArray[np.float32]:
    """Return stored values as float32 signal: stored * slope + inter, computed in float64 where scaling is stated."""
    if not header.is_scaled:
        return block.astype(np.float32, copy=False)
    scaled = block * np.float64(header.scl_slope)
    scaled += header.scl_inter
    return scaled.astype(np.float32)


def read_image(path: Path, *, where: str = "", what: str = "image") -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Read one volume whole, checked like a BOLD image except for its repetition time.

    Returns
    -------
    data
        (i, j, k) with the scaling applied (float64 then, else the stored type in native byte order).
    affine
        (4, 4) voxel indices to mm.

    Raises
    ------
    InputError
        As `read_header`; ``E-NIFTI-DIMS`` if there is more than one volume.
    """
    header, _ = _read_image_header(path, where=where, what=what)
    shape = (*header.shape, 1, 1)[:3]
    if len(header.shape) < 3 or any(n > 1 for n in header.shape[3:]):
        raise _dims_error(header.shape, what, "exactly one volume of three dimensions", where)
    check_content_size(path, header.n_bytes, n_spare=0, where=where, what=what)
    with open_stream(path, where=where, what=what) as stream:
        n_voxel = shape[0] * shape[1] * shape[2]
        (flat,) = _blocks(stream, header.vox_offset, (1, n_voxel), header.dtype, 1)
    data = flat.reshape(shape, order="F")
    if (header.scl_slope, header.scl_inter) != (1.0, 0.0):
        data = data * np.float64(header.scl_slope) + header.scl_inter
    return data, np.array(header.affine)


def read_mask(
    path: Path, *, grid_shape: tuple[int, int, int], affine: npt.ArrayLike, where: str = ""
) -> npt.NDArray[np.bool_]:
    """Read a brain mask (i, j, k) that lies on the given grid.

    Raises
    ------
    InputError
        ``E-GRID`` if its grid differs, ``E-MASK`` if it holds more than zero and one further value,
        ``E-MASK-EMPTY`` if it selects nothing, and as `read_image`.
    """
    data, mask_affine = read_image(path, where=where, what="mask")
    check_same_grid(data.shape, mask_affine, grid_shape=grid_shape, affine=affine, where=where, what="mask")
    mask: npt.NDArray[np.bool_] = data != 0
    if not mask.any():
        raise InputError(
            "E-MASK-EMPTY",
            f"none of the {data.size} voxels of the mask is non-zero",
            where=where,
            rule="a mask selects at least one voxel",
            fix="check that this is the brain mask of this run",
        )
    inside = data[mask]
    if not (inside == inside[0]).all():
        raise InputError(
            "E-MASK",
            f"the mask holds several non-zero values, from {inside.min():g} to {inside.max():g}",
            where=where,
            rule="a mask holds zero and one further value",
            fix="threshold the image first, or give the right file",
        )
    return mask


def read_labels(path: Path, *, where: str = "") -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Read a label atlas: (i, j, k) whole numbers, 0 is background; and its affine (4, 4).

    Raises
    ------
    InputError
        ``E-ATLAS`` if a value is negative, not whole or not finite, or none is above 0; and as `read_image`.
    """
    data, affine = read_image(path, where=where, what="atlas")
    in_range = (data >= 0) & (data <= np.iinfo(np.int32).max)
    is_label = in_range & (data == np.floor(data)) if data.dtype.kind == "f" else in_range
    if not is_label.all():
        value = data[~is_label][0]
        problem = f"the atlas holds {int((~is_label).sum())} values that are no labels, the first is {value:g}"
    elif not data.any():
        problem = f"the atlas holds no label: all {data.size} voxels are 0"
    else:
        return data.astype(np.int32), affine
    raise InputError(
        "E-ATLAS",
        problem,
        where=where,
        rule="an atlas holds whole numbers, 0 for background and above 0 for a node",
        fix="give the label image, not a probability map; it must have been resampled with nearest neighbour",
    )


def read_maps(path: Path, *, where: str = "") -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Read an image of spatial maps (i, j, k, map) as float32, and its affine (4, 4).

    Raises
    ------
    InputError
        As `read_header`; ``E-NIFTI-DIMS`` if the image is not of three or four dimensions.
    """
    what = "image of maps"
    header, _ = _read_image_header(path, where=where, what=what)
    if len(header.shape) < 3 or any(n > 1 for n in header.shape[4:]):
        raise _dims_error(header.shape, what, "maps along the fourth dimension", where)
    check_content_size(path, header.n_bytes, n_spare=0, where=where, what=what)
    shape = (*header.shape, 1)[:4]
    n_voxel = shape[0] * shape[1] * shape[2]
    maps = np.empty((shape[3], n_voxel), dtype=np.float32)
    with open_stream(path, where=where, what=what) as stream:
        for i, block in enumerate(_blocks(stream, header.vox_offset, (shape[3], n_voxel), header.dtype, 1)):
            maps[i] = block[0] * np.float64(header.scl_slope) + header.scl_inter
    return maps.T.reshape(*shape[:3], shape[3], order="F"), np.array(header.affine)


def check_same_grid(
    shape: tuple[int, ...],
    image_affine: npt.ArrayLike,
    *,
    grid_shape: tuple[int, int, int],
    affine: npt.ArrayLike,
    where: str,
    what: str,
) -> None:
    """Refuse an image whose shape or affine is not that of the given grid.

    Raises
    ------
    InputError
        ``E-GRID``.
    """
    if tuple(shape) != tuple(grid_shape):
        problem = f"the {what} has the grid {tuple(shape)}, the BOLD image {tuple(grid_shape)}"
    else:
        distance = grid_distance(affine, image_affine, tuple(grid_shape))
        if distance <= GRID_TOLERANCE:
            return
        problem = f"the affines of {what} and BOLD image part by {distance:.3g} voxel edges"
    raise InputError(
        "E-GRID",
        problem,
        where=where,
        rule=f"same shape, and affines that agree to {GRID_TOLERANCE} voxel edges at every corner",
        fix="give the file of the same space and resolution, or resample it first",
    )


def _read_image_header(path: Path, *, where: str, what: str) -> tuple[ImageHeader, bool]:
    with open_stream(path, where=where, what=what) as stream:
        return parse_header(stream.read_up_to(HEADER_BYTES), where=where, what=what), stream.is_gzip


def _blocks(
    stream: ByteStream, vox_offset: int, shape: tuple[int, int], dtype: str, frames_per_block: int
) -> Iterator[npt.NDArray[Any]]:
    n_time, n_voxel = shape
    n_short = vox_offset - stream.skip(vox_offset)
    for start in range(0, n_time, frames_per_block):
        block = np.empty((min(frames_per_block, n_time - start), n_voxel), dtype)
        n_short += block.nbytes - stream.fill(block.reshape(-1).view(np.uint8).data)
        is_last = start + len(block) == n_time
        # A surplus of less than a frame is padding; a whole frame more means that the header lost it.
        n_surplus = stream.skip(block[0].nbytes) if is_last else 0
        if n_short or (is_last and n_surplus >= block[0].nbytes):
            raise InputError(
                "E-NIFTI-SIZE",
                f"the {stream.what} ends {n_short} bytes early, in frames {start} to {start + len(block) - 1}"
                if n_short
                else f"the {stream.what} goes on for at least one frame after the last of its {n_time}",
                where=stream.where,
                rule="the data must have the length that the header states",
                fix="copy or export the file again from its source",
            )
        if not block.dtype.isnative:
            block = block.byteswap(inplace=True).view(block.dtype.newbyteorder("="))
        yield block


def _dims_error(shape: tuple[int, ...], what: str, rule: str, where: str) -> InputError:
    return InputError(
        "E-NIFTI-DIMS",
        f"the {what} has the dimensions {shape}",
        where=where,
        rule=f"it must have {rule}",
        fix="give another file; a CIFTI file (six dimensions) is no volume",
    )
