import asyncio
import json
import time

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from kconn.chunks import plan_voxel_blocks
from kconn.errors import StoreError
from kconn.io import cubes, store, variables
from kconn.io.disk_zarr import DiskZarr
from kconn.io.store import Address, Target


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "netmat": ("edge", rng.normal(size=600), {"kind": "corr", "rho": np.float64(0.5), "of": np.arange(3)}),
            "missing": ("edge", np.full(600, np.nan, dtype=np.float32)),
            "dead_node": ("node", np.array([True, False, True])),
            "n_kept": 7,
            "share": np.float32(0.25),
            "step": "ses-1",
            "none": ("row", np.array([], dtype=np.float64)),
            "words": ("node", np.array(["", "b\n", "ü" * 40], dtype=object)),
        },
        coords={
            "node": ("node", np.array(["a", "b", "ü"], dtype=object)),
            "network": ("node", np.array(["x", "x", "y"])),
            "contrast": "group",
        },
        attrs={"t_r": 0.8, "notes": [], "grid_shape": (2, 3, 4)},
    )


@pytest.fixture
def place(tmp_path, ds):
    variables.write_dataset(DiskZarr(tmp_path / "g"), ds)
    return tmp_path / "g"


def _with_objects(ds):
    """Return a Dataset whose text is Python's, as the reader gives it."""
    text = [name for name, variable in ds.variables.items() if variable.dtype.kind in "UT"]
    for name in text:
        values = ds[name].astype(object)
        ds = ds.assign_coords({name: values}) if name in ds.coords else ds.assign({name: values})
    return ds


def _with_lists(ds):
    """Return a Dataset with attributes as JSON gives them back."""
    ds = ds.copy()
    ds.attrs["grid_shape"] = [2, 3, 4]
    ds["netmat"].attrs = {"kind": "corr", "rho": 0.5, "of": [0, 1, 2]}
    return ds


def test_write_dataset__comes_back_the_same(place, ds):
    found = variables.read_dataset(DiskZarr(place, read_only=True))
    xr.testing.assert_identical(found, _with_lists(_with_objects(ds)))
    assert {name: found[name].dtype for name in ("missing", "dead_node", "share")} == {
        "missing": np.float32,
        "dead_node": np.bool_,
        "share": np.float32,
    }


def test_write_dataset__is_what_plain_xarray_reads(place, ds):
    plain = xr.open_zarr(place, consolidated=False, chunks=None).load()
    xr.testing.assert_identical(_with_objects(plain), _with_lists(_with_objects(ds)))


def test_read_dataset__what_plain_xarray_wrote(tmp_path, ds):
    _with_objects(ds).to_zarr(tmp_path / "x", zarr_format=3, consolidated=False)
    plain = variables.read_dataset(DiskZarr(tmp_path / "x", read_only=True))
    xr.testing.assert_identical(plain, _with_lists(_with_objects(ds)))


def test_read_dataset__reads_what_is_named_and_passes_over_the_rest(place, ds):
    found = variables.read_dataset(DiskZarr(place, read_only=True), ("netmat", "network", "nothing"))
    xr.testing.assert_identical(
        found,
        _with_lists(_with_objects(ds[["netmat"]].assign_coords(network=ds["network"]))).drop_vars(["node", "contrast"]),
    )
    assert variables.read_dataset(DiskZarr(place, read_only=True), ()).attrs == _with_lists(ds).attrs


def test_write_dataset__chunks_are_those_of_dask_and_end_in_a_checksum(tmp_path):
    values = np.arange(60, dtype=np.int16).reshape(6, 10)
    lazy = xr.Dataset({"bold": (("voxel", "time"), da.from_array(values, chunks=(4, 10)))})
    with dask.config.set(scheduler="synchronous"):
        variables.write_dataset(DiskZarr(tmp_path / "g"), lazy)
    assert sorted(path.name for path in (tmp_path / "g/bold/c").iterdir()) == ["0", "1"]
    for path in (tmp_path / "g").rglob("zarr.json"):
        metadata = json.loads(path.read_text())
        assert metadata["node_type"] == "group" or metadata["codecs"][-1]["name"] == "crc32c"
    found = variables.read_dataset(DiskZarr(tmp_path / "g", read_only=True))["bold"]
    assert found.chunks == ((6,), (10,))  # small enough for one block of voxels
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), values)


def test_read_dataset__what_is_large_is_lazy(tmp_path):
    n_voxel, n_time = 40_000, 100
    block = plan_voxel_blocks(n_voxel, n_time)
    values = {
        "denoised": (("voxel", "time"), da.zeros((n_voxel, n_time), chunks=(block, n_time), dtype=np.float32)),
        "maps": (("node", "voxel"), da.ones((10, n_voxel), chunks=(5, 10_000))),
        "tsnr": ("voxel", np.ones(n_voxel)),
    }
    with dask.config.set(scheduler="synchronous"):
        variables.write_dataset(DiskZarr(tmp_path / "g"), xr.Dataset(values))
    found = variables.read_dataset(DiskZarr(tmp_path / "g", read_only=True))
    assert found["denoised"].data.chunksize == (block, n_time)
    assert found["maps"].data.chunksize == (5, 10_000)
    assert found["tsnr"].chunks is None
    assert float(found["maps"][3, 7:9].sum().compute(scheduler="synchronous")) == 2


def test_write_dataset__of_what_xarray_has_not_read_yet(tmp_path, place, ds):
    lazy = xr.open_zarr(place, consolidated=False, chunks=None)
    variables.write_dataset(DiskZarr(tmp_path / "copy"), lazy)
    found = variables.read_dataset(DiskZarr(tmp_path / "copy", read_only=True))
    xr.testing.assert_identical(found, _with_lists(_with_objects(ds)))


class FullAtOnce(DiskZarr):
    """A disk that is full for one array; the others take a moment."""

    async def set(self, key, value):
        if key.startswith("netmat/"):
            raise OSError(28, "No space left on device")
        await asyncio.sleep(0.05)
        await super().set(key, value)


def test_write_dataset__nothing_is_written_behind_an_error(tmp_path, ds):
    with pytest.raises(OSError, match="No space left"):
        variables.write_dataset(FullAtOnce(tmp_path / "g"), ds)
    files = sorted((tmp_path / "g").rglob("*"))
    time.sleep(0.3)
    assert sorted((tmp_path / "g").rglob("*")) == files


@pytest.mark.parametrize("damage", ["metadata of an array", "checksum"])
def test_open_group__of_damage_that_keeps_the_size_is_told(tmp_path, ds, damage):
    store.create_store(root := tmp_path / "study.zarr")
    address = Address(path="cohort/all/corr", step="cohort")
    cubes.write_dataset(Target(root=root, address=address, key="k", provenance={}), ds)
    group = store.group_path(root, address, "k")
    path = group / ("netmat/zarr.json" if damage == "metadata of an array" else "netmat/c/0")
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    with pytest.raises(StoreError, match=damage) as caught:
        cubes.open_group(root, address)
    assert caught.value.code == "E-STORE-CORRUPT"
