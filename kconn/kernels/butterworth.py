"""The Butterworth filter, forward and backward, over frames of which some are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.interpolate import CubicSpline

from kconn.errors import InputError
from kconn.kernels import blas
from kconn.kernels.spectra import lomb_scargle_operator

Array = npt.NDArray[np.float64]
Signal = npt.NDArray[np.floating[Any]]
Frames = npt.NDArray[np.intp]

#: Order of the filter, as in nilearn; each direction counts once.
ORDER: Final = 5
#: What stands in for dropped frames while the filter runs.
Bridge = Literal["cubic", "linear", "lomb-scargle"]
#: Series that are filtered side by side, one per lane of the vector units.
LANES: Final = 16
#: A knot of the spline matters to a missing frame when its weight exceeds this share of the largest.
SMALLEST_WEIGHT: Final = 1e-18
#: Multiply and add in one rounding; nothing is reordered.
_FLAGS: Final = {"contract"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Butterworth:
    """A filter for one run: coefficients, and how to bridge its dropped frames.

    Parameters
    ----------
    sos, zi
        Second-order sections ``(section, 6)`` and their state ``(section, 2)`` for a constant input of 1.
    edge
        Frames of odd reflection at either end.
    kept
        ``(kept,)`` positions of the kept frames, ascending.
    gaps
        ``(gap,)`` positions of the dropped frames between the first and the last kept one.
    starts, weights
        Frame ``gaps[g]`` is the sum of ``weights[g]`` times the kept frames from number ``starts[g]`` on.
    detrend
        Whether a straight line is removed before the filter; the mean always is.
    share
        Share of the frequencies of a run that the filter keeps.
    spectrum
        ``(span, kept)`` what makes the frames from the first to the last kept one of the kept ones, where they are
        bridged by their spectrum.
    """

    sos: Array
    zi: Array
    edge: int
    kept: Frames
    gaps: Frames
    starts: Frames
    weights: Array
    detrend: bool
    share: float
    spectrum: Array | None = None


def fit_butterworth(
    kept: Frames,
    *,
    t_r: float,
    high_pass: float | None,
    low_pass: float | None,
    detrend: bool,
    bridge: Bridge = "cubic",
) -> Butterworth:
    """Return the filter of a run.

    Parameters
    ----------
    kept
        ``(kept,)`` positions of the kept frames, ascending.
    t_r
        Seconds from frame to frame.
    high_pass, low_pass
        Half-power edges in Hz, at least one, as `kconn.kernels.filtering.check_band` accepts them.
    detrend
        Remove a straight line first.
    bridge
        What stands in for dropped frames inside the run: a cubic spline or a straight line through the kept ones, or
        the sum of the sines of their Lomb-Scargle spectrum.

    Raises
    ------
    InputError
        Code ``E-DF`` if the kept frames span less than the filter needs at its ends.
    """
    from scipy.signal import butter, sosfilt_zi  # noqa: PLC0415 - 47 MB that only this filter needs

    edges = [edge for edge in (high_pass, low_pass) if edge is not None]
    kind: Literal["bandpass", "highpass", "lowpass"] = (
        "bandpass" if len(edges) == 2 else "highpass" if low_pass is None else "lowpass"
    )
    sos = butter(ORDER, np.squeeze(edges), btype=kind, output="sos", fs=1 / t_r)
    # The rule of scipy.signal.sosfiltfilt.
    n_tap = 2 * len(sos) + 1 - min((sos[:, 2] == 0).sum(), (sos[:, 5] == 0).sum())
    edge = int(3 * n_tap)
    span = int(kept[-1] - kept[0] + 1)
    if span <= edge or len(kept) < 4:
        raise InputError(
            "E-DF",
            f"the {len(kept)} kept frames span {span} frames",
            rule=f"a Butterworth filter of order {ORDER} needs more than {edge}",
            fix="choose the cosine filter, or exclude the run",
        )
    gaps = np.setdiff1d(np.arange(kept[0], kept[-1] + 1), kept)
    starts, weights = _WEIGHTS[bridge](kept, gaps)
    nyquist = 0.5 / t_r
    return Butterworth(
        sos=np.ascontiguousarray(sos, dtype=np.float64),
        zi=np.ascontiguousarray(sosfilt_zi(sos), dtype=np.float64),
        edge=edge,
        kept=kept,
        gaps=gaps,
        starts=starts,
        weights=weights,
        detrend=detrend,
        share=((low_pass or nyquist) - (high_pass or 0.0)) / nyquist,
        spectrum=lomb_scargle_operator(kept) if bridge == "lomb-scargle" and gaps.size else None,
    )


def _cubic_weights(kept: Frames, gaps: Frames) -> tuple[Frames, Array]:
    """Return the weights of a cubic spline through the kept frames, in which it is linear."""
    if gaps.size == 0:
        return gaps.copy(), np.empty((0, 0))
    dense = CubicSpline(kept, np.eye(len(kept)))(gaps)
    # A knot counts for 0.27 of its neighbour; far ones are below rounding.
    matters = np.abs(dense) > SMALLEST_WEIGHT * np.abs(dense).max(axis=1, keepdims=True)
    first = matters.argmax(axis=1)
    last = len(kept) - 1 - matters[:, ::-1].argmax(axis=1)
    width = int((last - first).max()) + 1
    starts = np.minimum(first, len(kept) - width)
    columns = starts[:, None] + np.arange(width)
    return starts, np.ascontiguousarray(np.take_along_axis(dense, columns, axis=1))


def _linear_weights(kept: Frames, gaps: Frames) -> tuple[Frames, Array]:
    """Return the weights of the kept frames on either side."""
    after = np.searchsorted(kept, gaps)
    share = (gaps - kept[after - 1]) / (kept[after] - kept[after - 1])
    return after - 1, np.ascontiguousarray(np.stack([1 - share, share], axis=1))


def _no_weights(kept: Frames, gaps: Frames) -> tuple[Frames, Array]:  # noqa: ARG001 - as its neighbours
    return np.zeros(len(gaps), dtype=np.intp), np.empty((len(gaps), 0))


_WEIGHTS: Final[dict[Bridge, Callable[[Frames, Frames], tuple[Frames, Array]]]] = {
    "cubic": _cubic_weights,
    "linear": _linear_weights,
    "lomb-scargle": _no_weights,
}


def filter_rows(x: Signal, butterworth: Butterworth) -> tuple[Array, Array, Array]:
    """Filter the rows of ``x``; dropped frames are bridged first and dropped again afterwards.

    The steps are those of ``nilearn.signal.clean``: a cubic spline through the kept frames; mean and line; the filter
    forward and backward. Frames before the first and after the last kept one are not used.

    Parameters
    ----------
    x
        ``(row, time)``, all frames.
    butterworth
        The filter.

    Returns
    -------
    filtered
        ``(row, time)``, 0 at dropped frames.
    level
        ``(row,)`` mean of the bridged series.
    power
        ``(row,)`` sum of squares of the kept frames as they came.

    References
    ----------
    Lindquist MA et al. (2019). Modular preprocessing pipelines can reintroduce artifacts into fMRI data.
    https://doi.org/10.1002/hbm.24528
    """
    filtered = np.empty(x.shape)
    level, power = np.empty((2, len(x)))
    filter_into(x, butterworth, filtered, level, power)
    return filtered, level, power


def filter_into(x: Signal, butterworth: Butterworth, filtered: Array, level: Array, power: Array) -> None:
    """Write what `filter_rows` returns into arrays that are there already."""
    b = butterworth
    work = np.empty((int(b.kept[-1] - b.kept[0]) + 1 + 2 * b.edge, LANES))
    gaps, starts, weights = b.gaps - b.kept[0], b.starts, b.weights
    filtered[:] = 0.0
    series = compiled_type(x) if b.spectrum is None else _bridge_by_spectrum(x, b.kept, b.spectrum)
    _filter(series, b.kept, gaps, starts, weights, b.detrend, b.edge, b.sos, b.zi, work, filtered, level, power)


def _bridge_by_spectrum(x: Signal, kept: Frames, spectrum: Array) -> Array:
    """Return ``x`` with what its Lomb-Scargle spectrum says about dropped frames, in the variance of the kept ones."""
    known = x[:, kept].astype(np.float64)
    mean = known.mean(axis=1, keepdims=True)
    known -= mean
    with blas.single_thread():
        waves = known @ spectrum.T
    spread, of_waves = known.std(axis=1, ddof=1, keepdims=True), waves.std(axis=1, ddof=1, keepdims=True)
    waves *= np.divide(spread, of_waves, out=np.zeros_like(spread), where=of_waves > 0)
    out = np.zeros(x.shape)
    out[:, kept[0] : kept[-1] + 1] = mean + waves
    out[:, kept] = x[:, kept]
    return out


def compiled_type(x: npt.NDArray[Any]) -> Signal:
    """Return ``x`` as float32 or float64, whichever holds it exactly: compiled code is made for these two."""
    if x.dtype in (np.float32, np.float64) and x.dtype.isnative:
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(x, dtype=np.float32 if np.can_cast(x.dtype, np.float32) else np.float64)


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _filter(x, kept, gaps, starts, weights, detrend, edge, sos, zi, work, filtered, level, power):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913, PLR0917 - compiled
    """Pass the rows of ``x`` through all steps, as many at a time as there are lanes."""
    inner = work[edge : len(work) - edge]
    first, last = kept[0], kept[-1]
    counts = np.ones(len(inner))
    counts[gaps] = 0.0
    mean, squares = np.empty(LANES), np.empty(LANES)
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        _load(x[start:stop, first : last + 1], inner)
        if weights.shape[1] > 0:
            _bridge_gaps(inner, kept - first, gaps, starts, weights)
        _remove_line(inner, counts, detrend, mean, squares)
        _reflect(work, edge)
        _run_sections(work, sos, zi, False)  # noqa: FBT003 - compiled code takes no keywords cheaply
        _run_sections(work, sos, zi, True)  # noqa: FBT003
        for t in gaps:
            for lane in range(LANES):
                inner[t, lane] = 0.0
        _store(inner, filtered[start:stop, first : last + 1])
        for row in range(stop - start):
            level[start + row], power[start + row] = mean[row], squares[row]


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _load(x, y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Put up to `LANES` rows side by side; lanes without a row are 0."""
    if len(x) < LANES:
        y[:] = 0.0
        for row in range(len(x)):
            y[:, row] = x[row]
        return
    for t in range(len(y)):
        for lane in range(LANES):
            y[t, lane] = x[lane, t]


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _store(y, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Take the lanes apart again."""
    if len(out) < LANES:
        for row in range(len(out)):
            out[row] = y[:, row]
        return
    for t in range(len(y)):
        for lane in range(LANES):
            out[lane, t] = y[t, lane]


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _bridge_gaps(y, at, gaps, starts, weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Put the spline through the kept frames into the dropped ones."""
    # Fresh memory: the compiler may keep it in vector registers only if it cannot be part of `y`.
    total = np.empty(LANES)
    for g in range(len(gaps)):
        total[:] = 0.0
        for w in range(weights.shape[1]):
            weight, source = weights[g, w], at[starts[g] + w]
            for lane in range(LANES):
                total[lane] += weight * y[source, lane]
        for lane in range(LANES):
            y[gaps[g], lane] = total[lane]


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _remove_line(y, counts, detrend, mean, squares):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Remove the mean of each lane, and the line through it.

    Write the mean, and the sum of squares of what came over the frames that count 1, not 0.
    """
    n = len(y)
    middle = (n - 1) / 2.0
    # The sum of squares of n steps about their middle.
    per_moment = 12.0 / (n * (n * n - 1.0)) if detrend else 0.0
    for lane in range(0, LANES, 4):
        # Sums by name stay in registers, those in an array do not: this is three times as fast.
        a = b = c = d = 0.0
        a_moment = b_moment = c_moment = d_moment = 0.0
        a_square = b_square = c_square = d_square = 0.0
        for t in range(n):
            step, count = t - middle, counts[t]
            p, q, r, s = y[t, lane], y[t, lane + 1], y[t, lane + 2], y[t, lane + 3]
            a, b, c, d = a + p, b + q, c + r, d + s
            a_moment, b_moment = a_moment + step * p, b_moment + step * q
            c_moment, d_moment = c_moment + step * r, d_moment + step * s
            a_square, b_square = a_square + count * p * p, b_square + count * q * q
            c_square, d_square = c_square + count * r * r, d_square + count * s * s
        level = (a / n, b / n, c / n, d / n)
        rise = (a_moment * per_moment, b_moment * per_moment, c_moment * per_moment, d_moment * per_moment)
        square = (a_square, b_square, c_square, d_square)
        for i in range(4):
            mean[lane + i], squares[lane + i] = level[i], square[i]
        for t in range(n):
            step = t - middle
            for i in range(4):
                y[t, lane + i] -= level[i] + step * rise[i]


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _reflect(y, edge):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Continue each lane beyond both ends, turned about its end point."""
    last = len(y) - 1 - edge
    for t in range(1, edge + 1):
        for lane in range(LANES):
            y[edge - t, lane] = 2.0 * y[edge, lane] - y[edge + t, lane]
            y[last + t, lane] = 2.0 * y[last, lane] - y[last - t, lane]


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _run_sections(y, sos, zi, backward):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Pass the lanes through all sections, in place, as if they had stood at their first value for ever."""
    n_section = len(sos)
    z = np.empty((n_section, 2, LANES))
    t, step = (len(y) - 1, -1) if backward else (0, 1)
    for s in range(n_section):
        for lane in range(LANES):
            z[s, 0, lane] = zi[s, 0] * y[t, lane]
            z[s, 1, lane] = zi[s, 1] * y[t, lane]
    for _ in range(len(y)):
        for s in range(n_section):
            b0, b1, b2, a1, a2 = sos[s, 0], sos[s, 1], sos[s, 2], sos[s, 4], sos[s, 5]
            for lane in range(LANES):
                value = y[t, lane]
                result = b0 * value + z[s, 0, lane]
                z[s, 0, lane] = b1 * value - a1 * result + z[s, 1, lane]
                z[s, 1, lane] = b2 * value - a2 * result
                y[t, lane] = result
        t += step
