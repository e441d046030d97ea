"""How a permutation test is cut into tasks: integers in, ranges out. No cut changes a bit of the result."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from kconn.errors import ResourceError
from kconn.kernels.tallies import FEATURE_BLOCK, plan_permutation_block

Range = tuple[int, int]

#: Floating-point operations of a task of about 0.2 seconds on one core: below it, scheduling costs show.
TASK_FLOPS: Final = {"float64": 8e9, "float32": 16e9}
#: A task is at most this many times longer, so that a lost worker costs seconds and a cancelled run stops soon.
MAX_TASK_FACTOR: Final = 25
#: Tasks per worker thread that even out unequal speeds.
TASKS_PER_THREAD: Final = 4
#: Data of one task, in float64, that ranges of relabellings are sized for.
PART_BYTES: Final = 32 << 20
#: Ranges of relabellings of a test: a kill costs about this part of the work.
MAX_RANGES: Final = 64
ITEMSIZE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The size of one contrast's test; ``extra`` operations per feature and relabelling come on top of the product."""

    n_obs: int
    n_feature: int
    n_perm: int
    n_row: int
    dtype: str
    extra: float = 0.0

    @property
    def flops(self) -> float:
        """Operations in all."""
        return (2.0 * self.n_obs * self.n_row + self.extra) * self.n_feature * self.n_perm


def plan_features(problem: Problem, *, max_mem: int) -> list[Range]:
    """Return the feature ranges, each a whole number of canonical blocks that fits into ``max_mem`` bytes.

    Raises
    ------
    ResourceError
        Code ``E-MEM`` if one canonical block does not fit.
    """
    # The data as read and in float64, and as much again for the other tasks that wait on the same thread.
    column = 4 * ITEMSIZE * problem.n_obs
    scratch = 6 * FEATURE_BLOCK * ITEMSIZE * problem.n_obs
    n_block = (max_mem // 2 - scratch) // (column * FEATURE_BLOCK)
    if n_block < 1:
        raise ResourceError(
            "E-MEM",
            f"max_mem={max_mem} bytes per thread is too small for {problem.n_obs} observations",
            rule=f"one block of {FEATURE_BLOCK} features needs {2 * (scratch + column * FEATURE_BLOCK)} bytes",
            fix="raise max_mem",
        )
    return _cut(problem.n_feature, n_block * FEATURE_BLOCK)


def check_memory(problem: Problem, *, max_mem: int) -> None:
    """Refuse a test whose tasks need all features at once if these do not fit into ``max_mem`` bytes.

    Raises
    ------
    ResourceError
        Code ``E-MEM``.
    """
    needed = 3 * ITEMSIZE * problem.n_obs * problem.n_feature + 64 * ITEMSIZE * problem.n_feature
    if needed > max_mem:
        raise ResourceError(
            "E-MEM",
            f"a statistic of whole maps needs {needed} bytes per thread, max_mem leaves {max_mem}",
            rule="all features of all observations are in memory at once",
            fix="raise max_mem, use fewer threads per worker or a coarser resolution",
        )


def plan_ranges(problem: Problem) -> list[Range]:
    """Return the ranges of the table (row 0, the identity, left out) that are finished, and kept, as wholes.

    They follow from the problem alone, so that any number of workers can go on with what others have begun. A range
    keeps a task of `PART_BYTES` of data busy for 0.2 seconds or more; there are at most `MAX_RANGES`, a number that 1,
    2 and 4 workers can share.
    """
    n_block = -(-(problem.n_perm - 1) // plan_permutation_block(problem.n_row))
    width = problem.n_feature
    if not problem.extra:
        width = min(width, max(FEATURE_BLOCK, PART_BYTES // (ITEMSIZE * problem.n_obs)))
    most = int(problem.flops * width / problem.n_feature / TASK_FLOPS[problem.dtype])
    n_range = max(1, min(most, MAX_RANGES, n_block))
    n_range -= n_range % (4 if n_range > 4 else 2 if n_range > 2 else 1)
    size = plan_permutation_block(problem.n_row)
    ends = [min(size * (n_block * i // n_range), problem.n_perm - 1) for i in range(n_range + 1)]
    return [(1 + start, 1 + stop) for start, stop in pairwise(ends)]


def split_range(part: Range, problem: Problem, *, n_part: int, n_task: int, max_mem: int) -> list[Range]:
    """Return the ranges that tasks take, of those rows and one of ``n_part`` feature ranges.

    ``n_task`` is wanted, and made if each is still long enough; more are made where tasks would be too long or large.
    """
    n_row = part[1] - part[0]
    n_block = plan_permutation_block(problem.n_row)
    units = problem.flops * n_row / (problem.n_perm - 1) / n_part / TASK_FLOPS[problem.dtype]
    n_task = max(1, min(n_task, int(units)), -int(-units // MAX_TASK_FACTOR))
    fits = max(n_block, (max_mem // 4) // (problem.n_row * problem.n_obs * ITEMSIZE))
    size = min(-(-n_row // n_task), fits)
    size = max(n_block, -(-size // n_block) * n_block)
    return [(part[0] + start, part[0] + stop) for start, stop in _cut(n_row, size)]


def _cut(n: int, size: int) -> list[Range]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]
