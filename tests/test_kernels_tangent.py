"""Geometric mean and tangent space: against nilearn, and by their definitions."""

import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure
from scipy.linalg import expm, logm, sqrtm
from sklearn.covariance import EmpiricalCovariance

from kconn.errors import InputError
from kconn.kernels import tangent as kernel


@pytest.fixture(scope="module")
def series():
    rng = np.random.default_rng(2)
    return rng.normal(size=(6, 60, 8)) @ (np.eye(8) + 0.3 * rng.normal(size=(6, 8, 8)))


@pytest.fixture(scope="module")
def matrices(series):
    return np.stack([np.cov(run.T, ddof=0) for run in series])


def test_project_tangent__equals_nilearn(series, matrices):
    measure = ConnectivityMeasure(cov_estimator=EmpiricalCovariance(), kind="tangent")
    expected = measure.fit_transform(list(series))
    mean = kernel.geometric_mean(matrices)
    np.testing.assert_allclose(mean, measure.mean_, rtol=1e-5)
    np.testing.assert_allclose(kernel.project_tangent(matrices, mean=mean), expected, atol=1e-5)


def test_geometric_mean__of_commuting_matrices_is_that_of_their_eigenvalues():
    matrices = np.stack([np.diag([1.0, 4.0]), np.diag([4.0, 1.0]), np.diag([2.0, 2.0])])
    np.testing.assert_allclose(kernel.geometric_mean(matrices), np.diag([2.0, 2.0]), atol=1e-6)


def test_geometric_mean__has_no_gradient(matrices):
    mean = kernel.geometric_mean(matrices)
    np.testing.assert_allclose(kernel.project_tangent(matrices, mean=mean).mean(axis=0), 0, atol=1e-5)


def test_geometric_mean__turns_with_its_matrices(matrices):
    turn = np.random.default_rng(0).normal(size=(8, 8))
    turned = kernel.geometric_mean(turn @ matrices @ turn.T)
    np.testing.assert_allclose(turned, turn @ kernel.geometric_mean(matrices) @ turn.T, rtol=1e-3, atol=1e-4)


def test_project_tangent__matches_its_definition(matrices):
    mean = matrices[0]
    whitening = np.linalg.inv(sqrtm(mean).real)
    expected = [logm(whitening @ matrix @ whitening).real for matrix in matrices]
    actual = kernel.project_tangent(matrices, mean=mean)
    np.testing.assert_allclose(actual, expected, atol=1e-8)
    np.testing.assert_allclose(actual[0], 0, atol=1e-10)
    root = sqrtm(mean).real
    np.testing.assert_allclose(root @ expm(actual[3]) @ root, matrices[3], atol=1e-8)


def test_geometric_mean__refuses_singular_matrices(matrices):
    singular = matrices.copy()
    singular[2] = 1
    with pytest.raises(InputError, match="E-NETMAT-RANK 1 of 6 matrices"):
        kernel.geometric_mean(singular)


def test_geometric_mean__gives_up(matrices, monkeypatch):
    monkeypatch.setattr(kernel, "MAX_STEPS", 1)
    with pytest.raises(InputError, match="did not settle in 1 steps"):
        kernel.geometric_mean(matrices)


def test_geometric_mean__threads_change_no_bit(matrices):
    mean = kernel.geometric_mean(matrices)
    np.testing.assert_array_equal(kernel.geometric_mean(matrices, n_thread=4), mean)
    alone = kernel.project_tangent(matrices, mean=mean)
    np.testing.assert_array_equal(kernel.project_tangent(matrices, mean=mean, n_thread=9), alone)
