"""Network matrices of 100 subjects against nilearn: ``python -m benchmarks.bench_netmats``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from nilearn.connectome import ConnectivityMeasure
from sklearn.covariance import EmpiricalCovariance

from benchmarks.side_by_side import compare
from kconn.connect.cohort import project_tangent
from kconn.connect.netmats import estimate_netmats

N_SUBJECT, N_NODE, N_TIME = 100, 200, 488


def make_series() -> npt.NDArray[np.float64]:
    """Return (subject, time, node)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((N_SUBJECT, N_TIME, N_NODE)) + rng.standard_normal((N_SUBJECT, N_TIME, 1))


def ours(kind: str) -> Callable[[], Any]:
    """Prepare `estimate_netmats` of all subjects."""
    ds = xr.Dataset(
        {"timeseries": (("observation", "node", "time"), np.ascontiguousarray(np.swapaxes(make_series(), 1, 2)))},
        coords={"node": [str(i) for i in range(N_NODE)], "time": np.arange(N_TIME) * 0.8},
    )
    rho = 0.1 if kind == "ridgep" else None
    return lambda: estimate_netmats(ds, kind=kind, rho=rho)


def nilearn(kind: str) -> Callable[[], Any]:
    """Prepare nilearn's measure of the same, as vectors; its maximum-likelihood covariance, as ours is."""
    warnings.simplefilter("ignore")
    series = list(make_series())
    measure = ConnectivityMeasure(
        cov_estimator=EmpiricalCovariance(), kind=kind, vectorize=True, discard_diagonal=True, standardize=False
    )
    return lambda: measure.fit_transform(series)


def tangent_ours() -> Callable[[], Any]:
    """Prepare the tangent projection, shrunk correlations included."""
    series = make_series()
    ds = xr.Dataset(
        {"timeseries": (("observation", "node", "time"), np.ascontiguousarray(np.swapaxes(series, 1, 2)))},
        coords={"node": [str(i) for i in range(N_NODE)], "time": np.arange(N_TIME) * 0.8},
    )
    return lambda: project_tangent(estimate_netmats(ds, kind="ledoit"))


def tangent_nilearn() -> Callable[[], Any]:
    """Prepare nilearn's measure of the same, with its Ledoit-Wolf covariance."""
    warnings.simplefilter("ignore")
    series = list(make_series())
    measure = ConnectivityMeasure(kind="tangent", vectorize=True, discard_diagonal=True)
    return lambda: measure.fit_transform(series)


if __name__ == "__main__":
    size = f"{N_SUBJECT} x {N_NODE} nodes x {N_TIME} frames"
    for kind, peer in (("corr", "correlation"), ("partial", "partial correlation"), ("ridgep", "partial correlation")):
        compare(
            f"{kind} of {size}",
            ours=partial(ours, kind),
            peer=partial(nilearn, peer),
            peer_name=f"ConnectivityMeasure, {peer}",
        )
    compare(f"tangent of {size}", ours=tangent_ours, peer=tangent_nilearn, peer_name="ConnectivityMeasure, tangent")
