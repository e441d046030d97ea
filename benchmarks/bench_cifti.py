"""A dtseries of HCP's size: read beside nibabel, parcellated beside nibabel, ingested within bounded memory.

``python -m benchmarks.bench_cifti``. The series is noise on a simulated axis of 91,282 grayordinates by 1,200 frames.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.bench_ingest_rss import ingest
from benchmarks.side_by_side import compare
from kconn.connect.nodes import find_dense_members, nodes_from_dense_labels
from kconn.grayordinates import Grayordinates
from kconn.io import cifti, cifti_write
from kconn.kernels.parcellation import mean_members, sum_members

N_VERTEX, WALL, N_VOXEL, N_TIME, N_NODE = 32492, 2784, 31870, 1200, 400
LEFT, RIGHT, DEEP = (f"CIFTI_STRUCTURE_{name}" for name in ("CORTEX_LEFT", "CORTEX_RIGHT", "CEREBELLUM_LEFT"))
LIMIT_MB = 400


def simulate_places(*, wall: bool) -> Grayordinates:
    """Return two hemispheres, without the medial wall unless ``wall``, and then a volume."""
    vertex = np.arange(N_VERTEX) if wall else np.arange(WALL, N_VERTEX)
    n_deep = 0 if wall else 91282 - 2 * len(vertex)
    ijk = np.stack(np.unravel_index(np.arange(n_deep), (91, 109, 91), order="F"), axis=1)
    return Grayordinates(
        structures=(LEFT, RIGHT, DEEP),
        structure=np.repeat([0, 1, 2], [len(vertex), len(vertex), n_deep]).astype(np.uint8),
        vertex=np.concatenate([vertex, vertex, np.full(n_deep, -1)]).astype(np.int32),
        ijk=np.concatenate([np.full((2 * len(vertex), 3), -1), ijk]).astype(np.int32),
        n_vertices={LEFT: N_VERTEX, RIGHT: N_VERTEX},
        affine=np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]),
        grid_shape=(91, 109, 91),
    )


def write_series(path: Path) -> None:
    """Write the series block by block."""
    places, rng = simulate_places(wall=False), np.random.default_rng(0)
    blocks = (
        10000 + 100 * rng.standard_normal((min(2000, len(places) - start), N_TIME), dtype=np.float32)
        for start in range(0, len(places), 2000)
    )
    cifti_write.write_series(path, blocks, n_time=N_TIME, t_r=0.72, places=places)


def write_study(folder: Path) -> None:
    """Write the study file of one run, and its atlas."""
    labels = np.arange(2 * N_VERTEX) % N_NODE + 1
    axis = nib.cifti2.LabelAxis(["parcels"], [{i: (str(i), (0.0, 0.0, 0.0, 1.0)) for i in range(N_NODE + 1)}])
    image = nib.Cifti2Image(labels[None].astype(np.float32), (axis, _surface_axis()))
    image.nifti_header.set_intent("ConnDenseLabel")
    image.to_filename(folder / "a.dlabel.nii")
    (folder / "study.toml").write_text(
        'schema_version = 1\n[study]\nname = "b"\n[inputs]\nlayout = "cifti"\nroot = "."\n'
        'pattern = "{subject}.dtseries.nii"\n[denoise]\nconfounds = "none"\n[nodes.a]\natlas = "a.dlabel.nii"\n'
    )


def _surface_axis() -> Any:
    parts = [
        nib.cifti2.BrainModelAxis(name, vertex=np.arange(N_VERTEX), nvertices={name: N_VERTEX})
        for name in (LEFT, RIGHT)
    ]
    return parts[0] + parts[1]


def read_ours(path: Path) -> Callable[[], Any]:
    def call() -> float:
        header = cifti.read_series_header(path)
        blocks = cifti.stream_rows(path, header.matrix, rows_per_block=3495)
        return sum(float(cifti.scale_rows(block, header.matrix)[0, 0]) for block in blocks)

    return call


def read_nibabel(path: Path) -> Callable[[], Any]:
    return lambda: nib.load(path).get_fdata(caching="unchanged").shape


def parcellate_ours(folder: Path) -> Callable[[], Any]:
    path = folder / "01.dtseries.nii"

    def call() -> Any:
        header = cifti.read_series_header(path)
        found = cifti.read_dense_labels(folder / "a.dlabel.nii")
        nodes = nodes_from_dense_labels(found.keys, found.places, names=found.names)
        members = find_dense_members(nodes, header.places)
        kept, start, parts = np.ones(N_TIME, bool), 0, []
        for block in cifti.stream_rows(path, header.matrix, rows_per_block=3495):
            values = cifti.scale_rows(block, header.matrix)
            parts.append(sum_members(values, np.arange(start, start + len(block)), kept=kept, members=members))
            start += len(block)
        return mean_members(parts, kept=kept, n_voxel=members.n_voxel, min_coverage=0.5)

    return call


def parcellate_nibabel(folder: Path) -> Callable[[], Any]:
    """Match vertices by number and average with NumPy, as scripts do."""

    def call() -> Any:
        image, atlas = nib.load(folder / "01.dtseries.nii"), nib.load(folder / "a.dlabel.nii")
        brain, values, labels = image.header.get_axis(1), image.get_fdata(), atlas.get_fdata()[0]
        of_row = np.zeros(len(brain), int)
        for name, where, part in brain.iter_structures():
            if name in brain.nvertices:
                mine = next(found for other, found, _ in atlas.header.get_axis(1).iter_structures() if other == name)
                of_row[where] = labels[mine][part.vertex]
        return np.array([values[:, of_row == key].mean(axis=1) for key in range(1, N_NODE + 1)])

    return call


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "01.dtseries.nii"
        write_series(path)
        write_study(folder)
        size = f"91282 x {N_TIME} float32 dtseries"
        compare(f"read {size}", ours=partial(read_ours, path), peer=partial(read_nibabel, path), n_repeat=3)
        compare(
            f"{N_NODE} parcels of {size}",
            ours=partial(parcellate_ours, folder),
            peer=partial(parcellate_nibabel, folder),
            n_repeat=3,
        )
        command = [sys.executable, "-m", "benchmarks.bench_cifti", str(folder / "study.toml")]
        done = subprocess.run(command, check=True, capture_output=True, env=os.environ)  # noqa: S603 - this script
        memory = json.loads(done.stdout)
        line = {
            "work": f"ingest {size}",
            "run_mb": round(path.stat().st_size / 1e6),
            "before_mb": round(memory["before"]),
            "peak_rss_mb": round(memory["peak"]),
            "limit_mb": LIMIT_MB,
            "within": memory["peak"] <= LIMIT_MB,
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ingest(Path(sys.argv[1]))
    else:
        main()
