"""End a wait that has no end: workers whose memory and spill disk are both full pause, and nobody says so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from distributed import Client

from kconn.cluster.looking import looking
from kconn.cluster.overdue import stop_work

#: Reasons with which the futures of a client are cancelled.
NO_MEMORY: Final = "all workers are paused, their memory is full"
NO_DISK: Final = "all workers are paused, their memory and the disk that they spill to are full"
#: Seconds between two looks, and for which all workers must be paused with nothing going on.
_LOOK: Final = 0.5
_PATIENCE: Final = 3.0
#: A disk with less room than this share of it, or than these bytes, is full.
_FULL_SHARE: Final = 0.02
_FULL_BYTES: Final = 16 * 1024 * 1024


@contextmanager
def watched_for_stalls(client: Client | None) -> Iterator[None]:
    """Stop what a client waits for while all workers are paused and none computes.

    A worker pauses when its memory is full and it has nowhere to put results; it goes on when what it computes at that
    moment ends and sets memory free. When nothing is computed, nothing ever will be.
    """
    if client is None:
        yield
        return
    with looking(_Stalled(client=client).look, every=_LOOK, name="kconn-stalled"):
        yield


@dataclass(slots=True, kw_only=True)
class _Stalled:
    """Since when nothing has gone on."""

    client: Client
    since: float | None = None

    def look(self) -> None:
        if not _is_stalled(self.client):
            self.since = None
            return
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since >= _PATIENCE:
            stop_work(self.client, reason=NO_DISK if _is_disk_full(self.client) else NO_MEMORY)
            self.since = None


def _is_stalled(client: Client) -> bool:
    if not any(future.status == "pending" for future in list(client.futures.values())):
        return False
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    paused = bool(workers) and all(worker["status"] == "paused" for worker in workers)
    return paused and not any((client.call_stack() or {}).values())


def _is_disk_full(client: Client) -> bool:
    return any(client.run(_has_full_disk, on_error="return").values())


def _has_full_disk(dask_worker: Any) -> bool:
    found = shutil.disk_usage(dask_worker.local_directory)
    return found.free < max(_FULL_SHARE * found.total, min(_FULL_BYTES, found.total / 2))
