"""estimate_icc: joined by subject, lazily, and its refusals."""

import dask
import numpy as np
import pytest
import xarray as xr

from kconn.connect.reliability import KINDS, estimate_icc
from kconn.errors import InputError, SchemaError
from kconn.kernels.reliability import intraclass_correlations


def no_compute(*_args, **_kwargs):
    raise AssertionError("a graph was computed while building")


@pytest.fixture
def cube():
    rng = np.random.default_rng(0)
    rows = [(f"sub-{i}", f"ses-{j}") for i in range(6) for j in (1, 2, 3) if (i, j) != (4, 2)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    x = np.array([np.random.default_rng(int(sub[4:])).normal(size=10) for sub, _ in rows]) + rng.normal(size=(17, 10))
    return xr.Dataset(
        {"netmat": (("observation", "edge"), x)},
        coords={
            "observation": ["_".join(row) for row in rows],
            "subject": ("observation", [row[0] for row in rows]),
            "session": ("observation", [row[1] for row in rows]),
            "node_i": ("edge", [f"a{i}" for i in range(10)]),
        },
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_estimate_icc__joins_by_subject(cube, kind):
    out = estimate_icc(cube, ["ses-1", "ses-2"], kind=kind)
    subjects = [0, 1, 2, 3, 5]  # the fourth has no second session
    by_id = cube.set_xindex("observation") if "observation" not in cube.indexes else cube
    x = [[by_id["netmat"].sel(observation=f"sub-{i}_ses-{j}") for j in (1, 2)] for i in subjects]
    np.testing.assert_allclose(out["icc"], intraclass_correlations(np.array(x))[KINDS[kind]])
    assert out["icc"].attrs["n_subject"] == 5
    assert out["node_i"].to_numpy().tolist() == cube["node_i"].to_numpy().tolist()


def test_estimate_icc__lazy_equals_eager(cube):
    chunked = cube.assign(netmat=cube["netmat"].chunk({"observation": 2, "edge": 3}))
    with dask.config.set(scheduler=no_compute):
        lazy = estimate_icc(chunked, ["ses-1", "ses-3"], kind="ICC(2,1)")
    assert lazy["icc"].chunks is not None
    xr.testing.assert_identical(
        lazy.compute(scheduler="threads"), estimate_icc(cube, ["ses-1", "ses-3"], kind="ICC(2,1)")
    )


def test_estimate_icc__refuses_what_cannot_be_compared(cube):
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*ICC\(9,9\)"):
        estimate_icc(cube, ["ses-1", "ses-2"], kind="ICC(9,9)")
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        estimate_icc(cube, ["ses-1"], kind="ICC(3,1)")
    with pytest.raises(InputError, match="E-TOO-FEW 0 of 6 subjects"):
        estimate_icc(cube, ["ses-1", "ses-9"], kind="ICC(3,1)")
