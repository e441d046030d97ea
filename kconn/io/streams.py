"""Files as one sequential pass of bytes, plain or gzip, read to the very end and checked there."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from isal import igzip, igzip_lib

from kconn.chunks import MIB
from kconn.errors import InputError

#: Deflate cannot expand more than 1032 times (RFC 1951: 258 bytes from two bits); the rest is room for headers.
MAX_EXPANSION: Final = 1100
#: Small enough to stay in the cache between inflating and copying.
_PIECE: Final = MIB // 4
_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_RESERVED_FLAGS: Final = 0xE0
_DAMAGE: Final[tuple[Any, ...]] = (OSError, EOFError, zlib.error, igzip_lib.IsalError)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteStream:
    """The bytes of one file after decompression; made by `open_stream`.

    Errors name the place and the kind of file, never its path: paths and file names may identify a person.
    """

    file: _Readable
    size_on_disk: int
    is_gzip: bool
    where: str
    what: str

    def fill(self, view: memoryview) -> int:
        """Read until ``view`` (bytes) is full or the stream ends; return how many bytes came.

        Raises
        ------
        InputError
            ``E-GZIP`` if the compressed stream is damaged or cut, ``E-FILE-MISSING`` if the disk fails.
        """
        n_done = 0
        while n_done < len(view):
            piece = self._read(min(_PIECE, len(view) - n_done))
            if not piece:
                break
            view[n_done : n_done + len(piece)] = piece
            n_done += len(piece)
        return n_done

    def read_up_to(self, n_bytes: int) -> bytes:
        """Return at most ``n_bytes``, fewer only at the end of the stream."""
        pieces: list[bytes] = []
        while n_bytes and (piece := self._read(min(_PIECE, n_bytes))):
            pieces.append(piece)
            n_bytes -= len(piece)
        return b"".join(pieces)

    def skip(self, n_bytes: int) -> int:
        """Read and drop at most ``n_bytes``; return how many bytes came.

        Fewer came only at the end of the stream, where gzip's CRC and length were checked.
        """
        n_done = 0
        while n_done < n_bytes:
            piece = self._read(min(_PIECE, n_bytes - n_done))
            if not piece:
                break
            n_done += len(piece)
        return n_done

    def _read(self, n_bytes: int) -> bytes:
        try:
            return self.file.read(n_bytes)
        except _DAMAGE as exc:
            if not self.is_gzip:
                raise InputError(
                    "E-FILE-MISSING",
                    f"the {self.what} cannot be read: {_reason(exc)}",
                    where=self.where,
                    rule="every input file must be readable to its end",
                    fix="check the disk and the permissions",
                ) from None
            raise InputError(
                "E-GZIP",
                f"the compressed {self.what} is damaged or cut: {_reason(exc)}",
                where=self.where,
                rule="a gzip file must decompress to its end with matching checksum and length",
                fix="copy the file again from its source and compare checksums; `gzip -t FILE` must pass",
            ) from None


@contextmanager
def open_stream(path: Path, *, where: str, what: str) -> Iterator[ByteStream]:
    """Open a regular file, by its content as gzip or plain.

    Parameters
    ----------
    path
        The file.
    where
        Place for errors, as ``sub-01/ses-1/run-1``.
    what
        Kind of file for errors, as ``BOLD image``.

    Raises
    ------
    InputError
        ``E-FILE-MISSING`` if it is no readable regular file, ``E-GZIP`` if name and content disagree about
        compression or the gzip header is malformed.
    """
    size = _regular_size(path, where=where, what=what)
    try:
        file = path.open("rb", buffering=0)
    except OSError as exc:
        raise _missing(_reason(exc), where=where, what=what) from None
    with file:
        start = file.read(4)
        file.seek(0)
        is_gzip = start[:2] == _GZIP_MAGIC
        if is_gzip != path.name.endswith(".gz") or (is_gzip and _is_malformed(start)):
            raise InputError(
                "E-GZIP",
                f"the {what} has a name for a {'plain' if is_gzip else 'gzip'} file, but "
                f"its first bytes are {start.hex(' ') or 'absent'}",
                where=where,
                rule="a name ends in .gz if and only if the content is a gzip stream (first bytes 1f 8b 08)",
                fix="rename the file, or copy it again from its source",
            )
        if is_gzip:
            inflated: Any = igzip.IGzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call] # isal has no types
            with inflated:
                yield ByteStream(file=inflated, size_on_disk=size, is_gzip=True, where=where, what=what)
        else:
            yield ByteStream(file=file, size_on_disk=size, is_gzip=False, where=where, what=what)


def check_content_size(path: Path, n_bytes: int, *, n_spare: int, where: str, what: str) -> int:
    """Return by how many bytes, up to ``n_spare``, a file exceeds ``n_bytes`` after decompression; refuse others.

    Costs one look at the file's end. Only if the length stored there disagrees (a damaged file, or one of several
    gzip members) is the stream decompressed to count.

    Raises
    ------
    InputError
        ``E-NIFTI-SIZE`` for another length, ``E-GZIP`` for a damaged stream.
    """
    with open_stream(path, where=where, what=what) as stream:
        if not stream.is_gzip:
            n_found = stream.size_on_disk
        elif n_bytes > stream.size_on_disk * MAX_EXPANSION:
            n_found = stream.size_on_disk * MAX_EXPANSION  # at most: a header that claims more is no honest one
        elif _stored_length(path) == n_bytes % 2**32:
            n_found = n_bytes
        else:
            n_found = stream.skip(n_bytes + n_spare + 1)
    if 0 <= n_found - n_bytes <= n_spare:
        return n_found - n_bytes
    raise InputError(
        "E-NIFTI-SIZE",
        f"the header of the {what} claims {n_bytes} bytes, the file holds "
        f"{'at most ' if n_found < n_bytes else 'at least '}{n_found}",
        where=where,
        rule=f"it must hold what the header claims, and at most {n_spare} bytes more",
        fix="copy or export the file again from its source",
    )


def _stored_length(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def _is_malformed(start: bytes) -> bool:
    return len(start) < 4 or start[2] != zlib.DEFLATED or bool(start[3] & _GZIP_RESERVED_FLAGS)


def _regular_size(path: Path, *, where: str, what: str) -> int:
    try:
        status = path.stat()
    except (OSError, ValueError) as exc:
        raise _missing(_reason(exc), where=where, what=what) from None
    if not stat.S_ISREG(status.st_mode):
        raise _missing("it is a directory or a device", where=where, what=what)
    return status.st_size


def _missing(reason: str, *, where: str, what: str) -> InputError:
    return InputError(
        "E-FILE-MISSING",
        f"the {what} cannot be opened: {reason}",
        where=where,
        rule="every input must be a regular file that can be read",
        fix="check the path and the permissions; in a DataLad dataset fetch the content first (`datalad get`)",
    )


def _reason(exc: BaseException) -> str:
    # The text of an OSError holds the path; `strerror` does not.
    return exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
