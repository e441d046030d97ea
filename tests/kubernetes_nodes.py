"""The nodes of an emulated cluster: each pod is a process on loopback that has what its manifest gives it.

A pod runs as its user, with its groups and without capabilities, in a mount namespace of its own: the image is this
machine's root, read-only where the manifest says so, with the interpreter of the tests as /opt/kconn; volumes are
mounted where the manifest mounts them, tokens where clients of Kubernetes look; names of services are in /etc/hosts.

Not emulated: limits of memory and processors, seccomp, NetworkPolicies, addresses of services: a name leads to the pod.
A pod listens on an address of its own in 127.0.0.0/8 in place of all addresses.
"""

import base64
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kubernetes_api import ADMIN, HOST, Gone
from tests.warm_shell import ROOT

ACCOUNT = os.path.realpath("/var/run/secrets/kubernetes.io/serviceaccount")  # /var/run is a link
_IMAGE = re.findall(r"^ENV (PATH.*?[^\\])$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)[-1]
#: The environment of the image, as the Dockerfile says it.
IMAGE = dict(entry.split("=", 1) for entry in _IMAGE.replace("\\\n", " ").split())
WORKDIR = "/study"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what manifests say, replaced
#: A shell whose mounts nobody else sees.
APART = [str(shutil.which("unshare")), "--mount", "--propagation", "private", "sh", "-ec"]


class Nodes:
    """Starts the pods of Deployments and Jobs, tells the API how they are, and ends them with what made them."""

    def __init__(self, api, folder, *, claims):
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
            pytest.skip("pods as processes need root, unshare and setpriv")
        self.api, self.folder, self.claims = api, folder, claims
        self.hosts = folder / "hosts"
        self._network = f"127.{secrets.randbelow(190) + 64}.{secrets.randbelow(256)}"
        self._pods = {}
        self._names = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.fault = None

    def __enter__(self):
        self.hosts.write_text("127.0.0.1 localhost\n")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join(60)
        for pod in self._pods.values():
            pod.end(0)
        if self.fault is not None:
            raise self.fault

    def take_address(self):
        """Return an address of this machine that nothing else listens on."""
        return f"{self._network}.{len(self._pods) + len(self._names) + 1}"

    def name(self, name, address):
        """Make the name of a service that runs outside of pods known."""
        self._names[name] = address

    def outside(self, command, **options):
        """Start a command that is no pod and finds services by their names."""
        script = f"mount --bind {shlex.quote(str(self.hosts))} /etc/hosts && exec {shlex.join(command)}"
        return subprocess.Popen([*APART, script], **options)

    def log(self, name):
        return "".join(path.read_text() for path in sorted((self.folder / "logs").glob(f"{name}*")))

    def _work(self):
        try:
            while not self._ended.wait(0.3):
                self._start_missing()
                self._tell_names()
                for pod in list(self._pods.values()):
                    with suppress(Gone):  # what made it was removed a moment ago
                        pod.look()
        except Exception as error:  # noqa: BLE001 - told at the end of the test
            self.fault = error

    def _start_missing(self):
        owners = {made["metadata"]["uid"]: made for kind in ("Deployment", "Job") for made in self._made(kind)}
        for uid, made in owners.items():
            if uid not in self._pods:
                self._pods[uid] = Pod(self, made, self.take_address())
        for uid, pod in self._pods.items():
            if uid not in owners:
                pod.end(30)

    def _made(self, kind):
        return self.api.list(kind).values()

    def _tell_names(self):
        found = dict(self._names)
        for made in self._made("Service"):
            for pod in self._pods.values():
                if pod.process is not None and made["spec"]["selector"].items() <= pod.labels.items():
                    pod.check_ports(made)
                    found[made["metadata"]["name"]] = pod.address
        lines = [f"{HOST} localhost"]
        for name, address in sorted(found.items()):
            full = f"{name}.{self.api.namespace}"
            lines.append(f"{address} {name} {full} {full}.svc {full}.svc.cluster.local")
        self.hosts.write_text("\n".join(lines) + "\n")  # in place: it is mounted


class Pod:
    """One process."""

    def __init__(self, nodes, owner, address):
        self.nodes, self.owner, self.address = nodes, owner, address
        template = owner["spec"]["template"]
        self.spec, self.labels = template["spec"], template["metadata"].get("labels", {})
        (self.container,) = self.spec["containers"]
        self.name = f"{owner['metadata']['name']}-0"
        self.folder = nodes.folder / "pods" / owner["metadata"]["uid"]
        self.folder.mkdir(parents=True)
        self.told = None
        self.process = self._start()
        meta = {key: owner["metadata"][key] for key in ("name", "uid")}
        self.made = nodes.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": self.name,
                    "labels": self.labels,
                    "ownerReferences": [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], **meta}],
                },
                "spec": {**self.spec, "nodeName": "node"},
            }
        )

    def look(self):
        """Tell the API what changed."""
        if self.process is None:
            return
        code = self.process.poll()
        ended = "Succeeded" if code == 0 else "Failed"
        status = ("Running", self._is_ready()) if code is None else (ended, False)
        if status == self.told:
            return
        self.told = status
        phase, ready = status
        conditions = [{"type": of, "status": str(ready)} for of in ("Ready", "ContainersReady")]
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        shown = {"name": self.container["name"], "ready": ready, "restartCount": 0, "image": "", "state": state}
        self.nodes.api.set_status(
            self.made,
            {"phase": phase, "podIP": self.address, "conditions": conditions, "containerStatuses": [shown]},
        )
        if code is not None and self.owner["kind"] == "Job":
            ended = {"type": "Complete" if code == 0 else "Failed", "status": "True"}
            counted = {"succeeded": 1} if code == 0 else {"failed": 1}
            self.nodes.api.set_status(self.owner, {"conditions": [ended], **counted})

    def end(self, seconds):
        """Ask the process to end, and kill it if it does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def check_ports(self, service):
        """Refuse a service whose ports lead nowhere in this pod."""
        listening = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        for port in service["spec"]["ports"]:
            assert listening[port["targetPort"]] == port["port"], (service["metadata"]["name"], port)

    def _is_ready(self):
        probe = self.container.get("readinessProbe")
        if probe is None:
            return True
        port = next(one for one in self.container["ports"] if one["name"] == probe["httpGet"]["port"])
        url = f"http://{self.address}:{port['containerPort']}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def _start(self):
        logs = self.nodes.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{self.name}.log").open("w") as log:
            return subprocess.Popen([*APART, self._script()], stdout=log, stderr=log, start_new_session=True)

    def _script(self):
        """Return what makes the pod's view of the machine and becomes its process."""
        root = self.folder / "root"
        root.mkdir()
        seen = root / "seen"
        quoted = shlex.quote
        lines = [
            f"mount -t tmpfs pod {quoted(str(root))}",
            f"mkdir {root}/upper {root}/work {seen}",
            f"mount -t overlay -o lowerdir=/,upperdir={root}/upper,workdir={root}/work pod {seen}",
            f"mount --rbind /dev {seen}/dev",
            f"mount --bind /proc {seen}/proc",
        ]
        ours = list(dict.fromkeys([str(ROOT), sys.base_prefix, sys.prefix]))
        above = sorted({str(folder) for path in ours for folder in Path(path).parents})
        lines += [
            f"chmod a+x {quoted(f'{seen}{folder}')}" for folder in above
        ]  # of the overlay: nothing of this machine
        mounts = [(path, path, True) for path in ours]
        mounts += [(sys.prefix, "/opt/kconn", True), *self._volumes(), *self._account()]
        for source, path, read_only in mounts:
            lines += [
                f"mkdir -p {quoted(f'{seen}{path}')}",
                f"mount --bind {quoted(str(source))} {quoted(f'{seen}{path}')}",
            ]
            if read_only:
                lines.append(f"mount -o remount,ro,bind {quoted(f'{seen}{path}')}")
        lines.append(f"mount --bind {self.nodes.hosts} {seen}/etc/hosts")
        lines.append(f"mkdir -p {seen}{WORKDIR}")
        rights = self.container["securityContext"]
        if rights["readOnlyRootFilesystem"]:
            lines.append(f"mount -o remount,ro,bind {seen}")
        lines.append(f"exec chroot {seen} {shlex.join(self._privileges(rights) + self._command())}")
        return "\n".join(lines)

    def _privileges(self, rights):
        who = self.spec["securityContext"]
        found = ["setpriv", f"--reuid={who['runAsUser']}", f"--regid={who['runAsGroup']}", f"--groups={who['fsGroup']}"]
        if rights["capabilities"]["drop"] == ["ALL"]:
            found += ["--bounding-set=-all", "--inh-caps=-all"]
        if not rights["allowPrivilegeEscalation"]:
            found.append("--no-new-privs")
        return found

    def _command(self):
        path = IMAGE["PATH"].replace("$PATH", "/usr/bin:/bin")
        values = {**IMAGE, "PATH": path, "HOME": "/tmp", **self._environment()}  # noqa: S108 - of the pod
        words = [*self.container.get("command", []), *self.container.get("args", [])]
        words = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in words]
        words = [re.sub(r"^(?=:\d+$)", self.address, word.replace(EVERYWHERE, self.address)) for word in words]
        return ["env", "--ignore-environment", f"--chdir={WORKDIR}", *(f"{k}={v}" for k, v in values.items()), *words]

    def _environment(self):
        found = {"PYTHONPATH": str(ROOT)}
        if self.spec.get("automountServiceAccountToken"):
            found |= {"KUBERNETES_SERVICE_HOST": HOST, "KUBERNETES_SERVICE_PORT": str(self.nodes.api.port)}
        for entry in self.container.get("env", []):
            source = entry.get("valueFrom", {}).get("secretKeyRef")
            found[entry["name"]] = entry["value"] if source is None else self._secret(source["name"])[source["key"]]
        return {name: self.address if value == EVERYWHERE else value for name, value in found.items()}

    def _volumes(self):
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in self.container["volumeMounts"]:
            yield self._volume(volumes[mount["name"]]), mount["mountPath"], mount.get("readOnly", False)

    def _volume(self, volume):
        folder = self.folder / volume["name"]
        folder.mkdir()
        if "persistentVolumeClaim" in volume:
            return self.nodes.claims[volume["persistentVolumeClaim"]["claimName"]]
        if "emptyDir" in volume:
            folder.chmod(0o777)
            return folder
        if "secret" in volume:
            source, content = volume["secret"], self._secret(volume["secret"]["secretName"])
        else:
            source = volume["configMap"]
            content = self.nodes.api.list("ConfigMap")[source["name"]]["data"]
        wanted = {item["key"]: item["path"] for item in source.get("items", [])} or {key: key for key in content}
        for key, name in wanted.items():
            path = folder / name
            path.write_text(content[key])
            path.chmod(source.get("defaultMode", 0o644))
            os.chown(path, 0, self.spec["securityContext"]["fsGroup"])
        return folder

    def _account(self):
        """Return the token of the pod's account, where it is mounted."""
        if not self.spec.get("automountServiceAccountToken"):
            return []
        folder = self.folder / "account"
        folder.mkdir()
        account = self.spec["serviceAccountName"]
        assert account != ADMIN
        (folder / "token").write_text(account)
        (folder / "namespace").write_text(self.nodes.api.namespace)
        shutil.copy(self.nodes.api.authority, folder / "ca.crt")
        return [(folder, ACCOUNT, True)]

    def _secret(self, name):
        data = self.nodes.api.list("Secret")[name]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def secret(name, content):
    """Return a Secret; values are text."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def secret_of(name, folder):
    """Return a Secret with the files of a folder, as `kubectl create secret generic --from-file` makes it."""
    return secret(name, {path.name: path.read_text() for path in Path(folder).iterdir()})


def wait_until(condition, seconds, what):
    """Wait for something; say what did not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what()}" if callable(what) else what
        time.sleep(0.3)
