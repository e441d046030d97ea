"""The header of a NIfTI file as facts that were checked: grid, type, scaling, orientation and repetition time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from kconn.errors import InputError

Affine = tuple[tuple[float, float, float, float], ...]

#: The longest header, that of NIfTI-2.
HEADER_BYTES: Final = 540
#: Intent codes of CIFTI-2, from ConnUnknown on.
CIFTI_INTENTS: Final = range(3000, 3100)
#: Two affines agree when no grid corner moves by more than this share of the smallest voxel edge.
GRID_TOLERANCE: Final = 0.1
T_R_RANGE: Final = (0.2, 10.0)
T_R_TOLERANCE: Final = 1e-3

_HEADER_CLASSES: Final = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_VERSIONS: Final = {348: 1, 540: 2}
_MAGIC: Final = {348: b"n+1\0", 540: b"n+2\0"}
#: NIfTI datatype code -> NumPy type; complex, RGB, bit and 128-bit types are left out on purpose.
_DTYPES: Final = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
#: NIfTI time unit code -> how many make a second.
_PER_SECOND: Final = {8: 1.0, 16: 1e3, 24: 1e6}
_SPACE_UNITS_MM: Final = (0, 2)
_MIN_DETERMINANT: Final = 1e-4
# Quaternions are float32 on disk: a little beyond unit length is rounding, more is damage.
_QUATERNION_EXCESS: Final = 1e-4
_QUATERNION_TINY: Final = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """The facts of any NIfTI image that kconn keeps; no text field of the file is among them.

    Attributes
    ----------
    shape
        All dimensions as stored.
    affine
        Voxel indices to mm, from the sform, else the qform.
    dtype
        NumPy type on disk with its byte order, as ``<i2``.
    scl_slope, scl_inter
        Value = stored * slope + inter; 1 and 0 where the file states no scaling.
    pixdim_time, time_unit
        Stored spacing of the fourth dimension and its NIfTI unit code (0 where missing).
    notes
        What a reader of the report should know, in words.
    """

    shape: tuple[int, ...]
    affine: Affine
    dtype: str
    scl_slope: float
    scl_inter: float
    qform_code: int
    sform_code: int
    version: int
    vox_offset: int
    pixdim_time: float
    time_unit: int
    notes: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Length that the file must have, decompressed."""
        return self.vox_offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def n_frame_bytes(self) -> int:
        """Length of one volume."""
        return math.prod(self.shape[:3]) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixHeader:
    """The facts of a NIfTI-2 header that describes a matrix (CIFTI-2), not an image.

    Attributes
    ----------
    shape
        Dimensions of the matrix as the file orders them: the first one varies fastest.
    dtype
        NumPy type on disk with its byte order, as ``<f4``.
    scl_slope, scl_inter
        Value = stored * slope + inter; 1 and 0 where the file states no scaling.
    vox_offset
        Byte at which the values start.
    byte_order
        ``<`` or ``>``, of all numbers in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    scl_slope: float
    scl_inter: float
    vox_offset: int
    byte_order: str

    @property
    def n_bytes(self) -> int:
        """Length that the file must have, decompressed."""
        return self.vox_offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize


def parse_matrix_header(raw: bytes, *, where: str, what: str) -> MatrixHeader:
    """Return the checked facts of the first `HEADER_BYTES` bytes of a CIFTI-2 file.

    Raises
    ------
    InputError
        ``E-CIFTI`` if the header is that of a plain image, ``E-NIFTI E-NIFTI-DIMS E-NIFTI-DTYPE E-NIFTI-SCALE``.
    """
    fields, size = _fields(raw, where=where, what=what)
    intent, shape = int(fields["intent_code"]), _shape(fields, where=where, what=what)
    if size != HEADER_BYTES or intent not in CIFTI_INTENTS:
        raise InputError(
            "E-CIFTI",
            f"the {what} is NIfTI-{_VERSIONS[size]} with the intent code {intent}: no CIFTI-2 file",
            where=where,
            rule=f"a CIFTI-2 file is NIfTI-2 with an intent code of {CIFTI_INTENTS.start} to {CIFTI_INTENTS.stop - 1}",
            fix="give the CIFTI file; a volume goes with layout 'fmriprep' or 'images', and CIFTI-1 is converted with "
            "wb_command -file-convert -cifti-version-convert",
        )
    if len(shape) < 6 or shape[:4] != (1, 1, 1, 1):
        raise InputError(
            "E-NIFTI-DIMS",
            f"the header of the {what} states the dimensions {shape}",
            where=where,
            rule="a CIFTI matrix has the dimensions 1, 1, 1, 1, rows, columns",
            fix="export the file again from its source",
        )
    slope, inter, _ = _scaling(fields, where=where, what=what)
    return MatrixHeader(
        shape=shape[4:],
        dtype=_dtype(fields, where=where, what=what),
        scl_slope=slope,
        scl_inter=inter,
        vox_offset=_vox_offset(fields, size, where=where, what=what),
        byte_order=fields.endianness,
    )


def parse_header(raw: bytes, *, where: str, what: str) -> ImageHeader:
    """Return the checked facts of the first bytes of a single-file NIfTI-1 or NIfTI-2 image.

    Parameters
    ----------
    raw
        The first `HEADER_BYTES` bytes, or all if the file is shorter.
    where
        Place for errors.
    what
        Kind of file for errors, as ``BOLD image``.

    Raises
    ------
    InputError
        ``E-NIFTI E-NIFTI-DIMS E-NIFTI-DTYPE E-NIFTI-SCALE E-AFFINE E-ORIENT``.

    References
    ----------
    https://nifti.nimh.nih.gov/nifti-1 and https://nifti.nimh.nih.gov/nifti-2
    """
    fields, size = _fields(raw, where=where, what=what)
    shape = _shape(fields, where=where, what=what)
    if size == HEADER_BYTES and int(fields["intent_code"]) in CIFTI_INTENTS:
        raise InputError(
            "E-NIFTI-DIMS",
            f"the {what} is a CIFTI matrix of {' x '.join(map(str, shape[4:]))}",
            where=where,
            rule="an image has voxels; a CIFTI matrix has grayordinates or parcels",
            fix="use layout 'hcp' or 'cifti' for CIFTI runs, and a dlabel as the atlas of their node sets",
        )
    dtype = _dtype(fields, where=where, what=what)
    vox_offset = _vox_offset(fields, size, where=where, what=what)
    slope, inter, scale_notes = _scaling(fields, where=where, what=what)
    with np.errstate(all="ignore"):  # damaged headers overflow; the outcome is checked
        affine, affine_notes = _affine(fields, shape, where=where, what=what)
    return ImageHeader(
        shape=shape,
        affine=affine,
        dtype=dtype,
        scl_slope=slope,
        scl_inter=inter,
        qform_code=int(fields["qform_code"]),
        sform_code=int(fields["sform_code"]),
        version=_VERSIONS[size],
        vox_offset=vox_offset,
        pixdim_time=_shortest(fields["pixdim"][4]),
        time_unit=int(fields["xyzt_units"]) & 0x38,
        notes=scale_notes + affine_notes,
    )


def resolve_t_r(
    pixdim_time: float, time_unit: int, *, stated: float | None, sidecar: float | None, where: str
) -> tuple[float, tuple[str, ...]]:
    """Return the repetition time in seconds, and notes, from what header, sidecar and user state.

    A stated value wins. Else header and sidecar must agree to `T_R_TOLERANCE`; a header that states none (value 0
    or no unit) leaves the word to the sidecar.

    Raises
    ------
    InputError
        ``E-TR-UNITS E-TR-RANGE E-TR-MISMATCH``.
    """
    if stated is not None:
        return check_t_r(stated, "stated", where=where), ()
    if time_unit != 0 and time_unit not in _PER_SECOND:
        raise InputError(
            "E-TR-UNITS",
            f"the header gives the fourth dimension in unit code {time_unit} (Hz, ppm or unknown)",
            where=where,
            rule="frames must be spaced in s, ms or us",
            fix="state t_r (s) in the study file",
        )
    if sidecar is None:
        if time_unit == 0:
            raise InputError(
                "E-TR-UNITS",
                f"the header states the repetition time {pixdim_time:g} without a unit",
                where=where,
                rule="the time unit must be s, ms or us when no JSON sidecar states RepetitionTime",
                fix="state t_r (s) in the study file, or add the sidecar",
            )
        return check_t_r(pixdim_time / _PER_SECOND[time_unit], "in the header", where=where), ()
    if time_unit == 0 or pixdim_time == 0:
        note = f"the header states no repetition time; {sidecar:g} s was taken from the JSON sidecar"
        return check_t_r(sidecar, "in the JSON sidecar", where=where), (note,)
    header = pixdim_time / _PER_SECOND[time_unit]
    if not abs(header - sidecar) <= T_R_TOLERANCE:
        raise InputError(
            "E-TR-MISMATCH",
            f"the header states {header:g} s, the JSON sidecar {sidecar:g} s",
            where=where,
            rule=f"both must agree to {T_R_TOLERANCE:g} s",
            fix="find out which is right and state it as t_r (s) in the study file",
        )
    return check_t_r(sidecar, "in the JSON sidecar", where=where), ()


def grid_distance(affine: npt.ArrayLike, other: npt.ArrayLike, shape: tuple[int, ...]) -> float:
    """Return how far two affines part at the worst corner of a grid, in units of the smallest voxel edge."""
    a, b = np.asarray(affine, float), np.asarray(other, float)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))), float)
    offset = corners @ (a[:3, :3] - b[:3, :3]).T + (a[:3, 3] - b[:3, 3])
    return float(np.linalg.norm(offset, axis=1).max() / np.linalg.norm(a[:3, :3], axis=0).min())


def _fields(raw: bytes, *, where: str, what: str) -> tuple[Any, int]:
    for order, size in itertools.product(("<", ">"), _HEADER_CLASSES):
        if len(raw) >= size and int(np.frombuffer(raw, order + "i4", 1)[0]) == size:
            header_class: Any = _HEADER_CLASSES[size]
            fields = header_class(raw[:size], endianness=order, check=False)
            magic = raw[344:348] if size == 348 else raw[4:8]
            if magic == _MAGIC[size]:
                return fields, size
            raise InputError(
                "E-NIFTI",
                f"the {what} has the magic bytes {magic!r}",
                where=where,
                rule="a single-file NIfTI image starts with a header of magic n+1 or n+2",
                fix="convert Analyze or .hdr/.img pairs to .nii.gz first",
            )
    raise InputError(
        "E-NIFTI",
        f"the {what} does not start with a NIfTI header: {len(raw)} bytes, the first {raw[:4].hex(' ') or 'absent'}",
        where=where,
        rule="the first four bytes hold the header size, 348 (NIfTI-1) or 540 (NIfTI-2)",
        fix="check that this is the image and that it was copied whole",
    )


def _shape(fields: Any, *, where: str, what: str) -> tuple[int, ...]:
    dim = [int(n) for n in fields["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise InputError(
            "E-NIFTI-DIMS",
            f"the header of the {what} states the dimensions {dim}",
            where=where,
            rule="one to seven dimensions, each of at least 1",
            fix="export the image again from its source",
        )
    return tuple(dim[1 : dim[0] + 1])


def _dtype(fields: Any, *, where: str, what: str) -> str:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    dtype = np.dtype(_DTYPES.get(code, "V0"))
    if dtype.itemsize == 0 or bits != 8 * dtype.itemsize:
        raise InputError(
            "E-NIFTI-DTYPE",
            f"the {what} stores NIfTI data type {code} with {bits} bits per value",
            where=where,
            rule=f"data type and bits must be those of a real number: one of {', '.join(map(_dtype_name, _DTYPES))}",
            fix="take the magnitude image, or convert it to int16 or float32",
        )
    return dtype.newbyteorder(fields.endianness).str


def _dtype_name(code: int) -> str:
    return f"{code} ({np.dtype(_DTYPES[code]).name})"


def _vox_offset(fields: Any, size: int, *, where: str, what: str) -> int:
    offset = float(fields["vox_offset"])
    if not math.isfinite(offset) or offset < size + 4 or offset != int(offset):
        raise InputError(
            "E-NIFTI",
            f"the header of the {what} places the data at byte {offset:g}",
            where=where,
            rule=f"the data start at a whole byte from {size + 4} on",
            fix="export the image again from its source",
        )
    return int(offset)


def _scaling(fields: Any, *, where: str, what: str) -> tuple[float, float, tuple[str, ...]]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if math.isnan(slope) or slope == 0:
        return 1.0, 0.0, (f"scl_slope of the {what} is {slope:g}: read as no scaling",)
    if math.isinf(slope) or not math.isfinite(inter):
        raise InputError(
            "E-NIFTI-SCALE",
            f"the {what} states scl_slope {slope:g} and scl_inter {inter:g}",
            where=where,
            rule="both must be finite; a slope of 0 or NaN means no scaling",
            fix="export the image again from its source",
        )
    return slope, inter, ()


def _affine(fields: Any, shape: tuple[int, ...], *, where: str, what: str) -> tuple[Affine, tuple[str, ...]]:
    q_code, s_code = int(fields["qform_code"]), int(fields["sform_code"])
    if not (0 <= q_code <= 5 and 0 <= s_code <= 5) or q_code == s_code == 0:
        raise InputError(
            "E-ORIENT",
            f"the {what} has qform code {q_code} and sform code {s_code}",
            where=where,
            rule="at least one of them must be above 0, and none above 5, else left and right are unknown",
            fix="set the orientation from the source data (never by guess), then export again",
        )
    space_unit = int(fields["xyzt_units"]) & 0x07
    if space_unit not in _SPACE_UNITS_MM:
        raise InputError(
            "E-AFFINE",
            f"the {what} gives positions in unit code {space_unit} (m, um or unknown)",
            where=where,
            rule="positions must be in mm",
            fix="convert the affine to mm",
        )
    notes = () if space_unit else (f"the {what} states no unit of length: read as mm",)
    sform = _usable(fields.get_sform(), "sform", where=where, what=what) if s_code else None
    qform = _usable(_qform(fields), "qform", where=where, what=what) if q_code else None
    if sform is not None and qform is not None:
        _check_forms(qform, sform, shape, where=where, what=what)
    best = sform if sform is not None else qform
    return tuple(tuple(float(x) for x in row) for row in np.asarray(best)), notes  # type: ignore[misc] # rows of four


def _qform(fields: Any) -> npt.NDArray[np.float64] | None:
    """Return the qform as the C reference library does (nifti_quatern_to_mat44), or None where it is no rotation."""
    b, c, d = (float(fields[name]) for name in ("quatern_b", "quatern_c", "quatern_d"))
    handedness, *edges = (float(x) for x in fields["pixdim"][:4])
    squared = b * b + c * c + d * d
    if not squared <= 1 + _QUATERNION_EXCESS or not min(edges) > 0 or handedness not in (-1, 0, 1):
        return None
    if 1 - squared < _QUATERNION_TINY:  # half a turn: the real part is rounding
        norm = math.sqrt(squared)
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = math.sqrt(1 - squared)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    qform = np.eye(4)
    qform[:3, :3] = rotation * [edges[0], edges[1], -edges[2] if handedness < 0 else edges[2]]
    qform[:3, 3] = [float(fields[name]) for name in ("qoffset_x", "qoffset_y", "qoffset_z")]
    return qform


def _usable(affine: npt.NDArray[np.float64] | None, form: str, *, where: str, what: str) -> npt.NDArray[np.float64]:
    if affine is not None and np.isfinite(affine).all():
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if (edges > 0).all() and abs(np.linalg.det(affine[:3, :3] / edges)) > _MIN_DETERMINANT:
            return affine
    raise InputError(
        "E-AFFINE",
        f"the {form} of the {what} is {'no rotation' if affine is None else np.round(affine[:3], 4).tolist()}",
        where=where,
        rule="the affine must be finite and invertible",
        fix="export the image again from its source",
    )


def _check_forms(
    qform: npt.NDArray[np.float64], sform: npt.NDArray[np.float64], shape: tuple[int, ...], *, where: str, what: str
) -> None:
    if np.sign(np.linalg.det(qform[:3, :3])) != np.sign(np.linalg.det(sform[:3, :3])):
        problem = f"qform and sform of the {what} have opposite handedness: one of them swaps left and right"
    else:
        distance = grid_distance(qform, sform, shape)
        if distance <= GRID_TOLERANCE:
            return
        problem = f"qform and sform of the {what} part by {distance:.3g} voxel edges"
    raise InputError(
        "E-ORIENT",
        problem,
        where=where,
        rule=f"they must agree to {GRID_TOLERANCE} voxel edges at every corner of the grid, since tools differ in "
        "which one they read",
        fix="find out which is right and write it to both (fslorient -copysform2qform or -copyqform2sform)",
    )


def check_t_r(t_r: float, source: str, *, where: str) -> float:
    """Return a repetition time in s that a scanner can have.

    Parameters
    ----------
    t_r
        Seconds.
    source
        Who says so, for the error.
    where
        Place for the error.

    Raises
    ------
    InputError
        ``E-TR-RANGE``: milliseconds that were given as seconds, most of the time.
    """
    low, high = T_R_RANGE
    if not low <= t_r <= high:
        raise InputError(
            "E-TR-RANGE",
            f"the repetition time {source} is {t_r:g} s",
            where=where,
            rule=f"{low:g} to {high:g} s",
            fix="state t_r (s) in the study file; look for ms given as s",
        )
    return float(t_r)


def _shortest(value: Any) -> float:
    # 0.72 s stored as float32 is 0.7200000286; the shortest decimal that gives these bits is what was meant.
    return float(str(value))
