"""``[nodes] [ica] [dense] [connectivity] [maps]``: what is connected with what, and how."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from kconn.connect.kinds import KINDS
from kconn.io.coordinates import SIZED_TABLES, SPHERE_TABLES
from kconn.study.table import Table

KindName = Literal[
    "cov", "corr", "rcorr", "partial", "ridgep", "glasso", "ledoit", "ledoitp", "tangent", "corrsd", "amplitude"
]


MapKind = Literal["seedmap", "subjectmap"]


_CIFTI_LABELS: Final = (".dlabel.nii", ".dlabel.nii.gz")


#: Key of ``[nodes.NAME]`` -> the kinds of node set that it belongs to.
SOURCE_OF: Final[dict[str, tuple[str, ...]]] = {
    "labels": ("atlas", "maps", "spheres", "columns"),
    "label_map": ("atlas",),
    "resample": ("atlas",),
    "radius_mm": ("spheres",),
    "diameter_mm": ("spheres",),
    "exclude": ("atlas", "spheres", "columns", "union"),
    "method": ("maps", "ica"),
    "subject_maps": ("maps", "ica"),
    "normalise": ("maps", "ica"),
}


#: Key of ``[nodes.NAME]`` that asks for maps of its nodes -> their kind in the store.
MAP_KINDS: Final[dict[str, MapKind]] = {"seed_maps": "seedmap", "subject_maps": "subjectmap"}


_SOURCES: Final = ("atlas", "maps", "ica", "spheres", "columns", "union")
#: Keys that the series of the nodes do not depend on, and those that are files.
_NOT_OF_SERIES: Final = {"atlas", "maps", "labels", "netmats", "normalise", *MAP_KINDS}


class NodesTable(Table):
    """``[nodes.NAME]``: one node set: an atlas, maps, a group ICA, spheres, columns of node tables, or a union."""

    atlas: Annotated[str | None, Field(description="label image or dlabel, relative to this file")] = None
    maps: Annotated[str | None, Field(description="4-D image of spatial maps, such as ICA components")] = None
    ica: Annotated[str | None, Field(description="name of a group ICA, whose accepted components are the nodes")] = None
    labels: Annotated[
        str | None,
        Field(description="table: index (of labels and maps), name, and optionally network and hemisphere"),
    ] = None
    label_map: Annotated[str | None, Field(description="map of a dlabel, where it has several")] = None
    resample: Annotated[bool, Field(description="nearest-neighbour resampling of the atlas to the grid of the run")] = (
        False
    )
    spheres: Annotated[
        str | list[tuple[str, float, float, float]] | None,
        Field(description="table with name, x, y, z in mm, a list of [name, x, y, z], or a published table by name"),
    ] = None
    radius_mm: Annotated[float | None, Field(gt=0, description="of the spheres; this or diameter_mm")] = None
    diameter_mm: Annotated[float | None, Field(gt=0, description="of the spheres; this or radius_mm")] = None
    columns: Annotated[
        Literal["all"] | list[str] | None, Field(description="columns of node tables: all, or names")
    ] = None
    union: Annotated[
        list[str] | None, Field(min_length=2, description="node sets whose nodes make this one, one after the other")
    ] = None
    exclude: Annotated[list[str], Field(description="nodes that are left out, by name")] = Field(default_factory=list)
    min_coverage: Annotated[
        float, Field(ge=0, le=1, description="share of a node's voxels that must have data, else it is NaN and listed")
    ] = 0.5

    method: Annotated[
        Literal["dual-regression", "weighted-mean"],
        Field(description="how maps give series: all fitted to each frame at once, or each as a weighted mean"),
    ] = "dual-regression"
    netmats: Annotated[bool, Field(description="whether connections between the nodes are estimated")] = True
    seed_maps: Annotated[
        bool, Field(description="whether each node is a seed: a map of the correlation of its series with every voxel")
    ] = False
    subject_maps: Annotated[
        bool, Field(description="whether the map of each node in each run is fitted: stage 2 of dual regression")
    ] = False
    normalise: Annotated[
        bool, Field(description="whether series have unit variance before subject maps are fitted, as FSL recommends")
    ] = True

    def map_kinds(self) -> list[MapKind]:
        """Return the kinds of maps that are made of every run."""
        return [kind for key, kind in MAP_KINDS.items() if getattr(self, key)]

    def files(self) -> dict[str, str]:
        """Return role -> path of the files that make this node set."""
        named = {"atlas": self.atlas, "maps": self.maps, "labels": self.labels, "spheres": self.spheres}
        if self.spheres in SPHERE_TABLES:
            named.pop("spheres")
        return {role: path for role, path in named.items() if isinstance(path, str)}

    def params(self) -> dict[str, Any]:
        """Return what its series depend on beside its files."""
        return self.model_dump(mode="json", exclude=_NOT_OF_SERIES | set(self.files()))

    @property
    def is_used(self) -> bool:
        """Whether netmats or maps are made of it; else it is a part of others."""
        return self.netmats or bool(self.map_kinds())

    @model_validator(mode="after")
    def _spheres_have_a_size(self) -> Self:
        n_size = (self.radius_mm is not None) + (self.diameter_mm is not None)
        has_sizes = isinstance(self.spheres, str) and self.spheres in SIZED_TABLES
        if self.spheres is not None and (n_size == 2 or (n_size == 0 and not has_sizes)):
            raise ValueError("spheres need exactly one of radius_mm and diameter_mm")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"a node set is made from exactly one of {', '.join(_SOURCES)}; here: {given or 'none'}")
        for key, sources in SOURCE_OF.items():
            if getattr(self, key) is not None and key in self.model_fields_set and given[0] not in sources:
                raise ValueError(f"{key!r} belongs to {' or '.join(sources)}")
        is_dense = self.atlas is not None and self.atlas.endswith(_CIFTI_LABELS)
        if is_dense and self.resample:
            raise ValueError("a dlabel has no grid to resample: it is matched by structure and vertex")
        if self.label_map is not None and not is_dense:
            raise ValueError("'label_map' belongs to an atlas that is a dlabel")
        if self.columns is not None and self.map_kinds():
            raise ValueError("tables of node series have no voxels, so there are no maps")
        return self


class IcaTable(Table):
    """``[ica.NAME]``: group ICA of all runs that are not left out."""

    n_components: Annotated[
        Annotated[int, Field(ge=1)] | Literal["estimate"],
        Field(description="components; estimate: the median over runs of those that stand out of white noise"),
    ]
    n_rows: Annotated[
        Annotated[int, Field(ge=2)] | Literal["twice"],
        Field(description="rows that runs and their merges are reduced to; twice: 2 x the longest run - 1, as MIGP"),
    ] = "twice"
    normalise: Annotated[
        Literal["residual", "sd", "none"],
        Field(description="what each voxel is divided by; residual: its sd without the 30 strongest components"),
    ] = "residual"
    n_start: Annotated[int, Field(ge=1, description="starts of FastICA")] = 10
    seed: Annotated[int, Field(ge=0, description="of the starts")] = 20260101
    min_share: Annotated[float, Field(ge=0, le=1, description="share of runs that must have a voxel")] = 1.0
    threshold: Annotated[float, Field(gt=0, description="absolute z above which a voxel is shown and exported")] = 3.0
    templates: Annotated[
        str | None, Field(description="4D image of known networks to compare with, relative to this file")
    ] = None
    template_labels: Annotated[str | None, Field(description="table of the templates: index, name")] = None
    reject: Annotated[
        dict[Annotated[str, Field(pattern=r"^ic\d{3,}$")], Annotated[str, Field(min_length=1)]],
        Field(description='components that are no networks, with the reason: { ic003 = "white matter" }'),
    ] = Field(default_factory=dict)

    def accepted(self) -> tuple[str, ...]:
        """Return the names of the components that are not rejected; none where their number is estimated."""
        n = 0 if self.n_components == "estimate" else self.n_components
        return tuple(name for name in (f"ic{i + 1:03d}" for i in range(n)) if name not in self.reject)

    def files(self) -> dict[str, str]:
        """Return role -> path of the files that this group ICA reads."""
        named = {"templates": self.templates, "template_labels": self.template_labels}
        return {role: path for role, path in named.items() if path is not None}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.template_labels is not None and self.templates is None:
            raise ValueError("'template_labels' belongs to 'templates'")
        if isinstance(self.n_components, int):
            if isinstance(self.n_rows, int) and self.n_rows < self.n_components:
                raise ValueError(f"{self.n_components} components need at least as many rows, n_rows is {self.n_rows}")
            names = [f"ic{i + 1:03d}" for i in range(self.n_components)]
            if unknown := sorted(set(self.reject) - set(names)):
                raise ValueError(f"there is no component {unknown[0]!r}: they are named {names[0]} to {names[-1]}")
        return self


class DenseTable(Table):
    """``[dense]``: the correlation of every voxel with every other, as the mean over runs."""

    keep: Annotated[
        Literal["full"] | Annotated[int, Field(ge=1)],
        Field(description="full: all connections; a number: so many of the strongest of each voxel"),
    ] = "full"
    dtype: Annotated[Literal["float32", "float16"], Field(description="of what is stored in full")] = "float32"
    sessions: Annotated[list[str] | None, Field(min_length=1, description="sessions that count; all by default")] = None
    max_hours: Annotated[float, Field(gt=0, description="refuse before the start what would take longer")] = 24.0

    def count_bytes(self, n_voxel: int) -> int:
        """Return the bytes that this takes on the disk, before compression."""
        if self.keep != "full":
            return 8 * int(self.keep) * n_voxel
        return n_voxel * (n_voxel + 1) // 2 * (2 if self.dtype == "float16" else 4)


class ConnectivityTable(Table):
    """``[connectivity]``: how the connection of two nodes is estimated."""

    kinds: Annotated[
        list[KindName],
        Field(
            min_length=1,
            description="cov, corr, rcorr, partial, ridgep, glasso, ledoit, ledoitp, tangent, corrsd, amplitude",
        ),
    ] = Field(default_factory=lambda: list[KindName](["corr"]))
    z: Annotated[
        Literal["fisher", "ar1", "none"],
        Field(description="correlations as Fisher z, as FSLNets' z (over the sd among unrelated series), or as r"),
    ] = "fisher"
    rho: Annotated[float, Field(gt=0, description="L2 penalty of ridgep, as FSLNets scales it")] = 0.1
    alpha: Annotated[float, Field(gt=0, lt=1, description="L1 penalty of glasso, on correlations")] = 0.1
    window_s: Annotated[float, Field(gt=0, description="corrsd: length of a window in s")] = 60.0
    step_s: Annotated[float, Field(gt=0, description="corrsd: from the start of one window to the next, in s")] = 10.0

    @model_validator(mode="after")
    def _kinds_differ(self) -> Self:
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError("a kind is named twice")
        return self

    @model_validator(mode="after")
    def _z_is_known(self) -> Self:
        strange = [kind for kind in self.kinds if KINDS[kind].has_z and not KINDS[kind].has_null]
        if self.z == "ar1" and strange:
            known = ", ".join(kind for kind in KINDS if KINDS[kind].has_null)
            raise ValueError(f"z = 'ar1' is known for {known}; not for {', '.join(strange)}")
        return self

    def edge_kinds(self) -> list[KindName]:
        """Return the kinds that have a value per edge."""
        return [kind for kind in self.kinds if KINDS[kind].feature == "edge"]

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Return the parameters of the netmat of a run: those that its kind has."""
        params: dict[str, Any] = {"kind": kind, "z": self.z if KINDS[kind].has_z else "none"}
        if (penalty := KINDS[kind].penalty) is not None:
            params[penalty] = getattr(self, penalty)
        if kind == "corrsd":
            params |= {"window_s": self.window_s, "step_s": self.step_s}
        return params


class MapsTable(Table):
    """``[maps]``: the cohort of maps."""

    min_share: Annotated[
        float, Field(gt=0, le=1, description="share of the sessions in which a voxel of the cohort has data")
    ] = 1.0
