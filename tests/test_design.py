"""Contrasts in words: who is in, what is tested, and the numbers of a plain linear model."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr

from kconn.errors import DesignError
from kconn.infer.design import Hypothesis, build_test
from kconn.infer.inference import permutation_test

SUBJECTS = [f"{i:02d}" for i in range(1, 13)]
RNG = np.random.default_rng(4)
PEOPLE = pd.DataFrame(
    {
        "group": list("papapapapapa"),
        "age": RNG.normal(40, 10, 12).round(),
        "sex": list("ffmmffmmffmm"),
        "dose": RNG.normal(1, 0.2, 12),
    },
    index=pd.Index(SUBJECTS, name="subject"),
)


def cohort(pairs):
    """Return ``netmat (observation, edge)`` of (subject, session) pairs, in the order given."""
    values = {pair: np.random.default_rng([int(pair[0]), len(pair[1])]).normal(size=5) for pair in pairs}
    return xr.DataArray(
        np.array([values[pair] for pair in pairs]),
        dims=("observation", "edge"),
        coords={
            "observation": ("observation", np.array([f"sub-{s}_ses-{v}" for s, v in pairs], dtype=object)),
            "subject": ("observation", np.array([s for s, _ in pairs], dtype=object)),
            "session": ("observation", np.array([v for _, v in pairs], dtype=object)),
        },
    )


BOTH = cohort([(s, v) for s in SUBJECTS for v in ("pre", "post")])
NETMAT = {v: BOTH.to_numpy()[i::2] for i, v in enumerate(("pre", "post"))}


def hypothesis(test, **options):
    return Hypothesis.of({"test": test, **options})


def statistic(test):
    """Return t of kconn for a test that was built."""
    found = permutation_test(test.data, test.design, test.contrasts, n_perm=2, seed=0, sign_flip=test.sign_flip)
    return found["stat"].to_numpy().ravel()


def plain_t(values, columns, i_tested):
    """Return t of ordinary least squares in statsmodels."""
    return np.array([sm.OLS(values[:, i], columns).fit().tvalues[i_tested] for i in range(values.shape[1])])


def test_build_test__change_from_the_mean_of_two_baselines():
    three = cohort([(s, v) for s in SUBJECTS for v in ("pre1", "post", "pre02") if (s, v) != ("03", "pre02")])
    test = build_test(three, PEOPLE, None, hypothesis("paired", change=[["pre1", "pre02"], "post"]))
    by = {(str(row["subject"].item()), str(row["session"].item())): row.to_numpy() for row in three}
    expected = [by[s, "post"] - (by[s, "pre1"] + by[s, "pre02"]) / 2 for s in SUBJECTS if s != "03"]
    np.testing.assert_allclose(test.data, expected, rtol=1e-15, atol=1e-15)
    assert test.left_out == {"03": "no usable run in session pre02"}
    assert test.questions["tested"].startswith("change the mean of pre1 and pre02 to post")


def test_build_test__two_sample_of_a_change_with_nuisance():
    test = build_test(
        BOTH,
        PEOPLE,
        None,
        hypothesis(
            "two-sample", formula="group + age + sex", effect="group", levels=["p", "a"], change=["pre", "post"]
        ),
    )
    columns = np.column_stack([np.ones(12), PEOPLE.group == "a", PEOPLE.age, PEOPLE.sex == "m"]).astype(float)
    np.testing.assert_allclose(statistic(test), plain_t(NETMAT["post"] - NETMAT["pre"], columns, 1), rtol=1e-9)
    assert not test.sign_flip
    assert (
        test.questions["tested"] == "change pre to post: a (n=6) minus p (n=6), with age, sex as nuisance, 12 subjects"
    )


def test_build_test__levels_give_the_sign():
    options = {"formula": "group", "effect": "group", "sessions": ["pre"]}
    forth = build_test(BOTH, PEOPLE, None, hypothesis("two-sample", levels=["p", "a"], **options))
    back = build_test(BOTH, PEOPLE, None, hypothesis("two-sample", levels=["a", "p"], **options))
    sorted_levels = build_test(BOTH, PEOPLE, None, hypothesis("two-sample", **options))
    np.testing.assert_allclose(statistic(forth), -statistic(back), rtol=1e-9)
    np.testing.assert_array_equal(statistic(sorted_levels), statistic(back))


def test_build_test__paired_is_the_t_of_the_differences():
    test = build_test(BOTH, PEOPLE, None, hypothesis("paired", change=["pre", "post"]))
    np.testing.assert_allclose(statistic(test), plain_t(NETMAT["post"] - NETMAT["pre"], np.ones((12, 1)), 0), rtol=1e-9)
    assert test.sign_flip


def test_build_test__one_sample_tests_the_mean_at_the_mean_of_the_nuisance():
    test = build_test(BOTH, PEOPLE, None, hypothesis("one-sample", formula="age", sessions=["post"]))
    columns = np.column_stack([np.ones(12), PEOPLE.age - PEOPLE.age.mean()])
    np.testing.assert_allclose(statistic(test), plain_t(NETMAT["post"], columns, 0), rtol=1e-9)


def test_build_test__covariate_over_the_mean_of_sessions():
    test = build_test(BOTH, PEOPLE, None, hypothesis("covariate", formula="dose + age", effect="dose"))
    columns = np.column_stack([np.ones(12), PEOPLE.dose, PEOPLE.age])
    np.testing.assert_allclose(statistic(test), plain_t((NETMAT["pre"] + NETMAT["post"]) / 2, columns, 1), rtol=1e-9)


def test_build_test__columns_of_the_sessions_table_are_those_of_the_session():
    index = pd.MultiIndex.from_product([SUBJECTS[::-1], ["post", "pre"]], names=["subject", "session"])
    sessions = pd.DataFrame({"score": np.arange(24.0) ** 1.5}, index=index)
    test = build_test(
        BOTH, PEOPLE, sessions, hypothesis("covariate", formula="score", effect="score", sessions=["pre"])
    )
    expected = [sessions.loc[(subject, "pre"), "score"] for subject in SUBJECTS]
    np.testing.assert_array_equal(test.design["score"], expected)


@pytest.mark.faults("order")
def test_build_test__rows_are_joined_by_id_in_any_order(count):
    rng = np.random.default_rng(20)
    words = hypothesis("two-sample", formula="group + age", effect="group", change=["pre", "post"])

    def run(netmat, people, rows, order):
        test = build_test(netmat, people, None, words)
        return permutation_test(
            test.data[rows], test.design.iloc[order], test.contrasts, n_perm=10, seed=2, sign_flip=test.sign_flip
        )

    expected = run(BOTH, PEOPLE, np.arange(12), np.arange(12))
    for _ in range(200):
        netmat, people = BOTH[rng.permutation(24)], PEOPLE.iloc[rng.permutation(12)]
        actual = run(netmat, people, rng.permutation(12), rng.permutation(12))
        xr.testing.assert_identical(actual, expected)
        count(orders=1, identical=1)


@pytest.mark.parametrize("change", [None, (("v0", "v1"), "v2")])
def test_build_test__of_many_subjects_is_few_tasks_and_the_same_bits(change):
    n_subject, sessions = 400, ("v0", "v1", "v2")
    subjects = [f"{i:03d}" for i in range(n_subject)]
    netmat = xr.DataArray(
        np.random.default_rng(0).normal(size=(3 * n_subject, 30)),
        dims=("observation", "edge"),
        coords={
            "subject": ("observation", np.repeat(subjects, 3)),
            "session": ("observation", np.tile(sessions, n_subject)),
        },
    )[np.random.default_rng(1).permutation(3 * n_subject)]
    people = pd.DataFrame(index=pd.Index(subjects, name="subject"))
    words = Hypothesis(test="one-sample", formula="1", change=change)
    built = build_test(netmat, people, None, words).data
    lazy = build_test(netmat.chunk({"observation": 100, "edge": 10}), people, None, words).data
    assert len(lazy.__dask_graph__()) <= 12 * 3 + 2 * 3 + 3  # blocks, those of all observations, their rows
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), built)
    of_one = netmat[(netmat["subject"] == "007").to_numpy()]
    by_name = {name: of_one[(of_one["session"] == name).to_numpy()].to_numpy()[0] for name in sessions}
    expected = np.mean([by_name["v0"], by_name["v1"]], axis=0)
    expected = np.mean(list(by_name.values()), axis=0) if change is None else by_name["v2"] - expected
    np.testing.assert_array_equal(built.sel(observation="007"), expected)


def test_build_test__the_mean_of_integers_is_none():
    whole = (10 * BOTH).round().astype(np.int64)
    words = hypothesis("one-sample", formula="1")
    for netmat in (whole, whole.chunk({"edge": 2})):
        found = build_test(netmat, PEOPLE, None, words).data
        assert found.dtype == np.float64
        expected = build_test(whole.astype(np.float64), PEOPLE, None, words).data
        np.testing.assert_array_equal(found.compute(scheduler="synchronous"), expected)
        assert (found.compute(scheduler="synchronous") % 1 != 0).any()


def test_build_test__leaves_out_and_says_who_and_why():
    pairs = [(s, v) for s in SUBJECTS for v in ("pre", "post") if (s, v) != ("03", "post")]
    people = PEOPLE.assign(group=list("papapapapaxx"))
    words = hypothesis(
        "two-sample", formula="group", effect="group", levels=["p", "a"], change=["pre", "post"], where={"sex": ["f"]}
    )
    test = build_test(cohort(pairs), people, None, words)
    assert test.design.index.tolist() == ["01", "02", "05", "06", "09", "10"]
    assert test.data["observation"].to_numpy().tolist() == test.design.index.tolist()
    assert test.left_out["03"] == "no usable run in session post"
    assert test.left_out["04"] == "sex is not f"
    words = hypothesis("two-sample", formula="group", effect="group", levels=["p", "a"], sessions=["pre"])
    left_out = build_test(BOTH, people, None, words).left_out
    assert left_out == dict.fromkeys(["11", "12"], "group is another than the two levels that are compared")


@pytest.mark.parametrize(
    ("people", "words", "code", "where"),
    [
        (PEOPLE[1:], {"test": "one-sample"}, "E-ID-MISSING", ""),
        (PEOPLE, {"test": "one-sample", "sessions": ["mid"]}, "E-ID-MISSING", ""),
        (PEOPLE, {"test": "paired", "change": ["pre", "mid"]}, "E-ID-MISSING", ""),
        (
            PEOPLE.assign(group="p"),
            {"test": "two-sample", "formula": "group", "effect": "group"},
            "E-DESIGN-LEVELS",
            "",
        ),
        (
            PEOPLE.assign(group=[*"ppppppppppp", None]),
            {"test": "two-sample", "formula": "group", "effect": "group"},
            "E-COV-NAN",
            "sub-12",
        ),
        (
            PEOPLE.assign(group=list("pppppppppppa")),
            {"test": "two-sample", "formula": "group", "effect": "group"},
            "E-TOO-FEW",
            "",
        ),
        (PEOPLE, {"test": "two-sample", "formula": "age", "effect": "group"}, "E-DESIGN-FORMULA", ""),
        (PEOPLE, {"test": "covariate", "formula": "sex", "effect": "sex"}, "E-DESIGN-FORMULA", ""),
        (PEOPLE, {"test": "one-sample", "formula": "0 + age"}, "E-DESIGN-FORMULA", ""),
        (PEOPLE, {"test": "one-sample", "where": {"sex": "x"}}, "E-TOO-FEW", ""),
        (PEOPLE, {"test": "one-sample", "where": {"arm": "x"}}, "E-DESIGN-FORMULA", ""),
        (PEOPLE, {"test": "one-sample", "formula": "C(dose)"}, "E-TOO-FEW", ""),
    ],
)
def test_build_test__refusals(people, words, code, where):
    with pytest.raises(DesignError) as caught:
        build_test(BOTH, people, None, Hypothesis.of(words))
    assert (caught.value.code, caught.value.where) == (code, where)
    assert caught.value.rule
