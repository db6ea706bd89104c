"""Call the handlers of requests, and answer the clients.

Requests and messages are processed by the same steps: the topic cache, the closure with the handler's arguments, the
flow of the route, middleware and resources. Requests differ from messages in three ways:

- Only the most specific route handles a request. The result of its handler is the reply; None is a reply too.
- While a route has no room, the server refuses requests at once, and continues to read. It first refuses the last
  request of the client with the longest queue, so one client can't take the room of the others. The bytes of all
  waiting requests of the app are limited in the same way: the client with the most bytes is refused first.
- If a client no longer waits, its request leaves the queue at once. If the handler already runs, its call is cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from types import NoneType
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred

from zroute.awaiting import was_cancelled
from zroute.clock import Deadlines
from zroute.declarations.replies import replies_of
from zroute.errors import DecodeError, EncodeError, EnvelopeError, RequestRefused, SchemaError, UsageError
from zroute.logs import printable, text_of
from zroute.messages.codecs import JSON, MSGPACK, RAW, Codec, Codecs, detect
from zroute.messages.schema import describe
from zroute.messages.topics import Topic
from zroute.messages.wire import CODEC_AT, HEADER_MAX, HEADER_SIZE, MAGIC, Kind, pack_head, parse_header
from zroute.options import LARGE_FRAME, REQUESTS_WAITING_BYTES
from zroute.publishing.headers import WithHeaders
from zroute.publishing.producers import Publish
from zroute.publishing.publication import Encode, bind_encoder
from zroute.receiving.around import Skipped, Waiting
from zroute.receiving.coalesced import Remainder
from zroute.receiving.dispatch import UNDECODABLE, BoundRoute, CompiledRoute
from zroute.receiving.flow import ReplyFlow, WaitingBytes
from zroute.receiving.frames import RawFrames
from zroute.receiving.in_flight import InFlight, PendingCall
from zroute.receiving.matching import Matcher
from zroute.receiving.results import Results
from zroute.receiving.topic_cache import TopicCache
from zroute.requests.asked import Asked
from zroute.stats import Stats

__all__ = ["ReplyResults", "Replying"]

_HEAD = pack_head(codec=0, epoch=0)
_SIMPLE = _HEAD[:5]  # the magic number, version and kind of a header
_FLAGS_AT = 6

_BUSY = (
    "the queue of the handler is full: send the request again later (retry=), or increase queue= or "
    "max_in_flight= of the handler"
)
_FULL = "the waiting requests exceed the limit in bytes: send the request again later"
_STOPS = "the server is stopping: send the request again later"
_STREAMS = "this handler answers with a stream: use app.request_stream, or zroute request --stream"
_STREAMS_PLAIN = (
    "this handler answers with a stream, but a plain REQ or DEALER socket can receive only one reply: use "
    "app.request_stream in a zroute app"
)
_STOPPED = "the server stopped before the handler ended"


class RequestFrames(tuple[bytes, ...]):
    """The topic and the body of a request, as frames of a message.

    Attributes:
        asked: The request.
    """

    asked: Asked

    @classmethod
    def of(cls, asked: Asked) -> RequestFrames:
        """Return the frames of a request."""
        made = cls(asked.frames)
        made.asked = asked
        return made


@attrs.frozen(eq=False)
class _Queued(PendingCall):
    """A call in the queue; ``leave`` removes the call when the request ends early."""

    leave: Callable[[_Queued], None]

    def cancel(self) -> None:
        """Leave the queue, because the request has ended."""
        self.leave(self)


class _Answering(InFlight):
    """The unfinished and waiting requests of one run."""

    _outcomes: ReplyResults

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._bytes: WaitingBytes[_Queued] = WaitingBytes(REQUESTS_WAITING_BYTES)

    def _enqueue(self, delivery: BoundRoute, call: Callable[[], Any], raw: RawFrames) -> None:
        asked = _asked(raw)
        flow = delivery.route.flow
        assert isinstance(flow, ReplyFlow)
        if flow.begins_at_once:
            self._outcomes.keep(asked)
            flow.start(asked.peer)
            # Not `self._run`, because `_bytes` does not count this request: it never waits.
            super()._run(asked.peer, PendingCall(delivery, call, raw))
            return
        size = asked.size
        if not self._bytes_fit(asked.peer, size):
            self._outcomes.busy(asked, _FULL)
            return
        if not flow.has_room:
            longest = flow.last_of_longest(asked.peer)
            if longest is None:
                self._outcomes.busy(asked)
                return
            delivery.route.stats.queued -= 1
            self._bytes.remove(_asked(longest.raw).peer, longest)
            self._outcomes.busy(_asked(longest.raw))
        self._outcomes.keep(asked)
        asked.running = job = _Queued(delivery, call, raw, self._leave)
        self._bytes.add(asked.peer, job, size)
        self._put(asked.peer, job)

    def _bytes_fit(self, peer: bytes, size: int) -> bool:
        """Return True if a request of ``size`` bytes may wait.

        To make room, refuse requests of clients with more bytes.
        """
        while not self._bytes.has_room(size):
            job = self._bytes.last_of_largest(peer, size)
            if job is None:
                return False
            self._remove(job)
            self._outcomes.busy(_asked(job.raw), _FULL)
        return True

    def _leave(self, job: _Queued) -> None:
        """Remove a request from the queue, and count it: its client no longer waits."""
        if self._remove(job):
            job.delivery.route.stats.cancelled += 1

    def _remove(self, job: _Queued) -> bool:
        """Remove a request from the queue; return False if it is not queued."""
        route, peer = job.delivery.route, _asked(job.raw).peer
        assert isinstance(route.flow, ReplyFlow)
        if not route.flow.remove(peer, job):
            return False
        self._bytes.remove(peer, job)
        route.stats.queued -= 1
        if not route.flow.queued:
            self._queued.discard(route)
            self._tell_if_idle()
        return True

    def _run(self, key: Hashable, job: Any) -> None:
        # The request leaves the queue. One that begins at once does not take this path.
        self._bytes.remove(key, job)
        super()._run(key, job)

    def _await(self, job: Any, key: Hashable, running: Deferred[Any]) -> None:
        asked = _asked(job.raw)
        if not asked.taken:  # the first Deferred of a plain function
            self._outcomes.keep(asked)
        asked.running = running
        super()._await(job, key, running)

    def _lost(self, job: Any, *, begun: bool) -> None:
        if not begun:
            self._bytes.remove(_asked(job.raw).peer, job)
        _asked(job.raw).refuse(*((500, _STOPPED) if begun else (503, _STOPS)))

    def _drive(self, delivery: BoundRoute, result: Any, raw: RawFrames | None) -> Deferred[Any] | None:
        asked = _asked(raw)
        if not asked.is_stream:
            raise UsageError(
                "the handler returned an iterator, but the client asked for one reply: return one value, or use "
                "app.request_stream in the client"
            )
        driving = super()._drive(delivery, result, raw)
        if driving is not None:
            return driving.addCallback(lambda _: asked.finish())
        asked.finish()
        return None

    def _publishing(self, delivery: BoundRoute, raw: RawFrames | None) -> Publish:
        asked, encode = _asked(raw), self._outcomes.encoder(delivery.route, _asked(raw))
        publish = super()._publishing(delivery, raw) if delivery.route.outlets else lambda value: None

        def send(value: Any) -> Deferred[None] | None:
            self._outcomes.unwatch(asked)  # after the first item, only the client's silence ends the stream
            room, sent = asked.item(*encode(value)), publish(value)
            return room.addCallback(lambda _: sent) if room is not None else sent

        return send

    def _publish(self, delivery: BoundRoute, value: Any, raw: RawFrames | None) -> Deferred[None] | None:
        if type(value) is Skipped:
            return self._skip(delivery.route, value, self._publish(delivery, value.result, raw))
        asked, outlets = _asked(raw), delivery.route.outlets
        # The client no longer waits: `failed` then counts the request as cancelled, not as handled.
        if asked.over and not outlets:
            raise CancelledError
        self._outcomes.answer(delivery, value, asked)
        return super()._publish(delivery, value, raw) if outlets else None


def _asked(raw: Any) -> Asked:
    assert isinstance(raw, RequestFrames)
    return raw.asked


class ReplyResults(Results):
    """Handles the results and errors from the handlers of requests.

    Args:
        codecs: The codecs that the app knows.
        max_message: The maximum size of a reply in bytes.
        given: The arguments of `Results`.
    """

    in_flight = _Answering
    unfinished: _Answering

    def __init__(self, *, codecs: Codecs, max_message: int, **given: Any) -> None:
        super().__init__(**given)
        # Replaces the attribute that `Results` has set.
        self.settle = self._settle
        self._codecs = codecs
        self._max_message = max_message
        self._deadlines = Deadlines(given["executor"].clock)
        self._encoders: dict[tuple[CompiledRoute, int], Encode] = {}

    def _settle(self, delivery: BoundRoute, result: Any, raw: RawFrames) -> None:
        """Send a plain value as the reply; pass any other result on, or queue the call."""
        try:
            if delivery.route.flow.active or delivery.route.outlets or not _is_plain(result):
                self.unfinished.settle(delivery, result, raw)
                return
            self.answer(delivery, result, _asked(raw))
        except BaseException as error:  # the result may be any object, and reading its attributes may raise an error
            self.failed(delivery, error, raw)
        else:
            delivery.route.stats.handled += 1

    def answer(self, delivery: BoundRoute, value: Any, asked: Asked) -> None:
        """Send the reply.

        Raises:
            EncodeError: The value does not have the declared type, or the encoded value is too large.
        """
        if asked.over:
            return
        try:
            usual = None if asked.json else self._encoders.get((delivery.route, 0))
            reply = (usual or self.encoder(delivery.route, asked))(value)
        except EncodeError as error:
            if delivery.route.streams:
                error.args = (f"{error}; the handler declares an iterator: yield the values, or return iter(values)",)
            raise
        asked.reply(*reply)

    def encoder(self, route: CompiledRoute, asked: Asked) -> Encode:
        """Return the encoder for the replies to this client."""
        json = asked.json and route.options.codec is None and self._codecs.default is MSGPACK
        key = (route, JSON.number if json else 0)
        encode = self._encoders.get(key)
        if encode is None:
            encode = self._encoders[key] = _encoder(route, self._codecs, self._max_message, json=json)
        return encode

    def failed(
        self,
        delivery: BoundRoute,
        error: BaseException,
        raw: RawFrames,
        many: int = 1,
        *,
        raws: Sequence[RawFrames] = (),
        attempts: int = 1,
    ) -> None:
        """Refuse the request, and count and log the error.

        If the client no longer waits, the request counts as cancelled, and an error is logged only if it is not the
        cancellation. SystemExit always stops the app.
        """
        asked = _asked(raw)
        stats = delivery.route.stats
        if asked.over and not isinstance(error, SystemExit):  # also asyncio's CancelledError, which is no Exception
            stats.cancelled += many
            if not (was_cancelled(error) or isinstance(error, GeneratorExit | RequestRefused)):
                self._report_failure(
                    "failed",
                    delivery,
                    error,
                    many,
                    logging.ERROR,
                    "",
                    "; the client no longer waits for the reply",
                    error,
                )
                self._observe(error, self._dispose(delivery, error, raws or (raw,), attempts))
            return
        if isinstance(error, RequestRefused):
            stats.handled += many
            stats.refused += many
            asked.refuse(error.code, printable(error.reason))
            return
        super().failed(delivery, error, raw, many, raws=raws, attempts=attempts)
        if isinstance(error, EnvelopeError):
            asked.refuse(400, f"not a request: {error.reason}")
        elif isinstance(error, SystemExit):
            asked.refuse(500, _STOPPED)
        else:
            asked.refuse(500, f"{type(error).__name__}: {printable(error)}")

    def abandoned(self, raw: RawFrames) -> bool:
        """Return True if the client no longer waits."""
        return _asked(raw).over

    def undecodable(self, deliveries: Sequence[BoundRoute], error: BaseException, body: bytes, raw: RawFrames) -> int:
        """Refuse a body that does not have the declared type; name the faulty field."""
        if not body:
            schema = deliveries[0].route.call.schema
            error = DecodeError(f"the request has no body, but the handler expects {describe(schema)}")
        super().undecodable(deliveries, error, body, raw)
        _asked(raw).refuse(400, reason_of(error))
        return UNDECODABLE

    def stale(self, route: CompiledRoute, raw: RawFrames) -> bool:
        """Return True if the client no longer waits; if so, count the request."""
        over = _asked(raw).over
        route.stats.cancelled += over
        return over

    def busy(self, asked: Asked, text: str = _BUSY) -> None:
        """Refuse a request that the route or the app has no room for."""
        self._stats.busy += 1
        asked.refuse(503, text)

    def keep(self, asked: Asked) -> None:
        """Watch a request that is not answered at once.

        From now on, the client can cancel the request, and a timer ends the request at its timeout.
        """
        asked.keep(self.unwatch)
        if asked.seconds is not None:
            asked.deadline = self._deadlines.add(asked.seconds, asked, _end_late)

    def unwatch(self, asked: Asked) -> None:
        """Cancel the timer of a request."""
        if asked.deadline is not None:
            self._deadlines.cancel(asked.deadline)
            asked.deadline = None

    def close(self) -> None:
        """Log the numbers of lines that were counted instead of logged; stop the timer."""
        super().close()
        self._deadlines.close()


class Replying:
    """Finds and calls the handler of each request.

    Args:
        routes: The routes of the app.
        codecs: The codecs that the app knows.
        results: Handles the results of the handlers.
        stats: The counters of the run.
        max_message: The maximum size of a body in bytes.
    """

    def __init__(
        self,
        routes: Sequence[CompiledRoute],
        codecs: Codecs,
        results: ReplyResults,
        stats: Stats,
        max_message: int,
    ) -> None:
        self.stops = False
        self._stats = stats
        self._max_message = max_message
        self._results = results
        self._matcher = Matcher(routes, only_first=True)
        self._cache = TopicCache(
            self._matcher,
            codecs,
            outcomes=results,
            stats=stats,
            unpacked=Remainder(),
            multipart=(),
            unrouted=self._unrouted,
            malformed=self._malformed,
        )

    def reclassify(self) -> None:
        """Create the delivery functions again, because a flow has become active."""
        self._cache.clear()

    def received(self, asked: Asked) -> None:
        """Process a request, and answer it now or later."""
        if self.stops:
            self._stats.busy += 1
            asked.refuse(503, _STOPS)
            return
        raw = RequestFrames.of(asked)
        try:
            number, body = asked.content or self._read(asked)
            if len(body) > self._max_message:
                raise EnvelopeError(f"a body of {len(body)} bytes; expected at most max_message={self._max_message}")
        except EnvelopeError as error:
            self._malformed(error, raw)
            return
        entry = self._cache.of(asked.topic)
        if entry.route is not None and entry.route.streams and not asked.is_stream:
            self._stats.bad_requests += 1
            asked.refuse(400, _STREAMS if asked.id else _STREAMS_PLAIN)
            return
        deliver = entry.others.get((number, len(body) > LARGE_FRAME)) or self._cache.deliver(entry, number, body)
        fault = deliver(body, raw)
        if fault is None and not asked.taken:  # the handler has returned None
            assert entry.deliveries is not None  # see `shared_call`
            (delivery,) = entry.deliveries
            try:
                self._results.answer(delivery, None, asked)
            except BaseException as error:
                # The closure has already counted the request as handled.
                delivery.route.stats.handled -= 1
                self._results.failed(delivery, error, raw)

    def _read(self, asked: Asked) -> tuple[int, bytes]:
        """Return the number of the codec, and the encoded message.

        Most clients use zroute and send a header without counters and application headers. The first bytes of the frame
        identify this header, so it does not need to be parsed.
        """
        frames = asked.frames
        frame, start = frames[-1], len(asked.topic) + 1 if len(frames) == 1 else 0
        end = start + HEADER_SIZE
        if frame.startswith(_SIMPLE, start) and len(frame) >= end and not frame[start + _FLAGS_AT]:
            number, start = frame[start + CODEC_AT], end
        elif frame.startswith(MAGIC, start):
            header = parse_header(frame[start : start + HEADER_MAX])
            if header.kind is not Kind.DATA:
                raise EnvelopeError(f"a tracked header of the kind {header.kind.name}; expected DATA")
            number, start = header.codec, start + header.size
        else:
            number = 0
        body = frame[start:]
        if not number:
            asked.json = detect(body) is JSON
        return number, body

    def _unrouted(self, raw: RawFrames) -> int:
        asked = _asked(raw)
        self._stats.no_handler += 1
        near = self._matcher.misfit(asked.topic)
        asked.refuse(404, f"no handler for {str(Topic.from_wire(asked.topic))!r}{near and f': {near}'}")
        return UNDECODABLE

    def _malformed(self, error: EnvelopeError, raw: RawFrames) -> int:
        self._stats.bad_requests += 1
        self._results.malformed(error, raw)
        _asked(raw).refuse(400, f"not a request: {error.reason}")
        return UNDECODABLE


def _end_late(asked: Asked) -> None:
    """End a request after its timeout: send a failure, and cancel the call."""
    asked.deadline = None
    running, asked.running = asked.running, None
    # Refused before the call is cancelled: `failed` then finds the request over, and counts it as cancelled.
    asked.refuse(500, "TimeoutError: the timeout of the request expired before the handler ended")
    if running is not None:
        running.cancel()


def _is_plain(result: Any) -> bool:
    """Return True for a value that zroute neither awaits nor iterates over."""
    if type(result) in (Skipped, Waiting):
        return False
    # The first test is that of `is_awaitable`.
    return not (hasattr(result, "__await__") or hasattr(result, "__next__") or hasattr(result, "__anext__"))


def reason_of(error: BaseException) -> str:
    """Return the reason why a body could not be decoded, as text for the client."""
    return printable(error.reason if isinstance(error, DecodeError) else f"{type(error).__name__}: {text_of(error)}")


_BYTES = (bytes, bytearray, memoryview)
_NULLS: Mapping[Codec, bytes] = {MSGPACK: b"\xc0", JSON: b"null"}


def _encoder(route: CompiledRoute, codecs: Codecs, most: int, *, json: bool) -> Encode:
    """Return the function that encodes the replies of a route.

    The function raises EncodeError for a reply of more than ``most`` bytes. If ``json`` is True, replies are encoded as
    JSON. Values that JSON can't carry, such as bytes, are then still encoded with the usual codec.
    """
    replies = replies_of(route.route)
    declared, may_be_none = replies.type, replies.may_be_none
    chosen = JSON if json else route.options.codec or codecs.default
    null = (chosen.number, _NULLS[chosen]) if chosen in _NULLS else (RAW.number, b"")
    if declared is NoneType:
        return _none_encoder(null)
    encode, _, _ = bind_encoder(declared, route.options.codec, codecs.default, codecs.extras)
    encode_usual = encode
    if json:
        # JSON can't carry the type: all replies then keep the usual codec.
        with suppress(SchemaError):
            encode, _, _ = bind_encoder(declared, JSON, codecs.default, codecs.extras)

    def encode_reply(value: Any) -> tuple[int, bytes]:
        if value is None:
            if not may_be_none:
                raise EncodeError(f"the handler returned None, but declares {describe(declared)}", schema=declared)
            return null
        if type(value) is WithHeaders:
            raise EncodeError("a reply can't have headers: return the value without WithHeaders")
        number, body = (encode_usual if isinstance(value, _BYTES) else encode)(value)
        if len(body) > most:
            raise EncodeError(f"the reply has {len(body)} bytes, more than max_message={most}")
        return number, body

    return encode_reply


def _none_encoder(null: tuple[int, bytes]) -> Encode:
    """Return the function that encodes the replies of a handler that declares None."""

    def encode_reply(value: Any) -> tuple[int, bytes]:
        if value is not None:
            raise EncodeError(f"the handler returned {type(value).__name__}, but declares None", schema=NoneType)
        return null

    return encode_reply
