"""What a run asks of the Kubernetes API, by the real client library, of an emulated API that knows our Roles."""

import shutil
import socket

import pytest
import yaml
from distributed import LocalCluster
from kr8s._api import Api

from kconn.cluster import connect
from kconn.cluster.table import ClusterTable
from kconn.errors import InputError, ResourceError
from tests.kubernetes_api import KubernetesApi, write_config
from tests.warm_shell import ROOT

ROLES = ROOT / "deploy" / "kubernetes" / "base" / "rbac.yaml"


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with KubernetesApi(tmp_path_factory.mktemp("api")) as api:
        api.apply([*yaml.safe_load_all(ROLES.read_text())])
        yield api


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    """Let kr8s forget who it was: it keeps its clients for the process."""
    monkeypatch.setattr(Api, "_instances", {})


@pytest.fixture
def account(api, monkeypatch):
    """Let this process be an account of the namespace."""
    return lambda name: monkeypatch.setenv("KUBECONFIG", str(api.config_of(name)))


@pytest.fixture(scope="module")
def scheduler():
    options = {"processes": False, "dashboard_address": None, "protocol": "tcp://", "host": "127.0.0.1"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        yield cluster.scheduler_address


def table(address):
    return ClusterTable(
        kind="kubernetes", image="kconn:1", insecure=True, address=address, max_workers=3, start_minutes=0.5
    )


def made_by(api):
    return [*api.list("DaskCluster").values(), *api.list("DaskAutoscaler").values()]


def fail_in_a_run(api, address):
    with connect(table(address)) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        cluster, autoscaler = made_by(api)
        assert cluster["spec"]["worker"]["replicas"] == 1
        assert autoscaler["spec"] == {"cluster": cluster["metadata"]["name"], "minimum": 1, "maximum": 3}
        raise InputError("E-TABLE", "it is bad")


def test_connect__makes_a_cluster_and_removes_it_whatever_the_run_does(api, account, scheduler):
    account("kconn-flow")
    with pytest.raises(InputError, match="it is bad"):
        fail_in_a_run(api, scheduler)
    assert made_by(api) == []
    assert api.emulator.denied == []


def test_connect__does_not_mind_that_somebody_else_removed_its_cluster(api, account, scheduler):
    account("kconn-flow")
    with connect(table(scheduler)) as client:
        for made in made_by(api):
            api.delete(made)
        assert client.submit(sum, [1, 2]).result() == 3


def test_connect__says_what_the_api_refused(api, account):
    account("kconn-prefect-worker")
    with (
        pytest.raises(ResourceError, match="may not create daskclusters") as caught,
        connect(table("tcp://127.0.0.1:1")),
    ):
        pass
    assert caught.value.code == "E-WORKER"
    assert {denied[1:] for denied in api.emulator.denied} == {("kubernetes.dask.org", "daskclusters", "create")}
    assert made_by(api) == []


def test_connect__says_that_no_api_answers(api, tmp_path, monkeypatch):
    authority = shutil.copy(api.authority, tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        write_config(tmp_path / "config", taken.getsockname()[1], token="", authority=authority)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(ResourceError, match="gives no workers") as caught, connect(table("tcp://127.0.0.1:1")):
            pass
    assert caught.value.code == "E-WORKER"
