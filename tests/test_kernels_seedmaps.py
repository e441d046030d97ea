"""Seed maps of arrays: against np.corrcoef."""

import numpy as np
import pytest

from kconn.kernels import seedmaps as kernel


@pytest.mark.parametrize("n_voxel", [1, 511, 512, 1300])
@pytest.mark.parametrize("level", [0.0, 10_000.0])
def test_seed_maps__matches_numpy(n_voxel, level):
    rng = np.random.default_rng(n_voxel)
    shared = rng.normal(size=100)
    x = (level + rng.normal(size=(n_voxel, 100)) * 20 + shared * np.linspace(-40, 40, n_voxel)[:, None]).astype("f4")
    seeds = rng.normal(size=(3, 100)) + shared
    kept = rng.random(100) > 0.2
    expected = np.arctanh(np.corrcoef(seeds[:, kept], x[:, kept].astype(np.float64))[:3, 3:])
    actual = kernel.seed_maps(seeds, x, kept=kept)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_seed_maps__of_voxels_and_seeds_without_signal_are_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 40)).astype("f4")
    x[1] = 3
    x[2, 7] = np.nan
    x[3, 0] = np.nan
    seeds = rng.normal(size=(3, 40))
    seeds[1] = 8
    seeds[2, 3] = np.nan
    z = kernel.seed_maps(seeds, x, kept=np.arange(40) > 0)
    np.testing.assert_array_equal(np.isnan(z[0]), [False, True, True, False, False])
    assert np.isnan(z[1:]).all()


def test_seed_maps__of_a_voxel_that_is_the_seed_is_finite():
    x = np.random.default_rng(0).normal(size=(2, 40)).astype("f4")
    x[1] = -2 * x[0] + 5
    z = kernel.seed_maps(x[:1].astype(np.float64), x, kept=np.ones(40, dtype=bool))
    assert np.isfinite(z).all()
    assert z[0, 0] > 6
    assert z[0, 1] < -6


def test_standardise__gives_unit_length():
    x = np.random.default_rng(0).normal(size=(4, 30)) * 50 + 1000
    unit = kernel.standardise(x)
    np.testing.assert_allclose((unit**2).sum(axis=1), 1)
    np.testing.assert_allclose(unit.sum(axis=1), 0, atol=1e-12)
