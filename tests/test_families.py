"""Means over networks and named families: against loops over pairs of nodes."""

import dask
import numpy as np
import pytest
import xarray as xr

from kconn.connect.cohort import assemble
from kconn.connect.families import average_families, average_networks, select_families
from kconn.connect.netmats import estimate_netmats, fisher_z
from kconn.errors import InputError, SchemaError
from kconn.kernels.netmats import unpack_edges

NETWORK = {"a": "dmn", "b": "vis", "c": "dmn", "d": "lim", "e": "vis", "f": "dmn"}


def no_compute(*_args, **_kwargs):
    raise AssertionError("a graph was computed while building")


def one(seed, dead=None):
    x = np.random.default_rng(seed).normal(size=(6, 40))
    if dead is not None:
        x[dead] = 2
    ds = xr.Dataset(
        {"timeseries": (("node", "time"), x)},
        coords={"node": list("abcdef"), "time": np.arange(40.0), "network": ("node", list(NETWORK.values()))},
    )
    return fisher_z(estimate_netmats(ds, kind="corr"))


@pytest.fixture
def cube():
    return assemble([("sub-1", "", one(1)), ("sub-2", "", one(2)), ("sub-3", "", one(3, dead=4))])


def mean_of_pairs(cube, row, pairs):
    matrix = unpack_edges(cube["netmat"].to_numpy())[row]
    return np.nanmean([matrix["abcdef".index(a), "abcdef".index(b)] for a, b in pairs])


def test_average_networks__matches_a_loop(cube):
    out = average_networks(cube)
    blocks = list(zip(out["network_i"].to_numpy(), out["network_j"].to_numpy(), strict=True))
    assert blocks == [("dmn", "dmn"), ("dmn", "vis"), ("dmn", "lim"), ("vis", "vis"), ("vis", "lim")]
    for i, (p, q) in enumerate(blocks):
        pairs = [(a, b) for a in "abcdef" for b in "abcdef" if a < b and {NETWORK[a], NETWORK[b]} == {p, q}]
        for row in range(2):
            assert out["network_mean"][row, i] == pytest.approx(mean_of_pairs(cube, row, pairs))
            assert out["n_edge"][row, i] == len(pairs)
    assert out["network_mean"].attrs["z"] == "fisher"


def test_average_networks__passes_over_dead_nodes(cube):
    out = average_networks(cube).isel(observation=2)
    assert out["n_edge"].to_numpy().tolist() == [3, 3, 3, 0, 1]
    assert out["network_mean"][1] == pytest.approx(mean_of_pairs(cube, 2, [("a", "b"), ("b", "c"), ("b", "f")]))
    np.testing.assert_array_equal(np.isnan(out["network_mean"]), [False, False, False, True, False])


def test_average_networks__takes_a_table_with_gaps(cube):
    bare = cube.drop_vars(["network_i", "network_j"])
    out = average_networks(bare, networks={"a": "x", "b": "y", "c": "x"})
    assert list(zip(out["network_i"].to_numpy(), out["network_j"].to_numpy(), strict=True)) == [("x", "x"), ("x", "y")]
    with pytest.raises(SchemaError, match=r"E-SCHEMA.*networks of the nodes"):
        average_networks(bare)
    with pytest.raises(InputError, match=r"E-NODES.*'q' and 0 more"):
        average_networks(bare, networks={"a": "x", "q": "y"})
    with pytest.raises(InputError, match=r"E-NODES.*no edge"):
        average_networks(bare, networks={"a": "x"})


@pytest.mark.parametrize("chunks", [{}, {"observation": 1, "edge": 4}])
def test_average_networks__lazy_equals_eager(cube, chunks):
    eager = average_networks(cube)
    chunked = cube.assign(netmat=cube["netmat"].chunk(chunks))
    with dask.config.set(scheduler=no_compute):
        lazy = average_networks(chunked)
    assert lazy["network_mean"].chunks is not None
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), eager)


def test_average_families__takes_nodes_and_networks(cube):
    rows = [("a-dmn", "a", "dmn"), ("control", "vis", "vis"), ("both", "d", "a"), ("both", "vis", "d")]
    out = average_families(cube, rows)
    assert out["family"].to_numpy().tolist() == ["a-dmn", "control", "both"]
    expected = [[("a", "c"), ("a", "f")], [("b", "e")], [("a", "d"), ("b", "d"), ("d", "e")]]
    for row in range(2):
        values = [mean_of_pairs(cube, row, pairs) for pairs in expected]
        np.testing.assert_allclose(out["family_mean"][row], values)
    assert out["n_edge"][0].to_numpy().tolist() == [2, 1, 3]


def test_average_families__without_networks(cube):
    bare = cube.drop_vars(["network_i", "network_j"])
    out = average_families(bare, [("pair", "b", "a")])
    np.testing.assert_array_equal(out["family_mean"][:, 0], cube["netmat"][:, 0])


def test_select_families__gives_the_edges_of_each(cube):
    chosen = select_families(cube, [("x", "dmn", "dmn")])
    assert chosen["x"].sum() == 3
    assert set(cube["node_i"].to_numpy()[chosen["x"]]) == {"a", "c"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("x", "a", "typo")], "'typo' is neither"),
        ([("x", "a", "a")], "'x' has no edge"),
        ([("x", "lim", "lim")], "'x' has no edge"),
        ([], "no family"),
    ],
)
def test_average_families__refuses_bad_tables(cube, rows, words):
    with pytest.raises(InputError, match=f"E-NODES.*{words}"):
        average_families(cube, rows)


def test_average_families__refuses_a_name_of_both(cube):
    with pytest.raises(InputError, match="'a' is both a node and a network"):
        average_families(cube, [("x", "a", "b")], networks={"b": "a", "c": "a"})
