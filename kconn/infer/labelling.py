"""The results of a test under their names, dims and coordinates."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from kconn.infer.features import Features
from kconn.infer.observations import DIM, Observations
from kconn.infer.permuting import Test
from kconn.kernels.tallies import TAILS


def _as_float(n: int) -> float:
    """Return a number of relabellings; infinity where no float holds it, as of 1,100 observations in two halves."""
    return float(n) if n <= sys.float_info.max else math.inf


def label_results(
    results: list[dict[str, npt.NDArray[Any]]],
    tests: list[Test],
    features: Features,
    observations: Observations,
    per_feature: Mapping[str, npt.NDArray[Any]],
) -> xr.Dataset:
    """Return the numbers of all contrasts as one Dataset; contrasts with fewer relabellings are padded.

    ``per_feature``: what all contrasts share.
    """
    shape = features.data.shape[1:]
    dims = tuple(map(str, features.data.dims[1:]))
    coords = {name: coord for name, coord in features.data.coords.items() if DIM not in coord.dims}
    n_perm = max(test.shuffling.n_perm for test in tests)
    variables: dict[str, Any] = {}
    for name in results[0]:
        if name == "max_stat":
            padded = [np.pad(r[name], (0, n_perm - r[name].size), constant_values=np.nan) for r in results]
            variables[name] = (("permutation", "contrast"), np.stack(padded, axis=1))
        elif name.endswith(("_tails", "_ci")):
            stacked = np.stack([r[name].reshape(-1, *shape) for r in results], axis=1)
            variables[name] = (("tail" if name.endswith("_tails") else "limit", "contrast", *dims), stacked)
        else:
            variables[name] = (("contrast", *dims), np.stack([r[name].reshape(shape) for r in results]))
    variables |= {name: (dims, values.reshape(shape)) for name, values in per_feature.items()}
    variables |= _label_tables(tests, n_perm, observations.n_obs)
    along = {
        "stat_kind": [test.engine.stat_kind for test in tests],
        "shuffling": [test.kind for test in tests],
        "n_permutations": [test.shuffling.n_perm for test in tests],
        "n_distinct": [_as_float(test.shuffling.n_distinct) for test in tests],
        "exhaustive": [test.shuffling.exhaustive for test in tests],
        "table_sha256": [test.shuffling.sha256 for test in tests],
    }
    return xr.Dataset(
        variables,
        coords={
            **coords,
            "contrast": [test.name for test in tests],
            "tail": list(TAILS),
            "limit": ["lower", "upper"],
            DIM: list(observations.ids),
            **{name: ("contrast", values) for name, values in along.items()},
        },
    )


def _label_tables(tests: list[Test], n_perm: int, n_obs: int) -> dict[str, Any]:
    dims = ("contrast", "permutation", DIM)
    small = np.int16 if n_obs <= np.iinfo(np.int16).max else np.int32
    table = np.full((len(tests), n_perm, n_obs), -1, dtype=small)
    for i_test, test in enumerate(tests):
        table[i_test, : test.shuffling.n_perm] = test.shuffling.permutations
    tables: dict[str, Any] = {"permutation_table": (dims, table)}
    if any(test.shuffling.signs is not None for test in tests):
        flips = np.zeros((len(tests), n_perm, n_obs), dtype=np.int8)
        for i_test, test in enumerate(tests):
            flips[i_test, : test.shuffling.n_perm] = 1 if test.shuffling.signs is None else test.shuffling.signs
        tables["sign_table"] = (dims, flips)
    return tables
