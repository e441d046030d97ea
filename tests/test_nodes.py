"""Node sets: what they select, and every refusal."""

import numpy as np
import pytest

from kconn.connect.nodes import (
    drop_nodes,
    find_members,
    join_nodes,
    nodes_from_columns,
    nodes_from_labels,
    nodes_from_spheres,
)
from kconn.errors import InputError, SchemaError

AFFINE = np.array([[-3.0, 0, 0, 30], [0, 3, 0, -30], [0, 0, 3, -20], [0, 0, 0, 1]])
SHAPE = (9, 8, 7)


@pytest.fixture
def labels():
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[1:4, 1:7, 2:6] = 2
    labels[5:8, 1:7, 2:6] = 7
    labels[:, :, 0] = 11
    return labels


@pytest.fixture
def atlas(labels):
    return nodes_from_labels(labels, AFFINE, names={2: "left", 7: "right", 11: "below"})


def test_find_members__has_no_answer_for_columns():
    with pytest.raises(SchemaError, match="no voxels"):
        find_members(nodes_from_columns(["a"]), SHAPE, AFFINE)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((3, 3, 3), dtype=int), "no label"),
        (np.full((3, 3, 3), 0.5), "no label"),
        (np.ones((3, 3)), "shape"),
        (np.full((3, 3, 3), np.nan), "no label"),
        (np.ones((3, 3, 3), dtype=complex), "no label"),
    ],
)
def test_nodes_from_labels__refuses_what_is_no_label_image(labels, words):
    with pytest.raises(InputError, match=f"E-ATLAS.*{words}"):
        nodes_from_labels(labels, np.eye(4))


def test_nodes_from_labels__names_nodes_by_their_label(labels):
    nodes = nodes_from_labels(labels.astype(np.float32), AFFINE)
    assert nodes.names == ("2", "7", "11")
    assert nodes.networks is None


@pytest.mark.parametrize("names", [{2: "a", 7: "b"}, {2: "a", 7: "b", 11: "c", 12: "d"}])
def test_nodes_from_labels__refuses_a_table_of_another_image(labels, names):
    with pytest.raises(InputError, match=r"E-ATLAS.*names: [01] labels"):
        nodes_from_labels(labels, AFFINE, names=names)


def test_nodes_from_labels__refuses_equal_names(labels):
    with pytest.raises(InputError, match=r"E-NODES.*'a'"):
        nodes_from_labels(labels, AFFINE, names={2: "a", 7: "b", 11: "a", 0: "background"})


@pytest.mark.parametrize("size", [{}, {"radius_mm": 5, "diameter_mm": 10}, {"radius_mm": 0}, {"radius_mm": [1, 2, 3]}])
def test_nodes_from_spheres__needs_one_size(size):
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*radius"):
        nodes_from_spheres([("a", 0, 0, 0), ("b", 9, 9, 9)], **size)


def test_nodes_from_spheres__takes_a_size_for_each():
    nodes = nodes_from_spheres([("a", 0, 0, 0), ("b", 9, 9, 9)], diameter_mm=[4, 8], networks={"a": "p", "b": "q"})
    assert nodes.source.radius_mm.tolist() == [2, 4]
    assert nodes.networks == ("p", "q")


def test_nodes_from_spheres__refuses_bad_tables():
    with pytest.raises(InputError, match=r"E-NODES.*empty"):
        nodes_from_spheres([], radius_mm=5)
    with pytest.raises(InputError, match=r"E-NODES.*'a' has centre"):
        nodes_from_spheres([("a", 0, np.nan, 0)], radius_mm=5)


def test_nodes_from_columns__refuses_unknown_exclusions():
    with pytest.raises(InputError, match="no column is named 'q'"):
        nodes_from_columns(["a", "b"], exclude=["q"])
    with pytest.raises(InputError, match="empty"):
        nodes_from_columns(["a"], exclude=["a"])


def test_join_nodes__refuses_mixtures_and_equal_names(atlas):
    with pytest.raises(InputError, match=r"E-NODES.*joined"):
        join_nodes(atlas, nodes_from_columns(["a"]))
    with pytest.raises(InputError, match=r"E-NODES.*'below'"):
        join_nodes(atlas, atlas)
    with pytest.raises(InputError, match=r"E-NODES.*'typo'"):
        drop_nodes(atlas, ["typo"])
    with pytest.raises(InputError, match=r"E-NODES.*empty"):
        drop_nodes(atlas, atlas.names)
