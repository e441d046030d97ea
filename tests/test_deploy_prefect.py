"""Deployments for real: a server, a worker, a schedule that fires, a kill in the middle, the right store in the end."""

import subprocess
import sys
import time

import pytest
import yaml

from kconn.io import store
from kconn.study.plan import RUN_STAGES
from kconn.study.workbench import prepare
from tests.prefect_server import Database, PrefectServer, kill_tree, wait_until
from tests.table_study import add_subject, logs_folder, steps_of, table_study
from tests.warm_shell import ROOT

DEPLOYMENTS = ROOT / "deploy" / "prefect.yaml"
_PARAMETERS = (
    "import importlib, sys\n"
    "for entry in sys.argv[1:]:\n"
    "    module, name = entry.rsplit('.', 1)\n"
    "    print(entry, *getattr(importlib.import_module(module), name).parameters.properties)\n"
)


def test_prefect_yaml__names_flows_that_exist_and_no_path():
    text = DEPLOYMENTS.read_text()
    deployments = yaml.safe_load(text)["deployments"]
    entries = [one["entrypoint"] for one in deployments]
    told = subprocess.run(
        [sys.executable, "-c", _PARAMETERS, *entries], cwd=ROOT, capture_output=True, text=True, check=True
    )
    parameters = {line.split()[0]: set(line.split()[1:]) for line in told.stdout.splitlines()}
    for one in deployments:
        assert set(one["parameters"]) <= parameters[one["entrypoint"]], one["name"]
        assert one["concurrency_limit"]["limit"] == 1
    assert [one["name"] for one in deployments if "schedules" in one] == ["watch"]
    for line in text.splitlines():
        assert not [word for word in line.split("#")[0].split() if word.strip("\"'").startswith(("/", "~"))], line


@pytest.mark.slow
@pytest.mark.faults("deployments")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_watch__on_schedule_survives_the_death_of_its_worker(database, tmp_path, count):
    n_subject = 12
    whole = table_study(tmp_path / "plain" / "trial", n_subject=n_subject)
    _kconn("run", str(whole), "--workers", "2")
    study = table_study(tmp_path / "studies" / "trial", n_subject=n_subject)
    root = study.parent / "study.zarr"
    with Database(database) as connection, PrefectServer(tmp_path, connection) as server:
        server.prefect("work-pool", "create", "--type", "process", "kconn")
        server.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(_every_minute(tmp_path)))
        server.python("-m", "flows.register", "--heartbeat-seconds", "70")
        worker = server.start_worker()
        wait_until(lambda: _n_sealed_runs(root) > 2, 240)
        killed = [run for run in server.runs() if run["state_type"] == "RUNNING"]
        kill_tree(worker)
        time_of_kill = time.monotonic()
        assert store.verify(root)[1] == []
        n_sealed = len(store.find_published(root))
        assert 0 < n_sealed < len(prepare(study).plan.steps)
        assert len(killed) == 1
        assert server.state(killed[0]["id"]) == "RUNNING"  # nobody has told the server
        server.start_worker()
        wait_until(lambda: server.state(killed[0]["id"]) == "CRASHED", 300)
        seconds_to_crashed = time.monotonic() - time_of_kill
        wait_until(lambda: (study.parent / "report.html").exists() and not prepare(study).pending(), 400)
        wait_until(lambda: any(run["state_type"] == "COMPLETED" for run in server.runs()), 120)
        assert store.verify(root)[1] == []
        assert store.digest_store(root) == store.digest_store(whole.parent / "study.zarr")
        n_again = len(steps_of(study)) + n_sealed - len(prepare(study).plan.steps)
        assert n_again == 0
        wait_until(lambda: server.events("kconn-study.finished"), 60)  # the server keeps events some seconds later
        assert server.events("kconn-study.finished") == 1
        server.pause_schedules()
        wait_until(lambda: not [run for run in server.runs() if run["state_type"] in {"RUNNING", "PENDING"}], 240)
        n_log = len(list(logs_folder(root.with_name(".study.zarr.work")).iterdir()))
        add_subject(study.parent, f"{n_subject:03d}")
        server.prefect("event", "emit", "kconn-sessions.arrived", "--resource-id", "kconn-inputs")
        wait_until(
            lambda: (
                len(list(logs_folder(root.with_name(".study.zarr.work")).iterdir())) > n_log
                and not prepare(study).pending()
            ),
            240,
        )
        assert {where for stage, where in steps_of(study) if stage in RUN_STAGES} == {
            f"sub-{n_subject:03d}/ses-1/run-1"
        }
        n_path = connection.dump(server).count(str(tmp_path / "studies").encode())
        count(
            databases=1,
            steps_sealed_at_the_kill=n_sealed,
            steps_made_again=n_again,
            seconds_to_crashed=round(seconds_to_crashed),
            paths_in_the_database=n_path,
        )
        assert n_path == 0


def _every_minute(folder):
    text = DEPLOYMENTS.read_text().replace("study: study.toml", "study: trial/study.toml")
    text = text.replace('cron: "*/15 * * * *"', 'cron: "* * * * *"').replace("settle_minutes: 10", "settle_minutes: 0")
    path = folder / "prefect.yaml"
    path.write_text(text)
    return path


def _n_sealed_runs(root):
    if not (root / "zarr.json").exists():
        return 0
    return sum(address.step == "netmat" for address in store.find_published(root))


def _kconn(*arguments):
    subprocess.run([sys.executable, "-m", "kconn.cli", *arguments], cwd=ROOT, capture_output=True, check=True)
