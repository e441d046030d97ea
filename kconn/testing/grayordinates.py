"""Simulated grayordinates: the cortex of a simulated brain as vertices of two surfaces, its depth as voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.cifti2 import cifti2_axes

from kconn.testing.brain import Brain

# nibabel types its CIFTI classes in part.
_axes: Any = cifti2_axes
_nib: Any = nib

_SIDES: Final = ("LEFT", "RIGHT")
# Share of the radius beyond which tissue is cortex, and below which it is the grey matter of the depth.
_CORTEX_RADIUS: Final = 0.5
_DEEP_RADIUS: Final = 0.35
# Every tenth vertex stands for the medial wall: it has no data, so that the rank of a row is not its vertex.
_WALL_EVERY: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sheet:
    """The grayordinates of a simulated brain.

    Attributes
    ----------
    rows
        (grayordinate,) the row of the brain that each one is.
    series_axis
        nibabel's axis of a series: vertices without the medial wall, then voxels.
    surface_axis
        nibabel's axis of all vertices, the medial wall included.
    label
        (vertex of `surface_axis`,) 1-based node, 0 outside all nodes.
    """

    rows: npt.NDArray[np.intp]
    series_axis: Any
    surface_axis: Any
    label: npt.NDArray[np.int32]


def plan_sheet(brain: Brain) -> Sheet:
    """Lay a simulated brain out as grayordinates; every node lies on the surfaces."""
    rows, series_axes, surface_axes, labels = [], [], [], []
    for name, cortex in zip(_SIDES, _halves(brain, brain.radius >= _CORTEX_RADIUS), strict=True):
        rank = np.arange(len(cortex))
        vertex = rank + rank // (_WALL_EVERY - 1) + 1
        surface = f"CIFTI_STRUCTURE_CORTEX_{name}"
        counts = {surface: int(vertex[-1]) + 2}
        rows.append(cortex)
        series_axes.append(_axes.BrainModelAxis(surface, vertex=vertex, nvertices=counts))
        surface_axes.append(_axes.BrainModelAxis(surface, vertex=np.arange(counts[surface]), nvertices=counts))
        label = np.zeros(counts[surface], np.int32)
        label[vertex] = brain.parcel[cortex]
        labels.append(label)
    for name, depth in zip(_SIDES, _halves(brain, brain.radius < _DEEP_RADIUS), strict=True):
        rows.append(depth)
        series_axes.append(
            _axes.BrainModelAxis(
                f"CIFTI_STRUCTURE_THALAMUS_{name}",
                voxel=brain.ijk[depth],
                affine=brain.affine,
                volume_shape=brain.grid_shape,
            )
        )
    return Sheet(
        rows=np.concatenate(rows),
        series_axis=sum(series_axes[1:], start=series_axes[0]),
        surface_axis=sum(surface_axes[1:], start=surface_axes[0]),
        label=np.concatenate(labels),
    )


def write_dtseries(path: Path, bold: npt.NDArray[np.float32], sheet: Sheet, *, t_r: float) -> None:
    """Write ``bold (voxel, time)`` of a simulated brain as a dtseries."""
    values = np.ascontiguousarray(bold[sheet.rows].T)
    _write(path, values, (_axes.SeriesAxis(0.0, t_r, len(values)), sheet.series_axis), "ConnDenseSeries")


def write_dlabel(path: Path, sheet: Sheet, names: Mapping[int, str]) -> None:
    """Write the nodes of a simulated brain as a dlabel; the colours are those of a wheel."""
    table: dict[int, Any] = {0: ("???", (1.0, 1.0, 1.0, 0.0))}
    for key, name in names.items():
        turn = np.round(0.5 + 0.5 * np.cos(2 * np.pi * (key / len(names) + np.arange(3) / 3)), 3)
        table[key] = (name, (*turn.tolist(), 1.0))
    axis = _axes.LabelAxis(["nodes"], [table])
    _write(path, sheet.label[None].astype(np.float32), (axis, sheet.surface_axis), "ConnDenseLabel")


def _halves(brain: Brain, inside: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    is_left = brain.xyz[:, 0] < 0
    return np.flatnonzero(inside & is_left), np.flatnonzero(inside & ~is_left)


def _write(path: Path, values: npt.NDArray[np.float32], axes: tuple[Any, Any], intent: str) -> None:
    image = _nib.Cifti2Image(values, axes)
    image.nifti_header.set_intent(intent)
    image.nifti_header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
