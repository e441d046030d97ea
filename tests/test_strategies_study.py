"""Strategies in a study: files found, bad input refused before compute, and the stages of a run."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from nilearn.signal import clean

from kconn.clean.confounds import Strategy, select_terms
from kconn.clean.denoising import denoise
from kconn.errors import StudyFileError
from kconn.io import cubes, store
from kconn.stages.job import Job, run_job
from kconn.study.file import read_study
from kconn.study.plan import make_plan
from kconn.study.survey import survey_study
from tests.small_study import N_TIME, small_study, write_study

AFFINE = np.diag([3.0, 3, 3, 1])
N_IMAGE = 90
IMAGES = """
[study]
name = "images"
[inputs]
layout = "images"
root = "data"
pattern = "sub-{subject}/run-{run}/rest.nii.gz"
mask_pattern = "mask.nii.gz"
[denoise]
confounds = "none"
high_pass = 0.01
[nodes.spheres]
spheres = [["a", 6, 6, 6]]
radius_mm = 4
"""
MOTION = '[regressors.motion]\npattern = "{subject}/{run}_rp.txt"\nformat = "spm"\n'
ICA = '[components]\nmixing = "{subject}/mix.txt"\nnoise = "{subject}/noise.txt"\n'
MASKS = '[compcor]\nwhite_matter = "wm.nii.gz"\ncsf = "{subject}/csf.nii.gz"\n'


def save(path, data):
    nib.Nifti1Image(data, AFFINE).to_filename(path)


def volume(corner, size):
    data = np.zeros((8, 8, 8), "u1")
    data[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = 1
    return data


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    (data / "sub-p1/run-01").mkdir(parents=True)
    (data / "p1").mkdir()
    mixing = rng.normal(size=(N_IMAGE, 6))
    image = nib.Nifti1Image((100 + rng.normal(size=(8, 8, 8, 6)) @ mixing.T).astype("f4"), AFFINE)
    image.header["pixdim"][4] = 2
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(data / "sub-p1/run-01/rest.nii.gz")
    save(data / "mask.nii.gz", volume((0, 0, 0), (8, 8, 7)))
    save(data / "wm.nii.gz", volume((1, 1, 1), (5, 5, 5)))
    save(data / "p1/csf.nii.gz", volume((0, 6, 0), (8, 2, 8)))
    np.savetxt(data / "p1/1_rp.txt", rng.normal(size=(N_IMAGE, 6)) * 0.1)
    np.savetxt(data / "p1/mix.txt", mixing)
    (data / "p1/noise.txt").write_text("x\n1, Signal, False\n[2, 4]\n")
    return tmp_path


def study_of(folder, confounds, more="", **changes):
    text = IMAGES.replace('confounds = "none"', f"confounds = {json.dumps(confounds)}")
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "study.toml").write_text(text + more)
    return read_study(folder / "study.toml")


def problems_of(study):
    return [(problem.code, problem.where) for problem in survey_study(study).problems]


def run_stages(study, stages=("ingest", "denoise")):
    """Run some stages and return the results of the first run."""
    survey = survey_study(study)
    assert survey.problems == ()
    plan = make_plan(study, survey)
    store.create_store(study.store)
    for step in plan.steps:
        if step.stage in stages:
            job = Job(step=step, folder=study.folder, root=study.store, code=plan.code)
            run_job(job)
    steps = {step.stage: step for step in plan.steps if step.where in {survey.runs[0].where, "cohort"}}
    return [cubes.open_group(study.store, steps[stage].address).load() for stage in stages]


def test_stages__motion_of_spm_stands_for_the_confound_table(folder):
    study = study_of(folder, "24P", MOTION)

    raw, out = run_stages(study)

    table = np.loadtxt(folder / "data/p1/1_rp.txt")
    np.testing.assert_allclose(raw["confounds"], table)
    assert out["regressor"].to_numpy().tolist() == [
        term.name for term in select_terms(raw["confound"].to_numpy().tolist(), "24P")
    ]
    np.testing.assert_allclose(
        out["denoised"], denoise(raw, confounds="24P", high_pass=0.01, low_pass=None)["denoised"]
    )


def test_stages__components_leave_softly(folder):
    study = study_of(folder, "mine", ICA + '[strategies.mine]\ncomponents = "nonaggressive"\n')

    raw, out = run_stages(study)

    assert raw["confounds"].attrs["noise_components"] == [2, 4]
    assert out["regressor"].to_numpy().tolist() == ["component_02", "component_04"]
    assert out["denoised"].attrs["components"] == "nonaggressive"
    # The signal is made of the six components alone: what is left of it is made of those that are signal.
    mixing = raw["confounds"].to_numpy()
    flat = clean(mixing, filter="cosine", high_pass=0.01, t_r=2.0, standardize=None)
    loading = np.linalg.lstsq(flat, out["denoised"].to_numpy().T, rcond=None)[0]
    assert np.abs(loading[[1, 3]]).max() < 1e-4
    assert np.abs(loading[[0, 2, 4, 5]]).max() > 1


def test_stages__compcor_of_masks_is_plain_pca(folder):
    study = study_of(folder, "mine", MASKS + '[strategies.mine]\ncompcor = ["w"]\nn_component = 3\n')

    raw, out = run_stages(study)

    assert out["regressor"].to_numpy().tolist() == [f"w_comp_cor_0{i}" for i in range(3)]
    bold = np.asarray(nib.load(folder / "data/sub-p1/run-01/rest.nii.gz").dataobj)
    wm = volume((1, 1, 1), (5, 5, 5)) > 0
    flat = clean(bold[wm].T, filter="cosine", high_pass=0.01, t_r=2.0, standardize="zscore_sample")
    leading = np.linalg.svd(flat, full_matrices=False)[0][:, :3]
    left = clean(leading, filter="cosine", high_pass=0.01, t_r=2.0, standardize=None)
    residual = out["denoised"].to_numpy()
    assert np.abs(residual @ left).max() < 1e-3 * np.abs(bold).max()
    assert raw.sizes["voxel"] == 8 * 8 * 7


def test_stages__compcor_explains_the_variance_that_is_asked_for(folder):
    masks = MASKS + "erode = 1\n"
    study = study_of(folder, "mine", masks + '[strategies.mine]\ncompcor = ["w"]\nvariance = 0.6\n')

    _, out = run_stages(study)

    bold = np.asarray(nib.load(folder / "data/sub-p1/run-01/rest.nii.gz").dataobj)
    wm = volume((2, 2, 2), (3, 3, 3)) > 0
    flat = clean(bold[wm].T, filter="cosine", high_pass=0.01, t_r=2.0, standardize="zscore_sample")
    explained = np.cumsum(np.linalg.svd(flat, compute_uv=False) ** 2) / np.sum(flat**2)
    assert out.sizes["regressor"] == np.searchsorted(explained, 0.6) + 1


def test_stages__compcor_of_masks_goes_before_that_of_the_table(folder):
    table = np.random.default_rng(0).normal(size=(N_IMAGE, 2))
    np.savetxt(folder / "data/p1/c.tsv", table, delimiter="\t", header="w_comp_cor_00\tcsf", comments="")
    more = MASKS + '[regressors.c]\npattern = "{subject}/c.tsv"\n'
    more += '[strategies.mine]\ncolumns = ["csf"]\ncompcor = ["w"]\nn_component = 2\n'

    raw, out = run_stages(study_of(folder, "mine", more))

    assert out["regressor"].to_numpy().tolist() == ["csf", "w_comp_cor_00", "w_comp_cor_01"]
    theirs = table[:, 0] - table[:, 0].mean()
    assert np.abs(out["denoised"].to_numpy() @ theirs).max() > 1
    assert raw["confound"].to_numpy().tolist() == ["w_comp_cor_00", "csf"]


def test_stages__a_column_per_censored_frame_keeps_every_frame(folder):
    (folder / "data/p1/fd.txt").write_text("\n".join(["0"] * 40 + ["1.5"] + ["0.1"] * 49))
    more = MOTION + '[strategies.mine]\ncolumns = ["6P"]\nspikes = "censored"\n'
    changes = {"high_pass = 0.01": "high_pass = 0.01\nfd_threshold = 0.5"}
    changes |= {'mask_pattern = "mask.nii.gz"': 'mask_pattern = "mask.nii.gz"\nfd_pattern = "{subject}/fd.txt"'}
    (folder / "data/sub-p1/fd.txt").write_text((folder / "data/p1/fd.txt").read_text())
    text = changes.pop('mask_pattern = "mask.nii.gz"').replace("{subject}/fd", "sub-{subject}/fd")

    _, out = run_stages(study_of(folder, "mine", more, **changes, **{'mask_pattern = "mask.nii.gz"': text}))

    assert (int(out["n_spikes"]), int(out["n_frames"]), int(out["n_kept"])) == (1, N_IMAGE, N_IMAGE - 1)
    assert float(out["minutes_kept"]) == pytest.approx((N_IMAGE - 1) * 2 / 60)
    assert out["sample_mask"].to_numpy().all()
    assert np.abs(out["denoised"].to_numpy()[:, 40]).max() < 1e-4


def test_stages__confounds_that_add_nothing_are_named_in_the_quality_table(folder):
    table = np.loadtxt(folder / "data/p1/1_rp.txt")
    table[:, 2] = table[:, 0] - table[:, 1]
    np.savetxt(folder / "data/p1/1_rp.txt", table)

    keep = {"high_pass = 0.01": 'high_pass = 0.01\ndependent = "drop"'}
    _, out, quality = run_stages(study_of(folder, "6P", MOTION, **keep), ("ingest", "denoise", "quality"))

    assert out["regressor_kept"].to_numpy().tolist() == [True, True, False, True, True, True]
    assert quality["redundant"].to_numpy().tolist() == ["trans_z"]


def test_stages__fmriprep_finds_aroma_and_sidecar_beside_the_confounds(tmp_path):
    path = small_study(tmp_path / "s", denoise={"confounds": "aroma", "high_pass": 0.01, "low_pass": None})
    rng = np.random.default_rng(0)
    for table in (tmp_path / "s/derivatives").rglob("*_desc-confounds_timeseries.tsv"):
        stem = table.name.removesuffix("_desc-confounds_timeseries.tsv")
        np.savetxt(table.with_name(f"{stem}_desc-MELODIC_mixing.tsv"), rng.normal(size=(N_TIME, 5)), delimiter="\t")
        table.with_name(f"{stem}_AROMAnoiseICs.csv").write_text("1,5")
        table.with_name(f"{stem}_desc-confounds_timeseries.json").write_text("{}")

    study = read_study(path)
    raw, out = run_stages(study)

    assert out["regressor"].to_numpy().tolist() == ["white_matter", "csf", "component_01", "component_05"]
    assert "confounds_sidecar" in survey_study(study).runs[0].files
    assert raw["confounds"].attrs["noise_components"] == [1, 5]


@pytest.mark.parametrize(
    ("code", "confounds", "more", "spoil"),
    [
        ("E-FILE-MISSING", "24P", MOTION, lambda data: (data / "p1/1_rp.txt").unlink()),
        ("E-CONFOUND-ROWS", "24P", MOTION, lambda data: np.savetxt(data / "p1/1_rp.txt", np.zeros((N_IMAGE - 1, 6)))),
        ("E-CONFOUND-COLUMN", "36P", MOTION, None),
        ("E-CONFOUND-COLUMN", ["wm_.*"], MOTION, None),
        ("E-COMPONENTS", "aroma_aggressive", MOTION + ICA, lambda data: (data / "p1/noise.txt").write_text("1,7")),
        ("E-FILE-MISSING", "fix", "", None),
        ("E-COMPONENTS", "mine", MOTION + '[strategies.mine]\ncomponents = "soft"\n', None),
        (
            "E-MASK-EMPTY",
            "acompcor",
            MOTION + MASKS,
            lambda data: save(data / "wm.nii.gz", volume((0, 0, 7), (8, 8, 1))),
        ),
        ("E-MASK-EMPTY", "acompcor", MOTION + MASKS + "erode = 3\n", None),
        (
            "E-MASK-EMPTY",
            "acompcor",
            MOTION + MASKS,
            lambda data: save(data / "p1/csf.nii.gz", volume((0,) * 3, (0,) * 3)),
        ),
        ("E-GRID", "acompcor", MOTION + MASKS, lambda data: save(data / "wm.nii.gz", np.ones((8, 8, 9), "u1"))),
    ],
)
def test_survey_study__refuses_before_compute(folder, code, confounds, more, spoil):
    if spoil is not None:
        spoil(folder / "data")

    assert problems_of(study_of(folder, confounds, more)) == [(code, "sub-p1/ses-1/run-01")]


@pytest.mark.parametrize(("frame", "code"), [(0, None), (1, "E-CONFOUND-NAN"), (60, "E-CONFOUND-NAN")])
def test_survey_study__refuses_missing_values_beyond_the_first_frame(folder, frame, code):
    table = np.random.default_rng(0).normal(size=(N_IMAGE, 2)).round(3).astype(str)
    table[frame, 1] = "n/a"
    rows = ["\t".join(row) for row in [["csf", "x"], *table.tolist()]]
    (folder / "data/p1/c.tsv").write_text("\n".join(rows))
    more = '[regressors.mine]\npattern = "{subject}/c.tsv"\n'

    assert problems_of(study_of(folder, ["csf"], more)) == []
    expected = [] if code is None else [(code, "sub-p1/ses-1/run-01")]
    assert problems_of(study_of(folder, ["csf", "x"], more)) == expected
    dummies = {"high_pass = 0.01": "high_pass = 0.01\ndummy_frames = 2"}
    assert problems_of(study_of(folder, ["csf", "x"], more, **dummies)) == ([] if frame < 2 else expected)


@pytest.mark.parametrize("spoil", ["sum", "constant", "double"])
def test_survey_study__names_the_confounds_that_are_kept_of_dependent_ones(folder, spoil):
    table = np.loadtxt(folder / "data/p1/1_rp.txt")
    table[:, 2] = {"sum": table[:, 0] - 3 * table[:, 1], "constant": 0.25, "double": table[:, 1]}[spoil]
    np.savetxt(folder / "data/p1/1_rp.txt", table)

    (problem,) = survey_study(study_of(folder, "6P", MOTION)).problems

    assert (problem.code, problem.where) == ("E-CONFOUND-RANK", "sub-p1/ses-1/run-01")
    assert "trans_z are constant, or sums of the others: trans_x, trans_y, rot_x" in problem.problem
    keep = {"high_pass = 0.01": 'high_pass = 0.01\ndependent = "drop"'}
    assert problems_of(study_of(folder, "6P", MOTION, **keep)) == []


def test_survey_study__a_column_of_a_frame_that_is_dropped_is_not_dependent(folder):
    spike = np.zeros((N_IMAGE, 1), dtype=int)
    spike[1] = 1
    rows = ["motion_outlier00", *(str(value[0]) for value in spike)]
    (folder / "data/p1/spikes.tsv").write_text("\n".join(rows))
    more = '[regressors.s]\npattern = "{subject}/spikes.tsv"\n[strategies.mine]\nspikes = "columns"\n'
    dummies = {"high_pass = 0.01": "high_pass = 0.01\ndummy_frames = 2"}

    assert problems_of(study_of(folder, "mine", more, **dummies)) == []


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ("fd_threshold = 1e-9", "E-DF"),
        ("fd_threshold = 1e-9\nmin_segment = 2", "E-NO-FRAMES"),
        ('filter = "butterworth"\nlow_pass = 0.1\nfd_threshold = 1e-9\nmin_segment = 2', "E-NO-FRAMES"),
        ("low_pass = 0.02", "E-DF"),
    ],
)
def test_survey_study__refuses_a_study_of_which_denoising_would_leave_nothing(folder, keys, code):
    study = study_of(folder, "6P", MOTION, **{"high_pass = 0.01": f"high_pass = 0.01\n{keys}"})

    assert problems_of(study) == [(code, "sub-p1/ses-1/run-01")]


def test_survey_study__tells_which_run_will_be_left_out_and_goes_on(folder):
    data = folder / "data"
    shutil.copytree(data / "sub-p1", data / "sub-p2")
    shutil.copytree(data / "p1", data / "p2")
    still = np.random.default_rng(1).normal(size=(N_IMAGE, 6)) * 1e-4
    np.savetxt(data / "p2/1_rp.txt", still)

    survey = survey_study(
        study_of(folder, "6P", MOTION, **{"high_pass = 0.01": "high_pass = 0.01\nfd_threshold = 0.1"})
    )

    assert survey.problems == ()
    assert [(run.where, run.left_out and run.left_out.code) for run in survey.runs] == [
        ("sub-p1/ses-1/run-01", "E-DF"),
        ("sub-p2/ses-1/run-01", None),
    ]


@pytest.mark.parametrize(
    ("limit", "more", "code"),
    [
        ("[quality]\nmax_mean_fd = 0.5\n", "", "E-FILE-MISSING"),
        ("[quality]\nmax_mean_fd = 0.5\n", '[regressors.c]\npattern = "{subject}/c.tsv"\n', "E-CONFOUND-COLUMN"),
        ("[quality]\nmax_mean_fd = 0.5\n", MOTION, None),
    ],
)
def test_survey_study__refuses_a_limit_on_motion_that_is_not_known(folder, limit, more, code):
    (folder / "data/p1/c.tsv").write_text("csf\n" + "\n".join(map(str, range(N_IMAGE))))

    assert problems_of(study_of(folder, "none", limit + more)) == (
        [] if code is None else [(code, "sub-p1/ses-1/run-01")]
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[strategies.mine]\ncolums = ["csf"]\n', "unknown key 'strategies.mine.colums'"),
        ('[regressors.a]\npattern = "x"\nunits = "mm"\n', "unknown key 'regressors.a.units'"),
        ("[compcor]\nerosion = 1\n", "unknown key 'compcor.erosion'"),
        ("[strategies.mine]\nderivatives = true\n", "it removes nothing"),
        ('[strategies.mine]\ncompcor = ["w"]\nn_component = 3\nvariance = 0.5\n', "not both"),
        ('[strategies.mine]\ncolumns = ["6P"]\nvariance = 0.5\n', "belong to compcor"),
        ('[strategies.mine]\ncompcor = ["w", "w"]\n', "twice"),
        ('[strategies.mine]\ncompcor = ["g"]\n', "strategies.mine.compcor"),
        ('[strategies.mine]\ncolumns = ["6P"]\ncomponents = "gentle"\n', "'nonaggressive'"),
        ('[strategies.36P]\ncolumns = ["6P"]\n', "pattern"),
        ('[strategies.fix]\ncolumns = ["6P"]\n', "there is a preset of that name"),
        ('[regressors.a]\npattern = "x"\nformat = "spm"\ncolumns = ["a"]\n', "'columns' belongs to format table"),
        ('[regressors.a]\npattern = "x"\nhrf = "spm"\n', "'hrf' belongs to format events"),
        ('[regressors.a]\npattern = "x"\nslice_time_ref = 0.5\n', "'slice_time_ref' belongs to format events"),
    ],
)
def test_read_study__refuses_strategies_that_say_nothing_or_too_much(folder, more, said):
    with pytest.raises(StudyFileError) as caught:
        study_of(folder, "none", more)

    assert said in caught.value.problem


@pytest.mark.parametrize(
    ("confounds", "more", "said"),
    [
        ("35P", "", "did you mean '36P'"),
        ("mine", '[strategies.mime]\ncolumns = ["6P"]\n', "did you mean 'mime'"),
        ("mine", MASKS + '[strategies.mine]\ncompcor = ["w"]\n', "need n_component or variance"),
        ("mine", MASKS + '[strategies.mine]\ncompcor = ["t"]\nn_component = 2\n', "it has no mask"),
        ("acompcor", '[compcor]\ncsf = "c.nii"\n', "need the mask 'white_matter'"),
    ],
)
def test_read_study__refuses_confounds_that_it_does_not_know(folder, confounds, more, said):
    with pytest.raises(StudyFileError, match="E-STUDY-VALUE") as caught:
        study_of(folder, confounds, more)

    assert said in caught.value.problem


def test_make_plan__a_strategy_changes_the_denoising_and_not_the_reading(folder):
    first = study_of(folder, "mine", MOTION + '[strategies.mine]\ncolumns = ["6P"]\n')
    second = study_of(folder, "mine", MOTION + '[strategies.mine]\ncolumns = ["6P"]\nderivatives = true\n')

    before, after = (make_plan(study, survey_study(study)).steps for study in (first, second))

    assert [step.key for step in before[:1]] == [step.key for step in after[:1]]
    assert before[1].key != after[1].key
    params = after[1].params
    assert json.loads(json.dumps(params)) == params
    assert Strategy.of(params["strategy"]) == second.strategy


def test_survey_study__of_tables_takes_regressors_but_no_masks(tmp_path):
    (tmp_path / "t").mkdir()
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "t/1.txt", rng.normal(size=(60, 5)))
    np.savetxt(tmp_path / "t/1.par", rng.normal(size=(60, 6)) * 0.01)
    inputs = {"layout": "tables", "root": "t", "pattern": "{subject}.txt", "orientation": "time-by-node", "t_r": 2.0}
    inputs |= {"participants": None}
    tables = {
        "inputs": inputs,
        "nodes": {"sim": {"columns": "all"}},
        "regressors": {"motion": {"pattern": "{subject}.par", "format": "fsl"}},
        "contrasts": {"groups": {"test": "one-sample"}},
    }

    study = read_study(write_study(tmp_path, **tables, denoise={"confounds": "6P", "high_pass": 0.01}))

    (run,) = survey_study(study).runs
    assert run.files["regressors:motion"] == "t/1.par"
    with pytest.raises(StudyFileError, match="masks need images"):
        read_study(
            write_study(tmp_path, **tables, denoise={"confounds": "acompcor"}, compcor={"white_matter": "w.nii"})
        )
