"""Voxels as bits: packed, unpacked and located, against plain NumPy."""

import numpy as np
import pytest

from kconn.kernels.masks import locate_voxels, pack_voxels, unpack_voxels


def test_unpack_voxels__undoes_pack():
    flat = np.array([0, 3, 8, 17, 20])
    np.testing.assert_array_equal(np.flatnonzero(unpack_voxels(pack_voxels(flat, 21), 21)), flat)


@pytest.mark.parametrize("seed", range(30))
def test_locate_voxels__finds_what_a_dictionary_finds(seed):
    rng = np.random.default_rng(seed)
    n_grid = int(rng.integers(1, 90))
    mine = np.flatnonzero(rng.random(n_grid) < 0.6)
    wanted = np.flatnonzero(rng.random(n_grid) < 0.3)
    wanted = wanted if wanted.size else np.array([n_grid - 1])
    first, end, place = locate_voxels(pack_voxels(mine, n_grid), wanted)
    known = {int(voxel): i for i, voxel in enumerate(mine)}
    expected = [known.get(int(voxel), -1) for voxel in wanted]
    assert [first + i if i >= 0 else -1 for i in place] == expected
    assert (mine[first:end] >= wanted[0]).all()
    assert (mine[first:end] <= wanted[-1]).all()
    assert place.max(initial=-1) < end - first
