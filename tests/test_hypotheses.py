"""Tests beyond one column: F over terms, interactions, repeated measures and free weights, against statsmodels."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import xarray as xr
from patsy import dmatrix
from statsmodels.stats.anova import AnovaRM, anova_lm

from kconn.errors import DesignError
from kconn.infer.design import Hypothesis, SuppliedDesign, build_test
from kconn.infer.inference import permutation_test

SUBJECTS = [f"{i:02d}" for i in range(1, 16)]
SESSIONS = ["pre", "mid", "post"]
RNG = np.random.default_rng(8)
PEOPLE = pd.DataFrame(
    {
        "arm": list("abcabcabcabcabc"),
        "sex": list("ffmmffmmffmmffm"),
        "age": RNG.normal(40, 10, 15).round(),
        "dose": RNG.normal(1, 0.2, 15),
    },
    index=pd.Index(SUBJECTS, name="subject"),
)
VISITS = pd.DataFrame(
    {"hour": RNG.normal(9, 1, 45)},
    index=pd.MultiIndex.from_product([SUBJECTS, SESSIONS], names=["subject", "session"]),
)
Y = RNG.normal(size=(15, 3, 4)) + RNG.normal(size=(15, 1, 4))


def cohort(keep=lambda *_: True):
    rows = [(s, v, Y[i, j]) for i, s in enumerate(SUBJECTS) for j, v in enumerate(SESSIONS) if keep(s, v)]
    return xr.DataArray(
        np.array([values for *_, values in rows]),
        dims=("observation", "edge"),
        coords={
            "observation": ("observation", np.array([f"sub-{s}_ses-{v}" for s, v, _ in rows], dtype=object)),
            "subject": ("observation", np.array([s for s, *_ in rows], dtype=object)),
            "session": ("observation", np.array([v for _, v, _ in rows], dtype=object)),
        },
    )


def build(words, *, netmat=None, people=PEOPLE, sessions=VISITS, supplied=None):
    return build_test(cohort() if netmat is None else netmat, people, sessions, Hypothesis.of(words), supplied=supplied)


def statistic(test):
    found = permutation_test(test.data, test.design, test.contrasts, n_perm=2, seed=0)
    return found["stat"].to_numpy(), found["stat_kind"].to_numpy().tolist()


def long():
    """Return the rows of sessions with their data as statsmodels wants them."""
    table = pd.DataFrame(
        [
            {"subject": s, "session": v, **PEOPLE.loc[s], "hour": VISITS.loc[(s, v), "hour"]}
            for s in SUBJECTS
            for v in SESSIONS
        ]
    )
    return table.assign(**{f"y{i}": Y[..., i].ravel() for i in range(4)})


def pre():
    return PEOPLE.assign(**{f"y{i}": Y[:, 0, i] for i in range(4)})


def test_f_test__of_a_factor_with_three_levels():
    test = build({"test": "f-test", "formula": "arm + age", "effect": "arm", "sessions": ("pre",)})
    expected = [
        anova_lm(smf.ols(f"y{i} ~ age", pre()).fit(), smf.ols(f"y{i} ~ age + arm", pre()).fit()) for i in range(4)
    ]
    (found,), (kind,) = statistic(test)
    np.testing.assert_allclose(found, [table["F"][1] for table in expected], rtol=1e-9)
    assert kind == "F"
    assert test.questions["tested"] == "connectivity: any effect of arm (2 columns), with age as nuisance, 15 subjects"


@pytest.mark.parametrize("effect", ["sex:arm", "arm:sex", ["arm:sex"]])
def test_f_test__of_an_interaction_whatever_the_order_of_its_factors(effect):
    test = build({"test": "f-test", "formula": "arm * sex", "effect": effect, "sessions": ("pre",)})
    expected = [anova_lm(smf.ols(f"y{i} ~ arm * sex", pre()).fit())["F"]["arm:sex"] for i in range(4)]
    np.testing.assert_allclose(statistic(test)[0][0], expected, rtol=1e-9)


def test_f_test__of_several_columns_is_that_of_nested_models():
    test = build({"test": "f-test", "formula": "sex + age + dose", "effect": ["age", "dose"], "sessions": ("pre",)})
    expected = [
        anova_lm(smf.ols(f"y{i} ~ sex", pre()).fit(), smf.ols(f"y{i} ~ sex + age + dose", pre()).fit())
        for i in range(4)
    ]
    np.testing.assert_allclose(statistic(test)[0][0], [table["F"][1] for table in expected], rtol=1e-9)


def test_f_test__main_effect_beside_an_interaction_with_sums_to_zero():
    formula = "C(arm, contr.sum) * C(sex, contr.sum)"
    test = build({"test": "f-test", "formula": formula, "effect": "C(arm, contr.sum)", "sessions": ("pre",)})
    expected = [
        anova_lm(smf.ols(f"y{i} ~ C(arm, Sum) * C(sex, Sum)", pre()).fit(), typ=3)["F"]["C(arm, Sum)"] for i in range(4)
    ]
    np.testing.assert_allclose(statistic(test)[0][0], expected, rtol=1e-9)


@pytest.mark.parametrize("formula", ["arm * sex + age", "age + sex * arm"])
def test_interaction__of_two_factors_has_a_sign(formula):
    words = {"test": "interaction", "formula": formula, "effect": ["arm", "sex"], "sessions": ("pre",)}
    test = build({**words, "levels": {"arm": ["c", "a"]}})
    table = pre()[PEOPLE.arm != "b"].assign(
        arm=(PEOPLE.arm == "a").astype(float), sex=(PEOPLE.sex == "m").astype(float)
    )
    expected = [smf.ols(f"y{i} ~ arm * sex + age", table).fit().tvalues["arm:sex"] for i in range(4)]
    (found,), (kind,) = statistic(test)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert kind == "t"
    assert test.left_out["02"] == "arm or sex is another than the two levels that are compared"
    assert "interaction of arm (a minus c) with sex (m minus f)" in test.questions["tested"]


def test_interaction__of_a_group_with_a_slope():
    test = build({"test": "interaction", "formula": "sex * age", "effect": ["sex", "age"], "sessions": ("pre",)})
    expected = [smf.ols(f"y{i} ~ sex * age", pre()).fit().tvalues["sex[T.m]:age"] for i in range(4)]
    np.testing.assert_allclose(statistic(test)[0][0], expected, rtol=1e-9)


def test_repeated__is_the_anova_of_repeated_measures():
    test = build({"test": "repeated", "sessions": SESSIONS})
    expected = [
        AnovaRM(long(), f"y{i}", "subject", within=["session"]).fit().anova_table["F Value"].iloc[0] for i in range(4)
    ]
    np.testing.assert_allclose(statistic(test)[0][0], expected, rtol=1e-9)
    assert test.design.index[:2].tolist() == ["sub-01_ses-pre", "sub-01_ses-mid"]
    assert test.data["observation"].to_numpy().tolist() == test.design.index.tolist()


@pytest.mark.parametrize("effect", ["arm", "age"])
def test_repeated__courses_are_compared_with_a_covariate_of_the_session(effect):
    test = build({"test": "repeated", "sessions": SESSIONS, "effect": effect, "formula": "hour"})
    shared = "C(subject) + C(session) + hour"
    smaller, larger = (dmatrix(formula, long()) for formula in (shared, f"{shared} + C(session):{effect}"))
    # Subjects explain a part of the interaction columns: compare residuals by rank, not by number of columns.
    (rss, rank), (rss_larger, rank_larger) = (residuals(np.asarray(columns)) for columns in (smaller, larger))
    expected = ((rss - rss_larger) / (rank_larger - rank)) / (rss_larger / (45 - rank_larger))
    np.testing.assert_allclose(statistic(test)[0][0], expected, rtol=1e-9)


def residuals(columns):
    """Return sums of squared residuals and the rank of a design."""
    values = Y.reshape(45, 4)
    fit, _, rank, _ = np.linalg.lstsq(columns, values)
    return ((values - columns @ fit) ** 2).sum(axis=0), rank


def test_repeated__of_two_visits_is_the_paired_test():
    repeated = build({"test": "repeated", "sessions": ["pre", "post"]})
    paired = build({"test": "paired", "change": ("pre", "post")})
    np.testing.assert_allclose(statistic(repeated)[0], statistic(paired)[0], rtol=1e-9)
    assert statistic(repeated)[1] == ["t"]


def test_repeated__leaves_out_who_lacks_a_session():
    netmat = cohort(lambda subject, session: (subject, session) != ("03", "mid"))
    test = build({"test": "repeated", "sessions": SESSIONS}, netmat=netmat)
    assert test.left_out == {"03": "no usable run in session mid"}
    assert len(test.design) == 42
    words = {"test": "design", "rows": "session", "formula": "session", "weights": {"session[T.post]": 1}}
    kept = build(words, netmat=netmat)
    assert len(kept.design) == 44
    assert kept.left_out == {}


def test_design__weights_by_name_give_several_contrasts():
    weights = {"a to c": {"arm[c]": 1, "arm[a]": -1}, "any": [{"arm[b]": 1, "arm[a]": -1}, {"arm[c]": 1, "arm[a]": -1}]}
    test = build({"test": "design", "formula": "0 + arm + age", "weights": weights, "sessions": ("pre",)})
    found, kinds = statistic(test)
    fits = [smf.ols(f"y{i} ~ 0 + arm + age", pre()).fit() for i in range(4)]
    np.testing.assert_allclose(found[0], [fit.t_test([-1, 0, 1, 0]).tvalue.item() for fit in fits], rtol=1e-9)
    np.testing.assert_allclose(found[1], [fit.f_test([[-1, 1, 0, 0], [-1, 0, 1, 0]]).fvalue for fit in fits], rtol=1e-9)
    assert kinds == ["t", "F"]
    assert test.is_set
    assert test.questions["any"].startswith("connectivity: 1 x arm[b] and -1 x arm[a], or 1 x arm[c]")


@pytest.mark.parametrize("weights", [{"age": 1}, [{"age": 1}, {"dose": 1}]])
def test_design__one_contrast_needs_no_name(weights):
    test = build({"test": "design", "formula": "age + dose", "weights": weights, "sessions": ("pre",)})
    assert list(test.contrasts) == ["tested"]
    assert not test.is_set


def test_design__rows_of_sessions_know_their_subject_and_session():
    words = {"test": "design", "rows": "session", "formula": "C(subject) + C(session) + hour"}
    free = build({**words, "weights": [{"C(session)[T.post]": 1}, {"C(session)[T.pre]": 1}]})
    repeated = build({"test": "repeated", "sessions": SESSIONS, "formula": "hour"})
    np.testing.assert_allclose(statistic(free)[0], statistic(repeated)[0], rtol=1e-9)


def test_supplied__rows_are_joined_by_id_and_others_left_out():
    ids = ("12", "03", "07", "01", "05", "99")
    matrix = np.column_stack([np.ones(6), [0.0, 1, 0, 1, 2, 9]])
    design = pd.DataFrame(matrix, index=list(ids), columns=["ev1", "ev2"])
    given = SuppliedDesign(ids=ids, design=design, contrasts={"slope": np.array([0.0, 1])})
    test = build({"test": "design", "sessions": ("pre",)}, supplied=given)
    assert test.design.index.tolist() == ["01", "03", "05", "07", "12"]
    assert test.design["ev2"].tolist() == [1, 1, 2, 0, 0]
    assert test.left_out["99"] == "no usable run"
    assert test.left_out["02"] == "it is not in the list of ids"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"test": "f-test", "formula": "age", "effect": "arm"}, "E-DESIGN-FORMULA"),
        ({"test": "f-test", "formula": "age", "effect": "arm +"}, "E-DESIGN-FORMULA"),
        ({"test": "interaction", "formula": "arm + sex", "effect": ["sex", "age"]}, "E-DESIGN-FORMULA"),
        ({"test": "interaction", "formula": "arm * sex", "effect": ["arm", "sex"]}, "E-DESIGN-LEVELS"),
        (
            {"test": "interaction", "formula": "age * sex", "effect": ["age", "sex"], "levels": {"arm": ["a", "b"]}},
            "E-DESIGN-LEVELS",
        ),
        ({"test": "repeated", "sessions": SESSIONS, "effect": "site"}, "E-DESIGN-FORMULA"),
        ({"test": "repeated", "sessions": SESSIONS, "effect": "arm", "where": {"arm": "a"}}, "E-DESIGN-LEVELS"),
        ({"test": "repeated", "sessions": ["pre", "never"]}, "E-ID-MISSING"),
        ({"test": "design", "formula": "age", "weights": {"agee": 1}}, "E-CONTRAST"),
        ({"test": "design", "formula": "age", "weights": {"x": {"agee": 1}}}, "E-CONTRAST"),
        ({"test": "design", "formula": "C(age, contr.what)", "weights": {"age": 1}}, "E-DESIGN-FORMULA"),
        ({"test": "design", "formula": "age.real", "weights": {"age": 1}}, "E-DESIGN-FORMULA"),
    ],
)
def test_build_test__refuses(words, code):
    with pytest.raises(DesignError) as caught:
        build(words)
    assert caught.value.code == code
    assert caught.value.rule
    assert caught.value.fix


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "words",
    [
        {"test": "repeated", "sessions": SESSIONS, "effect": "arm"},
        {"test": "f-test", "formula": "arm + age", "effect": "arm"},
        {"test": "design", "rows": "session", "formula": "age", "weights": {"age": 1}},
    ],
    ids=lambda words: words["test"],
)
def test_build_test__rows_come_in_any_order(words, seed):
    rng = np.random.default_rng(seed)
    test = build(words)
    shuffled = build(
        words,
        netmat=cohort()[rng.permutation(45)],
        people=PEOPLE.iloc[rng.permutation(15)],
        sessions=VISITS.iloc[rng.permutation(45)],
    )
    xr.testing.assert_identical(test.data, shuffled.data)
    pd.testing.assert_frame_equal(test.design, shuffled.design)
