"""Intraclass correlations: against the numbers that Shrout and Fleiss printed."""

import numpy as np

from kconn.kernels.reliability import intraclass_correlations

# Table 2 of Shrout and Fleiss 1979: six targets by four judges.
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)


def test_intraclass_correlations__match_shrout_and_fleiss():
    np.testing.assert_allclose(intraclass_correlations(RATINGS), [0.17, 0.29, 0.71], atol=0.005)


def test_intraclass_correlations__take_any_features():
    x = np.stack([RATINGS, RATINGS[:, ::-1] * 3, RATINGS + np.arange(4)], axis=-1)
    one, two, three = intraclass_correlations(x)
    np.testing.assert_allclose([one[1], two[1], three[1]], intraclass_correlations(RATINGS))
    np.testing.assert_allclose(three[2], three[0])
    assert one.shape == (3,)


def test_intraclass_correlations__of_copies_are_one():
    x = np.repeat(np.random.default_rng(0).normal(size=(8, 1)), 3, axis=1)
    np.testing.assert_allclose(intraclass_correlations(x), 1)


def test_intraclass_correlations__of_noise_are_about_zero():
    x = np.random.default_rng(0).normal(size=(400, 2, 50))
    for icc in intraclass_correlations(x):
        assert abs(icc.mean()) < 0.02


def test_intraclass_correlations__of_what_does_not_vary_are_nan():
    assert np.isnan(intraclass_correlations(np.ones((5, 2)))).all()
    gap = RATINGS.copy()
    gap[2, 1] = np.nan
    assert np.isnan(intraclass_correlations(gap)).all()
