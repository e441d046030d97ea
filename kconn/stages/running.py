"""How far the test of a contrast is that is going on, or was interrupted: read from its checkpoint, by any process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from kconn.infer.checkpoint import SEEN, Checkpoint
from kconn.infer.hypotheses import TESTED
from kconn.io import checkpoints
from kconn.io.storage import Place
from kconn.kernels.tallies import TAILS
from kconn.kernels.thresholds import Threshold, estimate_threshold
from kconn.study.plan import Step

#: Family-wise error rate of the threshold that is shown, and coverage of its limits.
ALPHA: Final = 0.05
LEVEL: Final = 0.95
_UNKNOWN: Final = Threshold(value=np.nan, lower=-np.inf, upper=np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A contrast whose result is not there yet, or one pattern of missing observations of it.

    Attributes
    ----------
    where
        The contrast, with its name where several are tested under one design.
    part
        The pattern, in words; empty where all features are tested together.
    n_done, n_perm
        Relabellings finished and in all, the identity counted as one.
    threshold
        What a statistic must reach for a corrected p of at most `ALPHA`, after those that are finished. Nothing is
        known of it while patterns are tested one after the other: the maximum is over all of them.
    last
        When the last range was finished, in seconds since 1970.
    """

    where: str
    part: str
    n_done: int
    n_perm: int
    threshold: Threshold
    last: float

    def __str__(self) -> str:
        """``6,000 of 50,000 permutations; corrected p <= 0.05 from 4.41 on (4.37 to 4.46)``."""
        part = f"{self.part}: " if self.part else ""
        at = self.threshold
        seen = "" if np.isnan(at.value) else f"; corrected p <= {ALPHA} from {at.value:.3g} on"
        limits = f" ({at.lower:.3g} to {at.upper:.3g})" if seen and np.isfinite([at.lower, at.upper]).all() else ""
        return f"{part}{self.n_done:,} of {self.n_perm:,} permutations{seen}{limits}"


def bind_checkpoint(root: Place, step: Step) -> Checkpoint:
    """Return the checkpoint of a step."""
    folder = checkpoints.step_folder(root, step.address, step.key)
    return Checkpoint(load=partial(checkpoints.load_arrays, folder), save=partial(checkpoints.save_arrays, folder))


def find_running(root: Place, steps: Iterable[Step]) -> Iterator[Running]:
    """Yield the tests among unpublished steps that have finished a range of relabellings."""
    for step in steps:
        folder = checkpoints.step_folder(root, step.address, step.key)
        names = {name: at for name, at in checkpoints.list_names(folder).items() if name.endswith(SEEN)}
        # Several contrasts of one design are ranges of several tests: a name starts with the digest of its own.
        for digest in dict.fromkeys(name.partition("-")[0] for name in names):
            own = {name: at for name, at in names.items() if name.startswith(digest)}
            running = _read_running(folder, own, step)
            if running is not None:
                yield running


def _read_running(folder: Place, names: Mapping[str, float], step: Step) -> Running | None:
    kept = [arrays for arrays in (checkpoints.load_arrays(folder, name) for name in names) if arrays is not None]
    if not kept:
        return None
    i_tail = TAILS.index(step.params["permutation"]["alternative"])
    max_stat = np.concatenate([kept[0]["identity"][[i_tail]], *(arrays["max_stat"][i_tail] for arrays in kept)])
    name, part = str(kept[0]["name"]), str(kept[0]["part"])
    return Running(
        where=step.where if name == TESTED else f"{step.where}: {name}",
        part=part,
        n_done=max_stat.size,
        n_perm=int(kept[0]["n_perm"]),
        threshold=_UNKNOWN if part else estimate_threshold(max_stat, alpha=ALPHA, level=LEVEL),
        last=max(names.values()),
    )
