"""Requests in a test: between the apps, and from the test itself.

The frames are the same as on the network, and the lanes and listeners are the same as with real sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

import attrs

from zroute.clock import Clock
from zroute.errors import RequestLostError
from zroute.messages.requests import Kind, parse, parse_request
from zroute.messages.topics import Pattern, matches
from zroute.messages.wire import Envelope
from zroute.messages.wire import parse as parse_frames
from zroute.planning.plan import Plan
from zroute.requests.asked import Asked, Listener
from zroute.requests.client import Client
from zroute.requests.lanes import Lane, split_reply
from zroute.stats import Stats

__all__ = ["RequestBus", "Server"]


class Server(Protocol):
    """An app that may answer requests and send them."""

    @property
    def plan(self) -> Plan | None:
        """The compiled app."""

    @property
    def req(self) -> frozenset[str]:
        """The addresses to which the app sends requests."""

    @property
    def rep(self) -> frozenset[str]:
        """The addresses at which the app answers requests."""


@attrs.define(eq=False)
class _Member:
    server: Server
    client: Client | None
    listener: Listener | None
    answers: bool = False
    lanes: dict[_Member, Lane] = attrs.field(factory=dict)


class RequestBus:
    """The requests of a test.

    Attributes:
        sent: The envelopes of the apps' requests, each with the plan of the app.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[Plan, Envelope]] = []
        self._members: list[_Member] = []
        self._clock: Clock | None = None
        self._wall: Callable[[], float] = lambda: 0.0
        self._names = count(1)
        self._lanes: dict[bytes, Lane] = {}

    def begin(self, clock: Clock, wall: Callable[[], float]) -> None:
        """Use the clocks of a test."""
        self._clock, self._wall = clock, wall

    def join(
        self, server: Server, client: Client | None, on_request: Callable[[Asked], object] | None, stats: Stats
    ) -> Callable[[], None]:
        """Add an app; return a function that lets the app receive requests."""
        assert self._clock is not None
        listener = None if on_request is None else Listener(self._clock, stats, on_request, self._reply)
        member = _Member(server, client, listener)
        self._members.append(member)
        self._connect()

        def answer() -> None:
            member.answers = True
            self._connect()

        return answer

    def leave(self, server: Server) -> None:
        """Remove an app. Requests that the app has not answered are lost."""
        for member in [each for each in self._members if each.server is server]:
            self._members.remove(member)
            if member.listener is not None:
                member.listener.close()
            for other in self._members:
                lane = other.lanes.pop(member, None)
                if lane is not None and other.client is not None:
                    other.client.queue.remove(lane)
                    self._later(lane.lost, _lost)  # after the replies that the app has already sent

    def lane_for(self, client: Client, topic: bytes, peer: str | None = None) -> bool:
        """Connect a client of the test to the app that has a handler for a topic.

        Without such an app, connect the client to any app that answers requests. Return False if no app answers
        requests. ``peer`` is the name of the client's key.
        """
        members = [each for each in self._members if each.answers]
        # False sorts first, so an app with a handler comes before all others.
        members.sort(key=lambda member: not _answers(member.server.plan, topic))
        if members:
            self._add(client, members[0], None, peer)
        return bool(members)

    def _connect(self) -> None:
        """Give each app a lane to each app that answers its requests."""
        for member in self._members:
            for other in self._members:
                wanted = other.answers and other not in member.lanes and self._asks(member, other)
                if member.client is not None and wanted:
                    member.lanes[other] = self._add(member.client, other, member.server.plan)

    def _asks(self, member: _Member, other: _Member) -> bool:
        """Return True if ``member`` would send requests to ``other``.

        An app sends requests to the apps that answer at one of its addresses. If there are none, the app sends requests
        to all other apps.
        """
        own = member.server.req
        if own & other.server.rep:
            return True
        return member is not other and not any(own & each.server.rep for each in self._members)

    def _add(self, client: Client, member: _Member, plan: Plan | None, peer: str | None = None) -> Lane:
        name = b"\0%04d" % next(self._names)
        lane = self._lanes[name] = Lane(client.queue, partial(self._send, name, member, plan, peer))
        client.queue.add(lane)
        return lane

    def _send(self, name: bytes, member: _Member, plan: Plan | None, peer: str | None, frames: Sequence[bytes]) -> bool:
        if plan is not None:
            self._record(plan, frames)
        self._later(self._received, member, [name, *frames], peer)
        return True

    def _record(self, plan: Plan, frames: Sequence[bytes]) -> None:
        """Record a request from an app as an envelope."""
        found = tuple(frames[2:])
        if len(frames) == 2:
            message = parse(frames[1])
            if message.kind != Kind.REQUEST:
                return
            found = (parse_request(message)[2],)
        self.sent.append((plan, parse_frames(found, self._wall())))

    def _received(self, member: _Member, frames: list[bytes], peer: str | None) -> None:
        if member in self._members and member.listener is not None:
            member.listener.received(frames, peer)

    def _reply(self, asked: Asked, kind: Kind, number: int, body: bytes) -> bool:
        parts = asked.parts(kind, number, body)
        lane = self._lanes[parts[0]]
        self._later(lane.received, *split_reply(list(parts[1:])))
        return True

    def _later(self, call: Callable[..., object], *arguments: Any) -> None:
        assert self._clock is not None
        self._clock.callLater(0, call, *arguments)


def _answers(plan: Plan | None, topic: bytes) -> bool:
    patterns: list[Pattern] = [] if plan is None else [each for route in plan.parts.replies for each in route.patterns]
    return any(matches(pattern, topic) is not None for pattern in patterns)


def _lost() -> Exception:
    return RequestLostError("the app that received the request has stopped, and may have handled the request")
