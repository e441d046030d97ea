"""deploy/kubernetes through Dask's operator and Prefect's Kubernetes worker, both real; the API and the nodes are not.

The API is KMock on loopback (`tests.kubernetes_api`), pods are processes of their own users, mounts and addresses
(`tests.kubernetes_nodes`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from kconn.cluster.tls import make_certificates
from kconn.io import store
from tests.kubernetes_api import KubernetesApi
from tests.kubernetes_nodes import Nodes, secret, secret_of, wait_until
from tests.prefect_server import Database
from tests.small_study import small_study, write_study
from tests.test_deploy import DEPLOY, OVERLAYS, faults_of_container, flow_job, image_of_flows, rendered
from tests.warm_shell import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.faults("kubernetes"), pytest.mark.timeout(900)]
OPERATOR = [sys.executable, "-m", "kopf", "run", "-m", "dask_kubernetes.operator.controller"]
OPERATOR += ["--standalone", "--all-namespaces"]
DASK_KINDS = {"DaskCluster", "DaskAutoscaler"}
WORKLOADS = {"Deployment", "StatefulSet"}


def overlay(name):
    """Return the objects of an overlay; its namespace is there already."""
    return [one for one in rendered(name) if one["kind"] != "Namespace"]


@contextmanager
def operating(api, start=subprocess.Popen):
    """Dask's operator; what it said is shown where a test fails."""
    path = api.folder / "operator.log"
    with path.open("w") as log:
        process = start(OPERATOR, env={**os.environ, "KUBECONFIG": str(api.kubeconfig)}, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
        sys.stdout.write(path.read_text()[-20_000:])


def owned(api, cluster="kconn"):
    return api.list("Deployment", **{"dask.org/cluster-name": cluster})


@pytest.mark.parametrize("name", OVERLAYS)
def test_operator__makes_what_the_overlay_says(name, tmp_path, count):
    objects = overlay(name)
    (asked,) = (made["spec"] for made in objects if made["kind"] == "DaskCluster")
    asked["worker"]["replicas"] = 3
    with KubernetesApi(tmp_path) as api, operating(api):
        api.apply(objects)
        wait_until(lambda: len(owned(api)) == 4, 60, lambda: list(owned(api)))
        workers = owned(api)
        scheduler = workers.pop("kconn-scheduler")["spec"]["template"]
        assert [*api.list("DaskWorkerGroup")] == ["kconn-default"]
        service = api.list("Service")["kconn-scheduler"]["spec"]
        assert service == asked["scheduler"]["service"]
        assert service["selector"].items() <= scheduler["metadata"]["labels"].items()
        assert scheduler["spec"] == asked["scheduler"]["spec"]
        for label, made in workers.items():
            pod = made["spec"]["template"]["spec"]
            added = take_environment(pod)[len(take_environment(asked["worker"]["spec"])) :]
            assert {"name": "DASK_WORKER_NAME", "value": label} in added
            assert without_environment(pod) == without_environment(asked["worker"]["spec"])
            assert take_environment(pod)[: -len(added)] == take_environment(asked["worker"]["spec"])
        pods = [scheduler["spec"], *(made["spec"]["template"]["spec"] for made in workers.values())]
        assert [fault for pod in pods for fault in faults_of_container(pod["containers"][0])] == []
        api.delete(api.list("DaskCluster")["kconn"])
        wait_until(lambda: not owned(api), 60, lambda: list(owned(api)))
        assert not {**api.list("DaskAutoscaler"), **api.list("DaskWorkerGroup")}
        assert api.faults == []
        count(overlays=1, pods_as_the_manifest_says=len(pods))


def take_environment(pod):
    return pod["containers"][0]["env"]


def without_environment(pod):
    return {**pod, "containers": [{**pod["containers"][0], "env": []}]}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The folder behind the claim of the studies; users of pods may write there."""
    folder = tmp_path_factory.mktemp("claim") / "studies"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, studies):
    """The namespace of the overlay `dev`, its secrets, Dask's operator and nodes; Dask's objects come from tests."""
    folder = tmp_path_factory.mktemp("cluster")
    make_certificates(folder / "tls", days=2)
    with KubernetesApi(folder) as api, Nodes(api, folder, claims={"kconn-studies": studies}) as nodes:
        api.apply([one for one in overlay("dev") if one["kind"] not in DASK_KINDS | WORKLOADS])
        for role in ("scheduler", "worker", "client"):
            mine = folder / role
            mine.mkdir()
            for name in ("ca.pem", f"{role}.pem", f"{role}-key.pem"):
                shutil.copy(folder / "tls" / name, mine / name)
            api.create(secret_of(f"kconn-tls-{role}", mine))
        with operating(api, nodes.outside):
            yield api, nodes
        assert api.faults == []


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """The digest of the store of the study, made in one process."""
    study = small_study(tmp_path_factory.mktemp("plain") / "trial")
    kconn = [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", "0"]
    subprocess.run(kconn, capture_output=True, check=True)
    return store.digest_store(study.parent / "study.zarr")


def given(studies, name, **changes):
    """Put the study where pods see it, and hand it to their user."""
    study = small_study(studies / name)
    write_study(study.parent, **changes)
    for path in (studies, *studies.rglob("*")):
        os.chown(path, 10001, 10001)
    return study.parent


def run_flow(api, nodes, *command):
    """Run a command as the pod of a flow, with the job of the work pool; return how it ended."""
    job = flow_job()
    job["spec"]["template"]["spec"]["containers"][0]["args"] = [*command]
    name = api.create(job)["metadata"]["name"]

    def is_ended():
        assert nodes.fault is None, nodes.fault
        return "conditions" in api.list("Job")[name].get("status", {})

    wait_until(is_ended, 600, "the flow did not end")
    return api.list("Job")[name]["status"]["conditions"][0]["type"], name


def test_standing_cluster__runs_a_study_with_the_same_bits(cluster, studies, digest, count):
    api, nodes = cluster
    made = [one for one in overlay("dev") if one["kind"] in DASK_KINDS]
    api.apply(made)
    folder = given(studies, "standing", cluster={"kind": "address", "address": "tls://kconn-scheduler.kconn:8786"})
    ended, job = run_flow(api, nodes, "kconn", "run", "/study/standing/study.toml", "--tls", "/etc/kconn/tls")
    assert ended == "Complete", nodes.log(job) + nodes.log("kconn")
    assert store.digest_store(folder / "study.zarr") == digest
    assert store.verify(folder / "study.zarr")[1] == []
    for one in made:
        api.delete(one)
    wait_until(lambda: not owned(api), 60, lambda: list(owned(api)))
    count(studies_with_the_same_digest=1)


def test_connect__runs_a_study_on_a_cluster_of_its_own_and_removes_it(cluster, studies, digest, count):
    api, nodes = cluster
    own = {"kind": "kubernetes", "image": "kconn:0.1.0", "tls": "/etc/kconn/tls", "workers": 2}
    folder = given(studies, "own", cluster=own)
    ended, job = run_flow(api, nodes, "kconn", "run", "/study/own/study.toml")
    assert ended == "Complete", nodes.log(job) + nodes.log("kconn")
    assert store.digest_store(folder / "study.zarr") == digest
    wait_until(lambda: not any("scheduler" in name for name in api.list("Deployment")), 60, "it was not removed")
    assert not {**api.list("DaskCluster"), **api.list("DaskWorkerGroup")}
    assert api.emulator.denied == []
    count(studies_with_the_same_digest=1)


GROWING = """
import time
from pathlib import Path
from kconn.cluster import connect
from kconn.cluster.table import ClusterTable

table = ClusterTable(kind="kubernetes", image="kconn", tls="/etc/kconn/tls", min_workers=1, max_workers=2)

def wait_for(n_worker):
    end = time.monotonic() + 180
    while len(client.scheduler_info(n_workers=-1)["workers"]) != n_worker:
        assert time.monotonic() < end, n_worker
        time.sleep(1)

with connect(table) as client:
    wait_for(1)
    work = client.map(time.sleep, [0.5 + i / 1e6 for i in range(600)])
    wait_for(2)
    client.cancel(work)
    wait_for(1)
    assert client.submit(sum, [1, 2]).result() == 3
"""


def test_connect__grows_with_the_work_and_shrinks_after_it(cluster, count):
    """The operator asks the scheduler over HTTP how many workers it wants, and which one it may retire."""
    api, nodes = cluster
    ended, job = run_flow(api, nodes, "python", "-c", GROWING)
    assert ended == "Complete", nodes.log(job) + nodes.log("kconn")
    said = (api.folder / "operator.log").read_text()
    assert "worker count from 1 to 2" in said
    assert "worker count from 2 to 1" in said
    assert "LIFO" not in said
    count(workers_added=1, workers_retired=1)


PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
LOGIN = "kconn:a-login-that-nobody-sees"


@pytest.fixture
def prefect(cluster):
    """Prefect's server and its Kubernetes worker, from their Deployments, and a command line beside them."""
    api, nodes = cluster
    deployments = {one["metadata"]["name"]: one for one in overlay("dev") if one["kind"] == "Deployment"}
    api.create(secret("kconn-prefect", {"auth": LOGIN, "database-password": "anything"}))
    address = nodes.take_address()
    with Database("postgresql", host=address, port=5432, user="prefect"):
        nodes.name("database", address)
        for name, one in deployments.items():
            api.create(one)
            wait_until(lambda name=name: is_ready(api, name), 240, lambda name=name: nodes.log(name))
        yield lambda *arguments: command_line(api, nodes, arguments)
        for name, one in deployments.items():
            api.delete(one)
            wait_until(lambda name=name: f"{name}-0" not in api.list("Pod"), 60, "it did not end")
        time.sleep(5)  # its processes let go of the database


def is_ready(api, name):
    status = api.list("Pod").get(f"{name}-0", {}).get("status", {})
    return {"type": "Ready", "status": "True"} in status.get("conditions", [])


def command_line(api, nodes, arguments):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTEST"))}
    environment = {
        **kept,
        "PREFECT_API_URL": "http://prefect-server:4200/api",
        "PREFECT_API_AUTH_STRING": LOGIN,
        "PREFECT_HOME": str(api.folder / "prefect"),
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "1",
    }
    options = {"env": environment, "cwd": api.folder, "text": True}
    process = nodes.outside([*PREFECT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def test_prefect_worker__starts_a_flow_as_a_job_that_runs_the_study(cluster, prefect, studies, digest, count):
    api, nodes = cluster
    own = {"kind": "kubernetes", "image": "kconn:0.1.0", "tls": "/etc/kconn/tls", "workers": 1}
    folder = given(studies, "flow", cluster=own)
    text = (DEPLOY / "prefect.yaml").read_text().replace("study: study.toml", "study: flow/study.toml")
    (api.folder / "prefect.yaml").write_text(text.replace("name: kconn\n    work", "name: kconn-kubernetes\n    work"))
    wait_until(lambda: prefect("work-pool", "inspect", "kconn-kubernetes")[0] == 0, 120, lambda: nodes.log("prefect"))
    code, said = prefect("deploy", "--name", "study", "--prefect-file", str(api.folder / "prefect.yaml"))
    assert code == 0, said
    before = {*api.list("Job")}
    code, said = prefect("deployment", "run", "kconn-study/study", "--watch")
    (name,) = {*api.list("Job")} - before
    job = api.list("Job")[name]
    assert code == 0, said + nodes.log("prefect") + nodes.log(name)
    assert store.digest_store(folder / "study.zarr") == digest
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (wanted,) = flow_job(image_of_flows(rendered("dev")))["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert {**container, "env": None} == {**wanted, "env": None, "args": container["args"]}
    others = {**job["spec"]["template"]["spec"], "containers": None}
    assert others == {**flow_job()["spec"]["template"]["spec"], "containers": None}
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["KCONN_STUDIES"]["value"] == "/study"
    assert environment["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"] == {
        "name": "kconn-prefect",
        "key": "auth",
    }
    shown = json.dumps([api.list(kind) for kind in ("Job", "Pod", "Deployment")])
    assert LOGIN not in shown
    assert job["spec"]["template"]["metadata"]["labels"]["kconn/role"] == "flow"
    assert api.emulator.denied == []
    count(flow_runs_completed=1, studies_with_the_same_digest=1, logins_in_manifests=shown.count(LOGIN))
