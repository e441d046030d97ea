from .clean.censoring import censor as censor
from .infer.checkpoint import Checkpoint as Checkpoint
from .connect.cohort import (
    assemble as assemble,
    average_runs as average_runs,
    average_sessions as average_sessions,
    group_mean as group_mean,
    project_tangent as project_tangent,
    scale_to_unrelated as scale_to_unrelated,
    ward_order as ward_order,
)
from .clean.compcor import estimate_compcor as estimate_compcor
from .clean.confounds import Strategy as Strategy
from .connect.decomposition import (
    find_components as find_components,
    match_templates as match_templates,
    merge_reduced as merge_reduced,
    reduce_run as reduce_run,
)
from .clean.denoising import denoise as denoise
from .connect.dense_connectome import (
    estimate_dense_connectome as estimate_dense_connectome,
    estimate_parcel_connectome as estimate_parcel_connectome,
    estimate_strongest as estimate_strongest,
    mirror_tiles as mirror_tiles,
)
from .clean.despiking import despike as despike
from .connect.dual_regression import (
    place_maps as place_maps,
    regress_maps as regress_maps,
    regress_series as regress_series,
)
from .errors import KconnError as KconnError
from .connect.families import average_families as average_families, average_networks as average_networks
from .infer.inference import permutation_test as permutation_test
from .io.cubes import open_study as open_study
from .kernels.clusters import Neighbours as Neighbours, Tfce as Tfce
from .kernels.sequential import Sequential as Sequential
from .kernels.surfaces import vertex_areas as vertex_areas
from .connect.netmats import (
    ar1_z as ar1_z,
    estimate_amplitudes as estimate_amplitudes,
    estimate_netmats as estimate_netmats,
    fisher_z as fisher_z,
)
from .connect.nodes import (
    drop_nodes as drop_nodes,
    join_nodes as join_nodes,
    nodes_from_columns as nodes_from_columns,
    nodes_from_labels as nodes_from_labels,
    nodes_from_spheres as nodes_from_spheres,
)
from .connect.parcellation import parcellate as parcellate
from .clean.quality import (
    estimate_carpet as estimate_carpet,
    estimate_courses as estimate_courses,
    estimate_dvars as estimate_dvars,
    estimate_motion as estimate_motion,
    estimate_quality as estimate_quality,
)
from .clean.quality_cohort import (
    average_subjects as average_subjects,
    compare_motion as compare_motion,
    estimate_qc_fc as estimate_qc_fc,
)
from .connect.reliability import estimate_icc as estimate_icc
from .connect.sliding_windows import (
    estimate_variability as estimate_variability,
    estimate_window_netmats as estimate_window_netmats,
)
from .connect.seedmaps import estimate_seed_maps as estimate_seed_maps
from .infer.surface_neighbours import grayordinate_neighbours as grayordinate_neighbours
from .clean.smoothing import smooth as smooth
from .testing import simulate_run as simulate_run, simulate_study as simulate_study
