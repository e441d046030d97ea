"""Which confounds: presets on tables of both ages, names, patterns, and what is said when a column is missing."""

import numpy as np
import pandas as pd
import pytest

from kconn.clean.confounds import OLD_NAMES, PRESETS, Term, add_cosines, build_columns, select_terms
from kconn.errors import InputError

NEW = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "white_matter", "csf", "global_signal"]
OLD = [OLD_NAMES[name] for name in NEW]


@pytest.fixture
def table():
    return np.random.default_rng(1).normal(size=(30, 9))


@pytest.mark.parametrize("preset", ["2P", "6P", "8P", "9P", "12P", "24P", "36P"])
def test_select_terms__presets_count_their_parameters(preset):
    assert len(select_terms(NEW, preset)) == int(preset[:-1])


@pytest.mark.parametrize("preset", PRESETS)
def test_build_columns__of_old_and_new_names_are_equal(table, preset):
    new = build_columns(table, NEW, select_terms(NEW, preset))
    old = build_columns(table, OLD, select_terms(OLD, preset))

    np.testing.assert_array_equal(new, old)


def test_build_columns__of_a_preset_ignores_the_derivatives_of_the_table(table):
    wide = np.column_stack([table, np.full(30, 99.0)])

    with_column = build_columns(wide, [*NEW, "trans_x_derivative1"], select_terms([*NEW, "trans_x_derivative1"], "12P"))

    np.testing.assert_array_equal(with_column, build_columns(table, NEW, select_terms(NEW, "12P")))


def test_build_columns__are_differences_and_squares(table):
    terms = select_terms(NEW, ["csf", "csf_derivative1", "csf_power2", "csf_derivative1_power2"])
    csf = table[:, 7]
    difference = np.concatenate([[0.0], csf[1:] - csf[:-1]])

    actual = build_columns(table, NEW, terms)

    np.testing.assert_array_equal(actual, np.column_stack([csf, difference, csf**2, difference**2]))


def test_build_columns__equal_those_of_fmriprep_in_new_tables():
    # The expansion as fMRIPrep prints it: the first frame of a derivative is n/a.
    x = np.array([0.1, 0.3, -0.2, 0.25])
    names = ["rot_x", "rot_x_derivative1", "rot_x_derivative1_power2", "rot_x_power2"]
    d = np.array([np.nan, 0.2, -0.5, 0.45])
    printed = np.column_stack([x, d, d**2, x**2])

    taken = build_columns(printed, names, select_terms(names, names))
    made = build_columns(x[:, None], ["rot_x"], select_terms(["rot_x"], names))

    np.testing.assert_allclose(taken, made, atol=1e-15)


def test_build_columns__fills_only_what_is_missing_in_the_first_frame_alone():
    printed = np.array([[np.nan, np.nan], [1.0, np.nan], [2.0, 3.0]])

    filled = build_columns(printed, ["dvars", "broken"], select_terms(["dvars", "broken"], ["dvars", "broken"]))

    np.testing.assert_array_equal(filled, [[0.0, np.nan], [1.0, np.nan], [2.0, 3.0]])


@pytest.mark.parametrize("nothing", [None, "none", [], ["none"]])
def test_select_terms__of_nothing_are_none(nothing):
    assert select_terms(NEW, nothing) == ()


def test_select_terms__takes_patterns_of_whole_names():
    columns = [*NEW, "a_comp_cor_00", "a_comp_cor_01", "a_comp_cor_10"]

    terms = select_terms(columns, ["a_comp_cor_0.", "rot_[xy]"])

    assert [term.name for term in terms] == ["a_comp_cor_00", "a_comp_cor_01", "rot_x", "rot_y"]


def test_select_terms__prefers_a_column_to_a_pattern():
    assert select_terms(["a.c", "abc"], "a.c") == (Term(name="a.c", source="a.c"),)


def test_select_terms__names_each_regressor_once():
    assert select_terms(NEW, ["6P", "trans_x", "24P"]) == select_terms(NEW, ["6P", "24P"])
    assert len(select_terms(NEW, ["6P", "24P"])) == 24


@pytest.mark.parametrize(
    ("confounds", "said"),
    [
        ("tran_x", "'trans_x'"),
        (["6P", "whitematter"], "'white_matter'"),
        ("global_sygnal_derivative1", "'global_signal'"),
        ("unheard.*", "'trans_x'"),
        ("rot_(", "regular expression"),
    ],
)
def test_select_terms__refuses_unknown_names_and_tells_the_nearest(confounds, said):
    with pytest.raises(InputError, match="sub-07") as caught:
        select_terms(NEW, confounds, where="sub-07")

    assert caught.value.code == "E-CONFOUND-COLUMN"
    assert said in str(caught.value)


def test_select_terms__says_which_preset_a_real_table_cannot_serve(shared_data):
    file = shared_data / "uclacnp_sub50005" / "sub-50005_task-rest_bold_confounds.tsv"
    columns = pd.read_csv(file, sep="\t", nrows=1).columns.tolist()

    assert len(select_terms(columns, "24P")) == 24
    with pytest.raises(InputError, match=r"'csf', which the preset '36P' needs"):
        select_terms(columns, "36P")


@pytest.mark.parametrize(
    ("columns", "components"),
    [
        (["w_comp_cor_00", "c_comp_cor_00", "cosine00", "cosine01", "csf"], "[wc]_comp_cor_0."),
        (["aCompCor00", "tCompCor00", "Cosine00", "Cosine01", "CSF"], "[at]CompCor.*"),
    ],
)
def test_add_cosines__comes_with_every_component(columns, components):
    terms = select_terms(columns, components)

    names = [term.name for term in add_cosines(terms, columns, has_high_pass=True)]

    assert names == columns[:4]
    assert add_cosines(select_terms(columns, columns[4]), columns, has_high_pass=False) == select_terms(
        columns, columns[4]
    )


def test_add_cosines__needs_a_high_pass_where_the_table_has_none(shared_data):
    file = shared_data / "uclacnp_sub50005" / "sub-50005_task-rest_bold_confounds.tsv"
    columns = pd.read_csv(file, sep="\t", nrows=1).columns.tolist()
    terms = select_terms(columns, "aCompCor0[0-4]")

    assert add_cosines(terms, columns, has_high_pass=True) == terms
    with pytest.raises(InputError, match="high-passed") as caught:
        add_cosines(terms, columns, has_high_pass=False)
    assert caught.value.code == "E-CONFOUND-COLUMN"
