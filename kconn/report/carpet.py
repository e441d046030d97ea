"""Carpet plots: a whole run in one small picture, before and after denoising, under its motion and DVARS."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup, escape
from PIL import Image

from kconn.kernels.quality import CARPET_NOTHING, CARPET_STEPS
from kconn.report.palette import DOWN, UP

#: Cells of a picture: a report of hundreds of runs must still open at once.
N_ROW: Final = 60
N_COLUMN: Final = 240
#: Grey levels, and the one that is see-through; standard deviations from black to white.
_N_GREY: Final = 15
_RANGE: Final = 1.5
#: Sizes on the page.
_LEFT: Final = 112
_WIDTH: Final = 520
_TRACE: Final = 30
_PICTURE: Final = 84
_GAP: Final = 8

FloatArray = npt.NDArray[np.float64]


def draw_carpet(run: xr.Dataset, *, label: str, fd_threshold: float | None) -> Markup:
    """Return the carpet plot of a run as an SVG element.

    Parameters
    ----------
    run
        ``carpet`` and, unless the run was left out, ``carpet_denoised (carpet_row, time)``; ``std_dvars`` and, where
        known, ``framewise_displacement (time)``; ``sample_mask (time)``.
    label
        The run, for readers who do not see it.
    fd_threshold
        mm, drawn as a line.
    """
    parts = []
    top = _GAP
    if "framewise_displacement" in run:
        values = run["framewise_displacement"].to_numpy()
        parts.append(_trace(values, "FD (mm)", top=top, colour=UP, line=fd_threshold, floor=0.5))
        top += _TRACE + _GAP
    parts.append(_trace(run["std_dvars"].to_numpy(), "std. DVARS", top=top, colour=DOWN, line=None, floor=2.0))
    top += _TRACE + _GAP
    for name, words in (("carpet", "before"), ("carpet_denoised", "denoised")):
        if name in run:
            parts.append(_picture(run[name].transpose("carpet_row", "time").to_numpy(), words, top=top))
            top += _PICTURE + _GAP
    parts.append(_censored(run["sample_mask"].to_numpy(), top=top))
    top += 2 * _GAP
    size = f'viewBox="0 0 {_LEFT + _WIDTH} {top}" style="width:{_LEFT + _WIDTH}px"'
    opening = Markup('<svg {} role="img" aria-label="{}">').format(Markup(size), f"Carpet plot of {label}")  # noqa: S704 - numbers
    return opening + Markup("").join(parts) + Markup("</svg>")


def _trace(values: FloatArray, name: str, *, top: float, colour: str, line: float | None, floor: float) -> Markup:
    """Draw a course by the largest value of each column: a spike of one frame must be seen."""
    finite = np.nan_to_num(values)
    heights = np.array([part.max() for part in np.array_split(finite, min(N_COLUMN, len(finite)))])
    # A steady course lies low: its scale does not follow its smallest wiggles.
    highest = max(float(np.quantile(finite, 0.995)), 2 * line if line else floor)
    x = _LEFT + (np.arange(len(heights)) + 0.5) * _WIDTH / len(heights)
    y = top + _TRACE * (1 - np.minimum(heights / highest, 1))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    rule = ""
    if line is not None:
        at = top + _TRACE * (1 - line / highest)
        rule = (
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--muted)" '
            'stroke-width=".7" stroke-dasharray="4 3"/>'
        )
    drawn = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1"/>{rule}'
    return _label(name, top + _TRACE / 2, f"to {highest:.2g}") + Markup(drawn)  # noqa: S704 - numbers alone


def _picture(carpet: npt.NDArray[np.int8], name: str, *, top: float) -> Markup:
    address = b64encode(_png(carpet)).decode("ascii")
    drawn = (
        f'<image x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_PICTURE}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{address}"/>'
    )
    return _label(name, top + _PICTURE / 2, "") + Markup(drawn)  # noqa: S704 - base64 alone


def _png(carpet: npt.NDArray[np.int8]) -> bytes:
    """Return a picture of four bits per cell; nothing is see-through."""
    n_row, n_time = carpet.shape
    rows = carpet[np.arange(min(N_ROW, n_row)) * n_row // max(1, min(N_ROW, n_row))]
    z = np.where(rows == CARPET_NOTHING, np.nan, rows / CARPET_STEPS)
    columns = []
    for part in np.array_split(z, min(N_COLUMN, n_time), axis=1):
        there = np.isfinite(part)
        columns.append(
            np.divide(np.nansum(part, axis=1), there.sum(axis=1), where=there.any(axis=1), out=_nothing(part))
        )
    cells = np.column_stack(columns)
    grey = np.rint((np.clip(cells / _RANGE, -1, 1) + 1) / 2 * (_N_GREY - 1))
    index = np.where(np.isfinite(cells), np.nan_to_num(grey), _N_GREY).astype(np.uint8)
    image = Image.frombytes("P", (index.shape[1], index.shape[0]), index.tobytes())
    image.putpalette([level for i in range(_N_GREY) for level in [round(255 * i / (_N_GREY - 1))] * 3] + [255] * 3)
    stream = BytesIO()
    image.save(stream, format="PNG", bits=4, transparency=_N_GREY)
    return stream.getvalue()


def _nothing(part: FloatArray) -> FloatArray:
    return np.full(len(part), np.nan)


def _censored(kept: npt.NDArray[np.bool_], *, top: float) -> Markup:
    """Mark the frames that were dropped below the picture."""
    width = _WIDTH / len(kept)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (~kept).astype(np.int8), [0]])))
    marks = "".join(
        f'<rect x="{_LEFT + start * width:.1f}" y="{top - 4}" width="{max(1.0, (stop - start) * width):.1f}" '
        f'height="6" fill="{UP}"/>'
        for start, stop in edges.reshape(-1, 2).tolist()
    )
    return _label(f"dropped: {int((~kept).sum())}", top - 1, "") + Markup(marks)  # noqa: S704 - numbers alone


def _label(text: str, y: float, note: str) -> Markup:
    # A name that is cut by the edge of the page would be no name: it ends where the picture begins.
    words = escape(text) + (Markup('<tspan fill="var(--muted)" dx="4">{}</tspan>').format(note) if note else "")
    return Markup('<text x="{}" y="{}" text-anchor="end" font-size="11.5" fill="var(--ink)">{}</text>').format(
        _LEFT - 6, f"{y + 3:.1f}", words
    )
