"""Tell of workers that die or freeze while a study runs: the run goes on without them, and nobody need wonder why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from distributed import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class LostWorker:
    """A worker that is gone.

    Attributes
    ----------
    address
        What the dashboard calls it.
    how
        Whether its connection broke, or it gave no sign of life for as long as a worker may.
    """

    address: str
    how: Literal["died", "froze"]

    def __str__(self) -> str:
        """``worker tls://10.0.0.2:1234 froze: its steps are done by others``."""
        return f"worker {self.address} {self.how}: its steps are done by others"


@contextmanager
def telling_of_lost_workers(client: Client | None, tell: Callable[[LostWorker], None]) -> Iterator[None]:
    """Call ``tell`` once for each worker of a client that is lost meanwhile; it runs in a thread of the client.

    Without a client there is nothing to tell.
    """
    if client is None:
        yield
        return
    told: set[str] = set()

    def hear(event: tuple[float, Mapping[str, Any]]) -> None:
        for lost in _read(event[1]):
            if lost.address not in told:
                told.add(lost.address)
                tell(lost)

    for topic in _TOPICS:
        client.subscribe_topic(topic, hear)
    try:
        yield
    finally:
        for topic in _TOPICS:
            client.unsubscribe_topic(topic)


#: Of Dask's scheduler: what it does by itself, and what befalls all workers.
_TOPICS: Final = ("scheduler", "all")


def _read(message: Mapping[str, Any]) -> Iterator[LostWorker]:
    """Yield the workers whose loss an event is about."""
    if message.get("action") == "worker-ttl-timed-out":
        for address in message["workers"]:
            yield LostWorker(address=address, how="froze")
    elif message.get("action") == "remove-worker" and not message["expected"]:
        yield LostWorker(address=message["worker"], how="died")
