"""What all tables of a study file share."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

#: ``"none"`` stands for "not applied": TOML has no null.
Off = Literal["none"]


Cell = str | int | float | bool


Positive = Annotated[float, Field(gt=0)]


Share = Annotated[float, Field(ge=0, le=1)]


NAME: Final = r"^[A-Za-z][A-Za-z0-9-]*$"


LABEL: Final = r"^[A-Za-z0-9]+$"


def unless_off(value: float | str) -> float | None:
    """Return a number of the study file, or None for ``"none"``."""
    return None if isinstance(value, str) else value


class Table(BaseModel):
    """A table of the study file: frozen, and with no key but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)
