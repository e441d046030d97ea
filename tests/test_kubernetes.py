"""What a run asks of the Kubernetes API, by the real client library, of a server that answers as the API does."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from distributed import LocalCluster

from kconn.cluster import connect
from kconn.cluster_table import ClusterTable
from kconn.errors import InputError, ResourceError

DASK = "/apis/kubernetes.dask.org/v1/namespaces/kconn"


class Api(BaseHTTPRequestHandler):
    """Creates and deletes whatever is asked for, unless the server refuses."""

    def do_GET(self):
        self._answer(200, {"major": "1", "minor": "32", "gitVersion": "v1.32.0"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(("POST", self.path))
        if self.server.refuses:
            self._answer(403, {"kind": "Status", "status": "Failure", "message": "may not create", "code": 403})
            return
        self._answer(201, body)

    def do_DELETE(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(("DELETE", self.path.rpartition("/")[0]))
        self._answer(200, {"kind": "Status", "status": "Success"})

    def log_message(self, *arguments):
        """Say nothing."""

    def _answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def api(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.seen, server.refuses = [], False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _write_config(tmp_path / "config", server.server_port)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        yield server
        server.shutdown()


def _write_config(path, port):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    path.write_text(json.dumps(config))


@pytest.fixture
def scheduler():
    options = {"processes": False, "dashboard_address": None, "protocol": "tcp://", "host": "127.0.0.1"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        yield cluster.scheduler_address


def table(address):
    return ClusterTable(kind="kubernetes", image="kconn:1", insecure=True, address=address, max_workers=3)


def fail_in_a_run(address):
    with connect(table(address)) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        raise InputError("E-TABLE", "it is bad")


def test_connect__makes_a_cluster_and_removes_it_whatever_the_run_does(api, scheduler):
    with pytest.raises(InputError, match="it is bad"):
        fail_in_a_run(scheduler)
    assert api.seen == [
        ("POST", f"{DASK}/daskclusters"),
        ("POST", f"{DASK}/daskautoscalers"),
        ("DELETE", f"{DASK}/daskautoscalers"),
        ("DELETE", f"{DASK}/daskclusters"),
    ]


def test_connect__says_what_the_api_refused(api):
    api.refuses = True
    with pytest.raises(ResourceError, match="may not create") as caught, connect(table("tcp://127.0.0.1:1")):
        pass
    assert caught.value.code == "E-WORKER"
    assert {path for _, path in api.seen} == {f"{DASK}/daskclusters"}


def test_connect__says_that_no_api_answers(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        _write_config(tmp_path / "config", taken.getsockname()[1])
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(ResourceError, match="gives no workers") as caught, connect(table("tcp://127.0.0.1:1")):
            pass
    assert caught.value.code == "E-WORKER"
