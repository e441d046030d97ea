"""Labels of subjects, sessions and runs: one spelling each, so that rows are joined by id and never by position."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable
from typing import Final

from kconn.errors import InputError, StudyFileError

#: No label of a real study comes near; a longer one is a slip, and paths are made of labels.
MAX_LABEL: Final = 64
_LABEL: Final = re.compile(r"[A-Za-z0-9]+")


def canonical_label(text: str, *, prefix: str, where: str = "") -> str:
    """Return a label as kconn writes it: ``"sub-01"`` and ``"01"`` give ``"01"``.

    Parameters
    ----------
    text
        As found in a file name or a table.
    prefix
        BIDS entity that may precede it: ``sub``, ``ses`` or ``run``.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-ID`` if the rest is not 1 to 64 letters and digits of ASCII.
    """
    label = unicodedata.normalize("NFC", text).removeprefix(f"{prefix}-")
    if not _LABEL.fullmatch(label) or len(label) > MAX_LABEL:
        raise InputError(
            "E-ID",
            f"{text[: 2 * MAX_LABEL]!r} is no label for '{prefix}'",
            where=where,
            rule=f"1 to {MAX_LABEL} letters A-Z a-z and digits, after an optional '{prefix}-'",
            fix="rename it, without spaces, underscores, hyphens or accents",
        )
    return label


def format_label(text: str, *, prefix: str, id_format: str | None, where: str = "") -> str:
    """Return the canonical label of a table cell, after ``id_format`` (``"{:03d}"`` makes ``"4"`` to ``"004"``).

    Raises
    ------
    InputError
        ``E-ID`` if the cell is no label, or no whole number where ``id_format`` needs one.
    StudyFileError
        ``E-STUDY-VALUE`` if ``id_format`` is not one format of one number.
    """
    if id_format is None:
        return canonical_label(text, prefix=prefix, where=where)
    if not re.fullmatch(r"[A-Za-z0-9]*\{(?::\d*d?)?\}[A-Za-z0-9]*", id_format):
        raise StudyFileError(
            "E-STUDY-VALUE",
            f"id_format is {id_format!r}",
            where=where,
            rule="letters and digits around one number in braces",
            fix="write for example {:03d}, which makes 4 to 004",
        )
    digits = text.strip().removeprefix(f"{prefix}-")
    if not (digits.isascii() and digits.isdigit()):
        raise InputError(
            "E-ID",
            f"{text[: 2 * MAX_LABEL]!r} is no whole number, as id_format {id_format!r} needs",
            where=where,
            rule="with id_format every identifier of the table is a whole number",
            fix="drop id_format, or correct the table",
        )
    return canonical_label(id_format.format(int(digits)), prefix=prefix, where=where)


def check_distinct(labels: Iterable[tuple[Hashable, str]], *, what: str, where: str = "") -> None:
    """Refuse two sources that claim one identifier, also where the claims differ only in case.

    Parameters
    ----------
    labels
        Pairs of a source (its row, or its rank among the files) and the identifier that it claims.
    what
        What the sources are, for the error: ``rows`` or ``files``.
    where
        Place for errors.

    Raises
    ------
    InputError
        ``E-ID-DUPLICATE``.
    """
    seen: dict[str, tuple[Hashable, str]] = {}
    for source, label in labels:
        first = seen.setdefault(label.casefold(), (source, label))
        if first != (source, label):
            raise InputError(
                "E-ID-DUPLICATE",
                f"two {what} claim {label!r}: {first[0]} (as {first[1]!r}) and {source} (as {label!r})",
                where=where,
                rule="every identifier occurs once, and none differs from another only in case",
                fix="drop or rename one of them",
            )
