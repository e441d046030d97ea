"""Markers planted where files name people, and looked for in everything that kconn writes."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from kconn import stages
from kconn.io import cubes, store
from kconn.study.workbench import prepare, writing
from tests import cifti_files
from tests.small_study import ATLAS, STEM, run_file, small_study, write_study
from tests.warm_shell import ROOT

pytestmark = pytest.mark.faults("patients")

BOLD, MASK, TABLE = "desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz", "desc-confounds_timeseries.tsv"
ONE_SAMPLE = {"groups": None, "mean": {"test": "one-sample"}}


class Markers:
    """Makes markers that no file holds by chance, and remembers them."""

    def __init__(self):
        self.planted = {}

    def __call__(self, place):
        return self.planted.setdefault(place, f"Zq{len(self.planted):02d}Marker")

    def found_in(self, text):
        return sorted(place for place, marker in self.planted.items() if marker.lower() in text.lower())


def mark_image(path, mark, name):
    """Plant markers in the text fields of an image, in extensions, and in the header of its gzip."""
    image = nib.load(path)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = mark(f"{name}: {field}").encode()
    for code in (4, 6, 44):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, mark(f"{name}: extension {code}").encode()))
    raw = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_bytes()
    file_name, comment = mark(f"{name}: gzip name").encode(), mark(f"{name}: gzip comment").encode()
    packed = gzip.compress(raw, mtime=0)
    flags = bytes([packed[3] | 8 | 16])
    path.write_bytes(packed[:3] + flags + packed[4:10] + file_name + b"\0" + comment + b"\0" + packed[10:])


def plant(folder, mark):
    """Plant markers in and around the inputs of a small study."""
    bold = run_file(folder, "01", BOLD)
    mark_image(bold, mark, "bold")
    mark_image(run_file(folder, "01", MASK), mark, "mask")
    mark_image(folder / ATLAS, mark, "atlas")
    sidecar = {key: mark(f"sidecar: {key}") for key in ("PatientName", "InstitutionName", "DeviceSerialNumber")}
    run_file(folder, "01", BOLD.replace(".nii.gz", ".json")).write_text(json.dumps({**sidecar, "RepetitionTime": 0.8}))
    table = run_file(folder, "01", TABLE)
    frame = pd.read_csv(table, sep="\t")
    frame[mark("confounds: column")] = 1.5
    frame.to_csv(table, sep="\t", index=False, na_rep="n/a")
    table.with_suffix(".json").write_text(json.dumps({"trans_x": {"Note": mark("confounds: sidecar")}}))
    people = folder / "derivatives/participants.tsv"
    frame = pd.read_csv(people, sep="\t")
    frame[mark("participants: column")] = mark("participants: value")
    frame.to_csv(people, sep="\t", index=False)
    for name in ("participants", "dataset_description"):
        (folder / f"derivatives/{name}.json").write_text(json.dumps({"Name": mark(f"{name}.json")}))
    for path in sorted((folder / "derivatives").rglob("sub-01_*")):
        path.rename(path.with_name(path.name.replace(f"_{STEM}", f"_{STEM}_res-{mark('file name')}")))
    (folder / "derivatives").rename(folder / mark("folder"))
    (folder / mark("folder") / "participants.tsv").rename(folder / mark("folder") / f"{mark('table name')}.tsv")
    atlas = folder / mark("folder") / "atlas" / f"{mark('atlas name')}.nii.gz"
    (folder / ATLAS.replace("derivatives", mark("folder"))).rename(atlas)


def write_marked_study(folder, mark):
    """Write a study whose inputs are marked; the paths that the user states stand in the study file alone."""
    small_study(folder, n_subjects_per_group=1)
    plant(folder, mark)
    for path in sorted((folder / mark("folder")).rglob("sub-02_*")):  # one resolution for all
        path.rename(path.with_name(path.name.replace(f"_{STEM}", f"_{STEM}_res-{mark('file name')}")))
    root = mark("folder")
    return write_study(
        folder,
        contrasts=ONE_SAMPLE,
        inputs={"root": root, "participants": f"{root}/{mark('table name')}.tsv"},
        nodes={"sim": {"atlas": f"{root}/atlas/{mark('atlas name')}.nii.gz"}},
    )


def texts_of(root):
    """Return all that a store says: bytes of its files, and the text behind its compression."""
    yield from written_below(root)
    for address in store.find_published(root):
        ds = cubes.open_group(root, address).load()
        yield repr(ds.attrs) + repr(list(ds.variables))
        for variable in ds.variables.values():
            yield repr(variable.attrs) + (repr(variable.to_numpy().tolist()) if variable.dtype.kind in "OU" else "")


def written_below(folder):
    for path in sorted(folder.rglob("*")):
        yield path.relative_to(folder).as_posix()
        if path.is_file():
            yield path.read_bytes().decode("latin-1")


def look(mark, texts, where):
    found = sorted({place for text in texts for place in mark.found_in(text)})
    assert found == [], where


def test_run__writes_no_marker(shell, tmp_path, count):
    mark = Markers()
    study = write_marked_study(tmp_path, mark)
    ended = shell("run", study, "--workers", "0")
    assert ended.code == 0, ended.err
    look(mark, texts_of(tmp_path / "study.zarr"), "store")
    look(mark, written_below(tmp_path / ".study.zarr.work"), "work folder")
    look(mark, [ended.out, ended.err], "terminal")
    # The report prints the study file, in which the user states paths; nothing else of the markers is there.
    stated = {mark("folder"), mark("table name"), mark("atlas name")}
    report = re.sub("|".join(stated), "", (tmp_path / "report.html").read_text())
    look(mark, [report], "report")
    for command in ("verify", "status"):
        ended = shell(command, study)
        look(mark, [ended.out, ended.err], command)
    assert len(mark.planted) >= 20
    count(planted=len(mark.planted), found=0)


def test_run__an_error_names_no_marker(shell, tmp_path, count):
    mark = Markers()
    study = write_marked_study(tmp_path, mark)
    path = next((tmp_path / mark("folder")).rglob(f"sub-01_*{BOLD}"))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    ended = shell("run", study, "--workers", "0")
    assert "E-GZIP" in ended.err
    look(mark, [ended.out, ended.err, *written_below(tmp_path / ".study.zarr.work")], "error")
    count(errors_read=1, found=0)


def test_ingest__of_grayordinates_keeps_nothing_of_their_metadata(shell, tmp_path, count):
    mark = Markers()
    rng = np.random.default_rng(0)
    axes = cifti_files.series_axis(60), cifti_files.brain_models()
    image = nib.Cifti2Image(rng.normal(size=(60, len(axes[1]))).astype(np.float32) + 100, axes)
    image.nifti_header.set_intent("ConnDenseSeries")
    image.nifti_header.set_xyzt_units("mm", "sec")
    image.nifti_header["descrip"] = mark("descrip").encode()
    image.header.matrix.metadata = nib.cifti2.Cifti2MetaData({"Provenance": mark("value"), mark("key"): "x"})
    path = tmp_path / "in/sub-01_task-rest_bold.dtseries.nii"
    path.parent.mkdir()
    image.to_filename(path)
    shutil.copy(path, path.with_name(path.name.replace("01", "02")))
    assert mark("value").encode() in path.read_bytes()
    tables = {"layout": "cifti", "root": "in", "pattern": "sub-{subject}_task-rest_bold.dtseries.nii"}
    study = write_study(
        tmp_path,
        inputs={**tables, "participants": None},
        denoise={"confounds": "none"},
        nodes={"sim": {"atlas": "atlas.dlabel.nii"}},
        contrasts=ONE_SAMPLE,
    )
    labels = np.arange(len(axes[1]))[None] % 3
    cifti_files.write(tmp_path / "atlas.dlabel.nii", labels, cifti_files.label_axis({1: "a", 2: "b"}), axes[1])
    ended = shell(study, function=f"{__name__}:ingest_first")
    assert ended.code == 0, ended.err
    look(mark, texts_of(tmp_path / "study.zarr"), "store")
    count(planted=len(mark.planted), found=0)


def ingest_first(arguments):
    """Run the first step of a study; runs in a fork."""
    bench = prepare(arguments[0])
    with writing(bench):
        stages.run_job(bench.bind(bench.plan.steps[0]))


class Keys(SchedulerPlugin):
    """Remembers every key that the scheduler saw, and the groups that its dashboard shows."""

    def __init__(self):
        self.seen = set()

    def transition(self, key, *_, **__):
        self.seen.add(str(key))


@pytest.mark.slow
def test_flow__leaves_no_marker_with_prefect_or_dask(tmp_path, count):
    mark = Markers()
    study = write_marked_study(tmp_path, mark)
    home = tmp_path / "prefect"
    keys = Keys()
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        cluster.scheduler.add_plugin(keys)
        ended = subprocess.run(
            [sys.executable, "-m", "flows.study", str(study), "--scheduler", cluster.scheduler_address],
            cwd=ROOT,
            env={**os.environ, "PREFECT_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
    assert ended.returncode == 0, ended.stderr
    assert keys.seen
    look(mark, keys.seen, "keys")
    look(mark, [ended.stdout, ended.stderr], "logs")
    assert any(path.suffix == ".db" for path in home.rglob("*"))
    look(mark, written_below(home), "Prefect")
    look(mark, texts_of(tmp_path / "study.zarr"), "store")
    count(planted=len(mark.planted), found=0, keys_read=len(keys.seen))
