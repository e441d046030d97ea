"""The study store: sealed groups, named by content, published by one small write.

A group lives at ``<path>/<step>/<key>`` inside the store. It is laid out and filled elsewhere (`kconn.io.staging`),
put at its name, and becomes current when the metadata of its step (``<path>/<step>/zarr.json``) is replaced: that one
file holds the seal of every group (its files with size and SHA-256, its provenance), names the current one, and ends
in a checksum of itself. A kill at any time leaves the old file or the new one, and both lead to whole groups. A folder
enters the store with its metadata inside, so one without was damaged, not interrupted. Every file of the store is plain
Zarr v3.

On object storage (`kconn.io.storage`) the folder of a group is ``<key>-<attempt>``, which its seal says.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from kconn.errors import StoreError
from kconn.io.files import Content, canonical_json, sha256_bytes, sync_directory, write_atomic
from kconn.io.objects import ObjectFolder
from kconn.io.staging import FolderStaging, ObjectStaging, Staging
from kconn.io.storage import Place, Storage, below, beside, hold, open_zarr, storage_of, sweep, work_folder
from kconn.schema import SCHEMA_VERSION

_META: Final = "zarr.json"
_GROUP: Final = {"zarr_format": 3, "node_type": "group"}
_UNSEALED: Final[dict[str, Any]] = {"current": None, "seals": {}}
T = TypeVar("T")
R = TypeVar("R")


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

    root: Place
    address: Address
    key: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What `verify` found wrong, and where."""

    place: str
    problem: str


def create_store(root: Place) -> None:
    """Make an empty store, or accept the one that is there.

    Raises
    ------
    StoreError
        ``E-STORE-SCHEMA`` if the store was written by a version that this one does not know, ``E-FILE-EXISTS`` if the
        folder holds something else.
    """
    storage = storage_of(root)
    if storage.read(_META) is not None:
        check_store(root)
        return
    if not storage.is_empty():
        raise StoreError(
            "E-FILE-EXISTS",
            f"the folder {root.name!r} holds something other than a study store",
            rule="a store is a folder of its own",
            fix="name another folder in [study] store",
        )
    content = canonical_json({**_GROUP, "attributes": {"schema_version": SCHEMA_VERSION}})
    storage.replace(_META, content, seen=None)


def check_store(root: Place) -> None:
    """Refuse a place that holds no store, or one of an unknown version."""
    found = storage_of(root).read(_META)
    if found is None:
        raise StoreError(
            "E-STORE-MISSING",
            f"there is no study store at {root.name!r}",
            rule=f"a store is a folder with a {_META}",
            fix="run the study first, or correct the path",
        )
    version = _attributes(found, root.name).get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            "E-STORE-SCHEMA",
            f"the store {root.name!r} has schema_version {version!r}",
            rule=f"this kconn reads schema_version {SCHEMA_VERSION}",
            fix="open it with the kconn that wrote it, or run the study into a new store",
        )


def locked(root: Place) -> AbstractContextManager[None]:
    """Hold the store for one writing process; readers need no lock.

    Raises
    ------
    StoreError
        ``E-STORE-LOCKED`` if another process holds it. On a disk the lock dies with its process; on object storage it
        lapses when it is not renewed, see `kconn.io.object_lock`.
    """
    return hold(root)


def checkpoints_folder(root: Place) -> Place:
    """Return the folder for the finished parts of steps that are not finished."""
    return below(work_folder(root), "checkpoints")


def group_path(root: Path, address: Address, key: str) -> Path:
    """Return the folder of a sealed group of a store on a disk."""
    return root / address.path / address.step / key


def stage(target: Target) -> Staging:
    """Return what a group is laid out and filled in."""
    root, address = target.root, target.address
    if isinstance(root, ObjectFolder):
        # Written where it stays, so the metadata above it come first.
        _make_groups(root, address)
        work = root.beside(work_folder(root).name)
        return ObjectStaging(root, work, step=_folder(address), key=target.key)
    return FolderStaging(path=staging_path(target), final=group_path(root, address, target.key))


def staging_path(target: Target) -> Path:
    """Return the folder in which a group of a store on a disk is laid out and filled."""
    address = target.address
    if isinstance(target.root, ObjectFolder):
        raise TypeError(target.root)
    return beside(target.root) / "staging" / f"{address.path.replace('/', '.')}.{address.step}.{target.key}"


def current_key(root: Place, address: Address) -> str | None:
    """Return the key that is published at an address, or None.

    Raises
    ------
    StoreError
        ``E-STORE-CORRUPT`` if the metadata of the step do not match their own checksum.
    """
    key: str | None = _read_step(root, address)["current"]
    return key


def is_published(root: Place, address: Address, key: str) -> bool:
    """Return whether ``key`` is current at ``address`` and all its files are there with their sizes."""
    try:
        step = _read_step(root, address)
        return step["current"] == key and not _damage(root, address, step, key, deep=False)
    except StoreError:
        return False


def are_published(root: Place, keys: Iterable[tuple[Address, str]]) -> list[bool]:
    """Return `is_published` of each, asking object storage for several at a time."""
    return _each(storage_of(root), lambda item: is_published(root, *item), keys)


def seal(target: Target, staging: Staging) -> None:
    """Close a staged group and make it current.

    Lists its files with size and SHA-256, puts it at its name and replaces the metadata of its step.

    Raises
    ------
    StoreError
        ``E-STORE-LOST`` if another process published here meanwhile, where the storage can tell.
    """
    root, address, key = target.root, target.address, target.key
    body = {
        "schema_version": SCHEMA_VERSION,
        "provenance": dict(target.provenance),
        "files": staging.close(),
    }
    if isinstance(root, Path):
        _make_groups(root, address)
    folder = staging.publish()
    if folder != key:
        body["folder"] = folder
    seen = storage_of(root).read(_meta(address))
    try:
        earlier = _step_attributes(seen, address)["seals"]
    except StoreError:  # damaged metadata: its groups are unreachable, this one replaces them
        earlier = {}
    _write_step(root, address, key, {**earlier, key: body}, seen=seen)


def republish(root: Place, address: Address, key: str) -> bool:
    """Make an earlier sealed group of this key current again; return whether there was a healthy one."""
    seen = storage_of(root).read(_meta(address))
    try:
        step = _step_attributes(seen, address)
        if _damage(root, address, step, key, deep=True):
            return False
    except StoreError:
        return False
    _write_step(root, address, key, step["seals"], seen=seen)
    return True


def published_group(root: Place, address: Address) -> Any:
    """Return the current group as something that Zarr reads, refusing what is not sealed or not whole.

    Raises
    ------
    StoreError
        ``E-STORE-UNSEALED`` if nothing was published, ``E-STORE-CORRUPT`` if a file is missing or has another size.
    """
    step = _read_step(root, address)
    key = step["current"]
    if key is None:
        raise StoreError(
            "E-STORE-UNSEALED",
            "nothing was published here",
            where=str(address),
            rule="only sealed groups are opened",
            fix="run the study",
        )
    if damage := _damage(root, address, step, key, deep=False):
        raise _corrupt(str(address), damage)
    return open_zarr(root, _group(address, step, key), step["seals"][key]["files"])


def read_seal(root: Place, address: Address) -> dict[str, Any]:
    """Return the seal of the current group: ``key``, ``files`` (size, SHA-256) and ``provenance``."""
    step = _read_step(root, address)
    key = step["current"]
    return {} if key is None else {"key": key, **step["seals"][key]}


def find_published(root: Place) -> list[Address]:
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


def verify(root: Place) -> tuple[list[Address], list[Finding]]:
    """Read every file of every current group and compare it with its seal.

    Returns
    -------
    The addresses looked at, and what was wrong.
    """
    check_store(root)
    folders, findings = _walk(root)
    addresses = _sealed(root, folders)

    def look(address: Address) -> str:
        try:
            step = _read_step(root, address)
            return _damage(root, address, step, str(step["current"]), deep=True)
        except StoreError as error:
            return error.problem

    for address, damage in zip(addresses, _each(storage_of(root), look, addresses), strict=True):
        if damage:
            findings.append(Finding(place=str(address), problem=damage))
    return addresses, findings


def digest_store(root: Place) -> str:
    """Return one SHA-256 over all that is published: addresses, keys and the bytes of every file."""
    addresses = find_published(root)
    lines = []
    seals = _each(storage_of(root), lambda address: read_seal(root, address), addresses)
    for address, content in zip(addresses, seals, strict=True):
        lines.append(canonical_json({"address": str(address), "key": content["key"], "files": content["files"]}))
    return sha256_bytes(b"\n".join(lines))


def remove_superseded(root: Place) -> int:
    """Remove leftovers of killed runs and sealed groups that are no longer current; return how many groups went."""
    storage, work = storage_of(root), storage_of(work_folder(root))
    work.remove_all("staging")
    work.remove_all("checkpoints")
    removed = 0
    for folder, address in _walk(root)[0].items():
        sweep(root, folder)
        if address is None:
            continue
        seen = storage.read(_meta(address))
        step = _step_attributes(seen, address)
        key = step["current"]
        if set(step["seals"]) != {key}:
            _write_step(root, address, key, {key: step["seals"][key]} if key else {}, seen=seen)
        kept = _group(address, step, key) if key else ""
        for name in storage.folders(folder):
            if f"{folder}/{name}" != kept:
                storage.remove_all(f"{folder}/{name}")
                removed += 1
    return removed


def _each(storage: Storage, call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call a function with each item, as many at a time as the storage is good for."""
    if storage.at_once == 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(storage.at_once) as pool:
        return list(pool.map(call, items))


def _folder(address: Address) -> str:
    return f"{address.path}/{address.step}"


def _meta(address: Address) -> str:
    return f"{_folder(address)}/{_META}"


def _group(address: Address, step: Mapping[str, Any], key: str) -> str:
    """Return the folder of a sealed group: where nothing else is said, its key."""
    return f"{_folder(address)}/{step['seals'][key].get('folder', key)}"


def _read_step(root: Place, address: Address) -> dict[str, Any]:
    """Return what the metadata of a step say: its ``current`` key and the ``seals`` of its groups."""
    return _step_attributes(storage_of(root).read(_meta(address)), address)


def _step_attributes(found: Content | None, address: Address) -> dict[str, Any]:
    if found is None:
        return _UNSEALED
    attributes = _attributes(found, address.step)
    check = attributes.pop("check", None)
    if check != sha256_bytes(canonical_json(attributes)):
        raise _corrupt(str(address), f"{_META} does not match its checksum")
    return attributes


def _write_step(
    root: Place, address: Address, key: str | None, seals: Mapping[str, Any], *, seen: Content | None
) -> None:
    storage_of(root).replace(_meta(address), _step_metadata(address, key, seals), seen=seen)


def _step_metadata(address: Address, key: str | None, seals: Mapping[str, Any]) -> bytes:
    attributes = {"step": address.step, "current": key, "seals": dict(seals)}
    attributes["check"] = sha256_bytes(canonical_json(attributes))
    return canonical_json({**_GROUP, "attributes": attributes})


def _damage(root: Place, address: Address, step: Mapping[str, Any], key: str, *, deep: bool) -> str:
    """Return what is wrong with a sealed group, or an empty string. ``deep`` reads every byte."""
    if key not in step["seals"]:
        return "it was never sealed"
    storage, group, files = storage_of(root), _group(address, step, key), step["seals"][key]["files"]
    name = storage.first_differing(group, {name: size for name, (size, _) in files.items()})
    if name is not None:
        return f"{name} is missing or has another size"
    for name, (_, digest) in files.items() if deep else ():
        if storage.digest(f"{group}/{name}") != digest:
            return f"{name} does not match its checksum"
    return ""


def _walk(root: Place) -> tuple[dict[str, Address | None], list[Finding]]:
    """Return every folder down to the steps, these with their address, and the folders that lost their metadata."""
    storage = storage_of(root)
    found: dict[str, Address | None] = {}
    findings: list[Finding] = []

    def look(folder: str) -> tuple[bool, list[str]]:
        is_step = "step" in _attributes(storage.read(f"{folder}/{_META}" if folder else _META), folder or root.name)
        return is_step, [] if is_step else storage.folders(folder)

    def look_or_find(folder: str) -> tuple[bool, list[str]] | StoreError:
        try:
            return look(folder)
        except StoreError as error:
            return error

    folders = [""]
    while folders:
        deeper = []
        for folder, seen in zip(folders, _each(storage, look_or_find, folders), strict=True):
            if isinstance(seen, StoreError):
                findings.append(Finding(place=folder or ".", problem=seen.problem))
                continue
            is_step, inside = seen
            path, _, step = folder.rpartition("/")
            found[folder] = Address(path=path or ".", step=step) if is_step else None
            deeper += [f"{folder}/{name}" if folder else name for name in inside]
        folders = deeper
    return found, findings


def _sealed(root: Place, folders: Mapping[str, Address | None]) -> list[Address]:
    """Return the steps that have a current group, or metadata too damaged to tell, sorted."""

    def is_sealed(address: Address) -> bool:
        try:
            return current_key(root, address) is not None
        except StoreError:
            return True

    addresses = [address for address in folders.values() if address is not None]
    marks = _each(storage_of(root), is_sealed, addresses)
    return sorted(address for address, sealed in zip(addresses, marks, strict=True) if sealed)


def _make_groups(root: Place, address: Address) -> None:
    """Make the folder of a step, and those above it, Zarr groups; mend metadata above it that cannot be read."""
    storage = storage_of(root)
    above = [parent.as_posix() for parent in reversed(PurePosixPath(address.path).parents[:-1])]
    empty = canonical_json({**_GROUP, "attributes": {}})
    for folder in [*above, address.path]:
        found = storage.read(f"{folder}/{_META}")
        try:
            if found is None and _make_group(root, folder, empty):
                continue
            _attributes(found, folder)
        except StoreError:
            storage.put(f"{folder}/{_META}", empty)
    if storage.read(_meta(address)) is None:
        _make_group(root, _folder(address), _step_metadata(address, None, {}))


def _make_group(root: Place, folder: str, content: bytes) -> bool:
    """Put a folder with its metadata into the store in one step, unless it is there; return whether it was not."""
    if isinstance(root, ObjectFolder):
        root.create(f"{folder}/{_META}", content)
        return True
    path = root / folder
    if path.exists():
        return False
    made = beside(root) / "staging" / uuid.uuid4().hex
    write_atomic(made / _META, content)
    try:
        made.rename(path)
    except OSError:
        shutil.rmtree(made)
        if not path.is_dir():
            raise
    sync_directory(path.parent)
    return True


def _attributes(found: Content | None, where: str) -> dict[str, Any]:
    """Return the attributes of a Zarr group from its metadata."""
    if found is not None:
        try:
            content = json.loads(found.content)
            if content["node_type"] == "group" and isinstance(content["attributes"], dict):
                return dict(content["attributes"])
        except (ValueError, KeyError, TypeError) as error:
            raise _corrupt(where, f"{_META} is missing or cannot be read") from error
        raise _corrupt(where, f"{_META} describes no group")
    raise _corrupt(where, f"{_META} is missing or cannot be read")


def _corrupt(where: str, problem: str) -> StoreError:
    return StoreError(
        "E-STORE-CORRUPT",
        problem,
        where=where,
        rule="every file matches the size and checksum of its seal",
        fix="run the study again: the damaged group is made anew",
    )
