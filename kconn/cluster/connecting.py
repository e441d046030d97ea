"""Workers: a local cluster that starts with the run and ends with it, jobs, pods, or ones that are already there."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import dask
import psutil
from distributed import Client, LocalCluster
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from distributed.utils import silence_logging_cmgr

from kconn.cluster.kubernetes import started_in_kubernetes
from kconn.cluster.settings import SETTINGS
from kconn.cluster.slurm import start_slurm
from kconn.cluster.table import ClusterKind, ClusterTable
from kconn.cluster.tls import load_security, make_certificates
from kconn.errors import ResourceError

_ADDRESS: Final = re.compile(r"(?:(?P<protocol>\w+)://)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d+)/?")
_HERE: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_DAYS_OF_A_RUN: Final = 30.0


@contextmanager
def connect(
    table: ClusterTable | None = None,
    *,
    n_workers: int | None = None,
    address: str | None = None,
    folder: Path = Path(),
) -> Iterator[Client]:
    """Open a client, and close it with all that was started for it.

    Parameters
    ----------
    table
        ``[cluster]`` of a study file; without it a local cluster.
    n_workers
        Worker processes, one thread and one BLAS thread each, instead of what the table says. The default of a local
        cluster is one per core.
    address
        Scheduler that is already running, instead of the table's; then nothing is started.
    folder
        What ``tls`` is relative to. Jobs of SLURM find certificates and leave their output here: nodes must see it.

    Raises
    ------
    ResourceError
        ``E-WORKER`` if no scheduler answers or no worker comes up in time, ``E-TLS`` if a connection to another
        machine would not be encrypted or a certificate is not good.
    SchemaError
        ``E-ARGUMENT`` if what the kind needs is not installed.
    InputError
        ``E-FILE-MISSING`` if a certificate is not there.
    """
    table = table or ClusterTable()
    if address is not None:
        table = table.model_copy(update={"kind": "address", "address": address})
    if n_workers is not None:
        table = table.model_copy(update={"workers": n_workers, "max_workers": None})
    with (
        dask.config.set(SETTINGS),
        silence_logging_cmgr(logging.CRITICAL),  # what befalls workers and scheduler is told in words of our own
        _OPEN[table.kind](table, folder) as client,
    ):
        yield client


def cores() -> int:
    """Return the physical cores that this process may use, at least one."""
    usable = len(psutil.Process().cpu_affinity() or [0])
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


@contextmanager
def _local(table: ClusterTable, _: Path) -> Iterator[Client]:
    with _start_local(table) as cluster:
        if table.max_workers is not None:
            cluster.adapt(minimum=table.min_workers, maximum=table.max_workers)
        with Client(cluster) as client:
            yield client


def _start_local(table: ClusterTable) -> LocalCluster:
    """Start worker processes that Ctrl-C does not reach: this process ends them, and they never print a traceback.

    A terminal sends the interrupt to the whole group. The blocked signal is inherited by the thread and the processes
    that start here; for this process it waits until the cluster is up.
    """
    resource_tracker.ensure_running()  # started later, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _without_main():
            return LocalCluster(
                n_workers=table.n_start if table.max_workers is not None else table.workers or cores(),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=table.dashboard,
                memory_limit=table.memory or "auto",
                silence_logs=logging.CRITICAL,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep processes that start here from importing the main module: that of a flow brings Prefect and its logs."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _remote(table: ClusterTable, folder: Path) -> Iterator[Client]:
    address = str(table.address)
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise _no_answer(address)
    security = None
    if found["protocol"] == "tls":
        security = load_security(_certificates(table, folder))
    elif found["host"] not in _HERE and not table.insecure:
        raise ResourceError(
            "E-TLS",
            f"the connection to {address} would not be encrypted",
            rule="whoever reaches a scheduler without TLS runs code as its owner, and reads what is computed",
            fix="start it with certificates (`kconn tls init`) and name it as tls://host:port, or say insecure = true",
        )
    with _answering(address, security) as client:
        _wait_for_a_worker(
            client, table, "start workers for it: `dask worker`, with the certificates of the role worker"
        )
        yield client


@contextmanager
def _slurm(table: ClusterTable, folder: Path) -> Iterator[Client]:
    with ExitStack() as stack:
        security = None
        if table.tls is not None:
            security = load_security(folder / table.tls)
        elif not table.insecure:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix=".kconn-tls-", dir=folder))
            make_certificates(Path(made), days=_DAYS_OF_A_RUN)
            (Path(made) / "ca-key.pem").unlink()  # nobody else joins this run
            security = load_security(Path(made))
        cluster: Cluster = stack.enter_context(start_slurm(table, security=security, folder=folder))
        if table.max_workers is not None:
            cluster.adapt(minimum=table.min_workers, maximum=table.max_workers)
        else:
            cluster.scale(table.n_start)
        client = stack.enter_context(Client(cluster))
        _wait_for_a_worker(
            client, table, "look at `squeue --me` and slurm-logs/, or set [cluster] start_minutes higher"
        )
        yield client


@contextmanager
def _kubernetes(table: ClusterTable, folder: Path) -> Iterator[Client]:
    security = None if table.insecure else load_security(_certificates(table, folder))
    with (
        started_in_kubernetes(table) as address,
        _answering(address, security, seconds=60.0 * table.start_minutes) as client,
    ):
        _wait_for_a_worker(client, table, f"look at the pods: `kubectl --namespace {table.namespace} get pods`")
        yield client


_OPEN: Final[dict[ClusterKind, Callable[[ClusterTable, Path], Any]]] = {
    "local": _local,
    "address": _remote,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
}


def _certificates(table: ClusterTable, folder: Path) -> Path:
    if table.tls is not None:
        return folder / table.tls
    raise ResourceError(
        "E-TLS",
        f"kind {table.kind!r} needs the folder of the certificates",
        rule="workers on other machines are reached with TLS",
        fix="name it as [cluster] tls or with --tls; `kconn tls init FOLDER` makes one",
    )


@contextmanager
def _answering(address: str, security: Security | None, *, seconds: float = 10.0) -> Iterator[Client]:
    try:
        client = Client(address, timeout=seconds, security=security)
    except (OSError, ValueError) as error:
        raise _no_answer(address) from error
    with client:
        yield client


def _no_answer(address: str) -> ResourceError:
    with_tls = address.startswith("tls://")
    return ResourceError(
        "E-WORKER",
        f"no scheduler answers at {address}",
        rule="it names a running Dask scheduler, such as tls://host:8786"
        + (", with a certificate of the same authority" if with_tls else ""),
        fix="start one, or leave the option out for a local cluster",
    )


def _wait_for_a_worker(client: Client, table: ClusterTable, fix: str) -> None:
    """Wait until work is done: a task is also what makes an adaptive cluster start its first worker."""
    probe = client.submit(os.getpid, pure=False)
    try:
        probe.result(timeout=60.0 * table.start_minutes)
    except TimeoutError as error:
        raise ResourceError(
            "E-WORKER",
            f"no worker came up within {table.start_minutes:g} minutes",
            rule="a cluster starts its first worker before a run begins",
            fix=fix,
        ) from error
