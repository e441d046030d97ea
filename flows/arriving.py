"""Which runs of a growing study can be used now; those still being copied, or lacking, are left for the next time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from kconn.errors import CODES, KconnError, StoreError, first_of
from kconn.io import store
from kconn.io.layout import Run
from kconn.io.store import Address
from kconn.study.examination import RunFacts
from kconn.study.file import Study, read_study
from kconn.study.plan import make_plan
from kconn.study.survey import find_runs, read_people, survey_study
from kconn.study.workbench import Workbench

#: Problems that compare runs: they say nothing about which of them is the wrong one.
_OF_ALL: Final = frozenset({"E-BRAIN-MODELS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """A growing study as far as it can be used now.

    Attributes
    ----------
    bench
        The study without the runs that wait, or None while there is no other.
    waiting
        Place of a run -> why it is left for the next time.
    cohort_waits
        Why the results of the cohort stay as they are, or "".
    """

    bench: Workbench | None
    waiting: Mapping[str, str]
    cohort_waits: str


def look_for_arrivals(path: Path, *, settle_seconds: float, refused: Mapping[str, str]) -> Arrivals:
    """Look at all inputs of a study and set aside the runs that cannot be used yet.

    A run that was part of the results and cannot be used now makes the cohort wait: its results stay whole until the
    run is back, or is gone.

    Parameters
    ----------
    path
        The study file.
    settle_seconds
        A run waits while one of its files changed less than this ago.
    refused
        Runs that were found out to be unusable when they were read -> why.

    Raises
    ------
    KconnError
        What is wrong with the study as a whole.
    """
    study = read_study(path)
    try:
        runs = find_runs(study)
    except KconnError as error:
        if error.code != "E-NO-RUNS":
            raise
        return Arrivals(bench=None, waiting=dict(refused), cohort_waits="")
    places = {run.where for run in runs}
    known = {place for place in places if _was_read(study, place)}
    waiting = {**_in_motion(runs, settle_seconds), **_without_row(study, runs), **refused}
    while len(places - set(waiting)) > 0:
        survey = survey_study(study, without=waiting)
        found = {
            **_lacking(survey.runs, known),
            **_companions_in_motion(study, survey.runs, settle_seconds),
            **_by_run(survey.problems, places),
        }
        if not found:
            rest = [problem for problem in survey.problems if not problem.where.startswith("contrasts.")]
            if rest:
                raise first_of(rest)
            bench = Workbench(study=study, survey=survey, plan=make_plan(study, survey))
            return Arrivals(
                bench=bench, waiting=waiting, cohort_waits=_why_cohort_waits(waiting, known, survey.problems)
            )
        waiting |= found
    return Arrivals(bench=None, waiting=waiting, cohort_waits=_why_cohort_waits(waiting, known, ()))


def describe(error: KconnError) -> str:
    """Return the code of an error and what it means; what a file held stays where it is."""
    return f"{error.code}: {CODES[error.code]}"


def _was_read(study: Study, place: str) -> bool:
    try:
        return store.current_key(study.store, Address(path=place, step="ingest")) is not None
    except StoreError:  # damaged: it was there
        return True


def _in_motion(runs: Iterable[Run], settle_seconds: float) -> dict[str, str]:
    found = {}
    for run in runs:
        paths = [value for name in fields(run) if isinstance(value := getattr(run, name.name), Path)]
        if why := _changed(paths, settle_seconds):
            found[run.where] = why
    return found


def _companions_in_motion(study: Study, runs: Iterable[RunFacts], settle_seconds: float) -> dict[str, str]:
    found = {}
    for run in runs:
        paths = [study.folder / path for path in (*run.files.values(), *run.regions.values())]
        if why := _changed(paths, settle_seconds):
            found[run.where] = why
    return found


def _changed(paths: Iterable[Path], settle_seconds: float) -> str:
    """Return why a run with these files waits, or "".

    The time of change of the inode moves with every write, also where a copy keeps the time of its original.
    """
    now = time.time()
    try:
        if any(now - path.stat().st_ctime < settle_seconds for path in paths):
            return f"a file changed less than {settle_seconds / 60:.3g} min ago"
    except OSError:
        return "a file went away"
    return ""


def _without_row(study: Study, runs: Sequence[Run]) -> dict[str, str]:
    participants, _ = read_people(study, runs)
    known = set(participants.index)
    return {run.where: "the participants table has no row for it" for run in runs if run.subject not in known}


def _lacking(runs: Iterable[RunFacts], known: Collection[str]) -> dict[str, str]:
    """Return the new runs that lack a file which every run has that was read before, such as its sidecar."""
    runs = list(runs)
    before = [set(run.files) for run in runs if run.where in known]
    always = set.intersection(*before) if before else set()
    return {
        run.where: f"it has no {', '.join(sorted(always - set(run.files)))} yet, all runs before have"
        for run in runs
        if run.where not in known and not always <= set(run.files)
    }


def _by_run(problems: Iterable[KconnError], places: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for problem in problems:
        place = problem.where.rpartition(", ")[2]
        if place in places and problem.code not in _OF_ALL:
            found.setdefault(place, describe(problem))
    return found


def _why_cohort_waits(waiting: Mapping[str, str], known: Collection[str], problems: Iterable[KconnError]) -> str:
    gone = sorted(set(waiting) & set(known))
    if gone:
        return f"{gone[0]} was part of it: {waiting[gone[0]]}"
    return next((f"{problem.where}: {describe(problem)}" for problem in problems), "")
