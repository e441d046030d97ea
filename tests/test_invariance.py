"""One study, one set of bits: however many workers, however walked, however the input lies on the disk."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

import kconn
from kconn.io import cubes, store
from kconn.kernels.blas import single_thread
from kconn.testing import simulate_run
from tests.small_study import published, run_file, small_study, write_study
from tests.warm_shell import ROOT

OPTIONS = {
    "sessions": ("pre", "post"),
    "n_subjects_per_group": 2,
    "denoise": {"confounds": "6P", "fd_threshold": 0.5},
    "nodes": {
        "seeds": {
            "spheres": [["left", -20.0, 0.0, 10.0], ["right", 20.0, 0.0, 10.0]],
            "radius_mm": 25,
            "seed_maps": True,
            "netmats": False,
        }
    },
    "connectivity": {"kinds": ["corr", "ridgep"]},
    "contrasts": {
        "groups": {"test": "two-sample", "formula": "group", "effect": "group", "change": ["pre", "post"]},
        "visits": {"test": "paired", "change": ["pre", "post"]},
    },
}
SMALL = {"n_subjects_per_group": 1, "contrasts": {"groups": None, "mean": {"test": "one-sample"}}}


def arrays(study):
    """Return address/variable -> bytes of everything published."""
    root = study.parent / "study.zarr"
    found = {}
    for address in store.find_published(root):
        ds = cubes.open_group(root, address).load()
        for name, variable in ds.variables.items():
            values = variable.to_numpy()
            found[f"{address}/{name}"] = str(values.tolist()) if values.dtype.kind == "O" else values.tobytes()
    return found


def steps(study):
    """Return (address, key) -> files, with inode and time of change, of what is published."""
    return published(study.parent / "study.zarr")


@pytest.fixture(scope="module")
def made(shell, tmp_path_factory):
    """A study that was run undisturbed in one process."""
    study = small_study(tmp_path_factory.mktemp("made") / "study", **SMALL)
    assert shell("run", study, "--workers", "0").code == 0
    return study


@pytest.fixture
def again(made, tmp_path):
    """A copy of that study with its store, its times of change kept."""
    shutil.copytree(made.parent, tmp_path / "study")
    return tmp_path / "study" / "study.toml"


@pytest.mark.faults("resume")
def test_run__twice_does_nothing_the_second_time(made, shell):
    before = steps(made)
    ended = shell("run", made, "--workers", "0")
    assert "nothing to do: all 14 results are there" in ended.out
    assert steps(made) == before


@pytest.mark.faults("resume")
def test_run__one_changed_byte_makes_its_run_and_the_cohort_anew(again, shell):
    before = steps(again)
    path = run_file(again.parent, "02", "desc-confounds_timeseries.tsv")
    text = path.read_text()
    path.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    ended = shell("run", again, "--workers", "0")
    assert (ended.code, ended.n_kept) == (0, 4)
    after = steps(again)
    redone = sorted(address for address, _ in after.keys() - before.keys())
    assert redone == [
        "cohort/sim/corr:cohort",
        "cohort:quality",
        next(address for address in redone if address.endswith(":test")),
        "quality/sim:coverage",
        "quality/sim:qcfc",
        "quality:motion",
        "sub-02/ses-pre/run-1/sim/corr:netmat",
        "sub-02/ses-pre/run-1/sim:nodes",
        "sub-02/ses-pre/run-1:denoise",
        "sub-02/ses-pre/run-1:ingest",
    ]
    assert all(after[key] == before[key] for key in after.keys() & before.keys())


@pytest.mark.slow
def test_run__a_parameter_makes_its_stage_and_what_follows_anew_and_the_way_back_is_free(again, shell):
    before, digest = steps(again), store.digest_store(again.parent / "study.zarr")
    text = again.read_text()
    write_study(again.parent, contrasts=SMALL["contrasts"], permutation={"seed": 9})
    ended = shell("run", again, "--workers", "0")
    assert (ended.code, ended.n_kept) == (0, 11)
    again.write_text(text)
    ended = shell("run", again, "--workers", "0")
    assert (ended.code, ended.n_kept) == (0, 14)
    assert steps(again) == before
    assert store.digest_store(again.parent / "study.zarr") == digest


@pytest.mark.faults("identity")
@pytest.mark.slow
def test_run__any_blocking_of_the_stream_gives_one_store(made, shell, tmp_path):
    study = small_study(tmp_path / "study", **SMALL)
    assert shell("run", study, "--workers", "0", patches={"kconn.stages.run._STREAM_BYTES": 1}).code == 0
    assert store.digest_store(study.parent / "study.zarr") == store.digest_store(made.parent / "study.zarr")


@pytest.mark.faults("identity")
@pytest.mark.slow
def test_run__plain_and_compressed_images_small_and_large_rows_give_one_result(made, shell, tmp_path):
    study = small_study(tmp_path / "study", **SMALL)
    for path in [*study.parent.rglob("sub-*.nii.gz")]:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert shell("run", study, "--workers", "0", patches={"kconn.chunks.ROW_BYTES": 1000}).code == 0
    expected, found = arrays(made), arrays(study)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert steps(study).keys() != steps(made).keys()  # the bytes of the files are part of the keys


@pytest.mark.faults("order")
@pytest.mark.slow
def test_run__rows_of_participants_in_another_order_give_one_result(shell, tmp_path):
    study = small_study(tmp_path / "study")
    assert shell("run", study, "--workers", "0").code == 0
    expected, before = arrays(study), steps(study)
    path = study.parent / "derivatives/participants.tsv"
    pd.read_csv(path, sep="\t").iloc[[2, 0, 3, 1]].to_csv(path, sep="\t", index=False)
    ended = shell("run", study, "--workers", "0")
    assert (ended.code, ended.n_kept) == (0, len(before) - 2)
    redone = {address.rpartition(":")[2] for address, _ in steps(study).keys() - before.keys()}
    assert redone == {"motion", "test"}  # these alone read the table
    assert arrays(study) == expected


@pytest.mark.faults("identity")
@pytest.mark.parametrize("chunks", [None, {"voxel": 1}, {"voxel": 37, "time": 11}, {"voxel": -1, "time": -1}])
def test_public_functions__any_chunking_gives_one_result(chunks):
    run = simulate_run(n_time=90, t_r=0.8, grid_shape=(8, 9, 8), n_nodes=8, seed=2)
    labels = np.zeros(run.attrs["grid_shape"], dtype=np.int16)
    labels[tuple(run[axis].to_numpy() for axis in "ijk")] = run["parcel"]
    nodes = kconn.nodes_from_labels(labels, np.array(run.attrs["affine"]))
    run = run[["bold", "confounds", "framewise_displacement", "sample_mask"]]

    def connect(given):
        clean = kconn.denoise(given, confounds="6P", high_pass=0.01, low_pass=0.2)
        return kconn.fisher_z(kconn.estimate_netmats(kconn.parcellate(clean, nodes), kind="ridgep", rho=0.1)).load()

    expected, found = connect(run.chunk(voxel=50)), connect(run if chunks is None else run.chunk(chunks))
    for name in ("denoised", "timeseries", "netmat"):
        assert found[name].to_numpy().tobytes() == expected[name].to_numpy().tobytes(), name


def analyse(bold, run, nodes, *, size):
    """Return bytes of the filtered signal, netmats, t and p of a run given in some chunking."""
    given = run.assign(bold=(("voxel", "time"), bold))
    clean = kconn.denoise(given, confounds="6P", high_pass=0.01, low_pass=0.2)
    netmats = kconn.estimate_netmats(kconn.parcellate(clean, nodes), kind="ridgep", rho=0.1)
    shifts = np.random.default_rng(4).normal(size=(16, netmats.sizes["edge"]))
    data = netmats["netmat"].data + da.from_array(shifts, chunks=(size, -1))
    design = np.column_stack([np.ones(16), np.arange(16) % 2])
    test = kconn.permutation_test(data, design, {"group": [0, 1]}, n_perm=200, seed=1)
    arrays = clean["denoised"], netmats["netmat"], test["stat"], test["p_fwe"], test["p_unc"]
    return b"".join(array.to_numpy().tobytes() for array in arrays)


SIZES = [(-1, -1, 16), (1, -1, 1), (37, 11, 5), (50, 90, 8), (-1, 1, 3), (7, 45, 2)]


@pytest.mark.faults("identity")
@pytest.mark.parametrize(
    ("scheduler", "n_workers", "n_threads"),
    [
        ("synchronous", 1, 1),
        ("threads", 1, 1),
        ("threads", 1, 2),
        ("threads", 1, 4),
        *(pytest.param("distributed", n, m, marks=pytest.mark.slow) for n in (1, 2, 4) for m in (1, 2)),
    ],
)
def test_public_functions__one_hash_on_any_scheduler(scheduler, n_workers, n_threads, count):
    run = simulate_run(n_time=90, t_r=0.8, grid_shape=(8, 9, 8), n_nodes=8, seed=2)
    labels = np.zeros(run.attrs["grid_shape"], dtype=np.int16)
    labels[tuple(run[axis].to_numpy() for axis in "ijk")] = run["parcel"]
    nodes = kconn.nodes_from_labels(labels, np.array(run.attrs["affine"]))
    values = run["bold"].to_numpy()
    run = run[["confounds", "framewise_displacement", "sample_mask"]].assign_coords(run["bold"].coords)
    with dask.config.set(scheduler="synchronous"), single_thread():
        expected = analyse(values, run, nodes, size=16)
    with opened(scheduler, n_workers, n_threads), single_thread():
        for *chunks, size in SIZES:
            found = analyse(da.from_array(values, chunks=chunks), run, nodes, size=size)
            count(runs=1, other_bits=int(found != expected))
            assert found == expected


@contextmanager
def opened(scheduler, n_workers, n_threads):
    """Make a scheduler the current one; workers run one BLAS thread each, as kconn starts them."""
    if scheduler != "distributed":
        with dask.config.set(scheduler=scheduler, num_workers=n_threads):
            yield
        return
    with (
        LocalCluster(n_workers=n_workers, threads_per_worker=n_threads, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        yield


@pytest.mark.faults("identity")
@pytest.mark.slow
def test_run__one_hash_in_this_process_on_one_worker_on_two_and_as_a_flow(tmp_path):
    digests = {}
    for name, command in {
        "in this process": ["kconn.cli", "run", "--workers", "0"],
        "one worker": ["kconn.cli", "run", "--workers", "1"],
        "two workers": ["kconn.cli", "run", "--workers", "2"],
        "flow in this process": ["flows.study", "--workers", "0"],
        "flow on two workers": ["flows.study", "--workers", "2"],
    }.items():
        study = small_study(tmp_path / name.replace(" ", "-"), **OPTIONS)
        environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
        ended = subprocess.run(
            [sys.executable, "-m", *command, str(study)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert store.verify(study.parent / "study.zarr")[1] == []
        digests[name] = store.digest_store(study.parent / "study.zarr")
    print(json.dumps(digests))  # noqa: T201
    assert len(set(digests.values())) == 1
