"""A cluster of machines of its own, with TLS and the settings that are shipped: what befalls it changes no bit."""

import os
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from kconn.cluster.tls import make_certificates
from kconn.io import store
from tests import network_spaces
from tests.small_study import published, small_study
from tests.table_study import steps_of
from tests.test_tls import DASK, WORKER, options_of
from tests.warm_shell import ROOT, count_kept

pytestmark = [pytest.mark.slow, pytest.mark.faults("network"), pytest.mark.timeout(1200)]

STUDY = {"n_subjects_per_group": 4, "contrasts": {"groups": None, "mean": {"test": "one-sample"}}}
PORT = 8786
#: Steps that are finished when the fault strikes, of 38.
BEFORE = 5


class Cluster:
    """A scheduler and two workers on machines of their own, as an administrator starts them."""

    def __init__(self, machines, folder):
        self.machines = machines
        self._folder = folder
        self._running = {}
        make_certificates(folder / "tls", days=2)

    @property
    def address(self):
        return f"tls://{self.machines.addresses['scheduler']}:{PORT}"

    def start(self, name):
        """Start what runs on a machine and wait until it is up."""
        place = ["--host", self.machines.addresses[name], "--no-dashboard"]
        if name == "scheduler":
            command = [*DASK, *place, "--protocol", "tls", "--port", str(PORT), *options_of(self._tls, "scheduler")]
            up = "Scheduler at:"
        else:
            command = [*WORKER, self.address, *place, "--nthreads", "1", "--local-directory", str(self._folder / name)]
            command += options_of(self._tls, "worker")
            up = "Registered to:"
        log = self._folder / f"{name}.log"
        with log.open("w") as file:
            self._running[name] = subprocess.Popen(
                self.machines.command(name, command), cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file
            )
        wait_until(lambda: up in log.read_text())

    def processes(self, name):
        """Return the process that was started on a machine, a worker's nanny, and those below it that compute."""
        first = psutil.Process(self._running[name].pid)
        below = [child for child in first.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
        return first, below

    def stop(self, *names):
        """Kill all that runs on machines."""
        for name in [name for name in names if name in self._running]:
            first, below = self.processes(name)
            for process in (first, *below):
                process.kill()
            self._running.pop(name).wait()

    def run(self, study):
        """Start the command on the machine of the user."""
        command = [sys.executable, "-m", "kconn.cli", "run", str(study), "--scheduler", self.address]
        command += ["--tls", str(self._tls)]
        return subprocess.Popen(
            self.machines.command("user", command),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def _tls(self):
        return self._folder / "tls"


ENVIRONMENT = {**os.environ, "DASK_CONFIG": str(ROOT / "deploy" / "dask")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := network_spaces.why_not():
        pytest.skip(reason)
    with network_spaces.Machines(["scheduler", "worker1", "worker2", "user"]) as machines:
        made = Cluster(machines, tmp_path_factory.mktemp("cluster"))
        try:
            made.start("scheduler")
            yield made
        finally:
            made.stop("worker1", "worker2", "scheduler")


@pytest.fixture
def fresh(cluster):
    """The cluster with workers that nothing befell yet."""
    for name in ("worker1", "worker2"):
        cluster.start(name)
    yield cluster
    cluster.machines.mend("worker2")
    cluster.stop("worker1", "worker2")


@pytest.fixture(scope="module")
def whole(shell, tmp_path_factory):
    """What every run must end with."""
    study = small_study(tmp_path_factory.mktemp("whole"), **STUDY)
    assert shell("run", study, "--workers", "0").code == 0
    return store.digest_store(study.parent / "study.zarr")


def kill_worker(cluster):
    for process in cluster.processes("worker2")[1]:
        process.kill()


def kill_host(cluster):
    cluster.stop("worker2")


def flap(cluster, seconds):
    cluster.machines.cut("worker2")
    time.sleep(seconds)
    cluster.machines.mend("worker2")


def cut(cluster):
    cluster.machines.cut("worker2")


def freeze_worker(cluster):
    for process in cluster.processes("worker2")[1]:
        process.suspend()


def freeze_host(cluster):
    first, below = cluster.processes("worker2")
    for process in (first, *below):
        process.suspend()


def flap_user(cluster):
    cluster.machines.cut("user")
    time.sleep(10)
    cluster.machines.mend("user")


FAULTS = {
    "worker killed": kill_worker,
    "host killed": kill_host,
    "link down for 10 s": partial(flap, seconds=10),
    "link down for 60 s": partial(flap, seconds=60),
    "link cut": cut,
    "worker frozen": freeze_worker,
    "host frozen": freeze_host,
    "link of the user down for 10 s": flap_user,
}


@pytest.mark.parametrize("name", FAULTS)
def test_run__ends_with_the_same_bits(fresh, whole, tmp_path, count, record_property, name):
    study = small_study(tmp_path, **STUDY)
    process = fresh.run(study)
    kept = wait_for_steps(study, process)
    started = time.monotonic()
    FAULTS[name](fresh)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    seconds = round(time.monotonic() - started, 1)
    check(study, kept, whole)
    if name == "host frozen":  # it wakes up, and goes on with what others have done meanwhile
        first, below = fresh.processes("worker2")
        for woken in (first, *below):
            woken.resume()
        time.sleep(20)
        check(study, kept, whole)
    told = {"worker killed": "died", "host killed": "died", "worker frozen": "froze", "host frozen": "froze"}
    if name in told:
        assert f"worker tls://{fresh.machines.addresses['worker2']}:" in out
        assert f"{told[name]}: its steps are done by others" in out
    record_property(f"{name}, s", seconds)
    count(faults=1, ended_with_the_same_bits=1, finished_steps=len(kept), finished_steps_made_again=0)


def test_run__over_a_slow_link(fresh, whole, tmp_path, count, record_property):
    study = small_study(tmp_path, **STUDY)
    process = fresh.run(study)
    kept = wait_for_steps(study, process)
    started = time.monotonic()
    with fresh.machines.slow("worker2", "256kbit"):
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    check(study, kept, whole)
    record_property("slow link, s", round(time.monotonic() - started, 1))
    count(faults=1, ended_with_the_same_bits=1, finished_steps=len(kept), finished_steps_made_again=0)


def test_run__after_the_scheduler_was_killed_goes_on(fresh, whole, tmp_path, count, record_property):
    study = small_study(tmp_path, **STUDY)
    process = fresh.run(study)
    wait_for_steps(study, process)
    started = time.monotonic()
    fresh.stop("scheduler")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert err.startswith("E-WORKER "), err
    assert "Traceback" not in out + err
    seconds = round(time.monotonic() - started, 1)
    fresh.stop("worker1", "worker2")
    kept = published(study.parent / "study.zarr")
    for name in ("scheduler", "worker1", "worker2"):
        fresh.start(name)
    process = fresh.run(study)
    out, err = process.communicate(timeout=400)
    assert (process.returncode, count_kept(out)) == (0, len(kept)), out + err
    check(study, kept, whole)
    record_property("scheduler killed, s to the error", seconds)
    count(faults=1, ended_with_the_same_bits=1, finished_steps=len(kept), finished_steps_made_again=0)


def wait_for_steps(study, process):
    """Wait until some steps are finished; return what is published."""
    logs = study.parent / ".study.zarr.work" / "logs"
    wait_until(lambda: process.poll() is not None or (any(logs.glob("*")) and len(steps_of(study)) >= BEFORE))
    assert process.poll() is None, process.communicate()
    return published(study.parent / "study.zarr")


def check(study, kept, whole):
    """Refuse other bits, damage, and what was made again."""
    root = study.parent / "study.zarr"
    assert store.verify(root)[1] == []
    assert store.digest_store(root) == whole
    assert kept.items() <= published(root).items()


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
