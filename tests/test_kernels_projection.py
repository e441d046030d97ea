"""The one projection: against a plain loop, least squares and itself."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from kconn.kernels import blas
from kconn.kernels.filtering import cosine_basis
from kconn.kernels.projection import Projection, fit_projection
from kconn.kernels.residuals import residuals, residuals_in_blocks

N_TIME = 90
OPEN = (1, N_TIME - 1)
BANDS = [OPEN, (4, N_TIME - 1), (4, 40), (1, 70)]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def columns(rng):
    trend = np.arange(N_TIME) * 1e3
    return np.column_stack([trend, rng.normal(size=(N_TIME, 7)) * 10.0 ** np.arange(-3, 4)])


@pytest.fixture(params=["all", "censored"])
def mask(request, rng):
    mask = np.ones(N_TIME, dtype=bool)
    if request.param == "censored":
        mask[:3] = False
        mask[rng.choice(np.arange(3, N_TIME), 9, replace=False)] = False
    return mask


@pytest.fixture
def signal(rng):
    return rng.normal(size=(37, N_TIME)) * 8 + 1000


def removed(columns, mask, band):
    """All that goes, as plain columns over the kept frames."""
    first, last = band
    stop = np.hstack([cosine_basis(N_TIME, 1, first - 1), cosine_basis(N_TIME, last + 1, N_TIME - 1)])
    design = np.column_stack([np.ones(N_TIME), stop, columns])[mask]
    return design / np.linalg.norm(design, axis=0)


def residual_loop(x, design):
    """Gram-Schmidt, twice, one regressor at a time; what is not new is skipped."""
    basis = []
    for column in design.T:
        rest = column.copy()
        for _ in range(2):
            for unit in basis:
                rest -= (unit @ rest) * unit
        if np.linalg.norm(rest) > 1e-11:
            basis.append(rest / np.linalg.norm(rest))
    out = x.copy()
    for _ in range(2):
        for unit in basis:
            out -= np.outer(out @ unit, unit)
    return out, len(basis)


@pytest.mark.parametrize("band", BANDS)
def test_residuals__equal_loop(signal, columns, mask, band):
    expected, rank = residual_loop(signal[:, mask], removed(columns, mask, band))

    projection = fit_projection(columns, mask, band=band)
    actual = residuals(signal, projection)

    assert projection.n_regressors == rank
    assert projection.df_left == mask.sum() - rank
    np.testing.assert_allclose(actual[:, mask], expected, atol=1e-9)
    assert np.isnan(actual[:, ~mask]).all()


@pytest.mark.parametrize("band", BANDS)
def test_residuals__are_orthogonal_to_every_regressor(signal, columns, mask, band):
    rest = residuals(signal, fit_projection(columns, mask, band=band))[:, mask]

    cosines = (rest / np.linalg.norm(rest, axis=1, keepdims=True)) @ removed(columns, mask, band)

    assert np.abs(cosines).max() < 1e-10


def test_fit_projection__of_both_forms_is_one(signal, columns, mask):
    # The same removed space, told as regressors (wide) and as a band.
    band = (4, 40)
    stop = cosine_basis(N_TIME, 41, N_TIME - 1)

    by_band = fit_projection(columns, mask, band=band)
    plain = np.hstack([columns / np.linalg.norm(columns, axis=0), cosine_basis(N_TIME, 1, 3), stop])
    basis = np.zeros((N_TIME, plain.shape[1]))
    basis[mask] = np.linalg.qr(_centred(plain[mask]))[0]
    by_columns = Projection(basis=basis, removes=True, kept=by_band.kept, n_time=N_TIME)

    assert not by_band.removes
    assert by_band.df_left == by_columns.df_left
    np.testing.assert_allclose(residuals(signal, by_band), residuals(signal, by_columns), atol=1e-9)


def _centred(columns):
    return columns - columns.mean(axis=0)


def test_residuals__are_idempotent(signal, columns, mask):
    projection = fit_projection(columns, mask, band=(4, 60))

    once = residuals(signal, projection)

    np.testing.assert_allclose(residuals(once, projection), once, atol=1e-11)


def test_residuals__do_not_depend_on_the_order_of_regressors(signal, columns, mask):
    forward = residuals(signal, fit_projection(columns, mask, band=(4, 60)))
    backward = residuals(signal, fit_projection(columns[:, ::-1], mask, band=(4, 60)))

    np.testing.assert_allclose(forward, backward, atol=1e-9)


def test_residuals__are_linear(signal, columns, mask):
    projection = fit_projection(columns, mask, band=(4, 60))
    a, b = signal[:18], signal[18:36]

    np.testing.assert_allclose(
        residuals(2 * a - 3 * b, projection)[:, mask],
        2 * residuals(a, projection)[:, mask] - 3 * residuals(b, projection)[:, mask],
        atol=1e-9,
    )


def test_residuals__never_read_censored_frames(signal, columns, mask):
    projection = fit_projection(columns, mask, band=(4, 60))
    spoilt, other = signal.copy(), columns.copy()
    spoilt[:, ~mask] = np.inf
    other[~mask] = np.nan

    actual = residuals(spoilt, fit_projection(other, mask, band=(4, 60)))

    np.testing.assert_array_equal(actual, residuals(signal, projection))


def test_fit_projection__counts_dependent_columns_once(columns, mask):
    doubled = np.column_stack([columns, columns[:, 1] + columns[:, 2], np.full(N_TIME, 7.0), np.zeros(N_TIME)])

    alone = fit_projection(columns, mask, band=OPEN)
    together = fit_projection(doubled, mask, band=OPEN)

    assert together.n_regressors == alone.n_regressors == 9


def test_fit_projection__without_regressors_removes_the_mean(signal, mask):
    projection = fit_projection(np.empty((N_TIME, 0)), mask, band=OPEN)
    kept = signal[:, mask]

    assert projection.n_regressors == 1
    np.testing.assert_allclose(
        residuals(signal, projection)[:, mask], kept - kept.mean(axis=1, keepdims=True), atol=1e-11
    )


def test_fit_projection__survives_any_scale(signal, columns, mask):
    scales = 10.0 ** np.array([200, -200, 0, 5, -5, 100, -100, 3])

    actual = residuals(signal, fit_projection(columns * scales, mask, band=OPEN))

    np.testing.assert_allclose(actual, residuals(signal, fit_projection(columns, mask, band=OPEN)), atol=1e-9)


def test_residuals__of_nothing_left_are_nan(signal):
    everything = cosine_basis(N_TIME, 1, N_TIME - 1)
    projection = fit_projection(everything, np.ones(N_TIME, dtype=bool), band=OPEN)

    assert projection.df_left == 0
    assert np.isnan(residuals(signal, projection)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_residuals__without_signal_are_nan(rng, columns, mask, dtype):
    x = (rng.normal(size=(6, N_TIME)) * 20 + 500).astype(dtype)
    x[1] = 700
    x[2] = 0
    x[3] = (300 + np.round(20 * cosine_basis(N_TIME, 1, 1)[:, 0])).astype(dtype)
    if dtype != np.int16:
        x[4, mask] = np.nan

    rest = residuals(x, fit_projection(np.column_stack([columns, x[3]]), mask, band=OPEN))

    assert rest.dtype == (np.float64 if dtype == np.float64 else np.float32)
    empty = np.isnan(rest[:, mask])
    np.testing.assert_array_equal(empty.all(axis=1), [False, True, True, True, dtype != np.int16, False])
    np.testing.assert_array_equal(empty.any(axis=1), empty.all(axis=1))


def test_residuals__scale_to_unit_variance(signal, columns, mask):
    projection = fit_projection(columns, mask, band=(4, 60))

    actual = residuals(signal, projection, scale="zscore_sample")[:, mask]

    plain = residuals(signal, projection)[:, mask]
    np.testing.assert_allclose(actual, plain / plain.std(axis=1, ddof=1, keepdims=True), atol=1e-12)


def test_residuals__scale_to_percent_of_the_mean(signal, columns, mask):
    projection = fit_projection(columns, mask, band=(4, 60))
    signal[0] -= signal[0, mask].mean()

    actual = residuals(signal, projection, scale="psc")[:, mask]

    plain = residuals(signal, projection)[:, mask]
    level = signal[1:, mask].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(actual[1:], 100 * plain[1:] / level, atol=1e-12)
    assert np.isnan(actual[0]).all()


def test_residuals__have_the_same_bits_for_any_number_of_threads(rng, columns):
    x = (rng.normal(size=(700, N_TIME)) + 100).astype(np.float32)
    projection = fit_projection(columns, np.ones(N_TIME, dtype=bool), band=(4, 40))
    with threadpool_limits(1):
        alone = residuals_in_blocks(x, projection, block=130)

    together = residuals_in_blocks(x, projection, block=130)
    with ThreadPoolExecutor(4) as pool:
        crowd = list(pool.map(lambda _: residuals_in_blocks(x, projection, block=130), range(8)))

    for other in (together, *crowd):
        np.testing.assert_array_equal(other, alone)


def test_single_thread__gives_the_threads_back():
    before = blas.count_threads()
    with blas.single_thread():
        with blas.single_thread():
            assert blas.count_threads() == 1
        assert blas.count_threads() == 1

    assert blas.count_threads() == before


def test_residuals__of_a_band_equal_the_masked_spectrum_of_the_mirrored_series(signal):
    # The hard FFT filter of CONN: mirror, mask, transform back. The cosines are its real form.
    x = signal - signal.mean(axis=1, keepdims=True)
    spectrum = np.fft.fft(np.hstack([x, x[:, ::-1]]), axis=1)
    k = np.minimum(np.arange(2 * N_TIME), 2 * N_TIME - np.arange(2 * N_TIME))
    spectrum[:, (k < 5) | (k > 40)] = 0
    expected = np.fft.ifft(spectrum, axis=1).real[:, :N_TIME]

    projection = fit_projection(np.empty((N_TIME, 0)), np.ones(N_TIME, dtype=bool), band=(5, 40))

    np.testing.assert_allclose(residuals(signal, projection), expected, atol=1e-10)
