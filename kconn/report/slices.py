"""Maps as pictures: slices of a volume, and grayordinates by structure where there is no surface to draw them on."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from PIL import Image

from kconn.grayordinates import has_grayordinates, short_name
from kconn.report.palette import DOWN, UP
from kconn.report.tables import Table
from kconn.report.words import format_number

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: Slices of one map, and how high each is on the page, in pixels.
MAX_SLICES: Final = 8
_HEIGHT: Final = 132
_LABEL: Final = 16
#: What is not coloured, on any background; and how see-through the weakest coloured voxel is.
_BRAIN: Final = (128, 136, 148, 56)
_WEAKEST: Final = 0.4
#: Sizes of the strip of one structure.
_STRIP: Final = 260
_MAX_MARKS: Final = 150

_PLANES: Final = ("x", "y", "z")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """Voxels turned so that their axes run to the right, to the front and upwards, cut to where there are any.

    ``signal``, ``shown``, ``there``: (x, y, z). ``affine``: (4, 4), of the voxels as they lie here.
    """

    signal: Array
    shown: BoolArray
    there: BoolArray
    affine: Array

    @property
    def peak(self) -> tuple[int, ...]:
        """Voxel with the largest value by size, of those that are shown, else of all."""
        size = np.where(self.shown if self.shown.any() else self.there, np.abs(self.signal), -1)
        return tuple(int(at) for at in np.unravel_index(size.argmax(), size.shape))


def place_volume(ds: xr.Dataset, values: npt.ArrayLike, shown: npt.ArrayLike) -> Volume | None:
    """Return the voxels of a map as a volume, or None where it has no voxels (vertices alone).

    Parameters
    ----------
    ds
        With ``i j k (voxel)`` and the attrs ``affine`` and ``grid_shape``, or grayordinates.
    values
        (voxel,).
    shown
        (voxel,) which are coloured.
    """
    dense = has_grayordinates(ds)
    inside = ds["vertex"].to_numpy() < 0 if dense else np.ones(ds.sizes["voxel"], dtype=bool)
    if not inside.any():
        return None
    affine = np.asarray(ds.attrs["volume_affine" if dense else "affine"], dtype=np.float64)
    ijk = np.stack([ds[axis].to_numpy()[inside] for axis in "ijk"])
    low, high = ijk.min(axis=1), ijk.max(axis=1) + 1
    place = tuple(ijk - low[:, None])
    shape = tuple(high - low)
    turn = io_orientation(affine)  # type: ignore[no-untyped-call]  # nibabel
    cut = affine.copy()
    cut[:3, 3] += affine[:3, :3] @ low
    parts = []
    for part, empty in ((values, np.nan), (shown, False), (inside, False)):
        volume = np.full(shape, empty, dtype=np.float64 if part is values else np.bool_)
        volume[place] = np.asarray(part)[inside]
        parts.append(apply_orientation(volume, turn))  # type: ignore[no-untyped-call]  # nibabel
    turned = cut @ inv_ornt_aff(turn, shape)  # type: ignore[no-untyped-call]  # nibabel
    return Volume(signal=np.nan_to_num(parts[0]), shown=parts[1], there=parts[2], affine=turned)


def choose_slices(volume: Volume, *, n: int = MAX_SLICES) -> list[int]:
    """Return the axial slices that show most: spread over those with coloured voxels, that of the peak among them."""
    filled = np.flatnonzero((volume.shown if volume.shown.any() else volume.there).any(axis=(0, 1)))
    chosen = filled[np.unique(np.linspace(0, filled.size - 1, min(n, filled.size)).round().astype(int))]
    peak = volume.peak[2]
    if peak not in chosen:
        chosen[np.abs(chosen - peak).argmin()] = peak
    return sorted(set(chosen.tolist()))


def draw_axial(volume: Volume, *, what: str) -> Markup:
    """Return axial slices as SVG elements that wrap as the page is narrow."""
    return _draw(volume, [(2, at) for at in choose_slices(volume)], what)


def draw_planes(volume: Volume, *, what: str) -> Markup:
    """Return the sagittal, coronal and axial slice through the peak."""
    return _draw(volume, list(enumerate(volume.peak)), what)


def _draw(volume: Volume, slices: Sequence[tuple[int, int]], what: str) -> Markup:
    strongest = float(np.abs(volume.signal[volume.shown]).max()) if volume.shown.any() else 1.0
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    # One scale for all, so that slices of one brain are of one size.
    scale = _HEIGHT / float(max(sizes[i] * volume.there.shape[i] for i in (1, 2)))
    drawn = []
    for plane, at in slices:
        across, up = (axis for axis in range(3) if axis != plane)
        width, height = (scale * sizes[axis] * volume.there.shape[axis] for axis in (across, up))
        parts = (np.take(part, at, axis=plane).T[::-1] for part in (volume.signal, volume.shown, volume.there))
        address = b64encode(_png(*parts, strongest=strongest)).decode("ascii")
        voxel = np.ones(4)
        voxel[:3] = np.array(volume.there.shape) // 2
        voxel[plane] = at
        label = f"{_PLANES[plane]} = {format_number(float((volume.affine @ voxel)[plane]), digits=0)} mm"
        wide = max(width, 64.0)
        drawn.append(
            Markup(
                '<svg viewBox="0 0 {w:.0f} {h:.0f}" style="width:{w:.0f}px" role="img" aria-label="{alt}">'
                '<image x="{x:.1f}" y="0" width="{iw:.1f}" height="{ih:.1f}" preserveAspectRatio="none" '
                'href="data:image/png;base64,{address}"/>'
                '<text x="{middle:.0f}" y="{foot:.0f}" text-anchor="middle" font-size="11.5" fill="var(--muted)">'
                "{label}</text></svg>"
            ).format(
                w=wide,
                h=height + _LABEL,
                alt=f"{what}, {label}",
                x=(wide - width) / 2,
                iw=width,
                ih=height,
                address=address,
                middle=wide / 2,
                foot=height + 12,
                label=label,
            )
        )
    return Markup('<div class="slices">{}</div>').format(Markup("").join(drawn))


def _png(values: Array, shown: BoolArray, there: BoolArray, *, strongest: float) -> bytes:
    """Return red above and blue below zero, the stronger the less see-through, over a grey silhouette."""
    rgba = np.zeros((*values.shape, 4), dtype=np.uint8)
    rgba[there] = _BRAIN
    for sign, colour in ((1, UP), (-1, DOWN)):
        here = shown & (np.sign(values) == sign)
        strength = _WEAKEST + (1 - _WEAKEST) * np.abs(values[here]) / strongest
        rgba[here, :3] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        rgba[here, 3] = np.rint(255 * strength)
    stream = BytesIO()
    Image.fromarray(rgba).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def structure_table(ds: xr.Dataset, values: Array, shown: BoolArray, *, symbol: str) -> Table:
    """Return one row per structure of grayordinates: how many, how many are shown, and a strip of their values."""
    finite = np.isfinite(values)
    edge = float(np.abs(values[finite]).max()) if finite.any() else 1.0
    rows = []
    for i, name in enumerate(ds.attrs["structures"]):
        mine = (ds["structure"].to_numpy() == i) & finite
        if not mine.any():
            continue
        found = values[mine & shown]
        rows.append(
            (
                short_name(str(name)).replace("_", " ").lower(),
                f"{int(mine.sum()):,}",
                f"{found.size:,}",
                format_number(float(values[mine].min())),
                format_number(float(values[mine].max())),
                _strip(values[mine], found, edge),
            )
        )
    columns = ("structure", "tested", "shown", f"lowest {symbol}", f"highest {symbol}", "")
    return Table(columns=columns, rows=tuple(rows), numeric=frozenset(range(1, 5)))


def _strip(values: Array, found: Array, edge: float) -> Markup:
    """Draw the range of values, a box around the middle half, and a mark for each that is shown."""

    def x(value: float) -> float:
        return _STRIP * (value / edge + 1) / 2

    low, first, third, high = (x(float(q)) for q in np.quantile(values, [0, 0.25, 0.75, 1]))
    # Evenly over ranks where there are many: neither end is lost.
    marks = np.sort(found)[np.unique(np.linspace(0, found.size - 1, min(found.size, _MAX_MARKS)).astype(int))]
    drawn = "".join(
        f'<line x1="{x(float(v)):.1f}" x2="{x(float(v)):.1f}" y1="2" y2="14" stroke="{UP if v > 0 else DOWN}"/>'
        for v in marks
    )
    return Markup(  # noqa: S704 - numbers alone
        f'<svg class="strip" viewBox="0 0 {_STRIP} 16" style="width:{_STRIP}px" role="img" '
        f'aria-label="range of values">'
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="16" stroke="var(--rule)"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8" stroke="var(--muted)" stroke-width="1"/>'
        f'<rect x="{first:.1f}" y="5" width="{max(1.0, third - first):.1f}" height="6" fill="var(--muted)" '
        f'opacity=".5"/>{drawn}</svg>'
    )
