"""Head motion: displacement from frame to frame, and what regressors are expanded to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def framewise_displacement(motion: npt.ArrayLike, *, radius: float) -> Array:
    """Return how far the head moved since the frame before, in mm.

    The sum of the absolute differences of the six parameters; a rotation counts as the arc that it moves on a sphere.

    Parameters
    ----------
    motion
        ``(time, 6)``: three translations in mm, then three rotations in radians.
    radius
        Radius of the sphere in mm. Power et al. take 50.

    Returns
    -------
    displacement
        ``(time,)`` in mm. The first frame has none before it: 0.

    References
    ----------
    Power JD et al. (2012). Spurious but systematic correlations in functional connectivity MRI networks arise from
    subject motion. https://doi.org/10.1016/j.neuroimage.2011.10.018
    """
    steps = np.abs(backward_difference(np.asarray(motion, dtype=np.float64)))
    return np.asarray(steps[:, :3].sum(axis=1) + radius * steps[:, 3:].sum(axis=1), dtype=np.float64)


def backward_difference(columns: Array) -> Array:
    """Return ``columns (time, ...)`` minus the frame before; 0 in the first frame."""
    out = np.zeros_like(columns)
    out[1:] = np.diff(columns, axis=0)
    return out


def fill_first_frame(columns: Array) -> Array:
    """Return ``columns (time, ...)`` with 0 where the first frame is NaN.

    A quantity that compares a frame with the one before is not defined in the first; 0 says "no change".
    """
    out = columns.copy()
    out[:1][np.isnan(out[:1])] = 0.0
    return out


def keep_frames(displacement: Array, *, threshold: float, n_dummy: int) -> npt.NDArray[np.bool_]:
    """Return ``(time,)`` True where ``displacement`` does not exceed ``threshold`` and the first frames are over."""
    kept = displacement <= threshold
    kept[:n_dummy] = False
    return kept
