"""QC-FC: against SciPy and statsmodels, and whether denoising takes a planted artefact out and leaves an edge in."""

import numpy as np
import pytest
import statsmodels.api as sm
import xarray as xr
from scipy.stats import false_discovery_control, pearsonr, spearmanr

from kconn.clean.censoring import censor
from kconn.clean.denoising import denoise
from kconn.clean.quality import estimate_quality
from kconn.clean.quality_cohort import (
    MOTION_MEASURES,
    average_subjects,
    compare_motion,
    estimate_qc_fc,
    refuse_bad_scores,
)
from kconn.connect.cohort import assemble
from kconn.connect.netmats import estimate_netmats, fisher_z
from kconn.errors import InputError, SchemaError
from kconn.kernels.quality import correlate_across, rank_correlation

N_OBS, N_NODE = 24, 6
NODES = [f"n{i}" for i in range(N_NODE)]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def cohort(rng):
    i, j = np.triu_indices(N_NODE, 1)
    fd = rng.gamma(3, 0.05, N_OBS)
    netmat = rng.normal(size=(N_OBS, len(i))) + np.linspace(0, 20, len(i)) * fd[:, None]
    return xr.Dataset(
        {"netmat": (("observation", "edge"), netmat), "mean_fd": ("observation", fd)},
        coords={
            "observation": [f"sub-{s:02d}" for s in range(N_OBS)],
            "node_i": ("edge", np.array(NODES)[i]),
            "node_j": ("edge", np.array(NODES)[j]),
        },
    )


def test_correlate_across__equals_scipy(cohort):
    r, p = correlate_across(cohort["netmat"].to_numpy(), cohort["mean_fd"].to_numpy(), np.empty((N_OBS, 0)))

    expected = [pearsonr(column, cohort["mean_fd"]) for column in cohort["netmat"].to_numpy().T]
    np.testing.assert_allclose(r, [e.statistic for e in expected], rtol=1e-10)
    np.testing.assert_allclose(p, [e.pvalue for e in expected], rtol=1e-9)


def test_correlate_across__with_nuisance_equals_the_t_of_a_regression(cohort, rng):
    nuisance = np.column_stack([rng.normal(size=N_OBS), rng.random(N_OBS) > 0.5])
    design = sm.add_constant(np.column_stack([cohort["mean_fd"], nuisance]))

    _, p = correlate_across(cohort["netmat"].to_numpy(), cohort["mean_fd"].to_numpy(), nuisance)

    expected = [sm.OLS(column, design).fit().pvalues[1] for column in cohort["netmat"].to_numpy().T]
    np.testing.assert_allclose(p, expected, rtol=1e-8)


def test_rank_correlation__equals_scipy(rng):
    x, y = rng.normal(size=(2, 50))
    y[3] = np.nan

    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y, nan_policy="omit").statistic)
    assert np.isnan(rank_correlation(x[:2], y[:2]))


def test_estimate_qc_fc__summarises(cohort, rng):
    positions = xr.DataArray(rng.normal(size=(N_NODE, 3)) * 30, dims=("node", "axis"), coords={"node": NODES[::-1]})

    actual = estimate_qc_fc(cohort, positions=positions)

    r, p = actual["qc_fc"].to_numpy(), actual["qc_fc_p"].to_numpy()
    distance = [
        np.linalg.norm(positions.sel(node=i).to_numpy() - positions.sel(node=j).to_numpy())
        for i, j in zip(cohort["node_i"].to_numpy(), cohort["node_j"].to_numpy(), strict=True)
    ]
    assert actual["qc_fc_median"].item() == np.median(np.abs(r))
    assert actual["qc_fc_share"].item() == np.mean(p < 0.05)
    assert actual["qc_fc_distance"].item() == pytest.approx(spearmanr(r, distance).statistic)


def test_estimate_qc_fc__does_not_depend_on_the_order_of_tables(cohort, rng):
    age = xr.DataArray(
        rng.normal(size=(N_OBS, 1)), dims=("observation", "covariate"), coords={"observation": cohort["observation"]}
    )

    straight = estimate_qc_fc(cohort, nuisance=age)
    shuffled = estimate_qc_fc(cohort, nuisance=age[::-1])

    xr.testing.assert_identical(straight, shuffled)


def test_estimate_qc_fc__leaves_edges_with_nan_out(cohort):
    holed = cohort.copy(deep=True)
    holed["netmat"][3, 0] = np.nan

    actual = estimate_qc_fc(holed)

    assert np.isnan(actual["qc_fc"][0])
    assert np.isfinite(actual["qc_fc_median"])


@pytest.mark.parametrize(
    ("code", "spoil", "choices"),
    [
        ("E-SCHEMA", lambda ds: ds.drop_vars("mean_fd"), {}),
        ("E-COV-NAN", lambda ds: ds.assign(mean_fd=ds["mean_fd"].where(ds["mean_fd"] > 0.1)), {}),
        ("E-TOO-FEW", lambda ds: ds.isel(observation=slice(3)), {}),
        (
            "E-ID-MISSING",
            lambda ds: ds,
            {"nuisance": xr.DataArray([[1.0]], dims=("observation", "c"), coords={"observation": ["x"]})},
        ),
        (
            "E-ID-MISSING",
            lambda ds: ds,
            {"positions": xr.DataArray([[1.0]], dims=("node", "axis"), coords={"node": ["n0"]})},
        ),
    ],
)
def test_estimate_qc_fc__refuses(cohort, code, spoil, choices):
    with pytest.raises((InputError, SchemaError)) as caught:
        estimate_qc_fc(spoil(cohort), **choices)

    assert caught.value.code == code


def test_refuse_bad_scores__names_a_few_and_counts_the_others():
    labels = np.array([f"{i:02d}" for i in range(8)])
    with pytest.raises(InputError, match="of 00, 01, 02, 03, 04 and 3 more is not a number"):
        refuse_bad_scores(np.full((8, 1), np.nan), labels)
    with pytest.raises(InputError, match="covariate of 07 is not a number"):
        refuse_bad_scores(np.where(labels == "07", np.inf, 0.1)[:, np.newaxis], labels)


def subject(rng, *, restless, linked):
    """A run of nodes: noise, an artefact of motion that all nodes share, and one neural edge."""
    n_time, n_node = 300, 14
    motion = rng.normal(size=(n_time, 6)) * 0.01
    jumps = rng.choice(np.arange(1, n_time), int(restless * 20), replace=False)
    motion[jumps] += rng.normal(size=(len(jumps), 6)) * 0.5
    motion[:, 3:] /= 50
    neural = rng.normal(size=(n_node, n_time))
    neural[1] += linked * neural[0]
    tissue = rng.normal(size=(3, n_time)) * 0.1
    jolt = np.zeros(n_time)
    jolt[1:] = np.abs(np.diff(motion[:, :3], axis=0)).sum(axis=1)
    signal = 1000 + neural + 3 * jolt + motion[:, :1].T * 5 + tissue.sum(axis=0)
    return xr.Dataset(
        {
            "bold": (("column", "time"), signal),
            "confounds": (("time", "confound"), np.column_stack([motion, tissue.T + jolt[:, None]])),
        },
        coords={
            "column": [f"n{i:02d}" for i in range(n_node)],
            "confound": [
                "trans_x",
                "trans_y",
                "trans_z",
                "rot_x",
                "rot_y",
                "rot_z",
                "white_matter",
                "csf",
                "global_signal",
            ],
        },
        attrs={"t_r": 2.0},
    )


def test_estimate_qc_fc__falls_to_chance_after_denoising_and_a_neural_edge_survives():
    rng = np.random.default_rng(1)
    raw, clean, group = [], [], []
    for i in range(40):
        linked = 0.9 * (i % 2)
        run = subject(rng, restless=rng.uniform(0, 1.5), linked=linked)
        dirty = denoise(run, confounds=None, high_pass=None, low_pass=None)
        kept = denoise(censor(run, fd_threshold=0.2), confounds="36P", high_pass=0.008, low_pass=None)
        for results, ds in ((raw, dirty), (clean, kept)):
            netmat = fisher_z(
                estimate_netmats(
                    ds.rename(column="node").assign(timeseries=ds["denoised"].rename(column="node")), kind="corr"
                )
            )
            fd = estimate_quality(ds)["mean_fd"].item()
            results.append((f"sub-{i:02d}", "", netmat[["netmat"]], fd))
        group.append(linked > 0)

    before, after = (
        estimate_qc_fc(
            assemble([entry[:3] for entry in results]).assign(mean_fd=("observation", [entry[3] for entry in results]))
        )
        for results in (raw, clean)
    )

    assert before["qc_fc_share"] > 0.8
    assert after["qc_fc_share"] < 0.12
    assert after["qc_fc_median"] < 0.5 * before["qc_fc_median"]
    edge = after["netmat"].isel(edge=0).to_numpy()
    linked = np.array(group)
    assert edge[linked].mean() - edge[~linked].mean() > 5 * edge.std() / np.sqrt(len(edge))


def test_estimate_qc_fc__chance_is_what_relabelling_gives(cohort, rng):
    null = cohort.assign(netmat=(("observation", "edge"), rng.normal(size=cohort["netmat"].shape)))
    found = estimate_qc_fc(null, n_perm=200, seed=3)
    shares = []
    for i in range(200):
        order = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(i,))).permutation(N_OBS)
        p = [pearsonr(column, null["mean_fd"].to_numpy()[order]).pvalue for column in null["netmat"].to_numpy().T]
        shares.append(np.mean(np.array(p) < 0.05))
    np.testing.assert_allclose(found["qc_fc_share_chance"], np.quantile(shares, [0.025, 0.975]))
    assert found["qc_fc_median_chance"][0] < found["qc_fc_median"] < found["qc_fc_median_chance"][1]
    assert "qc_fc_distance_chance" not in found
    xr.testing.assert_identical(found["qc_fc"], estimate_qc_fc(null)["qc_fc"])


def test_estimate_qc_fc__counts_what_survives_the_false_discovery_rate(cohort):
    found = estimate_qc_fc(cohort)
    survives = false_discovery_control(found["qc_fc_p"].to_numpy()) < 0.05
    assert found["qc_fc_share_fdr"].item() == survives.mean() > 0


def test_average_subjects__weighs_sessions_alike_whatever_their_order(cohort, rng):
    labels = [f"{i // 2:02d}" for i in range(N_OBS)]
    several = cohort.assign_coords(subject=("observation", labels))
    actual = average_subjects(several)
    assert actual["subject"].to_numpy().tolist() == sorted(set(labels))
    np.testing.assert_allclose(actual["mean_fd"], several["mean_fd"].to_numpy().reshape(-1, 2).mean(axis=1))
    np.testing.assert_allclose(actual["netmat"][3], several["netmat"].to_numpy()[6:8].mean(axis=0))
    shuffled = several.isel(observation=rng.permutation(N_OBS))
    np.testing.assert_allclose(average_subjects(shuffled)["netmat"], actual["netmat"], rtol=1e-12)


def test_compare_motion__joins_by_subject_and_leaves_out_who_lacks_a_visit(rng):
    values = {name: ("observation", rng.random(7)) for name in MOTION_MEASURES}
    ds = xr.Dataset(
        values,
        coords={
            "subject": ("observation", list("abcdabc")),
            "session": ("observation", ["1"] * 4 + ["2"] * 3),
        },
    )
    choices = {"factors": {"arm": dict(zip("abcd", "xxyy", strict=True))}, "changes": [("1", "2")]}
    found = compare_motion(ds, **choices, n_perm=100, seed=0)
    shuffled = compare_motion(ds.isel(observation=rng.permutation(7)), **choices, n_perm=100, seed=0)
    xr.testing.assert_identical(found, shuffled)
    fd = ds["mean_fd"].to_numpy()
    paired = found.sel(measure="mean_fd").isel(comparison=found["test"].to_numpy() == "visits")
    assert paired["at"].to_numpy().tolist() == ["", "x", "y"]
    assert paired["n_first"].to_numpy().tolist() == [3, 2, 1]
    assert paired["mean_first"].to_numpy()[0] == pytest.approx(fd[:3].mean())
    assert paired["mean_second"].to_numpy()[0] == pytest.approx(fd[4:].mean())
    assert np.isnan(paired["p_unc"].to_numpy()[2])
