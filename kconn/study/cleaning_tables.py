"""``[denoise] [strategies] [regressors] [components] [compcor] [quality]``: how runs are cleaned and judged."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from kconn.clean.confounds import Region, Removal, Spikes
from kconn.io.regressors import Hrf, TableForm
from kconn.study.table import Off, Positive, Share, Table, unless_off

#: Region of a strategy -> the masks of ``[compcor]`` that it is made of.
MASKS_OF: Final[dict[str, tuple[str, ...]]] = {"a": ("white_matter", "csf"), "c": ("csf",), "w": ("white_matter",)}


class DenoiseTable(Table):
    """``[denoise]``: one orthogonal projection per run."""

    confounds: Annotated[
        str | list[str],
        Field(description="preset, one of [strategies], or a list of column names or regular expressions"),
    ] = "24P"
    dependent: Annotated[
        Literal["refuse", "drop"],
        Field(description="what becomes of confounds that are sums of others: refuse the study, or name and drop them"),
    ] = "refuse"
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
        """``motion_filter`` as `kconn.clean.censoring.censor` takes it."""
        return self.motion_filter if isinstance(self.motion_filter, tuple) else unless_off(self.motion_filter)


class StrategyTable(Table):
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


class RegressorsTable(Table):
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
    slice_time_ref: Annotated[
        float, Field(ge=0, le=1, description="share of the repetition time at which a frame stands; fMRIPrep's is 0.5")
    ] = 0.0

    @model_validator(mode="after")
    def _fits_the_format(self) -> Self:
        belongs = {"columns": "table", "rotations": "table", "hrf": "events", "slice_time_ref": "events"}
        for key, form in belongs.items():
            if key in self.model_fields_set and self.format != form:
                raise ValueError(f"{key!r} belongs to format {form}, this one is {self.format!r}")
        return self

    @property
    def form(self) -> TableForm:
        """How to read it."""
        return TableForm.of(self.model_dump(mode="json", exclude={"pattern"}))


class ComponentsTable(Table):
    """``[components]``: the ICA of each run, and which of its components are noise."""

    mixing: Annotated[str | None, Field(description="path below root of MELODIC's mixing matrix of a run")] = None
    noise: Annotated[str | None, Field(description="path below root of AROMA's or FIX's list of a run")] = None


class CompcorTable(Table):
    """``[compcor]``: masks of noise regions; with them CompCor is computed here, and not read from the confounds."""

    white_matter: Annotated[str | None, Field(description="path below root of the mask of white matter")] = None
    csf: Annotated[str | None, Field(description="path below root of the mask of CSF")] = None
    erode: Annotated[int, Field(ge=0, description="layers of voxels taken off each mask")] = 0


class QualityTable(Table):
    """``[quality]``: what lies beyond these limits is left out of the group analysis, and listed with the reason.

    `docs/quality.md` says where each default comes from.
    """

    min_frames: Annotated[int, Field(ge=2, description="frames kept, per run")] = 50
    min_minutes: Annotated[Positive | Off, Field(description="minutes kept, per run")] = "none"
    min_dof: Annotated[int, Field(ge=1, description="degrees of freedom left after denoising, per run")] = 10
    max_mean_fd: Annotated[Positive | Off, Field(description="mm, mean framewise displacement of a run")] = "none"
    max_censored: Annotated[
        Share | Off, Field(description="share of the frames of a run that may be dropped, dummies apart")
    ] = "none"
    max_std_dvars: Annotated[Positive | Off, Field(description="mean standardised DVARS of a run")] = "none"
    min_atlas_coverage: Annotated[
        float, Field(ge=0, le=1, description="share of a node set's voxels that must have data in a run")
    ] = 0.5
    min_session_frames: Annotated[int, Field(ge=2, description="frames kept in all used runs of a session")] = 50
    min_session_minutes: Annotated[Positive | Off, Field(description="minutes kept in all used runs of a session")] = (
        "none"
    )
    qc_fc_covariates: Annotated[
        list[str], Field(description="columns of the participants table that are taken out of QC-FC")
    ] = Field(default_factory=list)
    qc_fc_n_perm: Annotated[int, Field(ge=100, description="relabellings that tell which QC-FC chance gives")] = 1000
