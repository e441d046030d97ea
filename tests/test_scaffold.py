"""New study files: what a new user reads first."""

import re
import tomllib

import pytest

from kconn.cli import EXIT_DONE, EXIT_ERROR, main
from kconn.errors import InputError
from kconn.study.file import read_study, table_model
from kconn.study.scaffold import Pattern, write_simulated_study, write_study_file
from kconn.study.survey import survey_study
from kconn.testing import simulate_study

SMALL = {"n_subjects_per_group": 1, "n_nodes": 8, "n_time": 120, "grid_shape": (10, 12, 10), "n_effect_edges": 2}
SMALL |= {"n_high_motion_runs": 0}
TABLES = "sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-rest_space-*_timeseries.tsv"
CONFOUNDS = "sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-rest_desc-confounds_timeseries.tsv"
IMAGES = TABLES.replace("_timeseries.tsv", "_desc-preproc_bold.nii.gz")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return simulate_study(tmp_path_factory.mktemp("images") / "derivatives", **SMALL)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return simulate_study(tmp_path_factory.mktemp("tables") / "derivatives", layout="tables", **SMALL)


def defaults(text):
    """Yield table, key, and the default that a commented-out line shows (None where it shows none)."""
    table = ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[]")
        elif match := re.match(r"# (\w+) =(.*)", line):
            key, rest = match.groups()
            if table.startswith("permutation") and key == "test":
                return
            is_set = not rest.lstrip().startswith("# not set;")
            yield table, key, tomllib.loads(f"{key} ={rest}")[key] if is_set else None


def test_write_study_file__reads_back_and_passes_the_check(images, tmp_path, capsys):
    out = tmp_path / "new" / "study.toml"
    arguments = ["init", str(images.path), "--out", str(out), "--atlas", str(images.atlas)]
    assert main(arguments) == EXIT_DONE
    assert "found 4 runs of 2 subjects in session(s) post, pre" in capsys.readouterr().out
    study = read_study(out)
    assert (study.inputs.task, study.inputs.space) == ("rest", "MNI152NLin2009cAsym")
    assert (out.parent / study.inputs.participants).resolve() == images.participants
    assert (out.parent / study.inputs.sessions).resolve() == images.sessions
    assert main(["check", str(out)]) == EXIT_DONE
    assert "ready to run" in capsys.readouterr().out


def test_write_study_file__shows_the_defaults_of_the_model(images, tables, tmp_path):
    out = tmp_path / "study.toml"
    write_study_file(images.path, out, atlas=None, pattern=None)
    write_study_file(tables.path, tmp_path / "tables.toml", atlas=None, pattern=Pattern(pattern=TABLES))
    shown = [*defaults(out.read_text()), *defaults((tmp_path / "tables.toml").read_text())]
    assert {"denoise", "quality", "inputs", "permutation", "nodes.atlas", "nodes.columns"} < {row[0] for row in shown}
    for table, key, value in shown:
        field = table_model(tuple(table.split("."))).model_fields[key]
        assert value == field.get_default(call_default_factory=True, validated_data={}), (table, key)


def test_write_study_file__every_default_may_be_uncommented(images, tmp_path):
    out = tmp_path / "study.toml"
    write_study_file(images.path, out, atlas=str(images.atlas), pattern=None)
    study = read_study(out)
    head = out.read_text().partition("# One table per test")[0]
    out.write_text(re.sub(r"^# (\w+ = [^ ])", r"\1", head, flags=re.MULTILINE))
    assert read_study(out) == study
    out.write_text(re.sub(r"^# (\w+ =)", r"\1", head, flags=re.MULTILINE))
    with pytest.raises(InputError.__base__, match="E-STUDY-READ"):
        read_study(out)


def test_write_study_file__aligns_comments_and_shows_no_key_of_another_layout(images, tmp_path):
    out = tmp_path / "study.toml"
    write_study_file(images.path, out, atlas=None, pattern=None)
    text = out.read_text()
    denoise = text.partition("[denoise]\n")[2].partition("\n\n")[0]
    assert len({row.rindex("  # ") for row in denoise.splitlines()}) == 1
    assert not re.search(r"pattern|orientation|has_header|spheres|radius_mm|columns =", text)
    assert "Columns: group, age, sex, madrs. Sessions: post, pre." in text


def test_write_study_file__chooses_where_there_are_several(tmp_path):
    func = tmp_path / "fmriprep/sub-1/func"
    func.mkdir(parents=True)
    for entities in ("task-rest_space-MNI_res-1", "task-rest_space-MNI_res-2", "task-rest_space-T1w", "task-walk"):
        (func / f"sub-1_{entities}_desc-preproc_bold.nii.gz").touch()
    summary = write_study_file(tmp_path / "fmriprep", tmp_path / "study.toml", atlas="a.nii.gz", pattern=None)
    assert "space: chose MNI of MNI, T1w" in summary
    assert "res: chose 1 of 1, 2" in summary
    inputs = read_study(tmp_path / "study.toml").inputs
    assert (inputs.task, inputs.space, inputs.res) == ("rest", "MNI", "1")


def test_write_study_file__never_overwrites(images, tmp_path, capsys):
    out = tmp_path / "study.toml"
    out.write_text("mine")
    assert main(["init", str(images.path), "--out", str(out)]) == EXIT_ERROR
    assert "E-FILE-EXISTS" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_write_study_file__tables(tables, tmp_path, capsys):
    out = tmp_path / "study.toml"
    begin = ["init", str(tables.path), "--pattern", TABLES, "--confounds-pattern", CONFOUNDS]
    assert main([*begin, "--orientation", "time-by-node", "--t-r", "0.8", "--out", str(out)]) == EXIT_DONE
    study = read_study(out)
    assert (study.inputs.layout, study.inputs.t_r, study.denoise.confounds) == ("tables", 0.8, "24P")
    assert survey_study(study).problems == ()
    assert main([*begin, "--out", str(tmp_path / "unclear.toml")]) == EXIT_DONE
    assert "state orientation in the file" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "unclear.toml")]) == EXIT_ERROR
    assert "E-STUDY-VALUE" in capsys.readouterr().err


def test_write_study_file__images_of_any_pipeline(images, tmp_path):
    masks = IMAGES.replace("desc-preproc_bold", "desc-brain_mask")
    for name, mask in (("masked", masks), ("whole", None)):
        pattern = Pattern(pattern=IMAGES, mask_pattern=mask)
        summary = write_study_file(images.path, tmp_path / f"{name}.toml", atlas=str(images.atlas), pattern=pattern)
        study = read_study(tmp_path / f"{name}.toml")
        survey = survey_study(study)
        assert survey.problems == ()
        assert (study.inputs.layout, study.denoise.confounds) == ("images", "none")
        assert (survey.runs[0].n_voxel == 1200) == (mask is None)
        assert ("every voxel" in summary) == (mask is None)


@pytest.mark.parametrize("layout", ["fmriprep", "tables"])
def test_write_simulated_study__is_ready_to_check(tmp_path, layout):
    path = write_simulated_study(tmp_path, n_subjects_per_group=1, layout=layout, seed=0)
    study = read_study(path)
    assert study.contrasts["ketamine-post-pre"].where == {"group": "ketamine"}
    survey = survey_study(study)
    assert len(survey.runs) == 4
    # One subject per group is too few for the tests, and all else is as it must be.
    assert {problem.code for problem in survey.problems} <= {"E-TOO-FEW", "E-DESIGN-LEVELS", "E-DESIGN-RANK"}
