"""The files of a tested contrast: which there are for a kind of feature, what they hold, and their columns in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.grayordinates import COORDS, has_grayordinates, short_name
from kconn.io import derivatives
from kconn.io.files import write_atomic
from kconn.kernels.netmats import unpack_edges

Columns = Mapping[str, npt.ArrayLike]

#: Columns of a table of features that are read first.
FIRST: Final = ("effect", "stat", "dof", "p_unc", "p_fwe", "p_fdr", "cohen_d")
#: Variables with a dimension in front of the features -> the suffix of each of its columns.
_SPREAD: Final = {
    "p_unc_ci": "limit",
    "p_fwe_ci": "limit",
    "p_fwe_joint_ci": "limit",
    "p_unc_tails": "tail",
    "p_fwe_tails": "tail",
}
_EXCLUDED: Final = {
    "0": "tested",
    "1": "missing in some observation",
    "2": "does not vary beyond the nuisance",
    "3": "outside of the family that is tested",
}
_CLUSTER_COLUMNS: Final = {
    "cluster": "Number by size, from 1; below 0 on the other side.",
    "n_features": "How many features it has.",
    "size": "Its extent or mass: the statistic that p_fwe is of.",
    "p_fwe": "Permutation p, corrected for all clusters by the largest of each relabelling.",
    "peak": "The feature with the largest statistic: a pair of nodes, x y z in mm, or structure and vertex.",
    "peak_stat": "Its statistic.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastFile:
    """One file of a contrast.

    ``suffix``: what ends its name. ``write``: from the result of one contrast. ``columns``: what the sidecar tells of
    its columns.
    """

    suffix: str
    write: Callable[[Path, xr.Dataset], None]
    description: str
    columns: Callable[[xr.Dataset], Mapping[str, Any]] = lambda _: {}


def list_contrast_files(result: xr.Dataset) -> list[ContrastFile]:
    """Return the files of one contrast: those of its kind of feature, and those that every contrast has."""
    files = [*FILES_OF[feature_dim(result)](result)]
    if "cluster" in result:
        files.append(
            ContrastFile(
                suffix="clusters.tsv",
                write=_table(tabulate_clusters),
                description="Clusters, or components of a network, the largest first.",
                columns=lambda _: {name: {"Description": text} for name, text in _CLUSTER_COLUMNS.items()},
            )
        )
    files.append(
        ContrastFile(
            suffix="design.tsv",
            write=_table(_design_columns),
            description="Design matrix: one row per observation.",
            columns=_describe_design,
        )
    )
    if "n_exceed" in result.attrs:
        return files
    return [
        *files,
        ContrastFile(
            suffix="maxstat.tsv",
            write=_table(lambda ds: {"max_stat": _known(ds["max_stat"].to_numpy())}),
            description="Largest statistic of each relabelling, the unpermuted data first: what p_fwe is read from.",
            columns=lambda ds: {"max_stat": {"Description": _describe_maximum(ds), "Units": "1"}},
        ),
    ]


def describe_contrast_result(result: xr.Dataset) -> dict[str, Any]:
    """Return how the p-values of a contrast came about, for every sidecar."""
    attrs = result.attrs
    n_distinct = float(result["n_distinct"])
    told: dict[str, Any] = {
        "Question": attrs["question"],
        "Test": attrs["test"],
        "Formula": attrs["formula"],
        "Statistic": attrs["statistic"],
        "StatisticKind": str(result["stat_kind"].item()),
        "Alternative": attrs["alternative"],
        "PValues": (
            "count of relabellings at least as extreme, the identity and ties included, over their number; never 1 - p"
        ),
        "NumberOfObservations": attrs["n_observation"],
        "NumberOfPermutations": int(result["n_permutations"]),
        "NumberOfDistinctRelabellings": n_distinct if np.isfinite(n_distinct) else "more than 1e308",
        "Exhaustive": bool(result["exhaustive"]),
        "Shuffling": str(result["shuffling"].item()),
        "Exchange": attrs["exchange"] or "any observation with any other",
        "VarianceGroups": attrs["n_variance_group"] or "one for all",
        "Regression": attrs["regression"],
        "Convention": attrs["convention"],
        "FDR": {"bh": "Benjamini-Hochberg", "bky": "Benjamini, Krieger and Yekutieli"}[attrs["fdr"]],
        "Tail": {"counts": "counts", "gpd": "generalised Pareto below 0.1"}[attrs["tail"]],
        "Seed": attrs["seed"],
        "RelabellingsSHA256": str(result["table_sha256"].item()),
        "LeftOut": attrs["left_out"],
    }
    if "family" in attrs:
        told["Family"] = {"Name": attrs["family"], "Edges": attrs["family_edges"]}
        told["CorrectedOver"] = f"the edges of the family {attrs['family']} alone"
    if attrs["tail"] != attrs["tail_unc"]:
        told["Tail"] += ", of corrected p only"
    if "baseline_weights" in attrs:
        weights = attrs["baseline_weights"][0]
        told["Baseline"] = {
            "Description": "A regressor of each feature: its value at baseline.",
            "ContrastWeights": weights,
        }
    if "threshold" in attrs:
        told["Threshold"] = attrs["threshold"]
    if "n_exceed" in attrs:
        told["PValues"] = (
            f"h / l where relabelling l after the identity was the h-th at least as extreme, h = {attrs['n_exceed']}; "
            "(count + 1) / number of relabellings for features that did not meet so many; never 1 - p"
        )
        told["Stopping"] = "features stop by themselves: there are p_unc and p_fdr, but no p_fwe and no maxima"
    if attrs["notes"]:
        told["Notes"] = attrs["notes"]
    return told


def feature_dim(result: xr.Dataset) -> str:
    """Return the dimension of the features of one contrast: ``edge`` or ``voxel``."""
    return str(result["p_fwe"].dims[-1])


def tabulate_features(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    """Return one column per number of a feature: limits and alternatives of p have a column each."""
    columns: dict[str, npt.ArrayLike] = {name: result[name].to_numpy() for name in _feature_variables(result)}
    for name, dim in _SPREAD.items():
        if name in result:
            for label in map(str, result[dim].to_numpy()):
                columns[_spread_name(name, label)] = result[name].sel({dim: label}).to_numpy()
    return columns


def describe_features(result: xr.Dataset, *, unit: str) -> dict[str, Any]:
    """Return what each column of `tabulate_features` means; ``unit`` is that of what was tested."""
    words: dict[str, dict[str, Any]] = {
        name: {"Description": str(result[name].attrs.get("long_name", "")), "Units": "1"}
        for name in _feature_variables(result)
    }
    words["effect"]["Units"] = unit if result.attrs["test"] in _OF_UNIT else f"{unit} per unit of the regressors"
    words["stat"]["Description"] = f"Test statistic: {result['stat_kind'].item()}."
    words["excluded"]["Levels"] = _EXCLUDED
    level = f"{100 * result.attrs['ci_level']:g} %"
    law = "(negative) binomial" if "n_exceed" in result.attrs else "binomial"
    for name, dim in _SPREAD.items():
        if name not in result:
            continue
        p = name.removesuffix("_ci").removesuffix("_tails")
        for label in map(str, result[dim].to_numpy()):
            text = f"{label} exact {law} {level} limit of {p}" if dim == "limit" else f"{p} of the alternative {label}"
            words[_spread_name(name, label)] = {"Description": f"{text[:1].upper()}{text[1:]}.", "Units": "1"}
    return words


#: Tests whose effect is a difference of what was tested.
_OF_UNIT: Final = frozenset({"two-sample", "paired", "one-sample"})


def tabulate_clusters(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    """Return one row per cluster, the largest first."""
    number = result["cluster"].to_numpy()
    stat, size, p = (result[name].to_numpy() for name in ("stat", "enhanced", "p_fwe"))
    names = _feature_names(result)
    rows = []
    for label in sorted(set(number[number != 0].tolist()), key=lambda label: (abs(label), label)):
        members = np.flatnonzero(number == label)
        peak = members[np.argmax(np.abs(stat[members]))]
        rows.append((label, members.size, size[peak], p[peak], names[peak], stat[peak]))
    table = pd.DataFrame(rows, columns=list(_CLUSTER_COLUMNS))
    table = table.sort_values(["p_fwe", "size"], ascending=[True, False], kind="stable")
    return {str(name): table[name].to_numpy() for name in table}


def _spread_name(name: str, label: str) -> str:
    return f"{name.removesuffix('_ci').removesuffix('_tails')}_{label.replace('-', '_')}"


def _feature_variables(result: xr.Dataset) -> list[str]:
    """Return the variables that have one value per feature, the ones that are read first in front."""
    dims = (feature_dim(result),)
    rest = sorted(str(name) for name in result.data_vars if result[name].dims == dims and name not in FIRST)
    return [*(name for name in FIRST if name in result), *rest]


def _feature_names(result: xr.Dataset) -> list[str]:
    if feature_dim(result) == "voxel":
        return name_voxels(result)
    ends = zip(result["node_i"].to_numpy(), result["node_j"].to_numpy(), strict=True)
    return [f"{first} - {second}" for first, second in ends]


def name_voxels(result: xr.Dataset) -> list[str]:
    """Return where each voxel of a map lies: x, y, z in mm, or the structure and vertex of a grayordinate."""
    if not has_grayordinates(result):
        ijk = np.stack([result[axis].to_numpy() for axis in "ijk"], axis=1)
        mm = ijk @ np.asarray(result.attrs["affine"])[:3, :3].T + np.asarray(result.attrs["affine"])[:3, 3]
        return [f"{x:g} {y:g} {z:g}" for x, y, z in np.round(mm, 3) + 0.0]
    structures = [short_name(name) for name in result.attrs["structures"]]
    parts = (result[name].to_numpy() for name in COORDS)
    return [
        f"{structures[of]} vertex {vertex}" if vertex >= 0 else f"{structures[of]} voxel {i} {j} {k}"
        for of, vertex, i, j, k in zip(*parts, strict=True)
    ]


def _design_columns(result: xr.Dataset) -> Columns:
    design = result["design"].transpose("regressor", "observation").to_numpy()
    ids = [str(label) for label in result["observation"].to_numpy()]
    if all("_ses-" in name for name in ids):
        parts = [name.partition("_ses-") for name in ids]
        named = {
            "participant_id": [first for first, _, _ in parts],
            "session_id": [f"ses-{last}" for *_, last in parts],
        }
    else:
        named = {"participant_id": [f"sub-{name}" for name in ids]}
    return {**named, **dict(zip(result.attrs["regressors"], design, strict=True))}


def _describe_design(result: xr.Dataset) -> dict[str, Any]:
    weights = dict(zip(result.attrs["regressors"], np.transpose(result.attrs["weights"][0]).tolist(), strict=True))
    return {name: {"Description": "Regressor.", "ContrastWeights": weight} for name, weight in weights.items()}


def _describe_maximum(result: xr.Dataset) -> str:
    kind, side = str(result["stat_kind"].item()), result.attrs["alternative"]
    on_z = result.attrs["convention"] == "palm" or result.attrs["missing"] == "refit" or kind in {"v", "G"}
    of = "z" if on_z else kind
    if result.attrs["statistic"] not in {"edge", "voxel"}:
        of = f"{result.attrs['statistic']} of a cluster" if "cluster" in result else "enhanced value"
    if kind in {"F", "G"}:
        return f"Maximum of {of} over all features."
    return f"Maximum over all features of {of}, towards the alternative ({side})."


def _known(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the maxima without what pads a shorter table of another contrast."""
    return values[~np.isnan(values)]


def _table(columns: Callable[[xr.Dataset], Columns]) -> Callable[[Path, xr.Dataset], None]:
    """Return a writer of the table that a function takes from a result."""
    return lambda path, result: write_atomic(path, derivatives.table_bytes(columns(result)))


def _write_matrix(variable: str) -> Callable[[Path, xr.Dataset], None]:
    """Return a writer of a variable of edges as a square matrix without diagonal."""

    def write(path: Path, result: xr.Dataset) -> None:
        matrix = unpack_edges(result[variable].to_numpy(), diagonal=np.nan)
        write_atomic(path, derivatives.matrix_bytes(nodes_of_edges(result), matrix))

    return write


def nodes_of_edges(result: xr.Dataset) -> list[str]:
    """Return the names of the nodes, in order, from the coordinates of the edges."""
    first, second = result["node_i"].to_numpy(), result["node_j"].to_numpy()
    return [str(first[0]), *map(str, second[first == first[0]])]


def _edge_columns(result: xr.Dataset) -> Columns:
    return {**{name: result[name].to_numpy() for name in ("node_i", "node_j")}, **tabulate_features(result)}


def _edge_files(result: xr.Dataset) -> list[ContrastFile]:
    stat = str(result["stat_kind"].item()).lower()
    suffix, variable, words = name_corrected_p(result)
    return [
        ContrastFile(
            suffix="edges.tsv",
            write=_table(_edge_columns),
            description="The test of each pair of nodes.",
            columns=lambda ds: describe_features(ds, unit=ds.attrs.get("unit", "1")),
        ),
        ContrastFile(
            suffix=f"{stat}stat.tsv",
            write=_write_matrix("stat"),
            description=f"Statistic {result['stat_kind'].item()} of each pair of nodes.",
        ),
        ContrastFile(
            suffix=f"{suffix}.tsv",
            write=_write_matrix(variable),
            description=f"Permutation p of each pair of nodes, {words}.",
        ),
    ]


def _list_features(dim: str, suffix: str, description: str) -> ContrastFile:
    """Return the table of features that have a name each."""
    return ContrastFile(
        suffix=suffix,
        write=_table(lambda ds: {dim: ds[dim].to_numpy(), **tabulate_features(ds)}),
        description=description,
        columns=lambda ds: describe_features(ds, unit=ds.attrs.get("unit", "1")),
    )


def name_corrected_p(result: xr.Dataset) -> tuple[str, str, str]:
    """Return what stands in a file of corrected p: the end of its name, the variable, and in words what it corrects."""
    if "n_exceed" in result.attrs:
        return "pfdr", "p_fdr", "corrected for the false discovery rate over all pairs"
    return "pfwe", "p_fwe", "corrected for all pairs"


#: Dimension of the features -> the files that show them. Another kind of feature is one function and one line.
#: The images of maps need the grid of a run: `kconn.export.maps` lists them.
FILES_OF: Final[dict[str, Callable[[xr.Dataset], list[ContrastFile]]]] = {
    "edge": _edge_files,
    "voxel": lambda _: [],
    "family": lambda _: [_list_features("family", "blocks.tsv", "The test of each block of edges.")],
    "node": lambda _: [_list_features("node", "nodes.tsv", "The test of each node.")],
}
