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


def mean_steps(motion: npt.ArrayLike) -> Array:
    """Return the mean absolute step from frame to frame of each parameter, ``(time, parameter)`` to ``(parameter,)``.

    NaN with fewer than two frames.

    References
    ----------
    Motoyama Y et al. (2019), who compare groups by it. https://doi.org/10.1038/s41598-019-49360-1
    """
    columns = np.asarray(motion, dtype=np.float64)
    if len(columns) < 2:
        return np.full(columns.shape[1:], np.nan)
    return np.asarray(np.abs(np.diff(columns, axis=0)).mean(axis=0))


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


def widen_gaps(kept: npt.NDArray[np.bool_], *, n_before: int, n_after: int) -> npt.NDArray[np.bool_]:
    """Return ``kept (time,)`` with, for each dropped frame, ``n_before`` before it and ``n_after`` after it dropped."""
    out = kept.copy()
    for at in np.flatnonzero(~kept):
        out[max(0, at - n_before) : at + n_after + 1] = False
    return out


def drop_short_segments(kept: npt.NDArray[np.bool_], *, min_segment: int) -> npt.NDArray[np.bool_]:
    """Return ``kept (time,)`` without the stretches of fewer than ``min_segment`` kept frames in a row."""
    steps = np.diff(np.concatenate([[0], kept.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    out = kept.copy()
    for start, stop in zip(starts, stops, strict=True):
        if stop - start < min_segment:
            out[start:stop] = False
    return out


def rms_displacement(motion: npt.ArrayLike, *, radius: float) -> Array:
    """Return the root mean square displacement since the frame before, over a sphere about the origin, in mm.

    Parameters
    ----------
    motion
        ``(time, 6)``: three translations in mm, then rotations about x, y, z in radians, applied in FSL's order
        (``Rx Ry Rz``).
    radius
        Radius of the sphere in mm. Jenkinson takes 80.

    Returns
    -------
    displacement
        ``(time,)`` in mm, 0 in the first frame.

    References
    ----------
    Jenkinson M (1999). Measuring transformation error by RMS deviation. FMRIB technical report TR99MJ1.
    Jenkinson M et al. (2002). https://doi.org/10.1006/nimg.2002.1132
    """
    affine = _affine(np.asarray(motion, dtype=np.float64))
    out = np.zeros(len(affine))
    change = affine[1:] @ np.linalg.inv(affine[:-1]) - np.eye(4)
    turn, shift = change[:, :3, :3], change[:, :3, 3]
    out[1:] = np.sqrt(radius**2 / 5 * np.einsum("tij,tij->t", turn, turn) + np.einsum("ti,ti->t", shift, shift))
    return out


def _affine(motion: Array) -> Array:
    """Return the transforms ``(time, 4, 4)`` of rigid-body parameters."""
    cos, sin = np.cos(motion[:, 3:]), np.sin(motion[:, 3:])
    about_x, about_y, about_z = (np.tile(np.eye(3), (len(motion), 1, 1)) for _ in range(3))
    for rotation, axis, (i, j) in ((about_x, 0, (1, 2)), (about_y, 1, (2, 0)), (about_z, 2, (0, 1))):
        rotation[:, i, i] = rotation[:, j, j] = cos[:, axis]
        rotation[:, i, j], rotation[:, j, i] = sin[:, axis], -sin[:, axis]
    out = np.tile(np.eye(4), (len(motion), 1, 1))
    out[:, :3, :3] = about_x @ about_y @ about_z
    out[:, :3, 3] = motion[:, :3]
    return out


def without_breathing(motion: npt.ArrayLike, *, t_r: float, band: tuple[float, float] | float) -> Array:
    """Return motion parameters without what breathing adds to them, or without all that is fast.

    A pair is the band of a notch (second order, forward and backward); edges above the Nyquist frequency are folded to
    where they are seen. A number is the edge of a low-pass (Butterworth of order 2, forward and backward). The first
    and the last value are repeated beyond the ends.

    Parameters
    ----------
    motion
        ``(time, parameter)``.
    t_r
        Seconds from frame to frame.
    band
        Hz.

    References
    ----------
    Fair DA et al. (2020). Correction of respiratory artifacts in MRI head motion estimates.
    https://doi.org/10.1016/j.neuroimage.2019.116400
    Gratton C et al. (2020). Removal of high frequency contamination from motion estimates in single-band fMRI saves
    data without biasing functional connectivity. https://doi.org/10.1016/j.neuroimage.2020.116866
    """
    from scipy.signal import butter, filtfilt, iirnotch  # noqa: PLC0415 - 47 MB that only filters need

    columns = np.asarray(motion, dtype=np.float64)
    if isinstance(band, tuple):
        low, high = sorted(fold_frequency(edge, t_r=t_r) for edge in band)
        middle = (low + high) / 2
        b, a = iirnotch(middle, middle / (high - low), fs=1 / t_r)
    else:
        b, a = butter(2, band, btype="lowpass", fs=1 / t_r)
    return np.asarray(filtfilt(b, a, columns, axis=0, padtype="constant", padlen=len(columns) - 1), dtype=np.float64)


def fold_frequency(frequency: float, *, t_r: float) -> float:
    """Return at which frequency in Hz, from 0 to Nyquist, a sine of ``frequency`` Hz is seen in frames."""
    return float(abs(frequency - np.round(frequency * t_r) / t_r))
