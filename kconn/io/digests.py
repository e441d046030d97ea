"""Digests of input files, remembered by size and time of change so that an unchanged file is read once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from kconn.errors import InputError
from kconn.io.files import canonical_json, sha256_bytes, sha256_file, write_atomic

_MEMORY: Final = "digests.json"


def digest_files(folder: Path, paths: Iterable[str], *, memory: Path | None) -> dict[str, str]:
    """Return path -> SHA-256 for files below ``folder``.

    Parameters
    ----------
    folder
        The folder that the paths are relative to.
    paths
        Relative paths.
    memory
        Folder that remembers digests by (path, size, time of change, inode), or None to read every byte.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``.
    """
    remembered = _recall(memory)
    unique = sorted(set(paths))
    names = [sha256_bytes(path.encode()) for path in unique]  # a path may identify a person: none is kept
    with ThreadPoolExecutor(max_workers=2) as pool:
        entries = pool.map(lambda path, name: _digest(folder, path, remembered.get(name)), unique, names)
        found = dict(zip(names, entries, strict=True))
    if memory is not None and any(remembered.get(name) != entry for name, entry in found.items()):
        write_atomic(memory / _MEMORY, canonical_json({**remembered, **found}))
    return {path: found[name][-1] for path, name in zip(unique, names, strict=True)}


def _digest(folder: Path, path: str, known: list[str] | None) -> list[str]:
    file = folder / path
    try:
        status = file.stat()
        state = [str(status.st_size), str(status.st_mtime_ns), str(status.st_ino)]
        return known if known and known[:-1] == state else [*state, sha256_file(file)]
    except OSError as error:
        raise InputError(
            "E-FILE-MISSING",
            f"{path} cannot be read: {error.strerror}",
            rule="every input file exists and is readable",
            fix="correct the path, or restore the file",
        ) from error


def _recall(memory: Path | None) -> dict[str, list[str]]:
    if memory is None or not (memory / _MEMORY).exists():
        return {}
    try:
        content = json.loads((memory / _MEMORY).read_bytes())
    except ValueError:  # a damaged memory costs a second reading, nothing else
        return {}
    return content if isinstance(content, dict) else {}
