"""One simulated run as a Dataset of the data model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from kconn.testing.brain import plan_brain
from kconn.testing.connectome import factor_covariance, plan_connectome
from kconn.testing.recording import record


def simulate_run(  # noqa: PLR0913 - the parameters of a scan
    *,
    n_nodes: int = 8,
    n_time: int = 200,
    t_r: float = 0.8,
    grid_shape: tuple[int, int, int] = (10, 12, 10),
    motion_level: float = 1.0,
    fd_threshold: float = 0.5,
    where: str = "sub-01/ses-1/run-1",
    seed: int = 0,
) -> xr.Dataset:
    """Simulate one preprocessed run with a known connectome.

    Parameters
    ----------
    n_nodes
        Nodes, in networks, left and right mirrored.
    n_time
        Frames.
    t_r
        Repetition time in seconds.
    grid_shape
        Voxels of the image; the mask is an ellipsoid inside it.
    motion_level
        1 for a calm subject, 6 for a spoilt run.
    fd_threshold
        Frames with a framewise displacement above it, in mm, are False in ``sample_mask``.
    where
        Identity of the run.
    seed
        Same seed, same bits.

    Returns
    -------
    Dataset with ``bold (voxel, time)``, ``confounds (time, confound)``, ``framewise_displacement (time)``,
    ``sample_mask (time)`` and the truth: ``source (node, time)``, the node courses before noise and artefacts,
    ``parcel (voxel)``, the 1-based node of each voxel (0 for none), and ``source_correlation (edge)``, the
    correlations that the courses were drawn from.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if the nodes do not fit on the grid.
    """
    brain = plan_brain(grid_shape=grid_shape, n_nodes=n_nodes)
    networks = brain.nodes["network"].tolist()
    correlation = plan_connectome(networks, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))))
    recording = record(
        brain,
        factor_covariance(correlation),
        n_time=n_time,
        t_r=t_r,
        motion_level=motion_level,
        rng=np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,))),
    )

    displacement = recording.confounds["framewise_displacement"].to_numpy()
    names = brain.nodes["name"].to_numpy(dtype=str)
    i, j = np.triu_indices(n_nodes, 1)
    return xr.Dataset(
        {
            "bold": (("voxel", "time"), recording.bold),
            "confounds": (("time", "confound"), recording.confounds.to_numpy(dtype=np.float64)),
            "framewise_displacement": ("time", displacement),
            "sample_mask": ("time", ~(displacement > fd_threshold)),
            "source": (("node", "time"), recording.source),
            "parcel": ("voxel", brain.parcel),
            "source_correlation": ("edge", correlation[i, j]),
        },
        coords={
            "time": np.arange(n_time) * t_r,
            "confound": recording.confounds.columns.to_numpy(dtype=str),
            "i": ("voxel", brain.ijk[:, 0]),
            "j": ("voxel", brain.ijk[:, 1]),
            "k": ("voxel", brain.ijk[:, 2]),
            "node": names,
            "network": ("node", brain.nodes["network"].to_numpy(dtype=str)),
            "x": ("node", brain.nodes["x"].to_numpy(dtype=np.float64)),
            "y": ("node", brain.nodes["y"].to_numpy(dtype=np.float64)),
            "z": ("node", brain.nodes["z"].to_numpy(dtype=np.float64)),
            "node_i": ("edge", names[i]),
            "node_j": ("edge", names[j]),
        },
        attrs={
            "t_r": t_r,
            "affine": brain.affine.tolist(),
            "grid_shape": list(grid_shape),
            "space": "MNI152NLin2009cAsym",
            "where": where,
        },
    )
