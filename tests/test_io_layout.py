"""Runs found in folders of every naming that fMRIPrep had, and in folders of tables."""

import pytest

from kconn.errors import KconnError
from kconn.io.layout import (
    Run,
    find_companion,
    find_runs_fmriprep,
    find_runs_images,
    find_runs_tables,
    list_choices,
    name_by_pattern,
)

NEW = "_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def refused(function, *args, **kwargs):
    with pytest.raises(KconnError) as caught:
        function(*args, **kwargs)
    assert caught.value.rule
    assert caught.value.fix
    return caught.value


def names(run):
    paths = {key: getattr(run, key) for key in ("bold", "mask", "confounds", "sidecar", "timeseries", "fd")}
    return {key: path.name for key, path in paths.items() if path is not None}


@pytest.mark.parametrize("confounds", ["desc-confounds_timeseries", "desc-confounds_regressors", "bold_confounds"])
def test_find_runs_fmriprep__finds_the_files_of_a_run(tmp_path, confounds):
    stem = "sub-02/ses-1/func/sub-02_ses-1_task-rest_run-01"
    space = "_space-MNI152NLin2009cAsym_res-2"
    touch(
        tmp_path,
        f"{stem}{space}_desc-preproc_bold.nii.gz",
        f"{stem}{space}_desc-preproc_bold.json",
        f"{stem}{space}_desc-brain_mask.nii.gz",
        f"{stem}_{confounds}.tsv",
        f"{stem}_space-fsLR_den-91k_bold.dtseries.nii",
        "sub-02/ses-1/func/sub-02_ses-1_task-rest_run-01_space-T1w_desc-aseg_dseg.nii.gz",
        "sub-02/figures/sub-02_task-rest_desc-carpet_bold.svg",
        "sub-02.html",
    )
    (run,) = find_runs_fmriprep(tmp_path)
    assert (run.subject, run.session, run.run, run.task) == ("02", "1", "1", "rest")
    assert run.space == "MNI152NLin2009cAsym"
    assert run.where == "sub-02/ses-1/run-1"
    assert names(run) == {
        "bold": f"sub-02_ses-1_task-rest_run-01{space}_desc-preproc_bold.nii.gz",
        "sidecar": f"sub-02_ses-1_task-rest_run-01{space}_desc-preproc_bold.json",
        "mask": f"sub-02_ses-1_task-rest_run-01{space}_desc-brain_mask.nii.gz",
        "confounds": f"sub-02_ses-1_task-rest_run-01_{confounds}.tsv",
    }


def test_find_runs_fmriprep__finds_the_names_before_version_1_2(tmp_path):
    stem = "sub-50005/func/sub-50005_task-rest_bold"
    touch(tmp_path, f"{stem}_space-MNI_preproc.nii.gz", f"{stem}_space-MNI_brainmask.nii.gz", f"{stem}_confounds.tsv")
    (run,) = find_runs_fmriprep(tmp_path, space="MNI")
    assert run.where == "sub-50005/ses-1/run-1"
    assert names(run) == {
        "bold": "sub-50005_task-rest_bold_space-MNI_preproc.nii.gz",
        "mask": "sub-50005_task-rest_bold_space-MNI_brainmask.nii.gz",
        "confounds": "sub-50005_task-rest_bold_confounds.tsv",
    }


@pytest.mark.parametrize(
    ("entities", "label"),
    [
        ("", "1"),
        ("_run-3", "3"),
        ("_run-03", "3"),
        ("_dir-AP_run-1", "AP1"),
        ("_acq-mb4_dir-PA", "mb4PA"),
        ("_acq-mb4_dir-PA_run-2", "mb4PA2"),
    ],
)
def test_find_runs_fmriprep__folds_entities_into_the_run(tmp_path, entities, label):
    touch(tmp_path, f"sub-1/func/sub-1_task-rest{entities}{NEW}")
    assert find_runs_fmriprep(tmp_path)[0].run == label


def test_find_runs_fmriprep__sorts_and_leaves_out_single_echoes(tmp_path):
    touch(
        tmp_path,
        *(f"sub-{s}/ses-{t}/func/sub-{s}_ses-{t}_task-rest{NEW}" for s in ("b", "a", "10") for t in (2, 1)),
        f"sub-a/ses-1/func/sub-a_ses-1_task-rest_echo-1{NEW}",
    )
    runs = find_runs_fmriprep(tmp_path, task="rest")
    assert [(run.subject, run.session) for run in runs] == [(s, t) for s in ("10", "a", "b") for t in ("1", "2")]


@pytest.mark.parametrize(
    ("key", "labels", "chosen"),
    [("task", ("rest", "nback"), "rest"), ("space", ("T1w", "MNI"), "MNI"), ("res", ("1", "2"), "2")],
)
def test_find_runs_fmriprep__asks_where_several_fit(tmp_path, key, labels, chosen):
    for label in labels:
        entities = {"task": "rest", "space": "MNI", "res": "1"} | {key: label}
        text = "_".join(f"{name}-{value}" for name, value in entities.items())
        touch(tmp_path, f"sub-1/func/sub-1_{text}_desc-preproc_bold.nii.gz")
    error = refused(find_runs_fmriprep, tmp_path)
    assert error.code == "E-AMBIGUOUS"
    assert all(label in error.problem for label in labels)
    (run,) = find_runs_fmriprep(tmp_path, **{key: chosen})
    assert f"{key}-{chosen}" in run.bold.name
    error = refused(find_runs_fmriprep, tmp_path, **{key: "absent"})
    assert error.code == "E-NO-RUNS"
    assert all(label in error.problem for label in labels)


def test_find_runs_fmriprep__own_space_is_func(tmp_path):
    touch(tmp_path, "sub-1/func/sub-1_task-rest_desc-preproc_bold.nii", f"sub-1/func/sub-1_task-rest{NEW}")
    assert refused(find_runs_fmriprep, tmp_path).code == "E-AMBIGUOUS"
    (run,) = find_runs_fmriprep(tmp_path, space="func")
    assert run.bold.name == "sub-1_task-rest_desc-preproc_bold.nii"


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([], "E-NO-RUNS"),
        (["sub-1/anat/sub-1_T1w.nii.gz"], "E-NO-RUNS"),
        ([f"sub-1/func/sub-1_task-rest_run-1{NEW}", f"sub-1/func/sub-1_task-rest_run-01{NEW}"], "E-ID-DUPLICATE"),
        ([f"sub-1/func/sub-1_task-rest{NEW}", f"sub-1/ses-1/func/sub-1_ses-1_task-rest{NEW}"], "E-ID-DUPLICATE"),
        ([f"sub-A/func/sub-A_task-rest{NEW}", f"sub-a/func/sub-a_task-rest{NEW}"], "E-ID-DUPLICATE"),
        (
            [f"sub-A/ses-1/func/sub-A_ses-1_task-rest{NEW}", f"sub-a/ses-2/func/sub-a_ses-2_task-rest{NEW}"],
            "E-ID-DUPLICATE",
        ),
        ([f"sub-1+2/func/sub-1+2_task-rest{NEW}"], "E-ID"),
        ([f"sub-é/func/sub-é_task-rest{NEW}"], "E-ID"),
        ([f"sub-{'1' * 65}/func/sub-{'1' * 65}_task-rest{NEW}"], "E-ID"),
    ],
)
def test_find_runs_fmriprep__refuses(tmp_path, files, code):
    touch(tmp_path, *files)
    assert refused(find_runs_fmriprep, tmp_path).code == code


def test_find_runs_fmriprep__refuses_links_out_of_the_folder(tmp_path):
    touch(tmp_path, "elsewhere/bold.nii.gz", "dataset/.git/annex/objects/x/bold.nii.gz")
    root = tmp_path / "dataset" / "derivatives"
    link = root / f"sub-1/func/sub-1_task-rest{NEW}"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "dataset/.git/annex/objects/x/bold.nii.gz")
    assert len(find_runs_fmriprep(root)) == 1
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere/bold.nii.gz")
    assert refused(find_runs_fmriprep, root).code == "E-FILE-MISSING"
    assert refused(find_runs_fmriprep, tmp_path / "nowhere").code == "E-FILE-MISSING"


def test_find_runs_tables__matches_fields_and_wildcards(tmp_path):
    touch(
        tmp_path, "ts/bochum-004_pumi-0.tsv", "ts/bochum-005_pumi-1.tsv", "ts/notes.txt", "fd/FD_bochum-004_pumi-0.txt"
    )
    touch(tmp_path, "fd/FD_bochum-005_pumi-1.txt")
    runs = find_runs_tables(
        tmp_path, pattern="ts/bochum-{subject}_pumi-*.tsv", fd_pattern="fd/FD_bochum-{subject}_pumi-?.txt"
    )
    assert [run.where for run in runs] == ["sub-004/ses-1/run-1", "sub-005/ses-1/run-1"]
    assert [run.fd.name for run in runs] == ["FD_bochum-004_pumi-0.txt", "FD_bochum-005_pumi-1.txt"]
    assert all(isinstance(run, Run) and run.bold is None for run in runs)


def test_find_runs_tables__takes_labels_with_their_prefix(tmp_path):
    touch(tmp_path, "sub-01/ses-2/series.csv", "sub-01/ses-2/confounds.tsv")
    (run,) = find_runs_tables(
        tmp_path, pattern="{subject}/{session}/series.csv", confounds_pattern="{subject}/{session}/confounds.tsv"
    )
    assert run.where == "sub-01/ses-2/run-1"
    assert run.confounds == (tmp_path / "sub-01/ses-2/confounds.tsv").resolve()


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("ses-{session}/ts_{subject}_ses-{session}.txt", "E-ID"),
        ("*/ts_{subject}_x-*.txt", "E-NO-RUNS"),
        ("ses-*/ts_{subject}_ses-*.txt", "E-ID-DUPLICATE"),
        ("ses-{session}/ts.txt", "E-STUDY-VALUE"),
        ("ses-{session}/ts_{subject}_{visit}.txt", "E-STUDY-VALUE"),
        ("../{subject}.txt", "E-STUDY-VALUE"),
        ("/etc/{subject}", "E-STUDY-VALUE"),
        ("**/{subject}.txt", "E-STUDY-VALUE"),
        ("ses-1/ts_{subject}.txt", "E-ID"),
    ],
)
def test_find_runs_tables__refuses(tmp_path, pattern, code):
    touch(tmp_path, "ses-1/ts_001_ses-1.txt", "ses-2/ts_001_ses-2.txt", "ses-2/ts_002_ses-1.txt")
    assert refused(find_runs_tables, tmp_path, pattern=pattern).code == code


def test_find_runs_tables__refuses_none_or_several_companions(tmp_path):
    touch(tmp_path, "ts_1.txt", "fd_1_a.txt", "fd_1_b.txt")
    assert refused(find_runs_tables, tmp_path, pattern="ts_{subject}.txt", fd_pattern="x_{subject}").code == (
        "E-FILE-MISSING"
    )
    assert refused(find_runs_tables, tmp_path, pattern="ts_{subject}.txt", fd_pattern="fd_{subject}_*.txt").code == (
        "E-AMBIGUOUS"
    )


@pytest.mark.parametrize(
    ("folder", "pattern", "n_runs", "first"),
    [
        ("rpn_bochum", "regional_timeseries/bochum-{subject}_pumi-*.tsv", 41, "sub-004/ses-1/run-1"),
        ("hcp12_dk70", "{subject}/rfMRI_{session}_{run}_BOLD.csv", 12, "sub-000/ses-REST1/run-LR"),
        ("stages8", "ses-{session}/ts_sub-{subject}_ses-{session}.txt", 16, "sub-001/ses-1/run-1"),
    ],
)
def test_find_runs_tables__real_folders(shared_data, folder, pattern, n_runs, first):
    runs = find_runs_tables(shared_data / folder, pattern=pattern)
    assert len(runs) == n_runs
    assert runs[0].where == first


def test_list_choices__lists_what_there_is_to_choose(tmp_path):
    for task, entities in [("rest", "MNI_res-2"), ("rest", "MNI_res-1"), ("rest", "T1w"), ("nback", "MNI_res-2")]:
        touch(tmp_path, f"sub-1/func/sub-1_task-{task}_space-{entities}_desc-preproc_bold.nii.gz")
    touch(tmp_path, "sub-1/func/sub-1_task-rest_desc-preproc_bold.nii.gz", "sub-1/anat/sub-1_space-X_T1w.nii.gz")
    assert list_choices(tmp_path) == {
        "task": ["nback", "rest"],
        "space": ["MNI", "T1w", "func"],
        "res": ["1", "2"],
        "den": [],
    }
    assert list_choices(tmp_path, task="nback") == {"task": ["nback"], "space": ["MNI"], "res": ["2"], "den": []}
    assert list_choices(tmp_path, task="rest", space="T1w")["res"] == []
    assert list_choices(tmp_path / "sub-1/anat") == {"task": [], "space": [], "res": [], "den": []}
    assert refused(list_choices, tmp_path / "nowhere").code == "E-FILE-MISSING"


def test_find_runs_images__finds_the_files_of_a_run(tmp_path):
    for session in ("pre", "post"):
        folder = f"sub-01/{session}"
        touch(tmp_path, *(f"{folder}/{name}" for name in ("rest.nii.gz", "mask.nii", "rp.tsv", "fd.txt", "T1.nii.gz")))
    touch(tmp_path, "sub-01/pre/rest.json")
    runs = find_runs_images(
        tmp_path,
        pattern="{subject}/{session}/rest.nii.gz",
        mask_pattern="{subject}/{session}/mask.nii*",
        confounds_pattern="{subject}/{session}/rp.tsv",
        fd_pattern="{subject}/{session}/fd.txt",
    )
    assert [run.where for run in runs] == ["sub-01/ses-post/run-1", "sub-01/ses-pre/run-1"]
    files = {"bold": "rest.nii.gz", "mask": "mask.nii", "confounds": "rp.tsv", "fd": "fd.txt"}
    assert [names(run) for run in runs] == [files, files | {"sidecar": "rest.json"}]
    assert runs[1].mask == (tmp_path / "sub-01/pre/mask.nii").resolve()


def test_find_runs_images__one_mask_may_serve_all_but_no_other_file(tmp_path):
    touch(tmp_path, "s1_rest.nii", "s2_rest.nii", "group_mask.nii", "rp.tsv")
    runs = find_runs_images(tmp_path, pattern="s{subject}_rest.nii", mask_pattern="group_mask.nii")
    assert [run.mask.name for run in runs] == ["group_mask.nii"] * 2
    for companion in ("confounds_pattern", "fd_pattern"):
        error = refused(find_runs_images, tmp_path, pattern="s{subject}_rest.nii", **{companion: "rp.tsv"})
        assert error.code == "E-STUDY-VALUE"


@pytest.mark.parametrize("name", ["s1_rest.nii", "s1_mask.nii", "s1_rest.json"])
def test_find_runs_images__refuses_links_out_of_the_folder(tmp_path, name):
    root = tmp_path / "root"
    touch(root, "s1_rest.nii", "s1_mask.nii", "s1_rest.json")
    touch(tmp_path, "elsewhere")
    patterns = {"pattern": "s{subject}_rest.nii", "mask_pattern": "s{subject}_mask.nii"}
    assert len(find_runs_images(root, **patterns)) == 1
    (root / name).unlink()
    (root / name).symlink_to(tmp_path / "elsewhere")
    assert refused(find_runs_images, root, **patterns).code == "E-FILE-MISSING"


@pytest.mark.parametrize(
    ("pattern", "mask_pattern", "code"),
    [
        ("s{subject}_rest.nii", "s{subject}_brain.nii", "E-FILE-MISSING"),
        ("s{subject}_rest.nii", "s{subject}_*.nii", "E-AMBIGUOUS"),
        ("s{subject}_rest.nii", "../mask.nii", "E-STUDY-VALUE"),
        ("rest.nii", None, "E-STUDY-VALUE"),
        ("s{subject}_task.nii", None, "E-NO-RUNS"),
    ],
)
def test_find_runs_images__refuses(tmp_path, pattern, mask_pattern, code):
    touch(tmp_path, "s1_rest.nii", "s1_mask.nii")
    assert refused(find_runs_images, tmp_path, pattern=pattern, mask_pattern=mask_pattern).code == code


def test_name_by_pattern__keeps_wildcards(tmp_path):
    touch(tmp_path, "sub-01/visit2_Jane.nii")
    pattern = "{subject}/visit{session}_*.nii"
    (run,) = find_runs_images(tmp_path, pattern=pattern)
    assert name_by_pattern(pattern, run) == "01/visit2_*.nii"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("sub-{subject}/ses-{session}/rp_{run}.txt", "sub-1/ses-a/rp_01.txt"),
        ("{subject}/{session}/rp_{run}.txt", "sub-1/ses-a/rp_01.txt"),
        ("{subject}_wm.nii", "sub-1_wm.nii"),
        ("group_*.nii", "group_mask.nii"),
        ("{subject}/*/{subject}_x.txt", "sub-1/any/sub-1_x.txt"),
    ],
)
def test_find_companion__compares_labels(tmp_path, pattern, found):
    touch(
        tmp_path, "sub-1/ses-a/rp_01.txt", "sub-11/ses-a/rp_01.txt", "sub-1/ses-a/rp_11.txt", "sub-1/ses-aa/rp_01.txt"
    )
    touch(
        tmp_path, "sub-1_wm.nii", "sub-11_wm.nii", "group_mask.nii", "sub-1/any/sub-1_x.txt", "sub-1/any/sub-11_x.txt"
    )
    run = Run(subject="1", session="a", run="1")

    assert find_companion(tmp_path, pattern, run, what="table") == (tmp_path / found).resolve()


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("{subject}/*.txt", "E-AMBIGUOUS"),
        ("{subject}/{session}/none.txt", "E-FILE-MISSING"),
        ("{subject}/{visit}.txt", "E-STUDY-VALUE"),
        ("../{subject}.txt", "E-STUDY-VALUE"),
    ],
)
def test_find_companion__refuses(tmp_path, pattern, code):
    touch(tmp_path, "1/a.txt", "1/b.txt")

    with pytest.raises(KconnError) as caught:
        find_companion(tmp_path, pattern, Run(subject="1", session="a", run="1"), what="table of motion")

    assert caught.value.code == code
    if code.startswith("E-FILE"):
        assert "0 files fit '1/a/none.txt' for the table of motion" in caught.value.problem
