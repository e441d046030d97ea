"""New study files: commented, complete, with every default in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kconn.errors import InputError
from kconn.io import layout, tables
from kconn.study import (
    ConnectivityTable,
    ContrastTable,
    DenoiseTable,
    InputsTable,
    NodesTable,
    PermutationTable,
    QualityTable,
    StudyTable,
)
from kconn.testing import SimulatedStudy, simulate_study

_HEAD: Final = (
    "# A kconn study. `kconn check` validates it, `kconn plan` prints the steps, `kconn run` runs them.\n"
    "# Paths are relative to this file. A key that is commented out shows its default.\n"
    "schema_version = 1\n"
)
_SIMULATED_T_R: Final = 0.8
_FUNC: Final = "sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayout:
    """What text files do not say of themselves."""

    pattern: str
    orientation: Literal["time-by-node", "node-by-time"] | None
    t_r: float | None


def write_simulated_study(
    folder: Path, *, n_subjects_per_group: int, layout: Literal["fmriprep", "tables"], seed: int
) -> Path:
    """Write a simulated trial to ``folder`` and return its study file.

    Raises
    ------
    InputError
        ``E-FILE-EXISTS`` if the folder holds something else.
    """
    made = simulate_study(
        folder / "derivatives",
        n_subjects_per_group=n_subjects_per_group,
        t_r=_SIMULATED_T_R,
        layout=layout,
        max_workers=2,
        seed=seed,
    )
    path = folder / "study.toml"
    path.write_text(_simulated_text(made, layout, folder), encoding="utf-8")
    return path


def write_study_file(derivatives: Path, out: Path, *, atlas: str | None, layout: TableLayout | None) -> str:
    """Look at a folder, write a commented study file, and return what was found, in words.

    Parameters
    ----------
    derivatives
        fMRIPrep outputs, or a folder of tables.
    out
        File to write; an existing one is never overwritten.
    atlas
        Label image of the node set; where there is none, the file says where to put it.
    layout
        For tables: what their files do not say.

    Raises
    ------
    InputError
        ``E-NO-RUNS`` or ``E-FILE-EXISTS``.
    """
    if out.exists():
        raise InputError(
            "E-FILE-EXISTS",
            f"{out.name} is there already",
            rule="a study file is never overwritten",
            fix="choose another --out, or remove it",
        )
    inputs, runs, remarks = _scan_tables(derivatives, layout) if layout else _scan_images(derivatives)
    root = os.path.relpath(derivatives, out.parent)
    people = _find_participants(derivatives)
    given: dict[str, Any] = {"root": root, **inputs}
    if people is not None:
        given["participants"] = os.path.relpath(people, out.parent)
    nodes: dict[str, Any]
    if layout:
        nodes = {"columns": "all"}
    else:
        nodes = {"atlas": os.path.relpath(atlas, out.parent) if atlas else "ATLAS.nii.gz"}
        remarks += [] if atlas else ["put the path of your atlas where the file says ATLAS.nii.gz"]
    text = "\n".join(
        [
            _HEAD,
            _table("study", StudyTable, {"name": derivatives.resolve().name}),
            _table("inputs", InputsTable, given),
            _table("denoise", DenoiseTable, {"confounds": "none"} if layout else {}),
            _table("quality", QualityTable, {}),
            _table("nodes.atlas" if not layout else "nodes.columns", NodesTable, nodes),
            _table("connectivity", ConnectivityTable, {"kinds": ["corr", "ridgep"]}),
            _table("permutation", PermutationTable, {}),
            _example_contrast(people),
        ]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    subjects = {run.subject for run in runs}
    sessions = sorted({run.session for run in runs})
    found = f"found {len(runs)} runs of {len(subjects)} subjects in session(s) {', '.join(sessions)}"
    return "\n".join([found, *remarks, f"wrote {out}", f"next: edit it, then kconn check {out}"])


def _scan_images(derivatives: Path) -> tuple[dict[str, Any], list[layout.Run], list[str]]:
    inputs: dict[str, Any] = {"layout": "fmriprep"}
    remarks = []
    for choice, options in layout.list_choices(derivatives).items():
        if len(options) > 1:
            remarks.append(f"{choice}: chose {options[0]!r} of {', '.join(options)}")
        if options:
            inputs[choice] = options[0]
    runs = layout.find_runs_fmriprep(derivatives, task=inputs.get("task"), space=inputs.get("space"))
    return inputs, runs, remarks


def _scan_tables(derivatives: Path, given: TableLayout) -> tuple[dict[str, Any], list[layout.Run], list[str]]:
    runs = layout.find_runs_tables(derivatives, pattern=given.pattern)
    inputs = {
        "layout": "tables",
        "pattern": given.pattern,
        "orientation": given.orientation or "TIME-BY-NODE OR NODE-BY-TIME",
        "t_r": given.t_r or "SECONDS",
    }
    remarks = [
        f"state {key} in the file: text files do not say it"
        for key in ("orientation", "t_r")
        if not getattr(given, key)
    ]
    return inputs, runs, remarks


def _find_participants(derivatives: Path) -> Path | None:
    places = (derivatives / "participants.tsv", derivatives.parent / "participants.tsv")
    return next((place for place in places if place.is_file()), None)


def _example_contrast(people: Path | None) -> str:
    columns: Iterable[str] = [] if people is None else list(tables.read_participants(people).columns)
    listed = f"# Columns of the participants table: {', '.join(columns)}.\n" if columns else ""
    return listed + (
        "# One table per test. Take the comment signs away and put in your own columns and sessions.\n"
        "# [contrasts.drug-change]\n"
        '# test = "two-sample"                # two-sample, paired, one-sample, covariate\n'
        '# formula = "group + age + sex"      # the tested column and the nuisance\n'
        '# effect = "group"\n'
        '# levels = ["placebo", "ketamine"]   # tests ketamine - placebo\n'
        '# change = ["pre", "post"]           # the data are post - pre per subject\n'
    )


def _table(name: str, model: type[BaseModel], given: Mapping[str, Any], *, complete: bool = True) -> str:
    """Return one TOML table: given values, and if complete every other key commented out with its default."""
    lines = [f"[{name}]"]
    for key, field in model.model_fields.items():
        comment = f"  # {field.description}"
        if key in given:
            lines.append(f"{key} = {_toml(given[key])}{comment}")
        elif complete and not field.is_required():
            lines.append(f"# {key} = {_default(field)}{comment}")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    return '""' if default is None else _toml(default)


def _toml(value: Any) -> str:
    """Return a string, number, truth value or list as TOML; JSON writes these the same way."""
    return "{}" if value == {} else json.dumps(value, ensure_ascii=False)


def _simulated_text(made: SimulatedStudy, kind: str, folder: Path) -> str:
    def relative(path: Path) -> str:
        return os.path.relpath(path, folder)

    inputs: dict[str, Any] = {"layout": kind, "root": relative(made.path), "participants": relative(made.participants)}
    nodes: dict[str, Any] = {"columns": "all"}
    if kind == "fmriprep":
        nodes = {"atlas": relative(made.atlas), "labels": relative(made.atlas_table)}
    else:
        inputs |= {
            "pattern": f"{_FUNC}_space-*_stat-mean_timeseries.tsv",
            "confounds_pattern": f"{_FUNC}_desc-confounds_timeseries.tsv",
            "orientation": "time-by-node",
            "t_r": _SIMULATED_T_R,
        }
    denoise = {"confounds": "36P", "high_pass": 0.01, "low_pass": 0.1, "fd_threshold": 0.5}
    change: dict[str, Any] = {"test": "two-sample", "formula": "group + age + sex", "effect": "group"}
    change |= {"levels": ["placebo", "ketamine"], "change": ["pre", "post"]}
    baseline = {**change, "sessions": ["pre"]}
    del baseline["change"]
    paired = {"test": "paired", "change": ["pre", "post"]}
    parts = [
        _HEAD,
        _table("study", StudyTable, {"name": "Simulated ketamine trial"}),
        _table("inputs", InputsTable, inputs),
        _table("denoise", DenoiseTable, denoise),
        _table("quality", QualityTable, {"max_mean_fd": 0.5}),
        _table("nodes.sim", NodesTable, nodes),
        _table("connectivity", ConnectivityTable, {"kinds": ["corr", "ridgep"], "rho": 0.1}),
        _table("permutation", PermutationTable, {"n_perm": 5000, "seed": 1}),
        _table("contrasts.drug-change", ContrastTable, change, complete=False),
        _table("contrasts.baseline", ContrastTable, baseline, complete=False),
        _table("contrasts.ketamine-post-pre", ContrastTable, paired, complete=False)
        + 'where = { group = "ketamine" }  # keep subjects whose column has this value\n',
    ]
    return "\n".join(parts)
