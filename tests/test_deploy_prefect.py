"""Deployments for real: a server, a worker, a schedule that fires, a kill in the middle, the right store in the end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from kconn.io import store
from kconn.study.plan import RUN_STAGES
from kconn.study.workbench import prepare
from tests.table_study import add_subject, logs_folder, steps_of, table_study
from tests.warm_shell import ROOT

DEPLOYMENTS = ROOT / "deploy" / "prefect.yaml"
PREFECT = [sys.executable, "-m", "prefect"]
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
    with _Database(database) as connection, _Server(tmp_path, connection) as server:
        server.prefect("work-pool", "create", "--type", "process", "kconn")
        server.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(_every_minute(tmp_path)))
        server.python("-m", "flows.register", "--heartbeat-seconds", "70")
        worker = server.start_worker()
        _wait(lambda: _n_sealed_runs(root) > 2, 240)
        killed = [run for run in server.runs() if run["state_type"] == "RUNNING"]
        _kill_tree(worker)
        time_of_kill = time.monotonic()
        assert store.verify(root)[1] == []
        n_sealed = len(store.find_published(root))
        assert 0 < n_sealed < len(prepare(study).plan.steps)
        assert len(killed) == 1
        assert server.state(killed[0]["id"]) == "RUNNING"  # nobody has told the server
        server.start_worker()
        _wait(lambda: server.state(killed[0]["id"]) == "CRASHED", 300)
        seconds_to_crashed = time.monotonic() - time_of_kill
        _wait(lambda: (study.parent / "report.html").exists() and not prepare(study).pending(), 400)
        _wait(lambda: any(run["state_type"] == "COMPLETED" for run in server.runs()), 120)
        assert store.verify(root)[1] == []
        assert store.digest_store(root) == store.digest_store(whole.parent / "study.zarr")
        n_again = len(steps_of(study)) + n_sealed - len(prepare(study).plan.steps)
        assert n_again == 0
        assert server.events("kconn-study.finished") == 1
        server.pause_schedules()
        _wait(lambda: not [run for run in server.runs() if run["state_type"] in {"RUNNING", "PENDING"}], 240)
        n_log = len(list(logs_folder(root).iterdir()))
        add_subject(study.parent, f"{n_subject:03d}")
        server.prefect("event", "emit", "kconn-sessions.arrived", "--resource-id", "kconn-inputs")
        _wait(lambda: len(list(logs_folder(root).iterdir())) > n_log and not prepare(study).pending(), 240)
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


class _Database:
    """The default SQLite file, or a PostgreSQL cluster of its own."""

    def __init__(self, kind):
        self.kind = kind
        self.url = None

    def __enter__(self):
        if self.kind == "sqlite":
            return self
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found or os.geteuid() != 0:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql), or no right to start it")
        self.bin = found[-1].parent
        self.folder = Path(tempfile.mkdtemp(prefix="kconn-pg-"))
        shutil.chown(self.folder, "postgres")
        self.port = _free_port()
        self._run("initdb", "-A", "trust", "-D", str(self.folder / "data"))
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self._run(
            "pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "start"
        )
        self._run("createdb", "-h", str(self.folder), "-p", str(self.port), "prefect")
        self.url = f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/prefect"
        return self

    def __exit__(self, *_):
        if self.kind != "sqlite":
            self._run("pg_ctl", "-m", "fast", "-D", str(self.folder / "data"), "stop")
            shutil.rmtree(self.folder)

    def dump(self, server):
        """Return every byte that the server has stored."""
        if self.kind == "sqlite":
            return b"".join(path.read_bytes() for path in server.home.glob("prefect.db*"))
        return self._run("pg_dump", "-h", str(self.folder), "-p", str(self.port), "prefect")

    def _run(self, name, *arguments):
        ended = subprocess.run(
            [str(self.bin / name), *arguments], user="postgres", cwd="/", capture_output=name == "pg_dump", check=True
        )
        return ended.stdout


class _Server:
    """A Prefect server on loopback, and what talks to it."""

    def __init__(self, folder, database):
        self.home = folder / "prefect"
        self.folder = folder
        self.api = f"http://127.0.0.1:{_free_port()}/api"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTEST"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "KCONN_STUDIES": str(folder / "studies"),
            **({} if database.url is None else {"PREFECT_API_DATABASE_CONNECTION_URL": database.url}),
        }
        self.processes = []

    def __enter__(self):
        port = self.api.split(":")[2].split("/")[0]
        self._start("server", "start", "--host", "127.0.0.1", "--port", port)
        _wait(self._is_healthy, 180)
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            _kill_tree(process)

    def start_worker(self):
        return self._start("worker", "start", "--pool", "kconn")

    def _start(self, *arguments):
        with (self.folder / f"{arguments[0]}.log").open("a") as log:
            process = subprocess.Popen(
                [*PREFECT, *arguments], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def prefect(self, *arguments):
        return self.python("-m", "prefect", *arguments)

    def python(self, *arguments):
        command = [sys.executable, *arguments]
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=180
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def _is_healthy(self):
        try:
            with urllib.request.urlopen(f"{self.api}/health", timeout=5) as reply:  # noqa: S310 - loopback
                return reply.status == 200
        except OSError:
            return False

    def ask(self, path, body):
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.api}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - loopback
            content = reply.read()
        return json.loads(content) if content else None

    def runs(self):
        return self.ask("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})

    def state(self, run_id):
        return next(run["state_type"] for run in self.runs() if run["id"] == run_id)

    def events(self, name):
        return self.ask("/events/filter", {"filter": {"event": {"name": [name]}}})["total"]

    def pause_schedules(self):
        script = (
            "from prefect.client.orchestration import get_client\n"
            "with get_client(sync_client=True) as client:\n"
            "    client.pause_deployment(client.read_deployment_by_name('kconn-watch/watch').id)\n"
        )
        self.python("-c", script)


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


def _kill_tree(process):
    """Kill a process and all below it at once, as the end of a machine does."""
    try:
        tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        tree = []
    for pid in tree:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _kconn(*arguments):
    subprocess.run([sys.executable, "-m", "kconn.cli", *arguments], cwd=ROOT, capture_output=True, check=True)


def _wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
