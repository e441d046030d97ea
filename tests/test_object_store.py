"""A store on object storage: the same bits, the same seals, and what a bucket can do to a run."""

import http.client
import itertools
import json
import pickle
import signal
import time

import dask
import numpy as np
import pytest
import xarray as xr

from kconn.cli import main
from kconn.errors import ResourceError, StoreError
from kconn.io import checkpoints, cubes, object_lock, objects, store, tiles
from kconn.io.object_zarr import ObjectZarr
from kconn.io.storage import find_place
from kconn.io.store import Address, Target
from kconn.study.file import read_study
from kconn.study.workbench import prepare
from tests.bucket import KEY_ID, NAME, SECRET, in_environment
from tests.small_study import small_study
from tests.table_study import steps_of, table_study
from tests.warm_shell import count_kept

ADDRESS = Address(path="sub-01/ses-1/run-1", step="ingest")
_numbers = itertools.count()


@pytest.fixture
def root(s3):  # noqa: ARG001 - what the place is on
    """A place of its own for an empty store."""
    return find_place(f"s3://{NAME}/lab/{next(_numbers)}/study.zarr")


@pytest.fixture
def shown(root):
    store.create_store(root)
    cubes.write_dataset(_target(root), _dataset())
    return root


@pytest.fixture(scope="module")
def ran(s3, tmp_path_factory):  # noqa: ARG001 - what it is run into
    """A study of node series that was run into a bucket, and the digest of the same study on a disk."""
    folder = tmp_path_factory.mktemp("ran")
    local = table_study(folder / "local", n_subject=2)
    study = _on_s3(table_study(folder / "remote", n_subject=2), "lab/ran/study.zarr")
    assert main(["run", str(local), "--workers", "0"]) == 0
    assert main(["run", str(study), "--workers", "0"]) == 0
    return study, store.digest_store(folder / "local" / "study.zarr")


def _dataset(value=1.0):
    return xr.Dataset(
        {"timeseries": (("node", "time"), np.full((3, 4), value))},
        coords={"node": ("node", np.array(["a", "b", "ü"]))},
        attrs={"t_r": 0.8},
    )


def _target(root, key="k1"):
    return Target(root=root, address=ADDRESS, key=key, provenance={"made": "here"})


def _on_s3(study, prefix):
    study.write_text(study.read_text().replace("[study]\n", f'[study]\nstore = "s3://{NAME}/{prefix}"\n'))
    return study


def _free(monkeypatch):
    monkeypatch.setattr(object_lock, "LAPSE_SECONDS", 0.0)


def test_run__has_the_bits_of_a_store_on_a_disk(ran):
    study, digest = ran
    assert store.digest_store(read_study(study).store) == digest
    assert not (study.parent / "study.zarr").exists()
    assert sorted(path.name for path in (study.parent / ".study.zarr.work").iterdir()) == ["digests.json", "logs"]


def test_commands__work_on_a_bucket(ran, s3, capsys, tmp_path):
    study, digest = ran
    assert main(["verify", str(study)]) == 0
    assert digest in capsys.readouterr().out
    assert main(["verify", f"s3://{NAME}/lab/ran/study.zarr"]) == 0
    capsys.readouterr()
    assert main(["status", str(study), "--json"]) == 0
    assert all(stage["published"] == stage["of"] for stage in json.loads(capsys.readouterr().out)["stages"].values())
    assert main(["export", str(study), "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").rglob("*_relmat.tsv"))
    assert main(["run", str(study), "--workers", "0"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    s3.write("lab/ran/study.zarr/sub-000/ses-1/run-1/ingest/left-over/zarr.json", b"{}")
    assert main(["clean", str(study)]) == 0
    assert "removed 1 superseded" in capsys.readouterr().out
    assert store.digest_store(read_study(study).store) == digest
    assert s3.names("lab/ran/.study.zarr.work") == []


def test_run__on_two_workers_that_open_the_bucket_themselves(ran, s3, tmp_path, capfd):
    study = _on_s3(table_study(tmp_path / "study", n_subject=2), "lab/workers/study.zarr")
    assert main(["run", str(study), "--workers", "2"]) == 0
    assert store.digest_store(read_study(study).store) == ran[1]
    out, err = capfd.readouterr()
    written = [path.read_bytes() for path in study.parent.rglob("*") if path.is_file()]
    stored = [name.encode() + s3.read(name) for name in s3.names("lab/")]
    for planted in (KEY_ID, SECRET):
        assert not [text for text in (*written, *stored, (out + err).encode()) if planted.encode() in text]


@pytest.mark.slow
def test_run__of_images_has_the_bits_of_a_store_on_a_disk(shell, s3, tmp_path):
    options = {"n_subjects_per_group": 1, "contrasts": {"groups": None, "mean": {"test": "one-sample"}}}
    local = small_study(tmp_path / "local", **options)
    study = _on_s3(small_study(tmp_path / "remote", **options), "lab/images/study.zarr")
    assert shell("run", local, "--workers", "0").code == 0
    ended = shell(json.dumps(s3.environment), 0, "run", study, "--workers", "0", function=f"{__name__}:run_command")
    assert ended.code == 0, ended.err
    root = read_study(study).store
    assert store.digest_store(root) == store.digest_store(local.parent / "study.zarr")
    run = cubes.open_study(str(root))["sub-01/ses-pre/run-1"].to_dataset()
    one = cubes.open_study(local.parent / "study.zarr")["sub-01/ses-pre/run-1"].to_dataset()
    xr.testing.assert_identical(run.load(), one.load())


def test_write_dataset__replaces_without_touching_what_was(shown, s3):
    before = s3.states(shown.prefix + "/sub-01/ses-1/run-1/ingest/k1-")
    old = cubes.open_unchunked(shown, ADDRESS)
    cubes.write_dataset(_target(shown, "k2"), _dataset(2.0).chunk(node=1))
    assert float(cubes.open_group(shown, ADDRESS)["timeseries"][0, 0]) == 2.0
    assert float(old["timeseries"][0, 0]) == 1.0
    assert s3.states(shown.prefix + "/sub-01/ses-1/run-1/ingest/k1-") == before
    assert store.republish(shown, ADDRESS, "k1")
    xr.testing.assert_identical(cubes.open_group(shown, ADDRESS).load(), _dataset())
    assert store.remove_superseded(shown) == 1
    assert not store.republish(shown, ADDRESS, "k2")


def test_open_group__misses_a_chunk_instead_of_reading_fill_values(shown, s3):
    ds = cubes.open_unchunked(shown, ADDRESS)
    (chunk,) = [name for name in s3.names(shown.prefix) if "timeseries/c/" in name]
    s3.remove(chunk)
    with pytest.raises(StoreError, match=r"E-STORE-CORRUPT.*is missing"):
        ds["timeseries"].load()
    with pytest.raises(StoreError, match="E-STORE-CORRUPT"):
        cubes.open_group(shown, ADDRESS)


@pytest.mark.faults("rot")
def test_verify__finds_every_flipped_lost_and_grown_object(shown, s3, count):
    rng = np.random.default_rng(5)
    for name in s3.names(f"{shown.prefix}/sub-01/ses-1/run-1/ingest/"):
        good = s3.read(name)
        flipped = bytearray(good)
        flipped[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
        for damage in (bytes(flipped), good + b"!", None):
            s3.remove(name) if damage is None else s3.write(name, damage)
            found = bool(store.verify(shown)[1])
            count(damaged=1, found=int(found))
            assert found, name
        s3.write(name, good)
    assert store.verify(shown) == ([ADDRESS], [])


@pytest.mark.faults("kill")
def test_seal__killed_before_every_write_leaves_the_old_or_the_new(shell, s3, root, count):
    whole = find_place(f"{root}-whole")
    n_calls = _write_in_fork(shell, s3, whole, "k1").out
    expected = store.digest_store(whole)
    assert int(n_calls) > 10
    for kill_at in range(1, int(n_calls) + 1):
        here = find_place(f"{root}-{kill_at}")
        assert _write_in_fork(shell, s3, here, "k1", kill_at).code == -signal.SIGKILL
        before = store.verify(here) if s3.names(here.prefix + "/zarr.json") else ([], [])
        assert before[1] == []
        assert store.current_key(here, ADDRESS) in {None, "k1"}
        _write(here, "k1")
        assert store.digest_store(here) == expected
        _write_in_fork(shell, s3, here, "k2", kill_at)  # over a published group
        assert store.verify(here) == ([ADDRESS], [])
        assert store.current_key(here, ADDRESS) in {"k1", "k2"}
        store.remove_superseded(here)
        assert store.verify(here) == ([ADDRESS], [])
        count(kills_before_each_write_to_a_bucket=2)


@pytest.mark.faults("kill")
def test_run__killed_between_writes_goes_on_where_it_was(ran, shell, s3, tmp_path, count):
    study = _on_s3(table_study(tmp_path / "study", n_subject=2), "lab/killed/study.zarr")
    root, finished = read_study(study).store, {}
    for kill_at in (130, 250):
        ended = _run_in_fork(shell, s3, study, kill_at)
        assert ended.code == -signal.SIGKILL, ended.err
        now = _published(root, s3)
        assert store.verify(root)[1] == []
        assert {name: now[name] for name in finished} == finished
        assert len(finished) < len(now)
        finished = now
        count(kills_between_writes_to_a_bucket=1)
    ended = _run_in_fork(shell, s3, study)
    assert ended.code == 0, ended.err
    assert count_kept(ended.out) == len(finished)
    now = _published(root, s3)
    assert {name: now[name] for name in finished} == finished
    assert store.digest_store(root) == ran[1]


def test_write_upper_tiles__killed_after_some_tiles_computes_the_rest(shown):
    like = xr.DataArray(np.zeros((6, 6), np.float32), dims=("voxel", "voxel_j"), name="dense")
    target, made = _target(shown, "tiles"), []

    def compute(corners):
        if len(made) == 2 and not again:
            raise KeyboardInterrupt
        made.extend(corners)
        return [np.full((2, 2), i + j, np.float32) for i, j in corners]

    arguments = {"like": like, "tile": 2, "rest": xr.Dataset(), "n_at_once": 1}
    again = False
    with pytest.raises(KeyboardInterrupt):
        tiles.write_upper_tiles(target, compute, **arguments)
    assert store.current_key(shown, ADDRESS) == "k1"
    again = True
    assert tiles.write_upper_tiles(target, compute, **arguments) == 4
    assert len(made) == len(set(made)) == 6
    values = cubes.open_group(shown, ADDRESS)["dense"].to_numpy()
    assert values[0, 5] == 4
    assert np.isnan(values[5, 0])


def test_checkpoints__are_kept_found_and_removed(shown):
    folder = checkpoints.step_folder(shown, ADDRESS, "k3")
    checkpoints.save_arrays(folder, "part", {"x": np.arange(3)})
    assert checkpoints.load_arrays(folder, "part")["x"].tolist() == [0, 1, 2]
    assert checkpoints.load_arrays(folder, "other") is None
    assert abs(checkpoints.list_names(folder)["part"] - time.time()) < 60
    folder.put("part.npz", folder.read("part.npz").content + b"!")
    assert checkpoints.load_arrays(folder, "part") is None
    checkpoints.remove_step(shown, ADDRESS)
    assert checkpoints.list_names(folder) == {}


def test_seal__of_two_attempts_the_last_that_began_counts(shown):
    first, second = store.stage(_target(shown, "k2")), store.stage(_target(shown, "k2"))
    cubes.lay_out(first, _dataset(2.0))
    cubes.lay_out(second, _dataset(2.0))
    with pytest.raises(StoreError, match="E-STORE-LOST"):
        store.seal(_target(shown, "k2"), first)
    store.seal(_target(shown, "k2"), second)
    assert store.current_key(shown, ADDRESS) == "k2"


def test_seal__is_refused_when_it_was_swept_up_meanwhile(shown):
    staging = store.stage(_target(shown, "k2"))
    cubes.lay_out(staging, _dataset(2.0))
    store.remove_superseded(shown)
    with pytest.raises(StoreError, match="E-STORE-LOST"):
        store.seal(_target(shown, "k2"), staging)
    assert store.verify(shown) == ([ADDRESS], [])


def test_replace__loses_to_whoever_was_quicker(root):
    root.replace("pointer", b"one", seen=None)
    seen = root.read("pointer")
    root.replace("pointer", b"two", seen=seen)
    root.replace("pointer", b"two", seen=seen)  # a put that had arrived is no loss
    for late in (seen, None):
        with pytest.raises(StoreError, match="E-STORE-LOST"):
            root.replace("pointer", b"three", seen=late)
    assert root.read("pointer").content == b"two"


def test_locked__lets_one_writer_in(ran, capsys):
    study = ran[0]
    with store.locked(read_study(study).store):
        assert main(["run", str(study), "--workers", "0"]) == 1
    assert "E-STORE-LOCKED" in capsys.readouterr().err
    with store.locked(read_study(study).store):
        pass


def test_locked__is_kept_by_a_heartbeat(root, s3, monkeypatch):
    monkeypatch.setattr(object_lock, "BEAT_SECONDS", 0.05)
    lock = root.beside(".study.zarr.work").path("lock")
    with store.locked(root):
        first = s3.read(lock)
        _wait(lambda: s3.read(lock) != first)
    assert s3.names(lock) == []


def test_locked__of_a_process_that_stood_still_goes_to_another_and_it_is_told(root, s3, monkeypatch):
    lock = root.beside(".study.zarr.work").path("lock")
    monkeypatch.setattr(object_lock, "BEAT_SECONDS", 0.1)
    held = store.locked(root)
    held.__enter__()
    _free(monkeypatch)
    with store.locked(root):
        now = s3.read(lock)
        time.sleep(0.5)
        with pytest.raises(StoreError, match="E-STORE-LOST"):
            held.__exit__(None, None, None)
        assert json.loads(s3.read(lock))["owner"] == json.loads(now)["owner"]


def test_hold__needs_a_storage_that_heeds_conditions(root, monkeypatch):
    monkeypatch.setattr(objects.ObjectFolder, "replace", lambda self, name, content, **_: self.put(name, content))
    with pytest.raises(ResourceError, match=r"E-BUCKET.*does not heed"), store.locked(root):
        pass


@pytest.mark.usefixtures("s3")
def test_open__names_a_missing_bucket(capsys, tmp_path):
    study = table_study(tmp_path / "study", n_subject=2)
    study.write_text(study.read_text().replace("[study]\n", '[study]\nstore = "s3://no-such-bucket/study.zarr"\n'))
    assert main(["run", str(study), "--workers", "0"]) == 1
    assert "E-BUCKET there is no bucket 'no-such-bucket'" in capsys.readouterr().err
    with pytest.raises(ResourceError, match="E-BUCKET"):
        find_place("s3://no-such-bucket/x").sizes()


def test_open__names_refused_credentials_without_repeating_them(shown, s3):
    def require(n_free):
        connection = http.client.HTTPConnection("127.0.0.1", s3.port)
        connection.request("POST", "/moto-api/reset-auth", body=str(n_free))
        connection.getresponse().read()
        connection.close()

    require(0)
    try:
        for call in (shown.sizes, lambda: shown.read("zarr.json"), lambda: shown.put("x", b""), shown.folders):
            with pytest.raises(ResourceError, match=r"E-CREDENTIALS.*refuses") as caught:
                call()
            assert KEY_ID not in str(caught.value)
            assert caught.value.__suppress_context__
    finally:
        require("inf")


def test_open__names_a_storage_that_does_not_answer_within_seconds():
    away = objects.parse_place(f"s3://{NAME}/study.zarr", endpoint="http://127.0.0.1:9")
    start = time.monotonic()
    for call in (lambda: away.read("zarr.json"), lambda: store.check_store(away), lambda: away.put("x", b"")):
        with pytest.raises(ResourceError, match=r"E-ENDPOINT.*does not answer"):
            call()
    assert time.monotonic() - start < 60


def test_open__refuses_to_send_data_unencrypted_to_another_machine():
    with pytest.raises(ResourceError, match="E-TLS"):
        objects.parse_place("s3://studies/x", endpoint="http://storage.example:9000").open()
    objects.parse_place("s3://studies/x", endpoint="http://storage.example:9000", insecure=True).open()


@pytest.mark.faults("network")
def test_run__ends_in_a_code_when_the_storage_goes_away_and_goes_on_when_it_is_back(
    ran, s3, tmp_path, monkeypatch, capsys, count
):
    study = _on_s3(table_study(tmp_path / "study", n_subject=2), "lab/away/study.zarr")
    root = read_study(study).store
    seal, n_sealed = store.seal, itertools.count(1)

    def seal_and_stop(*arguments):
        seal(*arguments)
        if next(n_sealed) == 3:
            s3.stop()

    monkeypatch.setattr(store, "seal", seal_and_stop)
    start = time.monotonic()
    try:
        assert main(["run", str(study), "--workers", "0"]) == 1
    finally:
        s3.start()
    assert "E-ENDPOINT" in capsys.readouterr().err
    count(outages=1, coded_errors=1, seconds_to_the_error=round(time.monotonic() - start, 1))
    finished = _published(root, s3)
    assert len(finished) == 3
    _free(monkeypatch)
    assert main(["run", str(study), "--workers", "0"]) == 0
    now = _published(root, s3)
    assert {name: now[name] for name in finished} == finished
    assert len(steps_of(study)) == len(prepare(study).plan.steps) - 3
    assert store.digest_store(root) == ran[1]


def test_pickles__hold_a_place_and_no_credentials(ran):
    bench = prepare(ran[0])
    sent = [bench.bind(bench.plan.steps[0]), ObjectZarr(read_study(ran[0]).store), *_graphs(ran[0])]
    for thing in sent:
        content = pickle.dumps(thing)
        assert KEY_ID.encode() not in content
        assert SECRET.encode() not in content
    copy = pickle.loads(pickle.dumps(sent[1]))  # noqa: S301 - made above
    assert copy == sent[1]
    assert copy.folder.read("zarr.json") is not None


def _graphs(study):
    ds = cubes.open_unchunked(read_study(study).store, next(iter(prepare(study).plan.steps)).address)
    return [dict(ds.chunk().__dask_graph__()), list(ds.chunk().__dask_keys__()), dask.base.tokenize(ds)]


@pytest.mark.parametrize(
    "place",
    [
        "s3://AKIAUSER:hunter2@studies/study.zarr",
        "s3://studies",
        "s3://studies/",
        "s3://studies/../other",
        "s3://studies/.study.zarr.work",
        "gs://studies/study.zarr",
        "https://user:hunter2@host/studies/study.zarr",
    ],
)
def test_read_study__refuses_a_misspelt_place_and_repeats_no_password(place, tmp_path, capsys):
    study = table_study(tmp_path / "study", n_subject=1)
    study.write_text(study.read_text().replace("[study]\n", f'[study]\nstore = "{place}"\n'))
    assert main(["check", str(study)]) == 1
    out = "".join(capsys.readouterr())
    assert "E-STUDY-VALUE" in out
    assert "s3://bucket/prefix" in out
    assert "hunter2" not in out


def test_read_study__takes_no_credentials(tmp_path, capsys):
    study = table_study(tmp_path / "study", n_subject=1)
    study.write_text(study.read_text() + '[storage]\nsecret_access_key = "hunter2"\n')
    assert main(["check", str(study)]) == 1
    out = "".join(capsys.readouterr())
    assert "E-STUDY-KEY" in out
    assert "hunter2" not in out


def test_read_study__storage_says_where_requests_go(tmp_path):
    study = _on_s3(table_study(tmp_path / "study", n_subject=1), "a/b.zarr")
    study.write_text(study.read_text() + '[storage]\nendpoint = "https://storage.example"\nregion = "eu-1"\n')
    place = read_study(study).store
    assert (place.endpoint, place.region, place.insecure, str(place)) == (
        "https://storage.example",
        "eu-1",
        False,
        f"s3://{NAME}/a/b.zarr",
    )


def run_command(arguments):
    """Run a command with a bucket in its environment, killed before a write to it; runs in a fork."""
    environment, kill_at, *command = arguments
    in_environment(json.loads(environment), int(kill_at))
    return main(command)


def write_one(arguments):
    """Write a group; runs in a fork."""
    environment, kill_at, place, key = arguments
    n_calls = in_environment(json.loads(environment), int(kill_at))
    _write(find_place(place), key)
    print(n_calls(), end="")  # noqa: T201 - the answer


def _write(root, key):
    store.create_store(root)
    cubes.write_dataset(_target(root, key), _dataset(float(key[1:])))


def _write_in_fork(shell, s3, root, key, kill_at=0):
    return shell(json.dumps(s3.environment), kill_at, root, key, function=f"{__name__}:write_one")


def _run_in_fork(shell, s3, study, kill_at=0):
    return shell(
        json.dumps(s3.environment),
        kill_at,
        *("run", study, "--workers", "0"),
        function=f"{__name__}:run_command",
        patches={"kconn.io.object_lock.LAPSE_SECONDS": 0.0},
    )


def _published(root, s3):
    """Return (address, key) -> objects with ETag and time of everything that is published."""
    if root.read("zarr.json") is None:
        return {}
    found = {}
    for address in store.find_published(root):
        seal = store.read_seal(root, address)
        folder = root.path(f"{address.path}/{address.step}/{seal['folder']}")
        found[str(address), seal["key"]] = s3.states(folder + "/")
    return found


def _wait(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
