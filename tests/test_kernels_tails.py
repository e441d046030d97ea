import numpy as np
import pytest
from scipy import stats

from kconn.kernels import tails


def test_refine_p_values__equals_palm(palm_oracles):
    out = np.load(palm_oracles / "accel_tail" / "palm.npz")
    null, observed = out["maxz_c1"], out["z_c1"]
    p = (null[:, None] >= observed - 1e-12).mean(axis=0)
    refined = tails.refine_p_values(p, observed, null)
    np.testing.assert_allclose(refined, out["out_tstat_fwep"], rtol=1e-10)
    assert (refined < 1 / null.size).any()


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3])
def test_survive__equals_scipy(shape):
    excess = np.linspace(0, 6, 30)
    np.testing.assert_allclose(
        tails.survive(excess, 2.0, shape), stats.genpareto.sf(excess, -shape, scale=2.0), atol=1e-12
    )


def test_fit_tails__estimates_small_p_values():
    rng = np.random.default_rng(1)
    null = rng.gumbel(size=2000)
    values = stats.gumbel_r.isf([1e-2, 1e-3, 3e-4])
    p = tails.fit_tails(null[:, None]).p_value(values)
    np.testing.assert_allclose(np.log10(p), [-2, -3, -3.52], atol=0.4)


def test_fit_tails__nothing_to_fit():
    for null in (np.ones(100), np.arange(3.0), np.repeat([0.0, 1.0], [900, 100]) + 0.0):
        assert np.isnan(tails.fit_tails(null[:, None]).start).all()
    p = np.array([0.01, 0.5])
    np.testing.assert_array_equal(tails.refine_p_values(p, np.array([3.0, 0.0]), np.ones(100)), p)


def test_refine_p_values__beyond_the_end_the_count_stays_or_is_zero_as_in_palm():
    null = np.random.default_rng(0).uniform(size=1000)
    assert tails.fit_tails(null[:, None]).shape > 0
    p, values = np.array([0.001, 0.5]), np.array([5.0, 0.5])
    np.testing.assert_array_equal(tails.refine_p_values(p, values, null), [0.001, 0.5])
    np.testing.assert_array_equal(tails.refine_p_values(p, values, null, zero_beyond_end=True), [0, 0.5])


def loop_tail(p, value, null):
    """Winkler et al. 2016, one value at a time: moments, Anderson-Darling, next quantile."""
    ordered = sorted(null)
    n = len(ordered)
    share = [sum(one <= other for one in ordered) / n for other in ordered]
    for quantile in range(751, 972, 10):
        tail = [x for x, at in zip(ordered, share, strict=True) if at >= quantile / 1000]
        first = n - len(tail)
        if first == 0:
            continue
        start = (ordered[first - 1] + ordered[first]) / 2
        excess = [x - start for x in tail]
        mean = sum(excess) / len(tail)
        variance = sum((x - mean) ** 2 for x in excess) / (len(tail) - 1)
        if variance == 0:
            continue
        scale, shape = mean * (mean**2 / variance + 1) / 2, (mean**2 / variance - 1) / 2
        upper = [max(1 - shape * x / scale, 0) ** (1 / shape) for x in excess][::-1]
        if upper[0] == 0:
            continue
        m = len(upper)
        terms = [(2 * j + 1) * (np.log(upper[j]) + np.log(1 - upper[m - 1 - j])) for j in range(m)]
        statistic = -m - sum(terms) / m
        # Table 2 of Choulakian and Stephens at the level of 0.05: 0.830 for shapes up to 0.5, 0.771 for 0.9.
        if statistic < 0.830 + (max(shape, 0.5) - 0.5) / 0.4 * (0.771 - 0.830):
            base = max(1 - shape * (value - start) / scale, 0)
            return len(tail) / n * base ** (1 / shape) if value > start and base > 0 else p
    return p


@pytest.mark.parametrize("decimals", [None, 1])
def test_refine_p_values__equals_a_loop(decimals):
    rng = np.random.default_rng(4)
    n_refined = 0
    for _ in range(60):
        null = rng.choice(
            [rng.normal(size=300), rng.exponential(size=300), rng.uniform(size=300), rng.gumbel(size=300)]
        )
        if decimals is not None:
            null = np.round(null, decimals)
        values = np.append(np.quantile(null, [0.91, 0.97, 0.995]), null.max() * 1.1)
        p = np.array([(null >= value).mean() for value in values])
        p = np.maximum(p, 1 / 300)
        expected = [loop_tail(one, value, null) if one < 0.1 else one for one, value in zip(p, values, strict=True)]
        refined = tails.refine_p_values(p, values, null)
        np.testing.assert_allclose(refined, expected, rtol=1e-9)
        n_refined += int((refined != p).any())
    assert n_refined > 20
