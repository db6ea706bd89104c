"""SubscribingEnd: what a subscriber tells its publishers, and when."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.task import Clock

from tests.pure import LOG
from zroute.delivery.stats import Stats
from zroute.joins import SubscribingEnd


class Socket:
    """A transport that writes down what it is told to subscribe to; nobody is there."""

    peers = 0

    def __init__(self) -> None:
        self.told: list[tuple[bytes, ...]] = []

    def listen(self, subscriptions: Iterable[bytes]) -> None:
        self.told.append(tuple(subscriptions))

    def emptied(self) -> bool:
        return True

    def reconnect(self, name: str) -> str | None:
        return None


def test_whoever_connects_during_a_stop_is_not_subscribed_to() -> None:
    """A publisher that comes while my app waits for its own goodbyes is asked nothing any more."""
    clock, socket = Clock(), Socket()
    end = SubscribingEnd(clock, Stats(), LOG, "app", lambda found: None)
    end.listen(socket, [b"a"])
    clock.advance(0)
    end.rejoin()
    clock.advance(0)
    told = len(socket.told)
    assert told == 3
    end.close()
    end.rejoin()
    clock.advance(10)
    assert len(socket.told) == told
    assert not clock.getDelayedCalls()
