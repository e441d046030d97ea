"""Formulas: arithmetic over columns, nothing else."""

import numpy as np
import pandas as pd
import pytest

from kconn.errors import DesignError
from kconn.infer.formulas import evaluate_formula

TABLE = pd.DataFrame(
    {"age": [20.0, 30, 50, 71], "sex": list("fmfm"), "site": list("abca"), "a b": [1.0, 4, 9, 16]},
    index=pd.Index(list("wxyz"), name="subject"),
)


def test_evaluate_formula__columns_dummies_and_interactions():
    design = evaluate_formula("age * sex + site", TABLE)
    assert design.index.tolist() == list("wxyz")
    expected = {
        "Intercept": [1, 1, 1, 1],
        "age": [20, 30, 50, 71],
        "sex[T.m]": [0, 1, 0, 1],
        "site[T.b]": [0, 1, 0, 0],
        "site[T.c]": [0, 0, 1, 0],
        "age:sex[T.m]": [0, 30, 0, 71],
    }
    assert set(design.columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(design[name], values)


@pytest.mark.parametrize(
    ("formula", "values"),
    [
        ("{age ** 2 / 10}", TABLE["age"] ** 2 / 10),
        ("np.log(age)", np.log(TABLE["age"])),
        ("log(age)", np.log(TABLE["age"])),
        ("center(age)", TABLE["age"] - TABLE["age"].mean()),
        ("np.sqrt(`a b`)", [1, 2, 3, 4]),
        ("I(age > 40)", [0, 0, 1, 1]),
        ("0 + age", TABLE["age"]),
    ],
)
def test_evaluate_formula__arithmetic(formula, values):
    design = evaluate_formula(formula, TABLE)
    np.testing.assert_allclose(design.iloc[:, -1], values)


def test_evaluate_formula__a_column_of_one_value_per_row_does_not_depend_on_row_order():
    shuffled = TABLE.iloc[[2, 0, 3, 1]]
    pd.testing.assert_frame_equal(
        evaluate_formula("age * sex", shuffled).loc[TABLE.index], evaluate_formula("age * sex", TABLE)
    )


@pytest.mark.parametrize(
    "formula",
    [
        "{__import__('os').system('true')}",
        "{age.__class__}",
        "np.load('x')",
        "np.fromfile('x')",
        "np.ufunc(age)",
        "{open('x')}",
        "I((lambda: 1)())",
        "{[x for x in age]}",
        "{age[0]}",
        "hashed(sex, levels=2)",
        "lag(age)",
        "pd.isna(age)",
        "design + age",
        "weight",
        "age ~ sex",
        "age | sex",
        "age +",
        "age + )",
        "np.log(`no such`)",
    ],
)
def test_evaluate_formula__refuses_all_else(formula):
    with pytest.raises(DesignError) as caught:
        evaluate_formula(formula, TABLE)
    assert caught.value.code == "E-DESIGN-FORMULA"
    assert "age, sex, site, a b" in caught.value.rule


@pytest.mark.parametrize("formula", ["age", "center(age)", "{age + 1}", "age:sex"])
def test_evaluate_formula__names_who_lacks_a_value(formula):
    table = TABLE.assign(age=[1.0, np.nan, 3, 4])
    with pytest.raises(DesignError, match="E-COV-NAN") as caught:
        evaluate_formula(formula, table)
    assert caught.value.where == "sub-x"
    assert "'age'" in caught.value.problem


def test_evaluate_formula__refuses_what_is_not_finite():
    with pytest.raises(DesignError, match="E-COV-NAN"):
        evaluate_formula("np.log(age - 20)", TABLE)
