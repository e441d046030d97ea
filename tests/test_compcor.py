"""CompCor from masks: against a plain principal component analysis, lazily, and inside denoising."""

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nilearn.signal import clean
from scipy.linalg import subspace_angles

from kconn.clean.compcor import estimate_compcor
from kconn.clean.confounds import Strategy
from kconn.clean.denoising import denoise
from kconn.errors import KconnError
from kconn.kernels.compcor import components

N_TIME = 150


def no_compute(*_args, **_kwargs):
    raise AssertionError("computed while building the graph")


@pytest.fixture
def run():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(3, N_TIME))
    bold = 500 + rng.normal(size=(90, N_TIME)) + np.linspace(0, 30, N_TIME)
    bold[:50] += rng.normal(size=(50, 3)) * [5, 3, 2] @ noise
    bold[49] = 7.0
    return xr.Dataset(
        {"bold": (("voxel", "time"), bold), "confounds": (("time", "confound"), rng.normal(size=(N_TIME, 1)))},
        coords={"confound": ["csf"], "time": np.arange(N_TIME) * 2.0},
        attrs={"t_r": 2.0, "where": "sub-03"},
    )


@pytest.fixture
def region():
    return xr.DataArray(np.arange(90) < 50, dims="voxel")


@pytest.mark.parametrize("with_mask", [False, True])
def test_estimate_compcor__equals_plain_pca(run, region, with_mask):
    kept = np.ones(N_TIME, dtype=bool)
    if with_mask:
        kept[[0, 1, 40, 41, 99]] = False
        run = run.assign(sample_mask=("time", kept))

    actual = estimate_compcor(run, region, n_component=4, high_pass=0.01, prefix="w")

    signals = run["bold"].to_numpy()[:49].T
    flat = clean(
        signals, filter="cosine", high_pass=0.01, t_r=2.0, standardize="zscore_sample", sample_mask=np.flatnonzero(kept)
    )
    left, singular, _ = np.linalg.svd(flat, full_matrices=False)
    made = actual["confounds"].sel(confound=[f"w_comp_cor_{i:02d}" for i in range(4)]).to_numpy()
    np.testing.assert_allclose(np.abs(made[kept].T @ left[:, :4]), np.eye(4), atol=1e-7)
    assert np.isnan(made[~kept]).all()
    assert singular[2] > singular[3]


def test_estimate_compcor__spans_what_plain_pca_does_on_real_images(shared_data):
    folder = shared_data / "studyforrest_bold"
    image = nib.load(folder / "sub-02_task-objectcategories_run-1_bold.nii.gz")
    bold = np.asarray(image.dataobj[34:46, 36:46, 14:20]).reshape(-1, 156).astype(np.float32)
    run = xr.Dataset({"bold": (("voxel", "time"), bold)}, attrs={"t_r": 2.0})
    inside = xr.DataArray(np.ones(len(bold), dtype=bool), dims="voxel")

    ds = estimate_compcor(run, inside, n_component=None, variance=0.5, high_pass=1 / 128, prefix="a")

    flat = clean(bold.T.astype(float), filter="cosine", high_pass=1 / 128, t_r=2.0, standardize="zscore_sample")
    left, singular, _ = np.linalg.svd(flat, full_matrices=False)
    n_component = int(np.searchsorted(np.cumsum(singular**2) / np.sum(singular**2), 0.5)) + 1
    assert ds.sizes["confound"] == n_component > 1
    assert np.rad2deg(subspace_angles(ds["confounds"].to_numpy(), left[:, :n_component])).max() < 1e-4


def test_components__tell_their_share_of_variance():
    x = np.random.default_rng(0).normal(size=(40, 12)) * np.arange(1, 13)
    values = np.linalg.svd(x, compute_uv=False) ** 2

    made, share = components(x.T @ x, np.arange(12), n_component=5)

    np.testing.assert_allclose(share, values[:5] / values.sum(), rtol=1e-10)
    np.testing.assert_allclose(made.T @ made, np.eye(5), atol=1e-12)
    assert (made[np.abs(made).argmax(axis=0), range(5)] > 0).all()


def test_estimate_compcor__is_lazy_and_has_the_same_bits_for_any_chunks(run, region, monkeypatch):
    monkeypatch.setattr("kconn.clean.compcor.plan_voxel_blocks", lambda _n_voxel, _n_time: 20)
    choices = {"n_component": 3, "high_pass": 0.01, "prefix": "c"}
    eager = estimate_compcor(run, region, **choices)

    with dask.config.set(scheduler=no_compute):
        lazy = estimate_compcor(run.chunk(voxel=7, time=40), region, **choices)

    assert lazy["confounds"].chunks is not None
    np.testing.assert_array_equal(lazy["confounds"].compute(scheduler="threads"), eager["confounds"])


def test_estimate_compcor__by_variance_has_the_same_bits_for_any_chunks(run, region, monkeypatch):
    monkeypatch.setattr("kconn.clean.compcor.plan_voxel_blocks", lambda _n_voxel, _n_time: 20)
    choices = {"n_component": None, "variance": 0.8, "high_pass": 0.01, "prefix": "c"}

    eager = estimate_compcor(run, region, **choices)
    lazy = estimate_compcor(run.chunk(voxel=7, time=40), region, **choices)

    assert eager["confounds"].attrs["made_here"] == [f"c_comp_cor_{i:02d}" for i in range(eager.sizes["confound"] - 1)]
    np.testing.assert_array_equal(lazy["confounds"], eager["confounds"])


def test_estimate_compcor__needs_no_cosines_of_the_table(run, region):
    ds = estimate_compcor(run, region, n_component=2, high_pass=None, prefix="w")

    out = denoise(ds, confounds=Strategy(compcor=("w",)), high_pass=None, low_pass=None)

    assert out["regressor"].to_numpy().tolist() == ["w_comp_cor_00", "w_comp_cor_01"]


def test_estimate_compcor__feeds_denoise(run, region):
    ds = estimate_compcor(run, region, n_component=3, high_pass=0.01, prefix="a")

    dirty = denoise(ds, confounds=None, high_pass=0.01, low_pass=None)["denoised"]
    cleaned = denoise(ds, confounds="a_comp_cor_0.", high_pass=0.01, low_pass=None)["denoised"]

    assert ds["confound"].to_numpy().tolist() == ["csf", "a_comp_cor_00", "a_comp_cor_01", "a_comp_cor_02"]
    assert cleaned[:49].var() < 0.1 * dirty[:49].var()
    assert cleaned[50:].var() > 0.9 * dirty[50:].var()


def test_estimate_compcor__makes_a_table_where_there_is_none(run, region):
    ds = estimate_compcor(run.drop_vars(["confounds", "confound"]), region, n_component=2, high_pass=None, prefix="w")

    assert ds["confounds"].dims == ("time", "confound")
    assert ds.sizes["confound"] == 2


@pytest.mark.parametrize(
    ("code", "spoil", "choices"),
    [
        ("E-MASK-EMPTY", lambda region: region & False, {}),
        ("E-MASK-EMPTY", lambda region: region & (np.arange(90) < 3), {}),
        ("E-SCHEMA", lambda region: region.astype(int), {}),
        ("E-SCHEMA", lambda region: region[:50], {}),
        ("E-ARGUMENT", lambda region: region, {"prefix": "x"}),
        ("E-ARGUMENT", lambda region: region, {"n_component": 0}),
        ("E-ARGUMENT", lambda region: region, {"n_component": None}),
        ("E-ARGUMENT", lambda region: region, {"n_component": None, "variance": 1.1}),
        ("E-ARGUMENT", lambda region: region, {"variance": 0.5}),
        ("E-BAND", lambda region: region, {"high_pass": 0.3}),
    ],
)
def test_estimate_compcor__refuses(run, region, code, spoil, choices):
    with pytest.raises(KconnError, match="sub-03") as caught:
        estimate_compcor(run, spoil(region), **{"n_component": 5, "high_pass": 0.01, "prefix": "w", **choices})

    assert caught.value.code == code


def test_estimate_compcor__refuses_to_add_twice_and_without_frames(run, region):
    choices = {"n_component": 2, "high_pass": 0.01, "prefix": "w"}
    with pytest.raises(KconnError, match="already"):
        estimate_compcor(estimate_compcor(run, region, **choices), region, **choices)
    with pytest.raises(KconnError, match="E-NO-FRAMES"):
        estimate_compcor(run.assign(sample_mask=("time", np.zeros(N_TIME, dtype=bool))), region, **choices)
    with pytest.raises(KconnError, match="t_r"):
        estimate_compcor(run.drop_attrs(), region, **choices)
