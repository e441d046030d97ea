"""Tables of regressors of any package: names, units, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix

from kconn.errors import InputError
from kconn.io.regressors import (
    TableForm,
    read_compcor_sidecar,
    read_component_list,
    read_events,
    read_regressors,
    read_run_regressors,
)

N_TIME, T_R = 40, 2.0
MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


@pytest.fixture
def motion():
    return np.random.default_rng(3).normal(size=(N_TIME, 6)) * [1, 1, 1, 0.01, 0.01, 0.01]


def write(path, values, *, delimiter=" ", header=None):
    np.savetxt(path, values, delimiter=delimiter, header=delimiter.join(header or []), comments="", fmt="%.10f")
    if header is None:
        path.write_text(path.read_text().lstrip("\n"))
    return path


def as_dict(table):
    return dict(zip(table.names, table.values.T, strict=True))  # noqa: PD011 - no DataFrame


@pytest.mark.parametrize(
    ("form", "order", "delimiter"),
    [("spm", [0, 1, 2, 3, 4, 5], "   "), ("fsl", [3, 4, 5, 0, 1, 2], "  "), ("hcp", [0, 1, 2, 3, 4, 5], " ")],
)
def test_read_regressors__motion_of_every_package_is_the_same(tmp_path, motion, form, order, delimiter):
    values = motion.copy()
    if form == "hcp":
        values[:, 3:] = np.rad2deg(values[:, 3:])
        values = np.hstack([values, np.vstack([np.zeros(6), np.diff(values, axis=0)])])
        order = [*order, *range(6, 12)]

    table = read_regressors(
        write(tmp_path / "motion.txt", values[:, order], delimiter=delimiter), TableForm(format=form), n_time=N_TIME
    )

    found = as_dict(table)
    for i, name in enumerate(MOTION):
        np.testing.assert_allclose(found[name], motion[:, i], atol=1e-9)
    if form == "hcp":
        assert len(found) == 12
        np.testing.assert_allclose(found["rot_y_derivative1"][1:], np.diff(motion[:, 4]), atol=1e-9)


@pytest.mark.parametrize(("name", "delimiter"), [("t.tsv", "\t"), ("t.csv", ","), ("t.txt", " ")])
def test_read_regressors__named_by_the_header_or_by_what_is_stated(tmp_path, motion, name, delimiter):
    path = write(tmp_path / name, motion, delimiter=delimiter, header=MOTION)
    with_header = read_regressors(path, TableForm(prefix="p_"), n_time=N_TIME)
    path = write(tmp_path / name, motion, delimiter=delimiter)
    stated = read_regressors(path, TableForm(columns=tuple(MOTION)), n_time=N_TIME)

    assert with_header.names == tuple(f"p_{name}" for name in MOTION)
    assert stated.names == tuple(MOTION)
    np.testing.assert_array_equal(with_header.values, stated.values)


def test_read_regressors__degrees_become_radians(tmp_path, motion):
    motion[:, 3:] = np.rad2deg(motion[:, 3:])
    form = TableForm(columns=tuple(MOTION), rotations="degrees")

    table = read_regressors(write(tmp_path / "m.txt", motion), form, n_time=N_TIME)

    np.testing.assert_allclose(table.values[:, 3:], np.deg2rad(motion[:, 3:]), atol=1e-9)  # noqa: PD011
    np.testing.assert_allclose(table.values[:, :3], motion[:, :3], atol=1e-9)  # noqa: PD011


def test_read_regressors__counts_the_components_of_a_mixing_matrix(tmp_path):
    mixing = np.random.default_rng(0).normal(size=(N_TIME, 12))

    table = read_regressors(
        write(tmp_path / "melodic_mix", mixing, delimiter="  "), TableForm(format="mixing"), n_time=40
    )

    assert table.names[:2] == ("component_01", "component_02")
    assert table.names[-1] == "component_12"


@pytest.mark.parametrize(
    ("code", "said", "form", "spoil"),
    [
        ("E-CONFOUND-ROWS", "39 rows, the run has 40", TableForm(format="spm"), lambda m: m[1:]),
        ("E-TABLE-SHAPE", "5 columns, 6 are expected", TableForm(format="fsl"), lambda m: m[:, 1:]),
        ("E-TABLE-SHAPE", "12 are expected", TableForm(format="hcp"), lambda m: m),
        ("E-CONFOUND-NAN", "row 4, column 2 \\(trans_y\\)", TableForm(format="spm"), None),
        ("E-TABLE", "rotations are in radians", TableForm(format="spm"), lambda m: m * [1, 1, 1, 300, 1, 1]),
        ("E-TABLE", "rotations are in radians", TableForm(format="fsl"), lambda m: m * 20),
        ("E-TABLE", "no name above", TableForm(), lambda m: m),
    ],
)
def test_read_regressors__refuses(tmp_path, motion, code, said, form, spoil):
    if spoil is None:
        motion[3, 1] = np.nan
    path = write(tmp_path / "m.txt", motion if spoil is None else spoil(motion))
    if said == "no name above":
        path = write(tmp_path / "m.csv", motion, delimiter=",", header=["", *MOTION[1:]])

    with pytest.raises(InputError, match=said) as caught:
        read_regressors(path, form, n_time=N_TIME, where="sub-1")

    assert caught.value.code == code
    assert "sub-1" in str(caught.value)


def test_read_regressors__refuses_a_header_where_columns_are_stated(tmp_path, motion):
    path = write(tmp_path / "m.csv", motion, delimiter=",", header=MOTION)

    with pytest.raises(InputError, match="row of words") as caught:
        read_regressors(path, TableForm(columns=tuple(MOTION)), n_time=N_TIME)

    assert caught.value.code == "E-TABLE"


FIX = "filtered_func_data.ica\n1, Signal, False\n2, Unclassified Noise, True\n3, Unknown, False\n4, Movement, True\n"


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("1,4,5\n", (1, 4, 5)),
        ("[2, 4]\n", (2, 4)),
        (FIX + "[2, 4]\n\n", (2, 4)),
        (FIX + "[]\n", ()),
        ("7 3 1\n", (1, 3, 7)),
        ("\ufeff10", (10,)),
    ],
)
def test_read_component_list__of_aroma_fix_melview_and_hcp(tmp_path, text, noise):
    path = tmp_path / "labels.txt"
    path.write_text(text)

    assert read_component_list(path, n_component=10) == noise


@pytest.mark.parametrize(
    ("text", "said"),
    [(FIX, "ends with"), ("1,11", r"\[11\]; the mixing matrix has 10"), ("0,1", r"\[0\]"), ("3,3", "twice")],
)
def test_read_component_list__refuses(tmp_path, text, said):
    path = tmp_path / "labels.txt"
    path.write_text(text)

    with pytest.raises(InputError, match=said) as caught:
        read_component_list(path, n_component=10, where="sub-1")

    assert caught.value.code == "E-COMPONENTS"


def test_read_compcor_sidecar__tells_region_and_share(tmp_path):
    entry = {"Method": "aCompCor", "Mask": "WM", "CumulativeVarianceExplained": 0.3}
    content = {
        "a_comp_cor_00": entry,
        "a_comp_cor_01": {**entry, "Mask": "combined", "CumulativeVarianceExplained": 0.2},
        "t_comp_cor_00": {"Method": "tCompCor", "CumulativeVarianceExplained": 1},
        "dropped_0": entry,
        "csf": {"Method": "Mean"},
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))

    found = read_compcor_sidecar(path, names=["csf", "a_comp_cor_00", "a_comp_cor_01", "t_comp_cor_00"])

    assert found == {"a_comp_cor_00": ("w", 0.3), "a_comp_cor_01": ("a", 0.2), "t_comp_cor_00": ("t", 1.0)}
    path.write_text("[1]")
    with pytest.raises(InputError, match="E-SIDECAR"):
        read_compcor_sidecar(path, names=["csf"])


EVENTS = "onset\tduration\ttrial_type\n2\t4\tface\n30\t4\ttwo houses\n50.5\t6\tface\n"


@pytest.mark.parametrize(("hrf", "share"), [("spm", 0.0), ("glover + derivative", 0.5)])
def test_read_events__are_the_columns_of_nilearn(tmp_path, hrf, share):
    path = tmp_path / "events.tsv"
    path.write_text(EVENTS)

    table = read_events(path, n_time=N_TIME, t_r=T_R, hrf=hrf, slice_time_ref=share, prefix="task_")

    events = pd.read_csv(path, sep="\t").replace("two houses", "two_houses")
    design = make_first_level_design_matrix((np.arange(N_TIME) + share) * T_R, events, hrf_model=hrf, drift_model=None)
    assert table.names == tuple(f"task_{name}" for name in design.columns if name != "constant")
    np.testing.assert_array_equal(table.values, design.drop(columns="constant"))


def test_read_events__of_a_real_run(shared_data):
    path = shared_data / "studyforrest_bold" / "sub-02_task-objectcategories_run-1_events.tsv"

    table = read_events(path, n_time=156, t_r=2.0, hrf="spm")

    kinds = pd.read_csv(path, sep="\t")["trial_type"].unique()
    assert sorted(table.names) == sorted(kinds)
    assert (np.abs(table.values).max(axis=0) > 0.1).all()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("onset", "start", "no column 'onset'"),
        ("30\t4", "30\tlong", "'long' as duration in row 3"),
        ("30\t4", "30\t-4", "negative"),
        ("two houses", "n/a", "without trial_type"),
        (EVENTS[EVENTS.index("2\t4") :], "900\t1\tface\n", "no event before the end of the run, at 80 s"),
        (EVENTS[EVENTS.index("2\t4") :], "", "no event"),
    ],
)
def test_read_events__refuses(tmp_path, old, new, said):
    path = tmp_path / "events.tsv"
    path.write_text(EVENTS.replace(old, new))

    with pytest.raises(InputError, match=said) as caught:
        read_events(path, n_time=N_TIME, t_r=T_R, hrf="spm", where="sub-1")

    assert caught.value.code == "E-EVENTS"


@pytest.fixture
def files(tmp_path, motion):
    rng = np.random.default_rng(0)
    (tmp_path / "noise.csv").write_text("1,3")
    (tmp_path / "side.json").write_text("{}")
    return {
        "confounds": write(tmp_path / "c.tsv", rng.normal(size=(N_TIME, 2)), delimiter="\t", header=["csf", "w"]),
        "confounds_sidecar": tmp_path / "side.json",
        "mixing": write(tmp_path / "mix.tsv", rng.normal(size=(N_TIME, 5)), delimiter="\t"),
        "noise": tmp_path / "noise.csv",
        "regressors:spm": write(tmp_path / "rp.txt", motion),
        "bold": tmp_path / "not-read.nii",
    }


def test_read_run_regressors__joins_all_tables(files):
    found = read_run_regressors(files, {"spm": TableForm(format="spm")}, n_time=N_TIME, t_r=T_R)

    assert found.names == ("csf", "w", *(f"component_0{i}" for i in range(1, 6)), *MOTION)
    assert found.values.shape == (N_TIME, 13)  # noqa: PD011
    assert found.noise_components == (1, 3)
    assert found.compcor == {}
    assert read_run_regressors({"bold": files["bold"]}, {}, n_time=N_TIME, t_r=T_R) is None


def test_read_run_regressors__knows_hcp_by_its_name_and_convolves_events(tmp_path, motion):
    motion = np.hstack([motion, np.zeros_like(motion)])
    (tmp_path / "events.tsv").write_text(EVENTS)
    files = {"regressors:task": tmp_path / "events.tsv"}
    files["confounds"] = write(tmp_path / "Movement_Regressors.txt", motion)

    forms = {"task": TableForm(format="events", prefix="task_")}
    found = read_run_regressors(files, forms, n_time=N_TIME, t_r=T_R)

    assert found.names == (*MOTION, *(f"{name}_derivative1" for name in MOTION), "task_face", "task_two_houses")
    np.testing.assert_allclose(found.values[:, 3:6], np.deg2rad(motion[:, 3:6]), atol=1e-9)  # noqa: PD011


def test_read_run_regressors__refuses_numbers_where_names_should_be(tmp_path, motion):
    path = write(tmp_path / "motion.txt", motion)

    with pytest.raises(InputError, match=r"starts with numbers.*\[regressors\]") as caught:
        read_run_regressors({"confounds": path}, {}, n_time=N_TIME, t_r=T_R, where="sub-1")

    assert caught.value.code == "E-TABLE"


def test_read_run_regressors__refuses_two_columns_of_one_name(files):
    forms = {"spm": TableForm(format="spm", prefix="")}
    files["confounds"].write_text(files["confounds"].read_text().replace("csf", "rot_x"))

    with pytest.raises(InputError, match=r"the confound table and regressors.spm both have a column 'rot_x'"):
        read_run_regressors(files, forms, n_time=N_TIME, t_r=T_R, where="sub-1")
