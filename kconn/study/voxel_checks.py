"""What must hold before voxels of many runs are analysed together: checks without compute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from kconn.cluster import cores
from kconn.connect.voxels import GRID_ATTRS
from kconn.errors import InputError, ResourceError
from kconn.kernels.blas import single_thread

#: Rows and columns of the product that is timed: tens of milliseconds.
_SIDE: Final = 1024


def check_one_grid(templates: Sequence[xr.Dataset]) -> None:
    """Refuse runs without voxels, and runs on different grids.

    Parameters
    ----------
    templates
        A Dataset per run with its attrs ``grid_shape`` and ``affine``, or of grayordinates.

    Raises
    ------
    InputError
        ``E-NODES`` or ``E-GRID``.
    """
    for template in templates:
        where = str(template.attrs.get("where", ""))
        if "column" in template.coords:
            raise InputError(
                "E-NODES",
                "tables of node series have no voxels",
                where=where,
                rule="this needs images",
                fix="take it out of the study file",
            )
        for name in GRID_ATTRS:
            mine, first = (np.asarray(ds.attrs.get(name, ())) for ds in (template, templates[0]))
            if not np.array_equal(mine, first):
                raise InputError(
                    "E-GRID",
                    f"its {name} differs from that of {templates[0].attrs.get('where', 'the first run')}",
                    where=where,
                    rule="runs whose voxels are analysed together share shape and affine",
                    fix="resample all runs to one space and resolution",
                )


def check_dense_time(n_voxel: int, n_frame: int, *, max_hours: float) -> None:
    """Refuse a dense connectome that would take longer than allowed on the cores of this machine.

    The time is that of the products alone, at the rate of a small one that is timed here.

    Parameters
    ----------
    n_voxel, n_frame
        Voxels, and frames of all runs.
    max_hours
        Hours.

    Raises
    ------
    ResourceError
        ``E-TIME``.
    """
    hours = n_voxel**2 * n_frame / measure_rate() / cores() / 3600
    if hours > max_hours:
        raise ResourceError(
            "E-TIME",
            f"{n_voxel:,} voxels by {n_frame:,} frames take about {hours:.1f} hours on this machine",
            rule=f"max_hours is {max_hours:g}",
            fix="raise max_hours, take fewer sessions, or parcels instead of voxels",
        )


def measure_rate() -> float:
    """Return the operations per second of one thread in a product of float32 matrices, the best of three."""
    a = np.ones((_SIDE, _SIDE), dtype=np.float32)
    best = np.inf
    with single_thread():
        for _ in range(3):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
