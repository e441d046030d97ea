"""What can be said of a study before any compute."""

import json

import nibabel as nib
import numpy as np
import pytest

from kconn.errors import StudyFileError
from kconn.study.file import read_study
from kconn.study.plan import make_plan
from kconn.study.survey import survey_study

AFFINE = np.diag([3.0, 3, 3, 1])
IMAGES = """
[study]
name = "images"
[inputs]
layout = "images"
root = "data"
pattern = "{subject}/{session}/rest.nii.gz"
mask_pattern = "mask.nii.gz"
confounds_pattern = "{subject}/{session}/motion.tsv"
space = "MNI152"
[denoise]
confounds = ["x"]
[nodes.spheres]
spheres = [["a", 6, 6, 6]]
radius_mm = 4
"""


def write_images(folder):
    rng = np.random.default_rng(0)
    for name in ("p1/pre", "p1/post", "p2/pre"):
        place = folder / "data" / name
        place.mkdir(parents=True)
        image = nib.Nifti1Image(rng.normal(100, 1, (5, 5, 5, 120)).astype("f4"), AFFINE)
        image.header["pixdim"][4] = 2
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(place / "rest.nii.gz")
        (place / "motion.tsv").write_text("x\n" + "\n".join(map(str, rng.normal(size=120))))
    nib.Nifti1Image(np.ones((5, 5, 5), "u1"), AFFINE).to_filename(folder / "data/mask.nii.gz")


def study_of(folder, text=IMAGES):
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml")


def test_survey_study__images_of_any_pipeline(tmp_path):
    write_images(tmp_path)
    (tmp_path / "data/p1/pre/rest.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    study = study_of(tmp_path)
    survey = survey_study(study)
    assert survey.problems == ()
    assert [run.where for run in survey.runs] == [
        "sub-p1/ses-post/run-1",
        "sub-p1/ses-pre/run-1",
        "sub-p2/ses-pre/run-1",
    ]
    run = survey.runs[1]
    assert (run.n_time, run.n_voxel, run.space, run.template.attrs["t_r"]) == (120, 125, "MNI152", 2.0)
    assert run.files == {
        "bold": "data/p1/pre/rest.nii.gz",
        "mask": "data/mask.nii.gz",
        "confounds": "data/p1/pre/motion.tsv",
        "sidecar": "data/p1/pre/rest.json",
    }
    ingest = make_plan(study, survey).steps[0]
    assert ingest.params == {"layout": "images", "t_r": None, "space": "MNI152", "columns": ["x"]}


def test_survey_study__lists_every_image_that_its_sidecar_contradicts(tmp_path):
    write_images(tmp_path)
    for name in ("p1/pre", "p2/pre"):
        (tmp_path / f"data/{name}/rest.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    survey = survey_study(study_of(tmp_path))
    assert [(problem.code, problem.where) for problem in survey.problems] == [
        ("E-TR-MISMATCH", "sub-p1/ses-pre/run-1"),
        ("E-TR-MISMATCH", "sub-p2/ses-pre/run-1"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('pattern = "{subject}/{session}/rest.nii.gz"\n', "", "needs 'pattern'"),
        ('mask_pattern = "mask.nii.gz"\n', "", "mask_pattern"),
        ('space = "MNI152"', 'orientation = "time-by-node"', "'orientation' belongs to layout tables"),
        ('space = "MNI152"', "has_header = true", "'has_header' belongs to layout tables"),
        ('space = "MNI152"', 'res = "2"', "'res' belongs to layout fmriprep"),
        ('space = "MNI152"', 'space = "../x"', "inputs.space"),
        ('layout = "images"', 'layout = "fmriprep"', "'pattern' belongs to layout images or cifti or tables"),
        ("radius_mm = 4", "radius_mm = 4\nresample = true", "'resample' belongs to atlas"),
    ],
)
def test_read_study__refuses_keys_that_do_not_fit_the_layout(tmp_path, old, new, said):
    with pytest.raises(StudyFileError, match="E-STUDY-VALUE") as caught:
        study_of(tmp_path, IMAGES.replace(old, new))
    assert said in caught.value.problem


def test_survey_study__a_real_image_outside_bids(shared_data, tmp_path):
    path = shared_data / "studyforrest_bold"
    study = study_of(
        tmp_path,
        f"""
[study]
name = "studyforrest"
[inputs]
layout = "images"
root = "{path}"
pattern = "sub-{{subject}}_task-objectcategories_run-{{run}}_bold.nii.gz"
mask = "none"
task = "objectcategories"
t_r = 2.0
[denoise]
confounds = "none"
[nodes.spheres]
spheres = [["a", 0, 0, 0]]
radius_mm = 8
""",
    )
    survey = survey_study(study)
    assert survey.problems == ()
    (run,) = survey.runs
    image = nib.load(next(path.glob("*_bold.nii.gz")))
    assert run.where == "sub-02/ses-1/run-1"
    assert (run.n_time, run.n_voxel) == (image.shape[3], np.prod(image.shape[:3]))
    assert run.run.task == "objectcategories"
