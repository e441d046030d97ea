"""The Butterworth filter: against SciPy, nilearn and a plain recipe, over dropped frames."""

import numpy as np
import pytest
from nilearn.signal import clean
from scipy.interpolate import CubicSpline
from scipy.signal import butter, detrend, sosfiltfilt

from kconn.errors import InputError
from kconn.kernels.butterworth import filter_rows, fit_butterworth

N_TIME, T_R = 200, 2.0
BANDS = [(0.008, 0.09), (0.01, None), (None, 0.1)]


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def signal(rng):
    return rng.normal(size=(37, N_TIME)) * 8 + 1000


def recipe(x, kept, high_pass, low_pass, *, line=True):
    """Bridge, detrend, filter, drop: one step after the other."""
    span = np.arange(kept[0], kept[-1] + 1)
    bridged = CubicSpline(kept, x[:, kept], axis=1)(span)
    bridged[:, kept - kept[0]] = x[:, kept]
    flat = detrend(bridged, axis=1, type="linear" if line else "constant")
    edges = [edge for edge in (high_pass, low_pass) if edge is not None]
    kind = "bandpass" if len(edges) == 2 else "high" if low_pass is None else "low"
    sos = butter(5, edges if len(edges) == 2 else edges[0], btype=kind, output="sos", fs=1 / T_R)
    return sosfiltfilt(sos, flat, axis=1)[:, kept - kept[0]], bridged.mean(axis=1)


@pytest.mark.parametrize(("high_pass", "low_pass"), BANDS)
@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize("dropped", ["none", "scattered", "blocks", "ends"])
def test_filter_rows__equal_the_recipe(signal, rng, high_pass, low_pass, line, dropped):
    mask = np.ones(N_TIME, dtype=bool)
    if dropped == "scattered":
        mask[rng.choice(N_TIME, 40, replace=False)] = False
    elif dropped == "blocks":
        mask[50:58] = mask[120:125] = False
    elif dropped == "ends":
        mask[:5] = mask[-3:] = mask[90] = False
    kept = np.flatnonzero(mask)

    fitted = fit_butterworth(kept, t_r=T_R, high_pass=high_pass, low_pass=low_pass, detrend=line)
    filtered, level, power = filter_rows(signal, fitted)

    expected, mean = recipe(signal, kept, high_pass, low_pass, line=line)
    np.testing.assert_allclose(filtered[:, kept], expected, atol=1e-9)
    assert (filtered[:, ~mask] == 0).all()
    np.testing.assert_allclose(level, mean, rtol=1e-12)
    np.testing.assert_allclose(power, (signal[:, kept] ** 2).sum(axis=1), rtol=1e-12)


def spectral_loop(h, kept):
    """Power et al. 2014: a sine and a cosine per frequency, each for itself; then the spread of what is known."""
    t, every = kept.astype(float), np.arange(kept[0], kept[-1] + 1.0)
    mean = h.mean()
    total = np.zeros(len(every))
    for k in range(1, 8 * len(kept) // 2 + 1):
        w = 2 * np.pi * k / (8 * (t[-1] - t[0]))
        if w > np.pi:
            break
        tau = np.arctan2(np.sin(2 * w * t).sum(), np.cos(2 * w * t).sum()) / (2 * w)
        for wave in (np.cos, np.sin):
            known = wave(w * (t - tau))
            if known @ known > 1e-9 * len(t):
                total += (known @ (h - mean)) / (known @ known) * wave(w * (every - tau))
    return mean + total * h.std(ddof=1) / total.std(ddof=1)


@pytest.mark.parametrize("bridge", ["linear", "lomb-scargle"])
def test_filter_rows__bridge_as_the_recipe(signal, rng, bridge):
    mask = rng.random(N_TIME) > 0.2
    kept = np.flatnonzero(mask)
    span = np.arange(kept[0], kept[-1] + 1)
    fitted = fit_butterworth(kept, t_r=T_R, high_pass=0.01, low_pass=0.1, detrend=True, bridge=bridge)

    filtered, _, power = filter_rows(signal, fitted)

    for row, series in enumerate(signal[:5]):
        bridged = np.interp(span, kept, series[kept]) if bridge == "linear" else spectral_loop(series[kept], kept)
        bridged[kept - kept[0]] = series[kept]
        sos = butter(5, [0.01, 0.1], btype="bandpass", output="sos", fs=1 / T_R)
        expected = sosfiltfilt(sos, detrend(bridged))[kept - kept[0]]
        np.testing.assert_allclose(filtered[row, kept], expected, atol=1e-8)
    np.testing.assert_allclose(power, (signal[:, kept] ** 2).sum(axis=1))


@pytest.mark.parametrize(("high_pass", "low_pass"), BANDS)
def test_filter_rows__equal_nilearn(signal, high_pass, low_pass):
    fitted = fit_butterworth(np.arange(N_TIME), t_r=T_R, high_pass=high_pass, low_pass=low_pass, detrend=True)

    expected = clean(signal.T, t_r=T_R, high_pass=high_pass, low_pass=low_pass, standardize=None).T

    np.testing.assert_allclose(filter_rows(signal, fitted)[0], expected, atol=1e-10)


@pytest.mark.parametrize("bridge", ["cubic", "linear", "lomb-scargle"])
def test_filter_rows__never_read_dropped_frames(signal, rng, bridge):
    mask = rng.random(N_TIME) > 0.2
    mask[:2] = mask[-3:] = False
    kept = np.flatnonzero(mask)
    fitted = fit_butterworth(kept, t_r=T_R, high_pass=0.01, low_pass=0.1, detrend=True, bridge=bridge)
    spoilt = signal.copy()
    spoilt[:, ~mask] = np.nan

    np.testing.assert_array_equal(filter_rows(spoilt, fitted)[0], filter_rows(signal, fitted)[0])


def test_filter_rows__keep_lanes_apart(signal):
    fitted = fit_butterworth(np.arange(N_TIME), t_r=T_R, high_pass=0.01, low_pass=0.1, detrend=True)
    together = filter_rows(signal, fitted)[0]
    spoilt = signal.copy()
    spoilt[3, 50] = np.nan

    np.testing.assert_array_equal(np.delete(filter_rows(spoilt, fitted)[0], 3, axis=0), np.delete(together, 3, axis=0))
    np.testing.assert_array_equal(filter_rows(signal[20:21], fitted)[0], together[20:21])


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_filter_rows__takes_images(signal, dtype):
    fitted = fit_butterworth(np.arange(N_TIME), t_r=T_R, high_pass=0.01, low_pass=0.1, detrend=True)
    x = signal.astype(dtype)

    np.testing.assert_array_equal(filter_rows(x, fitted)[0], filter_rows(x.astype(np.float64), fitted)[0])


@pytest.mark.parametrize("kept", [np.arange(33), np.array([0, 100, 199])])
def test_fit_butterworth__refuses_too_short_runs(kept):
    with pytest.raises(InputError) as caught:
        fit_butterworth(kept, t_r=T_R, high_pass=0.01, low_pass=0.1, detrend=True)

    assert caught.value.code == "E-DF"
