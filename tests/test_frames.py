"""The frames of a run: where displacement comes from, and what is kept."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from kconn.clean.frames import framewise_displacement, sample_mask, whole
from kconn.errors import InputError, SchemaError

MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


@pytest.fixture
def run():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {"confounds": (("time", "confound"), rng.normal(size=(20, 6)) * 0.01)},
        coords={"confound": MOTION},
        attrs={"where": "sub-01"},
    )


@pytest.fixture
def real(shared_data):
    file = shared_data / "uclacnp_sub50005" / "sub-50005_task-rest_bold_confounds.tsv"
    table = pd.read_csv(file, sep="\t", na_values="n/a")
    return xr.Dataset(
        {"confounds": (("time", "confound"), table.to_numpy(dtype=float))}, coords={"confound": table.columns.tolist()}
    )


def test_framewise_displacement__is_the_same_from_the_column_and_from_motion(real):
    given = framewise_displacement(real)
    computed = framewise_displacement(real.sel(confound=["X", "Y", "Z", "RotX", "RotY", "RotZ"]))

    assert given[0] == computed[0] == 0
    np.testing.assert_allclose(computed, given, atol=2e-6)


def test_framewise_displacement__prefers_its_own_variable(run):
    own = xr.DataArray(np.linspace(0, 1, 20), dims="time")

    xr.testing.assert_equal(framewise_displacement(run.assign(framewise_displacement=own)), own)


def test_framewise_displacement__is_lazy(run):
    lazy = framewise_displacement(run.chunk(time=7, confound=2))

    assert lazy.chunks is not None
    xr.testing.assert_equal(lazy.compute(), framewise_displacement(run))


def test_framewise_displacement__needs_a_source(run):
    with pytest.raises(SchemaError) as caught:
        framewise_displacement(run.drop_vars("confounds"))
    assert caught.value.code == "E-SCHEMA"

    with pytest.raises(InputError, match="rot_z") as caught:
        framewise_displacement(run.isel(confound=slice(5)))
    assert caught.value.code == "E-CONFOUND-COLUMN"


def test_sample_mask__is_all_frames_where_nobody_has_censored(run):
    assert sample_mask(run).all()
    assert sample_mask(run).sizes == {"time": 20}


def test_sample_mask__must_be_boolean(run):
    with pytest.raises(SchemaError, match="dtype"):
        sample_mask(run.assign(sample_mask=("time", np.ones(20))))


def test_whole__joins_chunks_of_the_named_dims(run):
    lazy = run["confounds"].chunk(time=7, confound=2)

    assert whole(lazy, "time").chunksizes == {"time": (20,), "confound": (2, 2, 2)}
    assert whole(lazy).chunksizes == {"time": (20,), "confound": (6,)}
    assert whole(run["confounds"]).chunks is None


def test_framewise_displacement__of_jenkinson_is_smaller_and_alike(real):
    motion = real.sel(confound=["X", "Y", "Z", "RotX", "RotY", "RotZ"])

    power = framewise_displacement(motion)[1:]
    jenkinson = framewise_displacement(motion, kind="jenkinson")[1:]

    assert np.corrcoef(power, jenkinson)[0, 1] > 0.95
    assert 0.4 < (jenkinson / power).median() < 0.8


def test_framewise_displacement__of_jenkinson_prefers_the_column_of_fmriprep(run):
    named = run.assign_coords(confound=["rmsd", *MOTION[1:]])

    np.testing.assert_array_equal(framewise_displacement(named, kind="jenkinson"), run["confounds"][:, 0])
