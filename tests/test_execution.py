"""Walking a plan: a failure stops its own run only, workers that die have a name, everything is told once."""

import importlib
import os
import shutil
import signal
from collections import Counter

import pytest
from distributed import Client
from distributed.diagnostics.plugin import WorkerPlugin

from kconn import execution
from kconn.cluster import connect
from kconn.errors import InputError, KconnError, ResourceError
from kconn.execution import run_plan
from kconn.io import store
from kconn.stages import STAGES
from kconn.study.workbench import prepare, writing
from tests.small_study import small_study
from tests.table_study import table_study

ONE_SAMPLE = {"groups": None, "mean": {"test": "one-sample"}}


def walk(bench, client=None):
    """Run a plan; return its events and its error."""
    events, error = [], None
    with writing(bench):
        try:
            run_plan(bench.plan, bench.bind, client=client, listen=events.append)
        except KconnError as raised:
            error = raised
    return events, error


def refuse_one(job):
    """Stand in for a stage that meets bad input in one run."""
    if job.step.where.startswith("sub-02"):
        raise InputError("E-TABLE", "it is bad", rule="it is good")
    return STAGES_BEFORE[job.step.stage](job)


STAGES_BEFORE = dict(STAGES)


def test_run_plan__a_failure_stops_its_own_run_and_the_cohort(tmp_path, monkeypatch):
    bench = prepare(small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE))
    monkeypatch.setitem(STAGES, "denoise", refuse_one)
    events, error = walk(bench)
    assert (error.code, error.where) == ("E-TABLE", "sub-02/ses-pre/run-1")
    outcomes = Counter((event.stage, event.outcome) for event in events)
    assert outcomes == {
        ("ingest", "made"): 2,
        ("denoise", "made"): 1,
        ("denoise", "failed"): 1,
        ("nodes", "made"): 1,
        ("nodes", "skipped"): 1,
        ("netmat", "made"): 1,
        ("netmat", "skipped"): 1,
    }
    monkeypatch.undo()
    events, error = walk(bench)
    assert error is None
    assert Counter(event.outcome for event in events) == {"kept": 5, "made": 9}
    assert len(bench.pending()) == 0


def test_run_plan__a_contrast_that_fails_stops_no_other(tmp_path, monkeypatch):
    contrasts = {"groups": None, "mean": {"test": "one-sample"}, "other": {"test": "one-sample"}}
    bench = prepare(small_study(tmp_path, n_subjects_per_group=1, contrasts=contrasts))

    def refuse(job):
        if job.step.where.endswith("/mean"):
            raise InputError("E-TABLE", "it is bad", rule="it is good")
        return STAGES_BEFORE["test"](job)

    monkeypatch.setitem(STAGES, "test", refuse)
    events, error = walk(bench)
    assert error.where.endswith("/mean")
    tests = {event.where.split("/")[-1]: event.outcome for event in events if event.stage == "test"}
    assert tests == {"mean": "failed", "other": "made"}


def test_run_plan__an_error_that_nobody_foresaw_has_its_place_and_keeps_its_traceback(tmp_path, monkeypatch):
    bench = prepare(small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE))
    monkeypatch.setitem(STAGES, "ingest", lambda _: 1 / 0)
    _, error = walk(bench)
    assert (error.code, error.where) == ("E-INTERNAL", "sub-01/ses-pre/run-1")
    assert "ZeroDivisionError" in error.details
    assert "ZeroDivisionError: division" not in str(error)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(OSError(28, "No space left"), "E-DISK"), (MemoryError(), "E-MEM"), (PermissionError(13, "no"), "E-PERMISSION")],
)
def test_run_plan__names_what_the_machine_lacks(tmp_path, monkeypatch, raised, code):
    bench = prepare(small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE))

    def lack(_):
        raise raised

    monkeypatch.setitem(STAGES, "ingest", lack)
    _, error = walk(bench)
    assert isinstance(error, ResourceError)
    assert error.code == code
    assert error.where.startswith("sub-01/ses-pre/run-1")


def test_run_plan__refuses_other_code(tmp_path, monkeypatch):
    bench = prepare(small_study(tmp_path, n_subjects_per_group=1, contrasts=ONE_SAMPLE))
    monkeypatch.setattr("kconn.stages.job.code_version", lambda: "0+other")
    _, error = walk(bench)
    assert error.code == "E-CODE-VERSION"
    assert store.find_published(bench.study.store) == []


@pytest.fixture
def here():
    """Return a client whose only worker is a thread of this process."""
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        yield client


def test_run_plan__the_scheduler_knows_of_few_runs_at_a_time(tmp_path, monkeypatch, here):
    monkeypatch.setattr(execution, "_CHAINS_AT_ONCE", 2)
    bench = prepare(table_study(tmp_path, n_subject=9))
    known, events = [], []

    def listen(event):
        events.append(event)
        known.append(len(here.cluster.scheduler.tasks))

    with writing(bench):
        run_plan(bench.plan, bench.bind, client=here, listen=listen)
    assert Counter(event.outcome for event in events) == {"made": 9 * 4 + 6}
    assert max(known) <= 3 * 4  # one run may be let go of a moment late
    assert [event.where for event in events if event.stage == "ingest"] == sorted(bench.plan.runs())


def test_run_plan__a_full_disk_begins_no_other_run_and_tells_of_all(tmp_path, monkeypatch, here):
    monkeypatch.setattr(execution, "_CHAINS_AT_ONCE", 2)
    bench = prepare(table_study(tmp_path, n_subject=6))

    def lack(job):
        if job.step.where.startswith("sub-001"):
            raise OSError(28, "No space left")
        return STAGES_BEFORE["denoise"](job)

    monkeypatch.setitem(STAGES, "denoise", lack)
    events, error = walk(bench, here)
    assert error.code == "E-DISK"
    outcomes = Counter(event.outcome for event in events)
    assert outcomes["failed"] == 1
    assert sum(outcomes.values()) == 6 * 4
    assert {event.outcome for event in events if event.where.startswith(("sub-004", "sub-005"))} == {"skipped"}


def worker_plugin(action, where):
    """Return a plugin that makes a stage do something on every worker, also on one that was started anew."""

    class Instead(WorkerPlugin):
        def setup(self, worker):  # noqa: ARG002 - the signature of Dask
            stages = importlib.import_module("kconn.stages").STAGES  # the worker's own: a global would be a copy
            plain = stages["nodes"]

            def stage(job):
                if job.step.where.startswith(where):
                    if action == "refuse":
                        raise InputError("E-TABLE", "it is bad", rule="it is good")
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(job)

            stages["nodes"] = stage

    return Instead()


@pytest.mark.slow
@pytest.mark.faults("workers")
@pytest.mark.parametrize(("action", "code"), [("refuse", "E-TABLE"), ("die", "E-WORKER")])
def test_run_plan__on_workers_a_failure_stops_its_own_run(tmp_path, action, code):
    bench = prepare(small_study(tmp_path, contrasts=ONE_SAMPLE))
    with connect(n_workers=2) as client:
        client.register_plugin(worker_plugin(action, "sub-02"))
        events, error = walk(bench, client)
    assert (error.code, error.where) == (code, "sub-02/ses-pre/run-1")
    if action == "die":
        assert "workers died at nodes" in error.problem
        assert "MB for this step" in error.rule
    ended = {(event.stage, event.where[:6]): event.outcome for event in events}
    assert {key for key, outcome in ended.items() if outcome in {"failed", "skipped"}} == {
        ("nodes", "sub-02"),
        ("netmat", "sub-02"),
    }
    assert ended["nodes", "sub-02"] == "failed"
    assert ended["netmat", "sub-02"] == "skipped"
    assert len(events) == len(ended) == 16
    with connect(n_workers=1) as client:
        events, error = walk(bench, client)
    assert error is None
    assert Counter(event.outcome for event in events)["kept"] == 14
    shutil.rmtree(bench.study.store)
