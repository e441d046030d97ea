"""Quality of a run: against plain formulas, on kept frames, lazily."""

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from kconn.clean.censoring import censor
from kconn.clean.denoising import denoise
from kconn.clean.quality import estimate_carpet, estimate_courses, estimate_dvars, estimate_motion, estimate_quality
from kconn.errors import SchemaError
from kconn.kernels.quality import dvars, dvars_sums, tsnr
from kconn.testing import simulate_run


def no_compute(*_args, **_kwargs):
    raise AssertionError("computed while building the graph")


@pytest.fixture(scope="module")
def run():
    return censor(simulate_run(n_time=120, seed=2).drop_vars("sample_mask"), fd_threshold=0.3, n_dummy=4)


def test_tsnr__equals_loop():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 40)) + np.array([[100.0], [-50.0], [0.0], [3.0], [8.0]])
    x[3] = 3.0
    x[4, 7] = np.nan
    kept = rng.random(40) < 0.8
    kept[7] = True

    expected = [row[kept].mean() / row[kept].std(ddof=1) for row in x[:3]] + [np.nan, np.nan]

    np.testing.assert_allclose(tsnr(x, kept), expected, rtol=1e-6)


def test_tsnr__of_one_frame_is_nan():
    assert np.isnan(tsnr(np.ones((2, 4)), np.array([True, False, False, False]))).all()


def test_tsnr__sees_a_constant_float32():
    assert np.isnan(tsnr(np.full((1, 500), 1234.5678, dtype=np.float32), np.ones(500, dtype=bool))).all()


def test_estimate_quality__counts_what_is_kept(run):
    actual = estimate_quality(run)
    kept = run["sample_mask"].to_numpy()
    moved = run["framewise_displacement"].to_numpy()[1:]

    assert actual["n_frames"] == 120
    assert actual["n_kept"] == kept.sum() < 117
    assert actual["minutes_kept"].item() == pytest.approx(kept.sum() * run.attrs["t_r"] / 60)
    assert actual["mean_fd"].item() == pytest.approx(moved.mean())
    assert actual["max_fd"].item() == moved.max()
    np.testing.assert_allclose(actual["tsnr"], tsnr(run["bold"].to_numpy(), kept))
    assert actual["median_tsnr"].item() == np.median(actual["tsnr"])


def test_estimate_quality__keeps_the_counts_of_denoise(run):
    bold = run["bold"].copy(deep=True)
    bold[3] = 5.0
    dead = run.assign(bold=bold)
    clean = denoise(dead, confounds="6P", high_pass=0.008, low_pass=None)

    actual = estimate_quality(clean)

    assert actual["n_constant"] == clean["n_constant"] == 1
    assert actual["df_left"] == clean["df_left"]
    assert estimate_quality(dead)["n_constant"] == 1
    assert np.isnan(actual["tsnr"][3])


def test_estimate_quality__without_motion_or_repetition_time_says_nan(run):
    bare = run[["bold"]]
    bare.attrs = {}

    actual = estimate_quality(bare)

    assert actual["n_kept"] == 120
    assert np.isnan(actual["mean_fd"])
    assert np.isnan(actual["max_fd"])
    assert np.isnan(actual["minutes_kept"])
    assert "df_left" not in actual


def test_estimate_quality__is_lazy_and_equals_eager(run):
    with dask.config.set(scheduler=no_compute):
        lazy = estimate_quality(run.chunk(voxel=17, time=11))

    assert lazy["tsnr"].chunks is not None
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), estimate_quality(run))


def test_estimate_quality__of_dead_data_has_no_median():
    run = xr.Dataset({"bold": (("column", "time"), np.ones((3, 10)))})

    assert np.isnan(estimate_quality(run)["median_tsnr"])
    assert estimate_quality(run)["n_constant"] == 3


def test_estimate_quality__needs_bold():
    with pytest.raises(SchemaError, match="bold"):
        estimate_quality(xr.Dataset())


def dvars_recipe(x):
    """Voxel by voxel, as nipype does it for fMRIPrep."""
    expected = []
    for row in x:
        spread = (np.percentile(row, 75, method="lower") - np.percentile(row, 25, method="lower")) / 1.349
        centred = row - row.mean()
        persistence = (centred[1:] * centred[:-1]).mean() * (len(row) - 1) / len(row) / (centred**2).mean()
        expected.append(np.sqrt(2 * (1 - persistence)) * spread)
    plain = np.concatenate([[0.0], np.sqrt((np.diff(x, axis=1) ** 2).mean(axis=0))])
    return plain, plain / np.mean(expected)


def test_dvars__equals_the_recipe():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 83)).cumsum(axis=1) * 0.3 + rng.normal(size=(300, 83)) + 500

    plain, standardised = dvars(dvars_sums(x))

    expected = dvars_recipe(x)
    np.testing.assert_allclose(plain, expected[0], rtol=1e-12)
    np.testing.assert_allclose(standardised, expected[1], rtol=1e-12)


def test_dvars__of_white_noise_is_one():
    x = np.random.default_rng(0).normal(size=(2000, 200))

    assert dvars(dvars_sums(x))[1][1:].mean() == pytest.approx(1, abs=0.01)


def test_dvars__leaves_dead_voxels_out():
    x = np.random.default_rng(0).normal(size=(20, 50))
    dead = np.concatenate([x, np.full((3, 50), 7.0), np.full((1, 50), np.nan)])

    np.testing.assert_allclose(dvars(dvars_sums(dead)), dvars(dvars_sums(x)), rtol=1e-12)
    assert np.isnan(dvars(dvars_sums(dead[20:]))).all()


def test_dvars__of_a_real_table_is_alike_to_that_of_fmriprep(shared_data):
    # The table is of regions, the column of voxels: alike, not equal.
    folder = shared_data / "uclacnp_sub50005"
    regions = np.loadtxt(folder / "sub-50005_wmparc_func_niftitonifti_masked_meants.csv", delimiter=",")
    table = pd.read_csv(folder / "sub-50005_task-rest_bold_confounds.tsv", sep="\t", na_values="n/a")

    _, standardised = dvars(dvars_sums(regions))

    assert np.corrcoef(standardised[1:], table["stdDVARS"][1:])[0, 1] > 0.7


def test_estimate_dvars__finds_the_frame_that_jumps(run):
    bold = run["bold"].copy(deep=True)
    bold[:, 60:] += 5000

    actual = estimate_dvars(run.assign(bold=bold))

    assert actual["std_dvars"].argmax("time") == 60
    assert actual["dvars"][0] == 0


def test_estimate_dvars__is_lazy_and_has_the_same_bits_for_any_chunks(run, monkeypatch):
    monkeypatch.setattr("kconn.clean.quality.plan_voxel_blocks", lambda _n_voxel, _n_time: 50)
    eager = estimate_dvars(run)

    with dask.config.set(scheduler=no_compute):
        lazy = estimate_dvars(run.chunk(voxel=17, time=11))

    xr.testing.assert_identical(lazy.compute(scheduler="threads"), eager)


def test_estimate_motion__is_the_mean_absolute_step(run):
    actual = estimate_motion(run)
    table = run["confounds"].sel(confound=["trans_y", "rot_z"]).to_numpy()
    steps = [np.mean([abs(row[t] - row[t - 1]) for t in range(1, 120)]) for row in table.T]
    assert actual["step_trans_y"].item() == pytest.approx(steps[0])
    assert actual["step_rot_z"].item() == pytest.approx(np.degrees(steps[1]))
    assert np.isnan(estimate_motion(run.drop_vars("confounds"))["step_rot_z"])


def test_estimate_courses__takes_dvars_from_the_table_and_makes_them_where_there_is_none(run):
    given = estimate_courses(run)
    np.testing.assert_array_equal(given["std_dvars"][1:], run["confounds"].sel(confound="std_dvars")[1:])
    made = estimate_courses(run.drop_vars("confounds"))
    np.testing.assert_allclose(made["std_dvars"], estimate_dvars(run)["std_dvars"])
    assert made["mean_std_dvars"].item() == pytest.approx(made["std_dvars"][1:].mean().item())
    assert made["max_std_dvars"] == made["std_dvars"].max()


def test_estimate_courses__global_signal_is_the_mean_of_the_voxels(run):
    actual = estimate_courses(run)
    mean = run["bold"].to_numpy().astype(np.float64).mean(axis=0)
    kept = mean[run["sample_mask"].to_numpy()]
    np.testing.assert_allclose(actual["global_signal"], mean, rtol=1e-12)
    assert actual["global_sd"].item() == pytest.approx(100 * kept.std(ddof=1) / kept.mean())


def test_estimate_carpet__shows_the_same_voxels_without_line_in_one_order(run):
    clean = denoise(run, confounds="6P", high_pass=0.008, low_pass=None)
    actual = estimate_carpet(estimate_courses(clean))
    kept = run["sample_mask"].to_numpy()
    before, after = actual["carpet"].to_numpy(), actual["carpet_denoised"].to_numpy()
    assert before.dtype == np.int8
    assert before.shape == after.shape == (200, 120)
    assert (before > -128).all()
    np.testing.assert_array_equal(after == -128, np.broadcast_to(~kept, after.shape))

    chosen = np.arange(200) * run.sizes["voxel"] // 200
    rows = run["bold"].to_numpy()[chosen][:, kept].astype(np.float64)
    signal = actual["global_signal"].to_numpy()[kept]
    time, counted = np.flatnonzero(kept), np.arange(kept.sum())
    r = [np.corrcoef(_no_line(row, counted), _no_line(signal, counted))[0, 1] for row in rows]
    first = int(np.argmax(r))
    straight = _no_line(rows[first], time)
    expected = np.clip(straight / np.sqrt((straight**2).sum() / (len(time) - 2)), -3, 3) * 40
    np.testing.assert_allclose(before[0, kept], expected, atol=0.51)


def _no_line(row, time):
    return row - np.polyval(np.polyfit(time, row, 1), time)


def test_estimate_carpet__small_tables_show_every_column_and_dead_ones_nothing():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(5, 40))
    signal[2] = 3.0
    table = estimate_courses(xr.Dataset({"bold": (("column", "time"), signal)}))
    assert (estimate_carpet(table)["carpet"].to_numpy() == -128).all(axis=1).tolist() == [False] * 4 + [True]


def test_quality_of_a_run__is_lazy_and_has_the_same_bits_for_any_chunks(run, monkeypatch):
    monkeypatch.setattr("kconn.clean.quality.plan_voxel_blocks", lambda _n_voxel, _n_time: 50)

    def quality(ds):
        clean = denoise(ds.drop_vars("confounds"), confounds=None, high_pass=0.01, low_pass=None)
        return estimate_carpet(estimate_courses(estimate_motion(estimate_quality(clean))))

    with dask.config.set(scheduler=no_compute):
        lazy = quality(run.chunk(voxel=17, time=11))
    eager = quality(run)
    for name in ("global_signal", "global_sd", "std_dvars", "mean_std_dvars", "carpet", "carpet_denoised"):
        np.testing.assert_array_equal(lazy[name].compute(scheduler="threads"), eager[name], err_msg=name)


def test_estimate_quality__of_a_table_without_motion_knows_none(run):
    other = run[["bold", "confounds"]].sel(confound=["csf"])
    assert np.isnan(estimate_quality(other)["mean_fd"])
    assert "framewise_displacement" not in estimate_courses(other)
