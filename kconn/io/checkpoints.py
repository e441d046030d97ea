"""Unfinished results on disk: named arrays, each file whole or absent, each believed only if its checksum says so.

A file is one line, the SHA-256 of its own name and of all that follows, and then a NumPy ``.npz`` archive without
pickled objects. The files of a step lie in the work folder beside the store, in a folder named by its address and
content key.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.io.files import sha256_bytes
from kconn.io.storage import Place, below, storage_of
from kconn.io.store import Address, checkpoints_folder

_SUFFIX: Final = ".npz"
_LINE: Final = 65


def step_folder(root: Place, address: Address, key: str) -> Place:
    """Return the folder of the files of one step under one content key."""
    return below(checkpoints_folder(root), _begin(address) + key)


def save_arrays(folder: Place, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep arrays under a name; a kill leaves all or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    storage_of(folder).put(name + _SUFFIX, f"{_digest(name, content)}\n".encode() + content)


def load_arrays(folder: Place, name: str) -> dict[str, npt.NDArray[Any]] | None:
    """Return the arrays kept under a name, or None if there are none or they are damaged."""
    try:
        found = storage_of(folder).read(name + _SUFFIX)
    except OSError:
        return None
    if found is None:
        return None
    line, archive = found.content[:_LINE], found.content[_LINE:]
    if line != f"{_digest(name, archive)}\n".encode():
        return None
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        return {str(key): arrays[key] for key in arrays.files}


def list_names(folder: Place) -> dict[str, float]:
    """Return name -> time of the last change, in seconds since 1970, of what is kept in a folder."""
    times = storage_of(folder).times()
    return {name.removesuffix(_SUFFIX): at for name, at in times.items() if name.endswith(_SUFFIX)}


def remove_step(root: Place, address: Address) -> None:
    """Remove what is kept of a step, under whatever key."""
    storage = storage_of(checkpoints_folder(root))
    for folder in storage.folders(""):
        if folder.startswith(_begin(address)):
            storage.remove_all(folder)


def _begin(address: Address) -> str:
    return f"{address.path.replace('/', '.')}.{address.step}."


def _digest(name: str, content: bytes) -> str:
    return sha256_bytes(name.encode() + b"\n" + content)
