"""The denoising keys of the study file: what the stages make of them, and what is refused before compute."""

import numpy as np
import pandas as pd
import pytest

from kconn.clean.censoring import censor
from kconn.clean.denoising import denoise
from kconn.clean.despiking import despike
from kconn.clean.smoothing import smooth
from kconn.io import cubes, store
from kconn.report.bibliography import Bibliography
from kconn.report.methods import _denoising
from kconn.stages.job import Job, run_job
from kconn.study.file import read_study
from kconn.study.plan import make_plan
from kconn.study.survey import survey_study
from tests.small_study import small_study


def run_first(study):
    """Ingest and denoise the first run and return both groups."""
    survey = survey_study(study)
    assert survey.problems == ()
    plan = make_plan(study, survey)
    store.create_store(study.store)
    for stage in ("ingest", "denoise"):
        step = next(step for step in plan.steps if step.stage == stage)
        run_job(Job(step=step, folder=study.folder, root=study.store, code=plan.code))
        yield cubes.open_group(study.store, step.address).load()


def test_denoise_run__does_what_the_study_file_says(tmp_path):
    plain = read_study(small_study(tmp_path / "plain"))
    keys = {
        "filter": "butterworth",
        "bridge": "lomb-scargle",
        "standardize": "psc",
        "despike": True,
        "smoothing_fwhm": 5.0,
        "fd_threshold": 0.2,
        "fd_kind": "power",
        "fd_radius": 40.0,
        "motion_filter": [0.2, 0.3],
        "dvars_threshold": 2.5,
        "censor_before": 1,
        "censor_after": 1,
        "min_segment": 3,
    }
    chosen = read_study(small_study(tmp_path / "chosen", denoise=keys))

    raw, _ = run_first(plain)
    smoothed, actual = run_first(chosen)

    expected = smooth(raw.assign(bold=raw["bold"].astype("f4")), fwhm=5.0)
    np.testing.assert_allclose(smoothed["bold"], expected["bold"], rtol=1e-6)
    kept = censor(
        smoothed,
        fd_threshold=0.2,
        dvars_threshold=2.5,
        n_before=1,
        n_after=1,
        min_segment=3,
        radius=40.0,
        motion_filter=(0.2, 0.3),
    )
    clean = denoise(
        despike(kept),
        confounds="6P",
        high_pass=0.01,
        low_pass=0.2,
        filter="butterworth",
        bridge="lomb-scargle",
        standardize="psc",
        min_dof=5,
    )
    np.testing.assert_array_equal(actual["sample_mask"], kept["sample_mask"])
    assert 0 < (~kept["sample_mask"]).sum() < 40
    np.testing.assert_array_equal(actual["denoised"], clean["denoised"])
    assert actual["despiked_share"] == clean["despiked_share"] > 0
    assert "bold" not in actual


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("E-BAND", {"motion_filter": 0.9}),
        ("E-BAND", {"motion_filter": [0.3, 0.2]}),
        ("E-BAND", {"high_pass": 0.1, "low_pass": 0.1}),
        ("E-BAND", {"low_pass": 0.7}),
        ("E-BAND", {"high_pass": -0.01}),
    ],
)
def test_survey_study__refuses_bands_before_compute(tmp_path, code, keys):
    study = read_study(small_study(tmp_path / "study", denoise={"fd_threshold": 0.5, **keys}))

    assert {problem.code for problem in survey_study(study).problems} == {code}


@pytest.mark.parametrize("key", ["smoothing_fwhm", "fd_radius", "dvars_threshold", "bridge", "standardize", "fd_kind"])
def test_read_study__refuses_values(tmp_path, key):
    file = small_study(tmp_path / "study", denoise={key: -1})

    with pytest.raises(Exception, match="E-STUDY-VALUE"):
        read_study(file)


def test_survey_study__refuses_to_smooth_node_series(tmp_path):
    np.savetxt(tmp_path / "sub-1.tsv", np.random.default_rng(0).normal(size=(90, 4)), delimiter="\t")
    (tmp_path / "study.toml").write_text(
        '[study]\nname = "t"\n[inputs]\nlayout = "tables"\nroot = "."\npattern = "sub-{subject}.tsv"\n'
        'orientation = "time-by-node"\nt_r = 2.0\n[denoise]\nconfounds = "none"\nsmoothing_fwhm = 6.0\n'
        '[nodes.all]\ncolumns = "all"\n'
    )

    survey = survey_study(read_study(tmp_path / "study.toml"))

    assert [problem.code for problem in survey.problems] == ["E-SMOOTH"]


@pytest.mark.parametrize(("t_r", "code"), [(2000.0, "E-TR-RANGE"), (0.05, "E-TR-RANGE"), (2.0, None)])
def test_survey_study__refuses_milliseconds_of_tables_without_any_filter(tmp_path, t_r, code):
    np.savetxt(tmp_path / "sub-1.tsv", np.random.default_rng(0).normal(size=(90, 4)), delimiter="\t")
    (tmp_path / "study.toml").write_text(
        '[study]\nname = "t"\n[inputs]\nlayout = "tables"\nroot = "."\npattern = "sub-{subject}.tsv"\n'
        f'orientation = "time-by-node"\nt_r = {t_r}\n[denoise]\nconfounds = "none"\nhigh_pass = "none"\n'
        '[nodes.all]\ncolumns = "all"\n'
    )

    found = [(each.code, each.where) for each in survey_study(read_study(tmp_path / "study.toml")).problems]

    assert found == ([] if code is None else [(code, "sub-1/ses-1/run-1")])


@pytest.mark.parametrize(
    ("names", "code"),
    [(["age", "sexx"], "E-DESIGN-FORMULA"), (["age"], "E-COV-NAN"), (["group"], None)],
)
def test_survey_study__refuses_covariates_of_qc_fc_that_are_not_there(tmp_path, names, code):
    study = read_study(small_study(tmp_path / "study", quality={"qc_fc_covariates": names}))
    table = pd.read_csv(study.folder / "derivatives/participants.tsv", sep="\t")
    table["age"] = table["age"].astype(float)
    table.loc[1, "age"] = np.nan
    table.to_csv(study.folder / "derivatives/participants.tsv", sep="\t", index=False, na_rep="n/a")

    found = [(each.code, each.where.split(",")[0]) for each in survey_study(study).problems]

    assert found == ([] if code is None else [(code, "quality.qc_fc_covariates")])


def test_methods__say_how_frames_and_signal_were_prepared():
    table = {"smoothing_fwhm": 6.0, "despike": True, "fd_threshold": 0.3, "fd_kind": "jenkinson"}
    table |= {"motion_filter": [0.2, 0.3], "dvars_threshold": 1.5}

    text = _denoising({"denoise": {"confounds": "none", **table}}, Bibliography())

    assert "smoothed inside their mask with a Gaussian of 6 mm FWHM" in text
    assert "running median of their voxel were drawn towards it [1]" in text
    assert (
        "displacement above 0.3 mm [2] (of motion without 0.2 to 0.3 Hz [3]) or a standardised DVARS above 1.5" in text
    )
