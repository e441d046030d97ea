"""A test goes on where it was: only what is not kept is computed, and the bits are the same."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.callbacks import Callback

from kconn.infer.checkpoint import Checkpoint, fingerprint
from kconn.infer.inference import permutation_test
from kconn.io import checkpoints
from kconn.kernels import tasks

N_OBS, N_PERM = 24, 600
GROUP = {"group": [0, 1, 0]}


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch):
    """Cut the small tests of this file as large ones are cut."""
    monkeypatch.setattr(tasks, "TASK_FLOPS", dict.fromkeys(tasks.TASK_FLOPS, 4e6))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(3)
    group = np.arange(N_OBS) % 2
    data = rng.normal(size=(N_OBS, 1500))
    data[:, :10] += group[:, None]
    data[3, 7] = np.nan
    return data, np.column_stack([np.ones(N_OBS), group, rng.normal(size=N_OBS)])


class Files:
    """A checkpoint in a folder, with the names that were saved."""

    def __init__(self, folder):
        self.folder = folder
        self.saved = []

    def __call__(self):
        return Checkpoint(load=self._load, save=self._save)

    def _load(self, name):
        return checkpoints.load_arrays(self.folder, name)

    def _save(self, name, arrays):
        checkpoints.save_arrays(self.folder, name, arrays)
        self.saved.append(name)

    def ranges(self):
        return sorted(path for path in self.folder.iterdir() if "-seen" not in path.name)


class CountTasks(Callback):
    """Counts the tasks that compare relabellings."""

    def __init__(self):
        self.n = 0
        super().__init__(posttask=self._count)

    def _count(self, key, *_):
        self.n += str(key).startswith("permute-")


def run(study, files=None, **options):
    data, design = study
    given = {"contrasts": GROUP, "n_perm": N_PERM, "seed": 5} | options
    contrasts = given.pop("contrasts")
    counter = CountTasks()
    with counter:
        res = permutation_test(data, design, contrasts, checkpoint=files() if files else None, **given)
    return res, counter.n


@pytest.mark.faults("seeds")
def test_permutation_test__goes_on_where_it_was(study, tmp_path):
    files = Files(tmp_path)
    whole, n_whole = run(study)
    kept, n_kept = run(study, files)
    xr.testing.assert_identical(kept, whole)
    assert n_kept == n_whole >= 8
    n_range = len(files.ranges())
    assert n_range > 4
    lost = files.ranges()[1:3]
    for path in lost:
        path.unlink()
    files.saved.clear()
    again, n_again = run(study, files)
    xr.testing.assert_identical(again, whole)
    assert n_again < n_whole
    assert sorted(files.saved) == sorted(path.stem + ending for path in lost for ending in ("", "-seen"))
    assert len(files.ranges()) == n_range
    again, n_again = run(study, files)
    xr.testing.assert_identical(again, whole)
    assert n_again == 0


@pytest.mark.faults("rot")
@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "empty"])
def test_permutation_test__computes_damaged_ranges_again(study, tmp_path, damage):
    files = Files(tmp_path)
    whole, _ = run(study, files)
    first, second = files.ranges()[:2]
    content = bytearray(first.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "swap":
        content = second.read_bytes()
    first.write_bytes({"cut": content[:-10], "empty": b""}.get(damage, bytes(content)))
    files.saved.clear()
    again, n_task = run(study, files)
    xr.testing.assert_identical(again, whole)
    assert n_task > 0
    assert files.saved == [first.stem, first.stem + "-seen"]


def test_permutation_test__a_changed_input_never_meets_a_kept_range(study, tmp_path):
    files = Files(tmp_path)
    _, n_whole = run(study, files)
    data, design = study
    changed = data.copy()
    changed[0, 1499] += 1e-9
    other_design = design.copy()
    other_design[0, 2] += 1e-9
    for inputs, options in [
        ((changed, design), {}),
        ((data, other_design), {}),
        (study, {"seed": 6}),
        (study, {"n_perm": N_PERM + 1}),
        (study, {"regression": "manly"}),
        (study, {"dtype": "float32"}),
        (study, {"contrasts": {"group": [0, 0, 1]}}),
    ]:
        _, n_task = run(inputs, files, **options)
        assert n_task >= 0.9 * n_whole
    _, n_task = run((data[::-1], design[::-1]), files, permutations=None)
    assert n_task > 0  # without ids the rows are other observations


@pytest.mark.faults("seeds")
@pytest.mark.parametrize("max_mem", [2**31, 4_500_000])
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_permutation_test__any_number_of_workers_goes_on_with_what_another_began(study, tmp_path, num_workers, max_mem):
    files = Files(tmp_path)
    data, design = study
    lazy = da.from_array(data, chunks=(7, 400))
    with dask.config.set(scheduler="synchronous"):
        whole, _ = run(study, files)
    for path in files.ranges()[::2]:
        path.unlink()
    n_left = len(files.ranges())
    with dask.config.set(scheduler="threads", num_workers=num_workers):
        again, _ = run((lazy, design), files, max_mem=max_mem * num_workers)
    xr.testing.assert_identical(again, whole)
    assert 0 < n_left < len(files.ranges())


def test_permutation_test__keeps_ranges_of_maps_and_of_several_contrasts(study, tmp_path):
    files = Files(tmp_path)
    options = {
        "contrasts": {"group": [0, 1, 0], "both": [[0, 1, 0], [0, 0, 1]]},
        "statistic": "cluster-extent",
        "neighbours": np.column_stack([np.arange(1499), np.arange(1, 1500)]),
        "threshold": 1.5,
    }
    whole, _ = run(study, files, **options)
    again, n_task = run(study, files, **options)
    xr.testing.assert_identical(again, whole)
    assert n_task == 0
    _, n_task = run(study, files, **options | {"threshold": 1.6})
    assert n_task > 0


def test_fingerprint__tells_everything_apart():
    values = [np.zeros(2), np.zeros((2, 1)), np.zeros(2, dtype=np.float32), np.array([0, -0.0]), "a", None, 1, 1.0]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(np.zeros(2)) == fingerprint(np.zeros(2))
