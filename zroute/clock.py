"""The interface of a clock, a periodic timer, and deadlines.

All code receives its clock as an argument, so that tests can pass a virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from twisted.internet.task import LoopingCall

__all__ = ["TICK", "Clock", "Deadline", "Deadlines", "Looping", "Ticking"]

TICK = 0.25
"""The time in seconds between two calls of `Counters.beats` or `Tracker.check`.

It is half of the shortest time that these methods measure.
"""


class Clock(Protocol):
    """The methods that a reactor and a virtual clock have in common.

    See `twisted.internet.interfaces.IReactorTime`.
    """

    def seconds(self) -> float:
        """Return the time in seconds since an arbitrary origin."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:  # noqa: N802
        """Call ``callable`` after ``delay`` seconds; return a timer with ``cancel()``."""


class Looping(LoopingCall):
    """A LoopingCall whose ``clock`` is set by the caller.

    Twisted's constructor imports the global reactor, which installs a reactor. An app may run on another reactor.
    """

    def __init__(self, f: Callable[..., object], *a: object, **kw: object) -> None:
        self.f, self.a, self.kw = f, a, kw


class Ticking:
    """Calls `tick` every `TICK` seconds between `start` and `stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timer: Any = None

    def start(self) -> None:
        """Start calling `tick`."""
        if self._timer is None:
            self._timer = self._clock.callLater(TICK, self._ticked)

    def stop(self) -> None:
        """Stop calling `tick`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ticked(self) -> None:
        self._timer = None
        # Before the tick, which may call `stop`; an error in the tick does not end the ticking.
        self.start()
        self.tick()

    def tick(self) -> None:
        """Do the periodic work. Subclasses implement it."""
        raise NotImplementedError


Deadline = list[Any]
"""An entry of `Deadlines`: its time, a number, the call, and its argument. A cancelled entry has no call."""

_FEW = 100
"""The number of cancelled deadlines up to which all of them are kept."""


class Deadlines:
    """Deadlines of many calls, which share one timer of the clock.

    Most requests are answered long before their deadline. `cancel` therefore only removes the call. The entry leaves
    the heap when its time has passed, or when more than half of the entries are cancelled.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[Deadline] = []
        self._number = 0
        self._cancelled = 0
        self._timer: Any = None
        self._at = 0.0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, seconds: float, argument: Any, call: Callable[[Any], object]) -> Deadline:
        """Call ``call(argument)`` after ``seconds``; return the deadline, for `cancel`."""
        self._number += 1
        at = self._clock.seconds() + seconds
        # The number decides between equal times, because calls can't be compared.
        deadline: Deadline = [at, self._number, call, argument]
        heappush(self._heap, deadline)
        if self._timer is None or at < self._at:
            self._set_timer(at, seconds)
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        """Cancel a deadline that has not passed. A second call does nothing."""
        if deadline[2] is None:
            return
        deadline[2] = deadline[3] = None
        self._cancelled += 1
        if self._cancelled > _FEW and self._cancelled > len(self._heap) // 2:
            self._heap = [each for each in self._heap if each[2] is not None]
            heapify(self._heap)
            self._cancelled = 0

    def close(self) -> None:
        """Drop all deadlines, and stop the timer."""
        self._heap.clear()
        self._cancelled = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, at: float, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._clock.callLater(seconds, self._passed)

    def _passed(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        heap = self._heap
        while heap and (heap[0][2] is None or heap[0][0] <= now):
            deadline = heappop(heap)
            _, _, call, argument = deadline
            if call is None:
                self._cancelled -= 1
                continue
            # A later `cancel` of this deadline then does nothing.
            deadline[2] = deadline[3] = None
            call(argument)
            # The call may have cancelled deadlines, which replaces the list.
            heap = self._heap
        if heap and (self._timer is None or heap[0][0] < self._at):  # a call may have added a later one
            self._set_timer(heap[0][0], max(heap[0][0] - now, 0.0))
