"""How well a test found the edges that were planted."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import xarray as xr


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Planted edges against edges with p_fwe below alpha."""

    n_planted: int
    n_found: int
    n_right_sign: int
    n_false: int
    n_edge: int
    alpha: float

    def __str__(self) -> str:
        """Return one sentence."""
        return (
            f"{self.n_found} of {self.n_planted} planted edges found at FWE p <= {self.alpha:g}, "
            f"{self.n_right_sign} with the right sign; {self.n_false} false among {self.n_edge - self.n_planted} others"
        )


def score_recovery(result: xr.Dataset, truth: pd.DataFrame, *, alpha: float = 0.05) -> Recovery:
    """Compare a contrast with the truth of a simulated study.

    Parameters
    ----------
    result
        One contrast: ``effect`` and ``p_fwe`` along ``edge``, with ``node_i`` and ``node_j``.
    truth
        Planted edges: ``node_i``, ``node_j``, ``sign``.
    alpha
        Level.
    """
    planted = {frozenset((row.node_i, row.node_j)): int(row.sign) for row in truth.itertuples()}
    ends = (result[name].to_numpy().tolist() for name in ("node_i", "node_j"))
    pairs = [frozenset(pair) for pair in zip(*ends, strict=True)]
    significant = result["p_fwe"].to_numpy() <= alpha
    effect = result["effect"].to_numpy()
    found = [i for i, pair in enumerate(pairs) if significant[i] and pair in planted]
    return Recovery(
        n_planted=len(planted),
        n_found=len(found),
        n_right_sign=sum((effect[i] > 0) == (planted[pairs[i]] > 0) for i in found),
        n_false=int(significant.sum()) - len(found),
        n_edge=len(pairs),
        alpha=alpha,
    )
