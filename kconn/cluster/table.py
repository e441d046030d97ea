"""``[cluster]``: where a study is computed. It changes no result and enters no content key."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ClusterKind = Literal["local", "address", "slurm", "kubernetes"]
_Bytes = Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[kMGT]?i?B$")]
_WALLTIME = r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$"
_DNS_LABEL = r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$"
_LINE = r"^[^\n\r]+$"


class ClusterTable(BaseModel):
    """``[cluster]``: where the workers are; it changes no result."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    kind: Annotated[
        ClusterKind, Field(description="local; address: a scheduler that runs already; or started for each run")
    ] = "local"
    workers: Annotated[
        int | None, Field(ge=0, description="worker processes of one thread; local: one per core, 0 in this process")
    ] = None
    min_workers: Annotated[int, Field(ge=1, description="fewest workers, where max_workers is set")] = 1
    max_workers: Annotated[
        int | None, Field(ge=1, description="scale with the work: most workers, instead of 'workers'")
    ] = None
    memory: Annotated[
        _Bytes | None, Field(description='of each worker, such as "8GiB"; local: an equal share of the machine')
    ] = None
    address: Annotated[
        str | None,
        Field(description="tls://host:port of the scheduler; kubernetes: where its service is seen from here"),
    ] = None
    tls: Annotated[str | None, Field(description="folder of `kconn tls init`, relative to this file")] = None
    insecure: Annotated[
        bool, Field(description="allow connections without TLS: whoever reaches a port then runs code as you")
    ] = False
    dashboard: Annotated[str, Field(description="where Dask's dashboard listens: host:port, port 0 is any")] = (
        "127.0.0.1:0"
    )
    start_minutes: Annotated[float, Field(gt=0, description="how long the first worker may take to come up")] = 10.0
    queue: Annotated[str | None, Field(pattern=_LINE, description="slurm: partition")] = None
    account: Annotated[str | None, Field(pattern=_LINE, description="slurm: account that is charged")] = None
    walltime: Annotated[
        str, Field(pattern=_WALLTIME, description="slurm: of one worker, [days-]hours:minutes:seconds")
    ] = "04:00:00"
    directives: Annotated[
        list[Annotated[str, Field(pattern=_LINE)]],
        Field(description="slurm: further options of sbatch, such as --qos=low"),
    ] = Field(default_factory=list)
    prologue: Annotated[list[str], Field(description="slurm: shell lines before a worker starts")] = Field(
        default_factory=list
    )
    interface: Annotated[str | None, Field(pattern=_LINE, description="slurm: network interface, such as ib0")] = None
    scratch: Annotated[str | None, Field(description="slurm: node-local folder that workers spill to")] = None
    namespace: Annotated[str, Field(pattern=_DNS_LABEL, description="kubernetes: namespace")] = "kconn"
    image: Annotated[str | None, Field(pattern=_LINE, description="kubernetes: image with kconn, by digest or tag")] = (
        None
    )
    volume_claim: Annotated[
        str, Field(pattern=_DNS_LABEL, description="kubernetes: claim of the volume with the studies, seen as /study")
    ] = "kconn-studies"
    tls_secret: Annotated[
        str, Field(pattern=_DNS_LABEL, description="kubernetes: beginning of the names of the certificates' secrets")
    ] = "kconn-tls"  # noqa: S105 - a name

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        needed = {"address": ("address",), "kubernetes": ("image",)}
        for key in needed.get(self.kind, ()):
            if getattr(self, key) is None:
                raise ValueError(f"kind {self.kind!r} needs {key!r}")
        if self.max_workers is not None and self.workers is not None:
            raise ValueError("give 'workers', or 'min_workers' and 'max_workers', not both")
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers = {self.max_workers} is below min_workers = {self.min_workers}")
        if self.kind in {"slurm", "kubernetes"} and self.workers == 0:
            raise ValueError(f"workers = 0 computes in this process, kind is {self.kind!r}")
        return self

    @property
    def n_start(self) -> int:
        """Workers to begin with, where they are started for a run and none were counted out."""
        return self.min_workers if self.max_workers is not None else self.workers or 1
