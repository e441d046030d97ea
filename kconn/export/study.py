"""Everything that a study published as files of a BIDS derivative, named as XCP-D names them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.chunks import MIB
from kconn.clean.quality_cohort import COMPARED
from kconn.connect.cohort import average_sessions
from kconn.connect.kinds import KINDS, describe_unit
from kconn.errors import StoreError
from kconn.exclusions import list_exclusions, tabulate_exclusions
from kconn.export import cifti as cifti_export
from kconn.export import maps as map_export
from kconn.export.components import COLUMNS, tabulate_components, write_components
from kconn.export.contrasts import ContrastFile, describe_contrast_result, list_contrast_files, nodes_of_edges
from kconn.io import cubes, derivatives, layout, nifti_write, store
from kconn.io.derivatives import bids_label, bids_name
from kconn.io.files import sha256_file, write_atomic
from kconn.kernels.netmats import unpack_edges
from kconn.study.contrasts import split_contrasts
from kconn.study.examination import RunFacts
from kconn.study.plan import RUN_STAGES, Step
from kconn.study.workbench import Workbench

#: Task of runs whose files name none: a BIDS file of functional data must have one.
_TASK: Final = "rest"
#: Quality columns that count something.
_COUNTS: Final = ("n_frames", "n_kept", "n_regressors", "df_left", "n_constant", "n_uncovered")
_RUN_ROLES: Final = frozenset(
    {"bold", "timeseries", "mask", "confounds", "confounds_sidecar", "sidecar", "fd", "relative_rms", "mixing", "noise"}
)
#: Bytes of a denoised series that are in memory at once.
_SLAB_BYTES: Final = 256 * MIB

Write = Callable[[Path, xr.Dataset], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """One file to write.

    Attributes
    ----------
    name
        Path in the dataset.
    step
        The step whose result it shows.
    write
        Writes the opened result to a path.
    description
        What it holds, in a sentence.
    sources
        Names of exported files that it was made from.
    inputs
        Steps whose input files it was made from.
    about
        More for the sidecar, from the opened result.
    """

    name: str
    step: Step
    write: Write
    description: str
    sources: tuple[str, ...] = ()
    inputs: tuple[Step, ...] = ()
    about: Callable[[xr.Dataset], Mapping[str, Any]] = field(default=lambda _: {})

    @property
    def sidecar(self) -> str:
        """Path of the JSON file that goes with it."""
        return self.name.removesuffix(".gz").rpartition(".")[0] + ".json"


def export_study(bench: Workbench, out: Path, *, images: bool = False) -> int:
    """Write what a study published as a BIDS derivative: tables, and images where they are asked for.

    Every file appears whole or not at all, with a JSON sidecar that names its sources with their SHA-256, the
    parameters and the software. Numbers read back bit for bit. Runs that were left out are listed in
    ``group/exclusions.tsv`` and not exported. A second export of the same results gives the same bytes.

    Parameters
    ----------
    bench
        A study that was run to its end.
    out
        A folder that is new or holds an earlier export of the same results.
    images
        Whether to write the denoised series and the map of tSNR of each run as well; they are large.

    Returns
    -------
    How many files were written.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` if results are missing or older than the study file, ``E-STORE-CORRUPT``.
    InputError
        ``E-FILE-EXISTS`` if the folder holds something else.
    StudyFileError
        ``E-STUDY-VALUE`` if two results would have one name.

    References
    ----------
    Mehta K et al. (2024), XCP-D. https://doi.org/10.1162/imag_a_00257
    """
    if pending := bench.pending():
        raise StoreError(
            "E-STORE-UNSEALED",
            f"{len(pending)} of {len(bench.plan.steps)} results are missing, or older than the study file",
            rule="an export holds the whole study, as its file describes it",
            fix="run the study first",
        )
    outputs = [
        *_RunOutputs(bench).list(images=images),
        *_GroupOutputs(bench).list(),
        *_list_components(bench),
        *_list_maps(bench),
    ]
    description = "dataset_description.json"
    derivatives.check_folder(out, [description, *(name for o in outputs for name in (o.name, o.sidecar))])
    write_atomic(out / description, derivatives.describe_dataset(bench.study.study.name, version=bench.plan.code))
    # The outputs of one step follow each other: it is opened once.
    open_result = lru_cache(maxsize=1)(partial(cubes.open_group, bench.study.store))
    digests: dict[str, str] = {}
    for output in outputs:
        result = open_result(output.step.address)
        output.write(out / output.name, result)
        digests[output.name] = sha256_file(out / output.name)
        sidecar = _describe(bench, output, result, digests)
        write_atomic(out / output.sidecar, derivatives.json_bytes(sidecar))
    return 1 + 2 * len(outputs)


def _describe(bench: Workbench, output: _Output, result: xr.Dataset, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the sidecar of a file; it names no host, user, time or absolute path."""
    sources = {f"bids::{name}": digests[name] for name in output.sources}
    for step in output.inputs:
        sources |= {
            _source_name(bench, role, path, step.where): step.digests[path] for role, path in step.files.items()
        }
    seal = store.read_seal(bench.study.store, output.step.address)
    t_r = {"RepetitionTime": result.attrs["t_r"]} if "t_r" in result.attrs else {}
    return {
        "Description": output.description,
        **t_r,
        **output.about(result),
        "Sources": sorted(sources),
        "SourcesSHA256": dict(sorted(sources.items())),
        "Parameters": {step.stage: step.params for step in _lineage(bench, output.step) if step.params},
        "SoftwareVersions": seal["provenance"]["software"],
        "ContentKey": output.step.key,
    }


def _lineage(bench: Workbench, step: Step) -> list[Step]:
    """Return the steps of the same run, or of the same test, that a result goes back to, first things first."""
    by_address = {other.address: other for other in bench.plan.steps}
    before = [by_address[up.address] for up in step.upstream]
    earlier = [each for other in before if other.where == step.where for each in _lineage(bench, other)]
    return list({each.address: each for each in [*earlier, step]}.values())


def _source_name(bench: Workbench, role: str, path: str, where: str) -> str:
    """Return the name of an input file: below the inputs for files of runs, else its last part alone.

    A file found by a pattern is named by the pattern, since the part behind a wildcard may identify a person.
    """
    inputs = bench.study.inputs
    patterns = bench.study.patterns
    if role not in _RUN_ROLES and role not in patterns:
        return Path(path).name
    pattern = patterns.get(role, inputs.pattern)
    if role == "confounds_sidecar" and "confounds" in patterns:
        pattern = str(Path(patterns["confounds"]).with_suffix(".json"))
    if pattern is None:
        folder = bench.study.folder
        return Path(os.path.relpath(folder / path, (folder / inputs.root).resolve())).as_posix()
    if role == "sidecar":
        pattern = pattern.removesuffix(".gz").removesuffix(".nii")
        kind = Path(pattern).suffix  # of a CIFTI series; its sidecar is named with it or without
        pattern = (pattern if path.endswith(f"{kind}.json") else pattern.removesuffix(kind)) + ".json"
    run = next(facts.run for facts in bench.survey.runs if facts.where == where)
    return layout.name_by_pattern(pattern, run)


class _RunOutputs:
    """The files of every run that was not left out."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.steps = {step.address: step for step in bench.plan.steps}
        self.excluded = _excluded_runs(bench)
        self.uncovered = _excluded_addresses(bench)

    def list(self, *, images: bool) -> Iterator[_Output]:
        steps = self.bench.plan.runs()
        for facts in self.bench.survey.runs:
            if facts.where in self.excluded:
                continue
            for step in steps[facts.where]:
                if step.address not in self.uncovered:
                    yield from self._of(facts, step, images=images and facts.run.bold is not None)

    def _of(self, facts: RunFacts, step: Step, *, images: bool) -> Iterator[_Output]:
        match step.stage:
            case "denoise":
                yield from self._frames(facts, step)
                yield from self._images(facts, step) if images else ()
            case "nodes":
                yield from self._series(facts, step)
                yield from self._cifti_nodes(facts, step) if _is_parcelled(facts, step) else ()
            case "netmat":
                yield self._netmat(facts, step)
                nodes = self.steps[step.upstream[0].address]
                yield from (self._cifti_netmat(facts, step),) if _is_parcelled(facts, nodes) else ()
            case _:
                return

    def _inputs(self, step: Step) -> tuple[Step, ...]:
        return tuple(_lineage(self.bench, step))

    def _frames(self, facts: RunFacts, step: Step) -> Iterator[_Output]:
        yield _Output(
            name=_run_name(facts, "outliers.tsv"),
            step=step,
            inputs=self._inputs(step),
            write=_table(lambda ds: {"censored": ~ds["sample_mask"].to_numpy()}),
            description="Frames that were censored: left out of denoising and of every estimate after it.",
            about=lambda _: {
                "censored": {
                    "Description": "moved more than fd_threshold (mm), or among the first dummy_frames",
                    "Levels": {"0": "kept", "1": "censored"},
                }
            },
        )
        if step.params["fd_threshold"] != "none":
            yield _Output(
                name=_run_name(facts, "motion.tsv"),
                step=step,
                inputs=self._inputs(step),
                write=_table(lambda ds: {"framewise_displacement": ds["framewise_displacement"].to_numpy()}),
                description="Head motion of each frame since the one before.",
                about=lambda _: {"framewise_displacement": {"Description": "Power et al. 2012", "Units": "mm"}},
            )

    def _images(self, facts: RunFacts, step: Step) -> Iterator[_Output]:
        ingest = self.steps[step.reads("ingest").address]
        if cifti_export.is_cifti(facts):
            yield from self._cifti_maps(facts, step, ingest)
            return
        placed = _Grid(self.bench, ingest)
        res = self.bench.study.inputs.res
        yield _Output(
            name=_run_name(facts, "bold.nii.gz", res=res, desc="denoised"),
            step=step,
            inputs=self._inputs(step),
            write=placed.write_denoised,
            description="Denoised series: NaN in censored frames and in voxels without signal, 0 outside the mask.",
            about=lambda _: {"SkullStripped": self.bench.study.inputs.mask == "brain"},
        )
        yield _Output(
            name=_run_name(facts, "boldmap.nii.gz", res=res, desc="tsnr"),
            step=step,
            inputs=self._inputs(step),
            write=placed.write_tsnr,
            description="Mean over standard deviation of the kept frames before denoising; 0 outside the mask.",
        )

    def _cifti_maps(self, facts: RunFacts, step: Step, ingest: Step) -> Iterator[_Output]:
        writer, den = cifti_export.RunWriter(self.bench, ingest), cifti_export.density_of(facts)
        series, scalar = cifti_export.endings_of(facts)
        yield _Output(
            name=_run_name(facts, f"bold{series}", den=den, desc="denoised"),
            step=step,
            inputs=self._inputs(step),
            write=writer.write_denoised,
            description="Denoised series on the axis of the input: NaN in censored frames and without signal.",
        )
        yield _Output(
            name=_run_name(facts, f"boldmap{scalar}", den=den, desc="tsnr"),
            step=step,
            inputs=self._inputs(step),
            write=writer.write_tsnr,
            description="Mean over standard deviation of the kept frames before denoising, on the axis of the input.",
        )

    def _cifti_nodes(self, facts: RunFacts, step: Step) -> Iterator[_Output]:
        """List what a CIFTI run has per node, on the parcels of the node set."""
        writer, den = cifti_export.NodeWriter(self.bench, step), cifti_export.density_of(facts)
        atlas = bids_label(step.address.path.split("/")[-1])
        yield _Output(
            name=_run_name(facts, "timeseries.ptseries.nii", den=den, atlas=atlas, stat="mean"),
            step=step,
            inputs=self._inputs(step),
            write=writer.write_series,
            description="Mean denoised series of each parcel; NaN in censored frames and for nodes without data.",
        )
        yield _Output(
            name=_run_name(facts, "boldmap.pscalar.nii", den=den, atlas=atlas, stat="coverage"),
            step=step,
            inputs=self._inputs(step),
            write=writer.write_coverage,
            description="Share of the grayordinates of each parcel that have data.",
        )

    def _cifti_netmat(self, facts: RunFacts, step: Step) -> _Output:
        nodes = self.steps[step.upstream[0].address]
        *_, node_set, kind = step.address.path.split("/")
        writer, den = cifti_export.NodeWriter(self.bench, nodes), cifti_export.density_of(facts)
        return _Output(
            name=_run_name(facts, "boldmap.pconn.nii", den=den, atlas=bids_label(node_set), stat=KINDS[kind].bids),
            step=step,
            write=partial(_write_relmat_cifti, writer=writer),
            description="Connection of each pair of parcels; NaN where a node has no data.",
            sources=(_series_name(facts, nodes),),
            about=_about_relmat,
        )

    def _series(self, facts: RunFacts, step: Step) -> Iterator[_Output]:
        yield _Output(
            name=_series_name(facts, step),
            step=step,
            inputs=self._inputs(step),
            write=_table(_series_columns),
            description="Mean denoised series of each node; n/a in censored frames and for nodes without data.",
            about=lambda _: {"SamplingFrequency": 1 / float(facts.template.attrs["t_r"])},
        )
        atlas = bids_label(step.address.path.split("/")[-1])
        yield _Output(
            name=_run_name(facts, "bold.tsv", atlas=atlas, stat="coverage"),
            step=step,
            inputs=self._inputs(step),
            write=_table(lambda ds: {"Node": ds["node"].to_numpy(), "coverage": ds["coverage"].to_numpy()}),
            description="Share of the voxels of each node that have data.",
        )

    def _netmat(self, facts: RunFacts, step: Step) -> _Output:
        return _Output(
            name=_netmat_name(facts, step),
            step=step,
            write=_write_relmat,
            description="Connection of each pair of nodes; n/a where a node has no data.",
            sources=(_series_name(facts, self.steps[step.upstream[0].address]),),
            about=_about_relmat,
        )


class _GroupOutputs:
    """The files of the cohort."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.steps = bench.plan.cohort()
        self.excluded = _excluded_addresses(bench)
        self.runs = {facts.where: facts for facts in bench.survey.runs}

    def list(self) -> Iterator[_Output]:
        yield from self._nodes()
        one = {
            "motion": self._motion,
            "coverage": self._coverage,
            "cohort": self._netmats,
            "blocks": self._blocks,
            "amplitudes": self._amplitudes,
            "reliability": self._reliability,
            "qcfc": self._qc_fc,
        }
        several = {"quality": self._quality, "test": self._test, "feature-test": self._feature_test}
        for step in self.steps:
            if step.stage in one:
                yield one[step.stage](step)
            elif step.stage in several:
                yield from several[step.stage](step)

    def _quality(self, step: Step) -> Iterator[_Output]:
        yield _Output(
            name="group/quality.tsv",
            step=step,
            inputs=tuple(other for other in self.bench.plan.steps if other.stage == "ingest"),
            write=_table(_quality_columns),
            description="Motion, frames and signal of every run, and why it was left out, if it was.",
        )
        yield _Output(
            name="group/exclusions.tsv",
            step=step,
            sources=("group/quality.tsv",),
            write=_table(self._exclusions),
            description="Runs and subjects that no result holds, with the reason.",
        )

    def _exclusions(self, _: xr.Dataset) -> Mapping[str, npt.ArrayLike]:
        return tabulate_exclusions(list_exclusions(self.bench))

    def _motion(self, step: Step) -> _Output:
        return _Output(
            name="group/motion.tsv",
            step=step,
            sources=("group/quality.tsv",),
            write=_table(_motion_columns),
            description="Head motion compared between groups (Welch's t) and between visits (paired t).",
            about=lambda _: {
                "p_parametric": {"Description": "two-sided, of t with dof degrees of freedom, uncorrected"},
                "p_unc": {"Description": "two-sided, by permutation or sign flips, uncorrected"},
            },
        )

    def _coverage(self, step: Step) -> _Output:
        atlas = bids_label(step.address.path.split("/")[-1])
        return _Output(
            name=f"group/group_{bids_name({'atlas': atlas, 'stat': 'coverage'}, 'quality.tsv')}",
            step=step,
            inputs=tuple(
                other
                for other in self.bench.plan.steps
                if other.stage == "ingest" or other.address in {up.address for up in step.upstream}
            ),
            write=_table(_quality_columns),
            description="Share of the voxels of all nodes that have data in each run, and nodes with too few.",
        )

    def _qc_fc(self, step: Step) -> _Output:
        _, node_set, *kind = step.address.path.split("/")
        stat = KINDS[kind[0] if kind else "corr"].bids
        return _Output(
            name=f"group/group_{bids_name({'atlas': bids_label(node_set), 'stat': stat}, 'qcfc.tsv')}",
            step=step,
            sources=("group/quality.tsv",),
            write=_table(_qc_fc_columns),
            description="Correlation of each connection with mean framewise displacement over subjects.",
            about=_about_qc_fc,
        )

    def _nodes(self) -> Iterator[_Output]:
        """Describe each node set once, from the first run that has its series."""
        made = [step for step in self.bench.plan.steps if step.stage == "nodes" and step.address not in self.excluded]
        for step in {other.address.path.split("/")[-1]: other for other in reversed(made)}.values():
            atlas = bids_label(step.address.path.split("/")[-1])
            yield _Output(
                name=f"group/group_{bids_name({'atlas': atlas}, 'nodes.tsv')}",
                step=step,
                inputs=(step,),
                write=_table(_node_columns),
                description="Nodes with their networks, hemispheres and centres in mm, where they are known.",
            )

    def _netmats(self, step: Step) -> _Output:
        by_address = {other.address: other for other in self.bench.plan.steps}
        made_from = [by_address[up.address] for up in step.upstream if up.address.step == "netmat"]
        return _Output(
            name=self._name(step, "netmats.tsv"),
            step=step,
            write=_table(_cohort_columns),
            description="Connection of each pair of nodes (row) in each observation (column), averaged over runs.",
            sources=tuple(
                _netmat_name(self.runs[netmat.where], netmat)
                for netmat in made_from
                if netmat.address not in self.excluded
            ),
            about=lambda ds: {"Values": _values_of(ds["netmat"])},
        )

    def _blocks(self, step: Step) -> _Output:
        cohort = next(other for other in self.steps if other.address == step.upstream[0].address)
        blocks = {block: {"Edges": pairs} for block, pairs in step.params["blocks"].items()}
        return _Output(
            name=self._name(step, "blocks.tsv"),
            step=step,
            write=_table(partial(_observation_columns, variable="family_mean", visits=self._visits())),
            description="Mean connection of each block of edges (column) in each session (row), and in each visit that "
            "is the mean of several.",
            sources=(self._name(cohort, "netmats.tsv"),),
            about=lambda ds: {
                "Values": _values_of(ds["family_mean"]),
                "Visits": self._visits(),
                **{
                    block: {**told, "NumberOfEdges": int(ds["n_edge"].sel(family=block).max())}
                    for block, told in blocks.items()
                },
            },
        )

    def _amplitudes(self, step: Step) -> _Output:
        return _Output(
            name=self._name(step, "amplitudes.tsv"),
            step=step,
            write=_table(partial(_observation_columns, variable="amplitude", visits=self._visits())),
            description="Standard deviation of the series of each node (column) in each session (row), averaged over "
            "runs, and in each visit that is the mean of several.",
            sources=tuple(
                _series_name(self.runs[other.where], other)
                for other in self.bench.plan.steps
                if other.address in {up.address for up in step.upstream}
                and other.stage == "nodes"
                and other.address not in self.excluded
            ),
            about=lambda ds: {"Values": _values_of(ds["amplitude"]), "Visits": self._visits()},
        )

    def _visits(self) -> dict[str, Sequence[str]]:
        return {name: table.sessions for name, table in self.bench.study.visits.items()}

    def _reliability(self, step: Step) -> _Output:
        _, node_set, kind, name = step.address.path.split("/")
        entities = {"atlas": bids_label(node_set), "stat": KINDS[kind].bids, "desc": bids_label(name)}
        return _Output(
            name=f"group/group_{bids_name(entities, 'icc.tsv')}",
            step=step,
            inputs=(step,),
            write=_table(_icc_columns),
            description="Intraclass correlation of each pair of nodes between "
            f"{'sessions' if step.params['runs'] is None else 'runs'}.",
            about=_about_icc,
        )

    def _feature_test(self, step: Step) -> Iterator[_Output]:
        """List the files of each contrast over blocks or nodes."""
        cohort = next(other for other in self.steps if other.address == step.upstream[0].address)
        found = cubes.open_group(self.bench.study.store, step.address)
        values = _values_of(cubes.open_group(self.bench.study.store, cohort.address)[step.params["variable"]])
        name, ending = step.address.path.split("/")[3:]
        table = {"blocks": "blocks.tsv", "nodes": "amplitudes.tsv"}[ending]
        for title, result in split_contrasts(found, name).items():
            for file in list_contrast_files(result):
                yield _Output(
                    # The tests of edges have the same node set, kind and contrast.
                    name=self._name(cohort, file.suffix, desc=bids_label(f"{title}-{ending}")),
                    step=step,
                    write=partial(_write_contrast, file=file, name=name, title=title),
                    description=file.description,
                    sources=(self._name(cohort, table),),
                    inputs=(step,),
                    about=partial(_about_contrast, file=file, name=name, title=title, values=values),
                )

    def _test(self, step: Step) -> Iterator[_Output]:
        """List the files of each contrast of a test."""
        cohort = next(other for other in self.steps if other.address == step.upstream[0].address)
        name = step.address.path.split("/")[-1]
        values = _values_of(cubes.open_group(self.bench.study.store, cohort.address)["netmat"])
        found = split_contrasts(cubes.open_group(self.bench.study.store, step.address), name)
        for title, result in found.items():
            for file in [*list_contrast_files(result), *self._cifti_files(cohort, result)]:
                yield _Output(
                    name=self._name(cohort, file.suffix, desc=bids_label(title)),
                    step=step,
                    write=partial(_write_contrast, file=file, name=name, title=title),
                    description=file.description,
                    sources=(self._name(cohort, "netmats.tsv"),),
                    inputs=(step,),
                    about=partial(_about_contrast, file=file, name=name, title=title, values=values),
                )

    def _cifti_files(self, cohort: Step, result: xr.Dataset) -> Sequence[ContrastFile]:
        """Return the files of a contrast on the parcels of its node set, where the runs are CIFTI."""
        nodes = self._nodes_of_cifti(cohort.address.path.split("/")[1])
        if nodes is None:
            return []
        return cifti_export.list_matrix_files(result, cifti_export.NodeWriter(self.bench, nodes))

    def _nodes_of_cifti(self, node_set: str) -> Step | None:
        """Return the node series of the first CIFTI run that has them."""
        made = (step for step in self.bench.plan.steps if step.stage == "nodes")
        return next(
            (
                step
                for step in made
                if step.address.path.split("/")[-1] == node_set
                and step.address not in self.excluded
                and _is_parcelled(self.runs[step.where], step)
            ),
            None,
        )

    def _name(self, cohort: Step, suffix: str, *, desc: str | None = None) -> str:
        _, node_set, kind = cohort.address.path.split("/")
        entities = {"atlas": bids_label(node_set), "stat": KINDS[kind].bids, "desc": desc}
        return f"group/group_{bids_name(entities, suffix)}"


def _list_maps(bench: Workbench) -> Iterator[_Output]:
    for step in bench.plan.cohort():
        if step.stage == "map-cohort":
            yield from _MapOutputs(bench, step).list()


class _MapOutputs:
    """The maps of the sessions of one cohort, and the tests of them."""

    def __init__(self, bench: Workbench, cohort: Step) -> None:
        self.bench = bench
        self.cohort = cohort
        self.root = bench.study.store
        self.steps = {step.address: step for step in bench.plan.steps}
        self.words = map_export.WORDS[cohort.params["kind"]]
        _, self.node_set, _ = cohort.address.path.split("/")
        self.nodes = list(bench.survey.node_names[self.node_set])
        self.sessions = self._find_sessions()
        first = next(iter(self.sessions.values()))[0]
        self.facts = self._facts(first)
        self.writer = map_export.MapWriter(bench, self.steps[first.reads("ingest").address])

    def _find_sessions(self) -> dict[tuple[str, str], list[Step]]:
        """Return the maps of runs behind each row of the cohort."""
        excluded = _excluded_addresses(self.bench)
        ds = cubes.open_group(self.root, self.cohort.address)
        rows = zip(map(str, ds["subject"].to_numpy()), map(str, ds["session"].to_numpy()), strict=True)
        found: dict[tuple[str, str], list[Step]] = {row: [] for row in rows}
        for up in self.cohort.upstream:
            if up.address.step == "map" and up.address not in excluded:
                step = self.steps[up.address]
                run = self._facts(step).run
                if (run.subject, run.session) in found:  # a session with too little left is no row
                    found[run.subject, run.session].append(step)
        return found

    def _facts(self, maps: Step) -> RunFacts:
        return next(facts for facts in self.bench.survey.runs if facts.where == maps.where)

    def list(self) -> Iterator[_Output]:
        yield from self._sessions()
        for step in self.bench.plan.cohort():
            if step.stage == "map-test" and step.upstream[0].address == self.cohort.address:
                yield from self._test(step)
        for step in self.bench.plan.cohort():
            if step.stage == "map-correction":
                test = self.steps[step.upstream[0].address]
                yield from self._joint(step) if test.upstream[0].address == self.cohort.address else ()

    def _sessions(self) -> Iterator[_Output]:
        """List one image per session: the maps of all nodes behind each other."""
        for i_row, (place, maps) in enumerate(self.sessions.items()):
            made_from = [self.steps[up.address] for step in maps for up in step.upstream]
            yield _Output(
                name=self._session_name(place),
                step=self.cohort,
                inputs=tuple({step.address: step for step in made_from}.values()),
                write=partial(map_export.write_session, i_row=i_row, variable=self.words.variable, writer=self.writer),
                description="Map of each node, the last axis, averaged over the runs of the session.",
                about=lambda ds: {"Values": self.words.values, "Nodes": [str(name) for name in ds["node"].to_numpy()]},
            )

    def _session_name(self, place: tuple[str, str]) -> str:
        subject, session = place
        tasks = sorted({self._facts(step).run.task or _TASK for step in self.sessions[place]})
        entities = {"sub": subject, "ses": session, "task": bids_label("-".join(tasks)), **self._entities()}
        return f"sub-{subject}/ses-{session}/func/{bids_name(entities, f'boldmap{self.writer.ending}')}"

    def _entities(self) -> dict[str, str | None]:
        return {
            **_place_entities(self.bench, self.facts),
            "atlas": bids_label(self.node_set),
            "stat": self.words.stat,
        }

    def _test(self, step: Step) -> Iterator[_Output]:
        """List the files of each contrast over the map of one node, if it has a map in every session."""
        found = cubes.open_group(self.root, step.address)
        if "excluded" in found.attrs:
            return
        name, node = step.address.path.split("/")[-2], str(found.attrs["node"])
        for title, result in split_contrasts(found, name).items():
            images = map_export.list_map_images(result, node=node, writer=self.writer)
            for file in [*images, *list_contrast_files(result)]:
                yield _Output(
                    name=self._group_name(node, title, file.suffix),
                    step=step,
                    write=partial(_write_contrast, file=file, name=name, title=title),
                    description=file.description,
                    sources=tuple(map(self._session_name, self.sessions)),
                    inputs=(step,),
                    about=partial(_about_contrast, file=file, name=name, title=title, values=self.words.values),
                )

    def _joint(self, step: Step) -> Iterator[_Output]:
        """List p corrected over nodes, of each contrast and node."""
        found = cubes.open_group(self.root, step.address)
        if "excluded" in found.attrs:
            return
        name = step.address.path.split("/")[-1]
        labels = map(str, found["contrast"].to_numpy()) if "contrast" in found.dims else [None]
        for i_contrast, label in enumerate(labels):
            for i_node, node in enumerate(map(str, found["node"].to_numpy())):
                image = f"pfwenodes{self.writer.ending}"
                yield _Output(
                    name=self._group_name(node, name if label is None else f"{name}-{label}", image),
                    step=step,
                    write=partial(map_export.write_joint, at=(i_contrast, i_node), writer=self.writer),
                    description=f"Permutation p of each voxel of the map of {node}, corrected for all voxels of the "
                    "maps of all nodes; NaN where nothing was tested.",
                    sources=tuple(map(self._session_name, self.sessions)),
                    about=lambda ds: {"CorrectedOver": [str(name) for name in ds["node"].to_numpy()]},
                )

    def _group_name(self, node: str, title: str, suffix: str) -> str:
        label = map_export.label_nodes(self.nodes)[self.nodes.index(node)]
        entities = {**self._entities(), self.words.node: label, "desc": bids_label(title)}
        return f"group/group_{bids_name(entities, suffix)}"


class _Grid:
    """Where the voxels of a run lie."""

    def __init__(self, bench: Workbench, ingest: Step) -> None:
        self.root = bench.study.store
        self.address = ingest.address

    def write_denoised(self, path: Path, result: xr.Dataset) -> None:
        denoised = result["denoised"].transpose("voxel", "time")
        nifti_write.write_series(
            path,
            _slabs(denoised),
            n_time=denoised.sizes["time"],
            t_r=float(result.attrs["t_r"]),
            **self._place(),
        )

    def write_tsnr(self, path: Path, result: xr.Dataset) -> None:
        nifti_write.write_image(path, result["tsnr"].to_numpy(), **self._place())

    def _place(self) -> dict[str, Any]:
        raw = cubes.open_group(self.root, self.address)
        return {
            "ijk": np.stack([raw[axis].to_numpy() for axis in "ijk"], axis=1),
            "grid_shape": tuple(raw.attrs["grid_shape"]),
            "affine": raw.attrs["affine"],
            "form_code": raw.attrs["sform_code"] or raw.attrs["qform_code"] or 1,
        }


def _run_name(facts: RunFacts, suffix: str, **entities: str | None) -> str:
    """Return the path of an exported file of a run.

    A label of a run that is no number (``LR``, ``AP1``) is written as ``acq``, since ``run`` is a number in BIDS.
    """
    run = facts.run
    is_number = run.run.isdigit()
    where = {
        "sub": run.subject,
        "ses": run.session,
        "task": run.task or _TASK,
        "acq": None if is_number else run.run,
        "run": run.run if is_number else None,
        "space": None if facts.space == layout.OWN_SPACE else facts.space,
    }
    return f"sub-{run.subject}/ses-{run.session}/func/{bids_name({**where, **entities}, suffix)}"


def _series_name(facts: RunFacts, step: Step) -> str:
    atlas = bids_label(step.address.path.split("/")[-1])
    return _run_name(facts, "timeseries.tsv", atlas=atlas, stat="mean")


def _netmat_name(facts: RunFacts, step: Step) -> str:
    *_, node_set, kind = step.address.path.split("/")
    return _run_name(facts, "relmat.tsv", atlas=bids_label(node_set), stat=KINDS[kind].bids)


def _is_parcelled(facts: RunFacts, nodes: Step) -> bool:
    return cifti_export.is_cifti(facts) and cifti_export.has_parcels(nodes)


def _list_components(bench: Workbench) -> Iterator[_Output]:
    """List the files of every group ICA: its maps as z, those above the threshold, and a table."""
    selected = {step.address.path: step for step in bench.plan.steps if step.stage == "select"}
    excluded = _excluded_runs(bench)
    used = [facts for facts in bench.survey.runs if facts.where not in excluded]
    for step in bench.plan.steps:
        if step.stage == "ica":
            yield from _components(bench, step, selected[step.address.path], used)


def _components(bench: Workbench, step: Step, selected: Step, used: Sequence[RunFacts]) -> Iterator[_Output]:
    facts = used[0]
    ingested = {other.where: other for other in bench.plan.steps if other.stage == "ingest"}
    writer = map_export.MapWriter(bench, ingested[facts.where])
    inputs = (step, *(ingested[run.where] for run in used))
    entities = {
        **_place_entities(bench, facts),
        "atlas": bids_label(step.address.path.split("/")[-1]),
        "stat": "zscore",
    }
    limit = float(step.params["threshold"])
    for desc, threshold, words in (
        (None, None, "Map of each component, the last axis"),
        ("thresholded", limit, f"Map of each component, the last axis, 0 where |z| is at most {limit:g}"),
    ):
        yield _Output(
            name=f"group/group_{bids_name({**entities, 'desc': desc}, f'boldmap{writer.ending}')}",
            step=step,
            inputs=inputs,
            write=partial(write_components, writer=writer, threshold=threshold),
            description=f"{words}.",
            about=lambda ds: {
                "Values": "z over the voxels of the map",
                "Components": [str(name) for name in ds["node"].to_numpy()],
                "NumberOfRuns": int(ds.attrs["n_run"]),
            },
        )

    def columns(chosen: xr.Dataset) -> Mapping[str, npt.ArrayLike]:
        return tabulate_components(cubes.open_group(bench.study.store, step.address), chosen)

    yield _Output(
        name=f"group/group_{bids_name(entities, 'components.tsv')}",
        step=selected,
        inputs=inputs,
        write=_table(columns),
        description="What is known of each component: whether it is accepted, how stable it is, what it is like.",
        about=lambda _: {name: {"Description": text} for name, text in COLUMNS.items()},
    )


def _place_entities(bench: Workbench, facts: RunFacts) -> dict[str, str | None]:
    """Return the entities that say where the voxels of a run lie."""
    is_cifti = cifti_export.is_cifti(facts)
    return {
        "space": None if facts.space == layout.OWN_SPACE else facts.space,
        "res": None if is_cifti else bench.study.inputs.res,
        "den": cifti_export.density_of(facts) if is_cifti else None,
    }


def _excluded_addresses(bench: Workbench) -> set[store.Address]:
    """Return the results of runs that were left out, of everything or of one node set."""
    steps = (step for step in bench.plan.steps if step.stage in RUN_STAGES and step.stage != "ingest")
    return {step.address for step in steps if "excluded" in cubes.read_attrs(bench.study.store, step.address)}


def _excluded_runs(bench: Workbench) -> set[str]:
    steps = (step for step in bench.plan.steps if step.stage == "denoise")
    return {step.where for step in steps if "excluded" in cubes.read_attrs(bench.study.store, step.address)}


def _table(columns: Callable[[xr.Dataset], Mapping[str, npt.ArrayLike]]) -> Write:
    """Return a writer of the table that a function takes from a result."""
    return lambda path, result: write_atomic(path, derivatives.table_bytes(columns(result)))


def _write_relmat(path: Path, result: xr.Dataset) -> None:
    write_atomic(path, derivatives.matrix_bytes(nodes_of_edges(result), _relmat(result)))


def _relmat(result: xr.Dataset) -> npt.NDArray[np.float64]:
    """Return correlations as r ``(node, node)``, with their unit diagonal; the store holds Fisher's z of them."""
    netmat = result["netmat"]
    is_z = netmat.attrs.get("z") == "fisher"
    matrix = unpack_edges(np.tanh(netmat.to_numpy()) if is_z else netmat.to_numpy(), diagonal=np.nan)
    if is_z:
        has_data = ~np.isnan(matrix).all(axis=0)
        np.fill_diagonal(matrix, np.where(has_data, 1.0, np.nan))
    return matrix


def _write_relmat_cifti(path: Path, result: xr.Dataset, *, writer: cifti_export.NodeWriter) -> None:
    writer.write_matrix(path, _relmat(result))


def _about_relmat(result: xr.Dataset) -> dict[str, Any]:
    if result["netmat"].attrs.get("z") == "fisher":
        return {"Values": "r", "Transform": "tanh of the Fisher z on which the group analysis is computed"}
    return {"Values": describe_unit(result["netmat"].attrs), "Diagonal": "n/a: only pairs of nodes are kept"}


def _values_of(netmat: xr.DataArray) -> str:
    return "Fisher z: arctanh of r" if netmat.attrs.get("z") == "fisher" else describe_unit(netmat.attrs)


def _write_contrast(path: Path, result: xr.Dataset, *, file: ContrastFile, name: str, title: str) -> None:
    file.write(path, split_contrasts(result, name)[title])


def _about_contrast(result: xr.Dataset, *, file: ContrastFile, name: str, title: str, values: str) -> dict[str, Any]:
    """Return the question of a test, how its p-values came about, and its columns; ``values`` say what was tested."""
    one = split_contrasts(result, name)[title]
    one = one.assign_attrs(unit=values)
    return {**describe_contrast_result(one), "Values": values, **file.columns(one)}


def _series_columns(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    series = result["timeseries"].transpose("node", "time").to_numpy()
    return dict(zip(map(str, result["node"].to_numpy()), series, strict=True))


def _node_columns(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    return {
        name: result[name].to_numpy()
        for name in ("node", "network", "hemisphere", "colour", *"xyz")
        if name in result.coords
    }


def _quality_columns(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    columns: dict[str, npt.ArrayLike] = {
        "participant_id": [f"sub-{label}" for label in result["subject"].to_numpy()],
        "session_id": [f"ses-{label}" for label in result["session"].to_numpy()],
        "run": result["run"].to_numpy(),
    }
    named = {"subject", "session", "run", "redundant", "excluded", "session_excluded"}
    for name in sorted(set(map(str, result.data_vars)) - named):
        values = result[name].to_numpy()
        columns[name] = _counts(values) if name in _COUNTS else values
    return columns | {
        name: result[name].to_numpy() for name in ("redundant", "excluded", "session_excluded") if name in result
    }


def _motion_columns(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    """Return one row per comparison and measure."""
    n_comparison, n_measure = result.sizes["comparison"], result.sizes["measure"]
    words = ("test", "factor", "first", "second", "at")
    columns: dict[str, npt.ArrayLike] = {name: np.repeat(result[name].to_numpy(), n_measure) for name in words}
    columns["measure"] = np.tile(result["measure"].to_numpy(), n_comparison)
    return columns | {name: result[name].to_numpy().ravel() for name in COMPARED}


def _qc_fc_columns(result: xr.Dataset) -> Mapping[str, npt.ArrayLike]:
    names = sorted(str(name) for name in result.data_vars if result[name].dims == ("edge",))
    coords = {name: result[name].to_numpy() for name in ("node_i", "node_j") if name in result.coords}
    return coords | {name: result[name].to_numpy() for name in names}


def _about_qc_fc(result: xr.Dataset) -> dict[str, Any]:
    """Return the summaries, and why there are none where there are none."""
    numbers = {
        str(name): [None if np.isnan(value) else float(value) for value in result[name].to_numpy().ravel()]
        for name in result.data_vars
        if "edge" not in result[name].dims
    }
    summary = {name: values[0] if len(values) == 1 else values for name, values in sorted(numbers.items())}
    return {**{str(name): value for name, value in result.attrs.items() if name in _QC_FC_ATTRS}, "Summary": summary}


_QC_FC_ATTRS: Final = ("n_subject", "covariates", "not_estimated")


def _counts(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Return whole numbers, with empty cells where there is none."""
    return np.array(["" if np.isnan(value) else int(value) for value in values], dtype=object)


def _cohort_columns(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    netmat = result["netmat"].transpose("observation", "edge").to_numpy()
    return {
        "node_i": result["node_i"].to_numpy(),
        "node_j": result["node_j"].to_numpy(),
        **dict(zip(map(str, result["observation"].to_numpy()), netmat, strict=True)),
    }


def _observation_columns(
    result: xr.Dataset, *, variable: str, visits: Mapping[str, Sequence[str]]
) -> dict[str, npt.ArrayLike]:
    """Return one row per session, and after them one per visit that is the mean of several."""
    rows = [result[[variable]].transpose("observation", ...).compute()]
    known = set(map(str, result["session"].to_numpy()))
    for visit, sessions in visits.items():
        if set(sessions) <= known:
            averaged = average_sessions(rows[0], {visit: sessions})
            rows.append(averaged.isel(observation=averaged["session"].to_numpy() == visit))
    values = np.concatenate([part[variable].to_numpy() for part in rows])
    names = result[variable].dims[-1]
    return {
        "participant_id": [f"sub-{label}" for part in rows for label in part["subject"].to_numpy()],
        "session_id": [f"ses-{label}" for part in rows for label in part["session"].to_numpy()],
        **dict(zip(map(str, result[names].to_numpy()), values.T, strict=True)),
    }


def _icc_columns(result: xr.Dataset) -> dict[str, npt.ArrayLike]:
    """Return one row per pair of nodes; none where it was not estimated."""
    names = ("node_i", "node_j", "icc")
    return {name: result[name].to_numpy() if name in result else np.array([]) for name in names}


def _about_icc(result: xr.Dataset) -> dict[str, Any]:
    attrs = result.attrs
    told = {
        "Kind": attrs["kind"],
        "Between": attrs["between"],
        "Compared": attrs["compared"],
        "icc": {"Description": "of a single session or run; Shrout and Fleiss 1979, doi:10.1037/0033-2909.86.2.420"},
    }
    if "not_estimated" in attrs:
        return {**told, "NotEstimated": attrs["not_estimated"]}
    quartiles = np.nanpercentile(result["icc"].to_numpy(), [25, 50, 75])
    return {**told, "NumberOfSubjects": attrs["n_subject"], "Quartiles": quartiles.tolist()}


def _slabs(series: xr.DataArray) -> Iterable[npt.NDArray[np.float32]]:
    """Yield ``(voxel, time)`` in blocks of frames that fit in memory."""
    n_frame = max(1, _SLAB_BYTES // (series.sizes["voxel"] * series.dtype.itemsize))
    for start in range(0, series.sizes["time"], n_frame):
        yield series.isel(time=slice(start, start + n_frame)).to_numpy()
