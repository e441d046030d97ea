import json
import multiprocessing
import shutil

import numpy as np
import pytest
import xarray as xr

from kconn.errors import StoreError
from kconn.io import cubes, store
from kconn.io.store import Address, Target

ADDRESS = Address(path="sub-01/ses-1/run-1", step="ingest")


def _dataset(value=1.0):
    return xr.Dataset(
        {"timeseries": (("node", "time"), np.full((3, 4), value))},
        coords={"node": ("node", np.array(["a", "b", "ü"]))},
        attrs={"t_r": 0.8},
    )


def _target(root, key="k1", address=ADDRESS):
    return Target(root=root, address=address, key=key, provenance={"made": "here"})


@pytest.fixture
def root(tmp_path):
    store.create_store(tmp_path / "study.zarr")
    cubes.write_dataset(_target(tmp_path / "study.zarr"), _dataset())
    return tmp_path / "study.zarr"


def test_write_dataset__comes_back_the_same(root):
    xr.testing.assert_identical(cubes.open_group(root, ADDRESS).load(), _dataset())


def test_open_study__joins_steps_of_a_path_and_opens_in_plain_xarray(root):
    later = xr.Dataset({"sample_mask": ("time", np.ones(4, bool))}, attrs={"excluded": "x"})
    cubes.write_dataset(_target(root, address=Address(path=ADDRESS.path, step="denoise")), later)
    tree = cubes.open_study(root)
    assert set(tree[ADDRESS.path].data_vars) == {"timeseries", "sample_mask"}
    assert tree[ADDRESS.path].attrs == {"t_r": 0.8, "excluded": "x"}
    plain = xr.open_datatree(root, engine="zarr", consolidated=False)
    assert "timeseries" in plain[f"{ADDRESS.path}/ingest/k1"]


def test_is_published__knows_key_and_health(root):
    assert store.is_published(root, ADDRESS, "k1")
    assert not store.is_published(root, ADDRESS, "k2")
    assert not store.is_published(root, Address(path="sub-02", step="ingest"), "k1")
    next((root / ADDRESS.path / "ingest" / "k1").rglob("c/0/0")).unlink()
    assert not store.is_published(root, ADDRESS, "k1")


def test_write_dataset__replaces_without_touching_what_was(root):
    old = cubes.open_group(root, ADDRESS)
    cubes.write_dataset(_target(root, key="k2"), _dataset(2.0))
    assert float(cubes.open_group(root, ADDRESS)["timeseries"][0, 0]) == 2.0
    assert float(old["timeseries"][0, 0]) == 1.0
    assert store.republish(root, ADDRESS, "k1")
    assert float(cubes.open_group(root, ADDRESS)["timeseries"][0, 0]) == 1.0
    assert store.remove_superseded(root) == 1
    assert not store.republish(root, ADDRESS, "k2")


def test_open__refuses_what_is_not_sealed(root):
    with pytest.raises(StoreError, match="E-STORE-UNSEALED"):
        cubes.open_group(root, Address(path="sub-02", step="ingest"))
    with pytest.raises(StoreError, match="E-STORE-MISSING"):
        cubes.open_study(root / "nothing")


def test_check_store__refuses_unknown_versions(root):
    (root / "zarr.json").write_text(json.dumps({"node_type": "group", "attributes": {"schema_version": 99}}))
    with pytest.raises(StoreError, match="schema_version 99"):
        cubes.open_study(root)


@pytest.mark.faults("rot")
def test_verify__finds_every_flipped_bit_and_every_missing_or_grown_file(root, tmp_path):
    rng = np.random.default_rng(5)
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    missed = []
    for name in names:
        for damage in ("flip", "delete", "grow"):
            copy = tmp_path / "copy.zarr"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(root, copy)
            content = bytearray((copy / name).read_bytes())
            if damage == "flip":
                content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            if damage == "grow":
                content += b"!"
            (copy / name).unlink()
            if damage != "delete":
                (copy / name).write_bytes(bytes(content))
            try:
                found = bool(store.verify(copy)[1])
            except StoreError:
                found = True
            if not found:
                missed.append((name.as_posix(), damage))
    assert len(names) > 8
    # Folders above a step hold no result: a flip that leaves their metadata readable changes nothing.
    assert all(name.count("/") < 4 and damage == "flip" for name, damage in missed)


def test_verify__passes_a_healthy_store(root):
    addresses, findings = store.verify(root)
    assert (addresses, findings) == ([ADDRESS], [])


@pytest.mark.faults("rot")
def test_read__a_flipped_bit_in_a_chunk_is_an_error_not_data(root):
    chunk = next((root / ADDRESS.path / "ingest" / "k1").rglob("timeseries/c/0/0"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="E-STORE-CORRUPT"), cubes.translated(ADDRESS):
        cubes.open_group(root, ADDRESS).load()


def test_digest_store__depends_on_content_alone(root, tmp_path):
    other = tmp_path / "other.zarr"
    store.create_store(other)
    cubes.write_dataset(_target(other), _dataset())
    assert store.digest_store(other) == store.digest_store(root)
    cubes.write_dataset(_target(other, key="k2"), _dataset(2.0))
    assert store.digest_store(other) != store.digest_store(root)


def _hold(path, held, go):
    with store.locked(path):
        held.set()
        go.wait(30)


def test_locked__refuses_a_second_process(root):
    context = multiprocessing.get_context("spawn")
    held, go = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(root, held, go))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(StoreError, match="E-STORE-LOCKED"), store.locked(root):
            pass
    finally:
        go.set()
        process.join(30)
    with store.locked(root):
        pass


@pytest.mark.parametrize("frames_per_block", [1, 3, 7, 100])
def test_write_bold_stream__any_blocking_gives_the_same_store(tmp_path, monkeypatch, frames_per_block):
    monkeypatch.setattr("kconn.chunks.ROW_BYTES", 20 * 4 * 2)
    volumes = np.arange(10 * 30, dtype=np.int16).reshape(10, 30)
    index = np.arange(3, 23)
    digests = []
    for size in (10, frames_per_block):
        root = tmp_path / f"{size}.zarr"
        store.create_store(root)
        n_written = cubes.write_bold_stream(
            _target(root),
            (volumes[i : i + size] for i in range(0, 10, size)),
            flat_index=index,
            n_time=10,
            dtype=volumes.dtype,
            rest=xr.Dataset(coords={"time": np.arange(10.0)}),
            bold_attrs={"scl_slope": 2.0, "scl_inter": 1.0},
        )
        assert n_written == 3
        bold = cubes.open_group(root, ADDRESS)["bold"]
        np.testing.assert_array_equal(bold, volumes[:, index].T * 2.0 + 1.0)
        digests.append(store.digest_store(root))
        shutil.rmtree(root)
    assert digests[0] == digests[1]


def test_write_bold_stream__goes_on_where_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("kconn.chunks.ROW_BYTES", 20 * 4 * 2)
    volumes = np.arange(10 * 20, dtype=np.int16).reshape(10, 20)
    root = tmp_path / "study.zarr"
    store.create_store(root)

    def stream(stop):
        for i in range(10):
            if i == stop:
                raise KeyboardInterrupt
            yield volumes[i : i + 1]

    def write(stop):
        return cubes.write_bold_stream(
            _target(root),
            stream(stop),
            flat_index=np.arange(20),
            n_time=10,
            dtype=volumes.dtype,
            rest=xr.Dataset(coords={"time": np.arange(10.0)}),
            bold_attrs={},
        )

    with pytest.raises(KeyboardInterrupt):
        write(8)
    assert store.find_published(root) == []
    assert write(None) == 1
    np.testing.assert_array_equal(cubes.open_group(root, ADDRESS)["bold"], volumes.T)
