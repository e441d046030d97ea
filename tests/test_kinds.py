"""Every kind of netmat through a whole study: estimated, averaged, tested, reported and exported."""

import numpy as np
import pytest

import kconn
from kconn.connect.kinds import KINDS, describe_unit
from kconn.connect.netmats import AR1_KINDS, ESTIMATORS, FULL_RANK, PENALTY, UNBOUNDED, estimate_ar1
from kconn.io import cubes, store
from tests.small_study import small_study

CONNECTIVITY = {"kinds": list(KINDS), "window_s": 24, "step_s": 8}


def cohorts(study):
    root = study.parent / "study.zarr"
    found = [address for address in store.find_published(root) if address.step == "cohort"]
    return {address.path.split("/")[-1]: cubes.open_group(root, address).load() for address in found}


@pytest.fixture(scope="module")
def every_kind(shell, tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("kinds") / "study", connectivity=CONNECTIVITY)
    result = shell("run", study, "--workers", "0")
    assert result.code == 0, result
    return study


def test_kinds__agree_with_the_estimators():
    for name, kind in KINDS.items():
        assert kind.estimator in ESTIMATORS
        assert kind.penalty == PENALTY.get(name)
        assert kind.needs_rank == (name in FULL_RANK)
        assert kind.has_null == (name in AR1_KINDS)
        assert kind.has_z or kind.unit
        assert name not in UNBOUNDED or not kind.has_z
    assert len({kind.bids for kind in KINDS.values()}) == len({kind.words for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("attrs", "unit"),
    [
        ({"kind": "corr", "z": "fisher"}, "Fisher z"),
        ({"kind": "corr", "z": "none"}, "r"),
        ({"kind": "ridgep", "z": "ar1"}, "z"),
        ({"kind": "cov", "z": "none"}, "covariance"),
        ({"kind": "tangent", "z": "none"}, "tangent deviation"),
    ],
)
def test_describe_unit__names_what_is_tested(attrs, unit):
    assert describe_unit(attrs) == unit


def test_run__makes_every_kind(every_kind):
    found = cohorts(every_kind)
    assert set(found) == {name for name, kind in KINDS.items() if kind.feature == "edge"}
    for name, cohort in found.items():
        assert np.isfinite(cohort["netmat"]).all(), name
        assert cohort["netmat"].attrs["z"] == ("fisher" if KINDS[name].has_z else {"corrsd": "sd"}.get(name, "none"))


def test_run__cohort_of_each_kind_equals_the_functions(every_kind):
    root = every_kind.parent / "study.zarr"
    series = [address for address in store.find_published(root) if address.step == "nodes"]
    found = cohorts(every_kind)
    runs = [cubes.open_group(root, address).load() for address in series]
    windows = {"window_s": 24, "step_s": 8}
    sd = [kconn.estimate_variability(kconn.estimate_window_netmats(run, kind="corr", **windows)) for run in runs]
    np.testing.assert_array_equal(found["corrsd"]["netmat"], np.stack([one["netmat"] for one in sd]))
    sparse = [kconn.fisher_z(kconn.estimate_netmats(run, kind="glasso", alpha=0.1)) for run in runs]
    np.testing.assert_array_equal(found["glasso"]["netmat"], np.stack([one["netmat"] for one in sparse]))
    shrunk = [("sub", str(i), kconn.estimate_netmats(run, kind="ledoit")) for i, run in enumerate(runs)]
    tangent = kconn.project_tangent(kconn.assemble(shrunk))
    np.testing.assert_allclose(found["tangent"]["netmat"], tangent["netmat"], atol=1e-12)


def test_run__shows_and_exports_every_kind(every_kind, shell, tmp_path):
    page = (every_kind.parent / "report.html").read_text()
    for kind in KINDS.values():
        assert kind.words in page
    result = shell("export", every_kind, "--out", tmp_path / "out")
    assert result.code == 0, result
    names = " ".join(path.name for path in (tmp_path / "out").rglob("*.tsv"))
    for kind in KINDS.values():
        assert f"stat-{kind.bids}_" in names


def test_run__scales_z_by_the_autocorrelation_of_the_study(shell, tmp_path):
    connectivity = {"kinds": ["corr", "partial", "ridgep", "cov"], "z": "ar1"}
    study = small_study(tmp_path / "study", connectivity=connectivity)
    result = shell("run", study, "--workers", "0")
    assert result.code == 0, result
    found = cohorts(study)
    runs = [address for address in store.find_published(study.parent / "study.zarr") if address.step == "nodes"]
    series = [cubes.open_group(study.parent / "study.zarr", address).load() for address in runs]
    ar1 = float(np.median(np.concatenate([estimate_ar1(run)["ar1"] for run in series])))
    for kind in ("corr", "partial", "ridgep"):
        rho = 0.1 if kind == "ridgep" else None
        z = [kconn.ar1_z(kconn.estimate_netmats(run, kind=kind, rho=rho), ar1=ar1, seed=3) for run in series]
        np.testing.assert_allclose(found[kind]["netmat"], np.stack([one["netmat"] for one in z]), rtol=1e-10)
    assert {cohort["netmat"].attrs["z"] for name, cohort in found.items() if name != "cov"} == {"ar1"}
    page = (study.parent / "report.html").read_text()
    assert "lag-1 autocorrelation" in page


@pytest.mark.parametrize(
    ("connectivity", "code"),
    [
        ({"kinds": ["glasso"], "z": "ar1"}, "E-STUDY-VALUE"),
        ({"kinds": ["corrsd"], "window_s": 600}, "E-NO-FRAMES"),
        ({"kinds": ["corrsd"], "window_s": 2}, "E-ARGUMENT"),
        ({"kinds": ["glasso"], "alpha": 1.5}, "E-STUDY-VALUE"),
    ],
)
def test_check__refuses_kinds_that_cannot_be(connectivity, code, shell, tmp_path):
    study = small_study(tmp_path / "study", connectivity=connectivity)
    result = shell("check", study)
    assert result.code == 1
    assert code in result.out + result.err
    assert not (study.parent / "study.zarr").exists()
