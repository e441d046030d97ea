"""Tiles in the store: every one once, none again after a kill, nothing below the diagonal."""

import numpy as np
import pytest
import xarray as xr

from kconn.io import cubes, store
from kconn.io.store import Address, Target
from kconn.io.tiles import write_upper_tiles

N, TILE = 23, 5
ADDRESS = Address(path="dense", step="dense")


@pytest.fixture
def matrix():
    x = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    return x + x.T


@pytest.fixture
def target(tmp_path):
    root = tmp_path / "study.zarr"
    store.create_store(root)
    return Target(root=root, address=ADDRESS, key="a" * 32, provenance={})


def write(target, matrix, *, die_after=None):
    computed = []

    def compute(corners):
        if die_after is not None and len(computed) >= die_after:
            raise KeyboardInterrupt
        computed.extend(corners)
        return [matrix[i : i + TILE, j : j + TILE] for i, j in corners]

    like = xr.DataArray(matrix, dims=("voxel", "voxel_j"), name="dense", attrs={"tile": TILE})
    write_upper_tiles(target, compute, like=like, tile=TILE, rest=xr.Dataset(), n_at_once=2)
    return computed


def test_write_upper_tiles__stores_what_lies_on_and_above_the_diagonal(target, matrix):
    computed = write(target, matrix)
    assert len(computed) == len(set(computed)) == 15
    stored = cubes.open_group(target.root, ADDRESS)["dense"].to_numpy()
    upper = (np.arange(N)[:, None] // TILE) <= (np.arange(N)[None, :] // TILE)
    np.testing.assert_array_equal(stored[upper], matrix[upper])
    assert np.isnan(stored[~upper]).all()


def test_write_upper_tiles__goes_on_where_it_was(target, matrix):
    with pytest.raises(KeyboardInterrupt):
        write(target, matrix, die_after=6)
    assert not store.is_published(target.root, ADDRESS, target.key)
    assert len(write(target, matrix)) == 9
    undisturbed = Target(root=target.root.parent / "other.zarr", address=ADDRESS, key=target.key, provenance={})
    store.create_store(undisturbed.root)
    write(undisturbed, matrix)
    assert store.digest_store(target.root) == store.digest_store(undisturbed.root)


def test_write_upper_tiles__a_damaged_tile_is_made_again(target, matrix):
    with pytest.raises(KeyboardInterrupt):
        write(target, matrix, die_after=6)
    chunk = store.staging_path(target) / "dense" / "c" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\x00")
    computed = write(target, matrix)
    assert (0, TILE) in computed
    assert len(computed) == 10
