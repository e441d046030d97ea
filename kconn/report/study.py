"""The report of a study: what its store holds, put together by subject and written as one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.connect.cohort import average_sessions
from kconn.connect.kinds import KINDS
from kconn.connect.parcellation import NodeSet, name_regions
from kconn.exclusions import count_flow, list_exclusions, tabulate_exclusions
from kconn.export.maps import describe_values
from kconn.infer.design import Hypothesis
from kconn.io import cubes, derivatives
from kconn.io.files import write_atomic
from kconn.report.data import (
    GroupComponents,
    Recovery,
    ReportData,
    TestedContrast,
    TestedMap,
    describe_contrast,
    describe_map_test,
    recover_truth,
)
from kconn.report.html import write_report
from kconn.stages.quality import quality_rows
from kconn.study.connection_tables import MapKind
from kconn.study.contrasts import split_contrasts
from kconn.study.nodesets import load_nodes
from kconn.study.plan import Step
from kconn.study.workbench import Workbench
from kconn.versions import software_versions

#: The known answer that `kconn simulate` writes beside the runs.
_TRUTH = "truth.tsv"


def write_study_report(bench: Workbench) -> Path:
    """Write the report of a study from what is published, and beside it every exclusion as a table.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` if the study was not run to its end.
    """
    write_report(gather_report(bench), bench.study.report)
    table = derivatives.table_bytes(tabulate_exclusions(list_exclusions(bench)))
    write_atomic(bench.study.report.with_name(f"{bench.study.report.stem}_exclusions.tsv"), table)
    return bench.study.report


def recover_planted(bench: Workbench) -> dict[str, Recovery]:
    """Return how well each test of a simulated study found what was planted; empty for real data."""
    data = gather_report(bench)
    return {
        data.title(contrast): recover_truth(contrast, alpha=data.alpha)
        for contrast in data.contrasts
        if contrast.planted is not None
    }


def gather_report(bench: Workbench) -> ReportData:
    """Read everything that the report shows."""
    study = bench.study
    exclusions = list_exclusions(bench)
    quality = _open(bench, next(step for step in bench.plan.steps if step.stage == "quality"))
    cohorts = {_node_set_and_kind(step): _open(bench, step) for step in bench.plan.steps if step.stage == "cohort"}
    effects = {str(contrast.effect) for contrast in study.contrasts.values() if contrast.test == "two-sample"}
    return ReportData(
        study=study.study.name,
        date=datetime.now(tz=UTC).strftime("%-d %B %Y"),
        runs=quality.to_dataframe().reset_index(drop=True),
        participants=bench.survey.participants,
        cohorts=cohorts,
        nodes={name: _node_table(bench, name) for name, table in study.nodes.items() if table.is_used},
        contrasts=list(_contrasts(bench, cohorts)),
        parameters=study.model_dump(mode="json"),
        software=software_versions(),
        n_inputs=len({digest for step in bench.plan.steps for digest in step.digests.values()}),
        group=effects.pop() if len(effects) == 1 else None,
        notes=_notes(bench),
        exclusions=exclusions,
        flow=count_flow(bench, exclusions),
        motion=_open(bench, next(step for step in bench.plan.steps if step.stage == "motion")),
        qc_fc={_qc_fc_title(step): _open(bench, step) for step in bench.plan.steps if step.stage == "qcfc"},
        blocks={_node_set_and_kind(step): _open(bench, step) for step in bench.plan.steps if step.stage == "blocks"},
        reliability={_comparison(step): _open(bench, step) for step in bench.plan.steps if step.stage == "reliability"},
        maps=_Maps(bench=bench),
        components=_Components(bench=bench),
        carpets=_Carpets(bench=bench, order=worst_first(quality_rows(quality))[:N_CARPET]),
    )


#: Runs that are shown as pictures: of some 25 kB each, in a page that must open at once.
N_CARPET: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carpets:
    """The runs of a study, opened one at a time and without their voxels."""

    bench: Workbench
    order: Sequence[str]

    def __iter__(self) -> Iterator[tuple[str, xr.Dataset]]:
        wanted = ("carpet", "carpet_denoised", "std_dvars", "framewise_displacement", "sample_mask")
        steps = {step.where: step for step in self.bench.plan.steps if step.stage == "denoise"}
        for where in self.order:
            run = _open(self.bench, steps[where])
            yield where, run[[name for name in wanted if name in run]].compute()


def worst_first(rows: pd.DataFrame) -> list[str]:
    """Return the paths of runs: those that were left out, then by the share of frames that was dropped, then by motion.

    Parameters
    ----------
    rows
        ``path``, ``excluded``, ``share_censored``, ``mean_fd`` and ``mean_std_dvars`` of each run.
    """
    keys = rows.assign(is_used=rows["excluded"] == "").sort_values(
        ["is_used", "share_censored", "mean_fd", "mean_std_dvars", "path"],
        ascending=[True, False, False, False, True],
        kind="stable",
    )
    return keys["path"].tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maps:
    """The tests of maps, opened one at a time."""

    bench: Workbench

    def __iter__(self) -> Iterator[TestedMap]:
        joint = {step.address.path: step for step in self.bench.plan.steps if step.stage == "map-correction"}
        for step in self.bench.plan.steps:
            if step.stage == "map-test":
                yield from self._tested(step, joint.get(step.address.path.rpartition("/")[0]))

    def _tested(self, step: Step, joint: Step | None) -> Iterator[TestedMap]:
        _, node_set, _, name, _ = step.address.path.split("/")
        kind: MapKind = step.params["kind"]
        found = _open(self.bench, step)
        node = str(found.attrs["node"])
        facts: dict[str, Any] = {"node_set": node_set, "kind": kind, "node": node}
        if "excluded" in found.attrs:
            yield TestedMap(name=name, test=None, reason=str(found.attrs["excluded"]).partition(" ")[2], **facts)
            return
        cohort = _open(self.bench, next(s for s in self.bench.plan.steps if s.address == step.upstream[0].address))
        if "visits" in step.params:  # of whom, not of what: the maps stay where they are
            rows = cohort.drop_dims([dim for dim in cohort.dims if dim != "observation"])
            cohort = average_sessions(rows, step.params["visits"])
        regions = self._regions(found)
        for title, result in split_contrasts(found, name).items():
            test = describe_map_test(
                title,
                node_set=node_set,
                kind=kind,
                result=result.drop_vars(["permutation_table", "sign_table"], errors="ignore").compute(),
                cohort=cohort,
                participants=self.bench.survey.participants,
                hypothesis=Hypothesis.of(step.params["hypothesis"]),
                unit=describe_values(kind),
            )
            p_nodes = None if joint is None else _open_joint(self.bench, joint, node, title.removeprefix(f"{name}-"))
            yield TestedMap(name=title, test=test, regions=regions, p_nodes=p_nodes, **facts)

    def _regions(self, result: xr.Dataset) -> npt.NDArray[np.object_] | None:
        """Return the region of the first atlas of the study that each voxel lies in, or None without an atlas."""
        tables = [table for table in self.bench.study.nodes.values() if table.atlas is not None]
        if not tables:
            return None
        files = {role: self.bench.study.folder / path for role, path in tables[0].files().items()}
        nodes = load_nodes(tables[0].model_dump(mode="json"), files, self.bench.survey.runs[0].template)
        return name_regions(result, nodes) if isinstance(nodes, NodeSet) else None


def _open_joint(bench: Workbench, step: Step, node: str, contrast: str) -> npt.NDArray[np.float64] | None:
    found = _open(bench, step)
    if "excluded" in found.attrs or node not in found["node"].to_numpy().astype(str).tolist():
        return None
    one = found.isel(node=found["node"].to_numpy().astype(str).tolist().index(node))
    if "contrast" in one.dims:
        one = one.isel(contrast=one["contrast"].to_numpy().astype(str).tolist().index(contrast))
    return np.asarray(one["p_fwe_nodes"].to_numpy(), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Components:
    """The group ICAs, opened one at a time."""

    bench: Workbench

    def __iter__(self) -> Iterator[GroupComponents]:
        selected = {step.address.path: step for step in self.bench.plan.steps if step.stage == "select"}
        for step in self.bench.plan.steps:
            if step.stage == "ica":
                chosen = _open(self.bench, selected[step.address.path])
                yield GroupComponents(
                    name=step.address.path.split("/")[-1],
                    components=_open(self.bench, step).compute(),
                    accepted=chosen["accepted"].to_numpy(),
                    reason=tuple(map(str, chosen["reason"].to_numpy())),
                    threshold=float(step.params["threshold"]),
                )


def _qc_fc_title(step: Step) -> str:
    _, node_set, *kind = step.address.path.split("/")
    return f"{node_set}, {KINDS[kind[0] if kind else 'corr'].words}"


def _contrasts(bench: Workbench, cohorts: dict[tuple[str, str], xr.Dataset]) -> Iterator[TestedContrast]:
    truth = _read_truth(bench)
    steps = {step.address: step for step in bench.plan.steps}
    for step in bench.plan.steps:
        if step.stage not in {"test", "feature-test"}:
            continue
        _, node_set, kind, name = step.address.path.split("/")[:4]
        hypothesis = Hypothesis.of(step.params["hypothesis"])
        is_edge = step.stage == "test"
        found = _open(bench, step)
        cohort = cohorts[node_set, kind] if is_edge else _open(bench, steps[step.upstream[0].address])
        if not is_edge:
            cohort = name_features(cohort.rename({step.params["variable"]: "netmat"})[["netmat"]])
            found = name_features(found)
        if "visits" in step.params:
            cohort = average_sessions(cohort, step.params["visits"])
        for title, result in split_contrasts(found, name).items():
            yield describe_contrast(
                title,
                node_set=node_set,
                kind=kind,
                result=result,
                cohort=cohort,
                participants=bench.survey.participants,
                hypothesis=hypothesis,
                planted=_planted(truth, hypothesis) if is_edge and truth is not None else None,
                noun="connection" if is_edge else _NOUNS[found.attrs["of"]],
            )


#: Dimension of features -> what one is.
_NOUNS: Final = {"family": "block", "node": "node"}


def name_features(ds: xr.Dataset) -> xr.Dataset:
    """Return what has a value per block or node as if these were edges: their name in ``node_i``, no other end."""
    dim = "family" if "family" in ds.dims else "node"
    names = ds[dim].to_numpy().astype(str)
    plain = ds.drop_vars([name for name in ds.coords if dim in ds[name].dims]).rename({dim: "edge"})
    ends = {"node_i": ("edge", names), "node_j": ("edge", np.full(names.size, ""))}
    return plain.assign_coords(ends).assign_attrs(of=dim)


def _comparison(step: Step) -> tuple[str, str, str]:
    _, node_set, kind, name = step.address.path.split("/")
    return node_set, kind, name


def _read_truth(bench: Workbench) -> pd.DataFrame | None:
    path = bench.study.folder / bench.study.inputs.root / _TRUTH
    return pd.read_csv(path, sep="\t", dtype={"session": str}) if path.is_file() else None


def _planted(truth: pd.DataFrame, hypothesis: Hypothesis) -> pd.DataFrame:
    """Return the planted edges that a test can see: those of a change to their session, in or against their group."""
    if hypothesis.sides is None or hypothesis.test not in {"two-sample", "paired", "one-sample"}:
        return truth.iloc[:0]
    wanted = (hypothesis.where or {}).get("group", [])
    seen = truth["session"].isin(hypothesis.sides[1])
    if hypothesis.effect != "group":
        seen &= truth["group"].isin(wanted if isinstance(wanted, list | tuple) else [wanted])
    return truth[seen]


def _open(bench: Workbench, step: Step) -> xr.Dataset:
    return cubes.open_group(bench.study.store, step.address)


def _node_set_and_kind(step: Step) -> tuple[str, str]:
    _, node_set, kind = step.address.path.split("/")
    return node_set, kind


def _node_table(bench: Workbench, name: str) -> pd.DataFrame:
    """Return names, networks and places of a node set, from the first run that has them."""
    for step in bench.plan.steps:
        if step.stage == "nodes" and step.address.path.endswith(f"/{name}"):
            ds = _open(bench, step)
            if "node" in ds.coords:
                columns = [column for column in ("network", "hemisphere", *"xyz") if column in ds.coords]
                return pd.DataFrame({column: ds[column].to_numpy() for column in ("node", *columns)})
    return pd.DataFrame({"node": []})


def _notes(bench: Workbench) -> list[str]:
    """Return what reading the runs brought to light, each once, with how many runs it concerns."""
    found: Counter[str] = Counter()
    steps = [step for step in bench.plan.steps if step.stage == "ingest"]
    for step in steps:
        found.update(str(note) for note in cubes.read_attrs(bench.study.store, step.address).get("notes", []))
    return [f"{note} ({n} of {len(steps)} runs)" for note, n in sorted(found.items())]
