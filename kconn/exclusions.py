"""Everything that a study left out: what, at which step, of what, and why; and how many were left after each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.io import cubes
from kconn.stages.cohort import NOTHING_LEFT
from kconn.study.plan import Step
from kconn.study.workbench import Workbench

#: Steps at which something may be left out, in their order.
STEPS: Final = ("participants", "run", "session", "nodes", "contrast")
#: What is left out of all that follows.
EVERYTHING: Final = "everything"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """One subject, session or run that was left out.

    Attributes
    ----------
    step
        One of `STEPS`.
    subject, session, run
        Labels without ``sub-``; empty where all of them are left out.
    left_out_of
        ``everything``, or a node set, or a contrast with its node set and kind.
    reason
        In words.
    """

    step: str
    subject: str
    session: str = ""
    run: str = ""
    left_out_of: str = EVERYTHING
    reason: str

    @property
    def where(self) -> str:
        """``sub-01``, ``sub-01/ses-1`` or ``sub-01/ses-1/run-1``."""
        labels = (("sub", self.subject), ("ses", self.session), ("run", self.run))
        return "/".join(f"{word}-{label}" for word, label in labels if label)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStage:
    """How much was left after a step; ``lost`` holds (how many, of what, why)."""

    name: str
    n_subject: int
    n_session: int | None = None
    n_run: int | None = None
    lost: tuple[tuple[int, str, str], ...] = ()


def list_exclusions(bench: Workbench) -> list[Exclusion]:
    """Return every exclusion of a study that was run to its end, step by step.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` if results are missing.
    """
    return list(_find(bench))


def _find(bench: Workbench) -> Iterator[Exclusion]:
    for subject, reason in sorted(bench.plan.left_out.items()):
        yield Exclusion(step="participants", subject=subject, reason=reason)
    quality = _open(bench, "quality")
    yield from _of_rows(quality, "run", "excluded")
    seen = set()
    for exclusion in _of_rows(quality, "session", "session_excluded"):
        # Every run of the session says so.
        if (exclusion.subject, exclusion.session) not in seen:
            seen.add((exclusion.subject, exclusion.session))
            yield Exclusion(
                step="session", subject=exclusion.subject, session=exclusion.session, reason=exclusion.reason
            )
    for step in _steps(bench, "coverage"):
        found = cubes.open_group(bench.study.store, step.address)
        yield from _of_rows(found, "nodes", "excluded", left_out_of=step.address.path.split("/")[-1])
    yield from _short_without_uncovered_runs(bench, seen)
    told = set()
    for step in (*_steps(bench, "test"), *_steps(bench, "feature-test"), *_steps(bench, "map-test")):
        name = "/".join(step.address.path.split("/")[1:4])
        for line in _attrs(bench, step).get("left_out", []):
            subject, _, reason = str(line).partition(": ")
            # Those without any run are told above, with the reasons; of the maps of many nodes it is told once.
            if reason != NOTHING_LEFT and (name, subject) not in told:
                told.add((name, subject))
                yield Exclusion(step="contrast", subject=subject, left_out_of=name, reason=reason)


def _of_rows(table: xr.Dataset, step: str, column: str, *, left_out_of: str = EVERYTHING) -> Iterator[Exclusion]:
    columns = (table[name].to_numpy().astype(str) for name in ("subject", "session", "run", column))
    for subject, session, run, reason in zip(*columns, strict=True):
        if reason:
            yield Exclusion(
                step=step, subject=subject, session=session, run=run, left_out_of=left_out_of, reason=reason
            )


def _short_without_uncovered_runs(bench: Workbench, known: set[tuple[str, str]]) -> Iterator[Exclusion]:
    """Yield the sessions that are too short only because a node set does not cover one of their runs."""
    seen = set()
    for step in _steps(bench, "cohort"):
        node_set = step.address.path.split("/")[1]
        for place, reason in _attrs(bench, step).get("short_sessions", {}).items():
            subject, _, session = str(place).partition("/")
            if (subject, session) in known or (node_set, place) in seen:
                continue
            seen.add((node_set, place))
            yield Exclusion(step="session", subject=subject, session=session, left_out_of=node_set, reason=str(reason))


def count_flow(bench: Workbench, exclusions: Sequence[Exclusion]) -> list[FlowStage]:
    """Return how many subjects, sessions and runs were left after each step, and how many each reason took.

    Parameters
    ----------
    bench
        A study that was run to its end.
    exclusions
        As `list_exclusions` returns them.
    """
    quality = _open(bench, "quality")
    columns = (quality[name].to_numpy().astype(str) for name in ("subject", "session", "run"))
    runs = set(zip(*columns, strict=True))
    found = {str(run.subject) for run in bench.survey.found}
    stages = [
        FlowStage(
            name="found",
            n_subject=len(found),
            n_session=len({(run.subject, run.session) for run in bench.survey.found}),
            n_run=len(bench.survey.found),
        ),
        _stage("in the participants table", runs, exclusions, "participants", "subject"),
    ]
    runs -= {(e.subject, e.session, e.run) for e in exclusions if e.step == "run"}
    stages.append(_stage("runs within the limits", runs, exclusions, "run", "run"))
    gone = {(e.subject, e.session) for e in exclusions if e.step == "session" and e.left_out_of == EVERYTHING}
    runs = {run for run in runs if run[:2] not in gone}
    stages.append(_stage("sessions within the limits", runs, exclusions, "session", "session"))
    return stages


def _stage(
    name: str, runs: set[tuple[str, str, str]], exclusions: Sequence[Exclusion], step: str, what: str
) -> FlowStage:
    lost: dict[str, int] = {}
    for exclusion in exclusions:
        if exclusion.step == step and exclusion.left_out_of == EVERYTHING:
            kind = summarise(exclusion.reason)
            lost[kind] = lost.get(kind, 0) + 1
    return FlowStage(
        name=name,
        n_subject=len({run[0] for run in runs}),
        n_session=len({run[:2] for run in runs}),
        n_run=len(runs),
        lost=tuple((n, what, reason) for reason, n in sorted(lost.items())),
    )


def summarise(reason: str) -> str:
    """Return a reason without the number that was found, so that like reasons can be counted together."""
    words = reason.partition(" ")[2] if reason.startswith("E-") else reason
    parts = []
    for part in words.split("; "):
        for kind, text in _KINDS.items():
            if kind in part:
                parts.append(text)
                break
        else:
            parts.append(part)
    return ", ".join(parts)


#: Words of a reason -> what it is counted as.
_KINDS: Final[Mapping[str, str]] = {
    "frames kept in the session": "too few frames in the session",
    "minutes kept in the session": "too few minutes in the session",
    "frames kept, fewer than": "too few frames",
    "minutes kept, fewer than": "too few minutes",
    "degrees of freedom": "too few degrees of freedom",
    "mean framewise displacement": "mean framewise displacement",
    "frames dropped": "share of frames dropped",
    "standardised DVARS": "standardised DVARS",
    "is kept": "no frame left",
    "voxels of the nodes": "atlas not covered",
}


def tabulate_exclusions(exclusions: Sequence[Exclusion]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of ``exclusions.tsv``."""
    rows = [
        (
            f"sub-{exclusion.subject}",
            f"ses-{exclusion.session}" if exclusion.session else "",
            exclusion.run,
            exclusion.step,
            exclusion.left_out_of,
            exclusion.reason,
        )
        for exclusion in exclusions
    ]
    names = ("participant_id", "session_id", "run", "step", "left_out_of", "reason")
    return {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(names)}


def _steps(bench: Workbench, stage: str) -> Iterator[Step]:
    return (step for step in bench.plan.steps if step.stage == stage)


def _open(bench: Workbench, stage: str) -> xr.Dataset:
    return cubes.open_group(bench.study.store, next(_steps(bench, stage)).address)


def _attrs(bench: Workbench, step: Step) -> dict[str, Any]:
    return cubes.read_attrs(bench.study.store, step.address)
