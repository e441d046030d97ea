"""The scatter of unrelated series: closed form and simulation against FSLNets' way."""

import numpy as np
import pytest

from kconn.kernels import nulls as kernel


def simulate(ar1, n_frame, n_node, rng):
    x = np.empty((n_frame, n_node))
    x[0] = rng.normal(size=n_node)
    for t in range(1, n_frame):
        x[t] = ar1 * x[t - 1] + rng.normal(size=n_node)
    return x


def test_lag_one__matches_fslnets_ratio():
    x = simulate(0.6, 300, 5, np.random.default_rng(0)) + 50
    demeaned = x - x.mean(axis=0)
    expected = (demeaned[:-1] * demeaned[1:]).sum(axis=0) / (demeaned**2).sum(axis=0)
    np.testing.assert_allclose(kernel.lag_one(x, kept=np.ones(300, dtype=bool)), expected)


def test_lag_one__survives_censoring():
    rng = np.random.default_rng(0)
    x = simulate(0.6, 20_000, 3, rng)
    kept = rng.random(20_000) > 0.3
    x[~kept] = np.nan
    np.testing.assert_allclose(kernel.lag_one(x, kept=kept), 0.6, atol=0.02)


@pytest.mark.parametrize("ar1", [0.0, 0.4, 0.8])
def test_null_scale_full__matches_simulation(ar1):
    rng = np.random.default_rng(1)
    edges = [np.corrcoef(simulate(ar1, 200, 60, rng)[20:].T)[np.triu_indices(60, 1)] for _ in range(8)]
    expected = 1 / np.std(np.arctanh(edges))
    assert kernel.null_scale_full(ar1, n_frame=180) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("ar1", [0.0, 0.5])
def test_null_scale_partial__matches_fslnets_simulation(ar1):
    rng = np.random.default_rng(2)
    z = []
    for _ in range(40):
        inverse = -np.linalg.inv(np.cov(simulate(ar1, 150, 30, rng).T))
        scale = np.sqrt(np.abs(np.diag(inverse)))
        z.append(np.arctanh((inverse / scale / scale[:, None])[np.triu_indices(30, 1)]))
    actual = kernel.null_scale_partial(ar1, n_frame=150, n_node=30, seed=0)
    assert actual == pytest.approx(1 / np.std(z), rel=0.02)
    assert actual == kernel.null_scale_partial(ar1, n_frame=150, n_node=30, seed=0)
    assert actual == pytest.approx(kernel.null_scale_partial(ar1, n_frame=150, n_node=30, seed=1), rel=0.01)
