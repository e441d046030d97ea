"""Bases in time: the linear trend and the cosines of the discrete cosine transform (DCT-II)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kconn.errors import SchemaError

Array = npt.NDArray[np.float64]


def check_band(n_time: int, *, t_r: float, high_pass: float | None, low_pass: float | None) -> None:
    """Refuse a band that is negative, empty or reaches the Nyquist frequency.

    Parameters
    ----------
    n_time
        Number of frames of the run, censored ones included.
    t_r
        Seconds from frame to frame.
    high_pass, low_pass
        Edges of the band in Hz; None where it is open.

    Raises
    ------
    SchemaError
        Code ``E-BAND``.
    """
    nyquist = 0.5 / t_r
    for name, edge in (("high_pass", high_pass), ("low_pass", low_pass)):
        if edge is not None and not 0 < edge < nyquist:
            raise SchemaError(
                "E-BAND",
                f"{name} = {edge:g} Hz",
                rule=f"an edge lies between 0 and the Nyquist frequency 1 / (2 t_r) = {nyquist:g} Hz; t_r = {t_r:g} s",
                fix=f"choose another {name}, or switch it off with None",
            )
    if high_pass is not None and low_pass is not None and low_pass <= high_pass:
        raise SchemaError(
            "E-BAND",
            f"high_pass = {high_pass:g} Hz, low_pass = {low_pass:g} Hz",
            rule="low_pass must lie above high_pass",
            fix="swap or change them",
        )
    first, last = pass_band(n_time, t_r=t_r, high_pass=high_pass, low_pass=low_pass)
    if last < first:
        raise SchemaError(
            "E-BAND",
            f"no frequency of a run of {n_time} frames lies in {high_pass or 0:g} to {low_pass or nyquist:g} Hz",
            rule=f"frequencies of a run are multiples of 1 / (2 n_time t_r) = {0.5 / (n_time * t_r):g} Hz",
            fix="widen the band",
        )


def count_cosines(n_time: int, *, t_r: float, edge: float) -> int:
    """Return how many cosines of a run, the constant apart, have a frequency up to ``edge`` Hz."""
    # The roundings of nilearn.signal.create_cosine_drift, so that an edge on a frequency of the run counts as there.
    step = (n_time - 1) * t_r / (n_time - 1) if n_time > 1 else t_r
    return min(n_time - 1, int(np.floor(2 * n_time * edge * step)))


def pass_band(n_time: int, *, t_r: float, high_pass: float | None, low_pass: float | None) -> tuple[int, int]:
    """Return the first and the last cosine ``k`` that is kept: ``high_pass < k / (2 n_time t_r) <= low_pass``."""
    first = 1 if high_pass is None else 1 + count_cosines(n_time, t_r=t_r, edge=high_pass)
    last = n_time - 1 if low_pass is None else count_cosines(n_time, t_r=t_r, edge=low_pass)
    return first, last


def cosine_basis(n_time: int, first: int, last: int) -> Array:
    """Return the cosines ``first`` to ``last`` as orthonormal columns.

    Parameters
    ----------
    n_time
        Number of frames.
    first, last
        Half periods in the run of the slowest and the fastest column, both included; the constant would be 0.

    Returns
    -------
    basis
        ``(time, last - first + 1)``: ``sqrt(2 / n_time) cos(pi k (t + 1/2) / n_time)``, unit norm each.

    References
    ----------
    Ahmed N, Natarajan T, Rao KR (1974). Discrete cosine transform. https://doi.org/10.1109/T-C.1974.223784
    """
    k = np.arange(first, last + 1)
    t = np.arange(n_time) + 0.5
    return np.asarray(np.sqrt(2.0 / n_time) * np.cos(np.pi / n_time * t[:, None] * k[None, :]), dtype=np.float64)
