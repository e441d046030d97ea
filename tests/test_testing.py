import gzip
import hashlib
import json
import struct

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.signal import butterworth

from kconn.errors import InputError, SchemaError
from kconn.testing import simulate_run, simulate_study

SMALL = {
    "n_subjects_per_group": 2,
    "n_nodes": 12,
    "n_time": 120,
    "grid_shape": (10, 12, 10),
    "n_effect_edges": 2,
    "n_high_motion_runs": 1,
}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return simulate_study(tmp_path_factory.mktemp("study") / "trial", **SMALL, seed=7)


@pytest.fixture(scope="module")
def bold_path(study):
    return (
        study.path / "sub-01/ses-pre/func/sub-01_ses-pre_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    )


def test_simulate_run__holds_the_data_model():
    ds = simulate_run(seed=1)
    assert ds["bold"].dims == ("voxel", "time")
    assert ds["bold"].dtype == np.float32
    assert ds["confounds"].dims == ("time", "confound")
    assert ds["sample_mask"].dtype == bool
    assert np.isnan(ds["framewise_displacement"][0])
    assert {"t_r", "affine", "grid_shape", "space", "where"} <= set(ds.attrs)
    # Fortran order: i fastest, then j, then k.
    rank = ds["i"] + ds["j"] * ds.attrs["grid_shape"][0] + ds["k"] * np.prod(ds.attrs["grid_shape"][:2])
    assert (np.diff(rank) > 0).all()


def test_simulate_run__same_seed_same_bits():
    assert simulate_run(seed=3).identical(simulate_run(seed=3))
    assert not simulate_run(seed=3).identical(simulate_run(seed=4))


def test_simulate_run__courses_follow_the_known_connectome_and_stay_in_band():
    ds = simulate_run(seed=2, n_time=6000, grid_shape=(8, 10, 8), n_nodes=6)
    i, j = np.triu_indices(ds.sizes["node"], 1)
    np.testing.assert_allclose(np.corrcoef(ds["source"])[i, j], ds["source_correlation"], atol=0.12)
    np.testing.assert_allclose(ds["source"].std("time"), 1.0, atol=0.1)
    fast = butterworth(ds["source"].to_numpy().T, sampling_rate=1 / 0.8, high_pass=0.12, low_pass=None)
    assert fast.std() < 0.05


def test_simulate_run__motion_spoils_the_signal_and_can_be_regressed_out():
    ds = simulate_run(seed=5, n_time=600, motion_level=3.0, n_nodes=8)
    i, j = np.triu_indices(8, 1)
    series = np.array([ds["bold"].to_numpy()[ds["parcel"] == n + 1].mean(axis=0) for n in range(8)], dtype=float)
    confounds = np.nan_to_num(ds["confounds"].to_numpy())
    confounds = np.column_stack([np.ones(600), (confounds - confounds.mean(0)) / confounds.std(0)])
    cleaned = series.T - confounds @ np.linalg.lstsq(confounds, series.T, rcond=None)[0]

    truth = np.corrcoef(ds["source"])[i, j]
    before = np.corrcoef(np.corrcoef(series)[i, j], truth)[0, 1]
    after = np.corrcoef(np.corrcoef(cleaned.T)[i, j], truth)[0, 1]
    assert after > 0.8
    assert after > before


def test_simulate_run__too_many_nodes_are_refused():
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        simulate_run(n_nodes=400)


def test_simulate_study__same_seed_same_bytes_for_any_number_of_workers(study, tmp_path):
    again = simulate_study(tmp_path / "trial", **SMALL, max_workers=3, seed=7)
    assert digests(again.path) == digests(study.path)


def test_simulate_study__an_unfinished_study_is_completed_in_place(study, tmp_path):
    again = simulate_study(tmp_path, **SMALL, seed=7)
    (tmp_path / "sub-01/ses-pre/func").rename(tmp_path / "sub-01/ses-pre/elsewhere")
    simulate_study(tmp_path, **SMALL, seed=7)
    assert digests(study.path).items() <= digests(again.path).items()


def test_simulate_study__a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="E-FILE-EXISTS"):
        simulate_study(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_simulate_study__images_are_strict_nifti(study, bold_path):
    raw = bold_path.read_bytes()
    assert struct.unpack("<I", raw[4:8]) == (0,)  # no time of writing
    assert raw[3] & 8 == 0  # no file name
    image = nib.load(bold_path)
    assert image.shape == (10, 12, 10, 120)
    assert image.get_data_dtype() == np.int16
    assert image.dataobj.slope == 2.0
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert image.header.get_zooms()[3] == pytest.approx(0.8)
    qform, qcode = image.get_qform(coded=True)
    sform, scode = image.get_sform(coded=True)
    assert (qcode, scode) == (4, 4)
    np.testing.assert_allclose(qform, sform, atol=1e-4)
    assert len(gzip.decompress(raw)) == 352 + 2 * 10 * 12 * 10 * 120

    mask = nib.load(str(bold_path).replace("desc-preproc_bold", "desc-brain_mask"))
    labels = nib.load(study.atlas)
    for other in (mask, labels):
        np.testing.assert_array_equal(other.affine, image.affine)
        assert other.shape == image.shape[:3]
    data = image.get_fdata()
    assert (data[np.asarray(mask.dataobj) == 0] == 0).all()
    assert (data[np.asarray(mask.dataobj) == 1] > 1000).all()


def test_simulate_study__tables_describe_every_row(study):
    participants = pd.read_csv(study.participants, sep="\t")
    sessions = pd.read_csv(study.sessions, sep="\t")
    folders = sorted(path.name for path in study.path.glob("sub-*"))
    assert participants["participant_id"].tolist() == folders == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert participants["group"].value_counts().to_dict() == {"ketamine": 2, "placebo": 2}
    assert set(sessions["session_id"]) == {"ses-pre", "ses-post"}
    assert len(sessions) == 8
    assert json.loads((study.path / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    sidecars = list(study.path.glob("sub-*/ses-*/func/*_bold.json"))
    assert len(sidecars) == study.n_runs == 8
    assert json.loads(sidecars[0].read_text())["RepetitionTime"] == 0.8

    nodes = pd.read_csv(study.atlas_table, sep="\t")
    assert nodes["name"].is_unique
    labels = np.asarray(nib.load(study.atlas).dataobj)
    assert sorted(set(labels[labels > 0].tolist())) == nodes["index"].tolist()


def test_simulate_study__confounds_are_named_as_fmriprep_names_them(bold_path):
    path = bold_path.with_name("sub-01_ses-pre_task-rest_desc-confounds_timeseries.tsv")
    table = pd.read_csv(path, sep="\t")
    base = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter", "global_signal"]
    expansions = ["", "_derivative1", "_power2", "_derivative1_power2"]
    wanted = {name + suffix for name in base for suffix in expansions}
    assert wanted | {"framewise_displacement", "std_dvars", "cosine00"} <= set(table.columns)
    assert len(table) == 120
    assert path.read_text().splitlines()[1].split("\t")[table.columns.get_loc("trans_x_derivative1")] == "n/a"
    assert table.iloc[1:].notna().all().all()

    motion = table[base[:6]].to_numpy()
    power = np.abs(np.diff(motion, axis=0)) @ np.array([1, 1, 1, 50, 50, 50])
    np.testing.assert_allclose(table["framewise_displacement"][1:], power, atol=1e-6)


def test_simulate_study__planted_edges_change_in_the_treated_group_only(tmp_path):
    study = simulate_study(tmp_path, **SMALL | {"n_subjects_per_group": 12, "n_time": 400}, layout="tables", seed=1)
    truth = study.read_truth()
    assert truth["sign"].tolist() == [1, -1]
    group = pd.read_csv(study.participants, sep="\t").set_index("participant_id")["group"]
    change = {"ketamine": [], "placebo": []}
    for subject in group.index:
        r = {}
        for visit in ("pre", "post"):
            (table,) = (study.path / subject / f"ses-{visit}" / "func").glob("*_stat-mean_timeseries.tsv")
            series = pd.read_csv(table, sep="\t").diff().dropna()
            r[visit] = np.array([series[a].corr(series[b]) for a, b in zip(truth.node_i, truth.node_j, strict=True)])
        change[group[subject]].append(r["post"] - r["pre"])
    ketamine, placebo = (np.median(change[name], axis=0) * truth["sign"].to_numpy() for name in ("ketamine", "placebo"))
    assert (ketamine > placebo).all()
    np.testing.assert_allclose(truth["r_after"] - truth["r_before"], truth["sign"] * truth["size"], atol=1e-5)


def test_simulate_study__tables_layout_names_runs(tmp_path):
    study = simulate_study(tmp_path, **SMALL | {"n_runs": 2}, layout="tables")
    stem = "sub-02_ses-post_task-rest_run-2"
    folder = tmp_path / "sub-02/ses-post/func"
    assert sorted(path.name for path in folder.glob(f"{stem}*")) == [
        f"{stem}_desc-confounds_timeseries.tsv",
        f"{stem}_space-MNI152NLin2009cAsym_atlas-sim_stat-mean_timeseries.json",
        f"{stem}_space-MNI152NLin2009cAsym_atlas-sim_stat-mean_timeseries.tsv",
    ]
    series = pd.read_csv(folder / f"{stem}_space-MNI152NLin2009cAsym_atlas-sim_stat-mean_timeseries.tsv", sep="\t")
    assert series.columns.tolist() == pd.read_csv(study.atlas_table, sep="\t")["name"].tolist()
    assert len(series) == 120
    assert study.n_runs == 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_subjects_per_group": 0},
        {"groups": ("a", "a")},
        {"sessions": ("pre post",)},
        {"n_time": 20},
        {"layout": "dicom"},
        {"n_effect_edges": 9},
        {"effect_size": 1.5},
        {"n_nodes": 1000},
    ],
)
def test_simulate_study__impossible_parameters_leave_nothing_behind(tmp_path, wrong):
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        simulate_study(tmp_path / "new", **SMALL | wrong)
    assert not (tmp_path / "new").exists()
