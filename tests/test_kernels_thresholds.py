import numpy as np
import pytest
from scipy import stats

from kconn.kernels.thresholds import estimate_threshold


def test_estimate_threshold__is_the_smallest_value_with_a_small_p():
    values = np.random.default_rng(1).normal(size=999)
    found = estimate_threshold(values, alpha=0.05, level=0.95).value
    assert (values >= found).mean() <= 0.05
    below = values[values < found].max()
    assert (values >= below).mean() > 0.05


def test_estimate_threshold__limits_are_scipys():
    values = np.random.default_rng(2).normal(size=4000)
    found = estimate_threshold(values, alpha=0.05, level=0.95)
    expected = stats.quantile_test(values, p=0.95).confidence_interval(0.95)
    np.testing.assert_array_equal([found.lower, found.upper], [expected.low, expected.high])


@pytest.mark.parametrize("n_perm", [60, 500])
def test_estimate_threshold__limits_cover_the_quantile(n_perm):
    rng = np.random.default_rng(3)
    truth = stats.norm.ppf(0.95)
    found = [estimate_threshold(rng.normal(size=n_perm), alpha=0.05, level=0.9) for _ in range(2000)]
    assert np.mean([one.lower <= truth <= one.upper for one in found]) > 0.9 - 3 * np.sqrt(0.09 / 2000)


def test_estimate_threshold__says_when_nothing_is_known():
    few = estimate_threshold(np.arange(10.0), alpha=0.05, level=0.95)
    assert np.isnan(few.value)
    assert few.upper == np.inf
    one = estimate_threshold(np.arange(1.0), alpha=0.05, level=0.95)
    assert (one.lower, one.upper) == (-np.inf, np.inf)
