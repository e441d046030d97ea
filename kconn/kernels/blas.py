"""One BLAS thread at a time: the number of threads changes the last bits of a product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import scipy.linalg
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it ships no type information


@cache
def _controller() -> ThreadpoolController:
    """Find the BLAS libraries once: NumPy and SciPy bring one each, and looking costs milliseconds."""
    scipy.linalg.blas.dnrm2(np.ones(1))
    return ThreadpoolController()


class _Gate:
    """Limit BLAS to one thread from the first entry to the last exit.

    The limit belongs to the process. When every thread saved and restored it for itself, one that leaves first would
    lift it under the feet of the others, and one that leaves last would make the limit permanent.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_inside = 0
        self._limits: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                _release_control()
                self._limits = _controller().limit(limits=1, user_api="blas")
            self._n_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0 and self._limits is not None:
                _release_control()
                self._limits.restore_original_limits()
                self._limits = None
                _release_control()


def _release_control() -> None:
    """Let this thread set limits.

    From threadpoolctl 3.8 on, the thread that first set a limit of OpenBLAS owns it while it lives, and the calls of
    all others do nothing, silently: of two workers of a pool only one would ever have its limit.
    """
    for library in _controller().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


_GATE = _Gate()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run BLAS on one thread inside the block; safe to enter from many threads at once."""
    _GATE.enter()
    try:
        yield
    finally:
        _GATE.leave()


def count_threads() -> int:
    """Return how many threads BLAS may use now: 1 on a worker, the number of cores in a fresh session."""
    return max((int(pool["num_threads"]) for pool in _controller().select(user_api="blas").info()), default=1)
