"""The study file: what it takes, what it refuses, and in which words."""

import pytest

from kconn.errors import StudyFileError
from kconn.study.file import Study, known_keys, parse_study, read_study
from tests.small_study import write_study

HEAD = '[study]\nname = "x"\n[inputs]\nlayout = "fmriprep"\nroot = "deriv"\n[nodes.a]\natlas = "a.nii.gz"\n'


def write(folder, text, *, head=HEAD):
    path = folder / "study.toml"
    path.write_text(head + text)
    return path


def refusal(folder, text, **options):
    with pytest.raises(StudyFileError) as caught:
        read_study(write(folder, text, **options))
    assert caught.value.where == "study.toml"
    assert caught.value.rule
    assert caught.value.fix
    return caught.value


def test_read_study__has_every_default_and_paths_beside_the_file(tmp_path):
    study = read_study(write(tmp_path, ""))
    assert study.store == tmp_path / "study.zarr"
    assert study.report == tmp_path / "report.html"
    assert study.denoise.confounds == "24P"
    assert study.nodes["a"].min_coverage == 0.5
    assert study.connectivity.kinds == ["corr"]
    assert study.permutation.n_perm == 5000
    assert study.contrasts == {}


def test_read_study__is_frozen(tmp_path):
    study = read_study(write(tmp_path, ""))
    with pytest.raises(ValueError, match="frozen"):
        study.permutation.n_perm = 3


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[denoise]\nhi_pass = 0.01", "denoise.hi_pass", "write 'high_pass'"),
        ("[permutation]\nnperm = 10", "permutation.nperm", "write 'n_perm'"),
        ("[nodes.b]\natlass = 'x'", "nodes.b.atlass", "write 'atlas'"),
        ("[contrasts.c]\ntest = 'paired'\nchanges = ['a', 'b']", "contrasts.c.changes", "write 'change'"),
        ("[conectivity]\nkinds = ['corr']", "conectivity", "write 'connectivity'"),
        ("[quality]\nzzz = 1", "quality.zzz", "remove it"),
        ("[folder]\n", "folder", "write 'nodes'"),
    ],
)
def test_read_study__names_the_nearest_key(tmp_path, text, key, near):
    error = refusal(tmp_path, text)
    assert error.code == "E-STUDY-KEY"
    assert f"unknown key {key!r}" in error.problem
    assert error.fix == near


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[permutation]\nn_perm = 1", "permutation.n_perm", "got 1"),
        ("[denoise]\nhigh_pass = 'low'", "denoise.high_pass", "'none'"),
        ("[nodes.b]\nmin_coverage = 2\natlas = 'x'", "nodes.b.min_coverage", "got 2"),
        ("[nodes.'b/c']\natlas = 'x'", "nodes", "pattern"),
        ("[nodes.b]\nspheres = 'x'", "nodes.b", "exactly one of radius_mm and diameter_mm"),
        ("[nodes.b]\natlas = 'x'\nradius_mm = 3", "nodes.b", "belongs to spheres"),
        ("[nodes.cohort]\natlas = 'x'", "the file", "the store uses the name"),
        ("[connectivity]\nkinds = ['corr', 'corr']", "connectivity", "twice"),
        ("[connectivity]\nkinds = ['pearson']", "connectivity.kinds", "'corr'"),
        ("[contrasts.c]\ntest = 'two-sample'", "contrasts.c", "needs 'effect'"),
        ("[contrasts.c]\ntest = 'paired'", "contrasts.c", "needs 'change"),
        ("[contrasts.c]\ntest = 'one-sample'\neffect = 'age'", "contrasts.c", "tests the mean"),
        ("[contrasts.c]\ntest = 'covariate'\neffect = 'age'\nlevels = [1, 2]", "contrasts.c", "two-sample"),
        ("[contrasts.c]\ntest = 'paired'\nchange = ['a', 'b']\nsessions = ['a']", "contrasts.c", "not both"),
        ("[contrasts.c]\ntest = 'paired'\nchange = ['a', 'a']", "contrasts.c", "the same twice"),
        ("[contrasts.c]\ntest = 'f-test'", "contrasts.c", "term or terms"),
        ("[contrasts.c]\ntest = 'interaction'\neffect = ['a']", "contrasts.c", "two columns"),
        ("[contrasts.c]\ntest = 'interaction'\neffect = ['a', 'b']\nlevels = ['x', 'y']", "contrasts.c", "of pairs"),
        ("[contrasts.c]\ntest = 'two-sample'\neffect = 'a'\nlevels = {a = ['x', 'y']}", "contrasts.c", "a pair"),
        ("[contrasts.c]\ntest = 'two-sample'\neffect = 'a'\nlevels = ['x']", "contrasts.c", "not two"),
        ("[contrasts.c]\ntest = 'repeated'\nsessions = ['a']", "contrasts.c", "[A, B, ...]"),
        ("[contrasts.c]\ntest = 'design'", "contrasts.c", "either 'weights'"),
        ("[contrasts.c]\ntest = 'paired'\nchange = ['a', 'b']\nrows = 'session'", "contrasts.c", "kind design"),
        ("[contrasts.c]\ntest = 'design'\nweights = {a = 1}\njoint_fwe = true", "the file", "name them in 'weights'"),
        ("[contrasts.c]\ntest = 'design'\nfiles = {design = 'x', contrasts = 'y'}", "contrasts.c", "needs 'ids'"),
        ("[contrasts.c]\ntest = 'design'\nfiles = {ids = 'x', design = 'y'}", "contrasts.c", "and 'contrasts'"),
        (
            "[contrasts.c]\ntest = 'design'\nformula = 'a'\nfiles = {ids = 'i', design = 'x', contrasts = 'y'}",
            "contrasts.c",
            "no 'formula'",
        ),
        (
            "[contrasts.c]\ntest = 'one-sample'\nexchangeability_blocks = 'a'\nfiles = {ids = 'i', blocks = 'x'}",
            "contrasts.c",
            "not both",
        ),
        ("[permutation]\nstopping = 0", "permutation.stopping", "got 0"),
        (
            "[permutation]\nstopping = 9\ntail = 'gpd'\n[contrasts.c]\ntest = 'one-sample'",
            "the file",
            "does not go with tail = 'gpd'",
        ),
        (
            "[contrasts.c]\ntest = 'one-sample'\nstopping = 9\nstatistic = 'tfce'\nmissing = 'refit'",
            "the file",
            "'tfce' and missing = 'refit'",
        ),
        ("[permutation]\nstatistic = 'edges'", "permutation.statistic", "'nbs'"),
        ("[permutation]\nneighbours = 8", "permutation.neighbours", "18"),
        ("schema_version = 2\n", "the file", ""),
    ],
)
def test_read_study__refuses_values(tmp_path, text, place, words):
    if text.startswith("schema_version"):
        error = refusal(tmp_path, HEAD, head=text)
        assert error.code == "E-STUDY-VALUE"
        return
    error = refusal(tmp_path, text)
    assert error.code == "E-STUDY-VALUE"
    assert error.problem.startswith(f"{place}: ") or error.problem.startswith(f"{place}.")
    assert words in error.problem


@pytest.mark.parametrize("key", ["pattern", "orientation", "t_r"])
def test_read_study__tables_state_what_text_files_do_not_say(tmp_path, key):
    given = {"pattern": '"{subject}.tsv"', "orientation": '"time-by-node"', "t_r": "2.0"}
    lines = "".join(f"{name} = {value}\n" for name, value in given.items() if name != key)
    head = f'[study]\nname = "x"\n[inputs]\nlayout = "tables"\nroot = "."\n{lines}[nodes.a]\ncolumns = "all"\n'
    error = refusal(tmp_path, "", head=head)
    assert error.code == "E-STUDY-VALUE"
    assert f"needs {key!r}" in error.problem


def test_read_study__says_how_many_more(tmp_path):
    error = refusal(tmp_path, "[permutation]\nn_perm = 1\nseed = -1\nseeds = 1\n")
    assert error.problem == "unknown key 'permutation.seeds' (and 2 more; `kconn check` lists all)"


def test_parse_study__lists_every_finding_and_each_once(tmp_path):
    found = parse_study(write(tmp_path, "[permutation]\nn_perm = 1\nseeds = 1\n[denoise]\nlow_pass = 'no'\n"))
    assert not isinstance(found, Study)
    assert [error.problem.split(":")[0] for error in found] == [
        "unknown key 'permutation.seeds'",
        "denoise.low_pass",
        "permutation.n_perm",
    ]


@pytest.mark.parametrize("content", [b"[study\n", b"\xff\xfe", None])
def test_read_study__refuses_what_is_no_toml(tmp_path, content):
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyFileError, match="E-STUDY-READ"):
        read_study(path)


def test_known_keys__are_those_of_the_model():
    assert "high_pass" in known_keys(("denoise",))
    assert "folder" not in known_keys(())
    assert known_keys(("nowhere",)) == []


def test_permutation_of__keys_of_a_contrast_are_put_over_the_shared_ones(tmp_path):
    study = read_study(
        write(
            tmp_path,
            """
[permutation]
n_perm = 100
statistic = "nbs"
threshold = 3.1
exchangeability_blocks = "site"
[contrasts.shared]
test = "one-sample"
[contrasts.own]
test = "one-sample"
n_perm = 50
statistic = "tfce"
exchangeability_blocks = []
[contrasts.repeated]
test = "repeated"
sessions = ["a", "b"]
""",
        )
    )
    shared, own, repeated = map(study.permutation_of, ("shared", "own", "repeated"))
    assert (shared.n_perm, shared.threshold, shared.block_columns) == (100, 3.1, ["site"])
    # What forms the clusters of another statistic does not pass over, nor do blocks of subjects to rows of sessions.
    assert (own.n_perm, own.threshold, own.block_columns) == (50, None, [])
    assert (repeated.statistic, repeated.threshold, repeated.block_columns) == ("nbs", 3.1, [])


def test_contrast_table__a_change_may_start_from_several_sessions(tmp_path):
    paired = {"test": "paired", "change": [["pre1", "pre2"], "post"]}
    study = read_study(write_study(tmp_path, contrasts={"groups": None, "relief": paired}))
    contrast = study.contrasts["relief"]
    assert contrast.visit_pairs() == [("pre1", "post"), ("pre2", "post")]
    assert contrast.hypothesis["change"] == [["pre1", "pre2"], "post"]
    twice = {"test": "paired", "change": [["pre1", "post"], "post"]}
    with pytest.raises(StudyFileError, match="'change' names the same twice"):
        read_study(write_study(tmp_path, contrasts={"groups": None, "relief": twice}))
