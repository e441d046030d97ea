"""Workers as SLURM jobs of one core each, through dask-jobqueue; the scheduler lives in this process."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, Final

from distributed.deploy.cluster import Cluster
from distributed.security import Security

from kconn.cluster.settings import GUARDED, ONE_THREAD, SETTINGS, as_environment
from kconn.cluster.table import ClusterTable
from kconn.errors import ResourceError, SchemaError

#: Memory of a worker where the study file names none.
MEMORY: Final = "8GiB"
#: Seconds before the wall time at which a worker hands over its work and stops by itself.
_HAND_OVER: Final = 300


def start_slurm(table: ClusterTable, *, security: Security | None, folder: Path) -> Cluster:
    """Start a scheduler here that submits workers as jobs.

    Parameters
    ----------
    table
        ``[cluster]``. What it leaves open is read from Dask's ``jobqueue.slurm``, see ``deploy/slurm``.
    security
        Certificates in files that the nodes see, or None for none.
    folder
        Shared folder for the output of the jobs.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if dask-jobqueue is not installed.
    ResourceError
        ``E-WORKER`` if this machine cannot submit jobs.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise SchemaError(
            "E-ARGUMENT",
            "SLURM needs dask-jobqueue, which is not installed",
            rule="workers as jobs are an optional extra",
            fix="pip install 'kconn[slurm]'",
        ) from error
    if shutil.which("sbatch") is None:
        raise ResourceError(
            "E-WORKER",
            "there is no sbatch on this machine",
            rule="kind 'slurm' runs where jobs can be submitted",
            fix="run on a login node or in a job of the cluster, or use --cluster local",
        )
    cluster: Cluster = SLURMCluster(**slurm_options(table, security=security, folder=folder))
    return cluster


def slurm_options(table: ClusterTable, *, security: Security | None, folder: Path) -> dict[str, Any]:
    """Return what dask-jobqueue is told; a key that is None is left to the site's own configuration."""
    scheduler: dict[str, Any] = {"dashboard_address": table.dashboard}
    settings = SETTINGS if security is None else {**SETTINGS, **GUARDED}
    variables = {**ONE_THREAD, **as_environment(settings)}
    options = {
        "cores": 1,
        "processes": 1,
        "memory": (table.memory or MEMORY).replace(" ", ""),
        "queue": table.queue,
        "account": table.account,
        "walltime": table.walltime,
        "interface": table.interface,
        "local_directory": table.scratch,
        "job_extra_directives": list(table.directives) or None,
        "job_script_prologue": [
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            *table.prologue,
        ],
        "worker_extra_args": ["--lifetime", f"{_lifetime(table.walltime)}s", "--lifetime-stagger", "60s"],
        "death_timeout": 60,
        "job_name": "kconn-worker",
        "log_directory": str(folder / "slurm-logs"),
        "scheduler_options": scheduler,
        "security": security,
        "protocol": "tcp://" if security is None else "tls://",
    }
    return {name: value for name, value in options.items() if value is not None}


def _lifetime(walltime: str) -> int:
    """Return the seconds that a worker lives: it ends before the job is ended, unless the job is very short."""
    days, hours, minutes, seconds = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", walltime).groups()  # type: ignore[union-attr]  # the table was validated
    total = ((24 * int(days or 0) + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    return max(total - _HAND_OVER, total * 4 // 5)
