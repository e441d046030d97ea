"""A group while it is made: laid out, filled, and noted part by part, so that a killed attempt leaves finished ones.

On a disk it is a folder beside the store, moved to its name at the end. Object storage cannot rename: there it is
written where it stays, under a name that no other attempt has and that nothing points at yet. An object beside the
store, the claim, says which attempt at a result is the one that counts.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from kconn.errors import StoreError
from kconn.io.files import canonical_json, sha256_file, sync_directory
from kconn.io.objects import ObjectFolder

JOURNAL: Final = "journal.jsonl"
#: Objects that are read back at the same time.
_AT_ONCE: Final = 8


class Staging(Protocol):
    """A group that is being made."""

    def begin(self) -> None:
        """Start with nothing, whatever an earlier attempt left."""
        ...

    def group(self) -> Any:
        """Return the group as something that Zarr writes to."""
        ...

    def array(self, name: str) -> Any:
        """Return one of its arrays as something that Zarr writes to."""
        ...

    def is_laid_out(self) -> bool:
        """Return whether an earlier attempt got as far as filling it part by part."""
        ...

    def read_journal(self) -> set[int]:
        """Return the parts whose files are all there with the digests in the journal; from now on it is laid out."""
        ...

    def write_journal(self, start: int, names: Iterable[str]) -> None:
        """Note that a part, named by a number, is finished: its files with their digests."""
        ...

    def close(self) -> dict[str, tuple[int, str]]:
        """End the making and return name -> (size, SHA-256) of every file."""
        ...

    def publish(self) -> str:
        """Put the group where a pointer may point, and return the name of its folder."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStaging:
    """A folder on the disk of the store.

    Attributes
    ----------
    path
        The folder.
    final
        What it is renamed to.
    """

    path: Path
    final: Path

    def begin(self) -> None:
        """Start with nothing."""
        shutil.rmtree(self.path, ignore_errors=True)

    def group(self) -> Any:
        """Return the group as something that Zarr writes to."""
        from kconn.io.disk_zarr import DiskZarr  # noqa: PLC0415 - Zarr is not needed to read a study file

        return DiskZarr(self.path)

    def array(self, name: str) -> Any:
        """Return one of its arrays as something that Zarr writes to."""
        return self.path / name

    def is_laid_out(self) -> bool:
        """Return whether an earlier attempt got as far as filling it; then go on with that one."""
        return (self.path / JOURNAL).exists()

    def read_journal(self) -> set[int]:
        """Return the parts that are finished."""
        journal = self.path / JOURNAL
        if not journal.exists():
            journal.touch()
            return set()
        entries = []
        for line in journal.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:  # the line that the kill cut
                break
        return _finished(entries, self._digest)

    def write_journal(self, start: int, names: Iterable[str]) -> None:
        """Note that a part is finished."""
        entry = {"start": start, "files": {name: sha256_file(self.path / name) for name in names}}
        with (self.path / JOURNAL).open("a") as journal:
            journal.write(json.dumps(entry) + "\n")

    def close(self) -> dict[str, tuple[int, str]]:
        """Digest every file."""
        for stray in [*self.path.rglob("*.partial"), self.path / JOURNAL]:
            stray.unlink(missing_ok=True)
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): (path.stat().st_size, sha256_file(path)) for path in files}

    def publish(self) -> str:
        """Return the name of its folder, once it is where a pointer may point."""
        if self.final.exists():  # an earlier group of the same key that lost its seal or its health
            shutil.rmtree(self.final)
        self.path.rename(self.final)
        sync_directory(self.final.parent)
        return self.final.name

    def _digest(self, name: str) -> str | None:
        path = self.path / name
        return sha256_file(path) if path.is_file() else None


class ObjectStaging:
    """A prefix of the store that no other attempt writes to.

    Parameters
    ----------
    root
        The store.
    work
        The folder beside it.
    step
        Path of the step in the store.
    key
        Content key of the group.
    """

    def __init__(self, root: ObjectFolder, work: ObjectFolder, *, step: str, key: str) -> None:
        self._root = root
        self._claims = work.below("staging")
        self._claim = f"{step.replace('/', '.')}.{key}"
        self._journal = f"{self._claim}.journal"
        self._step = step
        self._key = key
        self._attempt: str | None = None

    def begin(self) -> None:
        """Start with nothing."""
        self._attempt = uuid.uuid4().hex[:12]
        self._write_claim(laid_out=False)
        self._claims.remove_all(self._journal)

    def group(self) -> Any:
        """Return the group as something that Zarr writes to."""
        from kconn.io.object_zarr import ObjectZarr  # noqa: PLC0415 - Zarr is not needed to read a study file

        return ObjectZarr(self._prefix())

    def array(self, name: str) -> Any:
        """Return one of its arrays as something that Zarr writes to."""
        return self.group().array(name)

    def is_laid_out(self) -> bool:
        """Return whether an earlier attempt got as far as filling it; then go on with that one."""
        claim = self._read_claim()
        if not claim.get("laid_out"):
            return False
        self._attempt = str(claim["attempt"])
        return True

    def read_journal(self) -> set[int]:
        """Return the parts that are finished."""
        if not self._read_claim().get("laid_out"):
            self._write_claim(laid_out=True)
            return set()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(
                self._claims.read, (f"{self._journal}/{name}" for name in self._claims.sizes(self._journal))
            )
            return _finished([json.loads(entry.content) for entry in found if entry is not None], self._prefix().digest)

    def write_journal(self, start: int, names: Iterable[str]) -> None:
        """Note that a part is finished."""
        entry = {"start": start, "files": {name: self._prefix().digest(name) for name in names}}
        self._claims.put(f"{self._journal}/{start}", json.dumps(entry).encode())

    def close(self) -> dict[str, tuple[int, str]]:
        """Read every object back and give the claim up.

        The claim is looked at after the objects were listed: whoever sweeps up after others takes the claim first, so
        a list made while it stood is whole.
        """
        prefix = self._prefix()
        sizes = dict(sorted(prefix.sizes().items()))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            digests = dict(zip(sizes, pool.map(prefix.digest, sizes), strict=True))
        files = {name: (sizes[name], digest) for name, digest in digests.items() if digest is not None}
        if self._read_claim().get("attempt") != self._attempt or len(files) < len(sizes):
            raise StoreError(
                "E-STORE-LOST",
                "another process took over what this one was writing",
                rule="one attempt at a result counts, the last that began",
                fix="let one run at a time write to the store, and run again: finished steps are kept",
            )
        self._claims.remove([self._claim])
        self._claims.remove_all(self._journal)
        return files

    def publish(self) -> str:
        """Return the name of its folder, once it is where a pointer may point."""
        return f"{self._key}-{self._attempt}"

    def _prefix(self) -> ObjectFolder:
        return self._root.below(f"{self._step}/{self.publish()}")

    def _read_claim(self) -> dict[str, Any]:
        found = self._claims.read(self._claim)
        try:
            claim = {} if found is None else json.loads(found.content)
        except ValueError:
            return {}
        return claim if isinstance(claim, dict) else {}

    def _write_claim(self, *, laid_out: bool) -> None:
        self._claims.put(self._claim, canonical_json({"attempt": self._attempt, "laid_out": laid_out}))


def _finished(entries: Iterable[Mapping[str, Any]], digest: Callable[[str], str | None]) -> set[int]:
    """Return the parts of a journal whose files are all there with their digests."""
    return {
        int(entry["start"])
        for entry in entries
        if all(digest(name) == expected for name, expected in entry["files"].items())
    }
