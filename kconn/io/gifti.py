"""Surfaces of GIFTI files: their points, their triangles and which hemisphere they are of."""

from __future__ import annotations

import binascii
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from kconn.errors import InputError

# nibabel types GIFTI in part.
_nib: Any = nib
#: What nibabel raises where a file is damaged.
_DAMAGE: Final = (
    ExpatError,
    ImageFileError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    zlib.error,
    binascii.Error,
)
#: Where GIFTI names the structure, and CIFTI's word for it.
_PRIMARY: Final = "AnatomicalStructurePrimary"
_STRUCTURES: Final = {"CortexLeft": "CORTEX_LEFT", "CortexRight": "CORTEX_RIGHT"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surface:
    """``points (n_vertex, 3)`` in mm and ``triangles (n_triangle, 3)`` of vertices."""

    points: npt.NDArray[np.float64]
    triangles: npt.NDArray[np.int64]


def read_surface(path: Path, *, structure: str) -> Surface:
    """Return the surface of one structure.

    Parameters
    ----------
    path
        A ``.surf.gii``.
    structure
        ``"CORTEX_LEFT"`` or ``"CORTEX_RIGHT"``: what the file must say that it is.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``; ``E-GIFTI`` if the file is no surface or is damaged; ``E-BRAIN-MODELS`` if it is of another
        structure or does not say of which it is.
    """
    try:
        image = _nib.GiftiImage.from_filename(str(path))
        points, triangles = (image.get_arrays_from_intent(intent) for intent in ("pointset", "triangle"))
        arrays = [np.asarray(each[0].data) for each in (points, triangles)]
        said = str(points[0].metadata.get(_PRIMARY) or image.meta.get(_PRIMARY) or "")
    except FileNotFoundError as error:
        raise InputError(
            "E-FILE-MISSING", f"there is no file {path.name}", where=path.name, rule="surfaces are GIFTI files"
        ) from error
    except (*_DAMAGE, OSError) as error:
        raise _no_surface(path, f"it cannot be read: {type(error).__name__} {error}".strip()) from error
    if said not in _STRUCTURES or _STRUCTURES[said] != structure:
        raise InputError(
            "E-BRAIN-MODELS",
            f"the surface is of {said or 'a structure that it does not name'}, not of {structure}",
            where=path.name,
            rule=f"a surface names its structure as {_PRIMARY}",
            fix=f"name the file of this hemisphere, or set it with wb_command -set-structure {path.name} {structure}",
        )
    return _check(path, *arrays)


def _check(path: Path, points: npt.NDArray[Any], triangles: npt.NDArray[Any]) -> Surface:
    if points.ndim != 2 or points.shape[1:] != (3,) or not np.isfinite(points).all():
        raise _no_surface(path, f"its points have shape {points.shape}, or are not finite")
    fits = triangles.ndim == 2 and triangles.shape[1:] == (3,) and triangles.size > 0 and triangles.dtype.kind in "iu"
    if not fits or int(triangles.min()) < 0 or int(triangles.max()) >= len(points):
        raise _no_surface(path, f"its triangles have shape {triangles.shape}, or name vertices that it does not have")
    return Surface(points=points.astype(np.float64), triangles=triangles.astype(np.int64))


def _no_surface(path: Path, problem: str) -> InputError:
    return InputError(
        "E-GIFTI",
        problem,
        where=path.name,
        rule="a surface is a GIFTI file with points and triangles",
        fix="name a .surf.gii, such as the midthickness of the same space and density as the runs",
    )
