from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np  # noqa: F401 - loads the BLAS that is limited
import pytest
from threadpoolctl import threadpool_limits

from kconn.kernels.blas import count_threads, single_thread


def inside():
    with single_thread():
        return count_threads()


@pytest.fixture
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        yield


@pytest.mark.usefixtures("two_threads")
def test_single_thread__holds_in_every_thread_of_a_living_pool():
    together = Barrier(3)

    def work():
        together.wait()
        return [inside() for _ in range(20)]

    with ThreadPoolExecutor(3) as pool:
        # A thread of the pool comes first, and stays alive while the others set their limits.
        assert pool.submit(inside).result() == 1
        assert inside() == 1
        assert {n for found in [pool.submit(work) for _ in range(3)] for n in found.result()} == {1}
        assert inside() == 1
    assert count_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_single_thread__an_inner_block_does_not_lift_the_limit():
    with single_thread():
        assert inside() == 1
        assert count_threads() == 1
    assert count_threads() == 2
