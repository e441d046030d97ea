"""Small CIFTI files made with nibabel, and their axes."""

import nibabel as nib
import numpy as np
from nibabel.cifti2 import cifti2_axes

LEFT, RIGHT, THALAMUS = (f"CIFTI_STRUCTURE_{name}" for name in ("CORTEX_LEFT", "CORTEX_RIGHT", "THALAMUS_LEFT"))
N_VERTICES = 40
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -12], [0, 0, 2, -8.5], [0, 0, 0, 1]])
SHAPE = (6, 7, 5)
#: Vertices without the medial wall, so that the rank of a row is not its vertex.
VERTICES = {LEFT: np.arange(40)[np.arange(40) % 5 != 0], RIGHT: np.arange(3, 40)}
VOXELS = np.array([(i, j, 2) for j in (2, 3) for i in (1, 2, 3)])


def brain_models(*, vertices=None, voxels=VOXELS, n_vertices=N_VERTICES, affine=AFFINE, shape=SHAPE):
    """Return an axis of two hemispheres and a thalamus."""
    parts = [
        cifti2_axes.BrainModelAxis(name, vertex=np.asarray(of), nvertices={name: n_vertices})
        for name, of in (VERTICES if vertices is None else vertices).items()
    ]
    if len(voxels):
        parts.append(cifti2_axes.BrainModelAxis(THALAMUS, voxel=voxels, affine=affine, volume_shape=shape))
    axis = parts[0]
    for part in parts[1:]:
        axis += part
    return axis


def everywhere(n_vertices=N_VERTICES):
    """Return an axis of all vertices of both hemispheres, the medial wall included, and no voxel."""
    return brain_models(
        vertices={LEFT: np.arange(n_vertices), RIGHT: np.arange(n_vertices)}, voxels=[], n_vertices=n_vertices
    )


def series_axis(n_time=20, step=0.72, unit="SECOND", start=0.0):
    return cifti2_axes.SeriesAxis(start, step, n_time, unit)


def label_axis(names, name="parcels"):
    table = {0: ("???", (1.0, 1.0, 1.0, 0.0))}
    table |= {key: (label, (key / 10, 0.5, 0.25, 1.0)) for key, label in names.items()}
    return cifti2_axes.LabelAxis([name], [table])


def write(path, values, *axes, dtype=np.float32, intent=None, slope=None):
    """Write a CIFTI file with nibabel."""
    image = nib.Cifti2Image(np.asarray(values, dtype), axes)
    image.nifti_header.set_data_dtype(dtype)
    image.nifti_header.set_xyzt_units("mm", "sec")
    image.nifti_header.set_intent(intent or _intent(axes))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    if slope is not None:
        patch(path, 176, np.array(slope, "<f8").tobytes())
    return path


def turn(path):
    """Swap the bytes of every number of a file: nibabel writes little endian only."""
    raw = path.read_bytes()
    header = nib.Nifti2Header(raw[:540])
    size, code = np.frombuffer(raw, "<i4", 2, 544)
    start = int(header["vox_offset"])
    values = np.frombuffer(raw, header.get_data_dtype(), offset=start).byteswap().tobytes()
    extension = np.array([size, code], ">i4").tobytes() + raw[552:start]
    path.write_bytes(header.as_byteswapped(">").binaryblock + raw[540:544] + extension + values)
    return path


def patch(path, at, content):
    """Overwrite bytes of a file."""
    raw = bytearray(path.read_bytes())
    raw[at : at + len(content)] = content
    path.write_bytes(bytes(raw))
    return path


def _intent(axes):
    kinds = {"Series": "Series", "Scalar": "Scalar", "Label": "Label", "BrainModel": "Dense", "Parcels": "Parcel"}
    first, second = (kinds[type(axis).__name__.removesuffix("Axis")] for axis in axes)
    codes = {
        "DenseSeries": 3002,
        "ParcelSeries": 3004,
        "DenseScalar": 3006,
        "DenseLabel": 3007,
        "DenseDense": 3001,
        "ParcelParcel": 3003,
        "SeriesDense": 3012,
    }
    return codes[second + first]


def write_surface(path, n_vertices, *, structure="CortexLeft", seed=0):
    """Write a strip of triangles over all vertices as a GIFTI surface, and return points and triangles."""
    points = np.random.default_rng(seed).normal(scale=30, size=(n_vertices, 3)).astype(np.float32)
    triangles = (np.arange(n_vertices - 2)[:, None] + np.arange(3)).astype(np.int32)
    meta = {} if structure is None else {"AnatomicalStructurePrimary": structure}
    arrays = [
        nib.gifti.GiftiDataArray(points, intent="pointset", datatype="float32", meta=nib.gifti.GiftiMetaData(meta)),
        nib.gifti.GiftiDataArray(triangles, intent="triangle", datatype="int32"),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.GiftiImage(darrays=arrays).to_filename(path)
    return points, triangles
