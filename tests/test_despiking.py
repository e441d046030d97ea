"""Despiking: against a plain loop; what it must not touch; laziness."""

import dask
import numpy as np
import pytest
import xarray as xr

from kconn.clean.despiking import despike
from kconn.kernels.despiking import despike as despike_rows


@pytest.fixture
def x():
    rng = np.random.default_rng(4)
    return rng.normal(size=(20, 130)) + np.sin(np.arange(130) / 30) * 3 + 500


def despike_loop(series):
    middle = np.array([np.median(series[max(0, t - 12) : t + 13]) for t in range(len(series))])
    unit = 1.4826 * np.median(np.abs(series - middle))
    out = series.copy()
    for t, value in enumerate(series):
        s = (value - middle[t]) / unit
        if abs(s) > 2.5:
            out[t] = middle[t] + np.sign(s) * unit * (2.5 + 1.5 * np.tanh((abs(s) - 2.5) / 1.5))
    return out


@pytest.mark.parametrize("n_time", [130, 20, 3])
def test_despike__equals_loop(x, n_time):
    x[3, 1], x[4, 2] = 900, -300

    actual, n_changed = despike_rows(x[:, :n_time])

    expected = np.array([despike_loop(series) for series in x[:, :n_time]])
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_array_equal(n_changed, (np.abs(expected - x[:, :n_time]) > 0).sum(axis=1))


def test_despike__takes_a_planted_spike_and_leaves_the_rest(x):
    quiet, _ = despike_rows(x)
    spiky = x.copy()
    spiky[:, 60] += 80

    actual, _ = despike_rows(spiky)

    spread = np.std(x - np.sin(np.arange(130) / 30) * 3)
    assert np.abs(actual[:, 60] - quiet[:, 60]).max() < 7 * spread
    np.testing.assert_allclose(np.delete(actual, 60, axis=1), np.delete(quiet, 60, axis=1), atol=0.4)


def test_despike__leaves_rows_alone_that_are_constant_or_not_finite(x):
    x[0], x[1, 5], x[2, 3:] = 7.0, np.nan, x[2, 3]

    actual, n_changed = despike_rows(x)

    np.testing.assert_array_equal(actual[:3], x[:3])
    assert not n_changed[:3].any()


@pytest.mark.parametrize("chunks", [{"voxel": 3, "time": 40}, {"voxel": 20}])
def test_despike__is_lazy_and_has_the_same_bits_for_any_chunks(x, chunks, monkeypatch):
    def no_compute(*_args, **_kwargs):
        raise AssertionError("computed while building the graph")

    monkeypatch.setattr("kconn.clean.despiking.plan_voxel_blocks", lambda _n_voxel, _n_time: 6)
    run = xr.Dataset({"bold": (("voxel", "time"), x.astype("f4"))}, attrs={"t_r": 2.0})
    eager = despike(run)

    with dask.config.set(scheduler=no_compute):
        lazy = despike(run.chunk(chunks))

    xr.testing.assert_identical(lazy.compute(scheduler="sync"), eager)
    assert eager["bold"].dtype == np.float32
    assert eager["despiked_share"] == despike_rows(x.astype("f4"))[1].sum() / x.size
