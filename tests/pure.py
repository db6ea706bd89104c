"""An app without sockets, whose routes read lists of parts.

The route table does no I/O: it takes ``recv`` and ``more`` as arguments, so a test can pass lists in place of a
socket. The messages that the app publishes are recorded in place of a transport.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
from twisted.internet.task import Clock

from zroute import App
from zroute.awaiting import stepped
from zroute.declarations.signatures import Needed
from zroute.functions import identity
from zroute.messages.wire import framer
from zroute.publishing.publication import DONE, Subscribers
from zroute.receiving.attempts import Executor
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.results import Arrivals, Results
from zroute.receiving.session import SubscriberSession
from zroute.receiving.table import RouteTable
from zroute.stats import Stats

Parts = bytes | tuple[bytes, ...]

LOG = logging.getLogger("zroute.tests")


class NothingThereError(Exception):
    """The error that ``recv`` raises when no part is left, like ``zmq.Again`` of a socket."""


def packed(message: Any) -> bytes:
    """Return ``message`` as msgpack."""
    return msgspec.msgpack.encode(message)


def plain(topic: str | bytes, message: Any = None, *, body: bytes | None = None) -> bytes:
    """Return a frame of the plain wire: ``message`` as msgpack, or ``body`` unchanged."""
    raw = topic.encode() if isinstance(topic, str) else topic
    return raw + b"\0" + (packed(message) if body is None else body)


def tracked(
    topic: str,
    message: Any = None,
    *,
    body: bytes | None = None,
    codec: int = 1,
    headers: Mapping[str, Any] | None = None,
    epoch: int = 7,
    sequence: int = 1,
) -> bytes:
    """Return a frame of the tracked wire."""
    frame = framer("tracked", epoch=epoch, next_sequence=lambda: sequence, clock_ns=lambda: 5_000_000_000)
    made = frame(topic.encode(), codec, packed(message) if body is None else body, headers)
    assert isinstance(made, bytes)
    return made


class Wired:
    """A compiled app that reads from and writes to lists.

    `sent` holds ``(topic, codec number, body, headers)`` of each published message.
    """

    def __init__(self, app: App, resources: Mapping[Any, Any] | None = None) -> None:
        plan = app.compile()
        compiled = plan.parts
        self.codecs = compiled.codecs
        self.clock = Clock()
        self.stats = Stats()
        self.sent: list[tuple[str, int, bytes, Mapping[str, Any] | None]] = []
        self.outcomes = Results(
            stats=self.stats,
            log=LOG,
            arrivals=Arrivals(lambda: 100.0),
            executor=Executor(
                self.clock,
                step=partial(stepped, asyncio_loop=False),
                in_thread=self._refuse_threads,
                supply=self._supply,
                emit=self._emit,
                leave=lambda error, name, where: self.exits.append(error),
            ),
            choices=plan.choices,
            hooks=plan.hooks,
            reading=self,
            observe=lambda error, hooked: self.errors.append((error, hooked)),
        )
        self._hooked = compiled.hooked
        self.paused = False
        self.exits: list[SystemExit] = []
        self.errors: list[tuple[BaseException, bool]] = []
        routes = [route.fresh(route.call.supply(resources or {}), None) for route in compiled.routes]
        self.stats.routes.update((route.name, route.stats) for route in routes)
        self.accounts = SubscriberSession(self.clock, self.stats, LOG, "test", lambda found: None)
        self.table = RouteTable(
            routes,
            codecs=compiled.codecs,
            dispatch=app.dispatch,
            max_message=app.limits.max_message,
            stats=self.stats,
            outcomes=self.outcomes,
            accounts=self.accounts,
        )
        for outlet in compiled.outlets:
            outlet.open(self._emit, Subscribers(lambda pattern, number, timeout: DONE, lambda pattern: 0))
        plan.publish_by(self._emit)
        self._plan, self._outlets = plan, compiled.outlets
        self._parts: deque[tuple[bytes, bool]] = deque()
        self._more = False
        self.asked_for_more = 0

    def _supply(self, function: Callable[..., Any], facts: Mapping[Any, Any]) -> Callable[..., Any]:
        """Return ``function`` with the facts that it asks for; hooks here take no resources."""
        needs = self._hooked[identity(function)].items()
        return partial(function, **{name: facts[value.kind] for name, value in needs if isinstance(value, Needed)})

    def pause(self, by: Iterable[CompiledRoute]) -> None:
        """Record that a route is full."""
        self.paused = True
        self.table.hold()

    def resume(self) -> None:
        """Record that no route is full any more."""
        self.paused = False

    def reclassify(self) -> None:
        """Record that a route has become active."""
        self.table.reclassify()

    @staticmethod
    def _refuse_threads(call: Callable[[], Any]) -> Any:
        raise AssertionError("threads need a reactor")

    def _emit(self, topic: bytes, number: int, body: bytes, headers: Mapping[str, Any] | None) -> Any:
        self.sent.append((topic.decode(), number, body, headers))
        self.stats.published += 1
        return DONE

    @property
    def published(self) -> list[tuple[str, Any]]:
        """The published topics and bodies; the codec number decides how each body is decoded."""
        readers: dict[int, Callable[[bytes], Any]] = {
            1: msgspec.msgpack.decode,
            2: msgspec.json.decode,
            3: bytes.decode,
            4: bytes,
        }
        return [(topic, readers[number](body)) for topic, number, body, _ in self.sent]

    def queue(self, *messages: Parts) -> None:
        """Add messages that ``recv`` will return."""
        for message in messages:
            parts = (message,) if isinstance(message, bytes) else message
            self._parts.extend((part, number < len(parts)) for number, part in enumerate(parts, 1))

    def recv(self, flags: int, copy: bool = True) -> bytes | memoryview:
        """Return the next part."""
        assert flags == 1
        if not self._parts:
            raise NothingThereError
        part, self._more = self._parts.popleft()
        return part if copy else memoryview(part)

    def more(self) -> int:
        """Return True if the part read last is followed by another one."""
        self.asked_for_more += 1
        return int(self._more)

    def receive(self, budget: int = 16) -> bool:
        """Drain once; return True if no message was left."""
        try:
            self.table.receive(self.recv, self.more, budget)
        except NothingThereError:
            return True
        return False

    def feed(self, *messages: Parts) -> Wired:
        """Receive ``messages`` and all queued messages."""
        self.queue(*messages)
        while not self.receive():
            pass
        return self

    def balanced(self) -> bool:
        """Return True if each received message is in exactly one counter."""
        s = self.stats
        return s.received == s.routed + s.unrouted + s.malformed + s.duplicate + s.control

    def close(self) -> None:
        """Stop as a service does: refuse to publish, and write throttled log lines."""
        self._plan.publish_no_more()
        for outlet in self._outlets:
            outlet.close()
        self.outcomes.close()
