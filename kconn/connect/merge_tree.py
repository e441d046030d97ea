"""Which runs are merged with which: a tree that a new run changes along one path only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """One node of the tree.

    Attributes
    ----------
    name
        ``all`` for the root, else the digits that the digests of all runs below begin with.
    parts
        Names of runs, or of merges before this one.
    """

    name: str
    parts: tuple[str, ...]


def plan_merges(runs: Iterable[str]) -> list[Merge]:
    """Return the merges that join all runs, each after those it needs; the last is the root.

    A run has its place by the digest of its name, two bits per level. So the tree does not depend on the order of
    runs, and one run more or less changes only the merges above it: about log4 of the number of runs.

    Parameters
    ----------
    runs
        Names, such as ``sub-01/ses-1/run-1``. Of fewer than two there is no merge.
    """
    placed = sorted((_digits(run), run) for run in runs)
    return list(_merge(placed, "")) if len(placed) > 1 else []


def _merge(placed: list[tuple[str, str]], prefix: str) -> Iterator[Merge]:
    depth = len(prefix)
    while len({digits[depth] for digits, _ in placed}) == 1:  # all go the same way: no merge at this level
        depth += 1
    parts = []
    for digit in "0123":
        below = [(digits, run) for digits, run in placed if digits[depth] == digit]
        if len(below) == 1:
            parts.append(below[0][1])
        elif below:
            merges = list(_merge(below, below[0][0][: depth + 1]))
            yield from merges
            parts.append(merges[-1].name)
    yield Merge(name=prefix or "all", parts=tuple(parts))


def _digits(run: str) -> str:
    """Return the digest of a name in base 4."""
    return "".join(str(byte >> shift & 3) for byte in sha256(run.encode()).digest() for shift in (6, 4, 2, 0))
