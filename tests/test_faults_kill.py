"""SIGKILL at any moment: what is published stays whole, nothing sealed is made again, the bits are the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kconn import stages
from kconn.cli import main
from kconn.io import store
from kconn.io.staging import JOURNAL
from kconn.io.store import Address, Target
from kconn.study.workbench import prepare, writing
from tests.small_study import published, small_study
from tests.warm_shell import ROOT, Ended

pytestmark = pytest.mark.faults("kill")


def test_seal__killed_at_every_call_leaves_the_old_or_the_new(shell, tmp_path, count):
    n_calls = _seal_in_fork(shell, tmp_path / "whole.zarr", "k1").n_calls
    expected = store.digest_store(tmp_path / "whole.zarr")
    assert n_calls > 10
    for kill_at_call in range(1, n_calls + 1):
        root = tmp_path / f"{kill_at_call}.zarr"
        assert _seal_in_fork(shell, root, "k1", kill_at_call=kill_at_call).code == -signal.SIGKILL
        assert store.verify(root)[1] == []
        target = _staged(root, "k1")
        store.seal(target, store.stage(target))
        assert store.digest_store(root) == expected
        killed = _seal_in_fork(shell, root, "k2", kill_at_call=kill_at_call)  # over a published group
        assert store.verify(root) == ([_ADDRESS], [])
        assert store.current_key(root, _ADDRESS) in ({"k2"} if killed.code == 0 else {"k1", "k2"})
        store.remove_superseded(root)
        assert not list(root.rglob("*.partial"))
        assert store.verify(root) == ([_ADDRESS], [])
        count(kills_at_each_call_of_a_seal=2)


def test_run__killed_at_random_calls_goes_on_where_it_was(shell, tmp_path, count):
    rng = np.random.default_rng(20260101)
    whole, study = _two_studies(tmp_path, n_subjects_per_group=1, contrasts=_ONE_SAMPLE)
    undisturbed = shell("run", whole, "--workers", "0")
    assert undisturbed.code == 0
    sealed = {}
    for _ in range(3):
        ended = shell("run", study, "--workers", "0", kill_at_call=int(rng.integers(1, undisturbed.n_calls // 2)))
        assert ended.code == -signal.SIGKILL
        sealed = _assert_kept(study, sealed)
        count(kills_at_random_calls=1)
    assert sealed
    ended = shell("run", study, "--workers", "0")
    assert (ended.code, ended.n_kept) == (0, len(sealed))
    _assert_kept(study, sealed)
    assert _digest(study) == _digest(whole)


def test_ingest__killed_between_rows_of_chunks_writes_only_the_rest(shell, tmp_path, monkeypatch, count):
    for name, value in _SMALL_ROWS.items():
        monkeypatch.setattr(name, value)
    whole, study = _two_studies(tmp_path, n_subjects_per_group=1, contrasts=_ONE_SAMPLE)
    ingest_one([whole])
    n_row = len(_rows(whole.parent / "study.zarr"))
    assert n_row > 20
    finished = {}
    for kill_at_call in (110, 30, 30):
        ended = shell(study, function=f"{__name__}:ingest_one", kill_at_call=kill_at_call, patches=_SMALL_ROWS)
        assert ended.code == -signal.SIGKILL, ended.err
        now = _rows_in_journal(study)
        assert finished.items() <= now.items()
        assert len(finished) < len(now) < n_row
        finished = now
    ingest_one([study])
    again = finished.items() - _rows(study.parent / "study.zarr").items()
    count(kills_within_a_step=3, finished_chunks=len(finished), finished_chunks_made_again=len(again))
    assert not again
    assert _digest(study) == _digest(whole)


def test_contrast__killed_between_ranges_computes_only_the_rest(shell, tmp_path, monkeypatch, capsys, count):
    for name, value in _SHORT_RANGES.items():
        monkeypatch.setattr(name, value)
    whole, study = tmp_path / "whole" / "study.toml", tmp_path / "killed" / "study.toml"
    small_study(whole.parent, n_subjects_per_group=6, permutation={"n_perm": 800})
    assert shell("run", whole, "--workers", "0").code == 0
    _forget_contrast(whole)
    shutil.copytree(whole.parent, study.parent)
    undisturbed = shell(whole, function=f"{__name__}:test_one", patches=_SHORT_RANGES)
    assert undisturbed.code == 0, undisturbed.err
    assert not _ranges(whole)
    finished = {}
    for kill_at_call in (20, 12, 12):
        ended = shell(study, function=f"{__name__}:test_one", kill_at_call=kill_at_call, patches=_SHORT_RANGES)
        assert ended.code == -signal.SIGKILL, ended.err
        now = _ranges(study)
        assert finished.items() <= now.items()
        assert len(finished) < len(now)
        finished = now
        status = _status(study, capsys)
        assert 1 < status["permutations"] < status["of"] == 800
        assert status["limits"][0] <= status["threshold"] <= (status["limits"][1] or np.inf)
    ended = shell(study, function=f"{__name__}:test_one", patches=_SHORT_RANGES)
    assert ended.code == 0
    assert ended.n_calls < undisturbed.n_calls - 2 * len(finished)
    count(kills_within_a_step=3, finished_ranges=len(finished))
    assert not _ranges(study)
    assert _status(study, capsys) is None
    assert _digest(study) == _digest(whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run__killed_at_random_moments_goes_on_where_it_was(shell, tmp_path, count):
    """Kill one process at moments drawn over the length of an undisturbed run."""

    def undisturbed(study):
        ended = shell("run", study, "--workers", "0")
        assert ended.code == 0, ended.err
        return ended

    def killed(study, seconds):
        return shell("run", study, "--workers", "0", signal_after=seconds).code == -signal.SIGKILL

    _kill_at_random_moments(tmp_path, 30, undisturbed, killed, count)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run__on_workers_killed_at_random_moments_goes_on_where_it_was(tmp_path, count):
    """Kill the whole process group of the real command, its scheduler and its workers with it."""
    _run(small_study(tmp_path / "warm", **_OPTIONS))  # fills the caches of compiled code
    _kill_at_random_moments(tmp_path, 10, _run, _killed_after, count)


def _kill_at_random_moments(tmp_path, n_kills, undisturbed, killed, count):
    rng = np.random.default_rng(7 + n_kills)
    whole = small_study(tmp_path / "whole", **_OPTIONS)
    length = undisturbed(whole).seconds
    counts = []
    while len(counts) < n_kills:
        study = small_study(tmp_path / f"killed{len(counts)}", **_OPTIONS)
        if killed(study, float(rng.uniform(0, length))):
            sealed = _assert_kept(study, {})
            ended = undisturbed(study)
            assert ended.n_kept == len(sealed)
            _assert_kept(study, sealed)
            assert _digest(study) == _digest(whole)
            counts.append(len(sealed))
            count(
                kills_at_random_moments=1,
                partial_groups_visible=0,
                other_bits=0,
                finished_steps=len(sealed),
                finished_steps_made_again=0,
            )
        shutil.rmtree(study.parent)
    assert len(set(counts)) > n_kills // 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_contrast__killed_at_random_moments_on_two_workers(shell, tmp_path, count):
    """Kill the command with its workers at moments drawn over the test of a contrast."""
    rng = np.random.default_rng(11)
    whole, study = tmp_path / "whole" / "study.toml", tmp_path / "killed" / "study.toml"
    small_study(whole.parent, n_subjects_per_group=6, permutation={"n_perm": 20_000})
    assert shell("run", whole, "--workers", "0").code == 0
    _forget_contrast(whole)
    shutil.copytree(whole.parent, study.parent)
    assert shell("run", whole, "--workers", "0").code == 0
    finished, n_kills = {}, 0
    while n_kills < 4:
        process = _start_in_short_ranges(study)
        wanted = len(finished) + int(rng.integers(1, 6))
        while process.poll() is None and len(_ranges(study)) < wanted:
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.03)))
        if process.poll() is not None:  # done before the signal: all of it again
            assert process.returncode == 0
            _forget_contrast(study)
            finished = {}
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        n_kills += 1
        now = _ranges(study)
        assert finished.items() <= now.items()
        finished = now
        count(kills_within_a_step=1, finished_ranges=len(finished))
    assert _start_in_short_ranges(study).wait(timeout=600) == 0
    assert not _ranges(study)
    assert _digest(study) == _digest(whole)


def _start_in_short_ranges(study):
    """Start the command on two workers in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", _IN_SHORT_RANGES, "run", str(study), "--workers", "2"],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


#: The command with tests cut as large ones are; workers do as they are told and need not know.
_IN_SHORT_RANGES = (
    "import sys; from kconn.kernels import tasks; tasks.TASK_FLOPS = {'float64': 1e4, 'float32': 1e4}; "
    "from kconn.cli import main; sys.exit(main(sys.argv[1:]))"
)
_SHORT_RANGES = {"kconn.kernels.tasks.TASK_FLOPS": {"float64": 1e4, "float32": 1e4}}
_CONTRAST = Address(path="contrasts/sim/corr/groups", step="test")
_SMALL_ROWS = {"kconn.chunks.ROW_BYTES": 1000, "kconn.stages.run._STREAM_BYTES": 1}
_ADDRESS = Address(path="sub-01/ses-1/run-1", step="ingest")
_RUN = "sub-01/ses-pre/run-1"
_ONE_SAMPLE = {"groups": None, "mean": {"test": "one-sample"}}
_CHANGE = {"groups": None, "visits": {"test": "paired", "change": ["pre", "post"]}}
_OPTIONS = {"sessions": ("pre", "post"), "n_subjects_per_group": 1, "contrasts": _CHANGE}


def seal_one(arguments):
    """Seal a staged group; runs in a fork."""
    root, key = arguments
    target = _target(Path(root), key)
    store.seal(target, store.stage(target))


def ingest_one(arguments):
    """Run the first step of a study; runs in a fork."""
    bench = prepare(arguments[0])
    with writing(bench):
        stages.run_job(bench.bind(bench.plan.steps[0]))


def test_one(arguments):
    """Run the contrast of a study; runs in a fork."""
    bench = prepare(arguments[0])
    (step,) = bench.pending()
    with writing(bench):
        stages.run_job(bench.bind(step))


test_one.__test__ = False


def _forget_contrast(study):
    root = study.parent / "study.zarr"
    shutil.rmtree(root / _CONTRAST.path / _CONTRAST.step)


def _ranges(study):
    """Return name -> inode and time of change of the finished ranges of the contrast."""
    folder = study.parent / ".study.zarr.work" / "checkpoints"
    return {path.name: _state(path) for path in folder.rglob("*.npz") if "-seen" not in path.name}


def _status(study, capsys):
    capsys.readouterr()
    assert main(["status", str(study), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["tests_begun"].get(_CONTRAST.path)


def _target(root, key):
    return Target(root=root, address=_ADDRESS, key=key, provenance={})


def _staged(root, key):
    store.create_store(root)
    target = _target(root, key)
    staged = store.staging_path(target)
    shutil.rmtree(staged, ignore_errors=True)
    (staged / "bold/c").mkdir(parents=True)
    for name in ("zarr.json", "bold/zarr.json", "bold/c/0", "bold/c/1.partial"):
        (staged / name).write_text(f"{name} of {key}")
    return target


def _seal_in_fork(shell, root, key, **kill):
    _staged(root, key)
    return shell(root, key, function=f"{__name__}:seal_one", **kill)


def _two_studies(tmp_path, **options):
    return [small_study(tmp_path / name, **options) for name in ("whole", "killed")]


def _digest(study):
    return store.digest_store(study.parent / "study.zarr")


def _assert_kept(study, earlier):
    """Refuse damage, and anything published that was made again; return what is published now."""
    root = study.parent / "study.zarr"
    if (root / "zarr.json").exists():
        assert store.verify(root)[1] == []
    now = published(root)
    assert earlier.items() <= now.items()
    return now


def _rows(folder):
    """Return row of chunks -> inode and time of change of its files."""
    return {path.name: _state(path) for path in folder.rglob("bold/c/0/*")}


def _state(path):
    return path.stat().st_ino, path.stat().st_mtime_ns


def _rows_in_journal(study):
    staged = next((study.parent / ".study.zarr.work" / "staging").glob(f"{_RUN.replace('/', '.')}.ingest.*"))
    lines = map(json.loads, (staged / JOURNAL).read_text().splitlines())
    names = [name for line in lines for name in line["files"]]
    return {Path(name).name: _state(staged / name) for name in names}


def _command(study):
    return [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", "2"]


def _run(study):
    started = time.monotonic()
    ended = subprocess.run(_command(study), cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Ended(code=0, out=ended.stdout, err=ended.stderr, n_calls=0, seconds=time.monotonic() - started)


def _killed_after(study, seconds):
    """Start the command in a process group of its own and kill all of it; return whether it still ran."""
    process = subprocess.Popen(
        _command(study),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds)
    was_running = process.poll() is None
    if was_running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return was_running
