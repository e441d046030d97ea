"""Permutation tests of a design against every feature: labels, checks and tasks around `kconn.kernels.glm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn import schema
from kconn.chunks import GIB
from kconn.errors import DesignError, SchemaError
from kconn.kernels import glm, multiple_testing, permutation, spatial, tails, tallies, welch
from kconn.kernels.clusters import CONNECTIVITY, Graph, Network, Tfce, build_graph, volume_pairs
from kconn.kernels.feature_covariates import plan_feature_covariates
from kconn.kernels.permutation import Shuffling
from kconn.kernels.spatial import TAILS, Enhancement
from kconn.observations import (
    DIM,
    Observations,
    join_permutations,
    join_rows,
    join_shufflings,
    join_table,
    read_observations,
)
from kconn.permuting import Found, FoundMaps, Test, run_map_tests, run_tests

Alternative = Literal["two-sided", "greater", "less"]
Regression = glm.Regression
Convention = Literal["kconn", "palm", "fsl", "nilearn"]
Statistic = Literal["edge", "voxel", "cluster-extent", "cluster-mass", "tfce", "nbs"]
Data = xr.DataArray | npt.NDArray[np.floating] | da.Array
Rows = pd.DataFrame | pd.Series | xr.DataArray | npt.NDArray[np.generic]

#: Coverage of the limits of every p.
CI_LEVEL: Final = 0.95


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
    neighbours: int | npt.NDArray[np.integer] | None = None,
    threshold: float | None = None,
    tfce: Tfce | None = None,
    convention: Convention = "kconn",
    joint_fwe: bool = False,
    fdr: Literal["bh", "bky"] = "bh",
    tail: Literal["counts", "gpd"] = "counts",
    dtype: Literal["float64", "float32"] = "float64",
    max_mem: int = 2 * GIB,
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
        One more nuisance regressor per feature, of the shape of ``data`` (grey matter for a map of connectivity, say).
        Freedman-Lane only.
    statistic
        ``"edge"`` or ``"voxel"``: each feature by itself. ``"cluster-extent"`` (number of features), ``"cluster-mass"``
        (sum of z above the threshold), ``"nbs"`` (number of edges of a component, edges with a common node being
        neighbours) and ``"tfce"``: p values and ``max_stat`` are those of the cluster or of the enhanced value, which
        is returned as ``enhanced``.
    neighbours
        6, 18 or 26: voxels with coordinates ``i j k`` that touch; or pairs ``(n_pair, 2)`` of feature positions. For
        ``"nbs"`` neighbours follow from ``node_i node_j``.
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
        ``"gpd"``: corrected p below 0.1 come from a generalised Pareto tail fitted to ``max_stat``, where one fits.
    dtype
        Precision of the permuted statistics. The observed statistic is always float64.
    max_mem
        Bytes that the tasks of one process may hold together.

    Returns
    -------
    xr.Dataset
        Dims ``(contrast, feature...)``: ``effect stat dof zstat cohen_d partial_r p_unc p_fwe p_fdr excluded``, and
        ``p_unc_tails p_fwe_tails (tail, contrast, feature...)``; ``p_unc_ci p_fwe_ci (limit, contrast, feature...)``,
        exact binomial 95 % limits of the p that all relabellings would give, equal to p where the test is exhaustive;
        ``max_stat (permutation, contrast)``, in the direction of ``alternative``; ``permutation_table sign_table
        (contrast, permutation, observation)``; with ``joint_fwe``, ``p_fwe_joint p_fdr_joint``. Coordinates along
        ``contrast``: ``stat_kind shuffling n_permutations n_distinct exhaustive table_sha256``.

        p = (number of relabellings whose statistic is at least as extreme, identity and ties included) / n_perm.

    Raises
    ------
    DesignError
        ``E-ID-MISSING E-ID-EXTRA E-ID-DUPLICATE E-TABLE E-TABLE-SHAPE E-COV-NAN E-DESIGN-RANK E-CONTRAST E-TOO-FEW
        E-PERMUTATIONS E-BLOCKS E-NO-FEATURES``.
    SchemaError
        ``E-SCHEMA``, ``E-ARGUMENT``.
    ResourceError
        ``E-MEM``.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060; Freedman and Lane 1983,
    doi:10.1080/07350015.1983.10509354; Nichols and Holmes 2002, doi:10.1002/hbm.1058
    """
    _check_choice("alternative", alternative, TAILS)
    _check_choice("regression", regression, get_args(Regression))
    _check_choice("dtype", dtype, tuple(tallies.TIE_RTOL))
    _check_choice("sign_flip", sign_flip, (True, False, "both"))
    _check_choice("statistic", statistic, get_args(Statistic))
    _check_choice("convention", convention, get_args(Convention))
    _check_choice("fdr", fdr, tuple(multiple_testing.FDR))
    _check_choice("tail", tail, ("counts", "gpd"))
    features = _read_features(data)
    observations = read_observations(features.data)
    order = observations.order
    columns, matrix = _read_design(design, observations)
    glm.check_design(matrix)
    exchange = Exchange(
        n_perm=_check_integer("n_perm", n_perm, 2),
        seed=_check_integer("seed", seed, 0),
        tree=_read_blocks(exchangeability_blocks, observations),
        sign_flip=sign_flip,
        permutations=None if permutations is None else join_permutations(permutations, observations),
        signs=None if signs is None else join_shufflings(signs, observations),
    )
    model = Model(
        columns=columns,
        matrix=matrix,
        regression=regression,
        variance_groups=_read_groups(variance_groups, observations, regression),
        convention=convention,
        has_feature_covariates=feature_covariates is not None,
    )
    if feature_covariates is not None:
        features, order = _join_covariates(features, feature_covariates, observations, model)
    tests = _plan_tests(contrasts, model, exchange, joint=joint_fwe)

    enhancement = None
    if statistic in ("edge", "voxel"):
        _refuse_unused(statistic, neighbours=neighbours, threshold=threshold, tfce=tfce)
    else:
        meaning = Meaning(
            convention=convention, two_sided=alternative == "two-sided", grouped=variance_groups is not None
        )
        enhancement = _read_enhancement(statistic, neighbours, threshold, tfce, features.data, meaning)
    correction = Correction(
        alternative=alternative, fdr=fdr, tail=tail, convention=convention, tie_rtol=tallies.TIE_RTOL[dtype]
    )
    found: list[Found | FoundMaps]
    if enhancement is None:
        found = list(run_tests(features.matrix, order, tests, dtype=dtype, max_mem=max_mem))
    else:
        found = list(run_map_tests(features.matrix, order, tests, enhancement, dtype=dtype, max_mem=max_mem))

    nulls = [_compare(test, result, correction) for test, result in zip(tests, found, strict=True)]
    results = [
        _read_result(test, result, null, correction) for test, result, null in zip(tests, found, nulls, strict=True)
    ]
    for test, result, one in zip(tests, results, found, strict=True):
        if enhancement is not None and isinstance(one, FoundMaps):
            result.update(_read_maps(test, one, enhancement, correction))
    if joint_fwe:
        _correct_jointly(results, tests, nulls, correction)
    ds = _label_results(results, tests, features, observations)
    return schema.annotate(ds).assign_attrs(
        alternative=alternative,
        regression=regression,
        fdr=fdr,
        tail=tail,
        convention=convention,
        statistic=statistic,
        **({} if threshold is None else {"threshold": threshold}),
        ci_level=CI_LEVEL,
        dtype=dtype,
        n_perm=exchange.n_perm,
        seed=exchange.seed,
        tie_rtol=tallies.TIE_RTOL[dtype],
        n_observation=observations.n_obs,
        n_feature=features.n_feature,
        n_missing=[int((result["excluded"] == 1).sum()) for result in results],
        n_constant=[int((result["excluded"] == 2).sum()) for result in results],
        notes=[f"{test.name}: {test.note}" for test in tests if test.note],
    )


def _check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if not any(value is choice or value == choice for choice in allowed):
        raise SchemaError("E-ARGUMENT", f"{name}={value!r}", rule=f"one of {list(allowed)}")


def _check_integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SchemaError("E-ARGUMENT", f"{name}={value!r}", rule=f"an integer of at least {least}")
    return int(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The data as a matrix ``(observation, feature)``, and how to get the feature dims back."""

    data: xr.DataArray
    matrix: Any
    n_feature: int


def _read_features(data: Data) -> Features:
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


def _join_covariates(
    features: Features,
    covariates: Data,
    observations: Observations,
    model: Model,
) -> tuple[Features, npt.NDArray[np.intp]]:
    """Return data above covariates, and the row of each at each canonical position."""
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
    other = _read_features(covariates)
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
    return (
        replace(features, matrix=concatenate([features.matrix, other.matrix])),
        np.concatenate([observations.order, observations.n_obs + order]),
    )


def _order_of(data: xr.DataArray, observations: Observations) -> npt.NDArray[np.intp]:
    """Return the row of another array at each canonical position."""
    index = data.indexes.get(DIM, pd.RangeIndex(data.sizes[DIM]))
    rows = np.arange(data.sizes[DIM])
    if DIM in data.coords:
        position = join_table(pd.Series(rows, index=index), observations, what="feature_covariates")
        return np.asarray(position.to_numpy()[:, 0], dtype=np.intp)
    return np.asarray(join_rows(rows, observations, what="feature_covariates"), dtype=np.intp)


def _read_design(
    design: pd.DataFrame | npt.NDArray[np.floating], observations: Observations
) -> tuple[list[str], npt.NDArray[np.float64]]:
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


def _read_blocks(blocks: Rows | None, observations: Observations) -> permutation.Block | None:
    if blocks is None:
        return None
    table: npt.NDArray[Any] = join_rows(blocks, observations, what="exchangeability_blocks")
    if table.dtype.kind == "f" and np.array_equal(table, np.round(table)):
        table = table.astype(np.int64)
    return permutation.exchange_tree(table if table.ndim == 1 or table.shape[1] > 1 else table[:, 0])


def _read_groups(
    groups: Rows | None, observations: Observations, regression: Regression
) -> npt.NDArray[np.intp] | None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The design in the canonical order of observations, and how it is fitted."""

    columns: list[str]
    matrix: npt.NDArray[np.float64]
    regression: Regression
    variance_groups: npt.NDArray[np.intp] | None
    convention: Convention
    has_feature_covariates: bool

    def plan(self, partition: glm.Partition, shuffling: Shuffling) -> glm.Engine:
        """Return the engine of one contrast."""
        if self.has_feature_covariates:
            return plan_feature_covariates(partition, shuffling)
        if self.variance_groups is None:
            return glm.plan_pooled(partition, shuffling, self.regression)
        return welch.plan_welch(partition, self.variance_groups, palm=self.convention == "palm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Which relabellings are asked for, in the canonical order of observations."""

    n_perm: int
    seed: int
    tree: permutation.Block | None
    sign_flip: bool | str
    permutations: npt.NDArray[np.generic] | None
    signs: npt.NDArray[np.generic] | None


def _plan_tests(contrasts: Mapping[str, Any], model: Model, exchange: Exchange, *, joint: bool) -> list[Test]:
    weights = {name: _read_contrast(name, given, model.columns) for name, given in contrasts.items()}
    if not weights:
        raise DesignError("E-CONTRAST", "there is no contrast", rule="at least one name with its weights")
    partitions = {}
    for name, contrast in weights.items():
        try:
            partitions[name] = glm.split_design(model.matrix, contrast)
        except DesignError as error:
            raise error.at(name) from error
    tested: dict[str, npt.NDArray[np.bool_]] = {}
    for name, contrast in weights.items():
        tested[name] = np.asarray(np.atleast_2d(contrast).any(axis=0))
    own = {name: permutation.label_rows(model.matrix[:, column]) for name, column in tested.items()}
    if joint:
        # One table for all: what any contrast tests decides which relabellings differ.
        tested = dict.fromkeys(tested, np.asarray(np.any(list(tested.values()), axis=0)))
    tests = []
    for name, partition in partitions.items():
        try:
            labels = permutation.label_rows(model.matrix[:, tested[name]])
            shuffling, kind, note = _plan_shuffling(labels, exchange)
            engine = model.plan(partition, shuffling)
        except DesignError as error:
            raise error.at(name) from error
        if joint and kind == "permutations" and own[name].max() == own[name].min():
            raise DesignError(
                "E-PERMUTATIONS",
                "no relabelling of the common table changes what this contrast tests",
                where=name,
                rule="with joint_fwe all contrasts share one table",
                fix="test a mean in a call of its own, or with sign_flip=True",
            )
        tests.append(Test(name=name, shuffling=shuffling, kind=kind, note=note, engine=engine))
    return tests


def _read_contrast(name: str, weights: Any, columns: list[str]) -> npt.NDArray[np.float64]:
    if isinstance(weights, Mapping | pd.Series):
        given = {str(column): value for column, value in weights.items()}
        unknown = sorted(set(given) - set(columns))
        if unknown:
            raise DesignError(
                "E-CONTRAST", f"no column {unknown[0]!r} in the design", where=name, rule=f"one of {columns}"
            )
        weights = [given.get(column, 0.0) for column in columns]
    try:
        return np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DesignError(
            "E-CONTRAST", f"the weights are no numbers: {error}", where=name, rule="one number per column"
        ) from error


def _plan_shuffling(labels: npt.NDArray[np.intp], exchange: Exchange) -> tuple[Shuffling, str, str]:
    """Return the table, what it consists of, and a note where this is not what was asked for."""
    tree = permutation.free_exchange(labels.size) if exchange.tree is None else exchange.tree
    if exchange.permutations is not None or exchange.signs is not None:
        return _read_user_table(labels, exchange, tree), "user table", ""
    kind: permutation.Kind = "permutations"
    note = ""
    if exchange.sign_flip is True:
        kind = "sign-flips"
    elif exchange.sign_flip == "both":
        kind = "both"
    elif labels.max() == labels.min():
        kind = "sign-flips"
        note = "signs are flipped: the tested columns are the same for all observations, so permuting changes nothing"
    shuffling = permutation.plan_shuffling(labels, n_perm=exchange.n_perm, seed=exchange.seed, tree=tree, kind=kind)
    return shuffling, kind, note


def _read_user_table(labels: npt.NDArray[np.intp], exchange: Exchange, tree: permutation.Block) -> Shuffling:
    n_distinct = 1
    if exchange.permutations is not None:
        n_distinct *= permutation.count_permutations(tree, labels)
    if exchange.signs is not None:
        n_distinct *= 2 ** len(permutation.flip_units(tree))
    shuffling = permutation.read_shuffling(exchange.permutations, exchange.signs, labels=labels, n_distinct=n_distinct)
    if shuffling.n_perm != exchange.n_perm:
        raise DesignError(
            "E-PERMUTATIONS",
            f"the table has {shuffling.n_perm} rows and n_perm={exchange.n_perm}",
            rule="a table that is supplied has n_perm rows, the identity first",
            fix=f"pass n_perm={shuffling.n_perm}",
        )
    return shuffling


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """How counts become p-values."""

    alternative: Alternative
    fdr: str
    tail: str
    convention: Convention
    tie_rtol: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What decides how a threshold is read."""

    convention: Convention
    two_sided: bool
    grouped: bool


def _refuse_unused(statistic: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise SchemaError("E-ARGUMENT", f"{name} with statistic={statistic!r}", rule=f"{name} has no effect there")


def _refuse_missing(statistic: str, **options: object) -> None:
    for name, value in options.items():
        if value is None:
            raise SchemaError("E-ARGUMENT", f"statistic={statistic!r} without {name}", rule=f"{name} is needed")


def _read_enhancement(
    statistic: Statistic,
    neighbours: int | npt.NDArray[np.integer] | None,
    threshold: float | None,
    tfce: Tfce | None,
    data: xr.DataArray,
    meaning: Meaning,
) -> Enhancement:
    """Return what is made of each map."""
    if meaning.grouped and spatial.RULES[meaning.convention].scale == "stat":
        raise SchemaError(
            "E-ARGUMENT",
            f"convention={meaning.convention!r} with variance_groups",
            rule="v and G are compared on z",
            fix="take the convention 'kconn' or 'palm'",
        )
    if statistic == "nbs":
        _refuse_unused(statistic, neighbours=neighbours)
    else:
        _refuse_missing(statistic, neighbours=neighbours)
    if statistic == "tfce":
        _refuse_unused(statistic, threshold=threshold)
    else:
        _refuse_unused(statistic, tfce=tfce)
        _refuse_missing(statistic, threshold=threshold)
    kinds: dict[str, Literal["extent", "mass", "tfce"]] = {"cluster-mass": "mass", "tfce": "tfce"}
    return Enhancement(
        kind=kinds.get(statistic, "extent"),
        neighbours=_read_network(data) if statistic == "nbs" else _read_graph(neighbours, data),
        threshold=None if threshold is None else _read_threshold(threshold, meaning),
        tfce=tfce or Tfce(),
        rules=spatial.RULES[meaning.convention],
    )


def _read_threshold(threshold: float, meaning: Meaning) -> float | spatial.TailP:
    is_p = meaning.convention == "nilearn"
    if not 0 < threshold < (0.5 if is_p else np.inf):
        raise SchemaError(
            "E-ARGUMENT",
            f"threshold={threshold!r} under the convention {meaning.convention!r}",
            rule="a p between 0 and 0.5" if is_p else "above 0",
        )
    if not is_p:
        return float(threshold)
    return spatial.TailP(p=threshold / 2 if meaning.two_sided else threshold)


def _read_graph(neighbours: int | npt.NDArray[np.integer] | None, data: xr.DataArray) -> Graph:
    n_feature = int(np.prod(data.shape[1:]))
    if not isinstance(neighbours, int | np.integer):
        return build_graph(np.asarray(neighbours), n_feature)
    if neighbours not in CONNECTIVITY:
        raise SchemaError("E-ARGUMENT", f"neighbours={neighbours}", rule=f"one of {list(CONNECTIVITY)}, or pairs")
    ijk = _read_coordinates(data, ("i", "j", "k"), "voxels")
    return build_graph(volume_pairs(np.column_stack(ijk).astype(np.int64), int(neighbours)), n_feature)


def _read_network(data: xr.DataArray) -> Network:
    pairs = _read_coordinates(data, ("node_i", "node_j"), "edges")
    names, position = np.unique(np.concatenate(pairs).astype(str), return_inverse=True)
    node_i, node_j = position.reshape(2, -1)
    return Network(node_i=node_i, node_j=node_j, n_node=names.size)


def _read_coordinates(data: xr.DataArray, names: Sequence[str], what: str) -> list[npt.NDArray[Any]]:
    missing = [name for name in names if name not in data.coords]
    if data.ndim != 2 or missing:
        raise SchemaError(
            "E-SCHEMA",
            f"data has dims {tuple(data.dims)} and lacks the coordinates {missing}",
            rule=f"one dim of {what}, with coordinates {list(names)} along it",
        )
    return [data[name].to_numpy() for name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """One direction of one contrast, on the scale on which relabellings are compared.

    ``counts (n_feature,)`` of relabellings at least as extreme, identity included; ``highest (n_perm,)`` over features;
    ``limits (n_feature,)`` that ``highest`` must reach to count. ``to_z`` and ``to_stat`` turn them into z and into
    what ``max_stat`` shows; statistics of whole maps are left as they are.
    """

    counts: npt.NDArray[np.int64]
    highest: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]
    to_z: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
    to_stat: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _same(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values


def _compare(test: Test, found: Found | FoundMaps, correction: Correction) -> dict[str, Null]:
    observed = found.observed
    if (observed.excluded != 0).all():
        raise DesignError(
            "E-NO-FEATURES",
            f"{observed.excluded.size} feature(s): {int((observed.excluded == 1).sum())} with missing values, "
            f"{int((observed.excluded == 2).sum())} without variance",
            where=test.name,
            rule="at least one feature varies and is known for every observation",
        )
    nulls = (
        _compare_maps(found, correction) if isinstance(found, FoundMaps) else _compare_features(test, found, correction)
    )
    return nulls if test.directed else dict.fromkeys(("two-sided", "greater"), nulls["greater"])


def _compare_features(test: Test, found: Found, correction: Correction) -> dict[str, Null]:
    compared, tally = found.observed.compared, found.tally
    limits = test.engine.limits(compared, correction.tie_rtol)
    highest = np.concatenate([[np.nanmax(compared)], tally.highest])
    lowest = np.concatenate([[np.nanmin(compared)], tally.lowest])
    found_by_tail = {
        "two-sided": (tally.n_beyond, np.maximum(highest, -lowest), limits.beyond),
        "greater": (tally.n_above, highest, limits.above),
        "less": (tally.n_below, -lowest, -limits.below),
    }
    to_z = test.engine.to_z
    to_stat = to_z if correction.convention == "palm" else test.engine.to_stat
    return {
        tail: Null(counts=1 + counts, highest=null, limits=bounds.astype(np.float64), to_z=to_z, to_stat=to_stat)
        for tail, (counts, null, bounds) in found_by_tail.items()
    }


def _compare_maps(found: FoundMaps, correction: Correction) -> dict[str, Null]:
    slack = correction.tie_rtol * np.maximum(found.enhanced, 1)
    missing = np.where(found.observed.excluded == 0, 0.0, np.nan)
    return {
        tail: Null(
            counts=1 + found.tally.counts[i_tail],
            highest=np.concatenate([[found.enhanced[i_tail].max()], found.tally.highest[i_tail]]),
            limits=found.enhanced[i_tail] - slack[i_tail] + missing,
            to_z=_same,
            to_stat=_same,
        )
        for i_tail, tail in enumerate(TAILS)
    }


def _read_maps(
    test: Test, found: FoundMaps, enhancement: Enhancement, correction: Correction
) -> dict[str, npt.NDArray[Any]]:
    """Return the enhanced values and the clusters of the observed map."""
    shown = _shown(test, correction) if test.directed else "greater"
    missing = np.where(found.observed.excluded == 0, 0.0, np.nan)
    maps: dict[str, npt.NDArray[Any]] = {"enhanced": found.enhanced[TAILS.index(shown)] + missing}
    if enhancement.threshold is not None:
        maps["cluster"] = enhancement.number(spatial.fill(found.observed.compared), test.engine, shown)
        # Features of one cluster share its statistic: p by counts of each feature would say nothing more.
        nothing = np.full(missing.shape, np.nan)
        maps |= {"p_unc": nothing, "p_fdr": nothing}
        maps["p_unc_tails"] = np.full((len(TAILS), missing.size), np.nan)
        maps["p_unc_ci"] = np.full((2, missing.size), np.nan)
    return maps


def _read_result(
    test: Test, found: Found | FoundMaps, nulls: dict[str, Null], correction: Correction
) -> dict[str, npt.NDArray[Any]]:
    """Return the numbers of one contrast: per feature, per tail and feature, or per permutation."""
    observed, n_perm = found.observed, test.shuffling.n_perm
    tested = observed.excluded == 0
    missing = np.where(tested, 0.0, np.nan)
    p_unc = np.full((len(TAILS), tested.size), np.nan)
    p_fwe = np.full((len(TAILS), tested.size), np.nan)
    fwe_counts: dict[str, npt.NDArray[np.float64]] = {}
    for tail, null in nulls.items():
        fwe_counts[tail] = missing + multiple_testing.count_at_least(null.highest, null.limits)
        p_unc[TAILS.index(tail)] = null.counts / n_perm + missing
        p_fwe[TAILS.index(tail)] = _correct(fwe_counts[tail] / n_perm, null, correction)

    shown = _shown(test, correction)
    i_shown = TAILS.index(shown)
    return {
        "effect": observed.effect,
        "stat": observed.stat,
        "dof": observed.dof,
        "zstat": observed.zstat,
        "cohen_d": observed.cohen_d,
        "partial_r": observed.partial_r,
        "p_unc": p_unc[i_shown],
        "p_fwe": p_fwe[i_shown],
        "p_fdr": multiple_testing.FDR[correction.fdr](p_unc[i_shown]),
        "p_unc_tails": p_unc,
        "p_fwe_tails": p_fwe,
        "p_unc_ci": _limits(missing + nulls[shown].counts, test),
        "p_fwe_ci": _limits(fwe_counts[shown], test),
        "excluded": observed.excluded,
        "max_stat": nulls[shown].to_stat(nulls[shown].highest),
    }


def _shown(test: Test, correction: Correction) -> str:
    return "two-sided" if not test.directed else correction.alternative


def _correct(p: npt.NDArray[np.float64], null: Null, correction: Correction) -> npt.NDArray[np.float64]:
    if correction.tail == "counts":
        return p
    return tails.refine_p_values(p, null.to_z(null.limits), null.to_z(null.highest))


def _limits(counts: npt.NDArray[np.float64], test: Test) -> npt.NDArray[np.float64]:
    if test.shuffling.exhaustive:
        return np.stack([counts / test.shuffling.n_perm] * 2)
    return np.stack(multiple_testing.binomial_limits(counts, test.shuffling.n_perm, level=CI_LEVEL))


def _correct_jointly(
    results: list[dict[str, npt.NDArray[Any]]], tests: list[Test], nulls: list[dict[str, Null]], correction: Correction
) -> None:
    """Add p-values corrected over contrasts as well: the maximum is taken over all of them, as z."""
    chosen = [null[_shown(test, correction)] for test, null in zip(tests, nulls, strict=True)]

    def to_z(test: Test, null: Null, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        z = null.to_z(values)
        folded = test.directed and correction.alternative == "two-sided" and null.to_z is not _same
        return glm.fold_z(z) if folded else z

    highest = np.max([to_z(test, null, null.highest) for test, null in zip(tests, chosen, strict=True)], axis=0)
    stacked = np.stack([result["p_unc"] for result in results])
    fdr = multiple_testing.FDR[correction.fdr](stacked)
    for i_test, (result, test, null) in enumerate(zip(results, tests, chosen, strict=True)):
        limits = to_z(test, null, null.limits)
        p = multiple_testing.count_at_least(highest, limits) / test.shuffling.n_perm
        p = np.where(np.isnan(limits), np.nan, p)
        result["p_fwe_joint"] = p if correction.tail == "counts" else tails.refine_p_values(p, limits, highest)
        result["p_fdr_joint"] = fdr[i_test]


def _label_results(
    results: list[dict[str, npt.NDArray[Any]]], tests: list[Test], features: Features, observations: Observations
) -> xr.Dataset:
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
    variables |= _label_tables(tests, n_perm, observations.n_obs)
    along = {
        "stat_kind": [test.engine.stat_kind for test in tests],
        "shuffling": [test.kind for test in tests],
        "n_permutations": [test.shuffling.n_perm for test in tests],
        "n_distinct": [float(test.shuffling.n_distinct) for test in tests],
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
