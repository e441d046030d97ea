"""Every exclusion of a study: found at each step, counted on the way to the tests, told wherever results are told."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from kconn.exclusions import count_flow, list_exclusions, summarise
from kconn.execution import run_plan
from kconn.io import cubes
from kconn.report.study import write_study_report
from kconn.study.workbench import prepare, writing
from kconn.summary import status_as_json
from tests.small_study import ATLAS, run_file, small_study


def ran(study):
    bench = prepare(study)
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    return bench


def shake(path, *, mm):
    """Let the head jump from frame to frame."""
    table = pd.read_csv(path, sep="\t")
    table["framewise_displacement"] = table["framewise_displacement"] * 0 + mm
    table.to_csv(path, sep="\t", na_rep="n/a", index=False)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left-out")
    half = {"atlas": "half.nii.gz", "min_coverage": 0.2}
    study = small_study(
        folder,
        sessions=("pre", "post"),
        n_subjects_per_group=3,
        quality={"min_frames": 20, "min_dof": 5, "max_mean_fd": 5.0, "min_session_minutes": 1.0, "qc_fc_n_perm": 100},
        nodes={"sim": {"atlas": ATLAS}, "half": half},
        denoise={"confounds": "6P", "high_pass": 0.01, "low_pass": "none", "fd_threshold": 1.0},
        contrasts={"groups": None, "change": {"test": "paired", "change": ["pre", "post"]}},
        inputs={"include": {"sex": ["F", "M"]}},
    )
    people = folder / "derivatives/participants.tsv"
    table = pd.read_csv(people, sep="\t")
    table.loc[table["participant_id"] == "sub-06", "sex"] = "n/a"
    table.to_csv(people, sep="\t", index=False)
    shake(run_file(folder, "01", "desc-confounds_timeseries.tsv", "pre"), mm=0.9)
    shake(run_file(folder, "02", "desc-confounds_timeseries.tsv", "pre"), mm=9.0)
    frames = pd.read_csv(path := run_file(folder, "03", "desc-confounds_timeseries.tsv", "post"), sep="\t")
    frames.loc[5:30, "framewise_displacement"] = 2.0
    frames.to_csv(path, sep="\t", na_rep="n/a", index=False)
    # An atlas of the left half alone, which one run hardly covers.
    atlas = nib.load(folder / ATLAS)
    labels = np.asarray(atlas.dataobj).copy()
    labels[4:] = 0
    nib.save(nib.Nifti1Image(labels, atlas.affine), folder / "half.nii.gz")
    mask = nib.load(path := run_file(folder, "04", "desc-brain_mask.nii.gz", "post"))
    inside = np.asarray(mask.dataobj).copy()
    inside[:3] = 0
    nib.save(nib.Nifti1Image(inside, mask.affine), path)
    return ran(study)


@pytest.fixture(scope="module")
def exclusions(bench):
    return list_exclusions(bench)


def test_list_exclusions__names_step_place_and_reason(exclusions):
    found = {(e.step, e.where, e.left_out_of): e.reason for e in exclusions}
    assert found["participants", "sub-06", "everything"] == "sex is not F or M"
    assert found["run", "sub-02/ses-pre/run-1", "everything"].startswith("E-DF 0 degrees of freedom are left")
    assert found["session", "sub-03/ses-post", "everything"].startswith(
        "0.72 minutes kept in the session, fewer than 1"
    )
    assert not [e for e in exclusions if e.subject == "01"]


def test_list_exclusions__of_a_node_set_leave_the_others_alone(bench, exclusions):
    uncovered = [e for e in exclusions if e.step == "nodes"]
    assert [(e.left_out_of, e.where) for e in uncovered] == [("half", "sub-04/ses-post/run-1")]
    assert "of the voxels of the nodes have data, less than 50%" in uncovered[0].reason
    (sim,) = (step for step in bench.plan.steps if step.address.path == "cohort/sim/corr" and step.stage == "cohort")
    sessions = cubes.open_group(bench.study.store, sim.address)["observation"].to_numpy().tolist()
    assert len(sessions) == 8
    assert {"sub-02_ses-pre", "sub-03_ses-post"}.isdisjoint(sessions)


def test_list_exclusions__contrasts_say_who_is_missing(exclusions):
    missing = {e.subject: e.reason for e in exclusions if e.step == "contrast" and e.left_out_of.startswith("sim/")}
    assert missing == {"02": "no usable run in session pre", "03": "no usable run in session post"}


def test_count_flow__adds_up(bench, exclusions):
    flow = count_flow(bench, exclusions)
    assert [(stage.n_subject, stage.n_session, stage.n_run) for stage in flow] == [
        (6, 12, 12),
        (5, 10, 10),
        (5, 9, 9),
        (5, 8, 8),
    ]
    assert [stage.lost for stage in flow] == [
        (),
        ((1, "subject", "sex is not F or M"),),
        ((1, "run", "too few degrees of freedom"),),
        ((1, "session", "too few minutes in the session"),),
    ]


def test_list_exclusions__stand_beside_the_report_and_in_the_status(bench, exclusions):
    write_study_report(bench)
    table = pd.read_csv(bench.study.folder / "report_exclusions.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert len(table) == len(exclusions)
    assert table["reason"].tolist() == [e.reason for e in exclusions]
    assert set(status_as_json(bench)["left_out"]) == {e.where for e in exclusions}
    page = bench.study.report.read_text(encoding="utf-8")
    for words in ("sessions within the limits", "too few minutes in the session", "sub-03/ses-post"):
        assert words in page


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("E-DF 3 degrees of freedom are left of 90", "too few degrees of freedom"),
        ("12 frames kept, fewer than 50; mean framewise displacement 0.9 mm, above 0.5", None),
        ("no run was found", "no run was found"),
    ],
)
def test_summarise__counts_like_with_like(reason, kind):
    assert summarise(reason) == (kind or "too few frames, mean framewise displacement")
