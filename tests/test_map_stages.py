"""Maps through the shell: a planted effect found, the same bits for any worker, and what is refused before compute."""

import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest

import kconn
from kconn import cli
from kconn.connect.seedmaps import estimate_seed_maps
from kconn.errors import InputError
from kconn.io import cubes
from kconn.io.store import Address
from kconn.study.file import read_study
from kconn.study.survey import survey_study
from tests.small_study import ATLAS, small_study, write_study

GROUPS = {"test": "two-sample", "formula": "group", "effect": "group", "levels": ["placebo", "ketamine"]}
SEEDS = {"spheres": [["left", -20.0, 0.0, 10.0], ["right", 20.0, 0.0, 10.0]], "radius_mm": 25, "seed_maps": True}


def write_maps(path, *, copy=False):
    """Write one smooth map per node of the simulated atlas."""
    image = nibabel.load(path.parent / ATLAS)
    labels = np.asarray(image.dataobj)
    maps = np.stack([(labels == i) * 2.0 for i in range(1, 9)], axis=-1) + 0.01 * (labels > 0)[..., None]
    maps = np.concatenate([maps, maps[..., :1]], axis=-1) if copy else maps
    nibabel.save(nibabel.Nifti1Image(maps.astype(np.float32), image.affine), path)


SHAPE, N_TIME = (6, 7, 5), 60
AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])
AFFINE[:3, 3] = -25, -30, -20
#: Where the planted target lies: two voxels along i, j and k.
TARGET = (slice(4, 6), slice(4, 6), slice(2, 4))
PLANTED = {
    "study": {"name": "planted"},
    "inputs": {
        "layout": "images",
        "root": "runs",
        "pattern": "sub-{subject}_run-{run}.nii.gz",
        "mask": "none",
        "t_r": 2.0,
        "participants": "participants.tsv",
    },
    "denoise": {"confounds": "none", "high_pass": "none", "detrend": False},
    "quality": {"min_frames": 20},
    "nodes": {
        "sim": None,
        "seeds": {"spheres": [["seed", -20.0, -20.0, -10.0], ["other", 20.0, -20.0, 10.0]], "radius_mm": 11}
        | {"seed_maps": True, "netmats": False},
    },
    "permutation": {"n_perm": 300, "seed": 3},
    "contrasts": {"groups": {**GROUPS, "levels": ["a", "b"]}},
}


def write_trial(folder):
    """Write ten subjects, two runs each; in group b the target follows the seed."""
    (folder / "runs").mkdir()
    rng = np.random.default_rng(4)
    rows = []
    for i_subject in range(10):
        group = "ab"[i_subject % 2]
        rows.append((f"sub-{i_subject + 1:02d}", group))
        for i_run in range(2):
            volume = rng.normal(size=(*SHAPE, N_TIME))
            course = rng.normal(size=N_TIME)
            volume[:2, :3, :3] += 2 * course
            volume[TARGET] += course * (group == "b")
            image = nibabel.Nifti1Image((1000 + 20 * volume).astype(np.float32), AFFINE)
            image.header.set_xyzt_units("mm", "sec")
            image.header["pixdim"][4] = 2.0
            nibabel.save(image, folder / "runs" / f"sub-{i_subject + 1:02d}_run-{i_run + 1}.nii.gz")
    table = pd.DataFrame(rows, columns=["participant_id", "group"])
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Run a trial with a planted effect on the map of one of two seeds."""
    folder = tmp_path_factory.mktemp("trial")
    write_trial(folder)
    study = write_study(folder, **PLANTED)
    assert cli.main(["run", str(study), "--workers", "0"]) == 0
    return study


def test_run__finds_the_planted_effect_in_the_map_of_its_seed(trial):
    tree = kconn.open_study(trial.parent / "study.zarr")
    planted = np.zeros(SHAPE, dtype=bool)
    planted[TARGET] = True
    seed, other = (tree[f"contrasts/seeds/seedmap/groups/{name}"].ds for name in ("1-seed", "2-other"))
    there = planted[tuple(seed[axis].to_numpy() for axis in "ijk")]
    assert (seed["p_fwe"].to_numpy()[there] < 0.05).all()
    assert (seed["stat"].to_numpy()[there] > 0).all()
    assert (seed["p_fwe"].to_numpy()[~there] < 0.05).mean() < 0.03
    assert (other["p_fwe"].to_numpy() < 0.05).mean() < 0.03
    joint = tree["contrasts/seeds/seedmap/groups"].ds["p_fwe_nodes"].to_numpy()
    assert (joint[0] >= seed["p_fwe"].to_numpy()).all()
    assert (joint[0][there] < 0.05).all()


def test_run__report_shows_the_planted_effect_and_where_it_is(trial):
    page = (trial.parent / "report.html").read_text()
    assert "1 of 2 seed maps shows an effect somewhere (p FWE &lt; .05 in its map, two-sided): seed." in page
    assert "groups · seed maps of seeds" in page
    assert "The mean series of each node of seeds was correlated with every voxel" in page
    assert "Statistics of maps" in page


@pytest.mark.parametrize(
    "options",
    [
        {"statistic": "cluster-extent", "threshold": 2.0, "neighbours": 6},
        {"statistic": "cluster-mass", "threshold": 2.0, "neighbours": 18},
        {"statistic": "tfce", "neighbours": 26},
    ],
)
def test_run__finds_the_planted_cluster(trial, tmp_path, options):
    shutil.copytree(trial.parent, tmp_path / "trial")
    study = write_study(
        tmp_path / "trial",
        **{**PLANTED, "contrasts": {"groups": None, "shape": {**GROUPS, **options, "levels": ["a", "b"]}}},
    )
    assert cli.main(["run", str(study), "--workers", "0"]) == 0
    tree = kconn.open_study(tmp_path / "trial" / "study.zarr")
    seed, other = (tree[f"contrasts/seeds/seedmap/shape/{name}"].ds for name in ("1-seed", "2-other"))
    planted = np.zeros(SHAPE, dtype=bool)
    planted[TARGET] = True
    there = planted[tuple(seed[axis].to_numpy() for axis in "ijk")]
    assert (seed["p_fwe"].to_numpy()[there] < 0.05).mean() > 0.8
    assert (seed["p_fwe"].to_numpy()[~there] < 0.05).mean() < 0.1
    assert not (other["p_fwe"].to_numpy() < 0.05).any()
    joint = tree["contrasts/seeds/seedmap/shape"].ds["p_fwe_nodes"][0].to_numpy()
    known = np.isfinite(joint)
    assert (joint[known] >= seed["p_fwe"].to_numpy()[known]).all()


def test_check__refuses_clusters_without_neighbours(tmp_path):
    cluster = {**GROUPS, "statistic": "cluster-extent", "threshold": 2.0}
    study = small_study(tmp_path / "study", nodes={"seeds": SEEDS}, contrasts={"groups": cluster})
    with pytest.raises(kconn.KconnError, match=r"E-STUDY-VALUE contrasts.groups .* no neighbours"):
        survey_study(read_study(study)).refuse_problems()


def test_run__publishes_the_mean_map_of_the_runs_of_a_session(trial):
    tree = kconn.open_study(trial.parent / "study.zarr")
    maps = [
        estimate_seed_maps(tree[f"sub-03/ses-1/run-{run}"].ds, tree[f"sub-03/ses-1/run-{run}/seeds"].ds["timeseries"])
        for run in (1, 2)
    ]
    cube = tree["cohort/seeds/seedmap"].ds["seed_map"]
    assert cube.dims == ("observation", "node", "voxel")
    expected = (maps[0]["seed_map"].astype(float) + maps[1]["seed_map"].astype(float)) / 2
    np.testing.assert_array_equal(cube[4 // 2].to_numpy(), expected.to_numpy().astype(np.float32))


def test_run__makes_subject_maps_of_spatial_maps(tmp_path):
    study = small_study(tmp_path / "study", n_subjects_per_group=3)
    write_maps(tmp_path / "study" / "ica.nii.gz")
    write_study(tmp_path / "study", nodes={"sim": None, "ica": {"maps": "ica.nii.gz", "subject_maps": True}})
    assert cli.main(["run", str(study), "--workers", "0"]) == 0
    tree = kconn.open_study(tmp_path / "study" / "study.zarr")
    run, series = tree["sub-01/ses-pre/run-1"].ds, tree["sub-01/ses-pre/run-1/ica"].ds
    kept = run["sample_mask"].to_numpy()
    volume = np.asarray(nibabel.load(tmp_path / "study" / "ica.nii.gz").dataobj)
    design = volume[tuple(run[axis].to_numpy() for axis in "ijk")].astype(np.float64)
    y = run["denoised"].to_numpy()[:, kept].astype(np.float64)
    live = np.isfinite(y).all(axis=1)
    fitted = np.linalg.lstsq(np.column_stack([design, np.ones(len(design))])[live], y[live])[0][:-1]
    np.testing.assert_allclose(series["timeseries"].to_numpy()[:, kept], fitted, rtol=1e-8, atol=1e-8)
    ts = fitted.T - fitted.mean(axis=1)
    beta = np.linalg.lstsq(ts / ts.std(axis=0, ddof=1), (y - y.mean(axis=1, keepdims=True)).T)[0]
    cube = tree["cohort/ica/subjectmap"].ds
    maps = tree["sub-01/ses-pre/run-1/ica/subjectmap"].ds["subject_map"]
    np.testing.assert_allclose(maps.to_numpy()[:, live], beta[:, live], rtol=1e-4, atol=1e-4)
    assert cube["subject_map"].shape[:2] == (6, 8)
    assert tree["contrasts/ica/subjectmap/groups/1-1"].ds.attrs["node"] == "1"
    assert "netmat" in tree["cohort/ica/corr"].ds


def test_run__leaves_a_node_without_maps_out_of_the_tests(tmp_path):
    # One voxel of six lies in the brain: less than min_coverage.
    far = {**SEEDS, "spheres": [*SEEDS["spheres"], ["edge", -70.0, -58.0, 42.0]]}
    study = small_study(tmp_path / "study", nodes={"sim": None, "seeds": {**far, "netmats": False}})
    assert cli.main(["run", str(study), "--workers", "0"]) == 0
    root = tmp_path / "study" / "study.zarr"
    found = cubes.open_group(root, Address(path="contrasts/seeds/seedmap/groups/3-edge", step="map-test"))
    assert "E-NO-FEATURES" in found.attrs["excluded"]
    joint = cubes.open_group(root, Address(path="contrasts/seeds/seedmap/groups", step="map-correction"))
    assert joint["node"].to_numpy().tolist() == ["left", "right"]


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ({"seeds": {**SEEDS, "spheres": SEEDS["spheres"][:1]}}, r"E-NODES \[nodes.seeds.*the node 'left' alone"),
        ({"ica": {"maps": "twice.nii.gz"}}, r"E-NODES \[nodes.ica.*not independent"),
        ({"ica": {"maps": "none.nii.gz"}}, r"E-FILE-MISSING|E-NIFTI"),
    ],
)
def test_check__refuses_node_sets_that_cannot_be_mapped(tmp_path, nodes, problem):
    folder = tmp_path / "study"
    study = small_study(folder, nodes={"sim": None, **nodes})
    write_maps(folder / "twice.nii.gz", copy=True)
    with pytest.raises(InputError, match=problem):
        survey_study(read_study(study)).refuse_problems()


def test_check__refuses_runs_on_several_grids(tmp_path):
    study = small_study(tmp_path / "study", nodes={"seeds": SEEDS, "sim": None})
    for path in (tmp_path / "study" / "derivatives" / "sub-02").rglob("*.nii.gz"):
        image = nibabel.load(path)
        affine = image.affine + np.array([[0, 0, 0, 1.0], *[[0] * 4] * 3])
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine, image.header), path)
    with pytest.raises(InputError, match=r"E-GRID \[maps, sub-02"):
        survey_study(read_study(study)).refuse_problems()


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ({"columns": "all", "seed_maps": True}, "no voxels"),
        ({"atlas": "a.nii", "netmats": False}, "neither netmats nor maps"),
        ({"atlas": "a.nii", "subject_maps": True}, "'subject_maps' belongs to maps"),
        ({"maps": "a.nii", "atlas": "b.nii"}, "exactly one of"),
    ],
)
def test_nodes_table__refuses_keys_that_do_not_fit(tmp_path, nodes, problem):
    with pytest.raises(kconn.KconnError, match=problem):
        read_study(write_study(tmp_path, nodes={"sim": None, "x": nodes}))
