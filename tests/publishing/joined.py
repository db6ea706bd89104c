"""An app that publishes to a real socket in a stopped reactor, with one joined subscriber."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import zmq

from benchmarks.publish import join, subscriber
from benchmarks.receive import StillReactor
from zroute import App
from zroute.endpoints import Endpoint
from zroute.messages.coalesced import parse_coalesced
from zroute.messages.wire import NUL, Header, Kind, parse_header
from zroute.runtime.service import AppService

ADDRESS = "inproc://paths"


@attrs.frozen
class Frame:
    """A frame that the subscriber has received."""

    topic: str
    header: Header
    messages: list[Any]


class Running:
    """The app's service and the subscriber's socket."""

    def __init__(self, app: App, context: zmq.Context[Any], room: int = 0) -> None:
        self.clock = StillReactor()
        self.service = AppService(app.compile(), self.clock, pub=(Endpoint(ADDRESS, bind=True),))
        self.service.startService()
        if room:
            assert self.service.transport is not None
            assert self.service.transport.pub is not None
            bound = self.service.transport.pub._socket
            bound.unbind(ADDRESS)  # over inproc, a limit counts from the next bind
            bound.set(zmq.SNDHWM, room)
            bound.bind(ADDRESS)
        self.sub = subscriber(context, (b"",))
        self.sub.set(zmq.RCVHWM, room)
        self.sub.connect(ADDRESS)
        self.turn()
        join(self.sub, self.clock, self.service, (b"",))

    @property
    def kept(self) -> dict[str, Any]:
        """The kept messages, by topic."""
        messages = self.service._run._publisher.session.kept.messages  # type: ignore[union-attr]
        return {topic.decode(): json.loads(body) for topic, (_, _, body, _, _) in messages.items()}

    def turn(self) -> None:
        """End a turn of the reactor."""
        self.clock.advance(0)

    def read(self) -> list[Frame]:
        """Return all messages that have arrived."""
        found = []
        while self.sub.poll(0):
            topic, _, rest = self.sub.recv().partition(NUL)
            header = parse_header(rest)
            body = rest[header.size :]
            if header.kind in (Kind.DATA, Kind.COALESCED):
                bodies = [body] if header.kind is Kind.DATA else parse_coalesced(header.codec, body).bodies
                found.append(Frame(topic.decode(), header, [json.loads(each) for each in bodies]))
        return found


@contextmanager
def joined(app: App, context: zmq.Context[Any], room: int = 0) -> Iterator[Running]:
    """Run ``app`` with a joined subscriber.

    ``context`` is the ZeroMQ context of the app. ``room`` is the size of the queues in messages; 0 is unlimited.
    """
    run = Running(app, context, room)
    try:
        yield run
    finally:
        assert run.service.transport is not None
        assert run.service.transport.pub is not None
        run.service.transport.pub.close(0)
        context.destroy(linger=0)
