"""Designs that go out to FSL and PALM and come back through the study file."""

import os
import tomllib

import numpy as np
import pytest
import xarray as xr

from kconn.cli import EXIT_DONE, EXIT_ERROR, main
from kconn.errors import KconnError
from kconn.export.designs import write_design
from kconn.io import designs
from kconn.study.contrasts import run_test
from kconn.study.file import read_study
from kconn.study.survey import arrange_contrast, expect_cohort
from kconn.study.workbench import prepare
from tests.small_study import small_study

CONTRASTS = {
    "groups": {"test": "two-sample", "formula": "group + age", "effect": "group", "exchangeability_blocks": "sex"},
    "paired": {"test": "paired", "change": ["pre", "post"]},
    "any": {"test": "f-test", "formula": "group + age", "effect": ["group", "age"], "sessions": ["pre"], "n_perm": 30},
    "course": {
        "test": "repeated",
        "sessions": ["pre", "post"],
        "effect": "group",
        "statistic": "nbs",
        "threshold": 1.0,
        "alternative": "greater",
    },
    "slopes": {
        "test": "design",
        "formula": "age + group",
        "weights": {"age": {"age": 1}, "both": [{"age": 1}, {"group[T.placebo]": 1}]},
    },
    "welch": {"test": "two-sample", "formula": "group", "effect": "group", "variance_groups": "group"},
    "visits": {
        "test": "repeated",
        "sessions": ["pre", "post"],
        "exchangeability_blocks": "subject",
        "exchange": "both",
    },
}
VALUES = ("stat", "p_unc", "p_fwe", "p_fdr", "max_stat")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("design") / "s"
    return prepare(small_study(folder, sessions=("pre", "post"), n_subjects_per_group=4, contrasts=CONTRASTS))


@pytest.fixture(scope="module")
def cohort(bench):
    """Return noise with the labels that the cohort of the study will have."""
    expected = expect_cohort([facts.run for facts in bench.survey.runs])
    first, second = np.triu_indices(5, 1)
    noise = np.random.default_rng(6).normal(size=(expected.sizes["observation"], len(first)))
    coords = {name: expected[name] for name in ("observation", "subject", "session")}
    return xr.DataArray(
        noise, dims=("observation", "edge"), coords={**coords, "node_i": ("edge", first), "node_j": ("edge", second)}
    )


def result(bench, study, name, cohort):
    return run_test(arrange_contrast(study, name, cohort, bench.survey.participants, bench.survey.sessions))


def reread(bench, name, out):
    """Return the study with the contrast as the written table tells it, paths as if it stood beside the study file."""
    text = (out / f"{name}.toml").read_text()
    for file in tomllib.loads(text)["contrasts"][name]["files"].values():
        text = text.replace(f'"{file}"', f'"{os.path.relpath(out / file, bench.study.folder)}"')
    path = bench.study.folder / "back.toml"
    head = (bench.study.folder / "study.toml").read_text().partition("[contrasts]")[0]
    path.write_text(head + text)
    return read_study(path)


ROUND_TRIPS = [
    *((name, "fsl") for name in ("groups", "paired", "any", "course", "slopes")),
    *((name, "palm") for name in CONTRASTS),
]


@pytest.mark.parametrize(("name", "form"), ROUND_TRIPS)
def test_write_design__reads_back_to_the_same_p(bench, cohort, tmp_path, name, form):
    write_design(bench, name, tmp_path, form=form)
    before = result(bench, bench.study, name, cohort)
    after = result(bench, reread(bench, name, tmp_path), name, cohort)
    names = {"any": ["f1"], "slopes": ["age" if form == "fsl" else "c1", "f1"]}
    names = names.get(name, [name if form == "fsl" else "c1"])  # tables of numbers have no names
    for i, new in enumerate(names):
        one, other = before.isel(contrast=i), after.sel(contrast=new)
        assert one["table_sha256"].item() == other["table_sha256"].item()
        for value in VALUES:
            np.testing.assert_allclose(other[value], one[value], rtol=1e-9, atol=1e-12)


def test_write_design__relabellings_are_those_of_the_test(bench, cohort, tmp_path):
    write_design(bench, "groups", tmp_path / "1", form="palm")
    found = result(bench, bench.study, "groups", cohort)
    table = designs.read_palm_table(tmp_path / "1/groups_permutations.csv")
    np.testing.assert_array_equal(table.T - 1, found["permutation_table"][0])
    ids = designs.read_ids(tmp_path / "1/groups_ids.txt")
    assert list(ids) == [f"sub-{name}" for name in found["observation"].to_numpy()]
    write_design(bench, "paired", tmp_path / "2", form="palm")
    signed = designs.read_palm_table(tmp_path / "2/paired_permutations.csv")
    np.testing.assert_array_equal(np.sign(signed).T, result(bench, bench.study, "paired", cohort)["sign_table"][0])


@pytest.mark.parametrize(
    ("name", "form", "command"),
    [
        ("groups", "fsl", "randomise -i data.nii.gz -o groups -d groups.mat -t groups.con -e groups.grp -x -n 20"),
        ("paired", "fsl", "randomise -i data.nii.gz -o paired -d paired.mat -t paired.con -1 -x -n 20"),
        (
            "course",
            "fsl",
            "randomise -i data.nii.gz -o course -d course.mat -t course.con -e course.grp --permuteBlocks -x -n 20",
        ),
        (
            "any",
            "palm",
            "palm -i data.csv -d any_design.csv -t any_contrasts.csv -f any_ftests.csv -twotail -n 30",
        ),
        (
            "welch",
            "palm",
            "palm -i data.csv -d welch_design.csv -t welch_contrasts.csv -vg welch_variance_groups.csv -twotail -n 20",
        ),
        (
            "paired",
            "palm",
            "palm -i data.csv -d paired_design.csv -t paired_contrasts.csv -ise -twotail -n 20",
        ),
    ],
)
def test_write_design__says_the_command(bench, tmp_path, name, form, command):
    assert write_design(bench, name, tmp_path, form=form).command == command
    assert (tmp_path / f"{name}_command.txt").read_text() == command + "\n"


@pytest.mark.parametrize(
    ("name", "code"), [("welch", "E-BLOCKS"), ("visits", "E-BLOCKS"), ("nothing", "E-STUDY-VALUE")]
)
def test_write_design__refuses(bench, tmp_path, name, code):
    with pytest.raises(KconnError) as caught:
        write_design(bench, name, tmp_path / "out", form="fsl")
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_design__needs_no_results_and_a_folder_of_its_own(bench, tmp_path, capsys):
    command = ["design", str(bench.study.folder / "study.toml"), "groups", "--out", str(tmp_path)]
    assert main(command) == EXIT_DONE
    assert "every run as if it were usable" in capsys.readouterr().out
    assert not bench.study.store.exists()
    (tmp_path / "mine.txt").write_text("mine")
    assert main(command) == EXIT_ERROR
    assert "E-FILE-EXISTS" in capsys.readouterr().err
