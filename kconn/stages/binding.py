"""A step bound to the folder and store of its study."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from kconn.io import checkpoints, cubes, store
from kconn.io.storage import Place
from kconn.io.store import Address, Target
from kconn.study.plan import Step
from kconn.versions import software_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a stage needs.

    Attributes
    ----------
    step
        The step of the plan.
    folder
        The folder that the step's files are relative to.
    root
        The store.
    code
        Version of the code that the plan was made with.
    """

    step: Step
    folder: Path
    root: Place
    code: str

    @property
    def target(self) -> Target:
        """The group that this job publishes, with its provenance.

        It names no host, user, time or path: a file is named by its role and its SHA-256, since the name of a file may
        identify a person.
        """
        step = self.step
        provenance = {
            "stage": step.stage,
            "params": dict(step.params),
            "files": {role: step.digests[path] for role, path in step.files.items()},
            "upstream": {str(up.address): up.key for up in step.upstream},
            "software": software_versions(),
        }
        return Target(root=self.root, address=step.address, key=step.key, provenance=provenance)

    def file(self, role: str) -> Path | None:
        """Return the path of an input file, or None where the step has none in this role."""
        path = self.step.files.get(role)
        return None if path is None else self.folder / path

    def bold(self) -> Path:
        """Return the path of the series of an image or CIFTI run, which every such step has."""
        return self.folder / self.step.files["bold"]

    def paths(self) -> dict[str, Path]:
        """Return role -> path of every input file."""
        return {role: self.folder / path for role, path in self.step.files.items()}

    def open(self, address: Address, names: Collection[str] | None = None) -> xr.Dataset:
        """Open an upstream result lazily, or those of its variables and coordinates that are named."""
        return cubes.open_group(self.root, address, names)

    def open_each(self, step: str, names: Collection[str] | None = None) -> Iterator[tuple[str, xr.Dataset]]:
        """Open the upstream results of a step one after the other; yields their path with each.

        Thousands of runs may be held at once: their labels are, where they are the same, the same in memory.
        """
        earlier: dict[Hashable, xr.Variable] = {}
        for up in self.step.upstream:
            if up.address.step != step:
                continue
            ds = self.open(up.address, names)
            plain = {name: ds.variables[name] for name in set(ds.coords) - set(ds.indexes)}
            same = {
                name
                for name, labels in plain.items()
                if name in earlier and labels.identical(earlier[name])  # type: ignore[no-untyped-call]
            }
            earlier = {name: earlier[name] if name in same else labels for name, labels in plain.items()}
            yield up.address.path, ds.assign_coords({name: earlier[name] for name in same}) if same else ds

    def open_unchunked(self, address: Address) -> xr.Dataset:
        """Open an upstream result for reading parts of it on the spot."""
        return cubes.open_unchunked(self.root, address)

    def publish(self, ds: xr.Dataset) -> None:
        """Write the result, make it current, and drop what was kept of it before it was whole."""
        cubes.write_dataset(self.target, ds)
        checkpoints.remove_step(self.root, self.step.address)

    def is_published(self) -> bool:
        """Return whether the result is there, making an earlier one of the same key current if need be."""
        target = self.target
        if store.is_published(self.root, target.address, target.key):
            return True
        return store.republish(self.root, target.address, target.key)


def open_denoised(job: Job) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Return a run as it was read, and denoised with the places of its voxels.

    None if it was left out: then that is published as the result of the job too.
    """
    run = job.open(job.step.reads("denoise").address)
    if reason := exclusion(run):
        job.publish(excluded(reason))
        return None
    raw = job.open(job.step.reads("ingest").address)
    return raw, cubes.join_steps(raw.drop_vars("bold"), run)


def excluded(reason: str) -> xr.Dataset:
    """Return the result of a run that is left out: no variables, only the reason."""
    return xr.Dataset(attrs={"excluded": reason})


def exclusion(ds: xr.Dataset) -> str | None:
    """Return why a run was left out, or None."""
    reason = ds.attrs.get("excluded")
    return None if reason is None else str(reason)
