"""The parts that the sessions of all transports share: counts, logs and `ready`.

A session is the subscriber's side of the accounts: `zroute.receiving.session` on ZeroMQ, `zroute.nats.session` on NATS.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Protocol

from twisted.internet.defer import Deferred

from zroute.clock import Clock, Ticking
from zroute.logs import printable
from zroute.receiving.events import Ended, Gap, Joined, LostKept, Restarted, Returned, UnknownLoss
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

__all__ = ["AccountsSession", "named"]


class _Tracker(Protocol):
    @property
    def epochs(self) -> int: ...

    @property
    def complete(self) -> dict[int, str]: ...

    @property
    def given(self) -> int: ...

    def name_of(self, epoch: int) -> str: ...


class AccountsSession(Ticking):
    """The accounts of publishers in one run of an app.

    Args:
        clock: The reactor's clock.
        stats: The counters of the run.
        log: The logger.
        name: The name of the app in log lines.
        found: A function that is called with each `Gap`, `UnknownLoss` and `LostKept`.
        tracker: Finds the losses.
    """

    def __init__(
        self,
        clock: Clock,
        stats: Stats,
        log: logging.Logger,
        name: str,
        found: Callable[[Any], None],
        tracker: _Tracker,
    ) -> None:
        super().__init__(clock)
        self._stats = stats
        self._log = log
        self._name = name
        self._found = found
        self._known_by = tracker
        self._reports = ThrottledLog(log, clock)
        self._waiting: list[tuple[int | None, bool, Deferred[None]]] = []
        self.moved: Callable[[], None] = lambda: None
        """See `zroute.transport.Accounts`."""

    @property
    def complete(self) -> Collection[str]:
        """The names of the publishers that have answered the last question."""
        return self._known_by.complete.values()

    @property
    def given(self) -> int:
        """The number of `complete` publishers that have sent all their kept messages."""
        return self._known_by.given

    def named(self, epoch: int) -> str:
        """Return the name of a publisher for log lines."""
        return named(epoch, self._known_by.name_of(epoch))

    # -- events of the tracker

    def _gap(self, gap: Gap) -> None:
        self._stats.gaps += 1
        self._stats.lost += gap.count
        self._found(gap)

    def _lost_kept(self, lost: LostKept) -> None:
        self._stats.lost += lost.count
        if lost.count > 0:
            self._found(lost)
            return
        text = "%s: %s sends its kept messages again: %d of them are no longer counted as lost"
        self._log.info(text, self._name, self.named(lost.epoch), -lost.count)

    def _unknown_loss(self, loss: UnknownLoss) -> None:
        self._stats.unknown_losses += 1
        self._found(loss)

    def _joined(self, event: Joined) -> None:
        self._stats.joins += 1
        self._stats.epochs = self._known_by.epochs
        self._log.debug("%s: %s has joined", self._name, named(event.publisher, event.name))
        self._serve()

    def _restarted(self, event: Restarted) -> None:
        self._log.info("%s: restarted: %s", self._name, named(event.publisher, event.name))

    def _ended(self, event: Ended) -> None:
        what = (
            "all its messages since the join were received or counted as lost"
            if event.known
            else "without a complete join"
        )
        self._log.info("%s: %s has ended, %s", self._name, named(event.publisher, event.name), what)

    def _returned(self, event: Returned) -> None:
        text = "%s: %s is no longer silent, after %.0f s"
        self._log.info(text, self._name, named(event.publisher, event.name), event.seconds)

    _do: ClassVar[dict[type, Callable[..., None]]] = {
        Gap: _gap,
        LostKept: _lost_kept,
        UnknownLoss: _unknown_loss,
        Joined: _joined,
        Restarted: _restarted,
        Ended: _ended,
        Returned: _returned,
    }
    """What happens with an event, by its class. A subclass adds its own."""

    # -- ready

    def ready(self, publishers: int | None, *, state: bool = False) -> Deferred[None]:
        """Return a Deferred that fires when ``publishers`` publishers have answered.

        None waits for all publishers that the session knows; see its `_is_ready`. If ``state`` is True, each publisher
        must also have sent all its kept messages for the wanted topics.
        """
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((publishers, state, waiting))
        self._serve()
        return waiting

    def _forget(self, waiting: Deferred[None]) -> None:
        self._waiting = [each for each in self._waiting if each[2] is not waiting]

    def _serve(self) -> None:
        """Fire the Deferreds of `ready` whose condition is satisfied."""
        # A copy: a callback runs the caller of `ready`, which may call `ready` again.
        for each in tuple(self._waiting):
            number, state, waiting = each
            # an earlier callback may have cancelled this Deferred, or served it
            if each in self._waiting and self._is_ready(number, state):
                self._waiting.remove(each)
                waiting.callback(None)

    @abstractmethod
    def _is_ready(self, number: int | None, state: bool) -> bool:
        """Return True if the condition of a `ready` is satisfied."""


def named(epoch: int, name: str) -> str:
    """Return the name and number of a publisher for log lines."""
    return f"publisher {printable(name)} ({epoch:016x})" if name else f"publisher {epoch:016x}"
