"""The graphical lasso: against scikit-learn's estimator, nilearn, and a precision that is known to be sparse."""

import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure
from sklearn.covariance import GraphicalLasso

from kconn.errors import InputError
from kconn.kernels.netmats import partial_correlation
from kconn.kernels.sparse_precision import graphical_lasso_partial


def chain(n_node=6, n_time=4000, seed=2):
    """Series of which each node is connected with its neighbours alone."""
    precision = np.eye(n_node) + 0.4 * (np.eye(n_node, k=1) + np.eye(n_node, k=-1))
    factor = np.linalg.cholesky(np.linalg.inv(precision))
    return np.random.default_rng(seed).normal(size=(n_time, n_node)) @ factor.T * np.arange(1, n_node + 1)


def test_graphical_lasso_partial__equals_scikit_learn_on_standardised_series():
    ts = chain(n_time=300)
    fitted = GraphicalLasso(alpha=0.2, enet_tol=1e-8).fit((ts - ts.mean(axis=0)) / ts.std(axis=0))
    sd = np.sqrt(np.diag(fitted.precision_))
    expected = -fitted.precision_ / np.outer(sd, sd)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(graphical_lasso_partial(ts, alpha=0.2), expected, atol=1e-10)


def test_graphical_lasso_partial__is_near_nilearn():
    """nilearn inverts the fitted covariance once more, which is exact to the duality gap alone: zeros are lost."""
    ts = chain(n_time=300)
    measure = ConnectivityMeasure(cov_estimator=GraphicalLasso(alpha=0.2, enet_tol=1e-8), kind="partial correlation")
    expected = measure.fit_transform([(ts - ts.mean(axis=0)) / ts.std(axis=0)])[0]
    np.testing.assert_allclose(graphical_lasso_partial(ts, alpha=0.2), expected, atol=1e-3)


def test_graphical_lasso_partial__finds_the_connections_of_a_chain():
    found = graphical_lasso_partial(chain(), alpha=0.2)
    neighbours = np.abs(np.subtract.outer(np.arange(6), np.arange(6))) == 1
    assert (np.abs(found[neighbours]) > 0.1).all()
    assert (found[~neighbours & ~np.eye(6, dtype=bool)] == 0).all()


def test_graphical_lasso_partial__nears_the_partial_correlation_without_penalty():
    ts = chain()
    np.testing.assert_allclose(graphical_lasso_partial(ts, alpha=1e-4), partial_correlation(ts), atol=2e-3)


def test_graphical_lasso_partial__does_not_depend_on_units_or_leading_dims():
    ts = chain(n_time=400)
    stacked = np.stack([ts, ts * 7 - 2])
    r = graphical_lasso_partial(stacked, alpha=0.15)
    np.testing.assert_allclose(r[1], r[0], atol=1e-8)
    np.testing.assert_array_equal(r[0], graphical_lasso_partial(ts, alpha=0.15))


def test_graphical_lasso_partial__refuses_what_has_no_solution():
    ts = np.random.default_rng(0).normal(size=(12, 40))
    with pytest.raises(InputError, match="E-NETMAT-CONVERGENCE"):
        graphical_lasso_partial(ts, alpha=1e-9)
