"""deploy/compose.yaml without containers: its commands, environments, secrets and proxy, as processes on loopback."""

import base64
import json
import os
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml

from kconn.io import store
from kconn.study.workbench import prepare
from tests.prefect_server import Database, kill_tree, wait_until
from tests.table_study import table_study
from tests.warm_shell import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
#: Where the services lie that Compose finds by name.
HERE = "127.0.0.2"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """What `make_secrets.sh` writes, under the names that Compose mounts it as, and the password of the pages."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(DEPLOY / "compose", folder / "compose", ignore=shutil.ignore_patterns("secrets"))
    command = [shutil.which("sh"), folder / "compose" / "make_secrets.sh"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    mounted = folder / "mounted"
    mounted.mkdir()
    for name, one in COMPOSE["secrets"].items():
        shutil.copy(folder / one["file"], mounted / name)
    return mounted, said.stdout.split("password: ")[1].split()[0]


@pytest.fixture(scope="module")
def lab(secrets, tmp_path_factory):
    """Database, server and worker of the lab server, and the proxy before them."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    mounted, _ = secrets
    folder = tmp_path_factory.mktemp("services")
    (folder / "study").mkdir()
    (folder / "proxy.conf").write_text(_proxy(folder, mounted))
    processes = []
    with Database("postgresql", host=HERE, port=5432, user="prefect"):
        try:
            processes.append(_start(folder, mounted, "server"))
            health = [*_located(COMPOSE["services"]["server"]["healthcheck"]["test"][1:])]
            wait_until(lambda: subprocess.run(health, capture_output=True, check=False).returncode == 0, 180)
            processes.append(_start(folder, mounted, "worker"))
            processes.append(subprocess.Popen([shutil.which("nginx"), "-c", folder / "proxy.conf", "-p", folder]))
            wait_until(lambda: _status("https://127.0.0.2:8443/", mounted) == 401, 30)
            yield folder
        finally:
            for process in reversed(processes):
                kill_tree(process)


pytestmark = [pytest.mark.slow, pytest.mark.faults("intruders"), pytest.mark.timeout(900)]


def test_server__lets_nobody_in_without_its_credentials_and_a_token(lab, secrets, count):
    mounted, _ = secrets
    api = f"http://{HERE}:4200/api"
    good = {"Authorization": f"Basic {_encoded((mounted / 'prefect_auth').read_text())}"}
    bad = {"Authorization": f"Basic {_encoded('kconn:guess')}"}
    refused = {
        "no credentials": _status(f"{api}/version", mounted),
        "wrong credentials": _status(f"{api}/version", mounted, headers=bad),
        "nothing at all": _status(f"{api}/flow_runs/filter", mounted, body={}),
        "no token": _status(f"{api}/flow_runs/filter", mounted, body={}, headers=good),
    }
    assert refused == {"no credentials": 401, "wrong credentials": 401, "nothing at all": 403, "no token": 403}
    assert _status(f"{api}/version", mounted, headers=good) == 200
    count(requests_refused=len(refused))
    assert lab.exists()


def test_proxy__asks_for_a_password_and_hides_no_credentials_of_the_api(lab, secrets, count):
    mounted, password = secrets
    pages = "https://127.0.0.2:8443"
    person = {"Authorization": f"Basic {_encoded(f'lab:{password}')}"}
    refused = {
        "no password": _status(f"{pages}/", mounted),
        "wrong password": _status(f"{pages}/", mounted, headers={"Authorization": f"Basic {_encoded('lab:guess')}"}),
        "the person's password for the API": _status(f"{pages}/api/version", mounted, headers=person),
    }
    assert set(refused.values()) == {401}, refused
    assert _status(f"{pages}/", mounted, headers=person) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{pages}/", context=ssl.create_default_context(), timeout=20)  # noqa: S310 - loopback
    count(requests_refused=len(refused) + 1)
    assert lab.exists()


def test_worker__runs_a_deployed_study(lab, secrets):
    mounted, _ = secrets
    study = table_study(lab / "study" / "trial", n_subject=3)
    environment = {
        **_environment(lab, mounted, "worker"),
        "PREFECT_API_AUTH_STRING": (mounted / "prefect_auth").read_text(),
    }
    flow = ["python", "-m", "prefect", "--no-prompt"]
    deployments = (DEPLOY / "prefect.yaml").read_text().replace("study: study.toml", "study: trial/study.toml")
    (lab / "prefect.yaml").write_text(deployments)
    for command in (
        ["deploy", "--name", "study", "--prefect-file", str(lab / "prefect.yaml")],
        ["deployment", "run", "kconn-study/study", "--watch"],
    ):
        ended = subprocess.run([*flow, *command], env=environment, capture_output=True, text=True, check=False, cwd=lab)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert prepare(study).pending() == []
    assert store.verify(study.parent / "study.zarr")[1] == []


def _start(folder, mounted, service):
    command = _located(COMPOSE["services"][service]["command"])
    command = [part.replace("/etc/kconn", str(mounted.parent / "compose")) for part in command]
    with (folder / f"{service}.log").open("w") as log:
        return subprocess.Popen(command, env=_environment(folder, mounted, service), stdout=log, stderr=log, cwd=folder)


def _environment(folder, mounted, service):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTEST"))}
    said = COMPOSE["services"][service]["environment"]
    visible = folder / f"secrets-{service}"
    visible.mkdir(exist_ok=True)
    for name in COMPOSE["services"][service]["secrets"]:
        shutil.copy(mounted / name, visible / name)
    return {
        **kept,
        **{name: _located([value])[0] for name, value in said.items()},
        "KCONN_SECRETS": str(visible),
        "KCONN_STUDIES": str(folder / "study"),
        "PREFECT_HOME": str(folder / f"home-{service}"),
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "1",
    }


def _located(words):
    """Put addresses of this machine for the names that Compose gives services."""
    places = {
        "0.0.0.0": HERE,  # noqa: S104 - what the file says, replaced
        "http://server:": f"http://{HERE}:",
        "http://127.0.0.1:": f"http://{HERE}:",
    }
    found = []
    for word in words:
        for name, place in places.items():
            word = word.replace(name, place)  # noqa: PLW2901 - each name in its turn
        found.append(HERE if word == "database" else word)
    return found


def _proxy(folder, mounted):
    site = (DEPLOY / "compose" / "proxy.conf").read_text()
    site = site.replace("server:4200", f"{HERE}:4200").replace("/run/secrets", str(mounted))
    site = site.replace("listen 8443", f"listen {HERE}:8443")
    return (
        f"user root; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxied;\n{site}}}\n"
    )


def _status(url, mounted, *, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    context = ssl.create_default_context(cafile=str(mounted / "proxy_certificate")) if url.startswith("https") else None
    if context is not None:
        context.check_hostname = False  # it is made for localhost, and the proxy of the test has another address
    headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as reply:  # noqa: S310 - loopback
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _encoded(text):
    return base64.b64encode(text.encode()).decode()
