"""An emulated Kubernetes API on loopback: KMock, with what the real one adds to it and that matters here.

It speaks TLS; knows accounts by their tokens and refuses what no Role allows; refuses objects that their schemas do not
know; gives uids and versions; filters by labels; and removes what belonged to an object that is gone. It schedules
nothing: `tests.kubernetes_nodes` starts the pods.
"""

import asyncio
import datetime as dt
import ipaddress
import itertools
import json
import secrets
import ssl
import threading
import urllib.error
import urllib.request

import aiohttp.web
import jsonpatch
import kmock
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kmock import action

from tests.kubernetes_schemas import DASK, VERSION, faults_of

HOST = "127.0.0.1"
#: The token of who may do everything: an administrator, and Dask's operator, whose own Role is not ours.
ADMIN = "admin"
KINDS = {
    "v1": [
        "ConfigMap",
        "Event",
        "LimitRange",
        "Namespace",
        "PersistentVolumeClaim",
        "Pod",
        "ResourceQuota",
        "Secret",
        "Service",
        "ServiceAccount",
    ],
    "apps/v1": ["Deployment", "StatefulSet"],
    "batch/v1": ["Job"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
    DASK: ["DaskAutoscaler", "DaskCluster", "DaskJob", "DaskWorkerGroup"],
}
VERBS = {
    action.LIST: "list",
    action.WATCH: "watch",
    action.FETCH: "get",
    action.CREATE: "create",
    action.UPDATE: "patch",
    action.DELETE: "delete",
}


def plural(kind):
    return f"{kind[:-1]}ies" if kind.endswith("cy") else f"{kind}s"


class Emulator(kmock.KubernetesEmulator):
    """KMock's emulator, closer to a real API server."""

    def __init__(self):
        super().__init__()
        self.allowed = {}
        self.denied = []
        self._versions = itertools.count(1)
        for version, kinds in KINDS.items():
            for kind in kinds:
                self.resources[f"{version}/{plural(kind).lower()}"] = {
                    "namespaced": kind != "Namespace",
                    "kind": kind,
                    "singular": kind.lower(),
                    "verbs": [*VERBS.values(), "update"],
                    "shortnames": [],
                    "categories": [],
                    "subresources": ["status"],
                }

    async def __call__(self, raw_request):
        """Answer what KMock cannot read."""
        path = raw_request.path.rstrip("/")
        if path == "/api/v1/namespaces":
            self.denied.append((raw_request.headers.get("Authorization"), "", "namespaces", raw_request.method))
            return aiohttp.web.json_response({"kind": "Status", "status": "Failure", "code": 403}, status=403)
        served = {"/version": self._tell_version, "/api": self._serve_api, "/apis": self._serve_apis}.get(path)
        if served is not None:  # kr8s asks with a slash at the end
            answer = aiohttp.web.json_response(await served(None))
        else:
            answer = await super().__call__(raw_request)
        if not answer.prepared:
            answer.force_close()  # kr8s closes its connections with the process, which is too late for a test in it
        return answer

    async def _handle(self, request):
        self._authorize(request)
        if request.action == action.CREATE:
            self._admit(request)
        elif request.action == action.UPDATE:
            self._amend(request)
        try:
            return await super()._handle(request)
        finally:
            if request.action in {action.UPDATE, action.DELETE}:
                await self._collect_orphans()

    def _authorize(self, request):
        if request.resource is None or request.resource.plural is None:
            return  # who is known may discover what there is
        account = request.headers.get("Authorization", "nobody").split()[-1]
        what = request.resource.plural + (f"/{request.subresource}" if request.subresource else "")
        wanted = (request.resource.group, what, VERBS.get(request.action))
        if account != ADMIN and wanted not in self.allowed.get(account, ()):
            self.denied.append((account, *wanted))
            raise kmock.KubernetesError(403, "Forbidden", f"{account!r} may not {wanted[2]} {what}")

    def _admit(self, request):
        made = request.data
        if faults := faults_of(made):
            raise kmock.KubernetesError(422, "Invalid", "; ".join(faults))
        meta = made["metadata"]
        meta.setdefault("namespace", request.namespace)
        if "name" not in meta:
            meta["name"] = meta["generateName"] + secrets.token_hex(3)
        meta["uid"] = secrets.token_hex(16)
        meta["creationTimestamp"] = dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["resourceVersion"] = str(next(self._versions))
        born = {"Service": {"loadBalancer": {}}, "Pod": {"phase": "Pending"}}
        if made["kind"] in born:
            made["status"] = born[made["kind"]]

    def _amend(self, request):
        """Apply a JSON patch, of which KMock knows nothing, and give the object a new version."""
        key = (request.resource, request.namespace, request.name)
        if isinstance(request.data, list) and key in self.objects and not self.objects[key].deleted:
            try:
                patched = jsonpatch.JsonPatch(request.data).apply(self.objects[key].raw)
            except jsonpatch.JsonPatchException as error:  # kopf tests the version, and looks again if it is another
                raise kmock.KubernetesError(422, "Invalid", str(error)) from error
            self.objects[key].create(patched)
            object.__setattr__(request, "data", {})
        request.data.setdefault("metadata", {})["resourceVersion"] = str(next(self._versions))

    async def _collect_orphans(self):
        """Delete what belonged to something that is gone, as Kubernetes does."""
        async with self._lock:
            while orphan := self._find_orphan():
                resource, made = orphan
                made.delete()
                await self._buses[resource].put({"type": "DELETED", "object": made.last.raw})

    def _find_orphan(self):
        living = [(key, made) for key, made in self.objects.items() if not made.deleted]
        uids = {made.raw["metadata"]["uid"] for _, made in living}
        for (resource, _, _), made in living:
            owners = made.raw["metadata"].get("ownerReferences", [])
            if owners and not uids & {owner["uid"] for owner in owners}:
                return resource, made
        return None

    def _selected(self, request):
        found = self._KubernetesEmulator__get_objs(request, strict=False)
        return [made.raw for made in found if not made.deleted and _is_selected(made.raw, request)]

    async def _serve_list(self, request):
        async with self._lock:
            return {
                "apiVersion": "v1",
                "kind": "List",
                "metadata": {"resourceVersion": str(next(self._versions))},
                "items": self._selected(request),
            }

    async def _serve_watch(self, request):
        """Watch without a gap between what is there and what comes."""
        yield b""
        bus = self._buses[request.resource]
        async with self._lock:
            since = int(request.params.get("resourceVersion") or 0)
            there = [made for made in self._selected(request) if int(made["metadata"]["resourceVersion"]) > since]
            mark = await bus.mark()
        for made in there:
            yield {"type": "ADDED", "object": made}
        async for event in bus.stream(since=mark):
            meta = event["object"]["metadata"]
            if request.namespace in {None, meta["namespace"]} and _is_selected(event["object"], request):
                yield event

    async def _tell_version(self, _):
        major, minor = VERSION.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{VERSION}.0"}

    async def _serve_version(self, request):
        answer = await super()._serve_version(request)
        return {**answer, "groupVersion": answer["groupVersion"].lstrip("/")}


def _is_selected(made, request):
    fields = {"metadata.name": made["metadata"]["name"]}
    labels = made["metadata"].get("labels", {})
    return _fits(fields, request.params.get("fieldSelector")) and _fits(labels, request.params.get("labelSelector"))


def _fits(values, selector):
    """Return whether values are what a selector says: ``key=value``, or ``key`` for any value."""
    parts = (part.partition("=") for part in (selector or "").split(",") if part)
    return all(key in values and (not equal or values[key] == value.lstrip("=")) for key, equal, value in parts)


class Gone(Exception):  # noqa: N818 - what it is, not a fault
    """An object is not there, or not any more."""


class KubernetesApi:
    """The emulated API of a namespace, with an administrator's client."""

    def __init__(self, folder, *, namespace="kconn"):
        self.folder = folder
        self.namespace = namespace
        self.emulator = None
        self.authority = folder / "kubernetes.pem"
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(30)
        self.kubeconfig = self.config_of(ADMIN)
        return self

    def config_of(self, account):
        """Write the configuration of a client that shows the token of an account; return its path."""
        path = self.folder / f"{account}.kubeconfig"
        write_config(path, self.port, token=account, authority=str(self.authority))
        return path

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)

    async def _serve(self):
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self.emulator = Emulator()
        async with self.emulator:
            answering = aiohttp.web.Server(self.emulator)
            options = {"ssl": _certified(self.authority), "ssl_shutdown_timeout": 0.1}
            listening = await self._loop.create_server(answering, HOST, 0, **options)
            self.port = listening.sockets[0].getsockname()[1]
            self._started.set()
            await self._ended.wait()
            listening.close()
            await answering.shutdown(1)
            await asyncio.sleep(0.3)  # clients that are idle do not answer the goodbye of TLS

    @property
    def faults(self):
        """Return what the emulation did not expect: answers of 500."""
        return [error for error in self.emulator.errors if not isinstance(error, kmock.KubernetesError)]

    def apply(self, objects):
        """Create objects; what Roles and bindings say holds from then on."""
        for made in objects:
            self.create(made)
        roles = {made["metadata"]["name"]: made for made in objects if made["kind"] == "Role"}
        for made in objects:
            if made["kind"] == "RoleBinding":
                for subject in made["subjects"]:
                    rules = roles[made["roleRef"]["name"]]["rules"]
                    self.emulator.allowed.setdefault(subject["name"], set()).update(
                        (group, what, verb)
                        for rule in rules
                        for group, what, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
                    )

    def create(self, made):
        return self._ask("POST", self._path(made["apiVersion"], made["kind"]), made)

    def list(self, kind, **labels):
        """Return the objects of a kind that carry labels, by name."""
        version = next(version for version, kinds in KINDS.items() if kind in kinds)
        found = self._ask("GET", self._path(version, kind))["items"]
        found = [one for one in found if labels.items() <= one["metadata"].get("labels", {}).items()]
        return {made["metadata"]["name"]: made for made in sorted(found, key=lambda made: made["metadata"]["name"])}

    def set_status(self, made, status):
        path = f"{self._path(made['apiVersion'], made['kind'])}/{made['metadata']['name']}"
        return self._ask("PATCH", f"{path}/status", {"status": status})

    def delete(self, made):
        return self._ask("DELETE", f"{self._path(made['apiVersion'], made['kind'])}/{made['metadata']['name']}")

    def _path(self, version, kind):
        prefix = "api" if version == "v1" else "apis"
        return f"/{prefix}/{version}/namespaces/{self.namespace}/{plural(kind).lower()}"

    def _ask(self, method, path, body=None):
        request = urllib.request.Request(
            f"https://{HOST}:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/merge-patch+json"},
        )
        context = ssl.create_default_context(cafile=self.authority)
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as reply:  # noqa: S310 - loopback
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise (Gone if error.code == 404 else AssertionError)(error.read().decode()) from error


def write_config(path, port, *, token, authority):
    """Write how a client reaches the API."""
    cluster = {"server": f"https://{HOST}:{port}", "certificate-authority": authority}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a", "user": {"token": token}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    path.write_text(json.dumps(config))


def _certified(path):
    """Make a certificate of this address that vouches for itself, and leave it, without the key, where clients look."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = dt.datetime.now(tz=dt.UTC)
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"], False
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, decipher_only=False, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    whole = path.with_suffix(".whole.pem")
    whole.write_bytes(path.read_bytes() + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(whole)
    whole.unlink()
    return context
