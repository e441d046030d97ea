"""Runs found in folders as the HCP pipelines write them."""

import pytest

from kconn.errors import KconnError
from kconn.io.layout import find_runs_cifti, find_runs_fmriprep, list_choices
from kconn.io.layout_hcp import find_runs_hcp, list_variants, looks_like_hcp


def results(root, subject, run, *variants, motion=True, rms=False):
    folder = root / subject / "MNINonLinear" / "Results" / run
    folder.mkdir(parents=True, exist_ok=True)
    for variant in variants:
        (folder / f"{run}_{variant}.dtseries.nii").touch()
    for name, wanted in (("Movement_Regressors.txt", motion), ("Movement_RelativeRMS.txt", rms)):
        if wanted:
            (folder / name).touch()
    return folder


def refused(code, *args, **kwargs):
    with pytest.raises(KconnError) as caught:
        find_runs_hcp(*args, **kwargs)
    assert caught.value.code == code
    assert caught.value.rule
    assert caught.value.fix
    return caught.value


def test_find_runs_hcp__takes_the_scan_as_session_where_no_visit_is_stated(tmp_path):
    for subject in ("100307", "100206"):
        for run in ("rfMRI_REST1_LR", "rfMRI_REST1_RL", "rfMRI_REST2_LR", "rfMRI_REST1_7T_PA"):
            results(tmp_path, subject, run, "Atlas_MSMAll_hp0_clean", rms=run.endswith("LR"))
    runs = find_runs_hcp(tmp_path)
    assert [run.where for run in runs[:4]] == [
        "sub-100206/ses-REST1/run-7TPA",
        "sub-100206/ses-REST1/run-LR",
        "sub-100206/ses-REST1/run-RL",
        "sub-100206/ses-REST2/run-LR",
    ]
    assert len({run.where for run in runs}) == len(runs) == 8
    first = runs[1]
    assert (first.task, first.space, first.mask, first.sidecar, first.fd) == ("rest", "fsLR", None, None, None)
    assert first.bold.name == "rfMRI_REST1_LR_Atlas_MSMAll_hp0_clean.dtseries.nii"
    assert first.confounds.name == "Movement_Regressors.txt"
    assert first.relative_rms.name == "Movement_RelativeRMS.txt"
    assert runs[2].relative_rms is None


@pytest.mark.parametrize(
    ("folder", "subject"),
    [("HCA6002236_V1_MR", "HCA6002236"), ("1001_V1", "1001"), ("sub-1001_ses-V1_MR", "1001")],
)
def test_find_runs_hcp__takes_a_stated_visit_as_session(tmp_path, folder, subject):
    results(tmp_path, folder, "rfMRI_REST1_AP", "Atlas")
    results(tmp_path, folder, "rfMRI_REST1_PA", "Atlas")
    assert [run.where for run in find_runs_hcp(tmp_path)] == [
        f"sub-{subject}/ses-V1/run-REST1AP",
        f"sub-{subject}/ses-V1/run-REST1PA",
    ]


def test_find_runs_hcp__knows_the_mark_of_a_magnetic_resonance_session_from_a_visit(tmp_path):
    results(tmp_path, "1001_MR", "rfMRI_REST1_AP", "Atlas")
    assert [run.where for run in find_runs_hcp(tmp_path)] == ["sub-1001/ses-REST1/run-AP"]


def test_find_runs_hcp__leaves_tasks_out_unless_one_is_asked_for(tmp_path):
    for run in ("rfMRI_REST1_LR", "tfMRI_WM_LR", "tfMRI_WM_RL", "tfMRI_MOTOR_LR"):
        results(tmp_path, "100307", run, "Atlas")
    assert [run.where for run in find_runs_hcp(tmp_path)] == ["sub-100307/ses-REST1/run-LR"]
    assert [run.where for run in find_runs_hcp(tmp_path, task="WM")] == [
        "sub-100307/ses-WM/run-LR",
        "sub-100307/ses-WM/run-RL",
    ]
    assert "MOTOR (1 files)" in refused("E-NO-RUNS", tmp_path, task="GAMBLING").problem


def test_find_runs_hcp__leaves_concatenations_and_other_files_out(tmp_path):
    folder = results(tmp_path, "100307", "rfMRI_REST1_LR", "Atlas_MSMAll_hp0_clean")
    (folder / "rfMRI_REST1_LR_Atlas_MSMAll_hp0_clean_vn.dscalar.nii").touch()
    (folder / "other.dtseries.nii").touch()
    results(tmp_path, "100307", "rfMRI_REST", "Atlas_MSMAll_hp0_clean")
    assert len(find_runs_hcp(tmp_path)) == 1


def test_find_runs_hcp__asks_for_the_variant_where_there_are_several(tmp_path):
    for run in ("rfMRI_REST1_LR", "rfMRI_REST1_RL"):
        results(tmp_path, "100307", run, "Atlas", "Atlas_MSMAll", "Atlas_MSMAll_hp2000_clean")
    found = refused("E-AMBIGUOUS", tmp_path)
    assert found.problem.endswith("Atlas (2 files), Atlas_MSMAll (2 files), Atlas_MSMAll_hp2000_clean (2 files)")
    assert list_variants(tmp_path) == {"Atlas": 2, "Atlas_MSMAll": 2, "Atlas_MSMAll_hp2000_clean": 2}
    runs = find_runs_hcp(tmp_path, variant="Atlas_MSMAll")
    assert {run.bold.name for run in runs} == {f"rfMRI_REST1_{d}_Atlas_MSMAll.dtseries.nii" for d in ("LR", "RL")}
    assert "Atlas_MSMAll (2 files)" in refused("E-NO-RUNS", tmp_path, variant="Atlas_hp0_clean").problem


def test_find_runs_hcp__refuses_a_run_that_lacks_the_variant(tmp_path):
    results(tmp_path, "100307", "rfMRI_REST1_LR", "Atlas", "Atlas_MSMAll")
    results(tmp_path, "100408", "rfMRI_REST2_RL", "Atlas")
    found = refused("E-FILE-MISSING", tmp_path, variant="Atlas_MSMAll")
    assert found.where == "100408"
    assert "rfMRI_REST2_RL" in found.problem


def test_find_runs_hcp__refuses_folders_that_are_no_labels_or_claim_one_run(tmp_path):
    results(tmp_path, "patient one", "rfMRI_REST1_LR", "Atlas")
    refused("E-ID", tmp_path)
    (tmp_path / "patient one").rename(tmp_path / "1001_V1_MR")
    results(tmp_path, "1001_V1", "rfMRI_REST1_LR", "Atlas")
    refused("E-ID-DUPLICATE", tmp_path)


def test_find_runs_hcp__says_what_it_looked_for(tmp_path):
    assert "rfMRI_REST1_LR" in refused("E-NO-RUNS", tmp_path).problem
    refused("E-FILE-MISSING", tmp_path / "absent")
    assert not looks_like_hcp(tmp_path)
    results(tmp_path, "100307", "rfMRI_REST1_LR", "Atlas")
    assert looks_like_hcp(tmp_path)


def fmriprep(root, *endings):
    for ending in endings:
        path = root / "sub-01" / "func" / f"sub-01_task-rest_{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_runs_fmriprep__finds_grayordinates_of_the_chosen_density(tmp_path):
    image = "space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    dense = ["space-fsLR_den-91k_bold.dtseries.nii", "space-fsLR_den-170k_bold.dtseries.nii"]
    fmriprep(tmp_path, image, *dense, "space-fsLR_den-91k_bold.json", "desc-confounds_timeseries.tsv")
    assert find_runs_fmriprep(tmp_path)[0].bold.name.endswith(image)
    with pytest.raises(KconnError, match=r"E-AMBIGUOUS.*170k"):
        find_runs_fmriprep(tmp_path, space="fsLR")
    (run,) = find_runs_fmriprep(tmp_path, space="fsLR", den="91k")
    assert run.bold.name.endswith(dense[0])
    assert run.sidecar.name == "sub-01_task-rest_space-fsLR_den-91k_bold.json"
    assert run.confounds.name == "sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert (run.mask, run.space) == (None, "fsLR")
    assert list_choices(tmp_path, space="fsLR")["den"] == ["170k", "91k"]


def test_find_runs_fmriprep__takes_grayordinates_where_there_are_no_images(tmp_path):
    fmriprep(tmp_path, "space-fsLR_den-91k_bold.dtseries.nii", "space-fsLR_den-91k_bold.dtseries.json")
    (run,) = find_runs_fmriprep(tmp_path)
    assert run.space == "fsLR"
    assert run.sidecar.name.endswith("_bold.dtseries.json")


def test_find_runs_cifti__follows_a_pattern(tmp_path):
    folder = tmp_path / "01" / "pre"
    folder.mkdir(parents=True)
    for name in ("rest.dtseries.nii", "rest.json", "confounds.tsv"):
        (folder / name).touch()
    (run,) = find_runs_cifti(
        tmp_path,
        pattern="{subject}/{session}/rest.dtseries.nii",
        confounds_pattern="{subject}/{session}/confounds.tsv",
    )
    assert (run.where, run.sidecar.name, run.confounds.name) == ("sub-01/ses-pre/run-1", "rest.json", "confounds.tsv")
