"""A coarse simulated brain: an ellipsoid of voxels with mirrored nodes, networks and tissue, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import SchemaError

#: Networks from the back of the head to the front: a node gets its network from its position.
NETWORKS: Final = ("Visual", "DorsalAttention", "Somatomotor", "Salience", "Limbic", "Control", "Default")

_CENTRE_MM: Final = np.array([0.0, -18.0, 12.0])
_RADII_MM: Final = np.array([69.0, 86.0, 62.0])
_EXTENT_MM: Final = 160.0
# Share of the radius at which tissue ends: ventricles inside, white matter around them, cortex at the rim.
_CSF_RADIUS: Final = 0.25
_WHITE_RADIUS: Final = 0.5
_CORTEX: Final = (0.58, 0.95)
_NODE_RADIUS_VOXELS: Final = 2.3

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brain:
    """Where the simulated voxels and nodes lie; rows are voxels in the order of the file (first axis fastest)."""

    grid_shape: tuple[int, int, int]
    affine: FloatArray
    """(4, 4), voxel to mm."""
    ijk: npt.NDArray[np.int32]
    """(voxel, 3)"""
    xyz: FloatArray
    """(voxel, 3), mm."""
    radius: FloatArray
    """(voxel,), 0 at the centre of the brain, 1 at its surface."""
    parcel: npt.NDArray[np.int32]
    """(voxel,), 1-based node, 0 outside all nodes."""
    nodes: pd.DataFrame
    """One row per node: index, name, network, x, y, z."""
    noise_scale: float = 1.0
    """Thermal noise relative to one voxel; below 1 where a row stands for the mean of many."""

    @property
    def csf(self) -> npt.NDArray[np.bool_]:
        """(voxel,), True in the ventricles."""
        return np.asarray((self.radius < _CSF_RADIUS) & (self.parcel == 0))

    @property
    def white_matter(self) -> npt.NDArray[np.bool_]:
        """(voxel,), True in white matter."""
        return np.asarray((self.radius >= _CSF_RADIUS) & (self.radius < _WHITE_RADIUS) & (self.parcel == 0))

    def volume(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put ``values (voxel, ...)`` back on the grid, zero outside the mask, in Fortran order."""
        out = np.zeros((*self.grid_shape, *values.shape[1:]), dtype=values.dtype, order="F")
        i, j, k = self.ijk.T
        out[i, j, k] = values
        return out


def plan_brain(*, grid_shape: tuple[int, int, int], n_nodes: int) -> Brain:
    """Lay an ellipsoid brain on a grid and place nodes in its cortex, left and right mirrored.

    Parameters
    ----------
    grid_shape
        Voxels along x, y, z. Voxels are cubes of 160 mm / ``grid_shape[0]``.
    n_nodes
        Number of nodes, placed far from each other.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the grid has too few cortical voxels for the nodes.
    """
    size = _EXTENT_MM / grid_shape[0]
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = _CENTRE_MM - size * (np.array(grid_shape) - 1) / 2

    # Transposed axes make the first grid axis the fastest, the order in which a NIfTI file stores its voxels.
    kji = np.indices(grid_shape[::-1]).reshape(3, -1)
    ijk = kji[::-1].T.astype(np.int32)
    xyz = ijk * size + affine[:3, 3]
    radius = np.sqrt((((xyz - _CENTRE_MM) / _RADII_MM) ** 2).sum(axis=1))
    inside = radius <= 1
    ijk, xyz, radius = ijk[inside], xyz[inside], radius[inside]

    seeds = _place_seeds(xyz, radius, n_nodes=n_nodes)
    squared = ((xyz[:, None, :] - seeds[None, :, :]) ** 2).sum(axis=2)
    nearest = squared.argmin(axis=1)
    near = squared[np.arange(len(xyz)), nearest] <= (_NODE_RADIUS_VOXELS * size) ** 2
    parcel = np.where(near & (radius > _WHITE_RADIUS), nearest + 1, 0).astype(np.int32)
    return Brain(
        grid_shape=grid_shape,
        affine=affine,
        ijk=ijk,
        xyz=xyz,
        radius=radius,
        parcel=parcel,
        nodes=_describe_nodes(xyz, parcel, n_nodes=n_nodes),
    )


def collapse(brain: Brain) -> Brain:
    """Return a brain with one row per node, one of white matter and one of CSF: for node tables without images."""
    groups = [brain.parcel == i + 1 for i in range(len(brain.nodes))] + [brain.white_matter, brain.csf]
    n_voxels = np.array([group.sum() for group in groups])
    return Brain(
        grid_shape=(len(groups), 1, 1),
        affine=np.eye(4),
        ijk=np.column_stack([np.arange(len(groups)), np.zeros((len(groups), 2))]).astype(np.int32),
        xyz=np.array([brain.xyz[group].mean(axis=0) for group in groups]),
        radius=np.array([brain.radius[group].mean() for group in groups]),
        parcel=np.array([*range(1, len(brain.nodes) + 1), 0, 0], dtype=np.int32),
        nodes=brain.nodes,
        noise_scale=float(1 / np.sqrt(np.median(n_voxels))),
    )


def _place_seeds(xyz: FloatArray, radius: FloatArray, *, n_nodes: int) -> FloatArray:
    """Choose voxels of the left cortex, each as far as possible from those before, and mirror them: (node, 3)."""
    cortex = (radius >= _CORTEX[0]) & (radius <= _CORTEX[1])
    left = xyz[cortex & (xyz[:, 0] < 0)]
    n_left = (n_nodes + 1) // 2
    if n_nodes < 2 or len(left) < 2 * n_left:
        raise SchemaError(
            "E-ARGUMENT",
            f"n_nodes is {n_nodes}, the left cortex has {len(left)} voxels",
            rule=f"2 to {len(left)} nodes fit on this grid",
            fix="choose a finer grid_shape or fewer nodes",
        )
    mirror = left * [-1.0, 1.0, 1.0]
    chosen = [int(left[:, 1].argmin())]
    distance = np.full(len(left), np.inf)
    while len(chosen) < n_left:
        # The mirror image counts as a neighbour, so that the two seeds of a pair do not share voxels.
        for seeds in (left, mirror):
            distance = np.minimum(distance, ((left - seeds[chosen[-1]]) ** 2).sum(axis=1))
        own = ((left - mirror) ** 2).sum(axis=1)
        chosen.append(int(np.minimum(distance, own).argmax()))

    back_to_front = sorted(chosen, key=lambda i: (left[i, 1], left[i, 2], left[i, 0]))
    pairs = np.stack([left[back_to_front], mirror[back_to_front]], axis=1)
    return pairs.reshape(-1, 3)[:n_nodes]


def _describe_nodes(xyz: FloatArray, parcel: npt.NDArray[np.int32], *, n_nodes: int) -> pd.DataFrame:
    n_pairs = (n_nodes + 1) // 2
    n_networks = min(len(NETWORKS), max(1, n_pairs // 2))
    rows = []
    counts: dict[tuple[str, str], int] = {}
    for i in range(n_nodes):
        network = NETWORKS[(i // 2) * n_networks // n_pairs]
        side = "LR"[i % 2]
        counts[network, side] = counts.get((network, side), 0) + 1
        x, y, z = xyz[parcel == i + 1].mean(axis=0).round(1)
        rows.append((i + 1, f"{network}_{side}{counts[network, side]}", network, x, y, z))
    return pd.DataFrame(rows, columns=["index", "name", "network", "x", "y", "z"])
