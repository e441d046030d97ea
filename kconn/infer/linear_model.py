"""The design of a test: its columns, its variance groups, and the engine that fits it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from kconn.errors import DesignError, SchemaError
from kconn.infer.arguments import Convention, Rows
from kconn.infer.observations import Observations, join_rows, join_table
from kconn.kernels import glm, welch
from kconn.kernels.feature_covariates import CovariatePartition, plan_feature_covariates, split_with_covariate
from kconn.kernels.glm import Regression
from kconn.kernels.permutation import Shuffling, label_rows

#: By what name a contrast weighs the covariate of each feature.
COVARIATE: Final = "feature_covariates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The design in the canonical order of observations, and how it is fitted."""

    columns: list[str]
    matrix: npt.NDArray[np.float64]
    regression: Regression
    variance_groups: npt.NDArray[np.intp] | None
    convention: Convention
    has_feature_covariates: bool

    def restrict(self, observed: npt.NDArray[np.bool_]) -> Model:
        """Return the model of some observations, ``observed (n_obs,)``."""
        groups = (
            None if self.variance_groups is None else np.unique(self.variance_groups[observed], return_inverse=True)[1]
        )
        return replace(self, matrix=self.matrix[observed], variance_groups=groups)

    @property
    def regressors(self) -> list[str]:
        """What a contrast can weigh: the columns, and the covariate of each feature where there is one."""
        return [*self.columns, COVARIATE] if self.has_feature_covariates else self.columns

    def split(self, weights: npt.NDArray[np.float64]) -> glm.Partition | CovariatePartition:
        """Return the design as one contrast sees it."""
        split = split_with_covariate if self.has_feature_covariates else glm.split_design
        return split(self.matrix, weights)

    def label(self, weighed: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Return labels of observations: equal where all `regressors` that are ``weighed`` are."""
        if self.has_feature_covariates and weighed[-1]:
            return np.arange(len(self.matrix))  # no two observations have the same values of every feature
        return label_rows(self.matrix[:, weighed[: len(self.columns)]])

    def plan(self, partition: glm.Partition | CovariatePartition, shuffling: Shuffling) -> glm.Engine:
        """Return the engine of one contrast."""
        if isinstance(partition, CovariatePartition):
            return plan_feature_covariates(partition, shuffling)
        if self.variance_groups is None:
            return glm.plan_pooled(partition, shuffling, self.regression)
        return welch.plan_welch(partition, self.variance_groups, palm=self.convention == "palm")


def read_design(
    design: pd.DataFrame | npt.NDArray[np.floating], observations: Observations
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return names and values of the columns of a design, rows in canonical order; all of them finite."""
    if isinstance(design, pd.DataFrame):
        joined = join_table(design, observations, what="the design")
        columns = [str(name) for name in joined.columns]
        try:
            matrix = joined.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DesignError(
                "E-TABLE", f"the design holds a value that is no number: {error}", rule="code factors as numbers"
            ) from error
    else:
        matrix = np.asarray(join_rows(design, observations, what="the design"), dtype=np.float64)
        columns = [str(i) for i in range(matrix.shape[-1])]
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise DesignError("E-TABLE-SHAPE", f"the design has shape {matrix.shape}", rule="(observation, regressor)")
    bad = np.argwhere(~np.isfinite(matrix))
    if bad.size:
        row, column = bad[0]
        raise DesignError(
            "E-COV-NAN",
            f"column {columns[column]!r} of the design is {matrix[row, column]} ({len(bad)} such value(s))",
            where=observations.ids[row],
            rule="every covariate is a finite number for every observation",
            fix="complete the table or leave the observation out of data and design",
        )
    return columns, matrix


def read_groups(groups: Rows | None, observations: Observations, regression: Regression) -> npt.NDArray[np.intp] | None:
    """Return variance groups as integers from 0, in canonical order."""
    if groups is None:
        return None
    if regression != "freedman-lane":
        raise SchemaError(
            "E-ARGUMENT", f"regression={regression!r} with variance_groups", rule="variance groups need freedman-lane"
        )
    labels = join_rows(groups, observations, what="variance_groups").reshape(observations.n_obs, -1)
    if labels.shape[1] != 1 or pd.isna(labels).any():
        raise DesignError(
            "E-BLOCKS", f"variance_groups has {labels.shape[1]} column(s)", rule="one known label per observation"
        )
    return np.asarray(np.unique(labels[:, 0], return_inverse=True)[1], dtype=np.intp)
