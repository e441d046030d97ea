from itertools import permutations as orders
from itertools import product

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr
from distributed import Client
from scipy import stats

from kconn.errors import DesignError, ResourceError, SchemaError
from kconn.infer.inference import permutation_test

N_OBS = 20
N_FEATURE = 40


@pytest.fixture(scope="module")
def study():
    """Data and design with ids; a true effect on the first three features."""
    rng = np.random.default_rng(7)
    ids = [f"sub-{i:02d}" for i in range(N_OBS)]
    group = np.arange(N_OBS) % 2
    design = pd.DataFrame(
        {"intercept": 1.0, "group": group, "age": rng.normal(40, 9, N_OBS), "sex": rng.integers(0, 2, N_OBS)},
        index=ids,
    )
    values = rng.normal(size=(N_OBS, N_FEATURE)) + 0.02 * design["age"].to_numpy()[:, None]
    values[:, :3] += 2.0 * group[:, None]
    data = xr.DataArray(
        values,
        dims=("observation", "edge"),
        coords={"observation": ids, "node_i": ("edge", [f"n{i}" for i in range(N_FEATURE)])},
    )
    return data, design


GROUP = {"group": [0, 1, 0, 0]}


def assert_same_bits(actual, expected):
    xr.testing.assert_identical(actual, expected)


def test_permutation_test__finds_planted_effects(study):
    data, design = study
    res = permutation_test(data, design, GROUP, n_perm=1000, seed=1)
    assert (res["p_fwe"].sel(contrast="group")[:3] < 0.05).all()
    assert (res["p_fwe"].sel(contrast="group")[3:] > 0.05).mean() > 0.9
    assert res["stat"].dims == ("contrast", "edge")
    assert res["max_stat"].dims == ("permutation", "contrast")
    assert "node_i" in res.coords
    assert res["stat_kind"].item() == "t"
    np.testing.assert_allclose(res["max_stat"][0, 0], np.abs(res["stat"]).max())
    assert (res["p_unc"] > 0).all()
    assert (res["p_fwe"] >= res["p_unc"]).all()
    assert (res["p_fdr"] >= res["p_unc"] - 1e-12).all()
    assert res.attrs["seed"] == 1


def test_permutation_test__tails_agree_with_each_other(study):
    data, design = study
    options = {"n_perm": 300, "seed": 1}
    two = permutation_test(data, design, GROUP, **options)
    greater = permutation_test(data, design, GROUP, alternative="greater", **options)
    less = permutation_test(data, design, GROUP, alternative="less", **options)
    mirrored = permutation_test(data, design, {"group": [0, -1, 0, 0]}, alternative="greater", **options)
    for name in ("p_unc", "p_fwe"):
        np.testing.assert_array_equal(two[f"{name}_tails"].sel(tail="greater"), greater[name])
        np.testing.assert_array_equal(two[f"{name}_tails"].sel(tail="less"), less[name])
        np.testing.assert_array_equal(two[f"{name}_tails"].sel(tail="two-sided"), two[name])
        np.testing.assert_array_equal(mirrored[name], less[name])
    np.testing.assert_array_equal(two["max_stat"], np.maximum(greater["max_stat"], less["max_stat"]))


def test_permutation_test__of_more_relabellings_than_a_float_can_count():
    rng = np.random.default_rng(0)
    ids = [f"{i:04d}" for i in range(1200)]
    design = pd.DataFrame({"intercept": 1.0, "group": np.arange(1200) % 2.0}, index=ids)
    data = xr.DataArray(rng.normal(size=(1200, 3)), dims=("observation", "edge"), coords={"observation": ids})
    out = permutation_test(data, design, {"group": {"group": 1.0}}, n_perm=20, seed=1)
    assert np.isinf(out["n_distinct"]).all()
    t = stats.ttest_ind(data[1::2], data[0::2]).statistic
    np.testing.assert_allclose(out["stat"].to_numpy().ravel(), t, rtol=1e-10)


def test_permutation_test__t_equals_scipy(study):
    data, _ = study
    group = np.arange(N_OBS) % 2 == 1
    two_sample = np.column_stack([group, ~group]).astype(float)
    res = permutation_test(data, two_sample, {"d": [1, -1]}, n_perm=50, seed=0)
    expected = stats.ttest_ind(data[group], data[~group])
    np.testing.assert_allclose(res["stat"][0], expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(res["zstat"][0], np.sign(res["stat"][0]) * stats.norm.isf(expected.pvalue / 2))

    pairs = np.repeat(np.eye(N_OBS // 2), 2, axis=0)
    visit = np.tile([-0.5, 0.5], N_OBS // 2)
    paired = permutation_test(
        data,
        np.column_stack([visit, pairs]),
        {"change": np.eye(1, 1 + N_OBS // 2)[0]},
        n_perm=2000,
        seed=0,
        exchangeability_blocks=np.repeat(np.arange(1, N_OBS // 2 + 1), 2),
    )
    expected = stats.ttest_rel(data[1::2], data[::2])
    np.testing.assert_allclose(paired["stat"][0], expected.statistic, rtol=1e-9)
    assert paired["exhaustive"].item()
    assert paired["n_distinct"].item() == 1024
    flipped = permutation_test(
        data.to_numpy()[1::2] - data.to_numpy()[::2], np.ones((10, 1)), {"m": [1]}, n_perm=2000, seed=0, sign_flip=True
    )
    # Exchanging the visits of a subject is flipping the sign of their difference.
    np.testing.assert_allclose(flipped["p_unc"], paired["p_unc"], atol=1e-12)
    np.testing.assert_allclose(flipped["p_fwe"], paired["p_fwe"], atol=1e-12)


def test_permutation_test__equals_statsmodels(study):
    data, design = study
    f = np.array([[0, 1, 0, 0], [0, 0, 1, 0]])
    res = permutation_test(data, design, {"t": [0, 1, 0, 0], "f": f}, n_perm=50, seed=0)
    fits = [sm.OLS(y, design.to_numpy()).fit() for y in data.to_numpy().T]
    np.testing.assert_allclose(res["stat"].sel(contrast="t"), [fit.tvalues[1] for fit in fits], rtol=1e-9)
    np.testing.assert_allclose(res["stat"].sel(contrast="f"), [fit.f_test(f).fvalue for fit in fits], rtol=1e-9)
    np.testing.assert_allclose(res["dof"], 16)
    assert res["stat_kind"].to_numpy().tolist() == ["t", "F"]
    r2 = [1 - fit.ssr / sm.OLS(y, design.to_numpy()[:, [0, 3]]).fit().ssr for fit, y in zip(fits, data.T, strict=True)]
    np.testing.assert_allclose(res["partial_r"].sel(contrast="f") ** 2, r2, rtol=1e-9)
    assert np.isnan(res["p_unc_tails"].sel(contrast="f", tail="less")).all()


def test_permutation_test__t_equals_nilearn(study):
    permuted_ols = pytest.importorskip("nilearn.mass_univariate").permuted_ols
    data, design = study
    res = permutation_test(data, design, GROUP, n_perm=2000, seed=0)
    peer = permuted_ols(
        design[["group"]].to_numpy(float),
        data.to_numpy(),
        design[["age", "sex"]].to_numpy(float),
        model_intercept=True,
        n_perm=2000,
        random_state=0,
        output_type="dict",
        verbose=0,
    )
    np.testing.assert_allclose(res["stat"], peer["t"], rtol=1e-6)
    # Two samples of the same null distribution.
    p_peer = 10 ** -peer["logp_max_t"]
    np.testing.assert_allclose(res["p_fwe"], p_peer, atol=5 * np.sqrt(0.25 / 2000))


def enumerate_two_sided(values, design, labels):
    """Every distinct relabelling, refitted with least squares: Freedman-Lane by its definition."""
    nuisance = np.delete(design, 1, axis=1)
    residual = values - nuisance @ np.linalg.lstsq(nuisance, values, rcond=None)[0]

    def t_of(response):
        inverse = np.linalg.inv(design.T @ design)
        beta = inverse @ design.T @ response
        sigma2 = ((response - design @ beta) ** 2).sum(axis=0) / (len(design) - design.shape[1])
        return beta[1] / np.sqrt(sigma2 * inverse[1, 1])

    found = {}
    for order in orders(range(len(labels))):
        found.setdefault(tuple(labels[list(order)]), list(order))
    null = np.array([t_of(np.eye(len(labels))[order].T @ residual) for order in found.values()])
    t = t_of(values)
    p_unc = (np.abs(null) >= np.abs(t) - 1e-9).mean(axis=0)
    p_fwe = (np.abs(null).max(axis=1)[:, None] >= np.abs(t) - 1e-9).mean(axis=0)
    return t, p_unc, p_fwe


def test_permutation_test__exact_without_nuisance():
    rng = np.random.default_rng(3)
    labels = np.array([0, 1, 0, 1, 1, 0, 1])
    values = rng.normal(size=(7, 6))
    design = np.column_stack([np.ones(7), labels]).astype(float)
    res = permutation_test(values, design, {"g": [0, 1]}, n_perm=1000, seed=0)
    t, p_unc, p_fwe = enumerate_two_sided(values, design, labels)
    assert res["n_distinct"].item() == len(res["permutation"]) == 35
    np.testing.assert_allclose(res["stat"][0], t, rtol=1e-9)
    np.testing.assert_allclose(res["p_unc"][0], p_unc, atol=1e-12)
    np.testing.assert_allclose(res["p_fwe"][0], p_fwe, atol=1e-12)


def test_permutation_test__exact_with_every_order_distinct():
    rng = np.random.default_rng(4)
    dose = rng.normal(size=6)
    values = rng.normal(size=(6, 5)) + dose[:, None]
    design = np.column_stack([np.ones(6), dose, rng.normal(size=6)])
    res = permutation_test(values, design, {"dose": [0, 1, 0]}, n_perm=720, seed=0)
    _, p_unc, p_fwe = enumerate_two_sided(values, design, dose)
    assert res["exhaustive"].item()
    np.testing.assert_allclose(res["p_unc"][0], p_unc, atol=1e-12)
    np.testing.assert_allclose(res["p_fwe"][0], p_fwe, atol=1e-12)


@pytest.mark.faults("seeds")
def test_permutation_test__flips_that_are_drawn_lie_around_all_256(count):
    values = np.random.default_rng(5).normal(0.4, size=(8, 40))
    design = np.ones((8, 1))
    signs = np.array(list(product([1, -1], repeat=8)))
    t = np.array([stats.ttest_1samp(values * sign[:, None], 0).statistic for sign in signs])
    exact = (np.abs(t) >= np.abs(stats.ttest_1samp(values, 0).statistic) * (1 - 1e-9)).mean(axis=0)
    whole = permutation_test(values, design, {"mean": [1]}, n_perm=256, seed=0)
    np.testing.assert_allclose(whole["p_unc"][0], exact, atol=1e-12)
    for seed in range(20):
        drawn = permutation_test(values, design, {"mean": [1]}, n_perm=100, seed=seed)["p_unc"][0]
        # Without repetition, of a finite set: four standard errors of a hypergeometric share.
        error = 4 * np.sqrt(exact * (1 - exact) / 100 * (256 - 100) / 255) + 1 / 100
        assert (np.abs(drawn - exact) <= error).all()
        count(seeds_within_chance_of_exact=1)


@pytest.mark.faults("order")
def test_permutation_test__row_order_changes_no_bit(study, count):
    data, design = study
    expected = permutation_test(data, design, GROUP, n_perm=200, seed=1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows, other = rng.permutation(N_OBS), rng.permutation(N_OBS)
        actual = permutation_test(data[rows], design.iloc[other], GROUP, n_perm=200, seed=1)
        assert_same_bits(actual, expected)
        count(orders=1, identical=1)


def test_permutation_test__blocks_and_tables_are_joined_by_id(study):
    data, design = study
    blocks = pd.Series(np.repeat([1, 2, 3, 4], 5), index=design.index)
    expected = permutation_test(data, design, GROUP, n_perm=200, seed=1, exchangeability_blocks=blocks)
    table = expected["permutation_table"].isel(contrast=0, drop=True)
    rows = np.random.default_rng(0).permutation(N_OBS)
    shuffled = permutation_test(data[rows], design, GROUP, n_perm=200, seed=1, exchangeability_blocks=blocks.iloc[rows])
    assert_same_bits(shuffled, expected)
    again = permutation_test(data[rows], design, GROUP, n_perm=200, seed=9, permutations=table[:, rows])
    np.testing.assert_array_equal(again["p_unc"], expected["p_unc"])
    # A plain table counts the rows of the data as given.
    back = np.argsort(rows)
    plain = back[table.to_numpy()][:, rows]
    by_position = permutation_test(data[rows], design, GROUP, n_perm=200, seed=9, permutations=plain)
    np.testing.assert_array_equal(by_position["max_stat"], expected["max_stat"])


@pytest.mark.faults("seeds")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_permutation_test__bits_do_not_depend_on_how_it_is_run(dtype):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(16, 5000))
    design = np.column_stack([np.ones(16), np.arange(16) % 2, rng.normal(size=16)])
    options = {"n_perm": 300, "seed": 1, "dtype": dtype}

    def run(array, **more):
        return permutation_test(xr.DataArray(array, dims=("observation", "edge")), design, GROUP_3, **options, **more)

    with dask.config.set(scheduler="synchronous"):
        expected = run(values)
    assert_same_bits(run(values), expected)
    assert_same_bits(run(values, max_mem=16 * 2**20), expected)
    for chunks in [(16, 5000), (5, 700), (1, 5000), (16, 333)]:
        assert_same_bits(run(da.from_array(values, chunks=chunks)), expected)
    with dask.config.set(num_workers=4):
        assert_same_bits(run(values), expected)


def test_permutation_test__a_bare_dask_array_is_read_block_by_block():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(16, 6000))
    largest = 0

    def watch(block):
        nonlocal largest
        largest = max(largest, block.size)
        return block

    design = np.column_stack([np.ones(16), np.arange(16) % 2])
    lazy = da.from_array(values, chunks=(16, 1000)).map_blocks(watch, meta=np.empty((0, 0)))
    res = permutation_test(lazy, design, {"g": [0, 1]}, n_perm=50, seed=0, max_mem=8 * 2**20)
    xr.testing.assert_identical(res, permutation_test(values, design, {"g": [0, 1]}, n_perm=50, seed=0))
    assert 0 < largest <= 16_000


GROUP_3 = {"group": [0, 1, 0], "age": [0, 0, 1]}


@pytest.mark.faults("seeds")
def test_permutation_test__runs_on_the_current_cluster(study):
    data, design = study
    expected = permutation_test(data, design, GROUP, n_perm=200, seed=1)
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None):
        assert_same_bits(permutation_test(data, design, GROUP, n_perm=200, seed=1), expected)
        chunked = permutation_test(data.chunk(edge=7), design, GROUP, n_perm=200, seed=1)
    assert_same_bits(chunked, expected)


def test_permutation_test__a_constant_nuisance_does_not_switch_to_sign_flips(study):
    data, design = study
    res = permutation_test(data, design, GROUP, n_perm=100, seed=1)
    assert res["shuffling"].item() == "permutations"
    assert "sign_table" not in res


def test_permutation_test__a_mean_is_tested_with_sign_flips_and_says_so(study):
    data, design = study
    res = permutation_test(data, design, {"mean": [1, 0, 0, 0]}, n_perm=100, seed=1)
    assert res["shuffling"].item() == "sign-flips"
    assert "signs are flipped" in res.attrs["notes"][0]
    explicit = permutation_test(data, design, {"mean": [1, 0, 0, 0]}, n_perm=100, seed=1, sign_flip=True)
    np.testing.assert_array_equal(res["p_unc"], explicit["p_unc"])


def test_permutation_test__permutations_and_flips_together(study):
    data, design = study
    res = permutation_test(data, design, GROUP, n_perm=100, seed=1, sign_flip="both")
    assert res["shuffling"].item() == "both"
    assert set(np.unique(res["sign_table"])) == {-1, 1}
    assert (np.sort(res["permutation_table"][0, 5]) == np.arange(N_OBS)).all()
    assert (res["permutation_table"][0, 5] != np.arange(N_OBS)).any()


def test_permutation_test__features_that_cannot_be_tested_are_listed(study):
    data, design = study
    broken = data.copy(deep=True)
    broken[3, 10] = np.nan
    broken[:, 11] = 4.2
    res = permutation_test(broken, design, GROUP, n_perm=200, seed=1)
    whole = permutation_test(data.drop_isel(edge=[10, 11]), design, GROUP, n_perm=200, seed=1)
    np.testing.assert_array_equal(np.flatnonzero(res["excluded"][0]), [10, 11])
    assert res.attrs["n_missing"] == [1]
    assert res.attrs["n_constant"] == [1]
    for name in ("stat", "p_unc", "p_fwe", "p_fdr", "zstat", "effect", "dof"):
        assert np.isnan(res[name][0, [10, 11]]).all(), name
        np.testing.assert_allclose(res[name].drop_isel(edge=[10, 11]), whole[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(res["max_stat"], whole["max_stat"], rtol=1e-9)


def test_permutation_test__contrasts_may_have_tables_of_different_length():
    rng = np.random.default_rng(0)
    design = np.column_stack([np.arange(8) % 2, 1 - np.arange(8) % 2, rng.normal(size=8)]).astype(float)
    res = permutation_test(
        rng.normal(size=(8, 4)), design, {"g": [1, -1, 0], "x": [0, 0, 1]}, n_perm=100, seed=0, alternative="less"
    )
    assert res["n_permutations"].to_numpy().tolist() == [70, 100]
    assert res["exhaustive"].to_numpy().tolist() == [True, False]
    assert np.isnan(res["max_stat"][70:, 0]).all()
    assert (res["permutation_table"][0, 70:] == -1).all()
    assert len(set(res["table_sha256"].to_numpy())) == 2


def test_permutation_test__keeps_feature_dims():
    rng = np.random.default_rng(0)
    data = xr.DataArray(
        rng.normal(size=(4, 10, 3)), dims=("node", "observation", "voxel"), coords={"node": list("abcd")}
    )
    design = np.column_stack([np.ones(10), np.arange(10) % 2])
    res = permutation_test(data, design, {"g": [0, 1]}, n_perm=50, seed=0)
    assert res["stat"].dims == ("contrast", "node", "voxel")
    expected = stats.ttest_ind(
        data.isel(observation=slice(1, None, 2)), data.isel(observation=slice(0, None, 2)), axis=1
    )
    np.testing.assert_allclose(res["stat"][0], expected.statistic, rtol=1e-9)
    one = permutation_test(data.isel(node=0, voxel=0, drop=True), design, {"g": [0, 1]}, n_perm=50, seed=0)
    np.testing.assert_allclose(one["stat"][0], expected.statistic[0, 0], rtol=1e-9)


def test_permutation_test__weights_by_column_name(study):
    data, design = study
    res = permutation_test(data, design, {"g": {"group": 1}, "s": pd.Series({"sex": 1.0})}, n_perm=50, seed=0)
    same = permutation_test(data, design, {"g": [0, 1, 0, 0], "s": [0, 0, 0, 1]}, n_perm=50, seed=0)
    assert_same_bits(res, same)


def test_permutation_test__null_p_values_are_uniform():
    rng = np.random.default_rng(5)
    design = np.column_stack([np.ones(14), np.arange(14) % 2, rng.normal(size=14)])
    res = permutation_test(rng.standard_t(4, size=(14, 3000)), design, {"g": [0, 1, 0]}, n_perm=999, seed=0)
    assert stats.kstest(res["p_unc"][0], "uniform").pvalue > 0.001


def test_permutation_test__joint_correction(study):
    data, design = study
    contrasts = {"g": [0, 1, 0, 0], "-g": [0, -1, 0, 0], "f": [[0, 1, 0, 0], [0, 0, 1, 0]]}
    res = permutation_test(data, design, contrasts, n_perm=500, seed=1, joint_fwe=True)
    assert len(set(res["table_sha256"].to_numpy())) == 1
    assert (res["p_fwe_joint"] >= res["p_fwe"]).all()
    np.testing.assert_array_equal(res["p_fwe_joint"].sel(contrast="g"), res["p_fwe_joint"].sel(contrast="-g"))
    alone = permutation_test(data, design, {"g": [0, 1, 0, 0]}, n_perm=500, seed=1, joint_fwe=True)
    np.testing.assert_array_equal(alone["p_fwe_joint"], alone["p_fwe"])
    np.testing.assert_array_equal(alone["p_fwe_joint_ci"], alone["p_fwe_ci"])
    assert (res["p_fwe_joint_ci"][0] < res["p_fwe_joint"]).all()
    assert (res["p_fwe_joint_ci"][1] >= res["p_fwe_joint"]).all()
    with pytest.raises(DesignError, match=r"\[m\].*share one table"):
        permutation_test(data, design, {"m": [1, 0, 0, 0], "g": [0, 1, 0, 0]}, n_perm=500, seed=1, joint_fwe=True)


def test_permutation_test__limits_hold_p(study):
    data, design = study
    res = permutation_test(data, design, GROUP, n_perm=500, seed=1)
    for name in ("p_unc", "p_fwe"):
        assert (res[f"{name}_ci"].sel(limit="lower") <= res[name]).all()
        assert (res[f"{name}_ci"].sel(limit="upper") >= res[name]).all()
    exact = permutation_test(data[:8], design[["intercept", "group"]][:8], {"g": [0, 1]}, n_perm=500, seed=1)
    np.testing.assert_array_equal(exact["p_unc_ci"].sel(limit="lower"), exact["p_unc"])
    np.testing.assert_array_equal(exact["p_unc_ci"].sel(limit="upper"), exact["p_unc"])


def test_permutation_test__two_stage_fdr(study):
    data, design = study
    res = permutation_test(data, design, GROUP, n_perm=500, seed=1, fdr="bky")
    once = permutation_test(data, design, GROUP, n_perm=500, seed=1)
    np.testing.assert_array_equal(res["p_unc"], once["p_unc"])
    assert (res["p_fdr"] != once["p_fdr"]).any()


def drop_row(design):
    return design.iloc[1:]


def add_row(design):
    return pd.concat([design, design.iloc[:1].rename(index=str.upper)])


def rename_row(design):
    return design.rename(index={"sub-03": "SUB-03"})


def foreign_row(design):
    return pd.concat([design, design.iloc[:1].rename(index={"sub-00": "sub-77"})])


def missing_age(design):
    return design.assign(age=design["age"].where(design.index != "sub-04"))


def repeated_column(design):
    return design.assign(sex=design["intercept"] * 3)


def text_column(design):
    return design.assign(sex="f")


@pytest.mark.parametrize(
    ("change", "code", "found"),
    [
        (drop_row, "E-ID-MISSING", "sub-00"),
        (add_row, "E-ID-DUPLICATE", "SUB-00"),
        (rename_row, "E-ID-MISSING", "only in case"),
        (foreign_row, "E-ID-EXTRA", "sub-77"),
        (missing_age, "E-COV-NAN", "sub-04"),
        (repeated_column, "E-DESIGN-RANK", "rank 3 with 4"),
        (text_column, "E-TABLE", "no number"),
    ],
)
def test_permutation_test__refuses_designs(study, change, code, found):
    data, design = study
    with pytest.raises(DesignError, match=found) as caught:
        permutation_test(data, change(design), GROUP, n_perm=100, seed=0)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("options", "code", "found"),
    [
        ({"contrasts": {}}, "E-CONTRAST", "no contrast"),
        ({"contrasts": {"g": [0, 1]}}, "E-CONTRAST", r"\[g\].*shape \(2,\)"),
        ({"contrasts": {"g": {"grop": 1}}}, "E-CONTRAST", "'grop'"),
        ({"contrasts": {"g": ["a", "b"]}}, "E-CONTRAST", "no numbers"),
        ({"n_perm": 1}, "E-ARGUMENT", "n_perm=1"),
        ({"n_perm": 10.5}, "E-ARGUMENT", "n_perm=10.5"),
        ({"seed": -1}, "E-ARGUMENT", "seed=-1"),
        ({"alternative": "both"}, "E-ARGUMENT", "alternative='both'"),
        ({"regression": "kennedy"}, "E-ARGUMENT", "regression='kennedy'"),
        ({"sign_flip": "yes"}, "E-ARGUMENT", "sign_flip='yes'"),
        ({"dtype": "float16"}, "E-ARGUMENT", "dtype='float16'"),
        ({"exchangeability_blocks": np.arange(3)}, "E-TABLE-SHAPE", r"shape \(3,\)"),
        ({"exchangeability_blocks": np.arange(N_OBS)}, "E-BLOCKS", "label 0"),
        ({"exchangeability_blocks": np.arange(1, N_OBS + 1)}, "E-PERMUTATIONS", "1 distinct"),
        ({"permutations": np.zeros((100, 3), dtype=int)}, "E-PERMUTATIONS", r"shape \(100, 3\)"),
        ({"permutations": np.tile(np.arange(N_OBS), (7, 1))}, "E-PERMUTATIONS", "7 rows and n_perm=100"),
        ({"permutations": np.full((100, N_OBS), 99)}, "E-PERMUTATIONS", "no permutation"),
    ],
)
def test_permutation_test__refuses_options(study, options, code, found):
    data, design = study
    with pytest.raises((DesignError, SchemaError), match=found) as caught:
        permutation_test(data, design, **{"contrasts": GROUP, "n_perm": 100, "seed": 0} | options)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (np.zeros(20), "E-SCHEMA"),
        (np.zeros((20, 3), dtype=complex), "E-SCHEMA"),
        (xr.DataArray(np.zeros((20, 3)), dims=("subject", "edge")), "E-SCHEMA"),
        (np.zeros((20, 0)), "E-NO-FEATURES"),
        (np.full((20, 2), np.nan), "E-NO-FEATURES"),
        (np.ones((20, 2)), "E-NO-FEATURES"),
        (np.ones((4, 2)), "E-TABLE-SHAPE"),
    ],
)
def test_permutation_test__refuses_data(study, data, code):
    _, design = study
    with pytest.raises((DesignError, SchemaError)) as caught:
        permutation_test(data, design.to_numpy(), GROUP, n_perm=100, seed=0)
    assert caught.value.code == code


def test_permutation_test__refuses_too_little_memory(study):
    data, design = study
    with pytest.raises(ResourceError, match="raise max_mem"):
        permutation_test(data, design, GROUP, n_perm=100, seed=0, max_mem=1000)


def test_permutation_test__too_few_observations():
    design = np.column_stack([np.ones(3), [0, 1, 0], [0.3, 0.2, 0.9]])
    with pytest.raises(DesignError, match="E-TOO-FEW"):
        permutation_test(np.zeros((3, 2)), design, {"g": [0, 1, 0]}, n_perm=100, seed=0)
