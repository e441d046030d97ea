"""CIFTI-2 files in: axes checked before any compute, values in one sequential pass by rows of grayordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from xml.parsers.expat import ExpatError

import numpy as np
import numpy.typing as npt
from nibabel.cifti2 import cifti2_axes, parse_cifti2
from nibabel.cifti2.cifti2 import Cifti2HeaderError

from kconn.errors import InputError
from kconn.grayordinates import Grayordinates
from kconn.io.nifti_header import HEADER_BYTES, MatrixHeader, parse_matrix_header, resolve_t_r
from kconn.io.streams import ByteStream, check_content_size, open_stream

#: Names of files that hold series.
SERIES_ENDINGS: Final = (".dtseries.nii", ".ptseries.nii", ".dtseries.nii.gz", ".ptseries.nii.gz")
#: Names of files whose rows are grayordinates with labels.
LABEL_ENDINGS: Final = (".dlabel.nii", ".dlabel.nii.gz")
SCALAR_ENDINGS: Final = (".dscalar.nii", ".dscalar.nii.gz")

#: NIfTI extension code of the CIFTI XML.
_XML_CODE: Final = 32
#: The XML of 91,282 grayordinates takes 0.6 MB, that of 170,494 1.2 MB.
_MAX_XML_BYTES: Final = 1 << 28
#: NIfTI unit code of seconds.
_SECONDS: Final = 8
_MM_EXPONENT: Final = -3
#: What nibabel's parser and axes raise where the text is damaged.
_DAMAGE: Final = (
    ExpatError,
    Cifti2HeaderError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
)

# nibabel types its axes in part.
_axes: Any = cifti2_axes
_parse: Any = parse_cifti2
Axis = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcels:
    """The rows of a parcellated matrix: unique ``names``, and which of them each of the ``members`` belongs to."""

    names: tuple[str, ...]
    members: Grayordinates
    parcel: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesHeader:
    """What kconn keeps of the header of a dtseries or ptseries. No metadata of the file, no path.

    Attributes
    ----------
    matrix
        Type, scaling and place of the values.
    places
        Grayordinates of a dtseries, parcels of a ptseries.
    n_time, t_r
        Frames and their distance in s.
    start
        Time of the first frame in s, as the file states it.
    notes
        What a reader of the report should know, in words.
    """

    matrix: MatrixHeader
    places: Grayordinates | Parcels
    n_time: int
    t_r: float
    start: float
    notes: tuple[str, ...]

    @property
    def n_row(self) -> int:
        """Grayordinates or parcels."""
        return self.matrix.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMap:
    """One map of a dlabel: the ``key`` of each grayordinate, and key -> name and colour (red, green, blue, alpha)."""

    places: Grayordinates
    keys: npt.NDArray[np.int32]
    names: Mapping[int, str]
    colours: Mapping[int, tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarMaps:
    """A dscalar: ``values`` (grayordinate, map) and the name of each map."""

    places: Grayordinates
    values: npt.NDArray[np.float32]
    names: tuple[str, ...]


def is_series(path: Path) -> bool:
    """Return whether the name of a file is that of a dtseries or ptseries."""
    return path.name.endswith(SERIES_ENDINGS)


def is_scalars(path: Path) -> bool:
    """Return whether the name of a file is that of a dscalar."""
    return path.name.endswith(SCALAR_ENDINGS)


def is_labels(path: Path) -> bool:
    """Return whether the name of a file is that of a dlabel."""
    return path.name.endswith(LABEL_ENDINGS)


def read_series_header(
    path: Path, *, where: str = "", t_r: float | None = None, sidecar_t_r: float | None = None
) -> SeriesHeader:
    """Read and check the header of a dtseries or ptseries, plain or gzip, without its values.

    Parameters
    ----------
    path
        ``.dtseries.nii`` or ``.ptseries.nii``, also with ``.gz``.
    where
        Place for errors.
    t_r
        Repetition time in s that the user states; it wins over header and sidecar.
    sidecar_t_r
        Repetition time in s of the JSON sidecar; header and sidecar must agree.

    Raises
    ------
    InputError
        ``E-FILE-MISSING E-GZIP E-NIFTI E-CIFTI E-NIFTI-SIZE E-NIFTI-DIMS E-NIFTI-DTYPE E-NIFTI-SCALE E-TR-UNITS
        E-TR-RANGE E-TR-MISMATCH``.
    """
    what = "CIFTI series"
    matrix, axes = _read_header(path, where=where, what=what)
    series, rows = axes
    if not isinstance(series, _axes.SeriesAxis) or not isinstance(rows, Grayordinates | Parcels):
        raise _wrong_axes(axes, "a series (dimension 0) by grayordinates or parcels (dimension 1)", where, what)
    if matrix.shape[0] < 2:
        raise _cifti(f"the {what} holds {matrix.shape[0]} frame", "a series has at least two frames", where)
    step, start = float(series.step), float(series.start)
    if series.unit != "SECOND":
        if t_r is None:
            raise InputError(
                "E-TR-UNITS",
                f"the {what} is in steps of {step:g} {series.unit.lower()}",
                where=where,
                rule="frames are spaced in seconds",
                fix="state t_r (s) in the study file",
            )
        start = 0.0
    seconds, notes = resolve_t_r(step, _SECONDS, stated=t_r, sidecar=sidecar_t_r, where=where)
    if not math.isfinite(start):
        raise _cifti(f"the {what} starts at {start} s", "a series starts at a finite time", where)
    return SeriesHeader(matrix=matrix, places=rows, n_time=matrix.shape[0], t_r=seconds, start=start, notes=notes)


def stream_rows(
    path: Path, matrix: MatrixHeader, *, rows_per_block: int, where: str = "", first_row: int = 0
) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows (grayordinate or parcel, time) in order, in blocks, reading the file once from start to end.

    CIFTI stores all frames of a grayordinate side by side, so nothing is turned. Blocks are as stored (no scaling, see
    `scale_rows`), in native byte order and C-contiguous; memory is that of the blocks that the caller holds and one
    more. The last block is yielded only after the end of the file was checked.

    Parameters
    ----------
    path
        The file that ``matrix`` was read from.
    matrix
        From `read_series_header`.
    rows_per_block
        Rows per block; the last block may have fewer.
    where
        Place for errors.
    first_row
        Row to start at.

    Raises
    ------
    InputError
        ``E-GZIP`` or ``E-NIFTI-SIZE`` if the file is damaged or cut.
    """
    n_time, n_row = matrix.shape
    dtype = np.dtype(matrix.dtype)
    with open_stream(path, where=where, what="CIFTI file") as stream:
        n_before = matrix.vox_offset + first_row * n_time * dtype.itemsize
        n_short = n_before - stream.skip(n_before)
        for start in range(first_row, n_row, rows_per_block):
            block = np.empty((min(rows_per_block, n_row - start), n_time), dtype)
            n_short += block.nbytes - stream.fill(block.reshape(-1).view(np.uint8).data)
            if n_short:
                raise _size(f"ends {n_short} bytes early, in row {start} or after", where)
            if start + len(block) == n_row and stream.skip(1):
                raise _size(f"goes on after the last of its {n_row} rows", where)
            if not dtype.isnative:
                block = block.byteswap(inplace=True).view(dtype.newbyteorder("="))
            yield block


def scale_rows(block: npt.NDArray[Any], matrix: MatrixHeader) -> npt.NDArray[np.float32]:
    """Return stored values as float32 signal: stored * slope + inter, computed in float64 where scaling is stated."""
    if (matrix.scl_slope, matrix.scl_inter) == (1.0, 0.0):
        return block.astype(np.float32, copy=False)
    scaled = block * np.float64(matrix.scl_slope)
    scaled += matrix.scl_inter
    return scaled.astype(np.float32)


def read_dense_labels(path: Path, *, map_name: str | None = None, where: str = "") -> LabelMap:
    """Read one map of a dlabel with its label table.

    Parameters
    ----------
    path
        ``.dlabel.nii``.
    map_name
        Name of the map; needed if there are several.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-AMBIGUOUS`` if there are several maps and none was chosen, ``E-ATLAS`` if there is no such map or it holds
        values that are no keys of its table, and as `read_series_header`.
    """
    what = "label atlas"
    matrix, axes = _read_header(path, where=where, what=what)
    maps, places = axes
    if not isinstance(maps, _axes.LabelAxis) or not isinstance(places, Grayordinates):
        raise _wrong_axes(axes, "labels (dimension 0) by grayordinates (dimension 1)", where, what)
    i_map = _choose_map([str(name) for name in maps.name], map_name, where)
    rows_per_block = max(1, len(places))
    (values,) = stream_rows(path, matrix, rows_per_block=rows_per_block, where=where)
    column = values[:, i_map] * np.float64(matrix.scl_slope) + matrix.scl_inter
    names, colours = _label_table(maps.label[i_map], where)
    limits = np.iinfo(np.int32)
    is_key = np.isfinite(column) & (column == np.rint(column)) & (column >= limits.min) & (column <= limits.max)
    keys = np.where(is_key, column, 0).astype(np.int32)
    strange = sorted(set(np.unique(keys).tolist()) - set(names) - {0})
    if not is_key.all() or strange:
        found = strange[0] if strange else column[~is_key][0]
        raise InputError(
            "E-ATLAS",
            f"the {what} holds the value {found}, which its table does not name",
            where=where,
            rule="every value is a key of the label table, 0 is no node",
            fix="export the dlabel again from its source",
        )
    return LabelMap(places=places, keys=keys, names=names, colours=colours)


def read_dense_scalars(path: Path, *, where: str = "") -> ScalarMaps:
    """Read the maps of a dscalar; a grayordinate whose value is not finite in any map has none, and becomes 0.

    Parameters
    ----------
    path
        ``.dscalar.nii``.
    where
        Place for errors.

    Raises
    ------
    InputError
        As `read_series_header`.
    """
    what = "image of maps"
    matrix, axes = _read_header(path, where=where, what=what)
    maps, places = axes
    if not isinstance(maps, _axes.ScalarAxis) or not isinstance(places, Grayordinates):
        raise _wrong_axes(axes, "maps (dimension 0) by grayordinates (dimension 1)", where, what)
    (values,) = stream_rows(path, matrix, rows_per_block=max(1, len(places)), where=where)
    scaled = scale_rows(values, matrix)
    scaled[~np.isfinite(scaled).any(axis=1)] = 0
    return ScalarMaps(places=places, values=scaled, names=tuple(map(str, maps.name)))


def _choose_map(names: list[str], wanted: str | None, where: str) -> int:
    if wanted is None and len(names) > 1:
        raise InputError(
            "E-AMBIGUOUS",
            f"the dlabel has {len(names)} maps: {', '.join(map(repr, names))}",
            where=where,
            rule="a node set is made from one map",
            fix="name it as label_map in [nodes.NAME]",
        )
    if wanted is not None and names.count(wanted) != 1:
        raise InputError(
            "E-ATLAS",
            f"the dlabel has {names.count(wanted)} maps named {wanted!r}",
            where=where,
            rule="label_map names one of its maps",
            fix=f"its maps are {', '.join(map(repr, names))}",
        )
    return 0 if wanted is None else names.index(wanted)


def _label_table(
    table: Mapping[Any, tuple[Any, Any]], where: str
) -> tuple[dict[int, str], dict[int, tuple[float, float, float, float]]]:
    """Return key -> name and key -> colour, without key 0: the background, whatever it is called."""
    try:
        names = {int(key): str(name) for key, (name, _) in table.items() if int(key) != 0}
        colours = {int(key): tuple(float(part) for part in colour) for key, (_, colour) in table.items()}
    except _DAMAGE as error:
        raise _cifti(f"the label table is damaged ({type(error).__name__})", "keys, names and colours", where) from None
    return names, {key: (c[0], c[1], c[2], c[3]) for key, c in colours.items() if key in names and len(c) == 4}


def _read_header(path: Path, *, where: str, what: str) -> tuple[MatrixHeader, tuple[Axis, Axis]]:
    """Return the checked header and the two axes; the length of the file agrees with both."""
    with open_stream(path, where=where, what=what) as stream:
        matrix = parse_matrix_header(stream.read_up_to(HEADER_BYTES), where=where, what=what)
        if len(matrix.shape) != 2:
            raise _cifti(f"the {what} has {len(matrix.shape)} dimensions", "it is a matrix of two", where)
        text = _read_xml(stream, matrix, where=where, what=what)
    check_content_size(path, matrix.n_bytes, n_spare=0, where=where, what=what)
    axes = _parse_axes(text, where, what)
    for axis, n in zip(axes, matrix.shape, strict=True):
        n_axis = len(axis.names) if isinstance(axis, Parcels) else len(axis)
        if n_axis != n:
            raise _cifti(f"the XML describes {n_axis} rows or columns, the header {n}", "both agree", where)
    return matrix, axes


def _read_xml(stream: ByteStream, matrix: MatrixHeader, *, where: str, what: str) -> bytes:
    """Return the XML among the extensions between header and values."""
    n_left = matrix.vox_offset - HEADER_BYTES
    if n_left > _MAX_XML_BYTES:
        raise _cifti(
            f"the header of the {what} places the values {n_left} bytes behind itself",
            f"at most {_MAX_XML_BYTES} bytes of extensions",
            where,
        )
    raw = stream.read_up_to(n_left)
    at = 4
    while at + 8 <= len(raw) and raw[:1] == b"\1":
        size, code = np.frombuffer(raw, matrix.byte_order + "i4", 2, at).tolist()
        if size < 8 or at + size > len(raw):
            break
        if code == _XML_CODE:
            return raw[at + 8 : at + size].rstrip(b"\0 \n")
        at += size
    raise _cifti(
        f"the {what} has no CIFTI extension", f"a NIfTI extension of code {_XML_CODE} holds the CIFTI XML", where
    )


@lru_cache(maxsize=4)
def _parse_axes(text: bytes, where: str, what: str) -> tuple[Axis, Axis]:
    """Return the axis of dimension 0 and that of dimension 1; the text of one file is read twice at most."""
    try:
        parser = _parse.Cifti2Parser()
        parser.parse(string=text)
        first, second = (_axis(parser.header.matrix.get_index_map(dim), where) for dim in (0, 1))
    except _DAMAGE as error:
        raise _cifti(
            f"the CIFTI XML of the {what} is damaged, or not of version 2 ({type(error).__name__})",
            "XML as CIFTI-2 defines it",
            where,
        ) from None
    return first, second


def _axis(mapping: Any, where: str) -> Axis:
    kind = mapping.indices_map_to_data_type
    if kind == "CIFTI_INDEX_TYPE_BRAIN_MODELS":
        return _shared(_grayordinates(mapping, where))
    if kind == "CIFTI_INDEX_TYPE_PARCELS":
        return _parcels(mapping, where)
    axis = _axes.from_index_mapping(mapping)
    if isinstance(axis, _axes.SeriesAxis):
        return _axes.SeriesAxis(float(axis.start), float(axis.step), int(axis.size), str(axis.unit))
    return axis


_SHARED: dict[str, Grayordinates] = {}


def _shared(places: Grayordinates) -> Grayordinates:
    """Return the first grayordinates that were equal to these: a thousand runs need not hold them a thousand times."""
    if len(_SHARED) > 8:
        _SHARED.clear()
    return _SHARED.setdefault(places.digest(), places)


def _grayordinates(mapping: Any, where: str) -> Grayordinates:
    pieces: list[tuple[str, Any, Any]] = []
    n_vertices: dict[str, int] = {}
    n_row = 0
    for model in mapping.brain_models:
        name = str(model.brain_structure)
        if model.index_offset != n_row:
            raise _cifti(f"the brain model {name} starts at row {model.index_offset}", f"row {n_row} comes next", where)
        if model.model_type == "CIFTI_MODEL_TYPE_SURFACE":
            vertices, voxels = np.array(list(model.vertex_indices), np.int64), np.empty((0, 3), np.int64)
            n_vertices[name] = int(model.surface_number_of_vertices)
        else:
            vertices, voxels = np.empty(0, np.int64), _voxels(model.voxel_indices_ijk)
        if len(vertices) + len(voxels) != model.index_count:
            raise _cifti(f"the brain model {name} lists another number of places than its count", "both agree", where)
        pieces.append((name, vertices, voxels))
        n_row += int(model.index_count)
    return _join(pieces, mapping.volume, n_vertices, where)


def _parcels(mapping: Any, where: str) -> Parcels:
    pieces: list[tuple[str, Any, Any]] = []
    parcel: list[npt.NDArray[np.int32]] = []
    names = [str(each.name) for each in mapping.parcels]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _cifti(f"two parcels are named {twice!r}", "names are unique", where)
    n_vertices = {str(each.brain_structure): int(each.surface_number_of_vertices) for each in mapping.surfaces}
    for i, each in enumerate(mapping.parcels):
        parts = [(str(part.brain_structure), np.array(list(part), np.int64)) for part in each.vertices]
        found = [(name, vertices, np.empty((0, 3), np.int64)) for name, vertices in parts]
        if each.voxel_indices_ijk is not None and len(each.voxel_indices_ijk):
            # A parcel does not say of which structure its voxels are.
            found.append(("CIFTI_STRUCTURE_OTHER", np.empty(0, np.int64), _voxels(each.voxel_indices_ijk)))
        pieces += found
        parcel.append(np.full(sum(len(vertices) + len(voxels) for _, vertices, voxels in found), i, np.int32))
    members = _join(pieces, mapping.volume, n_vertices, where, may_repeat=True)
    return Parcels(names=tuple(names), members=members, parcel=np.concatenate(parcel))


def _voxels(indices: Any) -> npt.NDArray[np.int64]:
    return np.array(list(indices), np.int64).reshape(-1, 3)


def _join(
    pieces: list[tuple[str, Any, Any]],
    volume: Any,
    n_vertices: dict[str, int],
    where: str,
    *,
    may_repeat: bool = False,
) -> Grayordinates:
    structures = tuple(dict.fromkeys(name for name, _, _ in pieces))
    sizes = [len(vertices) + len(voxels) for _, vertices, voxels in pieces]
    structure = np.repeat([structures.index(name) for name, _, _ in pieces], sizes).astype(np.uint8)
    no_voxel, no_vertex = np.full((1, 3), -1), np.full(1, -1)
    vertex = np.concatenate([np.r_[v, np.repeat(no_vertex, len(x))] for _, v, x in pieces])
    ijk = np.concatenate([np.r_[np.repeat(no_voxel, len(v), axis=0), x] for _, v, x in pieces])
    is_vertex = np.repeat([len(v) > 0 for _, v, _ in pieces], sizes)
    affine, grid_shape = (None, None) if is_vertex.all() else _volume(volume, where)
    limit = np.array([n_vertices.get(name, 0) for name in structures])[structure]
    inside = np.where(is_vertex, (vertex >= 0) & (vertex < limit), ((ijk >= 0) & (ijk < (grid_shape or 0))).all(axis=1))
    if not inside.all():
        at = int(np.argmin(inside))
        place = vertex[at] if is_vertex[at] else ijk[at].tolist()
        raise _cifti(f"the place {place} of {structures[structure[at]]} lies outside", "places are inside", where)
    kinds = {(name, len(v) > 0) for name, v, x in pieces if len(v) + len(x)}
    if len(kinds) > len({name for name, _ in kinds}):
        raise _cifti("a structure has a surface and voxels", "a structure is a surface or voxels", where)
    found = Grayordinates(
        structures=structures,
        structure=structure,
        vertex=vertex.astype(np.int32),
        ijk=ijk.astype(np.int32),
        n_vertices=n_vertices,
        affine=affine,
        grid_shape=grid_shape,
    )
    key = np.where(is_vertex, (structure.astype(np.int64) + 1) * (1 << 40) + vertex, found.flat)
    if not may_repeat and len(np.unique(key)) < len(key):
        raise _cifti(f"{len(key) - len(np.unique(key))} places are there twice", "a place has one row", where)
    return found


def _volume(volume: Any, where: str) -> tuple[npt.NDArray[np.float64], tuple[int, int, int]]:
    transform = volume.transformation_matrix_voxel_indices_ijk_to_xyz
    affine = np.array(transform.matrix, dtype=np.float64)
    affine[:3] *= 10.0 ** (int(transform.meter_exponent) - _MM_EXPONENT)
    n_i, n_j, n_k = (int(n) for n in volume.volume_dimensions)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) == 0 or min(n_i, n_j, n_k) < 1:
        raise _cifti(
            f"the volume is {(n_i, n_j, n_k)} with the affine {affine[:3].round(4).tolist()}",
            "three dimensions and an invertible affine",
            where,
        )
    return affine, (n_i, n_j, n_k)


def _wrong_axes(axes: tuple[Any, Any], rule: str, where: str, what: str) -> InputError:
    names = {Grayordinates: "grayordinates", Parcels: "parcels"}
    found = [names.get(type(axis), type(axis).__name__.removesuffix("Axis").lower()) for axis in axes]
    return _cifti(f"the {what} is a matrix of {found[0]} (dimension 0) by {found[1]} (dimension 1)", rule, where)


def _cifti(problem: str, rule: str, where: str) -> InputError:
    return InputError(
        "E-CIFTI", problem, where=where, rule=rule, fix="check that this is the file; export it again from its source"
    )


def _size(problem: str, where: str) -> InputError:
    return InputError(
        "E-NIFTI-SIZE",
        f"the CIFTI file {problem}",
        where=where,
        rule="the values must have the length that the header states",
        fix="copy or export the file again from its source",
    )
