"""Peak memory of a permutation test whose data are read from Zarr: a process holds no more than it was allowed."""

import multiprocessing
import threading

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import zarr

from kconn.cluster import connect
from kconn.inference import permutation_test

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

N_OBS, N_FEATURE, CHUNK, N_PERM = 1000, 1_000_000, 4096, 8
MAX_MEM = 2**30


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A million features of a thousand observations as float32: 4 GB on disk."""
    path = tmp_path_factory.mktemp("memory") / "data.zarr"
    array = zarr.create_array(
        str(path), shape=(N_OBS, N_FEATURE), chunks=(N_OBS, CHUNK), dtype="float32", compressors=None
    )
    rng = np.random.default_rng(0)
    for first in range(0, N_FEATURE, CHUNK):
        array[:, first : first + CHUNK] = rng.standard_normal((N_OBS, min(CHUNK, N_FEATURE - first)), dtype=np.float32)
    return path


class Watch:
    """How far the resident memory of a process rises inside the block."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._before = self._highest = self._process.memory_info().rss
        self._thread.start()
        return self

    def _look(self):
        while not self._done.wait(0.01):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self.rise = self._highest - self._before


def run(path, n_feature=N_FEATURE):
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2, np.linspace(-1, 1, N_OBS) ** 2])
    data = da.from_zarr(str(path))[:, :n_feature]
    return permutation_test(data, design, {"group": [0, 1, 0]}, n_perm=N_PERM, seed=0, max_mem=MAX_MEM)


def run_here(path, num_workers):
    with dask.config.set(scheduler="threads", num_workers=num_workers):
        run(path, 2 * CHUNK)  # loads compiled code
        with Watch(psutil.Process().pid) as watch:
            res = run(path)
    assert res["p_fwe"].notnull().all()
    return watch.rise


@pytest.mark.parametrize("num_workers", [1, 2])
def test_permutation_test__memory_of_a_process_stays_under_max_mem(store, num_workers):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rise = pool.apply(run_here, (store, num_workers))
    print({"threads": num_workers, "rise_mib": rise // 2**20})  # noqa: T201
    assert rise < MAX_MEM


def test_permutation_test__memory_of_a_worker_stays_under_max_mem(store):
    with connect(n_workers=1) as client:
        run(store, 2 * CHUNK)
        (pid,) = client.run(lambda: psutil.Process().pid).values()
        with Watch(pid) as watch:
            run(store)
    print({"worker": 1, "rise_mib": watch.rise // 2**20})  # noqa: T201
    assert watch.rise < MAX_MEM
