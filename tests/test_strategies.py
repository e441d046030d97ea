"""Strategies: the columns that nilearn and XCP-D choose, and what denoising with them leaves."""

import json
import shutil
from pathlib import Path

import dask
import nilearn.interfaces.fmriprep
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.signal import clean

from kconn.clean.confounds import Header, Strategy, build_columns, find_strategy, select
from kconn.clean.denoising import denoise
from kconn.errors import InputError, SchemaError
from kconn.io.regressors import read_run_regressors

#: Tables as two versions of fMRIPrep wrote them, with the sidecars that nilearn ships for its own tests.
TABLES = Path(nilearn.interfaces.fmriprep.__file__).parent / "data"
NEW, OLD = "test-v21_desc-confounds_timeseries", "test_desc-confounds_regressors"

SAME = {
    "2P": {"strategy": ("wm_csf",), "wm_csf": "basic"},
    "6P": {"strategy": ("motion",), "motion": "basic"},
    "8P": {"strategy": ("motion", "wm_csf"), "motion": "basic", "wm_csf": "basic"},
    "9P": {"strategy": ("motion", "wm_csf", "global_signal"), "motion": "basic", "wm_csf": "basic"},
    "12P": {"strategy": ("motion",), "motion": "derivatives"},
    "24P": {"strategy": ("motion",), "motion": "full"},
    "27P": {"strategy": ("motion", "wm_csf", "global_signal"), "motion": "full", "wm_csf": "basic"},
    "36P": {
        "strategy": ("motion", "wm_csf", "global_signal"),
        "motion": "full",
        "wm_csf": "full",
        "global_signal": "full",
    },
    "gsr": {"strategy": ("global_signal",), "global_signal": "basic"},
    "acompcor": {
        "strategy": ("motion", "compcor", "high_pass"),
        "motion": "derivatives",
        "compcor": "anat_separated",
        "n_compcor": 5,
    },
    "acompcor_gsr": {
        "strategy": ("motion", "compcor", "high_pass", "global_signal"),
        "motion": "derivatives",
        "compcor": "anat_separated",
        "n_compcor": 5,
    },
}


def load(name, folder):
    """Put a table where nilearn looks for it; return the path of the image and what our reader makes of the table."""
    stem = folder / "sub-01_task-rest"
    kind = name.rsplit("_", 1)[1]
    for ending in ("tsv", "json"):
        shutil.copy(TABLES / f"{name}.{ending}", f"{stem}_desc-confounds_{kind}.{ending}")
    image = folder / "sub-01_task-rest_space-MNI_desc-preproc_bold.nii.gz"
    image.touch()
    files = {
        "confounds": Path(f"{stem}_desc-confounds_{kind}.tsv"),
        "confounds_sidecar": Path(f"{stem}_desc-confounds_{kind}.json"),
    }
    return str(image), read_run_regressors(files, {}, n_time=30, t_r=2.0)


def header_of(found):
    return Header(names=found.names, compcor=found.compcor, noise_components=found.noise_components)


def columns_of(found, confounds):
    chosen = select(header_of(found), confounds, has_high_pass=False)
    made = build_columns(found.values, found.names, chosen.terms)
    return pd.DataFrame(made, columns=[term.name for term in chosen.terms])


def check_equal(ours, theirs, *, first=1):
    assert sorted(ours) == sorted(theirs)
    # The first frame has no difference: nilearn puts the second one's there, we put 0.
    actual, expected = ours[theirs.columns].to_numpy(), theirs.to_numpy()
    np.testing.assert_allclose(actual[first:], expected[first:], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [NEW, OLD])
@pytest.mark.parametrize("preset", SAME)
def test_presets__are_the_columns_of_nilearn(tmp_path, name, preset):
    if name == OLD and preset.startswith("acompcor"):
        pytest.skip("this table has components of both tissues together alone")
    image, found = load(name, tmp_path)

    theirs, _ = load_confounds(image, demean=False, **SAME[preset])

    # The old table was cut at its start: its first difference is not that of its first two frames.
    check_equal(columns_of(found, preset), theirs, first=2 if name == OLD else 1)


@pytest.mark.parametrize("n_component", [3, 6, None])
def test_compcor__of_both_tissues_are_the_columns_of_nilearn(tmp_path, n_component):
    image, found = load(OLD, tmp_path)
    n_theirs = "all" if n_component is None else n_component

    theirs, _ = load_confounds(
        image, strategy=("compcor", "high_pass"), compcor="anat_combined", n_compcor=n_theirs, demean=False
    )

    check_equal(columns_of(found, Strategy(compcor=("a",), n_component=n_component)), theirs)


def test_aroma__of_a_table_is_that_of_nilearn(tmp_path):
    image, found = load(OLD, tmp_path)

    theirs, _ = load_confounds(image, strategy=("wm_csf", "ica_aroma"), ica_aroma="basic", demean=False)

    check_equal(columns_of(found, "aroma_aggressive"), theirs)


def test_compcor__explains_the_variance_that_is_asked_for(tmp_path):
    _, found = load(NEW, tmp_path)
    shares = json.loads((TABLES / f"{NEW}.json").read_text())

    for region, variance in (("c", 0.4), ("c", 0.42), ("w", 0.5), ("a", 0.2)):
        chosen = [
            name
            for name in columns_of(found, Strategy(compcor=(region,), variance=variance))
            if not name.startswith("cosine")
        ]
        explained = [shares[name]["CumulativeVarianceExplained"] for name in chosen]
        assert explained[-1] >= variance
        assert all(share < variance for share in explained[:-1])


def test_compcor__of_a_region_is_told_by_the_sidecar_where_names_do_not():
    names = ("a_comp_cor_00", "a_comp_cor_01", "a_comp_cor_02", "cosine00")
    shares = {"a_comp_cor_00": ("a", 0.2), "a_comp_cor_01": ("w", 0.3), "a_comp_cor_02": ("c", 0.4)}

    for region, name in (("a", "a_comp_cor_00"), ("w", "a_comp_cor_01"), ("c", "a_comp_cor_02")):
        chosen = select(Header(names=names, compcor=shares), Strategy(compcor=(region,)), has_high_pass=True)
        assert [term.name for term in chosen.terms] == [name, "cosine00"]


def test_compcor__of_a_real_old_table_needs_our_high_pass(shared_data):
    path = shared_data / "uclacnp_sub50005" / "sub-50005_task-rest_bold_confounds.tsv"
    found = read_run_regressors({"confounds": path}, {}, n_time=152, t_r=2.0)
    wanted = Strategy(columns=("24P",), compcor=("a",), n_component=5)

    chosen = select(header_of(found), wanted, has_high_pass=True)

    assert [term.name for term in chosen.terms[24:]] == [f"aCompCor0{i}" for i in range(5)]
    with pytest.raises(InputError, match="set high_pass"):
        select(header_of(found), wanted, has_high_pass=False)
    with pytest.raises(InputError, match="'w_comp_cor_00'; the nearest"):
        select(header_of(found), "acompcor", has_high_pass=True)


NAMES = ("csf", "white_matter", "trans_x", "trans_x_derivative1", "rot_x")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"columns": ("csf",), "derivatives": True}, ["csf", "csf_derivative1"]),
        ({"columns": ("csf",), "squares": True}, ["csf", "csf_power2"]),
        (
            {"columns": ("csf", "rot_x"), "derivatives": ("csf",), "squares": ("c.*",)},
            ["csf", "rot_x", "csf_derivative1", "csf_power2", "csf_derivative1_power2"],
        ),
        (
            {"columns": ("trans_x.*",), "derivatives": True, "squares": True},
            ["trans_x", "trans_x_derivative1", "trans_x_power2", "trans_x_derivative1_power2"],
        ),
    ],
)
def test_select__derives_and_squares(strategy, expected):
    chosen = select(Header(names=NAMES), Strategy(**strategy), has_high_pass=True)

    assert [term.name for term in chosen.terms] == expected


def test_select__of_36_parameters_can_be_written_by_hand(tmp_path):
    _, found = load(NEW, tmp_path)
    written = Strategy(columns=("9P",), derivatives=True, squares=True)

    ours = columns_of(found, written)

    pd.testing.assert_frame_equal(ours[columns_of(found, "36P").columns], columns_of(found, "36P"))


def test_select__takes_spike_columns_where_there_are_any(tmp_path):
    _, found = load(NEW, tmp_path)

    chosen = columns_of(found, Strategy(spikes="columns"))

    assert len(chosen.columns) == 26
    assert ((chosen == 0) | (chosen == 1)).all(axis=None)
    assert select(Header(names=NAMES), Strategy(spikes="columns"), has_high_pass=True).terms == ()


ICA = (*NAMES, *(f"component_0{i}" for i in range(1, 5)))


def test_select__splits_the_components_of_a_list():
    chosen = select(Header(names=ICA, noise_components=(2, 3)), "aroma", has_high_pass=True)
    assert [term.name for term in chosen.signal] == ["component_01", "component_04"]
    assert [term.name for term in chosen.noise] == ["component_02", "component_03"]

    chosen = select(Header(names=ICA, noise_components=(2, 3)), "aroma_aggressive", has_high_pass=True)
    assert chosen.signal == chosen.noise == ()
    assert [term.name for term in chosen.terms] == ["white_matter", "csf", "component_02", "component_03"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (Header(names=NAMES), "no mixing matrix"),
        (Header(names=ICA), "no list of noise components"),
        (Header(names=ICA, noise_components=(1, 9)), r"names \[9\]"),
        (Header(names=(*NAMES, "aroma_motion_01")), 'or set components = "aggressive"'),
    ],
)
def test_select__refuses_components_without_their_files(header, said):
    with pytest.raises(InputError, match=said) as caught:
        select(header, "aroma", has_high_pass=True, where="sub-1")

    assert caught.value.code == "E-COMPONENTS"


@pytest.mark.parametrize(
    "choices",
    [
        {"components": "gentle"},
        {"spikes": "all"},
        {"compcor": ("g",)},
        {"n_component": 0},
        {"variance": 1.5},
        {"variance": 0.0},
        {"n_component": 3, "variance": 0.5},
    ],
)
def test_strategy__refuses_what_cannot_be(choices):
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        Strategy(**choices)


@pytest.mark.parametrize(("variance", "said"), [(0.9, "explain 0.5[0-9]* of its variance"), (0.5, "is not known")])
def test_select__refuses_variance_that_is_not_there(tmp_path, variance, said):
    _, found = load(NEW, tmp_path)
    header = header_of(found) if variance == 0.9 else Header(names=found.names)

    with pytest.raises(InputError, match=said):
        select(header, Strategy(compcor=("w",), variance=variance), has_high_pass=True)


def test_header__survives_plain_data():
    header = Header(names=("a",), compcor={"a": ("w", 0.5)}, noise_components=())

    assert Header.of(["a"], json.loads(json.dumps(header.attrs))) == header
    assert Header(names=("a",)).attrs == {}


N_TIME, T_R = 150, 2.0


@pytest.fixture
def run():
    rng = np.random.default_rng(6)
    names = [*NAMES[:3], "rot_x", *(f"component_{i:02d}" for i in range(1, 9))]
    table = rng.normal(size=(N_TIME, len(names))).cumsum(axis=0)
    bold = 300 + (table @ rng.normal(size=(len(names), 40))).T + rng.normal(size=(40, N_TIME))
    mask = np.ones(N_TIME, dtype=bool)
    mask[[5, 6, 70]] = False
    return xr.Dataset(
        {
            "bold": (("voxel", "time"), bold),
            "confounds": (("time", "confound"), table, {"noise_components": [1, 2, 5]}),
            "sample_mask": ("time", mask),
        },
        coords={"confound": names, "time": np.arange(N_TIME) * T_R},
        attrs={"t_r": T_R, "where": "sub-03"},
    )


def residual_of(run, confounds, **choices):
    out = denoise(run, **{"high_pass": 0.01, "low_pass": None, "confounds": confounds, **choices})
    return out, out["denoised"].to_numpy()


@pytest.mark.parametrize("components", ["soft", "nonaggressive", "aggressive"])
@pytest.mark.parametrize("low_pass", [None, 0.1])
def test_denoise__leaves_nothing_of_noise_that_signal_does_not_share(run, components, low_pass):
    strategy = Strategy(columns=("csf", "trans_x"), derivatives=True, components=components)

    out, residual = residual_of(run, strategy, low_pass=low_pass)

    kept = run["sample_mask"].to_numpy()
    gone = build_columns(
        run["confounds"].to_numpy(),
        tuple(run["confound"].to_numpy()),
        select(Header.of(run["confound"].to_numpy(), run["confounds"].attrs), strategy, has_high_pass=True).terms,
    )[kept]
    gone = (gone - gone.mean(axis=0)) / gone.std(axis=0)
    length = np.linalg.norm(residual[:, kept], axis=1, keepdims=True) * np.sqrt(kept.sum())
    assert np.abs(residual[:, kept] @ gone / length).max() < 1e-10
    assert out["denoised"].attrs["components"] == components
    assert out["regressor"].to_numpy().tolist() == [
        "csf", "trans_x", "csf_derivative1", "trans_x_derivative1", "component_01", "component_02", "component_05",
    ]  # fmt: skip
    none = residual_of(run, Strategy(columns=("csf", "trans_x"), derivatives=True), low_pass=low_pass)[0]
    assert int(out["df_left"]) == int(none["df_left"]) - 3


@pytest.mark.parametrize("components", ["aggressive", "nonaggressive"])
def test_denoise__of_components_is_fsl_regfilt_after_the_filter(run, components):
    run = run.drop_vars("sample_mask")
    mixing = run["confounds"].to_numpy()[:, 4:]

    _, residual = residual_of(run, Strategy(components=components))

    choices = {"filter": "cosine", "high_pass": 0.01, "t_r": T_R, "standardize": None}
    x, mixing = clean(run["bold"].to_numpy().T, **choices), clean(mixing, **choices)
    noise = mixing[:, [0, 1, 4]]
    if components == "aggressive":
        expected = x - noise @ np.linalg.pinv(noise) @ x
    else:
        expected = x - noise @ (np.linalg.pinv(mixing) @ x)[[0, 1, 4]]
    np.testing.assert_allclose(residual.T, expected, atol=1e-9 * np.abs(x).max())


@pytest.mark.parametrize("components", ["soft", "nonaggressive"])
def test_denoise__of_components_is_lazy_with_the_same_bits(run, components):
    def no_compute(*_args, **_kwargs):
        raise AssertionError("computed while building the graph")

    strategy = Strategy(columns=("csf",), components=components)
    eager, expected = residual_of(run, strategy)

    with dask.config.set(scheduler=no_compute):
        lazy = denoise(run.chunk(voxel=7, time=40), confounds=strategy, high_pass=0.01, low_pass=None)

    actual = lazy.compute(scheduler="threads")
    np.testing.assert_array_equal(actual["denoised"], expected)
    np.testing.assert_array_equal(actual["regressor_kept"], eager["regressor_kept"])


def test_denoise__names_the_confounds_that_add_nothing(run):
    table = run["confounds"].copy()
    table[:, 1] = 2 * table[:, 0] - table[:, 2]
    out, _ = residual_of(run.assign(confounds=table), ["trans_x", "csf", "white_matter", "rot_x"])

    found = dict(zip(out["regressor"].to_numpy().tolist(), out["regressor_kept"].to_numpy().tolist(), strict=True))

    assert found == {"trans_x": True, "csf": True, "white_matter": False, "rot_x": True}


def test_denoise__cosines_of_the_table_cost_nothing_beside_our_high_pass(run):
    cosines = np.cos(np.pi * np.arange(1, 5)[:, None] * (np.arange(N_TIME) + 0.5) / N_TIME).T
    columns = np.hstack([run["confounds"].to_numpy()[:, :2], cosines])
    names = ["a_comp_cor_00", "a_comp_cor_01", *(f"cosine0{i}" for i in range(4))]
    run = run.drop_vars(["confounds", "confound"]).assign(confounds=(("time", "confound"), columns))
    run = run.assign_coords(confound=names)

    with_table, residual = residual_of(run, Strategy(compcor=("a",)), high_pass=4.5 / (2 * N_TIME * T_R))
    renamed = run.assign_coords(confound=["x", "y", *names[2:]])
    without, expected = residual_of(renamed, ["x", "y"], high_pass=4.5 / (2 * N_TIME * T_R))

    assert with_table["regressor_kept"].to_numpy().tolist() == [True, True, False, False, False, False]
    assert int(with_table["df_left"]) == int(without["df_left"])
    np.testing.assert_allclose(residual, expected, atol=1e-9)


def test_denoise__one_column_per_censored_frame_equals_nilearn(run):
    kept = run["sample_mask"].to_numpy()
    run["bold"][:, 70] += 1e4

    out, residual = residual_of(run, Strategy(columns=("csf", "rot_x"), spikes="censored"))

    confounds = np.hstack([run["confounds"].to_numpy()[:, [0, 3]], np.eye(N_TIME)[:, ~kept]])
    expected = clean(
        run["bold"].to_numpy().T, confounds=confounds, filter="cosine", high_pass=0.01, t_r=T_R, standardize=None
    )
    np.testing.assert_allclose(residual, expected.T, atol=1e-8 * np.abs(expected).max())
    assert np.abs(residual[:, ~kept]).max() < 1e-8
    assert out["sample_mask"].to_numpy().all()
    assert int(out["n_spikes"]) == 3
    assert out["regressor"].to_numpy().tolist() == ["csf", "rot_x"]


def test_denoise__one_column_per_censored_frame_takes_what_censoring_takes(run):
    run = run.assign(confounds=run["confounds"].where(run["sample_mask"]))
    choices = {"detrend": False, "high_pass": None}

    dropped, expected = residual_of(run, ["csf", "rot_x"], **choices)
    spiked, residual = residual_of(run, Strategy(columns=("csf", "rot_x"), spikes="censored"), **choices)

    kept = run["sample_mask"].to_numpy()
    np.testing.assert_allclose(residual[:, kept], expected[:, kept], atol=1e-8)
    assert int(spiked["df_left"]) == int(dropped["df_left"])
    lazy = denoise(
        run.chunk(time=50), confounds=Strategy(columns=("csf", "rot_x"), spikes="censored"), low_pass=None, **choices
    )
    np.testing.assert_array_equal(lazy["denoised"], residual)


def test_denoise__of_a_real_table_leaves_nothing_of_any_regressor(shared_data):
    folder = shared_data / "uclacnp_sub50005"
    found = read_run_regressors(
        {"confounds": folder / "sub-50005_task-rest_bold_confounds.tsv"}, {}, n_time=152, t_r=2.0
    )
    series = np.loadtxt(folder / "sub-50005_wmparc_func_niftitonifti_masked_meants.csv", delimiter=",")
    run = xr.Dataset(
        {"bold": (("column", "time"), series), "confounds": (("time", "confound"), found.values)},  # noqa: PD011
        coords={"confound": list(found.names), "column": np.arange(len(series)).astype(str)},
        attrs={"t_r": 2.0},
    )
    strategy = Strategy(columns=("24P", "GlobalSignal"), derivatives=True, compcor=("a",), n_component=5)

    out, residual = residual_of(run, strategy)

    chosen = select(header_of(found), strategy, has_high_pass=True)
    columns = build_columns(found.values, found.names, chosen.terms)
    columns -= columns.mean(axis=0)
    residual = residual[~np.isnan(residual[:, 0])]
    cosine = residual @ columns / np.linalg.norm(residual, axis=1)[:, None] / np.linalg.norm(columns, axis=0)
    assert np.abs(cosine).max() < 1e-10
    assert out.sizes["regressor"] == 24 + 2 + 5
    assert out["regressor_kept"].to_numpy().all()


def test_find_strategy__leaves_names_to_the_table():
    assert find_strategy("36P") == Strategy(columns=("36P",))
    assert find_strategy(None) == Strategy()
    assert find_strategy("acompcor").compcor == ("w", "c")
