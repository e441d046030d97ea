"""Every refusal of the permutation test, met before there are data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import xarray as xr

from kconn.infer.arguments import refuse_unused
from kconn.infer.features import join_covariates, read_features
from kconn.infer.linear_model import Model, read_design, read_groups
from kconn.infer.missing import check_refit
from kconn.infer.neighbourhood import Meaning, read_enhancement
from kconn.infer.observations import join_permutations, join_shufflings, read_observations
from kconn.infer.permuting import Test
from kconn.infer.relabelling import Exchange, plan_tests, read_blocks, read_contrasts
from kconn.kernels import glm
from kconn.study.contrasts import Arrangement, find_neighbours, read_tfce

Feature = Literal["edge", "voxel"]
#: Three features of each kind that are neighbours of each other.
_FEATURES: Final[Mapping[Feature, Mapping[str, list[Any]]]] = {
    "edge": {"node_i": ["a", "a", "b"], "node_j": ["b", "c", "c"]},
    "voxel": {"i": [0, 1, 2], "j": [0, 0, 0], "k": [0, 0, 0]},
}


def rehearse_test(arrangement: Arrangement, *, n_perm: int = 2, feature: Feature = "edge") -> list[Test]:
    """Plan a test as `kconn.permutation_test` does, without data.

    Parameters
    ----------
    arrangement
        The call.
    n_perm
        Relabellings that are drawn; a supplied table is taken whole.
    feature
        What is tested: decides which neighbours there can be.

    Returns
    -------
    list of Test
        One per contrast. Their relabellings are those of the test if ``n_perm`` is; their columns are in the order of
        sorted ids.

    Raises
    ------
    DesignError, SchemaError
        As `kconn.permutation_test`, but for what only data can show.
    """
    test, options = arrangement.test, arrangement.options
    ids = test.data["observation"]
    zeros = np.zeros((len(test.design), 3))
    coords = {"observation": ids, **{name: (feature, place) for name, place in _FEATURES[feature].items()}}
    data = xr.DataArray(zeros, dims=("observation", feature), coords=coords)
    observations = read_observations(data)
    columns, matrix = read_design(test.design, observations)
    glm.check_design(matrix)
    permutations, signs = arrangement.permutations, arrangement.signs
    has_table = permutations is not None or signs is not None
    exchange = Exchange(
        n_perm=arrangement.n_perm if has_table else n_perm,
        seed=options["seed"],
        tree=read_blocks(arrangement.blocks, observations),
        sign_flip=arrangement.sign_flip,
        permutations=None if permutations is None else join_permutations(permutations, observations),
        signs=None if signs is None else join_shufflings(signs, observations),
    )
    model = Model(
        columns=columns,
        matrix=matrix,
        regression=options["regression"],
        variance_groups=read_groups(arrangement.variance_groups, observations, options["regression"]),
        convention=options["convention"],
        has_feature_covariates=test.baseline is not None,
    )
    if test.baseline is not None:
        join_covariates(read_features(data), data, observations, model)
    plan = plan_tests(read_contrasts(test.contrasts, model, joint=options["joint_fwe"]), model, exchange)
    statistic, threshold, tfce = options["statistic"], options["threshold"], read_tfce(options)
    if statistic in {"edge", "voxel"}:
        refuse_unused(statistic, threshold=threshold, tfce=tfce)
        if options["missing"] == "refit":
            check_refit(plan)
        return plan.tests
    refuse_unused(statistic, missing=None if options["missing"] == "exclude" else options["missing"])
    meaning = Meaning(
        convention=options["convention"],
        two_sided=options["alternative"] == "two-sided",
        grouped=arrangement.variance_groups is not None,
    )
    read_enhancement(statistic, find_neighbours(data, options), threshold, tfce, data, meaning)
    return plan.tests
