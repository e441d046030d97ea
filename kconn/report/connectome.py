"""Where in the brain: the edges of a test on a glass brain, or on a ring where nodes have no coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from kconn.report.palette import DOWN, INK, MUTED, PAPER, RULE, UP, network_colours

_MAX_RING_LABELS: Final = 40


def has_coordinates(nodes: pd.DataFrame) -> bool:
    """Return whether every node has x, y and z."""
    return {"x", "y", "z"} <= set(nodes.columns) and bool(np.isfinite(nodes[["x", "y", "z"]].to_numpy(float)).all())


def plot_brain(nodes: pd.DataFrame, edges: Sequence[tuple[int, int]], signs: Sequence[int]) -> Figure:
    """Draw edges on the left, top and right view of a glass brain.

    Parameters
    ----------
    nodes
        ``x y z`` in mm of MNI space, one row per node.
    edges, signs
        Positions of the two nodes of each edge, and +1 or -1.

    References
    ----------
    The brain is drawn by nilearn, Abraham et al. 2014, doi:10.3389/fninf.2014.00014.
    """
    # Seconds long, and only reports draw brains.
    from nilearn.plotting import plot_connectome  # noqa: PLC0415

    adjacency = np.zeros((len(nodes), len(nodes)))
    for (i, j), sign in zip(edges, signs, strict=True):
        adjacency[i, j] = adjacency[j, i] = sign
    touched = np.asarray(adjacency.any(axis=0))
    figure = Figure(figsize=(8.2, 2.9), facecolor=PAPER)
    plot_connectome(
        adjacency,
        nodes[["x", "y", "z"]].to_numpy(dtype=float),
        figure=figure,
        display_mode="lzr",
        node_color=[INK if here else MUTED for here in touched.tolist()],
        node_size=np.where(touched, 22, 5),
        edge_cmap=ListedColormap([DOWN, UP]),
        edge_vmin=-1,
        edge_vmax=1,
        edge_kwargs={"linewidth": 2.2, "alpha": 0.9},
        annotate=True,
        colorbar=False,
    )
    _follow_theme(figure)
    return figure


def _follow_theme(figure: Figure) -> None:
    """Bring the black and grey outlines of nilearn into the colours of the page."""
    replaced = {"#000000": MUTED, "#a6a6a6": RULE}
    for ax in figure.axes:
        for patch in ax.patches:
            colour = _hex(patch.get_edgecolor())
            if colour in replaced:
                patch.set_edgecolor(replaced[colour])
                patch.set_linewidth(0.75 * patch.get_linewidth())
                patch.set_alpha(1)
        for text in ax.texts:
            text.set_color(MUTED)
            text.set_bbox({"alpha": 0})


def _hex(colour: object) -> str:
    rgb: npt.NDArray[np.float64] = np.asarray(colour, dtype=np.float64)[:3]
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in rgb)


def plot_ring(
    names: Sequence[str], networks: Sequence[str], edges: Sequence[tuple[int, int]], signs: Sequence[int]
) -> Figure:
    """Draw edges as chords of a ring of nodes, networks as arcs; nodes with an edge are named."""
    figure = Figure(figsize=(6.4, 4.6))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    n_node = len(names)
    angle = np.pi / 2 - 2 * np.pi * (np.arange(n_node) + 0.5) / n_node
    place = np.column_stack([np.cos(angle), np.sin(angle)])

    colours = network_colours(networks)
    for i in range(n_node):
        ends = np.pi / 2 - 2 * np.pi * np.linspace(i, i + 1, 6) / n_node
        colour = colours[networks[i]] if networks else RULE
        ax.plot(1.04 * np.cos(ends), 1.04 * np.sin(ends), color=colour, linewidth=5, solid_capstyle="butt")
    for (i, j), sign in zip(edges, signs, strict=True):
        chord = Path([place[i], (0.0, 0.0), place[j]], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
        ax.add_patch(PathPatch(chord, facecolor="none", edgecolor=UP if sign > 0 else DOWN, linewidth=1.8, alpha=0.9))

    touched = sorted({node for edge in edges for node in edge})
    ax.scatter(place[:, 0], place[:, 1], s=6, color=MUTED, zorder=3)
    ax.scatter(place[touched, 0], place[touched, 1], s=20, color=INK, zorder=4)
    for i in touched[:_MAX_RING_LABELS]:
        x, y = 1.1 * place[i]
        turn = np.degrees(angle[i])
        on_left = np.cos(angle[i]) < 0
        ax.text(
            x,
            y,
            names[i],
            fontsize=7,
            rotation=turn + 180 if on_left else turn,
            rotation_mode="anchor",
            ha="right" if on_left else "left",
            va="center",
        )
    ax.set_xlim(-2.35, 2.35)
    ax.set_ylim(-1.69, 1.69)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return figure
