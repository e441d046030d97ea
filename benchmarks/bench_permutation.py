"""101 observations x 14,706 edges, group + age + sex + intercept, 5,000 permutations: kconn, nilearn, the bare product.

``python -m benchmarks.bench_permutation`` prints one JSON line per precision. Medians, sides taken in turn; ``cpu`` are
seconds of the processor over all threads, which other work on the machine changes less than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter, process_time

import numpy as np
from nilearn.mass_univariate import permuted_ols

from kconn.infer.inference import permutation_test
from kconn.kernels import tallies
from kconn.kernels.blas import single_thread

N_OBS, N_FEATURE = 101, 14_706
#: Group, age and sex: the intercept's row is always zero and left out.
N_ROW = 3


def simulate() -> tuple[np.ndarray, np.ndarray]:
    """Return data ``(observation, edge)`` with 60 planted edges, and the design."""
    rng = np.random.default_rng(0)
    group = np.arange(N_OBS) % 2
    design = np.column_stack([np.ones(N_OBS), group, rng.normal(40, 10, N_OBS), rng.integers(0, 2, N_OBS)])
    data = rng.standard_normal((N_OBS, N_FEATURE)).astype(np.float32)
    data[:, :60] += 0.8 * group[:, None]
    return data, design


def multiply(dtype: str, n_perm: int) -> None:
    """Do the bare product of the same rows, in the same blocks, on every core."""
    n_block = tallies.plan_permutation_block(N_ROW)
    rng = np.random.default_rng(0)
    left = rng.standard_normal((n_block * N_ROW, N_OBS)).astype(dtype)
    blocks = [
        rng.standard_normal((N_OBS, min(tallies.FEATURE_BLOCK, N_FEATURE - first))).astype(dtype)
        for first in range(0, N_FEATURE, tallies.FEATURE_BLOCK)
    ]

    def work(right: np.ndarray) -> None:
        out = np.empty((left.shape[0], right.shape[1]), dtype=dtype)
        for _ in range(0, n_perm, n_block):
            np.matmul(left, right, out=out)

    with single_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, blocks))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Time one call, by the clock and of the processor."""
    start, start_cpu = perf_counter(), process_time()
    work()
    return perf_counter() - start, process_time() - start_cpu


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-perm", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    arguments = parser.parse_args()
    data, design = simulate()

    def ours(dtype: str, n_perm: int) -> None:
        permutation_test(data, design, {"group": [0, 1, 0, 0]}, n_perm=n_perm, seed=0, dtype=dtype)

    def nilearn() -> None:
        permuted_ols(
            design[:, [1]],
            data,
            design[:, 2:],
            model_intercept=True,
            n_perm=arguments.n_perm,
            random_state=0,
            n_jobs=1,
            verbose=0,
            output_type="dict",
        )

    for dtype in arguments.dtypes:
        first_call, _ = seconds(lambda dtype=dtype: ours(dtype, 100))
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": [], "floor": []}
        for _ in range(arguments.repeats):
            times["ours"].append(seconds(lambda dtype=dtype: ours(dtype, arguments.n_perm)))
            times["floor"].append(seconds(lambda dtype=dtype: multiply(dtype, arguments.n_perm)))
            times["peer"].append(seconds(nilearn))
        took = {name: median(clock for clock, _ in values) for name, values in times.items()}
        best = {name: min(clock for clock, _ in values) for name, values in times.items()}
        spent = {name: median(cpu for _, cpu in values) for name, values in times.items()}
        line = {
            "work": f"permutation test {N_OBS} x {N_FEATURE}, {arguments.n_perm} permutations, {dtype}",
            "ours_s": round(took["ours"], 3),
            "peer": "nilearn.mass_univariate.permuted_ols",
            "peer_s": round(took["peer"], 3),
            "ratio": round(took["peer"] / took["ours"], 1),
            "ratio_of_minima": round(best["peer"] / best["ours"], 1),
            "cpu_ratio": round(spent["peer"] / spent["ours"], 1),
            "product_s": round(took["floor"], 3),
            "ours_over_product": round(took["ours"] / took["floor"], 2),
            "ours_over_product_of_minima": round(best["ours"] / best["floor"], 2),
            "ours_over_product_cpu": round(spent["ours"] / spent["floor"], 2),
            "load": round(os.getloadavg()[0], 2),
            "first_call_s": round(first_call, 3),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
