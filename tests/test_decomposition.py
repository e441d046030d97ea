"""Group PCA and ICA: against one SVD of everything, with planted sources, in any order and any chunks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from benchmarks import bench_group_pca
from kconn.connect.decomposition import find_components, match_templates, merge_reduced, reduce_run
from kconn.errors import InputError, SchemaError
from kconn.kernels.group_pca import estimate_dimension
from kconn.kernels.ica import find_sources

SHAPE = (9, 8, 7)
N_VOXEL = int(np.prod(SHAPE))
N_SOURCE = 4
AFFINE = np.diag([3.0, 3, 3, 1]).tolist()


def sources(seed=0):
    """Networks: blobs of voxels, few of which overlap; ``(source, voxel)``."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((N_SOURCE, N_VOXEL))
    for i in range(N_SOURCE):
        maps[i, i * 100 : i * 100 + 70] = 1 + rng.random(70)
    return maps


def simulated(seed, *, n_time=60, noise=0.5, voxels=None):
    rng = np.random.default_rng(100 + seed)
    x = sources().T @ rng.normal(size=(N_SOURCE, n_time)) + noise * rng.normal(size=(N_VOXEL, n_time)) + 100
    ijk = np.stack(np.unravel_index(np.arange(N_VOXEL), SHAPE, order="F"))
    chosen = np.arange(N_VOXEL) if voxels is None else voxels
    return xr.Dataset(
        {"denoised": (("voxel", "time"), x[chosen].astype(np.float32))},
        coords={axis: ("voxel", ijk[i, chosen].astype(np.int32)) for i, axis in enumerate("ijk")},
        attrs={"where": f"sub-{seed:02d}", "grid_shape": list(SHAPE), "affine": AFFINE, "space": "MNI"},
    )


def normalised(run):
    x = run["denoised"].to_numpy().astype(np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    return x / x.std(axis=1, ddof=1, keepdims=True)


def angle(rows, expected):
    return np.max(subspace_angles(np.asarray(rows).T, np.asarray(expected).T))


def leading_axes(runs, n):
    whole = np.concatenate([normalised(run).T for run in runs])
    return np.linalg.svd(whole, full_matrices=False)[2][:n]


def tree(runs, n, order=None, normalise="sd"):
    parts = [reduce_run(run, n_component=n, normalise=normalise) for run in runs]
    parts = [parts[i] for i in order or range(len(parts))]
    while len(parts) > 1:
        parts = [merge_reduced(parts[i : i + 2], n_component=n) for i in range(0, len(parts), 2)]
    return parts[0]


def test_reduce_run__keeps_the_products_of_voxels():
    run = simulated(1)
    out = reduce_run(run, n_component=None, normalise="sd").compute()
    x = normalised(run)
    np.testing.assert_allclose(out["reduced"].T.to_numpy() @ out["reduced"].to_numpy(), x @ x.T, atol=1e-9)
    np.testing.assert_allclose(out["eigenvalue"], (out["reduced"] ** 2).sum("voxel"), rtol=1e-9)


def test_reduce_run__strongest_rows_are_those_of_a_pca():
    run = simulated(2)
    out = reduce_run(run, n_component=7, normalise="none").compute()
    x = run["denoised"].to_numpy().astype(np.float64)
    pca = PCA(7, svd_solver="full").fit((x - x.mean(axis=1, keepdims=True)).T)
    assert angle(out["reduced"], pca.components_) < 1e-5  # float32
    np.testing.assert_allclose(out["eigenvalue"], pca.explained_variance_ * 59, rtol=1e-6)


def test_reduce_run__residual_divides_by_the_sd_without_the_strongest_components():
    run = simulated(3)
    out = reduce_run(run, n_component=None, normalise="residual").compute()
    x = run["denoised"].to_numpy().astype(np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    left = x - (u[:, :14] * s[:14]) @ v[:14]  # a quarter of 60 frames less the mean
    x = x / np.sqrt((left**2).sum(axis=1, keepdims=True) / (59 - 14))
    np.testing.assert_allclose(out["reduced"].T.to_numpy() @ out["reduced"].to_numpy(), x @ x.T, rtol=1e-7, atol=1e-7)


def test_reduce_run__counts_kept_frames_and_voxels_with_data_alone():
    run = simulated(4)
    kept = np.arange(60) % 5 != 3
    run["denoised"][:, ~kept] = np.nan
    run["denoised"][7] = np.nan
    out = reduce_run(run.assign(sample_mask=("time", kept)), n_component=None, normalise="sd").compute()
    assert out["n_run"].to_numpy().tolist() == [int(i != 7) for i in range(N_VOXEL)]
    assert np.isfinite(out["reduced"]).all()
    assert (out["reduced"][:, 7] == 0).all()
    assert out.attrs["n_frame"] == kept.sum()


@pytest.mark.parametrize("chunks", [{"voxel": 100, "time": 7}, {"voxel": 333}])
def test_reduce_run__does_not_depend_on_chunks(chunks):
    run = simulated(5)
    xr.testing.assert_identical(
        reduce_run(run.chunk(chunks), n_component=9).compute(), reduce_run(run, n_component=9).compute()
    )


def test_merge_reduced__exact_tree_spans_what_one_svd_of_all_runs_spans():
    runs = [simulated(seed) for seed in range(5)]
    merged = tree(runs, None)
    _, vectors = np.linalg.eigh(merged["reduced"].to_numpy() @ merged["reduced"].T.to_numpy())
    rows = vectors[:, -N_SOURCE:].T @ merged["reduced"].to_numpy()
    assert angle(rows, leading_axes(runs, N_SOURCE)) < 1e-8
    assert merged.attrs["n_frame"] == 300


def test_merge_reduced__truncated_tree_is_near():
    runs = [simulated(seed) for seed in range(8)]
    assert angle(tree(runs, 90)["reduced"][:N_SOURCE], leading_axes(runs, N_SOURCE)) < 1e-3


def test_merge_reduced__order_of_runs_does_not_matter():
    runs = [simulated(seed) for seed in range(6)]
    first = tree(runs, 90)["reduced"][:N_SOURCE]
    again = tree(runs, 90, order=[3, 5, 0, 4, 1, 2])["reduced"][:N_SOURCE]
    assert angle(first, again) < 1e-3
    exact = [tree(runs, None, order=order)["reduced"][:N_SOURCE] for order in (None, [3, 5, 0, 4, 1, 2])]
    assert angle(*exact) < 1e-8


def test_merge_reduced__adds_a_run_without_the_others():
    runs = [simulated(seed) for seed in range(5)]
    before = tree(runs[:4], None)
    after = merge_reduced([before, reduce_run(runs[4], n_component=None, normalise="sd")], n_component=None)
    assert angle(after["reduced"][:N_SOURCE], leading_axes(runs, N_SOURCE)) < 1e-8


def test_merge_reduced__joins_voxels_by_place():
    left, right = np.arange(0, 400), np.arange(90, N_VOXEL)
    runs = [simulated(1, voxels=left), simulated(2, voxels=right)]
    merged = merge_reduced([reduce_run(run, n_component=None, normalise="sd") for run in runs], n_component=None)
    assert merged.sizes["voxel"] == N_VOXEL
    np.testing.assert_array_equal(
        merged["n_run"], np.isin(np.arange(N_VOXEL), left) * 1 + np.isin(np.arange(N_VOXEL), right)
    )
    whole = simulated(3)
    for axis in "ijk":
        np.testing.assert_array_equal(merged[axis], whole[axis])
    x = np.zeros((N_VOXEL, 120))
    x[left, :60], x[right, 60:] = normalised(runs[0]), normalised(runs[1])
    product = merged["reduced"].T.to_numpy() @ merged["reduced"].to_numpy()
    np.testing.assert_allclose(product, x @ x.T, atol=1e-9)


def test_merge_reduced__refuses_other_grids():
    other = simulated(2).assign_attrs(affine=np.diag([2.0, 2, 2, 1]).tolist())
    parts = [reduce_run(run, n_component=5) for run in (simulated(1), other)]
    with pytest.raises(InputError, match="E-GRID"):
        merge_reduced(parts, n_component=5)


def test_find_components__recovers_planted_sources():
    runs = [simulated(seed) for seed in range(5)]
    out = find_components(tree(runs, 40, normalise="residual"), n_component=N_SOURCE, n_start=5, seed=1)
    r = np.corrcoef(out["ica_map"], sources())[:N_SOURCE, N_SOURCE:]
    assert (r.max(axis=0) > 0.95).all()
    assert sorted(r.argmax(axis=0)) == list(range(N_SOURCE))
    assert (out["stability"] > 0.7).all()
    np.testing.assert_allclose(out["ica_map"].mean("voxel"), 0, atol=1e-5)
    np.testing.assert_allclose(out["ica_map"].std("voxel"), 1, rtol=1e-5)
    assert (np.diff(out["variance_share"]) <= 0).all()
    assert 0.5 < float(out["variance_share"].sum()) <= 1


def test_find_components__same_seed_same_bits_and_estimates_the_number():
    merged = tree([simulated(seed) for seed in range(3)], 40, normalise="residual")
    a, b = (find_components(merged, n_component=None, n_start=3, seed=4) for _ in range(2))
    xr.testing.assert_identical(a, b)
    assert a.sizes["node"] == N_SOURCE


def test_find_components__leaves_out_voxels_that_few_runs_have():
    runs = [simulated(1, voxels=np.arange(400)), simulated(2), simulated(3)]
    merged = tree(runs, 40)
    assert find_components(merged, n_component=3, n_start=1).sizes["voxel"] == 400
    assert find_components(merged, n_component=3, n_start=1, min_share=0.5).sizes["voxel"] == N_VOXEL


def test_find_components__refuses_more_components_than_rows():
    with pytest.raises(InputError, match="E-NODES"):
        find_components(reduce_run(simulated(1), n_component=5), n_component=6)
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        find_components(reduce_run(simulated(1), n_component=5), n_component=3, n_start=0)


def test_match_templates__is_the_spatial_correlation():
    out = find_components(tree([simulated(seed) for seed in range(3)], 40), n_component=N_SOURCE, n_start=2)
    templates = xr.DataArray(sources()[:2], dims=("template", "voxel"), coords={"template": ["one", "two"]})
    templates[:, 5] = np.nan
    r = match_templates(out, templates)["template_correlation"]
    keep = np.arange(N_VOXEL) != 5
    expected = np.corrcoef(out["ica_map"].to_numpy()[:, keep], templates.to_numpy()[:, keep])[:N_SOURCE, N_SOURCE:]
    np.testing.assert_allclose(r, expected, atol=1e-6)


@pytest.mark.parametrize("n_signal", [2, 5, 9])
def test_estimate_dimension__equals_scikit_learn(n_signal):
    rng = np.random.default_rng(n_signal)
    x = rng.normal(size=(2000, n_signal)) @ rng.normal(size=(n_signal, 30)) + rng.normal(size=(2000, 30))
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, ddof=0) * 2000)[::-1]
    assert estimate_dimension(eigenvalues, n_sample=2000) == PCA("mle").fit(x).n_components_ == n_signal


def test_find_sources__agrees_with_itself_over_starts():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(6, 4)) @ rng.laplace(size=(4, 5000)) + 0.1 * rng.normal(size=(6, 5000))
    axes = np.linalg.svd(rows, full_matrices=False)[2][:4] * 50
    found = find_sources(axes, n_start=6, seed=0)
    assert found.n_converged >= 5
    assert (found.stability > 0.99).all()
    other = find_sources(axes, n_start=6, seed=9)
    assert (np.abs(np.corrcoef(found.sources, other.sources)[:4, 4:]).max(axis=1) > 0.999).all()


@pytest.mark.slow
def test_merge_reduced__memory_is_that_of_blocks_and_not_of_runs():
    """A quarter of the frames of HCP in half of the memory: eight such runs in float64 are 1.75 GB, before any copy."""
    command = [sys.executable, "-m", "benchmarks.bench_group_pca", "300"]
    done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    assert json.loads(done.stdout)["peak_rss_gb"] < bench_group_pca.LIMIT_GB / 2
