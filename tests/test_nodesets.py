"""Node sets of the study file: unions, nodes left out, and the networks and hemispheres of tables."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from kconn.connect.netmats import edge_coords
from kconn.connect.nodes import find_members, label_nodes, nodes_from_spheres
from kconn.errors import InputError, StudyFileError
from kconn.io.atlases import read_labels_table, read_members
from kconn.study.file import Study, read_study
from kconn.study.nodesets import load_nodes
from kconn.study.survey import survey_study
from tests.small_study import ATLAS, small_study
from tests.table_study import table_study

AFFINE = np.diag([3.0, 3, 3, 1])
SHAPE = (6, 7, 5)
SPHERES = [["left amygdala", 3.0, 3, 3], ["right amygdala", 12.0, 3, 3], ["PCC", 9.0, 15, 9]]


def study_of(**nodes):
    """Return a study of images with these node sets."""
    return Study.model_validate(
        {"study": {"name": "x"}, "inputs": {"layout": "fmriprep", "root": "."}, "nodes": nodes, "folder": "."}
    )


def load(study, name, folder, run=None):
    files = {role: folder / path for role, path in study.node_files(name).items()}
    return load_nodes(study.node_params(name), files, run)


@pytest.fixture
def structures(tmp_path):
    """Write two whole structures with their table, and return the node set of the study file."""
    volume = np.zeros(SHAPE, dtype=np.int16)
    volume[:2, :2, :2], volume[4:, :2, :2] = 1, 2
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "structures.nii.gz")
    table = pd.DataFrame(
        {"index": [1, 2], "name": ["amy-L", "amy-R"], "network": "limbic", "hemisphere": ["left", "right"]}
    )
    table.to_csv(tmp_path / "structures.tsv", sep="\t", index=False)
    return {"atlas": "structures.nii.gz", "labels": "structures.tsv", "netmats": False}


def test_load_nodes__replaces_spheres_by_whole_structures(tmp_path, structures):
    pd.DataFrame(SPHERES, columns=["name", *"xyz"]).assign(network=["limbic", "limbic", "DMN"]).to_csv(
        tmp_path / "spheres.tsv", sep="\t", index=False
    )
    spheres = {"spheres": "spheres.tsv", "diameter_mm": 8, "netmats": False}
    study = study_of(
        spheres=spheres,
        structures=structures,
        all={"union": ["spheres", "structures"], "exclude": [r[0] for r in SPHERES[:2]]},
    )
    nodes = load(study, "all", tmp_path)
    assert nodes.names == ("PCC", "amy-L", "amy-R")
    assert nodes.networks == ("DMN", "limbic", "limbic")
    assert nodes.hemispheres == ("", "left", "right")
    members = find_members(nodes, SHAPE, AFFINE)
    alone = find_members(load(study, "structures", tmp_path), SHAPE, AFFINE)
    sphere = find_members(nodes_from_spheres(SPHERES[2:], diameter_mm=8), SHAPE, AFFINE)
    assert members.n_voxel.tolist() == [*sphere.n_voxel, *alone.n_voxel]
    assert study.node_files("all") == {
        "spheres:spheres": "spheres.tsv",
        "structures:atlas": "structures.nii.gz",
        "structures:labels": "structures.tsv",
    }
    coords = nodes.coords()
    ends = edge_coords(xr.Dataset(coords=coords))
    assert ends["hemisphere_i"].to_numpy().tolist() == ["", "", "left"]
    assert ends["network_j"].to_numpy().tolist() == ["limbic", "limbic", "limbic"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"union": ["a", "z"]}, "no \\[nodes.z\\]"),
        ({"union": ["a", "a"]}, "named twice"),
        ({"union": ["a", "maps"]}, "a union or has maps"),
        ({"union": ["a", "u"]}, "a union or has maps"),
        ({"union": ["a", "b"], "min_coverage": 0.2, "resample": True}, "'resample' belongs to atlas"),
        ({"union": ["a"]}, "at least 2 items"),
        ({"atlas": "c.nii.gz"}, "neither netmats nor maps"),
    ],
)
def test_study__refuses_unions_that_cannot_be(change, words):
    parts = {name: {"atlas": f"{name}.nii.gz", "netmats": False} for name in "ab"}
    rest = {"maps": {"maps": "m.nii.gz"}, "keep": {"union": ["a", "b"]}}
    unused = {"u": {**change, "netmats": "union" in change}}
    with pytest.raises(ValueError, match=words):
        study_of(**parts, **rest, **unused)


def test_load_nodes__refuses_names_that_clash_or_are_none(tmp_path, structures):
    study = study_of(
        a=structures,
        b=structures,
        c=structures | {"exclude": ["thalamus"]},
        both={"union": ["a", "b"]},
        d={"union": ["a", "c"]},
    )
    with pytest.raises(InputError, match=r"E-NODES.*several nodes are named 'amy-L'"):
        load(study, "both", tmp_path)
    with pytest.raises(InputError, match=r"E-NODES.*no node 'thalamus' to drop"):
        load(study, "d", tmp_path)


def test_survey__places_a_union_on_every_run(tmp_path):
    spheres = {"spheres": [["seed", 0.0, 0.0, 0.0]], "radius_mm": 6, "netmats": False}
    path = small_study(
        tmp_path / "s",
        nodes={"sim": {"atlas": ATLAS, "netmats": False}, "seed": spheres, "all": {"union": ["sim", "seed"]}},
    )
    survey = survey_study(read_study(path))
    assert [problem.code for problem in survey.problems] == []
    assert survey.node_names["all"] == (*survey.node_names["sim"], "seed")


def test_survey__refuses_nodes_that_lie_in_no_run(tmp_path):
    spheres = {"spheres": [["seed", 0.0, 0.0, 0.0], ["far", 900.0, 0.0, 0.0]], "radius_mm": 6}
    path = small_study(tmp_path / "s", nodes={"seeds": spheres})
    (problem,) = survey_study(read_study(path)).problems
    assert problem.code == "E-NODES"
    assert "1 nodes have no voxel in any run: 'far'" in str(problem)


def test_survey__refuses_a_label_outside_every_brain_mask(tmp_path):
    path = small_study(tmp_path / "s")
    image = nib.load(tmp_path / "s" / ATLAS)
    labels = np.asarray(image.dataobj).copy()
    mask = np.asarray(nib.load(next((tmp_path / "s").rglob("*brain_mask.nii.gz"))).dataobj) > 0
    labels[labels == 3] = 0
    labels[tuple(np.argwhere(~mask)[0])] = 3  # on the grid, but outside the brain
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "s" / ATLAS)
    (problem,) = survey_study(read_study(path)).problems
    assert problem.code == "E-NODES"
    assert "1 nodes have no voxel in any run: '3'" in str(problem)


@pytest.mark.parametrize("limits", [{}, {"max_mean_fd": 5.0}])
def test_survey__refuses_partial_correlations_of_too_few_degrees_of_freedom(tmp_path, limits):
    few = {"confounds": "6P", "high_pass": 0.01, "low_pass": 0.12}
    path = small_study(
        tmp_path / "s", connectivity={"kinds": ["partial"]}, denoise=few, quality={"min_dof": 2, **limits}
    )
    survey = survey_study(read_study(path))
    n_run, (run, *_) = len(survey.runs), survey.runs
    assert run.n_kept == 80  # of 8 nodes, but denoising takes most degrees of freedom
    assert 2 < run.df_left <= 8
    codes = [problem.code for problem in survey.problems]
    # Where motion may leave runs out, the study is refused because none is long enough; else for each.
    assert codes == ["E-NETMAT-RANK"] * (1 if limits else n_run)
    assert "degrees of freedom left by denoising) cannot tell 8 nodes apart" in str(survey.problems[0])


def test_columns__take_networks_from_a_table(tmp_path):
    path = table_study(tmp_path, n_subject=3)
    table = pd.DataFrame({"name": list("abcd"), "network": ["DMN", "DMN", "vis", "vis"], "hemi": list("LRLR")})
    table.to_csv(tmp_path / "nodes.tsv", sep="\t", index=False)
    path.write_text(
        path.read_text().replace('columns = "all"', 'columns = "all"\nexclude = ["c"]\nlabels = "nodes.tsv"')
    )
    study = read_study(path)
    run = survey_study(study).runs[0].template
    nodes = load(study, "all", tmp_path, run)
    assert (nodes.names, nodes.networks, nodes.hemispheres) == (("a", "b", "d"), ("DMN", "DMN", "vis"), tuple("LRR"))
    table.iloc[:2].to_csv(tmp_path / "nodes.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"E-ATLAS.*1 nodes are not in the table \['d'\], 0 rows"):
        load(study, "all", tmp_path, run)
    assert "E-ATLAS" in [problem.code for problem in survey_study(study).problems]


def test_label_nodes__refuses_rows_of_no_node():
    nodes = nodes_from_spheres([("a", 0, 0, 0)], radius_mm=5)
    with pytest.raises(InputError, match=r"E-ATLAS hemispheres.*1 rows are of no node \['b'\]"):
        label_nodes(nodes, networks=None, hemispheres={"a": "L", "b": "R"})
    assert label_nodes(nodes, networks={"a": "x", "b": "y"}, hemispheres=None, known=["b"]).networks == ("x",)


def test_read_labels_table__reads_networks_out_of_schaefer_names(tmp_path):
    path = tmp_path / "Schaefer2018_order.txt"
    path.write_text("1\t7Networks_LH_Vis_1\t120\t18\t131\t0\n2\t7Networks_RH_SalVentAttn_Med_2\t1\t2\t3\t0\n")
    found = read_labels_table(path)
    assert found.networks == {1: "Vis", 2: "SalVentAttn"}
    assert found.hemispheres == {1: "LH", 2: "RH"}
    path.write_text("1\t7Networks_LH_Vis_1\t120\t18\t131\t0\n2\tthalamus\t1\t2\t3\t0\n")
    assert read_labels_table(path).networks is None


def test_read_members__refuses_what_is_no_table_of_nodes(tmp_path):
    path = tmp_path / "nodes.tsv"
    path.write_text("label2\tnetwork\na\tx\n")
    with pytest.raises(InputError, match=r"E-ATLAS.*table of nodes has the columns label2, network"):
        read_members(path)
    path.write_text("name\tnetwork\na\tx\na\ty\n")
    with pytest.raises(InputError, match=r"E-ATLAS.*'a' is listed twice"):
        read_members(path)


def test_study_file__names_what_a_union_lacks(tmp_path):
    path = small_study(tmp_path / "s", nodes={"all": {"union": ["sim", "q"]}})
    with pytest.raises(StudyFileError, match=r"E-STUDY-VALUE.*no \[nodes.q\]"):
        read_study(path)
