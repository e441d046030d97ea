"""Studies of CIFTI runs: from the files of a pipeline to the store, its node series and its results."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes

from benchmarks import bench_cifti
from kconn.cli import EXIT_DONE, EXIT_ERROR, main
from kconn.execution import run_plan
from kconn.export.study import export_study
from kconn.grayordinates import read_grayordinates
from kconn.io import cifti, cifti_write, cubes
from kconn.io.store import Address
from kconn.report.study import write_study_report
from kconn.study.file import read_study
from kconn.study.survey import survey_study
from kconn.study.workbench import prepare, writing
from kconn.testing import simulate_study
from tests import cifti_files as made
from tests.small_study import SMALL_HCP

ATLAS = "derivatives/atlas/space-fsLR_atlas-sim_dseg"
STUDY = """
[study]
name = "small"
[inputs]
layout = "{layout}"
root = "{root}"
{inputs}
[denoise]
confounds = "{confounds}"
high_pass = 0.01
low_pass = 0.2
fd_threshold = {fd}
[quality]
min_frames = 20
min_dof = 5
[nodes.sim]
{nodes}
[connectivity]
kinds = ["corr"]
[permutation]
n_perm = 100
"""
CHANGE = """
[contrasts.change]
test = "two-sample"
formula = "group"
effect = "group"
levels = ["placebo", "ketamine"]
change = ["pre", "post"]
"""


def write_study(folder, more="", **parts):
    given = {"layout": "hcp", "root": "derivatives", "inputs": "", "confounds": "12P", "fd": 0.5}
    given |= {"nodes": f'atlas = "{ATLAS}.dlabel.nii"'}
    path = folder / "study.toml"
    path.write_text(STUDY.format(**given | parts) + more)
    return path


def run(path):
    bench = prepare(path)
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    return bench


def problems(path):
    return [(found.code, found.where) for found in survey_study(read_study(path)).problems]


@pytest.fixture(scope="module")
def hcp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hcp")
    simulate_study(
        folder / "derivatives", layout="hcp", n_subjects_per_group=1, n_runs=2, n_effect_edges=1, seed=4, **SMALL_HCP
    )
    return folder, run(write_study(folder))


def dtseries(folder, subject="01", session="pre", run_name="rfMRI_REST1_AP"):
    place = folder / "derivatives" / f"{subject}_{session}_MR" / "MNINonLinear" / "Results" / run_name
    return place / f"{run_name}_Atlas_MSMAll.dtseries.nii"


def copied(hcp, folder):
    """Copy one subject's first visit, to be damaged."""
    for part in ("01_pre_MR", "02_pre_MR", "atlas"):
        shutil.copytree(hcp[0] / "derivatives" / part, folder / "derivatives" / part)
    return write_study(folder)


def ingested(bench, where):
    return cubes.open_group(bench.study.store, Address(path=where, step="ingest"))


def test_ingest_run__stores_what_nibabel_reads(hcp):
    folder, bench = hcp
    stored = ingested(bench, "sub-01/ses-pre/run-REST1AP")
    image = nib.load(dtseries(folder))
    np.testing.assert_array_equal(stored["bold"], image.get_fdata(dtype=np.float32).T)
    assert cifti_write.brain_model_axis(read_grayordinates(stored)) == image.header.get_axis(1)
    assert (stored.attrs["t_r"], stored.attrs["space"]) == (0.8, "fsLR")
    motion = np.loadtxt(dtseries(folder).with_name("Movement_Regressors.txt"))
    names = stored["confound"].to_numpy().tolist()
    assert names[:6] == ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    np.testing.assert_allclose(stored["confounds"][:, :3], motion[:, :3])
    np.testing.assert_allclose(stored["confounds"][:, 3:6], np.deg2rad(motion[:, 3:6]))


def test_extract_nodes__averages_the_vertices_of_the_dlabel(hcp):
    folder, bench = hcp
    where = "sub-02/ses-post/run-REST1PA"
    denoised = cubes.open_group(bench.study.store, Address(path=where, step="denoise"))["denoised"].to_numpy()
    series = cubes.open_group(bench.study.store, Address(path=f"{where}/sim", step="nodes"))
    atlas = nib.load(folder / f"{ATLAS}.dlabel.nii")
    label = dict(
        zip(
            zip(atlas.header.get_axis(1).name, atlas.header.get_axis(1).vertex, strict=True),
            atlas.get_fdata()[0],
            strict=True,
        )
    )
    axis = nib.load(dtseries(folder)).header.get_axis(1)
    of_row = np.array([label.get(key, 0) for key in zip(axis.name, axis.vertex, strict=True)])
    expected = [denoised[of_row == key].mean(axis=0, dtype=np.float64) for key in range(1, 9)]
    np.testing.assert_allclose(series["timeseries"], expected, rtol=1e-6, atol=1e-6)
    assert (series["coverage"] == 1).all()
    table = atlas.header.get_axis(0).label[0]
    assert series["node"].to_numpy().tolist() == [table[key][0] for key in range(1, 9)]


def test_ingest_run__keeps_small_integers_and_scales_them_when_opened(tmp_path):
    axis = made.brain_models()
    values = np.random.default_rng(1).integers(1, 900, (100, len(axis)))
    folder = tmp_path / "derivatives" / "01"
    path = made.write(folder / "r.dtseries.nii", values, made.series_axis(100), axis, dtype="i2", slope=0.25)
    made.turn(path)
    label = (np.arange(80) < 40).astype(int) + 1
    made.write(tmp_path / "a.dlabel.nii", label[None], made.label_axis({1: "right", 2: "left"}), made.everywhere())
    study = write_study(
        tmp_path,
        layout="cifti",
        inputs='pattern = "{subject}/r.dtseries.nii"',
        confounds="none",
        fd='"none"',
        nodes='atlas = "a.dlabel.nii"',
    )
    bench = run(study)
    stored = ingested(bench, "sub-01/ses-1/run-1")
    assert stored.attrs["stored_dtype"] == ">i2"
    np.testing.assert_array_equal(stored["bold"], 0.25 * values.T)
    assert cubes.open_group(bench.study.store, Address(path="sub-01/ses-1/run-1/sim", step="nodes"))[
        "node"
    ].to_numpy().tolist() == ["right", "left"]


def test_ingest_run__takes_the_parcels_of_a_ptseries_as_columns(tmp_path):
    brain = made.brain_models()
    axis = cifti2_axes.ParcelsAxis.from_brain_models([("a", brain[:20]), ("b", brain[20:72]), ("c", brain[72:])])
    values = np.random.default_rng(1).normal(100, 5, (100, 3))
    made.write(tmp_path / "derivatives" / "01.ptseries.nii", values, made.series_axis(100), axis)
    study = write_study(
        tmp_path,
        layout="cifti",
        inputs='pattern = "{subject}.ptseries.nii"',
        confounds="none",
        fd='"none"',
        nodes='columns = "all"\nexclude = ["c"]',
    )
    bench = run(study)
    stored = ingested(bench, "sub-01/ses-1/run-1")
    assert stored["column"].to_numpy().tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(stored["bold"], values.T.astype(np.float32))
    parcels = cifti.Parcels(
        names=("a", "b", "c"),
        members=read_grayordinates(stored, "member"),
        parcel=stored["member_column"].to_numpy(),
    )
    assert cifti_write.parcels_axis(parcels) == axis
    series = cubes.open_group(bench.study.store, Address(path="sub-01/ses-1/run-1/sim", step="nodes"))
    assert series["node"].to_numpy().tolist() == ["a", "b"]
    assert problems(
        write_study(
            tmp_path,
            layout="cifti",
            inputs='pattern = "{subject}.ptseries.nii"',
            confounds="none",
            fd='"none"',
            nodes='spheres = [["s", 0, 0, 0]]\nradius_mm = 5',
        )
    ) == [("E-NODES", "nodes.sim, sub-01/ses-1/run-1")]


def test_ingest_run__takes_a_row_without_any_value_as_without_data(tmp_path):
    axis = made.brain_models()
    values = np.random.default_rng(1).normal(100, 5, (100, len(axis)))
    values[:, 3] = np.nan
    path = made.write(tmp_path / "derivatives" / "01.dtseries.nii", values, made.series_axis(100), axis)
    label = (np.arange(80) < 10).astype(int) + 1
    made.write(tmp_path / "a.dlabel.nii", label[None], made.label_axis({1: "x", 2: "y"}), made.everywhere())
    options = {"layout": "cifti", "inputs": 'pattern = "{subject}.dtseries.nii"', "confounds": "none", "fd": '"none"'}
    study = write_study(tmp_path, nodes='atlas = "a.dlabel.nii"', **options)
    bench = run(study)
    denoised = cubes.open_group(bench.study.store, Address(path="sub-01/ses-1/run-1", step="denoise"))
    assert int(denoised["n_constant"]) == 1
    assert np.isnan(denoised["denoised"][3]).all()
    values[7, 5] = np.inf
    made.write(path, values, made.series_axis(100), axis)
    with pytest.raises(Exception, match=r"E-NIFTI-NAN.*row 5 .* frame 7"):
        run(study)


def test_ingest_run__reads_the_relative_displacement_as_rmsd(hcp, tmp_path):
    study = copied(hcp, tmp_path)
    rms = np.abs(np.random.default_rng(0).normal(0, 0.1, 100))
    for path in (tmp_path / "derivatives").rglob("Movement_Regressors.txt"):
        np.savetxt(path.with_name("Movement_RelativeRMS.txt"), rms)
    stored = ingested(run(study), "sub-01/ses-pre/run-REST1AP")
    np.testing.assert_allclose(stored["confounds"].sel(confound="rmsd"), rms)


@pytest.mark.parametrize("subject", ["01", "02"])
def test_survey_study__refuses_runs_with_other_grayordinates(hcp, tmp_path, subject):
    study = copied(hcp, tmp_path)
    path = dtseries(tmp_path, subject)
    image = nib.load(path)
    axis = image.header.get_axis(1)
    made.write(path, image.get_fdata()[:, 5:], image.header.get_axis(0), axis[5:])
    assert problems(study) == [("E-BRAIN-MODELS", f"sub-{subject}/ses-pre/run-REST1AP")]
    surface = axis[axis.surface_mask]
    surface.nvertices = dict.fromkeys(surface.nvertices, 9999)
    made.write(path, image.get_fdata()[:, axis.surface_mask], image.header.get_axis(0), surface)
    assert problems(study) == [
        ("E-BRAIN-MODELS", f"sub-{subject}/ses-pre/run-REST1AP"),
        ("E-BRAIN-MODELS", f"nodes.sim, sub-{subject}/ses-pre/run-REST1AP"),
    ]


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ('spheres = [["s", 0, 0, 0]]\nradius_mm = 5', "E-NODES"),
        ('columns = "all"', "E-NODES"),
        ('atlas = "study.toml"', "E-NIFTI"),
        (f'atlas = "{ATLAS}.dlabel.nii"\nlabel_map = "other"', "E-ATLAS"),
        (f'atlas = "{ATLAS}.dlabel.nii"\nlabels = "short.tsv"', "E-ATLAS"),
        ('atlas = "whole.dlabel.nii"', "E-BRAIN-MODELS"),
        (
            f'atlas = "{dtseries(Path()).as_posix()}"',
            "E-NIFTI-DIMS",
        ),
    ],
)
def test_survey_study__refuses_node_sets_that_do_not_fit(hcp, tmp_path, nodes, code):
    copied(hcp, tmp_path)
    (tmp_path / "short.tsv").write_text("index\tname\n1\ta\n")
    atlas = cifti2_axes.BrainModelAxis("CEREBELLUM_LEFT", vertex=np.arange(5), nvertices={"CEREBELLUM_LEFT": 9})
    made.write(tmp_path / "whole.dlabel.nii", np.ones((1, 5)), made.label_axis({1: "a"}), atlas)
    found = problems(write_study(tmp_path, nodes=nodes))
    assert found[0] == (code, "nodes.sim, sub-01/ses-pre/run-REST1AP")


def test_survey_study__lists_damaged_runs(hcp, tmp_path):
    study = copied(hcp, tmp_path)
    path = dtseries(tmp_path, "02")
    path.write_bytes(path.read_bytes()[:-9])
    motion = dtseries(tmp_path, "01", run_name="rfMRI_REST1_PA").with_name("Movement_Regressors.txt")
    motion.write_text("".join(motion.read_text().splitlines(keepends=True)[1:]))
    assert problems(study) == [
        ("E-CONFOUND-ROWS", "sub-01/ses-pre/run-REST1PA"),
        ("E-NIFTI-SIZE", "sub-02/ses-pre/run-REST1AP"),
    ]


@pytest.mark.parametrize(
    ("inputs", "nodes"),
    [
        ('pattern = "{subject}.nii.gz"', 'atlas = "a.dlabel.nii"'),
        ('pattern = "{subject}.dtseries.nii"\nvariant = "Atlas"', 'atlas = "a.dlabel.nii"'),
        ('pattern = "{subject}.dtseries.nii"', 'atlas = "a.dlabel.nii"\nresample = true'),
        ('pattern = "{subject}.dtseries.nii"', 'atlas = "a.nii.gz"\nlabel_map = "x"'),
    ],
)
def test_check__refuses_keys_that_do_not_go_together(tmp_path, capsys, inputs, nodes):
    assert main(["check", str(write_study(tmp_path, layout="cifti", inputs=inputs, nodes=nodes))]) == EXIT_ERROR
    assert "E-STUDY-VALUE" in capsys.readouterr().err


def test_init__finds_the_runs_of_the_hcp_pipelines(hcp, tmp_path, capsys):
    folder, _ = hcp
    out = tmp_path / "study.toml"
    atlas = str(folder / f"{ATLAS}.dlabel.nii")
    assert main(["init", str(folder / "derivatives"), "--out", str(out), "--atlas", atlas]) == EXIT_DONE
    assert "found 8 runs of 2 subjects in session(s) post, pre" in capsys.readouterr().out
    study = read_study(out)
    assert (study.inputs.layout, study.inputs.variant) == ("hcp", "Atlas_MSMAll")
    assert study.denoise.confounds == "24P"
    assert not survey_study(study).problems


def test_init__prefers_cleaned_series_and_says_so(hcp, tmp_path, capsys):
    copied(hcp, tmp_path)
    for path in (tmp_path / "derivatives").rglob("*_Atlas_MSMAll.dtseries.nii"):
        shutil.copy(path, str(path).replace("MSMAll", "MSMAll_hp0_clean"))
    out = tmp_path / "new.toml"
    assert main(["init", str(tmp_path / "derivatives"), "--out", str(out)]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "chose Atlas_MSMAll_hp0_clean of Atlas_MSMAll, Atlas_MSMAll_hp0_clean" in said
    assert "ATLAS.dlabel.nii" in said
    assert read_study(out).denoise.confounds == "none"


@pytest.mark.parametrize("kind", ["dtseries", "ptseries"])
def test_init__takes_a_pattern_of_cifti_series(tmp_path, kind):
    brain = made.brain_models()
    parcels = cifti2_axes.ParcelsAxis.from_brain_models([("a", brain[:20]), ("b", brain[20:])])
    axis = brain if kind == "dtseries" else parcels
    made.write(tmp_path / "d" / f"01.{kind}.nii", np.ones((100, len(axis))), made.series_axis(100), axis)
    out = tmp_path / "study.toml"
    assert main(["init", str(tmp_path / "d"), "--out", str(out), "--pattern", f"{{subject}}.{kind}.nii"]) == EXIT_DONE
    nodes = read_study(out).nodes
    assert [(name, table.atlas, table.columns) for name, table in nodes.items()] == (
        [("atlas", "ATLAS.dlabel.nii", None)] if kind == "dtseries" else [("columns", None, "all")]
    )


def test_write_bold_rows__goes_on_where_a_killed_attempt_stopped(tmp_path):
    """Kill the process after the first block of several: the rest is written, the first block is not."""
    script = tmp_path / "kill.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np, xarray as xr\n"
        "from kconn import chunks\n"
        "chunks.BLOCK_BYTES = 400 * 30\n"
        "from kconn.io import cubes, store\n"
        "from kconn.io.store import Address, Target\n"
        "root = Path(sys.argv[1]); store.create_store(root)\n"
        "target = Target(root=root, address=Address(path='sub-1/ses-1/run-1', step='ingest'), key='k', provenance={})\n"
        "values = np.arange(300 * 30, dtype=np.float32).reshape(300, 30)\n"
        "def read(first, n):\n"
        "    print(first, flush=True)\n"
        "    for start in range(first, 300, n):\n"
        "        if start == 200 and len(sys.argv) > 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield values[start:start + n]\n"
        "facts = {'shape': values.shape, 'dtype': values.dtype, 'rest': xr.Dataset(), 'bold_attrs': {}}\n"
        "n = cubes.write_bold_rows(target, read, **facts)\n"
        "assert np.array_equal(cubes.open_group(root, target.address)['bold'], values)\n"
        "print('wrote', n)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "study.zarr")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([*command, "kill"], env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.stdout.split() == ["200", "wrote", "1"], again.stderr


@pytest.mark.slow
def test_run__finds_the_planted_effect_of_a_simulated_hcp_study(tmp_path):
    truth = simulate_study(
        tmp_path / "derivatives",
        layout="hcp",
        n_subjects_per_group=12,
        n_effect_edges=2,
        effect_size=0.5,
        seed=2,
        **SMALL_HCP | {"n_time": 400},
    ).read_truth()
    study = write_study(tmp_path, CHANGE, inputs='participants = "derivatives/participants.tsv"', confounds="24P")
    bench = run(study)
    found = cubes.open_group(bench.study.store, Address(path="contrasts/sim/corr/change", step="test"))
    significant = found.isel(edge=np.flatnonzero(found["p_fwe"] < 0.05))
    edges = {
        tuple(sorted(pair)) for pair in zip(significant["node_i"].values, significant["node_j"].values, strict=True)
    }
    assert edges == {tuple(sorted(pair)) for pair in zip(truth["node_i"], truth["node_j"], strict=True)}


@pytest.mark.slow
def test_ingest_run__holds_blocks_of_a_long_dtseries_and_no_more(tmp_path):
    bench_cifti.write_series(tmp_path / "01.dtseries.nii")
    bench_cifti.write_study(tmp_path)
    command = [sys.executable, "-m", "benchmarks.bench_cifti", str(tmp_path / "study.toml")]
    done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    assert json.loads(done.stdout)["peak"] < bench_cifti.LIMIT_MB < (tmp_path / "01.dtseries.nii").stat().st_size / 1e6


ICA_NODES = """
[nodes.networks]
ica = "group"
subject_maps = true
[nodes.known]
maps = "known.dscalar.nii"
[ica.group]
n_components = 4
n_rows = 60
n_start = 3
threshold = 2.0
templates = "known.dscalar.nii"
reject = { ic002 = "veins" }
"""


@pytest.fixture(scope="module")
def networks(hcp, tmp_path_factory):
    """Decompose both subjects' runs of grayordinates; components and maps of a dscalar are nodes; the export."""
    folder = tmp_path_factory.mktemp("networks")
    copied(hcp, folder)
    atlas = nib.load(folder / f"{ATLAS}.dlabel.nii")
    labels = atlas.get_fdata()[0]
    maps = np.stack([(labels == i).astype(np.float32) for i in range(1, 4)])
    scalars = cifti2_axes.ScalarAxis(["one", "two", "three"])
    made.write(folder / "known.dscalar.nii", maps, scalars, atlas.header.get_axis(1))
    bench = run(write_study(folder, ICA_NODES))
    export_study(bench, folder / "out")
    return folder, bench, maps


def test_run__components_of_grayordinates_are_nodes(networks):
    _, bench, _ = networks
    components = cubes.open_group(bench.study.store, Address(path="ica/group", step="ica")).load()
    assert components.attrs["brain_models"] == ingested(bench, "sub-01/ses-pre/run-REST1AP").attrs["brain_models"]
    for where in ("sub-01/ses-pre/run-REST1AP", "sub-02/ses-pre/run-REST1PA"):
        series = cubes.open_group(bench.study.store, Address(path=f"{where}/networks", step="nodes")).load()
        run_ds = cubes.open_group(bench.study.store, Address(path=where, step="denoise"))
        kept = run_ds["sample_mask"].to_numpy()
        x = run_ds["denoised"].to_numpy()[:, kept].astype(np.float64)
        assert np.isfinite(x).all()
        design = np.column_stack([components["ica_map"][[0, 2, 3]].T.astype(np.float64), np.ones(len(x))])
        expected = np.linalg.lstsq(design, x, rcond=None)[0][:3]
        assert series["node"].to_numpy().tolist() == ["ic001", "ic003", "ic004"]
        np.testing.assert_allclose(series["timeseries"][:, kept], expected, rtol=1e-8, atol=1e-8)
    netmat = cubes.open_group(bench.study.store, Address(path="cohort/networks/corr", step="cohort"))
    assert netmat.sizes["edge"] == 3
    assert np.isfinite(netmat["netmat"]).all()


def test_run__maps_of_a_dscalar_are_nodes_and_templates(networks):
    folder, bench, maps = networks
    where = "sub-01/ses-pre/run-REST1AP"
    series = cubes.open_group(bench.study.store, Address(path=f"{where}/known", step="nodes")).load()
    assert series["node"].to_numpy().tolist() == ["one", "two", "three"]
    atlas = nib.load(folder / f"{ATLAS}.dlabel.nii").header.get_axis(1)
    at = {key: i for i, key in enumerate(zip(atlas.name, atlas.vertex, strict=True))}
    axis = nib.load(dtseries(folder)).header.get_axis(1)
    rows = np.array([at.get(key, -1) for key in zip(axis.name, axis.vertex, strict=True)])
    placed = np.where(rows >= 0, maps[:, rows], 0)
    run_ds = cubes.open_group(bench.study.store, Address(path=where, step="denoise"))
    kept = run_ds["sample_mask"].to_numpy()
    x = run_ds["denoised"].to_numpy()[:, kept].astype(np.float64)
    expected = np.linalg.lstsq(np.column_stack([placed.T, np.ones(len(x))]), x, rcond=None)[0][:3]
    np.testing.assert_allclose(series["timeseries"][:, kept], expected, rtol=1e-8, atol=1e-8)
    components = cubes.open_group(bench.study.store, Address(path="ica/group", step="ica")).load()
    r = np.corrcoef(components["ica_map"], placed)[:4, 4:]
    np.testing.assert_allclose(components["template_correlation"], r, atol=1e-5)
    assert components["template"].to_numpy().tolist() == ["one", "two", "three"]


def test_export_study__components_and_subject_maps_lie_on_the_axis_of_the_input(networks):
    folder, bench, _ = networks
    axis = nib.load(dtseries(folder)).header.get_axis(1)
    components = cubes.open_group(bench.study.store, Address(path="ica/group", step="ica")).load()
    [plain] = folder.glob("out/group/*_atlas-group_stat-zscore_boldmap.dscalar.nii")
    image = nib.load(plain)
    assert image.header.get_axis(1) == axis
    assert image.header.get_axis(0).name.tolist() == ["ic001", "ic002", "ic003", "ic004"]
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), components["ica_map"])
    [thresholded] = folder.glob("out/group/*_atlas-group_stat-zscore_desc-thresholded_boldmap.dscalar.nii")
    shown = nib.load(thresholded).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(shown != 0, np.abs(components["ica_map"]) > 2)
    cohort = cubes.open_group(bench.study.store, Address(path="cohort/networks/subjectmap", step="map-cohort"))
    [session] = folder.glob("out/sub-02/ses-pre/func/*_atlas-networks_stat-subjectmap_boldmap.dscalar.nii")
    image = nib.load(session)
    assert image.header.get_axis(1) == axis
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), cohort["subject_map"][1])
    # Components overlap: they are no parcels, so that there is no pconn of them, and the tables hold their netmats.
    assert not [*folder.glob("out/**/*atlas-networks*.pconn.nii"), *folder.glob("out/**/*atlas-known*.ptseries.nii")]
    assert [*folder.glob("out/sub-01/ses-pre/func/*_atlas-networks_stat-pearsoncorrelation_relmat.tsv")]
    write_study_report(bench)
    page = bench.study.report.read_text()
    assert "cortex left" in page


@pytest.mark.parametrize(
    ("nodes", "more", "code"),
    [
        ('maps = "other.dscalar.nii"', "", "E-BRAIN-MODELS"),
        ('maps = "twice.dscalar.nii"', "", "E-NODES"),
        ('maps = "nan.dscalar.nii"', "", "E-NODES"),
        ('maps = "cut.dscalar.nii"', "", "E-NIFTI-SIZE"),
        ('maps = "volume.nii.gz"', "", "E-BRAIN-MODELS"),
        (
            f'atlas = "{ATLAS}.dlabel.nii"',
            '[ica.group]\nn_components = 3\ntemplates = "other.dscalar.nii"\n',
            "E-BRAIN-MODELS",
        ),
        (
            f'atlas = "{ATLAS}.dlabel.nii"',
            '[ica.group]\nn_components = 3\ntemplates = "volume.nii.gz"\n',
            "E-BRAIN-MODELS",
        ),
    ],
)
def test_survey_study__refuses_maps_of_other_grayordinates(hcp, tmp_path, nodes, more, code):
    copied(hcp, tmp_path)
    axis = nib.load(dtseries(tmp_path)).header.get_axis(1)
    maps = np.random.default_rng(0).normal(size=(2, len(axis))).astype(np.float32)
    names = cifti2_axes.ScalarAxis(["a", "b"])
    made.write(tmp_path / "twice.dscalar.nii", maps[[0, 0]], names, axis)
    made.write(tmp_path / "cut.dscalar.nii", maps, names, axis)
    (tmp_path / "cut.dscalar.nii").write_bytes((tmp_path / "cut.dscalar.nii").read_bytes()[:-8])
    bad = maps.copy()
    bad[1, 3] = np.inf
    made.write(tmp_path / "nan.dscalar.nii", bad, names, axis)
    made.write(tmp_path / "other.dscalar.nii", maps[:, :80], names, made.everywhere())
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3, 2), np.float32), np.eye(4)), tmp_path / "volume.nii.gz")
    found = problems(write_study(tmp_path, more, nodes=nodes))
    assert found[0][0] == code
