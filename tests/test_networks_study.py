"""Families, blocks, visits, amplitudes and reliability: from the study file to the report and the exported tables."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

import kconn
from kconn.cli import main
from kconn.connect.families import OUTSIDE
from kconn.errors import InputError, StudyFileError
from kconn.study.families import plan_blocks
from kconn.study.family_checks import check_families
from kconn.study.file import Study, read_study
from kconn.study.survey import survey_study
from kconn.study.workbench import prepare
from tests.networks_study import FAMILY, NODES, STUDY, networks_study

STEM = "group/group_atlas-all_stat"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the study to its end and export it, once for all tests."""
    path = networks_study(tmp_path_factory.mktemp("networks"))
    assert main(["run", str(path), "--workers", "0"]) == 0
    assert main(["export", str(path), "--out", str(path.parent / "out")]) == 0
    return path.parent


def opened(folder, place):
    return kconn.open_study(folder / "study.zarr")[place].to_dataset()


def read_table(folder, name):
    return pd.read_csv(folder / "out" / f"{STEM}-{name}.tsv", sep="\t", na_values="n/a")


def read_sidecar(folder, name):
    return json.loads((folder / "out" / f"{STEM}-{name}.json").read_text())


def series(folder, subject, session, run):
    return pd.read_csv(folder / "series" / f"sub-{subject:02d}_ses-{session}_run-{run}.tsv", sep="\t")


def test_blocks__are_means_of_fisher_z_over_sessions(ran):
    table = read_table(ran, "pearsoncorrelation_blocks").set_index(["participant_id", "session_id"])
    cohort = opened(ran, "cohort/all/corr")
    place = {
        pair: i for i, pair in enumerate(zip(cohort["node_i"].to_numpy(), cohort["node_j"].to_numpy(), strict=True))
    }
    row = cohort["netmat"].to_numpy()[list(cohort["observation"].to_numpy()).index("sub-01_ses-pre1")]
    within = np.mean([row[place[pair]] for pair in (("a", "b"), ("a", "c"), ("b", "c"))])
    between = np.mean([row[place[i, j]] for i in "abc" for j in "de"])
    assert table.loc[("sub-01", "ses-pre1"), "DMN"] == pytest.approx(within, abs=1e-14)
    assert table.loc[("sub-01", "ses-pre1"), "DMN-limbic"] == pytest.approx(between, abs=1e-14)
    assert list(table.columns[-3:]) == ["coi", "control", "sgACC-DMN"]
    assert "sgACC" not in table.columns  # one node has no edge within
    sidecar = read_sidecar(ran, "pearsoncorrelation_blocks")
    assert sidecar["coi"] == {"Edges": [["limbic", "DMN"], ["a", "vis"]], "NumberOfEdges": len(FAMILY)}
    assert sidecar["Values"] == "Fisher z: arctanh of r"


def test_visits__are_the_mean_of_the_sessions_that_a_subject_has(ran):
    table = read_table(ran, "pearsoncorrelation_blocks").set_index(["participant_id", "session_id"])["DMN"]
    mean = (table["sub-00", "ses-pre1"] + table["sub-00", "ses-pre2"]) / 2
    assert table["sub-00", "ses-baseline"] == pytest.approx(mean, abs=1e-15)
    assert table["sub-03", "ses-baseline"] == table["sub-03", "ses-pre1"]
    result = opened(ran, "contrasts/all/corr/change/blocks")
    assert result.attrs["n_observation"] == 4
    change = table[:, "ses-post"] - table[:, "ses-baseline"]
    at = list(result["family"].to_numpy()).index("DMN")
    assert float(result["effect"][at]) == pytest.approx(change.mean(), abs=1e-14)
    assert float(result["stat"][at]) == pytest.approx(change.mean() / change.std() * 2, rel=1e-10)


def test_families__are_tested_and_corrected_alone(ran):
    result = opened(ran, "contrasts/all/corr/coi")
    pairs = list(zip(result["node_i"].to_numpy(), result["node_j"].to_numpy(), strict=True))
    inside = np.array([frozenset(pair) in FAMILY for pair in pairs])
    p = result["p_fwe"].to_numpy()
    np.testing.assert_array_equal(np.isfinite(p), inside)
    np.testing.assert_array_equal(result["excluded"], np.where(inside, 0, OUTSIDE))
    # The largest statistic of the identity is that of the family, and p its rank among the maxima.
    stat, maxima = np.abs(result["stat"].to_numpy()), result["max_stat"].to_numpy()
    assert maxima[0] == pytest.approx(np.nanmax(stat), rel=1e-12)
    expected = [(maxima >= value - 1e-9).mean() for value in stat[inside]]
    np.testing.assert_allclose(p[inside], expected)
    sidecar = read_sidecar(ran, "pearsoncorrelation_desc-coi_edges")
    assert sidecar["Family"]["Name"] == "coi"
    assert sidecar["CorrectedOver"] == "the edges of the family coi alone"
    assert list((ran / "out/group").glob("*coiBlocks*")) == []


def test_amplitudes__are_standard_deviations_averaged_over_runs(ran):
    table = read_table(ran, "amplitude_amplitudes").set_index(["participant_id", "session_id"])
    cohort = opened(ran, "cohort/all/amplitude")
    assert cohort["amplitude"].dims == ("observation", "node")
    runs = [opened(ran, f"sub-02/ses-post/run-{run}/all")["timeseries"].to_numpy() for run in (1, 2)]
    expected = np.mean([run.std(axis=1, ddof=1) for run in runs], axis=0)
    np.testing.assert_allclose(table.loc[("sub-02", "ses-post")], expected, rtol=1e-12)
    result = opened(ran, "contrasts/all/amplitude/change/nodes")
    assert result["node"].to_numpy().tolist() == list(NODES)
    assert read_sidecar(ran, "amplitude_desc-changeNodes_nodes")["Values"] == "sd of the node series"


@pytest.mark.parametrize(
    ("name", "level", "labels"), [("visits", "session", ["pre1", "pre2"]), ("runs", "run", [1, 2])]
)
def test_reliability__matches_the_mean_squares_of_an_outside_anova(ran, name, level, labels):
    found = opened(ran, f"reliability/all/corr/{name}")
    at = list(zip(found["node_i"].to_numpy(), found["node_j"].to_numpy(), strict=True)).index(("a", "d"))
    rows = []
    for subject in range(3 if name == "visits" else 4):
        for label in labels:
            runs = [(label, run) for run in (1, 2)] if level == "session" else [("post", label)]
            nets = [
                opened(ran, f"sub-{subject:02d}/ses-{s}/run-{r}/all/corr")["netmat"].to_numpy()[at] for s, r in runs
            ]
            rows.append({"subject": subject, "label": str(label), "z": np.mean(nets)})
    table = anova_lm(ols("z ~ C(subject) + C(label)", pd.DataFrame(rows)).fit())
    between, repeats, error = table["mean_sq"]
    n, k = len(rows) // 2, 2
    expected = {
        "visits": (between - error) / (between + (k - 1) * error),
        "runs": (between - error) / (between + (k - 1) * error + k * (repeats - error) / n),
    }[name]
    assert float(found["icc"][at]) == pytest.approx(expected, rel=1e-9)
    assert found.attrs["n_subject"] == n
    assert read_sidecar(ran, f"pearsoncorrelation_desc-{name}_icc")["NumberOfSubjects"] == n


def test_report__shows_families_blocks_and_reliability(ran):
    page = (ran / "report.html").read_text()
    for words in (
        "Means within and between networks",
        "baseline is the mean of pre1 and pre2",
        "How reliable is each connection?",
        "Between the sessions pre1, pre2, ICC(3,1) over 3 subjects has a median of",
        f"after correction for {len(FAMILY)} connections of the family coi",
        "change · full correlation · blocks",
        "change · amplitude",
        "The test coi is over the connections of the family coi alone",
    ):
        assert words in page


def test_plan__keeps_results_when_another_family_changes(ran):
    study = ran / "study.toml"
    study.write_text(STUDY.replace('[["sgACC", "DMN"]]', '[["sgACC", "vis"]]'))
    pending = {step.stage for step in prepare(study).pending()}
    study.write_text(STUDY)
    assert pending == {"blocks", "feature-test"}


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ('family = "coi"', 'family = "typo"', "E-STUDY-VALUE", "no family 'typo'"),
        ('[["sgACC", "DMN"]]', '[["sgACC", "DNM"]]', "E-NODES", "its nodes are a, b, c, ...; networks"),
        ('[["sgACC", "DMN"]]', '[["sgACC", "sgACC"]]', "E-NODES", "'sgACC-DMN' has no edge"),
        ("sgACC-DMN = ", "coi = ", "E-STUDY-VALUE", "'coi' is in families.file and in families.edges"),
        ("sgACC-DMN = ", "DMN = ", "E-NODES", "'DMN' is both a family and the block within a network"),
        ("[blocks]", '[blocks]\nnetworks = ["DMN", "limbc"]', "E-NODES", "no network 'limbc'"),
        ("[blocks]", '[blocks]\nfamilies = ["x"]', "E-STUDY-VALUE", "blocks.families names 'x'"),
        ("[blocks]", '[blocks]\nnetworks = "none"\nfamilies = "none"', "E-NODES", "has no block"),
        ('labels = "nodes.tsv"', "", "E-NODES", "is no node, network or hemisphere"),
        ('file = "families.tsv"', 'file = "nodes.tsv"', "E-TABLE", "lacks the column 'family'"),
        ('sessions = ["pre1", "pre2"]\nicc', 'sessions = ["pre1", "pre9"]\nicc', "E-ID-MISSING", "session 'pre9'"),
        ('session = "post"', "", "E-AMBIGUOUS", "the runs are of the sessions"),
        ('{ group = ["x", "y"] }', '{ group = "z" }', "E-TOO-FEW", "0 subjects have all of 1, 2"),
        ('change = ["baseline", "post"]\nfamily', 'change = ["base", "post"]\nfamily', "E-ID-MISSING", "'base'"),
    ],
)
def test_survey__refuses_before_compute(ran, tmp_path, old, new, code, words):
    assert old in STUDY
    for name in ("series", "participants.tsv", "nodes.tsv", "families.tsv"):
        (tmp_path / name).symlink_to(ran / name)
    (tmp_path / "study.toml").write_text(STUDY.replace(old, new))
    problems = survey_study(read_study(tmp_path / "study.toml")).problems
    assert code in [problem.code for problem in problems]
    assert any(words in str(problem) for problem in problems if problem.code == code)


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({"contrasts": {"x": {"test": "one-sample", "family": "f"}}}, "contrasts.x.family"),
        ({"families": {"edges": {"f": [["PCC", "mPFC"]]}}}, "families"),
        ({"blocks": {}}, "blocks"),
    ],
)
def test_check_families__refuses_families_of_maps(more, asked):
    seeds = {"spheres": "motoyama", "seed_maps": True, "netmats": False}
    inputs = {"layout": "fmriprep", "root": "."}
    study = Study.model_validate(
        {"study": {"name": "x"}, "inputs": inputs, "nodes": {"seeds": seeds}, "folder": ".", **more}
    )
    problems = []
    check_families(study, {"seeds": xr.Dataset(coords={"node": ["PCC", "mPFC"]})}, problems)
    (problem,) = problems
    assert problem.code == "E-STUDY-VALUE"
    assert f"{asked} asks for connections" in str(problem)


def test_plan_blocks__refuses_a_network_with_the_name_of_a_node(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    coords = xr.Dataset(coords={"node": list("abc"), "network": ("node", ["a", "a", "vis"])})
    with pytest.raises(InputError, match="E-NODES 'a' is both a node and a network"):
        plan_blocks(read_study(tmp_path / "study.toml"), {}, {"all": coords})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[blocks]", '[blocks]\nkinds = ["partial"]', "blocks.kinds names 'partial'"),
        ("[blocks]", '[blocks]\nkinds = ["amplitude"]', "blocks.kinds names 'amplitude'"),
        ('["corr", "amplitude"]', '["amplitude"]', "needs a kind of netmat"),
        ('session = "post"', 'session = "post"\nsessions = ["pre1", "post"]', "either 'sessions' or 'runs'"),
        ('icc = "ICC(3,1)"', 'session = "pre1"', "'session' belongs to 'runs'"),
        ('runs = ["1", "2"]', 'runs = ["1", "1"]', "the same is named twice"),
        ('file = "families.tsv"\n[families.edges]\nsgACC-DMN = [["sgACC", "DMN"]]', "", "names a file, or edges"),
    ],
)
def test_study__refuses_tables_that_do_not_fit(tmp_path, old, new, words):
    assert old in STUDY
    (tmp_path / "study.toml").write_text(STUDY.replace(old, new, 1))
    with pytest.raises(StudyFileError, match=words):
        read_study(tmp_path / "study.toml")
