"""Dual regression: maps onto frames, then series onto voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from kconn.errors import InputError
from kconn.kernels.netmats import DEAD_OF_LEVEL, SINGULAR

Array = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


#: Voxels of maps that are multiplied at once.
_ROWS: Final = 1 << 16
#: How far two ways of adding the same weights may part.
_ROUNDING: Final = 1e-9


def find_voxels_with_data(x: npt.NDArray[Any], /, *, kept: BoolArray) -> BoolArray:
    """Return which rows of ``x`` (voxel, time) are finite at every kept frame and not constant over them."""
    inner = x[:, kept]
    with np.errstate(invalid="ignore"):
        useful: BoolArray = np.isfinite(inner).all(axis=1) & (inner != inner[:, :1]).any(axis=1)
    return useful


def normal_equations(x: npt.NDArray[Any], maps: npt.NDArray[Any], /, *, kept: BoolArray) -> tuple[Array, Array, Array]:
    """Return what one block of voxels adds to the regression of maps on every frame.

    Parameters
    ----------
    x
        Signal of the block (voxel, time).
    maps
        Regressors of the block (voxel, map).
    kept
        (time,) frames that count.

    Returns
    -------
    tuple
        M'M (map, map), M'X (map, time) and the sum of abs(M) (map,) over the voxels with data, in float64.
    """
    useful = find_voxels_with_data(x, kept=kept) & np.isfinite(maps).all(axis=1)
    M = maps[useful].astype(np.float64)
    return M.T @ M, M.T @ x[useful].astype(np.float64), np.abs(M).sum(axis=0)


def solve_maps(
    parts: Sequence[tuple[Array, Array, Array]], /, *, kept: BoolArray, n_map: int, where: str = ""
) -> tuple[Array, Array]:
    """Return the series of the maps from the parts of all blocks, added in the order given.

    Parameters
    ----------
    parts
        What `normal_equations` returned for each block.
    kept
        (time,) frames that count; the others become NaN.
    n_map
        How many of the first regressors are maps.
    where
        The run, for the message.

    Returns
    -------
    tuple
        Series (map, time) and the weight (map,) of the voxels with data.

    Raises
    ------
    InputError
        Code ``E-NODES`` if a map is empty or a combination of the others, where the run has data.
    """
    gram, cross, weight = (np.zeros_like(part) for part in parts[0])
    for part_gram, part_cross, part_weight in parts:
        gram += part_gram
        cross += part_cross
        weight += part_weight

    level = np.sqrt(np.diagonal(gram))
    empty = np.flatnonzero(~(level > 0))
    if empty.size:
        raise InputError(
            "E-NODES",
            f"map {empty[0] + 1} of {n_map} is zero wherever the run has data",
            where=where,
            rule="every map reaches into the run",
            fix="leave that map out, or check that maps and run are in one space",
        )
    factor = _factor(gram / level / level[:, None], where)
    series = cho_solve(factor, np.where(kept, cross, 0) / level[:, None]) / level[:, None]
    series[:, ~kept] = np.nan
    return series[:n_map], weight[:n_map]


def average_maps(
    parts: Sequence[tuple[Array, Array, Array]], /, *, kept: BoolArray, n_map: int, where: str = ""
) -> tuple[Array, Array]:
    """Return the mean series of the voxels, weighted by each map; parameters and result as in `solve_maps`.

    Raises
    ------
    InputError
        Code ``E-NODES`` if a map is empty where the run has data, or negative somewhere: the sum of its weights and of
        their absolute values then differ, which the parts tell by their last row, the map of ones.
    """
    cross, weight, total = (np.zeros_like(part) for part in (parts[0][1], parts[0][2], parts[0][2]))
    for part_gram, part_cross, part_weight in parts:
        cross += part_cross
        weight += part_weight
        total += part_gram[-1]
    for i in range(n_map):
        if not weight[i] > 0 or total[i] < weight[i] * (1 - _ROUNDING):
            raise InputError(
                "E-NODES",
                f"map {i + 1} of {n_map} is {'negative somewhere' if weight[i] > 0 else 'zero'} where the run has data",
                where=where,
                rule="weights of a mean are above zero, or zero",
                fix='leave that map out, or take method = "dual-regression"',
            )
    series = np.where(kept, cross[:n_map] / weight[:n_map, None], np.nan)
    return series, weight[:n_map]


def check_independent(maps: npt.NDArray[Any], /, *, where: str = "") -> None:
    """Refuse maps (voxel, map) of which one is a combination of the others and of a map that is 1 everywhere.

    Raises
    ------
    InputError
        Code ``E-NODES``.
    """
    n_map = maps.shape[1]
    gram = np.zeros((n_map + 1, n_map + 1))
    for first in range(0, len(maps), _ROWS):
        M = maps[first : first + _ROWS].astype(np.float64)
        M = np.column_stack([M, np.ones(len(M))])
        gram += M.T @ M
    level = np.sqrt(np.diagonal(gram))
    _factor(gram / level / level[:, None], where)


def _factor(gram: Array, where: str) -> tuple[Array, bool]:
    try:
        factor = cho_factor(gram)
        least = float((np.diagonal(factor[0]) ** 2).min())
    except np.linalg.LinAlgError:
        least = 0.0
    if least < SINGULAR:
        raise InputError(
            "E-NODES",
            f"the {len(gram)} maps are not independent of each other",
            where=where,
            rule=f"each keeps at least {SINGULAR:g} of its sum of squares, given the others",
            fix="leave out maps that are copies or sums of others",
        )
    return factor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesFit:
    """The regression of any voxel on the series of all nodes, solved once.

    Parameters
    ----------
    design
        (node, kept frame) series without their mean.
    operator
        (node, kept frame) inv(D D') D.
    variance
        (node,) diagonal of inv(D D').
    n_dof
        Residual degrees of freedom, the mean counted as one.
    fitted
        (all nodes,) which of them have a series; the others are no ``node`` here.
    """

    design: Array
    operator: Array
    variance: Array
    n_dof: int
    fitted: BoolArray


def fit_series(series: Array, /, *, kept: BoolArray, normalise: bool, where: str = "") -> SeriesFit:
    """Return the regression on ``series`` (node, time) over the kept frames.

    Parameters
    ----------
    series
        (node, time). A series that is not finite at a kept frame is left out.
    kept
        (time,) frames that count.
    normalise
        Whether each series is scaled to unit variance (n - 1) first, so that its map also reflects how strongly the
        node moves.
    where
        The run, for the message.

    Raises
    ------
    InputError
        Code ``E-NETMAT-RANK`` if there are too few frames, ``E-NODES`` if the series are not independent.
    """
    D = series[:, kept].astype(np.float64)
    fitted: BoolArray = np.asarray(np.isfinite(D).all(axis=1))
    D = D[fitted]
    D = D - D.mean(axis=1, keepdims=True)
    n_dof = D.shape[1] - 1 - len(D)
    if n_dof < 1:
        raise InputError(
            "E-NETMAT-RANK",
            f"{D.shape[1]} kept frames cannot tell {len(D)} series apart",
            where=where,
            rule="there are more kept frames than series, and one more",
            fix="use fewer maps or longer runs",
        )
    length = np.sqrt(np.einsum("nt,nt->n", D, D))
    if normalise:
        D = D / (length / np.sqrt(D.shape[1] - 1))[:, None]
        length = np.full(len(D), np.sqrt(D.shape[1] - 1))
    factor = _factor(D @ D.T / length / length[:, None], where)
    inverse = cho_solve(factor, np.eye(len(D))) / length / length[:, None]
    return SeriesFit(design=D, operator=inverse @ D, variance=np.diagonal(inverse).copy(), n_dof=n_dof, fitted=fitted)


def regress_series(
    x: npt.NDArray[Any], fit: SeriesFit, /, *, kept: BoolArray
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return coefficient and t (node, voxel) of each series in each voxel of ``x`` (voxel, time).

    NaN for voxels that are constant or not finite.
    """
    y = x[:, kept].astype(np.float64)
    level = np.einsum("vt,vt->v", y, y)
    y -= y.mean(axis=1, keepdims=True)
    beta = fit.operator @ y.T
    residual = y - beta.T @ fit.design
    left = np.einsum("vt,vt->v", residual, residual)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = beta / np.sqrt(fit.variance[:, None] * left / fit.n_dof)
        silent = ~(np.einsum("vt,vt->v", y, y) > DEAD_OF_LEVEL**2 * level)
    beta[:, silent] = t[:, silent] = np.nan
    maps = np.full((2, fit.fitted.size, len(x)), np.nan, dtype=np.float32)
    maps[:, fit.fitted] = beta, t
    return maps[0], maps[1]
