"""SendQueue: waiting messages are sent in order, or given up with an error."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zroute import HighWaterMarkError
from zroute.publishing.publication import DONE
from zroute.publishing.send_queue import SendQueue, Sent


class Peer:
    """A peer whose queue is full for some topics."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.full: set[bytes] = set()
        self.got: list[tuple[bytes, int]] = []
        self.lost: list[bytes] = []
        self.send_queue = SendQueue(
            self.clock, limit=3, timeout=5.0, lost=lambda topic, _count, error: self.lost.append(topic)
        )

    def send(self, topic: bytes, number: int) -> object:
        """Send a message through the queue."""

        def attempt() -> bool:
            if topic not in self.full:
                self.got.append((topic, number))
            return topic not in self.full

        return self.send_queue.send(topic, attempt)


async def _awaited(sent: object) -> None:
    await sent  # type: ignore[misc]


def outcome(sent: object) -> list[object]:
    """Return a list that receives None or the failure at the end."""
    ended: list[object] = []
    Deferred.fromCoroutine(_awaited(sent)).addBoth(ended.append)
    return ended


def test_where_there_is_room_nothing_waits() -> None:
    """A message that is sent at once returns a shared, finished awaitable."""
    peer = Peer()
    assert peer.send(b"a", 1) is DONE
    assert not peer.clock.getDelayedCalls()


def test_order_holds_in_a_topic_and_topics_do_not_hold_each_other_up() -> None:
    """Messages of a full topic wait in order; other topics are sent."""
    peer = Peer()
    peer.full = {b"a"}
    first = outcome(peer.send(b"a", 1))
    peer.send(b"b", 1)
    peer.full = set()
    second = outcome(peer.send(b"a", 2))  # there is room, but the first message comes first
    assert peer.got == [(b"b", 1)]
    assert first == second == []
    peer.clock.advance(0.01)
    assert peer.got == [(b"b", 1), (b"a", 1), (b"a", 2)]
    assert (first, second) == ([None], [None])
    assert not peer.clock.getDelayedCalls()


def test_a_full_outbox_refuses_at_once() -> None:
    """A full queue raises an error with the remedy."""
    peer = Peer()
    peer.full = {b"a"}
    for number in range(3):
        peer.send(b"a", number)
    with pytest.raises(HighWaterMarkError, match=r"'a': 3 messages already wait .* await the result of publish"):
        peer.send(b"a", 3)
    assert peer.send(b"b", 1) is DONE


def test_what_waits_too_long_is_given_up_and_the_rest_goes_on() -> None:
    """A message that waits too long fails, and later messages have their own timeout."""
    peer = Peer()
    peer.full = {b"a"}
    first = outcome(peer.send(b"a", 1))
    peer.clock.advance(3)
    second = outcome(peer.send(b"a", 2))
    peer.clock.advance(2.5)
    assert peer.lost == [b"a"]
    (failure,) = first
    assert "dropped: the queue of a subscriber was full for 5 s" in str(failure.value)  # type: ignore[attr-defined]
    peer.full = set()
    peer.clock.advance(0.02)
    assert (peer.got, second) == ([(b"a", 2)], [None])


def test_at_the_end_the_number_of_those_left_is_told() -> None:
    """A stop gives up all waiting messages with an error and leaves no timer."""
    peer = Peer()
    peer.full = {b"a", b"b"}
    waiting = [outcome(peer.send(topic, 1)) for topic in (b"a", b"b")]
    idle: list[None] = []
    peer.send_queue.idle().addCallback(idle.append)
    assert not idle
    assert peer.send_queue.close() == 2
    assert all("the app stopped" in str(ended[0].value) for ended in waiting)  # type: ignore[attr-defined]
    assert (idle, peer.lost) == ([None], [b"a", b"b"])
    assert not peer.clock.getDelayedCalls()


def test_a_coroutine_that_is_resumed_may_close_the_queue() -> None:
    """Each message ends once: the first is sent, and those behind it are given up by the close."""
    peer = Peer()
    peer.full = {b"a", b"b"}
    first, *others = (peer.send(topic, number) for topic, number in ((b"a", 1), (b"a", 2), (b"b", 3)))
    ended = [outcome(sent) for sent in others]
    Deferred.fromCoroutine(_awaited(first)).addCallback(lambda _: peer.send_queue.close())
    peer.full = set()
    peer.clock.advance(1)
    assert (peer.got, peer.lost) == ([(b"a", 1)], [b"a", b"b"])
    assert all("the app stopped" in str(one[0].value) for one in ended)  # type: ignore[attr-defined]
    assert (peer.send_queue.waiting, peer.clock.getDelayedCalls()) == (0, [])


def test_who_awaits_what_is_held_hurries_it_and_nothing_behind_it() -> None:
    """Awaiting a message calls hurry, but not after the message has left."""
    hurried: list[int] = []
    held, gone = (Sent(lambda number=number: hurried.append(number)) for number in (1, 2))  # type: ignore[misc]
    gone.goes()
    ended = [Deferred.fromCoroutine(_await(sent)) for sent in (held, gone)]
    assert hurried == [1]
    for sent in (held, gone):
        sent.end(None)
    assert all(each.called for each in ended)


async def _await(sent: Sent) -> None:
    await sent
