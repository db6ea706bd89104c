"""Requests on NATS: the inbox of a client, and the queue group of all servers.

======================================= ==================================================================
subscription                            messages
======================================= ==================================================================
``_INBOX.RANDOM.*``, of a client        replies; the last segment is the id of the request
the handlers' subjects, of a server     requests, in the queue group `GROUP`
``_zr.requests``, of a server           cancellations of requests that no server has answered yet
``_zr.requests.RANDOM``, of a server    credits and cancellations for the streams of this server
======================================= ==================================================================

**The queue group.** All zroute apps answer in one group. NATS delivers a request to one member of a group, even if
several subscriptions of one member, or of different members, match its subject. Requests are therefore handled once.

**A connection of their own.** Requests do not share the connection of the published messages. A full handler pauses
that connection, and may itself wait for a reply. A client without handlers of requests connects at its first request.

**No server.** If no app subscribes to the subject of a request, NATS answers at once with the status 503. If the server
of a stream has gone, NATS answers so to the next credits. NATS does not tell a client that the server of another
request has gone, so such a request ends with its timeout.

**A lost connection** loses the replies that are sent meanwhile. All unanswered requests therefore fail with
RequestLostError.
"""

from __future__ import annotations

import logging
import re
import secrets
from binascii import hexlify, unhexlify
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from zroute.errors import EncodeError, EnvelopeError, NoServerError, RequestError, RequestLostError, TopicError
from zroute.logs import printable
from zroute.messages.requests import Kind
from zroute.messages.topics import Pattern
from zroute.nats.client import Client, ClientOptions, Connected, Dropped, Event, Lost
from zroute.nats.exchange import (
    answer_of,
    is_job,
    pack_answer,
    plain_packer,
    reply_of,
    request_of,
    request_packer,
)
from zroute.nats.headers import NO_RESPONDERS, pack_service_error, parse_block
from zroute.nats.subjects import subject_of, valid_topics
from zroute.options import ENVELOPE_MAX
from zroute.requests.asked import Asked, Listener
from zroute.requests.client import Client as Requests
from zroute.requests.lanes import Lane, Received
from zroute.stats import Stats
from zroute.throttle import ThrottledLog

__all__ = ["GROUP", "NatsRequests"]

GROUP: Final = b"zroute"
"""The queue group of all servers."""

_NOTES: Final = b"_zr.requests"
"""The subject of cancellations and credits."""

_AHEAD: Final = 1 << 20
"""The number of unsent bytes above which the items of streams wait until the server has received them."""

_SPARE: Final = 1_000
"""The number of ended requests above which the servers of their streams are forgotten."""

_KIND_AT: Final = 4
_ITEM: Final = Kind.ITEM  # looked up once; see `zroute.requests.asked`
_ID: Final = slice(6, 22)  # the id in a frame
_ID_TEXT = re.compile(rb"(?:[0-9a-f]{2})+")

_log = logging.getLogger("zroute")


class NatsRequests:
    """The requests of one run of an app.

    Args:
        reactor: The reactor.
        options: The options of the connection.
        stats: The counters of the run.
    """

    def __init__(self, reactor: Any, options: ClientOptions, stats: Stats) -> None:
        self._reactor = reactor
        self._name = options.name
        self._stats = stats
        self._nats = Client(options)
        self._nats.on_event = self._happened
        self._reports = ThrottledLog(_log, reactor)
        self._context = copy_context()
        self._started = False
        # the client
        self._client: Requests | None = None
        self._lane: Lane | None = None
        self._inbox = b"_INBOX." + secrets.token_hex(11).encode()
        self._before_id = self._inbox + b"."
        self._servers: dict[bytes, bytes] = {}  # where to send the credits of a stream, by the id of the request
        self._valid = valid_topics()
        # the server
        self._listener: Listener | None = None
        self._notes = b"%b.%b" % (_NOTES, secrets.token_hex(8).encode())
        self._subjects: list[bytes] = []  # the ids of the subscriptions to requests

    @property
    def server(self) -> str | None:
        """The address of the connected NATS server, or None."""
        return self._nats.server

    def start(self) -> Deferred[None]:
        """Connect; see `Client.start`. A second call does nothing."""
        if self._started:
            return succeed(None)
        started = self._nats.start()  # raises an error if the file of credentials has gone; a later call may not
        self._started = True
        return started

    def open(self, client: Requests | None, on_request: Callable[[Asked], object] | None) -> None:
        """Send the requests of ``client``, and prepare to answer.

        See `zroute.transport.Transport.open_requests`.
        """
        if on_request is not None:
            self._listener = Listener(self._reactor, self._stats, on_request, self._answer)
        if client is not None:
            self._client = client
            client.servers = "that the NATS servers can be reached"
            given = client.epoch, client.clock_ns, self._reply_subject
            client.pack = plain_packer(self._reply_subject) if client.is_plain else request_packer(*given)
            self._lane = Lane(client.queue, self._send)
            self._nats.subscribe(self._inbox + b".*", self._take_reply)
            client.queue.add(self._lane)

    # -- the connection

    def _happened(self, event: Event) -> None:
        lane = self._lane
        match event:
            case Connected() if lane is not None:
                lane.up()
                lane.writable()
            case Lost(server) if lane is not None:
                lane.down = True
                self._servers.clear()
                lane.lost(lambda: _lost(f"the connection to {server} was lost"))
            case Dropped(subject, size):
                self._dropped(subject, size)

    def _dropped(self, subject: bytes, size: int) -> None:
        """Fail the request of a dropped reply, or count a dropped request."""
        inbox, _, id = subject.rpartition(b".")
        if inbox == self._inbox:
            fault = f"the reply has {size} bytes, more than this app accepts" if size else "too many replies wait"
            if self._lane is not None and _ID_TEXT.fullmatch(id):
                self._lane.fail(bytes.fromhex(id.decode()), lambda: RequestError(fault))
        elif self._listener is not None:
            self._stats.requests += 1
            self._stats.bad_requests += 1
            why = f"{size} bytes" if size else "too many messages wait"
            text = "%s: a request was dropped: %s (topic %s)"
            name = self._name
            self._reports("dropped", f"{name}: dropped requests", logging.WARNING, text, name, why, printable(subject))

    def _not_started(self, failure: Failure) -> None:
        if self._lane is not None:  # else the app stops before a server has answered
            _log.error("%s: can't send requests: %s", self._name, failure.value)

    # -- the client

    def _send(self, frames: Sequence[Any]) -> bool:
        """Send a request, or a message about one; return False if it must wait.

        The frames of a request are the result of its packer. Those of a message about one are an empty part and the
        frame.
        """
        assert self._lane is not None
        is_note = len(frames) == 2
        if self._nats.link is None:
            self._lane.down = True
            if not self._started:
                # The file of credentials may have gone since the start of the app.
                maybeDeferred(self.start).addErrback(self._not_started)
            return is_note  # a lost connection has already ended the request of a note
        try:
            if is_note:
                id = frames[1][_ID]
                sent = self._nats.publish(self._servers.get(id, _NOTES), frames[1], self._reply_subject(id))
            else:
                topic, payload, reply, headers = frames
                sent = self._nats.publish(self._valid[topic], payload, reply, headers)
        except (EncodeError, TopicError) as error:
            fault, id = error, unhexlify(frames[2][len(self._before_id) :])
            # In the next turn, because only then the lane knows the request.
            self._reactor.callLater(0, self._lane.fail, id, lambda: fault)
            return True
        if not sent:
            self._nats.ping().addCallback(self._drained)
        return sent

    def _drained(self, _: bool) -> None:
        if self._lane is not None and self._nats.connected:
            self._lane.writable()

    def _reply_subject(self, id: bytes) -> bytes:
        return self._before_id + hexlify(id)

    def _take_reply(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        self._context.copy().run(self._received, subject, reply, headers, payload)

    def _received(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        lane = self._lane
        assert lane is not None
        digits = subject[len(self._before_id) :]
        try:
            id = unhexlify(digits)
        except ValueError:  # from a program that has made up the subject
            return
        parts: Received | None = reply_of(headers, payload, digits)
        if parts is None:
            try:
                block = parse_block(headers) if headers else None
                if block is not None and block.status == NO_RESPONDERS and not payload:
                    self._unheard(lane, id)
                    return
                parts = answer_of(block, payload)
            except EnvelopeError as error:
                reason = error.reason
                lane.fail(id, lambda: RequestError(f"the server sent {reason}"))
                return
        if reply is not None and id in lane.sent:
            self._servers[id] = reply
            if len(self._servers) > len(lane.sent) + _SPARE:  # a stream that its reader has left has no last reply
                self._servers = {each: self._servers[each] for each in lane.sent if each in self._servers}
        lane.received(id, parts)
        if self._servers and id not in lane.sent:
            self._servers.pop(id, None)

    def _unheard(self, lane: Lane, id: bytes) -> None:
        """Fail a request that no server has received, or whose server has gone."""
        if self._servers.pop(id, None) is not None:
            lane.fail(id, lambda: _lost("the server has disconnected"))
        else:
            lane.fail(
                id,
                lambda: NoServerError(
                    "no server answers this topic: check that the server is running, and that it has a handler for "
                    "this topic"
                ),
            )

    # -- the server

    def answer(self, patterns: Sequence[Pattern]) -> None:
        """Subscribe to the requests that the handlers answer."""
        if self._listener is None:
            return
        for subject in (_NOTES, self._notes):
            self._nats.subscribe(subject, self._take_note)
        subjects = sorted({subject_of(pattern) for pattern in patterns})
        self._subjects = [self._nats.subscribe(subject, self._take_request, GROUP) for subject in subjects]

    def confirmed(self) -> Deferred[Any]:
        """Return a Deferred that fires when the server has the subscriptions of `answer`."""
        return succeed(None) if self._listener is None else self._nats.ping()

    def withdraw(self) -> None:
        """Accept no more requests: NATS gives them to other servers."""
        self._nats.unsubscribe(self._subjects)
        self._subjects = []

    def _take_request(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        if reply is not None and not is_job(headers):  # else a published message or a job of the same topic
            self._context.copy().run(self._request, subject, reply, headers, payload)

    def _request(self, subject: bytes, reply: bytes, headers: bytes | None, payload: bytes) -> None:
        listener, envelope = self._listener, [reply, b""]
        assert listener is not None
        try:
            if len(reply) > ENVELOPE_MAX:
                raise EnvelopeError(f"an envelope of {len(reply)} bytes; expected at most {ENVELOPE_MAX}")
            id, frames, seconds, window, codec = request_of(subject, headers, payload)
        except EnvelopeError as error:
            listener.refuse(_Request(listener, envelope, b"", subject, ()), error)
            return
        asked = _Request(listener, envelope, id, subject, frames, seconds, window)
        if codec:
            asked.content = codec, payload
        listener.accept(asked)

    def _take_note(self, subject: bytes, reply: bytes | None, headers: bytes | None, payload: bytes) -> None:
        # A request can only arrive at the subject of a handler.
        if reply is not None and len(payload) > _KIND_AT and payload[_KIND_AT] in (Kind.CANCEL, Kind.CREDITS):
            assert self._listener is not None
            self._context.copy().run(self._listener.received, [reply, b"", payload])

    def _answer(self, asked: Asked, kind: Kind, number: int, body: bytes) -> bool | Deferred[None]:
        """Send an answer; return a Deferred if the next item must wait."""
        reply = asked.envelope[0]
        headers, payload = pack_answer(asked.id, kind, number, body)
        is_item = kind is _ITEM
        try:
            sent = self._nats.publish(reply, payload, self._notes if is_item else None, headers)
        except EncodeError as error:
            headers = pack_service_error(500, f"EncodeError: {error}")
            self._nats.publish(reply, b"", None, headers)
            return self._undelivered(reply, str(error))
        if not sent:
            why = "the send buffer is full" if self._nats.connected else "no NATS server is connected"
            return self._undelivered(reply, why)
        if is_item and self._nats.waiting > _AHEAD:
            return self._nats.ping().addCallback(lambda _: None)
        return True

    def _undelivered(self, reply: bytes, reason: str) -> bool:
        self._stats.replies_undelivered += 1
        text = "%s: a reply to %s was not delivered: %s"
        self._reports(
            "undelivered", f"{self._name}: undelivered replies", logging.WARNING, text, self._name, printable(reply),
            reason,
        )  # fmt: skip
        return False

    # -- the stop

    def close(self, seconds: float) -> Deferred[None]:
        """Disconnect, after up to ``seconds`` in which the server receives all replies."""
        self._lane = None
        if self._listener is not None:
            self._listener.close()
        self._reports.close()
        return self._nats.close(seconds if self._nats.connected else 0.0)


class _Request(Asked):
    """A request whose envelope is its reply subject."""

    __slots__ = ()

    @property
    def peer(self) -> bytes:
        """The inbox of the client.

        It is the same in all requests of a client, so no client can take the room of the others.
        """
        inbox, _, rest = self.envelope[0].rpartition(b".")
        return inbox if inbox and rest else self.envelope[0]


def _lost(what: str) -> RequestLostError:
    return RequestLostError(
        f"{what}, and the server may have handled the request: send the request again only if handling it twice is safe"
    )
