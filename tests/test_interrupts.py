"""Ctrl-C: raised at once, and again where it was dropped."""

import os
import signal
import threading
import time
import weakref

import pytest

from kconn.interrupts import heeded_interrupts, raise_unheard

pytestmark = pytest.mark.usefixtures("terminal")


class Thing:
    """Something that can be referred to weakly."""


def interrupt(_=None):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def interrupt_a_callback():
    """Interrupt what Python calls when the last reference goes: an exception in there is dropped."""
    thing = Thing()
    reference = weakref.ref(thing, interrupt)
    del thing
    assert reference() is None
    time.sleep(1)


def interrupt_and_drop():
    try:
        interrupt()
    except KeyboardInterrupt:
        return
    raise AssertionError


def test_heeded_interrupts__are_raised_at_once():
    with pytest.raises(KeyboardInterrupt), heeded_interrupts():
        interrupt()


def test_heeded_interrupts__are_raised_again_where_python_drops_them():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), heeded_interrupts():
        interrupt_a_callback()
    assert time.monotonic() - started < 0.9


def test_raise_unheard__raises_what_was_dropped_without_a_word():
    with heeded_interrupts():
        raise_unheard()
        interrupt_and_drop()
        with pytest.raises(KeyboardInterrupt):
            raise_unheard()


def test_raise_unheard__forgets_what_was_dropped_before():
    with heeded_interrupts():
        interrupt_and_drop()
    raise_unheard()


def test_heeded_interrupts__leave_other_handlers_and_threads_alone():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("theirs"))
    try:
        with heeded_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["theirs"]

    def enter():
        with heeded_interrupts():
            heard.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard[1:] == [before]
