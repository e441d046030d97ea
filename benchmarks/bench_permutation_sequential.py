"""Features that stop at their tenth exceedance against all relabellings of all features, 101 x 14,706 edges, float32.

``python -m benchmarks.bench_permutation_sequential`` prints one JSON line per number of relabellings: ratios of
processor time and of the clock, medians over turns, and the share of relabellings that a feature is compared with.
Drawing the table is part of both sides.
"""

from __future__ import annotations

import argparse
import json
import os
from statistics import median
from time import perf_counter, process_time

from benchmarks.bench_permutation import N_FEATURE, N_OBS, simulate
from kconn.infer.inference import permutation_test
from kconn.kernels.sequential import Sequential


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-perm", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--n-exceed", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    data, design = simulate()

    def take(n_perm: int, stopping: Sequential | None) -> tuple[float, float, float]:
        start, start_cpu = perf_counter(), process_time()
        result = permutation_test(
            data, design, {"group": [0, 1, 0, 0]}, n_perm=n_perm, seed=0, dtype="float32", stopping=stopping
        )
        spent = perf_counter() - start, process_time() - start_cpu
        return *spent, float(result["n_used"].mean()) / n_perm if stopping else 1.0

    stopping = Sequential(n_exceed=arguments.n_exceed)
    for side in (None, stopping):
        take(200, side)  # loads the compiled code
    for n_perm in arguments.n_perm:
        turns = [(take(n_perm, None), take(n_perm, stopping)) for _ in range(arguments.repeats)]
        line = {
            "work": f"permutation test {N_OBS} x {N_FEATURE}, {n_perm} permutations, stopping at {arguments.n_exceed}",
            "all_cpu_s": round(median(every[1] for every, _ in turns), 3),
            "stopping_cpu_s": round(median(stopped[1] for _, stopped in turns), 3),
            "cpu_ratio": round(median(every[1] / stopped[1] for every, stopped in turns), 2),
            "ratio": round(median(every[0] / stopped[0] for every, stopped in turns), 2),
            "share_compared": round(turns[0][1][2], 5),
            "load": round(os.getloadavg()[0], 2),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
