"""A real SLURM: the same bits as here, also when a job is killed. Skipped where none answers."""

import shutil
import subprocess
import threading
import time

import pytest

from kconn.cli import main
from kconn.io import store
from kconn.study.file import read_study
from tests.small_study import small_study

pytestmark = [pytest.mark.slow, pytest.mark.faults("workers")]


@pytest.fixture
def slurm():
    if shutil.which("sinfo") is None:
        pytest.skip("no SLURM on this machine")
    answer = subprocess.run(
        [shutil.which("sinfo"), "--noheader", "--format=%T"], capture_output=True, text=True, check=False
    )
    if answer.returncode or "idle" not in answer.stdout:
        pytest.skip(f"SLURM has no idle node: {answer.stdout.strip() or answer.stderr.strip()}")


def run(folder, *options):
    study = small_study(folder, cluster={"memory": "2GiB", "walltime": "00:20:00", "start_minutes": 3})
    assert main(["run", str(study), *options]) == 0
    return store.digest_store(read_study(study).store)


def jobs():
    listed = [shutil.which("squeue"), "--noheader", "--format=%i", "--states=R", "--name=kconn-worker"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()


def test_run__on_slurm_gives_the_same_bits(slurm, tmp_path):  # noqa: ARG001 - asks for a SLURM
    here = run(tmp_path / "here", "--workers", "0")
    assert run(tmp_path / "slurm", "--cluster", "slurm", "--workers", "2") == here
    assert list((tmp_path / "slurm" / "slurm-logs").iterdir())
    assert not list((tmp_path / "slurm").glob(".kconn-tls-*"))
    wait_until(lambda: not jobs())


def test_run__on_slurm_survives_a_killed_job(slurm, tmp_path, count):  # noqa: ARG001 - asks for a SLURM
    here = run(tmp_path / "here", "--workers", "0")
    killed = []

    def kill():
        wait_until(jobs)
        killed.extend(jobs()[:1])
        subprocess.run([shutil.which("scancel"), "--signal=KILL", "--full", *killed], check=True)

    killer = threading.Thread(target=kill)
    killer.start()
    study = small_study(
        tmp_path / "slurm",
        cluster={
            "kind": "slurm",
            "min_workers": 2,
            "max_workers": 2,
            "memory": "2GiB",
            "walltime": "00:20:00",
            "start_minutes": 3,
        },
    )
    assert main(["run", str(study)]) == 0
    killer.join()
    assert killed
    assert store.digest_store(read_study(study).store) == here
    count(jobs_killed=1)


def wait_until(answer):
    end = time.monotonic() + 120
    while not answer():
        assert time.monotonic() < end
        time.sleep(0.2)
