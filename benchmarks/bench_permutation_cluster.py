"""101 observations x 14,706 edges, 50,000 permutations: workers of a cluster against threads of one process.

``python -m benchmarks.bench_permutation_cluster`` prints one JSON line per precision. Both sides have as many threads;
they are taken in turn, and each call on the cluster ships the data anew.
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from time import perf_counter

import dask

from benchmarks.bench_permutation import N_FEATURE, N_OBS, simulate
from kconn.cluster import connect
from kconn.inference import permutation_test


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-perm", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    arguments = parser.parse_args()
    data, design = simulate()

    def seconds(scheduler: object, n_perm: int, dtype: str) -> float:
        start = perf_counter()
        with dask.config.set(scheduler=scheduler, num_workers=arguments.workers):
            permutation_test(data, design, {"group": [0, 1, 0, 0]}, n_perm=n_perm, seed=0, dtype=dtype)
        return perf_counter() - start

    with connect(n_workers=arguments.workers) as client:
        for dtype in arguments.dtypes:
            sides = {"in_process": "threads", "cluster": client}
            times: dict[str, list[float]] = {name: [] for name in sides}
            for scheduler in sides.values():
                seconds(scheduler, 2000, dtype)  # loads the compiled code everywhere
            for _ in range(arguments.repeats):
                for name, scheduler in sides.items():
                    times[name].append(seconds(scheduler, arguments.n_perm, dtype))
            ratios = [there / here for there, here in zip(times["cluster"], times["in_process"], strict=True)]
            line = {
                "work": f"permutation test {N_OBS} x {N_FEATURE}, {arguments.n_perm} permutations, {dtype}",
                "in_process_s": round(median(times["in_process"]), 3),
                "cluster_s": round(median(times["cluster"]), 3),
                "ratio": round(median(times["cluster"]) / median(times["in_process"]), 3),
                "ratio_of_minima": round(min(times["cluster"]) / min(times["in_process"]), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            }
            print(json.dumps(line))


if __name__ == "__main__":
    main()
