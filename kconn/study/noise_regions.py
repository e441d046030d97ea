"""Noise regions of CompCor from mask images: eroded, and cut to the voxels of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion

from kconn.errors import InputError
from kconn.io import nifti
from kconn.study.cleaning_tables import MASKS_OF


def load_noise_regions(
    files: Mapping[str, Path],
    regions: Sequence[str],
    *,
    erode: int,
    affine: npt.ArrayLike,
    inside: npt.NDArray[np.bool_],
    where: str = "",
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return region -> ``(i, j, k)`` True in its voxels.

    Parameters
    ----------
    files
        ``white_matter`` and ``csf`` -> mask image on the grid of the run.
    regions
        ``a``, ``c`` or ``w``.
    erode
        How many layers of voxels to take off each mask, so that no grey matter is left at its border. A voxel goes
        when one of the six that share a face with it is outside.
    affine
        Of the grid.
    inside
        ``(i, j, k)`` True where the run has voxels.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-GRID`` if a mask is on another grid; ``E-MASK-EMPTY`` if nothing of it is left; ``E-MASK`` and the errors
        of an image.
    """
    grid_shape = (inside.shape[0], inside.shape[1], inside.shape[2])
    masks = {}
    for role in sorted({role for region in regions for role in MASKS_OF[region]}):
        whole = nifti.read_mask(files[role], grid_shape=grid_shape, affine=affine, where=where)
        eroded = binary_erosion(whole, iterations=erode) if erode else whole
        masks[role] = np.asarray(eroded & inside, dtype=np.bool_)
        if not masks[role].any():
            raise InputError(
                "E-MASK-EMPTY",
                f"nothing is left of the {role.replace('_', ' ')} mask: {int(whole.sum())} voxels,"
                f" {int(eroded.sum())} after erosion, none of them among the {int(inside.sum())} of the run",
                where=where,
                rule="a noise region holds voxels of the run",
                fix="check that the mask belongs to this run, or erode less",
            )
    return {region: np.logical_or.reduce([masks[role] for role in MASKS_OF[region]]) for region in regions}
