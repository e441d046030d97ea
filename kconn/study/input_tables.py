"""``[study]``, ``[storage]`` and ``[inputs]``: the store, the runs and the tables about people."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from kconn.io.objects import parse_place
from kconn.study.table import LABEL, Cell, Table

_CIFTI_SERIES: Final = (".dtseries.nii", ".ptseries.nii", ".dtseries.nii.gz", ".ptseries.nii.gz")


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


class StudyTable(Table):
    """``[study]``: name and place of the store."""

    name: Annotated[str, Field(min_length=1, description="shown in the report")]
    store: Annotated[str, Field(description="folder of the store, relative to this file, or s3://bucket/prefix")] = (
        "study.zarr"
    )
    report: Annotated[str, Field(description="the HTML report, relative to this file")] = "report.html"

    @field_validator("store")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if "://" in value:
            parse_place(value)
        return value


class StorageTable(Table):
    """``[storage]``: where requests to object storage go; credentials are never written here."""

    endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/@\s]+/?$",
            description="address of the storage; not set: AWS_ENDPOINT_URL, or Amazon",
        ),
    ] = None
    region: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9-]+$", description="region of the bucket; not set: AWS_REGION")
    ] = None
    insecure: Annotated[
        bool, Field(description="allow http:// to another machine: whoever is on the way reads the data")
    ] = False


class InputsTable(Table):
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
    task: Annotated[str | None, Field(pattern=LABEL, description="BIDS task, where there are several")] = None
    space: Annotated[str | None, Field(pattern=LABEL, description="BIDS space, where there are several")] = None
    res: Annotated[str | None, Field(pattern=LABEL, description="BIDS resolution, where there are several")] = None
    den: Annotated[str | None, Field(pattern=LABEL, description="BIDS density, where there are several")] = None
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
