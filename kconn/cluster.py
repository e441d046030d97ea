"""Workers: a local cluster that starts with the run and ends with it, or one that is already there."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Final

import dask
import psutil
from distributed import Client, LocalCluster

from kconn.errors import ResourceError

#: Measured: with the defaults a frozen worker stalls a run for 300 s, with these for 30 s. See docs/adr/0003.
SETTINGS: Final[dict[str, Any]] = {
    "distributed.scheduler.worker-ttl": "30s",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.worker.memory.max-spill": "4GiB",
    "distributed.admin.tick.limit": "10s",
    # Small arrays travel inside the graph: scattered ones would be lost with the worker that holds them.
    "distributed.admin.large-graph-warning-threshold": "100GB",
}


@contextmanager
def connect(*, n_workers: int | None = None, address: str | None = None) -> Iterator[Client]:
    """Open a client, and close it with all that was started for it.

    Parameters
    ----------
    n_workers
        Worker processes of a local cluster, one thread and one BLAS thread each. The default is one per core.
    address
        Scheduler that is already running; then nothing is started.

    Raises
    ------
    ResourceError
        ``E-WORKER`` if no scheduler answers at ``address``.
    """
    with dask.config.set(SETTINGS):
        if address is not None:
            with _remote(address) as client:
                yield client
            return
        with _start_local(n_workers or cores()) as cluster, Client(cluster) as client:
            yield client


def cores() -> int:
    """Return the physical cores that this process may use, at least one."""
    usable = len(psutil.Process().cpu_affinity() or [0])
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _start_local(n_workers: int) -> LocalCluster:
    """Start worker processes that Ctrl-C does not reach: this process ends them, and they never print a traceback.

    A terminal sends the interrupt to the whole group. The blocked signal is inherited by the thread and the processes
    that start here; for this process it waits until the cluster is up.
    """
    resource_tracker.ensure_running()  # started later, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _remote(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ResourceError(
            "E-WORKER",
            f"no scheduler answers at {address}",
            rule="--scheduler names a running Dask scheduler, such as tcp://host:8786",
            fix="start one, or leave the option out for a local cluster",
        ) from error
    with client:
        yield client
