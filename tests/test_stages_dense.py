"""The dense connectome through a whole study: tiles in the store, resumed, refused where it would not fit."""

import numpy as np
import pytest

import kconn
from kconn.connect.dense_connectome import mirror_tiles
from kconn.io import cubes, store
from kconn.io.store import Address
from tests.small_study import small_study

DENSE = Address(path="dense", step="dense")


def open_runs(root):
    runs = []
    for address in store.find_published(root):
        if address.step == "denoise":
            ingest = cubes.open_group(root, Address(path=address.path, step="ingest"))
            runs.append(cubes.join_steps(ingest.drop_vars("bold"), cubes.open_group(root, address)))
    return runs


@pytest.fixture(scope="module")
def connected(shell, tmp_path_factory):
    study = small_study(tmp_path_factory.mktemp("dense") / "study", dense={"keep": "full"})
    result = shell("run", study, "--workers", "0")
    assert result.code == 0, result
    return study


def test_run__writes_the_dense_connectome(connected):
    root = connected.parent / "study.zarr"
    stored = mirror_tiles(cubes.open_group(root, DENSE)).load()
    expected = kconn.estimate_dense_connectome(open_runs(root))
    np.testing.assert_array_equal(stored["dense"], expected["dense"])
    assert stored.attrs["n_run"] == 4
    np.testing.assert_array_equal(stored["i"], expected["i"])


def test_run__same_bits_on_two_workers(connected, shell, tmp_path):
    study = small_study(tmp_path / "study", dense={"keep": "full"})
    assert shell("run", study, "--workers", "2").code == 0
    assert store.digest_store(study.parent / "study.zarr") == store.digest_store(connected.parent / "study.zarr")


def test_run__keeps_the_strongest_alone(shell, tmp_path):
    study = small_study(tmp_path / "study", dense={"keep": 5})
    assert shell("run", study, "--workers", "0").code == 0
    root = study.parent / "study.zarr"
    found = cubes.open_group(root, DENSE).load()
    expected = kconn.estimate_strongest(open_runs(root), n_strongest=5)
    np.testing.assert_array_equal(found["neighbour"], expected["neighbour"])
    np.testing.assert_array_equal(found["neighbour_r"], expected["neighbour_r"])


@pytest.mark.parametrize(
    ("dense", "code"),
    [
        ({"keep": "full", "max_hours": 1e-12}, "E-TIME"),
        ({"keep": "some"}, "E-STUDY-VALUE"),
        ({"sessions": ["never"]}, "E-NO-RUNS"),
    ],
)
def test_check__refuses_what_cannot_be(dense, code, shell, tmp_path):
    result = shell("check", small_study(tmp_path / "study", dense=dense))
    assert result.code == 1, result
    assert code in result.out + result.err
