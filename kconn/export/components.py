"""The components of a group ICA as files: maps, and a table of what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.export.maps import MapWriter

#: Column of the table of components -> what it means.
COLUMNS: Final[dict[str, str]] = {
    "component": "Name, in the order of the maps.",
    "accepted": "1 if it counts as a network.",
    "reason": "Why it was rejected.",
    "stability": "Mean correlation with the most similar component of the other starts.",
    "variance_share": "Share of the variance that was decomposed.",
}


def write_components(path: Path, components: xr.Dataset, *, writer: MapWriter, threshold: float | None) -> None:
    """Write the maps of all components, one behind the other: z, and 0 below a threshold where one is given."""
    maps = components["ica_map"].to_numpy()
    if threshold is not None:
        maps = np.where(np.abs(maps) > threshold, maps, np.float32(0))
    writer.write(path, maps, components, names=[str(name) for name in components["node"].to_numpy()])


def tabulate_components(components: xr.Dataset, selected: xr.Dataset) -> Mapping[str, npt.ArrayLike]:
    """Return one row per component, with its correlation with each template as ``r_<template>``."""
    columns: dict[str, npt.ArrayLike] = {
        "component": components["node"].to_numpy(),
        "accepted": selected["accepted"].to_numpy().astype(np.int64),
        "reason": selected["reason"].to_numpy(),
        "stability": components["stability"].to_numpy(),
        "variance_share": components["variance_share"].to_numpy(),
    }
    if "template_correlation" in components:
        r = components["template_correlation"]
        columns |= {f"r_{name}": r[:, i].to_numpy() for i, name in enumerate(map(str, r["template"].to_numpy()))}
    return columns
