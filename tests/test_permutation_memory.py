"""Peak memory of a permutation test whose data are read from Zarr: a process holds no more than it was allowed."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import zarr

from kconn.cluster import connect
from kconn.infer.inference import permutation_test

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

N_OBS, N_FEATURE, CHUNK, N_PERM = 1000, 1_000_000, 4096, 8
MAX_MEM = 2**30


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A million features of a thousand observations as float32: 4 GB to whoever reads them, one file under many names.

    The file system keeps the one file in memory, so that what is measured does not wait for a disk.
    """
    path = tmp_path_factory.mktemp("memory") / "data.zarr"
    array = zarr.create_array(
        str(path), shape=(N_OBS, N_FEATURE), chunks=(N_OBS, CHUNK), dtype="float32", compressors=None
    )
    array[:, :CHUNK] = np.random.default_rng(0).standard_normal((N_OBS, CHUNK), dtype=np.float32)
    first = path / "c" / "0" / "0"
    for i_chunk in range(1, -(-N_FEATURE // CHUNK)):
        os.link(first, first.with_name(str(i_chunk)))
    return path


class Watch:
    """How far the resident memory of the one of some processes that rises most rises inside the block."""

    def __init__(self, *pids):
        self._processes = [psutil.Process(pid) for pid in pids]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._before = [process.memory_info().rss for process in self._processes]
        self.rise = 0
        self._thread.start()
        return self

    def _look(self):
        while not self._done.wait(0.01):
            now = [process.memory_info().rss for process in self._processes]
            self.rise = max(self.rise, *(after - before for after, before in zip(now, self._before, strict=True)))

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def run(path, n_feature):
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2, np.linspace(-1, 1, N_OBS) ** 2])
    data = da.from_zarr(str(path))[:, :n_feature]
    return permutation_test(data, design, {"group": [0, 1, 0]}, n_perm=N_PERM, seed=0, max_mem=MAX_MEM)


def run_threads(path, n_feature, num_workers):
    with dask.config.set(scheduler="threads", num_workers=num_workers):
        run(path, 2 * CHUNK)  # loads compiled code
        with Watch(os.getpid()) as watch:
            res = run(path, n_feature)
    assert res["p_fwe"].notnull().all()
    return watch.rise


def run_workers(path, n_feature, n_workers):
    with connect(n_workers=n_workers) as client:
        run(path, 2 * CHUNK)
        with Watch(*client.run(os.getpid).values()) as watch:
            res = run(path, n_feature)
    assert res["p_fwe"].notnull().all()
    return watch.rise


@pytest.mark.parametrize(
    ("work", "n", "n_feature"),
    [(run_threads, 1, N_FEATURE // 4), (run_threads, 2, N_FEATURE), (run_workers, 2, N_FEATURE)],
)
def test_permutation_test__memory_of_a_process_stays_under_max_mem(store, work, n, n_feature):
    """Each case has a process of its own, whose memory nothing else has touched; a pool's could not start workers."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        start = perf_counter()
        rise = process.submit(work, store, n_feature, n).result()
    seconds = round(perf_counter() - start)
    print({"work": work.__name__, "n": n, "features": n_feature, "rise_mib": rise // 2**20, "seconds": seconds})  # noqa: T201
    assert rise < MAX_MEM
