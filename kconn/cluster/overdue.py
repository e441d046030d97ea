"""Stop what takes too long on workers: the one way that ends a thread which computes is to end its process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from distributed import Client, Future

from kconn.cluster.looking import looking

#: Reason with which the future of a step is cancelled that computed for too long; the message is its key.
OVERDUE: Final = "overdue"
#: Looks at the workers while one step may take its time.
_LOOKS: Final = 50


@contextmanager
def watched(client: Client | None, seconds: float | None) -> Iterator[None]:
    """Stop every task of a client that computes for longer than some seconds; time in a queue does not count.

    Without a client nothing is watched: what computes in this process cannot be stopped from within.
    """
    if client is None or seconds is None:
        yield
        return
    look = _Overdue(client=client, seconds=seconds).look
    with looking(look, every=min(max(seconds / _LOOKS, 0.2), 30.0), name="kconn-overdue"):
        yield


def stop_work(client: Client, futures: Sequence[Future[Any]] | None = None, *, reason: str = "stopped") -> None:
    """Cancel futures, or all that a client waits for, and start anew the workers that compute them.

    Whoever cancels gives the store away next: nothing may go on writing to it unseen.
    """
    keys = {future.key for future in futures} if futures is not None else set(client.futures)
    try:
        busy = [worker for worker, tasks in _computing(client).items() if keys & set(tasks)]
    except OSError:  # one of them went away while it was asked: whichever computes is among all
        busy = list(client.scheduler_info(n_workers=-1)["workers"])
    stopped = [Future(key, client) for key in keys] if futures is None else list(futures)
    for future in stopped:
        client.cancel([future], reason=reason, msg=str(future.key))
    if busy:
        client.restart_workers(busy, raise_for_error=False)


def begin_no_more(client: Client, futures: Iterable[Future[Any]], *, reason: str) -> None:
    """Cancel those of some futures that are not being computed; what has begun goes on to its end."""
    try:
        begun = {key for keys in _computing(client).values() for key in keys}
    except OSError:  # one of the workers went away while it was asked; what it was at is lost anyway
        begun = set()
    client.cancel([future for future in futures if future.key not in begun], reason=reason)


@dataclass(slots=True, kw_only=True)
class _Overdue:
    """Since when each task has been seen to compute."""

    client: Client
    seconds: float
    since: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        computing = {key for keys in _computing(self.client).values() for key in keys}
        now = time.monotonic()
        self.since = {key: self.since.get(key, now) for key in computing}
        for key in [key for key, start in self.since.items() if now - start > self.seconds]:
            stop_work(self.client, [Future(key, self.client)], reason=OVERDUE)


def _computing(client: Client) -> dict[str, list[str]]:
    """Return worker -> keys that its threads are at; what waits in a queue is not among them."""
    own = set(client.futures)
    # Asked for keys, the scheduler fails on one that it has just forgotten; asked for none, it tells of all.
    stacks = client.call_stack() or {}
    return {worker: keys for worker, tasks in stacks.items() if (keys := [key for key in tasks if key in own])}
