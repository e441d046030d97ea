"""The spectrum of frames of which some are missing."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Frequencies per independent one, as in Power et al. 2014.
OVERSAMPLING: Final = 8


def lomb_scargle_operator(kept: npt.NDArray[np.intp]) -> Array:
    r"""Return what makes a series over all frames of the spectrum of the kept ones.

    For each frequency `w` from ``1 / (8 span)`` in steps of the same to half a cycle per frame, a sine and a cosine,
    shifted so that they are orthogonal over the kept frames (Scargle), are fitted to the kept frames for themselves;
    the series is the sum of all fits. It overshoots, since the frequencies are eight times too many: whoever uses it
    scales it to the variance of the kept frames.

    Parameters
    ----------
    kept
        ``(kept,)`` positions of the kept frames, ascending.

    Returns
    -------
    operator
        ``(span, kept)``; rows are the frames from the first to the last kept one.

    References
    ----------
    Power JD et al. (2014). Methods to detect, characterize, and remove motion artifact in resting state fMRI.
    https://doi.org/10.1016/j.neuroimage.2013.08.048
    Mathias A et al. (2004). Algorithms for spectral analysis of irregularly sampled time series.
    https://doi.org/10.18637/jss.v011.i02
    """
    every = np.arange(kept[0], kept[-1] + 1, dtype=np.float64)
    known = kept.astype(np.float64)
    n_frequency = OVERSAMPLING * len(kept) // 2
    w = 2 * np.pi * np.arange(1, n_frequency + 1) / (OVERSAMPLING * (known[-1] - known[0]))
    w = w[w <= np.pi]
    shift = np.arctan2(np.sin(2 * np.outer(w, known)).sum(axis=1), np.cos(2 * np.outer(w, known)).sum(axis=1)) / (2 * w)
    out = np.zeros((len(every), len(known)))
    for wave in (np.cos, np.sin):
        of_known, of_every = wave(w[:, None] * (known - shift[:, None])), wave(w[:, None] * (every - shift[:, None]))
        power = np.vecdot(of_known, of_known)
        # At half a cycle per frame one of the two vanishes at every frame.
        seen = power > 1e-9 * len(known)
        out += of_every[seen].T @ (of_known[seen] / power[seen, None])
    return out
