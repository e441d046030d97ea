"""The study store: sealed groups, named by content, published by one pointer.

A group lives at ``<path>/<step>/<key>`` inside the store. It is laid out and filled under ``.staging``, its files are
listed with size and SHA-256 in ``seal.json``, it is moved to its name, and it becomes current when the pointer
``<path>/<step>/current.json`` is written. A kill at any time leaves the old pointer or the new one, and both lead to
whole groups.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kconn.errors import StoreError
from kconn.io.files import canonical_json, sha256_bytes, sha256_file, sync_directory, write_atomic
from kconn.schema import SCHEMA_VERSION

SEAL: Final = "seal.json"
POINTER: Final = "current.json"
JOURNAL: Final = "journal.jsonl"
STAGING: Final = ".staging"
_LOCK: Final = ".lock"
_ROOT_GROUP: Final = {"zarr_format": 3, "node_type": "group", "attributes": {}}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """Where a published result lives: a path of the study and the step that makes it."""

    path: str
    step: str

    def __str__(self) -> str:
        """``sub-01/ses-1/run-1:ingest``."""
        return f"{self.path}:{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A group about to be written: where, under which content key, made from what."""

    root: Path
    address: Address
    key: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What `verify` found wrong at one address."""

    address: Address
    problem: str


def create_store(root: Path) -> None:
    """Make an empty store, or accept the one that is there.

    Raises
    ------
    StoreError
        ``E-STORE-SCHEMA`` if the store was written by a version that this one does not know.
    """
    marker = root / "zarr.json"
    if marker.exists():
        check_store(root)
        return
    write_atomic(marker, canonical_json({**_ROOT_GROUP, "attributes": {"schema_version": SCHEMA_VERSION}}))


def check_store(root: Path) -> None:
    """Refuse a path that holds no store, or one of an unknown version."""
    marker = root / "zarr.json"
    if not marker.is_file():
        raise StoreError(
            "E-STORE-MISSING",
            f"there is no study store at {root.name!r}",
            rule="a store is a folder with a zarr.json",
            fix="run the study first, or correct the path",
        )
    version = _read_json(marker).get("attributes", {}).get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            "E-STORE-SCHEMA",
            f"the store {root.name!r} has schema_version {version!r}",
            rule=f"this kconn reads schema_version {SCHEMA_VERSION}",
            fix="open it with the kconn that wrote it, or run the study into a new store",
        )


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the store for one writing process; readers need no lock.

    Raises
    ------
    StoreError
        ``E-STORE-LOCKED`` if another process holds it. The lock dies with its process.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                "E-STORE-LOCKED",
                f"another process is writing to {root.name!r}",
                rule="one run at a time writes to a store",
                fix="wait for it to end, or stop it: what it finished is kept",
            ) from error
        yield


def group_path(root: Path, address: Address, key: str) -> Path:
    """Return the folder of a sealed group."""
    return root / address.path / address.step / key


def staging_path(target: Target) -> Path:
    """Return the folder in which a group is laid out and filled."""
    address = target.address
    return target.root / STAGING / f"{address.path.replace('/', '.')}.{address.step}.{target.key}"


def current_key(root: Path, address: Address) -> str | None:
    """Return the key that is published at an address, or None.

    Raises
    ------
    StoreError
        ``E-STORE-CORRUPT`` if the pointer does not match its own checksum.
    """
    pointer = root / address.path / address.step / POINTER
    if not pointer.exists():
        return None
    content = _read_json(pointer)
    body = {"key": content.get("key"), "seal": content.get("seal")}
    if content.get("check") != sha256_bytes(canonical_json(body)):
        raise _corrupt(address, f"the pointer {POINTER} does not match its checksum")
    return str(body["key"])


def is_published(root: Path, address: Address, key: str) -> bool:
    """Return whether ``key`` is current at ``address`` and all its files are there with their sizes."""
    try:
        return current_key(root, address) == key and not _damage(root, address, key, deep=False)
    except StoreError:
        return False


def seal(target: Target) -> None:
    """Close a staged group and make it current.

    Writes the list of its files with size and SHA-256, moves it to its name and turns the pointer.
    """
    root, address, key = target.root, target.address, target.key
    staged, final = staging_path(target), group_path(root, address, key)
    for stray in [*staged.rglob("*.partial"), staged / JOURNAL]:
        stray.unlink(missing_ok=True)
    body = {
        "schema_version": SCHEMA_VERSION,
        "path": address.path,
        "step": address.step,
        "key": key,
        "provenance": dict(target.provenance),
        "files": _list_files(staged),
    }
    write_atomic(staged / SEAL, canonical_json({**body, "check": sha256_bytes(canonical_json(body))}))
    _make_parents(root, final.parent)
    if final.exists():  # an earlier group of the same key that lost its pointer or its health
        shutil.rmtree(final)
    staged.rename(final)
    sync_directory(final.parent)
    _point(root, address, key)


def republish(root: Path, address: Address, key: str) -> bool:
    """Make an earlier sealed group of this key current again; return whether there was one."""
    if not group_path(root, address, key).is_dir() or _damage(root, address, key, deep=True):
        return False
    _point(root, address, key)
    return True


def published_group(root: Path, address: Address) -> Path:
    """Return the folder of the current group, refusing what is not sealed or not whole.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` if nothing was published, ``E-STORE-CORRUPT`` if a file is missing or has another size.
    """
    key = current_key(root, address)
    if key is None:
        raise StoreError(
            "E-STORE-UNSEALED",
            "nothing was published here",
            where=str(address),
            rule="only sealed groups are opened",
            fix="run the study",
        )
    if damage := _damage(root, address, key, deep=False):
        raise _corrupt(address, damage)
    return group_path(root, address, key)


def read_seal(root: Path, address: Address) -> dict[str, Any]:
    """Return the seal of the current group: its key, files and provenance."""
    key = current_key(root, address)
    return _read_json(group_path(root, address, str(key)) / SEAL)


def find_published(root: Path) -> list[Address]:
    """Return every address that has a current group, sorted."""
    check_store(root)
    found = []
    for pointer in root.rglob(POINTER):
        relative = pointer.relative_to(root)
        if relative.parts[0] != STAGING:
            found.append(Address(path="/".join(relative.parts[:-2]), step=relative.parts[-2]))
    return sorted(found)


def verify(root: Path) -> tuple[list[Address], list[Finding]]:
    """Read every file of every current group and compare it with its seal.

    Returns
    -------
    The addresses looked at, and what was wrong.
    """
    addresses = find_published(root)
    findings = []
    for address in addresses:
        try:
            damage = _damage(root, address, str(current_key(root, address)), deep=True)
        except StoreError as error:
            damage = error.problem
        if damage:
            findings.append(Finding(address=address, problem=damage))
    return addresses, findings


def digest_store(root: Path) -> str:
    """Return one SHA-256 over all that is published: addresses, keys and the bytes of every file."""
    lines = []
    for address in find_published(root):
        content = read_seal(root, address)
        lines.append(canonical_json({"address": str(address), "key": content["key"], "files": content["files"]}))
    return sha256_bytes(b"\n".join(lines))


def remove_superseded(root: Path) -> int:
    """Remove staged leftovers and sealed groups that are no longer current; return how many groups went."""
    shutil.rmtree(root / STAGING, ignore_errors=True)
    removed = 0
    for address in find_published(root):
        key = current_key(root, address)
        for group in (root / address.path / address.step).iterdir():
            if group.is_dir() and group.name != key:
                shutil.rmtree(group)
                removed += 1
    return removed


def _point(root: Path, address: Address, key: str) -> None:
    body = {"key": key, "seal": sha256_file(group_path(root, address, key) / SEAL)}
    content = canonical_json({**body, "check": sha256_bytes(canonical_json(body))})
    write_atomic(root / address.path / address.step / POINTER, content)


def _damage(root: Path, address: Address, key: str, *, deep: bool) -> str:
    """Return what is wrong with a sealed group, or an empty string. ``deep`` reads every byte."""
    group = group_path(root, address, key)
    try:
        content = _read_json(group / SEAL)
    except StoreError:
        return f"{SEAL} is missing or no JSON"
    check = content.pop("check", None)
    if check != sha256_bytes(canonical_json(content)) or content["key"] != key:
        return f"{SEAL} does not match its checksum"
    pointer = root / address.path / address.step / POINTER
    if deep and pointer.exists():
        pointed = _read_json(pointer)
        if pointed.get("key") == key and pointed.get("seal") != sha256_file(group / SEAL):
            return f"{SEAL} is not the one that was published"
    for name, (size, digest) in content["files"].items():
        file = group / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or has another size"
        if deep and sha256_file(file) != digest:
            return f"{name} does not match its checksum"
    return ""


def _list_files(group: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in group.rglob("*") if path.is_file())
    return {path.relative_to(group).as_posix(): (path.stat().st_size, sha256_file(path)) for path in files}


def _make_parents(root: Path, folder: Path) -> None:
    """Make every folder down to ``folder`` a Zarr group, so that plain xarray can walk the store."""
    folder.mkdir(parents=True, exist_ok=True)
    while folder != root:
        if not (folder / "zarr.json").exists():
            write_atomic(folder / "zarr.json", canonical_json(_ROOT_GROUP))
        folder = folder.parent


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            "E-STORE-CORRUPT",
            f"{path.name} cannot be read as JSON",
            where=path.parent.name,
            rule="the store's own files are whole",
            fix="run the study again: the group is made anew",
        ) from error
    if not isinstance(content, dict):
        raise StoreError("E-STORE-CORRUPT", f"{path.name} holds no table", where=path.parent.name)
    return content


def _corrupt(address: Address, problem: str) -> StoreError:
    return StoreError(
        "E-STORE-CORRUPT",
        problem,
        where=str(address),
        rule="every file matches the size and checksum of its seal",
        fix="run the study again: the damaged group is made anew",
    )


def free_bytes(path: Path) -> int:
    """Return the bytes free on the disk that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
