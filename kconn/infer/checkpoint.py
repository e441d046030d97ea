"""Finished ranges of relabellings, kept so that a test that was killed goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kconn.kernels.tallies import TAILS, Tally

#: Ends the names of what a reader of the progress needs of a range: its maxima, few bytes beside the counts.
SEEN: Final = "-seen"
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where finished ranges are kept: two functions that can be sent to worker processes.

    Attributes
    ----------
    load
        Takes a name and returns the arrays kept under it, or None where there are none or they are damaged.
    save
        Takes a name and arrays, and keeps them in one step: a kill leaves all of them or none.
    """

    load: Callable[[str], Arrays | None]
    save: Callable[[str, Arrays], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The ranges of one test in a checkpoint.

    Attributes
    ----------
    checkpoint
        Where they are.
    fingerprint
        Digest of all that they depend on.
    n_perm
        Relabellings of the whole test, the identity counted as one.
    n_feature
        Features.
    identity
        ``(n_tail,)``, what ``max_stat`` shows for the identity.
    to_stat
        Turns the compared statistic into what ``max_stat`` shows.
    name
        Of the contrast.
    part
        Which of the features are tested, in words; empty for all.
    """

    checkpoint: Checkpoint
    fingerprint: str
    n_perm: int
    n_feature: int
    identity: npt.NDArray[np.float64]
    to_stat: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    name: str
    part: str = ""

    def load(self, start: int, stop: int) -> Tally | None:
        """Return what rows ``start`` to ``stop`` of the table found, or None where that is not kept."""
        arrays = self.checkpoint.load(self._name_of(start, stop))
        if arrays is None:
            return None
        tally = Tally(highest=arrays["highest"], counts=arrays["counts"].astype(np.int64))
        whole = tally.highest.shape == (len(TAILS), stop - start) and tally.counts.shape == (len(TAILS), self.n_feature)
        return tally if whole else None

    def save(self, start: int, stop: int, tally: Tally) -> None:
        """Keep what rows ``start`` to ``stop`` of the table found."""
        name = self._name_of(start, stop)
        counts = tally.counts.astype(np.min_scalar_type(stop - start))
        self.checkpoint.save(name, {"highest": tally.highest, "counts": counts})
        seen = {
            "max_stat": self.to_stat(tally.highest),
            "identity": self.identity,
            "n_perm": np.array(self.n_perm),
            "name": np.array(self.name),
            "part": np.array(self.part),
        }
        self.checkpoint.save(name + SEEN, seen)

    def _name_of(self, start: int, stop: int) -> str:
        return f"{self.fingerprint[:32]}-{start:09d}-{stop:09d}"


def fingerprint(*parts: object) -> str:
    """Return one SHA-256 over arrays, records of arrays and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest: Any, part: object) -> None:
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    elif is_dataclass(part) and not isinstance(part, type):
        digest.update(type(part).__name__.encode())
        for field in fields(part):
            digest.update(field.name.encode())
            _update(digest, getattr(part, field.name))
    else:
        digest.update(repr(part).encode())
