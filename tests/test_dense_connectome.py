"""Dense connectomes: against NumPy's corrcoef, in any tiles, of several runs, and the strongest of each voxel."""

import itertools

import numpy as np
import pytest
import xarray as xr

from kconn.connect.dense_connectome import (
    estimate_dense_connectome,
    estimate_parcel_connectome,
    estimate_strongest,
    mirror_tiles,
)
from kconn.connect.nodes import nodes_from_labels
from kconn.errors import InputError
from kconn.kernels import dense as kernel

SHAPE = (6, 5, 4)
N_VOXEL = int(np.prod(SHAPE))


def run(seed, *, n_time=50, voxels=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N_VOXEL, n_time)) + np.repeat(rng.normal(size=(12, n_time)), 10, axis=0) + 1000
    chosen = np.arange(N_VOXEL) if voxels is None else voxels
    ijk = np.stack(np.unravel_index(chosen, SHAPE, order="F")).astype(np.int32)
    return xr.Dataset(
        {"denoised": (("voxel", "time"), x[chosen].astype(np.float32))},
        coords={axis: ("voxel", ijk[i]) for i, axis in enumerate("ijk")},
        attrs={"grid_shape": list(SHAPE), "affine": np.eye(4).tolist(), "where": f"run-{seed}"},
    )


@pytest.mark.parametrize("tile", [7, 64, 500])
def test_estimate_dense_connectome__is_the_mean_of_r_over_runs(tile):
    runs = [run(seed, n_time=n) for seed, n in ((1, 50), (2, 80))]
    out = estimate_dense_connectome(runs, tile=tile)
    assert out["dense"].chunks is not None
    expected = np.mean([np.corrcoef(one["denoised"].to_numpy().astype(np.float64)) for one in runs], axis=0)
    np.testing.assert_allclose(out["dense"], expected, atol=2e-6)
    assert out.attrs["n_frame"] == 130


def test_estimate_dense_connectome__is_symmetric_to_the_bit():
    dense = estimate_dense_connectome([run(1)], tile=13)["dense"].to_numpy()
    np.testing.assert_array_equal(dense[13:26, 39:52], dense[39:52, 13:26].T)


def test_estimate_dense_connectome__joins_voxels_by_place_and_counts_kept_frames():
    kept = np.arange(50) % 4 != 1
    left, right = np.arange(0, 90), np.arange(20, N_VOXEL)
    runs = [run(1, voxels=left).assign(sample_mask=("time", kept)), run(2, voxels=right)]
    out = estimate_dense_connectome([one.chunk(voxel=11) for one in runs], tile=16)
    assert out.sizes["voxel"] == 70
    a, b = (one["denoised"].to_numpy().astype(np.float64) for one in runs)
    expected = (np.corrcoef(a[20:90][:, kept]) + np.corrcoef(b[:70])) / 2
    np.testing.assert_allclose(out["dense"], expected, atol=2e-6)
    np.testing.assert_array_equal(out["i"], runs[0]["i"][20:])


def test_estimate_dense_connectome__voxels_without_signal_are_nan():
    one = run(3)
    one["denoised"][5] = 7
    dense = estimate_dense_connectome([one, run(4)], tile=32)["dense"].to_numpy()
    assert np.isnan(dense[5]).all()
    assert np.isnan(dense[:, 5]).all()
    assert np.isfinite(np.delete(np.delete(dense, 5, 0), 5, 1)).all()


def test_estimate_dense_connectome__refuses_other_grids_and_nothing_in_common():
    with pytest.raises(InputError, match="E-GRID"):
        estimate_dense_connectome([run(1), run(2).assign_attrs(affine=(2 * np.eye(4)).tolist())])
    with pytest.raises(InputError, match="E-MASK-EMPTY"):
        estimate_dense_connectome([run(1, voxels=np.arange(40)), run(2, voxels=np.arange(60, 100))])


def test_mirror_tiles__fills_what_lies_below_the_diagonal():
    whole = estimate_dense_connectome([run(1)], tile=16).load()
    stored = whole["dense"].to_numpy().copy()
    tile_of = np.arange(N_VOXEL) // 16
    stored[tile_of[:, None] > tile_of[None, :]] = np.nan
    ds = whole.assign(dense=(("voxel", "voxel_j"), stored, whole["dense"].attrs))
    np.testing.assert_array_equal(mirror_tiles(ds)["dense"], whole["dense"])


@pytest.mark.parametrize("tile", [9, 40, 500])
def test_estimate_strongest__are_the_largest_by_size(tile):
    runs = [run(1), run(2)]
    out = estimate_strongest(runs, n_strongest=6, tile=tile)
    dense = estimate_dense_connectome(runs, tile=500)["dense"].to_numpy().copy()
    np.fill_diagonal(dense, 0)
    order = np.argsort(-np.abs(dense), axis=1, kind="stable")[:, :6]
    np.testing.assert_allclose(np.abs(out["neighbour_r"]), np.abs(np.take_along_axis(dense, order, 1)), atol=1e-6)
    assert (out["neighbour"].to_numpy() == order).mean() > 0.99
    assert (out["neighbour"].to_numpy() != np.arange(N_VOXEL)[:, None]).all()


def test_keep_strongest__equal_sizes_keep_the_lower_column_in_any_order_of_tiles():
    row = np.array([[0.5, -0.5, 0.5, 0.2, -0.5, np.nan, 0.1]], dtype=np.float32)
    for cuts in ([0, 7], [0, 2, 7], [0, 3, 5, 7]):
        for turned in (False, True):
            columns, values = kernel.start_strongest(1, 3)
            spans = list(itertools.pairwise(cuts))
            for first, last in reversed(spans) if turned else spans:
                kernel.keep_strongest(np.ascontiguousarray(row[:, first:last]), 100, first, columns, values)
            assert columns.tolist() == [[0, 1, 2]]
            assert values.tolist() == [[0.5, -0.5, 0.5]]


def test_keep_strongest__fewer_than_ranks():
    columns, values = kernel.start_strongest(2, 3)
    kernel.keep_strongest(np.array([[1, 0.3], [0.3, 1]], dtype=np.float32), 0, 0, columns, values)
    assert columns.tolist() == [[1, -1, -1], [0, -1, -1]]
    assert np.isnan(values[:, 1:]).all()


@pytest.mark.parametrize("chunks", [None, {"voxel": 17, "time": 9}])
def test_estimate_parcel_connectome__is_the_mean_of_the_dense_connectome(chunks):
    labels = (np.arange(N_VOXEL) % 4).reshape(SHAPE, order="F")
    runs = [run(1), run(2, n_time=80).assign(sample_mask=("time", np.arange(80) % 5 != 2))]
    dense = estimate_dense_connectome(runs)["dense"].to_numpy().astype(np.float64)
    given = [one.chunk(chunks) if chunks else one for one in runs]
    out = estimate_parcel_connectome(given, nodes_from_labels(labels, np.eye(4)))
    flat = labels.ravel(order="F")
    expected = [[dense[np.ix_(flat == a, flat == b)].mean() for b in (1, 2, 3)] for a in (1, 2, 3)]
    np.testing.assert_allclose(out["dense_mean"], expected, atol=1e-6)
    assert out["node_j"].to_numpy().tolist() == ["1", "2", "3"]
    assert (out["dense_mean"].chunks is not None) == (chunks is not None)


def test_estimate_parcel_connectome__leaves_voxels_without_signal_out():
    one = run(3)
    one["denoised"][4] = 7
    labels = (1 + np.arange(N_VOXEL) // 60).reshape(SHAPE, order="F")
    out = estimate_parcel_connectome([one], nodes_from_labels(labels, np.eye(4)))
    dense = estimate_dense_connectome([one])["dense"].to_numpy()
    np.testing.assert_allclose(out["dense_mean"][0, 1], np.nanmean(dense[:60, 60:]), atol=1e-6)


@pytest.mark.parametrize("n_row", [1, 256, 300])
def test_add_products__adds_to_a_tile_and_leaves_it_as_it_was(n_row):
    rng = np.random.default_rng(n_row)
    a, b, tile = (rng.normal(size=shape).astype("f4") for shape in ((n_row, 20), (33, 20), (n_row, 33)))
    before = tile.copy()
    np.testing.assert_allclose(kernel.add_products(tile, a, b), before + a @ b.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tile, before)
    np.testing.assert_array_equal(kernel.add_products(None, a, b), a @ b.T)
