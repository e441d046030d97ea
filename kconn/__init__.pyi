from .denoising import censor as censor, denoise as denoise
from .errors import KconnError as KconnError
from .inference import permutation_test as permutation_test
from .io.cubes import open_study as open_study
from .netmats import estimate_netmats as estimate_netmats, fisher_z as fisher_z
from .parcellation import (
    nodes_from_columns as nodes_from_columns,
    nodes_from_labels as nodes_from_labels,
    nodes_from_spheres as nodes_from_spheres,
    parcellate as parcellate,
)
from .quality import estimate_quality as estimate_quality
from .seedmaps import estimate_seed_maps as estimate_seed_maps
from .testing import simulate_run as simulate_run, simulate_study as simulate_study
