"""Time two ways of the same work in turns, each in a process of its own, and print one JSON line."""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

import psutil

MIB = 1024**2
#: The call that this process times, once it is prepared.
_CALLS: Final[list[Callable[[], Any]]] = []


def compare(
    work: str,
    *,
    ours: Callable[[], Callable[[], Any]],
    peer: Callable[[], Callable[[], Any]],
    n_repeat: int = 5,
    **more: Any,
) -> None:
    """Print medians, their ratio and how far the memory of each rose above what it held before.

    ``cpu_ratio`` is that of the seconds that the threads of each side were on a core: it holds on a busy machine too.

    Both take turns, so that what else the machine does meets both alike; the one that waits does nothing.

    Parameters
    ----------
    work
        What is done, with its size.
    ours, peer
        Functions that make the input and return the call to time. Both must be importable.
    n_repeat
        Rounds.
    more
        Further entries of the line.
    """
    with _own_process() as first, _own_process() as second:
        for process, prepare in ((first, ours), (second, peer)):
            process.submit(_prepare, prepare).result()
        rounds = [[process.submit(_time).result() for process in (first, second)] for _ in range(n_repeat)]
    (ours_s, ours_cpu, ours_mb), (peer_s, peer_cpu, peer_mb) = (
        (median(one[0] for one in side), median(one[1] for one in side), max(one[2] for one in side))
        for side in zip(*rounds, strict=True)
    )
    line = {
        "work": work,
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 2),
        "cpu_ratio": round(peer_cpu / ours_cpu, 2),
        "peak_rss_mb": round(ours_mb),
        "peer_peak_rss_mb": round(peer_mb),
        **more,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _own_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _prepare(prepare: Callable[[], Callable[[], Any]]) -> None:
    _CALLS.append(prepare())
    _CALLS[0]()  # compiles and warms up


def _time() -> tuple[float, float, float]:
    """Return the seconds of one call, those of all its threads on a core, and by how many MiB the memory rose."""
    before = psutil.Process().memory_info().rss
    highest, done = [before], threading.Event()
    watch = threading.Thread(target=_watch, args=(highest, done))
    watch.start()
    start, start_cpu = perf_counter(), process_time()
    _CALLS[0]()
    seconds, cpu = perf_counter() - start, process_time() - start_cpu
    done.set()
    watch.join()
    return seconds, cpu, (highest[0] - before) / MIB


def _watch(highest: list[int], done: threading.Event) -> None:
    while not done.wait(0.002):
        highest[0] = max(highest[0], psutil.Process().memory_info().rss)
