"""One palette for every figure: few colours, each with one meaning, told apart by colour-blind readers and in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# These four are placeholders: in the SVG they become the variables of the page, so that figures follow its theme.
INK: Final = "#1c2331"
MUTED: Final = "#6b7485"
RULE: Final = "#d9dde4"
PAPER: Final = "#fdfdfe"

#: Placeholder -> variable of the style sheet.
THEME: Final[Mapping[str, str]] = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}

#: Sign of an effect: the two ends of ColorBrewer's RdBu.
UP: Final = "#c0392b"
DOWN: Final = "#2f6db5"
DIVERGING: Final = "RdBu_r"

#: Levels of the tested factor, the reference first.
GROUPS: Final[Sequence[str]] = ("#7d8797", "#7b3fa0", "#b8860b", "#1b7f79", "#8c564b")

#: Networks, after Paul Tol's muted scheme.
NETWORKS: Final[Sequence[str]] = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
)

#: Applied while a figure is made, never at import.
STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    # Labels come from files: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    # Identifiers in the SVG depend on this and on the content, not on chance.
    "svg.hashsalt": "kconn",
}


def group_colour(level: str, levels: Sequence[str]) -> str:
    """Return the colour of a level, by its place among the levels."""
    return GROUPS[levels.index(level) % len(GROUPS)] if level in levels else GROUPS[1]


def network_colours(networks: Sequence[str]) -> dict[str, str]:
    """Return network -> colour, in order of first appearance."""
    return {name: NETWORKS[i % len(NETWORKS)] for i, name in enumerate(dict.fromkeys(networks))}
