"""Time two ways of the same work, each in a fresh process, and print one JSON line."""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import psutil

MIB = 1024**2


def compare(
    work: str, *, ours: Callable[[], Callable[[], Any]], peer: Callable[[], Callable[[], Any]], **more: Any
) -> None:
    """Print medians, their ratio and how far the memory of each rose above what it held before.

    Parameters
    ----------
    work
        What is done, with its size.
    ours, peer
        Functions that make the input and return the call to time. Both must be importable.
    more
        Further entries of the line.
    """
    ours_s, ours_mb = _measure(ours)
    peer_s, peer_mb = _measure(peer)
    line = {
        "work": work,
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 1),
        "peak_rss_mb": round(ours_mb),
        "peer_peak_rss_mb": round(peer_mb),
        **more,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _measure(prepare: Callable[[], Callable[[], Any]], n_repeat: int = 5) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, peak = pool.apply(_run, (prepare, n_repeat))
    return seconds, peak


def _run(prepare: Callable[[], Callable[[], Any]], n_repeat: int) -> tuple[float, float]:
    call = prepare()
    call()  # compiles and warms up
    before = psutil.Process().memory_info().rss
    highest, done = [before], threading.Event()
    watch = threading.Thread(target=_watch, args=(highest, done))
    watch.start()
    seconds = []
    for _ in range(n_repeat):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    done.set()
    watch.join()
    return median(seconds), (highest[0] - before) / MIB


def _watch(highest: list[int], done: threading.Event) -> None:
    while not done.wait(0.002):
        highest[0] = max(highest[0], psutil.Process().memory_info().rss)
