"""A simulated trial in the layout that fMRIPrep writes, with a known answer beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from isal import igzip
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no type information

from kconn.errors import InputError, SchemaError
from kconn.testing.brain import Brain, collapse, plan_brain
from kconn.testing.connectome import (
    PlantedEdge,
    apply_effects,
    factor_covariance,
    plan_connectome,
    plan_effects,
    vary_connectome,
)
from kconn.testing.grayordinates import Sheet, plan_sheet, write_dlabel, write_dtseries
from kconn.testing.recording import MOTION, Recording, record

SPACE: Final = "MNI152NLin2009cAsym"
ATLAS: Final = "sim"
TASK: Final = "rest"

_BIDS_VERSION: Final = "1.9.0"
_SLOPE: Final = 2.0
_HIGH_MOTION: Final = 6.0

# First words of the spawn keys: each kind of draw has its own, so that none depends on how many others were made.
_KEY_STUDY, _KEY_SUBJECT, _KEY_SESSION, _KEY_RUN = range(4)

Layout = Literal["fmriprep", "hcp", "tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedStudy:
    """Where a simulated study lies and what is true in it."""

    path: Path
    """The derivatives folder."""
    participants: Path
    """participants.tsv: participant_id, group, age, sex."""
    sessions: Path
    """sessions.tsv: participant_id, session_id, madrs."""
    atlas: Path
    """Label image of the nodes, or their dlabel."""
    atlas_table: Path
    """index, name, network, x, y, z of each node."""
    truth: Path
    """truth.tsv: the planted edges."""
    n_runs: int
    """Runs written, over all subjects and sessions."""

    def read_truth(self) -> pd.DataFrame:
        """Return the planted edges: node_i, node_j, sign, size, r_before, r_after, group, session."""
        return pd.read_csv(self.truth, sep="\t")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Everything that the runs of a study share."""

    path: Path
    layout: Layout
    brain: Brain
    sheet: Sheet
    groups: tuple[str, ...]
    sessions: tuple[str, ...]
    n_runs: int
    n_time: int
    t_r: float
    seed: int
    correlation: npt.NDArray[np.float64]
    effects: tuple[PlantedEdge, ...]
    participants: pd.DataFrame
    high_motion: frozenset[tuple[int, int, int]]
    motion_artefact: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    i_subject: int
    i_session: int
    i_run: int


def simulate_study(  # noqa: PLR0913 - the parameters of a trial
    path: str | Path,
    *,
    n_subjects_per_group: int = 16,
    groups: tuple[str, ...] = ("ketamine", "placebo"),
    sessions: tuple[str, ...] = ("pre", "post"),
    n_runs: int = 1,
    n_nodes: int = 36,
    n_time: int = 600,
    t_r: float = 0.8,
    grid_shape: tuple[int, int, int] = (20, 24, 20),
    n_effect_edges: int = 8,
    effect_size: float = 0.45,
    n_high_motion_runs: int = 2,
    motion_artefact: float = 1.0,
    layout: Layout = "fmriprep",
    max_workers: int = 1,
    seed: int = 0,
) -> SimulatedStudy:
    """Write a simulated trial: two groups, two visits, and edges that change in the first group at the last visit.

    Node courses are Gaussian within 0.01-0.1 Hz around a known connectome that differs between subjects and, less,
    between visits. Voxels add thermal noise, a global course, white matter and CSF courses, drift, and artefacts in
    proportion to the simulated head motion. Nothing differs between the groups before treatment.

    Parameters
    ----------
    path
        Folder to write; it must be new, empty, or hold this same study already.
    n_subjects_per_group, groups, sessions, n_runs
        The trial; every subject has every session. The first of ``groups`` is the treated one.
    n_nodes
        Nodes of the atlas.
    n_time, t_r
        Frames per run and their distance in seconds.
    grid_shape
        Voxels along x, y, z, of 160 mm / ``grid_shape[0]`` each.
    n_effect_edges
        Planted edges, alternately up and down; no node takes part in two.
    effect_size
        Change of a planted correlation between node courses, before noise.
    n_high_motion_runs
        Runs spoilt by motion, so that there is something to exclude.
    motion_artefact
        How much the same movement disturbs the image, in every group alike: 1 as a rule, 0 not at all.
    layout
        ``"fmriprep"`` writes images, masks and confounds; ``"hcp"`` writes dtseries and motion as the HCP pipelines do,
        and the atlas as a dlabel; ``"tables"`` writes node time series and confounds.
    max_workers
        Threads. The bytes are the same for any number.
    seed
        Same seed and parameters, same bytes.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the nodes do not fit on the grid or the edges on the nodes.
    InputError
        ``E-FILE-EXISTS`` if the folder holds something else.
    """
    root = Path(path)
    parameters: dict[str, Any] = {
        "n_subjects_per_group": n_subjects_per_group,
        "groups": list(groups),
        "sessions": list(sessions),
        "n_runs": n_runs,
        "n_nodes": n_nodes,
        "n_time": n_time,
        "t_r": t_r,
        "grid_shape": list(grid_shape),
        "n_effect_edges": n_effect_edges,
        "effect_size": effect_size,
        "n_high_motion_runs": n_high_motion_runs,
        "motion_artefact": motion_artefact,
        "layout": layout,
        "seed": seed,
    }
    _check_arguments(parameters)
    with threadpool_limits(1):
        trial = _plan_trial(root, parameters)
        _check_effects(trial)
        _claim_folder(root, parameters, trial)
        runs = [
            _Run(i_subject=i_subject, i_session=i_session, i_run=i_run)
            for i_subject in range(len(trial.participants))
            for i_session in range(len(sessions))
            for i_run in range(n_runs)
        ]
        _for_each(lambda run: _write_run(trial, run), runs, max_workers=max_workers)
    return SimulatedStudy(
        path=root,
        participants=root / "participants.tsv",
        sessions=root / "sessions.tsv",
        atlas=root / f"{_atlas_stem(layout)}{'.dlabel.nii' if layout == 'hcp' else '.nii.gz'}",
        atlas_table=root / f"{_atlas_stem(layout)}.tsv",
        truth=root / "truth.tsv",
        n_runs=len(runs),
    )


def _check_arguments(parameters: dict[str, Any]) -> None:
    for name in ("n_subjects_per_group", "n_runs"):
        if parameters[name] < 1:
            raise SchemaError("E-ARGUMENT", f"{name} is {parameters[name]}", rule=f"{name} must be at least 1")
    for name in ("groups", "sessions"):
        labels = parameters[name]
        if not labels or len(set(labels)) != len(labels) or not all(str(label).isalnum() for label in labels):
            raise SchemaError("E-ARGUMENT", f"{name} is {labels}", rule="labels are distinct letters and digits")
    if parameters["n_time"] * parameters["t_r"] < 60:
        raise SchemaError(
            "E-ARGUMENT",
            f"a run lasts {parameters['n_time'] * parameters['t_r']:g} s",
            rule="60 s at least, else 0.01-0.1 Hz holds too little",
            fix="raise n_time or t_r",
        )
    if parameters["layout"] not in get_args(Layout):
        raise SchemaError("E-ARGUMENT", f"layout is {parameters['layout']!r}", rule=f"one of {get_args(Layout)}")


def _plan_trial(root: Path, parameters: dict[str, Any]) -> _Trial:
    groups, sessions = tuple(parameters["groups"]), tuple(parameters["sessions"])
    seed = parameters["seed"]
    rng = _generator(seed, _KEY_STUDY)
    brain = plan_brain(grid_shape=tuple(parameters["grid_shape"]), n_nodes=parameters["n_nodes"])
    networks = brain.nodes["network"].tolist()
    correlation = plan_connectome(networks, rng)
    effects = plan_effects(
        correlation,
        networks,
        n_effect_edges=parameters["n_effect_edges"],
        effect_size=parameters["effect_size"],
        rng=rng,
    )

    n_subjects = parameters["n_subjects_per_group"] * len(groups)
    width = max(2, len(str(n_subjects)))
    participants = pd.DataFrame(
        {
            "participant_id": [f"sub-{i + 1:0{width}d}" for i in range(n_subjects)],
            "group": rng.permutation(np.repeat(np.array(groups), parameters["n_subjects_per_group"])),
            "age": np.clip(np.round(rng.normal(38, 11, n_subjects)), 18, 65).astype(int),
            "sex": rng.choice(["F", "M"], n_subjects),
        }
    )
    grid = np.array(list(np.ndindex(n_subjects, len(sessions), parameters["n_runs"])))
    n_bad = min(parameters["n_high_motion_runs"], len(grid))
    bad = grid[rng.choice(len(grid), size=n_bad, replace=False)]
    return _Trial(
        path=root,
        layout=parameters["layout"],
        brain=collapse(brain) if parameters["layout"] == "tables" else brain,
        sheet=plan_sheet(brain),
        groups=groups,
        sessions=sessions,
        n_runs=parameters["n_runs"],
        n_time=parameters["n_time"],
        t_r=parameters["t_r"],
        seed=seed,
        correlation=correlation,
        effects=effects,
        participants=participants,
        motion_artefact=parameters["motion_artefact"],
        high_motion=frozenset((int(i), int(j), int(k)) for i, j, k in bad),
    )


def _claim_folder(root: Path, parameters: dict[str, Any], trial: _Trial) -> None:
    """Write what describes the study as a whole, the truth first: it tells whose folder this is."""
    truth = root / "truth.json"
    document = {"parameters": parameters, **_truth(trial)}
    if root.exists() and any(root.iterdir()) and (not truth.is_file() or _read_json(truth) != document):
        raise InputError(
            "E-FILE-EXISTS",
            f"the folder {root.name!r} is not empty and holds something other than this simulated study",
            rule="a simulated study goes into a new folder",
            fix="choose another folder or remove this one",
        )
    root.mkdir(parents=True, exist_ok=True)
    _write_json(truth, document)
    _write_table(root / "truth.tsv", pd.DataFrame(document["edges"], columns=_TRUTH_COLUMNS))
    _write_table(root / "participants.tsv", trial.participants)
    _write_table(root / "sessions.tsv", _draw_scores(trial))
    _write_json(
        root / "dataset_description.json",
        {
            "Name": "Simulated ketamine-like trial",
            "BIDSVersion": _BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "kconn", "Description": "kconn.simulate_study: no real person is in these data"}],
        },
    )
    (root / _atlas_stem(trial.layout)).parent.mkdir(exist_ok=True)
    _write_table(root / f"{_atlas_stem(trial.layout)}.tsv", trial.brain.nodes)
    _write_json(
        root / f"{_atlas_stem(trial.layout)}.json", {"Name": "Simulated nodes", "Space": _space_of(trial.layout)}
    )
    if trial.layout == "fmriprep":
        labels = trial.brain.volume(trial.brain.parcel.astype(np.int16))
        _write_image(root / f"{_atlas_stem(trial.layout)}.nii.gz", labels, affine=trial.brain.affine)
    if trial.layout == "hcp":
        names = dict(zip(trial.brain.nodes["index"].tolist(), trial.brain.nodes["name"].tolist(), strict=True))
        write_dlabel(root / f"{_atlas_stem(trial.layout)}.dlabel.nii", trial.sheet, names)


_TRUTH_COLUMNS: Final = ["node_i", "node_j", "sign", "size", "r_before", "r_after", "group", "session"]


def _truth(trial: _Trial) -> dict[str, Any]:
    names = trial.brain.nodes["name"].tolist()
    edges = [
        {
            "node_i": names[edge.i],
            "node_j": names[edge.j],
            "sign": edge.sign,
            "size": edge.size,
            "r_before": round(edge.r_before, 6),
            "r_after": round(edge.r_before + edge.change, 6),
            "group": trial.groups[0],
            "session": trial.sessions[-1],
        }
        for edge in trial.effects
    ]
    return {
        "statement": f"In {trial.groups[0]} at {trial.sessions[-1]} these edges change; nothing else differs.",
        "edges": edges,
    }


def _draw_scores(trial: _Trial) -> pd.DataFrame:
    """Return a depression score per visit that falls further in the treated group; it is unrelated to the edges."""
    rows = []
    for i_subject, (subject, group) in enumerate(
        zip(trial.participants["participant_id"], trial.participants["group"], strict=True)
    ):
        rng = _generator(trial.seed, _KEY_SUBJECT, i_subject, 1)
        score = rng.normal(31, 4)
        for i_session, session in enumerate(trial.sessions):
            drop = (14.0 if group == trial.groups[0] else 5.0) * (i_session > 0)
            value = int(np.clip(round(score - drop + rng.normal(0, 3)), 0, 60))
            rows.append((subject, f"ses-{session}", value))
    return pd.DataFrame(rows, columns=["participant_id", "session_id", "madrs"])


def _factor(trial: _Trial, i_subject: int, i_session: int) -> npt.NDArray[np.float64]:
    """Return the Cholesky factor (node, node) of one subject's connectome at one visit."""
    correlation = vary_connectome(
        trial.correlation,
        subject=_generator(trial.seed, _KEY_SUBJECT, i_subject, 0),
        session=_generator(trial.seed, _KEY_SESSION, i_subject, i_session),
    )
    treated = trial.participants["group"].iloc[i_subject] == trial.groups[0]
    if treated and i_session == len(trial.sessions) - 1:
        correlation = apply_effects(correlation, trial.effects)
    return factor_covariance(correlation)


def _check_effects(trial: _Trial) -> None:
    """Refuse effects that are impossible in any subject before a byte is written."""
    for i_subject in range(len(trial.participants)):
        _factor(trial, i_subject, len(trial.sessions) - 1)


def _simulate(trial: _Trial, run: _Run) -> Recording:
    calm = _generator(trial.seed, _KEY_SUBJECT, run.i_subject, 2).lognormal(0.0, 0.35)
    spoilt = (run.i_subject, run.i_session, run.i_run) in trial.high_motion
    return record(
        trial.brain,
        _factor(trial, run.i_subject, run.i_session),
        n_time=trial.n_time,
        t_r=trial.t_r,
        motion_level=_HIGH_MOTION if spoilt else float(calm),
        artefact=trial.motion_artefact,
        rng=_generator(trial.seed, _KEY_RUN, run.i_subject, run.i_session, run.i_run),
    )


def _write_run(trial: _Trial, run: _Run) -> None:
    recording = _simulate(trial, run)
    subject = str(trial.participants["participant_id"].iloc[run.i_subject])
    session = f"ses-{trial.sessions[run.i_session]}"
    if trial.layout == "hcp":
        _write_hcp_run(trial, run, recording)
        return
    folder = trial.path / subject / session / "func"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{subject}_{session}_task-{TASK}" + (f"_run-{run.i_run + 1}" if trial.n_runs > 1 else "")
    _write_table(folder / f"{stem}_desc-confounds_timeseries.tsv", recording.confounds)
    sidecar: dict[str, Any] = {"RepetitionTime": trial.t_r, "TaskName": TASK}
    if trial.layout == "tables":
        name = f"{stem}_space-{SPACE}_atlas-{ATLAS}_stat-mean_timeseries"
        series = pd.DataFrame(recording.bold[: len(trial.brain.nodes)].T, columns=trial.brain.nodes["name"])
        _write_table(folder / f"{name}.tsv", series)
        _write_json(folder / f"{name}.json", sidecar)
        return

    name = f"{stem}_space-{SPACE}_desc-preproc_bold"
    stored = np.rint(recording.bold / np.float32(_SLOPE)).astype(np.int16)
    _write_image(
        folder / f"{name}.nii.gz", trial.brain.volume(stored), affine=trial.brain.affine, slope=_SLOPE, t_r=trial.t_r
    )
    _write_json(folder / f"{name}.json", {**sidecar, "SkullStripped": False})
    mask = trial.brain.volume(np.ones(len(trial.brain.parcel), dtype=np.uint8))
    _write_image(folder / f"{stem}_space-{SPACE}_desc-brain_mask.nii.gz", mask, affine=trial.brain.affine)


def _write_hcp_run(trial: _Trial, run: _Run, recording: Recording) -> None:
    """Write a dtseries and its motion: millimetres, degrees, and the backward differences of both."""
    subject = str(trial.participants["participant_id"].iloc[run.i_subject]).removeprefix("sub-")
    name = f"rfMRI_REST{run.i_run // 2 + 1}_{('AP', 'PA')[run.i_run % 2]}"
    folder = trial.path / f"{subject}_{trial.sessions[run.i_session]}_MR" / "MNINonLinear" / "Results" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_dtseries(folder / f"{name}_Atlas_MSMAll.dtseries.nii", recording.bold, trial.sheet, t_r=trial.t_r)
    motion = recording.confounds[list(MOTION)].to_numpy() * ([1.0] * 3 + [180 / np.pi] * 3)
    both = np.hstack([motion, np.diff(motion, axis=0, prepend=motion[:1])])
    lines = ("  ".join(f"{value:.6f}" for value in row) for row in both.tolist())
    (folder / "Movement_Regressors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _space_of(layout: Layout) -> str:
    return "fsLR" if layout == "hcp" else SPACE


def _atlas_stem(layout: Layout) -> str:
    return f"atlas/space-{_space_of(layout)}_atlas-{ATLAS}_dseg"


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _for_each(function: Callable[[_Run], None], runs: Iterable[_Run], *, max_workers: int) -> None:
    if max_workers == 1:
        for run in runs:
            function(run)
        return
    with ThreadPoolExecutor(max_workers) as pool:
        list(pool.map(function, runs))


def _write_image(
    path: Path,
    data: npt.NDArray[Any],
    *,
    affine: npt.NDArray[np.float64],
    slope: float = 1.0,
    t_r: float | None = None,
) -> None:
    """Write a NIfTI-1 file whose bytes depend on the data alone: no time and no name in the gzip header."""
    header: Any = nib.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_qform(affine, code="mni")
    header.set_sform(affine, code="mni")
    header.set_slope_inter(slope, 0.0)
    header.set_xyzt_units("mm", "sec")
    if t_r is not None:
        header["pixdim"][4] = t_r
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    raw = header.binaryblock + b"\0\0\0\0" + data.tobytes(order="F")
    path.write_bytes(igzip.compress(raw, 1, mtime=0))


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a TSV as fMRIPrep does: n/a where a value is missing."""
    lines = ["\t".join(map(str, table.columns))]
    columns = [
        [f"{value:.8g}" if value == value else "n/a" for value in table[name].tolist()]  # noqa: PLR0124 - NaN
        if table[name].dtype.kind == "f"
        else [str(value) for value in table[name].tolist()]
        for name in table.columns
    ]
    lines += ["\t".join(row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
