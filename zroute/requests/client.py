"""The client's half of requests: frames for servers, and replies for callers.

A caller awaits an `Answer`, or iterates over a `ReplyStream`. The request waits in a queue of `zroute.requests.lanes`
until a server has room for it.
"""

from __future__ import annotations

import os
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar
from weakref import WeakSet

from zroute.awaiting import Signal, check_loop
from zroute.clock import Clock, Looping
from zroute.errors import (
    BadRequestError,
    BusyError,
    DecodeError,
    EncodeError,
    EnvelopeError,
    NoHandlerError,
    NoServerError,
    NotRunningError,
    RequestError,
    RequestLostError,
    RequestRefusedError,
    RequestTimeoutError,
    ServerError,
    UsageError,
    WrongThreadError,
)
from zroute.logs import printable
from zroute.messages.bodies import body_decoder, json_first, may_be_json
from zroute.messages.codecs import JSON, Codecs
from zroute.messages.requests import (
    MAGIC,
    Kind,
    Reply,
    pack_cancel,
    pack_credits,
    parse,
    parse_plain_reply,
    parse_reply,
    request_packer,
)
from zroute.messages.topics import Topic
from zroute.options import APP_WINDOW, STREAM_SILENCE, STREAM_WINDOW
from zroute.requests.lanes import Lane, Received, Requests, Unanswered
from zroute.stats import Stats

__all__ = ["Answer", "Client", "DecodeReply", "ReplyStream", "reply_decoder"]

T_co = TypeVar("T_co", covariant=True)

DecodeReply = Callable[[int, bytes], Any]
"""A function that decodes the body of a reply.

The arguments are the number of the codec (0 if none is stated) and the body.
"""

Pack = Callable[..., Sequence[Any]]
"""Packs a request, with the arguments of `zroute.messages.requests.request_packer`; returns its frames."""

_DECODERS = 1000
"""The number of types whose decoders a client keeps."""

_ANY_ERRORS: dict[int, type[RequestError]] = {
    400: BadRequestError,
    404: NoHandlerError,
    500: ServerError,
    503: BusyError,
}


class Client:
    """The requests of one run of an app.

    Args:
        clock: The reactor.
        stats: The counters of the run.
        name: The name of the app, for errors.
        codecs: The codecs that the app knows.
        max_message: The maximum size of an encoded message in bytes.
        clock_ns: Returns nanoseconds since the Unix epoch.
        later: Schedules a call in the reactor's thread; can be called from any thread.
        is_plain: True to send requests in the plain form, for servers that are not zroute apps.
    """

    def __init__(
        self,
        clock: Clock,
        stats: Stats,
        name: str,
        codecs: Codecs,
        *,
        max_message: int,
        clock_ns: Callable[[], int],
        later: Callable[..., object],
        is_plain: bool = False,
    ) -> None:
        self._clock = clock
        self.queue = Requests(clock, window=APP_WINDOW, timed_out=self.timed_out, on_late=self._late)
        self.later = later
        self.check: Callable[[], None] | None = None
        """Raises an error if the caller can't use the sockets. The transport sets this function."""
        self.servers = "that App(req=…) contains its address"
        """What to check if no server is connected, for errors. The transport replaces this text."""
        self.answers_later = False
        """True if the app of this client has handlers, but does not answer yet."""
        self._stats = stats
        self._name = name
        self._codecs = codecs
        self._max_message = max_message
        self.epoch = int.from_bytes(os.urandom(8))
        self.clock_ns = clock_ns
        self.is_plain = is_plain
        self.pack: Pack = _plain if is_plain else _framed(request_packer(self.epoch, clock_ns))
        """Returns the frames of a request for `Lane.send`. A transport with another wire replaces this function."""
        self._streams: WeakSet[_Stream] = WeakSet()
        self._alive = Looping(self._show_life)
        self._alive.clock = clock  # type: ignore[assignment]  # a Clock has the methods that are needed
        self._closed = False
        self._thread = get_ident()
        self._loop = getattr(clock, "_asyncioEventloop", None)  # of Twisted's asyncio reactor
        self._unanswered = 0
        self._decoders: dict[Any, DecodeReply] = {}
        self._idle: list[Signal] = []

    @property
    def unanswered(self) -> int:
        """The number of requests whose callers wait, including unsent requests."""
        return self._unanswered

    def decoder(self, schema: Any) -> DecodeReply:
        """Return the function that decodes replies of the type ``schema``.

        Raises:
            SchemaError: No codec can carry the type.
        """
        try:
            made = self._decoders.get(schema)
        except TypeError:  # a type that can't be hashed
            return reply_decoder(schema, self._codecs)
        if made is None:
            if len(self._decoders) >= _DECODERS:  # types that the program creates while it runs
                self._decoders.clear()
            made = self._decoders[schema] = reply_decoder(schema, self._codecs)
        return made

    def request(
        self,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        decode: DecodeReply,
        timeout: float | None,
        retry: tuple[float, ...] = (),
    ) -> Coroutine[Any, Any, Any]:
        """Send a request, and return a coroutine for the reply.

        Without ``retry``, the request is sent before this function returns. ``retry`` has the delays before further
        attempts. The client retries a request that was lost, that a busy server refused, or that found no server. The
        client retries only within the timeout. The other arguments and the errors are those of `ask`.
        """
        if retry:
            return self._retrying(topic, number, body, headers, decode, timeout, retry)
        answer = Answer(self, topic, decode, timeout)
        self._send(answer, topic, number, body, headers, 0)
        return answer.value()

    async def _retrying(
        self,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        decode: DecodeReply,
        timeout: float | None,
        retry: tuple[float, ...],
    ) -> Any:
        began = self._clock.seconds()
        left = timeout
        for delay in retry:
            try:
                return await self.ask(topic, number, body, headers, decode, left).value()
            except (RequestLostError, BusyError, NoServerError):
                # Less the pause, so that no attempt begins after the timeout.
                left = None if timeout is None else began + timeout - self._clock.seconds() - delay
                if left is not None and left <= 0:
                    raise
            await self._pause(delay)
        return await self.ask(topic, number, body, headers, decode, left).value()

    async def _pause(self, seconds: float) -> None:
        signal = Signal()
        timer = self._clock.callLater(seconds, signal.fire)
        try:
            await signal
        finally:
            if timer.active():
                timer.cancel()

    def ask(
        self,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        decode: DecodeReply,
        timeout: float | None,
    ) -> Answer:
        """Send a request, and return its reply as an awaitable.

        Args:
            topic: The topic.
            number: The number of the codec of ``body``.
            body: The encoded message.
            headers: The application's headers.
            decode: Decodes the reply.
            timeout: The seconds to wait; None for no limit.

        Raises:
            EncodeError: The message or the headers are too large.
            NotRunningError: The client is closed.
        """
        answer = Answer(self, topic, decode, timeout)
        self._send(answer, topic, number, body, headers, 0)
        return answer

    def stream(
        self,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        decode: DecodeReply,
        timeout: float | None,
    ) -> ReplyStream[Any]:
        """Send a request for a stream; the arguments are those of `ask`."""
        if self.is_plain:
            raise UsageError("plain requests have no streams: request streams from an app with wire='tracked'")
        stream = _Stream(self, topic, decode, timeout)
        self._send(stream, topic, number, body, headers, STREAM_WINDOW)
        self._streams.add(stream)
        if not self._alive.running:
            self._alive.start(STREAM_SILENCE / 4, now=False)
        return ReplyStream(self, stream)

    def _send(
        self,
        request: Unanswered,
        topic: bytes,
        number: int,
        body: bytes,
        headers: Mapping[str, Any] | None,
        window: int,
    ) -> None:
        if get_ident() != self._thread:
            raise WrongThreadError(
                "a request was sent in a thread other than the reactor's: use app.from_thread(app.request, "
                "topic, message) in that thread, without asyncio.run(); or run the task and the app on one event "
                "loop"
            )
        if self._loop is None or self._loop is not _get_running_loop():
            check_loop(self._clock)
        if self.check is not None:
            self.check()
        if self._closed:
            raise NotRunningError(f"{self._name!r} has stopped, and can't send requests")
        if len(body) > self._max_message:
            raise EncodeError(
                f"the request has {len(body)} bytes, more than max_message={self._max_message}: send a smaller "
                "request, or give both apps limits=Limits(max_message=…)"
            )
        id = request.id = self.queue.new_id()
        if headers and self.is_plain:
            raise EncodeError("headers need wire='tracked': remove the headers, or use wire='tracked'")
        request.frames = self.pack(id, topic, number, body, headers, request.timeout, window)
        self._stats.requests_sent += 1
        self._unanswered += 1
        self.queue.send(request)

    def cancel(self, request: _Call) -> None:
        """End a request whose caller no longer waits, and tell the server."""
        if not request.ended:
            request.ended = True
            self.tell_cancelled(request)
            self.queue.give_up(request)
            self.ended()

    def tell_cancelled(self, request: Unanswered) -> None:
        """Tell the server that the caller of a request no longer waits."""
        if request.lane is not None:
            self.note(request.lane, pack_cancel(request.id))

    def note(self, lane: Lane, frame: bytes) -> None:
        """Send the server a frame that is not a request.

        A plain server gets no such frame, because it can't read the frame.
        """
        if not self.is_plain:
            lane.note((b"", frame))

    def abandon(self, stream: _Stream) -> None:
        """End a stream that the caller has left."""
        self._streams.discard(stream)
        stream.items.clear()
        self.cancel(stream)

    def ended(self, error: Exception | None = None) -> None:
        """Count the end of a request.

        When the last request has ended, its caller continues first, and then the callers of `idle`.
        """
        self._unanswered -= 1
        if error is not None:
            self._stats.requests_failed += 1
        if self._idle and not self._unanswered:
            waiting, self._idle = self._idle, []
            for signal in waiting:
                self._clock.callLater(0, signal.fire)

    async def idle(self) -> None:
        """Wait until no request is unanswered."""
        if self._unanswered:
            signal = Signal()
            self._idle.append(signal)
            await signal

    def _late(self) -> None:
        self._stats.replies_late += 1

    def close(self) -> None:
        """Fail all unanswered requests with NotRunningError, and tell the servers."""
        self._closed = True
        if self._alive.running:
            self._alive.stop()
        # Before `close`, which forgets the lane of each request.
        for request in self.queue.awaited():
            self.tell_cancelled(request)
        self.queue.close(lambda: NotRunningError(f"{self._name!r} stopped before the reply arrived"))

    def is_over(self, request: Unanswered) -> bool:
        """Return True if less than a millisecond of a request's time is left."""
        return request.deadline is not None and request.deadline[0] - self._clock.seconds() < 0.001

    def timed_out(self, id: bytes, seconds: float) -> Exception:
        """Return the error for a request whose timeout has passed."""
        if self.queue.lacks_server(id):
            return NoServerError(
                f"no server was connected within {seconds:g} s: check that the server is running, and {self.servers}"
            )
        if self.queue.waiting:  # the handler of this request may itself wait for an unsent request
            return RequestTimeoutError(
                f"{'not sent' if self.queue.is_unsent(id) else 'no reply'} within {seconds:g} s: "
                f"{self.queue.unanswered} requests of this app are unanswered, and {self.queue.waiting} unsent: "
                "send fewer requests at the same time, or connect to more servers"
            )
        hint = "; this app answers its own requests only after on_startup has ended" if self.answers_later else ""
        return RequestTimeoutError(f"no reply within {seconds:g} s: check that the server is not overloaded{hint}")

    def _show_life(self) -> None:
        """Tell the servers that the callers still read the open streams."""
        streams = [each for each in self._streams if not each.ended]
        for stream in streams:
            if stream.lane is not None:
                self.note(stream.lane, pack_credits(stream.id, 0))
        if not streams:
            self._alive.stop()


def _framed(pack: Callable[..., bytes]) -> Pack:
    return lambda *given: (b"", pack(*given))


def _plain(id: bytes, topic: bytes, _number: int, body: bytes, *_: object) -> Sequence[bytes]:
    return id, b"", topic, body


_REPLY, _ITEM, _FAILED = int(Kind.REPLY), int(Kind.ITEM), int(Kind.FAILED)


def _parsed(parts: Received) -> Reply:
    """Parse a reply of either form, from the parts after the empty part.

    A reply that the transport has parsed is returned unchanged.

    Raises:
        EnvelopeError: The reply is malformed.
    """
    if isinstance(parts, Reply):
        return parts
    if len(parts) == 1 and parts[0].startswith(MAGIC):
        return parse_reply(parse(parts[0]))
    return parse_plain_reply(parts)


class _Call(Unanswered):
    """A request of an app.

    Attributes:
        ended: True if the last reply has arrived, or the request has failed or was cancelled.
        error: The error that the caller gets; None without a failure.
    """

    __slots__ = ("__weakref__", "_client", "_decode", "_signal", "_topic", "ended", "error")

    def __init__(self, client: Client, topic: bytes, decode: DecodeReply, timeout: float | None) -> None:
        super().__init__(timeout)
        self._client = client
        self._topic = topic
        self._decode = decode
        self._signal = Signal()
        self.ended = False
        self.error: Exception | None = None

    def failed(self, error: Exception) -> None:
        """Record the failure, and wake the caller."""
        if isinstance(error, RequestError | NotRunningError):
            error.args = (f"request to {str(Topic.from_wire(self._topic))!r}: {error}",)
        self.ended, self.error = True, error
        self._client.ended(error)
        self._signal.fire()

    def _refused(self, reply: Reply) -> Exception:
        text = printable(reply.body.decode("utf-8", "replace"))
        kind = _ANY_ERRORS.get(reply.number)
        if kind is None:
            return RequestRefusedError(
                f"the server refused the request with code {reply.number}: {text}", code=reply.number, reason=text
            )
        return kind(f"{_PHRASES[reply.number]}: {text}", reason=text)

    def _undecodable(self, error: BaseException) -> DecodeError:
        """Return the error for a value that can't be decoded as the declared type.

        The user's code in a schema may raise any ``error``, even SystemExit.
        """
        reason = error.reason if isinstance(error, DecodeError) else f"{type(error).__name__}: {printable(error)}"
        made = DecodeError(f"reply can't be decoded: {reason}", topic=str(Topic.from_wire(self._topic)))
        made.__cause__ = error
        return made


_PHRASES = {
    400: "the server refused the request",
    404: "the server refused the request",
    500: "the handler failed",
    503: "the server is busy",
}


class Answer(_Call):
    """The reply to one request, to be awaited once."""

    __slots__ = ("_reply", "_value")

    _reply: Reply
    _value: Any

    def read(self, parts: Received) -> bool:
        """Read the reply; return True, because a single reply is the last message."""
        try:
            self._reply = parts if type(parts) is Reply else _parsed(parts)
        except EnvelopeError as error:
            self.error = RequestError(f"the server sent {error}")
        else:
            # The server counts the time in whole milliseconds, so its failure may arrive just before the timeout.
            if self._reply.kind == _FAILED and self._reply.number == 500 and self._client.is_over(self):
                self.error = self._client.timed_out(self.id, self.timeout or 0.0)
        return True

    def deliver(self) -> None:
        """Decode the reply, and wake the caller."""
        error = self.error
        if error is None:
            reply = self._reply
            if reply.kind == _REPLY:
                try:
                    self._value = self._decode(reply.number, reply.body)
                except BaseException as caught:
                    error = self._undecodable(caught)
            elif reply.kind == _FAILED:
                error = self._refused(reply)
            else:
                error = RequestError("the server sent a stream: use app.request_stream")
        if error is not None:
            self.failed(error)
            return
        self.ended = True
        self._client.ended()
        self._signal.fire()

    async def value(self) -> Any:
        """Wait for the reply and return it.

        If the caller cancels this coroutine, the client tells the server.
        """
        if not self.ended:
            try:
                await self._signal
            except BaseException:  # the caller's coroutine was cancelled or closed
                self._client.cancel(self)
                raise
        return self.result()

    def result(self) -> Any:
        """Return the value of a reply that has arrived, or raise the error."""
        if self.error is not None:
            raise self.error
        return self._value


class _Stream(_Call):
    """The items of one request that wait for the caller."""

    __slots__ = ("_fault", "_last", "_taken", "items")

    def __init__(self, client: Client, topic: bytes, decode: DecodeReply, timeout: float | None) -> None:
        super().__init__(client, topic, decode, timeout)
        self.items: deque[Reply] = deque()
        self._taken = 0
        self._last = False
        self._fault: Exception | None = None

    def read(self, parts: Received) -> bool:
        """Store an item; return True if no more items follow."""
        try:
            reply = _parsed(parts)
        except EnvelopeError as error:
            return self._broken(f"the server sent {error}")
        self._last = reply.kind != _ITEM
        if reply.kind == _FAILED:
            self._fault = self._refused(reply)
        elif reply.kind in (_ITEM, _REPLY):
            self.items.append(reply)
            # The timeout is the time that the caller waits for an item, so it stops when an item has arrived.
            self._client.queue.suspend(self)
        if len(self.items) > STREAM_WINDOW:
            self.items.clear()
            return self._broken(f"the server sent more than {STREAM_WINDOW} items without credit")
        return self._last

    def _broken(self, reason: str) -> bool:
        """End the stream because of a fault of the server, which may continue to send."""
        self._client.tell_cancelled(self)
        self._last, self._fault = True, RequestError(reason)
        return True

    def deliver(self) -> None:
        """Wake the caller."""
        if self._fault is not None:
            # Not the method of this class, which tells the server to cancel a stream that has ended.
            super().failed(self._fault)
            return
        if self._last:
            self.ended = True
            self._client.ended()
        self._signal.fire()  # comes last: the caller may leave the loop at once, which also ends the request

    def failed(self, error: Exception) -> None:
        """Record the failure, wake the caller, and cancel the stream on the server."""
        self._client.tell_cancelled(self)
        super().failed(error)

    async def next(self) -> Any:
        """Return the next item; raise StopAsyncIteration at the end of the stream."""
        queue = self._client.queue
        while not self.items:
            if self.error is not None:
                raise self.error
            if self.ended:
                raise StopAsyncIteration
            if self.deadline is None:
                queue.renew(self)
            try:
                await self._signal
            finally:
                queue.suspend(self)
        reply = self.items.popleft()
        self._taken += 1
        # Credits are sent for half a window at a time: few messages, and the server still has credits.
        if self._taken >= STREAM_WINDOW // 2 and not self.ended and self.lane is not None:
            self._client.note(self.lane, pack_credits(self.id, self._taken))
            self._taken = 0
        try:
            return self._decode(reply.number, reply.body)
        except BaseException as error:
            raise self._undecodable(error) from error


class ReplyStream(Generic[T_co]):
    """The replies that a handler yields, for ``async for``.

    When the caller leaves the loop or calls `aclose`, the server closes the handler.
    """

    def __init__(self, client: Client, stream: _Stream) -> None:
        self._client = client
        self._stream = stream

    def __aiter__(self) -> ReplyStream[T_co]:
        return self

    async def __anext__(self) -> T_co:
        try:
            item: T_co = await self._stream.next()
        except BaseException:
            self._client.abandon(self._stream)
            raise
        return item

    if not TYPE_CHECKING:  # type checkers report the loop

        def __iter__(self) -> NoReturn:
            """Explain how to loop over the replies."""
            raise UsageError(
                "a stream of replies needs `async for reply in app.request_stream(…)`, in an async function"
            )

    async def aclose(self) -> None:
        """Close the stream, and the handler on the server."""
        self._client.abandon(self._stream)

    async def __aenter__(self) -> ReplyStream[T_co]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.abandon(self._stream)

    def __del__(self) -> None:
        # Python may call __del__ at any time, even while a message is sent, so the stream ends in a later reactor turn.
        if not self._stream.ended:
            self._client.later(self._client.abandon, self._stream)


def reply_decoder(schema: Any, codecs: Codecs) -> DecodeReply:
    """Return the function that decodes replies of type ``schema`` in any codec.

    If ``schema`` is None, the returned function ignores its arguments and returns None.

    Raises:
        SchemaError: No codec can carry the type.
    """
    if schema in (None, type(None)):
        return lambda _number, _body: None
    chosen: dict[str, Any] = {"route": None, "default": codecs.default, "extras": codecs.extras}
    unstated: Callable[[bytes], Any] = body_decoder(schema, stated=None, **chosen)
    if may_be_json(schema, stated=None, **chosen):
        unstated = json_first(unstated, body_decoder(schema, stated=JSON, **chosen))
    made = {0: unstated}

    def decode(number: int, body: bytes) -> Any:
        known = made.get(number)
        if known is None:
            stated = codecs.by_number.get(number)
            if stated is None:
                raise DecodeError(f"unknown codec {number}: pass the codec to this app, as in App(codec=…)")
            known = made[number] = body_decoder(schema, stated=stated, **chosen)
        return known(body)

    return decode
