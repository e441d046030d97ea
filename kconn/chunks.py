"""Chunk plans: integers in, integers out. No plan depends on how the input happened to be chunked."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from kconn.errors import SchemaError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

#: Bytes of one voxel block over all frames, as float32: what a task holds, computes on and writes.
BLOCK_BYTES: Final = 16 * MIB
#: Bytes of a chunk of maps of one run, and of the block of all observations that one task of the cohort gathers.
MAP_BYTES: Final = MIB
GATHER_BYTES: Final = 64 * MIB
#: Maps of one run that share a chunk: a group reads them together.
MAPS_PER_CHUNK: Final = 8
#: Bytes that a streaming reader may buffer: one row of chunks, all voxels by some frames.
ROW_BYTES: Final = 128 * MIB


def plan_chunks(shape: Sequence[int], *, itemsize: int, max_mem: int, whole: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the chunk shape that fills ``max_mem`` bytes, cutting the leading axes last.

    Axes in ``whole`` are never cut. The others are cut from the first to the last: an axis is cut only when
    those before it are already down to one.

    Parameters
    ----------
    shape
        Shape of the array.
    itemsize
        Bytes per element.
    max_mem
        Bytes that one chunk may hold.
    whole
        Axes that stay in one piece.

    Raises
    ------
    SchemaError
        If one element along the axes that may be cut, with all of ``whole``, already exceeds ``max_mem``.
    """
    chunk = list(shape)
    for axis in range(len(chunk)):
        if axis in whole:
            continue
        rest = itemsize * prod(chunk[:axis] + chunk[axis + 1 :])
        chunk[axis] = max(1, min(chunk[axis], max_mem // max(1, rest)))
    if itemsize * prod(chunk) > max_mem:
        raise SchemaError(
            "E-MEM",
            f"one chunk of shape {tuple(chunk)} takes {itemsize * prod(chunk)} bytes, max_mem is {max_mem}",
            rule="axes that must stay whole have to fit in max_mem",
            fix="raise max_mem",
        )
    return tuple(chunk)


def plan_bold(n_voxel: int, n_time: int, *, itemsize: int) -> tuple[int, int]:
    """Return the stored chunk ``(voxel, time)`` of a run.

    A block of voxels over all frames holds at most `BLOCK_BYTES` as float32, and one row of chunks (all voxels by
    the frames of one chunk) at most `ROW_BYTES` in the stored type, so that a stream of volumes can be laid out
    voxel-major in bounded memory.
    """
    voxel = plan_voxel_blocks(n_voxel, n_time)
    n_row = max(1, -(-n_voxel * n_time * itemsize // ROW_BYTES))
    return voxel, -(-n_time // n_row)


def plan_voxel_blocks(n_voxel: int, n_time: int) -> int:
    """Return how many voxels, over all frames, make one block: the canonical grid of every per-voxel computation."""
    frame_bytes = 4 * max(1, n_time)
    return plan_chunks((n_voxel, frame_bytes), itemsize=1, max_mem=max(BLOCK_BYTES, frame_bytes), whole=(1,))[0]


def plan_maps(n_node: int, n_voxel: int) -> tuple[int, int]:
    """Return the stored chunk ``(node, voxel)`` of the maps of one run, float32."""
    node = min(n_node, MAPS_PER_CHUNK)
    return node, max(1, min(n_voxel, MAP_BYTES // (4 * max(1, node))))


def plan_map_cube(n_obs: int, n_node: int, n_voxel: int) -> tuple[int, int]:
    """Return how many nodes and voxels, of all observations, one task of a cohort of maps gathers."""
    node = min(n_node, MAPS_PER_CHUNK)
    return node, max(1, min(n_voxel, GATHER_BYTES // (4 * n_obs * max(1, node))))
