"""The plan of a study: every step with its inputs, parameters, content key and estimate, as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

from kconn.chunks import BLOCK_BYTES, GATHER_BYTES, MIB, ROW_BYTES
from kconn.clean.confounds import name_columns
from kconn.connect.dense_connectome import TILE
from kconn.connect.merge_tree import plan_merges
from kconn.io.digests import digest_files
from kconn.io.files import canonical_json, sha256_bytes
from kconn.io.store import Address
from kconn.study.connection_tables import DenseTable, IcaTable, MapKind, NodesTable
from kconn.study.examination import RunFacts
from kconn.study.families import choose_node_sets, list_families, nodes_with_netmats, plan_blocks
from kconn.study.family_checks import select_subjects
from kconn.study.file import Study
from kconn.study.survey import Survey
from kconn.study.test_tables import OF_NEIGHBOURS
from kconn.versions import code_version

RUN_STAGES: Final = ("ingest", "denoise", "reduce", "nodes", "netmat", "map")
COHORT_STAGES: Final = (
    "quality",
    "coverage",
    "motion",
    "merge",
    "ica",
    "select",
    "dense",
    "cohort",
    "blocks",
    "amplitudes",
    "map-cohort",
    "qcfc",
    "reliability",
    "test",
    "feature-test",
    "map-test",
    "map-correction",
)
#: Stages that permute.
TEST_STAGES: Final = frozenset({"test", "feature-test", "map-test"})
#: Keys of ``[quality]`` that a run is held to when it is denoised.
RUN_LIMITS: Final = {"min_frames", "min_minutes", "min_dof", "max_mean_fd", "max_censored", "max_std_dvars"}
#: Keys of ``[quality]`` that all runs of a session are held to together.
SESSION_LIMITS: Final = {"min_session_frames", "min_session_minutes"}
#: Stage -> values (voxels by frames) per second of one core; test: relabelled values. Round numbers, see
#: docs/reliability.md.
RATES: Final = {"ingest": 36e6, "denoise": 11e6, "nodes": 21e6, "test": 3e9}
#: Seconds that every step takes beside its numbers, and per result that it reads.
_STEP_SECONDS: Final = 0.1
_READ_SECONDS: Final = 0.02
#: Bytes that a worker needs beside its arrays: interpreter and libraries, measured as resident after import.
_BASE_BYTES: Final = 300 * MIB
#: Bytes that a task of a permutation test works in, however small its data.
_TEST_SCRATCH_BYTES: Final = 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a step will cost, from shapes alone: bytes read and written (before compression), peak memory, tasks.

    ``seconds`` are those of one core as `RATES` has them; it tells hours from days, not minutes from each other.
    """

    bytes_read: int = 0
    bytes_written: int = 0
    memory: int = _BASE_BYTES
    n_tasks: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A result that a step reads."""

    address: Address
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of a stage.

    Attributes
    ----------
    stage
        Name of the stage.
    address
        Where the result is published.
    key
        Digest of everything the result depends on: input contents, upstream keys, parameters, code.
    where
        The place in words, for messages.
    files
        Role -> path relative to the study file.
    upstream
        Results that are read.
    params
        Parameters of the stage, JSON values only.
    digests
        Path -> SHA-256 of ``files``.
    estimate
        Cost.
    max_mem
        Bytes that its tasks may hold together, where it has such a limit. No part of ``key``: it changes no result.
    """

    stage: str
    address: Address
    key: str
    where: str
    files: Mapping[str, str]
    upstream: tuple[Upstream, ...]
    params: Mapping[str, Any]
    digests: Mapping[str, str]
    estimate: Estimate
    max_mem: int | None = None

    def reads(self, step: str) -> Upstream:
        """Return the upstream result of one step."""
        return next(up for up in self.upstream if up.address.step == step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps, each after those it reads."""

    steps: tuple[Step, ...]
    code: str
    left_out: Mapping[str, str] = field(default_factory=dict)

    def runs(self) -> dict[str, list[Step]]:
        """Return the steps of each run, in order."""
        grouped: dict[str, list[Step]] = {}
        for step in self.steps:
            if step.stage in RUN_STAGES:
                grouped.setdefault(step.where, []).append(step)
        return grouped

    def cohort(self) -> list[Step]:
        """Return the steps of the cohort, in order."""
        return [step for step in self.steps if step.stage in COHORT_STAGES]

    def hours(self, n_workers: int) -> float:
        """Return the hours that all steps take on so many workers of one thread, as `RATES` has it.

        Runs and permutations are shared out; the other steps of the cohort are walked one after the other.
        """
        alone = sum(step.estimate.seconds for step in self.cohort() if step.stage not in TEST_STAGES)
        shared = sum(step.estimate.seconds for step in self.steps) - alone
        return (shared / n_workers + alone) / 3600

    def phases(self) -> list[Plan]:
        """Return the parts of the plan that are walked one after the other: in each the runs, then the cohort.

        A step of a run that reads a result of the cohort (the nodes of a group ICA) opens a new phase.
        """
        phase: dict[Address, int] = {}
        stage: dict[Address, str] = {}
        for step in self.steps:
            opens = step.stage in RUN_STAGES
            before = (phase[up.address] + (opens and stage[up.address] in COHORT_STAGES) for up in step.upstream)
            phase[step.address] = max(before, default=0)
            stage[step.address] = step.stage
        parts: dict[int, list[Step]] = {}
        for step in self.steps:
            parts.setdefault(phase[step.address], []).append(step)
        return [replace(self, steps=tuple(parts[i])) for i in sorted(parts)]


def make_plan(study: Study, survey: Survey, *, rehash: bool = False) -> Plan:
    """Return the plan of a study that was surveyed without a problem.

    Parameters
    ----------
    study
        The study file.
    survey
        What `kconn.study.survey.survey_study` found.
    rehash
        Read every input again instead of trusting size and time of change.
    """
    builder = _Builder(study, survey, rehash=rehash)
    steps = [*builder.run_steps(), *builder.ica_steps(), *builder.cohort_steps()]
    return Plan(steps=tuple(steps), code=code_version(), left_out=survey.left_out)


def _every_level(pairs: Sequence[Sequence[Any] | None]) -> list[Any] | None:
    """Return the levels that are named, each once, or None where some contrast takes those that occur."""
    named = [pair for pair in pairs if pair is not None]
    return None if len(named) < len(pairs) else list(dict.fromkeys(level for pair in named for level in pair))


class _Builder:
    """Holds what every step needs while the plan is made."""

    def __init__(self, study: Study, survey: Survey, *, rehash: bool) -> None:
        self.study = study
        self.survey = survey
        paths = {path for facts in survey.runs for path in facts.files.values()}
        paths |= {path for facts in survey.runs for path in facts.regions.values()}
        self.node_sets = {name: nodes for name, nodes in study.nodes.items() if nodes.is_used}
        paths |= {path for name in self.node_sets for path in study.node_files(name).values()}
        paths |= {path for ica in study.ica.values() for path in ica.files().values()}
        paths |= set(self._surfaces().values())
        paths |= set(self._tables().values())
        paths |= {path for contrast in study.contrasts.values() for path in contrast.roles.values()}
        self.families = list_families(study)
        self.sets = nodes_with_netmats(study, survey.node_coords)
        self.blocks = plan_blocks(study, self.families, self.sets)
        memory = None if rehash else study.work
        self.digests = digest_files(study.folder, paths, memory=memory)
        self.ingested: list[Step] = []
        self.denoised: list[Step] = []
        self.series: dict[str, list[Step]] = {}
        self.reduced: dict[str, dict[str, Step]] = {}
        self.components: dict[str, tuple[Step, Step]] = {}
        self.netmats: dict[tuple[str, str], list[Step]] = {}
        self.maps: dict[tuple[str, MapKind], list[Step]] = {}

    def run_steps(self) -> Iterator[Step]:
        for facts in self.survey.runs:
            ingest = self._ingest(facts)
            denoise = self._denoise(facts, ingest)
            self.ingested.append(ingest)
            self.denoised.append(denoise)
            yield from (ingest, denoise)
            for name, table in self.study.ica.items():
                reduced = self._reduce(facts, name, table, (ingest, denoise))
                self.reduced.setdefault(name, {})[facts.where] = reduced
                yield reduced
            for name, nodes in self.node_sets.items():
                if nodes.ica is None:
                    yield from self._connect(facts, name, nodes, (ingest, denoise))

    def ica_steps(self) -> Iterator[Step]:
        """Yield every group ICA, and the steps of the runs whose nodes are its components."""
        for name, table in self.study.ica.items():
            yield from self._decompose(name, table)
        for facts, ingest, denoise in zip(self.survey.runs, self.ingested, self.denoised, strict=True):
            for name, nodes in self.node_sets.items():
                if nodes.ica is not None:
                    yield from self._connect(facts, name, nodes, (ingest, denoise, *self.components[nodes.ica]))

    def _connect(self, facts: RunFacts, name: str, nodes: NodesTable, reads: tuple[Step, ...]) -> Iterator[Step]:
        """Yield what is made of one run and one node set."""
        series = self._nodes(facts, name, reads)
        self.series.setdefault(name, []).append(series)
        yield series
        for kind in self.study.connectivity.edge_kinds() if nodes.netmats else ():
            netmat = self._netmat(facts, name, kind, series)
            self.netmats.setdefault((name, kind), []).append(netmat)
            yield netmat
        for map_kind in nodes.map_kinds():
            maps = self._map(facts, name, map_kind, (*reads[:2], series))
            self.maps.setdefault((name, map_kind), []).append(maps)
            yield maps

    def cohort_steps(self) -> Iterator[Step]:
        limits = self.study.quality.model_dump(mode="json", include=SESSION_LIMITS)
        quality = self._step("quality", "cohort", "cohort", upstream=self.denoised, params=limits)
        yield quality
        yield self._motion(quality)
        for name, series in self.series.items():
            path, n_node = f"quality/{name}", len(self.survey.node_names[name])
            yield self._step("coverage", path, path, upstream=series)
            if self.study.nodes[name].netmats:
                yield self._qc_fc(path, (quality, *series), n_node * (n_node - 1) // 2)
        if self.study.dense is not None:
            yield self._dense(self.study.dense)
        for (name, kind), netmats in self.netmats.items():
            path = f"cohort/{name}/{kind}"
            n_edge = max((step.params["n_edge"] for step in netmats), default=0)
            estimate = Estimate(bytes_written=8 * n_edge * len(netmats))
            cohort = self._step(
                "cohort",
                path,
                path,
                upstream=[quality, *netmats],
                params={**self._scale(kind), **limits},
                estimate=estimate,
            )
            yield cohort
            if kind != "corr":  # of full correlations it is estimated above, before and after denoising
                yield self._qc_fc(f"quality/{name}/{kind}", (cohort, *self.series[name]), n_edge)
            yield from self._reliability(name, kind, cohort, netmats)
            for label in self.study.contrasts:
                yield from self._edge_test(name, kind, label, cohort, n_edge)
            yield from self._blocks(name, kind, cohort)
        if "amplitude" in self.study.connectivity.kinds:
            for name in self.sets:
                yield from self._amplitudes(name, quality)
        for (name, kind), maps in self.maps.items():
            yield from self._map_cohort(name, kind, maps, quality)

    def _edge_test(self, name: str, kind: str, label: str, cohort: Step, n_edge: int) -> Iterator[Step]:
        """Yield the test of a contrast, if it is of all edges or of a family that the node set has."""
        family = self.study.contrasts[label].family
        of: dict[str, Any] = {}
        if family is not None:
            if name not in choose_node_sets(family, self.families[family], self.sets):
                return
            of = {"family": {"name": family, "edges": [list(pair) for pair in self.families[family]]}}
        yield self._test(f"contrasts/{name}/{kind}/{label}", label, cohort, n_edge, of=of)

    def _blocks(self, name: str, kind: str, cohort: Step) -> Iterator[Step]:
        """Yield the means over blocks of edges, and their tests."""
        table, blocks = self.study.blocks, self.blocks.get(name)
        if table is None or blocks is None or (table.kinds is not None and kind not in table.kinds):
            return
        path = f"cohort/{name}/{kind}"
        params = {"blocks": {block: [list(pair) for pair in pairs] for block, pairs in blocks.items()}}
        step = self._step("blocks", path, path, upstream=[cohort], params=params)
        yield step
        yield from self._feature_tests(f"contrasts/{name}/{kind}", "blocks", step, "family_mean", len(blocks))

    def _amplitudes(self, name: str, quality: Step) -> Iterator[Step]:
        """Yield the amplitudes of all nodes, and their tests."""
        path, limits = f"cohort/{name}/amplitude", self.study.quality.model_dump(mode="json", include=SESSION_LIMITS)
        step = self._step("amplitudes", path, path, upstream=[quality, *self.series[name]], params=limits)
        yield step
        n_node = len(self.survey.node_names[name])
        yield from self._feature_tests(f"contrasts/{name}/amplitude", "nodes", step, "amplitude", n_node)

    def _feature_tests(self, path: str, ending: str, cohort: Step, variable: str, n_feature: int) -> Iterator[Step]:
        """Yield the tests of what has no neighbours: each feature by itself, whatever the statistic of edges."""
        for label, contrast in self.study.contrasts.items():
            if contrast.family is None:
                yield self._test(
                    f"{path}/{label}/{ending}",
                    label,
                    cohort,
                    n_feature,
                    stage="feature-test",
                    of={"variable": variable},
                )

    def _reliability(self, name: str, kind: str, cohort: Step, netmats: Sequence[Step]) -> Iterator[Step]:
        """Yield the comparisons of sessions, from the cohort, and of runs, from their netmats."""
        for label, table in self.study.reliability.items():
            if table.kinds is not None and kind not in table.kinds:
                continue
            upstream: list[Step] = [cohort]
            if table.runs is not None:
                session = table.session or self.survey.runs[0].run.session
                labels = [f"ses-{session}/run-{run}" for run in table.runs]
                upstream += [step for step in netmats if step.where.partition("/")[2] in labels]
            path = f"reliability/{name}/{kind}/{label}"
            params = {
                **self._scale(kind),
                **table.model_dump(mode="json", include={"sessions", "runs", "icc"}),
                "subjects": select_subjects(table, self.survey.participants),
            }
            yield self._step("reliability", path, path, upstream=upstream, params=params)

    def _map_cohort(self, name: str, kind: MapKind, maps: list[Step], quality: Step) -> Iterator[Step]:
        """Yield the cohort of maps, for each contrast the test of every node's map, and what joins these."""
        n_voxel, nodes = self._most_voxels(), self.survey.node_names[name]
        path = f"cohort/{name}/{kind}"
        limits = self.study.quality.model_dump(mode="json", include=SESSION_LIMITS)
        params = {"kind": kind, **limits, **self.study.maps.model_dump(mode="json")}
        estimate = Estimate(
            bytes_read=sum(step.estimate.bytes_written for step in maps),
            bytes_written=4 * n_voxel * len(nodes) * len(maps),
            memory=_BASE_BYTES + 4 * GATHER_BYTES + len(maps) * n_voxel // 8,
        )
        cohort = self._step("map-cohort", path, path, upstream=(quality, *maps), params=params, estimate=estimate)
        yield cohort
        for label in self.study.contrasts:
            # Voxels have no nodes to share, and are in no family of edges.
            if self.study.permutation_of(label).statistic == "nbs" or self.study.contrasts[label].family is not None:
                continue
            path = f"contrasts/{name}/{kind}/{label}"
            tests = []
            for i_node, node in enumerate(nodes):
                place = f"{path}/{i_node + 1}-{_as_label(node)}"
                of = {"kind": kind, "i_node": i_node}
                tests.append(self._test(place, label, cohort, n_voxel, stage="map-test", of=of))
                yield tests[-1]
            # Voxels that stopped by themselves have no maximum that nodes could be corrected by.
            if len(tests) > 1 and self.study.permutation_of(label).stopping == "none":
                n_bytes = 8 * n_voxel * len(tests)
                estimate = Estimate(bytes_read=2 * n_bytes, bytes_written=n_bytes)
                yield self._step("map-correction", path, path, upstream=tests, estimate=estimate)

    def _most_voxels(self) -> int:
        return max((facts.n_voxel for facts in self.survey.runs), default=0)

    def _map(self, facts: RunFacts, name: str, kind: MapKind, upstream: Iterable[Step]) -> Step:
        n_bytes = 4 * len(self.survey.node_names[name]) * facts.n_voxel
        estimate = Estimate(
            bytes_read=4 * facts.n_voxel * facts.n_time,
            bytes_written=n_bytes,
            memory=_BASE_BYTES + min(4 * BLOCK_BYTES, 16 * facts.n_voxel * facts.n_time) + 2 * n_bytes,
        )
        return self._step(
            "map",
            f"{facts.where}/{name}/{kind}",
            facts.where,
            upstream=upstream,
            params={"kind": kind, "normalise": self.study.nodes[name].normalise if kind == "subjectmap" else None},
            estimate=estimate,
        )

    def _motion(self, quality: Step) -> Step:
        contrasts = self.study.contrasts.values()
        factors: dict[str, list[Any]] = {}
        for contrast in contrasts:
            if contrast.test == "two-sample":
                factors.setdefault(str(contrast.effect), []).append(contrast.levels)
        sessions = {visit: table.sessions for visit, table in self.study.visits.items()}
        changes = dict.fromkeys(
            pair
            for contrast in contrasts
            for before, after in contrast.visit_pairs()
            for pair in product(sessions.get(before, [before]), sessions.get(after, [after]))
        )
        params = {
            "factors": [{"column": column, "levels": _every_level(pairs)} for column, pairs in factors.items()],
            "changes": [list(change) for change in changes],
            "n_perm": self.study.permutation.n_perm,
            "seed": self.study.permutation.seed,
            **self._people_params(),
        }
        return self._step("motion", "quality", "quality", files=self._people_files(), upstream=[quality], params=params)

    def _qc_fc(self, path: str, upstream: Sequence[Step], n_edge: int) -> Step:
        quality = self.study.quality
        params = {
            **quality.model_dump(mode="json", include=SESSION_LIMITS),
            "covariates": quality.qc_fc_covariates,
            "n_perm": quality.qc_fc_n_perm,
            "seed": self.study.permutation.seed,
            **self._people_params(),
        }
        files = self._people_files() if quality.qc_fc_covariates else {}
        estimate = Estimate(bytes_written=3 * 8 * n_edge)
        return self._step("qcfc", path, path, files=files, upstream=upstream, params=params, estimate=estimate)

    def _people_params(self) -> dict[str, Any]:
        inputs = self.study.inputs
        return {"participants_id": inputs.participants_id, "participants_id_format": inputs.participants_id_format}

    def _people_files(self) -> dict[str, str]:
        return {role: path for role, path in self._tables().items() if role == "participants"}

    def _itemsize(self, facts: RunFacts) -> int:
        """Return the bytes of one stored value: what was smoothed is no integer any more."""
        return facts.itemsize if self.study.denoise.smoothing_fwhm == "none" else max(4, facts.itemsize)

    def _ingest(self, facts: RunFacts) -> Step:
        inputs = self.study.inputs
        params: dict[str, Any] = {"layout": inputs.layout, "t_r": inputs.t_r, "space": facts.space}
        if inputs.layout == "tables":
            params |= {"orientation": inputs.orientation, "has_header": inputs.has_header}
        if self.study.denoise.smoothing_fwhm != "none":
            params["smoothing_fwhm"] = self.study.denoise.smoothing_fwhm
        if columns := name_columns(self.study.strategy):
            params["columns"] = columns
        if self.study.regressors:
            params["regressors"] = {
                name: table.model_dump(mode="json", exclude={"pattern"})
                for name, table in self.study.regressors.items()
            }
        estimate = Estimate(
            seconds=facts.n_voxel * facts.n_time / RATES["ingest"],
            bytes_read=facts.n_bytes,
            bytes_written=facts.n_voxel * facts.n_time * self._itemsize(facts),
            memory=_BASE_BYTES + min(2 * ROW_BYTES, 2 * facts.n_voxel * facts.n_time * self._itemsize(facts)),
        )
        return self._step(
            "ingest",
            facts.where,
            facts.where,
            files=facts.files,
            params=params,
            estimate=estimate,
        )

    def _denoise(self, facts: RunFacts, ingest: Step) -> Step:
        limits = self.study.quality.model_dump(mode="json", include=RUN_LIMITS)
        params = {**self.study.denoise.model_dump(mode="json"), **limits}
        confounds = self.study.denoise.confounds
        if isinstance(confounds, str) and confounds in self.study.strategies:
            params["strategy"] = self.study.strategies[confounds].model_dump(mode="json")
        if self.study.makes_compcor:
            params["erode"] = self.study.compcor.erode
        n_bytes = 4 * facts.n_voxel * facts.n_time
        estimate = Estimate(
            seconds=facts.n_voxel * facts.n_time / RATES["denoise"],
            bytes_read=facts.n_voxel * facts.n_time * self._itemsize(facts),
            bytes_written=n_bytes,
            memory=_BASE_BYTES + min(6 * BLOCK_BYTES, 6 * n_bytes) + 16 * facts.n_time**2,
        )
        return self._step(
            "denoise",
            facts.where,
            facts.where,
            files=facts.regions,
            upstream=[ingest],
            params=params,
            estimate=estimate,
        )

    def _reduce(self, facts: RunFacts, name: str, table: IcaTable, upstream: Iterable[Step]) -> Step:
        n_row = min(facts.n_time, self._n_rows(table))
        params = {"n_row": self._n_rows(table), "normalise": table.normalise}
        estimate = Estimate(
            bytes_read=12 * facts.n_voxel * facts.n_time,
            bytes_written=4 * n_row * facts.n_voxel,
            memory=_BASE_BYTES + 6 * BLOCK_BYTES + 5 * 8 * facts.n_time**2,
        )
        return self._step(
            "reduce", f"{facts.where}/{name}", facts.where, upstream=upstream, params=params, estimate=estimate
        )

    def _decompose(self, name: str, table: IcaTable) -> Iterator[Step]:
        """Yield the merges of all runs, the components of the last, and what is accepted of them."""
        found = dict(self.reduced[name])
        n_voxel = max(facts.n_voxel for facts in self.survey.runs)
        n_row = self._n_rows(table)
        root = next(iter(found.values()))
        for merge in plan_merges(found):
            path = f"ica/{name}/{merge.name}"
            n_stacked = n_row * len(merge.parts)
            root = found[merge.name] = self._step(
                "merge",
                path,
                path,
                upstream=[found[part] for part in merge.parts],
                params={"n_row": n_row},
                estimate=Estimate(
                    bytes_read=8 * n_stacked * n_voxel,
                    bytes_written=4 * n_row * n_voxel,
                    memory=_BASE_BYTES + 6 * BLOCK_BYTES + 4 * 8 * n_stacked**2,
                ),
            )
            yield root
        params = table.model_dump(mode="json", exclude={"reject", "n_rows", "normalise", *table.files()})
        n_component = n_row if table.n_components == "estimate" else table.n_components
        components = self._step(
            "ica",
            f"ica/{name}",
            f"ica/{name}",
            files=table.files(),
            upstream=[root],
            params=params,
            estimate=Estimate(
                bytes_read=8 * n_row * n_voxel,
                bytes_written=4 * n_component * n_voxel,
                memory=_BASE_BYTES + 6 * 8 * n_component * n_voxel,
            ),
        )
        yield components
        selected = self._step(
            "select", f"ica/{name}", f"ica/{name}", upstream=[components], params={"reject": dict(table.reject)}
        )
        yield selected
        self.components[name] = (components, selected)

    def _dense(self, table: DenseTable) -> Step:
        chosen = [
            i
            for i, facts in enumerate(self.survey.runs)
            if table.sessions is None or facts.run.session in table.sessions
        ]
        runs = [self.survey.runs[i] for i in chosen]
        n_voxel = max((facts.n_voxel for facts in runs), default=0)
        n_read = 4 * n_voxel * sum(facts.n_time for facts in runs) * -(-n_voxel // TILE)
        tile_bytes = 4 * min(TILE, n_voxel) ** 2
        return self._step(
            "dense",
            "dense",
            "dense",
            upstream=[self.ingested[i] for i in chosen] + [self.denoised[i] for i in chosen],
            params={**table.model_dump(mode="json", exclude={"max_hours", "sessions"}), "tile": TILE},
            estimate=Estimate(
                bytes_read=n_read,
                bytes_written=table.count_bytes(n_voxel),
                memory=_BASE_BYTES + 3 * tile_bytes + 12 * TILE * max((facts.n_time for facts in runs), default=0),
                n_tasks=(-(-n_voxel // TILE)) ** 2 // 2 + 1,
            ),
        )

    def _n_rows(self, table: IcaTable) -> int:
        longest = max(facts.n_time for facts in self.survey.runs)
        return 2 * longest - 1 if table.n_rows == "twice" else table.n_rows

    def _nodes(self, facts: RunFacts, name: str, upstream: Iterable[Step]) -> Step:
        n_node = len(self.survey.node_names[name])
        n_bytes = 4 * facts.n_voxel * facts.n_time
        estimate = Estimate(
            seconds=facts.n_voxel * facts.n_time / RATES["nodes"],
            bytes_read=n_bytes + facts.n_voxel * facts.n_time * self._itemsize(facts),
            bytes_written=2 * 8 * n_node * facts.n_time,
            memory=_BASE_BYTES + min(4 * BLOCK_BYTES, 4 * n_bytes),
        )
        return self._step(
            "nodes",
            f"{facts.where}/{name}",
            facts.where,
            files=self.study.node_files(name),
            upstream=upstream,
            params={
                **self.study.node_params(name),
                "min_atlas_coverage": self.study.quality.min_atlas_coverage,
                "dummy_frames": self.study.denoise.dummy_frames,
            },
            estimate=estimate,
        )

    def _netmat(self, facts: RunFacts, name: str, kind: str, series: Step) -> Step:
        n_node = len(self.survey.node_names[name])
        n_edge = n_node * (n_node - 1) // 2
        return self._step(
            "netmat",
            f"{facts.where}/{name}/{kind}",
            facts.where,
            upstream=[series],
            params={**self.study.connectivity.of_kind(kind), "n_edge": n_edge},
            estimate=Estimate(
                bytes_written=2 * 8 * n_edge, memory=_BASE_BYTES + 8 * (4 * n_node**2 + n_node * facts.n_time)
            ),
        )

    def _scale(self, kind: str) -> dict[str, Any]:
        """Return what the cohort makes of the netmats of its runs."""
        z = self.study.connectivity.of_kind(kind)["z"]
        return {"kind": kind, "z": z, **({"seed": self.study.permutation.seed} if z == "ar1" else {})}

    def _test(
        self,
        path: str,
        name: str,
        cohort: Step,
        n_feature: int,
        *,
        stage: str = "test",
        of: Mapping[str, Any] | None = None,
    ) -> Step:
        """Return the test of a cohort; ``of`` says which part of it is tested, where not all edges are."""
        contrast, permutation = self.study.contrasts[name], self.study.permutation_of(name)
        params = {**self.study.test_params(name), **self._people_params()}
        params["permutation"] = {key: value for key, value in params["permutation"].items() if key != "max_mem"}
        surfaces: dict[str, str] = {}
        if stage == "map-test" and permutation.statistic in OF_NEIGHBOURS and self.study.surfaces is not None:
            surfaces = self._surfaces()
            params["surface_extent"] = self.study.surfaces.extent
        n_value = n_feature * max(1, len(cohort.upstream) - 1)
        estimate = Estimate(
            bytes_read=cohort.estimate.bytes_written,
            bytes_written=8 * (24 * n_feature + permutation.n_perm),
            # The data as read and what is left of them after the nuisance, in float64.
            memory=_BASE_BYTES + min(permutation.max_mem, _TEST_SCRATCH_BYTES + 2 * 8 * n_value),
            seconds=permutation.n_perm * n_value / RATES["test"],
        )
        step = self._step(
            stage,
            path,
            path,
            files={**self._tables(), **contrast.roles, **surfaces},
            upstream=[cohort],
            params={**params, **(of or {})},
            estimate=estimate,
        )
        return replace(step, max_mem=permutation.max_mem)

    def _surfaces(self) -> dict[str, str]:
        return {} if self.study.surfaces is None else self.study.surfaces.files()

    def _tables(self) -> dict[str, str]:
        inputs = self.study.inputs
        named = {"participants": inputs.participants, "sessions": inputs.sessions}
        return {role: path for role, path in named.items() if path is not None}

    def _step(
        self,
        stage: str,
        path: str,
        where: str,
        *,
        files: Mapping[str, str] | None = None,
        upstream: Iterable[Step] = (),
        params: Mapping[str, Any] | None = None,
        estimate: Estimate | None = None,
    ) -> Step:
        files, params = dict(files or {}), dict(params or {})
        reads = tuple(Upstream(address=step.address, key=step.key) for step in upstream)
        digests = {path: self.digests[path] for path in files.values()}
        depends = {
            "stage": stage,
            "code": code_version(),
            "params": params,
            "files": {role: digests[path] for role, path in files.items()},
            "upstream": [[str(up.address), up.key] for up in reads],
        }
        estimate = estimate or Estimate()
        overhead = _STEP_SECONDS + _READ_SECONDS * len(reads)
        return Step(
            stage=stage,
            address=Address(path=path, step=stage),
            key=sha256_bytes(canonical_json(depends))[:32],
            where=where,
            files=files,
            upstream=reads,
            params=params,
            digests=digests,
            estimate=replace(estimate, seconds=estimate.seconds + overhead),
        )


def _as_label(name: str) -> str:
    """Return a name of a node as part of a path: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "node"
