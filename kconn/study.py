"""The study file: one TOML table per concern, typed, with every default printed and unknown keys refused."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kconn.chunks import GIB
from kconn.cluster_table import ClusterTable
from kconn.confounds import PRESETS, STRATEGIES, Region, Removal, Spikes, Strategy, find_strategy
from kconn.errors import StudyFileError, first_of
from kconn.io.coordinates import SIZED_TABLES, SPHERE_TABLES
from kconn.io.regressors import Hrf, TableForm
from kconn.kinds import KINDS

#: ``"none"`` stands for "not applied": TOML has no null.
Off = Literal["none"]
KindName = Literal["cov", "corr", "rcorr", "partial", "ridgep", "glasso", "ledoit", "ledoitp", "tangent", "corrsd"]
MapKind = Literal["seedmap", "subjectmap"]
Cell = str | int | float | bool
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
#: Weights of columns: one table for a t, several for an F.
Weights = dict[str, float] | list[dict[str, float]]
#: What a file of another tool holds; each has one row per line of ``ids``, but for the two of contrasts.
DesignRole = Literal["ids", "design", "contrasts", "ftests", "blocks", "variance_groups", "permutations", "signs"]
_NAME: Final = r"^[A-Za-z][A-Za-z0-9-]*$"
_LABEL: Final = r"^[A-Za-z0-9]+$"
_CIFTI_SERIES: Final = (".dtseries.nii", ".ptseries.nii", ".dtseries.nii.gz", ".ptseries.nii.gz")
_CIFTI_LABELS: Final = (".dlabel.nii", ".dlabel.nii.gz")
#: Key of ``[inputs]`` -> the layouts that it belongs to; all other keys belong to every layout.
LAYOUTS_OF: Final[dict[str, tuple[str, ...]]] = {
    "space": ("fmriprep", "images", "cifti", "tables"),
    "res": ("fmriprep",),
    "den": ("fmriprep",),
    "variant": ("hcp",),
    "mask": ("fmriprep", "images"),
    "pattern": ("images", "cifti", "tables"),
    "mask_pattern": ("images",),
    "confounds_pattern": ("images", "cifti", "tables"),
    "fd_pattern": ("images", "cifti", "tables"),
    "orientation": ("tables",),
    "has_header": ("tables",),
}
#: Key of ``[nodes.NAME]`` -> the kinds of node set that it belongs to.
SOURCE_OF: Final[dict[str, tuple[str, ...]]] = {
    "labels": ("atlas", "maps"),
    "label_map": ("atlas",),
    "resample": ("atlas",),
    "radius_mm": ("spheres",),
    "diameter_mm": ("spheres",),
    "exclude": ("columns",),
    "method": ("maps", "ica"),
    "subject_maps": ("maps", "ica"),
    "normalise": ("maps", "ica"),
}
#: Region of a strategy -> the masks of ``[compcor]`` that it is made of.
MASKS_OF: Final[dict[str, tuple[str, ...]]] = {"a": ("white_matter", "csf"), "c": ("csf",), "w": ("white_matter",)}
#: Key of ``[nodes.NAME]`` that asks for maps of its nodes -> their kind in the store.
MAP_KINDS: Final[dict[str, MapKind]] = {"seed_maps": "seedmap", "subject_maps": "subjectmap"}
#: Test -> how many columns its ``effect`` names; the others have none.
EFFECTS_OF: Final[dict[str, range]] = {
    "two-sample": range(1, 2),
    "covariate": range(1, 2),
    "f-test": range(1, 100),
    "interaction": range(2, 3),
    "repeated": range(2),
}
_MEANING_OF_EFFECT: Final = {
    "two-sample": "the column that is tested",
    "covariate": "the column that is tested",
    "f-test": "the term or terms of the formula that are tested together",
    "interaction": "two columns [A, B]",
    "repeated": "one column at most, whose levels differ in their course",
}
_INSTEAD_OF_EFFECT: Final = {
    "paired": ": it tests the mean",
    "one-sample": ": it tests the mean",
    "design": ": 'weights' or 'files' say what is tested",
}
#: Key of ``[contrasts.NAME]`` -> the tests that it belongs to; all other keys belong to every test.
TESTS_OF: Final[dict[str, tuple[str, ...]]] = {
    "levels": ("two-sample", "interaction"),
    "rows": ("design",),
    "weights": ("design",),
}
#: Keys that belong to the statistic: a contrast that names its own statistic does not inherit them.
_OF_STATISTIC: Final = frozenset({"threshold", "neighbours", "tfce_height", "tfce_extent", "tfce_step", "stopping"})
#: Keys that belong to the observations: a repeated test, whose rows are sessions, does not inherit them.
_OF_ROWS: Final = frozenset({"exchangeability_blocks", "exchange"})
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


def unless_off(value: float | str) -> float | None:
    """Return a number of the study file, or None for ``"none"``."""
    return None if isinstance(value, str) else value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class StudyTable(_Table):
    """``[study]``: name and place of the store."""

    name: Annotated[str, Field(min_length=1, description="shown in the report")]
    store: Annotated[str, Field(description="folder of the store, relative to this file")] = "study.zarr"
    report: Annotated[str, Field(description="the HTML report, relative to this file")] = "report.html"


class InputsTable(_Table):
    """``[inputs]``: where the runs and the tables about people are."""

    layout: Annotated[
        Literal["fmriprep", "hcp", "images", "cifti", "tables"],
        Field(description="fmriprep; hcp; images: NIfTI, cifti: series of any pipeline; tables: node series"),
    ]
    root: Annotated[str, Field(description="folder of the runs, relative to this file")]
    pattern: Annotated[
        str | None, Field(description="path of a run below root, with {subject}, {session}, {run}, * and ?")
    ] = None
    mask_pattern: Annotated[str | None, Field(description="path of the brain mask of a run, or of one for all")] = None
    confounds_pattern: Annotated[str | None, Field(description="path of the confound table of a run")] = None
    fd_pattern: Annotated[str | None, Field(description="path of one column of framewise displacement in mm")] = None
    orientation: Annotated[
        Literal["time-by-node", "node-by-time"] | None, Field(description="what the tables hold; never guessed")
    ] = None
    has_header: Annotated[bool | None, Field(description="whether the first row names the nodes, if unclear")] = None
    t_r: Annotated[float | None, Field(gt=0, description="repetition time in s, where the files do not state it")] = (
        None
    )
    task: Annotated[str | None, Field(pattern=_LABEL, description="BIDS task, where there are several")] = None
    space: Annotated[str | None, Field(pattern=_LABEL, description="BIDS space, where there are several")] = None
    res: Annotated[str | None, Field(pattern=_LABEL, description="BIDS resolution, where there are several")] = None
    den: Annotated[str | None, Field(pattern=_LABEL, description="BIDS density, where there are several")] = None
    variant: Annotated[
        str | None, Field(description="what stands after the run in the name of a series, where there are several")
    ] = None
    mask: Annotated[
        Literal["brain", "none"], Field(description="brain: the mask image of each run; none: every voxel")
    ] = "brain"
    participants: Annotated[str | None, Field(description="table of subjects, relative to this file")] = None
    participants_id: Annotated[str, Field(description="column that holds the subject label")] = "participant_id"
    participants_id_format: Annotated[str | None, Field(description="how a number becomes a label, such as {:03d}")] = (
        None
    )
    sessions: Annotated[str | None, Field(description="table of sessions, relative to this file")] = None
    include: Annotated[
        dict[str, Cell | list[Cell]], Field(description="keep subjects whose column has this value, or one of these")
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_the_layout(self) -> Self:
        for key, layouts in LAYOUTS_OF.items():
            if getattr(self, key) is not None and key in self.model_fields_set and self.layout not in layouts:
                raise ValueError(f"{key!r} belongs to layout {' or '.join(layouts)}, this one is {self.layout!r}")
        needed = {"images": ("pattern",), "cifti": ("pattern",), "tables": ("pattern", "orientation", "t_r")}
        for key in needed.get(self.layout, ()):
            if getattr(self, key) is None:
                raise ValueError(f"layout {self.layout!r} needs {key!r}: the files do not say it")
        if self.layout == "images" and self.mask == "brain" and self.mask_pattern is None:
            raise ValueError("layout 'images' needs 'mask_pattern', or mask = \"none\" to keep every voxel")
        if self.layout == "cifti" and not str(self.pattern).endswith(_CIFTI_SERIES):
            raise ValueError(f"layout 'cifti' needs a pattern that ends in {' or '.join(_CIFTI_SERIES)}")
        return self


class DenoiseTable(_Table):
    """``[denoise]``: one orthogonal projection per run."""

    confounds: Annotated[
        str | list[str],
        Field(description="preset, one of [strategies], or a list of column names or regular expressions"),
    ] = "24P"
    detrend: Annotated[bool, Field(description="remove a straight line")] = True
    high_pass: Annotated[float | Off, Field(description="Hz; slower components are removed")] = 0.008
    low_pass: Annotated[float | Off, Field(description="Hz; faster components are removed")] = "none"  # noqa: S105 - a frequency
    filter: Annotated[
        Literal["cosine", "butterworth", "fft"],
        Field(description="how the band is cut; cosine and fft are projections"),
    ] = "cosine"
    bridge: Annotated[
        Literal["cubic", "linear", "lomb-scargle"],
        Field(description="what stands in for censored frames while the Butterworth filter runs"),
    ] = "cubic"
    standardize: Annotated[
        Literal["none", "zscore_sample", "psc"],
        Field(description="none; zscore_sample: unit variance; psc: percent of the mean"),
    ] = "none"
    despike: Annotated[bool, Field(description="draw spikes in time towards the running median of their voxel")] = False
    smoothing_fwhm: Annotated[
        float | Off, Field(description="mm; Gaussian inside the mask, applied as the images are read")
    ] = "none"
    fd_threshold: Annotated[float | Off, Field(description="mm; frames that moved more are censored")] = "none"
    fd_kind: Annotated[Literal["power", "jenkinson"], Field(description="displacement that fd_threshold is for")] = (
        "power"
    )
    fd_radius: Annotated[
        float | Off, Field(description="mm; sphere to compute it on, where not 50 for power and 80 for jenkinson")
    ] = "none"
    motion_filter: Annotated[
        float | tuple[float, float] | Off,
        Field(description="Hz; breathing out of motion: [low, high] of a notch, or the edge of a low-pass"),
    ] = "none"
    dvars_threshold: Annotated[
        float | Off, Field(description="standardised DVARS; frames that changed more are censored")
    ] = "none"
    censor_before: Annotated[int, Field(ge=0, description="frames before each that moved or changed too much")] = 0
    censor_after: Annotated[int, Field(ge=0, description="frames after each that moved or changed too much")] = 0
    min_segment: Annotated[int, Field(ge=1, description="frames; shorter stretches between censored ones go too")] = 1
    dummy_frames: Annotated[int, Field(ge=0, description="frames dropped at the start of each run")] = 0

    @model_validator(mode="after")
    def _widths_are_positive(self) -> Self:
        for key in ("smoothing_fwhm", "fd_radius", "dvars_threshold"):
            value = unless_off(getattr(self, key))
            if value is not None and not value > 0:
                raise ValueError(f'{key} = {value} must be above 0, or "none"')
        return self

    @property
    def motion_band(self) -> tuple[float, float] | float | None:
        """``motion_filter`` as `kconn.censoring.censor` takes it."""
        return self.motion_filter if isinstance(self.motion_filter, tuple) else unless_off(self.motion_filter)


class StrategyTable(_Table):
    """``[strategies.NAME]``: which confounds go, for ``confounds = "NAME"``."""

    columns: Annotated[list[str], Field(description="presets, names or regular expressions of columns")] = Field(
        default_factory=list
    )
    derivatives: Annotated[
        bool | list[str], Field(description="backward differences: of all columns, or of those named")
    ] = False
    squares: Annotated[
        bool | list[str], Field(description="squares, of differences too: of all columns, or of those named")
    ] = False
    compcor: Annotated[
        list[Region], Field(description="noise regions: a both tissues, w white matter, c CSF, t most variable voxels")
    ] = Field(default_factory=list)
    n_component: Annotated[int | None, Field(ge=1, description="components per region; all without it")] = None
    variance: Annotated[
        float | None, Field(gt=0, le=1, description="instead: the share of variance that they explain")
    ] = None
    components: Annotated[Removal, Field(description="what becomes of the ICA components that are noise")] = "none"
    spikes: Annotated[
        Spikes, Field(description="a column per bad frame: those of the table, or one for each censored frame")
    ] = "none"

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.columns or self.compcor or self.components != "none" or self.spikes != "none"):
            raise ValueError("it removes nothing: give columns, compcor, components or spikes")
        if self.n_component is not None and self.variance is not None:
            raise ValueError("give n_component or variance, not both")
        if not self.compcor and (self.n_component is not None or self.variance is not None):
            raise ValueError("n_component and variance belong to compcor")
        if len(set(self.compcor)) != len(self.compcor):
            raise ValueError("compcor names a region twice")
        return self


class RegressorsTable(_Table):
    """``[regressors.NAME]``: a table of regressors per run, beside its confound table."""

    pattern: Annotated[str, Field(description="path below root, with {subject}, {session}, {run}, * and ?")]
    format: Annotated[
        Literal["table", "spm", "fsl", "hcp", "events"],
        Field(description="what wrote it: any program, SPM rp_*.txt, FSL .par, HCP Movement_Regressors, BIDS events"),
    ] = "table"
    columns: Annotated[list[str], Field(description="names, for a table without a header")] = Field(
        default_factory=list
    )
    rotations: Annotated[
        Literal["radians", "degrees"], Field(description="unit of the columns rot_x, rot_y, rot_z of a table")
    ] = "radians"
    prefix: Annotated[str, Field(pattern=r"^\w*$", description="put before the names")] = ""
    hrf: Annotated[Hrf, Field(description="what events are convolved with")] = "spm"

    @model_validator(mode="after")
    def _fits_the_format(self) -> Self:
        for key, formats in {"columns": ("table",), "rotations": ("table",), "hrf": ("events",)}.items():
            if key in self.model_fields_set and self.format not in formats:
                raise ValueError(f"{key!r} belongs to format {formats[0]}, this one is {self.format!r}")
        return self

    @property
    def form(self) -> TableForm:
        """How to read it."""
        return TableForm.of(self.model_dump(mode="json", exclude={"pattern"}))


class ComponentsTable(_Table):
    """``[components]``: the ICA of each run, and which of its components are noise."""

    mixing: Annotated[str | None, Field(description="path below root of MELODIC's mixing matrix of a run")] = None
    noise: Annotated[str | None, Field(description="path below root of AROMA's or FIX's list of a run")] = None


class CompcorTable(_Table):
    """``[compcor]``: masks of noise regions; with them CompCor is computed here, and not read from the confounds."""

    white_matter: Annotated[str | None, Field(description="path below root of the mask of white matter")] = None
    csf: Annotated[str | None, Field(description="path below root of the mask of CSF")] = None
    erode: Annotated[int, Field(ge=0, description="layers of voxels taken off each mask")] = 0


class QualityTable(_Table):
    """``[quality]``: what lies beyond these limits is left out of the group analysis, and listed with the reason.

    `docs/quality.md` says where each default comes from.
    """

    min_frames: Annotated[int, Field(ge=2, description="frames kept, per run")] = 50
    min_minutes: Annotated[_Positive | Off, Field(description="minutes kept, per run")] = "none"
    min_dof: Annotated[int, Field(ge=1, description="degrees of freedom left after denoising, per run")] = 10
    max_mean_fd: Annotated[_Positive | Off, Field(description="mm, mean framewise displacement of a run")] = "none"
    max_censored: Annotated[
        _Share | Off, Field(description="share of the frames of a run that may be dropped, dummies apart")
    ] = "none"
    max_std_dvars: Annotated[_Positive | Off, Field(description="mean standardised DVARS of a run")] = "none"
    min_atlas_coverage: Annotated[
        float, Field(ge=0, le=1, description="share of a node set's voxels that must have data in a run")
    ] = 0.5
    min_session_frames: Annotated[int, Field(ge=2, description="frames kept in all used runs of a session")] = 50
    min_session_minutes: Annotated[_Positive | Off, Field(description="minutes kept in all used runs of a session")] = (
        "none"
    )
    qc_fc_covariates: Annotated[
        list[str], Field(description="columns of the participants table that are taken out of QC-FC")
    ] = Field(default_factory=list)
    qc_fc_n_perm: Annotated[int, Field(ge=100, description="relabellings that tell which QC-FC chance gives")] = 1000


_SOURCES: Final = ("atlas", "maps", "ica", "spheres", "columns")


class NodesTable(_Table):
    """``[nodes.NAME]``: one node set, from an atlas, maps, a group ICA, spheres, or the columns of node tables."""

    atlas: Annotated[str | None, Field(description="label image or dlabel, relative to this file")] = None
    maps: Annotated[str | None, Field(description="4-D image of spatial maps, such as ICA components")] = None
    ica: Annotated[str | None, Field(description="name of a group ICA, whose accepted components are the nodes")] = None
    labels: Annotated[str | None, Field(description="table of the labels or maps: index, name, optionally network")] = (
        None
    )
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
    exclude: Annotated[list[str], Field(description="columns that are no nodes")] = Field(default_factory=list)
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
        n_size = (self.radius_mm is not None) + (self.diameter_mm is not None)
        if self.spheres is not None and n_size != 1 and (n_size == 2 or self.spheres not in SIZED_TABLES):
            raise ValueError("spheres need exactly one of radius_mm and diameter_mm")
        if self.columns is not None and self.map_kinds():
            raise ValueError("tables of node series have no voxels, so there are no maps")
        if not self.netmats and not self.map_kinds():
            raise ValueError("nothing is made of this node set: neither netmats nor maps")
        return self


class IcaTable(_Table):
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


class DenseTable(_Table):
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


class ConnectivityTable(_Table):
    """``[connectivity]``: how the connection of two nodes is estimated."""

    kinds: Annotated[
        list[KindName],
        Field(
            min_length=1,
            description="cov, corr, rcorr, partial, ridgep, glasso, ledoit, ledoitp, tangent, corrsd",
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

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Return the parameters of the netmat of a run: those that its kind has."""
        params: dict[str, Any] = {"kind": kind, "z": self.z if KINDS[kind].has_z else "none"}
        if (penalty := KINDS[kind].penalty) is not None:
            params[penalty] = getattr(self, penalty)
        if kind == "corrsd":
            params |= {"window_s": self.window_s, "step_s": self.step_s}
        return params


class MapsTable(_Table):
    """``[maps]``: the cohort of maps."""

    min_share: Annotated[
        float, Field(gt=0, le=1, description="share of the sessions in which a voxel of the cohort has data")
    ] = 1.0


class PermutationTable(_Table):
    """``[permutation]``: how p-values are computed. Each key may stand in a contrast too, for that one alone."""

    n_perm: Annotated[int, Field(ge=2, description="relabellings, the identity included")] = 5000
    seed: Annotated[int, Field(ge=0, description="of the permutation table")] = 20260101
    alternative: Annotated[Literal["two-sided", "greater", "less"], Field(description="sidedness of every p")] = (
        "two-sided"
    )
    exchangeability_blocks: Annotated[
        str | list[str],
        Field(description="column of blocks, such as family or site; several: PALM's levels, outermost first"),
    ] = Field(default_factory=list[str])
    exchange: Annotated[
        Literal["within", "whole", "both"],
        Field(description="exchange observations within a block, whole blocks, or both"),
    ] = "within"
    sign_flip: Annotated[
        bool | Literal["both"] | None,
        Field(description="true: flip signs; both: permute as well. Not set: flip where a mean is tested"),
    ] = None
    variance_groups: Annotated[str | Off, Field(description="column; each group has its own variance (v, G)")] = "none"
    regression: Annotated[
        Literal["freedman-lane", "dekker", "draper-stoneman", "ter-braak", "manly"],
        Field(description="how nuisance is dealt with"),
    ] = "freedman-lane"
    statistic: Annotated[
        Literal["edge", "voxel", "nbs", "cluster-extent", "cluster-mass", "tfce"],
        Field(description="edge, voxel: each feature by itself; the others: neighbouring ones together"),
    ] = "edge"
    threshold: Annotated[
        float | None, Field(gt=0, description="nbs and clusters: z (fsl: the statistic; nilearn: p) that forms them")
    ] = None
    neighbours: Annotated[
        Literal[6, 18, 26] | None, Field(description="of voxels; edges are neighbours if they share a node")
    ] = None
    tfce_height: Annotated[float | None, Field(gt=0, description="exponent H of tfce; 2 if not set")] = None
    tfce_extent: Annotated[float | None, Field(gt=0, description="exponent E of tfce; 0.5 if not set")] = None
    tfce_step: Annotated[
        Annotated[float, Field(gt=0)] | Literal["map", "observed", "exact"] | None,
        Field(description="distance of heights of tfce; that of the convention if not set"),
    ] = None
    convention: Annotated[
        Literal["kconn", "palm", "fsl", "nilearn"], Field(description="whose rules clusters and maxima follow")
    ] = "kconn"
    joint_fwe: Annotated[bool, Field(description="correct over all contrasts of one design as well")] = False
    fdr: Annotated[Literal["bh", "bky"], Field(description="Benjamini-Hochberg, or the two-stage procedure")] = "bh"
    tail: Annotated[Literal["counts", "gpd"], Field(description="gpd: small p from a fitted Pareto tail")] = "counts"
    stopping: Annotated[
        Annotated[int, Field(ge=1)] | Off,
        Field(description="a feature stops at so many relabellings at least as extreme; p_unc and p_fdr only"),
    ] = "none"
    missing: Annotated[
        Literal["exclude", "refit"],
        Field(description="a feature without data in some observation: leave it out, or test it in the others"),
    ] = "exclude"
    dtype: Annotated[Literal["float64", "float32"], Field(description="precision of permuted statistics")] = "float64"
    max_mem: Annotated[
        int, Field(ge=1, description="bytes that the tasks of one process may hold; changes no result")
    ] = 2 * GIB

    @property
    def block_columns(self) -> list[str]:
        """Columns of the exchangeability blocks, outermost first."""
        blocks = self.exchangeability_blocks
        return [blocks] if isinstance(blocks, str) else blocks


class ContrastTable(PermutationTable):
    """``[contrasts.NAME]``: one test over observations, or several under one design."""

    test: Annotated[
        Literal["two-sample", "paired", "one-sample", "covariate", "f-test", "interaction", "repeated", "design"],
        Field(description="what is tested"),
    ]
    formula: Annotated[
        str, Field(description="columns of the participants and sessions tables; the tested one and the nuisance")
    ] = "1"
    effect: Annotated[
        str | list[str] | None, Field(description="the column that is tested; f-test: term or terms; interaction: two")
    ] = None
    levels: Annotated[
        list[Cell] | dict[str, list[Cell]] | None,
        Field(description="two-sample: [A, B] tests B - A; interaction: such a pair for each column"),
    ] = None
    sessions: Annotated[
        list[str] | None, Field(min_length=1, description="sessions, averaged per subject; repeated: compared")
    ] = None
    change: Annotated[
        list[str | Annotated[list[str], Field(min_length=2)]] | None,
        Field(
            min_length=2,
            max_length=2,
            description="[A, B]: the data are B - A per subject; [[A1, A2], B]: B minus the mean of A1 and A2",
        ),
    ] = None
    baseline: Annotated[
        list[str] | None,
        Field(min_length=1, description="sessions whose value of each feature is a nuisance regressor of that feature"),
    ] = None
    where: Annotated[
        dict[str, Cell | list[Cell]], Field(description="keep rows whose column has this value, or one of these")
    ] = Field(default_factory=dict)
    rows: Annotated[
        Literal["subject", "session"] | None, Field(description="design: one row per subject, or per session")
    ] = None
    weights: Annotated[
        Weights | dict[str, Weights] | None,
        Field(description="design: column -> weight for t, a list of such tables for F, or several of these by name"),
    ] = None
    files: Annotated[
        dict[DesignRole, str],
        Field(description="design, weights, blocks or relabellings of FSL, PALM or MRtrix3; ids says whose rows"),
    ] = Field(default_factory=dict)

    @property
    def roles(self) -> dict[str, str]:
        """Role -> path of ``files``."""
        return {str(role): path for role, path in self.files.items()}

    @property
    def hypothesis(self) -> dict[str, Any]:
        """What is tested, without how p-values are computed and without files."""
        return self.model_dump(mode="json", exclude={"files", *PermutationTable.model_fields})

    def _sides(self) -> list[list[str]]:
        return [[side] if isinstance(side, str) else side for side in self.change or ()]

    def visits(self) -> list[str]:
        """Return the sessions of ``change``, in its order."""
        return [session for side in self._sides() for session in side]

    def visit_pairs(self) -> list[tuple[str, str]]:
        """Return every session before with every session after."""
        return [(before, after) for before, after in product(*self._sides())] if self.change else []

    @model_validator(mode="after")
    def _baseline_fits_the_rows(self) -> Self:
        if self.baseline is not None and (self.test == "repeated" or self.rows == "session"):
            raise ValueError("'baseline' belongs to tests whose rows are subjects")
        return self

    @model_validator(mode="after")
    def _fits_the_test(self) -> Self:
        needs_effect = EFFECTS_OF.get(self.test)
        n_effect = 0 if self.effect is None else 1 if isinstance(self.effect, str) else len(self.effect)
        if needs_effect is None and self.effect is not None:
            raise ValueError(f"a {self.test} test has no 'effect'{_INSTEAD_OF_EFFECT[self.test]}")
        if needs_effect is not None and n_effect not in needs_effect:
            raise ValueError(f"a {self.test} test needs 'effect', {_MEANING_OF_EFFECT[self.test]}")
        for key, tests in TESTS_OF.items():
            if getattr(self, key) is not None and self.test not in tests:
                raise ValueError(f"{key!r} belongs to a test of kind {' or '.join(tests)}")
        if self.test == "paired" and self.change is None:
            raise ValueError("a paired test needs 'change = [A, B]', the two visits")
        if self.change is not None and self.sessions is not None:
            raise ValueError("give 'sessions' or 'change', not both")
        if self.test == "repeated" and len(self.sessions or ()) < 2:
            raise ValueError("a repeated test needs 'sessions = [A, B, ...]', the first the reference")
        for key, named in (("change", self.visits()), ("sessions", self.sessions or ()), ("effect", self.effect or ())):
            if not isinstance(named, str) and len(set(named)) != len(named):
                raise ValueError(f"{key!r} names the same twice: {named}")
        return self

    @model_validator(mode="after")
    def _levels_are_pairs(self) -> Self:
        if self.levels is None:
            return self
        if isinstance(self.levels, dict) != (self.test == "interaction"):
            raise ValueError("'levels' is a pair [A, B] in a two-sample test, a table of pairs in an interaction")
        pairs = self.levels if isinstance(self.levels, dict) else {"levels": self.levels}
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(f"{name!r} names {len(pair)} levels, not two: {pair}")
            if len(set(pair)) != 2:
                raise ValueError(f"{name!r} names the same twice: {pair}")
        return self

    @model_validator(mode="after")
    def _files_fit(self) -> Self:
        of_design = {"design", "contrasts", "ftests"} & set(self.files)
        if self.files and ("ids" not in self.files or len(self.files) == 1):
            raise ValueError("'files' needs 'ids', the list of whose rows the other files hold, and these files")
        if of_design and (self.test != "design" or not {"design", "contrasts"} <= of_design):
            raise ValueError("'files' with a design belong to a test of kind design and need 'design' and 'contrasts'")
        if self.test == "design" and (self.weights is None) == (not of_design):
            raise ValueError("a design test needs either 'weights', with a formula, or 'files' with a design")
        if of_design and "formula" in self.model_fields_set:
            raise ValueError("'files' hold the whole design: there is no 'formula' beside them")
        for key, role in (("exchangeability_blocks", "blocks"), ("variance_groups", "variance_groups")):
            if role in self.files and key in self.model_fields_set:
                raise ValueError(f"give {key!r} as a column or in 'files', not both")
        return self


class Study(_Table):
    """A validated study file, with the folder that its paths are relative to."""

    schema_version: Literal[1] = 1
    study: StudyTable
    inputs: InputsTable
    denoise: DenoiseTable = Field(default_factory=DenoiseTable)
    strategies: dict[Annotated[str, Field(pattern=_NAME)], StrategyTable] = Field(default_factory=dict)
    regressors: dict[Annotated[str, Field(pattern=_NAME)], RegressorsTable] = Field(default_factory=dict)
    components: ComponentsTable = Field(default_factory=ComponentsTable)
    compcor: CompcorTable = Field(default_factory=CompcorTable)
    quality: QualityTable = Field(default_factory=QualityTable)
    nodes: Annotated[dict[Annotated[str, Field(pattern=_NAME)], NodesTable], Field(min_length=1)]
    ica: dict[Annotated[str, Field(pattern=_NAME)], IcaTable] = Field(default_factory=dict)
    dense: DenseTable | None = None
    connectivity: ConnectivityTable = Field(default_factory=ConnectivityTable)
    maps: MapsTable = Field(default_factory=MapsTable)
    contrasts: dict[Annotated[str, Field(pattern=_NAME)], ContrastTable] = Field(default_factory=dict)
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

    def permutation_of(self, name: str) -> PermutationTable:
        """Return how the p-values of a contrast are computed: its own keys put over those of ``[permutation]``."""
        contrast = self.contrasts[name]
        own = contrast.model_dump(include=set(PermutationTable.model_fields) & contrast.model_fields_set)
        shared = self.permutation.model_dump(exclude_unset=True)
        left = _OF_STATISTIC if "statistic" in own else frozenset()
        left |= _OF_ROWS if contrast.test == "repeated" else frozenset()
        return PermutationTable.model_validate({**{k: v for k, v in shared.items() if k not in left}, **own})

    @property
    def store(self) -> Path:
        """Folder of the store."""
        return self.folder / self.study.store

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
        value = "" if isinstance(finding["input"], Mapping) else f", got {finding['input']!r}"
        named = {("nodes",), ("contrasts",), ("strategies",), ("regressors",)}
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
        "maps": MapsTable,
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
