"""The Prefect server of a flow: one of its own for its time, or the one that PREFECT_API_URL names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)


@contextmanager
def embedded_server() -> Iterator[None]:
    """Let Prefect start its own SQLite server for the time of the flow, unless PREFECT_API_URL names another."""
    patient: dict[Any, Any] = {
        # The default of 20 s is too short on a busy laptop.
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(updates=patient):
        yield
