"""Kernels of network matrices: against loops, nilearn, FSLNets' formula, and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.covariance import ledoit_wolf

from kconn.errors import InputError
from kconn.kernels import netmats as kernel


@pytest.fixture(scope="module")
def ts():
    rng = np.random.default_rng(7)
    return rng.normal(size=(3, 90, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12) * 50


def partial_loop(ts):
    """Correlate the residuals of each pair after regressing out all other nodes."""
    n = ts.shape[1]
    r = np.eye(n)
    for i in range(n):
        for j in range(i + 1, n):
            others = np.column_stack([np.ones(len(ts)), np.delete(ts, [i, j], axis=1)])
            a, b = (ts[:, k] - others @ np.linalg.lstsq(others, ts[:, k], rcond=None)[0] for k in (i, j))
            r[i, j] = r[j, i] = a @ b / np.sqrt((a @ a) * (b @ b))
    return r


def fslnets_ridgep(ts, rho):
    """Follow FSLNets' nets_netmats, case 'ridgep', line by line."""
    grot = np.cov(ts.T)
    grot = grot / np.sqrt(np.mean(np.diag(grot) ** 2))
    grot = -np.linalg.inv(grot + rho * np.eye(ts.shape[1]))
    scale = np.repeat(np.sqrt(np.abs(np.diag(grot)))[:, None], ts.shape[1], axis=1)
    grot = (grot / scale) / scale.T
    np.fill_diagonal(grot, 1)
    return grot


def test_covariance__matches_numpy(ts):
    expected = [np.cov(run.T) for run in ts]
    np.testing.assert_allclose(kernel.covariance(ts), expected, rtol=1e-10)


def test_correlation__matches_numpy(ts):
    np.testing.assert_allclose(kernel.correlation(ts), [np.corrcoef(run.T) for run in ts], atol=1e-12)


def test_partial_correlation__matches_regression_of_each_pair(ts):
    np.testing.assert_allclose(kernel.partial_correlation(ts), [partial_loop(run) for run in ts], atol=1e-10)


@pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0, 100.0])
def test_ridge_partial__matches_fslnets(ts, rho):
    expected = [fslnets_ridgep(run, rho) for run in ts]
    np.testing.assert_allclose(kernel.ridge_partial(ts, rho=rho), expected, atol=1e-11)


def test_ridge_partial__does_not_depend_on_the_unit(ts):
    np.testing.assert_allclose(kernel.ridge_partial(ts * 1e4, rho=0.1), kernel.ridge_partial(ts, rho=0.1), atol=1e-12)


def test_correlation_without_mean__matches_fslnets(ts):
    """Follow FSLNets' nets_netmats, case 'rcorr', on demeaned runs as it loads them."""
    for run, actual in zip(ts, kernel.correlation_without_mean(ts), strict=True):
        grot = run - run.mean(axis=0)
        mgrot = grot.mean(axis=1, keepdims=True)
        grot = grot - mgrot @ (np.linalg.pinv(mgrot) @ grot)
        np.testing.assert_allclose(actual, np.corrcoef(grot.T), atol=1e-12)


@pytest.mark.parametrize("shape", [(90, 12), (30, 40), (8, 3)])
def test_ledoit_wolf__matches_scikit_learn(shape):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *shape)) @ rng.normal(size=(shape[1], shape[1])) + 100
    for run, actual in zip(x, kernel.ledoit_wolf(x), strict=True):
        z = (run - run.mean(axis=0)) / run.std(axis=0)
        np.testing.assert_allclose(actual, ledoit_wolf(z, assume_centered=True)[0], rtol=1e-9, atol=1e-12)


def test_ledoit_wolf__of_few_nodes_is_finite():
    x = np.random.default_rng(1).normal(size=(10, 1))
    np.testing.assert_array_equal(kernel.ledoit_wolf(x), [[1]])


def test_partial_correlation__of_a_copied_node_is_refused(ts):
    doubled = np.concatenate([ts[0], ts[0][:, :1]], axis=1)
    with pytest.raises(InputError, match=r"E-NETMAT-RANK.*13 nodes is singular"):
        kernel.partial_correlation(doubled)


def test_partial_correlation__of_a_near_copy_is_refused(ts):
    near = ts[0][:, :1] * (1 + 1e-9 * np.arange(len(ts[0]))[:, None] / len(ts[0]))
    with pytest.raises(InputError, match="E-NETMAT-RANK"):
        kernel.partial_correlation(np.concatenate([ts[0], near], axis=1))


@pytest.mark.parametrize(
    "kind", [kernel.covariance, kernel.correlation, kernel.partial_correlation, kernel.ledoit_wolf_partial]
)
def test_estimators__take_any_leading_axes(ts, kind):
    stacked = np.stack([ts, ts[::-1]])
    assert kind(stacked).shape == (2, 3, 12, 12)
    np.testing.assert_array_equal(kind(stacked)[1, 0], kind(ts[2]))


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(12, 30), st.integers(2, 6)),
        elements=st.floats(-1e3, 1e3, allow_subnormal=False),
    ),
    st.floats(1e-3, 1e3),
)
def test_estimators__are_symmetric_and_bounded(x, rho):
    x = x + np.random.default_rng(0).normal(size=x.shape)
    for matrix in (kernel.correlation(x), kernel.ridge_partial(x, rho=rho), kernel.ledoit_wolf_partial(x)):
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        assert np.abs(matrix).max() <= 1
        np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_pack_edges__is_undone_by_unpack_edges(n, seed):
    x = np.random.default_rng(seed).normal(size=(2, n, n))
    matrix = x + np.swapaxes(x, 1, 2)
    matrix[:, np.arange(n), np.arange(n)] = 3
    edges = kernel.pack_edges(matrix)
    assert edges.shape == (2, n * (n - 1) // 2)
    np.testing.assert_array_equal(kernel.unpack_edges(edges, diagonal=3), matrix)


def test_pack_edges__goes_row_by_row():
    matrix = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0]])
    np.testing.assert_array_equal(kernel.pack_edges(matrix), [1, 2, 3])


@pytest.mark.parametrize("n_edge", [2, 4, 5, 14705])
def test_count_nodes__refuses_what_is_no_triangle(n_edge):
    with pytest.raises(ValueError, match="not a number of edges"):
        kernel.count_nodes(n_edge)


def test_count_nodes__of_a_study():
    assert kernel.count_nodes(14_706) == 172


def test_fisher_z__is_arctanh_and_never_infinite():
    r = np.array([-1, -0.5, 0, 0.9, 1, 1 + 2e-16])
    z = kernel.fisher_z(r)
    np.testing.assert_array_equal(z[1:4], np.arctanh(r[1:4]))
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[[0, 4, 5]], [-11.859, 11.859, 11.859], atol=1e-3)


def test_find_dead_nodes__finds_constant_near_constant_and_nan(ts):
    x = ts[0].copy()
    x[:, 1] = 7
    x[:, 3] = 10_000 + 1e-2 * ts[0][:, 3]
    x[:, 5] = 1e-13 * ts[0][:, 5]
    x[4, 8] = np.nan
    np.testing.assert_array_equal(np.flatnonzero(kernel.find_dead_nodes(x)), [1, 5, 8])
    x[:, 3] = 1e9 + ts[0][:, 3]
    np.testing.assert_array_equal(np.flatnonzero(kernel.find_dead_nodes(x)), [1, 3, 5, 8])


def test_find_dead_nodes__of_rounding_alone_are_all(ts):
    assert kernel.find_dead_nodes(np.full((40, 3), 0.1) + 1e-17).all()
    assert not kernel.find_dead_nodes(ts).any()


def test_find_dead_nodes__spares_nodes_of_another_unit(ts):
    x = ts[0] * np.geomspace(1e-2, 1e2, ts.shape[2])
    assert not kernel.find_dead_nodes(x).any()
