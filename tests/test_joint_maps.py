"""correct_over_nodes: against one test of all maps side by side."""

import numpy as np
import pytest
import xarray as xr

from kconn.errors import SchemaError
from kconn.infer.inference import permutation_test
from kconn.infer.joint_maps import correct_over_nodes

N_OBS, N_VOXEL = 14, 27
IJK = dict(zip("ijk", np.unravel_index(np.arange(N_VOXEL), (3, 3, 3), order="F"), strict=True))


@pytest.fixture
def maps():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(N_OBS, 3, N_VOXEL))
    values[7:, 1, :5] += 2.5
    values[:, 2, 4] = np.nan
    return values


def test_of(values, **options):
    data = xr.DataArray(values, dims=("observation", "voxel"), coords={axis: ("voxel", at) for axis, at in IJK.items()})
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) >= 7]).astype(float)
    result = permutation_test(data, design, {"tested": [0, 1]}, n_perm=200, seed=1, **options)
    return result.isel(contrast=0).assign_attrs(affine=np.eye(4).tolist())


test_of.__test__ = False


def test_correct_over_nodes__of_refitted_maps_compares_z(maps):
    results = [test_of(maps[:, i], missing="refit") for i in range(2)]
    joint = correct_over_nodes(results)
    whole = test_of(maps[:, :2].reshape(N_OBS, -1)[:, :N_VOXEL], missing="refit")
    np.testing.assert_array_equal(correct_over_nodes([whole])["p_fwe_nodes"][0], whole["p_fwe"])
    z = np.concatenate([np.abs(ds["zstat"]) for ds in results])
    highest = joint["max_stat"].to_numpy()
    expected = (highest[:, None] >= z * (1 - 1e-9)).mean(axis=0)
    np.testing.assert_array_equal(joint["p_fwe_nodes"].to_numpy().ravel(), expected)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_correct_over_nodes__equals_one_test_of_all_maps(maps, alternative):
    joint = correct_over_nodes([test_of(maps[:, i], alternative=alternative) for i in range(3)])
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) >= 7]).astype(float)
    whole = permutation_test(
        maps.reshape(N_OBS, -1), design, {"tested": [0, 1]}, n_perm=200, seed=1, alternative=alternative
    )
    np.testing.assert_array_equal(joint["p_fwe_nodes"].to_numpy().ravel(), whole["p_fwe"].to_numpy().ravel())
    np.testing.assert_allclose(joint["max_stat"], whole["max_stat"].isel(contrast=0), rtol=1e-12)
    assert np.isnan(joint["p_fwe_nodes"][2, 4])


@pytest.mark.parametrize("options", [{"statistic": "cluster-extent", "threshold": 1.0}, {"statistic": "tfce"}])
def test_correct_over_nodes__is_never_below_the_correction_of_one_map(maps, options):
    results = [test_of(maps[:, i], neighbours=6, **options) for i in range(3)]
    joint = correct_over_nodes(results)["p_fwe_nodes"]
    alone = np.stack([ds["p_fwe"] for ds in results])
    known = np.isfinite(alone)
    assert (joint.to_numpy()[known] >= alone[known]).all()
    assert (joint.to_numpy()[known] > alone[known]).any()
    np.testing.assert_array_equal(np.isfinite(joint), known)


def test_correct_over_nodes__with_one_node_is_its_own_correction(maps):
    result = test_of(maps[:, 1], statistic="tfce", neighbours=26)
    np.testing.assert_array_equal(correct_over_nodes([result])["p_fwe_nodes"][0], result["p_fwe"])


def test_correct_over_nodes__refuses_tests_that_differ(maps):
    other = test_of(maps[:, 1]).assign_coords(table_sha256="another")
    with pytest.raises(SchemaError, match="E-ARGUMENT the tests differ in table_sha256"):
        correct_over_nodes([test_of(maps[:, 0]), other])
