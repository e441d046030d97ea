"""The kinds of netmat that a study can ask for: how each is made of runs, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from kconn.connect.netmats import NetmatKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of netmat.

    Attributes
    ----------
    estimator
        What is estimated of each run, a kind of `kconn.estimate_netmats`.
    words
        Its name in a sentence.
    bids
        Its name in the entity ``stat`` of a file, as XCP-D and PyBIDS have it.
    has_z
        Whether it is a correlation, so that Fisher's z is taken before runs are averaged.
    has_null
        Whether FSLNets knows how it scatters among unrelated series.
    penalty
        The key of the study file that holds its penalty.
    needs_rank
        Whether a run must have more degrees of freedom than nodes.
    unit
        Of its effects where it is no correlation.
    feature
        What it has one value of: of each edge, or of each node.
    """

    estimator: NetmatKind
    words: str
    bids: str
    has_z: bool = True
    has_null: bool = False
    penalty: str | None = None
    needs_rank: bool = False
    unit: str = ""
    feature: Literal["edge", "node"] = "edge"


KINDS: Final[Mapping[str, Kind]] = {
    "cov": Kind(estimator="cov", words="covariance", bids="covariance", has_z=False, unit="covariance"),
    "corr": Kind(estimator="corr", words="full correlation", bids="pearsoncorrelation", has_null=True),
    "rcorr": Kind(
        estimator="rcorr",
        words="full correlation after regressing out the mean of the nodes",
        bids="pearsoncorrelationnomean",
        has_null=True,
    ),
    "partial": Kind(
        estimator="partial",
        words="partial correlation",
        bids="partialcorrelation",
        has_null=True,
        needs_rank=True,
    ),
    "ridgep": Kind(
        estimator="ridgep",
        words="ridge partial correlation",
        bids="ridgepartialcorrelation",
        has_null=True,
        penalty="rho",
    ),
    "glasso": Kind(
        estimator="glasso", words="sparse partial correlation", bids="sparsepartialcorrelation", penalty="alpha"
    ),
    "ledoit": Kind(estimator="ledoit", words="shrunk full correlation", bids="shrunkcorrelation"),
    "ledoitp": Kind(estimator="ledoitp", words="shrunk partial correlation", bids="shrunkpartialcorrelation"),
    "tangent": Kind(
        estimator="ledoit", words="tangent-space connectivity", bids="tangent", has_z=False, unit="tangent deviation"
    ),
    "corrsd": Kind(
        estimator="corr",
        words="variability of the full correlation over sliding windows",
        bids="pearsoncorrelationsd",
        has_z=False,
        unit="sd of Fisher z",
    ),
    "amplitude": Kind(
        estimator="cov",
        words="amplitude",
        bids="amplitude",
        has_z=False,
        unit="sd of the node series",
        feature="node",
    ),
}

_UNITS_OF_Z: Final[Mapping[str, str]] = {"fisher": "Fisher z", "ar1": "z", "none": "r"}


def describe_unit(attrs: Mapping[str, Any]) -> str:
    """Return the unit of a ``netmat`` from its attrs ``kind`` and ``z``."""
    kind = KINDS.get(str(attrs.get("kind")))
    if kind is not None and kind.unit:
        return kind.unit
    return _UNITS_OF_Z.get(str(attrs.get("z", "fisher")), "z")
