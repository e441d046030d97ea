"""Relabelled statistics of many features, block by block on one grid: extremes and counts, or whole maps.

No bit of a result depends on how features and relabellings are cut into calls: each product has the same operands
whichever call makes it. Call these functions with BLAS on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.kernels.glm import Engine, Observed, join_observed
from kconn.kernels.permutation import Relabelling

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]
CountArray = npt.NDArray[np.int64]
#: Positions of tested features and what a relabelling multiplies, one pair per canonical block.
Blocks = list[tuple[npt.NDArray[np.intp], Array]]

TAILS: Final = ("two-sided", "greater", "less")
#: Features computed together: the canonical grid of every test. A task holds whole blocks, whatever its size.
FEATURE_BLOCK: Final = 1024
#: Rows of one product, relabellings by rows each: keeps the product in a core's second-level cache.
PRODUCT_ROWS: Final = 192
#: Statistics closer than this are ties, relative to max(|value|, unit), the unit being about one standard deviation.
TIE_RTOL: Final[dict[str, float]] = {"float64": 1e-9, "float32": 1e-5}


def plan_permutation_block(n_row: int) -> int:
    """Return how many relabellings are computed together: the canonical grid along permutations."""
    return max(4, min(64, PRODUCT_ROWS // n_row))


def observe_blocks(values: Array, engine: Engine) -> Observed:
    """Fit features ``(n_obs, n_feature)``, one canonical block after the other."""
    starts = range(0, values.shape[1], FEATURE_BLOCK)
    return join_observed([engine.observe(values[:, start : start + FEATURE_BLOCK]) for start in starts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a range of relabellings found for a range of features, one row for each of `TAILS`.

    ``highest (n_tail, n_perm)``: the extreme of the compared statistic over the features, turned so that larger is more
    extreme; ``counts (n_tail, n_feature)``: how many relabellings were at least as extreme as the observed one.
    """

    highest: FloatArray
    counts: CountArray


def join_features(parts: Sequence[Tally]) -> Tally:
    """Return what the same relabellings found for ranges of features side by side."""
    return Tally(
        highest=np.max([part.highest for part in parts], axis=0),
        counts=np.concatenate([part.counts for part in parts], axis=1),
    )


def join_ranges(parts: Sequence[Tally]) -> Tally:
    """Return what ranges of relabellings, one after the other, found for the same features."""
    return Tally(
        highest=np.concatenate([part.highest for part in parts], axis=1),
        counts=np.sum([part.counts for part in parts], axis=0),
    )


def tally(blocks: Blocks, engine: Engine, part: Relabelling, compared: FloatArray, dtype: str) -> Tally:
    """Compare some relabellings with the observed statistic.

    Parameters
    ----------
    blocks
        The data, from `iterate_blocks`.
    engine
        The contrast, and what is relabelled.
    part
        Rows of the table from 1 plus a multiple of `plan_permutation_block` on. Row 0, the identity, is the observed
        data and is not computed again.
    compared
        ``(n_feature,)``, the observed statistic on the compared scale, NaN where a feature is not tested.
    dtype
        ``"float64"`` or ``"float32"``: precision of the product. The observed statistic is always float64.
    """
    operands = build_operands(engine, part, dtype)
    n_perm, n_feature = len(part.permutations), compared.size
    highest, lowest = np.full(n_perm, -np.inf), np.full(n_perm, np.inf)
    totals = np.zeros((len(TAILS), n_feature), dtype=np.int64)
    for features, e in blocks:
        limits = engine.limits(compared[features], TIE_RTOL[dtype]).cast(dtype)
        counts = np.zeros((3, features.size), dtype=np.int32)
        i_perm = 0
        for rows in operands:
            here = slice(i_perm, i_perm + rows.shape[1])
            high, low = engine.tally(rows, e, limits, counts)
            np.maximum(highest[here], high, out=highest[here])
            np.minimum(lowest[here], low, out=lowest[here])
            i_perm += rows.shape[1]
        above, below, beyond = counts
        totals[:, features] = beyond, above, below
    return Tally(highest=np.stack([np.maximum(highest, -lowest), highest, -lowest]), counts=totals)


def build_operands(engine: Engine, part: Relabelling, dtype: str) -> list[Array]:
    """Return the rows of some relabellings, one array per canonical block."""
    n_perm = len(part.permutations)
    n_block = plan_permutation_block(engine.n_row)
    operands: list[Array] = []
    for first in range(0, n_perm, n_block):
        here = slice(first, first + n_block)
        signs = None if part.signs is None else part.signs[here]
        block = Relabelling(permutations=part.permutations[here], signs=signs)
        operands.append(np.ascontiguousarray(engine.build(block), dtype=dtype))
    return operands


def iterate_blocks(
    values: Array, engine: Engine, compared: FloatArray, dtype: str
) -> Iterator[tuple[npt.NDArray[np.intp], Array]]:
    """Yield positions and prepared data of the tested features, one canonical block at a time.

    Parameters
    ----------
    values
        ``(n_obs, n_feature)``; the first feature lies on the canonical grid (a multiple of `FEATURE_BLOCK`).
    engine, compared, dtype
        As in `tally`.
    """
    for first in range(0, values.shape[1], FEATURE_BLOCK):
        kept = np.flatnonzero(~np.isnan(compared[first : first + FEATURE_BLOCK]))
        if kept.size:
            block = np.asarray(values[:, first : first + FEATURE_BLOCK], dtype=np.float64)
            yield first + kept, engine.prepare(np.ascontiguousarray(block[:, kept])).astype(dtype)
