"""The cohort cube: rows by id, nodes by name, nothing silently put together that differs."""

import numpy as np
import pytest
import xarray as xr
from nilearn.connectome import ConnectivityMeasure

from kconn.connect.cohort import (
    assemble,
    average_runs,
    average_sessions,
    group_mean,
    list_missing,
    node_names,
    project_tangent,
    scale_to_unrelated,
    ward_order,
)
from kconn.connect.netmats import ar1_z, estimate_ar1, estimate_netmats, fisher_z
from kconn.errors import InputError, SchemaError
from kconn.kernels.netmats import pack_edges, unpack_edges
from kconn.kernels.tangent import geometric_mean
from kconn.kernels.tangent import project_tangent as project_tangent_space

NAMES = ("a", "b", "c", "d", "e")


def netmat(seed, *, names=NAMES, kind="corr", dead=()):
    x = np.random.default_rng(seed).normal(size=(len(names), 40))
    x[[names.index(name) for name in dead]] = 1
    ds = xr.Dataset(
        {"timeseries": (("node", "time"), x)},
        coords={"node": list(names), "time": np.arange(40.0)},
        attrs={"where": f"sub-{seed:02d}/ses-1/run-1"},
    )
    return fisher_z(estimate_netmats(ds, kind=kind, rho=0.1 if kind == "ridgep" else None))


def test_average_runs__is_the_plain_mean():
    out = average_runs([netmat(1), netmat(2), netmat(3)])
    expected = np.mean([netmat(i)["netmat"] for i in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(out["netmat"], expected)
    assert (out["n_run"] == 3).all()
    assert out["netmat"].attrs == netmat(1)["netmat"].attrs
    np.testing.assert_array_equal(node_names(out), NAMES)


def test_average_runs__passes_over_dead_nodes_of_one_run():
    out = average_runs([netmat(1), netmat(2, dead=("c",))])
    of_c = (out["node_i"] == "c") | (out["node_j"] == "c")
    np.testing.assert_array_equal(out["n_run"], np.where(of_c, 1, 2))
    np.testing.assert_array_equal(out["netmat"][of_c], netmat(1)["netmat"][of_c])
    both = average_runs([netmat(1, dead=("c",)), netmat(2, dead=("c",))])
    np.testing.assert_array_equal(np.isnan(both["netmat"]), of_c)


def test_average_runs__is_lazy():
    runs = [netmat(i) for i in range(7)]
    lazy = average_runs([run.chunk(edge=3) for run in runs])
    assert lazy["netmat"].chunks is not None
    np.testing.assert_array_equal(lazy["netmat"], average_runs(runs)["netmat"])


def test_assemble__sorts_by_id():
    rows = [("sub-10", "ses-1", netmat(3)), ("sub-02", "ses-2", netmat(2)), ("sub-02", "ses-1", netmat(1))]
    out = assemble(rows)
    assert out["observation"].to_numpy().tolist() == ["sub-02_ses-1", "sub-02_ses-2", "sub-10_ses-1"]
    assert out["subject"].to_numpy().tolist() == ["sub-02", "sub-02", "sub-10"]
    assert out["session"].to_numpy().tolist() == ["ses-1", "ses-2", "ses-1"]
    np.testing.assert_array_equal(out["netmat"], np.stack([netmat(i)["netmat"] for i in (1, 2, 3)]))
    assert out["netmat"].dims == ("observation", "edge")
    xr.testing.assert_identical(out, assemble(rows[::-1]))


def test_assemble__without_sessions():
    assert assemble([("sub-1", "", netmat(1))])["observation"].to_numpy().tolist() == ["sub-1"]


def test_assemble__joins_nodes_by_name():
    x = np.random.default_rng(0).normal(size=(5, 40))
    order = [4, 1, 0, 3, 2]
    datasets = [
        fisher_z(
            estimate_netmats(
                xr.Dataset(
                    {"timeseries": (("node", "time"), x[rows])},
                    coords={"node": [NAMES[i] for i in rows], "time": np.arange(40.0)},
                ),
                kind="corr",
            )
        )
        for rows in (list(range(5)), order)
    ]
    out = assemble([("sub-1", "", datasets[0]), ("sub-2", "", datasets[1])])
    np.testing.assert_allclose(out["netmat"][0], out["netmat"][1], rtol=1e-12)


def test_assemble__counts_and_lists_what_is_missing():
    out = assemble([("sub-1", "", netmat(1)), ("sub-2", "", netmat(2, dead=("b", "e")))])
    of_dead = out["node_i"].isin(["b", "e"]) | out["node_j"].isin(["b", "e"])
    np.testing.assert_array_equal(out["n_missing"], of_dead)
    assert list_missing(out) == {"b": ("sub-2",), "e": ("sub-2",)}


@pytest.mark.parametrize("subjects", [("sub-1", "sub-1"), ("sub-a", "sub-A")])
def test_assemble__refuses_duplicates(subjects):
    with pytest.raises(InputError, match="E-ID-DUPLICATE"):
        assemble([(subject, "ses-1", netmat(i)) for i, subject in enumerate(subjects)])


def test_assemble__refuses_other_nodes():
    rows = [("sub-1", "", netmat(1)), ("sub-2", "", netmat(2, names=("a", "b", "c", "d", "z")))]
    with pytest.raises(InputError, match=r"E-NODES \[sub-2\].*'e', 'z' are in one"):
        assemble(rows)
    with pytest.raises(InputError, match=r"E-NODES \[sub-2\].*'e' is in one"):
        assemble([rows[0], ("sub-2", "", netmat(2, names=("a", "b", "c", "d")))])


def test_assemble__refuses_other_kinds():
    with pytest.raises(SchemaError, match=r"E-SCHEMA \[sub-2\].*ridgep"):
        assemble([("sub-1", "", netmat(1)), ("sub-2", "", netmat(2, kind="ridgep"))])


def test_assemble__refuses_nothing_and_stacks():
    with pytest.raises(InputError, match=r"E-NODES.*at least one"):
        assemble([])
    cube = assemble([("sub-1", "", netmat(1))])
    with pytest.raises(SchemaError, match=r"E-SCHEMA \[sub-1\].*dims"):
        assemble([("sub-1", "", cube)])


def test_group_mean__passes_over_what_is_missing():
    out = group_mean(assemble([("sub-1", "", netmat(1)), ("sub-2", "", netmat(2, dead=("a",)))]))
    of_a = (out["node_i"] == "a").to_numpy()
    np.testing.assert_array_equal(out["netmat"][of_a], netmat(1)["netmat"][of_a])
    np.testing.assert_array_equal(node_names(out), NAMES)
    cube = assemble([(f"sub-{i}", "", netmat(i)) for i in range(9)])
    lazy = group_mean(cube.chunk(observation=2, edge=3))
    assert lazy["netmat"].chunks is not None
    np.testing.assert_array_equal(lazy["netmat"], group_mean(cube)["netmat"])


def test_ward_order__orders_the_nodes():
    matrix = np.full((5, 5), 0.1)
    matrix[np.ix_([0, 2, 4], [0, 2, 4])] = 0.9
    ds = xr.Dataset(
        {"netmat": ("edge", pack_edges(matrix))},
        coords={"node_i": ("edge", [""] * 10), "node_j": ("edge", [""] * 10)},
    )
    order = ward_order(ds).tolist()
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert set(order[:3]) == {0, 2, 4} or set(order[-3:]) == {0, 2, 4}


def correlations(*seeds, kind="ledoit", dead=()):
    rows = []
    for seed in seeds:
        x = np.random.default_rng(seed).normal(size=(5, 40)) + np.random.default_rng(99).normal(size=(5, 1))
        if dead and seed == seeds[0]:
            x[[NAMES.index(name) for name in dead]] = 1
        ds = xr.Dataset({"timeseries": (("node", "time"), x)}, coords={"node": list(NAMES), "time": np.arange(40.0)})
        rows.append((f"sub-{seed:02d}", "", estimate_netmats(ds, kind=kind)))
    return assemble(rows)


def fisher_run(seed, n_time, kind="partial"):
    noise = np.random.default_rng(seed).normal(size=(5, n_time))
    x = np.cumsum(noise, axis=1) - 0.7 * np.cumsum(noise, axis=1).mean(axis=1, keepdims=True)
    ds = xr.Dataset({"timeseries": (("node", "time"), x)}, coords={"node": list(NAMES), "time": np.arange(n_time)})
    return estimate_ar1(fisher_z(estimate_netmats(ds, kind=kind))).assign(n_kept=n_time), ds


@pytest.mark.parametrize("kind", ["corr", "partial"])
def test_scale_to_unrelated__equals_ar1_z_with_the_median_of_the_study(kind):
    runs, series = zip(*(fisher_run(seed, n_time, kind) for seed, n_time in ((1, 60), (2, 90), (3, 60))), strict=True)
    ar1 = float(np.median(np.concatenate([run["ar1"].to_numpy() for run in runs])))
    for scaled, ds in zip(scale_to_unrelated(runs, seed=4), series, strict=True):
        expected = ar1_z(estimate_netmats(ds, kind=kind), ar1=ar1, seed=4)
        np.testing.assert_allclose(scaled["netmat"], expected["netmat"], rtol=1e-12)
        np.testing.assert_allclose(scaled["z_scale"], expected["z_scale"], rtol=1e-12)
        assert scaled["netmat"].attrs["ar1"] == ar1
        assert scaled["netmat"].attrs["z"] == "ar1"


def test_scale_to_unrelated__refuses_what_is_no_fisher_z():
    run, _ = fisher_run(1, 60)
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        scale_to_unrelated(scale_to_unrelated([run]))


def test_project_tangent__is_the_deviation_from_the_geometric_mean():
    cube = correlations(1, 2, 3, 4)
    out = project_tangent(cube)
    matrices = unpack_edges(cube["netmat"].to_numpy(), diagonal=1)
    mean = geometric_mean(matrices)
    np.testing.assert_allclose(out["reference"], pack_edges(mean))
    np.testing.assert_allclose(out["netmat"], pack_edges(project_tangent_space(matrices, mean=mean)))
    assert out["netmat"].attrs["kind"] == "tangent"
    assert out["netmat"].attrs["of"] == "ledoit"
    np.testing.assert_allclose(out["netmat"].mean("observation"), 0, atol=1e-5)


def test_project_tangent__is_lazy_and_independent_of_order():
    cube = correlations(1, 2, 3)
    lazy = project_tangent(cube.chunk(observation=1, edge=3))
    assert lazy["netmat"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), project_tangent(cube))
    turned = project_tangent(cube.isel(observation=[2, 0, 1])).sortby("observation")
    np.testing.assert_allclose(turned["netmat"], project_tangent(cube)["netmat"], atol=1e-10)


def test_project_tangent__leaves_dead_nodes_out():
    out = project_tangent(correlations(1, 2, 3, dead=("c",)))
    of_c = ((out["node_i"] == "c") | (out["node_j"] == "c")).to_numpy()
    np.testing.assert_array_equal(np.isnan(out["netmat"]), np.broadcast_to(of_c, (3, 10)))


def test_project_tangent__refuses_what_is_no_correlation():
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*'fisher'"):
        project_tangent(assemble([("sub-1", "", netmat(1)), ("sub-2", "", netmat(2))]))
    with pytest.raises(SchemaError, match=r"E-ARGUMENT.*'ledoitp'"):
        project_tangent(correlations(1, 2, kind="ledoitp"))


def test_project_tangent__refuses_more_nodes_than_frames():
    names = [f"n{i}" for i in range(50)]
    rows = []
    for seed in (1, 2):
        x = np.random.default_rng(seed).normal(size=(50, 40))
        ds = xr.Dataset({"timeseries": (("node", "time"), x)}, coords={"node": names, "time": np.arange(40.0)})
        rows.append((f"sub-{seed}", "", ds))
    with pytest.raises(InputError, match="E-NETMAT-RANK 2 of 2 matrices are singular"):
        project_tangent(assemble([(sub, ses, estimate_netmats(ds, kind="corr")) for sub, ses, ds in rows]))
    shrunk = project_tangent(assemble([(sub, ses, estimate_netmats(ds, kind="ledoit")) for sub, ses, ds in rows]))
    assert np.isfinite(shrunk["netmat"]).all()


def test_average_sessions__makes_a_baseline():
    cube = assemble(
        [
            ("sub-1", "ses-pre1", netmat(1)),
            ("sub-1", "ses-pre2", netmat(2)),
            ("sub-1", "ses-post", netmat(3)),
            ("sub-2", "ses-pre2", netmat(4, dead=("b",))),
        ]
    )
    out = average_sessions(cube, {"ses-baseline": ["ses-pre1", "ses-pre2"]})
    assert out["observation"].to_numpy().tolist() == ["sub-1_ses-baseline", "sub-1_ses-post", "sub-2_ses-baseline"]
    assert out["n_session"].to_numpy().tolist() == [2, 1, 1]
    np.testing.assert_allclose(out["netmat"][0], (netmat(1)["netmat"] + netmat(2)["netmat"]) / 2)
    np.testing.assert_array_equal(out["netmat"][1], netmat(3)["netmat"])
    np.testing.assert_array_equal(out["netmat"][2], netmat(4, dead=("b",))["netmat"])
    assert out["netmat"].attrs == cube["netmat"].attrs
    np.testing.assert_array_equal(node_names(out), NAMES)
    lazy = average_sessions(cube.chunk(observation=1), {"ses-baseline": ["ses-pre1", "ses-pre2"]})
    assert lazy["netmat"].chunks is not None
    np.testing.assert_array_equal(lazy["netmat"], out["netmat"])


def test_average_sessions__refuses_what_is_absent_or_overlaps():
    cube = assemble([("sub-1", "ses-1", netmat(1)), ("sub-1", "ses-2", netmat(2)), ("sub-1", "ses-3", netmat(3))])
    with pytest.raises(InputError, match=r"E-ID-MISSING.*'ses-9'"):
        average_sessions(cube, {"base": ["ses-1", "ses-9"]})
    with pytest.raises(InputError, match="E-ID-DUPLICATE"):
        average_sessions(cube, {"x": ["ses-1", "ses-2"], "y": ["ses-2"]})
    with pytest.raises(InputError, match="E-ID-DUPLICATE"):
        average_sessions(cube, {"ses-3": ["ses-1", "ses-2"]})


def test_project_tangent__equals_nilearn_on_standardised_series():
    names = [f"n{i}" for i in range(12)]
    x = np.random.default_rng(5).normal(size=(6, 12, 50)) + np.random.default_rng(6).normal(size=(6, 1, 50))
    ds = xr.Dataset(
        {"timeseries": (("observation", "node", "time"), x)}, coords={"node": names, "time": np.arange(50.0)}
    )
    z = np.swapaxes((x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True), 1, 2)
    expected = ConnectivityMeasure(kind="tangent").fit_transform(list(z))
    actual = project_tangent(estimate_netmats(ds, kind="ledoit"))["netmat"]
    np.testing.assert_allclose(actual, pack_edges(np.asarray(expected)), atol=1e-5)
