"""Ctrl-C that is not lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

#: Seconds after which an interrupt that was dropped is raised again.
_LATER: Final = 0.05
#: Set from the signal until whoever was interrupted is told.
_pending = threading.Event()


@contextmanager
def heeded_interrupts() -> Iterator[None]:
    """Raise every Ctrl-C until it is heard.

    It is raised wherever the interpreter happens to be. In a callback from C, such as those of LLVM while it loads
    compiled code or those of weak references, Python reports and drops it: about one interrupt in fifty of a short
    run was lost. One that is dropped is raised again a moment later. Whoever has a handler of their own keeps it.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    report = sys.unraisablehook

    def again(dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            timer = threading.Timer(_LATER, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
            timer.daemon = True
            timer.start()
        else:
            report(dropped)

    signal.signal(signal.SIGINT, _note_and_raise)
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _pending.clear()


def raise_unheard(_: object = None) -> None:
    """Raise a Ctrl-C that something dropped without a word; to be called where nothing is under way."""
    if _pending.is_set():
        raise KeyboardInterrupt


def _note_and_raise(_: int, __: FrameType | None) -> None:
    _pending.set()
    raise KeyboardInterrupt
