"""A simulated study of seconds, its study file as tables that a test may change."""

import atexit
import copy
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from kconn.io import store
from kconn.testing import simulate_study

N_TIME, T_R = 80, 0.8
STEM = "space-MNI152NLin2009cAsym"
ATLAS = f"derivatives/atlas/{STEM}_atlas-sim_dseg.nii.gz"

TABLES = {
    "study": {"name": "small"},
    "inputs": {"layout": "fmriprep", "root": "derivatives", "participants": "derivatives/participants.tsv"},
    "denoise": {"confounds": "6P", "high_pass": 0.01, "low_pass": 0.2},
    "quality": {"min_frames": 20, "min_dof": 5},
    "nodes": {"sim": {"atlas": ATLAS}},
    "connectivity": {"kinds": ["corr"]},
    "permutation": {"n_perm": 20, "seed": 3},
    "contrasts": {"groups": {"test": "two-sample", "formula": "group", "effect": "group"}},
}


@cache
def _simulated(sessions, n_subjects_per_group):
    """Simulate once per process."""
    folder = Path(mkdtemp(prefix="kconn-small-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    simulate_study(
        folder,
        n_subjects_per_group=n_subjects_per_group,
        sessions=sessions,
        n_nodes=8,
        n_time=N_TIME,
        t_r=T_R,
        grid_shape=(8, 9, 8),
        n_effect_edges=1,
        n_high_motion_runs=0,
    )
    return folder


#: A simulated run of the HCP pipelines, small enough for a test.
SMALL_HCP = {"n_nodes": 8, "n_time": 100, "t_r": 0.8, "grid_shape": (10, 12, 10), "n_high_motion_runs": 0}
HCP_ATLAS = "derivatives/atlas/space-fsLR_atlas-sim_dseg.dlabel.nii"


@cache
def _simulated_hcp():
    """Simulate two subjects per group in the layout of the HCP pipelines, once per process."""
    folder = Path(mkdtemp(prefix="kconn-hcp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    simulate_study(folder, layout="hcp", n_subjects_per_group=2, sessions=("pre",), n_effect_edges=1, **SMALL_HCP)
    return folder


def copy_hcp_study(folder):
    """Copy the simulated runs of the HCP pipelines to ``folder / "derivatives"``; return the first series."""
    shutil.copytree(_simulated_hcp(), folder / "derivatives")
    return next((folder / "derivatives").glob("01_pre_MR/*/*/*/*.dtseries.nii"))


def small_study(folder, *, sessions=("pre",), n_subjects_per_group=2, **changes):
    """Write the study into ``folder`` and return its study file.

    ``changes`` are tables whose keys are put over those of `TABLES`; None takes a key away.
    """
    folder.mkdir(exist_ok=True)
    shutil.copytree(_simulated(sessions, n_subjects_per_group), folder / "derivatives")
    return write_study(folder, **changes)


def write_study(folder, **changes):
    """Write the study file alone."""
    tables = copy.deepcopy(TABLES)
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table}
    path = folder / "study.toml"
    path.write_text("schema_version = 1\n" + "".join(_toml(name, table) for name, table in tables.items()))
    return path


def _toml(name, table):
    """Return a table as TOML; JSON writes every value that is used here the same way."""
    lines = [f"[{name}]"]
    inner = ""
    for key, value in table.items():
        if value is None:
            continue
        if isinstance(value, dict) and name in {"nodes", "contrasts", "ica"}:
            inner += _toml(f"{name}.{key}", value)
        else:
            lines.append(f"{key} = {_inline(value)}")
    return "\n".join(lines) + "\n" + inner


def _inline(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items()) + " }"
    return f"[{', '.join(map(_inline, value))}]" if isinstance(value, list) else json.dumps(value)


def run_file(folder, subject, ending, session="pre"):
    """Return a file of a run of the simulated study, such as ``desc-preproc_bold.nii.gz``."""
    func = folder / "derivatives" / f"sub-{subject}" / f"ses-{session}" / "func"
    space = "" if "confounds" in ending else f"{STEM}_"
    return func / f"sub-{subject}_ses-{session}_task-rest_{space}{ending}"


def published(root):
    """Return (address, key) -> file -> (inode, time of change) of everything that is published."""
    found = {}
    if not (root / "zarr.json").exists():
        return found
    for address in store.find_published(root):
        key = store.current_key(root, address)
        group = store.group_path(root, address, key)
        found[str(address), key] = {
            path.relative_to(group).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in group.rglob("*")
            if path.is_file()
        }
    return found
