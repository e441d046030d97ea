"""New study files: commented, complete, with every default in place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel

from kconn.errors import InputError
from kconn.io import layout, layout_hcp, tables
from kconn.io.cifti import SERIES_ENDINGS, is_series
from kconn.study.cleaning_tables import DenoiseTable, QualityTable
from kconn.study.connection_tables import SOURCE_OF, ConnectivityTable, NodesTable
from kconn.study.input_tables import LAYOUTS_OF, InputsTable, StudyTable
from kconn.study.test_tables import ContrastTable, PermutationTable
from kconn.testing import SimulatedStudy, simulate_study
from kconn.testing.study import Layout

_HEAD: Final = (
    "# A kconn study. `kconn check` validates it, `kconn plan` prints the steps, `kconn run` runs them.\n"
    "# Paths are relative to this file. A key that is commented out shows its default.\n"
    "schema_version = 1\n"
)
_EXAMPLE: Final = (
    "# Take the comment signs away and put in your own columns and sessions.\n"
    "# [contrasts.drug-change]\n"
    '# test = "two-sample"                # two-sample, paired, one-sample, covariate\n'
    '# formula = "group + age + sex"      # the tested column and the nuisance\n'
    '# effect = "group"                   # the tested column\n'
    '# levels = ["placebo", "ketamine"]   # tests ketamine - placebo\n'
    '# change = ["pre", "post"]           # the data are post - pre per subject\n'
)
#: Longer settings do not push the comments of their table to the right.
_MAX_SETTING: Final = 44
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SIMULATED_T_R: Final = 0.8
_FUNC: Final = "sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Where the runs are in a folder without BIDS names, and what text files do not say of themselves."""

    pattern: str
    mask_pattern: str | None = None
    confounds_pattern: str | None = None
    orientation: Literal["time-by-node", "node-by-time"] | None = None
    t_r: float | None = None

    @property
    def layout(self) -> Literal["images", "cifti", "tables"]:
        """``cifti`` for a pattern of dtseries or ptseries, ``images`` for one of NIfTI files, else ``tables``."""
        if self.pattern.endswith(SERIES_ENDINGS):
            return "cifti"
        return "images" if self.pattern.endswith((".nii", ".nii.gz")) else "tables"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a folder holds: values for ``[inputs]``, the runs, and what the user should know."""

    inputs: dict[str, Any]
    runs: list[layout.Run]
    remarks: tuple[str, ...] = ()


def write_simulated_study(folder: Path, *, n_subjects_per_group: int, layout: Layout, seed: int) -> Path:
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


def write_study_file(derivatives: Path, out: Path, *, atlas: str | None, pattern: Pattern | None) -> str:
    """Look at a folder, write a commented study file, and return what was found, in words.

    Parameters
    ----------
    derivatives
        Outputs of fMRIPrep or the HCP pipelines, or a folder of images, CIFTI series or tables.
    out
        File to write; an existing one is never overwritten.
    atlas
        Label image of the node set; where there is none, the file says where to put it.
    pattern
        For a folder without BIDS names: where its runs are.

    Raises
    ------
    InputError
        ``E-NO-RUNS`` or ``E-FILE-EXISTS``.
    """
    find = _find_hcp if layout_hcp.looks_like_hcp(derivatives) else _find_fmriprep
    found = _find_by_pattern(derivatives, pattern) if pattern else find(derivatives)
    text = _new_text(derivatives, out.parent, found, atlas)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(
            "E-FILE-EXISTS",
            f"{out.name} is there already",
            rule="a study file is never overwritten",
            fix="choose another --out, or remove it",
        ) from error
    remarks = list(found.remarks)
    if atlas is None and not _has_columns(found):
        remarks.append(f"put the path of your atlas where the file says {_atlas_of(found)}")
    subjects = {run.subject for run in found.runs}
    sessions = sorted({run.session for run in found.runs})
    summary = f"found {len(found.runs)} runs of {len(subjects)} subjects in session(s) {', '.join(sessions)}"
    return "\n".join([summary, *remarks, f"wrote {out}", f"next: edit it, then kconn check {out}"])


def _find_fmriprep(derivatives: Path) -> _Found:
    """Choose the first task, the first of its spaces and the first of their resolutions."""
    chosen: dict[str, str] = {}
    remarks = []
    for key in ("task", "space", "res", "den"):
        narrowed = {name: label for name, label in chosen.items() if name in {"task", "space"}}
        options = layout.list_choices(derivatives, **narrowed)[key]
        if len(options) > 1:
            remarks.append(f"{key}: chose {options[0]} of {', '.join(options)}")
        chosen |= {key: options[0]} if options else {}
    runs = layout.find_runs_fmriprep(derivatives, **chosen)
    return _Found(inputs={"layout": "fmriprep", **chosen}, runs=runs, remarks=tuple(remarks))


def _find_hcp(derivatives: Path) -> _Found:
    """Choose the variant that is cleaned most: with noise components removed, then with areal registration."""
    variants = list(layout_hcp.list_variants(derivatives))
    chosen = max(variants, key=lambda variant: (variant.endswith("_clean"), "MSMAll" in variant, variant))
    remarks = [f"variant: chose {chosen} of {', '.join(variants)}"] if len(variants) > 1 else []
    if chosen.endswith("_clean"):
        remarks.append('confounds = "none": noise components and motion were removed from the cleaned series')
    runs = layout_hcp.find_runs_hcp(derivatives, variant=chosen)
    return _Found(inputs={"layout": "hcp", "variant": chosen}, runs=runs, remarks=tuple(remarks))


def _has_columns(found: _Found) -> bool:
    """Return whether the runs are node series: tables or ptseries."""
    return found.inputs["layout"] == "tables" or all(run.bold and "ptseries" in run.bold.name for run in found.runs)


def _atlas_of(found: _Found) -> str:
    """Return what stands in the file for an atlas that the user has yet to name."""
    return "ATLAS.dlabel.nii" if all(run.bold and is_series(run.bold) for run in found.runs) else "ATLAS.nii.gz"


def _find_by_pattern(derivatives: Path, given: Pattern) -> _Found:
    inputs: dict[str, Any] = {"layout": given.layout, "pattern": given.pattern}
    if given.confounds_pattern is not None:
        inputs["confounds_pattern"] = given.confounds_pattern
    if given.layout == "tables":
        runs = layout.find_runs_tables(derivatives, pattern=given.pattern, confounds_pattern=given.confounds_pattern)
        missing = [key for key in ("orientation", "t_r") if getattr(given, key) is None]
        inputs |= {"orientation": given.orientation or "TIME-BY-NODE OR NODE-BY-TIME", "t_r": given.t_r or "SECONDS"}
        return _Found(
            inputs=inputs,
            runs=runs,
            remarks=tuple(f"state {key} in the file: text files do not say it" for key in missing),
        )
    inputs |= {"t_r": given.t_r} if given.t_r else {}
    if given.layout == "cifti":
        runs = layout.find_runs_cifti(derivatives, pattern=given.pattern, confounds_pattern=given.confounds_pattern)
        return _Found(inputs=inputs, runs=runs)
    runs = layout.find_runs_images(
        derivatives,
        pattern=given.pattern,
        mask_pattern=given.mask_pattern,
        confounds_pattern=given.confounds_pattern,
    )
    if given.mask_pattern is None:
        return _Found(inputs={**inputs, "mask": "none"}, runs=runs, remarks=("no mask_pattern: every voxel is kept",))
    return _Found(inputs={**inputs, "mask_pattern": given.mask_pattern}, runs=runs)


def _find_people(derivatives: Path) -> dict[str, Path]:
    """Return the tables of people in the folder or the one above it."""
    places = {
        name: [folder / f"{name}.tsv" for folder in (derivatives, derivatives.parent)]
        for name in ("participants", "sessions")
    }
    found = {name: next((path for path in paths if path.is_file()), None) for name, paths in places.items()}
    return {name: path for name, path in found.items() if path is not None}


def _new_text(derivatives: Path, folder: Path, found: _Found, atlas: str | None) -> str:
    people = _find_people(derivatives)
    inputs = {"root": os.path.relpath(derivatives, folder), **found.inputs}
    inputs |= {name: os.path.relpath(path, folder) for name, path in people.items()}
    if _has_columns(found):
        nodes = _table("nodes.columns", NodesTable, {"columns": "all"})
    else:
        nodes = _table(
            "nodes.atlas", NodesTable, {"atlas": os.path.relpath(atlas, folder) if atlas else _atlas_of(found)}
        )
    is_clean = str(found.inputs.get("variant", "")).endswith("_clean")
    has_confounds = not is_clean and all(run.confounds is not None for run in found.runs)
    parts = [
        _HEAD,
        _table("study", StudyTable, {"name": derivatives.resolve().name}),
        _table("inputs", InputsTable, inputs),
        _table("denoise", DenoiseTable, {} if has_confounds else {"confounds": "none"}),
        _table("quality", QualityTable, {}),
        nodes,
        _table("connectivity", ConnectivityTable, {"kinds": ["corr", "ridgep"]}),
        _table("permutation", PermutationTable, {}),
        _example_contrast(found, people),
    ]
    return "\n".join(parts)


def _example_contrast(found: _Found, people: Mapping[str, Path]) -> str:
    sessions = sorted({run.session for run in found.runs})
    columns: list[str] = []
    if "participants" in people:
        columns += map(str, tables.read_participants(people["participants"]).columns)
    if "sessions" in people:
        columns += map(str, tables.read_sessions(people["sessions"]).columns)
    known = f"Columns: {', '.join(columns)}. " if columns else ""
    return f"# One table per test. {known}Sessions: {', '.join(sessions)}.\n{_EXAMPLE}"


def _table(name: str, model: type[BaseModel], given: Mapping[str, Any], *, complete: bool = True) -> str:
    """Return one TOML table: given values, and if complete every other key that fits, commented out with its default.

    A key without a default stands without a value: it is no TOML until the user puts one in.
    """
    rows: list[tuple[str, str]] = []
    for key, field in model.model_fields.items():
        comment = f"# {field.description}"
        if key in given:
            rows.append((f"{key} = {_toml(given[key])}", comment))
        elif complete and not field.is_required() and _fits(model, key, given):
            default = field.get_default(call_default_factory=True, validated_data={})
            if default is None:
                rows.append((f"# {key} =", f"# not set; {field.description}"))
            else:
                rows.append((f"# {key} = {_toml(default)}", comment))
    width = max(len(setting) for setting, _ in rows if len(setting) <= _MAX_SETTING)
    return "\n".join([f"[{name}]", *(f"{setting:<{width}}  {comment}" for setting, comment in rows)]) + "\n"


def _fits(model: type[BaseModel], key: str, given: Mapping[str, Any]) -> bool:
    """Return whether a key can be used together with what is given: each layout and each node set has its own."""
    if model is InputsTable:
        return given["layout"] in LAYOUTS_OF.get(key, given["layout"])
    if model is NodesTable:
        sources = {source for of in SOURCE_OF.values() for source in of}
        return not (key in sources or key in SOURCE_OF) or bool({*SOURCE_OF.get(key, (key,))} & set(given))
    return True


def _toml(value: Any) -> str:
    """Return a value as TOML; JSON writes strings, numbers, truth values and lists the same way."""
    if isinstance(value, Mapping):
        pairs = ", ".join(
            f"{key if _BARE_KEY.fullmatch(key) else json.dumps(key)} = {_toml(item)}" for key, item in value.items()
        )
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False)


def _simulated_text(made: SimulatedStudy, kind: str, folder: Path) -> str:
    def relative(path: Path) -> str:
        return os.path.relpath(path, folder)

    inputs: dict[str, Any] = {"layout": kind, "root": relative(made.path), "participants": relative(made.participants)}
    nodes: dict[str, Any] = {"columns": "all"}
    if kind != "tables":
        nodes = {"atlas": relative(made.atlas), "labels": relative(made.atlas_table)}
    else:
        inputs |= {
            "pattern": f"{_FUNC}_space-*_stat-mean_timeseries.tsv",
            "confounds_pattern": f"{_FUNC}_desc-confounds_timeseries.tsv",
            "orientation": "time-by-node",
            "t_r": _SIMULATED_T_R,
        }
    denoise = {"confounds": "24P" if kind == "hcp" else "36P", "high_pass": 0.01, "low_pass": 0.1, "fd_threshold": 0.5}
    change: dict[str, Any] = {"test": "two-sample", "formula": "group + age + sex", "effect": "group"}
    change |= {"levels": ["placebo", "ketamine"], "change": ["pre", "post"]}
    baseline = {**change, "sessions": ["pre"]}
    del baseline["change"]
    paired = {"test": "paired", "change": ["pre", "post"], "where": {"group": "ketamine"}}
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
        _table("contrasts.ketamine-post-pre", ContrastTable, paired, complete=False),
    ]
    return "\n".join(parts)
