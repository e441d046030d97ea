"""Unfinished results on disk: named arrays, each file whole or absent, each believed only if its checksum says so.

A file is one line, the SHA-256 of its own name and of all that follows, and then a NumPy ``.npz`` archive without
pickled objects. The files of a step lie in the work folder beside the store, in a folder named by its address and
content key.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.io.files import sha256_bytes, write_atomic
from kconn.io.store import Address, checkpoints_folder

_SUFFIX: Final = ".npz"
_LINE: Final = 65


def step_folder(root: Path, address: Address, key: str) -> Path:
    """Return the folder of the files of one step under one content key."""
    return checkpoints_folder(root) / f"{address.path.replace('/', '.')}.{address.step}.{key}"


def save_arrays(folder: Path, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep arrays under a name; a kill leaves all or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    write_atomic(folder / (name + _SUFFIX), f"{_digest(name, content)}\n".encode() + content)


def load_arrays(folder: Path, name: str) -> dict[str, npt.NDArray[Any]] | None:
    """Return the arrays kept under a name, or None if there are none or they are damaged."""
    try:
        content = (folder / (name + _SUFFIX)).read_bytes()
    except OSError:
        return None
    line, archive = content[:_LINE], content[_LINE:]
    if line != f"{_digest(name, archive)}\n".encode():
        return None
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        return {str(key): arrays[key] for key in arrays.files}


def list_names(folder: Path) -> dict[str, float]:
    """Return name -> time of the last change, in seconds since 1970, of what is kept in a folder."""
    found = {}
    for path in sorted(folder.glob("[!.]*" + _SUFFIX)):
        try:
            found[path.name.removesuffix(_SUFFIX)] = path.stat().st_mtime
        except FileNotFoundError:  # its result was published meanwhile
            continue
    return found


def remove_step(root: Path, address: Address) -> None:
    """Remove what is kept of a step, under whatever key."""
    for folder in checkpoints_folder(root).glob(f"{address.path.replace('/', '.')}.{address.step}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def _digest(name: str, content: bytes) -> str:
    return sha256_bytes(name.encode() + b"\n" + content)
