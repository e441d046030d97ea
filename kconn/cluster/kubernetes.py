"""Workers as pods of Dask's Kubernetes operator, described here: the operator's own defaults do not start any more."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from kconn.cluster.settings import GUARDED, ONE_THREAD, SETTINGS, as_environment
from kconn.cluster.table import ClusterTable
from kconn.errors import ResourceError, SchemaError

#: Memory of a worker, and of a scheduler, where the study file names none.
MEMORY: Final = "8GiB"
SCHEDULER_MEMORY: Final = "4Gi"
API: Final = "kubernetes.dask.org/v1"
#: Where the certificates of its role are seen in a pod.
CERTIFICATES: Final = "/etc/kconn/tls"
#: Where workers, and the process that runs the study, see the studies.
STUDIES: Final = "/study"
#: Dask's operator scales by what the scheduler answers over HTTP: it speaks no TLS, and ``api`` is off by default.
_ASKED_BY_THE_OPERATOR: Final = {
    "distributed.scheduler.http.routes": [
        f"distributed.http.{route}"
        for route in (
            "scheduler.prometheus",
            "scheduler.info",
            "scheduler.json",
            "scheduler.api",
            "health",
            "proxy",
            "statics",
        )
    ]
}
_USER: Final = 10001
_NO_RIGHTS: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@contextmanager
def started_in_kubernetes(table: ClusterTable) -> Iterator[str]:
    """Create a DaskCluster, and with ``max_workers`` its autoscaler; yield the scheduler's address; remove them after.

    Raises
    ------
    SchemaError
        ``E-ARGUMENT`` if dask-kubernetes is not installed.
    ResourceError
        ``E-WORKER`` if the cluster refuses, or Dask's operator is not installed there.
    """
    try:
        import httpx  # noqa: PLC0415 - an optional extra
        import kr8s  # noqa: PLC0415
        from kr8s.objects import new_class  # noqa: PLC0415
    except ImportError as error:
        raise SchemaError(
            "E-ARGUMENT",
            "Kubernetes needs dask-kubernetes, which is not installed",
            rule="workers as pods are an optional extra",
            fix="pip install 'kconn[kubernetes]'",
        ) from error
    name = f"kconn-{secrets.token_hex(4)}"
    created: list[Any] = []
    try:
        try:
            for spec in describe_objects(name, table):
                made = new_class(spec["kind"], API, asyncio=False)(spec, namespace=table.namespace)
                made.create()
                created.append(made)
        except (
            kr8s.APITimeoutError,
            kr8s.ConnectionClosedError,
            kr8s.ServerError,
            httpx.TransportError,  # nobody answers
            OSError,  # no token, or a certificate that is not good
            ValueError,  # no credentials at all
        ) as error:
            raise ResourceError(
                "E-WORKER",
                f"the Kubernetes API gives no workers: {error}",
                rule="Dask's operator is installed, and this account may create daskclusters in the namespace",
                fix="see deploy/kubernetes, or use --cluster local",
            ) from error
        yield table.address or f"{_protocol(table)}://{name}-scheduler.{table.namespace}:8786"
    finally:
        for made in reversed(created):
            with suppress(kr8s.NotFoundError):  # somebody was faster
                made.delete()


def describe_objects(name: str, table: ClusterTable) -> list[dict[str, Any]]:
    """Return a DaskCluster and, where workers come and go with the work, a DaskAutoscaler."""
    cluster = {
        "apiVersion": API,
        "kind": "DaskCluster",
        "metadata": {"name": name, "namespace": table.namespace, "labels": {"app.kubernetes.io/part-of": "kconn"}},
        "spec": {
            "idleTimeout": 0,
            "scheduler": {"service": _service(name), "spec": _scheduler(table)},
            "worker": {"replicas": table.n_start, "spec": _worker(name, table)},
        },
    }
    if table.max_workers is None:
        return [cluster]
    autoscaler = {
        "apiVersion": API,
        "kind": "DaskAutoscaler",
        "metadata": {"name": name, "namespace": table.namespace, "labels": {"app.kubernetes.io/part-of": "kconn"}},
        "spec": {"cluster": name, "minimum": table.min_workers, "maximum": table.max_workers},
    }
    return [cluster, autoscaler]


def _service(name: str) -> dict[str, Any]:
    ports = [("tcp-comm", 8786), ("http-dashboard", 8787)]
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [{"name": of, "protocol": "TCP", "port": port, "targetPort": of} for of, port in ports],
    }


def _scheduler(table: ClusterTable) -> dict[str, Any]:
    args = ["dask", "scheduler", "--protocol", _protocol(table), "--host", "0.0.0.0", "--port", "8786"]  # noqa: S104 - in a pod, behind a NetworkPolicy
    args += ["--dashboard-address", ":8787", *_certificates("scheduler", table)]
    probe = {"httpGet": {"port": "http-dashboard", "path": "/health"}, "periodSeconds": 5, "timeoutSeconds": 5}
    container = {
        **_container("scheduler", table, args, cpu="1", memory=SCHEDULER_MEMORY),
        "ports": [
            {"name": "tcp-comm", "containerPort": 8786, "protocol": "TCP"},
            {"name": "http-dashboard", "containerPort": 8787, "protocol": "TCP"},
        ],
        "readinessProbe": probe,
        "livenessProbe": {**probe, "initialDelaySeconds": 30, "periodSeconds": 20},
    }
    return _pod("scheduler", table, container)


def _worker(name: str, table: ClusterTable) -> dict[str, Any]:
    memory = table.memory or MEMORY
    args = ["dask", "worker", f"{_protocol(table)}://{name}-scheduler.{table.namespace}:8786"]
    args += ["--name", "$(DASK_WORKER_NAME)", "--nthreads", "1", "--nworkers", "1", "--memory-limit", memory]
    args += ["--local-directory", "/scratch", "--death-timeout", "60", "--no-dashboard"]
    args += _certificates("worker", table)
    return _pod("worker", table, _container("worker", table, args, cpu="1", memory=_quantity(memory)))


def _container(role: str, table: ClusterTable, args: list[str], *, cpu: str, memory: str) -> dict[str, Any]:
    settings = SETTINGS if table.insecure else {**SETTINGS, **GUARDED}
    if role == "scheduler":
        settings = {**settings, **_ASKED_BY_THE_OPERATOR}
    amounts = {"cpu": cpu, "memory": memory, "ephemeral-storage": "8Gi"}
    mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": "/scratch"}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - of the pod
    if role == "worker":
        mounts.append({"name": "studies", "mountPath": STUDIES})
    if not table.insecure:
        mounts.append({"name": "tls", "mountPath": CERTIFICATES, "readOnly": True})
    return {
        "name": role,
        "image": table.image,
        "args": args,
        "env": [{"name": key, "value": value} for key, value in {**ONE_THREAD, **as_environment(settings)}.items()],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": _NO_RIGHTS,
        "volumeMounts": mounts,
    }


def _pod(role: str, table: ClusterTable, container: dict[str, Any]) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": "6Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if role == "worker":
        volumes.append({"name": "studies", "persistentVolumeClaim": {"claimName": table.volume_claim}})
    if not table.insecure:
        volumes.append({"name": "tls", "secret": {"secretName": f"{table.tls_secret}-{role}", "defaultMode": 0o440}})
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _certificates(role: str, table: ClusterTable) -> list[str]:
    if table.insecure:
        return []
    files = {"ca-file": "ca.pem", "cert": f"{role}.pem", "key": f"{role}-key.pem"}
    return [part for option, file in files.items() for part in (f"--tls-{option}", f"{CERTIFICATES}/{file}")]


def _protocol(table: ClusterTable) -> str:
    return "tcp" if table.insecure else "tls"


def _quantity(memory: str) -> str:
    """Return bytes as Kubernetes writes them: ``8GiB`` is ``8Gi``, ``8GB`` is ``8G``."""
    return (
        memory.replace(" ", "").removesuffix("B").replace("K", "k")
        if "i" not in memory
        else memory.rstrip("B").replace(" ", "")
    )
