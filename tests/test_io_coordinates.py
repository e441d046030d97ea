"""Published spheres: against what nilearn carries, and in a study file."""

import numpy as np
import pytest
from nilearn import datasets

from kconn.errors import StudyFileError
from kconn.io.coordinates import SPHERE_TABLES, read_published_spheres
from kconn.report.bibliography import Bibliography
from kconn.report.methods import cite_spheres
from kconn.study.file import read_study
from kconn.study.nodesets import load_nodes
from tests.small_study import write_study


@pytest.mark.parametrize(("name", "n_node"), [*zip(SPHERE_TABLES, (264, 160, 300, 5), strict=True)])
def test_read_published_spheres__has_every_sphere_once(name, n_node):
    found = read_published_spheres(name)
    assert len({row[0] for row in found.spheres}) == n_node
    assert found.networks is None or set(found.networks) == {row[0] for row in found.spheres}


def test_read_published_spheres__keeps_the_published_order():
    dosenbach = datasets.fetch_coords_dosenbach_2010(ordered_regions=False)
    found = read_published_spheres("dosenbach2010")
    np.testing.assert_array_equal([row[1:] for row in found.spheres], dosenbach.rois[["x", "y", "z"]])
    assert found.spheres[0] == ("vmPFC 1", 6.0, 64.0, 3.0)  # as the paper lists it
    assert found.networks["vmPFC 1"] == "default"
    assert read_published_spheres("power2011").spheres[0] == ("power001", -25.0, -98.0, -12.0)


def test_load_nodes__takes_the_radii_of_the_table_unless_one_is_given(tmp_path):
    study = read_study(
        write_study(
            tmp_path,
            nodes={
                "sim": None,
                "own": {"spheres": "seitzman2018"},
                "given": {"spheres": "seitzman2018", "diameter_mm": 6},
                "seeds": {"spheres": "motoyama"},
            },
        )
    )
    own, given, seeds = (load_nodes(table.model_dump(mode="json"), {}, None) for table in study.nodes.values())
    assert study.nodes["own"].files() == {}
    # 239 cortical spheres of 5 mm, 61 of 4 mm in subcortex and cerebellum.
    np.testing.assert_array_equal(np.unique(own.source.radius_mm, return_counts=True), [[4, 5], [61, 239]])
    assert set(given.source.radius_mm) == {3.0}
    assert set(given.networks) == set(own.networks)
    assert set(seeds.source.radius_mm) == {5.0}


def test_nodes_table__wants_a_size_where_the_table_has_none(tmp_path):
    with pytest.raises(StudyFileError, match="exactly one of radius_mm"):
        read_study(write_study(tmp_path, nodes={"sim": None, "x": {"spheres": "power2011"}}))


def test_cite_spheres__names_the_authors_of_published_tables():
    bibliography = Bibliography()
    nodes = {"a": {"spheres": "dosenbach2010"}, "b": {"spheres": "mine.tsv"}, "c": {"spheres": "motoyama"}}
    told = cite_spheres({"nodes": nodes}, bibliography)
    assert "The nodes of a are the spheres of Dosenbach et al. (2010)" in told
    assert "The nodes of c are the spheres of Motoyama et al. (2019)" in told
    assert "nodes of b" not in told
    assert all(cite_spheres({"nodes": {"x": {"spheres": name}}}, Bibliography()) for name in SPHERE_TABLES)
