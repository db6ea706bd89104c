"""Wake a sleeping main thread when a signal arrives.

Python runs a signal handler in the main thread, between two instructions. A signal does not always wake that thread. It
may arrive just before the thread blocks in a system call, or the system may deliver it to another thread. The handler
would then run only after the next event.

Each blocking call in the main thread therefore also waits for a file descriptor to which Python writes a byte at each
signal (`signal.set_wakeup_fd`). Twisted has such a descriptor, but only if it installs its own handlers. The handlers
of this module replace them when the reactor runs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "ENDING",
    "Handler",
    "StopSignals",
    "end_quietly",
    "in_main_thread",
    "restored_handlers",
    "run_reactor",
    "waking_descriptor",
]

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that stop a program."""

Handler = Callable[[int, Any], object]

_ONE_SIGNAL = 0.2
"""The time in seconds in which several signals to a `StopSignals` count as one.

This is needed because timeout(1) signals the process, and immediately afterwards its process group.
"""

_interrupted = False
"""True after a SIGINT that has not ended the process."""


def end_quietly() -> None:
    """Install a handler that ends the process at SIGINT, without a traceback.

    The exit code is 130. Commands replace this handler later.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup, which ignores SIGINT
        signal.signal(signal.SIGINT, _end)


def _end(number: int, _frame: object) -> None:
    global _interrupted
    _interrupted = True
    raise SystemExit(128 + number)


def run_reactor(reactor: Any, handler: Handler, start: Callable[..., object], *arguments: Any) -> None:
    """Run ``reactor`` until it is stopped, with ``handler`` for SIGINT and SIGTERM.

    Python handles signals only in the main thread; in any other thread, no handler is installed. ``handler`` may be
    called before ``start``, and stays installed after the run: see `restored_handlers`. The reactor uses a clock that
    does not jump: see `zroute.runtime.steady_clock`.

    Args:
        reactor: the global reactor.
        handler: called with the signal's number and the frame.
        start: called with ``arguments`` when the reactor runs.
        *arguments: the arguments of ``start``.

    Raises:
        SystemExit: SIGINT arrived before the call. Errors of ``reactor.run()`` are raised too.
    """
    from zroute.runtime.steady_clock import (
        steady_clock,  # imported here, because it imports Twisted, and `zroute --help` must start fast
    )

    if _interrupted:  # the SystemExit of `_end` was swallowed, for example in a callback of the garbage collector
        raise SystemExit(128 + signal.SIGINT)
    steady_clock(reactor)
    if in_main_thread():
        _handle(handler)
        reactor.callWhenRunning(_handle, handler)  # set the handler again: the starting reactor sets Twisted's handlers
    reactor.callWhenRunning(start, *arguments)
    reactor.run(installSignalHandlers=in_main_thread())


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Restore the former handlers of SIGINT and SIGTERM at the end of the block.

    A program that continues after a run then has its own handlers again. The commands of ``zroute`` do not use this
    function, because they handle a second signal until the process ends. Outside the main thread, the block does not
    change handlers.
    """
    if not in_main_thread():
        yield
        return
    before = [(number, signal.getsignal(number)) for number in ENDING]
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # None means a handler in C, which Python can't restore
                signal.signal(number, handler)


class StopSignals:
    """A handler of SIGINT and SIGTERM; a second signal ends the process at once.

    Signals within 0.2 s of the first one are ignored.

    Args:
        stop: Called at the first signal, to stop the program in an orderly way.
        end_now: Called with the number of a later signal, to end the process with the exit code 128 + number.

    Attributes:
        arrived: True after the first signal.
    """

    def __init__(self, stop: Callable[[], object], end_now: Callable[[int], object]) -> None:
        self.arrived = False
        self._stop = stop
        self._end_now = end_now
        self._again_from = 0.0

    def __call__(self, number: int, _frame: object) -> None:
        """Call ``stop`` for the first signal, and ``end_now`` for a later one."""
        now = time.monotonic()
        if not self.arrived:
            self.arrived, self._again_from = True, now + _ONE_SIGNAL
            self._stop()
        elif now > self._again_from:
            self._end_now(number)


def in_main_thread() -> bool:
    """Return True in the thread in which Python runs signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _handle(handler: Handler) -> None:
    for number in ENDING:
        signal.signal(number, handler)


def waking_descriptor() -> int:
    """Return a file descriptor that becomes readable at each signal.

    Use it in a main thread without a reactor. Each signal writes one byte to the descriptor: the number of the signal.
    The descriptor stays open until the process ends.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading
