"""Results of CIFTI runs as CIFTI: maps and series on the axis of the run, node series and matrices on its parcels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.chunks import plan_voxel_blocks
from kconn.connect.nodes import Columns, DenseLabels, NodeSet, Union
from kconn.export.contrasts import ContrastFile, feature_dim, name_corrected_p
from kconn.grayordinates import Grayordinates, has_grayordinates, join_grayordinates, read_grayordinates
from kconn.io import cifti, cifti_write, cubes
from kconn.io.cifti import Parcels
from kconn.kernels.netmats import unpack_edges
from kconn.study.examination import RunFacts
from kconn.study.nodesets import load_nodes
from kconn.study.plan import Step
from kconn.study.workbench import Workbench

#: Grayordinates of the two standard spaces -> what BIDS calls their density.
_DENSITIES: Final = {91_282: "91k", 170_494: "170k"}


def is_cifti(facts: RunFacts) -> bool:
    """Return whether a run came as dtseries or ptseries."""
    return facts.run.bold is not None and cifti.is_series(facts.run.bold)


def density_of(facts: RunFacts) -> str | None:
    """Return the BIDS label of the density of a run, where it has one."""
    return _DENSITIES.get(facts.n_voxel)


def has_parcels(nodes: Step) -> bool:
    """Return whether the nodes of a CIFTI run are parcels: maps that overlap are not."""
    return nodes.params["ica"] is None and "maps" not in nodes.files


def endings_of(facts: RunFacts) -> tuple[str, str]:
    """Return how files with series and with maps of a run end."""
    is_dense = has_grayordinates(facts.template)
    return (".dtseries.nii", ".dscalar.nii") if is_dense else (".ptseries.nii", ".pscalar.nii")


class RunWriter:
    """Writes what has a value per grayordinate, or per parcel of a ptseries, on the axis that the run came with."""

    def __init__(self, bench: Workbench, ingest: Step) -> None:
        self.root = bench.study.store
        self.address = ingest.address

    def write_denoised(self, path: Path, result: xr.Dataset) -> None:
        """Write ``denoised`` as a series."""
        raw = cubes.open_group(self.root, self.address)
        denoised = result["denoised"]
        cifti_write.write_series(
            path,
            _row_blocks(denoised),
            n_time=denoised.sizes["time"],
            t_r=float(raw.attrs["t_r"]),
            start=float(raw.attrs["series_start"]),
            places=_places(raw),
        )

    def write_tsnr(self, path: Path, result: xr.Dataset) -> None:
        """Write ``tsnr`` as a map."""
        raw = cubes.open_group(self.root, self.address)
        cifti_write.write_scalars(path, result["tsnr"].to_numpy()[None], ["tSNR"], _places(raw))


class NodeWriter:
    """Writes what has a value per node or pair of nodes, on the parcels of a node set."""

    def __init__(self, bench: Workbench, nodes: Step) -> None:
        self.bench = bench
        self.nodes = nodes

    def write_series(self, path: Path, result: xr.Dataset) -> None:
        """Write ``timeseries`` as a ptseries."""
        raw = self._run()
        series = result["timeseries"].transpose("node", "time").to_numpy()
        cifti_write.write_series(
            path,
            [series],
            n_time=series.shape[1],
            t_r=float(raw.attrs["t_r"]),
            start=float(raw.attrs["series_start"]),
            places=self._parcels(raw),
        )

    def write_coverage(self, path: Path, result: xr.Dataset) -> None:
        """Write ``coverage`` as a pscalar."""
        cifti_write.write_scalars(path, result["coverage"].to_numpy()[None], ["coverage"], self._parcels(self._run()))

    def write_matrix(self, path: Path, matrix: npt.NDArray[np.floating[Any]]) -> None:
        """Write values ``(node, node)`` as a pconn."""
        cifti_write.write_matrix(path, matrix, self._parcels(self._run()))

    def _run(self) -> xr.Dataset:
        return cubes.open_group(self.bench.study.store, self.nodes.reads("ingest").address)

    def _parcels(self, raw: xr.Dataset) -> Parcels:
        files = {role: self.bench.study.folder / path for role, path in self.nodes.files.items()}
        nodes = load_nodes(self.nodes.params, files, raw)
        assert isinstance(nodes, NodeSet)  # noqa: S101 - the survey refuses maps of voxels for grayordinates
        return _pick_parcels(_places(raw), nodes.names) if isinstance(nodes.source, Columns) else parcels_of(nodes)


def list_matrix_files(result: xr.Dataset, writer: NodeWriter) -> list[ContrastFile]:
    """Return the files of one contrast over pairs of nodes as pconn."""
    if feature_dim(result) != "edge":
        return []
    stat = str(result["stat_kind"].item()).lower()
    parts = {"effect": ("effect", "Effect"), f"{stat}stat": ("stat", f"Statistic {stat}")}
    suffix, variable, words = name_corrected_p(result)
    parts[suffix] = (variable, f"Permutation p, {words},")
    return [
        ContrastFile(
            suffix=f"{suffix}.pconn.nii",
            write=partial(_write_edges, writer=writer, variable=variable),
            description=f"{what} of each pair of parcels.",
        )
        for suffix, (variable, what) in parts.items()
        if variable in result
    ]


def _write_edges(path: Path, result: xr.Dataset, *, writer: NodeWriter, variable: str) -> None:
    writer.write_matrix(path, unpack_edges(result[variable].to_numpy(), diagonal=np.nan))


def parcels_of(nodes: NodeSet) -> Parcels:
    """Return the nodes of a dlabel, or of several, as parcels: the grayordinates that they have in the atlas.

    Parameters
    ----------
    nodes
        Dense labels, or a union of such.
    """
    match nodes.source:
        case DenseLabels(places=places, label=label, keys=keys):
            node = np.searchsorted(keys, label)
            rows = np.flatnonzero(np.asarray(keys)[np.minimum(node, len(keys) - 1)] == label)
            return Parcels(names=nodes.names, members=places.take(rows), parcel=node[rows].astype(np.int32))
        case Union(parts=parts):
            found = [parcels_of(part) for part in parts]
            first = np.cumsum([0, *(len(part.names) for part in found[:-1])])
            return Parcels(
                names=nodes.names,
                members=join_grayordinates([part.members for part in found]),
                parcel=np.concatenate([part.parcel + n for part, n in zip(found, first, strict=True)]).astype(np.int32),
            )
        case _:
            raise TypeError(type(nodes.source).__name__)


def _pick_parcels(parcels: Grayordinates | Parcels, names: tuple[str, ...]) -> Parcels:
    """Return some parcels of a ptseries, in the order wanted."""
    if not isinstance(parcels, Parcels):
        raise TypeError(type(parcels).__name__)
    rank = {name: i for i, name in enumerate(names)}
    of_parcel = np.array([rank.get(name, -1) for name in parcels.names], dtype=np.int32)[parcels.parcel]
    rows = np.flatnonzero(of_parcel >= 0)
    return Parcels(names=names, members=parcels.members.take(rows), parcel=of_parcel[rows])


def _places(raw: xr.Dataset) -> Grayordinates | Parcels:
    if has_grayordinates(raw):
        return read_grayordinates(raw)
    return Parcels(
        names=tuple(map(str, raw["column"].to_numpy())),
        members=read_grayordinates(raw, "member"),
        parcel=raw["member_column"].to_numpy(),
    )


def _row_blocks(series: xr.DataArray) -> Iterator[npt.NDArray[Any]]:
    """Yield rows ``(voxel | column, time)`` in blocks that fit in memory."""
    place = str(series.dims[0])
    n_row = plan_voxel_blocks(*series.shape)
    for start in range(0, series.sizes[place], n_row):
        yield series.isel({place: slice(start, start + n_row)}).to_numpy()
