"""Where a store lies, a folder of a disk or a prefix of a bucket, and the few things that the two do differently."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kconn.errors import StoreError
from kconn.io import object_lock
from kconn.io.files import Content, sha256_file, write_atomic
from kconn.io.objects import SCHEME, ObjectFolder, parse_place

#: A folder on a disk, or on object storage.
Place = Path | ObjectFolder


def work_name(root: Place) -> str:
    """Return the name of the folder for what is no result."""
    return f".{root.name}.work"


def beside(root: Path) -> Path:
    """Return that folder beside a folder on a disk."""
    return root.with_name(work_name(root))


class Storage(Protocol):
    """Bytes under names below one place. Names are parts joined by slashes; the empty one is the place itself."""

    @property
    def name(self) -> str:
        """What messages call the place."""
        ...

    @property
    def at_once(self) -> int:
        """How many calls are worth making at the same time."""
        ...

    def read(self, name: str) -> Content | None:
        """Return a file, or None where there is none."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a file in one step that a kill leaves done or not begun."""
        ...

    def replace(self, name: str, content: bytes, *, seen: Content | None) -> None:
        """As `put`, refusing where something else was seen there, if the storage can tell."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        ...

    def is_empty(self) -> bool:
        """Return whether nothing lies there, but what a killed write left."""
        ...

    def first_differing(self, folder: str, sizes: Mapping[str, int]) -> str | None:
        """Return the first file of a folder that is missing or has another size than this, or None."""
        ...

    def digest(self, name: str) -> str | None:
        """Return the hex SHA-256 of a file."""
        ...

    def times(self) -> dict[str, float]:
        """Return name -> time of change, in seconds since 1970, of the files that lie in the place itself."""
        ...

    def remove_all(self, folder: str) -> None:
        """Remove a folder and all that is below it."""
        ...


@dataclass(frozen=True, slots=True)
class FolderStorage:
    """A folder on a disk."""

    root: Path

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.name

    @property
    def at_once(self) -> int:
        """One: a disk answers at once."""
        return 1

    def read(self, name: str) -> Content | None:
        """Return a file, or None where there is none."""
        try:
            return Content(content=(self.root / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, content: bytes) -> None:
        """Write a file through a temporary one."""
        write_atomic(self.root / name, content)

    def replace(self, name: str, content: bytes, *, seen: Content | None) -> None:  # noqa: ARG002
        """As `put`: the lock of the store keeps others out."""
        write_atomic(self.root / name, content)

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        path = self.root / folder
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []

    def is_empty(self) -> bool:
        """Return whether nothing lies there, but what a killed write left."""
        return not self.root.is_dir() or all(path.name.endswith(".partial") for path in self.root.iterdir())

    def first_differing(self, folder: str, sizes: Mapping[str, int]) -> str | None:
        """Return the first file that is missing or has another size."""
        group = self.root / folder
        for name, size in sizes.items():
            file = group / name
            if not file.is_file() or file.stat().st_size != size:
                return name
        return None

    def digest(self, name: str) -> str | None:
        """Return the hex SHA-256 of a file."""
        return sha256_file(self.root / name)

    def times(self) -> dict[str, float]:
        """Return name -> time of change of the files and folders that lie here."""
        found = {}
        for path in sorted(self.root.glob("[!.]*")):
            try:
                found[path.name] = path.stat().st_mtime
            except FileNotFoundError:  # it was removed meanwhile
                continue
        return found

    def remove_all(self, folder: str) -> None:
        """Remove a folder and all that is below it."""
        path = self.root / folder
        if path.exists():
            shutil.rmtree(path)


def storage_of(place: Place) -> Storage:
    """Return what reads and writes at a place."""
    return place if isinstance(place, ObjectFolder) else FolderStorage(place)


def hold(root: Place) -> AbstractContextManager[None]:
    """Hold a store for one writing process; see `kconn.io.store.locked`."""
    if isinstance(root, ObjectFolder):
        return object_lock.hold(root.beside(work_name(root)), name=root.name)
    return _hold_folder(root)


@contextmanager
def _hold_folder(root: Path) -> Iterator[None]:
    folder = beside(root)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
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


def open_zarr(root: Place, folder: str, files: Iterable[str]) -> Any:
    """Return a sealed group of a store, with these files, as something that Zarr reads."""
    if isinstance(root, Path):
        from kconn.io.disk_zarr import DiskZarr  # noqa: PLC0415 - Zarr is not needed to read a study file

        return DiskZarr(root / folder, read_only=True)
    from kconn.io.object_zarr import ObjectZarr  # noqa: PLC0415 - Zarr is not needed to read a study file

    return ObjectZarr(root.below(folder), files)


def sweep(root: Place, folder: str) -> None:
    """Remove what killed writes left in a folder; on object storage they leave nothing."""
    if isinstance(root, Path):
        for stray in (root / folder).glob(".*.partial"):
            stray.unlink()


def free_bytes(root: Place) -> int | None:
    """Return the bytes free where a store is, or will be; None on object storage, which has no such limit."""
    if isinstance(root, ObjectFolder):
        return None
    path = root
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def is_remote(text: str) -> bool:
    """Return whether a place is written as one on object storage."""
    return text.startswith(SCHEME)


def find_place(path: str | Path) -> Place:
    """Return the place of a store, as a user names it.

    Raises
    ------
    StoreError
        ``E-STORE-MISSING`` if it is meant to be on object storage, and misspelt.
    """
    if not is_remote(str(path)):
        return Path(path)
    try:
        return parse_place(str(path))
    except ValueError as error:
        raise StoreError(
            "E-STORE-MISSING",
            "the place of the store is misspelt",
            rule=str(error),
            fix="correct it",
        ) from None


def work_folder(root: Place) -> Place:
    """Return the folder beside a store for what is no result: the lock, groups being filled, finished parts."""
    return root.beside(work_name(root)) if isinstance(root, ObjectFolder) else beside(root)


def below(place: Place, name: str) -> Place:
    """Return a folder below a place."""
    return place.below(name) if isinstance(place, ObjectFolder) else place / name
