"""checkov over deploy/: what it finds is mended, or listed in deploy/checkov.yaml with the reason.

checkov pins old releases of what kconn needs, so it lives in an environment of its own: `make checkov` makes it.
"""

import copy
import json
import os
import shutil
import subprocess

import pytest
import yaml

from tests.test_deploy import DEPLOY, OVERLAYS, flow_job, image_of_flows, pods, rendered
from tests.warm_shell import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.faults("deploy lint")]
ALLOWED = yaml.safe_load((DEPLOY / "checkov.yaml").read_text())


@pytest.fixture(scope="module")
def checkov():
    own = ROOT / ".venv-checkov" / "bin" / "checkov"
    found = str(own) if own.exists() else shutil.which("checkov")
    if found is None:
        pytest.skip("checkov is not installed (make checkov)")

    def run(path, framework):
        """Return (check, resource) of what is found, and how many checks passed."""
        command = [found, "--file", path, "--framework", framework, "--quiet", "--skip-download", "--output", "json"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=path.parent)
        told = json.loads(said.stdout)
        assert told["summary"]["parsing_errors"] == 0, said.stderr
        failed = {(one["check_id"], one["resource"].rpartition("/")[2]) for one in told["results"]["failed_checks"]}
        return failed, told["summary"]["passed"]

    return run


def as_checkov_knows(objects):
    """Return objects with the job of a flow, and the pods of Dask's operator as Deployments."""
    made = []
    for name, pod in pods(objects):
        if name.startswith("DaskCluster"):
            meta = {"name": name.rpartition("/")[2], "namespace": "kconn", "labels": {"app": "kconn"}}
            template = {"metadata": {"labels": {"app": "kconn"}}, "spec": pod}
            spec = {"selector": {"matchLabels": {"app": "kconn"}}, "template": template}
            made.append({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
    assert len(made) == 2
    flow = flow_job(image_of_flows(objects))
    flow["metadata"] |= {"name": "flow"}
    return [*(one for one in objects if "dask.org" not in one["apiVersion"]), *made, flow]


def compare(found, where):
    """Return what is found and not listed, and what is listed and not found; ``*`` in the list is any resource."""
    listed = [one for one in ALLOWED if where in one["in"]]
    expected = {
        (check, resource): [one for one in listed if _covers(one, check, resource)] for check, resource in found
    }
    used = [one for covering in expected.values() for one in covering]
    return {
        "not listed": sorted(finding for finding, covering in expected.items() if not covering),
        "not found": [(one["check"], one["resource"]) for one in listed if one not in used],
    }


def _covers(one, check, resource):
    return one["check"] == check and one["resource"] in {resource, "*"}


AGREES = {"not listed": [], "not found": []}


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes__has_no_finding_but_those_listed(checkov, name, tmp_path, count):
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(as_checkov_knows(rendered(name))))
    found, n_passed = checkov(path, "kubernetes")
    assert compare(found, name) == AGREES
    assert n_passed > 300
    count(checks_passed=n_passed, findings_listed=len(found))


def test_dockerfile__has_no_finding_but_those_listed(checkov, tmp_path, count):
    shutil.copy(DEPLOY / "Dockerfile", tmp_path / "Dockerfile")
    found, n_passed = checkov(tmp_path / "Dockerfile", "dockerfile")
    assert compare(found, "Dockerfile") == AGREES
    count(checks_passed=n_passed, findings_listed=len(found))


def test_list__gives_a_reason_each():
    assert all(len(one["reason"]) > 20 for one in ALLOWED)
    assert {place for one in ALLOWED for place in one["in"]} <= {*OVERLAYS, "Dockerfile"}


def test_kubernetes__seeded_defects_are_found(checkov, tmp_path):
    objects = as_checkov_knows(rendered("clinical"))
    spoilt = copy.deepcopy(objects)
    worker = next(one for one in spoilt if one["metadata"]["name"] == "worker")["spec"]["template"]["spec"]
    worker["hostPID"] = True
    worker["containers"][0]["securityContext"]["privileged"] = True
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(spoilt))
    found, _ = checkov(path, "kubernetes")
    unlisted = compare(found, "clinical")["not listed"]
    assert {("CKV_K8S_16", "Deployment.kconn.worker"), ("CKV_K8S_17", "Deployment.kconn.worker")} <= {*unlisted}
