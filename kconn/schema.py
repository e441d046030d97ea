"""One table of every dimension and variable: what a Dataset may hold, checked at the border of each function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import xarray as xr

from kconn.errors import SchemaError

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable of the data model: its trailing dimensions, dtype kinds, unit and meaning."""

    dims: tuple[tuple[str, ...], ...]
    kind: str
    unit: str
    doc: str


#: Dimension -> meaning.
DIMS: Final[dict[str, str]] = {
    "observation": "A row of the group analysis: one session of one subject.",
    "voxel": "A voxel of the brain mask (first axis fastest) or a grayordinate, in the order of the file.",
    "member": "A grayordinate of a parcel of a ptseries; member_column is its column.",
    "column": "A column of a table of node series, as read: node sets choose among them.",
    "node": "A region, sphere or column whose mean series is analysed.",
    "edge": "A pair of nodes, node_i < node_j, row-major upper triangle.",
    "voxel_j": "The other voxel of a connection, in the same order as voxel.",
    "rank": "Place in a list, the strongest first.",
    "component": "A principal component of runs: a row that stands for their frames.",
    "template": "A map of a known network.",
    "run": "A run that a decomposition was made of.",
    "window": "A stretch of a run; the coordinate is the onset of its first frame in seconds.",
    "block": "A network, or a pair of networks: the edges within or between.",
    "family": "A named set of edges.",
    "time": "A frame; the coordinate is its onset in seconds.",
    "confound": "A column of the confound table.",
    "contrast": "A tested contrast.",
    "permutation": "A relabelling; the first is the identity.",
    "tail": "An alternative hypothesis: two-sided, greater, less.",
    "limit": "A confidence limit: lower, upper.",
    "regressor": "A column of a design matrix.",
    "row": "A row of the quality table: one run of one session.",
    "carpet_row": "A voxel that the carpet plot of a run shows, the most like the global signal first.",
    "comparison": "Two groups, two visits, or the changes of two groups, whose motion is compared.",
    "measure": "A measure of motion.",
}

#: Variable -> dims allowed (trailing), NumPy kinds, unit, meaning.
VARIABLES: Final[dict[str, Variable]] = {
    "bold": Variable(dims=(("voxel", "time"), ("column", "time")), kind="if", unit="1", doc="Preprocessed signal."),
    "denoised": Variable(
        dims=(("voxel", "time"), ("column", "time")), kind="f", unit="1", doc="Residual signal; NaN where censored."
    ),
    "confounds": Variable(dims=(("time", "confound"),), kind="f", unit="1", doc="Confound table; NaN for n/a."),
    "sample_mask": Variable(dims=(("time",),), kind="b", unit="1", doc="True where the frame is kept."),
    "framewise_displacement": Variable(dims=(("time",),), kind="f", unit="mm", doc="Head motion, Power et al. 2012."),
    "tsnr": Variable(dims=(("voxel",), ("column",)), kind="f", unit="1", doc="Temporal mean / temporal sd of bold."),
    "n_frames": Variable(dims=((),), kind="iu", unit="1", doc="Frames of the run."),
    "n_kept": Variable(dims=((),), kind="iu", unit="1", doc="Frames that sample_mask keeps."),
    "n_regressors": Variable(dims=((),), kind="iu", unit="1", doc="Rank of what denoising removes, mean included."),
    "df_left": Variable(dims=((),), kind="iu", unit="1", doc="Degrees of freedom left after denoising."),
    "n_spikes": Variable(dims=((),), kind="iu", unit="1", doc="Frames that a regressor of their own took out."),
    "regressor_kept": Variable(
        dims=(("regressor",),), kind="b", unit="1", doc="True where a confound removes what those before it do not."
    ),
    "despiked_share": Variable(
        dims=((),), kind="f", unit="1", doc="Share of the values of bold that despiking changed."
    ),
    "n_constant": Variable(dims=((),), kind="iu", unit="1", doc="Voxels or nodes without signal; NaN in denoised."),
    "minutes_kept": Variable(dims=((),), kind="f", unit="min", doc="Duration of the kept frames."),
    "median_tsnr": Variable(dims=((),), kind="f", unit="1", doc="Median of tsnr over voxels or nodes."),
    "mean_fd": Variable(dims=((),), kind="f", unit="mm", doc="Mean framewise displacement, first frame apart."),
    "max_fd": Variable(dims=((),), kind="f", unit="mm", doc="Largest framewise displacement."),
    "dvars": Variable(dims=(("time",),), kind="f", unit="1", doc="Root mean square change of bold, Power 2012."),
    "std_dvars": Variable(dims=(("time",),), kind="f", unit="1", doc="dvars over its expectation, Nichols 2017."),
    "mean_std_dvars": Variable(dims=((),), kind="f", unit="1", doc="Mean of std_dvars, first frame apart."),
    "max_std_dvars": Variable(dims=((),), kind="f", unit="1", doc="Largest std_dvars, first frame apart."),
    "global_signal": Variable(dims=(("time",),), kind="f", unit="1", doc="Mean of bold over voxels or columns."),
    "global_sd": Variable(dims=((),), kind="f", unit="%", doc="SD of global_signal, kept frames, in % of its mean."),
    "share_censored": Variable(dims=((),), kind="f", unit="1", doc="Share of frames dropped, dummy frames apart."),
    "step_trans_x": Variable(dims=((),), kind="f", unit="mm", doc="Mean absolute change per frame along x."),
    "step_trans_y": Variable(dims=((),), kind="f", unit="mm", doc="Mean absolute change per frame along y."),
    "step_trans_z": Variable(dims=((),), kind="f", unit="mm", doc="Mean absolute change per frame along z."),
    "step_rot_x": Variable(dims=((),), kind="f", unit="degree", doc="Mean absolute turn per frame about x."),
    "step_rot_y": Variable(dims=((),), kind="f", unit="degree", doc="Mean absolute turn per frame about y."),
    "step_rot_z": Variable(dims=((),), kind="f", unit="degree", doc="Mean absolute turn per frame about z."),
    "carpet": Variable(
        dims=(("carpet_row", "time"),), kind="i", unit="1/40 sd", doc="Voxels before denoising; -128 where nothing is."
    ),
    "carpet_denoised": Variable(
        dims=(("carpet_row", "time"),), kind="i", unit="1/40 sd", doc="The same voxels after denoising."
    ),
    "atlas_coverage": Variable(dims=((),), kind="f", unit="1", doc="Share of the node set's voxels that have data."),
    "n_uncovered": Variable(dims=((),), kind="iu", unit="1", doc="Nodes with too few voxels with data."),
    "qc_fc": Variable(dims=(("edge",),), kind="f", unit="1", doc="Correlation of the edge with mean_fd."),
    "qc_fc_p": Variable(dims=(("edge",),), kind="f", unit="1", doc="Two-sided p of qc_fc, uncorrected."),
    "qc_fc_median": Variable(dims=((),), kind="f", unit="1", doc="Median of the absolute qc_fc."),
    "qc_fc_share": Variable(dims=((),), kind="f", unit="1", doc="Share of edges with qc_fc_p below 0.05."),
    "qc_fc_share_fdr": Variable(dims=((),), kind="f", unit="1", doc="Share of edges with FDR-adjusted p below 0.05."),
    "qc_fc_distance": Variable(dims=((),), kind="f", unit="1", doc="Rank correlation of qc_fc with edge length."),
    "qc_fc_median_chance": Variable(dims=(("limit",),), kind="f", unit="1", doc="95 % of qc_fc_median by chance."),
    "qc_fc_share_chance": Variable(dims=(("limit",),), kind="f", unit="1", doc="95 % of qc_fc_share by chance."),
    "qc_fc_distance_chance": Variable(dims=(("limit",),), kind="f", unit="1", doc="95 % of qc_fc_distance by chance."),
    "edge_length": Variable(dims=(("edge",),), kind="f", unit="mm", doc="Distance between the two nodes."),
    "p_parametric": Variable(dims=((),), kind="f", unit="1", doc="Two-sided p of t with dof."),
    "mean_first": Variable(dims=((),), kind="f", unit="1", doc="Mean of the first group or visit."),
    "mean_second": Variable(dims=((),), kind="f", unit="1", doc="Mean of the second group or visit."),
    "n_first": Variable(dims=((),), kind="i", unit="1", doc="Subjects of the first group or visit."),
    "n_second": Variable(dims=((),), kind="i", unit="1", doc="Subjects of the second group or visit."),
    "timeseries": Variable(dims=(("node", "time"),), kind="f", unit="1", doc="Mean series; NaN where censored."),
    "timeseries_before": Variable(
        dims=(("node", "time"),), kind="f", unit="1", doc="Mean series, filtered, but with confounds and all frames in."
    ),
    "source": Variable(
        dims=(("node", "time"),), kind="f", unit="1", doc="Simulated course before noise and artefacts."
    ),
    "source_correlation": Variable(dims=(("edge",),), kind="f", unit="1", doc="Correlation that was simulated."),
    "parcel": Variable(dims=(("voxel",),), kind="i", unit="1", doc="Number of the node of a voxel, 0 for none."),
    "coverage": Variable(dims=(("node",),), kind="f", unit="1", doc="Share of the node's voxels that have data."),
    "n_voxel": Variable(dims=(("node",),), kind="i", unit="1", doc="Voxels of the node, with data or without."),
    "dead_node": Variable(dims=(("node",),), kind="b", unit="1", doc="True where the node carries no signal."),
    "netmat": Variable(dims=(("edge",),), kind="f", unit="1", doc="Connection strength."),
    "n_run": Variable(
        dims=(("edge",), ("voxel",)), kind="i", unit="1", doc="Runs that a mean is over, or that have the voxel."
    ),
    "n_window": Variable(dims=(("edge",),), kind="i", unit="1", doc="Windows that the variability is over."),
    "has_data": Variable(dims=(("voxel",),), kind="b", unit="1", doc="True where the run has a map."),
    "n_missing": Variable(
        dims=(("edge",), ("voxel",)), kind="i", unit="1", doc="Observations in which the edge or voxel is NaN."
    ),
    "reference": Variable(dims=(("edge",),), kind="f", unit="1", doc="Geometric mean that deviations start from."),
    "ar1": Variable(dims=(("node",),), kind="f", unit="1", doc="Lag-1 autocorrelation of the kept frames."),
    "z_scale": Variable(dims=((),), kind="f", unit="1", doc="What arctanh(r) was multiplied by."),
    "network_mean": Variable(dims=(("block",),), kind="f", unit="1", doc="Mean edge within or between networks."),
    "family_mean": Variable(dims=(("family",),), kind="f", unit="1", doc="Mean edge of a named family."),
    "n_edge": Variable(dims=(("block",), ("family",)), kind="i", unit="1", doc="Edges that a mean is over."),
    "icc": Variable(dims=(("edge",),), kind="f", unit="1", doc="Intraclass correlation, of the kind in its attrs."),
    "amplitude": Variable(dims=(("node",),), kind="f", unit="1", doc="Standard deviation over the kept frames."),
    "reduced": Variable(
        dims=(("component", "voxel"),), kind="f", unit="1", doc="Principal components, each times its singular value."
    ),
    "eigenvalue": Variable(dims=(("component",),), kind="f", unit="1", doc="Sum of squares of each row of reduced."),
    "n_dimension": Variable(dims=((), ("run",)), kind="i", unit="1", doc="Components that stand out of white noise."),
    "ica_map": Variable(dims=(("node", "voxel"),), kind="f", unit="1", doc="Independent component, z over voxels."),
    "accepted": Variable(dims=(("node",),), kind="b", unit="1", doc="Components that are networks."),
    "stability": Variable(dims=(("node",),), kind="f", unit="1", doc="Index of quality over starts of ICA."),
    "variance_share": Variable(dims=(("node",),), kind="f", unit="1", doc="Share of the variance it explains."),
    "template_correlation": Variable(
        dims=(("node", "template"),), kind="f", unit="1", doc="Spatial correlation with a known network."
    ),
    "dense": Variable(dims=(("voxel", "voxel_j"),), kind="f", unit="1", doc="Correlation of two voxels."),
    "dense_mean": Variable(
        dims=(("node", "node_j"),), kind="f", unit="1", doc="Mean correlation of the voxels of two nodes."
    ),
    "neighbour": Variable(dims=(("voxel", "rank"),), kind="i", unit="1", doc="The other voxel, -1 for none."),
    "neighbour_r": Variable(dims=(("voxel", "rank"),), kind="f", unit="1", doc="Correlation with neighbour."),
    "seed_map": Variable(dims=(("node", "voxel"),), kind="f", unit="1", doc="Fisher z of the seed with each voxel."),
    "subject_map": Variable(
        dims=(("node", "voxel"),), kind="f", unit="1", doc="Fit of the node's series in the voxel."
    ),
    "subject_map_t": Variable(dims=(("node", "voxel"),), kind="f", unit="1", doc="t of subject_map."),
    "design": Variable(dims=(("observation", "regressor"),), kind="f", unit="1", doc="Design matrix."),
    "effect": Variable(dims=((),), kind="f", unit="1", doc="Contrast of parameter estimates."),
    "stat": Variable(dims=((),), kind="f", unit="1", doc="Test statistic, of the kind in stat_kind."),
    "dof": Variable(dims=((),), kind="fi", unit="1", doc="Residual degrees of freedom."),
    "p_unc": Variable(dims=((),), kind="f", unit="1", doc="Permutation p, uncorrected."),
    "p_fwe": Variable(dims=((),), kind="f", unit="1", doc="Permutation p, corrected by the maximum statistic."),
    "p_fdr": Variable(dims=((),), kind="f", unit="1", doc="p_unc adjusted by Benjamini-Hochberg."),
    "zstat": Variable(dims=((),), kind="f", unit="1", doc="Normal deviate with the upper tail of stat."),
    "cohen_d": Variable(dims=((),), kind="f", unit="1", doc="Effect over the residual standard deviation."),
    "partial_r": Variable(dims=((),), kind="f", unit="1", doc="(Multiple) partial correlation with the tested part."),
    "p_unc_tails": Variable(dims=((),), kind="f", unit="1", doc="Permutation p of each alternative, uncorrected."),
    "p_fwe_tails": Variable(dims=((),), kind="f", unit="1", doc="Permutation p of each alternative, corrected."),
    "p_unc_ci": Variable(dims=((),), kind="f", unit="1", doc="Binomial limits of p_unc."),
    "p_fwe_ci": Variable(dims=((),), kind="f", unit="1", doc="Binomial limits of p_fwe, from its counts."),
    "n_used": Variable(dims=((),), kind="i", unit="1", doc="Relabellings compared before a feature stopped."),
    "p_fwe_joint": Variable(dims=((),), kind="f", unit="1", doc="p_fwe, corrected over contrasts as well."),
    "p_fwe_joint_ci": Variable(dims=((),), kind="f", unit="1", doc="Binomial limits of p_fwe_joint, from its counts."),
    "p_fwe_nodes": Variable(
        dims=(("node", "voxel"),), kind="f", unit="1", doc="p_fwe of a map, corrected over the maps of all nodes."
    ),
    "p_fdr_joint": Variable(dims=((),), kind="f", unit="1", doc="p_fdr, adjusted over contrasts as well."),
    "enhanced": Variable(dims=((),), kind="f", unit="1", doc="Extent or mass of the feature's cluster, or its TFCE."),
    "cluster": Variable(
        dims=((),), kind="i", unit="1", doc="Cluster, numbered by size from 1; below 0 on the other side; 0 outside."
    ),
    "n_observed": Variable(dims=((),), kind="i", unit="1", doc="Observations that a feature is tested on."),
    "excluded": Variable(
        dims=((),),
        kind="i",
        unit="1",
        doc="0 tested; 1 missing values; 2 does not vary beyond the nuisance; 3 outside of the family.",
    ),
    "permutation_table": Variable(
        dims=(("permutation", "observation"),),
        kind="i",
        unit="1",
        doc="Observation put in each place; -1 past the end.",
    ),
    "sign_table": Variable(
        dims=(("permutation", "observation"),), kind="i", unit="1", doc="Sign given to each place; 0 past the end."
    ),
    "max_stat": Variable(dims=(("permutation",),), kind="f", unit="1", doc="Maximum statistic per permutation."),
}


def validate(ds: xr.Dataset, *names: str, whole: Iterable[str] = ()) -> None:
    """Refuse a Dataset that lacks a variable, or has it with other dims or type than `VARIABLES` says.

    Parameters
    ----------
    ds
        The Dataset at the border of a function.
    names
        Variables that must be there.
    whole
        Dimensions along which each of them must be one chunk.

    Raises
    ------
    SchemaError
        Code ``E-SCHEMA``.
    """
    for name in names:
        if name not in ds:
            raise SchemaError(
                "E-SCHEMA",
                f"the Dataset has no variable {name!r}, only {sorted(map(str, ds.data_vars))}",
                rule=f"{name!r} is needed: {VARIABLES[name].doc}",
                fix="run the step that makes it first",
            )
        _validate_variable(ds[name], VARIABLES[name], tuple(whole))


def _validate_variable(da: xr.DataArray, variable: Variable, whole: tuple[str, ...]) -> None:
    dims = tuple(map(str, da.dims))
    if not any(dims[len(dims) - len(allowed) :] == allowed for allowed in variable.dims):
        raise SchemaError(
            "E-SCHEMA",
            f"{da.name!r} has dims {dims}",
            rule=f"its last dims must be {' or '.join(map(str, variable.dims))}",
            fix="rename or transpose it",
        )
    if da.dtype.kind not in variable.kind:
        raise SchemaError(
            "E-SCHEMA",
            f"{da.name!r} has dtype {da.dtype}",
            rule=f"its kind must be one of {variable.kind!r}",
            fix="convert it with .astype",
        )
    for dim in whole:
        if dim in da.chunksizes and len(da.chunksizes[dim]) > 1:
            raise SchemaError(
                "E-SCHEMA",
                f"{da.name!r} has {len(da.chunksizes[dim])} chunks along {dim!r}",
                rule=f"{dim!r} must be one chunk",
                fix=f"call ds.chunk({dim}=-1) first",
            )


def annotate(ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` with unit and meaning written to the attrs of every variable that `VARIABLES` knows."""
    out = ds.copy()
    for name in out.data_vars:
        if (variable := VARIABLES.get(str(name))) is not None:
            out[name].attrs.update(units=variable.unit, long_name=variable.doc)
    return out
