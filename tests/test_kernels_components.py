"""Noise beside signal components against the formula of fsl_regfilt, and regressors that add nothing."""

import numpy as np
import pytest

from kconn.kernels.butterworth import fit_butterworth
from kconn.kernels.components import find_redundant, remove_components
from kconn.kernels.filtering import pass_band
from kconn.kernels.projection import fit_filtered, fit_projection
from kconn.kernels.residuals import residuals

N_TIME, T_R = 120, 2.0


def regfilt(x, mixing, noise, *, aggressive):
    """As fsl_regfilt does it: x (time, voxel) and mixing about their means, noise as positions."""
    x, mixing = x - x.mean(axis=0), mixing - mixing.mean(axis=0)
    if aggressive:
        return x - mixing[:, noise] @ np.linalg.pinv(mixing[:, noise]) @ x
    return x - mixing[:, noise] @ (np.linalg.pinv(mixing) @ x)[noise]


@pytest.fixture
def data():
    rng = np.random.default_rng(4)
    signal = rng.normal(size=(N_TIME, 6))
    noise = rng.normal(size=(N_TIME, 4)) + signal[:, :4] * 0.8
    x = 50 + np.hstack([signal, noise]) @ rng.normal(size=(10, 30)) + rng.normal(size=(N_TIME, 30))
    return x, signal, noise


def everything(n_time=N_TIME):
    return np.ones(n_time, dtype=bool)


def nothing(mask, **band):
    band = pass_band(len(mask), t_r=T_R, **band) if band else (1, len(mask) - 1)
    return fit_projection(np.empty((len(mask), 0)), mask, band=band)


def test_remove_components__oblique_is_fsl_regfilt(data):
    x, signal, noise = data

    fitted = remove_components(nothing(everything()), noise, signal, oblique=True)

    expected = regfilt(x, np.hstack([noise, signal]), range(4), aggressive=False)
    np.testing.assert_allclose(residuals(x.T, fitted).T, expected, atol=1e-10)
    assert fitted.n_regressors == 5


def test_remove_components__without_signal_is_aggressive_fsl_regfilt(data):
    x, _, noise = data

    for oblique in (False, True):
        fitted = remove_components(nothing(everything()), noise, np.empty((N_TIME, 0)), oblique=oblique)

        expected = regfilt(x, noise, range(4), aggressive=True)
        np.testing.assert_allclose(residuals(x.T, fitted).T, expected, atol=1e-10)


def test_remove_components__orthogonal_keeps_what_signal_explains_and_differs_by_that_alone(data):
    x, signal, noise = data
    centred = signal - signal.mean(axis=0)
    along = centred @ np.linalg.pinv(centred)
    own = (noise - noise.mean(axis=0)) - along @ noise

    soft = residuals(x.T, remove_components(nothing(everything()), noise, signal, oblique=False)).T
    fsl = regfilt(x, np.hstack([noise, signal]), range(4), aggressive=False)

    assert np.abs(own.T @ soft).max() < 1e-10
    np.testing.assert_allclose(along @ soft, along @ x, atol=1e-10)
    np.testing.assert_allclose(soft - along @ soft, fsl - along @ fsl, atol=1e-10)
    assert np.abs(soft - fsl).max() > 0.1


@pytest.mark.parametrize("oblique", [False, True])
def test_remove_components__orthogonal_series_leave_alike(data, oblique):
    x, signal, noise = data
    centred = signal - signal.mean(axis=0)
    own = noise - centred @ np.linalg.pinv(centred) @ noise

    fitted = remove_components(nothing(everything()), own, signal, oblique=oblique)

    np.testing.assert_allclose(residuals(x.T, fitted).T, regfilt(x, own, range(4), aggressive=True), atol=1e-10)


def after(base, *series):
    return [residuals(np.asarray(one.T, order="C"), base).T for one in series]


@pytest.mark.parametrize("kind", ["high-pass", "band-pass", "butterworth"])
@pytest.mark.parametrize("censored", [(), (0, 1, 37, 38, 90)])
@pytest.mark.parametrize("oblique", [False, True])
def test_remove_components__follows_the_filter_and_other_confounds(data, kind, censored, oblique):
    x, signal, noise = data
    mask = everything()
    mask[list(censored)] = False
    confounds = np.random.default_rng(8).normal(size=(N_TIME, 3))
    if kind == "butterworth":
        butterworth = fit_butterworth(np.flatnonzero(mask), t_r=T_R, high_pass=0.01, low_pass=0.1, detrend=True)
        base = fit_filtered(confounds, butterworth, n_time=N_TIME)
    else:
        band = pass_band(N_TIME, t_r=T_R, high_pass=0.01, low_pass=0.1 if kind == "band-pass" else None)
        base = fit_projection(confounds, mask, band=band)
        assert base.removes == (kind == "high-pass")

    fitted = remove_components(base, noise, signal, oblique=oblique)

    # The reference works on what is left after everything else: of data, noise and signal alike.
    rest, N, S = (one[mask] for one in after(base, x, noise, signal))
    U = N - S @ np.linalg.pinv(S) @ N
    expected = rest - (N if oblique else U) @ np.linalg.pinv(U) @ rest
    np.testing.assert_allclose(residuals(x.T, fitted).T[mask], expected, atol=1e-8)
    assert fitted.df_left == base.df_left - 4


def test_remove_components__noise_that_is_signal_stays(data):
    x, signal, noise = data
    copied = np.column_stack([noise[:, :2], signal @ [1.0, 2, 0, 0, 0, 3]])

    fitted = remove_components(nothing(everything()), copied, signal, oblique=True)

    assert fitted.n_regressors == 3
    expected = remove_components(nothing(everything()), noise[:, :2], signal, oblique=True)
    np.testing.assert_allclose(residuals(x.T, fitted), residuals(x.T, expected), atol=1e-8)


def test_find_redundant__names_the_later_of_two_that_depend():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N_TIME))
    line = np.arange(N_TIME) * 1e-3
    columns = np.column_stack([a, b, 2 * a - b + 7, np.full(N_TIME, 3.0), a * 1e200, rng.normal(size=N_TIME), line])

    found = find_redundant(columns, fit_projection(line[:, None], everything(), band=(1, N_TIME - 1)))

    assert found.tolist() == [False, False, True, True, True, False, True]


@pytest.mark.parametrize("low_pass", [None, 0.1])
def test_find_redundant__counts_what_the_filter_takes_and_the_rank_of_the_fit(low_pass):
    rng = np.random.default_rng(0)
    mask = everything()
    mask[[3, 50, 51]] = False
    band = pass_band(N_TIME, t_r=T_R, high_pass=0.01, low_pass=low_pass)
    slow = np.cos(np.pi * 2 * (np.arange(N_TIME) + 0.5) / N_TIME)
    columns = np.column_stack([slow, rng.normal(size=(N_TIME, 4))])
    columns = np.column_stack([columns, columns.sum(axis=1)])
    base, full = (fit_projection(part, mask, band=band) for part in (columns[:, :0], columns))

    found = find_redundant(columns, base)

    assert found.tolist() == [True, False, False, False, False, True]
    assert full.df_left == base.df_left - np.count_nonzero(~found)
