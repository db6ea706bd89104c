"""Feeds: publishers whose messages are all in the subscriber's queue.

They use inproc, because a sent message has arrived there at once; over tcp the publisher cannot know when all have
arrived. The subscriber's queue has room for everything. So a benchmark measures only reading, without losses or waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import cycle, islice

import zmq

from benchmarks.workloads import Workload
from zroute.messages.coalesced import coalesced_framer
from zroute.messages.control import pack_marker, pack_statements, parse_marker
from zroute.messages.wire import Kind, counted_framer
from zroute.publishing.counters import Counters

__all__ = ["CODECS", "Feed", "plain_subscriber"]

CODECS = {"msgpack": 1, "json": 2, "raw": 4}
"""The codec numbers of the tracked wire."""


EPOCH = 7
"""The number of the publisher's run."""


class Feed:
    """An XPUB socket without a high-water mark, in a context of its own."""

    def __init__(self, work: Workload) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.work = work
        self.endpoint = f"inproc://feed-{id(self)}"
        self.pub = self.context.socket(zmq.XPUB)
        self.pub.set(zmq.SNDHWM, 0)  # inproc has one queue, and it is unbounded if one end has no mark
        self.pub.bind(self.endpoint)

    def fill(self) -> None:
        """Put all messages into the queue of the subscriber, which must exist."""
        self._learn()
        send = self.pub.send
        for frame in islice(cycle(self.work.frames), self.work.total):
            send(frame)

    def fill_multipart(self) -> None:
        """Fill the queue with messages of two parts: the topic and the body."""
        self._learn()
        for topic in islice(cycle(self.work.topics), self.work.total):
            self.pub.send_multipart((topic, self.work.body))

    def fill_counted(self, others: Iterable[bytes] = (), headers: Mapping[str, str] | None = None) -> None:
        """Fill the queue like a tracked publisher, with answers and numbers.

        ``others`` are the prefixes of other subscribers, which the publisher counts too. Each message has the
        ``headers``.
        """
        frame = counted_framer(epoch=EPOCH, count=self._counters(others).count, clock_ns=time.time_ns)
        codec, body, send = CODECS[self.work.codec], self.work.body, self.pub.send
        for topic in islice(cycle(self.work.topics), self.work.total):
            made = frame(topic, codec, body, headers)
            assert isinstance(made, bytes)
            send(made)

    def fill_coalesced(self, many: int) -> None:
        """Fill the queue like a tracked publisher that sends ``many`` messages in each frame."""
        frame = coalesced_framer(epoch=EPOCH, count=self._counters(()).count)
        topics, left = cycle(self.work.topics), self.work.total
        while left:
            bodies = [self.work.body] * min(many, left)
            self.pub.send(frame(next(topics), CODECS[self.work.codec], bodies, time.time_ns()))
            left -= len(bodies)

    def _counters(self, others: Iterable[bytes]) -> Counters:
        """Answer the reader's marker; return the counters of all subscriptions."""
        counters, others = Counters(), tuple(others)
        for prefix in others:
            counters.subscribe(prefix, 0.0)
        markers = [found for message in self._learn() if (found := counters.subscribe(message[1:], 0.0))]
        dict(counters.numbers(parse_marker(pack_marker(1, others))))
        (marker,) = markers
        numbers = list(counters.numbers(marker))
        for answer in pack_statements(
            Kind.JOIN, marker.topic, numbers, epoch=EPOCH, name="feed", partial=False, sent_at=time.time_ns()
        ):
            self.pub.send(answer)
        return counters

    def _learn(self) -> list[bytes]:
        """Return all subscriptions; over inproc they arrive at once."""
        found = []
        while self.pub.poll(0):
            found.append(self.pub.recv())
        return found

    def close(self) -> None:
        """Drop all messages in the queue."""
        self.context.destroy(linger=0)


def plain_subscriber(feed: Feed) -> zmq.Socket[bytes]:
    """Return a SUB socket without a mark, with the subscriptions of the feed."""
    sub = feed.context.socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 0)
    sub.set(zmq.SNDHWM, 0)  # subscriptions are messages too: libzmq silently drops those above a mark of 1,000
    sub.connect(feed.endpoint)
    for prefix in {pattern.rstrip("*").encode() for pattern in feed.work.patterns}:
        sub.subscribe(prefix)
    return sub
