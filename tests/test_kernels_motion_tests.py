import numpy as np
import pytest
from scipy import stats

from kconn.kernels.motion_tests import compare_groups, compare_visits


@pytest.fixture
def groups():
    rng = np.random.default_rng(4)
    return rng.gamma(3, 0.05, 11), rng.gamma(3, 0.08, 14)


def test_compare_groups__is_welch(groups):
    found = compare_groups(*groups, n_perm=1000, seed=(1,))
    first, second = groups
    variances = first.var(ddof=1) / 11, second.var(ddof=1) / 14
    t = (second.mean() - first.mean()) / np.sqrt(sum(variances))
    dof = sum(variances) ** 2 / (variances[0] ** 2 / 10 + variances[1] ** 2 / 13)
    assert (found.n_first, found.n_second) == (11, 14)
    assert found.stat == pytest.approx(t)
    assert found.dof == pytest.approx(dof)
    assert found.p_parametric == pytest.approx(2 * stats.t.sf(abs(t), dof))
    assert found.p_unc == pytest.approx(found.p_parametric, abs=0.03)


def test_compare_groups__all_relabellings_of_few_subjects():
    found = compare_groups(np.array([0.1, 0.2, 0.3]), np.array([0.7, 0.8, 0.95]), n_perm=5000, seed=(1,))
    assert found.p_unc == pytest.approx(2 / 20)


def test_compare_visits__all_flips_of_few_subjects():
    before = np.array([0.1, 0.2, 0.3, 0.25])
    after = before + np.array([0.2, 0.1, 0.3, 0.15])
    found = compare_visits(before, after, n_perm=5000, seed=(1,))
    assert found.stat == pytest.approx(stats.ttest_rel(after, before).statistic)
    assert found.dof == 3
    assert found.p_unc == pytest.approx(2 / 16)


def test_compare__leaves_missing_out_and_says_nan_where_nothing_can_be_tested():
    some = np.array([0.1, np.nan, 0.3, 0.2])
    assert compare_groups(some, some[:3], n_perm=100, seed=(1,)).n_first == 3
    assert compare_visits(some, some[::-1].copy(), n_perm=100, seed=(1,)).n_first == 2
    for found in (
        compare_groups(np.array([0.1]), some, n_perm=100, seed=(1,)),
        compare_groups(np.ones(3), np.ones(4), n_perm=100, seed=(1,)),
        compare_visits(np.ones(3), np.ones(3), n_perm=100, seed=(1,)),
        compare_visits(np.array([]), np.array([]), n_perm=100, seed=(1,)),
    ):
        assert np.isnan([found.stat, found.dof, found.p_parametric, found.p_unc]).all()


def test_compare__the_seed_makes_the_p(groups):
    assert compare_groups(*groups, n_perm=200, seed=(1, 2)) == compare_groups(*groups, n_perm=200, seed=(1, 2))
