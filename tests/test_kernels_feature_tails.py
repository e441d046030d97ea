import numpy as np
import pytest

from kconn.infer.inference import permutation_test
from kconn.kernels import feature_tails

N_OBS = 24


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(8)
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2, rng.normal(size=N_OBS)])
    data = rng.normal(size=(N_OBS, 30))
    data[:, :8] += np.linspace(0.5, 2.5, 8) * design[:, [1]]
    data[0, 20] = np.nan
    return data, design


@pytest.mark.parametrize("contrast", [[0, 1, 0], [[0, 1, 0], [0, 0, 1]]], ids=["t", "F"])
@pytest.mark.parametrize("convention", ["kconn", "palm"])
@pytest.mark.parametrize("groups", [None, np.arange(N_OBS) % 2])
def test_permutation_test__each_feature_has_the_tail_of_its_own_null(study, contrast, convention, groups):
    data, design = study
    options = {"n_perm": 300, "seed": 2, "convention": convention, "variance_groups": groups}
    res = permutation_test(data, design, {"c": contrast}, tail="gpd", **options)
    plain = permutation_test(data, design, {"c": contrast}, **options)
    for feature in range(12):
        # The maximum over one feature is the feature.
        alone = permutation_test(data[:, [feature]], design, {"c": contrast}, tail="gpd", **options)
        np.testing.assert_allclose(
            res["p_unc_tails"][:, 0, feature], alone["p_fwe_tails"][:, 0, 0], rtol=1e-7, equal_nan=True
        )
    low = plain["p_unc_tails"] < 0.1
    refined = res["p_unc_tails"] != plain["p_unc_tails"]
    assert (refined & low).any()
    assert not (refined & ~low & np.isfinite(plain["p_unc_tails"])).any()
    assert (res["p_unc"] < 1 / 300).any()
    assert np.isnan(res["p_unc"][0, 20])
    np.testing.assert_array_equal(res["p_fdr"] >= res["p_unc"], np.isfinite(res["p_unc"]))


def test_permutation_test__tails_do_not_depend_on_how_it_is_run(study, monkeypatch):
    data, design = study
    options = {"n_perm": 300, "seed": 2, "tail": "gpd"}
    wide = np.tile(data, 50)
    expected = permutation_test(wide, design, {"c": [0, 1, 0]}, **options)["p_unc"]
    few = permutation_test(wide, design, {"c": [0, 1, 0]}, max_mem=2**26, **options)["p_unc"]
    np.testing.assert_array_equal(few, expected)
    monkeypatch.setattr(feature_tails, "N_HELD", 900)
    held = permutation_test(wide, design, {"c": [0, 1, 0]}, **options)["p_unc"]
    np.testing.assert_allclose(held, expected, rtol=1e-7)
