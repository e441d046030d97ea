"""One simulated recording: node courses, head motion, artefacts, noise, and the confound table that goes with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.testing.brain import Brain

MOTION: Final = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")

_BAND_HZ: Final = (0.01, 0.1)
_HEAD_RADIUS_MM: Final = 50.0
_COSINE_CUTOFF_S: Final = 128.0

# Amplitudes in units of the image, around a mean of 10,000: a neural signal of about 0.6 % over thermal noise of 1.2 %.
_MEAN: Final = 10_000.0
_NEURAL: Final = 60.0
_NOISE: Final = 120.0
_GLOBAL: Final = 40.0
_TISSUE: Final = 80.0
_DRIFT: Final = 90.0
_PER_MM: Final = 160.0
_SPIKE_PER_MM: Final = 220.0

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A simulated run."""

    bold: npt.NDArray[np.float32]
    """(voxel, time)"""
    source: FloatArray
    """(node, time), the courses before noise and artefacts, unit variance."""
    confounds: pd.DataFrame
    """(time, confound), fMRIPrep names, NaN where fMRIPrep writes n/a."""


def record(
    brain: Brain,
    factor: FloatArray,
    *,
    n_time: int,
    t_r: float,
    motion_level: float,
    artefact: float = 1.0,
    rng: np.random.Generator,
) -> Recording:
    """Simulate one run.

    Parameters
    ----------
    brain
        Voxels and nodes.
    factor
        Cholesky factor (node, node) of the correlation of the node courses.
    n_time, t_r
        Frames and their distance in seconds.
    motion_level
        1 for a calm subject; 6 spoils most of a run.
    artefact
        How much the same movement disturbs the image: 1 as a rule, 0 not at all.
    rng
        Source of this run's randomness, used by nothing else.
    """
    white = band_limited(rng, n_series=len(factor), n_time=n_time, t_r=t_r)
    # einsum and plain sums instead of BLAS: the same bytes for any number of threads.
    source = np.einsum("ij,jt->it", factor, white)
    motion = draw_motion(rng, n_time=n_time, t_r=t_r, level=motion_level)
    displacement = framewise_displacement(motion)
    bold = _draw_bold(brain, source, motion, displacement, t_r=t_r, artefact=artefact, rng=rng)
    return Recording(bold=bold, source=source, confounds=_tabulate(brain, bold, motion, displacement, t_r=t_r))


def band_limited(rng: np.random.Generator, *, n_series: int, n_time: int, t_r: float) -> FloatArray:
    """Return independent Gaussian courses (series, time) of unit variance within 0.01-0.1 Hz."""
    n_long = 2 * n_time  # the second half is cut off: a course must not end where it began
    frequency = np.fft.rfftfreq(n_long, t_r)
    keep = (frequency >= _BAND_HZ[0]) & (frequency <= _BAND_HZ[1])
    spectrum = np.fft.rfft(rng.standard_normal((n_series, n_long)), axis=1) * keep
    course = np.fft.irfft(spectrum, n=n_long, axis=1)[:, :n_time]
    return np.asarray(course * np.sqrt(n_long / (2 * max(1, keep.sum()))))


def draw_motion(rng: np.random.Generator, *, n_time: int, t_r: float, level: float) -> FloatArray:
    """Return rigid-body parameters (time, 6), mm and rad: slow drift, breathing and sudden jumps that settle."""
    seconds = np.arange(n_time) * t_r
    drift = np.cumsum(rng.standard_normal((n_time, 6)), axis=0) * np.sqrt(t_r) * 0.006
    breathing = np.sin(2 * np.pi * (0.28 * seconds[:, None] + rng.random(6))) * 0.015
    tremor = rng.standard_normal((n_time, 6)) * 0.006
    jumps = np.zeros((n_time, 6))
    for _ in range(rng.poisson(0.012 * n_time * level**1.2)):
        start = int(rng.integers(1, max(2, n_time - 1)))
        height = rng.standard_normal(6) * 0.10 * level
        settle = np.exp(-np.arange(n_time - start) / rng.uniform(0.5, 4.0))
        jumps[start:] += height * (0.85 * settle[:, None] + 0.15)
    motion = (drift + breathing + tremor) * np.sqrt(level) + jumps
    motion -= motion[n_time // 2]
    motion[:, 3:] /= _HEAD_RADIUS_MM
    return np.asarray(motion)


def framewise_displacement(motion: FloatArray) -> FloatArray:
    """Return framewise displacement (time,) in mm, NaN in the first frame.

    References
    ----------
    Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018
    """
    step = np.abs(np.diff(motion, axis=0)) * [1.0, 1.0, 1.0, *[_HEAD_RADIUS_MM] * 3]
    return np.concatenate([[np.nan], step.sum(axis=1)])


def _draw_bold(
    brain: Brain,
    source: FloatArray,
    motion: FloatArray,
    displacement: FloatArray,
    *,
    t_r: float,
    artefact: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    n_time = source.shape[1]
    position = brain.xyz / 80.0
    tissue = band_limited(rng, n_series=3, n_time=n_time, t_r=t_r)
    jerk = np.maximum(0.0, np.nan_to_num(displacement) - 0.2)
    ramp = np.linspace(-1, 1, n_time)
    scaled = motion * [1.0, 1.0, 1.0, *[_HEAD_RADIUS_MM] * 3]

    # Each nuisance is one course times one map; the maps are smooth, so neighbours share an artefact.
    nuisances = [
        (_GLOBAL * tissue[0], np.ones(len(position))),
        (_TISSUE * tissue[1], brain.white_matter.astype(float)),
        (_TISSUE * tissue[2], brain.csf.astype(float)),
        (_DRIFT * ramp, 1 + rng.standard_normal() * position[:, 1]),
        (-_SPIKE_PER_MM * artefact * jerk, 0.6 + brain.radius**2),
    ]
    for i_axis in range(6):
        map_of_axis = position @ rng.standard_normal(3) + 0.3 * rng.standard_normal()
        nuisances.append((_PER_MM * artefact * scaled[:, i_axis], map_of_axis * brain.radius))

    bold = rng.standard_normal((len(position), n_time), dtype=np.float32)
    bold *= np.float32(_NOISE * brain.noise_scale)
    bold += (_MEAN * (1.1 - 0.25 * brain.radius + 0.05 * position[:, 2])).astype(np.float32)[:, None]
    in_node = brain.parcel > 0
    bold[in_node] += (_NEURAL * source).astype(np.float32)[brain.parcel[in_node] - 1]
    for course, weight in nuisances:
        bold += weight.astype(np.float32)[:, None] * course.astype(np.float32)[None, :]
    return bold


def _tabulate(
    brain: Brain, bold: npt.NDArray[np.float32], motion: FloatArray, displacement: FloatArray, *, t_r: float
) -> pd.DataFrame:
    """Return the confound table, columns named and ordered as fMRIPrep 20 and later write them."""
    table: dict[str, FloatArray] = {}
    tissues = {"csf": brain.csf, "white_matter": brain.white_matter, "global_signal": np.ones(len(bold), dtype=bool)}
    for name, voxels in tissues.items():
        table |= _expand(name, bold[voxels].mean(axis=0, dtype=np.float64))

    change = np.sqrt(np.square(np.diff(bold, axis=1)).mean(axis=0, dtype=np.float64))
    table["dvars"] = np.concatenate([[np.nan], change])
    table["std_dvars"] = table["dvars"] / np.median(change)
    table["framewise_displacement"] = displacement
    table |= {f"cosine{i:02d}": course for i, course in enumerate(_cosines(len(motion), t_r=t_r))}
    for i_axis, name in enumerate(MOTION):
        table |= _expand(name, motion[:, i_axis])
    return pd.DataFrame(table)


def _expand(name: str, course: FloatArray) -> dict[str, FloatArray]:
    derivative = np.concatenate([[np.nan], np.diff(course)])
    return {
        name: course,
        f"{name}_derivative1": derivative,
        f"{name}_power2": course**2,
        f"{name}_derivative1_power2": derivative**2,
    }


def _cosines(n_time: int, *, t_r: float) -> list[FloatArray]:
    n_cosines = int(np.floor(2 * n_time * t_r / _COSINE_CUTOFF_S))
    frames = np.arange(n_time) + 0.5
    return [np.sqrt(2 / n_time) * np.cos(np.pi * (k + 1) * frames / n_time) for k in range(n_cosines)]
