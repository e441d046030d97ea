"""The words in which a test is asked for, and the refusal of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from kconn.errors import SchemaError

Alternative = Literal["two-sided", "greater", "less"]
Convention = Literal["kconn", "palm", "fsl", "nilearn"]
Statistic = Literal["edge", "voxel", "cluster-extent", "cluster-mass", "tfce", "nbs"]
Data = xr.DataArray | npt.NDArray[np.floating] | da.Array
Rows = pd.DataFrame | pd.Series | xr.DataArray | npt.NDArray[np.generic]


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is none of those allowed, with code ``E-ARGUMENT``."""
    if not any(value is choice or value == choice for choice in allowed):
        raise SchemaError("E-ARGUMENT", f"{name}={value!r}", rule=f"one of {list(allowed)}")


def check_integer(name: str, value: object, least: int) -> int:
    """Return an integer of at least ``least``; code ``E-ARGUMENT`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SchemaError("E-ARGUMENT", f"{name}={value!r}", rule=f"an integer of at least {least}")
    return int(value)


def refuse_unused(statistic: str, **options: object) -> None:
    """Refuse options that a statistic does not read, with code ``E-ARGUMENT``."""
    for name, value in options.items():
        if value is not None:
            raise SchemaError("E-ARGUMENT", f"{name} with statistic={statistic!r}", rule=f"{name} has no effect there")


def refuse_together(name: str, others: Mapping[str, object], *, rule: str, fix: str) -> None:
    """Refuse an option beside any of the others that is given, with code ``E-ARGUMENT``."""
    for other, given in others.items():
        if given:
            raise SchemaError("E-ARGUMENT", f"{name} with {other}", rule=rule, fix=fix)


def refuse_missing(statistic: str, **options: object) -> None:
    """Refuse a statistic without an option that it needs, with code ``E-ARGUMENT``."""
    for name, value in options.items():
        if value is None:
            raise SchemaError("E-ARGUMENT", f"statistic={statistic!r} without {name}", rule=f"{name} is needed")
