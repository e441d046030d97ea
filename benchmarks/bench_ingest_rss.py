"""Peak memory of the ingest stage for runs of three lengths: ``python -m benchmarks.bench_ingest_rss``.

The rule: at most 1.3 rows of chunks and 300 MB, whatever the length.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from kconn.chunks import plan_bold

GRID, LENGTHS = (64, 76, 64), (300, 1200, 2400)
SHARE, BASE_MB = 1.3, 300
STEM = "sub-01_task-rest_space-MNI152NLin2009cAsym_desc"


def write_study(folder: Path, n_time: int) -> int:
    """Write one int16 run of noise inside an ellipsoid, its mask and its study file; return the voxels of the mask."""
    rng = np.random.default_rng(0)
    func = folder / "derivatives" / "sub-01" / "func"
    func.mkdir(parents=True)
    distance = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID), indexing="ij"))
    mask = (distance**2).sum(axis=0) < 1
    _write(func / f"{STEM}-brain_mask.nii.gz", [mask.astype(np.uint8)], 1)
    frames = (
        np.where(mask, (1000 + 40 * rng.standard_normal(GRID, dtype=np.float32)).astype(np.int16), np.int16(0))
        for _ in range(n_time)
    )
    _write(func / f"{STEM}-preproc_bold.nii.gz", frames, n_time)
    (folder / "study.toml").write_text(
        'schema_version = 1\n[study]\nname = "b"\n[inputs]\nlayout = "fmriprep"\nroot = "derivatives"\n'
        '[denoise]\nconfounds = "none"\n[nodes.pcc]\nspheres = [["pcc", 60.0, 70.0, 60.0]]\nradius_mm = 8\n'
    )
    return int(mask.sum())


def _write(path: Path, frames: object, n_time: int) -> None:
    """Write volumes one after the other: this process, too, should stay small."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8 if n_time == 1 else np.int16)
    header.set_data_shape(GRID if n_time == 1 else (*GRID, n_time))
    header.set_sform(affine, 4)
    header.set_qform(affine, 4)
    header.set_xyzt_units("mm", "sec")
    if n_time > 1:
        header["pixdim"][4] = 0.8
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for frame in frames:  # type: ignore[attr-defined]
            file.write(frame.tobytes(order="F"))


def ingest(study: Path) -> None:
    """Run the ingest stage and print the highest memory this process ever had, and what its imports took."""
    from kconn.io import store  # noqa: PLC0415 - only the child pays for these
    from kconn.stages import run_job  # noqa: PLC0415
    from kconn.study.workbench import prepare  # noqa: PLC0415

    bench = prepare(study)
    store.create_store(bench.study.store)
    before = _status("VmRSS")
    run_job(bench.bind(bench.plan.steps[0]))
    sys.stdout.write(json.dumps({"before": before, "peak": _status("VmHWM")}) + "\n")


def _status(field: str) -> float:
    """Return a field of this process's memory in MB; unlike ``ru_maxrss`` it starts anew at exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def main() -> None:
    for n_time in LENGTHS:
        with tempfile.TemporaryDirectory() as name:
            n_voxel = write_study(Path(name), n_time)
            command = [sys.executable, "-m", "benchmarks.bench_ingest_rss", str(Path(name) / "study.toml")]
            done = subprocess.run(command, check=True, capture_output=True, env=os.environ)  # noqa: S603 - this script
            memory = json.loads(done.stdout)
        row_mb = n_voxel * plan_bold(n_voxel, n_time, itemsize=2)[1] * 2 / 1e6
        limit = SHARE * row_mb + BASE_MB
        line = {
            "work": f"ingest {n_voxel} voxels x {n_time} frames int16 .nii.gz",
            "run_mb": round(n_voxel * n_time * 2 / 1e6),
            "row_mb": round(row_mb),
            "before_mb": round(memory["before"]),
            "peak_rss_mb": round(memory["peak"]),
            "limit_mb": round(limit),
            "within": memory["peak"] <= limit,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ingest(Path(sys.argv[1]))
    else:
        main()
