"""Group ICA through a whole study: components of all runs, accepted ones as nodes, incrementally and on any workers."""

import json
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest

from kconn.io import cubes, store
from kconn.io.store import Address
from tests.small_study import published, small_study, write_study
from tests.test_map_stages import write_maps

ICA = {"n_components": 4, "n_start": 3, "n_rows": 40}


def open_step(study, path, step):
    return cubes.open_group(study.parent / "study.zarr", Address(path=path, step=step)).load()


@pytest.fixture(scope="module")
def decomposed(shell, tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("ica") / "study", n_subjects_per_group=3, ica={"group": ICA})
    result = shell("run", study, "--workers", "0")
    assert result.code == 0, result
    return study


def test_run__finds_components_of_all_runs(decomposed):
    components = open_step(decomposed, "ica/group", "ica")
    assert components.sizes["node"] == 4
    assert components.attrs["n_run"] == 6
    assert np.isfinite(components["ica_map"]).all()
    selected = open_step(decomposed, "ica/group", "select")
    assert selected["accepted"].all()


def test_run__rejecting_a_component_keeps_everything_before(decomposed, shell):
    before = published(decomposed.parent / "study.zarr")
    text = decomposed.read_text()
    decomposed.write_text(text.replace("n_start = 3", 'n_start = 3\nreject = { ic002 = "veins" }'))
    result = shell("run", decomposed, "--workers", "0")
    assert result.code == 0, result
    selected = open_step(decomposed, "ica/group", "select")
    assert selected["accepted"].to_numpy().tolist() == [True, False, True, True]
    assert selected["reason"].to_numpy().tolist() == ["", "veins", "", ""]
    after = published(decomposed.parent / "study.zarr")
    changed = {address for address, _ in after.keys() - before.keys()}
    assert {str(address).split(":")[1] for address in changed} <= {"select", "nodes", "netmat", "cohort", "test"}
    decomposed.write_text(text)


def test_run__a_new_run_is_merged_without_reading_the_others_again(shell, tmp_path):
    study = small_study(tmp_path / "study", n_subjects_per_group=3, ica={"group": ICA})
    away = tmp_path / "away"
    subject = max((study.parent / "derivatives").glob("sub-*"))
    subject.rename(away)
    participants = study.parent / "derivatives" / "participants.tsv"
    rows = participants.read_text()
    participants.write_text("".join(line for line in rows.splitlines(keepends=True) if subject.name not in line))
    assert shell("run", study, "--workers", "0").code == 0
    before = published(study.parent / "study.zarr")
    # Without the values of the old runs: whatever reads them again fails.
    gone = list((study.parent / "study.zarr").rglob("denoised/c"))
    assert len(gone) == 5
    for values in gone:
        shutil.rmtree(values)
    away.rename(subject)
    participants.write_text(rows)
    assert shell("run", study, "--workers", "0").code == 0
    after = published(study.parent / "study.zarr")
    new = [str(address) for address, _ in after.keys() - before.keys()]
    assert sum("reduce" in address for address in new) == 1
    assert open_step(study, "ica/group", "ica").attrs["n_run"] == 6


def test_run__same_bits_on_two_workers(decomposed, shell, tmp_path):
    study = small_study(tmp_path / "study", n_subjects_per_group=3, ica={"group": ICA})
    assert shell("run", study, "--workers", "2").code == 0
    root, again = (path.parent / "study.zarr" for path in (decomposed, study))
    assert shell("run", decomposed, "--workers", "0").code == 0
    assert store.digest_store(root) == store.digest_store(again)


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ({**ICA, "reject": {"ic009": "noise"}}, "E-STUDY-VALUE"),
        ({**ICA, "reject": {"nine": "noise"}}, "E-STUDY-VALUE"),
        ({**ICA, "n_components": 0}, "E-STUDY-VALUE"),
        ({**ICA, "templates": "nowhere.nii.gz"}, "E-FILE-MISSING"),
    ],
)
def test_check__refuses_what_cannot_be(table, code, shell, tmp_path):
    study = small_study(tmp_path / "study", ica={"group": table})
    result = shell("check", study)
    assert result.code == 1, result
    assert code in result.out + result.err


def test_run__accepted_components_are_nodes(shell, tmp_path):
    nodes = {"sim": None, "networks": {"ica": "group"}}
    table = {**ICA, "reject": {"ic002": "veins"}}
    study = small_study(tmp_path / "study", n_subjects_per_group=3, ica={"group": table}, nodes=nodes)
    result = shell("run", study, "--workers", "2")
    assert result.code == 0, result
    root = study.parent / "study.zarr"
    components = open_step(study, "ica/group", "ica")
    runs = [address for address in store.find_published(root) if address.step == "nodes"]
    assert len(runs) == 6
    for address in runs:
        series = cubes.open_group(root, address).load()
        assert series["node"].to_numpy().tolist() == ["ic001", "ic003", "ic004"]
        where = address.path.rpartition("/")[0]
        run = open_step(study, where, "denoise")
        ingest = open_step(study, where, "ingest")
        place = {axis: ingest[axis].to_numpy() for axis in "ijk"}
        volume = np.zeros((*ingest.attrs["grid_shape"], 3))
        volume[tuple(components[axis].to_numpy() for axis in "ijk")] = components["ica_map"][[0, 2, 3]].T
        maps = np.column_stack([volume[tuple(place.values())], np.ones(ingest.sizes["voxel"])])
        kept = run["sample_mask"].to_numpy()
        x = run["denoised"].to_numpy()[:, kept].astype(np.float64)
        there = np.isfinite(x).all(axis=1)
        expected = np.linalg.lstsq(maps[there], x[there], rcond=None)[0][:3]
        np.testing.assert_allclose(series["timeseries"][:, kept], expected, rtol=1e-6, atol=1e-8)
    assert "ic003" in (study.parent / "report.html").read_text()


def test_check__refuses_components_of_unknown_number_as_nodes(shell, tmp_path):
    table = {**ICA, "n_components": "estimate"}
    study = small_study(tmp_path / "study", ica={"group": table}, nodes={"networks": {"ica": "group"}})
    result = shell("check", study)
    assert result.code == 1
    assert "E-STUDY-VALUE" in result.out + result.err


def test_run__report_and_export_show_the_components(shell, tmp_path):
    study = small_study(tmp_path / "study", n_subjects_per_group=3)
    write_maps(study.parent / "known.nii.gz")
    table = {**ICA, "templates": "known.nii.gz", "reject": {"ic002": "veins"}, "threshold": 2.5}
    write_study(study.parent, ica={"group": table})
    result = shell("run", study, "--workers", "0")
    assert result.code == 0, result
    page = (study.parent / "report.html").read_text()
    assert "Group ICA · group" in page
    assert "rejected: veins" in page
    assert "Which of them are known networks?" in page
    out = tmp_path / "out"
    assert shell("export", study, "--out", out).code == 0
    components = open_step(study, "ica/group", "ica")
    [plain] = out.glob("group/*_atlas-group_stat-zscore_boldmap.nii.gz")
    [thresholded] = out.glob("group/*_atlas-group_stat-zscore_desc-thresholded_boldmap.nii.gz")
    at = tuple(components[axis].to_numpy() for axis in "ijk")
    z = components["ica_map"].to_numpy().T
    np.testing.assert_array_equal(np.asarray(nibabel.load(plain).dataobj)[at], z)
    shown = np.where(np.abs(z) > 2.5, z, 0)
    np.testing.assert_array_equal(np.asarray(nibabel.load(thresholded).dataobj)[at], shown)
    sidecar = json.loads(thresholded.with_name(thresholded.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Components"] == ["ic001", "ic002", "ic003", "ic004"]
    [table] = out.glob("group/*_components.tsv")
    rows = pd.read_table(table, keep_default_na=False)
    assert rows["accepted"].tolist() == [1, 0, 1, 1]
    assert rows["reason"].tolist() == ["n/a", "veins", "n/a", "n/a"]
    np.testing.assert_array_equal(rows["r_template3"], components["template_correlation"][:, 2])


def test_check__refuses_templates_on_another_grid(shell, tmp_path):
    study = small_study(tmp_path / "study")
    write_maps(study.parent / "known.nii.gz")
    image = nibabel.load(study.parent / "known.nii.gz")
    nibabel.save(nibabel.Nifti1Image(image.get_fdata()[1:], image.affine), study.parent / "known.nii.gz")
    write_study(study.parent, ica={"group": {**ICA, "templates": "known.nii.gz"}})
    result = shell("check", study)
    assert result.code == 1
    assert "E-GRID" in result.out + result.err
