"""The shell: exit codes, what it prints, and that no bad study gets past it as a traceback or as half a store."""

import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from kconn import cli
from kconn.io import store
from kconn.io.storage import free_bytes
from tests.small_disk import grow, small_disk
from tests.small_study import ATLAS, run_file, small_study
from tests.warm_shell import ROOT, count_kept

SIDECAR, BOLD, MASK = "desc-preproc_bold.json", "desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz"
CONFOUNDS = "desc-confounds_timeseries.tsv"


def run_here(capsys, *arguments):
    """Run a command in this process; return its exit code, stdout and stderr."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    written = capsys.readouterr()
    assert "Traceback" not in written.out + written.err
    return code, written.out, written.err


# What is done to the folder of a good study; the place of the error is `where`.


def edit_header(path, **fields):
    """Overwrite fields of a compressed NIfTI header: (offset, struct format, value)."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    offsets = {"pixdim4": (92, "<f"), "xyzt_units": (123, "<B"), "srow_x": (280, "<4f"), "dim4": (48, "<h")}
    for name, value in fields.items():
        offset, form = offsets[name]
        struct.pack_into(form, raw, offset, *np.atleast_1d(value).tolist())
    path.write_bytes(gzip.compress(bytes(raw), mtime=0))


def bold_header(*, keep_sidecar=True, **fields):
    def edit(folder):
        edit_header(run_file(folder, "02", BOLD), **fields)
        if not keep_sidecar:
            run_file(folder, "02", SIDECAR).unlink()

    return edit


def cut(folder):
    path = run_file(folder, "02", BOLD)
    path.write_bytes(path.read_bytes()[:-200])


def flip(folder):
    path = run_file(folder, "02", BOLD)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def not_a_number(folder):
    path = run_file(folder, "02", BOLD)
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float32)
    data[4, 4, 4, 7] = np.nan
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    nib.Nifti1Image(data, None, header).to_filename(path)


def sidecar(content):
    return lambda folder: run_file(folder, "02", SIDECAR).write_text(content)


def rewrite_image(name, change):
    """Write an image again with `change(data, affine)`."""

    def rewrite(folder):
        path = run_file(folder, "02", MASK) if name == "mask" else folder / ATLAS
        image = nib.load(path)
        data, affine = change(np.asarray(image.dataobj), image.affine.copy())
        nib.Nifti1Image(data, affine, dtype=data.dtype).to_filename(path)

    return rewrite


def shifted(data, affine):
    affine[0, 3] += 7.0
    return data, affine


def of_labels(data, affine):
    data[tuple(np.argwhere(data)[0])] = 3
    return data, affine


def a_node_per_voxel(data, affine):
    return np.arange(1, data.size + 1, dtype=np.int16).reshape(data.shape), affine


def edit_table(name, change):
    """Write a table again with `change(frame)`."""

    def rewrite(folder):
        path = run_file(folder, "02", CONFOUNDS) if name == "confounds" else folder / "derivatives" / name
        table = change(pd.read_csv(path, sep="\t", na_values="n/a"))
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")

    return rewrite


def without(path):
    def remove(folder):
        target = path(folder) if callable(path) else folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def case_variant(folder):
    good = folder / "derivatives" / "sub-02"
    for path in [path for path in good.rglob("*") if path.is_file()]:
        copy = folder / "derivatives" / path.relative_to(folder / "derivatives").as_posix().replace("sub-02", "sub-O2")
        twin = copy.with_name(copy.name.replace("sub-O2", "sub-o2"))
        for target in (
            copy,
            folder / "derivatives" / "sub-o2" / copy.relative_to(folder / "derivatives/sub-O2").parent / twin.name,
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def newer_store(folder):
    store.create_store(folder / "study.zarr")
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"schema_version": 99}}
    (folder / "study.zarr" / "zarr.json").write_text(json.dumps(content))


def groups(**changes):
    return {"contrasts": {"groups": {"test": "two-sample", "formula": "group", "effect": "group", **changes}}}


def covariate(**changes):
    return {"contrasts": {"groups": {"test": "covariate", "formula": "age", "effect": "age", **changes}}}


ONE_SAMPLE = {"groups": None, "mean": {"test": "one-sample"}}
ALL_TABLES = {"layout": "tables", "pattern": "sub-{subject}.tsv", "t_r": 2.0}

#: name -> (tables of the study file, what is done to its folder, code, what stands in the message)
BAD_STUDIES = {
    # the study file
    "unknown key": ({"denoise": {"hihg_pass": 0.01}}, None, "E-STUDY-KEY", "write 'high_pass'"),
    "unknown table": ({"denoising": {}}, None, "E-STUDY-KEY", "write 'denoise'"),
    "key of another table": ({"study": {"t_r": 2.0}}, None, "E-STUDY-KEY", "study.t_r"),
    "wrong type": ({"permutation": {"n_perm": "many"}}, None, "E-STUDY-VALUE", "permutation.n_perm"),
    "orientation missing": ({"inputs": ALL_TABLES}, None, "E-STUDY-VALUE", "orientation"),
    "two sources of nodes": (
        {"nodes": {"sim": {"atlas": ATLAS, "columns": "all"}}},
        None,
        "E-STUDY-VALUE",
        "exactly one of",
    ),
    "spheres without size": ({"nodes": {"sim": {"spheres": [["a", 0, 0, 0]]}}}, None, "E-STUDY-VALUE", "radius_mm"),
    "two-sample without effect": (groups(effect=None), None, "E-STUDY-VALUE", "effect"),
    "no TOML": ({}, lambda folder: (folder / "study.toml").write_text("[study\n"), "E-STUDY-READ", "study.toml"),
    "no study file": ({}, without("study.toml"), "E-STUDY-READ", "study.toml"),
    # files
    "no folder": ({"inputs": {"root": "nowhere"}}, None, "E-FILE-MISSING", "inputs.root"),
    "unknown task": ({"inputs": {"task": "nback"}}, None, "E-NO-RUNS", "nback"),
    "atlas missing": ({}, without(ATLAS), "E-FILE-MISSING", "nodes.sim"),
    "participants missing": ({}, without("derivatives/participants.tsv"), "E-FILE-MISSING", "participants"),
    "mask missing": ({}, without(lambda folder: run_file(folder, "02", MASK)), "E-FILE-MISSING", "sub-02"),
    "confounds missing": ({}, without(lambda folder: run_file(folder, "02", CONFOUNDS)), "E-FILE-MISSING", "sub-02"),
    # images
    "cut gzip": ({}, cut, "E-GZIP", "sub-02"),
    "flipped bit": ({}, flip, "E-GZIP", "sub-02"),
    "more frames than stored": ({}, bold_header(dim4=99), "E-NIFTI-SIZE", "sub-02"),
    "a value that is no number": ({}, not_a_number, "E-NIFTI-NAN", "sub-02"),
    "no unit of TR": ({}, bold_header(xyzt_units=2, keep_sidecar=False), "E-TR-UNITS", "sub-02"),
    "TR of 800 s": ({}, bold_header(pixdim4=800.0, keep_sidecar=False), "E-TR-RANGE", "sub-02"),
    "TR and sidecar differ": ({}, sidecar('{"RepetitionTime": 2.0}'), "E-TR-MISMATCH", "sub-02"),
    "sidecar is no JSON": ({}, sidecar("RepetitionTime: 2"), "E-SIDECAR", "sub-02"),
    "left and right swapped": ({}, bold_header(srow_x=[-20.0, 0, 0, 80.0]), "E-ORIENT", "sub-02"),
    "mask on another grid": ({}, rewrite_image("mask", lambda data, a: (data[1:], a)), "E-GRID", "sub-02"),
    "mask shifted": ({}, rewrite_image("mask", shifted), "E-GRID", "sub-02"),
    "mask empty": ({}, rewrite_image("mask", lambda data, a: (data * 0, a)), "E-MASK-EMPTY", "sub-02"),
    "mask of labels": ({}, rewrite_image("mask", of_labels), "E-MASK", "sub-02"),
    "atlas on another grid": ({}, rewrite_image("atlas", lambda data, a: (data[:, 1:], a)), "E-GRID", "nodes.sim"),
    "atlas shifted": ({}, rewrite_image("atlas", shifted), "E-GRID", "nodes.sim"),
    "atlas empty": ({}, rewrite_image("atlas", lambda data, a: (data * 0, a)), "E-ATLAS", "nodes.sim"),
    # confounds and denoising
    "confound rows": ({}, edit_table("confounds", lambda table: table[:-1]), "E-CONFOUND-ROWS", "sub-02"),
    "confound column": ({"denoise": {"confounds": ["trans_x", "csf_wm"]}}, None, "E-CONFOUND-COLUMN", "csf_wm"),
    "confound column of a run": (
        {},
        edit_table("confounds", lambda table: table.drop(columns="rot_z")),
        "E-CONFOUND-COLUMN",
        "sub-02",
    ),
    "confound is n/a": (
        {},
        edit_table("confounds", lambda table: table.assign(rot_z=table["rot_z"].where(table.index != 9))),
        "E-CONFOUND-NAN",
        "rot_z",
    ),
    "band above Nyquist": ({"denoise": {"low_pass": 0.7}}, None, "E-BAND", "0.7"),
    "band upside down": ({"denoise": {"high_pass": 0.2, "low_pass": 0.1}}, None, "E-BAND", "0.2"),
    "everything censored": (
        {"denoise": {"fd_threshold": 1e-6, "min_segment": 2}},
        None,
        "E-NO-FRAMES",
        "sub-01/ses-pre/run-1",
    ),
    "everything too short": ({"quality": {"min_frames": 500}}, None, "E-NO-RUNS", "every run was left out"),
    "partial of too many nodes": (
        {"connectivity": {"kinds": ["partial"]}},
        rewrite_image("atlas", a_node_per_voxel),
        "E-NETMAT-RANK",
        "nodes.sim",
    ),
    # people and designs
    "no row for a subject": (
        {},
        edit_table("participants.tsv", lambda table: table[table.participant_id != "sub-02"]),
        "E-ID-MISSING",
        "02",
    ),
    "two rows for a subject": (
        {},
        edit_table("participants.tsv", lambda table: pd.concat([table, table[:1]])),
        "E-ID-DUPLICATE",
        "'01'",
    ),
    "subjects that differ in case": ({}, case_variant, "E-ID-DUPLICATE", "sub-o2"),
    "a label that is no label": (
        {},
        edit_table("participants.tsv", lambda table: table.replace("sub-02", "sub-../etc")),
        "E-ID",
        "participants",
    ),
    "covariate missing": (
        covariate(),
        edit_table("participants.tsv", lambda table: table.assign(age=[30, 31, None, 33])),
        "E-COV-NAN",
        "sub-03",
    ),
    "group missing": (
        {},
        edit_table("participants.tsv", lambda table: table.assign(group=["a", None, "b", "a"])),
        "E-COV-NAN",
        "sub-02",
    ),
    "rank-deficient": (
        covariate(formula="age + twin"),
        edit_table("participants.tsv", lambda table: table.assign(age=[20, 30, 50, 70], twin=[41, 61, 101, 141])),
        "E-DESIGN-RANK",
        "contrasts.groups",
    ),
    "one level": (groups(where={"group": "ketamine"}), None, "E-DESIGN-LEVELS", "ketamine"),
    "unknown level": (groups(levels=["placebo", "sham"]), None, "E-DESIGN-LEVELS", "sham"),
    "three levels": (
        {},
        edit_table("participants.tsv", lambda table: table.assign(group=["a", "b", "c", "a"])),
        "E-DESIGN-LEVELS",
        "a, b, c",
    ),
    "unknown session": (groups(sessions=["week6"]), None, "E-ID-MISSING", "week6"),
    "unknown column": (covariate(formula="weight", effect="weight"), None, "E-DESIGN-FORMULA", "weight"),
    "unknown column of a selection": (groups(where={"arm": 1}), None, "E-DESIGN-FORMULA", "arm"),
    "nobody included": ({"inputs": {"include": {"group": "sham"}}}, None, "E-NO-RUNS", "inputs.include"),
    "nobody selected": (groups(where={"sex": "x"}), None, "E-TOO-FEW", "contrasts.groups"),
    "the same level twice": (groups(levels=["placebo", "placebo"]), None, "E-STUDY-VALUE", "levels"),
    "session without a row": (
        covariate(formula="madrs", effect="madrs", sessions=["pre"])
        | {"inputs": {"sessions": "derivatives/sessions.tsv"}},
        edit_table("sessions.tsv", lambda table: table.replace("ses-pre", "ses-post")),
        "E-COV-NAN",
        "madrs",
    ),
    "unknown column of include": ({"inputs": {"include": {"arm": 1}}}, None, "E-STUDY-VALUE", "arm"),
    "formula that is none": (covariate(formula="age + + ~ )"), None, "E-DESIGN-FORMULA", "contrasts.groups"),
    "formula with two sides": (covariate(formula="group ~ age"), None, "E-DESIGN-FORMULA", "contrasts.groups"),
    "formula in parts": (covariate(formula="age | group"), None, "E-DESIGN-FORMULA", "contrasts.groups"),
    "formula that runs code": (
        covariate(formula="age + {__import__('os').getpid()}"),
        None,
        "E-DESIGN-FORMULA",
        "contrasts.groups",
    ),
    "formula without the tested column": (covariate(formula="sex"), None, "E-DESIGN-FORMULA", "age"),
    "too few subjects": (covariate(formula="age + group + sex + age:sex"), None, "E-TOO-FEW", "contrasts.groups"),
    "logarithm of zero": (
        covariate(formula="age + np.log(age - age)"),
        None,
        "E-COV-NAN",
        "contrasts.groups",
    ),
    # the store
    "store of a later version": ({}, newer_store, "E-STORE-SCHEMA", "99"),
    "store is a file": ({}, lambda folder: (folder / "study.zarr").write_text("x"), "E-STUDY-VALUE", "study.store"),
    "store is another folder": ({"study": {"store": "derivatives"}}, None, "E-FILE-EXISTS", "derivatives"),
    "report into nowhere": ({"study": {"report": "study.toml/report.html"}}, None, "E-STUDY-VALUE", "report"),
}


#: These are found out while computing: fewer subjects do, and the first for every day.
COMPUTED = (
    "flipped bit",
    "confound is n/a",
    "a value that is no number",
    "everything too short",
)


def bad_study(name, folder):
    """Write a bad study; return its file, the code of its error and words of the message."""
    changes, damage, code, words = BAD_STUDIES[name]
    if name in COMPUTED:
        study = small_study(folder, n_subjects_per_group=1, **{"contrasts": ONE_SAMPLE, **changes})
    else:
        study = small_study(folder, **changes)
    if damage is not None:
        damage(folder)
    return study, code, words


@pytest.mark.faults("bad input")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in COMPUTED[1:] else ()) for name in BAD_STUDIES]
)
def test_run__refuses_a_bad_study(name, tmp_path, capsys, count):
    study, code, words = bad_study(name, tmp_path)
    exit_code, out, err = run_here(capsys, "run", study, "--workers", "0")
    assert exit_code == cli.EXIT_ERROR, out
    first, rule, fix = err.splitlines()[:3]
    assert first.startswith(code + " "), err
    assert words in err, err
    assert rule.startswith("  rule: "), err
    assert fix.startswith("  fix:  "), err
    assert str(tmp_path) not in err
    if (tmp_path / "study.zarr" / "zarr.json").exists() and code != "E-STORE-SCHEMA":
        assert store.verify(tmp_path / "study.zarr")[1] == []
    assert not (tmp_path / "report.html").exists()
    count(refused=1)


@pytest.mark.faults("bad input")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["unknown key", "cut gzip", "atlas shifted", "flipped bit", "everything censored"])
def test_flow__refuses_a_bad_study(name, tmp_path):
    study, code, words = bad_study(name, tmp_path)
    command = [sys.executable, "-m", "flows.study", str(study), "--workers", "0"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == cli.EXIT_ERROR
    assert "Traceback" not in ended.stdout + ended.stderr
    assert f"\n{code} " in f"\n{ended.stderr}"
    assert words in ended.stderr
    assert "\n  rule: " in ended.stderr
    if (tmp_path / "study.zarr" / "zarr.json").exists():
        assert store.verify(tmp_path / "study.zarr")[1] == []


def test_check__lists_everything_that_is_wrong(tmp_path, capsys):
    study = small_study(
        tmp_path,
        contrasts={
            "groups": {"test": "two-sample", "formula": "group", "effect": "group", "sessions": ["week6"]},
            "weight": {"test": "covariate", "formula": "weight", "effect": "weight"},
        },
    )
    edit_header(run_file(tmp_path, "02", BOLD), srow_x=[-20.0, 0, 0, 80.0])
    run_file(tmp_path, "03", MASK).unlink()
    rewrite_image("atlas", shifted)(tmp_path)
    code, out, err = run_here(capsys, "check", study)
    found = [line.split("]")[0] + "]" for line in err.splitlines() if line.startswith("E-")]
    assert code == cli.EXIT_ERROR
    assert found == [
        "E-ORIENT [sub-02/ses-pre/run-1]",
        "E-FILE-MISSING [sub-03/ses-pre/run-1]",
        "E-GRID [nodes.sim, sub-01/ses-pre/run-1]",
        "E-ID-MISSING [contrasts.groups]",
        "E-DESIGN-FORMULA [contrasts.weight]",
    ]
    assert "5 problem(s)" in out
    assert not (tmp_path / "study.zarr").exists()


def test_check__lists_every_finding_in_the_file(tmp_path, capsys):
    study = small_study(tmp_path, denoise={"hihg_pass": 0.01, "low_pass": "no"}, permutation={"n_perm": 1})
    code, out, err = run_here(capsys, "check", study)
    assert code == cli.EXIT_ERROR
    assert [line.split()[0] for line in err.splitlines() if line.startswith("E-")] == [
        "E-STUDY-KEY",
        "E-STUDY-VALUE",
        "E-STUDY-VALUE",
    ]
    assert "denoise.low_pass: " in err
    assert "permutation.n_perm: " in err
    assert "3 problem(s)" in out


def test_check__passes_a_good_study_and_names_who_is_left_out(tmp_path, capsys):
    study = small_study(tmp_path, contrasts=ONE_SAMPLE)
    shutil.rmtree(tmp_path / "derivatives" / "sub-04")
    assert run_here(capsys, "check", study) == (
        0,
        "3 runs of 3 subjects, 1 node set(s), 1 contrast(s)\nleft out sub-04: no run was found\nready to run\n",
        "",
    )


def test_shell__walks_a_study_from_plan_to_clean(tmp_path, capsys):
    study = small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE)
    root = tmp_path / "study.zarr"
    code, out, _ = run_here(capsys, "plan", study, "--json")
    steps = json.loads(out)["steps"]
    assert code == 0
    assert [step["stage"] for step in steps].count("ingest") == 2
    assert not any(step["published"] for step in steps)
    assert not root.exists()
    assert "14 steps, 14 to do" in run_here(capsys, "plan", study)[1]

    code, out, _ = run_here(capsys, "run", study, "--workers", "0")
    assert (code, count_kept(out)) == (0, 0)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert all(step["published"] for step in json.loads(run_here(capsys, "plan", study, "--json")[1])["steps"])
    assert "test" in run_here(capsys, "status", study)[1]
    digest = store.digest_store(root)
    code, out, _ = run_here(capsys, "verify", study)
    assert (code, out) == (0, f"14 published groups, 0 damaged; sha256 of all: {digest}\n")

    chunk = next((root / "sub-01/ses-pre/run-1/denoise").rglob("denoised/c/0/0"))
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 2] ^= 1
    chunk.write_bytes(bytes(raw))
    code, out, _ = run_here(capsys, "verify", root)
    assert code == cli.EXIT_ERROR
    assert "E-STORE-CORRUPT [sub-01/ses-pre/run-1:denoise] denoised/c/0/0 does not match its checksum" in out

    meta = root / "sub-02/ses-pre/run-1/denoise/zarr.json"
    meta.write_text(meta.read_text().replace("current", "currant"))
    next((root / "sub-02/ses-pre/run-1/sim/nodes").rglob("timeseries/c/0/0")).unlink()
    chunk.unlink()
    code, out, _ = run_here(capsys, "run", study, "--workers", "0")
    assert (code, count_kept(out)) == (0, 11)
    assert run_here(capsys, "verify", study)[0] == 0
    assert store.digest_store(root) == digest

    address = store.find_published(root)[0]
    whole = store.group_path(root, address, store.current_key(root, address))
    shutil.copytree(whole, whole.with_name("0" * 32))  # what a kill before the seal leaves
    assert run_here(capsys, "clean", study)[:2] == (0, "removed 1 superseded groups\n")
    assert store.digest_store(root) == digest


@pytest.mark.faults("rot")
def test_run__refuses_a_store_that_another_run_holds(tmp_path, capsys):
    study = small_study(tmp_path)
    with store.locked(tmp_path / "study.zarr"):
        code, _, err = run_here(capsys, "run", study, "--workers", "0")
        assert code == cli.EXIT_ERROR
        assert err.startswith("E-STORE-LOCKED ")
        assert run_here(capsys, "check", study)[0] == 0
        assert run_here(capsys, "status", study)[0] == 0
    assert not (tmp_path / "study.zarr").exists()


@pytest.mark.faults("workers")
@pytest.mark.slow
def test_run__says_when_no_scheduler_answers(tmp_path, capsys):
    study = small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE)
    code, _, err = run_here(capsys, "run", study, "--scheduler", "tcp//127.0.0.1:9")
    assert code == cli.EXIT_ERROR
    assert err.startswith("E-WORKER no scheduler answers at tcp//127.0.0.1:9")


@pytest.mark.faults("kill")
def test_run__interrupted_says_so_and_leaves_a_whole_store(shell, tmp_path):
    study = small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE)
    ended = shell("run", study, "--workers", "0", signal_after=0.5, signal_number=signal.SIGINT)
    assert ended.code == cli.EXIT_INTERRUPTED
    assert ended.err == "interrupted: what was finished is kept; run the same command again to go on\n"
    assert store.verify(tmp_path / "study.zarr")[1] == []


@pytest.mark.faults("kill")
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4.0, 7.0, 10.0])
@pytest.mark.usefixtures("terminal")
def test_run__interrupted_on_workers_says_so_and_goes_on(tmp_path, seconds):
    """Ctrl-C in a terminal reaches the workers as well."""
    study = small_study(tmp_path, sessions=("pre", "post"))
    command = [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out + err
    assert process.returncode in {cli.EXIT_INTERRUPTED, cli.EXIT_DONE}
    if process.returncode == cli.EXIT_INTERRUPTED:
        assert "interrupted: what was finished is kept" in err
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert store.verify(tmp_path / "study.zarr")[1] == []


@pytest.mark.faults("disk full")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_run__says_when_the_disk_is_full(tmp_path, count, record_property, workers):
    with small_disk(tmp_path / "disk", "200k") as disk:
        study = small_study(tmp_path, contrasts=ONE_SAMPLE, study={"store": "disk/study.zarr"})
        command = [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", workers]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert refused.returncode == cli.EXIT_ERROR
        assert refused.stderr.startswith("E-DISK the plan may write "), refused.stderr
        grow(disk, "700k")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        full = None
        while process.poll() is None:
            if full is None and free_bytes(disk) == 0:
                full = time.monotonic()
            time.sleep(0.01)
        seconds = time.monotonic() - full
        out, err = process.communicate()
        assert process.returncode == cli.EXIT_ERROR
        assert "Traceback" not in out + err
        assert err.startswith("E-DISK "), err
        assert seconds < 10
        assert store.verify(disk / "study.zarr")[1] == []
        n_sealed = len(store.find_published(disk / "study.zarr"))
        grow(disk, "60m")
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (ended.returncode, count_kept(ended.stdout)) == (0, n_sealed)
    record_property(f"s from the full disk to the end, {workers} workers", round(seconds, 1))
    count(disks_filled=1, hangs=0, finished_steps=n_sealed, partial_groups_visible=0, finished_steps_made_again=0)


@pytest.mark.faults("bad input")
def test_main__an_error_that_nobody_foresaw_is_kept_in_a_log(tmp_path, capsys, monkeypatch):
    study = small_study(tmp_path)
    monkeypatch.setattr("kconn.study.survey.survey_study", lambda _: 1 / 0)
    code, _, err = run_here(capsys, "check", study)
    assert code == cli.EXIT_ERROR
    assert err.startswith("E-INTERNAL kconn failed with ZeroDivisionError\n")
    assert "ZeroDivisionError" in (tmp_path / "study.log").read_text()


@pytest.mark.parametrize(
    "arguments", [[], ["analyse"], ["run"], ["run", "x", "--workers", "1", "--scheduler", "y"], ["export", "x"]]
)
def test_main__wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == cli.EXIT_USAGE
    assert capsys.readouterr().err.startswith("usage: kconn")


def test_main__help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from kconn import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'xarray', 'dask', 'distributed', 'prefect', 'numpy', 'pandas', 'zarr', 'nibabel', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for command in ("init", "check", "plan", "run", "status", "verify", "report", "export", "clean", "simulate"):
        assert f"\n    {command} " in out


@pytest.mark.slow
def test_main__a_closed_pipe_is_no_error(tmp_path):
    study = small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE)
    script = f"{sys.executable} -m kconn.cli plan {study} --json | head -c 10"
    ended = subprocess.run(["/bin/sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (len(ended.stdout), ended.stderr) == (10, "")
