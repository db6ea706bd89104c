"""The generated source of an app: ``zroute routes --source``.

The functions are made by the code that makes them in a run, with stand-ins for sockets, for the open resources and for
the functions that only a run has. Nothing is received, published or called.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any, cast

import attrs
from twisted.internet.task import Clock

from zroute.codegen import Inline, source_of
from zroute.messages.topics import Pattern
from zroute.planning.plan import Plan
from zroute.publishing.publisher import Publisher
from zroute.receiving.coalesced import Remainder
from zroute.receiving.dispatch import BatchCall, BoundRoute, CompiledRoute, DispatchCallbacks
from zroute.receiving.matching import Matcher
from zroute.receiving.scoped import Scope
from zroute.receiving.topic_cache import TopicCache
from zroute.sockets.pubsub import SEND_LINES
from zroute.stats import Stats
from zroute.throttle import ThrottledLog
from zroute.transport import Transport

__all__ = ["Generated", "generated"]

_TOPIC = b"topic"


@attrs.frozen
class Generated:
    """A function of an app that zroute generates.

    Attributes:
        title: The handler or publication, its place, and the messages that the function is for.
        source: The source of the function, or the reason why there is none.
    """

    title: str
    source: str

    def __str__(self) -> str:
        return f"# {self.title}\n{self.source}"


def generated(plan: Plan, *, on_nats: bool) -> list[Generated]:
    """Return the functions that receive and publish the messages of an app.

    Args:
        plan: The compiled app. Its publications must not be running.
        on_nats: True if the app uses NATS, whose transport sends frames with a function of its own.
    """
    return [*(each for route in plan.parts.routes for each in _received(plan, route)), *_published(plan, on_nats)]


def _received(plan: Plan, route: CompiledRoute) -> list[Generated]:
    """Return the closures of a handler for a topic of which it is the only handler."""
    needs = route.around.needs
    scope = None if needs is None else Scope((), needs.parameters, {}, needs.around_chain)
    codecs = plan.parts.codecs
    cache = TopicCache(
        cast("Matcher", _Only(route.fresh(route.call.supply(_NotOpen()), scope))),
        codecs,
        outcomes=cast("DispatchCallbacks", _Callbacks()),
        stats=Stats(),
        unpacked=Remainder(),
        multipart=(),
        unrouted=_never,
        malformed=_never,
    )
    entry, number = cache.of(_TOPIC), (route.options.codec or codecs.default).number
    patterns = ", ".join(pattern.text for pattern in route.patterns)
    about = f"{route.name} ({route.route.where}), {patterns}"
    # If a function that is not generated checks the form of the body, the generated one is inside it.
    plain = source_of(cache.plain_of(entry)) or source_of(cache.deliver(entry, 0, b""))
    tracked = source_of(cache.direct_of(entry, number, b"head", None, _never))
    return [
        Generated(f"{about}: a plain message", plain or _NONE),
        Generated(f"{about}: a tracked message", tracked or _NONE),
    ]


def _published(plan: Plan, on_nats: bool) -> list[Generated]:
    """Return the functions that take the place of `Publication.publish` in a run."""
    clock = Clock()
    reports = ThrottledLog(logging.getLogger(__name__), clock)
    unconnected = _Unconnected(on_nats)  # type: ignore[abstract]  # a publisher calls no other methods here
    publisher = Publisher(plan.choices, clock, unconnected, (), Stats(), reports, time.time)
    publisher.open(plan.parts.outlets)
    made: list[Generated] = []
    for outlet in plan.parts.outlets:
        publication = outlet.publication
        source = source_of(publication.publish)
        made.append(Generated(f"publish() ({publication.where}), {outlet.pattern.text}", source or _GENERAL))
    publisher.close()
    return made


_NONE = "# no generated function"
_GENERAL = "# no generated function: the general path publishes these messages"


def _never(*given: Any, **named: Any) -> Any:
    """Stand for a function that only a run calls."""
    raise AssertionError("no message is handled here")


class _NotOpen(dict[Any, Any]):
    """The resources of an app that does not run."""

    def __missing__(self, kind: Any) -> None:
        """Return None in place of each resource."""


@attrs.frozen
class _Only:
    """A matcher of one route, which matches every topic."""

    route: CompiledRoute

    def deliveries(self, topic: bytes) -> tuple[BoundRoute, ...]:
        """Return the route."""
        return (BoundRoute(self.route, topic, self.pattern),)

    def subscription(self, topic: bytes) -> bytes:
        """Return the topic as its subscription."""
        return topic

    @property
    def pattern(self) -> Pattern:
        """The first pattern of the route."""
        return self.route.patterns[0]


class _Callbacks:
    """The functions that closures call; see `DispatchCallbacks`."""

    context = copy_context()
    resources: Mapping[Any, Any] = {}

    def gather(self, delivery: BoundRoute, function: Callable[..., Any]) -> BatchCall:
        """Return the functions that add messages to a batch."""
        return BatchCall(_never, _never, _never)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _never


class _Unconnected(Transport):
    """A transport without sockets, which sends with the lines of the app's own."""

    def __init__(self, on_nats: bool) -> None:
        self._on_nats = on_nats

    def sender(self, *, multipart: bool) -> Callable[[Any], None]:
        """Return the function that sends frames."""

        def send(frame: Any) -> None:
            _never(frame)

        if not self._on_nats:
            send.inline = Inline(SEND_LINES, {"connection": None})  # type: ignore[attr-defined]
        return send

    def try_sender(self, *, multipart: bool) -> Callable[[Any], bool]:
        """Return the function that sends a frame if there is room."""
        return _never

    def announce(self, on_subscription: Callable[[bytes, bool], None]) -> bool:
        """Return True, so that messages are numbered."""
        return True

    @property
    def bound(self) -> tuple[str, ...]:
        """The addresses that are bound: none."""
        return ()
