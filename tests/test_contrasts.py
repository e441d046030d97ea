"""From a contrast of the study file to one call of the permutation test."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import xarray as xr

from kconn.errors import KconnError
from kconn.infer.inference import permutation_test
from kconn.io import designs
from kconn.kernels.clusters import Tfce, network_pairs
from kconn.kernels.sequential import Sequential
from kconn.study.contrasts import arrange_test, describe_exchange, run_test, split_contrasts
from kconn.study.rehearsal import rehearse_test
from kconn.study.test_tables import ContrastTable

N = 12
SUBJECTS = [f"{i:02d}" for i in range(1, N + 1)]
PEOPLE = pd.DataFrame(
    {
        "group": ["p", "a"] * 6,
        "age": np.random.default_rng(1).normal(40, 9, N).round(),
        "family": [f"f{i // 2}" for i in range(N)],
        "site": [1] * 6 + [2] * 6,
    },
    index=pd.Index(SUBJECTS, name="subject"),
)
NODE_I, NODE_J = np.triu_indices(4, 1)
NETMAT = xr.DataArray(
    np.random.default_rng(2).normal(size=(N, 2, 6)).reshape(-1, 6),
    dims=("observation", "edge"),
    coords={
        "observation": [f"sub-{s}_ses-{v}" for s in SUBJECTS for v in ("post", "pre")],
        "subject": ("observation", np.repeat(np.array(SUBJECTS, dtype=object), 2)),
        "session": ("observation", np.array(["post", "pre"] * N, dtype=object)),
        "node_i": ("edge", [f"n{i}" for i in NODE_I]),
        "node_j": ("edge", [f"n{j}" for j in NODE_J]),
    },
)
GROUPS = {"test": "two-sample", "formula": "group + age", "effect": "group", "levels": ["p", "a"]}


def arrange(keys, files=None):
    """Arrange a contrast of the study file, with 60 relabellings unless it says otherwise."""
    table = ContrastTable.model_validate({"n_perm": 60, "seed": 5, **keys})
    options = table.model_dump(mode="json", include=set(ContrastTable.__mro__[1].model_fields))
    params = {"hypothesis": table.hypothesis, "permutation": options}
    return arrange_test(NETMAT, PEOPLE, None, params, files or {})


def directly(**options):
    """Test group p against a with age as nuisance by a direct call."""
    data = NETMAT.to_numpy().reshape(N, 2, 6).mean(axis=1)
    data = xr.DataArray(data, dims=("observation", "edge"), coords={"observation": SUBJECTS})
    data = data.assign_coords({name: ("edge", NETMAT[name].to_numpy()) for name in ("node_i", "node_j")})
    design = pd.DataFrame({"one": 1.0, "group": (PEOPLE.group == "a").astype(float), "age": PEOPLE.age}, index=SUBJECTS)
    return permutation_test(data, design, {"tested": {"group": 1}}, n_perm=60, seed=5, **options)


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {}),
        ({"alternative": "less", "fdr": "bky"}, {"alternative": "less", "fdr": "bky"}),
        ({"dtype": "float32"}, {"dtype": "float32"}),
        ({"exchangeability_blocks": "site"}, {"exchangeability_blocks": PEOPLE.site}),
        (
            {"exchangeability_blocks": "family", "exchange": "both"},
            {"exchangeability_blocks": np.column_stack([np.ones(N, int), np.arange(N) // 2 + 1])},
        ),
        ({"variance_groups": "group"}, {"variance_groups": PEOPLE.group}),
        ({"sign_flip": "both"}, {"sign_flip": "both"}),
        ({"regression": "dekker", "tail": "gpd"}, {"regression": "dekker", "tail": "gpd"}),
        ({"stopping": 4}, {"stopping": Sequential(n_exceed=4)}),
        ({"statistic": "nbs", "threshold": 1.0}, {"statistic": "nbs", "threshold": 1.0}),
        (
            {"statistic": "tfce", "tfce_height": 1.5, "tfce_step": "map", "convention": "palm"},
            {
                "statistic": "tfce",
                "tfce": Tfce(height=1.5, step="map"),
                "convention": "palm",
                "neighbours": np.array([(i, j) for i in range(6) for j in range(i) if i + j != 5]),
            },
        ),
    ],
    ids=lambda value: next(iter(value), "plain"),
)  # fmt: skip
def test_run_test__is_the_call_that_the_keys_say(keys, options):
    found, expected = run_test(arrange({**GROUPS, **keys})), directly(**options)
    xr.testing.assert_identical(found, expected)


def test_run_test__repeated_exchanges_within_subjects_and_courses_between_them():
    blocks = np.repeat(np.arange(N) + 1, 2)
    for effect, sign, words in ((None, 1, "within each of 12 subjects"), ("group", -1, "12 subjects as wholes")):
        arrangement = arrange(
            {"test": "repeated", "sessions": ["pre", "post"], **({"effect": effect} if effect else {})}
        )
        np.testing.assert_array_equal(arrangement.blocks.to_numpy()[:, 0], sign * blocks)
        assert describe_exchange(arrangement) == words
        result = run_test(arrangement)
        assert np.isfinite(result["p_fwe"]).all()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ""),
        ({"exchangeability_blocks": "site"}, "within each of 2 blocks"),
        ({"exchangeability_blocks": "family", "exchange": "whole"}, "6 blocks as wholes"),
        ({"exchangeability_blocks": "family", "exchange": "both"}, "6 blocks as wholes, and within each"),
        ({"exchangeability_blocks": ["site", "family"]}, "within and between blocks of 2 levels"),
    ],
)
def test_describe_exchange__says_what_changes_places(keys, words):
    assert describe_exchange(arrange({**GROUPS, **keys})) == words


def write_files(folder, ids, **tables):
    """Write tables of numbers and the ids of their rows; return role -> path."""
    paths = {"ids": designs.write_ids(folder / "ids.txt", ids)}
    return paths | {role: designs.write_palm_table(folder / f"{role}.csv", table) for role, table in tables.items()}


def test_files__a_table_of_relabellings_gives_the_same_p_in_any_order_of_rows(tmp_path):
    drawn = run_test(arrange(GROUPS))
    table = drawn["permutation_table"].isel(contrast=0).to_numpy()
    order = np.random.default_rng(3).permutation(N)
    place = np.argsort(order)
    shuffled = place[table[:, order]]
    paths = write_files(tmp_path, [f"sub-{SUBJECTS[i]}" for i in order], permutations=shuffled.T + 1)
    again = run_test(arrange({**GROUPS, "n_perm": 7}, paths))
    for name in ("stat", "p_unc", "p_fwe", "max_stat"):
        xr.testing.assert_identical(again[name].drop_vars("shuffling"), drawn[name].drop_vars("shuffling"))
    assert again["shuffling"].item() == "user table"
    assert rehearse_test(arrange(GROUPS, paths))[0].shuffling.n_perm == 60
    counted_from_0 = write_files(tmp_path / "0", [SUBJECTS[i] for i in order], permutations=shuffled.T)
    xr.testing.assert_identical(run_test(arrange(GROUPS, counted_from_0)), again)


@pytest.mark.parametrize("signed", [True, False])
def test_files__signs_stand_in_a_table_or_before_positions(tmp_path, signed):
    keys = {"test": "paired", "change": ["pre", "post"]}
    drawn = run_test(arrange(keys))
    signs = drawn["sign_table"].isel(contrast=0).to_numpy()
    if signed:
        path = designs.write_relabellings(tmp_path / "p.csv", np.tile(np.arange(N), (60, 1)), signs)
        paths = {**write_files(tmp_path, SUBJECTS), "permutations": path}
    else:
        paths = write_files(tmp_path, SUBJECTS, signs=signs.T)
    again = run_test(arrange(keys, paths))
    np.testing.assert_array_equal(again["p_fwe"], drawn["p_fwe"])
    np.testing.assert_array_equal(again["max_stat"], drawn["max_stat"])


def test_files__a_design_of_another_tool_gives_the_same_p(tmp_path):
    order = np.random.default_rng(4).permutation(N)
    design = np.column_stack([np.ones(N), PEOPLE.group == "a", PEOPLE.age])[order].astype(float)
    groups = PEOPLE.site.to_numpy()[order]
    ids = [SUBJECTS[i] for i in order]
    written = designs.write_fsl_design(tmp_path / "design", design, {"a > p": np.array([0.0, 1, 0])}, groups)
    roles = dict(zip(("design", "contrasts", "blocks"), written, strict=True))
    paths = {"ids": designs.write_ids(tmp_path / "ids.txt", ids), **roles}
    given = {role: str(path) for role, path in paths.items()}
    found = run_test(arrange({"test": "design", "files": given}, paths))
    expected = directly(exchangeability_blocks=PEOPLE.site)
    assert found["contrast"].to_numpy().tolist() == ["a > p"]
    for name in ("stat", "p_unc", "p_fwe", "p_fdr", "max_stat"):
        np.testing.assert_array_equal(found[name], expected[name])
    labels = groups[:, None]
    tables = {"design": design, "contrasts": [[0, 1, 0]], "blocks": labels, "variance_groups": labels}
    palm = write_files(tmp_path / "palm", ids, **tables)
    welch = run_test(arrange({"test": "design", "files": given}, palm))
    expected = directly(exchangeability_blocks=PEOPLE.site, variance_groups=PEOPLE.site)
    np.testing.assert_array_equal(welch["p_fwe"], expected["p_fwe"])
    assert welch["stat_kind"].item() == "v"


def test_split_contrasts__each_is_as_if_alone():
    weights = {"slope": {"age": 1}, "any": [{"age": 1}, {"group[T.p]": 1}]}
    keys = {"test": "design", "formula": "group + age", "weights": weights, "joint_fwe": True}
    arrangement = arrange(keys)
    result = run_test(arrangement).assign_attrs(
        questions=list(arrangement.test.questions.values()), weights=[[[0.0, 0, 1]], [[0.0, 0, 1], [0, 1, 0]]]
    )
    split = split_contrasts(result, "both")
    assert list(split) == ["both-slope", "both-any"]
    assert split["both-any"]["stat_kind"].item() == "F"
    assert split["both-any"].attrs["weights"] == [[[0.0, 0, 1], [0, 1, 0]]]
    assert "any effect" not in split["both-slope"].attrs["question"]
    assert (split["both-any"]["p_fwe_joint"] >= split["both-any"]["p_fwe"] - 1e-12).all()
    alone = run_test(arrange({**keys, "weights": {"age": 1}, "joint_fwe": False}))
    np.testing.assert_array_equal(split["both-slope"]["stat"], alone["stat"][0])
    assert split_contrasts(alone.isel(contrast=0), "one")["one"].identical(alone.isel(contrast=0))


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"statistic": "nbs"}, "E-ARGUMENT"),
        ({"threshold": 2.0}, "E-ARGUMENT"),
        ({"statistic": "cluster-mass"}, "E-ARGUMENT"),
        ({"statistic": "tfce", "threshold": 2.0}, "E-ARGUMENT"),
        ({"tfce_height": 1.0}, "E-ARGUMENT"),
        ({"statistic": "nbs", "threshold": 3.0, "convention": "nilearn"}, "E-ARGUMENT"),
        ({"variance_groups": "group", "regression": "manly"}, "E-ARGUMENT"),
        ({"exchangeability_blocks": "group", "exchange": "within"}, "E-PERMUTATIONS"),
        ({"formula": "group + age + I(2 * age)"}, "E-DESIGN-RANK"),
        ({"variance_groups": "none", "exchangeability_blocks": "fam"}, "E-DESIGN-FORMULA"),
    ],
)
def test_rehearse_test__meets_every_refusal_before_the_data(keys, code):
    with pytest.raises(KconnError) as caught:
        rehearse_test(arrange({**GROUPS, **keys}))
    assert caught.value.code == code


def test_rehearse_test__draws_the_relabellings_of_the_test():
    arrangement = arrange({**GROUPS, "exchangeability_blocks": "site"})
    (rehearsed,), tested = rehearse_test(arrangement, n_perm=60), run_test(arrangement)
    np.testing.assert_array_equal(rehearsed.shuffling.permutations, tested["permutation_table"][0])


@pytest.mark.parametrize("neighbours", [6, None])
def test_rehearse_test__voxels_need_their_connectivity_named(neighbours):
    arrangement = arrange({**GROUPS, "statistic": "cluster-extent", "threshold": 2.3, "neighbours": neighbours})
    rehearse_test(arrangement)
    if neighbours is None:
        with pytest.raises(KconnError, match="without neighbours"):
            rehearse_test(arrangement, feature="voxel")
    else:
        assert rehearse_test(arrangement, feature="voxel")


def test_arrange_test__sessions_of_one_subject_need_blocks():
    words = {"test": "design", "rows": "session", "formula": "session", "weights": {"session[T.pre]": 1}}
    with pytest.raises(KconnError, match="E-BLOCKS"):
        arrange(words)
    assert arrange({**words, "sessions": ["pre"], "formula": "age", "weights": {"age": 1}}).blocks is None


@pytest.mark.parametrize(
    ("ids", "table", "code"),
    [
        (SUBJECTS[:-1], np.ones((N, 3)), "E-TABLE-SHAPE"),
        ([*SUBJECTS[:-1], "99"], np.arange(1, N + 1)[:, None].repeat(3, axis=1), "E-ID-MISSING"),
        ([*SUBJECTS[:-1], "01"], np.ones((N, 3)), "E-ID-DUPLICATE"),
        ([f"sub-{s}_ses-pre" for s in SUBJECTS], np.ones((N, 3)), "E-ID"),
        (SUBJECTS, np.full((N, 3), 1.5), "E-TABLE"),
        (SUBJECTS, np.ones((N, 3)), "E-PERMUTATIONS"),
    ],
)
def test_files__refusals(tmp_path, ids, table, code):
    with pytest.raises(KconnError) as caught:
        run_test(arrange(GROUPS, write_files(tmp_path, ids, permutations=table)))
    assert caught.value.code == code
    assert str(tmp_path) not in str(caught.value)


def test_network_pairs__are_those_that_share_a_node():
    node_i, node_j = np.triu_indices(6, 1)
    pairs = {frozenset(pair) for pair in network_pairs(node_i, node_j).tolist()}
    ends = [{i, j} for i, j in zip(node_i, node_j, strict=True)]
    expected = {frozenset((a, b)) for a in range(15) for b in range(a) if ends[a] & ends[b]}
    assert pairs == expected
    assert len(network_pairs(node_i, node_j)) == len(expected)


def test_run_test__the_baseline_of_each_edge_is_its_own_nuisance():
    """Post given pre, edge by edge: the analysis of covariance of statsmodels."""
    result = run_test(arrange({**GROUPS, "sessions": ["post"], "baseline": ["pre"]}))
    post, pre = (NETMAT.to_numpy().reshape(N, 2, 6)[:, i] for i in range(2))
    for edge in range(6):
        table = PEOPLE.assign(post=post[:, edge], pre=pre[:, edge], treated=(PEOPLE.group == "a").astype(float))
        fit = smf.ols("post ~ treated + age + pre", table).fit()
        np.testing.assert_allclose(result["stat"][0, edge], fit.tvalues["treated"], rtol=1e-9)
        np.testing.assert_allclose(result["effect"][0, edge], fit.params["treated"], rtol=1e-9)
    assert (
        "given its value in pre"
        in arrange({**GROUPS, "sessions": ["post"], "baseline": ["pre"]}).test.questions["tested"]
    )


def test_run_test__the_baseline_of_each_edge_can_be_what_is_tested():
    """The slope of post on pre, edge by edge, and an F of it with age."""
    weights = {"slope": {"baseline": 1}, "any": [{"baseline": 1}, {"age": 1}], "age": {"age": 1}}
    arranged = arrange(
        {"test": "design", "formula": "group + age", "sessions": ["post"], "baseline": ["pre"], "weights": weights}
    )
    rehearse_test(arranged)
    result = run_test(arranged)
    post, pre = (NETMAT.to_numpy().reshape(N, 2, 6)[:, i] for i in range(2))
    for edge in range(6):
        table = PEOPLE.assign(post=post[:, edge], pre=pre[:, edge])
        fit = smf.ols("post ~ group + age + pre", table).fit()
        stat = result["stat"][:, edge].to_series()
        np.testing.assert_allclose(stat["slope"], fit.tvalues["pre"], rtol=1e-9)
        np.testing.assert_allclose(stat["age"], fit.tvalues["age"], rtol=1e-9)
        np.testing.assert_allclose(stat["any"], fit.f_test("pre = 0, age = 0").fvalue, rtol=1e-9)
    assert "1 x baseline" in arranged.test.questions["slope"]
    assert ["given its value" in sentence for sentence in arranged.test.questions.values()] == [False, False, True]


def test_run_test__the_baseline_does_not_depend_on_the_order_of_sessions():
    table = ContrastTable.model_validate({**GROUPS, "n_perm": 60, "sessions": ["post"], "baseline": ["pre"]})
    options = table.model_dump(mode="json", include=set(ContrastTable.__mro__[1].model_fields))
    params = {"hypothesis": table.hypothesis, "permutation": options}
    order = np.random.default_rng(3).permutation(2 * N)
    first, again = (run_test(arrange_test(data, PEOPLE, None, params, {})) for data in (NETMAT, NETMAT[order]))
    xr.testing.assert_identical(first, again)


@pytest.mark.parametrize(
    "keys",
    [
        {"sessions": ["post"], "baseline": ["never"]},
        {"sessions": ["post"], "baseline": ["pre"], "regression": "manly"},
        {"sessions": ["post"], "baseline": ["pre"], "variance_groups": "group"},
        {"sessions": ["post"], "baseline": ["pre"], "missing": "refit"},
        {"test": "design", "weights": {"baseline": 1}, "effect": None, "levels": None},
    ],
)
def test_rehearse_test__refuses_a_baseline_that_cannot_be(keys):
    with pytest.raises(KconnError):
        rehearse_test(arrange({**GROUPS, **keys}))
