"""The files of deploy/ against the validators that run without a cluster; what is damaged on purpose is caught.

A validator that comes from no Python package is skipped, with its name, where it is not installed: kubectl,
docker-compose, systemd-analyze, shellcheck.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from kconn.cluster.table import ClusterTable
from tests import kubernetes_manifests
from tests.kubernetes_schemas import DASK, faults_of

DEPLOY = Path(__file__).parents[1] / "deploy"
OVERLAYS = ["dev", "clinical"]


def tool(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def said_by(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def rendered(overlay):
    """Return the objects of an overlay."""
    made = said_by(tool("kubectl"), "kustomize", DEPLOY / "kubernetes" / "overlays" / overlay)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request):
    return rendered(request.param)


def pods(objects):
    """Yield every pod that the objects make, with a name for messages."""
    for made in objects:
        spec = made.get("spec", {})
        name = f"{made['kind']}/{made['metadata']['name']}"
        if made["kind"] in {"Deployment", "StatefulSet"}:
            yield name, spec["template"]["spec"]
        elif made["kind"] == "DaskCluster":
            yield f"{name}/scheduler", spec["scheduler"]["spec"]
            yield f"{name}/worker", spec["worker"]["spec"]
    yield "flow", flow_job()["spec"]["template"]["spec"]


def base_job():
    return json.loads((DEPLOY / "kubernetes" / "base" / "work-pool-base-job.json").read_text())


def image_of_flows(objects):
    """Return the image that Prefect's worker of an overlay gives its jobs."""
    (container,) = next(pod for name, pod in pods(objects) if name == "Deployment/prefect-worker")["containers"]
    return next(entry["value"] for entry in container["env"] if entry["name"] == "KCONN_IMAGE")


def flow_job(image="kconn"):
    """Return the job of a flow with the defaults of its variables put in."""
    values = {name: known.get("default") for name, known in base_job()["variables"]["properties"].items()}
    values |= {
        "command": ["prefect", "flow-run", "execute"],
        "env": [{"name": "A", "value": "b"}],
        "labels": {"a": "b"},
        "image": image,
    }

    def filled(node):
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", node) if isinstance(node, str) else None
        if whole:
            return values[whole[1]]
        return re.sub(r"\{\{ (\w+) \}\}", lambda m: str(values[m[1]]), node) if isinstance(node, str) else node

    return filled(base_job()["job_configuration"]["job_manifest"])


def faults_of_schemas(objects):
    """Return what Kubernetes' own schemas find wrong."""
    core = [made for made in objects if made["apiVersion"] != DASK]
    core += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod} for _, pod in pods(objects)]
    return [fault for made in [*core, flow_job()] for fault in faults_of(made)]


def faults_of_dask(objects):
    """Return what the schemas of Dask's operator find wrong."""
    return [fault for made in objects if made["apiVersion"] == DASK for fault in faults_of(made)]


def faults_of_policy(objects):
    """Return the pods that ask for more than they need, and what is said nowhere about the network."""
    found = []
    for name, pod in pods(objects):
        context = pod.get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser", 0) > 0):
            found.append(f"{name} may run as root")
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            found.append(f"{name} has no seccomp profile")
        if pod.get("automountServiceAccountToken") and "serviceAccountName" not in pod:
            found.append(f"{name} mounts the default account")
        if pod.get("hostNetwork") or pod.get("hostPID") or any("hostPath" in volume for volume in pod["volumes"]):
            found.append(f"{name} reaches its host")
        for container in pod["containers"]:
            found += [f"{name} {fault}" for fault in faults_of_container(container)]
    policies = [made["spec"] for made in objects if made["kind"] == "NetworkPolicy"]
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in policies:
        found.append("nothing is denied by default")
    return found


def faults_of_container(container):
    rights = container.get("securityContext", {})
    if rights.get("allowPrivilegeEscalation", True) or not rights.get("readOnlyRootFilesystem"):
        yield "may gain rights or write to its image"
    if rights.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    amounts = container.get("resources", {})
    if amounts.get("requests", {}).get("memory") != amounts.get("limits", {}).get("memory", "none"):
        yield "has other limits of memory than requests"
    if any("PASSWORD" in entry["name"] and "_FILE" not in entry["name"] for entry in container.get("env", [])):
        yield "has a password in its environment"
    if container.get("args", [])[:1] in (["dask-scheduler"], ["dask-worker"]):
        yield "starts a command that Dask no longer has"


CHECKS = {"schemas": faults_of_schemas, "dask": faults_of_dask, "policy": faults_of_policy}


@pytest.mark.parametrize("check", CHECKS)
def test_kubernetes__has_no_fault(objects, check):
    assert CHECKS[check](objects) == []


def test_kubernetes__the_dask_cluster_is_the_one_that_run_makes():
    assert kubernetes_manifests.PATH.read_text(encoding="utf-8") == kubernetes_manifests.render()


def test_kubernetes__names_that_the_study_file_takes_for_granted_exist(objects):
    table = ClusterTable()
    named = {(made["kind"], made["metadata"]["name"]) for made in objects}
    assert {("Namespace", table.namespace), ("PersistentVolumeClaim", table.volume_claim)} <= named
    assert {made["metadata"].get("namespace", "kconn") for made in objects} == {"kconn"}


def test_kubernetes__clinical_images_are_digests():
    objects = rendered("clinical")
    images = [*re.findall(r"image: (\S+)", yaml.safe_dump_all(objects)), image_of_flows(objects)]
    assert len(images) >= 6
    assert all("@sha256:" in image for image in images)


def test_base_job__every_placeholder_has_a_variable():
    template = base_job()
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


def spoil(objects, defect):
    spoilt = copy.deepcopy(objects)
    by_kind = {made["kind"]: made for made in spoilt}
    server = next(
        made for made in spoilt if made["metadata"]["name"] == "prefect-server" and made["kind"] == "Deployment"
    )
    container = server["spec"]["template"]["spec"]["containers"][0]
    worker = by_kind["DaskCluster"]["spec"]["worker"]
    actions = {
        "misspelt key": lambda: container.update(resuorces=container.pop("resources")),
        "wrong type": lambda: server["spec"].update(replicas="one"),
        "unknown key of dask": lambda: worker.update(replica=3),
        "wrong type for dask": lambda: worker.update(replicas="three"),
        "missing field of dask": lambda: by_kind["DaskAutoscaler"]["spec"].pop("maximum"),
        "misspelt key in a pod of dask": lambda: worker["spec"]["containers"][0].update(comand=["x"]),
        "root": lambda: server["spec"]["template"]["spec"]["securityContext"].update(runAsNonRoot=False),
        "writable image": lambda: container["securityContext"].update(readOnlyRootFilesystem=False),
        "capabilities": lambda: container["securityContext"].pop("capabilities"),
        "memory": lambda: container["resources"]["limits"].update(memory="9Gi"),
        "password": lambda: container["env"].append({"name": "DB_PASSWORD", "value": "x"}),
        "host": lambda: server["spec"]["template"]["spec"].update(hostNetwork=True),
        "old command": lambda: worker["spec"]["containers"][0].update(args=["dask-worker"]),
        "open network": lambda: spoilt.remove(next(made for made in spoilt if made["metadata"]["name"] == "deny-all")),
    }
    actions[defect]()
    return spoilt


SEEDED = {
    "schemas": ["misspelt key", "wrong type", "misspelt key in a pod of dask"],
    "dask": ["unknown key of dask", "wrong type for dask", "missing field of dask"],
    "policy": ["root", "writable image", "capabilities", "memory", "password", "host", "old command", "open network"],
}


@pytest.mark.parametrize(("check", "defect"), [(check, defect) for check, all_ in SEEDED.items() for defect in all_])
def test_kubernetes__seeded_defects_are_caught(objects, check, defect):
    assert CHECKS[check](spoil(objects, defect)) != []


def lint_image(text):
    return said_by(tool("hadolint"), "-", input=text)


def test_dockerfile__has_no_fault():
    found = lint_image((DEPLOY / "Dockerfile").read_text())
    assert found.returncode == 0, found.stdout


def test_dockerfile__seeded_defects_are_caught():
    text = (DEPLOY / "Dockerfile").read_text()
    assert lint_image(text.replace("WORKDIR /study", "WORKDIR study")).returncode
    assert lint_image(text + "\nRUN sudo true\n").returncode


def test_dockerfile__installs_from_hashes_and_is_not_root():
    text = (DEPLOY / "Dockerfile").read_text()
    installs = re.findall(r"pip install.*", text)
    assert len(installs) == 2
    assert all("--no-deps" in line for line in installs)
    assert "--require-hashes" in installs[0]
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["10001:10001"]


def test_compose__ports_are_on_this_machine_and_secrets_in_files():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        secrets = [key for key in service.get("environment", {}) if "PASSWORD" in key or "AUTH_STRING" in key]
        assert all(key.endswith("_FILE") for key in secrets), name
        assert {*service.get("secrets", [])} <= {*compose["secrets"]}, name
        assert {*service["networks"]} <= {*compose["networks"]}, name
    assert compose["services"]["database"]["networks"] == ["database"]
    assert compose["networks"]["database"] == {"internal": True}


def test_compose__every_file_that_it_names_is_there_or_is_made(tmp_path):
    shutil.copytree(DEPLOY / "compose", tmp_path / "compose", ignore=shutil.ignore_patterns("secrets"))
    made = said_by("sh", tmp_path / "compose" / "make_secrets.sh")
    assert made.returncode == 0, made.stderr
    assert "password" in made.stdout
    again = said_by("sh", tmp_path / "compose" / "make_secrets.sh")
    assert (again.returncode, again.stdout) == (0, "")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for table in ("secrets", "configs"):
        assert all((tmp_path / entry["file"]).stat().st_size for entry in compose[table].values())
    assert (tmp_path / "compose" / "secrets").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def units(tmp_path):
    """The units with commands that exist here: what is checked is the rest."""
    for unit in (DEPLOY / "systemd").iterdir():
        text = re.sub(r"/opt/kconn/bin/\w+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    return sorted(tmp_path.iterdir())


def test_systemd__has_no_fault(units):
    found = said_by(tool("systemd-analyze"), "verify", "--man=no", *units)
    complaints = [line for line in found.stderr.splitlines() if "kconn" in line]
    assert complaints == []


def test_systemd__seeded_defects_are_caught(units):
    unit = next(unit for unit in units if unit.name == "kconn-scheduler.service")
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    found = said_by(tool("systemd-analyze"), "verify", "--man=no", unit)
    assert "'NoNewPrivilege'" in found.stderr


def test_systemd__exposes_little(units):
    for unit in units:
        if unit.suffix == ".service":
            found = said_by(tool("systemd-analyze"), "security", "--offline=true", "--threshold=30", unit)
            assert found.returncode == 0, found.stdout.splitlines()[-1]


SCRIPTS = sorted(path for path in DEPLOY.rglob("*") if path.suffix in {".sh", ".sbatch"})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts__have_no_fault(script):
    assert os.access(script, os.X_OK)
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    assert said_by(shell, "-n", script).returncode == 0
    found = said_by(tool("shellcheck"), script)
    assert found.returncode == 0, found.stdout


def test_slurm__template_is_read_by_dask_jobqueue():
    template = yaml.safe_load((DEPLOY / "slurm" / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    known = yaml.safe_load(Path(find_spec("dask_jobqueue").origin).with_name("jobqueue.yaml").read_text())["jobqueue"][
        "slurm"
    ]
    assert set(template) <= set(known)
