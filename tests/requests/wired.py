"""A client and a lane without sockets: the test is the server."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zroute import App
from zroute.messages.requests import Kind, pack_failure, pack_reply, parse, parse_credits
from zroute.requests.client import Client, ReplyStream
from zroute.requests.lanes import Lane
from zroute.stats import Stats

CANCEL = "cancel"
CODECS = App().compile().parts.codecs


class Wired:
    """A client on a virtual clock, and its lane; `sent` has the frames of the client."""

    def __init__(self, *, lane: bool = True, max_message: int = 10_000, plain: bool = False) -> None:
        self.clock = Clock()
        self.stats = Stats()
        self.sent: list[tuple[bytes, ...]] = []
        self.room = True
        self.client = Client(
            self.clock,
            self.stats,
            "the app",
            CODECS,
            max_message=max_message,
            clock_ns=lambda: 5,
            later=lambda call, *given: self.clock.callLater(0, call, *given),
            is_plain=plain,
        )
        self.lane = Lane(self.client.queue, self._send)
        if lane:
            self.client.queue.add(self.lane)

    def _send(self, frames: Sequence[bytes]) -> bool:
        if self.room:
            self.sent.append(tuple(frames))
        return self.room

    # -- the client

    def ask(
        self, schema: Any = int, timeout: float | None = 10.0, retry: tuple[float, ...] = (), body: bytes = b"\x01"
    ) -> Deferred[Any]:
        """Send a request to ``a.b``; return the Deferred of its caller."""
        decode = self.client.decoder(schema)
        return begun(self.client.request(b"a.b", 1, body, None, decode, timeout, retry))

    def stream(self, schema: Any = int, timeout: float | None = 10.0) -> ReplyStream[Any]:
        """Ask for a stream."""
        return self.client.stream(b"a.b", 1, b"\x01", None, self.client.decoder(schema), timeout)

    # -- the server

    def requests(self) -> list[tuple[bytes, ...]]:
        """Return the requests that were sent."""
        return [each for each in self.sent if len(each) > 2 or parse(each[1]).kind == Kind.REQUEST]

    def ids(self) -> list[bytes]:
        """Return the ids of the requests that were sent."""
        return [each[0] or parse(each[1]).id for each in self.requests()]

    def notes(self, id: bytes | None = None) -> list[str | int]:
        """Return the messages about requests, or about the request ``id``: CANCEL, or a number of credits."""
        found = [parse(each[1]) for each in self.sent if len(each) == 2]
        about = [each for each in found if each.kind != Kind.REQUEST and id in (None, each.id)]
        return [CANCEL if each.kind == Kind.CANCEL else parse_credits(each) for each in about]

    def answer(self, *parts: bytes, number: int = -1) -> bool:
        """Send parts to the request with this number, by default the last one."""
        return self.lane.received(self.ids()[number], list(parts))

    def say(self, kind: Kind, codec: int = 0, body: bytes = b"", number: int = -1) -> bool:
        """Send a frame about the request with this number, by default the last one."""
        return self.answer(pack_reply(self.ids()[number], kind, codec, body), number=number)

    def reply(self, body: bytes, number: int = -1) -> bool:
        """Send a reply in msgpack."""
        return self.say(Kind.REPLY, 1, body, number)

    def items(self, *bodies: bytes) -> None:
        """Send items in msgpack to the last request."""
        for body in bodies:
            self.say(Kind.ITEM, 1, body)

    def end(self) -> bool:
        """End the stream of the last request."""
        return self.say(Kind.END)

    def refuse(self, code: int, text: str = "why") -> None:
        """Send a failure to the last request."""
        self.answer(pack_failure(self.ids()[-1], code, text))


def begun(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """Run a coroutine; its error is not logged."""
    running = Deferred.fromCoroutine(coroutine)
    running.addErrback(lambda failure: Ended(failure.value))
    return running


class Ended:
    """A failed caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def result(deferred: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has fired, or raise its error."""
    found: list[Any] = []
    deferred.addCallback(lambda value: found.append(value) or value)
    assert found, "it has not ended"
    if isinstance(found[0], Ended):
        raise found[0].error
    return found[0]
