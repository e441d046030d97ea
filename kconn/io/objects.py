"""Bytes under a prefix of an S3 bucket: read whole, put whole, or put only over what was seen.

Credentials come from the environment of the process that opens the bucket. They are in no object of this module, so
none travels to a worker, into a key of a task or into a message.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from kconn.errors import KconnError, ResourceError, SchemaError, StoreError
from kconn.io.files import Content

if TYPE_CHECKING:
    from obstore.store import S3Store

SCHEME: Final = "s3://"
#: A bucket and a prefix of one or more parts. Parts that begin with a dot are kept for what lies beside a store.
_PLACE: Final = re.compile(
    r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([A-Za-z0-9_][A-Za-z0-9._=+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*)/?"
)
#: A request that is not answered ends after so many seconds, and is tried again for so many, so many times.
_CONNECT_SECONDS: Final = 5
_REQUEST_SECONDS: Final = 120
_RETRY_SECONDS: Final = 30
_RETRIES: Final = 5
_AT_ONCE: Final = 16
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
#: Names of the environment that say where requests go, the first that is set.
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFolder:
    """A prefix of a bucket, and where requests go; no credentials.

    Attributes
    ----------
    bucket, prefix
        As in ``s3://bucket/prefix``.
    endpoint, region
        Where requests go, or None for what the environment says.
    insecure
        Whether requests to another machine may go without TLS.
    """

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None
    insecure: bool = False

    def __str__(self) -> str:
        """``s3://bucket/prefix``."""
        return f"{SCHEME}{self.bucket}/{self.prefix}"

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self.prefix.rpartition("/")[2]

    @property
    def at_once(self) -> int:
        """How many requests are worth making at the same time."""
        return _AT_ONCE

    def below(self, name: str) -> ObjectFolder:
        """Return a folder below this one."""
        return replace(self, prefix=self.path(name))

    def beside(self, name: str) -> ObjectFolder:
        """Return a folder next to this one."""
        above, slash, _ = self.prefix.rpartition("/")
        return replace(self, prefix=above + slash + name)

    def path(self, name: str) -> str:
        """Return the key of an object from its name below this folder."""
        return f"{self.prefix}/{name}" if name else self.prefix

    def open(self) -> S3Store:
        """Return the bucket, opened with the credentials of this process."""
        return _open(self.bucket, self.endpoint, self.region, insecure=self.insecure)

    def read(self, name: str) -> Content | None:
        """Return an object, or None where there is none."""
        try:
            with self.spoken(missing=FileNotFoundError):
                found = _obstore().get(self.open(), self.path(name))
                return Content(content=bytes(found.bytes()), version=found.meta["e_tag"] or "")
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Write an object, whatever was there."""
        with self.spoken():
            _obstore().put(self.open(), self.path(name), content)

    def create(self, name: str, content: bytes) -> None:
        """Write an object unless there is one."""
        with suppress(StoreError):
            self.replace(name, content, seen=None)

    def replace(self, name: str, content: bytes, *, seen: Content | None) -> None:
        """Write an object if what is there is still what was seen; None stands for nothing.

        Raises
        ------
        StoreError
            ``E-STORE-LOST`` if it is not.
        """
        obs = _obstore()
        mode: Any = "create" if seen is None else {"e_tag": seen.version}
        try:
            with self.spoken(missing=obs.exceptions.BaseError):
                obs.put(self.open(), self.path(name), content, mode=mode)
        except (obs.exceptions.PreconditionError, obs.exceptions.AlreadyExistsError):
            now = self.read(name)
            if now is not None and now.content == content:  # a put that arrived, and whose answer did not
                return
            raise StoreError(
                "E-STORE-LOST",
                "another process has written here meanwhile",
                rule="a pointer is replaced only if it is still the one that was read",
                fix="let one run at a time write to the store, and run again: finished steps are kept",
            ) from None
        except obs.exceptions.BaseError as error:
            raise self.coded(error) from None

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return name -> size of every object below a folder."""
        return {name: meta["size"] for name, meta in self._list(folder)}

    def first_differing(self, folder: str, sizes: Mapping[str, int]) -> str | None:
        """Return the first object of a folder that is missing or has another size than this, or None."""
        there = self.sizes(folder)
        return next((name for name, size in sizes.items() if there.get(name) != size), None)

    def times(self) -> dict[str, float]:
        """Return name -> time of the last write, in seconds since 1970, of the objects that lie here."""
        return {name: meta["last_modified"].timestamp() for name, meta in self._list("") if "/" not in name}

    def changed(self, name: str) -> datetime | None:
        """Return when an object was last written, by the clock of the storage, or None where there is none."""
        try:
            with self.spoken(missing=FileNotFoundError):
                found: datetime = _obstore().head(self.open(), self.path(name))["last_modified"]
                return found
        except FileNotFoundError:
            return None

    def is_empty(self) -> bool:
        """Return whether there is no object below this folder."""
        with self.spoken():
            found = _obstore().list_with_delimiter(self.open(), self.path(""))
        return not found["common_prefixes"] and not found["objects"]

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        with self.spoken():
            found = _obstore().list_with_delimiter(self.open(), self.path(folder))
        return sorted(path.rpartition("/")[2] for path in found["common_prefixes"])

    def digest(self, name: str) -> str | None:
        """Return the hex SHA-256 of an object, read in parts, or None where there is none."""
        digest = hashlib.sha256()
        try:
            with self.spoken(missing=FileNotFoundError):
                for part in _obstore().get(self.open(), self.path(name)).stream():
                    digest.update(part)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        paths = [self.path(name) for name in names]
        if paths:
            with self.spoken():
                _obstore().delete(self.open(), paths)

    def remove_all(self, folder: str = "") -> None:
        """Remove every object below a folder."""
        inside = f"{folder}/" if folder else ""
        self.remove(inside + name for name in self.sizes(folder))

    def _list(self, folder: str) -> Iterator[tuple[str, Any]]:
        above = self.path(folder) + "/"
        with self.spoken():
            metas = _obstore().list(self.open(), self.path(folder)).collect()
        return ((meta["path"].removeprefix(above), meta) for meta in metas)

    @contextmanager
    def spoken(self, *, missing: type[Exception] | None = None) -> Iterator[None]:
        """Turn what the storage answers into errors that a user can act on.

        Parameters
        ----------
        missing
            Kind of answer that the caller looks at itself, unless it is that the bucket is missing.
        """
        try:
            yield
        except KconnError:
            raise
        except (OSError, _obstore().exceptions.BaseError) as error:
            if missing is not None and isinstance(error, missing) and "NoSuchBucket" not in str(error):
                raise
            # Its text may hold an access key: storages repeat it when they refuse one.
            raise self.coded(error) from None

    def coded(self, error: Exception) -> KconnError:
        """Return the error of ours for an answer of the storage, without any of its text."""
        text = str(error)
        status = match[1] if (match := re.search(r"status code: (\d+)", text)) else ""
        if "NoSuchBucket" in text or "InvalidBucketName" in text:
            return ResourceError(
                "E-BUCKET",
                f"there is no bucket {self.bucket!r}",
                rule="the bucket of [study] store exists before the first run",
                fix="create it, or correct [study] store, or [storage] endpoint and region",
            )
        refused = type(error).__name__ in {"PermissionDeniedError", "UnauthenticatedError"} or status in {"401", "403"}
        if refused or "169.254." in text or "/latest/api/token" in text:
            return ResourceError(
                "E-CREDENTIALS",
                f"the storage of bucket {self.bucket!r} "
                + (
                    "refuses the credentials" if refused and "169.254." not in text else "was asked without credentials"
                ),
                rule="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine, let every process list, "
                "read, write and delete below the prefix",
                fix="set them where kconn and its workers run; the study file holds none",
            )
        if status == "507" or "StorageFull" in text or "QuotaExceeded" in text:
            return ResourceError(
                "E-DISK",
                f"the storage of bucket {self.bucket!r} is full",
                rule="a step needs room for its result",
                fix="free space and run again: finished steps are kept",
            )
        return ResourceError(
            "E-ENDPOINT",
            f"the storage of bucket {self.bucket!r} "
            + (f"answers with status {status}" if status else "does not answer"),
            rule=f"a request is answered, if need be after {_RETRIES} more tries",
            fix="check [storage] endpoint and region, or AWS_ENDPOINT_URL and AWS_REGION, and the network; "
            "then run again: finished steps are kept",
        )


def parse_place(
    text: str, *, endpoint: str | None = None, region: str | None = None, insecure: bool = False
) -> ObjectFolder:
    """Return the folder that ``s3://bucket/prefix`` names.

    Raises
    ------
    ValueError
        If it names none. The message does not repeat the text, which may hold a password.
    """
    match = _PLACE.fullmatch(text)
    if match is None:
        raise ValueError(
            "a store on object storage is s3://bucket/prefix: a bucket of 3 to 63 small letters, digits, dots and "
            "dashes, then parts that begin with a letter, digit or _ and go on with these and . = + -; no credentials"
        )
    return ObjectFolder(bucket=match[1], prefix=match[2], endpoint=endpoint, region=region, insecure=insecure)


@lru_cache(maxsize=8)
def _open(bucket: str, endpoint: str | None, region: str | None, *, insecure: bool) -> S3Store:
    where = endpoint or next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    options: dict[str, str] = {"endpoint": where} if where else {}
    if region:
        options["region"] = region
    opened: S3Store = _obstore().store.S3Store(
        bucket,
        config=options,
        client_options={
            "allow_http": _may_be_plain(where, insecure=insecure),
            "timeout": timedelta(seconds=_REQUEST_SECONDS),
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
    )
    return opened


def _may_be_plain(endpoint: str | None, *, insecure: bool) -> bool:
    """Return whether requests go without TLS, refusing that where they would leave this machine.

    Raises
    ------
    ResourceError
        ``E-TLS``.
    """
    if endpoint is None or not endpoint.startswith("http://"):
        return False
    host = urlsplit(endpoint).hostname
    if host in _HERE or insecure:
        return True
    raise ResourceError(
        "E-TLS",
        f"the endpoint of the storage is on another machine ({host}) and begins with http://",
        rule="data and requests are encrypted on their way to another machine",
        fix="use an https:// endpoint, or say insecure = true in [storage]",
    )


def _obstore() -> Any:
    """Return the library, an optional extra."""
    try:
        import obstore  # noqa: PLC0415 - an optional extra
        import obstore.store  # noqa: PLC0415
    except ImportError as error:
        raise SchemaError(
            "E-ARGUMENT",
            "a store on object storage needs obstore, which is not installed",
            rule="object storage is an optional extra",
            fix="pip install 'kconn[s3]', on every machine that opens the store",
        ) from error
    return obstore
