"""Dask as kconn runs it. ``deploy/dask/kconn.yaml`` holds the same for schedulers and workers that others start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Measured: with the defaults a frozen worker stalls a run for 300 s, with these for 30 s. See docs/adr/0003.
SETTINGS: Final[dict[str, Any]] = {
    "distributed.scheduler.worker-ttl": "30s",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.worker.memory.max-spill": "4GiB",
    "distributed.admin.tick.limit": "10s",
    # What a worker remembers of its call stacks and events; with the defaults that grows by hundreds of MB.
    "distributed.admin.low-level-log-length": 100,
    "distributed.worker.profile.interval": "100ms",
    "distributed.worker.profile.cycle": "10s",
    # Small arrays travel inside the graph: scattered ones would be lost with the worker that holds them.
    "distributed.admin.large-graph-warning-threshold": "100GB",
}
#: For what listens beyond this machine: nothing unencrypted, and no function in the scheduler's own process.
GUARDED: Final[dict[str, Any]] = {
    "distributed.comm.require-encryption": True,
    "distributed.scheduler.blocked-handlers": ["run_function"],
}
#: One thread per worker process; a library that takes more would fight the other workers for the cores.
ONE_THREAD: Final[dict[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


def as_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as the variables that Dask reads them from in a process that is started elsewhere."""
    return {f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value) for key, value in settings.items()}
