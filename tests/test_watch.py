"""A study that grows: only what changed is computed, and what is not whole yet is left for the next time."""

import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from flows.arriving import look_for_arrivals
from flows.declaring import Resources
from flows.study import run_study
from flows.watch import run_watch
from kconn.io import store
from kconn.study.plan import COHORT_STAGES, RUN_STAGES
from kconn.study.workbench import prepare, writing
from tests.small_study import run_file, small_study
from tests.table_study import add_subject, last_log, steps_of, table_study
from tests.warm_shell import ROOT

pytestmark = pytest.mark.usefixtures("prefect_server")
HERE = Resources(workers=0)
ONE_SAMPLE = {"groups": None, "mean": {"test": "one-sample"}}


def watch(study, **options):
    return run_watch(str(study), resources=HERE, **{"settle_minutes": 0.0, **options})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n_subject", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_run_watch__one_more_session_costs_one_session(n_subject, tmp_path):
    study = table_study(tmp_path / "grown", n_subject=n_subject)
    watch(study)
    first = Counter(stage for stage, _ in steps_of(study))
    add_subject(study.parent, f"{n_subject:03d}")
    watch(study)
    second = Counter(stage for stage, _ in steps_of(study))
    stages = [stage for stage in RUN_STAGES if first[stage]]
    assert {stage: first[stage] for stage in stages} == dict.fromkeys(stages, n_subject)
    assert {stage: second[stage] for stage in stages} == dict.fromkeys(stages, 1)
    assert {where for stage, where in steps_of(study) if stage in RUN_STAGES} == {f"sub-{n_subject:03d}/ses-1/run-1"}
    cohort = [stage for stage in COHORT_STAGES if first[stage]]
    assert {stage: second[stage] for stage in cohort} == {stage: first[stage] for stage in cohort}
    whole = table_study(tmp_path / "whole", n_subject=n_subject + 1)
    run_study(str(whole), resources=HERE)
    assert store.digest_store(study.parent / "study.zarr") == store.digest_store(whole.parent / "study.zarr")


def test_run_watch__does_nothing_where_nothing_is_new(tmp_path):
    study = table_study(tmp_path / "study", n_subject=3)
    watch(study)
    n_log, report = len(last_log(study)), (tmp_path / "study" / "report.html").stat().st_mtime_ns
    assert watch(study) == "0 steps were missing, 0 runs are left for the next time"
    assert len(last_log(study)) == n_log
    assert (tmp_path / "study" / "report.html").stat().st_mtime_ns == report


def test_run_watch__a_changed_run_is_made_anew_alone(tmp_path):
    study = table_study(tmp_path / "study", n_subject=3)
    watch(study)
    path = tmp_path / "study" / "series" / "sub-001.tsv"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    watch(study)
    assert {where for stage, where in steps_of(study) if stage in RUN_STAGES} == {"sub-001/ses-1/run-1"}
    assert "quality" in {stage for stage, _ in steps_of(study)}


def test_run_watch__leaves_what_is_not_whole(tmp_path):
    study = small_study(tmp_path / "study", contrasts=ONE_SAMPLE)
    folder = study.parent
    bold, confounds = run_file(folder, "03", "desc-preproc_bold.nii.gz"), run_file(folder, "04", CONFOUNDS)
    whole, later = bold.read_bytes(), confounds.read_bytes()
    bold.write_bytes(whole[: len(whole) // 2])
    confounds.unlink()
    told = watch(study)
    assert "2 runs are left for the next time" in told
    ended = {where for stage, where in steps_of(study) if stage == "netmat"}
    assert ended == {"sub-01/ses-pre/run-1", "sub-02/ses-pre/run-1"}
    assert (folder / "report.html").exists()
    assert store.verify(folder / "study.zarr")[1] == []
    bold.write_bytes(whole)
    confounds.write_bytes(later)
    assert "0 runs are left" in watch(study)
    assert {where[:6] for stage, where in steps_of(study) if stage == "ingest"} == {"sub-03", "sub-04"}


def test_run_watch__a_known_run_that_is_broken_makes_the_cohort_wait(tmp_path):
    study = table_study(tmp_path / "study", n_subject=3)
    watch(study)
    cohort = _cohort(study)
    path = tmp_path / "study" / "series" / "sub-001.tsv"
    path.write_text(path.read_text()[:200] + "\tx\n")
    add_subject(tmp_path / "study", "003")
    assert "the cohort waits: sub-001/ses-1/run-1 was part of it: E-TABLE" in watch(study)
    assert {where for _, where in steps_of(study)} == {"sub-003/ses-1/run-1"}
    assert _cohort(study) == cohort


def test_look_for_arrivals__says_why_a_run_waits(tmp_path):
    study = table_study(tmp_path / "study", n_subject=3)
    add_subject(tmp_path / "study", "003", row=False)
    old = time.time() - 3600
    for path in (tmp_path / "study" / "series").iterdir():
        os.utime(path, (old, old))  # as a copy does that keeps the times of its original
    found = look_for_arrivals(study, settle_seconds=60, refused={})
    assert found.bench is None
    assert found.waiting["sub-000/ses-1/run-1"] == "a file changed less than 1 min ago"
    found = look_for_arrivals(study, settle_seconds=0, refused={"sub-000/ses-1/run-1": "why"})
    assert found.waiting == {
        "sub-000/ses-1/run-1": "why",
        "sub-003/ses-1/run-1": "the participants table has no row for it",
    }
    assert set(found.bench.plan.runs()) == {"sub-001/ses-1/run-1", "sub-002/ses-1/run-1"}


def test_look_for_arrivals__a_new_run_without_its_sidecar_waits(tmp_path):
    study = small_study(tmp_path / "study", contrasts=ONE_SAMPLE)
    sidecar = run_file(study.parent, "04", "desc-preproc_bold.json")
    kept = sidecar.read_bytes()
    sidecar.unlink()
    without = look_for_arrivals(study, settle_seconds=0, refused={})
    assert without.waiting == {}  # nothing is known yet that it could be compared with
    aside = study.parent / "derivatives" / "sub-04"
    aside.rename(study.parent / "sub-04")
    watch(study)
    (study.parent / "sub-04").rename(aside)
    found = look_for_arrivals(study, settle_seconds=0, refused={})
    assert found.waiting == {"sub-04/ses-pre/run-1": "it has no sidecar yet, all runs before have"}
    sidecar.write_bytes(kept)
    assert look_for_arrivals(study, settle_seconds=0, refused={}).waiting == {}


def test_run_watch__while_another_writes_says_so(tmp_path):
    study = table_study(tmp_path / "study", n_subject=2)
    with writing(prepare(study)):
        command = [sys.executable, "-c", _IN_A_PROCESS, str(study)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("E-STORE-LOCKED another process is writing to 'study.zarr'")
    assert "Skipped" in ended.stderr
    assert "flows/watch.py" not in ended.stderr  # a traceback of ours; Prefect's server logs some of its own


def test_run_watch__before_the_first_run_is_there(tmp_path):
    study = table_study(tmp_path / "study", n_subject=0)
    assert watch(study) == "0 steps were missing, 0 runs are left for the next time"


CONFOUNDS = "desc-confounds_timeseries.tsv"
_IN_A_PROCESS = (
    "import sys\n"
    "from flows.declaring import Resources\n"
    "from flows.watch import run_watch\n"
    "print(run_watch(sys.argv[1], resources=Resources(workers=0), settle_minutes=0.0))\n"
)


def _cohort(study):
    root = study.parent / "study.zarr"
    return {
        str(address): store.current_key(root, address)
        for address in store.find_published(root)
        if not address.path.startswith("sub-")
    }
