"""Denoising against nilearn: ``python -m benchmarks.bench_denoise``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import xarray as xr
from nilearn.signal import clean

from benchmarks.side_by_side import MIB, compare
from kconn.confounds import MOTION, build_columns, select_terms
from kconn.denoising import denoise

N_TIME, N_VOXEL, T_R = 1200, 20_000, 0.72
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


def lazy_ours() -> Callable[[], Any]:
    """Prepare the same through Dask, on its threads."""
    run = make_run().chunk(voxel=4096)

    def compute() -> xr.Dataset:
        with dask.config.set(scheduler="threads"):
            return denoise(run, confounds="36P", high_pass=HIGH_PASS, low_pass=None)["denoised"].compute()

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
    compare(f"{what}, cosine high-pass", ours=cosine_ours, peer=cosine_nilearn, peer_name="clean, cosine", **result)
    compare(f"{what}, a tenth dropped", ours=censored_ours, peer=censored_nilearn, peer_name="clean, cosine", **result)
    compare(f"{what}, through Dask", ours=lazy_ours, peer=cosine_ours, peer_name="ours, in memory", **result)
    compare(f"{what}, cosine band-pass", ours=band_ours, peer=band_nilearn, peer_name="clean, butterworth", **result)
    compare(f"{what}, butterworth", ours=butterworth_ours, peer=band_nilearn, peer_name="clean, butterworth", **result)
