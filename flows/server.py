"""The Prefect server of a flow: one of its own for its time, or the one that PREFECT_API_URL names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from kconn.errors import ResourceError


@contextmanager
def embedded_server() -> Iterator[None]:
    """Let Prefect start its own SQLite server for the time of the flow, unless PREFECT_API_URL names another.

    Raises
    ------
    ResourceError
        ``E-PERMISSION`` if Prefect's own folder cannot be made: its server would print tracebacks until it gives up.
    """
    home = PREFECT_HOME.value()
    if PREFECT_API_URL.value() is None:
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                "E-PERMISSION",
                f"the folder of Prefect's database cannot be made: {error.strerror}",
                where=str(home),
                rule="the server of a flow keeps its database there while it runs",
                fix="set PREFECT_HOME to a folder that can be written, or PREFECT_API_URL to a running server",
            ) from error
    patient: dict[Any, Any] = {
        # The default of 20 s is too short on a busy laptop.
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(updates=patient):
        yield
