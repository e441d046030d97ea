"""A Zarr store on a disk that reads and writes small files at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from zarr.storage import LocalStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

#: Bytes up to which handing a file to a thread takes longer than reading it.
_SMALL: Final = 1 << 16


class DiskZarr(LocalStore):
    """A folder, as Zarr reads and writes it.

    Zarr hands each file to a thread and waits for it. A group of a study is some dozens of files of a few hundred
    bytes: these are read and written on the spot; chunks of voxels still go to threads, many at a time.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file or a part of it; None where there is none."""
        try:
            is_small = os.stat(self.root / key).st_size <= _SMALL  # noqa: PTH116 - half the time of Path.stat
        except (FileNotFoundError, NotADirectoryError):
            return None
        if is_small:
            return self.get_sync(key, prototype=prototype, byte_range=byte_range)
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        if len(value) <= _SMALL:
            self.set_sync(key, value)
        else:
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file unless there is one."""
        if not (self.root / key).exists():
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        """Return whether there is such a file."""
        return (self.root / key).is_file()
