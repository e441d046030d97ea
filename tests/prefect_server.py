"""A Prefect server, its database and what talks to it, as processes of their own on loopback."""

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

from tests.warm_shell import ROOT

PREFECT = [sys.executable, "-m", "prefect"]


class Database:
    """The default SQLite file, or a PostgreSQL cluster of its own."""

    def __init__(self, kind, *, host="127.0.0.1", port=None, user="postgres"):
        self.kind = kind
        self.host, self.port, self.user = host, port or free_port(), user
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
        self._run("initdb", "-A", "trust", "-U", self.user, "-D", str(self.folder / "data"))
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self.host}"
        self._run(
            "pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "start"
        )
        self._run("createdb", "-h", str(self.folder), "-p", str(self.port), "-U", self.user, "prefect")
        self.url = f"postgresql+asyncpg://{self.user}@{self.host}:{self.port}/prefect"
        return self

    def __exit__(self, *_):
        if self.kind != "sqlite":
            self._run("pg_ctl", "-m", "fast", "-D", str(self.folder / "data"), "stop")
            shutil.rmtree(self.folder)

    def dump(self, server):
        """Return every byte that the server has stored."""
        if self.kind == "sqlite":
            return b"".join(path.read_bytes() for path in server.home.glob("prefect.db*"))
        return self._run("pg_dump", "-h", str(self.folder), "-p", str(self.port), "-U", self.user, "prefect")

    def _run(self, name, *arguments):
        ended = subprocess.run(
            [str(self.bin / name), *arguments], user="postgres", cwd="/", capture_output=name == "pg_dump", check=True
        )
        return ended.stdout


class PrefectServer:
    """A Prefect server on loopback, and what talks to it."""

    def __init__(self, folder, database, *, pages=False):
        self.home = folder / "prefect"
        self.folder = folder
        self.pages = f"http://127.0.0.1:{free_port()}"
        self.api = f"{self.pages}/api"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTEST"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": str(pages).lower(),
            "DO_NOT_TRACK": "1",
            "KCONN_STUDIES": str(folder / "studies"),
            **({} if database.url is None else {"PREFECT_API_DATABASE_CONNECTION_URL": database.url}),
        }
        self.processes = []

    def __enter__(self):
        self._start("server", "start", "--host", "127.0.0.1", "--port", self.pages.split(":")[2])
        wait_until(self._is_healthy, 180)
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            kill_tree(process)

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

    def artifacts(self, key):
        return self.ask("/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}})

    def events(self, name):
        return self.ask("/events/filter", {"filter": {"event": {"name": [name]}}})["total"]

    def pause_schedules(self):
        script = (
            "from prefect.client.orchestration import get_client\n"
            "with get_client(sync_client=True) as client:\n"
            "    client.pause_deployment(client.read_deployment_by_name('kconn-watch/watch').id)\n"
        )
        self.python("-c", script)


def kill_tree(process):
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


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
