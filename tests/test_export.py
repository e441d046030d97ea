"""Exported files: their names, their numbers against the store, their grids against the inputs, their sidecars."""

import hashlib
import json
import re
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from kconn.cli import EXIT_DONE, EXIT_ERROR, main
from kconn.errors import KconnError
from kconn.execution import run_plan
from kconn.export.study import _run_name, export_study
from kconn.io import cubes
from kconn.io.layout import Run
from kconn.kernels.netmats import unpack_edges
from kconn.study.workbench import prepare, writing
from kconn.testing import simulate_study

SMALL = {"n_subjects_per_group": 2, "n_nodes": 8, "n_time": 120, "grid_shape": (10, 12, 10), "n_effect_edges": 2}
ATLAS = "derivatives/atlas/space-MNI152NLin2009cAsym_atlas-sim_dseg"
STUDY = f"""
[study]
name = "small"
[inputs]
layout = "fmriprep"
root = "derivatives"
participants = "derivatives/participants.tsv"
[denoise]
confounds = "6P"
low_pass = 0.2
fd_threshold = 0.5
dummy_frames = 3
[quality]
min_frames = 20
min_dof = 5
max_mean_fd = 0.3
[nodes.sim-8]
atlas = "{ATLAS}.nii.gz"
labels = "{ATLAS}.tsv"
[connectivity]
kinds = ["corr", "cov"]
[contrasts.mean-fc]
test = "one-sample"
"""
FUNC = "sub-{0}/ses-post/func/sub-{0}_ses-post_task-rest"
INPUT_SPACE = "_space-MNI152NLin2009cAsym"
SPACE = "_run-1_space-MNI152NLin2009cAsym"
STATS = {"corr": "pearsoncorrelation", "cov": "covariance"}
SENSITIVE = (tempfile.gettempdir(), socket.gethostname(), str(Path.home()))


def made(folder, text, **options):
    simulate_study(folder / "derivatives", sessions=("post",), **SMALL | options)
    (folder / "study.toml").write_text(text)
    bench = prepare(folder / "study.toml")
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    return bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return made(tmp_path_factory.mktemp("study"), STUDY, n_high_motion_runs=1, seed=3)


@pytest.fixture(scope="module")
def exported(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "new"
    n_files = export_study(bench, out, images=True)
    assert n_files == len(files(out))
    return out


@pytest.fixture(scope="module")
def excluded(bench):
    quality = stored(bench, "quality", "")
    (label,) = quality["subject"].to_numpy()[quality["excluded"].to_numpy() != ""]
    return label


@pytest.fixture(scope="module")
def kept(bench, excluded):
    return [facts.run.subject for facts in bench.survey.runs if facts.run.subject != excluded]


def stored(bench, stage, ending):
    """Open the one result of a stage whose path ends like this."""
    (step,) = (step for step in bench.plan.steps if step.stage == stage and step.address.path.endswith(ending))
    return cubes.open_group(bench.study.store, step.address)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(path, index_col=None):
    """Read a table with Python's exact conversion of numbers."""
    cells = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, index_col=index_col)
    return cells.apply(numbers)


def numbers(column):
    try:
        return column.map(lambda cell: np.nan if cell == "n/a" else float(cell))
    except ValueError:
        return column


def same(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual, float), np.asarray(expected, float), strict=True)


def test_export_study__names_files_as_xcp_d_does(exported, kept):
    run = ["_outliers.tsv", "_motion.tsv", "_desc-denoised_bold.nii.gz", "_desc-tsnr_boldmap.nii.gz"]
    run += [f"_atlas-sim8_stat-{stat}_relmat.tsv" for stat in STATS.values()]
    run += ["_atlas-sim8_stat-mean_timeseries.tsv", "_atlas-sim8_stat-coverage_bold.tsv"]
    wanted = {FUNC.format(subject) + SPACE + ending for subject in kept for ending in run}
    wanted |= {"group/quality.tsv", "group/exclusions.tsv", "group/motion.tsv", "group/group_atlas-sim8_nodes.tsv"}
    wanted |= {"group/group_atlas-sim8_stat-coverage_quality.tsv"}
    # Of full correlations always, and of every other kind that is tested.
    wanted |= {f"group/group_atlas-sim8_stat-{stat}_qcfc.tsv" for stat in {"pearsoncorrelation", *STATS.values()}}
    for stat in STATS.values():
        stem = f"group/group_atlas-sim8_stat-{stat}"
        wanted |= {f"{stem}_netmats.tsv"}
        wanted |= {f"{stem}_desc-meanFc_{suffix}.tsv" for suffix in ("edges", "tstat", "pfwe", "design", "maxstat")}
    sidecars = {re.sub(r"\.(tsv|nii\.gz)$", ".json", name) for name in wanted}
    assert set(files(exported)) == wanted | sidecars | {"dataset_description.json"}


def test_export_study__numbers_of_runs_are_those_of_the_store(bench, exported, kept):
    for subject in kept:
        path, stem = f"sub-{subject}/ses-post/run-1", exported / (FUNC.format(subject) + SPACE)
        nodes, denoised = stored(bench, "nodes", f"{path}/sim-8"), stored(bench, "denoise", path)
        series = table(f"{stem}_atlas-sim8_stat-mean_timeseries.tsv")
        assert series.columns.tolist() == nodes["node"].to_numpy().tolist()
        same(series, nodes["timeseries"].to_numpy().T)
        same(table(f"{stem}_atlas-sim8_stat-coverage_bold.tsv")["coverage"], nodes["coverage"])
        same(table(f"{stem}_outliers.tsv")["censored"], ~denoised["sample_mask"].to_numpy())
        assert series.iloc[:3].isna().all(axis=None)
        same(table(f"{stem}_motion.tsv")["framewise_displacement"], denoised["framewise_displacement"])
        for kind, stat in STATS.items():
            edges = stored(bench, "netmat", f"{path}/sim-8/{kind}")["netmat"].to_numpy()
            matrix = table(f"{stem}_atlas-sim8_stat-{stat}_relmat.tsv", index_col="Node")
            assert matrix.index.tolist() == matrix.columns.tolist() == series.columns.tolist()
            same(
                matrix,
                unpack_edges(np.tanh(edges), diagonal=1) if kind == "corr" else unpack_edges(edges, diagonal=np.nan),
            )


def test_export_study__correlations_are_those_of_the_exported_series(exported, kept):
    stem = exported / (FUNC.format(kept[0]) + SPACE)
    series = table(f"{stem}_atlas-sim8_stat-mean_timeseries.tsv").dropna()
    matrix = table(f"{stem}_atlas-sim8_stat-pearsoncorrelation_relmat.tsv", index_col="Node")
    np.testing.assert_allclose(matrix, np.corrcoef(series.T), rtol=0, atol=1e-12)


def test_export_study__numbers_of_the_group_are_those_of_the_store(bench, exported, kept, excluded):
    for kind, stat in STATS.items():
        stem = exported / f"group/group_atlas-sim8_stat-{stat}"
        cohort = stored(bench, "cohort", f"sim-8/{kind}")
        test = stored(bench, "test", f"sim-8/{kind}/mean-fc")
        netmats = table(f"{stem}_netmats.tsv")
        assert netmats.columns[2:].tolist() == [f"sub-{subject}_ses-post" for subject in kept]
        same(netmats.iloc[:, 2:], cohort["netmat"].to_numpy().T)
        edges = table(f"{stem}_desc-meanFc_edges.tsv")
        assert edges.columns[:9].tolist() == [
            *("node_i", "node_j", "effect", "stat", "dof"),
            *("p_unc", "p_fwe", "p_fdr", "cohen_d"),
        ]
        assert edges["node_j"].tolist() == test["node_j"].to_numpy().tolist() == netmats["node_j"].tolist()
        for name in edges.columns[2:]:
            variable, _, label = name.rpartition("_")
            limit_or_tail = {"lower": "limit", "upper": "limit", "greater": "tail", "less": "tail", "sided": "tail"}
            if label not in limit_or_tail:
                same(edges[name], test[name])
                continue
            dim = limit_or_tail[label]
            label = "two-sided" if label == "sided" else label
            stored_name = f"{variable.removesuffix('_two')}_{'ci' if dim == 'limit' else 'tails'}"
            same(edges[name], test[stored_name].sel({dim: label}))
        for suffix, name in (("tstat", "stat"), ("pfwe", "p_fwe")):
            matrix = table(f"{stem}_desc-meanFc_{suffix}.tsv", index_col="Node")
            same(matrix, unpack_edges(test[name].to_numpy(), diagonal=np.nan))
        design = table(f"{stem}_desc-meanFc_design.tsv", index_col="participant_id")
        assert design.index.tolist() == [f"sub-{subject}" for subject in kept]
        same(design, test["design"])
        same(table(f"{stem}_desc-meanFc_maxstat.tsv")["max_stat"], test["max_stat"])
    quality = table(exported / "group/quality.tsv")
    same(quality["mean_fd"], stored(bench, "quality", "")["mean_fd"])
    assert quality["n_frames"].tolist() == [120] * 4
    (row,) = table(exported / "group/exclusions.tsv").to_dict("records")
    assert row["participant_id"] == f"sub-{excluded}"
    assert row["reason"].startswith("mean framewise displacement")


def test_export_study__images_lie_on_the_grid_of_the_input(bench, exported, kept):
    stem, input_stem = FUNC.format(kept[0]) + SPACE, FUNC.format(kept[0]) + INPUT_SPACE
    given = nib.load(bench.study.folder / f"derivatives/{input_stem}_desc-preproc_bold.nii.gz")
    mask = nib.load(bench.study.folder / f"derivatives/{input_stem}_desc-brain_mask.nii.gz").get_fdata() > 0
    result = stored(bench, "denoise", f"sub-{kept[0]}/ses-post/run-1")
    for ending, name in (("desc-denoised_bold", "denoised"), ("desc-tsnr_boldmap", "tsnr")):
        image = nib.load(exported / f"{stem}_{ending}.nii.gz")
        assert image.shape == given.shape[: image.ndim]
        for form in ("sform", "qform"):
            affine, code = getattr(image, f"get_{form}")(coded=True)
            wanted, wanted_code = getattr(given, f"get_{form}")(coded=True)
            assert (affine.tobytes(), code) == (wanted.tobytes(), wanted_code)
        values = np.asarray(image.dataobj)
        assert values.dtype == np.float32
        assert not values[~mask].any()
        same(values.transpose(2, 1, 0, *range(3, image.ndim))[mask.T], result[name])
    header = nib.load(exported / f"{stem}_desc-denoised_bold.nii.gz").header
    assert header.get_zooms() == given.header.get_zooms()
    assert header.get_xyzt_units() == ("mm", "sec")


def test_export_study__sidecars_lead_back_to_the_inputs(bench, exported, kept):
    content = files(exported)
    sidecars = {name: json.loads(text) for name, text in content.items() if name.endswith(".json")}
    assert sidecars["dataset_description.json"]["DatasetType"] == "derivative"
    assert sidecars["dataset_description.json"]["GeneratedBy"] == [{"Name": "kconn", "Version": bench.plan.code}]
    inputs = files(bench.study.folder / "derivatives")
    by_name = inputs | {Path(name).name: text for name, text in inputs.items()}
    for name, sidecar in sidecars.items():
        if name == "dataset_description.json":
            continue
        assert sidecar["Description"]
        assert sidecar["Sources"] == list(sidecar["SourcesSHA256"]) != []
        assert sidecar["SoftwareVersions"]["kconn"] == bench.plan.code
        for source, digest in sidecar["SourcesSHA256"].items():
            text = content[source.removeprefix("bids::")] if source.startswith("bids::") else by_name[source]
            assert hashlib.sha256(text).hexdigest() == digest
    stem = FUNC.format(kept[0]) + SPACE
    series = sidecars[f"{stem}_atlas-sim8_stat-mean_timeseries.json"]
    assert series["RepetitionTime"] == 0.8
    assert f"{FUNC.format(kept[0])}{INPUT_SPACE}_desc-preproc_bold.nii.gz" in series["Sources"]
    assert series["Parameters"]["denoise"]["confounds"] == "6P"
    assert sidecars[f"{stem}_atlas-sim8_stat-pearsoncorrelation_relmat.json"]["Values"] == "r"
    test = sidecars["group/group_atlas-sim8_stat-pearsoncorrelation_desc-meanFc_edges.json"]
    assert test["Values"].startswith("Fisher z")
    assert test["NumberOfPermutations"] == 8
    columns = table(exported / "group/group_atlas-sim8_stat-pearsoncorrelation_desc-meanFc_edges.tsv").columns[2:]
    assert all(test[name]["Description"] and test[name]["Units"] for name in columns)
    assert test["effect"]["Units"].startswith("Fisher z")
    assert test["p_fwe_lower"]["Description"] == "Lower exact binomial 95 % limit of p_fwe."
    assert (test["Shuffling"], test["Exhaustive"], test["Convention"]) == ("sign-flips", True, "kconn")


def test_export_study__tells_nothing_of_the_machine(exported):
    for name, text in files(exported).items():
        assert not name.endswith((".tsv", ".json")) or not any(word.encode() in text for word in SENSITIVE), name


def test_export_study__same_results_same_bytes_images_only_when_asked_for(bench, exported, tmp_path):
    assert main(["export", str(bench.study.folder / "study.toml"), "--out", str(tmp_path / "again")]) == EXIT_DONE
    assert files(tmp_path / "again") == {name: text for name, text in files(exported).items() if not is_image(name)}


def is_image(name):
    return "_desc-denoised_bold" in name or "_boldmap" in name


def test_export_study__refuses_a_folder_with_other_files(bench, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["export", str(bench.study.folder / "study.toml"), "--out", str(tmp_path)]) == EXIT_ERROR
    assert "E-FILE-EXISTS" in capsys.readouterr().err
    assert list(files(tmp_path)) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("low_pass = 0.2", "low_pass = 0.15", "E-STORE-UNSEALED"),
        ("[contrasts.mean-fc]", '[contrasts.mean-Fc]\ntest = "one-sample"\n[contrasts.mean-fc]', "E-STORE-UNSEALED"),
    ],
)
def test_export_study__refuses_results_that_the_study_file_no_longer_describes(bench, tmp_path, old, new, code):
    path = bench.study.folder / f"{tmp_path.name}.toml"
    path.write_text(STUDY.replace(old, new))
    with pytest.raises(KconnError, match=code):
        export_study(prepare(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_study__tables_have_no_images_and_are_named_by_their_pattern(tmp_path):
    pattern = "sub-{subject}/ses-*/func/*_stat-mean_timeseries.tsv"
    inputs = f'layout = "tables"\npattern = "{pattern}"\norientation = "time-by-node"\nt_r = 0.8\ntask = "eyes"'
    text = re.sub(r"\[nodes.*\[conn", '[nodes.all]\ncolumns = "all"\n[conn', STUDY, flags=re.DOTALL)
    text = text.replace('layout = "fmriprep"', inputs).replace("fd_threshold = 0.5\n", "")
    text = text.replace('"6P"', '"none"').replace("max_mean_fd = 0.3\n", "").replace('"corr", "cov"', '"ridgep"')
    text = text.partition("[contrasts")[0]
    bench = made(tmp_path, text, layout="tables", n_high_motion_runs=0, n_subjects_per_group=1)
    export_study(bench, tmp_path / "out", images=True)
    assert not [name for name in files(tmp_path / "out") if name.endswith(".nii.gz")]
    stem = tmp_path / "out/sub-01/ses-1/func/sub-01_ses-1_task-eyes_run-1_atlas-all_stat-mean_timeseries"
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    assert sidecar["Sources"] == ["sub-01/ses-*/func/*_stat-mean_timeseries.tsv"]
    same(table(stem.with_suffix(".tsv")), stored(bench, "nodes", "sub-01/ses-1/run-1/all")["timeseries"].to_numpy().T)


@pytest.mark.parametrize(
    ("run", "space", "name"),
    [
        ({"run": "2", "task": "rest"}, "MNI", "task-rest_run-2_space-MNI"),
        ({"run": "LR"}, None, "task-rest_acq-LR"),
        ({"run": "1"}, "func", "task-rest_run-1"),
    ],
)
def test_run_name__has_the_entities_that_bids_knows(run, space, name):
    facts = SimpleNamespace(run=Run(subject="01", session="1", **run), space=space)
    assert _run_name(facts, "outliers.tsv") == f"sub-01/ses-1/func/sub-01_ses-1_{name}_outliers.tsv"
