"""A Zarr store on a prefix of a bucket, which every worker opens with its own credentials."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zarr.storage import ObjectStore, StorePath

from kconn.errors import StoreError
from kconn.io.objects import ObjectFolder

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class ObjectZarr(ObjectStore):  # type: ignore[type-arg]
    """Objects below a folder, as Zarr reads and writes them.

    Zarr takes a chunk that is not there for one that was never written, and returns fill values. With the files of a
    sealed group at hand, one of these that is missing is an error instead, and what the group holds is known without
    asking the storage.

    Parameters
    ----------
    folder
        The group.
    files
        Names of its files, where it is sealed; then it is read-only.
    """

    def __init__(self, folder: ObjectFolder, files: Iterable[str] | None = None) -> None:
        super().__init__(folder.open(), read_only=files is not None)
        self.folder = folder
        self.files = None if files is None else frozenset(files)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open bucket, and with it whatever it was opened with."""
        return {name: value for name, value in self.__dict__.items() if name != "store"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Open the bucket in the process that this was sent to."""
        self.__dict__.update(state)
        self.store = self.folder.open()

    def __eq__(self, other: object) -> bool:
        """Compare places."""
        return isinstance(other, ObjectZarr) and (other.folder, other.files) == (self.folder, self.files)

    def __hash__(self) -> int:
        """Agree with ``==``."""
        return hash((self.folder, self.files))

    def __str__(self) -> str:
        """``s3://bucket/prefix``."""
        return str(self.folder)

    def with_read_only(self, read_only: bool = False) -> ObjectZarr:  # noqa: FBT001, FBT002 - Zarr's signature
        """Return the same place; that of a sealed group stays read-only."""
        made = ObjectZarr(self.folder, self.files)
        made._read_only = read_only or self.files is not None
        return made

    def array(self, name: str) -> StorePath:
        """Return the place of an array of the group."""
        return StorePath(self, name)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object or a part of it; None where there is none."""
        if self.files is not None and key not in self.files:
            return None
        with self.folder.spoken():
            found = await super().get(self.folder.path(key), prototype, byte_range)
        if found is None and self.files is not None:
            raise StoreError(
                "E-STORE-CORRUPT",
                f"{key} is missing",
                rule="every file of a sealed group is there",
                fix="run the study again: the damaged group is made anew",
            )
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> builtins.list[Buffer | None]:
        """Read parts of objects."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        if self.files is not None:
            return key in self.files
        with self.folder.spoken():
            return bool(await super().exists(self.folder.path(key)))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        with self.folder.spoken():
            await super().set(self.folder.path(key), value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless there is one."""
        with self.folder.spoken():
            await super().set_if_not_exists(self.folder.path(key), value)

    async def delete(self, key: str) -> None:
        """Remove an object."""
        with self.folder.spoken():
            await super().delete(self.folder.path(key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove every object below a prefix."""
        self._check_writable()
        self.folder.remove_all(prefix.rstrip("/"))

    async def getsize(self, key: str) -> int:
        """Return the bytes of an object."""
        with self.folder.spoken():
            return int(await super().getsize(self.folder.path(key)))

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the bytes of all objects below a prefix."""
        return sum(self.folder.sizes(prefix.rstrip("/")).values())

    async def list(self) -> AsyncGenerator[str, None]:
        """Yield the name of every object."""
        for name in self._names(""):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the names of the objects that begin with a prefix."""
        for name in self._names(""):
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the names of what lies in a folder."""
        folder = prefix.rstrip("/")
        for name in sorted({name.split("/")[0] for name in self._names(folder)}):
            yield name

    def _names(self, folder: str) -> Iterable[str]:
        """Return the names, relative to a folder, of the objects below it."""
        if self.files is None:
            return self.folder.sizes(folder)
        inside = f"{folder}/" if folder else ""
        return sorted(name.removeprefix(inside) for name in self.files if name.startswith(inside))
