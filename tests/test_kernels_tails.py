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


def test_fit_tail__estimates_small_p_values():
    rng = np.random.default_rng(1)
    null = rng.gumbel(size=2000)
    values = stats.gumbel_r.isf([1e-2, 1e-3, 3e-4])
    p = tails.fit_tail(null).p_value(values)
    np.testing.assert_allclose(np.log10(p), [-2, -3, -3.52], atol=0.4)


def test_fit_tail__nothing_to_fit():
    assert tails.fit_tail(np.ones(100)) is None
    assert tails.fit_tail(np.arange(5.0)) is None
    # Two values only: no continuous tail fits.
    assert tails.fit_tail(np.repeat([0.0, 1.0], [900, 100]) + 0.0) is None
    p = np.array([0.01, 0.5])
    np.testing.assert_array_equal(tails.refine_p_values(p, np.array([3.0, 0.0]), np.ones(100)), p)


def test_refine_p_values__never_zero():
    null = np.random.default_rng(0).uniform(size=1000)
    assert tails.fit_tail(null).shape > 0
    refined = tails.refine_p_values(np.array([0.001, 0.5]), np.array([5.0, 0.5]), null)
    np.testing.assert_array_equal(refined, [0.001, 0.5])
