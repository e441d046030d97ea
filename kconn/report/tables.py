"""The tables of a report, as headings and rows of text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.report.data import ReportData, name_level
from kconn.report.words import DASH, format_number

#: Columns of the run table -> heading and decimals.
RUN_COLUMNS: Final[Mapping[str, tuple[str, int]]] = {
    "n_frames": ("frames", 0),
    "n_kept": ("kept", 0),
    "minutes_kept": ("min kept", 1),
    "mean_fd": ("mean FD (mm)", 3),
    "max_fd": ("max FD (mm)", 2),
    "mean_std_dvars": ("mean std. DVARS", 2),
    "median_tsnr": ("median tSNR", 0),
    "global_sd": ("global SD (%)", 2),
    "df_left": ("df left", 0),
}
_MAX_LEVELS: Final = 6
_CODE: Final = re.compile(r"^E-[A-Z-]+ ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Headings and rows; ``numeric`` columns are set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    prose: frozenset[int] = frozenset()
    """Columns of sentences, which get room."""


def study_table(data: ReportData) -> Table:
    """Return who was studied: subjects, sessions in use, age and sex, by group."""
    subjects = list(dict.fromkeys(data.runs["subject"].astype(str)))
    people = data.participants.reindex(subjects)
    groups: dict[str, pd.Index[Any]] = {}
    if data.group is not None and data.group in people:
        for level in sorted(people[data.group].dropna().unique(), key=str):
            groups[name_level(data.group, level)] = people.index[people[data.group] == level]
    groups["all"] = people.index
    rows: list[tuple[str, ...]] = [("subjects", *(str(len(members)) for members in groups.values()))]

    used = data.runs[data.runs["excluded"].astype(str) == ""]
    for session in data.visits():
        seen = set(used["subject"][used["session"].astype(str) == session].astype(str))
        label = f"session {session}, in use" if session else "in use"
        rows.append((label, *(str(len(seen & set(members))) for members in groups.values())))
    for column in map(str, people.columns):
        if column.lower() == "age":
            rows.append((f"{column}, mean (SD)", *(_mean_sd(_numbers(people, m, column)) for m in groups.values())))
            rows.append((f"{column}, range", *(_range(_numbers(people, m, column)) for m in groups.values())))
        elif column.lower() in {"sex", "gender"}:
            levels = sorted(people[column].dropna().unique(), key=str)[:_MAX_LEVELS]
            counts = (
                ", ".join(f"{int((people[column].loc[m] == level).sum())} {level}" for level in levels)
                for m in groups.values()
            )
            rows.append((column, *counts))
    return Table(columns=("", *groups), rows=tuple(rows), numeric=frozenset(range(1, len(groups) + 1)))


def run_table(runs: pd.DataFrame) -> Table:
    """Return one row per run."""
    shown = {name: heading for name, heading in RUN_COLUMNS.items() if name in runs}
    rows = []
    for _, run in runs.iterrows():
        numbers = (format_number(float(run[name]), digits=digits) for name, (_, digits) in shown.items())
        rows.append(
            (str(run["subject"]), str(run["session"]), str(run["run"]), *numbers, _CODE.sub("", str(run["excluded"])))
        )
    columns = ("subject", "session", "run", *(heading for heading, _ in shown.values()), "left out because")
    return Table(
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(range(3, 3 + len(shown))),
        prose=frozenset({3 + len(shown)}),
    )


def parameter_table(parameters: Mapping[str, Any]) -> Table:
    """Return every parameter, one row each, without absolute paths."""
    return Table(columns=("parameter", "value"), rows=tuple(_flatten(parameters, ())))


def _numbers(people: pd.DataFrame, members: pd.Index[Any], column: str) -> npt.NDArray[np.float64]:
    numbers = pd.to_numeric(people[column].loc[members], errors="coerce").to_numpy(dtype=np.float64)
    return np.asarray(numbers[np.isfinite(numbers)])


def _mean_sd(numbers: npt.NDArray[np.float64]) -> str:
    if len(numbers) == 0:
        return DASH
    spread = f" ({numbers.std(ddof=1):.1f})" if len(numbers) > 1 else ""
    return f"{numbers.mean():.1f}{spread}"


def _range(numbers: npt.NDArray[np.float64]) -> str:
    return f"{numbers.min():g} to {numbers.max():g}" if len(numbers) else DASH


def _flatten(value: Any, place: tuple[str, ...]) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for key, part in value.items() for row in _flatten(part, (*place, str(key)))]
    return [(".".join(place), _print_value(value))]


def _print_value(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_print_value(part) for part in value)
    if isinstance(value, str):
        return _without_folders(value)
    return json.dumps(value)


def _without_folders(text: str) -> str:
    """Return the name alone of an absolute path: a report does not tell where a machine keeps its files."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~")
    return f"…/{PureWindowsPath(text).name}" if absolute else text
