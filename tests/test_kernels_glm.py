from itertools import pairwise

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from kconn.errors import DesignError, ResourceError
from kconn.kernels import glm, tallies, tasks
from kconn.kernels.blas import single_thread
from kconn.kernels.permutation import plan_shuffling

RNG = np.random.default_rng(20240)
N_OBS = 24


@pytest.fixture(scope="module")
def design():
    rng = np.random.default_rng(1)
    group = np.arange(N_OBS) % 3
    return np.column_stack([group == 0, group == 1, group == 2, rng.normal(40, 10, N_OBS), rng.normal(size=N_OBS)])


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(2).normal(size=(N_OBS, 30)) * 3 + 100


T = np.array([1.0, -1, 0, 0, 0])
F = np.array([[1.0, -1, 0, 0, 0], [0, 1, -1, 0, 0]])


def ols(design, y):
    return sm.OLS(y, design).fit()


def test_observe__t_equals_statsmodels(design, values):
    seen = glm.observe(values, glm.split_design(design, T))
    for j in range(values.shape[1]):
        fit = ols(design, values[:, j])
        test = fit.t_test(T)
        np.testing.assert_allclose(seen.stat[j], test.tvalue.item(), rtol=1e-9)
        np.testing.assert_allclose(seen.effect[j], test.effect.item(), rtol=1e-9)
        np.testing.assert_allclose(seen.cohen_d[j], test.effect.item() / np.sqrt(fit.mse_resid), rtol=1e-9)
        partial_r = test.tvalue.item() / np.sqrt(test.tvalue.item() ** 2 + fit.df_resid)
        np.testing.assert_allclose(seen.partial_r[j], partial_r, rtol=1e-9)


def test_observe__f_equals_statsmodels(design, values):
    seen = glm.observe(values, glm.split_design(design, F))
    expected = [ols(design, y).f_test(F).fvalue for y in values.T]
    np.testing.assert_allclose(seen.stat, expected, rtol=1e-9)
    assert np.isnan(seen.effect).all()


def test_observe__cohen_d_of_two_groups_is_the_difference_over_the_pooled_deviation():
    y = RNG.normal(size=(20, 4))
    first, second = y[:8], y[8:]
    design = np.column_stack([np.arange(20) < 8, np.arange(20) >= 8]).astype(float)
    seen = glm.observe(y, glm.split_design(design, np.array([1.0, -1])))
    pooled = np.sqrt((7 * first.var(axis=0, ddof=1) + 11 * second.var(axis=0, ddof=1)) / 18)
    np.testing.assert_allclose(seen.cohen_d, (first.mean(axis=0) - second.mean(axis=0)) / pooled)


def test_observe__a_large_mean_costs_no_precision(design, values):
    partition = glm.split_design(design, T)
    shifted = glm.observe(values + 1e6, partition)
    np.testing.assert_allclose(shifted.stat, glm.observe(values, partition).stat, rtol=1e-8)


def test_observe__missing_and_constant_features_are_set_aside(design, values):
    data = values.copy()
    data[3, 1] = np.nan
    data[5, 2] = np.inf
    data[:, 4] = 7.7
    data[:, 5] = design @ [1, 1, 1, 0.3, 0]
    data[:, 6] = 0
    seen = glm.observe(data, glm.split_design(design, T))
    np.testing.assert_array_equal(np.flatnonzero(seen.excluded), [1, 2, 4, 5, 6])
    np.testing.assert_array_equal(seen.excluded[[1, 2, 4, 5, 6]], [1, 1, 2, 2, 2])
    assert np.isnan(seen.stat[seen.excluded > 0]).all()
    assert np.isfinite(seen.stat[seen.excluded == 0]).all()


def test_check_design__refuses(design):
    with pytest.raises(DesignError, match="rank 5 with 6 columns") as caught:
        glm.check_design(np.column_stack([design, np.ones(N_OBS)]))
    assert caught.value.code == "E-DESIGN-RANK"
    with pytest.raises(DesignError, match="5 observations for 5 columns") as caught:
        glm.check_design(design[:5])
    assert caught.value.code == "E-TOO-FEW"
    with pytest.raises(DesignError, match="rank 1 with 2"):
        glm.check_design(np.column_stack([np.ones(5), np.zeros(5)]))
    glm.check_design(design * [1, 1e-8, 1, 1e8, 1])


@pytest.mark.parametrize(
    "contrast", [[0, 0, 0, 0, 0], [1, 0], [1, np.nan, 0, 0, 0], [[1, -1, 0, 0, 0], [2, -2, 0, 0, 0]], np.eye(6, 5)]
)
def test_split_design__refuses(design, contrast):
    with pytest.raises(DesignError) as caught:
        glm.split_design(design, np.array(contrast, dtype=float))
    assert caught.value.code == "E-CONTRAST"


def test_t_to_z__keeps_the_tail():
    t = np.array([-6.0, -0.3, 0.0, 1.7, 9.0, 40.0])
    np.testing.assert_allclose(stats.norm.sf(glm.t_to_z(t, 17)), stats.t.sf(t, 17), rtol=1e-9)
    far = glm.t_to_z(np.array([80.0, 200.0, np.inf]), 400)
    assert (np.diff(far) > 0).all()
    assert np.isinf(far[-1])


def test_t_to_z__is_continuous_where_the_tail_underflows():
    t = np.linspace(60, 120, 4001)
    steps = np.diff(glm.t_to_z(t, 800))
    assert (steps > 0).all()
    assert np.abs(np.diff(steps)).max() < 1e-4 * 37


def test_f_to_z__keeps_the_tail():
    f = np.array([1e-3, 0.4, 1.0, 5.0, 60.0])
    np.testing.assert_allclose(stats.norm.sf(glm.f_to_z(f, 2, 32)), stats.f.sf(f, 2, 32), rtol=1e-9)


def refit(y, design, contrast, permutation, regression):
    """One relabelling by its definition: build the model, fit it, divide."""
    rows = np.atleast_2d(contrast)
    basis = np.linalg.svd(rows)[2][len(rows) :].T
    nuisance = design @ basis
    tested = design @ np.linalg.pinv(rows)
    tested = tested - nuisance @ np.linalg.pinv(nuisance) @ tested
    eye = np.eye(len(y))
    resid_nuisance = eye - nuisance @ np.linalg.pinv(nuisance)
    full = np.column_stack([tested, nuisance])
    resid_full = eye - full @ np.linalg.pinv(full)
    move = eye[permutation]
    model, response = {
        "freedman-lane": (full, (move.T @ resid_nuisance + eye - resid_nuisance) @ y),
        "manly": (full, move.T @ y),
        "ter-braak": (full, move.T @ resid_full @ y),
        "dekker": (np.column_stack([move @ tested, nuisance]), y),
        "still-white": (move @ tested, resid_nuisance @ y),
    }[regression]
    fit = ols(model, response)
    # The degrees of freedom are those of the full model, also where the nuisance is not refitted.
    dof_ratio = (len(y) - full.shape[1]) / fit.df_resid
    if len(rows) == 1:
        return fit.tvalues[0] * np.sqrt(dof_ratio)
    return fit.f_test(np.eye(len(rows), model.shape[1])).fvalue * dof_ratio


def tally(values, engine, part, compared, dtype):
    blocks = list(tallies.iterate_blocks(values, engine, compared, dtype))
    return tallies.tally(blocks, engine, part, compared, dtype)


@pytest.mark.parametrize("regression", ["freedman-lane", "manly", "ter-braak", "dekker", "still-white"])
@pytest.mark.parametrize("contrast", [T, F], ids=["t", "F"])
def test_tally__equals_a_refit_of_every_relabelling(design, values, contrast, regression):
    partition = glm.split_design(design, contrast)
    shuffling = plan_shuffling(np.arange(N_OBS) % 3, n_perm=80, seed=4)
    rows = glm.plan_pooled(partition, shuffling, regression)
    with single_thread():
        compared = glm.observe(values, partition).compared
        found = tally(values, rows, shuffling.part(1, 80), compared, "float64")
    stat = np.array(
        [[refit(y, design, contrast, p, regression) for y in values.T[:6]] for p in shuffling.permutations[1:]]
    )
    few = tally(values[:, :6], rows, shuffling.part(1, 80), compared[:6], "float64")
    rank, dof = partition.rank, partition.dof
    highest = glm.statistic_of_u(few.highest, rank=rank, dof=dof) if rank == 1 else None
    observed = glm.observe(values[:, :6], partition).stat
    np.testing.assert_array_equal(few.counts[1], (stat >= observed).sum(axis=0))
    np.testing.assert_array_equal(found.counts[:, :6], few.counts)
    if rank == 1:
        np.testing.assert_allclose(highest[0], np.abs(stat).max(axis=1), rtol=1e-7)
        np.testing.assert_allclose(highest[1], stat.max(axis=1), rtol=1e-7)
        np.testing.assert_allclose(highest[2], -stat.min(axis=1), rtol=1e-7)
        np.testing.assert_array_equal(few.counts[2], (stat <= observed).sum(axis=0))
        np.testing.assert_array_equal(few.counts[0], (np.abs(stat) >= np.abs(observed)).sum(axis=0))
        return
    np.testing.assert_allclose(glm.statistic_of_u(few.highest[1], rank=rank, dof=dof), stat.max(axis=1), rtol=1e-7)


def test_plan_pooled__leaves_out_what_no_relabelling_changes(design):
    partition = glm.split_design(design, T)
    shuffling = plan_shuffling(np.arange(N_OBS) % 3, n_perm=80, seed=4)
    assert glm.plan_pooled(partition, shuffling, "freedman-lane").n_row == 1 + 4 - 1
    flips = plan_shuffling(np.arange(N_OBS), n_perm=80, seed=4, kind="sign-flips")
    assert glm.plan_pooled(partition, flips, "freedman-lane").n_row == 1 + 4


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_tally__bits_do_not_depend_on_the_cut(design, dtype):
    values = np.random.default_rng(3).normal(size=(N_OBS, 2 * tallies.FEATURE_BLOCK + 77))
    partition = glm.split_design(design, T)
    shuffling = plan_shuffling(np.arange(N_OBS) % 3, n_perm=400, seed=4)
    rows = glm.plan_pooled(partition, shuffling, "freedman-lane")
    n_block = tallies.plan_permutation_block(rows.n_row)
    with single_thread():
        compared = tallies.observe_blocks(values, rows).compared
        whole = tally(values, rows, shuffling.part(1, 400), compared, dtype)
        cut = [
            tallies.join_features(
                [
                    tally(
                        values[:, first : first + tallies.FEATURE_BLOCK],
                        rows,
                        shuffling.part(1 + start, min(1 + start + n_block, 400)),
                        compared[first : first + tallies.FEATURE_BLOCK],
                        dtype,
                    )
                    for first in range(0, values.shape[1], tallies.FEATURE_BLOCK)
                ]
            )
            for start in range(0, 399, n_block)
        ]
    joined = tallies.join_ranges(cut)
    np.testing.assert_array_equal(joined.highest, whole.highest)
    np.testing.assert_array_equal(joined.counts, whole.counts)


def test_plan_features__whole_blocks_within_the_budget():
    problem = tasks.Problem(n_obs=1000, n_feature=1_000_000, n_perm=5000, n_row=3, dtype="float64")
    ranges = tasks.plan_features(problem, max_mem=2**30)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 1_000_000
    assert all(start % tallies.FEATURE_BLOCK == 0 for start, _ in ranges)
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    assert (ranges[0][1] - ranges[0][0]) * 1000 * 8 < 2**30 / 4
    with pytest.raises(ResourceError, match="E-MEM"):
        tasks.plan_features(problem, max_mem=2**20)


@pytest.mark.parametrize(
    ("n_obs", "n_feature", "n_perm", "n_range"),
    [
        (101, 14_706, 5000, 4),
        (101, 14_706, 50_000, 52),
        (101, 100, 5000, 1),
        (101, 200_000, 50_000, 64),
        (1000, 1_000_000, 5000, 12),
        (10, 100, 2, 1),
    ],
)
def test_plan_ranges__follow_from_the_problem_alone(n_obs, n_feature, n_perm, n_range):
    problem = tasks.Problem(n_obs=n_obs, n_feature=n_feature, n_perm=n_perm, n_row=3, dtype="float64")
    ranges = tasks.plan_ranges(problem)
    assert len(ranges) == n_range
    assert (ranges[0][0], ranges[-1][1]) == (1, n_perm)
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    assert all((start - 1) % tallies.plan_permutation_block(3) == 0 for start, _ in ranges)


@pytest.mark.parametrize("n_thread", [1, 2, 4, 64])
@pytest.mark.parametrize(("n_feature", "n_perm"), [(14_706, 5000), (14_706, 500_000), (100, 5000), (200_000, 50_000)])
def test_split_range__tasks_are_long_enough_and_not_too_long(n_feature, n_perm, n_thread):
    problem = tasks.Problem(n_obs=101, n_feature=n_feature, n_perm=n_perm, n_row=3, dtype="float64")
    ranges = tasks.plan_ranges(problem)
    n_task = -(-tasks.TASKS_PER_THREAD * n_thread // len(ranges))
    unit = tasks.TASK_FLOPS["float64"]
    for one in ranges:
        parts = tasks.split_range(one, problem, n_part=1, n_task=n_task, max_mem=2**30)
        assert (parts[0][0], parts[-1][1]) == one
        assert all(left[1] == right[0] for left, right in pairwise(parts))
        flops = [problem.flops * (stop - start) / problem.n_perm for start, stop in parts]
        assert max(flops) <= 1.1 * unit * tasks.MAX_TASK_FACTOR
        if problem.flops > unit:
            assert min(flops[:-1], default=flops[0]) >= 0.85 * unit
