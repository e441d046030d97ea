import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from kconn.kernels import multiple_testing as mt

RNG = np.random.default_rng(0)


def test_count_at_least__equals_a_comparison():
    null = RNG.normal(size=50)
    bounds = np.append(RNG.normal(size=20), null[:5])
    np.testing.assert_array_equal(mt.count_at_least(null, bounds), (null[:, None] >= bounds).sum(axis=0))


def test_adjust_benjamini_hochberg__equals_scipy():
    p = RNG.uniform(size=(3, 20)) ** 2
    np.testing.assert_allclose(mt.adjust_benjamini_hochberg(p).ravel(), stats.false_discovery_control(p.ravel()))


@pytest.mark.parametrize("method", ["bh", "bky"])
def test_fdr__missing_values_are_not_counted(method):
    p = RNG.uniform(size=40) ** 2
    holes = np.insert(p, [3, 20], np.nan)
    adjusted = mt.FDR[method](holes)
    np.testing.assert_allclose(adjusted[np.isfinite(holes)], mt.FDR[method](p))
    assert np.isnan(adjusted[np.isnan(holes)]).all()
    assert np.isnan(mt.FDR[method](np.full(3, np.nan))).all()


@pytest.mark.parametrize("power", [1, 3, 8])
def test_adjust_benjamini_krieger_yekutieli__equals_statsmodels(power):
    p = RNG.uniform(size=60) ** power
    expected = multipletests(p, alpha=mt.BKY_LEVEL, method="fdr_tsbky")
    adjusted = mt.adjust_benjamini_krieger_yekutieli(p)
    np.testing.assert_array_equal(adjusted <= mt.BKY_LEVEL, expected[0])


def test_adjust_benjamini_krieger_yekutieli__all_rejected():
    p = np.array([1e-6, 1e-5, 2e-5])
    np.testing.assert_allclose(mt.adjust_benjamini_krieger_yekutieli(p), mt.adjust_benjamini_hochberg(p))


def test_binomial_limits__equal_statsmodels():
    counts = np.array([1, 2, 51, 500, 1000])
    lower, upper = mt.binomial_limits(counts, 1000, level=0.95)
    expected = proportion_confint(counts - 1, 999, alpha=0.05, method="beta")
    np.testing.assert_allclose(lower, expected[0], atol=1e-12)
    np.testing.assert_allclose(upper, expected[1], atol=1e-12)
    assert np.isnan(mt.binomial_limits(np.array([np.nan]), 1000, level=0.95)).all()
