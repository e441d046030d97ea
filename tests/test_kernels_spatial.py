"""Statistics of whole maps, from the kernel up to `permutation_test`."""

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client
from scipy import ndimage, stats

from kconn.errors import ResourceError, SchemaError
from kconn.infer.inference import permutation_test
from kconn.kernels import clusters

N_OBS, N_NODE = 16, 12
DESIGN = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2])
CONTRAST = {"g": [0, 1]}


@pytest.fixture(scope="module")
def edges():
    """A network whose first four nodes differ between groups."""
    rng = np.random.default_rng(0)
    node_i, node_j = np.triu_indices(N_NODE, 1)
    values = rng.normal(size=(N_OBS, node_i.size))
    values += 1.6 * DESIGN[:, [1]] * ((node_i < 4) & (node_j < 4))
    names = np.array([f"n{i:02d}" for i in range(N_NODE)])
    coords = {"node_i": ("edge", names[node_i]), "node_j": ("edge", names[node_j])}
    return xr.DataArray(values, dims=("observation", "edge"), coords=coords)


@pytest.fixture(scope="module")
def voxels():
    rng = np.random.default_rng(0)
    ijk = np.argwhere(np.ones((5, 5, 4)))
    values = rng.normal(size=(N_OBS, len(ijk)))
    values += 1.5 * DESIGN[:, [1]] * (ijk < 2).all(axis=1) - 1.5 * DESIGN[:, [1]] * (ijk > 2).all(axis=1)
    coords = {name: ("voxel", ijk[:, axis]) for axis, name in enumerate("ijk")}
    return xr.DataArray(values, dims=("observation", "voxel"), coords=coords)


def test_permutation_test__nbs_equals_a_loop(edges):
    options = {"n_perm": 60, "seed": 1, "alternative": "greater"}
    res = permutation_test(edges, DESIGN, CONTRAST, statistic="nbs", threshold=2.0, **options)
    node_i, node_j = np.triu_indices(N_NODE, 1)
    network = clusters.Network(node_i=node_i, node_j=node_j, n_node=N_NODE)
    table = res["permutation_table"][0].to_numpy()
    largest = []
    for order in table:
        # Without nuisance, permuting the data is permuting the labels.
        moved = np.empty((N_OBS, node_i.size))
        moved[order] = edges
        one = permutation_test(moved, DESIGN, CONTRAST, n_perm=2, seed=0)
        active = np.flatnonzero(one["zstat"][0].to_numpy() >= 2)
        found = clusters.find_clusters(active, network, node_i.size)
        largest.append(clusters.sum_clusters(found, np.ones(active.size)).max(initial=0))
    np.testing.assert_array_equal(res["max_stat"][:, 0], largest)
    planted = (node_i < 4) & (node_j < 4)
    assert (res["p_fwe"][0].to_numpy()[planted] < 0.1).sum() >= 4
    expected = (np.array(largest)[:, None] >= res["enhanced"][0].to_numpy()).mean(axis=0)
    np.testing.assert_allclose(res["p_fwe"][0], expected)
    assert np.isnan(res["p_unc"]).all()


@pytest.mark.parametrize("statistic", ["cluster-extent", "cluster-mass", "tfce"])
def test_permutation_test__sides_are_kept_apart(voxels, statistic):
    options = {"statistic": statistic, "neighbours": 26, "n_perm": 80, "seed": 1}
    if statistic != "tfce":
        options["threshold"] = 1.6
    two = permutation_test(voxels, DESIGN, CONTRAST, **options)
    greater = permutation_test(voxels, DESIGN, CONTRAST, alternative="greater", **options)
    less = permutation_test(voxels, DESIGN, CONTRAST, alternative="less", **options)
    np.testing.assert_allclose(two["enhanced"], np.maximum(greater["enhanced"], less["enhanced"]))
    np.testing.assert_allclose(two["max_stat"], np.maximum(greater["max_stat"], less["max_stat"]))
    if statistic != "tfce":
        assert two["cluster"].min() < 0 < two["cluster"].max()
        merged = permutation_test(voxels, DESIGN, CONTRAST, convention="palm", **options)
        assert (merged["cluster"] >= 0).all()
    else:
        assert (two["p_unc"] > 0).all()
    assert (two["p_fwe"] < 0.1).any()


def test_permutation_test__mass_above_the_threshold_or_from_zero(voxels):
    options = {"statistic": "cluster-mass", "neighbours": 6, "threshold": 1.6, "n_perm": 20, "seed": 1}
    extent = permutation_test(voxels, DESIGN, CONTRAST, **(options | {"statistic": "cluster-extent"}))
    excess = permutation_test(voxels, DESIGN, CONTRAST, **options)
    palm = permutation_test(voxels, DESIGN, CONTRAST, convention="palm", alternative="greater", **options)
    greater = permutation_test(voxels, DESIGN, CONTRAST, alternative="greater", **options)
    sizes = permutation_test(
        voxels, DESIGN, CONTRAST, alternative="greater", **(options | {"statistic": "cluster-extent"})
    )
    np.testing.assert_allclose(palm["enhanced"] - 1.6 * sizes["enhanced"], greater["enhanced"], atol=1e-9)
    assert ((excess["enhanced"] > 0) == (extent["enhanced"] > 0)).all()


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_permutation_test__nilearn_convention_equals_nilearn(voxels, alternative):
    nilearn = pytest.importorskip("nilearn.mass_univariate._utils")
    six = ndimage.generate_binary_structure(3, 1)
    two_sided = alternative == "two-sided"
    options = {"n_perm": 30, "seed": 1, "neighbours": 6, "convention": "nilearn", "alternative": alternative}
    extent = permutation_test(voxels, DESIGN, CONTRAST, statistic="cluster-extent", threshold=0.1, **options)
    mass = permutation_test(voxels, DESIGN, CONTRAST, statistic="cluster-mass", threshold=0.1, **options)
    tfce = permutation_test(voxels, DESIGN, CONTRAST, statistic="tfce", **options)
    threshold = stats.t.isf(0.05 if two_sided else 0.1, N_OBS - 2)
    for i_perm, order in enumerate(extent["permutation_table"][0].to_numpy()):
        moved = np.empty(voxels.shape)
        moved[order] = voxels
        t = permutation_test(moved, DESIGN, CONTRAST, n_perm=2, seed=0)["stat"].to_numpy().reshape(5, 5, 4, 1)
        size, weight = nilearn.calculate_cluster_measures(t.copy(), threshold, six, two_sided_test=two_sided)
        np.testing.assert_allclose(extent["max_stat"][i_perm, 0], size[0])
        np.testing.assert_allclose(mass["max_stat"][i_perm, 0], weight[0], rtol=1e-9, atol=1e-12)
        enhanced = nilearn.calculate_tfce(t, six, two_sided_test=two_sided)
        np.testing.assert_allclose(tfce["max_stat"][i_perm, 0], np.abs(enhanced).max(), rtol=1e-9)


def enhance_as_fsl(t, step):
    """Heights of the observed map for every relabelling, above them, not times the step."""
    out = np.zeros(t.size)
    for height in np.arange(1, np.floor(t.max() / step + 1e-9) + 1) * step:
        labels, _ = ndimage.label(t.reshape(5, 5, 4) > height * (1 + 1e-12), np.ones((3, 3, 3)))
        out += np.where(labels > 0, np.sqrt(np.bincount(labels.ravel())[labels]) * height**2, 0).ravel()
    return out


def test_permutation_test__fsl_convention_works_on_t(voxels):
    options = {"n_perm": 30, "seed": 1, "neighbours": 26, "convention": "fsl", "alternative": "greater"}
    mass = permutation_test(voxels, DESIGN, CONTRAST, statistic="cluster-mass", threshold=1.7, **options)
    t = mass["stat"][0].to_numpy()
    labels, n_label = ndimage.label(t.reshape(5, 5, 4) > 1.7, np.ones((3, 3, 3)))
    masses = ndimage.sum_labels(t.reshape(5, 5, 4), labels, np.arange(1, n_label + 1))
    np.testing.assert_allclose(mass["max_stat"][0, 0], masses.max())
    tfce = permutation_test(voxels, DESIGN, CONTRAST, statistic="tfce", **options)
    np.testing.assert_allclose(tfce["enhanced"][0], enhance_as_fsl(t, t.max() / 100), rtol=1e-9)
    for i_perm, order in enumerate(tfce["permutation_table"][0].to_numpy()):
        moved = np.empty(voxels.shape)
        moved[order] = voxels
        other = permutation_test(moved, DESIGN, CONTRAST, n_perm=2, seed=0)["stat"][0].to_numpy()
        expected = enhance_as_fsl(other, t.max() / 100)
        np.testing.assert_allclose(tfce["max_stat"][i_perm, 0], expected.max(), rtol=1e-9)


def test_permutation_test__f_and_variance_groups_make_maps(voxels):
    options = {"statistic": "cluster-extent", "neighbours": 26, "threshold": 1.6, "n_perm": 40, "seed": 1}
    f = permutation_test(voxels, DESIGN, {"f": np.eye(2)[1:] * 1.0 + 0}, **options)
    assert f["stat_kind"].item() == "t"
    rng = np.random.default_rng(0)
    wide = np.column_stack([DESIGN, rng.normal(size=N_OBS)])
    res = permutation_test(voxels, wide, {"f": [[0, 1, 0], [0, 0, 1]]}, **options)
    assert res["stat_kind"].item() == "F"
    assert (res["cluster"] >= 0).all()
    np.testing.assert_array_equal(res["enhanced"] > 0, res["zstat"] >= 1.6)
    welch = permutation_test(voxels, DESIGN, CONTRAST, variance_groups=DESIGN[:, 1], **options)
    np.testing.assert_array_equal(welch["enhanced"] > 0, np.abs(welch["zstat"]) >= 1.6)


def test_permutation_test__excluded_voxels_join_no_cluster(voxels):
    broken = voxels.copy(deep=True)
    broken[2, 0] = np.nan
    res = permutation_test(
        broken, DESIGN, CONTRAST, statistic="cluster-extent", neighbours=26, threshold=1.0, n_perm=40, seed=1
    )
    assert np.isnan(res["p_fwe"][0, 0])
    assert np.isnan(res["enhanced"][0, 0])
    assert res["cluster"][0, 0] == 0


def test_permutation_test__maps_have_the_same_bits_however_run(voxels):
    options = {"statistic": "tfce", "neighbours": 6, "n_perm": 150, "seed": 1}
    expected = permutation_test(voxels, DESIGN, CONTRAST, **options)
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(permutation_test(voxels, DESIGN, CONTRAST, **options), expected)
    chunked = voxels.chunk(voxel=13, observation=5)
    xr.testing.assert_identical(permutation_test(chunked, DESIGN, CONTRAST, **options), expected)
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None):
        xr.testing.assert_identical(permutation_test(voxels, DESIGN, CONTRAST, **options), expected)


def test_permutation_test__pairs_as_neighbours(voxels):
    pairs = clusters.volume_pairs(np.column_stack([voxels[name] for name in "ijk"]), 26)
    options = {"statistic": "cluster-extent", "threshold": 1.6, "n_perm": 40, "seed": 1}
    named = permutation_test(voxels, DESIGN, CONTRAST, neighbours=26, **options)
    given = permutation_test(voxels, DESIGN, CONTRAST, neighbours=pairs, **options)
    xr.testing.assert_identical(named, given)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"neighbours": 6}, "neighbours has no effect"),
        ({"threshold": 2.0}, "threshold has no effect"),
        ({"statistic": "tfce", "neighbours": 6, "threshold": 2.0}, "threshold has no effect"),
        ({"statistic": "tfce"}, "without neighbours"),
        ({"statistic": "cluster-extent", "neighbours": 6}, "without threshold"),
        ({"statistic": "cluster-extent", "neighbours": 6, "threshold": -1.0}, "above 0"),
        (
            {"statistic": "cluster-mass", "neighbours": 6, "threshold": 2.0, "convention": "nilearn"},
            "between 0 and 0.5",
        ),
        ({"statistic": "nbs", "threshold": 2.0, "convention": "fsl", "variance_groups": DESIGN[:, 1]}, "compared on z"),
        ({"statistic": "cluster-extent", "neighbours": 7, "threshold": 2.0}, "neighbours=7"),
        ({"statistic": "nbs", "threshold": 2.0}, "node_i"),
        ({"statistic": "nbs", "threshold": 2.0, "neighbours": 6}, "neighbours has no effect"),
        ({"statistic": "clusters"}, "statistic='clusters'"),
    ],
)
def test_permutation_test__refuses_map_options(voxels, options, found):
    with pytest.raises(SchemaError, match=found):
        permutation_test(voxels, DESIGN, CONTRAST, n_perm=20, seed=0, **options)


def test_permutation_test__maps_need_their_memory(voxels):
    with pytest.raises(ResourceError, match="whole maps"):
        permutation_test(voxels, DESIGN, CONTRAST, n_perm=20, seed=0, statistic="tfce", neighbours=6, max_mem=20_000)
