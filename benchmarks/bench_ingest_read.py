"""Streaming a run from disk against the standard library and nibabel: ``python -m benchmarks.bench_ingest_read``."""

from __future__ import annotations

import gzip
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from benchmarks.side_by_side import compare
from kconn.io import nifti

SHAPE, N_TIME = (72, 88, 60), 300
FRAMES_PER_BLOCK = 40


def write_run(folder: Path) -> None:
    """Write int16 noise on an anatomy that is zero outside a head, plain and packed."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    anatomy = rng.uniform(3000, 9000, SHAPE)
    data = np.empty((*SHAPE, N_TIME), np.int16, order="F")
    for i_time in range(N_TIME):
        data[..., i_time] = inside * (anatomy + rng.normal(scale=60, size=SHAPE))
    image = nibabel.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.8
    nibabel.save(image, folder / "run.nii")
    (folder / "run.nii.gz").write_bytes(gzip.compress((folder / "run.nii").read_bytes(), 6))


def stream(path: Path) -> Callable[[], Any]:
    """Prepare the checked stream of all frames, as stored."""

    def call() -> int:
        header = nifti.read_header(path)
        return sum(len(block) for block in nifti.stream_frames(path, header, frames_per_block=FRAMES_PER_BLOCK))

    return call


def drain(path: Path) -> Callable[[], Any]:
    """Prepare the standard library's decompression of the same file, dropping what comes."""

    def call() -> None:
        with gzip.open(path) as file:
            while file.read(1024**2):
                pass

    return call


def load(path: Path) -> Callable[[], Any]:
    """Prepare nibabel's array of the same file, as float32."""
    return lambda: nibabel.load(path).get_fdata(dtype=np.float32, caching="unchanged")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "run.nii", Path(folder) / "run.nii.gz"
        # In its own process: the peak memory of this one would be inherited by those that are measured.
        writer = multiprocessing.get_context("spawn").Process(target=write_run, args=(Path(folder),))
        writer.start()
        writer.join()
        megabytes = plain.stat().st_size // 1024**2
        work = f"read {megabytes} MB int16"
        compare(
            f"{work} from .nii.gz ({packed.stat().st_size // 1024**2} MB)",
            ours=partial(stream, packed),
            peer=partial(drain, packed),
            peer_name="gzip drain, data dropped",
        )
        compare(f"{work} from .nii.gz", ours=partial(stream, packed), peer=partial(load, packed), peer_name="nibabel")
        compare(f"{work} from .nii", ours=partial(stream, plain), peer=partial(load, plain), peer_name="nibabel")
