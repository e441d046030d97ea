"""Data of a test as a matrix of observations by features, and regressors that differ between features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.errors import DesignError, SchemaError
from kconn.infer.arguments import Data
from kconn.infer.linear_model import Model
from kconn.infer.observations import DIM, Observations, join_rows, join_table
from kconn.infer.scheduling import DataMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The data as a matrix ``(observation, feature)``, and how to get the feature dims back."""

    data: xr.DataArray
    matrix: Any
    n_feature: int


def read_features(data: Data) -> Features:
    """Return data ``(observation, feature...)`` with observations first, as an array of two dimensions as well."""
    if not isinstance(data, xr.DataArray):
        array = data if isinstance(data, da.Array) else np.asarray(data)
        if array.ndim != 2:
            raise SchemaError("E-SCHEMA", f"data has shape {array.shape}", rule="an array is (n_obs, n_feature)")
        data = xr.DataArray(array, dims=(DIM, "feature"))
    if DIM not in data.dims:
        raise SchemaError("E-SCHEMA", f"data has dims {tuple(data.dims)}", rule=f"one of them is {DIM!r}")
    if data.dtype.kind not in "fiu":
        raise SchemaError("E-SCHEMA", f"data has dtype {data.dtype}", rule="real numbers")
    data = data.transpose(DIM, ...)
    n_feature = int(np.prod(data.shape[1:], dtype=np.int64))
    if n_feature == 0:
        raise DesignError("E-NO-FEATURES", f"data has shape {data.shape}", rule="at least one feature")
    return Features(data=data, matrix=data.data.reshape(data.shape[0], n_feature), n_feature=n_feature)


def join_covariates(
    features: Features,
    covariates: Data,
    observations: Observations,
    model: Model,
) -> DataMatrix:
    """Return data above covariates."""
    if model.regression != "freedman-lane" or model.variance_groups is not None:
        raise SchemaError(
            "E-ARGUMENT",
            f"feature_covariates with regression={model.regression!r} or variance_groups",
            rule="they need freedman-lane and one variance",
        )
    if model.matrix.shape[0] <= model.matrix.shape[1] + 1:
        raise DesignError(
            "E-TOO-FEW",
            f"{model.matrix.shape[0]} observations for {model.matrix.shape[1] + 1} regressors of each feature",
            rule="at least one residual degree of freedom is needed",
        )
    other = read_features(covariates)
    dims, expected = tuple(other.data.dims), tuple(features.data.dims)
    if other.data.shape[1:] != features.data.shape[1:] or (isinstance(covariates, xr.DataArray) and dims != expected):
        raise SchemaError(
            "E-SCHEMA",
            f"feature_covariates has dims {dims} of shape {other.data.shape[1:]}",
            rule=f"dims {expected} of shape {features.data.shape[1:]}, as the data",
        )
    order = _order_of(other.data, observations)
    lazy = isinstance(features.matrix, da.Array) or isinstance(other.matrix, da.Array)
    concatenate = da.concatenate if lazy else np.concatenate
    return DataMatrix(
        values=concatenate([features.matrix, other.matrix]),
        order=np.concatenate([observations.order, observations.n_obs + order]),
    )


def _order_of(data: xr.DataArray, observations: Observations) -> npt.NDArray[np.intp]:
    """Return the row of another array at each canonical position."""
    index = data.indexes.get(DIM, pd.RangeIndex(data.sizes[DIM]))
    rows = np.arange(data.sizes[DIM])
    if DIM in data.coords:
        position = join_table(pd.Series(rows, index=index), observations, what="feature_covariates")
        return np.asarray(position.to_numpy()[:, 0], dtype=np.intp)
    return np.asarray(join_rows(rows, observations, what="feature_covariates"), dtype=np.intp)
