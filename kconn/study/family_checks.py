"""Families, blocks and comparisons of sessions or runs, against the nodes and runs of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import xarray as xr

from kconn.errors import InputError, KconnError, StudyFileError
from kconn.infer.hypotheses import tested_column
from kconn.io.layout import Run
from kconn.study.examination import collected
from kconn.study.families import (
    choose_node_sets,
    list_families,
    nodes_with_netmats,
    pick_family,
    plan_blocks,
)
from kconn.study.family_tables import ReliabilityTable
from kconn.study.file import Study


def check_families(study: Study, coords: Mapping[str, xr.Dataset], problems: list[KconnError]) -> None:
    """Refuse families whose names no node set has, and what asks for families that are not there."""
    if not any(table.netmats for table in study.nodes.values()):
        _refuse_families_of_maps(study, problems)
        return
    sets = nodes_with_netmats(study, coords)
    if not sets or (study.families is None and study.blocks is None and not _restricted(study)):
        return
    n_before = len(problems)
    families = {}
    with collected(problems, of="families"):
        families = list_families(study)
        for name, pairs in families.items():
            choose_node_sets(name, pairs, sets)
    if len(problems) > n_before:  # what asks for families would say the same again
        return
    for name in _restricted(study):
        with collected(problems, of=f"contrasts.{name}"):
            pick_family(study, families, name)
    with collected(problems, of="blocks"):
        plan_blocks(study, families, sets)


def _refuse_families_of_maps(study: Study, problems: list[KconnError]) -> None:
    """Refuse what asks for edges where no node set has any: maps are not joined by families."""
    asking = [f"contrasts.{name}.family" for name in _restricted(study)]
    asking += [name for name in ("families", "blocks") if getattr(study, name) is not None]
    if asking:
        problems.append(
            StudyFileError(
                "E-STUDY-VALUE",
                f"{asking[0]} asks for connections, and no node set has any: netmats = false",
                rule="families and blocks are of connections; the maps of one node set are corrected together",
                fix="write netmats = true, or take it out and make the seeds that belong together a node set",
            )
        )


def _restricted(study: Study) -> list[str]:
    return [name for name, contrast in study.contrasts.items() if contrast.family is not None]


def check_reliability(
    study: Study, runs: Sequence[Run], participants: pd.DataFrame, problems: list[KconnError]
) -> None:
    """Refuse a comparison of sessions or runs that fewer than three subjects have."""
    for name, table in study.reliability.items():
        with collected(problems, of=f"reliability.{name}"):
            _check_comparison(table, runs, select_subjects(table, participants))


def select_subjects(table: ReliabilityTable, participants: pd.DataFrame) -> list[str]:
    """Return the subjects that ``where`` keeps.

    Raises
    ------
    DesignError
        ``E-DESIGN-FORMULA`` if it names no column.
    """
    rows = participants
    for column, wanted in table.where.items():
        rows = rows[tested_column(rows, column).isin(wanted if isinstance(wanted, list) else [wanted])]
    return [str(subject) for subject in rows.index]


def _check_comparison(table: ReliabilityTable, runs: Sequence[Run], subjects: list[str]) -> None:
    sessions = sorted({run.session for run in runs})
    if table.runs is not None and table.session is None and len(sessions) > 1:
        raise InputError(
            "E-AMBIGUOUS",
            f"the runs are of the sessions {', '.join(sessions)}",
            rule="runs are compared within one session",
            fix=f"write session = {sessions[0]!r}",
        )
    named = table.sessions or ([] if table.session is None else [table.session])
    if unknown := [session for session in named if session not in sessions]:
        raise InputError(
            "E-ID-MISSING",
            f"no run belongs to session {unknown[0]!r}",
            rule="sessions that are compared exist",
            fix=f"the sessions are {', '.join(sessions)}",
        )
    wanted = table.sessions or table.runs or []
    session = table.session or sessions[0]
    have: dict[str, set[str]] = {}
    for run in runs:
        if table.sessions is not None or run.session == session:
            have.setdefault(run.subject, set()).add(run.session if table.sessions is not None else run.run)
    complete = [subject for subject in subjects if set(wanted) <= have.get(subject, set())]
    if len(complete) < 3:
        raise InputError(
            "E-TOO-FEW",
            f"{len(complete)} subjects have all of {', '.join(wanted)}",
            rule="an intraclass correlation needs at least 3",
            fix=f"there are {', '.join(sorted({label for labels in have.values() for label in labels}))}",
        )
