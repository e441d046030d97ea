"""estimate_netmats: against nilearn and the kernels, on kept frames, with dead nodes, lazily."""

import dask
import numpy as np
import pytest
import xarray as xr
from nilearn.connectome import ConnectivityMeasure
from sklearn.covariance import EmpiricalCovariance

from kconn.connect.netmats import (
    ESTIMATORS,
    ar1_z,
    estimate_amplitudes,
    estimate_ar1,
    estimate_netmats,
    find_dead,
    fisher_z,
)
from kconn.errors import InputError, SchemaError
from kconn.kernels import netmats as kernel

PENALTIES = {**{kind: {} for kind in ESTIMATORS}, "ridgep": {"rho": 0.1}, "glasso": {"alpha": 0.1}}


def no_compute(*_args, **_kwargs):
    raise AssertionError("a graph was computed while building")


def node_series(*shape, seed=3):
    *lead, n_node, n_time = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*lead, n_node, n_time)) + rng.normal(size=(*lead, 1, n_time))
    dims = ("subject", "session")[: len(lead)]
    return xr.Dataset(
        {"timeseries": ((*dims, "node", "time"), x)},
        coords={"node": [f"n{i}" for i in range(n_node)], "time": np.arange(n_time) * 2.0},
        attrs={"where": "sub-01/ses-1/run-1", "t_r": 2.0},
    )


@pytest.mark.parametrize("kind", list(ESTIMATORS))
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_estimate_netmats__equals_its_kernel(kind, lead):
    ds = node_series(*lead, 6, 50)
    out = estimate_netmats(ds, kind=kind, **PENALTIES[kind])
    ts = np.swapaxes(ds["timeseries"].to_numpy(), -1, -2)
    matrix = ESTIMATORS[kind](ts, **PENALTIES[kind])
    np.testing.assert_allclose(out["netmat"], kernel.pack_edges(matrix), rtol=1e-12)
    assert out["netmat"].attrs["kind"] == kind
    assert out["netmat"].attrs["z"] == "none"
    assert out["netmat"].attrs.items() >= PENALTIES[kind].items()
    assert out["node_i"].to_numpy().tolist()[:6] == ["n0"] * 5 + ["n1"]
    assert out["node_j"].to_numpy().tolist()[:6] == ["n1", "n2", "n3", "n4", "n5", "n2"]
    assert not out["dead_node"].any()


@pytest.mark.parametrize(("kind", "peer"), [("corr", "correlation"), ("partial", "partial correlation")])
def test_estimate_netmats__equals_nilearn(kind, peer):
    ds = node_series(5, 8, 60)
    measure = ConnectivityMeasure(cov_estimator=EmpiricalCovariance(), kind=peer, standardize=False)
    expected = measure.fit_transform(list(np.swapaxes(ds["timeseries"].to_numpy(), 1, 2)))
    actual = estimate_netmats(ds, kind=kind)["netmat"]
    np.testing.assert_allclose(actual, kernel.pack_edges(np.asarray(expected)), atol=1e-12)


def test_estimate_netmats__ledoitp_equals_nilearn_on_standardised_series():
    """nilearn shrinks the series in the unit they have, here each node has unit variance first."""
    ds = node_series(5, 30, 25)
    ts = np.swapaxes(ds["timeseries"].to_numpy(), 1, 2)
    z = (ts - ts.mean(axis=1, keepdims=True)) / ts.std(axis=1, keepdims=True)
    expected = ConnectivityMeasure(kind="partial correlation").fit_transform(list(z))
    actual = estimate_netmats(ds, kind="ledoitp")["netmat"]
    np.testing.assert_allclose(actual, kernel.pack_edges(np.asarray(expected)), atol=1e-10)


def test_estimate_netmats__covariance_equals_nilearn_but_for_the_divisor():
    ds = node_series(3, 8, 60)
    measure = ConnectivityMeasure(cov_estimator=EmpiricalCovariance(), kind="covariance", standardize=False)
    expected = np.asarray(measure.fit_transform(list(np.swapaxes(ds["timeseries"].to_numpy(), 1, 2)))) * 60 / 59
    np.testing.assert_allclose(
        estimate_netmats(ds, kind="cov")["netmat"], kernel.pack_edges(expected), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("kind", list(ESTIMATORS))
@pytest.mark.parametrize("chunks", [{}, {"subject": 1, "node": 2, "time": 7}, {"subject": 2, "time": 50}])
def test_estimate_netmats__lazy_equals_eager_bit_for_bit(kind, chunks):
    ds = node_series(3, 6, 50).assign(sample_mask=("time", np.arange(50) % 7 != 0))
    ds = ds.assign_coords(network=("node", list("xxyyzz")))
    eager = fisher_z(estimate_netmats(ds, kind=kind, **PENALTIES[kind])) if kind != "cov" else None
    eager = estimate_netmats(ds, kind=kind, **PENALTIES[kind]) if eager is None else eager
    with dask.config.set(scheduler=no_compute):
        lazy = estimate_netmats(ds.chunk(chunks), kind=kind, **PENALTIES[kind])
        lazy = lazy if kind == "cov" else fisher_z(lazy)
    assert lazy["netmat"].chunks is not None
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), eager)


def test_estimate_netmats__uses_kept_frames_only():
    ds = node_series(6, 80)
    kept = np.arange(80) % 5 != 2
    censored = ds.copy(deep=True)
    censored["timeseries"][:, ~kept] = np.nan
    masked = ds.assign(sample_mask=("time", kept))
    expected = estimate_netmats(ds.isel(time=kept), kind="partial")["netmat"].to_numpy()
    np.testing.assert_array_equal(estimate_netmats(censored, kind="partial")["netmat"], expected)
    np.testing.assert_array_equal(estimate_netmats(masked, kind="partial")["netmat"], expected)


def test_estimate_netmats__leaves_dead_nodes_out():
    ds = node_series(7, 60)
    ds["timeseries"][2] = 5
    ds["timeseries"][4, 10] = np.nan
    out = estimate_netmats(ds, kind="partial")
    assert find_dead(out) == ("n2", "n4")
    touched = np.isin(out["node_i"], ["n2", "n4"]) | np.isin(out["node_j"], ["n2", "n4"])
    np.testing.assert_array_equal(np.isnan(out["netmat"]), touched)
    expected = estimate_netmats(ds.isel(node=[0, 1, 3, 5, 6]), kind="partial")["netmat"]
    np.testing.assert_allclose(out["netmat"].to_numpy()[~touched], expected, rtol=1e-12)


def test_estimate_netmats__does_not_depend_on_the_order_of_nodes():
    ds = node_series(6, 60)
    turned = ds.isel(node=[3, 0, 5, 1, 4, 2])
    a = kernel.unpack_edges(estimate_netmats(ds, kind="ridgep", rho=0.2)["netmat"].to_numpy())
    b = kernel.unpack_edges(estimate_netmats(turned, kind="ridgep", rho=0.2)["netmat"].to_numpy())
    np.testing.assert_allclose(b, a[np.ix_([3, 0, 5, 1, 4, 2], [3, 0, 5, 1, 4, 2])], rtol=1e-9, atol=1e-12)


def test_estimate_netmats__refuses_a_partial_correlation_of_too_few_frames():
    with pytest.raises(
        InputError, match=r"E-NETMAT-RANK \[sub-01/ses-1/run-1\] 21 kept frames cannot tell 20"
    ) as error:
        estimate_netmats(node_series(20, 21), kind="partial")
    assert "ridgep" in error.value.fix
    assert estimate_netmats(node_series(20, 21), kind="ridgep", rho=0.1)["netmat"].notnull().all()
    assert estimate_netmats(node_series(20, 22), kind="partial")["netmat"].notnull().all()


def test_estimate_netmats__counts_the_frames_that_denoising_took():
    ds = node_series(10, 40).assign(df_left=12)
    estimate_netmats(ds, kind="partial")
    with pytest.raises(InputError, match=r"E-NETMAT-RANK.*9 degrees of freedom left"):
        estimate_netmats(ds.assign(df_left=9), kind="partial")
    with pytest.raises(InputError, match="E-NETMAT-RANK"):
        estimate_netmats(ds.assign(df_left=9).chunk(), kind="partial").compute()


def test_estimate_netmats__names_the_run_when_the_matrix_is_singular():
    ds = node_series(5, 40)
    ds["timeseries"][4] = ds["timeseries"][0] + ds["timeseries"][1]
    with pytest.raises(InputError, match=r"E-NETMAT-RANK \[sub-01/ses-1/run-1\].*singular"):
        estimate_netmats(ds, kind="partial")


@pytest.mark.parametrize("kwargs", [{"kind": "ridgep"}, {"kind": "ridgep", "rho": 0}, {"kind": "corr", "rho": 0.1}])
def test_estimate_netmats__refuses_a_penalty_that_does_not_fit(kwargs):
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*rho is"):
        estimate_netmats(node_series(4, 30), **kwargs)


def test_estimate_netmats__refuses_an_unknown_kind():
    with pytest.raises(SchemaError, match="kind is 'spearman'"):
        estimate_netmats(node_series(4, 30), kind="spearman")


def test_estimate_netmats__refuses_a_run_without_frames():
    ds = node_series(4, 30).assign(sample_mask=("time", np.arange(30) < 2))
    with pytest.raises(InputError, match=r"E-NO-FRAMES.*2 of 30"):
        estimate_netmats(ds, kind="corr")


def test_estimate_netmats__refuses_a_run_without_signal():
    ds = node_series(4, 30) * 0 + 1
    with pytest.raises(InputError, match=r"E-NODES.*0 of 4 nodes"):
        estimate_netmats(ds, kind="corr")


def test_fisher_z__is_taken_once_of_a_correlation():
    ds = node_series(4, 30)
    corr = estimate_netmats(ds, kind="corr")
    z = fisher_z(corr)
    np.testing.assert_allclose(z["netmat"], np.arctanh(corr["netmat"]))
    assert z["netmat"].attrs["z"] == "fisher"
    for wrong in (z, estimate_netmats(ds, kind="cov")):
        with pytest.raises(SchemaError, match="E-ARGUMENT"):
            fisher_z(wrong)


@pytest.mark.parametrize("chunks", [None, {}, {"subject": 1, "time": 20}])
def test_estimate_amplitudes__is_the_sd_of_kept_frames(chunks):
    kept = np.arange(50) % 7 != 0
    ds = node_series(3, 6, 50).assign(sample_mask=("time", kept))
    expected = ds["timeseries"].to_numpy()[..., kept].std(axis=-1, ddof=1)
    ds["timeseries"][:, :, 7] = np.nan  # censored
    ds["timeseries"][1, 4, 9] = np.nan
    expected[1, 4] = np.nan
    out = estimate_amplitudes(ds if chunks is None else ds.chunk(chunks))
    np.testing.assert_allclose(out["amplitude"], expected)


def read_hcp12(shared_data):
    """Return the 12 subjects x 68 cortical regions: columns 3 and 38 (from 0) are the corpus callosum."""
    series = [
        np.loadtxt(shared_data / "hcp12_dk70" / f"{subject:03d}" / "rfMRI_REST1_LR_BOLD.csv") for subject in range(12)
    ]
    return np.delete(np.swapaxes(np.stack(series), 1, 2), [3, 38], axis=1)


def test_estimate_netmats__of_real_runs_agree_with_the_published_group(shared_data):
    series = read_hcp12(shared_data)
    folder = shared_data / "hcp_group_fc"
    names = (folder / "funcLabels_ctx.csv").read_text().strip().replace("\n", ",").split(",")
    published = np.loadtxt(folder / "funcMatrix_ctx.csv", delimiter=",")
    ds = xr.Dataset({"timeseries": (("subject", "node", "time"), series)}, coords={"node": names})
    mean = fisher_z(estimate_netmats(ds.assign_coords(time=np.arange(1200) * 0.72), kind="corr"))["netmat"].mean(
        "subject"
    )
    assert np.corrcoef(mean, kernel.pack_edges(published))[0, 1] > 0.95


def test_estimate_netmats__of_a_real_run_with_more_nodes_than_frames(shared_data):
    series = np.loadtxt(shared_data / "stages8" / "ses-1" / "ts_sub-001_ses-1.txt")
    assert series.shape == (419, 234)
    ds = xr.Dataset(
        {"timeseries": (("node", "time"), series)},
        coords={"node": [f"r{i}" for i in range(419)], "time": np.arange(234) * 2.0},
    )
    with pytest.raises(InputError, match=r"E-NETMAT-RANK.*234 kept frames cannot tell 4"):
        estimate_netmats(ds, kind="partial")
    out = fisher_z(estimate_netmats(ds, kind="ridgep", rho=0.1))
    alive = ~out["dead_node"].to_numpy()
    assert np.isfinite(kernel.unpack_edges(out["netmat"].to_numpy())[np.ix_(alive, alive)]).all()


def smooth_series(*lead):
    ds = node_series(*lead, 8, 120)
    x = ds["timeseries"].to_numpy()
    x[..., 1:] += 0.8 * x[..., :-1]
    return ds.assign(timeseries=(ds["timeseries"].dims, x))


def test_ar1_z__scales_fisher_z_by_the_closed_form():
    ds = estimate_netmats(smooth_series(3), kind="corr")
    out = ar1_z(ds)
    a = estimate_ar1(ds)["ar1"].median("node")
    expected = np.sqrt(117 * (1 - a**2) / (1 + a**2))
    np.testing.assert_allclose(out["z_scale"], expected)
    np.testing.assert_allclose(out["netmat"], expected * np.arctanh(ds["netmat"]))
    assert out["netmat"].attrs == {**fisher_z(ds)["netmat"].attrs, "z": "ar1"}
    assert (out["z_scale"] < np.sqrt(117)).all()
    np.testing.assert_allclose(ar1_z(ds, ar1=0.0)["z_scale"], np.sqrt(117))


@pytest.mark.parametrize("kind", ["corr", "partial", "ridgep"])
def test_ar1_z__lazy_equals_eager_bit_for_bit(kind):
    ds = smooth_series(2).assign(sample_mask=("time", np.arange(120) % 9 != 0))
    eager = ar1_z(estimate_netmats(ds, kind=kind, **PENALTIES[kind]), ar1=0.3, seed=4)
    with dask.config.set(scheduler=no_compute):
        lazy = ar1_z(estimate_netmats(ds.chunk(subject=1, time=50), kind=kind, **PENALTIES[kind]), ar1=0.3, seed=4)
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), eager)
    assert eager["netmat"].attrs.get("seed") == (None if kind == "corr" else 4)


def test_estimate_ar1__of_dead_nodes_is_nan():
    ds = smooth_series()
    ds["timeseries"][3] = 1
    ar1 = estimate_ar1(ds)["ar1"]
    np.testing.assert_array_equal(np.isnan(ar1), np.arange(8) == 3)
    assert (ar1.dropna("node") > 0.2).all()


def test_ar1_z__refuses_what_fslnets_has_not():
    ds = smooth_series()
    for wrong in (estimate_netmats(ds, kind="cov"), fisher_z(estimate_netmats(ds, kind="corr"))):
        with pytest.raises(SchemaError, match="E-ARGUMENT"):
            ar1_z(wrong)
    with pytest.raises(SchemaError, match=r"ar1 is 1\.0"):
        ar1_z(estimate_netmats(ds, kind="corr"), ar1=1.0)
    short = estimate_netmats(ds.isel(time=slice(0, 9)), kind="ridgep", rho=0.1)
    with pytest.raises(InputError, match="E-NETMAT-RANK"):
        ar1_z(short)
