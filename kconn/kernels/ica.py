"""Spatially independent components: scikit-learn's FastICA from several starts, and how stable what they find is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.stats import skew

from kconn.errors import InputError

Array = npt.NDArray[np.floating[Any]]

#: Iterations of one start, and the change of direction below which it has converged.
MAX_ITER: Final = 1000
TOLERANCE: Final = 1e-5
#: Mean of log cosh of a standard normal variable, to the digits that quadrature gives.
GAUSSIAN_LOG_COSH: Final = 0.37456720749


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """What ICA found.

    Attributes
    ----------
    sources
        (component, voxel), mean 0 and variance 1 over voxels, the longer tail positive; most variance first.
    mixing
        (row, component): weight of each source in each row of what was decomposed.
    stability
        (component,) mean over the other starts of the absolute spatial correlation with the most similar component
        there; NaN with one start.
    n_converged
        Starts that converged.
    """

    sources: Array
    mixing: Array
    stability: Array
    n_converged: int


def whiten(rows: Array, /) -> Array:
    """Return orthonormal combinations of ``rows`` (row, voxel), each of mean 0 and variance 1 over voxels."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    values, vectors = eigh(centred @ centred.T / centred.shape[1])
    white: Array = (vectors / np.sqrt(values)).T @ centred
    return white


def find_sources(rows: Array, /, *, n_start: int, seed: int) -> Components:
    """Return as many independent components as there are rows.

    FastICA (log cosh, symmetric) is started ``n_start`` times, and the start whose components are farthest from
    Gaussian is taken: a single start may end in a lesser optimum. Stability says how well the other starts agree.

    Parameters
    ----------
    rows
        ``(row, voxel)``, of full row rank: the strongest principal components of a group.
    n_start
        Starts; start i depends on ``seed`` and i alone.
    seed
        Of the starts.

    Raises
    ------
    InputError
        ``E-ICA-CONVERGENCE`` if no start converged.

    References
    ----------
    Hyvarinen 1999, doi:10.1109/72.761722; Himberg et al. 2004, doi:10.1016/j.neuroimage.2004.03.027.
    """
    white = whiten(rows)
    n = len(white)
    estimates = [one for i in range(n_start) if (one := _rotate(white, seed, i)) is not None]
    if not estimates:
        raise InputError(
            "E-ICA-CONVERGENCE",
            f"none of {n_start} starts converged in {MAX_ITER} iterations for {n} components",
            rule="at least one start converges",
            fix="ask for fewer components, or for more starts",
        )
    best = max(range(len(estimates)), key=lambda i: _negentropy(estimates[i] @ white))
    rotation = estimates.pop(best)
    stability = _agreement(rotation, estimates)
    sources = rotation @ white
    sources *= np.where(skew(sources, axis=1) < 0, -1, 1)[:, None]
    mixing = (rows - rows.mean(axis=1, keepdims=True)) @ np.linalg.pinv(sources)
    order = np.argsort(-(mixing**2).sum(axis=0), kind="stable")
    sources = sources[order]
    sources = (sources - sources.mean(axis=1, keepdims=True)) / sources.std(axis=1, keepdims=True)
    return Components(
        sources=sources, mixing=mixing[:, order], stability=stability[order], n_converged=1 + len(estimates)
    )


def _rotate(white: Array, seed: int, start: int) -> Array | None:
    """Return the rotation (component, row) that one start ends in, or None if it does not converge."""
    # scikit-learn takes seconds to import, and only this needs it.
    from sklearn.decomposition import fastica  # noqa: PLC0415
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415

    n = len(white)
    if n == 1:
        return np.ones((1, 1))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            _, rotation, _ = fastica(
                white.T, whiten=False, w_init=rng.standard_normal((n, n)), max_iter=MAX_ITER, tol=TOLERANCE
            )
        except ConvergenceWarning:
            return None
    return np.asarray(rotation, dtype=np.float64)


def _negentropy(sources: Array) -> float:
    """Return how far the rows of ``sources`` are from Gaussian, by the contrast that FastICA maximises."""
    size = np.abs(sources)
    log_cosh = (size + np.log1p(np.exp(-2 * size)) - np.log(2)).mean(axis=1)
    return float(((log_cosh - GAUSSIAN_LOG_COSH) ** 2).sum())


def _agreement(rotation: Array, others: Sequence[Array]) -> Array:
    """Return the mean over other starts of the similarity to the most similar component there; NaN without others."""
    if not others:
        return np.full(len(rotation), np.nan)
    best = [np.abs(rotation @ other.T).max(axis=1) for other in others]
    agreement: Array = np.clip(np.mean(best, axis=0), 0, 1)
    return agreement


def match_templates(maps: Array, templates: Array, /) -> Array:
    """Return the spatial correlation (map, template) of ``maps`` (map, voxel) with ``templates`` (template, voxel).

    Over the voxels that are finite in both.
    """
    there = np.isfinite(maps).all(axis=0) & np.isfinite(templates).all(axis=0)
    a, b = (x[:, there] - x[:, there].mean(axis=1, keepdims=True) for x in (maps, templates))
    a, b = (x / np.sqrt((x**2).sum(axis=1, keepdims=True)) for x in (a, b))
    r: Array = a @ b.T
    return r
