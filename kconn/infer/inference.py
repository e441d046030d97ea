"""Permutation tests of a design against every feature: one public function around `kconn.kernels.glm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn import schema
from kconn.chunks import GIB
from kconn.infer.arguments import (
    Alternative,
    Convention,
    Data,
    Rows,
    Statistic,
    check_choice,
    check_integer,
    refuse_unused,
)
from kconn.infer.checkpoint import Checkpoint
from kconn.infer.correction import (
    CI_LEVEL,
    Correction,
    compare_maps,
    correct_jointly,
    read_result,
)
from kconn.infer.feature_tests import estimate_features
from kconn.infer.features import join_covariates, read_features
from kconn.infer.labelling import label_results
from kconn.infer.linear_model import Model, read_design, read_groups
from kconn.infer.missing import check_refit, count_observed, estimate_patterns, find_patterns
from kconn.infer.neighbourhood import Meaning, read_enhancement
from kconn.infer.observations import join_permutations, join_shufflings, read_observations
from kconn.infer.permuting import Work, run_map_tests
from kconn.infer.relabelling import Exchange, plan_tests, read_blocks, read_contrasts
from kconn.infer.scheduling import DataMatrix
from kconn.infer.sequential import check_stopping, estimate_sequentially
from kconn.kernels import glm, multiple_testing, tallies
from kconn.kernels.clusters import Neighbours, Tfce
from kconn.kernels.glm import Regression
from kconn.kernels.sequential import Sequential
from kconn.kernels.tallies import TAILS

#: Option -> what it may be.
_WORDS: Final[dict[str, Sequence[object]]] = {
    "alternative": TAILS,
    "regression": get_args(Regression),
    "dtype": tuple(tallies.TIE_RTOL),
    "sign_flip": (True, False, "both"),
    "statistic": get_args(Statistic),
    "convention": get_args(Convention),
    "fdr": tuple(multiple_testing.FDR),
    "tail": ("counts", "gpd"),
    "missing": ("exclude", "refit"),
}


def permutation_test(  # noqa: PLR0913 - the words of the field, one keyword each
    data: Data,
    design: pd.DataFrame | npt.NDArray[np.floating],
    contrasts: Mapping[str, Any],
    *,
    n_perm: int,
    seed: int,
    alternative: Alternative = "two-sided",
    exchangeability_blocks: Rows | None = None,
    sign_flip: bool | Literal["both"] = False,
    variance_groups: Rows | None = None,
    regression: Regression = "freedman-lane",
    permutations: xr.DataArray | npt.NDArray[np.integer] | None = None,
    signs: xr.DataArray | npt.NDArray[np.integer] | None = None,
    feature_covariates: Data | None = None,
    statistic: Statistic = "edge",
    neighbours: int | npt.NDArray[np.integer] | Neighbours | None = None,
    threshold: float | None = None,
    tfce: Tfce | None = None,
    convention: Convention = "kconn",
    joint_fwe: bool = False,
    fdr: Literal["bh", "bky"] = "bh",
    tail: Literal["counts", "gpd"] = "counts",
    missing: Literal["exclude", "refit"] = "exclude",
    dtype: Literal["float64", "float32"] = "float64",
    max_mem: int = 2 * GIB,
    checkpoint: Checkpoint | None = None,
    stopping: Sequential | None = None,
) -> xr.Dataset:
    """Test contrasts of a linear model by permutation, with family-wise error control over features.

    Computes at once, on the Dask scheduler that is current: a default ``distributed.Client`` if there is one, else
    threads. The bits of the result do not depend on the scheduler, on workers, ``max_mem``, input chunks or row order.

    Parameters
    ----------
    data
        ``(observation, feature...)``, NumPy or Dask, float32 or float64; a bare array is ``(observation, feature)``.
        With a coordinate ``observation`` every other table is joined to it by id.
    design
        One row per observation, one column per regressor, of full column rank; the intercept is a column like others.
        A DataFrame is indexed by observation id; an array has its rows in the order of ``data``.
    contrasts
        Name -> weights ``(regressor,)`` for t, or ``(r, regressor)`` for F. With a DataFrame design the weights of a
        t may be a mapping column -> weight; columns left out weigh 0.
    n_perm
        Relabellings, the identity counted as one. All of them are used when there are no more than this.
    seed
        Key of the random stream.
    alternative
        Direction of ``p_unc``, ``p_fwe``, ``p_fdr`` and ``max_stat``. F has only one.
    exchangeability_blocks
        Positive labels: exchange within blocks; negative labels: exchange whole blocks; a table with several columns
        is PALM's multi-level one.
    sign_flip
        True: flip signs instead of permuting (errors symmetric about zero); ``"both"``: permute and flip. A contrast
        whose tested columns are the same for all observations (a mean) cannot be permuted and is always flipped.
    variance_groups
        One label per observation; every group gets its own variance (v and G statistics, ``max_stat`` on z). This does
        not restrict the exchange: observations of different groups are exchanged unless blocks forbid it.
    regression
        How nuisance is dealt with, see `kconn.kernels.glm.plan_pooled`.
    permutations, signs
        Tables ``(n_perm, observation)`` to use instead of drawing, row 0 the identity: PALM's and MRtrix3's convention
        ``(P v)[i] = sign[i] v[permutation[i]]``, counting rows of ``data`` from 0.
    feature_covariates
        One more regressor per feature, of the shape of ``data`` (grey matter for a map of connectivity, say): PALM's
        ``-evperdat``. Freedman-Lane only. It is nuisance unless a contrast weighs it, as ``"feature_covariates"`` in a
        mapping, or with one weight more than the design has columns, the last.
    statistic
        ``"edge"`` or ``"voxel"``: each feature by itself. ``"cluster-extent"`` (number of features), ``"cluster-mass"``
        (sum of z above the threshold), ``"nbs"`` (number of edges of a component, edges with a common node being
        neighbours) and ``"tfce"``: p values and ``max_stat`` are those of the cluster or of the enhanced value, which
        is returned as ``enhanced``.
    neighbours
        6, 18 or 26: voxels with coordinates ``i j k`` that touch; pairs ``(n_pair, 2)`` of feature positions; or
        `kconn.Neighbours`, pairs with the size of each feature, as `kconn.grayordinate_neighbours` gives for CIFTI
        data: extents (of TFCE too) then sum sizes, and under ``"kconn"`` mass weighs by them. For ``"nbs"`` neighbours
        follow from ``node_i node_j``.
    threshold
        Features beyond it form clusters: a z, under ``"fsl"`` a t or F, under ``"nilearn"`` an uncorrected p.
    tfce
        Exponents and step of ``"tfce"``.
    convention
        Whose rules clusters and enhancement follow: ``"kconn"``, ``"palm"``, ``"fsl"`` or ``"nilearn"``, see
        `kconn.kernels.spatial.RULES`. Under ``"palm"`` ``max_stat`` of single features is on z as well, and v has a
        third of Welch's degrees of freedom.
    joint_fwe
        Add ``p_fwe_joint`` and ``p_fdr_joint``, corrected over all contrasts together: one table of relabellings for
        all, maxima over contrasts on the scale of z.
    fdr
        Benjamini-Hochberg or the two-stage procedure of Benjamini, Krieger and Yekutieli at level 0.05.
    tail
        ``"gpd"``: p below 0.1 come from a generalised Pareto tail, where one fits: corrected ones from the tail of
        ``max_stat``, uncorrected ones of single features from the tail of each feature's own null. Uncorrected p of
        enhanced values (``"tfce"``) stay counts; the attribute ``tail_unc`` says which they are.
    missing
        ``"exclude"``: features with a missing value are left out. ``"refit"``: each is tested on the observations that
        it has, with their own model, degrees of freedom and relabellings; maxima are taken on z. Not for statistics of
        whole maps, feature covariates or user permutations.
    dtype
        Precision of the permuted statistics. The observed statistic is always float64.
    max_mem
        Bytes that the tasks of one process may hold together.
    checkpoint
        Where finished ranges of relabellings are kept: a call with the same arguments computes only what is not there.
    stopping
        ``Sequential(n_exceed=10)``: a feature stops at its tenth relabelling that is at least as extreme as what was
        observed, at relabelling l after the identity, with p = 10 / l; relabellings of features that have stopped are
        not computed. Gives ``p_unc`` of ``alternative``, ``p_fdr`` and ``n_used``; ``p_fwe`` and ``max_stat`` need
        all features of every relabelling and are NaN. Nothing is kept in ``checkpoint``.

    Returns
    -------
    xr.Dataset
        Dims ``(contrast, feature...)``: ``effect stat dof zstat cohen_d partial_r p_unc p_fwe p_fdr excluded``, and
        ``p_unc_tails p_fwe_tails (tail, contrast, feature...)``; ``p_unc_ci p_fwe_ci (limit, contrast, feature...)``,
        exact binomial 95 % limits of the p that all relabellings would give, equal to p where the test is exhaustive;
        ``max_stat (permutation, contrast)``, in the direction of ``alternative``; ``permutation_table sign_table
        (contrast, permutation, observation)``; with ``joint_fwe``, ``p_fwe_joint p_fwe_joint_ci p_fdr_joint``; with
        ``missing="refit"``, ``n_observed (feature...)``; with ``stopping``, ``n_used (contrast, feature...)``, the
        relabellings compared, identity included. Coordinates along
        ``contrast``: ``stat_kind shuffling n_permutations n_distinct exhaustive table_sha256``.

        p = (number of relabellings whose statistic is at least as extreme, identity and ties included) / n_perm.

    Raises
    ------
    DesignError
        ``E-ID-MISSING E-ID-EXTRA E-ID-DUPLICATE E-TABLE E-TABLE-SHAPE E-COV-NAN E-DESIGN-RANK E-CONTRAST E-TOO-FEW
        E-PERMUTATIONS E-PATTERNS E-BLOCKS E-NO-FEATURES``.
    SchemaError
        ``E-SCHEMA``, ``E-ARGUMENT``.
    ResourceError
        ``E-MEM``.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060; Freedman and Lane 1983,
    doi:10.1080/07350015.1983.10509354; Nichols and Holmes 2002, doi:10.1002/hbm.1058; Besag and Clifford 1991,
    doi:10.1093/biomet/78.2.301
    """
    _check_words(
        alternative=alternative,
        regression=regression,
        dtype=dtype,
        sign_flip=sign_flip,
        statistic=statistic,
        convention=convention,
        fdr=fdr,
        tail=tail,
        missing=missing,
    )
    features = read_features(data)
    observations = read_observations(features.data)
    columns, matrix = read_design(design, observations)
    glm.check_design(matrix)
    exchange = Exchange(
        n_perm=check_integer("n_perm", n_perm, 2),
        seed=check_integer("seed", seed, 0),
        tree=read_blocks(exchangeability_blocks, observations),
        sign_flip=sign_flip,
        permutations=None if permutations is None else join_permutations(permutations, observations),
        signs=None if signs is None else join_shufflings(signs, observations),
    )
    model = Model(
        columns=columns,
        matrix=matrix,
        regression=regression,
        variance_groups=read_groups(variance_groups, observations, regression),
        convention=convention,
        has_feature_covariates=feature_covariates is not None,
    )
    placed = DataMatrix(values=features.matrix, order=observations.order)
    if feature_covariates is not None:
        placed = join_covariates(features, feature_covariates, observations, model)
    plan = plan_tests(read_contrasts(contrasts, model, joint=joint_fwe), model, exchange)

    enhancement = None
    if statistic in ("edge", "voxel"):
        refuse_unused(statistic, neighbours=neighbours, threshold=threshold, tfce=tfce)
    else:
        meaning = Meaning(
            convention=convention, two_sided=alternative == "two-sided", grouped=variance_groups is not None
        )
        enhancement = read_enhancement(statistic, neighbours, threshold, tfce, features.data, meaning)
    correction = Correction(
        alternative=alternative, fdr=fdr, tail=tail, convention=convention, tie_rtol=tallies.TIE_RTOL[dtype]
    )
    # Patterns of missing observations meet on z, so ranges of theirs do so too.
    on_z = convention == "palm" or missing == "refit"
    work = Work(dtype=dtype, max_mem=max_mem, on_z=on_z, checkpoint=checkpoint)
    per_feature: dict[str, npt.NDArray[Any]] = {}
    if enhancement is not None:
        refuse_unused(statistic, missing=None if missing == "exclude" else missing, stopping=stopping)
        maps = run_map_tests(placed, plan.tests, enhancement, work)
        outcomes = [
            compare_maps(test, one, enhancement, correction) for test, one in zip(plan.tests, maps, strict=True)
        ]
    elif stopping is not None:
        check_stopping(stopping, joint_fwe=joint_fwe, gpd=tail == "gpd", refit=missing == "refit")
        outcomes = estimate_sequentially(placed, plan.tests, work, correction, stopping)
    elif missing == "refit":
        check_refit(plan)
        patterns = find_patterns(placed)
        outcomes = estimate_patterns(placed, patterns, plan, work, correction)
        per_feature["n_observed"] = count_observed(patterns, features.n_feature)
    else:
        outcomes = estimate_features(placed, plan.tests, work, correction)
    results = [read_result(outcome, correction) for outcome in outcomes]
    if joint_fwe:
        correct_jointly(results, outcomes, correction)
    ds = label_results(results, plan.tests, features, observations, per_feature)
    return schema.annotate(ds).assign_attrs(
        alternative=alternative,
        regression=regression,
        fdr=fdr,
        tail=tail,
        # Each voxel's own null of enhanced values is not kept, and clusters have no p of single features.
        tail_unc=tail if enhancement is None else "counts",
        convention=convention,
        statistic=statistic,
        missing=missing,
        **({} if threshold is None else {"threshold": threshold}),
        **({} if stopping is None else {"n_exceed": stopping.n_exceed}),
        ci_level=CI_LEVEL,
        dtype=dtype,
        n_perm=exchange.n_perm,
        seed=exchange.seed,
        tie_rtol=tallies.TIE_RTOL[dtype],
        n_observation=observations.n_obs,
        n_feature=features.n_feature,
        n_missing=[int((result["excluded"] == 1).sum()) for result in results],
        n_constant=[int((result["excluded"] == 2).sum()) for result in results],
        notes=[f"{test.name}: {test.note}" for test in plan.tests if test.note],
    )


def _check_words(**given: object) -> None:
    for name, value in given.items():
        check_choice(name, value, _WORDS[name])
