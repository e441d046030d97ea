"""assemble_maps: voxels joined by place, runs averaged, one grid, the same bits for any block."""

import dask
import numpy as np
import pytest
import xarray as xr

from kconn.connect.cohort_maps import assemble_maps, mark_data
from kconn.errors import InputError, SchemaError

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (4, 3, 5)


def make_run(seed, voxels, *, n_node=3, where="sub-x"):
    """Return maps whose value tells run, node and voxel."""
    i, j, k = np.unravel_index(voxels, SHAPE, order="F")
    values = 1000 * seed + 100 * np.arange(n_node)[:, None] + np.asarray(voxels)
    ds = xr.Dataset(
        {"seed_map": (("node", "voxel"), values.astype(np.float32), {"z": "fisher"})},
        coords={
            "node": [f"n{i}" for i in range(n_node)],
            **{axis: ("voxel", at.astype(np.int32)) for axis, at in zip("ijk", (i, j, k), strict=True)},
        },
        attrs={"affine": AFFINE.tolist(), "grid_shape": list(SHAPE), "where": where},
    )
    return mark_data(ds, "seed_map")


ALL = np.arange(60)
RUNS = [
    ("02", "pre", make_run(1, ALL[5:])),
    ("01", "pre", make_run(2, ALL[:-3])),
    ("01", "post", make_run(3, ALL[2:50])),
    ("01", "post", make_run(4, ALL[::2])),
]


def test_assemble_maps__joins_voxels_by_place_and_averages_runs():
    cube = assemble_maps(RUNS, variable="seed_map").compute()
    assert cube["observation"].to_numpy().tolist() == ["sub-01_ses-post", "sub-01_ses-pre", "sub-02_ses-pre"]
    flat = np.ravel_multi_index(tuple(cube[axis].to_numpy() for axis in "ijk"), SHAPE, order="F")
    both = set(ALL[2:50]) | set(ALL[::2])
    assert flat.tolist() == sorted(both & set(ALL[5:]) & set(ALL[:-3]))
    value = {1: flat + 1000, 2: flat + 2000, 3: flat + 3000, 4: flat + 4000}
    post = np.where(flat % 2 == 1, value[3], np.where(flat >= 50, value[4], (value[3] + value[4]) / 2))
    np.testing.assert_array_equal(cube["seed_map"][:, 0], [post, value[2], value[1]])
    np.testing.assert_array_equal(cube["seed_map"][:, 2] - cube["seed_map"][:, 0], 200)
    assert (cube["n_missing"] == 0).all()
    assert cube["seed_map"].attrs["z"] == "fisher"


def test_assemble_maps__with_a_lower_share_keeps_voxels_that_some_sessions_lack():
    cube = assemble_maps(RUNS, variable="seed_map", min_share=2 / 3).compute()
    missing = cube["seed_map"].isnull()
    np.testing.assert_array_equal(missing.sum("observation").isel(node=0), cube["n_missing"])
    assert cube["n_missing"].max() == 1
    assert cube.sizes["voxel"] > assemble_maps(RUNS, variable="seed_map").sizes["voxel"]


def test_assemble_maps__is_lazy_and_does_not_depend_on_blocks_or_order(monkeypatch):
    def no_compute(*_args, **_kwargs):
        raise AssertionError("a graph was computed while building")

    expected = assemble_maps(RUNS, variable="seed_map").compute(scheduler="synchronous")
    monkeypatch.setattr("kconn.chunks.GATHER_BYTES", 4 * 3 * 2 * 7)
    monkeypatch.setattr("kconn.chunks.MAPS_PER_CHUNK", 2)
    with dask.config.set(scheduler=no_compute):
        lazy = assemble_maps(RUNS[::-1], variable="seed_map")
    assert lazy["seed_map"].data.numblocks[2] > 4
    assert set(lazy["seed_map"].data.chunks[1]) == {1}
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), expected)


def test_mark_data__is_true_where_any_map_has_a_value():
    run = make_run(1, ALL)
    run["seed_map"][0, 4] = np.nan
    run["seed_map"][:, 9] = np.nan
    assert np.flatnonzero(~mark_data(run, "seed_map")["has_data"].to_numpy()).tolist() == [9]


def test_assemble_maps__refuses_what_does_not_belong_together():
    moved = make_run(1, ALL).assign_attrs(affine=(AFFINE + np.eye(4)).tolist(), where="sub-09")
    with pytest.raises(InputError, match=r"E-GRID \[sub-09\].*up to 1 mm"):
        assemble_maps([*RUNS, ("09", "pre", moved)], variable="seed_map")
    with pytest.raises(InputError, match=r"E-NODES \[sub-09\]"):
        assemble_maps([*RUNS, ("09", "pre", make_run(1, ALL, n_node=2, where="sub-09"))], variable="seed_map")
    with pytest.raises(InputError, match=r"E-MASK-EMPTY.*100%.*2 sessions"):
        assemble_maps([("01", "a", make_run(1, ALL[:9])), ("02", "a", make_run(1, ALL[9:]))], variable="seed_map")
    with pytest.raises(InputError, match="E-NODES there is no map"):
        assemble_maps([], variable="seed_map")
    with pytest.raises(SchemaError, match="E-ARGUMENT min_share"):
        assemble_maps(RUNS, variable="seed_map", min_share=0)
    with pytest.raises(SchemaError, match="order of the file"):
        assemble_maps([("01", "a", make_run(1, ALL[::-1]))], variable="seed_map")
