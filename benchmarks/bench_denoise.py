"""Denoising against nilearn: ``python -m benchmarks.bench_denoise [row ...]``."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import xarray as xr
from nilearn.signal import clean

from benchmarks.side_by_side import MIB, compare
from kconn.chunks import plan_voxel_blocks
from kconn.clean.confounds import MOTION, build_columns, select_terms
from kconn.clean.denoising import denoise
from kconn.cluster import connect

#: One run of the Human Connectome Project in grayordinates.
N_TIME, N_VOXEL, T_R = 1200, 91_282, 0.72
NAMES = (*MOTION, "white_matter", "csf", "global_signal")
HIGH_PASS, LOW_PASS = 0.008, 0.09


def make_run() -> xr.Dataset:
    """Return a run of noise about a level, with nine base confounds."""
    rng = np.random.default_rng(0)
    bold = rng.standard_normal((N_VOXEL, N_TIME), dtype=np.float32) * 20 + 1000
    return xr.Dataset(
        {"bold": (("voxel", "time"), bold), "confounds": (("time", "confound"), rng.normal(size=(N_TIME, 9)))},
        coords={"confound": list(NAMES)},
        attrs={"t_r": T_R},
    )


def drop_frames(run: xr.Dataset) -> xr.Dataset:
    """Return the run with a tenth of its frames dropped."""
    return run.assign(sample_mask=("time", np.random.default_rng(1).random(N_TIME) > 0.1))


def cosine_ours() -> Callable[[], Any]:
    """Prepare 36P and the cosine high-pass."""
    run = make_run()
    return lambda: denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=None)


def censored_ours() -> Callable[[], Any]:
    """Prepare the same with a tenth of the frames dropped."""
    run = drop_frames(make_run())
    return lambda: denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=None)


def stored_run() -> tuple[xr.Dataset, Path]:
    """Return the run as a store on disk would give it, in blocks of voxels, and where its result may go."""
    folder = Path(tempfile.mkdtemp(prefix="kconn-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    block = plan_voxel_blocks(N_VOXEL, N_TIME)
    make_run().chunk(voxel=block).to_zarr(folder / "run.zarr", zarr_format=3, consolidated=False)
    return xr.open_zarr(folder / "run.zarr", consolidated=False), folder / "clean.zarr"


def write_clean(run: xr.Dataset, target: Path) -> None:
    """Read, denoise and write, block by block."""
    clean = denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=None)[["denoised"]]
    clean.to_zarr(target, mode="w", zarr_format=3, consolidated=False)


def worker_ours() -> Callable[[], Any]:
    """Prepare reading, denoising and writing through one worker."""
    run, target = stored_run()
    client = ExitStack().enter_context(connect(n_workers=1))
    atexit.register(client.close)
    return lambda: write_clean(run, target)


def in_process_ours() -> Callable[[], Any]:
    """Prepare the same in this process, on one thread as the worker has."""
    run, target = stored_run()

    def compute() -> None:
        with dask.config.set(scheduler="synchronous"):
            write_clean(run, target)

    return compute


def band_ours() -> Callable[[], Any]:
    """Prepare 36P and the cosine band-pass."""
    run = make_run()
    return lambda: denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=LOW_PASS)


def butterworth_ours() -> Callable[[], Any]:
    """Prepare 36P and the Butterworth band-pass."""
    run = make_run()
    return lambda: denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=LOW_PASS, filter="butterworth")


def peer_input(run: xr.Dataset) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return the signal as nilearn wants it and the 36 columns, made beforehand."""
    warnings.simplefilter("ignore")
    columns = build_columns(run["confounds"].to_numpy(), NAMES, select_terms(NAMES, "36P"))
    return np.ascontiguousarray(run["bold"].to_numpy().T), columns


def cosine_nilearn() -> Callable[[], Any]:
    """Prepare nilearn's cosine filter and regression."""
    signal, columns = peer_input(make_run())
    return lambda: clean(signal, confounds=columns, filter="cosine", high_pass=HIGH_PASS, t_r=T_R, standardize=None)


def censored_nilearn() -> Callable[[], Any]:
    """Prepare the same with a tenth of the frames dropped."""
    run = drop_frames(make_run())
    signal, columns = peer_input(run)
    kept = np.flatnonzero(run["sample_mask"])
    return lambda: clean(
        signal, confounds=columns, sample_mask=kept, filter="cosine", high_pass=HIGH_PASS, t_r=T_R, standardize=None
    )


def censored_butterworth_ours() -> Callable[[], Any]:
    """Prepare the same with a tenth of the frames dropped."""
    run = drop_frames(make_run())
    return lambda: denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=LOW_PASS, filter="butterworth")


def band_nilearn() -> Callable[[], Any]:
    """Prepare nilearn's Butterworth band-pass and regression."""
    signal, columns = peer_input(make_run())
    return lambda: clean(
        signal,
        confounds=columns,
        filter="butterworth",
        high_pass=HIGH_PASS,
        low_pass=LOW_PASS,
        t_r=T_R,
        standardize=None,
    )


if __name__ == "__main__":
    what = f"36P, {N_TIME} frames x {N_VOXEL} voxels, float32"
    result = {"result_mb": round(N_TIME * N_VOXEL * 4 / MIB)}
    cosine, butterworth = "clean, cosine", "clean, butterworth"
    rows: list[tuple[str, Any, Any, str, int]] = [
        ("cosine high-pass", cosine_ours, cosine_nilearn, cosine, 5),
        ("cosine high-pass, a tenth dropped", censored_ours, censored_nilearn, cosine, 5),
        ("cosine high-pass, censored beside not", censored_ours, cosine_ours, "ours, all frames", 5),
        ("butterworth", butterworth_ours, band_nilearn, butterworth, 2),
        ("cosine band-pass", band_ours, band_nilearn, butterworth, 2),
        ("butterworth, censored beside not", censored_butterworth_ours, butterworth_ours, "ours, all frames", 5),
        ("store to store through a worker", worker_ours, in_process_ours, "ours, in this process", 5),
    ]
    for name, ours, peer, peer_name, n_repeat in rows:
        if not sys.argv[1:] or name in sys.argv[1:]:
            compare(f"{what}, {name}", ours=ours, peer=peer, peer_name=peer_name, n_repeat=n_repeat, **result)
