"""101 observations x 14,706 edges, 50,000 permutations: workers of a cluster against threads of one process.

``python -m benchmarks.bench_permutation_cluster`` prints one JSON line per precision. Both sides have as many threads;
they are taken in turn, and each call on the cluster ships the data anew. ``ratio`` is the median over turns of seconds
on the clock, ``cpu_ratio`` the same of processor time of this process, the scheduler and the workers, which other work
on the machine changes less; ``load`` is the load of the machine before the first turn and after the last.
"""

from __future__ import annotations

import argparse
import json
import os
from statistics import median
from time import perf_counter

import dask
import psutil

from benchmarks.bench_permutation import N_FEATURE, N_OBS, simulate
from kconn.cluster import connect
from kconn.infer.inference import permutation_test


def spent() -> float:
    """Return the processor time of this process and of all that it started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-perm", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    arguments = parser.parse_args()
    data, design = simulate()

    def take(scheduler: object, n_perm: int, dtype: str) -> tuple[float, float]:
        start, start_cpu = perf_counter(), spent()
        with dask.config.set(scheduler=scheduler, num_workers=arguments.workers):
            permutation_test(data, design, {"group": [0, 1, 0, 0]}, n_perm=n_perm, seed=0, dtype=dtype)
        return perf_counter() - start, spent() - start_cpu

    with connect(n_workers=arguments.workers) as client:
        for dtype in arguments.dtypes:
            sides = {"in_process": "threads", "cluster": client}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
            for scheduler in sides.values():
                take(scheduler, 2000, dtype)  # loads the compiled code everywhere
            load = [os.getloadavg()[0]]
            for _ in range(arguments.repeats):
                for name, scheduler in sides.items():
                    times[name].append(take(scheduler, arguments.n_perm, dtype))
            load.append(os.getloadavg()[0])
            turns = list(zip(times["cluster"], times["in_process"], strict=True))
            clock, cpu = ([there[i] / here[i] for there, here in turns] for i in range(2))
            line = {
                "work": f"permutation test {N_OBS} x {N_FEATURE}, {arguments.n_perm} permutations, {dtype}",
                "in_process_s": round(median(clock for clock, _ in times["in_process"]), 3),
                "cluster_s": round(median(clock for clock, _ in times["cluster"]), 3),
                "ratio": round(median(clock), 3),
                "ratios": [round(ratio, 3) for ratio in clock],
                "ratio_of_minima": round(min(times["cluster"])[0] / min(times["in_process"])[0], 3),
                "cpu_ratio": round(median(cpu), 3),
                "cpu_ratios": [round(ratio, 3) for ratio in cpu],
                "load": [round(value, 2) for value in load],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
