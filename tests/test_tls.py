"""Certificates: who has a good one is let in, everybody else is refused; keys are their owner's alone."""

import asyncio
import datetime as dt
import os
import socket
import ssl
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from distributed import Client

from kconn.cluster import connect
from kconn.cluster.settings import GUARDED, as_environment
from kconn.cluster.table import ClusterTable
from kconn.cluster.tls import ROLES, load_security, make_certificates
from kconn.errors import InputError, KconnError, ResourceError

DASK = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
WORKER = [sys.executable, "-m", "distributed.cli.dask_worker"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls") / "good"
    make_certificates(folder, days=2)
    return folder


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def options_of(folder, role):
    files = {"ca-file": "ca.pem", "cert": f"{role}.pem", "key": f"{role}-key.pem"}
    return [part for option, name in files.items() for part in (f"--tls-{option}", str(folder / name))]


@contextmanager
def started(*commands):
    environment = {**os.environ, **as_environment(GUARDED)}
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield running
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def standing(certificates):
    """A scheduler and a worker as an administrator starts them, with the certificates of `kconn tls init`."""
    port, dashboard = free_port(), free_port()
    address = f"tls://127.0.0.1:{port}"
    scheduler = [*DASK, "--protocol", "tls", "--host", "127.0.0.1", "--port", str(port)]
    scheduler += ["--dashboard-address", f"127.0.0.1:{dashboard}", *options_of(certificates, "scheduler")]
    worker = [*WORKER, address, "--nthreads", "1", "--no-dashboard", *options_of(certificates, "worker")]
    with started(scheduler, worker):
        wait_for_port(port)
        yield address


def wait_for_port(port):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the scheduler did not start")


def test_make_certificates__one_per_role_and_keys_for_their_owner(certificates):
    assert stat.S_IMODE(certificates.stat().st_mode) == 0o700
    names = {f"{role}{part}.pem" for role in ("ca", *ROLES) for part in ("", "-key")}
    assert {path.name for path in certificates.iterdir()} == names
    for name in names:
        if name.endswith("-key.pem"):
            assert stat.S_IMODE((certificates / name).stat().st_mode) == 0o600
    authority = x509.load_pem_x509_certificate((certificates / "ca.pem").read_bytes())
    for role, uses in ROLES.items():
        found = x509.load_pem_x509_certificate((certificates / f"{role}.pem").read_bytes())
        found.verify_directly_issued_by(authority)
        assert set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == set(uses)
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        left = found.not_valid_after_utc - dt.datetime.now(tz=dt.UTC)
        assert dt.timedelta(days=1.9) < left <= dt.timedelta(days=2)


def test_make_certificates__passes_openssls_strict_rules(certificates):
    """Dask switches strict checking off; other programs that are handed these files do not."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    server.load_cert_chain(certificates / "scheduler.pem", certificates / "scheduler-key.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=certificates / "ca.pem")
    client.load_cert_chain(certificates / "client.pem", certificates / "client-key.pem")
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT

    async def meet():
        done = asyncio.Event()

        async def answer(_, writer):
            writer.write(b"in")
            writer.close()
            done.set()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server)
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="kconn-scheduler")
        received = await reader.read()
        writer.close()
        listening.close()
        return received

    assert asyncio.run(meet()) == b"in"


def test_make_certificates__never_overwrites_keys(certificates):
    with pytest.raises(InputError, match="is not empty") as caught:
        make_certificates(certificates)
    assert caught.value.code == "E-FILE-EXISTS"


def spoil(folder, what):
    if what == "missing":
        (folder / "client.pem").unlink()
    elif what == "no key":
        (folder / "client-key.pem").unlink()
    elif what == "open key":
        (folder / "client-key.pem").chmod(0o644)
    elif what == "no certificate":
        (folder / "client.pem").write_text("hello")
    else:
        make_certificates(folder / "other")
        (folder / "ca.pem").write_bytes((folder / "other" / "ca.pem").read_bytes())


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("missing", "E-FILE-MISSING", "'client.pem' is not in"),
        ("no key", "E-FILE-MISSING", "'client-key.pem' is not in"),
        ("open key", "E-TLS", "its mode is 0644"),
        ("no certificate", "E-TLS", "it is no PEM certificate"),
        ("another authority", "E-TLS", "not issued by the authority"),
    ],
)
def test_load_security__names_what_is_wrong(tmp_path, what, code, words):
    make_certificates(tmp_path / "tls")
    spoil(tmp_path / "tls", what)
    with pytest.raises(KconnError, match=words) as caught:
        load_security(tmp_path / "tls")
    assert caught.value.code == code
    assert caught.value.fix


def test_load_security__says_when_a_certificate_expired(tmp_path):
    make_certificates(tmp_path / "old", days=-0.001)
    with pytest.raises(ResourceError, match=r"it holds from .* to .* UTC") as caught:
        load_security(tmp_path / "old")
    assert caught.value.code == "E-TLS"


@pytest.mark.faults("intruders")
def test_connect__a_good_certificate_is_let_in(standing, certificates, count):
    table = ClusterTable(kind="address", address=standing, tls=str(certificates))
    with connect(table) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert client.scheduler_info()["address"].startswith("tls://")
        with pytest.raises(ValueError, match="disallowed in Scheduler"):
            client.run_on_scheduler(os.getpid)
    count(accepted=1)


INTRUDERS = ["no certificate", "another authority", "expired", "plain TCP"]


@pytest.mark.faults("intruders")
@pytest.mark.parametrize("who", INTRUDERS)
def test_connect__intruders_are_refused(standing, certificates, tmp_path, count, who):
    """Straight at Dask, without the checks of our own client: what refuses is the scheduler."""
    host, port = standing.removeprefix("tls://").split(":")
    if who == "plain TCP":
        with pytest.raises(OSError, match=r"(?i)timed out|closed|failure|connect"):
            Client(f"tcp://{host}:{port}", timeout="3s")
        count(refused=1)
        return
    if who == "no certificate":
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
    else:
        make_certificates(tmp_path / "tls", days=-0.001 if who == "expired" else 1)
        if who == "expired":
            reissue(certificates, tmp_path / "tls")
        context = ssl.create_default_context()
        context.load_cert_chain(tmp_path / "tls" / "client.pem", tmp_path / "tls" / "client-key.pem")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # an intruder does not mind who it talks to
    with pytest.raises(
        ssl.SSLError, match=r"(?i)alert.*(certificate required|unknown ca|expired|decrypt|bad certificate)"
    ):
        talk(context, host, int(port))
    count(refused=1)


def talk(context, host, port):
    """With TLS 1.3 a client learns that it was refused when it reads."""
    with socket.create_connection((host, port), timeout=10) as plain, context.wrap_socket(plain) as wrapped:
        wrapped.recv(1024)


def reissue(certificates, folder):
    """Let the good authority sign an expired certificate for the key of a client."""
    authority = x509.load_pem_x509_certificate((certificates / "ca.pem").read_bytes())
    signing = serialization.load_pem_private_key((certificates / "ca-key.pem").read_bytes(), password=None)
    old = x509.load_pem_x509_certificate((folder / "client.pem").read_bytes())
    new = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(authority.subject)
        .public_key(old.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc - dt.timedelta(days=1))
        .not_valid_after(old.not_valid_after_utc)
        .add_extension(old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value, critical=False)
        .sign(signing, hashes.SHA256())
    )
    (folder / "client.pem").write_bytes(new.public_bytes(serialization.Encoding.PEM))


@pytest.mark.slow
@pytest.mark.faults("intruders")
def test_connect__a_worker_of_another_authority_does_not_join(standing, certificates, tmp_path, count):
    make_certificates(tmp_path / "evil")
    worker = [*WORKER, standing, "--nthreads", "1", "--no-dashboard", "--name", "evil"]
    worker += [*options_of(tmp_path / "evil", "worker"), "--death-timeout", "8"]
    with started(worker) as (process,):
        process.wait(timeout=60)
    with connect(ClusterTable(kind="address", address=standing, tls=str(certificates))) as client:
        assert "evil" not in {worker["name"] for worker in client.scheduler_info()["workers"].values()}
    count(refused=1)


@pytest.mark.parametrize("address", ["tcp://10.255.255.1:8786", "10.255.255.1:8786", "ws://10.255.255.1:8786"])
def test_connect__refuses_to_leave_the_machine_without_tls(address):
    with pytest.raises(ResourceError, match="would not be encrypted") as caught, connect(address=address):
        pass
    assert caught.value.code == "E-TLS"


def test_connect__tls_needs_certificates():
    with pytest.raises(ResourceError, match="needs the folder") as caught, connect(address="tls://127.0.0.1:1"):
        pass
    assert caught.value.code == "E-TLS"
