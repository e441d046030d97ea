"""Ingest a compressed run into the sealed store, against only decompressing the same file."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import nibabel as nib
import numpy as np

from kconn.io import store
from kconn.study.workbench import prepare

N_REPEAT = 3
GRID, N_TIME = (64, 76, 64), 300


def write_study(folder: Path) -> Path:
    """Write one int16 run with a brain-like mask of half the grid, and its study file."""
    rng = np.random.default_rng(0)
    func = folder / "derivatives" / "sub-01" / "func"
    func.mkdir(parents=True)
    data = (1000 + 40 * rng.standard_normal((*GRID, N_TIME), dtype=np.float32)).astype(np.int16)
    distance = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID), indexing="ij"))
    mask = (distance**2).sum(axis=0) < 1
    data[~mask] = 0
    stem = "sub-01_task-rest_space-MNI152NLin2009cAsym_desc"
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for name, values in (("preproc_bold", data), ("brain_mask", mask.astype(np.uint8))):
        image = nib.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_sform(affine, 4)
        image.set_qform(affine, 4)
        if values.ndim == 4:
            image.header.set_zooms((2.0, 2.0, 2.0, 0.8))
        nib.save(image, func / f"{stem}-{name}.nii.gz")
    study = folder / "study.toml"
    study.write_text(
        'schema_version = 1\n[study]\nname = "b"\n[inputs]\nlayout = "fmriprep"\nroot = "derivatives"\n'
        '[denoise]\nconfounds = "none"\n[nodes.pcc]\nspheres = [["pcc", 60.0, 70.0, 60.0]]\nradius_mm = 8\n'
    )
    return study


def drain(path: Path) -> float:
    """Return the seconds that the standard library needs to decompress the file and drop the bytes."""
    start = perf_counter()
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass
    return perf_counter() - start


def ingest(study: Path) -> float:
    """Return the seconds of the whole ingest stage: stream, mask, lay out, checksum, seal, publish."""
    from kconn.stages import run_job  # noqa: PLC0415 - after the data are made, so that imports are not timed

    bench = prepare(study)
    shutil.rmtree(bench.study.store, ignore_errors=True)
    store.create_store(bench.study.store)
    job = bench.bind(bench.plan.steps[0])
    start = perf_counter()
    run_job(job)
    return perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        study = write_study(Path(name))
        image = next(Path(name).rglob("*bold.nii.gz"))
        ours, peer = [], []
        for _ in range(N_REPEAT):
            peer.append(drain(image))
            ours.append(ingest(study))
    line = {
        "work": f"ingest {GRID} x {N_TIME} int16 .nii.gz to sealed Zarr",
        "ours_s": round(median(ours), 3),
        "peer": "gzip.open drained, nothing else",
        "peer_s": round(median(peer), 3),
        "ratio": round(median(peer) / median(ours), 2),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
