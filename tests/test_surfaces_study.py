"""Clusters and TFCE of the maps of CIFTI studies, along the GIFTI surfaces that the study file names."""

import nibabel as nib
import numpy as np
import pytest

from kconn.execution import run_plan
from kconn.grayordinates import read_grayordinates
from kconn.infer.inference import permutation_test
from kconn.infer.surface_neighbours import grayordinate_neighbours
from kconn.io import cubes
from kconn.io.gifti import read_surface
from kconn.io.store import Address
from kconn.kernels.surfaces import vertex_areas
from kconn.study.file import read_study
from kconn.study.survey import survey_study
from kconn.study.workbench import prepare, writing
from kconn.testing import simulate_study
from tests import cifti_files as made

ATLAS = "derivatives/atlas/space-fsLR_atlas-sim_dseg.dlabel.nii"
STUDY = """
[study]
name = "surfaces"
[inputs]
layout = "hcp"
root = "derivatives"
participants = "derivatives/participants.tsv"
[denoise]
confounds = "none"
high_pass = 0.01
low_pass = 0.2
fd_threshold = "none"
[quality]
min_frames = 20
min_dof = 5
[nodes.sim]
atlas = "derivatives/atlas/space-fsLR_atlas-sim_dseg.dlabel.nii"
seed_maps = true
netmats = false
[permutation]
n_perm = 100
[contrasts.enhanced]
test = "two-sample"
formula = "group"
effect = "group"
levels = ["placebo", "ketamine"]
statistic = "tfce"
neighbours = 26
[contrasts.extent]
test = "two-sample"
formula = "group"
effect = "group"
levels = ["placebo", "ketamine"]
statistic = "cluster-extent"
threshold = 1.5
neighbours = 18
{surfaces}
"""
SURFACES = """
[surfaces]
left = "left.surf.gii"
right = "right.surf.gii"
extent = "mm2"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Simulate an HCP study with a surface for each hemisphere, and return its folder."""
    folder = tmp_path_factory.mktemp("surfaces")
    simulate_study(
        folder / "derivatives",
        layout="hcp",
        n_subjects_per_group=3,
        sessions=("pre",),
        n_runs=1,
        n_effect_edges=0,
        n_nodes=4,
        n_time=80,
        t_r=0.8,
        grid_shape=(10, 12, 10),
        n_high_motion_runs=0,
        seed=3,
    )
    for side, structure in (("left", "CortexLeft"), ("right", "CortexRight")):
        made.write_surface(folder / f"{side}.surf.gii", n_vertices(folder, side), structure=structure)
    return folder


def n_vertices(folder, side):
    axis = nib.load(folder / ATLAS).header.get_axis(1)
    return axis.nvertices[f"CIFTI_STRUCTURE_CORTEX_{side.upper()}"]


def write_study(folder, surfaces=SURFACES, name="study.toml"):
    path = folder / name
    path.write_text(STUDY.format(surfaces=surfaces))
    return path


def problems(folder, surfaces=SURFACES):
    return [
        (problem.code, problem.where) for problem in survey_study(read_study(write_study(folder, surfaces))).problems
    ]


def test_run__enhances_the_maps_of_grayordinates_along_their_surfaces(folder):
    bench = prepare(write_study(folder))
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    root = bench.study.store
    cohort = cubes.open_group(root, Address(path="cohort/sim/seedmap", step="map-cohort"))
    group = np.array(
        [bench.survey.participants["group"][subject] == "ketamine" for subject in cohort["subject"].values]
    )
    surfaces = {
        f"CORTEX_{side.upper()}": read_surface(folder / f"{side}.surf.gii", structure=f"CORTEX_{side.upper()}")
        for side in ("left", "right")
    }
    triangles = {name: surface.triangles for name, surface in surfaces.items()}
    areas = {name: vertex_areas(surface.points, surface.triangles) for name, surface in surfaces.items()}
    places = read_grayordinates(cohort)
    assert (places.vertex >= 0).any()
    assert (places.vertex < 0).any()
    tests = {
        "enhanced": (26, {"statistic": "tfce"}),
        "extent": (18, {"statistic": "cluster-extent", "threshold": 1.5}),
    }
    for name, (connectivity, options) in tests.items():
        expected = permutation_test(
            cohort["seed_map"][:, 1].to_numpy(),
            np.column_stack([np.ones(len(group)), group]),
            {"group": [0, 1]},
            n_perm=100,
            seed=0,
            neighbours=grayordinate_neighbours(places, triangles, connectivity=connectivity, areas=areas),
            **options,
        ).sel(contrast="group")
        (path,) = [
            step.address
            for step in bench.plan.steps
            if step.address.path.startswith(f"contrasts/sim/seedmap/{name}/2-")
        ]
        found = cubes.open_group(root, path)
        np.testing.assert_allclose(found["enhanced"], expected["enhanced"], rtol=1e-9)
        np.testing.assert_array_equal(found["p_fwe"], expected["p_fwe"])  # 20 relabellings: all there are
        assert found["enhanced"].max() > 0


def test_make_plan__a_surface_belongs_to_the_tests_that_look_at_neighbours(folder):
    with_areas = prepare(write_study(folder)).plan
    counting = prepare(write_study(folder, SURFACES.replace('"mm2"', '"vertices"'))).plan
    changed = {
        step.stage for step, other in zip(with_areas.steps, counting.steps, strict=True) if step.key != other.key
    }
    assert changed == {"map-test", "map-correction"}
    step = next(step for step in with_areas.steps if step.stage == "map-test")
    assert step.files["surface_left"] == "left.surf.gii"
    assert step.digests["left.surf.gii"] != step.digests["right.surf.gii"]


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        ({"left": None}, "E-FILE-MISSING", "surfaces, left.surf.gii"),
        ({"left": {"structure": "CortexRight"}}, "E-BRAIN-MODELS", "surfaces, left.surf.gii"),
        ({"right": {"structure": None}}, "E-BRAIN-MODELS", "surfaces, right.surf.gii"),
        ({"right": {"n_vertices": 9}}, "E-BRAIN-MODELS", "surfaces, CORTEX_RIGHT"),
        ({"right": b"<GIFTI"}, "E-GIFTI", "surfaces, right.surf.gii"),
        ({"left": b""}, "E-GIFTI", "surfaces, left.surf.gii"),
    ],
)
def test_survey_study__refuses_surfaces_that_are_not_those_of_the_runs(folder, tmp_path, change, code, where):
    for part in ("derivatives", "left.surf.gii", "right.surf.gii"):
        (tmp_path / part).symlink_to(folder / part)
    for side, how in change.items():
        path = tmp_path / f"{side}.surf.gii"
        path.unlink()
        if isinstance(how, bytes):
            path.write_bytes(how)
        elif how is not None:
            given = {"n_vertices": n_vertices(folder, side), "structure": f"Cortex{side.title()}"}
            made.write_surface(path, **given | how)
    assert problems(tmp_path) == [(code, where)]


def test_survey_study__refuses_clusters_of_vertices_without_a_surface(folder, tmp_path):
    (tmp_path / "derivatives").symlink_to(folder / "derivatives")
    (tmp_path / "left.surf.gii").symlink_to(folder / "left.surf.gii")
    assert problems(tmp_path, "") == [("E-STUDY-VALUE", ""), ("E-STUDY-VALUE", "")]
    assert problems(tmp_path, '[surfaces]\nleft = "left.surf.gii"') == [("E-BRAIN-MODELS", "surfaces, CORTEX_RIGHT")]


def test_read_study__a_table_of_surfaces_names_one(tmp_path):
    with pytest.raises(Exception, match="names no surface"):
        read_study(write_study(tmp_path, "[surfaces]"))
