"""Bases in time: against nilearn, orthonormality, and every refused band."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.signal import create_cosine_drift

from kconn.errors import SchemaError
from kconn.kernels.filtering import check_band, cosine_basis, count_cosines, pass_band


@pytest.mark.parametrize("t_r", [0.72, 0.8, 2.0, 2.5])
@pytest.mark.parametrize("n_time", [20, 156, 300, 1200])
@pytest.mark.parametrize("high_pass", [0.005, 1 / 128, 0.008, 0.01, 0.1])
def test_cosine_basis__equals_nilearn_drift(n_time, t_r, high_pass):
    drift = create_cosine_drift(high_pass, np.arange(n_time) * t_r)[:, :-1]

    first, _ = pass_band(n_time, t_r=t_r, high_pass=high_pass, low_pass=None)

    np.testing.assert_allclose(cosine_basis(n_time, 1, first - 1), drift, atol=1e-13)


def test_cosine_basis__is_the_formula():
    n_time, k = 7, 3
    plain = [np.sqrt(2 / n_time) * np.cos(np.pi * k * (t + 0.5) / n_time) for t in range(n_time)]

    np.testing.assert_allclose(cosine_basis(n_time, k, k)[:, 0], plain, atol=1e-15)


@settings(max_examples=25, deadline=None)
@given(n_time=st.integers(2, 200))
def test_cosine_basis__is_orthonormal_and_complete_with_the_constant(n_time):
    basis = np.column_stack([np.full(n_time, n_time**-0.5), cosine_basis(n_time, 1, n_time - 1)])

    np.testing.assert_allclose(basis.T @ basis, np.eye(n_time), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    n_time=st.integers(30, 400),
    t_r=st.floats(0.3, 3.0),
    shares=st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)).map(sorted),
)
def test_pass_band__keeps_what_lies_inside(n_time, t_r, shares):
    high_pass, low_pass = (share * 0.5 / t_r for share in shares)
    first, last = pass_band(n_time, t_r=t_r, high_pass=high_pass, low_pass=low_pass)
    frequency = np.arange(1, n_time) / (2 * n_time * t_r)
    inside = (frequency > high_pass * (1 + 1e-9)) & (frequency < low_pass * (1 - 1e-9))

    assert set(np.flatnonzero(inside) + 1) <= set(range(first, last + 1))
    assert last - first + 1 <= inside.sum() + 2


def test_count_cosines__stops_before_the_constant_would_return():
    assert count_cosines(10, t_r=2.0, edge=10.0) == 9


def test_check_band__accepts_the_usual():
    check_band(300, t_r=2.0, high_pass=0.008, low_pass=0.09)
    check_band(300, t_r=2.0, high_pass=None, low_pass=None)


@pytest.mark.parametrize(
    ("high_pass", "low_pass", "n_time", "t_r"),
    [
        (-0.01, None, 300, 2.0),
        (0.0, None, 300, 2.0),
        (None, 0.25, 300, 2.0),
        (0.3, None, 300, 2.0),
        (None, 0.3, 300, 2.0),
        (0.1, 0.1, 300, 2.0),
        (0.1, 0.01, 300, 2.0),
        (float("nan"), None, 300, 2.0),
        (0.01, 0.012, 20, 2.0),
        (0.008, 0.09, 300, 2000.0),
    ],
)
def test_check_band__refuses_bad_bands(high_pass, low_pass, n_time, t_r):
    with pytest.raises(SchemaError) as caught:
        check_band(n_time, t_r=t_r, high_pass=high_pass, low_pass=low_pass)

    assert caught.value.code == "E-BAND"
