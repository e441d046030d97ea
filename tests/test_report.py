import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from kconn.errors import SchemaError
from kconn.infer.design import Hypothesis, build_test
from kconn.infer.inference import permutation_test
from kconn.kernels.sequential import Sequential
from kconn.report import (
    ReportData,
    describe_contrast,
    edge_table,
    recover_truth,
    render_report,
    write_report,
)
from kconn.report.bibliography import Bibliography
from kconn.report.methods import write_methods
from kconn.report.words import critical_value, format_number, format_p, headline

NODES = [f"Node_{letter}" for letter in "ABCDEFG"]
FIRST, SECOND = np.triu_indices(len(NODES), 1)
CHANGE = Hypothesis(
    test="two-sample",
    formula="group + age",
    effect="group",
    levels=("placebo", "ketamine"),
    change=("pre", "post"),
)


def make_cohort(n_subject, *, effect, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0.2, 0.2, (n_subject, 2, FIRST.size))
    z[: n_subject // 2, 1, 3] += effect
    z[: n_subject // 2, 1, 9] -= effect
    subjects = [f"{i + 1:02d}" for i in range(n_subject)]
    return xr.Dataset(
        {"netmat": (("observation", "edge"), z.reshape(-1, FIRST.size), {"kind": "corr", "z": "fisher"})},
        coords={
            "observation": [f"sub-{s}_ses-{v}" for s in subjects for v in ("pre", "post")],
            "subject": ("observation", np.repeat(subjects, 2)),
            "session": ("observation", ["pre", "post"] * n_subject),
            "node_i": ("edge", np.array(NODES)[FIRST]),
            "node_j": ("edge", np.array(NODES)[SECOND]),
        },
    )


def make_contrast(cohort, people, hypothesis, *, name="drug", alternative="two-sided", planted=None, **options):
    test = build_test(cohort["netmat"], people, None, hypothesis)
    result = permutation_test(
        test.data,
        test.design,
        test.contrasts,
        n_perm=200,
        seed=1,
        alternative=alternative,
        sign_flip=test.sign_flip,
        **options,
    )
    left_out = [f"{subject}: {reason}" for subject, reason in test.left_out.items()]
    return describe_contrast(
        name,
        node_set="seven",
        kind="corr",
        result=result.isel(contrast=0).assign_attrs(left_out=left_out, question=test.questions["tested"]),
        cohort=cohort,
        participants=people,
        hypothesis=hypothesis,
        planted=planted,
    )


@pytest.fixture(scope="module")
def people():
    ages = np.random.default_rng(3).integers(20, 60, 16)
    table = {"group": ["ketamine"] * 8 + ["placebo"] * 8, "age": ages, "sex": ["F", "M"] * 8}
    return pd.DataFrame(table, index=[f"{i + 1:02d}" for i in range(16)])


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(16, effect=1.2, seed=1)


@pytest.fixture(scope="module")
def planted():
    return pd.DataFrame({"node_i": ["Node_A", "Node_C"], "node_j": ["Node_E", "Node_B"], "sign": [1, -1]})


@pytest.fixture(scope="module")
def contrast(cohort, people):
    return make_contrast(cohort, people, CHANGE)


@pytest.fixture(scope="module")
def data(cohort, people, contrast):
    runs = pd.DataFrame(
        [(s, v, "1", 300.0, 290.0, 4.0, 0.1, 0.4, 80.0, 40.0, "") for s in people.index for v in ("pre", "post")],
        columns=[
            "subject",
            "session",
            "run",
            "n_frames",
            "n_kept",
            "minutes_kept",
            "mean_fd",
            "max_fd",
            "median_tsnr",
            "df_left",
            "excluded",
        ],
    )
    spoilt = ("17", "pre", "1", 300.0, 90.0, 1.2, 0.8, 3.1, 40.0, 3.0, "E-DF 3 degrees of freedom left, fewer than 20")
    runs.loc[len(runs)] = spoilt
    return ReportData(
        study="A small trial",
        date="1 May 2026",
        runs=runs,
        participants=people,
        cohorts={("seven", "corr"): cohort},
        nodes={"seven": pd.DataFrame({"node": NODES, "network": list("XXXYYYY")})},
        contrasts=[contrast],
        parameters={
            "inputs": {"layout": "fmriprep", "root": "/home/someone/trial"},
            "denoise": {"confounds": "36P", "detrend": True, "high_pass": 0.01, "low_pass": 0.1, "fd_threshold": 0.5},
            "quality": {"min_frames": 50, "min_dof": 20, "max_mean_fd": "none"},
        },
        software={"kconn": "0.1.0", "numpy": "2.0"},
        n_inputs=64,
        group="group",
    )


@pytest.fixture(scope="module")
def page(data):
    return render_report(data)


class Reader(HTMLParser):
    """Collects what the tests ask for, and checks that tags close."""

    void = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.links, self.loads, self.identifiers, self.errors = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.void:
            self.open.append(tag)
        if tag == "a":
            self.links.append(attrs["href"])
        self.loads += [v for k, v in attrs.items() if k in {"src", "xlink:href", "data", "srcset", "action"}]
        self.loads += [attrs["href"]] if tag in {"link", "use", "image"} and "href" in attrs else []
        if "id" in attrs:
            self.identifiers.append(attrs["id"])
        if tag == "tr":
            self.rows.append([])
        if tag == "data":
            self.rows[-1].append(float(attrs["value"]))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_render_report__every_number_of_the_table_is_that_of_the_result(page, contrast):
    rows = [row for row in read(page).rows if row]
    result = contrast.result
    names = ("effect", "stat", "dof", "cohen_d", "p_unc", "p_fdr", "p_fwe")
    expected = [
        [float(result[name].to_numpy()[e]) for name in names]
        for e in np.lexsort((-np.abs(result["stat"].to_numpy()), result["p_fwe"].to_numpy()))
        if result["p_fwe"].to_numpy()[e] < 0.05
    ]
    assert len(expected) == 2
    assert rows == expected


def test_render_report__is_whole_html_with_unique_identifiers(page):
    reader = read(page)
    assert not reader.errors
    assert not reader.open
    assert len(reader.identifiers) == len(set(reader.identifiers))
    targets = {link[1:] for link in reader.links if link.startswith("#")}
    assert targets <= set(reader.identifiers)


def test_render_report__loads_nothing(page):
    reader = read(page)
    assert all(value.startswith(("data:", "#")) for value in reader.loads)
    assert all(link.startswith(("#", "https://doi.org/")) for link in reader.links)
    assert "<script" not in page
    assert "@import" not in page
    addresses = set(re.findall(r"https?://[^/\"' )]+", page))
    assert addresses == {"https://doi.org"}


def test_render_report__same_data_same_bytes(page, data):
    assert render_report(data) == page


def test_render_report__hostile_labels_are_text(data, cohort, people):
    bad = "<script>alert('$x$')</script>"
    nodes = np.array([bad, *NODES[1:]])
    hostile = cohort.assign_coords(node_i=("edge", nodes[FIRST]), node_j=("edge", nodes[SECOND]))
    runs = data.runs.assign(excluded=bad)
    page = render_report(
        replace(
            data,
            study=bad,
            runs=runs,
            cohorts={("seven", "corr"): hostile},
            nodes={},
            contrasts=[make_contrast(hostile, people, CHANGE)],
        )
    )
    assert "<script" not in page
    assert not read(page).errors
    assert "&lt;script&gt;" in page


def test_render_report__no_finding_is_said_plainly(data, people):
    null = make_cohort(16, effect=0.0, seed=5)
    contrast = make_contrast(null, people, CHANGE)
    page = render_report(replace(data, contrasts=[contrast], cohorts={("seven", "corr"): null}))
    assert "No connection changed differently from pre to post in ketamine than in placebo after correction" in page
    assert "none of them significant" in page
    assert len([row for row in read(page).rows if row]) == 5
    assert "-brain" not in page
    assert "-ring" not in page


def test_render_report__names_no_folder_and_no_code(page):
    assert "/home/someone" not in page
    assert "…/trial" in page
    assert "E-DF" not in page
    assert "3 degrees of freedom left, fewer than 20" in page


def test_render_report__methods_follow_the_parameters(data, page):
    text = words(page)
    assert "36 regressors" in text
    assert "frequencies outside 0.01 to 0.1 Hz" in text
    assert "200 relabellings" in text
    plain = {"denoise": {"confounds": "none", "detrend": False, "high_pass": "none", "low_pass": "none"}}
    bare = words(render_report(replace(data, contrasts=[], parameters=plain)))
    assert "nothing was regressed or filtered" in bare
    assert "36 regressors" not in bare
    assert "No contrast was tested" in bare
    assert "Esteban" in text
    assert "Esteban" not in bare


@pytest.mark.parametrize("is_known", [True, False])
def test_render_report__methods_speak_of_motion_only_where_it_is_known(data, is_known):
    motion = xr.Dataset(
        {"n_first": (("comparison", "measure"), np.full((1, 1), 12 * is_known))}, coords={"measure": ["mean_fd"]}
    )
    qc_fc = xr.Dataset(attrs={} if is_known else {"not_estimated": "nobody knows how they moved"})
    text = write_methods(replace(data, motion=motion, qc_fc={"seven": qc_fc}), Bibliography(), [])
    quality = next(words for title, words in text if title == "Quality")
    assert ("framewise displacement" in quality) == is_known
    assert ("QC-FC" in quality) == is_known


def test_render_report__the_legend_explains_the_panels_that_are_drawn(data, page):
    assert "FD: framewise displacement (head motion)." in words(page)
    still = words(render_report(replace(data, runs=data.runs.assign(mean_fd=np.nan))))
    assert "FD: framewise displacement" not in still
    assert "tSNR: temporal mean" in still


def test_render_report__glass_brain_where_nodes_have_coordinates(data):
    places = pd.DataFrame({"node": NODES, "x": np.linspace(-50, 50, 7), "y": np.linspace(-80, 50, 7), "z": 10.0})
    page = render_report(replace(data, nodes={"seven": places}))
    assert "contrast0-brain" in page
    assert "contrast0-ring" not in page
    assert "Ward" in page


@pytest.mark.parametrize(
    "hypothesis",
    [
        Hypothesis(test="paired", change=("pre", "post"), where={"group": "ketamine"}),
        Hypothesis(test="one-sample", sessions=("pre",)),
        Hypothesis(test="covariate", formula="age + sex", effect="age", sessions=("pre",)),
        Hypothesis(test="two-sample", formula="group", effect="group"),
    ],
)
def test_render_report__every_kind_of_test(data, cohort, people, hypothesis):
    contrast = make_contrast(cohort, people, hypothesis)
    page = render_report(replace(data, contrasts=[contrast]))
    assert not read(page).errors
    assert headline(contrast, alpha=0.05) in page.replace("&lt;", "<")


REPEATED = Hypothesis(test="repeated", sessions=("pre", "post"), effect="group")
SUBJECTS_WHOLE = -np.repeat(np.arange(1, 17), 2)


@pytest.mark.parametrize(
    ("hypothesis", "options", "said"),
    [
        (
            Hypothesis(test="f-test", formula="group + age", effect=("group", "age")),
            {},
            ["shows an effect of group and age", "F, all directions", "from F =", "has no direction"],
        ),
        (
            Hypothesis(test="interaction", formula="group * sex", effect=("group", "sex"), change=("pre", "post")),
            {"tail": "gpd"},
            ["an interaction of group and sex", "generalised Pareto tail", "of the change from pre to post"],
        ),
        (
            REPEATED,
            {"exchangeability_blocks": SUBJECTS_WHOLE},
            ["in its course over pre, post", "32 sessions", "sessions 32"],
        ),
        (
            Hypothesis(test="design", formula="0 + group", weights={"group[ketamine]": 1, "group[placebo]": -1}),
            {"variance_groups": np.repeat([1, 2], 8)},
            ["departs from the null", "per unit of the contrast", "from |z| ="],
        ),
        (
            CHANGE,
            {"statistic": "nbs", "threshold": 1.0},
            ["edges of a component", "Zalesky", "threshold 1", "cluster"],
        ),
        (CHANGE, {"fdr": "bky", "regression": "dekker"}, ["two-stage", "after Dekker", "regression dekker"]),
        (
            CHANGE,
            {"stopping": Sequential(n_exceed=5)},
            ["false discovery rate < .05", "until 5 of them", "at most 200", "Besag", "stopping at 5 as extreme"],
        ),
    ],
    ids=["f-test", "interaction", "repeated", "design", "nbs", "options", "stopping"],
)
def test_render_report__reads_well_for_every_design_and_option(data, cohort, people, hypothesis, options, said):
    contrast = make_contrast(cohort, people, hypothesis, **options)
    page = render_report(replace(data, contrasts=[contrast]))
    assert not read(page).errors
    text = words(page).replace("&lt;", "<")
    assert headline(contrast, alpha=0.05) in text
    plain = text.replace("show an", "shows an").replace("differ by", "differs by").replace("their course", "its course")
    plain = plain.replace("depart from", "departs from")
    assert [phrase for phrase in said if phrase not in plain] == []
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("hypothesis", "options"),
    [
        (CHANGE, {"statistic": "nbs", "threshold": 1.0}),
        (CHANGE, {"variance_groups": np.repeat([1, 2], 8)}),
        (CHANGE, {"convention": "palm"}),
        (Hypothesis(test="f-test", formula="group + age", effect="group"), {}),
    ],
)
def test_critical_value__is_on_the_scale_of_the_maxima(cohort, people, hypothesis, options):
    contrast = make_contrast(cohort, people, hypothesis, **options)
    threshold = critical_value(contrast, alpha=0.05)
    np.testing.assert_array_equal(contrast.towards() >= threshold * (1 - 1e-9), contrast.significant(0.05))
    np.testing.assert_allclose(np.nanmax(contrast.towards()), contrast.result["max_stat"][0], rtol=1e-9)


def test_write_report__replaces_the_file_and_leaves_no_other(tmp_path, data, page):
    path = tmp_path / "new" / "report.html"
    assert write_report(replace(data, contrasts=[]), path) == path
    write_report(data, path)
    assert path.read_text(encoding="utf-8") == page
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 1_000_000


def test_describe_contrast__joins_by_subject_whatever_the_order(cohort, people):
    shuffled = cohort.isel(observation=np.random.default_rng(0).permutation(cohort.sizes["observation"]))
    one, other = (make_contrast(found, people.iloc[::-1], CHANGE) for found in (cohort, shuffled))
    xr.testing.assert_equal(one.observed, other.observed)
    assert one.groups == other.groups
    pre = cohort["netmat"].to_numpy()[0::2]
    post = cohort["netmat"].to_numpy()[1::2]
    np.testing.assert_array_equal(one.observed, post - pre)
    np.testing.assert_array_equal(one.visits, [pre, post])


def test_describe_contrast__a_level_that_is_a_number_has_the_name_of_its_column(cohort, people):
    numbered = people.assign(group=np.repeat([1.0, 0.0], 8))
    contrast = make_contrast(cohort, numbered, replace(CHANGE, levels=(0, 1)))
    assert contrast.levels == ("group 0", "group 1")
    assert contrast.groups == ("group 1",) * 8 + ("group 0",) * 8


def test_describe_contrast__a_subject_without_data_is_refused(cohort, people, contrast):
    with pytest.raises(SchemaError, match="'16'"):
        describe_contrast(
            "drug",
            node_set="seven",
            kind="corr",
            result=contrast.result,
            cohort=cohort.isel(observation=slice(0, 30)),
            participants=people,
            hypothesis=CHANGE,
        )


def test_recover_truth__counts_found_missed_and_false(cohort, people, planted):
    contrast = make_contrast(cohort, people, CHANGE, planted=planted)
    found = recover_truth(contrast, alpha=0.05)
    assert (found.n_planted, found.n_tested) == (2, 21)
    table = edge_table(contrast)
    significant = table[table["p_fwe"] < 0.05]
    assert found.n_found == 1
    assert found.n_false == 1
    assert found.sensitivity == 0.5
    assert set(significant["planted"]) == {True, False}


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_critical_value__is_the_border_of_significance(cohort, people, alternative):
    contrast = make_contrast(cohort, people, CHANGE, alternative=alternative)
    threshold = critical_value(contrast, alpha=0.05)
    np.testing.assert_array_equal(contrast.towards() >= threshold, contrast.significant(0.05))


def test_critical_value__too_few_relabellings_for_any(cohort, people):
    few = people.iloc[[0, 1, 2, 8]]
    small = cohort.isel(observation=np.isin(cohort["subject"], few.index))
    contrast = make_contrast(small, few, Hypothesis(test="paired", change=("pre", "post")))
    assert contrast.n_perm == 16
    assert np.isnan(critical_value(contrast, alpha=0.05))


@pytest.mark.parametrize(
    ("p", "n_perm", "text"), [(1.0, 200, "1.0000"), (0.0002, 5000, "0.0002"), (1e-5, 100_000, "0.00001")]
)
def test_format_p__never_prints_zero(p, n_perm, text):
    assert format_p(p, n_perm=n_perm) == text
    assert float(format_p(1 / n_perm, n_perm=n_perm)) > 0


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0004, "0.000"), (-0.0006, "\N{MINUS SIGN}0.001"), (np.nan, "\N{EN DASH}")]
)
def test_format_number__has_no_minus_before_zero(value, text):
    assert format_number(value, digits=3) == text


def test_headline__numbered_sessions_are_named():
    assert Hypothesis(test="paired", change=("1", "2")).span == ("session 1", "session 2")
    assert Hypothesis(test="paired", change=("pre", "post")).span == ("pre", "post")
