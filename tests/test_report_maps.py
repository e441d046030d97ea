"""Maps in the report: slices that lie as the brain does, clusters with their peaks, structures, and group ICA."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from scipy import ndimage

from kconn.grayordinates import Grayordinates
from kconn.infer.design import Hypothesis
from kconn.infer.inference import permutation_test
from kconn.report.bibliography import Bibliography
from kconn.report.data import GroupComponents, TestedMap, describe_map_test
from kconn.report.map_clusters import cluster_rows
from kconn.report.maps import component_sections, map_sections
from kconn.report.slices import choose_slices, draw_axial, draw_planes, place_volume, structure_table
from kconn.report.statistics import write_statistics

SHAPE = (7, 8, 6)
#: Left is at the far end of i, as FSL and Workbench write it.
AFFINE = np.array([[-3.0, 0, 0, 9], [0, 3, 0, -12], [0, 0, 4, -8], [0, 0, 0, 1]])
CHANGE = Hypothesis(test="two-sample", formula="group", effect="group", levels=("a", "b"))


def volume_of(values):
    """Return a map of every voxel, first axis fastest."""
    ijk = np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE, order="F")
    return xr.Dataset(
        {"stat": ("voxel", values[ijk]), "p_fwe": ("voxel", np.where(np.abs(values[ijk]) > 3, 0.01, 0.9))},
        coords={axis: ("voxel", at.astype(np.int32)) for axis, at in zip("ijk", ijk, strict=True)},
        attrs={"affine": AFFINE.tolist(), "grid_shape": list(SHAPE)},
    )


def blobs():
    values = np.zeros(SHAPE)
    values[5:, :2, 1] = 4.0  # on the left, behind
    values[5, 2, 1] = -5.0  # touches it, but lies on the other side of zero
    values[1, 6, 4] = 6.0
    return values


def test_cluster_rows__are_those_of_scipy_for_each_sign():
    ds = volume_of(blobs())
    table = cluster_rows(ds, ds["p_fwe"].to_numpy() < 0.05, "p_fwe")
    n_positive = ndimage.label(blobs() > 3, np.ones((3, 3, 3)))[1]
    n_negative = ndimage.label(blobs() < -3, np.ones((3, 3, 3)))[1]
    assert len(table) == n_positive + n_negative == 3
    assert table["size"].tolist() == [4, 1, 1]
    peaks = dict(zip(table["stat"], table["place"], strict=True))
    assert peaks[6.0].split() == ["6", "6", "8"]
    assert peaks[-5.0].split() == ["\N{MINUS SIGN}6", "\N{MINUS SIGN}6", "\N{MINUS SIGN}4"]


def picture(markup, n):
    address = re.findall(r"base64,([^\"]+)", markup)[n]
    return np.asarray(Image.open(BytesIO(b64decode(address))).convert("RGBA")).astype(int)


def test_draw_axial__left_is_left_and_the_front_is_up():
    ds = volume_of(blobs())
    volume = place_volume(ds, ds["stat"].to_numpy(), ds["p_fwe"].to_numpy() < 0.05)
    assert choose_slices(volume) == [1, 4]
    drawn = draw_axial(volume, what="Map of a seed")
    assert re.findall(r">(z = .*?)</text>", drawn) == ["z = \N{MINUS SIGN}4 mm", "z = 8 mm"]
    low, high = picture(drawn, 0), picture(drawn, 1)
    red = (low[..., 0] > low[..., 2] + 50).nonzero()
    assert set(red[0]) == {6, 7}  # the last rows: behind
    assert set(red[1]) == {0, 1}  # the first columns: left
    assert (low[5, 1, 2] > low[5, 1, 0]).all()  # blue
    assert (high[..., 0] > high[..., 2] + 50).nonzero() == (np.array([1]), np.array([5]))
    assert (low[..., 3] > 0).all()  # grey where nothing is found


def test_draw_planes__go_through_the_peak():
    ds = volume_of(blobs())
    volume = place_volume(ds, ds["stat"].to_numpy(), np.abs(ds["stat"].to_numpy()) > 3)
    drawn = draw_planes(volume, what="ic001")
    assert re.findall(r">([xyz] = .*?)</text>", drawn) == ["x = 6 mm", "y = 6 mm", "z = 8 mm"]
    assert volume.signal[volume.peak] == 6


def dense():
    places = Grayordinates(
        structures=("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_THALAMUS_LEFT"),
        structure=np.repeat([0, 1], [10, 6]).astype(np.int32),
        vertex=np.concatenate([np.arange(10), np.full(6, -1)]).astype(np.int32),
        ijk=np.concatenate([np.full((10, 3), -1), [(1, 2, k) for k in range(6)]]).astype(np.int32),
        n_vertices={"CIFTI_STRUCTURE_CORTEX_LEFT": 12},
        affine=AFFINE,
        grid_shape=SHAPE,
    )
    stat = np.linspace(-6, 5, 16)
    return xr.Dataset(
        {"stat": ("voxel", stat), "p_fwe": ("voxel", np.where(np.abs(stat) > 4, 0.01, 0.9))},
        coords=places.coords(),
        attrs=places.attrs(),
    )


def test_structure_table__counts_by_structure():
    ds = dense()
    table = structure_table(ds, ds["stat"].to_numpy(), ds["p_fwe"].to_numpy() < 0.05, symbol="t")
    assert [row[:3] for row in table.rows] == [("cortex left", "10", "3"), ("thalamus left", "6", "2")]
    assert all(row[5].count('stroke="#') == int(row[2]) for row in table.rows)


def test_cluster_rows__of_vertices_without_a_surface_are_structures():
    ds = dense()
    table = cluster_rows(ds, ds["p_fwe"].to_numpy() < 0.05, "p_fwe")
    assert table["place"].tolist() == ["CORTEX_LEFT vertex 0", "THALAMUS_LEFT voxel 1 2 5"]
    assert table["size"].tolist() == [3, 2]
    volume = place_volume(ds, ds["stat"].to_numpy(), ds["p_fwe"].to_numpy() < 0.05)
    assert volume.there.sum() == 6
    assert place_volume(ds.isel(voxel=slice(0, 10)), np.ones(10), np.ones(10, dtype=bool)) is None


@pytest.fixture(scope="module")
def tested():
    """The maps of two nodes in ten people, of whom half have more in one corner of the first."""
    rng = np.random.default_rng(1)
    people = pd.DataFrame({"group": list("ab") * 5}, index=[f"{i:02d}" for i in range(10)])
    place = volume_of(np.zeros(SHAPE)).drop_vars(["stat", "p_fwe"])
    found = []
    for node, effect in (("PCC", 8.0), ("mPFC", 0.0)):
        maps = rng.normal(size=(10, *SHAPE))
        maps[1::2, 5:, :2, 1] += effect
        ijk = tuple(place[axis].to_numpy() for axis in "ijk")
        data = xr.DataArray(
            maps[:, *ijk],
            dims=("observation", "voxel"),
            coords={"observation": list(people.index), **place.coords},
        )
        design = pd.DataFrame({"b": [0.0, 1.0] * 5, "one": 1.0}, index=people.index)
        result = permutation_test(data, design, {"tested": [1, 0]}, n_perm=60, seed=2).isel(contrast=0)
        result = result.assign_attrs(place.attrs, question="b minus a", left_out=["11: no age"])
        cohort = xr.Dataset(coords={"subject": ("observation", list(people.index))})
        test = describe_map_test(
            "drug", node_set="seeds", kind="seedmap", result=result, cohort=cohort, participants=people,
            hypothesis=CHANGE, unit="Fisher z",
        )  # fmt: skip
        regions = np.where(ijk[0] > 3, "left", "").astype(object)
        found.append(TestedMap(name="drug", node_set="seeds", kind="seedmap", node=node, test=test, regions=regions))
    nowhere = TestedMap(name="drug", node_set="seeds", kind="seedmap", node="far", test=None, reason="no map")
    return [*found, nowhere]


def test_map_sections__tell_where_and_how_much(tested):
    [section] = map_sections(iter(tested), alpha=0.05)
    assert section.headline.startswith("1 of 2 seed maps shows an effect")
    assert section.left_out == ("far: no map",)
    assert [row[0] for row in section.nodes.rows] == ["PCC", "mPFC"]
    [picture_of] = section.pictures
    assert picture_of.title == "PCC"
    assert picture_of.clusters.rows[0][1:3] == ("left", "4")
    assert len(section.nodes.rows[0]) == len(section.nodes.columns)
    assert len(picture_of.clusters.rows[0]) == len(picture_of.clusters.columns)
    assert all("voxel" not in test.result.dims for test in section.tests)
    assert section.tests[0].left_out == {"11": "no age"}
    text = write_statistics(section.tests, 0.05, Bibliography(), feature="voxel")
    assert text.startswith("Each voxel was tested")
    assert "over all voxels of a map" in text


@pytest.mark.parametrize("has_templates", [True, False])
def test_component_sections__list_what_is_accepted_and_what_it_is_like(has_templates):
    place = volume_of(blobs())
    maps = np.stack([place["stat"], -place["stat"]]).astype(np.float32)
    ds = xr.Dataset(
        {
            "ica_map": (("node", "voxel"), maps),
            "stability": ("node", [0.99, 0.5]),
            "variance_share": ("node", [0.3, 0.1]),
        },
        coords={"node": ["ic001", "ic002"], **place.drop_vars(["stat", "p_fwe"]).coords},
        attrs={**place.attrs, "n_run": 4, "n_start": 3, "n_converged": 3},
    )
    if has_templates:
        r = [[0.8, 0.1, np.nan], [-0.2, -0.6, np.nan]]
        ds = ds.assign(template_correlation=(("node", "template"), r)).assign_coords(template=["DMN", "visual", "none"])
    group = GroupComponents(
        name="group", components=ds, accepted=np.array([True, False]), reason=("", "veins"), threshold=3.0
    )
    [section] = component_sections([group])
    assert "2 components of 4 runs, 1 accepted" in section.lead
    assert [row[:3] for row in section.table.rows] == [("ic001", "yes", ""), ("ic002", "no", "veins")]
    assert [picture.accepted for picture in section.pictures] == [True, False]
    assert (section.templates is not None) == has_templates
    if has_templates:
        assert section.table.rows[1][-2:] == ("visual", "\N{MINUS SIGN}0.60")
        assert section.templates.rows[0][:3] == ("DMN", "ic001", "0.80")
        assert "DMN r = 0.80" in section.pictures[0].caption
        assert section.matches.startswith("<svg")
