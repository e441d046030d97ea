"""A lock that is an object: taken by a conditional put, kept by a heartbeat, lapsed when its holder has gone.

Ages are told by the clock of the storage alone, so clocks of machines may differ.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from kconn.errors import KconnError, ResourceError, StoreError
from kconn.io.files import Content
from kconn.io.objects import ObjectFolder

#: A lock that was not renewed for so long is anyone's.
LAPSE_SECONDS: Final = 60.0
#: A holder renews its lock so often.
BEAT_SECONDS: Final = 15.0
_LOCK: Final = "lock"


@contextmanager
def hold(work: ObjectFolder, *, name: str) -> Iterator[None]:
    """Hold a store for one writing process.

    Parameters
    ----------
    work
        The folder beside the store.
    name
        Name of the store.

    Raises
    ------
    StoreError
        ``E-STORE-LOCKED`` if another process holds it; ``E-STORE-LOST`` at the end if another took it meanwhile, as it
        may from a process that stood still.
    ResourceError
        ``E-BUCKET`` if the storage does not heed conditions, so that no lock can hold.
    """
    owner = uuid.uuid4().hex
    _take(work, owner, name)
    ended = threading.Event()
    lost = threading.Event()
    beat = threading.Thread(target=_keep, args=(work, owner, ended, lost), name="kconn-lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _release(work, owner)
    if lost.is_set():
        raise StoreError(
            "E-STORE-LOST",
            f"another process took over the store {name!r} meanwhile",
            rule=f"a run renews its lock every {BEAT_SECONDS:.0f} s; after {LAPSE_SECONDS:.0f} s it is anyone's",
            fix="let one run at a time write to the store, and run again: finished steps are kept",
        )


def _take(work: ObjectFolder, owner: str, name: str) -> None:
    found = work.read(_LOCK)
    if found is not None and (left := LAPSE_SECONDS - _age(work, owner)) > 0:
        raise _locked(name, f"if it died, its lock lapses in {left:.0f} s")
    try:
        work.replace(_LOCK, _line(owner, 0), seen=found)
    except StoreError:
        raise _locked(name, "it was quicker by a moment") from None
    try:
        work.replace(_LOCK, _line(owner, 1), seen=None)
    except StoreError:
        return
    raise ResourceError(
        "E-BUCKET",
        f"the storage of bucket {work.bucket!r} does not heed conditions of a put",
        rule="a put with If-None-Match does not replace an object: locks and pointers of a store rest on that",
        fix="use a storage that does, as S3 and its current look-alikes do",
    )


def _age(work: ObjectFolder, owner: str) -> float:
    """Return the seconds since the lock was renewed, by the clock of the storage."""
    probe = f"clock-{owner}"
    work.put(probe, b"")
    now, renewed = work.changed(probe), work.changed(_LOCK)
    work.remove([probe])
    return LAPSE_SECONDS if now is None or renewed is None else (now - renewed).total_seconds()


def _keep(work: ObjectFolder, owner: str, ended: threading.Event, lost: threading.Event) -> None:
    """Renew the lock until the end, or until it is another's."""
    n_beat = 1
    while not ended.wait(BEAT_SECONDS):
        # A storage that does not answer is no loss yet: whoever writes is told, and the next beat may get through.
        with suppress(KconnError):
            found = work.read(_LOCK)
            if not _is_of(found, owner):
                lost.set()
                return
            with suppress(StoreError):
                work.replace(_LOCK, _line(owner, n_beat), seen=found)
            n_beat += 1


def _release(work: ObjectFolder, owner: str) -> None:
    # A lock that cannot be removed lapses by itself.
    with suppress(KconnError):
        if _is_of(work.read(_LOCK), owner):
            work.remove([_LOCK])


def _is_of(found: Content | None, owner: str) -> bool:
    if found is None:
        return False
    try:
        return bool(json.loads(found.content)["owner"] == owner)
    except (ValueError, KeyError, TypeError):
        return False


def _line(owner: str, n_beat: int) -> bytes:
    return json.dumps({"owner": owner, "beat": n_beat}).encode()


def _locked(name: str, hint: str) -> StoreError:
    return StoreError(
        "E-STORE-LOCKED",
        f"another process is writing to {name!r}; {hint}",
        rule="one run at a time writes to a store",
        fix="wait for it to end, or stop it: what it finished is kept",
    )
