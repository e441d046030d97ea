"""Command lines of PALM that no stored case covers, against its formulas written out as plain loops."""

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage, stats

from kconn.infer.inference import permutation_test
from kconn.kernels.clusters import Tfce
from kconn.kernels.permutation import exchange_tree, plan_shuffling

N_PERM = 60
N_FEATURE = 12
UNBALANCED = np.repeat([0, 1, 2], [5, 9, 10])
N_OBS = UNBALANCED.size
PAIRS = np.repeat(np.arange(1, 13), 2)


def partition(design, rows):
    """Winkler et al. 2014, appendix A, after Ridgway: what is tested, cleaned of the nuisance, and the nuisance."""
    spare = np.eye(design.shape[1]) - rows.T @ np.linalg.pinv(rows.T)
    left, values, _ = np.linalg.svd(design @ spare)
    nuisance = left[:, : int((values > 1e-9).sum())]
    tested = design @ np.linalg.pinv(rows)
    return tested - nuisance @ (nuisance.T @ tested), nuisance


def statistic(model, y, contrast, dof, groups, leverage):
    """t, F, v or G of one feature, and its degrees of freedom, as PALM has them."""
    beta = np.linalg.lstsq(model, y, rcond=None)[0]
    residual = y - model @ beta
    effect, rank = contrast @ beta, len(contrast)
    if groups is None:
        spread = contrast @ np.linalg.pinv(model.T @ model) @ contrast.T
        error = residual @ residual / dof
        value = effect @ np.linalg.inv(spread) @ effect / rank / error
        return (np.sign(effect[0]) * np.sqrt(value) if rank == 1 else value), dof
    names = np.unique(groups)
    weight = {g: leverage[groups == g].sum() / (residual[groups == g] ** 2).sum() for g in names}
    gram = sum(weight[g] * model[groups == g].T @ model[groups == g] for g in names)
    value = effect @ np.linalg.inv(contrast @ np.linalg.inv(gram) @ contrast.T) @ effect / rank
    total = sum(weight[g] * (groups == g).sum() for g in names)
    spread = sum((1 - weight[g] * (groups == g).sum() / total) ** 2 / leverage[groups == g].sum() for g in names)
    if rank == 1:
        return np.sign(effect[0]) * np.sqrt(value), 1 / (3 * spread)
    spread /= rank * (rank + 2)
    return value / (1 + 2 * (rank - 1) * spread), 1 / (3 * spread)


def to_z(value, rank, dof):
    if rank == 1:
        return stats.norm.isf(stats.t.sf(value, dof)) if value > 0 else stats.norm.ppf(stats.t.cdf(value, dof))
    return stats.norm.isf(stats.f.sf(value, rank, dof))


def palm(data, design, contrast, permutations, signs, *, regression="freedman-lane", groups=None, two_sided=False):
    """Return what PALM compares, ``(n_perm, n_feature)``, and the statistic and degrees of freedom of the identity."""
    rows = np.atleast_2d(np.asarray(contrast, dtype=float))
    tested, nuisance = partition(design, rows)
    full = np.column_stack([tested, nuisance])
    eye = np.eye(len(data))
    hat_z, hat_m = nuisance @ np.linalg.pinv(nuisance), full @ np.linalg.pinv(full)
    leverage = np.diag(eye - hat_m)
    dof = len(data) - np.linalg.matrix_rank(full)
    first = np.eye(len(rows), full.shape[1])
    z = np.empty((len(permutations), data.shape[1]))
    seen = np.empty((2, data.shape[1]))
    for i_perm, order in enumerate(permutations):
        sign = np.ones(len(order)) if signs is None else signs[i_perm]
        move = sign[:, None] * eye[order]
        model, response = {
            "freedman-lane": (full, (move.T @ (eye - hat_z) + hat_z) @ data),
            "draper-stoneman": (np.column_stack([move @ tested, nuisance]), data),
            "dekker": (np.column_stack([move @ (tested - hat_z @ tested), nuisance]), data),
            "still-white": (move @ tested, (eye - hat_z) @ data),
            "manly": (full, move.T @ data),
            "ter-braak": (full, (move.T @ (eye - hat_m) + (hat_m if i_perm == 0 else 0)) @ data),
        }[regression]
        for j, y in enumerate(response.T):
            value, own = statistic(model, y, first[:, : model.shape[1]], dof, groups, leverage)
            if i_perm == 0:
                seen[:, j] = value, own
            z[i_perm, j] = to_z(value, len(rows), own)
    return (np.abs(z) if two_sided else z), *seen


@pytest.fixture
def study():
    rng = np.random.default_rng(12)
    covariates = np.column_stack([rng.normal(40, 12, N_OBS), rng.integers(0, 2, N_OBS), rng.normal(size=N_OBS)])
    design = np.column_stack([np.eye(3)[UNBALANCED], covariates - covariates.mean(axis=0)])
    data = rng.normal(size=(N_OBS, N_FEATURE)) * (1 + UNBALANCED[:, None]) + 0.05 * covariates[:, :1]
    data[:, 0] += 4 * (UNBALANCED == 1)
    return data, design


def tables(labels, *, blocks=None, kind="permutations"):
    tree = None if blocks is None else exchange_tree(blocks)
    drawn = plan_shuffling(labels, n_perm=N_PERM, seed=9, tree=tree, kind=kind)
    return drawn.permutations, drawn.signs


T_UNBALANCED = [1, -1, 0, 0, 0, 0]
T_COVARIATE = [0, 0, 0, 0, 0, 1]
F_GROUPS = [[1, -1, 0, 0, 0, 0], [0, 1, -1, 0, 0, 0]]
F_MIXED = [[0, 1, -1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
EVERY = np.arange(N_OBS)
LEVELS = np.column_stack([np.full(N_OBS, -1), np.repeat([1, -2, 3], 8), np.repeat(np.arange(1, 7), 4), EVERY + 1])
LINES = {
    "unbalanced, three covariates": (T_UNBALANCED, UNBALANCED, {}),
    "covariate": (T_COVARIATE, EVERY, {}),
    "-f": (F_GROUPS, UNBALANCED, {}),
    "-f of rank 3": (F_MIXED, EVERY, {}),
    "-ise": (T_UNBALANCED, EVERY, {"kind": "sign-flips"}),
    "-ise -ee": (F_GROUPS, EVERY, {"kind": "both"}),
    "-eb": (T_UNBALANCED, UNBALANCED, {"blocks": np.repeat([1, 2], 12)}),
    "-eb, F": (F_MIXED, EVERY, {"blocks": PAIRS}),
    "-eb -whole": (T_COVARIATE, EVERY, {"blocks": -PAIRS}),
    "-eb -whole -ise -ee": (T_COVARIATE, EVERY, {"blocks": -PAIRS, "kind": "both"}),
    "-eb of four levels": (T_COVARIATE, EVERY, {"blocks": LEVELS[:, :3]}),
    "-eb of four levels -ise -ee": (F_MIXED, EVERY, {"blocks": LEVELS[:, :3], "kind": "both"}),
}


def assert_equals_palm(data, design, contrast, shuffling, **options):
    permutations, signs = shuffling
    loop = {name: value for name, value in options.items() if name in ("regression", "groups", "two_sided")}
    z, value, dof = palm(data, design, contrast, permutations, signs, **loop)
    res = permutation_test(
        data,
        design,
        {"c": contrast},
        n_perm=len(permutations),
        seed=0,
        permutations=permutations,
        signs=signs,
        alternative="two-sided" if options.get("two_sided") else "greater",
        convention="palm",
        regression=options.get("regression", "freedman-lane"),
        variance_groups=options.get("groups"),
    )
    np.testing.assert_allclose(res["stat"][0], value, rtol=1e-9)
    np.testing.assert_allclose(res["dof"][0], dof, rtol=1e-9)
    shown = np.abs(res["zstat"][0]) if options.get("two_sided") else res["zstat"][0]
    np.testing.assert_allclose(shown, z[0], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(res["max_stat"][:, 0], z.max(axis=1), rtol=1e-7, atol=1e-7)
    ties = z[0] - 1e-7
    np.testing.assert_allclose(res["p_unc"][0], (z >= ties).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(res["p_fwe"][0], (z.max(axis=1)[:, None] >= ties).mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("line", LINES)
def test_permutation_test__equals_palm_on(line, study):
    contrast, labels, how = LINES[line]
    assert_equals_palm(*study, contrast, tables(labels, **how))


@pytest.mark.parametrize("regression", ["draper-stoneman", "dekker", "still-white", "manly", "ter-braak"])
@pytest.mark.parametrize("contrast", [T_UNBALANCED, F_GROUPS], ids=["t", "F"])
def test_permutation_test__equals_palm_rmethod(regression, contrast, study):
    assert_equals_palm(*study, contrast, tables(UNBALANCED), regression=regression)


@pytest.mark.parametrize("line", ["unbalanced, three covariates", "-f", "-f of rank 3", "-ise", "-eb", "-eb -whole"])
def test_permutation_test__equals_palm_vg(line, study):
    contrast, labels, how = LINES[line]
    assert_equals_palm(*study, contrast, tables(labels, **how), groups=UNBALANCED)


@pytest.mark.parametrize("groups", [None, UNBALANCED], ids=["t", "v"])
def test_permutation_test__equals_palm_twotail(groups, study):
    assert_equals_palm(*study, T_UNBALANCED, tables(UNBALANCED), groups=groups, two_sided=True)


def test_permutation_test__equals_palm_cmcp_cmcx(study):
    """Repeated permutations and rows taken as distinct are a matter of the table: both count as they come."""
    permutations, _ = tables(EVERY)
    repeated = np.concatenate([permutations, permutations[:25]])
    assert_equals_palm(*study, T_UNBALANCED, (repeated, None))


def test_permutation_test__equals_palm_demean(study):
    """``-demean`` centres data and design and drops the intercept, without counting it in the degrees of freedom."""
    data, design = study
    centred = design[:, [1, 2, 3, 4, 5]] - design[:, [1, 2, 3, 4, 5]].mean(axis=0)
    assert_equals_palm(data - data.mean(axis=0), centred, [1, 0, 0, 0, 0], tables(EVERY))


def test_permutation_test__equals_palm_vgdemean(study):
    """``-vgdemean`` does so within each variance group."""
    data, design = study
    member = np.eye(3)[UNBALANCED]
    within = np.eye(N_OBS) - member @ np.linalg.pinv(member)
    assert_equals_palm(within @ data, within @ design[:, 3:], [1, 0, 0], tables(EVERY), groups=UNBALANCED)


def test_permutation_test__equals_palm_corrcon_over_t_and_f(study):
    data, design = study
    permutations, _ = tables(EVERY)
    z_t, *_ = palm(data, design, T_UNBALANCED, permutations, None, two_sided=True)
    z_f, *_ = palm(data, design, F_MIXED, permutations, None)
    res = permutation_test(
        data,
        design,
        {"t": T_UNBALANCED, "f": F_MIXED},
        n_perm=N_PERM,
        seed=0,
        permutations=permutations,
        joint_fwe=True,
        convention="palm",
    )
    highest = np.maximum(z_t.max(axis=1), z_f.max(axis=1))[:, None]
    np.testing.assert_allclose(res["p_fwe_joint"][0], (highest >= z_t[0] - 1e-7).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(res["p_fwe_joint"][1], (highest >= z_f[0] - 1e-7).mean(axis=0), atol=1e-12)
    p = np.concatenate([(z_t >= z_t[0] - 1e-7).mean(axis=0), (z_f >= z_f[0] - 1e-7).mean(axis=0)])
    np.testing.assert_allclose(res["p_fdr_joint"].to_numpy().ravel(), stats.false_discovery_control(p))


SHAPE = (6, 5, 4)


def label(mask, connectivity):
    structure = ndimage.generate_binary_structure(3, {6: 1, 26: 3}[connectivity])
    return ndimage.label(mask, structure)


def clusters_of(volume, kind, threshold):
    out = np.zeros(volume.shape)
    found, n = label(volume >= threshold, 26)
    for i in range(1, n + 1):
        out[found == i] = (found == i).sum() if kind == "extent" else volume[found == i].sum()
    return out


def tfce_of(volume, height, extent, connectivity):
    """``-T``: steps of a hundredth of the maximum, from the first step on."""
    out = np.zeros(volume.shape)
    step = volume.max() / 100
    for i in range(1, 101):
        found, n = label(volume >= i * step * (1 - 1e-12), connectivity)
        for k in range(1, n + 1):
            out[found == k] += (found == k).sum() ** extent * (i * step) ** height * step
    return out


MAPS = {
    "-C 1.5": (
        {"statistic": "cluster-extent", "neighbours": 26, "threshold": 1.5},
        lambda v: clusters_of(v, "extent", 1.5),
    ),
    "-Cstat mass": (
        {"statistic": "cluster-mass", "neighbours": 26, "threshold": 1.5},
        lambda v: clusters_of(v, "mass", 1.5),
    ),
    "-T": ({"statistic": "tfce", "neighbours": 6}, lambda v: tfce_of(v, 2, 0.5, 6)),
    "-T -tfce2D": (
        {"statistic": "tfce", "neighbours": 26, "tfce": Tfce(height=2, extent=1)},
        lambda v: tfce_of(v, 2, 1, 26),
    ),
}


@pytest.mark.parametrize("line", MAPS)
@pytest.mark.parametrize(("how", "two_sided"), [("t", True), ("F", False), ("v", False)])
def test_permutation_test__equals_palm_on_volumes(line, two_sided, how):
    options, enhance = MAPS[line]
    rng = np.random.default_rng(3)
    voxels = np.argwhere(np.ones(SHAPE))
    smooth = ndimage.gaussian_filter(rng.normal(size=(N_OBS, *SHAPE)), (0, 1, 1, 1)).reshape(N_OBS, -1)
    smooth[:, :30] += 1.0 * (UNBALANCED[:, None] == 1)
    data = xr.DataArray(
        smooth, dims=("observation", "voxel"), coords={a: ("voxel", voxels[:, i]) for i, a in enumerate("ijk")}
    )
    design = np.column_stack([np.eye(3)[UNBALANCED], rng.normal(size=N_OBS)])
    contrast = [[-1, 1, 0, 0], [0, 1, -1, 0]] if how == "F" else [-1, 1, 0, 0]
    groups = UNBALANCED if how == "v" else None
    permutations = tables(UNBALANCED)[0][:8]
    z, *_ = palm(smooth, design, contrast, permutations, None, groups=groups, two_sided=two_sided)
    maps = np.stack([enhance(one.reshape(SHAPE)).ravel() for one in z])
    res = permutation_test(
        data,
        design,
        {"c": contrast},
        n_perm=8,
        seed=0,
        permutations=permutations,
        alternative="two-sided" if two_sided else "greater",
        convention="palm",
        variance_groups=groups,
        **options,
    )
    np.testing.assert_allclose(res["enhanced"][0], maps[0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(res["max_stat"][:, 0], maps.max(axis=1), rtol=1e-7)
    assert (maps[0] > 0).sum() > 5
    p = (maps.max(axis=1)[:, None] >= maps[0] * (1 - 1e-9)).mean(axis=0)
    np.testing.assert_allclose(res["p_fwe"][0], p, atol=1e-12)
