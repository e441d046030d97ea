"""Frozen answers of PALM, in `../shared/oracles/palm`: statistics, and the counts behind the p-values."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from kconn.infer.inference import permutation_test
from kconn.kernels import glm
from kconn.kernels.clusters import Tfce

RTOL = 1e-9


class Case:
    """Inputs and outputs of one run of PALM."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = dict(np.load(folder / "palm.npz"))
        self.design = self.table("X")
        self.contrasts = self.table("C")

    def table(self, name: str):
        return np.loadtxt(self.folder / f"{name}.csv", delimiter=",", ndmin=2)

    @property
    def data(self):
        if (self.folder / "Y.npy").exists():
            return np.load(self.folder / "Y.npy")
        n_feature = {"rmethod_dekker": 100, "accel_tail": 200}[self.folder.name]
        assert str(n_feature) in json.loads((self.folder / "meta.json").read_text())["Y"]
        return np.load(self.folder.parent / "two_sample_cov" / "Y.npy")[:, :n_feature]

    def run(self, contrasts, **options) -> xr.Dataset:
        tables = {"permutations": self.out["perm"]}
        if "sign" in self.out:
            tables["signs"] = self.out["sign"]
        n_perm = len(self.out["perm"])
        return permutation_test(
            self.data, self.design, contrasts, n_perm=n_perm, seed=0, alternative="greater", **tables, **options
        )


@pytest.fixture
def case(palm_oracles, request) -> Case:
    return Case(palm_oracles / request.param)


def counts(p, n_perm):
    """The integers behind p-values."""
    scaled = np.asarray(p) * n_perm
    np.testing.assert_allclose(scaled, np.round(scaled), atol=1e-6)
    return np.round(scaled).astype(int)


def assert_counts_equal(actual, expected, n_perm):
    np.testing.assert_array_equal(counts(actual, n_perm), counts(expected, n_perm))


T_CASES = ["one_sample_flip", "paired_within", "rmethod_dekker"]
OPTIONS = {"rmethod_dekker": {"regression": "dekker"}}


@pytest.mark.parametrize("case", T_CASES, indirect=True)
def test_permutation_test__equals_palm(case):
    res = case.run({"c1": case.contrasts[0]}, convention="palm", **OPTIONS.get(case.folder.name, {}))
    n_perm = res.sizes["permutation"]
    np.testing.assert_allclose(res["stat"][0], case.out["out_tstat"], rtol=RTOL)
    np.testing.assert_allclose(res["zstat"][0], case.out["z_c1"], rtol=RTOL, atol=1e-9)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["maxz_c1"], rtol=RTOL)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["out_tstat_max"], rtol=RTOL)
    assert_counts_equal(res["p_unc"][0], case.out["out_tstat_uncp"], n_perm)
    assert_counts_equal(res["p_fwe"][0], case.out["out_tstat_fwep"], n_perm)


@pytest.mark.parametrize("case", ["two_sample_cov"], indirect=True)
def test_permutation_test__equals_palm_with_nuisance_and_two_contrasts(case):
    res = case.run({"c1": case.contrasts[0], "c2": case.contrasts[1]})
    for name in ("c1", "c2"):
        one = res.sel(contrast=name)
        np.testing.assert_allclose(one["stat"], case.out[f"out_tstat_{name}"], rtol=RTOL)
        np.testing.assert_allclose(one["effect"], case.out[f"out_cope_{name}"], rtol=RTOL)
        np.testing.assert_allclose(one["zstat"], case.out[f"z_{name}"], rtol=RTOL, atol=1e-9)
        np.testing.assert_allclose(one["dof"], 36)
        np.testing.assert_allclose(one["p_fdr"], case.out[f"out_tstat_fdrp_{name}"], rtol=1e-12)
        assert_counts_equal(one["p_unc"], case.out[f"out_tstat_uncp_{name}"], 2000)
        assert_counts_equal(one["p_fwe"], case.out[f"out_tstat_fwep_{name}"], 2000)
        # What follows from these: the variance of the effect, the parametric p and its adjustment.
        np.testing.assert_allclose((one["effect"] / one["stat"]) ** 2, case.out[f"out_varcope_{name}"], rtol=RTOL)
        parametric = stats.norm.sf(one["zstat"])
        np.testing.assert_allclose(parametric, case.out[f"out_tstat_uncparap_{name}"], rtol=RTOL)
        adjusted = stats.false_discovery_control(parametric)
        np.testing.assert_allclose(adjusted, case.out[f"out_tstat_fdrparap_{name}"], rtol=RTOL)
    # One contrast, its other tail, is the opposite contrast.
    first = res.sel(contrast="c1", tail="less")
    assert_counts_equal(first["p_unc_tails"], case.out["out_tstat_uncp_c2"], 2000)
    assert_counts_equal(first["p_fwe_tails"], case.out["out_tstat_fwep_c2"], 2000)
    assert res["n_distinct"].to_numpy().tolist() == [113380261800.0] * 2


@pytest.mark.parametrize("case", ["two_sample_cov"], indirect=True)
def test_permutation_test__palm_convention_gives_its_maxima_and_effect_sizes(case):
    res = case.run({"c1": case.contrasts[0], "c2": case.contrasts[1]}, convention="palm")
    for name in ("c1", "c2"):
        one = res.sel(contrast=name)
        np.testing.assert_allclose(one["max_stat"], case.out[f"maxz_{name}"], rtol=RTOL)
        np.testing.assert_allclose(one["max_stat"], case.out[f"out_tstat_max_{name}"], rtol=RTOL)
        np.testing.assert_allclose(one["cohen_d"], case.out[f"out_cohen_{name}"], rtol=RTOL)
        np.testing.assert_allclose(1 / one["cohen_d"], case.out[f"out_cfvar_{name}"], rtol=RTOL)
    # Ours does not depend on the coding of the design; PALM's is the effect over the range of the tested regressor.
    ours = case.run({"c1": case.contrasts[0]})["cohen_d"][0]
    np.testing.assert_allclose(res["cohen_d"][0] / ours, 1.2743035854124114, rtol=1e-9)


@pytest.mark.parametrize("case", ["two_sample_cov"], indirect=True)
def test_permutation_test__float32_keeps_corrected_counts(case):
    res = case.run({"c1": case.contrasts[0]}, dtype="float32")
    np.testing.assert_allclose(res["stat"][0], case.out["out_tstat_c1"], rtol=RTOL)
    assert_counts_equal(res["p_fwe"][0], case.out["out_tstat_fwep_c1"], 2000)
    off = counts(res["p_unc"][0], 2000) - counts(case.out["out_tstat_uncp_c1"], 2000)
    assert np.abs(off).max() <= 1
    assert (off != 0).mean() < 0.05


@pytest.mark.parametrize("case", ["f_contrast"], indirect=True)
def test_permutation_test__equals_palm_for_f(case):
    res = case.run({"f": case.contrasts})
    assert res["stat_kind"].item() == "F"
    np.testing.assert_allclose(res["stat"][0], case.out["out_fstat"], rtol=RTOL)
    np.testing.assert_allclose(res["zstat"][0], case.out["z_c1"], rtol=RTOL, atol=1e-9)
    maxima = glm.f_to_z(res["max_stat"][:, 0].to_numpy(), 2, 32)
    np.testing.assert_allclose(maxima, case.out["maxz_c1"], rtol=RTOL)
    np.testing.assert_allclose(maxima, case.out["out_fstat_max"], rtol=RTOL)
    np.testing.assert_allclose(stats.norm.sf(res["zstat"][0]), case.out["out_fstat_uncparap"], rtol=RTOL)
    assert_counts_equal(res["p_unc"][0], case.out["out_fstat_uncp"], 1000)
    assert_counts_equal(res["p_fwe"][0], case.out["out_fstat_fwep"], 1000)


@pytest.mark.parametrize("own_table", [False, True])
@pytest.mark.parametrize("case", ["exhaustive_4v4"], indirect=True)
def test_permutation_test__exact_counts(case, own_table):
    contrasts = {"c1": case.contrasts[0]}
    if own_table:
        res = permutation_test(case.data, case.design, contrasts, n_perm=5000, seed=3, alternative="greater")
    else:
        res = case.run(contrasts)
    assert res["exhaustive"].item()
    assert res.sizes["permutation"] == res["n_distinct"].item() == 70
    np.testing.assert_allclose(res["stat"][0], case.out["out_tstat"], rtol=RTOL)
    np.testing.assert_allclose(res["zstat"][0], case.out["z_c1"], rtol=RTOL, atol=1e-9)
    maxima = glm.t_to_z(np.sort(res["max_stat"][:, 0]), 6)
    np.testing.assert_allclose(maxima, np.sort(case.out["maxz_c1"]), rtol=RTOL)
    np.testing.assert_array_equal(case.out["maxz_c1"], case.out["out_tstat_max"])
    # No tie is lost in this one-sided case, so PALM's own p are the exact ones too.
    assert_counts_equal(res["p_unc"][0], case.out["out_tstat_uncp"], 70)
    assert_counts_equal(res["p_fwe"][0], case.out["out_tstat_fwep"], 70)
    np.testing.assert_array_equal(counts(res["p_unc"][0], 70), case.out["exact_uncp_count"])
    np.testing.assert_array_equal(counts(res["p_fwe"][0], 70), case.out["exact_fwep_count"])


@pytest.mark.parametrize("case", ["paired_within"], indirect=True)
def test_permutation_test__within_blocks_counts_as_palm_does(case):
    blocks = case.table("EB").astype(int)
    res = permutation_test(
        case.data, case.design, {"c1": case.contrasts[0]}, n_perm=1000, seed=1, exchangeability_blocks=blocks
    )
    assert res["n_distinct"].item() == 32768
    table = res["permutation_table"][0].to_numpy()
    block = blocks.ravel()
    np.testing.assert_array_equal(block[table], np.broadcast_to(block, table.shape))


@pytest.mark.parametrize("case", ["two_sample_cov"], indirect=True)
def test_permutation_test__joint_correction_equals_palm(case):
    res = case.run({"c1": case.contrasts[0], "c2": case.contrasts[1]}, joint_fwe=True)
    for name in ("c1", "c2"):
        one = res.sel(contrast=name)
        assert_counts_equal(one["p_fwe_joint"], case.out[f"out_tstat_cfwep_{name}"], 2000)
        np.testing.assert_allclose(one["p_fdr_joint"], case.out[f"out_tstat_cfdrp_{name}"], rtol=1e-12)


@pytest.mark.parametrize("case", ["accel_tail"], indirect=True)
def test_permutation_test__tail_equals_palm(case):
    res = case.run({"c1": case.contrasts[0]}, tail="gpd", convention="palm")
    np.testing.assert_allclose(res["stat"][0], case.out["out_tstat"], rtol=RTOL)
    np.testing.assert_allclose(res["zstat"][0], case.out["z_c1"], rtol=RTOL, atol=1e-9)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["maxz_c1"], rtol=RTOL)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["out_tstat_max"], rtol=RTOL)
    np.testing.assert_allclose(res["p_fwe"][0], case.out["out_tstat_fwep"], rtol=1e-6)
    assert (res["p_fwe"] < 1 / 500).any()


@pytest.mark.parametrize("case", ["vg_welch"], indirect=True)
def test_permutation_test__variance_groups_equal_palm(case):
    groups = case.table("VG").ravel().astype(int)
    res = case.run({"c1": case.contrasts[0]}, variance_groups=groups, convention="palm")
    assert res["stat_kind"].item() == "v"
    np.testing.assert_allclose(res["stat"][0], case.out["out_vstat"], rtol=RTOL)
    np.testing.assert_allclose(res["dof"][0], case.out["df2_c1"], rtol=RTOL)
    np.testing.assert_allclose(res["dof"][0], case.out["out_vstat_dof"], rtol=RTOL)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["out_vstat_max"], rtol=RTOL)
    np.testing.assert_allclose(res["zstat"][0], case.out["z_c1"], rtol=RTOL, atol=1e-9)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["maxz_c1"], rtol=RTOL)
    assert_counts_equal(res["p_unc"][0], case.out["out_vstat_uncp"], 1000)
    assert_counts_equal(res["p_fwe"][0], case.out["out_vstat_fwep"], 1000)


class Volume(Case):
    """A case of 20 x 20 x 20 voxels."""

    @property
    def mask(self):
        return np.load(self.folder.parent / "vol_common" / "mask.npy")

    @property
    def data(self):
        voxels = np.argwhere(self.mask)
        values = np.load(self.folder.parent / "vol_common" / "Y.npy")[:, self.mask]
        ijk = {name: ("voxel", voxels[:, axis]) for axis, name in enumerate("ijk")}
        return xr.DataArray(values, dims=("observation", "voxel"), coords=ijk)

    def map(self, name):
        return self.out[name][self.mask]


def assert_single_voxels_equal(res, case):
    n_perm = res.sizes["permutation"]
    np.testing.assert_allclose(res["stat"][0], case.map("out_vox_tstat"), rtol=RTOL)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["maxz_c1"], rtol=RTOL)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["out_vox_tstat_max"], rtol=RTOL)
    assert_counts_equal(res["p_unc"][0], case.map("out_vox_tstat_uncp"), n_perm)
    assert_counts_equal(res["p_fwe"][0], case.map("out_vox_tstat_fwep"), n_perm)


def test_permutation_test__cluster_extent_equals_palm(palm_oracles):
    case = Volume(palm_oracles / "vol_extent")
    contrast = {"c1": case.contrasts[0]}
    options = {"statistic": "cluster-extent", "neighbours": 26, "threshold": 2.3, "convention": "palm"}
    res = case.run(contrast, **options)
    np.testing.assert_allclose(res["stat"][0], case.map("out_vox_tstat"), rtol=RTOL)
    np.testing.assert_array_equal(res["enhanced"][0], case.map("out_clustere_tstat"))
    np.testing.assert_array_equal(res["enhanced"][0], case.map("clu_vol"))
    np.testing.assert_allclose(res["zstat"][0], case.map("z_vol"), rtol=RTOL, atol=1e-9)
    np.testing.assert_array_equal(res["max_stat"][:, 0], case.out["clumax_c1"])
    np.testing.assert_array_equal(res["max_stat"][:, 0], case.out["out_clustere_tstat_max"])
    assert_counts_equal(res["p_fwe"][0], case.map("out_clustere_tstat_fwep"), 500)
    assert res["cluster"].max() == 5
    single = case.run(contrast, statistic="voxel", convention="palm")
    assert_single_voxels_equal(single, case)


def test_permutation_test__tfce_equals_palm(palm_oracles):
    case = Volume(palm_oracles / "vol_tfce_dh01")
    options = {"statistic": "tfce", "neighbours": 6, "tfce": Tfce(step=0.1), "convention": "palm"}
    res = case.run({"c1": case.contrasts[0]}, **options)
    np.testing.assert_allclose(res["enhanced"][0], case.map("out_tfce_tstat"), rtol=RTOL)
    np.testing.assert_allclose(res["enhanced"][0], case.map("tfce_vol"), rtol=RTOL)
    np.testing.assert_allclose(res["zstat"][0], case.map("z_vol"), rtol=RTOL, atol=1e-9)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["tfcemax_c1"], rtol=RTOL)
    np.testing.assert_allclose(res["max_stat"][:, 0], case.out["out_tfce_tstat_max"], rtol=RTOL)
    np.testing.assert_array_equal(counts(res["p_unc"][0], 100), case.map("tfce_count_vol"))
    assert_single_voxels_equal(case.run({"c1": case.contrasts[0]}, statistic="voxel", convention="palm"), case)
    assert_counts_equal(res["p_unc"][0], case.map("out_tfce_tstat_uncp"), 100)
    assert_counts_equal(res["p_fwe"][0], case.map("out_tfce_tstat_fwep"), 100)


def test_cases__every_field_is_compared(palm_oracles):
    """A field that no test above names would be a field that no test compares."""
    source = Path(__file__).read_text(encoding="utf-8").replace("{name}", "c1")
    for path in sorted(palm_oracles.glob("*/palm.npz")):
        for field in np.load(path).files:
            assert f'"{field.replace("_c2", "_c1")}"' in source, (path.parent.name, field)
