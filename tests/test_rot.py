"""Tamper and rot: every flipped bit, lost file and edited record of a real store is found."""

import json
import shutil

import numpy as np
import pytest

from kconn.cli import EXIT_ERROR, main
from kconn.errors import StoreError
from kconn.io import cubes, store
from tests.small_study import small_study

pytestmark = pytest.mark.faults("rot")


@pytest.fixture(scope="module")
def whole(shell, tmp_path_factory):
    """The store of a study that was run."""
    contrasts = {"groups": None, "mean": {"test": "one-sample"}}
    study = small_study(tmp_path_factory.mktemp("rot") / "study", n_subjects_per_group=1, contrasts=contrasts)
    assert shell("run", study, "--workers", "0").code == 0
    return study.parent / "study.zarr"


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


def edit_seal(path, rng):
    """Change a number that the seals of a step hold, as a hand would."""
    digits = [i for i, letter in enumerate(path.read_text()) if letter in "12345678"]
    text = list(path.read_text())
    place = rng.choice(digits)
    text[place] = str(int(text[place]) + 1)
    path.write_text("".join(text))


def edit_result(path, rng):
    """Write another result over a stored one, in a chunk that is valid: a whole one of the same size or nearly."""
    others = [other for other in path.parents[3].rglob("c/*") if other.is_file() and other != path]
    content = rng.choice(sorted(others)).read_bytes() if others else b"9"
    path.write_bytes(content if content != path.read_bytes() else content + b"9")


def test_verify__finds_seventy_of_seventy(whole, tmp_path, capsys, count):
    rng = np.random.default_rng(70)
    root = tmp_path / "study.zarr"
    chunks = sorted(path for path in whole.rglob("*") if path.is_file() and "c" in path.relative_to(whole).parts)
    seals = [whole / address.path / address.step / "zarr.json" for address in store.find_published(whole)]
    damages = [(flip, path) for path in rng.choice(chunks, 50, replace=False)]
    damages += [(lambda path, _: path.unlink(), path) for path in rng.choice(chunks, 10, replace=False)]
    damages += [(edit_seal, path) for path in rng.choice(seals, 5, replace=False)]
    damages += [(edit_result, path) for path in rng.choice(chunks, 5, replace=False)]
    shutil.copytree(whole, root)
    missed = []
    for damage, path in damages:
        here = root / path.relative_to(whole)
        damage(here, rng)
        found = main(["verify", str(root)]) == EXIT_ERROR and "E-STORE-CORRUPT [" in capsys.readouterr().out
        here.write_bytes(path.read_bytes())
        count(damaged=1, found=int(found))
        if not found:
            missed.append(path.relative_to(whole).as_posix())
    assert missed == []
    assert main(["verify", str(root)]) == 0


def test_open__a_pickle_in_the_place_of_a_result_is_refused(whole, tmp_path, count):
    """An object that would leave a trace when it is read is put in the place of every kind of file."""
    root, trace = tmp_path / "study.zarr", tmp_path / "trace"
    shutil.copytree(whole, root)
    pickle = b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR."
    address = next(address for address in store.find_published(root) if address.step == "netmat")
    group = store.published_group(root, address).root
    for path in sorted(path for path in group.rglob("*") if path.is_file()):
        good = path.read_bytes()
        path.write_bytes(pickle)
        with pytest.raises(StoreError), cubes.translated(address):
            cubes.open_group(root, address).load()
        path.write_bytes(good)
        count(pickles_planted=1, pickles_refused=1)
    for name in ("pickle", "pkl5"):  # a filter that Zarr v2 would run on reading
        path = next(group.rglob("netmat/zarr.json"))
        good = path.read_text()
        metadata = json.loads(good)
        metadata["codecs"].append({"name": name, "configuration": {}})
        path.write_text(json.dumps(metadata))
        with pytest.raises(StoreError), cubes.translated(address):
            cubes.open_group(root, address).load()
        path.write_text(good)
        count(pickles_planted=1, pickles_refused=1)
    assert not trace.exists()
