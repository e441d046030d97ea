"""Netmats of windows: against pandas' rolling correlation, on kept frames, lazily; and how much edges change."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from kconn.connect.netmats import estimate_netmats
from kconn.connect.sliding_windows import estimate_variability, estimate_window_netmats, plan_windows
from kconn.errors import InputError, SchemaError


def run(n_node=4, n_time=60, seed=5, t_r=2.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_node, n_time)) + rng.normal(size=(1, n_time))
    return xr.Dataset(
        {"timeseries": (("node", "time"), x)},
        coords={"node": [f"n{i}" for i in range(n_node)], "time": np.arange(n_time) * t_r},
        attrs={"t_r": t_r, "where": "sub-01/ses-1/run-1"},
    )


def test_estimate_window_netmats__equals_pandas_rolling():
    ds = run()
    out = estimate_window_netmats(ds, kind="corr", window_s=20, step_s=6)
    frame = pd.DataFrame(ds["timeseries"].to_numpy().T, columns=ds["node"].to_numpy())
    for i, j, edge in zip(out["node_i"].to_numpy(), out["node_j"].to_numpy(), out["netmat"].T, strict=True):
        expected = frame[i].rolling(10).corr(frame[j]).to_numpy()[9::3]
        np.testing.assert_allclose(edge, expected, atol=1e-12)
    np.testing.assert_array_equal(out["window"], np.arange(out.sizes["window"]) * 6.0)


@pytest.mark.parametrize(("kind", "rho"), [("corr", None), ("partial", None), ("ridgep", 0.1), ("ledoitp", None)])
def test_estimate_window_netmats__is_the_netmat_of_each_stretch(kind, rho):
    ds = run().assign(sample_mask=("time", np.arange(60) % 6 != 1))
    out = estimate_window_netmats(ds, kind=kind, rho=rho, window_s=40, step_s=40)
    for i, start in enumerate((0, 20, 40)):
        expected = estimate_netmats(ds.isel(time=slice(start, start + 20)), kind=kind, rho=rho)["netmat"]
        np.testing.assert_array_equal(out["netmat"][i], expected)


def test_estimate_window_netmats__is_nan_where_half_is_censored():
    kept = np.ones(60, dtype=bool)
    kept[10:18] = False
    out = estimate_window_netmats(run().assign(sample_mask=("time", kept)), kind="corr", window_s=20, step_s=20)
    np.testing.assert_array_equal(np.isnan(out["netmat"]).all("edge"), [False, True, False, False, False, False])
    np.testing.assert_array_equal(estimate_variability(out)["n_window"], 5)


@pytest.mark.parametrize("chunks", [{}, {"node": 1, "time": 7}])
def test_estimate_window_netmats__lazy_equals_eager_bit_for_bit(chunks):
    eager = estimate_variability(estimate_window_netmats(run(), kind="corr", window_s=24, step_s=10))
    lazy = estimate_variability(estimate_window_netmats(run().chunk(chunks), kind="corr", window_s=24, step_s=10))
    assert lazy["netmat"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), eager)


def test_estimate_variability__is_the_sd_of_z_over_windows():
    out = estimate_window_netmats(run(), kind="corr", window_s=20, step_s=20)
    np.testing.assert_allclose(
        estimate_variability(out)["netmat"], np.arctanh(out["netmat"].to_numpy()).std(axis=0, ddof=1), rtol=1e-12
    )


def test_estimate_variability__is_larger_where_a_connection_comes_and_goes():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=600)
    on = (np.arange(600) // 60) % 2
    x = rng.normal(size=(3, 600))
    x[0] += 2 * shared * on
    x[1] += 2 * shared * on
    ds = run(3, 600).assign(timeseries=(("node", "time"), x))
    sd = estimate_variability(estimate_window_netmats(ds, kind="corr", window_s=120, step_s=120))["netmat"]
    assert sd[0] > 2 * max(sd[1], sd[2])


def test_estimate_variability__refuses_a_covariance_and_z():
    windows = estimate_window_netmats(run(), kind="cov", window_s=20, step_s=20)
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        estimate_variability(windows)


def test_plan_windows__refuses_what_makes_no_window():
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        plan_windows(100, t_r=2.0, window_s=6, step_s=2)
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        plan_windows(100, t_r=2.0, window_s=60, step_s=0.5)
    with pytest.raises(InputError, match="E-NO-FRAMES"):
        plan_windows(20, t_r=2.0, window_s=60, step_s=2)
