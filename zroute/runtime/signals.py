"""Signals for a main thread that sleeps.

Python runs the handler of a signal in the main thread, between two instructions. A signal wakes that thread neither if
it arrives just before the thread falls asleep in a system call, nor if the system hands it to another thread; the
handler then waits for something else to happen. So whatever sleeps here also waits for a descriptor, to which Python
writes in the moment of the signal (`signal.set_wakeup_fd`). Twisted has such a descriptor, but only if it installs its
own handlers; ours replace them as soon as the reactor runs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "ENDING",
    "Handler",
    "end_quietly",
    "in_main_thread",
    "restored_handlers",
    "run_reactor",
    "waking_descriptor",
]

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a program to end."""

Handler = Callable[[int, Any], object]

_interrupted = False
"""SIGINT has come, but the process has not ended."""


def end_quietly() -> None:
    """Have SIGINT end the process without a traceback, with 130, until a command sets a handler of its own."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is ignored behind nohup
        signal.signal(signal.SIGINT, _end)


def _end(number: int, _frame: object) -> None:
    global _interrupted
    _interrupted = True
    raise SystemExit(128 + number)


def run_reactor(reactor: Any, handler: Handler, start: Callable[..., object], *arguments: Any) -> None:
    """Run ``reactor`` until it is stopped: ``start(*arguments)`` first, and ``handler`` at each SIGINT and SIGTERM.

    Outside the main thread no signal is handled, since Python does that there alone. ``handler`` may be called before
    ``start``, and stays set: see `restored_handlers`. The reactor's clock does not jump: see
    `zroute.runtime.steady_clock`. Raises what ``reactor.run()`` raises, and SystemExit if SIGINT came before.
    """
    from zroute.runtime.steady_clock import (
        steady_clock,  # with Twisted, which a command that is only to be looked up does without
    )

    if _interrupted:  # what `_end` raised was lost, as in a callback of the garbage collector
        raise SystemExit(128 + signal.SIGINT)
    steady_clock(reactor)
    if in_main_thread():
        _handle(handler)
        reactor.callWhenRunning(_handle, handler)  # again: Twisted has set its own by then
    reactor.callWhenRunning(start, *arguments)
    reactor.run(installSignalHandlers=in_main_thread())


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Put the handlers of SIGINT and SIGTERM back at the end: a program that goes on has its own again.

    The commands do without: a second signal, which may come late, is theirs to the end of the process. Outside the main
    thread no handler is set, and nothing happens.
    """
    if not in_main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in ENDING]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # None was not set by Python, which can't put it back
                signal.signal(number, handler)


def in_main_thread() -> bool:
    """Return True in the thread in which Python runs handlers of signals."""
    return threading.current_thread() is threading.main_thread()


def _handle(handler: Handler) -> None:
    for number in ENDING:
        signal.signal(number, handler)


def waking_descriptor() -> int:
    """A descriptor for a main thread that runs no reactor: a byte with the signal's number can be read at each signal.

    It lives as long as the process.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading
