"""Workers of this machine that freeze, die or have no room: the run ends, with the right store or a coded error."""

import signal
import subprocess
import sys
import time

import dask
import dask.array as da
import psutil
import pytest
from distributed import Client

from kconn.cluster import connect
from kconn.cluster.stalled import watched_for_stalls
from kconn.cluster.table import ClusterTable
from kconn.errors import ResourceError
from kconn.execution import run_plan
from kconn.io import store
from kconn.study.workbench import prepare, writing
from tests.small_disk import small_disk
from tests.small_study import published, small_study
from tests.table_study import steps_of
from tests.warm_shell import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STUDY = {"n_subjects_per_group": 3, "contrasts": {"groups": None, "mean": {"test": "one-sample"}}}
#: Steps that are finished when the fault strikes, of 30.
BEFORE = 5


@pytest.mark.faults("workers")
def test_run__a_frozen_worker_is_told_and_costs_nothing_finished(shell, tmp_path, count, record_property):
    whole, study = (small_study(tmp_path / name, **STUDY) for name in ("whole", "frozen"))
    assert shell("run", whole, "--workers", "0").code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(study, process)
    frozen = workers_of(process)[0]
    frozen.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    kept = published(study.parent / "study.zarr")
    out, err = process.communicate(timeout=300)
    seconds = time.monotonic() - started
    assert process.returncode == 0, out + err
    assert "froze: its steps are done by others" in out
    assert not frozen.is_running()
    root = study.parent / "study.zarr"
    assert store.digest_store(root) == store.digest_store(whole.parent / "study.zarr")
    assert kept.items() <= published(root).items()
    record_property("frozen worker, s to the end of the run", round(seconds, 1))
    count(frozen_workers=1, finished_steps=len(kept), finished_steps_made_again=0)


@pytest.mark.faults("disk full")
def test_run__says_when_workers_have_nowhere_to_spill_to(tmp_path, count, record_property):
    """Fill the memory of two workers and the disk that they spill to, then ask them for a study."""
    bench = prepare(small_study(tmp_path / "study", n_subjects_per_group=1, contrasts=STUDY["contrasts"]))
    events = []
    with (
        small_disk(tmp_path / "disk", "80m") as disk,
        dask.config.set({"temporary-directory": str(disk)}),
        connect(ClusterTable(workers=2, memory="1200MiB")) as client,
        Client(client.scheduler.address, set_as_default=False) as another,
        writing(bench),
        watched_for_stalls(client),
    ):
        filling = another.persist(da.random.default_rng(0).random((300, 1 << 20), chunks=(1, 1 << 20)))
        wait_until(lambda: statuses(client) == {"paused"})
        started = time.monotonic()
        with pytest.raises(ResourceError, match="all workers are paused") as caught:
            run_plan(bench.plan, bench.bind, client=client, listen=events.append)
        seconds = time.monotonic() - started
        assert caught.value.code == "E-DISK"
        assert {event.outcome for event in events} <= {"failed", "skipped"}
        assert store.find_published(bench.study.store) == []
        assert seconds < 10
        del filling
        wait_until(lambda: statuses(client) == {"running"})
        run_plan(bench.plan, bench.bind, client=client, listen=events.append)
    assert bench.pending() == []
    record_property("full spill disk, s to the error", round(seconds, 1))
    count(disks_filled=1, hangs=0, partial_groups_visible=0)


def statuses(client):
    return {worker["status"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


def workers_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for_steps(study, process):
    logs = study.parent / ".study.zarr.work" / "logs"
    wait_until(lambda: process.poll() is not None or (any(logs.glob("*")) and len(steps_of(study)) >= BEFORE))
    assert process.poll() is None, process.communicate()


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
