"""One map of 91 x 109 x 91 voxels: clusters and TFCE, kconn against nilearn; and NBS over 14,706 edges.

``python -m benchmarks.bench_permutation_maps`` prints one JSON line per piece of work: medians of seconds on the clock,
and of the processor, which other work on the machine changes less. Both sides of a map use one thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time

import numpy as np
import xarray as xr
from nilearn.mass_univariate._utils import calculate_cluster_measures, calculate_tfce
from scipy import ndimage

from kconn.infer.inference import permutation_test
from kconn.kernels import clusters

SHAPE = (91, 109, 91)
THRESHOLD = 2.0
N_NODE, N_OBS = 172, 101


def simulate() -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth map and an ellipsoid of about 203,000 voxels."""
    rng = np.random.default_rng(0)
    values = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5)
    centre = (np.array(SHAPE)[:, None, None, None] - 1) / 2
    mask = (((np.indices(SHAPE) - centre) / (centre * 0.76)) ** 2).sum(axis=0) < 1
    return np.where(mask, values / values[mask].std(), 0), mask


Times = tuple[float, float]


def seconds(work: Callable[[], object], n_repeat: int) -> Times:
    """Return the median times of some calls after one that compiles, by the clock and of the processor."""
    work()
    times = []
    for _ in range(n_repeat):
        start, start_cpu = perf_counter(), process_time()
        work()
        times.append((perf_counter() - start, process_time() - start_cpu))
    return median(clock for clock, _ in times), median(cpu for _, cpu in times)


def report(work: str, ours: Times, peer: str, theirs: Times | None) -> None:
    """Print one line."""
    line = {"work": work, "ours_s": round(ours[0], 5), "ours_cpu_s": round(ours[1], 5), "peer": peer}
    if theirs is not None:
        line |= {"peer_s": round(theirs[0], 5), "peer_cpu_s": round(theirs[1], 5)}
        line |= {"ratio": round(theirs[0] / ours[0], 1), "cpu_ratio": round(theirs[1] / ours[1], 1)}
    print(json.dumps(line), flush=True)


def main() -> None:
    """Print the ratios."""
    volume, mask = simulate()
    values, ijk = volume[mask], np.argwhere(mask)
    corners = clusters.build_graph(clusters.volume_pairs(ijk, 26), len(ijk))
    faces = clusters.build_graph(clusters.volume_pairs(ijk, 6), len(ijk))

    def largest() -> float:
        active = np.flatnonzero(values >= THRESHOLD)
        found = clusters.find_clusters(active, corners, values.size)
        return float(clusters.sum_clusters(found, np.ones(active.size)).max())

    share = (values >= THRESHOLD).mean()
    six = ndimage.generate_binary_structure(3, 1)
    ours = seconds(largest, 15)
    theirs = seconds(
        lambda: calculate_cluster_measures(volume[..., None], THRESHOLD, ndimage.generate_binary_structure(3, 3)), 5
    )
    report(f"cluster extent, {values.size} voxels, {share:.1%} above", ours, "calculate_cluster_measures", theirs)
    ours = seconds(lambda: clusters.enhance(values, faces, clusters.Tfce(), clusters.Heights()), 7)
    theirs = seconds(lambda: calculate_tfce(volume[..., None], six, two_sided_test=False), 2)
    report(f"TFCE exact, {values.size} voxels", ours, "calculate_tfce, 100 steps", theirs)

    rng = np.random.default_rng(0)
    node_i, node_j = np.triu_indices(N_NODE, 1)
    edges = xr.DataArray(
        rng.standard_normal((N_OBS, node_i.size)),
        dims=("observation", "edge"),
        coords={"node_i": ("edge", node_i), "node_j": ("edge", node_j)},
    )
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2, rng.normal(size=N_OBS)])
    options = {"seed": 0, "statistic": "nbs", "threshold": 3.1}
    permutation_test(edges, design, {"group": [0, 1, 0]}, n_perm=50, **options)
    start, start_cpu = perf_counter(), process_time()
    permutation_test(edges, design, {"group": [0, 1, 0]}, n_perm=5000, **options)
    spent = (perf_counter() - start, process_time() - start_cpu)
    report(f"NBS, {node_i.size} edges x 5000 permutations", spent, "none", None)


if __name__ == "__main__":
    main()
