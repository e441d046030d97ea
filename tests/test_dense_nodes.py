import numpy as np
import pytest
import xarray as xr

from kconn.connect.nodes import (
    drop_nodes,
    find_dense_members,
    find_members,
    join_nodes,
    nodes_from_columns,
    nodes_from_dense_labels,
    nodes_from_labels,
    nodes_from_spheres,
)
from kconn.connect.parcellation import parcellate
from kconn.errors import InputError, SchemaError
from kconn.grayordinates import read_grayordinates
from kconn.io import cifti
from kconn.study.nodesets import load_nodes
from tests import cifti_files as made


def _places(folder, axis):
    path = made.write(folder / "x.dtseries.nii", np.ones((3, len(axis))), made.series_axis(3), axis)
    return cifti.read_series_header(path).places


@pytest.fixture
def run(tmp_path):
    """Return a run of grayordinates without the medial wall."""
    places = _places(tmp_path, made.brain_models())
    bold = np.random.default_rng(0).normal(100, 5, (len(places), 30)).astype(np.float32)
    return xr.Dataset({"bold": (("voxel", "time"), bold)}, coords=places.coords(), attrs=places.attrs())


@pytest.fixture
def atlas(tmp_path):
    """Return a node set on all vertices: b covers the medial wall in part."""
    axis = made.everywhere()
    label = np.zeros(len(axis), np.int32)
    label[np.flatnonzero((axis.name == made.RIGHT) & (axis.vertex >= 30))] = 7
    label[np.flatnonzero((axis.name == made.LEFT) & (axis.vertex < 10))] = 2
    return nodes_from_dense_labels(label, _places(tmp_path, axis), names={2: "b", 7: "a", 9: "unused"})


def test_parcellate__averages_the_vertices_of_a_node_by_their_number(run, atlas):
    out = parcellate(run, atlas)
    bold, vertex = run["bold"].to_numpy().astype(np.float64), run["vertex"].to_numpy()
    names = np.array(run.attrs["structures"])[run["structure"].to_numpy()]
    expected = [
        bold[(names == made.LEFT) & (vertex < 10) & (vertex >= 0)].mean(axis=0),
        bold[(names == made.RIGHT) & (vertex >= 30)].mean(axis=0),
    ]
    assert out["node"].to_numpy().tolist() == ["b", "a"]
    np.testing.assert_allclose(out["timeseries"], expected, rtol=1e-12)
    np.testing.assert_array_equal(out["coverage"], [0.8, 1.0])


def test_parcellate__is_the_same_lazily_and_in_another_order_of_rows(run, atlas):
    expected = parcellate(run, atlas)["timeseries"]
    lazy = parcellate(run.chunk(voxel=7, time=11), atlas)["timeseries"]
    np.testing.assert_array_equal(lazy, expected)
    turned = run.isel(voxel=np.random.default_rng(1).permutation(run.sizes["voxel"]))
    np.testing.assert_allclose(parcellate(turned, atlas)["timeseries"], expected, rtol=1e-12)


def test_find_dense_members__of_a_union_are_those_of_its_parts(run, atlas, tmp_path):
    axis = made.brain_models(vertices={made.LEFT: np.arange(40)})
    deep = nodes_from_dense_labels(
        np.where(axis.volume_mask, 4, 0).astype(np.int32), _places(tmp_path, axis), names={4: "thalamus"}
    )
    both = join_nodes(drop_nodes(atlas, ["a"]), deep)
    out = parcellate(run, both)
    assert out["node"].to_numpy().tolist() == ["b", "thalamus"]
    assert both.centres is None
    np.testing.assert_allclose(out["timeseries"][1], run["bold"].to_numpy()[-6:].mean(axis=0), rtol=1e-6)


def test_find_dense_members__refuses_an_atlas_of_structures_that_the_run_lacks(atlas, tmp_path):
    left = _places(tmp_path, made.brain_models(vertices={made.LEFT: np.arange(40)}))
    with pytest.raises(InputError, match=r"E-BRAIN-MODELS.*CORTEX_RIGHT"):
        find_dense_members(atlas, left)
    with pytest.raises(InputError, match=r"E-BRAIN-MODELS.*41"):
        find_dense_members(atlas, _places(tmp_path, made.brain_models(n_vertices=41)))


def test_find_dense_members__refuses_nodes_of_a_volume(atlas, run):
    volume = np.zeros((4, 4, 4), np.int32)
    volume[1, 1, 1] = 1
    for nodes in (
        nodes_from_labels(volume, np.eye(4)),
        nodes_from_spheres([("s", 0, 0, 0)], radius_mm=5),
    ):
        with pytest.raises(InputError, match="E-NODES"):
            parcellate(run, nodes)
    with pytest.raises(InputError, match="E-NODES"):
        find_members(atlas, (4, 4, 4), np.eye(4))
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        parcellate(run, nodes_from_columns(["a"]))
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        find_dense_members(nodes_from_columns(["a"]), read_grayordinates(run))


@pytest.mark.parametrize(
    ("names", "networks", "code"),
    [
        ({2: "b"}, None, "E-ATLAS"),
        ({2: "b", 7: "b"}, None, "E-NODES"),
        ({2: "b", 7: "a"}, {2: "x"}, "E-ATLAS"),
    ],
)
def test_nodes_from_dense_labels__refuses_tables_that_do_not_fit(atlas, names, networks, code):
    with pytest.raises(InputError, match=code):
        nodes_from_dense_labels(atlas.source.label, atlas.source.places, names=names, networks=networks)
    with pytest.raises(InputError, match="E-ATLAS"):
        nodes_from_dense_labels(np.zeros(80, np.int32), atlas.source.places, names={})


def test_parcellate__serves_the_schaefer_atlas_on_91282_grayordinates(shared_data):
    """Without the medial wall every labelled vertex of the atlas has a row in the 91k space."""
    found = cifti.read_dense_labels(shared_data / "atlases" / "Schaefer200x17_den-32k.dlabel.nii")
    nodes = nodes_from_dense_labels(found.keys, found.places, names=found.names)
    _, (_, places) = cifti._read_header(shared_data / "small" / "cifti" / "ones.dscalar.nii", where="", what="x")
    members = find_dense_members(nodes, places)
    assert len(nodes.names) == 200
    assert members.n_voxel.sum() == np.count_nonzero(found.keys)
    assert members.voxel.size > 0.99 * members.n_voxel.sum()


def test_load_nodes__takes_names_and_colours_of_the_schaefer_atlas(shared_data):
    folder = shared_data / "atlases"
    files = {"atlas": folder / "Schaefer200x17_den-32k.dlabel.nii", "labels": folder / "Schaefer200x17_dseg.tsv"}
    nodes = load_nodes({"label_map": "parcels"}, files, xr.Dataset())
    alone = load_nodes({"label_map": None}, {"atlas": files["atlas"]}, xr.Dataset())
    assert len(nodes.names) == 200
    assert alone.names[0] == "17Networks_LH_VisCent_ExStr_1"
    assert nodes.colours == alone.colours
    assert nodes.coords()["colour"][1][0] == "#781286"
    assert drop_nodes(alone, alone.names[1:]).colours == ("#781286",)
