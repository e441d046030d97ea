"""censor: DVARS, frames around bad ones, filtered motion; what it refuses (displacement alone: test_denoising)."""

import numpy as np
import pytest
import xarray as xr

from kconn.clean.censoring import censor
from kconn.clean.confounds import MOTION
from kconn.clean.frames import framewise_displacement
from kconn.clean.quality import estimate_dvars
from kconn.errors import KconnError


@pytest.fixture
def run():
    rng = np.random.default_rng(3)
    n_time, t_r = 200, 0.8
    motion = rng.normal(size=(n_time, 6)) * [0.02, 0.02, 0.02, 2e-4, 2e-4, 2e-4]
    # The belly pushes the head: a breath every 3.3 s, and one real jump.
    motion[:, 1] += 0.4 * np.sin(2 * np.pi * 0.3 * t_r * np.arange(n_time))
    motion[120:, 2] += 1.5
    bold = rng.normal(size=(40, n_time)) + 100
    bold[:, 60] += 8
    return xr.Dataset(
        {"bold": (("voxel", "time"), bold), "confounds": (("time", "confound"), motion)},
        coords={"confound": list(MOTION)},
        attrs={"t_r": t_r},
    )


def dropped(ds):
    return np.flatnonzero(~ds["sample_mask"].to_numpy()).tolist()


def test_censor__drops_frames_by_dvars(run):
    actual = censor(run, fd_threshold=None, dvars_threshold=2.0)

    assert dropped(actual) == [60, 61]
    np.testing.assert_array_equal(actual["std_dvars"], estimate_dvars(run)["std_dvars"])


def test_censor__reads_dvars_from_the_table(run):
    table = np.column_stack([run["confounds"], np.r_[np.nan, np.ones(198), 9.0]])
    given = run.drop_vars(["confounds", "confound"]).assign(confounds=(("time", "confound"), table))
    given = given.assign_coords(confound=[*MOTION, "std_dvars"])

    assert dropped(censor(given, fd_threshold=None, dvars_threshold=2.0)) == [199]


def test_censor__drops_frames_around_those_that_moved(run):
    choices = {"fd_threshold": 1.0, "motion_filter": (0.25, 0.35)}
    alone = dropped(censor(run, **choices))

    around = dropped(censor(run, **choices, n_before=1, n_after=2, n_dummy=2))

    assert alone == [120]
    assert around == [0, 1, 119, 120, 121, 122]


@pytest.mark.parametrize("band", [(0.25, 0.35), 0.1])
def test_censor__does_not_take_breathing_for_motion(run, band):
    plain = censor(run, fd_threshold=0.3)

    filtered = censor(run, fd_threshold=0.3, motion_filter=band)

    assert len(dropped(plain)) > 100
    assert len(dropped(filtered)) < 12
    assert filtered["framewise_displacement"][60:100].mean() < 0.5 * plain["framewise_displacement"][60:100].mean()


def test_framewise_displacement__is_computed_where_a_radius_is_stated(run):
    given = run.assign(framewise_displacement=("time", np.zeros(200)))
    steps = np.abs(np.diff(run["confounds"], axis=0))

    actual = framewise_displacement(given, radius=65.0)

    np.testing.assert_allclose(actual[1:], steps[:, :3].sum(axis=1) + 65 * steps[:, 3:].sum(axis=1))
    assert not framewise_displacement(given).any()


def test_censor__has_the_same_result_lazily(run):
    choices = {"fd_threshold": 0.5, "dvars_threshold": 2.0, "n_after": 1, "motion_filter": (0.25, 0.35)}

    lazy = censor(run.chunk(voxel=7, time=50), **choices)

    assert lazy["sample_mask"].chunks is not None
    np.testing.assert_array_equal(lazy["sample_mask"].compute(), censor(run, **choices)["sample_mask"])


@pytest.mark.parametrize(
    ("code", "choices"),
    [
        ("E-ARGUMENT", {"dvars_threshold": 0.0}),
        ("E-ARGUMENT", {"n_before": -1}),
        ("E-ARGUMENT", {"n_after": -1}),
        ("E-ARGUMENT", {"radius": 0.0}),
        ("E-BAND", {"motion_filter": 0.7}),
        ("E-BAND", {"motion_filter": -0.1}),
        ("E-BAND", {"motion_filter": (0.3, 0.2)}),
        ("E-BAND", {"motion_filter": (0.2, 0.2)}),
        ("E-NO-FRAMES", {"n_before": 200, "n_after": 200, "fd_threshold": 0.5}),
    ],
)
def test_censor__refuses(run, code, choices):
    with pytest.raises(KconnError) as caught:
        censor(run, **{"fd_threshold": 0.3, **choices})

    assert caught.value.code == code
