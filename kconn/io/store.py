"""The study store: sealed groups, named by content, published by one small write.

A group lives at ``<path>/<step>/<key>`` inside the store. It is laid out and filled in a work folder beside the store,
moved to its name, and becomes current when the metadata of its step (``<path>/<step>/zarr.json``) is replaced: that one
file holds the seal of every group (its files with size and SHA-256, its provenance), names the current one, and ends
in a checksum of itself. A kill at any time leaves the old file or the new one, and both lead to whole groups. A folder
enters the store with its metadata inside, so one without was damaged, not interrupted. Every file of the store is plain
Zarr v3.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kconn.errors import StoreError
from kconn.io.files import canonical_json, sha256_bytes, sha256_file, sync_directory, write_atomic
from kconn.schema import SCHEMA_VERSION

JOURNAL: Final = "journal.jsonl"
_META: Final = "zarr.json"
_GROUP: Final = {"zarr_format": 3, "node_type": "group"}
_UNSEALED: Final[dict[str, Any]] = {"current": None, "seals": {}}


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
    """What `verify` found wrong, and where."""

    place: str
    problem: str


def create_store(root: Path) -> None:
    """Make an empty store, or accept the one that is there.

    Raises
    ------
    StoreError
        ``E-STORE-SCHEMA`` if the store was written by a version that this one does not know, ``E-FILE-EXISTS`` if the
        folder holds something else.
    """
    if (root / _META).exists():
        check_store(root)
        return
    if root.is_dir() and any(not path.name.endswith(".partial") for path in root.iterdir()):
        raise StoreError(
            "E-FILE-EXISTS",
            f"the folder {root.name!r} holds something other than a study store",
            rule="a store is a folder of its own",
            fix="name another folder in [study] store",
        )
    write_atomic(root / _META, canonical_json({**_GROUP, "attributes": {"schema_version": SCHEMA_VERSION}}))


def check_store(root: Path) -> None:
    """Refuse a path that holds no store, or one of an unknown version."""
    if not (root / _META).is_file():
        raise StoreError(
            "E-STORE-MISSING",
            f"there is no study store at {root.name!r}",
            rule=f"a store is a folder with a {_META}",
            fix="run the study first, or correct the path",
        )
    version = _attributes(root).get("schema_version")
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
    work = work_folder(root)
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
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


def work_folder(root: Path) -> Path:
    """Return the folder beside the store for what is no result: the lock, groups being filled, remembered digests."""
    return root.with_name(f".{root.name}.work")


def checkpoints_folder(root: Path) -> Path:
    """Return the folder for the finished parts of steps that are not finished."""
    return work_folder(root) / "checkpoints"


def group_path(root: Path, address: Address, key: str) -> Path:
    """Return the folder of a sealed group."""
    return root / address.path / address.step / key


def staging_path(target: Target) -> Path:
    """Return the folder in which a group is laid out and filled."""
    address = target.address
    return _staging(target.root) / f"{address.path.replace('/', '.')}.{address.step}.{target.key}"


def _staging(root: Path) -> Path:
    return work_folder(root) / "staging"


def current_key(root: Path, address: Address) -> str | None:
    """Return the key that is published at an address, or None.

    Raises
    ------
    StoreError
        ``E-STORE-CORRUPT`` if the metadata of the step do not match their own checksum.
    """
    key: str | None = (_read_step(root, address) or _UNSEALED)["current"]
    return key


def is_published(root: Path, address: Address, key: str) -> bool:
    """Return whether ``key`` is current at ``address`` and all its files are there with their sizes."""
    try:
        return current_key(root, address) == key and not _damage(root, address, key, deep=False)
    except StoreError:
        return False


def seal(target: Target) -> None:
    """Close a staged group and make it current.

    Lists its files with size and SHA-256, moves it to its name and replaces the metadata of its step.
    """
    root, address, key = target.root, target.address, target.key
    staged, final = staging_path(target), group_path(root, address, key)
    for stray in [*staged.rglob("*.partial"), staged / JOURNAL]:
        stray.unlink(missing_ok=True)
    body = {
        "schema_version": SCHEMA_VERSION,
        "provenance": dict(target.provenance),
        "files": _list_files(staged),
    }
    _make_groups(root, address)
    if final.exists():  # an earlier group of the same key that lost its seal or its health
        shutil.rmtree(final)
    staged.rename(final)
    sync_directory(final.parent)
    try:
        earlier = (_read_step(root, address) or _UNSEALED)["seals"]
    except StoreError:  # damaged metadata: its groups are unreachable, this one replaces them
        earlier = {}
    _write_step(root, address, key, {**earlier, key: body})


def republish(root: Path, address: Address, key: str) -> bool:
    """Make an earlier sealed group of this key current again; return whether there was a healthy one."""
    try:
        step = _read_step(root, address)
        if step is None or _damage(root, address, key, deep=True):
            return False
    except StoreError:
        return False
    _write_step(root, address, key, step["seals"])
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
        raise _corrupt(str(address), damage)
    return group_path(root, address, key)


def read_seal(root: Path, address: Address) -> dict[str, Any]:
    """Return the seal of the current group: ``key``, ``files`` (size, SHA-256) and ``provenance``."""
    step = _read_step(root, address) or _UNSEALED
    key = step["current"]
    return {} if key is None else {"key": key, **step["seals"][key]}


def find_published(root: Path) -> list[Address]:
    """Return every address that has a current group, sorted.

    Raises
    ------
    StoreError
        ``E-STORE-MISSING``, ``E-STORE-SCHEMA``, or ``E-STORE-CORRUPT`` if part of the store cannot be reached.
    """
    check_store(root)
    folders, findings = _walk(root)
    if findings:
        raise _corrupt(findings[0].place, findings[0].problem)
    return _sealed(root, folders)


def verify(root: Path) -> tuple[list[Address], list[Finding]]:
    """Read every file of every current group and compare it with its seal.

    Returns
    -------
    The addresses looked at, and what was wrong.
    """
    check_store(root)
    folders, findings = _walk(root)
    addresses = _sealed(root, folders)
    for address in addresses:
        try:
            damage = _damage(root, address, str(current_key(root, address)), deep=True)
        except StoreError as error:
            damage = error.problem
        if damage:
            findings.append(Finding(place=str(address), problem=damage))
    return addresses, findings


def digest_store(root: Path) -> str:
    """Return one SHA-256 over all that is published: addresses, keys and the bytes of every file."""
    lines = []
    for address in find_published(root):
        content = read_seal(root, address)
        lines.append(canonical_json({"address": str(address), "key": content["key"], "files": content["files"]}))
    return sha256_bytes(b"\n".join(lines))


def remove_superseded(root: Path) -> int:
    """Remove leftovers of killed runs and sealed groups that are no longer current; return how many groups went."""
    shutil.rmtree(_staging(root), ignore_errors=True)
    shutil.rmtree(checkpoints_folder(root), ignore_errors=True)
    removed = 0
    for folder, address in _walk(root)[0].items():
        for stray in folder.glob(".*.partial"):
            stray.unlink()
        if address is None:
            continue
        step = _read_step(root, address) or _UNSEALED
        key = step["current"]
        if set(step["seals"]) != {key}:
            _write_step(root, address, key, {key: step["seals"][key]} if key else {})
        for group in folder.iterdir():
            if group.is_dir() and group.name != key:
                shutil.rmtree(group)
                removed += 1
    return removed


def free_bytes(path: Path) -> int:
    """Return the bytes free on the disk that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _read_step(root: Path, address: Address) -> dict[str, Any] | None:
    """Return what the metadata of a step say: its ``current`` key and the ``seals`` of its groups."""
    folder = root / address.path / address.step
    if not (folder / _META).exists():
        return None
    attributes = _attributes(folder)
    check = attributes.pop("check", None)
    if check != sha256_bytes(canonical_json(attributes)):
        raise _corrupt(str(address), f"{_META} does not match its checksum")
    return attributes


def _write_step(root: Path, address: Address, key: str | None, seals: Mapping[str, Any]) -> None:
    write_atomic(root / address.path / address.step / _META, _step_metadata(address, key, seals))


def _step_metadata(address: Address, key: str | None, seals: Mapping[str, Any]) -> bytes:
    attributes = {"step": address.step, "current": key, "seals": dict(seals)}
    attributes["check"] = sha256_bytes(canonical_json(attributes))
    return canonical_json({**_GROUP, "attributes": attributes})


def _damage(root: Path, address: Address, key: str, *, deep: bool) -> str:
    """Return what is wrong with a sealed group, or an empty string. ``deep`` reads every byte."""
    step = _read_step(root, address)
    if step is None or key not in step["seals"]:
        return "it was never sealed"
    group = group_path(root, address, key)
    for name, (size, digest) in step["seals"][key]["files"].items():
        file = group / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or has another size"
        if deep and sha256_file(file) != digest:
            return f"{name} does not match its checksum"
    return ""


def _walk(root: Path) -> tuple[dict[Path, Address | None], list[Finding]]:
    """Return every folder down to the steps, these with their address, and the folders that lost their metadata."""
    found: dict[Path, Address | None] = {}
    findings: list[Finding] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        place = folder.relative_to(root)
        try:
            is_step = "step" in _attributes(folder)
        except StoreError as error:
            findings.append(Finding(place=place.as_posix(), problem=error.problem))
            continue
        found[folder] = Address(path=place.parent.as_posix(), step=place.name) if is_step else None
        if not is_step:
            folders += [path for path in folder.iterdir() if path.is_dir()]
    return found, findings


def _sealed(root: Path, folders: Mapping[Path, Address | None]) -> list[Address]:
    """Return the steps that have a current group, or metadata too damaged to tell, sorted."""
    sealed = []
    for address in filter(None, folders.values()):
        try:
            if current_key(root, address) is not None:
                sealed.append(address)
        except StoreError:
            sealed.append(address)
    return sorted(sealed)


def _list_files(group: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in group.rglob("*") if path.is_file())
    return {path.relative_to(group).as_posix(): (path.stat().st_size, sha256_file(path)) for path in files}


def _make_groups(root: Path, address: Address) -> None:
    """Make the folder of a step, and those above it, Zarr groups; mend metadata above it that cannot be read."""
    parents = [root / part for part in reversed(Path(address.path).parents[:-1])] + [root / address.path]
    for folder in parents:
        content = canonical_json({**_GROUP, "attributes": {}})
        if not folder.exists():
            _make_group(root, folder, content)
            continue
        try:
            _attributes(folder)
        except StoreError:
            write_atomic(folder / _META, content)
    folder = root / address.path / address.step
    if not folder.exists():
        _make_group(root, folder, _step_metadata(address, None, {}))


def _make_group(root: Path, folder: Path, content: bytes) -> None:
    """Put a folder with its metadata into the store in one step, unless another worker did."""
    made = _staging(root) / uuid.uuid4().hex
    write_atomic(made / _META, content)
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not folder.is_dir():
            raise
    sync_directory(folder.parent)


def _attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of a Zarr group."""
    try:
        content = json.loads((folder / _META).read_bytes())
        if content["node_type"] == "group" and isinstance(content["attributes"], dict):
            return dict(content["attributes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(folder.name, f"{_META} is missing or cannot be read") from error
    raise _corrupt(folder.name, f"{_META} describes no group")


def _corrupt(where: str, problem: str) -> StoreError:
    return StoreError(
        "E-STORE-CORRUPT",
        problem,
        where=where,
        rule="every file matches the size and checksum of its seal",
        fix="run the study again: the damaged group is made anew",
    )
