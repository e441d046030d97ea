import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from kconn.errors import ResourceError, SchemaError
from kconn.infer.inference import permutation_test
from kconn.kernels import glm, sequential
from kconn.kernels.multiple_testing import negative_binomial_limits
from kconn.kernels.permutation import plan_shuffling
from kconn.kernels.sequential import Sequential

N_OBS, N_PERM, N_EXCEED = 20, 400, 5
GROUP = {"group": [0, 1, 0]}


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(8)
    group = np.arange(N_OBS) % 2
    data = rng.normal(size=(N_OBS, 300))
    data[:, :20] += 1.5 * group[:, None]
    data[4, 50] = np.nan
    return data, np.column_stack([np.ones(N_OBS), group, rng.normal(size=N_OBS)])


def run(study, **options):
    data, design = study
    given = {"n_perm": N_PERM, "seed": 2, "stopping": Sequential(n_exceed=N_EXCEED)} | options
    return permutation_test(data, design, GROUP, **given)


def stop_one(hits, n_perm):
    """Besag and Clifford, draw by draw."""
    n_hit = 0
    for i_draw, hit in enumerate(hits, start=1):
        n_hit += hit
        if n_hit == N_EXCEED:
            return N_EXCEED / i_draw, i_draw + 1
    return (n_hit + 1) / n_perm, n_perm


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("contrast", [[0, 1, 0], [[0, 1, 0], [0, 0, 1]]], ids=["t", "F"])
def test_permutation_test__sequential_equals_a_plain_loop(study, alternative, contrast):
    data, design = study
    stopping = Sequential(n_exceed=N_EXCEED)
    res = permutation_test(
        data, design, {"c": contrast}, n_perm=N_PERM, seed=2, alternative=alternative, stopping=stopping
    )
    partition = glm.split_design(design, np.array(contrast, dtype=float))
    table = res["permutation_table"].to_numpy()[0]
    residual = glm.regress_out(np.delete(data, 50, axis=1), partition.nuisance)
    # A row of the table moves the model; its inverse moves the data, with the same statistic.
    stat = np.stack([glm.observe(residual[np.argsort(row)], partition).compared for row in table])
    if np.ndim(contrast) == 1:
        stat = {"two-sided": np.abs(stat), "greater": stat, "less": -stat}[alternative]
    expected = np.array([stop_one(one[1:] >= one[0] - 1e-10, len(table)) for one in stat.T])
    assert np.isnan(res["p_unc"].to_numpy()[0, 50])
    assert res["n_used"].to_numpy()[0, 50] == 0
    np.testing.assert_allclose(np.delete(res["p_unc"].to_numpy()[0], 50), expected[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(np.delete(res["n_used"].to_numpy()[0], 50), expected[:, 1])
    assert np.unique(expected[:, 1]).size > 20
    shown = res["tail"].to_numpy()[(~np.isnan(res["p_unc_tails"])).any(["feature"]).to_numpy()[:, 0]]
    assert list(shown) == ([alternative] if np.ndim(contrast) == 1 else ["two-sided", "greater"])


@pytest.mark.parametrize("options", [{"sign_flip": True}, {"variance_groups": np.arange(N_OBS) % 2}])
def test_permutation_test__sequential_agrees_with_all_relabellings(study, options):
    whole = run(study, stopping=None, **options)
    found = run(study, **options)
    n_used = found["n_used"].to_numpy()
    late = n_used == N_PERM
    assert 5 < late.sum() < late.size
    np.testing.assert_array_equal(found["p_unc"].to_numpy()[late], whole["p_unc"].to_numpy()[late])
    for name in ("effect", "stat", "zstat", "excluded"):
        xr.testing.assert_identical(found[name], whole[name])
    early = (n_used > 0) & ~late
    p = whole["p_unc"].to_numpy()[early]
    spread = (found["p_unc"].to_numpy()[early] - p) / np.sqrt(p**2 * (1 - p) / N_EXCEED + 1e-4)
    assert np.abs(spread).mean() < 2
    assert np.isnan(found[["p_fwe", "p_fwe_tails", "p_fwe_ci", "max_stat"]]).all().to_array().all()


def test_permutation_test__sequential_bits_do_not_depend_on_the_cut(study, monkeypatch):
    monkeypatch.setattr(sequential, "FEATURE_BLOCK", 16)
    monkeypatch.setattr(sequential, "GROUP", 64)
    monkeypatch.setattr("kconn.infer.sequential.GROUP", 64)
    data, design = study
    ids = [f"s{i:02d}" for i in range(N_OBS)]
    labelled = xr.DataArray(data, dims=("observation", "edge"), coords={"observation": ids})
    table = pd.DataFrame(design, index=ids)
    with dask.config.set(scheduler="synchronous"):
        whole = run((labelled, table))
    assert whole["n_used"].max() == N_PERM > whole["n_used"].median() > N_EXCEED
    shuffled = np.random.default_rng(0).permutation(N_OBS)
    for n_worker, chunks in [(1, (7, 33)), (2, (20, 300)), (4, (3, 64))]:
        lazy = labelled.copy(data=da.from_array(data, chunks=chunks)).isel(observation=shuffled)
        with dask.config.set(scheduler="threads", num_workers=n_worker):
            xr.testing.assert_identical(run((lazy, table[::-1])), whole)


def test_permutation_test__sequential_skips_what_has_stopped(study):
    data, _ = study
    partition = glm.split_design(study[1], np.array([0.0, 1, 0]))
    shuffling = plan_shuffling(np.arange(N_OBS) % 2, n_perm=5000, seed=1)
    engine = glm.plan_pooled(partition, shuffling, "freedman-lane")
    values = data[:, 20:50]
    compared = glm.observe(values, partition).compared
    draws = shuffling.part(1, 5000)
    found = sequential.tally_sequentially(
        values, engine, draws, compared, "float64", tail="two-sided", n_exceed=N_EXCEED
    )
    assert found.n_computed < 0.5 * 4999 * values.shape[1]
    assert found.n_computed >= found.n_draw.sum()


def test_permutation_test__sequential_does_not_stop_a_list(study):
    data, design = study[0][:8, :30], study[1][:8]
    whole = permutation_test(data, design, GROUP, n_perm=100, seed=0)
    found = permutation_test(data, design, GROUP, n_perm=100, seed=0, stopping=Sequential(n_exceed=2))
    assert found["exhaustive"].all()
    xr.testing.assert_identical(found["p_unc"], whole["p_unc"])
    xr.testing.assert_identical(found["p_unc_ci"], whole["p_unc_ci"])


def test_permutation_test__sequential_refuses_what_needs_all(study):
    for options in [{"joint_fwe": True}, {"tail": "gpd"}, {"missing": "refit"}, {"stopping": Sequential(n_exceed=0)}]:
        with pytest.raises(SchemaError, match="E-ARGUMENT"):
            run(study, **options)
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        run(study, statistic="tfce", neighbours=np.array([[0, 1]]))


def test_permutation_test__sequential_refuses_too_little_memory():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(N_OBS, 3 * sequential.GROUP))
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2])
    with dask.config.set(scheduler="synchronous"), pytest.raises(ResourceError, match="groups of"):
        permutation_test(data, design, {"g": [0, 1]}, n_perm=50, seed=0, max_mem=4_000_000, stopping=Sequential())


@pytest.mark.slow
def test_permutation_test__sequential_p_is_valid_under_the_null():
    """P(p <= a) <= a for every a, within the Monte-Carlo error of 40 studies of 500 independent features."""
    p = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2, rng.normal(size=N_OBS)])
        data = rng.standard_t(3, size=(N_OBS, 500))
        res = permutation_test(data, design, GROUP, n_perm=500, seed=seed, stopping=Sequential(n_exceed=10))
        p.append(res["p_unc"].to_numpy()[0])
    p = np.array(p)
    for level in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8):
        by_study = (p <= level).mean(axis=1)
        assert by_study.mean() <= level + 3 * by_study.std() / np.sqrt(len(p))
        assert by_study.mean() >= 0.7 * level - 0.002


def test_negative_binomial_limits__are_scipys():
    n_draw = np.array([10.0, 11, 50, 4000, np.nan])
    lower, upper = negative_binomial_limits(10, n_draw, level=0.95)
    np.testing.assert_allclose(stats.nbinom.cdf(n_draw[:4] - 10, 10, lower[:4]), 0.025, rtol=1e-9)
    np.testing.assert_allclose(stats.nbinom.sf(n_draw[1:4] - 11, 10, upper[1:4]), 0.025, rtol=1e-9)
    assert upper[0] == 1
    assert np.isnan([lower[4], upper[4]]).all()
