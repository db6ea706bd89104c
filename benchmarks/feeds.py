"""Feeds: publishers whose subscriber has room for everything, so that what is sent is in its queue.

They are inproc: there a message that was sent has arrived, while over tcp nothing tells when all has. So only reading
is measured, and nothing is lost or waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import cycle, islice

import zmq

from benchmarks.workloads import Workload
from zroute.messages.control import pack_marker, pack_statements, parse_marker
from zroute.messages.wire import Kind, counted_framer
from zroute.publishing.counters import Counters

__all__ = ["CODECS", "Feed", "plain_subscriber"]

CODECS = {"msgpack": 1, "json": 2, "raw": 4}
"""The numbers of codecs on the tracked wire."""


class Feed:
    """An XPUB socket without a high-water mark, in a context of its own."""

    def __init__(self, work: Workload) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.work = work
        self.endpoint = f"inproc://feed-{id(self)}"
        self.pub = self.context.socket(zmq.XPUB)
        self.pub.set(zmq.SNDHWM, 0)  # of two inproc ends, one without a mark is enough
        self.pub.bind(self.endpoint)

    def fill(self) -> None:
        """Put all messages into the queue of the subscriber, which has subscribed already."""
        self._learn()
        send = self.pub.send
        for frame in islice(cycle(self.work.frames), self.work.total):
            send(frame)

    def fill_counted(self, others: Iterable[bytes] = ()) -> None:
        """The same as a tracked publisher: it answers the subscriber's marker, and numbers each message.

        ``others`` are prefixes that somebody else subscribes to: it counts these, too.
        """
        counters, others = Counters(), tuple(others)
        for prefix in others:
            counters.subscribe(prefix, 0.0)
        markers = [found for message in self._learn() if (found := counters.subscribe(message[1:], 0.0))]
        dict(counters.numbers(parse_marker(pack_marker(1, others))))
        (marker,) = markers
        numbers = list(counters.numbers(marker))
        for answer in pack_statements(
            Kind.JOIN, marker.topic, numbers, epoch=7, name="feed", partial=False, sent_at=time.time_ns()
        ):
            self.pub.send(answer)
        frame = counted_framer(epoch=7, count=counters.count, clock_ns=time.time_ns)
        codec, body, send = CODECS[self.work.codec], self.work.body, self.pub.send
        for topic in islice(cycle(self.work.topics), self.work.total):
            made = frame(topic, codec, body, None)
            assert isinstance(made, bytes)
            send(made)

    def _learn(self) -> list[bytes]:
        """All subscriptions: over inproc they are there when they were made."""
        found = []
        while self.pub.poll(0):
            found.append(self.pub.recv())
        return found

    def close(self) -> None:
        """Drop what is left."""
        self.context.destroy(linger=0)


def plain_subscriber(feed: Feed) -> zmq.Socket[bytes]:
    """A SUB socket without a high-water mark, with the subscriptions that the feed's patterns need."""
    sub = feed.context.socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 0)
    sub.set(zmq.SNDHWM, 0)  # subscriptions are messages: at 1,000 the rest is dropped in silence
    sub.connect(feed.endpoint)
    for prefix in {pattern.rstrip("*").encode() for pattern in feed.work.patterns}:
        sub.subscribe(prefix)
    return sub
