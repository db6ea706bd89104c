"""SubscribingEnd: what a subscriber tells its publishers, and when."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.task import Clock

from tests.pure import LOG
from zroute.delivery.counting import TICK
from zroute.delivery.stats import Stats
from zroute.delivery.tracking import PUBLISHERS_MAX
from zroute.joins import SubscribingEnd
from zroute.messages.control import Statement


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


def test_a_subscription_that_gives_way_is_given_up_with_the_publisher_that_needed_it() -> None:
    """A flood of publishers drives one out that has not answered about my new pattern: the old one is not kept."""
    clock, socket = Clock(), Socket()
    end = SubscribingEnd(clock, Stats(), LOG, "app", lambda found: None)
    end.listen(socket, [b"a.b"])
    clock.advance(0)
    (marker,) = end._sent
    end._tracker.stated(1, marker, Statement(0, 1, "p", False, ()))
    end.listen(socket, [b"a"])
    clock.advance(0)
    assert socket.told[-1][:2] == (b"a", b"a.b")
    for epoch in range(PUBLISHERS_MAX):
        end._tracker.stated(10 + epoch, end._sent[0], Statement(0, 1, f"q{epoch}", False, ()))
    clock.advance(TICK)
    assert socket.told[-1][0] == b"a"
    assert b"a.b" not in socket.told[-1]
    end.close()


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
