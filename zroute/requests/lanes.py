"""A queue of requests, and the lanes that carry requests to servers.

libzmq keeps messages that a peer has not accepted, and may deliver them after the caller has given up. zroute therefore
queues unsent requests itself, so that a timeout or a cancellation can remove them. A window limits the unanswered
requests that a server receives.

`Requests` is the queue of unsent requests, and chooses a `Lane` for each. A `Lane` counts the unanswered requests of
one server. The owner of a lane connects the lane to a server.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count, takewhile
from struct import Struct
from typing import Any, TypeAlias, cast

from twisted.internet.defer import Deferred

from zroute.clock import Clock, Deadline, Deadlines
from zroute.errors import EnvelopeError
from zroute.messages.requests import MAGIC, Reply, parse
from zroute.options import REQUEST_FORGOTTEN, REQUEST_WINDOW

__all__ = ["Lane", "Received", "Requests", "Unanswered", "split_reply"]

Received: TypeAlias = "list[bytes] | Reply"
"""A message from a server: its parts after the empty part, or a reply that the transport has parsed."""

_NUMBER = Struct(">Q")  # the second half of an id; the first half is random


class Unanswered:
    """A request without a reply.

    A subclass implements `read`, `deliver` and `failed`. These methods may not raise errors, except that `read` may
    raise EnvelopeError.

    Attributes:
        id: The unique id, of 16 bytes unless the caller chose another one.
        frames: The frames to send; empty after the send.
        timeout: The seconds until the request fails; None for no limit.
        waits: True until the caller has given up or the request has failed.
        deadline: The end of the timeout. For an abandoned request, the time until which the request still counts.
        lane: The lane through which the request was sent.
        counts: True if the request takes room in its lane.
    """

    __slots__ = ("counts", "deadline", "frames", "id", "lane", "timeout", "waits")

    def __init__(self, timeout: float | None) -> None:
        self.id = b""
        self.frames: Sequence[Any] = ()
        self.timeout = timeout
        self.waits = True
        self.deadline: Deadline | None = None
        self.lane: Lane | None = None
        self.counts = True

    def read(self, parts: Received) -> bool:
        """Read a message from the server; return True if it is the last one."""
        raise NotImplementedError

    def deliver(self) -> None:
        """Pass the message that was read last to the caller."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Process the failure of the request."""
        raise NotImplementedError


class _WithDeferred(Unanswered):
    """A request whose reply fires a Deferred."""

    __slots__ = ("parts", "reply")

    parts: list[bytes]
    reply: Deferred[list[bytes]]

    def read(self, parts: Received) -> bool:
        self.parts = cast("list[bytes]", parts)  # only transports of apps parse replies
        return True

    def deliver(self) -> None:
        self.reply.callback(self.parts)

    def failed(self, error: Exception) -> None:
        self.reply.errback(error)


class Lane:
    """The unanswered requests of one peer or one socket.

    ``send`` takes the frames of a request, and returns False if it can't send them now. The owner calls:

    - `writable` when ``send`` may work again,
    - `received` with each reply,
    - `fail` for a request that will not be answered,
    - `lost` when the peer has disconnected.
    """

    def __init__(self, requests: Requests, send: Callable[[Sequence[Any]], bool]) -> None:
        self._requests = requests
        self.send = send
        self.sent: dict[bytes, Unanswered] = {}
        self.load = 0
        self.given_up = 0
        self.blocked = False
        self.down = False
        self._notes: deque[Sequence[bytes]] = deque()

    def up(self) -> None:
        """Use the lane again after ``down``, because the peer has reconnected.

        The owner sets ``down`` when libzmq reports the end of a connection. For a moment after that report, libzmq's
        socket still accepts messages for this connection, but drops these messages.
        """
        self.down = False
        self._requests.pump()

    def writable(self) -> None:
        """Try to send again: first the messages from `note`, then requests."""
        while self._notes and self.send(self._notes[0]):
            self._notes.popleft()
        if self.blocked and not self._notes:
            self.blocked = False
            self._requests.pump()

    def note(self, frames: Sequence[bytes]) -> None:
        """Send a message about a request that was sent, such as a cancellation."""
        if self._notes or not self.send(frames):
            self.blocked = True
            self._notes.append(frames)

    def received(self, id: bytes, parts: Received) -> bool:
        """Process a reply. Return False if no caller waits for the reply.

        The reply may be late or sent twice, or the request may be unknown.
        """
        request = self.sent.get(id)
        if request is None:
            self._requests.count_late()
            return False
        if self.given_up:
            self._requests.forget(self._given_up_before(request))
        return self._requests.answered(self, request, parts)

    def _given_up_before(self, request: Unanswered) -> Sequence[Unanswered]:
        earlier = takewhile(lambda other: other is not request, self.sent.values())
        return [other for other in earlier if not other.waits]

    def drop(self, request: Unanswered) -> None:
        """Remove a request that was answered, forgotten or lost; make room for another."""
        del self.sent[request.id]
        request.lane = None
        self.load -= request.counts
        self.given_up -= not request.waits

    def fail(self, id: bytes, error: Callable[[], Exception]) -> None:
        """Fail one request, because its peer will not answer.

        If the request is unknown, do nothing.
        """
        request = self.sent.get(id)
        if request is not None:
            self._requests.fail(self, request, error)

    def lost(self, error: Callable[[], Exception] | None) -> None:
        """Process the disconnection of the peer, which loses the peer's requests.

        Each lost request fails with a new ``error``. If ``error`` is None, the requests wait until their timeout,
        because another peer of the same socket may have received them. Waiting requests no longer take room in the
        lane.
        """
        self._notes.clear()
        self._requests.lost(self, error)


class Requests:
    """A queue of requests, sent in order through several lanes.

    Each request goes to the lane with the fewest unanswered requests. A lane may have at most ``window`` unanswered
    requests.

    If a caller gives up after the request was sent, the request still counts, for at most ``forgotten`` seconds. The
    request no longer counts once its own reply, or the reply to a later request, has arrived. A peer that has answered
    a later request has also read this request.

    Args:
        clock: The reactor, or a test's clock.
        window: The maximum number of unanswered requests of one lane.
        forgotten: The seconds after which a request without a caller no longer counts.
        timed_out: Takes the id of a request and the timeout in seconds, and returns the error for the caller.
        on_late: Called for each reply that no caller waits for.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        window: int = REQUEST_WINDOW,
        forgotten: float = REQUEST_FORGOTTEN,
        timed_out: Callable[[bytes, float], Exception],
        on_late: Callable[[], object] = lambda: None,
    ) -> None:
        self._deadlines = Deadlines(clock)
        self._window = window
        self._forgotten = forgotten
        self._timed_out = timed_out
        self._on_late = on_late
        self._waiting: dict[bytes, Unanswered] = {}
        self._lanes: list[Lane] = []
        self._first = os.urandom(8)
        self._numbers = count()
        self.late = 0

    @property
    def waiting(self) -> int:
        """The number of requests that have not been sent yet."""
        return len(self._waiting)

    @property
    def unanswered(self) -> int:
        """The number of sent requests that are neither answered nor forgotten."""
        return sum(len(lane.sent) for lane in self._lanes)

    @property
    def timed(self) -> int:
        """The number of requests that a deadline will end."""
        return len(self._deadlines)

    def add(self, lane: Lane) -> None:
        """Add a lane, and send requests through this lane."""
        self._lanes.append(lane)
        self.pump()

    def remove(self, lane: Lane) -> None:
        """Remove a lane. Its owner calls `Lane.lost` separately."""
        self._lanes.remove(lane)

    def make(self, parts: Sequence[bytes], timeout: float | None, id: bytes | None = None) -> Deferred[list[bytes]]:
        """Send a request when a lane has room; return a Deferred of the reply's parts.

        Args:
            parts: The parts of the request.
            timeout: The seconds until the Deferred fails; None for no limit. A request that is still unsent at that
                time, or when the Deferred is cancelled, is never sent.
            id: A unique id; the default is a new id of 16 bytes.
        """
        request = _WithDeferred(timeout)
        reply: Deferred[list[bytes]] = Deferred(lambda _: self.give_up(request))
        request.reply = reply
        request.id = self.new_id() if id is None else id
        request.frames = (request.id, b"", *parts)
        self.send(request)
        return reply

    def new_id(self) -> bytes:
        """Return a unique id of 16 bytes."""
        return self._first + _NUMBER.pack(next(self._numbers))

    def send(self, request: Unanswered) -> None:
        """Send a request when a lane has room. ``request`` must have an id and frames."""
        if request.timeout is not None:
            request.deadline = self._deadlines.add(request.timeout, request, self._too_late)
        # Otherwise an earlier request already waits for room.
        if self._waiting or not self._sent(request):
            self._waiting[request.id] = request

    def pump(self) -> None:
        """Send waiting requests until no lane has room."""
        while self._waiting:
            request = next(iter(self._waiting.values()))
            if not self._sent(request):
                return
            del self._waiting[request.id]

    def _sent(self, request: Unanswered) -> bool:
        """Send a request through a lane; return False if no lane has room."""
        while (lane := self._free()) is not None:
            if lane.send(request.frames):
                request.frames, request.lane = (), lane
                lane.sent[request.id] = request
                lane.load += 1
                return True
            lane.blocked = True  # `_free` skips a blocked lane, so the next round tries another one
        return False

    def _free(self) -> Lane | None:
        """Return the usable lane with the fewest unanswered requests, or None.

        Lanes with the same number of requests take turns.
        """
        if len(self._lanes) == 1:
            lane = self._lanes[0]
            return None if lane.blocked or lane.down or lane.load >= self._window else lane
        found = None
        for lane in self._lanes:
            if not (lane.blocked or lane.down) and lane.load < (self._window if found is None else found.load):
                found = lane
        if found is not None:
            self._lanes.remove(found)
            self._lanes.append(found)
        return found

    def answered(self, lane: Lane, request: Unanswered, parts: Received) -> bool:
        """Deliver a message from a server; return False if the caller has given up.

        If the message is the last one for this request, the lane has room for another request.
        """
        if not request.waits:
            self._end(lane, request)
            self.count_late()
            return False
        if request.read(parts):
            self._end(lane, request)
        request.deliver()
        return True

    def count_late(self) -> None:
        """Count a reply that no caller waits for."""
        self.late += 1
        self._on_late()

    def _end(self, lane: Lane, request: Unanswered) -> None:
        if request.deadline is not None:
            self._deadlines.cancel(request.deadline)
            request.deadline = None
        lane.drop(request)
        if self._waiting:
            self.pump()

    def fail(self, lane: Lane, request: Unanswered, error: Callable[[], Exception]) -> None:
        """See `Lane.fail`."""
        self._end(lane, request)
        self._fail([request], error)

    def lost(self, lane: Lane, error: Callable[[], Exception] | None) -> None:
        """See `Lane.lost`."""
        failed = []
        for request in tuple(lane.sent.values()):
            if not request.waits or error is not None:
                lane.drop(request)
                self._cancel_timer(request)
                failed.append(request)
            else:
                lane.load -= request.counts
                request.counts = False
        self.pump()
        self._fail(failed, error)

    def awaited(self) -> list[Unanswered]:
        """Return the sent requests whose callers wait."""
        return [request for lane in self._lanes for request in lane.sent.values() if request.waits]

    def close(self, error: Callable[[], Exception] | None) -> None:
        """Drop all requests and stop their timers.

        Each request fails with a new ``error``, if ``error`` is not None.
        """
        left = [*self._waiting.values(), *(request for lane in self._lanes for request in lane.sent.values())]
        self._waiting.clear()
        self._lanes.clear()
        for request in left:
            self._cancel_timer(request)
            request.lane = None  # an errback may cancel another request, which must not start a timer now
        self._deadlines.close()
        self._fail(left, error)

    @staticmethod
    def _fail(requests: Iterable[Unanswered], error: Callable[[], Exception] | None) -> None:
        for request in requests:
            if request.waits and error is not None:
                request.waits = False
                request.failed(error())
            request.waits = False

    def _too_late(self, request: Unanswered) -> None:
        request.deadline = None
        # The error is made before the request is given up, because its text says whether the request was sent.
        waits, error = request.waits, self._timed_out(request.id, request.timeout or 0.0)
        self.give_up(request)
        if waits:
            request.failed(error)

    def give_up(self, request: Unanswered) -> None:
        """Stop waiting for the reply, because the caller has given up."""
        self._cancel_timer(request)
        if not request.waits:
            return
        request.waits = False
        if self._waiting.pop(request.id, None) is None and request.lane is not None:
            request.lane.given_up += 1
            request.deadline = self._deadlines.add(self._forgotten, request, self._forget)

    def lacks_server(self, id: bytes) -> bool:
        """Return True if a request is unsent because no server is connected."""
        return id in self._waiting and all(lane.down for lane in self._lanes)

    def is_unsent(self, id: bytes) -> bool:
        """Return True if a request is unsent.

        Either no server is connected, or earlier requests take all room.
        """
        return id in self._waiting

    def _forget(self, request: Unanswered) -> None:
        self.forget([request])
        self.pump()

    def forget(self, given_up: Iterable[Unanswered]) -> None:
        """Stop waiting for the replies to these requests, to make room for others."""
        for request in given_up:
            self._cancel_timer(request)
            if request.lane is not None:
                request.lane.drop(request)

    def renew(self, request: Unanswered) -> None:
        """Restart the timeout of a request whose caller waits again."""
        self._cancel_timer(request)
        if request.timeout is not None:
            request.deadline = self._deadlines.add(request.timeout, request, self._too_late)

    def suspend(self, request: Unanswered) -> None:
        """Stop the timeout of a request while the caller does not wait for a reply.

        If the caller has given up, the timer continues, because its end makes room in the lane.
        """
        if request.waits:
            self._cancel_timer(request)

    def _cancel_timer(self, request: Unanswered) -> None:
        if request.deadline is not None:
            self._deadlines.cancel(request.deadline)
            request.deadline = None


def split_reply(parts: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the id of a request, and the parts of the server's reply.

    Raises:
        EnvelopeError: The message has neither the plain nor the tracked form.
    """
    if len(parts) == 2 and not parts[0]:
        if not parts[1].startswith(MAGIC):
            raise EnvelopeError("a plain reply to a tracked request: ask this server with wire='plain'")
        return parse(parts[1]).id, parts[1:]
    if len(parts) < 2 or parts[1]:
        raise EnvelopeError("not a reply: expected an id, an empty part and the parts of the reply")
    return parts[0], parts[2:]
