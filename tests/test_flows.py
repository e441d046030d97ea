"""Flows: the seals decide what is done, only what may pass is tried again, nothing writes after the end."""

import importlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from distributed.diagnostics.plugin import WorkerPlugin
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows import walking
from flows.connectivity import run_connectivity
from flows.declaring import Resources
from flows.inference import run_inference
from flows.ingest import run_ingest
from flows.places import REPORTS_URL, STUDIES, link_report, locate_study
from flows.server import embedded_server
from flows.shell import run_from_shell
from flows.study import run_study
from kconn.cli import EXIT_ERROR
from kconn.cluster import connect
from kconn.cluster.overdue import watched
from kconn.errors import InputError, KconnError, ResourceError, StudyFileError
from kconn.execution import run_chain, run_plan
from kconn.io import store
from kconn.stages import STAGES
from kconn.study.workbench import prepare, writing
from tests.small_study import small_study
from tests.table_study import last_log, steps_of, table_study
from tests.warm_shell import ROOT

ONE_SAMPLE = {"groups": None, "mean": {"test": "one-sample"}}
HERE = Resources(workers=0)
STAGES_BEFORE = dict(STAGES)


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(walking, "RETRY_DELAYS", [0.1, 0.1])


def artifact(key):
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return max(found, key=lambda one: one.created).data


@pytest.mark.usefixtures("prefect_server")
def test_flows__of_the_stages_make_what_the_flow_of_the_study_makes(tmp_path):
    whole, parts = (table_study(tmp_path / name, n_subject=3) for name in ("whole", "parts"))
    with pytest.raises(KconnError, match=r"denoise reads .*:ingest, which was not made from these") as refused:
        run_connectivity(str(parts), resources=HERE)
    assert refused.value.code == "E-STORE-UNSEALED"
    run_ingest(str(parts), resources=HERE)
    assert {stage for stage, _ in steps_of(parts)} == {"ingest"}
    run_connectivity(str(parts), resources=HERE)
    assert not {"ingest", "test"} & {stage for stage, _ in steps_of(parts)}
    assert run_inference(str(parts), resources=HERE) == run_study(str(whole), resources=HERE)
    assert {stage for stage, _ in steps_of(parts)} == {"test"}
    series = tmp_path / "parts" / "series" / "sub-001.tsv"
    series.write_text(series.read_text().replace("0.", "1.", 1))
    with pytest.raises(KconnError, match="run the flows in their order"):
        run_connectivity(str(parts), resources=HERE)  # the series that lies there is that of the old file


@pytest.mark.usefixtures("prefect_server")
def test_run_study__the_store_decides_what_is_done(tmp_path):
    study = table_study(tmp_path / "study", n_subject=3)
    digest = run_study(str(study), resources=HERE)
    n_step = len(steps_of(study))
    assert run_study(str(study), resources=HERE) == digest
    assert steps_of(study) == []
    shutil.rmtree(tmp_path / "study" / "study.zarr" / "sub-001/ses-1/run-1/denoise")
    assert run_study(str(study), resources=HERE) == digest
    assert steps_of(study) == [("denoise", "sub-001/ses-1/run-1")]
    shutil.rmtree(tmp_path / "study" / "study.zarr")
    assert run_study(str(study), resources=HERE) == digest
    assert len(steps_of(study)) == n_step


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("resources", "code"),
    [
        (Resources(cluster="slurm", scheduler="tls://127.0.0.1:1"), "E-ARGUMENT"),
        (Resources(scheduler="tls://127.0.0.1:1", tls="nowhere"), "E-FILE-MISSING"),
    ],
)
def test_run_study__asks_for_workers_as_the_command_does(resources, code, tmp_path):
    study = table_study(tmp_path, n_subject=3)
    with pytest.raises(KconnError) as caught:
        run_study(str(study), resources=resources)
    assert caught.value.code == code
    assert steps_of(study) == []


@pytest.mark.usefixtures("prefect_server")
def test_run_study__shows_report_quality_progress_and_exclusions(tmp_path, monkeypatch):
    monkeypatch.setenv(STUDIES, str(tmp_path))
    monkeypatch.setenv(REPORTS_URL, "https://lab.example/studies/")
    study = table_study(tmp_path / "one", n_subject=3)
    table = tmp_path / "one" / "series" / "sub-002.tsv"
    table.write_text("\n".join(table.read_text().splitlines()[:15]) + "\n")  # 14 frames, and min_frames is 20
    run_study("one/study.toml", resources=HERE)
    assert artifact("report") == "[tables: report](https://lab.example/studies/one/report.html)"
    assert artifact("progress") == 100
    assert "| sub-002/ses-1/run-1 | everything | " in artifact("exclusions")
    quality = json.loads(artifact("quality"))
    assert [row["run"] for row in quality] == [f"sub-{i:03d}/ses-1/run-1" for i in range(3)]
    assert [bool(row["left out because"]) for row in quality] == [False, False, True]
    assert str(tmp_path) not in "".join(map(str, (artifact("report"), quality)))
    with pytest.raises(StudyFileError, match="lies outside the folder of studies"):
        locate_study(str(study.parent.parent / ".." / "other.toml"))
    monkeypatch.delenv(REPORTS_URL)
    assert link_report(study.parent / "report.html") is None


@pytest.mark.usefixtures("prefect_server", "quick_retries")
@pytest.mark.parametrize(("stage", "n_call"), [("denoise", 3), ("quality", 2)])
def test_run_study__tries_again_what_may_pass(stage, n_call, tmp_path, monkeypatch):
    study = table_study(tmp_path / "study", n_subject=2)
    calls = Counter()

    def fail_at_first(job):
        calls[job.step.where] += 1
        if calls[job.step.where] < n_call:
            raise ResourceError("E-DISK", "the disk is full", rule="it has room")
        STAGES_BEFORE[stage](job)

    monkeypatch.setitem(STAGES, stage, fail_at_first)
    run_study(str(study), resources=HERE)
    assert set(calls.values()) == {n_call}
    assert store.verify(tmp_path / "study" / "study.zarr")[1] == []


@pytest.mark.usefixtures("prefect_server", "quick_retries")
@pytest.mark.parametrize(
    ("stage", "error", "n_call"),
    [
        ("denoise", InputError("E-TABLE", "it is bad", rule="it is good"), 1),
        ("quality", InputError("E-TABLE", "it is bad", rule="it is good"), 1),
        ("denoise", ResourceError("E-PERMISSION", "it is closed", rule="it is open"), 1),
        ("quality", ResourceError("E-DISK", "the disk is full", rule="it has room"), 3),
    ],
)
def test_run_study__ends_in_words_and_never_tries_bad_input_again(stage, error, n_call, tmp_path, monkeypatch, caplog):
    study = table_study(tmp_path / "study", n_subject=2)
    calls = Counter()

    def refuse(job):
        calls[job.step.where] += 1
        raise error

    monkeypatch.setitem(STAGES, stage, refuse)
    with caplog.at_level(logging.INFO), pytest.raises(KconnError, match=error.code):
        run_study(str(study), resources=HERE)
    assert set(calls.values()) == {n_call}
    assert not [record for record in caplog.records if record.exc_info]  # these print as "NoneType: None"
    assert last_log(study)[-1]["code"] == error.code
    assert "it is" not in str(last_log(study))


def test_keep_log__holds_labels_and_codes_only(shell, tmp_path):
    study = table_study(tmp_path / "study", n_subject=2)
    ended = shell("run", study, "--workers", "0")
    assert ended.code == 0, ended.err
    log = last_log(study)
    (name,) = re.findall(r"log: (\S+)", ended.out)
    assert name.endswith(f"-{log[0]['run_id']}.jsonl")
    assert [line["event"] for line in log] == ["start", *["step"] * (len(log) - 2), "end"]
    assert log[-1]["outcome"] == "done"
    assert len({line["run_id"] for line in log}) == 1
    assert str(tmp_path) not in str(log)


class SlowDenoising(WorkerPlugin):
    """Let a stage take its time on every worker, and write a file if it is not stopped."""

    def __init__(self, place, late):
        self.place = place
        self.late = str(late)

    def setup(self, worker):  # noqa: ARG002 - the signature of Dask
        stages = importlib.import_module("kconn.stages").STAGES
        plain = stages["denoise"]

        def stage(job):
            if job.step.where == self.place:
                time.sleep(20)
                importlib.import_module("pathlib").Path(self.late).write_text("late")
            plain(job)

        stages["denoise"] = stage


def test_embedded_server__says_that_its_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    nowhere = {PREFECT_API_URL: None, PREFECT_HOME: tmp_path / "file" / "prefect"}
    with temporary_settings(nowhere), pytest.raises(ResourceError, match="cannot be made") as caught, embedded_server():
        pass
    assert caught.value.code == "E-PERMISSION"


@pytest.mark.parametrize("name", ["study", "watch"])
def test_run_from_shell__tells_a_bad_file_before_a_server_starts(name, tmp_path, capsys):
    module = importlib.import_module(f"flows.{name}")
    assert run_from_shell(getattr(module, f"run_{name}"), [str(tmp_path / "study.toml")]) == EXIT_ERROR
    told = capsys.readouterr()
    assert "E-STUDY-READ" in told.err
    assert "server" not in told.out + told.err


@pytest.mark.slow
@pytest.mark.faults("workers")
def test_run_chain__stops_a_step_that_takes_too_long(tmp_path):
    bench = prepare(small_study(tmp_path, contrasts=ONE_SAMPLE))
    chains = list(bench.plan.runs().values())
    events = []
    with connect(n_workers=1) as client, writing(bench):
        client.register_plugin(SlowDenoising(chains[0][0].where, tmp_path / "late"))
        start = time.monotonic()
        with watched(client, 3), pytest.raises(ResourceError, match="denoise took longer than it may"):
            run_chain(map(bench.bind, chains[0]), client, events.append)
        assert time.monotonic() - start < 18
        with watched(client, 60):
            run_chain(map(bench.bind, chains[1]), client, lambda _: None)
        time.sleep(max(0.0, 22 - (time.monotonic() - start)))
    assert {event.stage: event.outcome for event in events} == {
        "ingest": "made",
        "denoise": "failed",
        "nodes": "skipped",
        "netmat": "skipped",
    }
    assert not (tmp_path / "late").exists()
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    assert bench.pending() == []


@pytest.mark.slow
@pytest.mark.faults("resume")
@pytest.mark.usefixtures("terminal")
def test_run_study__interrupted_goes_on_where_it_was(tmp_path):
    whole, study = (small_study(tmp_path / name, contrasts=ONE_SAMPLE) for name in ("whole", "stopped"))
    command = [sys.executable, "-m", "flows.study", str(study), "--workers", "2"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: "denoise" in {stage for stage, _ in steps_if_any(study)})
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=180)[0]
    assert process.returncode != 0, out
    root = study.parent / "study.zarr"
    assert store.verify(root)[1] == []
    n_sealed = len(store.find_published(root))
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(steps_of(study)) == len(prepare(study).plan.steps) - n_sealed
    command[3] = str(whole)
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert store.digest_store(root) == store.digest_store(whole.parent / "study.zarr")


def steps_if_any(study):
    return steps_of(study) if (study.parent / ".study.zarr.work" / "logs").exists() else []


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
