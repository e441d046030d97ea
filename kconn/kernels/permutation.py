"""Relabellings: which there are, how many differ, and which are drawn from a seed.

A relabelling of ``n_obs`` observations is a permutation and, where errors are symmetric, a vector of signs:
``(P v)[i] = sign[i] * v[permutation[i]]``. Row 0 of every table is the identity.

Draw ``i`` reads words ``i * n_keys`` to ``(i + 1) * n_keys`` of one counter-based stream keyed by the seed, so the
first 1,000 rows of a table of 5,000 are the table of 1,000.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import factorial, prod
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kconn.errors import DesignError

IntArray = npt.NDArray[np.integer]
Kind = Literal["permutations", "sign-flips", "both"]

#: Relabellings looked at together at most,
MOST_AT_ONCE: Final = 4096
#: and their elements, of 8 bytes: of many observations fewer relabellings are looked at together.
ELEMENTS_AT_ONCE: Final = 1 << 22
#: Draws without a single new relabelling after which the search gives up (never seen: exhaustion is counted first).
MAX_IDLE_DRAWS: Final = 1000 * MOST_AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A node of the exchangeability tree: its parts may be exchanged with each other, or keep their places.

    A part is another block or the position of an observation.
    """

    exchangeable: bool
    parts: tuple[Block | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffling:
    """A table of relabellings, identity first.

    ``permutations`` is int32 ``(n_perm, n_obs)``; ``signs`` is int8 of the same shape, or None without sign flips;
    ``n_distinct`` counts the relabellings that exist, ``exhaustive`` tells that the table holds them all.
    """

    permutations: npt.NDArray[np.int32]
    signs: npt.NDArray[np.int8] | None
    n_distinct: int
    exhaustive: bool

    @property
    def n_perm(self) -> int:
        """Number of rows, the identity included."""
        return int(self.permutations.shape[0])

    @property
    def sha256(self) -> str:
        """Digest of the table: permutations as little-endian int32, then signs as int8, row by row."""
        digest = hashlib.sha256(np.ascontiguousarray(self.permutations, dtype="<i4").tobytes())
        if self.signs is not None:
            digest.update(np.ascontiguousarray(self.signs, dtype=np.int8).tobytes())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> Relabelling:
        """Return rows ``start`` to ``stop``: what one task needs."""
        signs = None if self.signs is None else self.signs[start:stop]
        return Relabelling(permutations=self.permutations[start:stop], signs=signs)

    def restrict(self, observed: npt.NDArray[np.bool_]) -> Shuffling:
        """Return the sign flips of some observations: a table that permutes cannot be cut.

        Parameters
        ----------
        observed
            ``(n_obs,)``.
        """
        n_obs = int(observed.sum())
        return Shuffling(
            permutations=np.broadcast_to(np.arange(n_obs, dtype=np.int32), (self.n_perm, n_obs)),
            signs=None if self.signs is None else np.ascontiguousarray(self.signs[:, observed]),
            n_distinct=self.n_distinct,
            exhaustive=self.exhaustive,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelling:
    """Some rows of a table: ``permutations (n, n_obs)`` and ``signs`` of the same shape, or None."""

    permutations: npt.NDArray[np.int32]
    signs: npt.NDArray[np.int8] | None

    def apply(self, vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return ``P v`` for each row and each column v of ``(n_obs, k)``: ``(k, n, n_obs)``."""
        out = np.ascontiguousarray(vectors.T)[:, self.permutations]
        return out if self.signs is None else out * self.signs


def free_exchange(n_obs: int) -> Block:
    """Return the tree in which every observation may take the place of every other."""
    return Block(exchangeable=True, parts=tuple(range(n_obs)))


def exchange_tree(blocks: IntArray) -> Block:
    """Return the exchangeability tree of a vector or a multi-level table of block labels.

    Parameters
    ----------
    blocks
        ``(n_obs,)``: labels of one sign. Positive labels: observations are exchanged within their block. Negative
        labels: blocks are exchanged as wholes, the order within each block is kept.
        ``(n_obs, n_level)``: PALM's table, outermost level first. The parts of a block (the blocks of the next column
        inside it, or its observations after the last column) may be exchanged if its label is positive, keep their
        places if it is negative.

    Raises
    ------
    DesignError
        Code ``E-BLOCKS``: labels are zero, a vector mixes signs, a block has two signs, or blocks that would be
        exchanged have different shapes.

    References
    ----------
    Winkler et al. 2015, Multi-level block permutation, doi:10.1016/j.neuroimage.2015.05.092
    """
    table = np.asarray(blocks)
    if table.dtype.kind not in "iu" or table.ndim not in (1, 2) or (table == 0).any():
        raise DesignError(
            "E-BLOCKS",
            f"exchangeability blocks have dtype {table.dtype}, {table.ndim} dimension(s) or a label 0",
            rule="labels are non-zero integers, one row per observation",
            fix="number the blocks from 1",
        )
    if table.ndim == 1:
        if (table > 0).any() and (table < 0).any():
            raise DesignError(
                "E-BLOCKS",
                "the vector of exchangeability blocks mixes positive and negative labels",
                rule="positive labels exchange within blocks, negative ones exchange whole blocks",
                fix="use labels of one sign, or a multi-level table",
            )
        outermost = np.full(table.shape, -1 if table[0] > 0 else 1)
        table = np.column_stack([outermost, table])
    roots = _split(table, np.arange(table.shape[0]), 0)
    # Several outermost blocks stay where they are, as if inside one more block with a negative label.
    return roots[0] if len(roots) == 1 else Block(exchangeable=False, parts=tuple(roots))


def _split(table: IntArray, rows: IntArray, level: int) -> list[Block]:
    labels = table[rows, level]
    found = []
    for label in dict.fromkeys(np.abs(labels).tolist()):
        inside = rows[np.abs(labels) == label]
        signs = np.unique(np.sign(table[inside, level]))
        if signs.size > 1:
            raise DesignError(
                "E-BLOCKS",
                f"block {label} of level {level + 1} has a positive and a negative label",
                rule="a block is either exchangeable inside or not",
                fix="give it one sign",
            )
        last = level + 1 == table.shape[1]
        parts: tuple[Block | int, ...] = tuple(inside.tolist()) if last else tuple(_split(table, inside, level + 1))
        exchangeable = bool(signs[0] > 0)
        if exchangeable and len({_shape(part) for part in parts}) > 1:
            raise DesignError(
                "E-BLOCKS",
                f"the parts of block {label} of level {level + 1} have sizes {[_size(part) for part in parts][:8]}",
                rule="blocks that are exchanged as wholes have the same size and the same inner structure",
                fix="make this block's label negative, or balance the blocks",
            )
        found.append(Block(exchangeable=exchangeable, parts=parts))
    return found


def _shape(part: Block | int) -> tuple[object, ...]:
    return () if isinstance(part, int) else (part.exchangeable, *map(_shape, part.parts))


def _size(part: Block | int) -> int:
    return 1 if isinstance(part, int) else sum(map(_size, part.parts))


def _leaves(part: Block | int) -> list[int]:
    return [part] if isinstance(part, int) else [leaf for inner in part.parts for leaf in _leaves(inner)]


def restrict_tree(tree: Block, observed: npt.NDArray[np.bool_]) -> Block:
    """Return the exchanges that keep the observed and the missing observations apart.

    Positions count the observed ones. Of blocks that were exchanged as wholes, those with the same places observed
    still are.

    Parameters
    ----------
    tree
        The exchanges of all observations.
    observed
        ``(n_obs,)``, at least one true.
    """
    place = np.where(observed, np.cumsum(observed) - 1, -1)
    kept = _prune(tree, place)[0]
    return kept if isinstance(kept, Block) else Block(exchangeable=False, parts=(0,))


def _prune(part: Block | int, place: IntArray) -> tuple[Block | int | None, object]:
    """Return what is observed of a part, and a key that is equal for parts with the same places observed."""
    if isinstance(part, int):
        return (int(place[part]), "observed") if place[part] >= 0 else (None, "missing")
    pruned = [_prune(child, place) for child in part.parts]
    kept = [(child, key) for child, key in pruned if child is not None]
    if not kept:
        return None, "missing"
    if not part.exchangeable:
        return Block(exchangeable=False, parts=tuple(child for child, _ in kept)), tuple(key for _, key in pruned)
    alike: dict[str, list[Block | int]] = {}
    for child, key in sorted(kept, key=lambda one: repr(one[1])):
        alike.setdefault(repr(key), []).append(child)
    sets = [Block(exchangeable=True, parts=tuple(children)) for children in alike.values()]
    key = ("exchanged", tuple((name, len(children)) for name, children in alike.items()))
    return (sets[0] if len(sets) == 1 else Block(exchangeable=False, parts=tuple(sets))), key


def label_rows(columns: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Return one integer per row of ``(n_obs, k)``: equal rows get equal integers."""
    if columns.shape[1] == 0:
        return np.zeros(columns.shape[0], dtype=np.intp)
    # Adding 0.0 makes -0.0 and 0.0 one label.
    _, inverse = np.unique(columns + 0.0, axis=0, return_inverse=True)
    return np.asarray(inverse, dtype=np.intp).reshape(-1)


def count_permutations(tree: Block, labels: IntArray) -> int:
    """Return how many different label sequences the exchanges of ``tree`` can make."""
    return _count(tree, labels, {})[1]


def _count(part: Block | int, labels: IntArray, seen: dict[object, int]) -> tuple[int, int]:
    """Return the class of a part (equal for parts that can make the same sequences) and how many it can make."""
    if isinstance(part, int):
        return _class_of(("leaf", int(labels[part])), seen), 1
    inner = [_count(child, labels, seen) for child in part.parts]
    classes = [found for found, _ in inner]
    n_inner = prod(n for _, n in inner)
    if not part.exchangeable:
        return _class_of((False, *classes), seen), n_inner
    n_orders = factorial(len(classes)) // prod(factorial(n) for n in Counter(classes).values())
    return _class_of((True, *sorted(classes)), seen), n_orders * n_inner


def _class_of(key: object, seen: dict[object, int]) -> int:
    return seen.setdefault(key, len(seen))


def flip_units(tree: Block) -> list[list[int]]:
    """Return the sets of observations that change sign together.

    An observation changes sign alone where it may be exchanged alone; a block whose inside keeps its order changes
    sign as one; what may not move at all keeps its sign.
    """
    if not any(isinstance(part, Block) and _moves(part) for part in tree.parts):
        return [_leaves(part) for part in tree.parts] if tree.exchangeable else []
    units: list[list[int]] = []
    for part in tree.parts:
        if isinstance(part, Block) and _moves(part):
            units.extend(flip_units(part))
        elif tree.exchangeable:
            units.append(_leaves(part))
    return units


def _moves(part: Block | int) -> bool:
    return isinstance(part, Block) and (part.exchangeable or any(map(_moves, part.parts)))


def plan_shuffling(
    labels: IntArray, *, n_perm: int, seed: int, tree: Block | None = None, kind: Kind = "permutations"
) -> Shuffling:
    """Return ``n_perm`` distinct relabellings, or all of them when there are no more than ``n_perm``.

    Parameters
    ----------
    labels
        ``(n_obs,)`` integers, equal where the tested columns of the design are equal: two permutations that give the
        same sequence of labels count as one.
    n_perm
        Rows wanted, the identity included.
    seed
        Key of the random stream.
    tree
        Which exchanges are allowed; None allows all.
    kind
        Permutations, sign flips or both.

    Raises
    ------
    DesignError
        Code ``E-PERMUTATIONS`` if there is only the identity, or ``n_perm`` is below 2.
    """
    labels = np.asarray(labels)
    tree = free_exchange(labels.size) if tree is None else tree
    units = [] if kind == "permutations" else flip_units(tree)
    n_distinct = (1 if kind == "sign-flips" else count_permutations(tree, labels)) * 2 ** len(units)
    if n_distinct < 2 or n_perm < 2:
        raise DesignError(
            "E-PERMUTATIONS",
            f"{n_distinct} distinct relabelling(s) for n_perm={n_perm}",
            rule="a test needs at least two relabellings, and n_perm counts the identity",
            fix="check the exchangeability blocks and the tested columns; a mean is tested with sign flips",
        )
    if n_distinct <= n_perm:
        return _enumerate_shuffling(tree, labels, units, kind, n_distinct)
    return _draw_shuffling(tree, labels, units, kind, n_perm, seed, n_distinct)


def _enumerate_shuffling(
    tree: Block, labels: IntArray, units: list[list[int]], kind: Kind, n_distinct: int
) -> Shuffling:
    n_obs = labels.size
    permutations = np.arange(n_obs, dtype=np.int32)[None]
    if kind != "sign-flips":
        permutations = np.empty((n_distinct // 2 ** len(units), n_obs), dtype=np.int32)
        permutations[:, _leaves(tree)] = _enumerate(tree, labels)
    signs = None
    if kind != "permutations":
        n_flips = 2 ** len(units)
        flips = np.ones((n_flips, n_obs), dtype=np.int8)
        for i_unit, unit in enumerate(units):
            flips[np.ix_((np.arange(n_flips) >> i_unit) & 1 == 1, unit)] = -1
        signs = np.tile(flips, (len(permutations), 1))
        permutations = np.repeat(permutations, n_flips, axis=0)
    return Shuffling(permutations=permutations, signs=signs, n_distinct=n_distinct, exhaustive=True)


def _enumerate(part: Block | int, labels: IntArray) -> npt.NDArray[np.int32]:
    """Return one row of sources per distinct sequence of a part, in the order of its leaves, identity first."""
    if isinstance(part, int):
        return np.array([[part]], dtype=np.int32)
    inner = [_enumerate(child, labels) for child in part.parts]
    seen: dict[object, int] = {}
    classes = [_count(child, labels, seen)[0] for child in part.parts]
    members: dict[int, list[int]] = {}
    for i_part, found in enumerate(classes):
        members.setdefault(found, []).append(i_part)
    rows = []
    for arrangement in distinct_orders(classes) if part.exchangeable else [classes]:
        left = {found: iter(parts) for found, parts in members.items()}
        order = [next(left[found]) for found in arrangement]
        rows.append(_cross([inner[i_part] for i_part in order]))
    return np.concatenate(rows)


def _cross(tables: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Return every combination of one row from each table, side by side."""
    if all(len(table) == 1 for table in tables):
        return np.concatenate(tables, axis=1)
    choices = product(*(range(len(table)) for table in tables))
    return np.array([np.concatenate([table[i] for table, i in zip(tables, chosen, strict=True)]) for chosen in choices])


def distinct_orders(items: Sequence[int]) -> Iterator[list[int]]:
    """Yield every distinct order of a multiset once: the given order first, the others in lexicographic order."""
    yield list(items)
    order = sorted(items)
    while True:
        if order != list(items):
            yield list(order)
        # Next permutation in lexicographic order (Narayana Pandita).
        pivot = len(order) - 2
        while pivot >= 0 and order[pivot] >= order[pivot + 1]:
            pivot -= 1
        if pivot < 0:
            return
        swap = len(order) - 1
        while order[swap] <= order[pivot]:
            swap -= 1
        order[pivot], order[swap] = order[swap], order[pivot]
        order[pivot + 1 :] = reversed(order[pivot + 1 :])


def _draw_shuffling(
    tree: Block, labels: IntArray, units: list[list[int]], kind: Kind, n_perm: int, seed: int, n_distinct: int
) -> Shuffling:
    n_obs = labels.size
    n_swaps = 0 if kind == "sign-flips" else _n_keys(tree)
    stream = np.random.Philox(np.random.SeedSequence(seed))
    identity = np.arange(n_obs, dtype=np.int32)[None]
    seen = {_key(labels, identity, np.ones((1, n_obs), dtype=np.int8))[0]}
    permutations, signs = [identity], [np.ones((1, n_obs), dtype=np.int8)]
    n_idle = 0
    n_draw = _rows_at_once(n_obs)
    while len(seen) < n_perm:
        keys = stream.random_raw(n_draw * (n_swaps + len(units))).reshape(n_draw, -1)
        drawn = np.tile(identity, (n_draw, 1))
        if n_swaps:
            drawn[:, _leaves(tree)] = _draw(tree, keys[:, :n_swaps])
        flips = np.ones((n_draw, n_obs), dtype=np.int8)
        for i_unit, unit in enumerate(units):
            flips[np.ix_(keys[:, n_swaps + i_unit] >> np.uint64(63) == 1, unit)] = -1
        fresh = []
        for i_draw, key in enumerate(_key(labels, drawn, flips)):
            if len(seen) < n_perm and key not in seen:
                seen.add(key)
                fresh.append(i_draw)
        permutations.append(drawn[fresh])
        signs.append(flips[fresh])
        n_idle = 0 if fresh else n_idle + n_draw
        if n_idle > MAX_IDLE_DRAWS:
            raise DesignError("E-PERMUTATIONS", f"only {len(seen)} of {n_perm} distinct relabellings were found")
    return Shuffling(
        permutations=np.concatenate(permutations),
        signs=None if kind == "permutations" else np.concatenate(signs),
        n_distinct=n_distinct,
        exhaustive=False,
    )


def _rows_at_once(n_obs: int) -> int:
    """Return how many relabellings are looked at together: they change no result, only the memory."""
    return max(1, min(MOST_AT_ONCE, ELEMENTS_AT_ONCE // n_obs))


def _key(labels: IntArray, permutations: IntArray, signs: npt.NDArray[np.int8]) -> list[bytes]:
    # Sixteen bytes of a row's digest: a clash among a million rows has probability 1e-27.
    relabelled = np.ascontiguousarray(labels.astype("<i4")[permutations])
    rows = np.concatenate([relabelled.view(np.int8), signs], axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _n_keys(part: Block | int) -> int:
    if isinstance(part, int):
        return 0
    return (len(part.parts) if part.exchangeable else 0) + sum(map(_n_keys, part.parts))


def _draw(part: Block | int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Return one row of source positions per row of ``keys``, in the order of the part's leaves."""
    if isinstance(part, int):
        return np.full((len(keys), 1), part, dtype=np.int32)
    n_parts = len(part.parts)
    used = n_parts if part.exchangeable else 0
    if all(isinstance(child, int) for child in part.parts):
        sources = np.tile(np.array(part.parts, dtype=np.int32), (len(keys), 1))
        inner = sources[:, :, None]
    else:
        drawn = []
        start = used
        for child in part.parts:
            stop = start + _n_keys(child)
            drawn.append(_draw(child, keys[:, start:stop]))
            start = stop
        if not part.exchangeable:
            return np.concatenate(drawn, axis=1)
        inner = np.stack(drawn, axis=1)
    if not part.exchangeable:
        return inner.reshape(len(keys), -1)
    order = np.argsort(keys[:, :n_parts], axis=1, kind="stable")
    return np.take_along_axis(inner, order[:, :, None], axis=1).reshape(len(keys), -1)


def read_shuffling(
    permutations: npt.NDArray[np.generic] | None,
    signs: npt.NDArray[np.generic] | None,
    *,
    labels: IntArray,
    n_distinct: int,
) -> Shuffling:
    """Return a table that the user supplies, after checking it.

    Parameters
    ----------
    permutations, signs
        ``(n_perm, n_obs)``, row 0 the identity; positions count from 0, signs are -1 or 1. One of the two may be None.
    labels
        As in `plan_shuffling`: decides whether the table holds all ``n_distinct`` relabellings.
    n_distinct
        How many relabellings exist.

    Raises
    ------
    DesignError
        Code ``E-PERMUTATIONS``.
    """
    n_obs = labels.size
    if permutations is None:
        n_perm = 0 if signs is None else len(signs)
        permutations = np.tile(np.arange(n_obs), (n_perm, 1))
    _check_permutations(permutations, n_obs)
    table = np.asarray(permutations, dtype=np.int32)
    flips = np.ones(table.shape, dtype=np.int8)
    if signs is not None:
        _check_signs(signs, table.shape)
        flips = np.asarray(signs, dtype=np.int8)
    return Shuffling(
        permutations=table,
        signs=None if signs is None else flips,
        n_distinct=n_distinct,
        exhaustive=len(set(_key(labels, table, flips))) >= n_distinct,
    )


def _check_permutations(table: npt.NDArray[np.generic], n_obs: int) -> None:
    rule = f"a table is (n_perm, {n_obs}) integers, each row a permutation of 0 to {n_obs - 1}, row 0 the identity"
    if table.ndim != 2 or table.shape[1] != n_obs or table.shape[0] < 2 or table.dtype.kind not in "iu":
        raise DesignError("E-PERMUTATIONS", f"the permutation table is {table.dtype} of shape {table.shape}", rule=rule)
    bad = np.flatnonzero((np.sort(table, axis=1) != np.arange(n_obs)).any(axis=1))
    if bad.size:
        fix = "subtract 1: positions count from 0" if table.min() == 1 else "rebuild the table"
        raise DesignError(
            "E-PERMUTATIONS", f"row {bad[0]} of the permutation table is no permutation", rule=rule, fix=fix
        )
    if (table[0] != np.arange(n_obs)).any():
        raise DesignError(
            "E-PERMUTATIONS", "row 0 of the permutation table is not the identity", rule=rule, fix="put it first"
        )


def _check_signs(signs: npt.NDArray[np.generic], shape: tuple[int, ...]) -> None:
    rule = f"signs are -1 or 1, of shape {shape}, row 0 all 1"
    if signs.shape != shape:
        raise DesignError("E-PERMUTATIONS", f"the sign table has shape {signs.shape}", rule=rule)
    if not np.isin(signs, (-1, 1)).all() or (signs[0] != 1).any():
        raise DesignError("E-PERMUTATIONS", "the sign table holds other values, or its row 0 flips a sign", rule=rule)


def exchanged_sets(permutations: IntArray) -> npt.NDArray[np.intp]:
    """Return one integer per observation: two that any row puts in each other's place get the same one."""
    n_perm, n_obs = permutations.shape
    found = np.arange(n_obs, dtype=np.intp)
    n_row = _rows_at_once(n_obs)
    for start in range(0, n_perm, n_row):
        rows = found[permutations[start : start + n_row]]
        ends = (np.broadcast_to(found, rows.shape).ravel(), rows.ravel())
        meet = coo_array((np.ones(rows.size, dtype=np.int8), ends), shape=(n_obs, n_obs))
        _, joined = connected_components(meet, directed=False)
        found = joined[found].astype(np.intp)
        if found.max() == 0:
            break
    return found
