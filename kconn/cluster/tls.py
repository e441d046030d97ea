"""A private authority and one certificate per role: scheduler, worker, client. Whoever has none is refused."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from distributed.security import Security

from kconn.errors import InputError, ResourceError

#: Role -> what its certificate may do. Clients never listen: a stolen client key cannot pose as a scheduler.
ROLES: Final = {
    "scheduler": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    "worker": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH,),
}
#: Clocks of machines differ: certificates hold from a little before now.
_CLOCKS_DIFFER: Final = dt.timedelta(minutes=5)
_RULE: Final = "schedulers, workers and clients show a certificate of one private authority"


def make_certificates(folder: Path, *, days: float = 365.0) -> dt.datetime:
    """Make a private authority, and a key and a certificate for each role.

    Parameters
    ----------
    folder
        New or empty folder. It gets mode 0700 and ``ca.pem``, ``ca-key.pem`` and, for each role, ``ROLE.pem`` and
        ``ROLE-key.pem``; keys have mode 0600. ``ca-key.pem`` is needed by nothing that runs: keep it elsewhere.
    days
        How long the certificates hold.

    Returns
    -------
    When they expire, in UTC.

    Raises
    ------
    InputError
        ``E-FILE-EXISTS`` if the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            "E-FILE-EXISTS",
            f"{folder.name!r} is not empty",
            rule="keys are never overwritten: what runs with them would be locked out",
            fix="name a new folder, hand it to all that runs, then remove the old one",
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    begin = dt.datetime.now(tz=dt.UTC) - _CLOCKS_DIFFER
    end = begin + _CLOCKS_DIFFER + dt.timedelta(days=days)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, begin, end)
    _write_pair(folder, "ca", authority, authority_key)
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        _write_pair(folder, role, _certificate(role, key, authority, authority_key, (begin, end)), key)
    return end


def load_security(folder: Path, *, role: str = "client") -> Security:
    """Return what Dask needs to speak TLS and nothing else, after looking at the files of a role.

    Parameters
    ----------
    folder
        As `make_certificates` filled it; only ``ca.pem`` and the pair of the role need be there.
    role
        The role of this process. What starts schedulers and workers has all three.

    Raises
    ------
    InputError
        ``E-FILE-MISSING``.
    ResourceError
        ``E-TLS`` if a certificate has expired, is not of this authority, or its key can be read by others.
    """
    roles = [name for name in ROLES if name == role or _paths(folder, name)[0].exists()]
    for name in roles:
        _check(folder, name)
    files = {f"tls_{name}_{part}": str(path) for name in roles for part, path in _named(folder, name).items()}
    return Security(require_encryption=True, tls_ca_file=str(folder / "ca.pem"), **files)


def _named(folder: Path, role: str) -> dict[str, Path]:
    certificate, key = _paths(folder, role)
    return {"cert": certificate, "key": key}


def _paths(folder: Path, role: str) -> tuple[Path, Path]:
    return folder / f"{role}.pem", folder / f"{role}-key.pem"


def _check(folder: Path, role: str) -> None:
    path, key = _paths(folder, role)
    authority = _read(folder / "ca.pem")
    certificate = _read(path)
    now = dt.datetime.now(tz=dt.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise _refusal(
            path,
            f"it holds from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        )
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception as error:  # InvalidSignature, ValueError or TypeError, by what differs
        raise _refusal(path, "it was not issued by the authority in ca.pem") from error
    if not key.exists():
        raise _missing(key)
    if key.stat().st_mode & 0o027:
        raise _refusal(key, f"its mode is {key.stat().st_mode & 0o777:04o}: others can use it")


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise _missing(path) from error
    except ValueError as error:
        raise _refusal(path, "it is no PEM certificate") from error


def _missing(path: Path) -> InputError:
    return InputError(
        "E-FILE-MISSING",
        f"{path.name!r} is not in {path.parent.name!r}",
        rule=_RULE,
        fix="make one with `kconn tls init FOLDER`, and name it as [cluster] tls or with --tls",
    )


def _refusal(path: Path, problem: str) -> ResourceError:
    return ResourceError(
        "E-TLS",
        problem,
        where=path.name,
        rule=f"{_RULE}, and keys are their owner's alone (mode 0600; 0640 where a group is trusted)",
        fix="make new ones with `kconn tls init FOLDER` and hand them to all that runs",
    )


def _authority(key: ec.EllipticCurvePrivateKey, begin: dt.datetime, end: dt.datetime) -> x509.Certificate:
    usage = _usage(signs=True)
    name = _name("private authority")
    return (
        _builder(name, name, key, (begin, end))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    role: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    span: tuple[dt.datetime, dt.datetime],
) -> x509.Certificate:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_name(role), authority.subject, key, span)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(ROLES[role]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"kconn-{role}")]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    span: tuple[dt.datetime, dt.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(span[0])
        .not_valid_after(span[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(role: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kconn {role}")])


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    path, key_path = _paths(folder, name)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    # Made with its mode: a key that is readable for a moment is readable.
    descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
