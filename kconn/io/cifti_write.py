"""CIFTI-2 files out: maps, series and matrices on the axes that they came with, in files of reproducible bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.cifti2 import cifti2, cifti2_axes

from kconn.errors import SchemaError
from kconn.grayordinates import Grayordinates
from kconn.io.cifti import Parcels
from kconn.io.nifti_write import whole_file

# nibabel types its axes in part.
_axes: Any = cifti2_axes
_nib: Any = nib
_cifti2: Any = cifti2
#: Axis of dimension 0 and of dimension 1 -> intent code, intent name, ending of the file name.
_KINDS: Final[dict[tuple[type, type], tuple[int, str, str]]] = {
    (_axes.SeriesAxis, _axes.BrainModelAxis): (3002, "ConnDenseSeries", ".dtseries.nii"),
    (_axes.SeriesAxis, _axes.ParcelsAxis): (3004, "ConnParcelSries", ".ptseries.nii"),
    (_axes.ScalarAxis, _axes.BrainModelAxis): (3006, "ConnDenseScalar", ".dscalar.nii"),
    (_axes.ScalarAxis, _axes.ParcelsAxis): (3008, "ConnParcelScalr", ".pscalar.nii"),
    (_axes.ParcelsAxis, _axes.ParcelsAxis): (3003, "ConnParcels", ".pconn.nii"),
}
_XML_CODE: Final = 32
_HEADER_BYTES: Final = 540

Place = Grayordinates | Parcels


def brain_model_axis(places: Grayordinates) -> Any:
    """Return nibabel's ``BrainModelAxis`` of grayordinates."""
    names = np.array(places.structures)[places.structure]
    return _axes.BrainModelAxis(
        names,
        voxel=places.ijk,
        vertex=places.vertex,
        affine=places.affine,
        volume_shape=places.grid_shape,
        nvertices=dict(places.n_vertices),
    )


def parcels_axis(parcels: Parcels) -> Any:
    """Return nibabel's ``ParcelsAxis`` of parcels; vertices and voxels keep their order."""
    places = parcels.members
    voxels, vertices = [], []
    order = np.argsort(parcels.parcel, kind="stable")
    cuts = np.searchsorted(parcels.parcel[order], np.arange(1, len(parcels.names)))
    for rows in np.split(order, cuts):
        is_voxel = places.vertex[rows] < 0
        voxels.append(places.ijk[rows[is_voxel]].astype(np.int32))
        of_surface = rows[~is_voxel]
        vertices.append(
            {
                places.structures[i]: places.vertex[of_surface[places.structure[of_surface] == i]]
                for i in dict.fromkeys(places.structure[of_surface].tolist())
            }
        )
    boxed = np.empty(len(vertices), dtype=object)
    boxed[:] = vertices
    return _axes.ParcelsAxis(
        np.array(parcels.names),
        voxels,
        boxed,
        affine=places.affine,
        volume_shape=places.grid_shape,
        nvertices=dict(places.n_vertices),
    )


def write_scalars(path: Path, maps: npt.ArrayLike, names: Sequence[str], places: Place) -> None:
    """Write maps as a dscalar (of grayordinates) or pscalar (of parcels), float32.

    The file appears whole or not at all. Equal input gives equal bytes.

    Parameters
    ----------
    path
        ``.dscalar.nii`` or ``.pscalar.nii``.
    maps
        (map, grayordinate) or (map, parcel).
    names
        (map,)
    places
        What a column stands for.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if shapes or the ending of the name do not fit.
    ResourceError
        ``E-DISK`` if the disk is full.
    """
    values = np.asarray(maps)
    _write(path, [values.T], (_axes.ScalarAxis(list(names)), _axis(places)), shape=values.shape)


def write_series(
    path: Path, blocks: Iterable[npt.NDArray[Any]], *, n_time: int, t_r: float, start: float = 0.0, places: Place
) -> None:
    """Write a series that comes in blocks of rows (grayordinate or parcel, time), in their order, as float32.

    Parameters
    ----------
    path
        ``.dtseries.nii`` or ``.ptseries.nii``.
    blocks
        Together all rows.
    n_time, t_r, start
        Frames, their distance and the time of the first one in s.
    places
        What a row stands for.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` as `write_scalars`, or if the blocks hold another number of rows; no file appears.
    ResourceError
        ``E-DISK`` if the disk is full.
    """
    axes = (_axes.SeriesAxis(start, t_r, n_time), _axis(places))
    _write(path, blocks, axes, shape=(n_time, len(axes[1])))


def write_matrix(path: Path, matrix: npt.ArrayLike, parcels: Parcels) -> None:
    """Write a matrix (node, node) as a pconn, float32.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` as `write_scalars`.
    ResourceError
        ``E-DISK`` if the disk is full.
    """
    values = np.asarray(matrix)
    axis = parcels_axis(parcels)
    _write(path, [values.T], (axis, axis), shape=values.shape)


def _axis(places: Place) -> Any:
    return parcels_axis(places) if isinstance(places, Parcels) else brain_model_axis(places)


def _write(path: Path, blocks: Iterable[npt.NDArray[Any]], axes: tuple[Any, Any], *, shape: tuple[int, ...]) -> None:
    """Write blocks (column, row) of a matrix (row, column): CIFTI keeps the columns of dimension 1 apart."""
    code, name, ending = _KINDS[type(axes[0]), type(axes[1])]
    if shape != tuple(map(len, axes)) or not path.name.endswith(ending):
        raise _argument(
            f"values of shape {shape} and axes of {len(axes[0])} by {len(axes[1])} go to {path.suffixes}",
            f"shape and axes agree, and the name ends in {ending}",
        )
    n_row, n_column = shape
    n_written = 0
    with whole_file(path) as file:
        file.write(_header(axes, shape, code, name))
        for block in blocks:
            if block.shape[1] != n_row:
                raise _argument(f"a block has shape {block.shape}", f"blocks have {n_row} values per column")
            file.write(np.ascontiguousarray(block, dtype="<f4").data)
            n_written += len(block)
        if n_written != n_column:
            raise _argument(f"there are {n_written} columns, announced were {n_column}", "blocks hold every one once")


def _header(axes: tuple[Any, Any], shape: tuple[int, ...], code: int, name: str) -> bytes:
    xml: bytes = _cifti2.Cifti2Header.from_axes(axes).to_xml()
    n_padded = -(-(_HEADER_BYTES + 4 + 8 + len(xml)) // 16) * 16
    header = _nib.Nifti2Header(endianness="<")
    header.set_data_dtype(np.float32)
    header["dim"][:7] = [6, 1, 1, 1, 1, *shape]
    header.set_intent(code, name=name)
    header["magic"] = b"n+2"
    header["scl_slope"], header["scl_inter"] = 1, 0
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = n_padded
    n_extension = n_padded - _HEADER_BYTES - 4
    extension = np.array([n_extension, _XML_CODE], "<i4").tobytes() + xml
    return bytes(header.binaryblock) + b"\1\0\0\0" + extension.ljust(n_extension, b"\0")


def _argument(problem: str, rule: str) -> SchemaError:
    return SchemaError("E-ARGUMENT", problem, rule=rule, fix="check the arguments")
