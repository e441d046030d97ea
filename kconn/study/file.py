"""The study file: one TOML table per concern, typed, with every default printed and unknown keys refused."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from kconn.clean.confounds import PRESETS, STRATEGIES, Strategy, find_strategy
from kconn.cluster.table import ClusterTable
from kconn.errors import StudyFileError, first_of
from kconn.io.objects import parse_place
from kconn.io.storage import Place, beside, is_remote, work_name
from kconn.study.cleaning_tables import (
    MASKS_OF,
    CompcorTable,
    ComponentsTable,
    DenoiseTable,
    QualityTable,
    RegressorsTable,
    StrategyTable,
)
from kconn.study.connection_tables import ConnectivityTable, DenseTable, IcaTable, MapsTable, NodesTable
from kconn.study.family_tables import BlocksTable, FamiliesTable, ReliabilityTable, VisitTable
from kconn.study.input_tables import InputsTable, StorageTable, StudyTable
from kconn.study.table import NAME, Table
from kconn.study.test_tables import OF_ROWS, OF_STATISTIC, ContrastTable, PermutationTable, SurfacesTable

#: Names that a node set must not take, since the store uses them beside node sets.
RESERVED: Final = frozenset(
    {
        "ingest",
        "denoise",
        "reduce",
        "nodes",
        "netmat",
        "map",
        "cohort",
        "quality",
        "coverage",
        "motion",
        "qcfc",
        "test",
    }
)


class Study(Table):
    """A validated study file, with the folder that its paths are relative to."""

    schema_version: Literal[1] = 1
    study: StudyTable
    #: Left out of what is printed as parameters, as `cluster` is.
    storage: Annotated[StorageTable, Field(exclude=True)] = Field(default_factory=StorageTable)
    inputs: InputsTable
    denoise: DenoiseTable = Field(default_factory=DenoiseTable)
    strategies: dict[Annotated[str, Field(pattern=NAME)], StrategyTable] = Field(default_factory=dict)
    regressors: dict[Annotated[str, Field(pattern=NAME)], RegressorsTable] = Field(default_factory=dict)
    components: ComponentsTable = Field(default_factory=ComponentsTable)
    compcor: CompcorTable = Field(default_factory=CompcorTable)
    quality: QualityTable = Field(default_factory=QualityTable)
    nodes: Annotated[dict[Annotated[str, Field(pattern=NAME)], NodesTable], Field(min_length=1)]
    ica: dict[Annotated[str, Field(pattern=NAME)], IcaTable] = Field(default_factory=dict)
    dense: DenseTable | None = None
    connectivity: ConnectivityTable = Field(default_factory=ConnectivityTable)
    families: FamiliesTable | None = None
    blocks: BlocksTable | None = None
    reliability: dict[Annotated[str, Field(pattern=NAME)], ReliabilityTable] = Field(default_factory=dict)
    visits: dict[Annotated[str, Field(pattern=NAME)], VisitTable] = Field(default_factory=dict)
    maps: MapsTable = Field(default_factory=MapsTable)
    surfaces: SurfacesTable | None = None
    contrasts: dict[Annotated[str, Field(pattern=NAME)], ContrastTable] = Field(default_factory=dict)
    permutation: PermutationTable = Field(default_factory=PermutationTable)
    #: Left out of what is printed as parameters: it changes no result, and names machines.
    cluster: Annotated[ClusterTable, Field(exclude=True)] = Field(default_factory=ClusterTable)
    folder: Annotated[Path, Field(exclude=True)] = Path()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        for name, table in self.nodes.items():
            if table.ica is not None and (table.ica not in self.ica or not self.ica[table.ica].accepted()):
                raise ValueError(
                    f"nodes.{name} needs [ica.{table.ica}] with a number of components, at least one of them accepted"
                )
        if both := set(self.nodes) & set(self.ica):
            raise ValueError(f"a node set and a group ICA are both named {sorted(both)}")
        if taken := RESERVED & set(self.nodes):
            raise ValueError(f"a node set cannot be named {sorted(taken)}: the store uses the name")
        return self

    @model_validator(mode="after")
    def _unions_fit(self) -> Self:
        parts = {part for table in self.nodes.values() for part in table.union or ()}
        for name, table in self.nodes.items():
            if not table.is_used and name not in parts:
                raise ValueError(f"nodes.{name}: nothing is made of this node set: neither netmats nor maps")
            for part in table.union or ():
                if part not in self.nodes:
                    raise ValueError(f"nodes.{name} is a union with {part!r}, and there is no [nodes.{part}]")
                other = self.nodes[part]
                if other.union is not None or other.maps is not None or other.ica is not None:
                    raise ValueError(
                        f"nodes.{name}: {part!r} is a union or has maps; a union is of regions and columns"
                    )
            if len(set(table.union or ())) < len(table.union or ()):
                raise ValueError(f"nodes.{name}: a part of the union is named twice")
        return self

    def node_files(self, name: str) -> dict[str, str]:
        """Return role -> path of the files that make a node set; in a union the role begins with the part."""
        table = self.nodes[name]
        of_parts = {
            f"{part}:{role}": path for part in table.union or () for role, path in self.node_files(part).items()
        }
        return table.files() | of_parts

    def node_params(self, name: str) -> dict[str, Any]:
        """Return what the series of a node set depend on beside its files, as `kconn.study.nodesets` reads it."""
        table = self.nodes[name]
        parts = {part: self.nodes[part].params() for part in table.union or ()}
        return table.params() | ({"parts": parts} if parts else {})

    @model_validator(mode="after")
    def _confounds_are_known(self) -> Self:
        confounds = self.denoise.confounds
        if taken := set(self.strategies) & {*PRESETS, *STRATEGIES}:
            raise ValueError(f"a strategy cannot be named {sorted(taken)}: there is a preset of that name")
        if isinstance(confounds, str) and confounds not in (known := [*PRESETS, *STRATEGIES, *self.strategies]):
            near = difflib.get_close_matches(confounds, known, n=1, cutoff=0.3)
            raise ValueError(
                f"denoise.confounds is {confounds!r}; presets and strategies are {', '.join(known)}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
            )
        if self.makes_compcor:
            self._check_masks()
        return self

    def _check_masks(self) -> None:
        if self.inputs.layout in {"tables", "hcp", "cifti"}:
            raise ValueError(f"compcor: masks need images, the layout is {self.inputs.layout!r}")
        wanted = {role for region in self.strategy.compcor for role in MASKS_OF.get(region, ("t",))}
        if "t" in wanted:
            raise ValueError("compcor: region 't' is read from confound tables alone; it has no mask")
        if self.strategy.n_component is None and self.strategy.variance is None:
            raise ValueError("compcor: components of masks need n_component or variance")
        if missing := sorted(role for role in wanted if getattr(self.compcor, role) is None):
            raise ValueError(f"compcor: the regions {list(self.strategy.compcor)} need the mask {missing[0]!r}")

    @property
    def strategy(self) -> Strategy:
        """What ``denoise.confounds`` stands for."""
        confounds = self.denoise.confounds
        if isinstance(confounds, str) and confounds in self.strategies:
            return Strategy.of(self.strategies[confounds].model_dump(mode="json"))
        return find_strategy(confounds)

    @property
    def makes_compcor(self) -> bool:
        """Whether CompCor components are computed from masks."""
        given = self.compcor.white_matter is not None or self.compcor.csf is not None
        return given and bool(self.strategy.compcor)

    @property
    def patterns(self) -> dict[str, str]:
        """Role of a file of a run -> its pattern, where one is stated."""
        inputs = self.inputs
        stated = {"mask": inputs.mask_pattern, "confounds": inputs.confounds_pattern, "fd": inputs.fd_pattern}
        stated |= {f"regressors:{name}": table.pattern for name, table in self.regressors.items()}
        stated |= {"mixing": self.components.mixing, "noise": self.components.noise}
        stated |= {"white_matter": self.compcor.white_matter, "csf": self.compcor.csf}
        return {role: pattern for role, pattern in stated.items() if pattern is not None}

    @model_validator(mode="after")
    def _several_contrasts_are_joined(self) -> Self:
        for name, contrast in self.contrasts.items():
            several = contrast.files.get("contrasts") or (
                isinstance(contrast.weights, dict)
                and not all(isinstance(weight, int | float) for weight in contrast.weights.values())
            )
            if contrast.joint_fwe and not several:
                raise ValueError(
                    f"contrasts.{name}: 'joint_fwe' corrects over several contrasts of one design, this is one; "
                    "name them in 'weights'"
                )
        return self

    @model_validator(mode="after")
    def _stopped_features_are_tested_alone(self) -> Self:
        for name in self.contrasts:
            options = self.permutation_of(name)
            if options.stopping == "none":
                continue
            needs_all = {
                f"statistic = {options.statistic!r}": options.statistic not in {"edge", "voxel"},
                "joint_fwe": options.joint_fwe,
                "tail = 'gpd'": options.tail == "gpd",
                "missing = 'refit'": options.missing == "refit",
            }
            if refused := [words for words, given in needs_all.items() if given]:
                raise ValueError(
                    f"contrasts.{name}: 'stopping' does not go with {' and '.join(refused)}: features that have "
                    "stopped are in no maximum, cluster or fitted tail"
                )
        return self

    @model_validator(mode="after")
    def _kinds_are_estimated(self) -> Self:
        made = self.connectivity.edge_kinds()
        asked = {"blocks": self.blocks} | {f"reliability.{name}": table for name, table in self.reliability.items()}
        for name, table in asked.items():
            if strange := [kind for kind in (table.kinds if table else None) or () if kind not in made]:
                raise ValueError(
                    f"{name}.kinds names {strange[0]!r}; connectivity.kinds of edges are {', '.join(made)}"
                )
            if table is not None and not made:
                raise ValueError(f"{name} needs a kind of netmat in connectivity.kinds")
        return self

    def visits_of(self, name: str) -> dict[str, list[str]]:
        """Return the visits that a contrast names, with their sessions."""
        contrast = self.contrasts[name]
        named = {*contrast.visits(), *(contrast.sessions or ()), *(contrast.baseline or ())}
        return {visit: table.sessions for visit, table in self.visits.items() if visit in named}

    def test_params(self, name: str) -> dict[str, Any]:
        """Return what a contrast tests, and how p-values are computed, as `kconn.study.contrasts` reads it."""
        visits = self.visits_of(name)
        return {
            "hypothesis": self.contrasts[name].hypothesis,
            "permutation": self.permutation_of(name).model_dump(mode="json"),
            **({"visits": visits} if visits else {}),
        }

    def permutation_of(self, name: str) -> PermutationTable:
        """Return how the p-values of a contrast are computed: its own keys put over those of ``[permutation]``."""
        contrast = self.contrasts[name]
        own = contrast.model_dump(include=set(PermutationTable.model_fields) & contrast.model_fields_set)
        shared = self.permutation.model_dump(exclude_unset=True)
        left = OF_STATISTIC if "statistic" in own else frozenset()
        left |= OF_ROWS if contrast.test == "repeated" else frozenset()
        return PermutationTable.model_validate({**{k: v for k, v in shared.items() if k not in left}, **own})

    @property
    def store(self) -> Place:
        """The store: a folder, or a place on object storage."""
        if is_remote(self.study.store):
            return parse_place(self.study.store, **self.storage.model_dump())
        return self.folder / self.study.store

    @property
    def work(self) -> Path:
        """Folder on the disk for logs and remembered digests: beside the store, or else beside the study file."""
        store = self.store
        return beside(store) if isinstance(store, Path) else self.folder / work_name(store)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / self.study.report


def read_study(path: str | Path) -> Study:
    """Read and validate a study file.

    Parameters
    ----------
    path
        TOML file; paths in it are relative to its folder.

    Returns
    -------
    Study
        Typed and frozen.

    Raises
    ------
    StudyFileError
        ``E-STUDY-READ``, ``E-STUDY-KEY`` (naming the nearest known key) or ``E-STUDY-VALUE``.
    """
    study = parse_study(path)
    if isinstance(study, Study):
        return study
    raise first_of(study)


def parse_study(path: str | Path) -> Study | list[StudyFileError]:
    """Read a study file and return it, or everything that is wrong with it.

    Raises
    ------
    StudyFileError
        ``E-STUDY-READ`` where nothing more can be said.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyFileError(
            "E-STUDY-READ",
            f"it cannot be read: {getattr(error, 'strerror', None) or error}",
            where=path.name,
            rule="a study is one TOML file",
            fix="correct the path or the line, or start anew with `kconn init`",
        ) from error
    if "folder" in content:
        return [_unknown_key(path, ("folder",))]
    try:
        return Study.model_validate({**content, "folder": path.resolve().parent})
    except ValidationError as error:
        return _translated(path, error)


def _translated(path: Path, error: ValidationError) -> list[StudyFileError]:
    """Return the findings of pydantic as errors of ours; unknown keys first, since they cause others."""
    unknown: list[StudyFileError] = []
    wrong: dict[tuple[str, ...], list[str]] = {}
    for finding in error.errors(include_url=False, include_context=False):
        place = tuple(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            unknown.append(_unknown_key(path, place))
            continue
        value = "" if isinstance(finding["input"], Mapping) else f", got {_without_login(finding['input'])!r}"
        named = {("nodes",), ("contrasts",), ("strategies",), ("regressors",), ("reliability",), ("visits",)}
        key = place[: 3 if place[:1] in named else 2]  # without the alternatives of a type
        wrong.setdefault(key, []).append(finding["msg"].removeprefix("Value error, ") + value)
    return unknown + [
        StudyFileError(
            "E-STUDY-VALUE",
            f"{'.'.join(place) or 'the file'}: {'; or '.join(messages)}",
            where=path.name,
            rule=_rule_for(place),
            fix="`kconn init` writes a commented file with every key and its default",
        )
        for place, messages in wrong.items()
    ]


def _without_login(value: Any) -> Any:
    """Return a value without the user and password that an address in it may hold."""
    return re.sub(r"//[^/]*@", "//...@", value) if isinstance(value, str) else value


def _unknown_key(path: Path, place: tuple[str, ...]) -> StudyFileError:
    known = known_keys(place[:-1])
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
    return StudyFileError(
        "E-STUDY-KEY",
        f"unknown key {'.'.join(place)!r}",
        where=path.name,
        rule=f"[{'.'.join(place[:-1]) or 'top level'}] knows {', '.join(known)}",
        fix=f"write {near[0]!r}" if near else "remove it",
    )


def known_keys(place: tuple[str, ...]) -> list[str]:
    """Return the keys that a table of the study file may have."""
    model = table_model(place)
    return [key for key in model.model_fields if key != "folder"] if model else []


def table_model(place: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the model of a table: ``()`` is the whole file, ``("nodes", "x")`` any node set."""
    tables: dict[str, type[BaseModel]] = {
        "study": StudyTable,
        "storage": StorageTable,
        "inputs": InputsTable,
        "denoise": DenoiseTable,
        "strategies": StrategyTable,
        "regressors": RegressorsTable,
        "components": ComponentsTable,
        "compcor": CompcorTable,
        "quality": QualityTable,
        "nodes": NodesTable,
        "ica": IcaTable,
        "dense": DenseTable,
        "connectivity": ConnectivityTable,
        "families": FamiliesTable,
        "blocks": BlocksTable,
        "reliability": ReliabilityTable,
        "visits": VisitTable,
        "maps": MapsTable,
        "surfaces": SurfacesTable,
        "contrasts": ContrastTable,
        "permutation": PermutationTable,
        "cluster": ClusterTable,
    }
    return tables.get(place[0]) if place else Study


def _rule_for(place: tuple[str, ...]) -> str:
    """Return what a key is, or what its table is."""
    model = table_model(place) or Study
    field = model.model_fields.get(place[-1]) if len(place) > 1 else None
    return (field and field.description) or (model.__doc__ or "").splitlines()[0].replace("`", "")
