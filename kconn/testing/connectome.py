"""The known connectome: network blocks, differences between subjects, and planted edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kconn.errors import SchemaError

# How much of a correlation is the subject's own, and how much changes from one visit to the next.
_SUBJECT_SHARE: Final = 0.1
_SESSION_SHARE: Final = 0.05
_N_FACTORS: Final = 8
_LOADINGS: Final = (0.55, 0.7)
_BETWEEN_NETWORKS: Final = (-0.15, 0.35)

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedEdge:
    """An edge whose correlation changes, and by how much."""

    i: int
    j: int
    sign: int
    size: float
    r_before: float

    @property
    def change(self) -> float:
        """Signed change of the correlation."""
        return self.sign * self.size


def plan_connectome(networks: Sequence[str], rng: np.random.Generator) -> FloatArray:
    """Return a positive definite correlation matrix (node, node): strong within networks, weak between them."""
    names = list(dict.fromkeys(networks))
    member = np.array([names.index(network) for network in networks])
    between = rng.uniform(*_BETWEEN_NETWORKS, size=(len(names), len(names)))
    between = (between + between.T) / 2
    np.fill_diagonal(between, 1.0)
    # Seven networks of such small correlations are positive definite in practice; the shift makes it certain.
    lowest = float(np.linalg.eigvalsh(between)[0])
    between = (between + max(0.0, 0.1 - lowest) * np.eye(len(names))) / (1 + max(0.0, 0.1 - lowest))

    loading = rng.uniform(*_LOADINGS, size=len(member))
    correlation = loading[:, None] * loading[None, :] * between[member][:, member]
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def plan_effects(
    correlation: FloatArray,
    networks: Sequence[str],
    *,
    n_effect_edges: int,
    effect_size: float,
    rng: np.random.Generator,
) -> tuple[PlantedEdge, ...]:
    """Choose edges to change: every second one up (between networks), the others down (within a network).

    No node takes part in two of them, so that each planted change stays in its own edge.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if there are not enough nodes.
    """
    same = np.array(networks)[:, None] == np.array(networks)[None, :]
    edges = np.column_stack(np.triu_indices(len(correlation), 1)).tolist()
    free = set(range(len(correlation)))
    planted = []
    for i_effect in range(n_effect_edges):
        sign = 1 if i_effect % 2 == 0 else -1
        allowed = [(i, j) for i, j in edges if i in free and j in free and same[i, j] == (sign < 0)]
        if not allowed:
            raise SchemaError(
                "E-ARGUMENT",
                f"n_effect_edges is {n_effect_edges}, only {i_effect} fit on {len(correlation)} nodes",
                rule="no node may take part in two planted edges",
                fix="plant fewer edges or simulate more nodes",
            )
        i, j = allowed[int(rng.integers(len(allowed)))]
        free -= {i, j}
        planted.append(PlantedEdge(i=i, j=j, sign=sign, size=effect_size, r_before=float(correlation[i, j])))
    return tuple(planted)


def apply_effects(correlation: FloatArray, effects: Sequence[PlantedEdge]) -> FloatArray:
    """Return the matrix with every planted change added."""
    out = correlation.copy()
    for edge in effects:
        out[edge.i, edge.j] += edge.change
        out[edge.j, edge.i] += edge.change
    return out


def vary_connectome(
    correlation: FloatArray, *, subject: np.random.Generator, session: np.random.Generator
) -> FloatArray:
    """Return one subject's matrix at one visit: the common one mixed with the subject's and the visit's own.

    A mixture of correlation matrices is a correlation matrix, so nothing has to be repaired afterwards.
    """
    shared = 1 - _SUBJECT_SHARE - _SESSION_SHARE
    return (
        shared * correlation
        + _SUBJECT_SHARE * _random_correlation(len(correlation), subject)
        + _SESSION_SHARE * _random_correlation(len(correlation), session)
    )


def factor_covariance(correlation: FloatArray) -> FloatArray:
    """Return the Cholesky factor, or say that the planted changes are too large."""
    try:
        return np.asarray(np.linalg.cholesky(correlation))
    except np.linalg.LinAlgError:
        raise SchemaError(
            "E-ARGUMENT",
            "the planted changes leave no positive definite correlation matrix",
            rule="effect_size must keep every correlation possible",
            fix="choose a smaller effect_size",
        ) from None


def _random_correlation(n_nodes: int, rng: np.random.Generator) -> FloatArray:
    loading = rng.standard_normal((n_nodes, _N_FACTORS))
    loading /= np.linalg.norm(loading, axis=1, keepdims=True)
    return np.asarray(loading @ loading.T)
