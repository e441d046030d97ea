"""censor and denoise: against nilearn on simulated and real runs, properties, laziness, invariance, every refusal."""

import itertools

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nilearn.signal import clean

from kconn.clean.censoring import censor
from kconn.clean.confounds import build_columns, select_terms
from kconn.clean.denoising import denoise
from kconn.clean.frames import framewise_displacement
from kconn.errors import CODES, InputError, KconnError, SchemaError
from kconn.testing import simulate_run

NAMES = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "white_matter", "csf", "global_signal"]
COUNTS = ["n_frames", "n_kept", "n_regressors", "df_left", "n_constant"]


def no_compute(*_args, **_kwargs):
    raise AssertionError("computed while building the graph")


@pytest.fixture
def run():
    rng = np.random.default_rng(5)
    n_voxel, n_time = 60, 220
    table = rng.normal(size=(n_time, 9)) * 0.1
    bold = rng.normal(size=(n_voxel, n_time)) * 8 + 20 * rng.normal(size=(n_voxel, 9)) @ table.T + 900
    return xr.Dataset(
        {"bold": (("voxel", "time"), bold), "confounds": (("time", "confound"), table)},
        coords={"confound": NAMES, "time": np.arange(n_time) * 2.0},
        attrs={"t_r": 2.0, "where": "sub-01/ses-1/run-1"},
    )


@pytest.fixture
def censored(run):
    kept = np.random.default_rng(6).random(run.sizes["time"]) < 0.85
    kept[:4] = False
    return run.assign(sample_mask=("time", kept))


def cleaned_by_nilearn(ds, confounds, **choices):
    table = ds["confounds"].to_numpy()
    terms = select_terms(ds["confound"].to_numpy().tolist(), confounds)
    columns = build_columns(table, ds["confound"].to_numpy().tolist(), terms) if terms else None
    if "sample_mask" in ds:
        choices["sample_mask"] = np.flatnonzero(ds["sample_mask"])
    signals = ds["bold"].to_numpy().T.astype(np.float64)
    choices = {"filter": "cosine", "standardize": None, "t_r": ds.attrs["t_r"], **choices}
    return clean(signals, confounds=columns, **choices).T


def kept_frames(ds):
    return (
        ds["denoised"].to_numpy()[:, ds["sample_mask"].to_numpy()] if "sample_mask" in ds else ds["denoised"].to_numpy()
    )


def assert_close_to_peer(actual, expected, *, rtol=1e-6):
    spread = expected.std(axis=1, keepdims=True)
    assert (np.abs(actual - expected) / spread).max() < rtol


# --- against nilearn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confounds", ["none", "6P", "24P", "36P", ["csf", "rot_."]])
@pytest.mark.parametrize("with_mask", [False, True])
def test_denoise__equals_nilearn(run, censored, confounds, with_mask):
    ds = censored if with_mask else run

    actual = denoise(ds, confounds=confounds, high_pass=0.008, low_pass=None)

    assert_close_to_peer(kept_frames(actual), cleaned_by_nilearn(ds, confounds, high_pass=0.008), rtol=1e-11)


@pytest.mark.parametrize("with_mask", [False, True])
def test_denoise__without_filter_equals_nilearn(run, censored, with_mask):
    ds = censored if with_mask else run

    actual = denoise(ds, confounds="24P", high_pass=None, low_pass=None)

    assert_close_to_peer(kept_frames(actual), cleaned_by_nilearn(ds, "24P", filter=False), rtol=1e-11)


@pytest.mark.parametrize(
    ("standardize", "peer"), [(True, "zscore_sample"), ("zscore_sample", "zscore_sample"), ("psc", "psc")]
)
def test_denoise__standardized_equals_nilearn(censored, standardize, peer):
    actual = denoise(censored, confounds="24P", high_pass=0.008, low_pass=None, standardize=standardize)

    expected = cleaned_by_nilearn(censored, "24P", high_pass=0.008, standardize=peer)

    assert_close_to_peer(kept_frames(actual), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_denoise__equals_nilearn_on_a_simulated_brain(seed):
    ds = simulate_run(n_time=160, motion_level=3.0, fd_threshold=0.4, seed=seed)

    actual = denoise(ds, confounds="36P", high_pass=0.01, low_pass=None)

    assert actual["denoised"].dtype == np.float32
    assert_close_to_peer(kept_frames(actual), cleaned_by_nilearn(ds, "36P", high_pass=0.01))


def forrest(shared_data, voxels):
    image = nib.load(shared_data / "studyforrest_bold" / "sub-02_task-objectcategories_run-1_bold.nii.gz")
    volumes = np.asarray(image.dataobj)
    bold = volumes.reshape(-1, volumes.shape[3], order="F")
    bold = bold[bold.mean(axis=1) > 200][voxels]
    rng = np.random.default_rng(8)
    table = np.column_stack([rng.normal(size=(bold.shape[1], 8)) * 0.1, bold.mean(axis=0)])
    return xr.Dataset(
        {"bold": (("voxel", "time"), bold), "confounds": (("time", "confound"), table)},
        coords={"confound": NAMES},
        attrs={"t_r": 2.0},
    )


@pytest.mark.parametrize("with_mask", [False, True])
def test_denoise__equals_nilearn_on_a_real_run(shared_data, with_mask):
    ds = forrest(shared_data, slice(None, None, 97))
    if with_mask:
        ds = censor(ds, fd_threshold=25.0, n_dummy=3)
        assert 100 < ds["sample_mask"].sum() < 150

    actual = denoise(ds, confounds="36P", high_pass=0.01, low_pass=None)

    expected = cleaned_by_nilearn(ds, "36P", high_pass=0.01)
    lives = np.isfinite(actual["denoised"]).any("time").to_numpy()
    assert lives.sum() == len(expected) - actual["n_constant"]
    assert_close_to_peer(kept_frames(actual)[lives], expected[lives])


@pytest.mark.slow
def test_denoise__equals_nilearn_on_every_voxel_of_a_real_run(shared_data):
    ds = forrest(shared_data, slice(None))

    actual = denoise(ds.chunk(voxel=5000), confounds="36P", high_pass=0.01, low_pass=None).compute()

    expected = cleaned_by_nilearn(ds, "36P", high_pass=0.01)
    lives = np.isfinite(actual["denoised"]).any("time").to_numpy()
    assert_close_to_peer(kept_frames(actual)[lives], expected[lives])


def test_denoise__uses_cosines_even_where_a_confound_drifts_alike(run):
    # nilearn 0.14.1 drops its own cosines when one confound resembles one of them (r > 0.9).
    slow = np.cos(np.pi * (np.arange(220) + 0.5) / 220)
    run["confounds"][:, 0] = slow + 0.1 * run["confounds"][:, 0]

    actual = denoise(run, confounds="6P", high_pass=0.008, low_pass=None)

    assert actual["n_regressors"] == 1 + 1 + 6 + 7


# --- Butterworth, against nilearn ------------------------------------------------------------------------------------

BUTTERWORTH = {"filter": "butterworth", "high_pass": 0.008, "low_pass": 0.09}


def drop_without_mirror(ds):
    """Drop frames, but never one whose mirror image in the run is dropped as well.

    nilearn 0.14.1 looks for dropped frames with ``~sample_mask``, where the mask holds positions by then: it bridges
    the mirror images of the kept frames, and a frame that is dropped on both sides enters the filter as it is.
    """
    n_time = ds.sizes["time"]
    kept = np.ones(n_time, dtype=bool)
    kept[:3] = False
    kept[np.random.default_rng(2).choice(np.arange(5, n_time // 2), 25, replace=False)] = False
    return ds.assign(sample_mask=("time", kept))


@pytest.mark.parametrize("confounds", ["none", "6P", "36P"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_denoise__butterworth_equals_nilearn(run, confounds, with_mask):
    ds = drop_without_mirror(run) if with_mask else run

    actual = denoise(ds, confounds=confounds, **BUTTERWORTH)

    assert_close_to_peer(kept_frames(actual), cleaned_by_nilearn(ds, confounds, **BUTTERWORTH), rtol=1e-10)


@pytest.mark.parametrize("edges", [{"high_pass": 0.01, "low_pass": None}, {"high_pass": None, "low_pass": 0.1}])
def test_denoise__butterworth_with_one_edge_equals_nilearn(run, edges):
    choices = {"filter": "butterworth", **edges}

    actual = denoise(run, confounds="24P", **choices)

    assert_close_to_peer(kept_frames(actual), cleaned_by_nilearn(run, "24P", **choices), rtol=1e-10)


@pytest.mark.parametrize("standardize", ["zscore_sample", "psc"])
def test_denoise__butterworth_standardized_equals_nilearn(run, standardize):
    ds = drop_without_mirror(run)

    actual = denoise(ds, confounds="6P", standardize=standardize, **BUTTERWORTH)

    expected = cleaned_by_nilearn(ds, "6P", **BUTTERWORTH, standardize=standardize)
    assert_close_to_peer(kept_frames(actual), expected, rtol=1e-9)


@pytest.mark.parametrize("with_mask", [False, True])
def test_denoise__butterworth_equals_nilearn_on_a_real_run(shared_data, with_mask):
    ds = forrest(shared_data, slice(None, None, 197))
    ds = drop_without_mirror(ds) if with_mask else ds

    actual = denoise(ds, confounds="24P", **BUTTERWORTH)

    assert actual["n_constant"] == 0
    assert_close_to_peer(kept_frames(actual), cleaned_by_nilearn(ds, "24P", **BUTTERWORTH))


def test_denoise__butterworth_bridges_every_dropped_frame(run):
    # Mirror images included: what a dropped frame holds must not matter.
    kept = np.random.default_rng(0).random(220) > 0.25
    ds = run.assign(sample_mask=("time", kept))
    spoilt = ds.copy(deep=True)
    spoilt["bold"][:, ~kept] = 1e6

    first, second = (denoise(each, confounds="6P", **BUTTERWORTH) for each in (ds, spoilt))

    np.testing.assert_array_equal(first["denoised"], second["denoised"])


@pytest.mark.parametrize("bridge", ["cubic", "linear", "lomb-scargle"])
def test_denoise__bridges_stay_inside_the_filter(run, bridge):
    kept = np.random.default_rng(0).random(220) > 0.25
    kept[:3] = kept[-4:] = False
    ds = run.assign(sample_mask=("time", kept))

    actual = denoise(ds, confounds="6P", bridge=bridge, **BUTTERWORTH)["denoised"]

    # Dropped frames stay dropped, and no border spreads.
    np.testing.assert_array_equal(np.isnan(actual).to_numpy(), np.broadcast_to(~kept, actual.shape))
    assert actual.attrs["bridge"] == bridge


def test_denoise__butterworth_counts_its_share_of_the_frequencies(run):
    actual = denoise(run, confounds="6P", **BUTTERWORTH)

    assert actual["df_left"] == int(220 * (0.09 - 0.008) / 0.25) - 6
    assert actual["df_left"] + actual["n_regressors"] == 220
    assert actual["denoised"].attrs["filter"] == "butterworth"


def test_denoise__butterworth_leaves_nothing_along_filtered_confounds(run):
    actual = denoise(run, confounds="6P", **BUTTERWORTH)["denoised"].to_numpy()
    filtered = clean(
        run["confounds"].to_numpy()[:, :6], t_r=2.0, high_pass=0.008, low_pass=0.09, standardize="zscore_sample"
    )

    cosines = (actual / np.linalg.norm(actual, axis=1, keepdims=True)) @ (filtered / np.linalg.norm(filtered, axis=0))

    assert np.abs(cosines).max() < 1e-10


def test_denoise__butterworth_has_the_same_bits_for_any_chunks(run, monkeypatch):
    monkeypatch.setattr("kconn.clean.denoising.plan_voxel_blocks", lambda _n_voxel, _n_time: 13)
    ds = drop_without_mirror(run)
    eager = denoise(ds, confounds="12P", **BUTTERWORTH)

    with dask.config.set(scheduler=no_compute):
        lazy = denoise(ds.chunk(voxel=7, time=40), confounds="12P", **BUTTERWORTH)

    np.testing.assert_array_equal(lazy["denoised"].compute(scheduler="threads"), eager["denoised"])


def test_denoise__butterworth_without_edges_is_no_filter(run):
    plain = denoise(run, confounds="6P", high_pass=None, low_pass=None)

    actual = denoise(run, confounds="6P", high_pass=None, low_pass=None, filter="butterworth")

    xr.testing.assert_identical(actual, plain)


# --- the band -------------------------------------------------------------------------------------------------------


def gain(frequency, band, mask=None, kind="cosine"):
    """Residual power of a sine, in dB."""
    t = np.arange(300) * 2.0
    phase = np.linspace(0, np.pi, 7)[:, None]
    ds = xr.Dataset({"bold": (("voxel", "time"), 100 + np.sin(2 * np.pi * frequency * t + phase))}, attrs={"t_r": 2.0})
    if mask is not None:
        ds["sample_mask"] = ("time", mask)
    out = denoise(ds, confounds=None, high_pass=band[0], low_pass=band[1], filter=kind, min_dof=1)
    kept = ds["bold"][:, mask] if mask is not None else ds["bold"]
    power = (out["denoised"].fillna(0) ** 2).sum("time")
    return 10 * np.log10(power / ((kept - kept.mean("time")) ** 2).sum("time")).to_numpy()


#: Sine in Hz -> dB that no phase exceeds, with a band of 0.01 to 0.1 Hz and 300 frames of 2 s: the table in the docs.
LEAKAGE = {
    "cosine": {0.002: -36.0, 0.005: -44.0, 0.12: -20.0, 0.15: -23.0, 0.2: -26.0},
    "fft": {0.002: -36.0, 0.005: -44.0, 0.12: -20.0, 0.15: -23.0, 0.2: -26.0},
    "butterworth": {0.002: -44.0, 0.005: -29.0, 0.12: -13.5, 0.15: -13.5, 0.2: -12.5},
}


@pytest.mark.parametrize("kind", LEAKAGE)
@pytest.mark.parametrize("frequency", [0.002, 0.005, 0.12, 0.15, 0.2])
def test_denoise__lets_little_through_from_outside_the_band(kind, frequency):
    assert gain(frequency, (0.01, 0.1), kind=kind).max() < LEAKAGE[kind][frequency]


def test_denoise__lets_nothing_through_at_its_own_frequencies():
    t = np.arange(300)
    for k in (5, 130, 299):
        sine = 100 + np.cos(np.pi * k * (t + 0.5) / 300)
        ds = xr.Dataset({"bold": (("voxel", "time"), sine[None] + 1e-3 * np.sin(t * 0.2))}, attrs={"t_r": 2.0})
        rest = denoise(ds, confounds=None, high_pass=0.01, low_pass=0.1)["denoised"]
        assert 20 * np.log10(rest.std() / sine.std()) < -55


@pytest.mark.parametrize("kind", LEAKAGE)
@pytest.mark.parametrize("frequency", [0.02, 0.05, 0.08])
def test_denoise__keeps_what_lies_inside_the_band(kind, frequency):
    assert gain(frequency, (0.01, 0.1), kind=kind).min() > -0.4


def test_denoise__filters_as_well_with_dropped_frames():
    mask = np.random.default_rng(0).random(300) > 0.05

    assert gain(0.15, (0.01, 0.1), mask).max() < -20
    assert gain(0.05, (0.01, 0.1), mask).max() < 0.01


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_pass", [None, 0.1])
def test_denoise__leaves_nothing_along_any_regressor(censored, low_pass):
    actual = kept_frames(denoise(censored, confounds="12P", high_pass=0.008, low_pass=low_pass))
    kept = censored["sample_mask"].to_numpy()
    columns = build_columns(censored["confounds"].to_numpy(), NAMES, select_terms(NAMES, "12P"))[kept]
    design = np.column_stack([np.ones(kept.sum()), np.arange(kept.sum()), columns])

    cosines = (actual / np.linalg.norm(actual, axis=1, keepdims=True)) @ (design / np.linalg.norm(design, axis=0))

    assert np.abs(cosines).max() < 1e-10


def test_denoise__twice_is_once(censored):
    choices = {"confounds": "24P", "high_pass": 0.008, "low_pass": None}
    once = denoise(censored, **choices)

    twice = denoise(censored.assign(bold=once["denoised"].fillna(0)), **choices)

    np.testing.assert_allclose(twice["denoised"], once["denoised"], atol=1e-10)


def test_denoise__does_not_know_an_order_of_steps(censored):
    entries = ["csf", "rot_[xyz]", "white_matter_derivative1"]
    first = denoise(censored, confounds=entries, high_pass=0.008, low_pass=0.15)

    for order in itertools.permutations(entries):
        other = denoise(censored.isel(confound=slice(None, None, -1)), confounds=order, high_pass=0.008, low_pass=0.15)
        np.testing.assert_allclose(other["denoised"], first["denoised"], atol=1e-9)


def test_denoise__never_lets_dropped_frames_touch_kept_ones(censored):
    dropped = ~censored["sample_mask"].to_numpy()
    spoilt = censored.copy(deep=True)
    spoilt["bold"][:, dropped] = np.nan
    spoilt["confounds"][dropped] = np.inf
    # Differences of the frame after a dropped one do use it: leave derivatives out here.
    choices = {"confounds": "9P", "high_pass": 0.008, "low_pass": 0.15}

    xr.testing.assert_identical(denoise(spoilt, **choices)["denoised"], denoise(censored, **choices)["denoised"])


def test_denoise__gives_dead_voxels_as_nan_and_counts_them(run):
    bold = run["bold"].copy(deep=True)
    bold[7] = 0.0
    bold[8] = 5.0 + 3 * run["confounds"][:, 2]

    actual = denoise(run.assign(bold=bold), confounds="6P", high_pass=0.008, low_pass=None)

    np.testing.assert_array_equal(np.flatnonzero(np.isnan(actual["denoised"]).all("time")), [7, 8])
    assert actual["n_constant"] == 2


def test_denoise__reports_what_was_removed(censored):
    actual = denoise(censored, confounds="6P", high_pass=0.008, low_pass=None)

    n_kept = int(censored["sample_mask"].sum())
    counts = {name: actual[name].item() for name in COUNTS}
    assert counts == {"n_frames": 220, "n_kept": n_kept, "n_regressors": 15, "df_left": n_kept - 15, "n_constant": 0}
    made = actual["denoised"].attrs
    assert made["confounds"] == NAMES[:6]
    assert made["high_pass"] == 0.008
    assert "low_pass" not in made


def test_denoise__leaves_its_input_alone(censored):
    before = censored.copy(deep=True)

    denoise(censor(censored, fd_threshold=60.0), confounds="6P", high_pass=0.008, low_pass=None)

    xr.testing.assert_identical(censored, before)


@pytest.mark.parametrize(("given", "expected"), [("f8", "f8"), ("f4", "f4"), ("i2", "f4")])
def test_denoise__keeps_the_precision_of_tables_and_images(run, given, expected):
    actual = denoise(run.assign(bold=run["bold"].astype(given)), confounds="6P", high_pass=None, low_pass=None)

    assert actual["denoised"].dtype == np.dtype(expected)


def test_denoise__works_on_tables(run):
    table = run.rename(voxel="column")

    actual = denoise(table, confounds="6P", high_pass=0.008, low_pass=None)

    assert actual["denoised"].dims == ("column", "time")


# --- laziness and invariance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [{"voxel": 7, "time": 50, "confound": 2}, {"voxel": 60}, {"time": 1}])
@pytest.mark.parametrize("low_pass", [None, 0.1])
def test_denoise__has_the_same_bits_for_any_chunks(run, chunks, low_pass, monkeypatch):
    # A grid of several blocks, as a brain has; eager and lazy share it.
    monkeypatch.setattr("kconn.clean.denoising.plan_voxel_blocks", lambda _n_voxel, _n_time: 13)
    choices = {"confounds": "9P", "high_pass": 0.008, "low_pass": low_pass}
    eager = denoise(censor(run, fd_threshold=60.0, n_dummy=2), **choices)

    with dask.config.set(scheduler=no_compute):
        lazy = denoise(censor(run.chunk(chunks), fd_threshold=60.0, n_dummy=2), **choices)

    assert lazy["denoised"].chunks is not None
    assert lazy["denoised"].data.numblocks == (5, 1)
    for scheduler in ("sync", "threads"):
        computed = lazy.compute(scheduler=scheduler)
        xr.testing.assert_identical(computed.drop_attrs(), eager.drop_attrs())
        assert computed["denoised"].attrs == eager["denoised"].attrs


def test_denoise__of_eager_signal_with_lazy_confounds_is_lazy(run):
    mixed = run.assign(confounds=run["confounds"].chunk())

    with dask.config.set(scheduler=no_compute):
        lazy = denoise(mixed, confounds="9P", high_pass=0.008, low_pass=None)

    np.testing.assert_array_equal(
        lazy["denoised"].compute(), denoise(run, confounds="9P", high_pass=0.008, low_pass=None)["denoised"]
    )


def test_denoise__needs_few_tasks(run):
    lazy = denoise(run.chunk(voxel=30), confounds="9P", high_pass=0.008, low_pass=None)

    assert len(lazy["denoised"].__dask_graph__()) < 20


# --- censoring ------------------------------------------------------------------------------------------------------


def test_censor__drops_what_moved_and_the_first_frames():
    moved = xr.DataArray([np.nan, 0.1, 0.9, 0.2, 0.5, 0.51], dims="time")
    ds = xr.Dataset({"framewise_displacement": moved})

    actual = censor(ds, fd_threshold=0.5, n_dummy=1)

    np.testing.assert_array_equal(actual["sample_mask"], [False, True, False, True, True, False])
    np.testing.assert_array_equal(actual["framewise_displacement"], [0.0, 0.1, 0.9, 0.2, 0.5, 0.51])


def test_censor__counts_the_missing_first_displacement_as_none():
    ds = xr.Dataset({"framewise_displacement": ("time", [np.nan, 0.1])})

    assert censor(ds, fd_threshold=0.5)["sample_mask"].all()


def test_censor__never_puts_a_frame_back(run):
    given = np.ones(220, dtype=bool)
    given[100] = False

    actual = censor(run.assign(sample_mask=("time", given)), fd_threshold=None)

    np.testing.assert_array_equal(actual["sample_mask"], given)
    assert "framewise_displacement" not in actual


def test_censor__is_lazy_and_equals_eager(run):
    with dask.config.set(scheduler=no_compute):
        lazy = censor(run.chunk(time=9), fd_threshold=60.0, n_dummy=2)

    xr.testing.assert_identical(lazy.compute(), censor(run, fd_threshold=60.0, n_dummy=2))


def test_censor__drops_short_stretches():
    moved = [0.0, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1]
    ds = xr.Dataset({"framewise_displacement": ("time", moved)})

    actual = censor(ds, fd_threshold=0.5, min_segment=3)

    np.testing.assert_array_equal(np.flatnonzero(actual["sample_mask"]), [5, 6, 7])


def test_censor__by_jenkinson_leaves_power_alone(run):
    moved = framewise_displacement(run, kind="jenkinson")

    actual = censor(run, fd_threshold=moved.median().item(), kind="jenkinson")

    np.testing.assert_array_equal(actual["sample_mask"], moved <= moved.median())
    assert actual["sample_mask"].sum() == 110
    assert "framewise_displacement" not in actual


def test_denoise__fft_is_cosine(run):
    choices = {"confounds": "6P", "high_pass": 0.008, "low_pass": 0.09}

    np.testing.assert_array_equal(
        denoise(run, filter="fft", **choices)["denoised"], denoise(run, **choices)["denoised"]
    )


def test_denoise__brings_the_cosines_of_components_along(run):
    table = np.column_stack([run["confounds"], np.cos(np.pi * (np.arange(220) + 0.5) / 220)])
    ds = run[["bold"]].assign(confounds=(("time", "confound"), table))
    ds = ds.assign_coords(confound=["a_comp_cor_00", *NAMES[1:], "cosine00"])

    actual = denoise(ds, confounds="a_comp_cor_0.", high_pass=None, low_pass=None)

    assert actual["denoised"].attrs["confounds"] == ["a_comp_cor_00", "cosine00"]
    assert actual["n_regressors"] == 4


# --- refusals -------------------------------------------------------------------------------------------------------


def with_nan(run, frame, value=np.nan):
    broken = run.copy(deep=True)
    broken["confounds"][frame, 1] = value
    return broken


REFUSALS = {
    "negative band": ("E-BAND", lambda ds: ds, {"high_pass": -0.01}),
    "empty band": ("E-BAND", lambda ds: ds, {"high_pass": 0.1, "low_pass": 0.1}),
    "above Nyquist": ("E-BAND", lambda ds: ds, {"low_pass": 0.26}),
    "repetition time in ms": ("E-BAND", lambda ds: ds.assign_attrs(t_r=2000.0), {}),
    "no repetition time": ("E-SCHEMA", lambda ds: ds.drop_attrs(), {}),
    "no bold": ("E-SCHEMA", lambda ds: ds.drop_vars("bold"), {}),
    "no confounds": ("E-SCHEMA", lambda ds: ds.drop_vars("confounds"), {}),
    "unknown column": ("E-CONFOUND-COLUMN", lambda ds: ds, {"confounds": ["trans_x", "rto_x"]}),
    "NaN in a later frame": ("E-CONFOUND-NAN", lambda ds: with_nan(ds, 5), {}),
    "inf in the first frame": ("E-CONFOUND-NAN", lambda ds: with_nan(ds, 0, np.inf), {}),
    "no frame kept": ("E-NO-FRAMES", lambda ds: ds.assign(sample_mask=("time", np.zeros(220, dtype=bool))), {}),
    "too few frames": ("E-DF", lambda ds: ds.isel(time=slice(20)), {}),
    "min_dof": ("E-DF", lambda ds: ds, {"min_dof": 300}),
    "min_dof below 1": ("E-ARGUMENT", lambda ds: ds, {"min_dof": 0}),
    "unknown filter": ("E-ARGUMENT", lambda ds: ds, {"filter": "chebyshev"}),
    "too short for Butterworth": ("E-DF", lambda ds: ds.isel(time=slice(25)), {"filter": "butterworth"}),
    "unknown bridge": ("E-ARGUMENT", lambda ds: ds, {"bridge": "nearest"}),
    "unknown scale": ("E-ARGUMENT", lambda ds: ds, {"standardize": "zscore"}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_denoise__refuses(run, case):
    code, spoil, choices = REFUSALS[case]

    with pytest.raises(KconnError) as caught:
        denoise(spoil(run), **{"confounds": "6P", "high_pass": 0.01, "low_pass": 0.1, **choices})

    assert caught.value.code == code in CODES
    assert caught.value.rule or caught.value.fix or code == "E-NO-FRAMES"


def test_denoise__says_where_and_which(run):
    with pytest.raises(InputError, match=r"\[sub-01/ses-1/run-1\] .*'trans_y' .* frame 5"):
        denoise(with_nan(run, 5), confounds="6P", high_pass=0.01, low_pass=None)
    with pytest.raises(SchemaError, match=r"\[sub-01/ses-1/run-1\] low_pass = 0.26"):
        denoise(run, confounds="6P", high_pass=0.01, low_pass=0.26)


def test_denoise__raises_when_computed_what_only_lazy_values_tell(run):
    lazy = denoise(with_nan(run, 5).chunk(), confounds="6P", high_pass=0.01, low_pass=None)

    with pytest.raises(InputError, match="E-CONFOUND-NAN"):
        lazy.compute()


@pytest.mark.parametrize(
    ("code", "choices"),
    [
        ("E-ARGUMENT", {"fd_threshold": 0.0}),
        ("E-ARGUMENT", {"fd_threshold": float("nan")}),
        ("E-ARGUMENT", {"fd_threshold": None, "n_dummy": -1}),
        ("E-ARGUMENT", {"fd_threshold": None, "min_segment": 0}),
        ("E-ARGUMENT", {"fd_threshold": 0.5, "kind": "satterthwaite"}),
        ("E-NO-FRAMES", {"fd_threshold": None, "min_segment": 221}),
        ("E-NO-FRAMES", {"fd_threshold": None, "n_dummy": 220}),
        ("E-NO-FRAMES", {"fd_threshold": 1e-9, "n_dummy": 1}),
    ],
)
def test_censor__refuses(run, code, choices):
    with pytest.raises(KconnError) as caught:
        censor(run, **choices)

    assert caught.value.code == code


def test_censor__refuses_displacement_that_is_not_a_number():
    ds = xr.Dataset({"framewise_displacement": ("time", [0.0, np.nan, 0.1])})

    with pytest.raises(InputError, match="frame 1") as caught:
        censor(ds, fd_threshold=0.5)

    assert caught.value.code == "E-CONFOUND-NAN"
