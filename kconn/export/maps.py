"""Maps as images: of sessions and of contrasts, on the grid or the grayordinates that the runs came with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.export.contrasts import ContrastFile
from kconn.grayordinates import COORDS, Grayordinates, find_rows, has_grayordinates, read_grayordinates
from kconn.io import cifti_write, cubes, nifti_write
from kconn.io.derivatives import bids_label
from kconn.study.connection_tables import MapKind
from kconn.study.plan import Step
from kconn.study.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class MapWords:
    """What a kind of map is called in names of files, in sidecars and in the report.

    ``variable``: in the store. ``stat``: the entity of that name. ``node``: the entity that names a node.
    ``values``: what a voxel holds. ``plural``: several of them, in a sentence.
    """

    variable: str
    stat: str
    node: str
    values: str
    plural: str


WORDS: Final[dict[MapKind, MapWords]] = {
    "seedmap": MapWords(
        variable="seed_map", stat="seedmap", node="seed", values="Fisher z: arctanh of r", plural="seed maps"
    ),
    "subjectmap": MapWords(
        variable="subject_map",
        stat="subjectmap",
        node="component",
        values="coefficient of the node series in the regression of each voxel on all of them",
        plural="subject maps",
    ),
}


def describe_values(kind: MapKind) -> str:
    """Return what a voxel of a kind of map holds, in a word or two where there is one for it."""
    return WORDS[kind].values.partition(":")[0]


#: Suffix of a file -> variable of a tested map, what it shows, and what voxels outside the mask hold.
_IMAGES: Final[dict[str, tuple[str, str, float]]] = {
    "effect": ("effect", "Effect", 0.0),
    "zstat": ("zstat", "Statistic as a standard normal deviate", 0.0),
    "punc": ("p_unc", "Permutation p, uncorrected,", np.nan),
    "pfwe": ("p_fwe", "Permutation p, corrected for all voxels of this map,", np.nan),
    "pfdr": ("p_fdr", "p corrected by the false discovery rate", np.nan),
    "enhanced": ("enhanced", "What the corrected p are of: the enhanced statistic, or that of its cluster,", 0.0),
    "cluster": ("cluster", "Number of the cluster", 0.0),
}


class MapWriter:
    """Writes values per voxel of a cohort where the runs have them: NIfTI, or dscalar on the axis of the input."""

    def __init__(self, bench: Workbench, ingest: Step) -> None:
        self.raw = cubes.open_group(bench.study.store, ingest.address)

    @property
    def ending(self) -> str:
        """How the names of its files end."""
        return ".dscalar.nii" if has_grayordinates(self.raw) else ".nii.gz"

    def write(
        self, path: Path, maps: npt.NDArray[Any], place: xr.Dataset, *, names: Sequence[str], outside: float = 0.0
    ) -> None:
        """Write maps ``(map, voxel)``, named, or one map ``(voxel,)``.

        ``place`` says which voxels those are, as coordinates. Grayordinates that it lacks are NaN; voxels hold
        ``outside``.
        """
        if has_grayordinates(self.raw):
            axis = read_grayordinates(self.raw)
            full = np.full((len(names), len(axis)), np.nan, dtype=np.float32)
            full[:, find_rows(_take_places(axis, place), axis)] = maps
            cifti_write.write_scalars(path, full, names, axis)
            return
        attrs = self.raw.attrs
        nifti_write.write_maps(
            path,
            maps,
            ijk=np.stack([place[name].to_numpy() for name in "ijk"], axis=1),
            grid_shape=tuple(attrs["grid_shape"]),
            affine=attrs["affine"],
            form_code=attrs["sform_code"] or attrs["qform_code"] or 1,
            outside=outside,
        )


def _take_places(axis: Grayordinates, place: xr.Dataset) -> Grayordinates:
    """Return the grayordinates that a result has as coordinates, in the space of those of a run."""
    structure, vertex, i, j, k = (place[name].to_numpy() for name in COORDS)
    return replace(axis, structure=structure, vertex=vertex, ijk=np.stack([i, j, k], axis=1))


def label_nodes(names: Sequence[str]) -> list[str]:
    """Return a label of BIDS per node, unlike all others whatever its case: with a number where letters do not do."""
    labels = [bids_label(name) if any(map(_is_plain, name)) else "" for name in names]
    folded = [label.casefold() for label in labels]
    return [
        label if label and folded.count(label.casefold()) == 1 else f"{i:0{len(str(len(names)))}d}{label}"
        for i, label in enumerate(labels, start=1)
    ]


def _is_plain(letter: str) -> bool:
    return letter.isascii() and letter.isalnum()


def write_session(path: Path, cohort: xr.Dataset, *, i_row: int, variable: str, writer: MapWriter) -> None:
    """Write the maps of all nodes of one observation of a cohort, one node behind the other."""
    maps = cohort[variable].isel(observation=i_row).to_numpy()
    writer.write(path, maps, cohort, names=[str(name) for name in cohort["node"].to_numpy()])


def list_map_images(result: xr.Dataset, *, node: str, writer: MapWriter) -> list[ContrastFile]:
    """Return the images of one contrast over the map of one node."""
    kind = str(result["stat_kind"].item())
    parts = {f"{kind.lower()}stat": ("stat", f"Statistic {kind}", 0.0), **_IMAGES}
    if "n_exceed" in result.attrs:  # features stopped by themselves: no maximum, so no p corrected by it
        parts.pop("pfwe")
    return [
        ContrastFile(
            suffix=f"{suffix}{writer.ending}",
            write=partial(_write_variable, variable=variable, node=node, outside=outside, writer=writer),
            description=f"{what} of each voxel of the map of {node}; {_outside(outside)}.",
        )
        for suffix, (variable, what, outside) in parts.items()
        if variable in result
    ]


def _outside(value: float) -> str:
    return "NaN where nothing was tested" if np.isnan(value) else "0 outside the mask"


def _write_variable(
    path: Path, result: xr.Dataset, *, variable: str, node: str, outside: float, writer: MapWriter
) -> None:
    writer.write(path, result[variable].to_numpy(), result, names=[f"{node} {variable}"], outside=outside)


def write_joint(path: Path, result: xr.Dataset, *, at: tuple[int, int], writer: MapWriter) -> None:
    """Write p corrected over nodes, of one contrast (by position) and one node (by position)."""
    i_contrast, i_node = at
    one = result.isel(contrast=i_contrast) if "contrast" in result.dims else result
    node = str(one["node"].to_numpy()[i_node])
    p = one["p_fwe_nodes"].isel(node=i_node).to_numpy()
    writer.write(path, p, one, names=[f"{node} p_fwe_nodes"], outside=np.nan)
