"""Look at workers again and again while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def looking(look: Callable[[], None], *, every: float, name: str) -> Iterator[None]:
    """Call ``look`` in a thread of this name every so many seconds.

    A look fails when the scheduler or a worker is away. That passes in silence: whoever waits for a step is told so by
    its future.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(every):
            with suppress(OSError, TimeoutError, ValueError, KeyError):
                look()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
