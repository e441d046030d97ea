"""Figures as SVG that can stand inside a page: themed, named, and the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from kconn.report.palette import STYLE, THEME

_PREAMBLE: Final = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA: Final = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_NAMESPACE: Final = re.compile(r'\s+xmlns(:\w+)?="[^"]*"')
_SIZE: Final = re.compile(r'\s(width|height)="([\d.]+)pt"')
_PROLOGUE: Final = re.compile(r"<svg[^>]*>")
_IDENTIFIER: Final = re.compile(r'(?<=\sid=")([^"]*)(?=")|(?<=url\(#)([^)]*)(?=\))|(?<=href="#)([^"]*)(?=")')
_STYLE_ELEMENT: Final = re.compile(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>")


@contextmanager
def styled() -> Iterator[None]:
    """Make figures in the house style, and leave matplotlib as it was."""
    with mpl.rc_context(dict(STYLE)):
        yield


def inline_svg(figure: Figure, *, name: str, alt: str) -> Markup:
    """Return a figure as an SVG element.

    Parameters
    ----------
    figure
        Made within `styled`.
    name
        Unique within the page; it goes before every identifier.
    alt
        What the figure shows, for readers who do not see it.
    """
    stream = BytesIO()
    with styled():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
    text = stream.getvalue().decode("utf-8")
    for pattern in (_PREAMBLE, _METADATA, _STYLE_ELEMENT):
        text = pattern.sub("", text, count=1)
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var({variable})")
    text = _IDENTIFIER.sub(lambda found: f"{name}-{found.group(0)}", text)
    width = float(dict(_SIZE.findall(text))["width"])
    label = escape(alt)
    opening = _SIZE.sub("", _NAMESPACE.sub("", _PROLOGUE.search(text).group(0)))  # type: ignore[union-attr]  # it begins so
    opening = opening[:-1] + f' role="img" aria-label="{label}" style="width:{width / 0.75:.0f}px">'
    return Markup(_PROLOGUE.sub(lambda _: opening, text, count=1).strip())  # noqa: S704 - matplotlib escapes its texts
