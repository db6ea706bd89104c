"""The server's half of requests: parse the frames of clients, and pack replies.

Every request gets an answer, even a malformed request, because a plain REQ socket would otherwise wait forever. The
exception is a message without the empty part that ends the envelope. zroute can't answer such a message, because the
envelope is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred

from zroute.clock import Clock, Deadline, Looping
from zroute.errors import EnvelopeError
from zroute.messages.requests import (
    MAGIC,
    Kind,
    Message,
    check_topic,
    pack_failure,
    pack_reply,
    parse,
    parse_credits,
    parse_request,
    plain_failure,
    refusal_text,
    topic_of,
)
from zroute.messages.wire import NamedFrame
from zroute.options import ENVELOPE_MAX, MAX_CREDIT, STREAM_SILENCE
from zroute.stats import Stats

__all__ = ["Asked", "Listener"]

Send = Callable[["Asked", Kind, int, bytes], "bool | Deferred[None]"]
"""A function that sends a message about a request to its client.

The arguments are the request, the kind, and the codec number and the body of a value. For the kind FAILED, they are the
code and the text, as UTF-8. `Asked.parts` returns the message as ZeroMQ's parts.

The function returns True, or a Deferred that fires when the client has room. If the function can't deliver the message,
it counts and logs the loss, and returns False.
"""


class Cancellable(Protocol):
    """A call that waits or runs."""

    def cancel(self) -> object:
        """End the call, if possible."""


class Asked:
    """A request as it arrived, to be answered once.

    Attributes:
        envelope: The parts before the request. The server sends these parts before each reply.
        id: The id of the request; empty for a plain client.
        topic: The topic.
        frames: The topic and the body, as frames of a message.
        seconds: The seconds that were left when the client sent the request; None without a timeout.
        taken: True if the request has been answered, or will be answered.
        over: True if the request has been answered, or the client no longer waits.
        running: The waiting or unfinished call of the handler, if the call can be cancelled.
        content: The codec number and the body, if the transport has read them; None otherwise.
        deadline: The end of the request's time; None if no timer watches it.
        json: True if the body looks like JSON although no codec is stated.
    """

    __slots__ = (
        "_credit",
        "_listener",
        "_on_end",
        "_room",
        "content",
        "deadline",
        "envelope",
        "frames",
        "heard_at",
        "id",
        "is_stream",
        "json",
        "over",
        "running",
        "seconds",
        "taken",
        "topic",
    )

    def __init__(
        self,
        listener: Listener,
        envelope: list[bytes],
        id: bytes,
        topic: bytes,
        frames: tuple[bytes, ...],
        seconds: float | None = None,
        window: int = 0,
    ) -> None:
        self.content: tuple[int, bytes] | None = None
        self._listener = listener
        self.envelope = envelope
        self.id = id
        self.topic = topic
        self.frames = frames
        self.seconds = seconds
        self.is_stream = window > 0
        self.taken = self.over = self.json = False
        self.running: Cancellable | None = None
        self.deadline: Deadline | None = None
        self.heard_at = 0.0
        self._on_end: Callable[[Asked], object] | None = None
        self._credit = window
        self._room: Deferred[None] | None = None

    @property
    def peer(self) -> bytes:
        """The identity of the client's connection."""
        return self.envelope[0]

    @property
    def size(self) -> int:
        """The size of the request in bytes, with its envelope."""
        return sum(map(len, self.envelope)) + sum(map(len, self.frames))

    @property
    def key(self) -> tuple[bytes, ...]:
        """The envelope and the id, which identify the request in later messages."""
        return (*self.envelope, self.id)

    def reply(self, number: int, body: bytes) -> None:
        """Send the single reply; ``number`` is the codec of ``body``."""
        self._end(_REPLY, number, body)

    def refuse(self, code: int, text: str) -> None:
        """Send a failure as the reply, with a code and a text."""
        self._end(Kind.FAILED, code, refusal_text(text))

    def finish(self) -> None:
        """Send the end of the stream."""
        self._end(Kind.END, 0, b"")

    def item(self, number: int, body: bytes) -> Deferred[None] | None:
        """Send an item; return a Deferred that fires when the client takes the next one.

        Raises:
            CancelledError: The client no longer waits, or this item can't be delivered.
        """
        if self.over:
            raise CancelledError
        sent = self._listener.send(self, _ITEM, number, body)
        if sent is False:
            self._close()  # otherwise the client would miss the item without notice
            raise CancelledError
        self._credit -= 1
        if self._credit > 0:
            return sent if isinstance(sent, Deferred) else None
        self._room = Deferred(lambda _: None)
        return self._room

    def keep(self, on_end: Callable[[Asked], object]) -> None:
        """Accept cancellations and credits from the client until the request is answered.

        ``on_end`` is called when `over` becomes True.
        """
        if self.over:
            return
        self.taken = True
        self._on_end = on_end
        self._listener.keep(self)

    def allow(self, number: int) -> None:
        """Accept credits for ``number`` more items."""
        self._credit = min(self._credit + number, MAX_CREDIT)
        room, self._room = (self._room, None) if self._credit > 0 else (None, self._room)
        if room is not None and not room.called:
            room.callback(None)

    def cancel(self) -> None:
        """End the request without an answer, and cancel the handler's call."""
        if self.over:
            return
        self._close()
        running, self.running = self.running, None
        if running is not None:
            running.cancel()

    def _end(self, kind: Kind, number: int, body: bytes) -> None:
        if self.over:
            return
        self.taken = self.over = True
        if self._on_end is not None:
            self._close()
        self.running = None
        self._listener.send(self, kind, number, body)

    def parts(self, kind: Kind, number: int, body: bytes) -> tuple[bytes, ...]:
        """Return a message to the client as parts.

        The first part is the client's identity. `Send` describes the arguments.
        """
        if kind is _FAILED:
            text = body.decode()
            rest = (pack_failure(self.id, number, text),) if self.id else plain_failure(number, text)
            return (*self.envelope, *rest)
        return (*self.envelope, pack_reply(self.id, kind, number, body) if self.id else body)

    def _close(self) -> None:
        self.taken = self.over = True
        if self._on_end is not None:
            self._listener.forget(self)
            self._on_end(self)
            self._on_end = None


class Listener:
    """Reads the messages of clients.

    Args:
        clock: The reactor.
        stats: The counters of the run.
        on_request: Called with each valid request.
        send: Sends a message to a client.
    """

    def __init__(self, clock: Clock, stats: Stats, on_request: Callable[[Asked], object], send: Send) -> None:
        self.send = send
        self._clock = clock
        self._stats = stats
        self._on_request = on_request
        self._kept: dict[tuple[bytes, ...], Asked] = {}
        self._streams: set[Asked] = set()  # all streams, even if a client has used an id twice
        self._watch = Looping(self._end_silent)
        self._watch.clock = clock  # type: ignore[assignment]  # a Clock has the methods that are needed

    def received(self, parts: list[bytes], peer: str | None = None) -> None:
        """Process a message; its first part is the identity of the client.

        ``peer`` is the name of the client's key.

        Raises:
            EnvelopeError: The message has no envelope, so zroute can't answer it.
        """
        try:
            end = parts.index(b"", 1) + 1
        except ValueError:
            raise EnvelopeError("not a request: expected an empty part before the topic") from None
        envelope = parts[:end]
        try:
            if end > 2 and (size := sum(map(len, envelope))) > ENVELOPE_MAX:
                raise EnvelopeError(f"an envelope of {size} bytes; expected at most {ENVELOPE_MAX}")
            asked = self._read(envelope, parts[end:], peer)
        except EnvelopeError as error:
            self.refuse(Asked(self, envelope, _id_of(parts[end:]), b"", ()), error)
            return
        if asked is not None:
            self.accept(asked)

    def accept(self, asked: Asked) -> None:
        """Count a request, and pass it on."""
        self._stats.requests += 1
        self._on_request(asked)

    def refuse(self, asked: Asked, error: EnvelopeError) -> None:
        """Count a malformed request, and answer it with a failure."""
        self._stats.requests += 1
        self._stats.bad_requests += 1
        asked.refuse(400, f"not a request: {error.reason}")

    def _read(self, envelope: list[bytes], rest: list[bytes], peer: str | None) -> Asked | None:
        """Return a request; None for a message about an earlier request."""
        if len(rest) == 1 and rest[0].startswith(MAGIC):
            message = parse(rest[0])
            if message.kind == _REQUEST:
                seconds, window, frame = parse_request(message)
                named = frame if peer is None else NamedFrame.of(frame, peer)
                return Asked(self, envelope, message.id, topic_of(frame), (named,), seconds, window)
            self._about((*envelope, message.id), message)
            return None
        if len(rest) != 2:
            raise EnvelopeError(f"{len(rest)} parts after the empty part; expected a topic and a body")
        check_topic(rest[0])
        named = rest[0] if peer is None else NamedFrame.of(rest[0], peer)
        return Asked(self, envelope, b"", rest[0], (named, rest[1]))

    def _about(self, key: tuple[bytes, ...], message: Message) -> None:
        if message.kind == Kind.CANCEL:
            number = 0
        elif message.kind == Kind.CREDITS:
            number = parse_credits(message)
        else:
            raise EnvelopeError(f"a frame of the kind {Kind(message.kind).name}; only servers send this kind")
        asked = self._kept.get(key)
        if asked is None:  # the request has been answered already
            return
        asked.heard_at = self._clock.seconds()
        if message.kind == Kind.CANCEL:
            asked.cancel()
        else:
            asked.allow(number)

    # -- unanswered requests

    @property
    def unanswered(self) -> int:
        """The number of requests that a client can still cancel, and of streams."""
        return len(self._streams | set(self._kept.values()))

    def keep(self, asked: Asked) -> None:
        """From now on, pass messages about a request to ``asked``."""
        self._kept[asked.key] = asked
        if asked.is_stream:
            self._streams.add(asked)
            asked.heard_at = self._clock.seconds()
            if not self._watch.running:
                self._watch.start(STREAM_SILENCE / 4, now=False)

    def forget(self, asked: Asked) -> None:
        """Forget a request that has ended."""
        self._streams.discard(asked)
        if self._kept.get(asked.key) is asked:  # not if the client has used the id again
            del self._kept[asked.key]

    def _end_silent(self) -> None:
        """End the streams of clients that have sent no sign of life for too long."""
        # A copy, because `cancel` removes the stream from the set.
        for asked in tuple(self._streams):
            if self._clock.seconds() - asked.heard_at > STREAM_SILENCE:
                asked.cancel()
        if not self._streams:
            self._watch.stop()

    def close(self) -> None:
        """Stop the timer."""
        if self._watch.running:
            self._watch.stop()


_REQUEST = int(Kind.REQUEST)
# Looked up once, because Python 3.11 takes 2,000 instructions to find a member of an enum.
_REPLY, _ITEM, _FAILED = Kind.REPLY, Kind.ITEM, Kind.FAILED


def _id_of(rest: Sequence[bytes]) -> bytes:
    """Return the id of a malformed request; empty for the plain form.

    Its failure then has the same form.
    """
    try:
        return parse(rest[0]).id
    except (EnvelopeError, IndexError):
        return b""
