"""The ZeroMQ transport: a pair of sockets, and the accounts of the tracked wire."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, succeed

from zroute.endpoints import SIDES, Endpoint, Ends, ResolvedAddresses, Side
from zroute.errors import EndpointError
from zroute.logs import printable
from zroute.messages.recovery import REQUEST
from zroute.messages.topics import Pattern, minimal_cover
from zroute.messages.wire import NamedFrame
from zroute.options import LINGER_ABORT, LINGER_DRAIN
from zroute.receiving.hearing import ANSWER_SECONDS
from zroute.receiving.session import SubscriberSession
from zroute.sockets.access import CurveGuard, guard_for
from zroute.sockets.pair import SocketPair
from zroute.sockets.pubsub import SubConnection
from zroute.sockets.requests import RequestSockets
from zroute.transport import JobWorker, Reader, Receive, Transport, TransportRequest
from zroute.transports.jobs import JobSockets
from zroute.transports.stated import StatedSockets

if TYPE_CHECKING:
    from zroute.requests.asked import Asked
    from zroute.requests.client import Client

__all__ = ["ZmqTransport"]

_log = logging.getLogger("zroute")

_CATCH_UP = 1.0
"""The time in seconds for which a stop reads all messages.

After that time, the stop reads only messages that had arrived before, because publishers that never pause would keep it
reading. The stop waits up to `ANSWER_SECONDS` for the last answers of publishers. While messages that
precede these answers are unread, it waits up to half of the drain timeout.
"""

_NONE = Ends()

_PAUSED = 0.1
"""The time in seconds between two checks whether reading is still paused."""

_ANSWERS = 0.005
"""The time in seconds between two checks for the last answers of publishers, while no other message can be read."""


class ZmqTransport(SocketPair):
    """A `zroute.transport.Transport` with a SUB and an XPUB socket.

    A subscriber asks publishers for their counters by subscribing to special topics, so the accounts are those of
    `SubscriberSession`. Endpoints with a stated form have sockets of their own, without accounts.
    """

    kept = None
    states = None
    opened = Transport.opened
    confirmed = Transport.confirmed
    make_session = Transport.make_session
    count_subscribers = Transport.count_subscribers
    ring = Transport.ring

    def __init__(self, request: TransportRequest) -> None:
        app = request.app
        self._recognised = tuple(endpoint for endpoint in request.ends.sub if endpoint.form is None)
        super().__init__(request.reactor, app, subscribe_to=self._recognised, publish_to=request.ends.pub)
        self._request = request
        self._stated = StatedSockets(request)
        self._jobs = JobSockets(request)
        self.hand_out, self.take_jobs = self._jobs.hand_out, self._jobs.take_jobs
        self._publisher = request.ends.publisher
        self._listening = self._names_peers = False
        self._ends = request.ends
        self._is_open = False
        self._curve: CurveGuard | None = None
        self._requests = RequestSockets(request.reactor, app, request.stats)
        self.accounts = SubscriberSession(request.reactor, request.stats, _log, app.name, request.found)
        self.accounts.ended = self.expect_end
        self.on_connected, self.on_closed = self.accounts.rejoin, self.accounts.closed
        for pair in (self, *self._stated.pairs):
            pair.on_vanished = partial(self._vanished, pair)

    def _vanished(self, pair: SocketPair, address: str) -> None:
        Deferred.fromCoroutine(self._leave_address(pair, address))

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._is_open

    def open(self, receive: Receive) -> None:
        """Open all sockets; see `SocketPair.open`, also for the methods below."""
        try:
            self._protect()
            super().open(receive)
            if self.pub is not None:
                self.pub.fleeting = REQUEST
            try:
                self._stated.open()
            except BaseException:
                super().close(LINGER_ABORT)
                raise
        except BaseException:
            self._end_guard()
            raise
        self._is_open = True

    def _protect(self) -> None:
        """Give all sockets a guard, which decides who may connect."""
        request = self._request
        guard = guard_for(request.reactor, request.ends.access, request.app.name, request.stats)
        if isinstance(guard, CurveGuard):
            self._curve = guard
            guard.begin(request.app.context.acquire(), request.ends)
        for endpoint in request.ends:
            guard.check(endpoint)
        self.guard = self._requests.guard = self._jobs.guard = guard
        for pair in self._stated.pairs:
            pair.guard = guard

    def _end_guard(self) -> Deferred[None]:
        """Refuse all further connections, and release the context of the guard."""
        guard, self._curve = self._curve, None
        if guard is None:
            return succeed(None)
        guard.end()
        released: Deferred[None] = self._request.app.context.release(self._request.reactor)
        return released

    def pause(self) -> None:
        """Stop reading until `resume`."""
        super().pause()
        self._stated.pause()

    def resume(self) -> None:
        """Resume reading."""
        super().resume()
        self._stated.resume()

    def close(self, linger: int = LINGER_DRAIN) -> Deferred[None]:
        """Close all sockets."""
        self._is_open = False
        # All sockets are closed now, and awaited afterwards, so that their linger times pass at the same time.
        stated, requests, jobs = self._stated.close(linger), self._requests.close(linger), self._jobs.close(linger)
        closed = super().close(linger).addCallback(lambda _: stated).addCallback(lambda _: requests)
        guarded = self._end_guard()
        return closed.addCallback(lambda _: jobs).addCallback(lambda _: guarded)

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The workers of all owners."""
        return self._jobs.workers

    def open_requests(self, client: Client | None, on_request: Callable[[Asked], object] | None) -> None:
        """Open the sockets for requests; see `RequestSockets.open`."""
        self._requests.open(client, self._request.ends.req, on_request, self._request.ends.rep)

    def answer(self, patterns: Sequence[Pattern]) -> None:
        """Begin to read requests."""
        self._requests.listen()

    @property
    def readers(self) -> list[SubConnection]:
        """The receiving sockets: for zroute's wires, and for each stated form."""
        return super().readers + [reader for pair in self._stated.pairs for reader in pair.readers]

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Subscribe to the fewest prefixes that cover all patterns.

        A SUB socket can filter only by prefix.
        """
        self._listening = True
        self._stated.listen(patterns)
        if self._recognised:
            self.accounts.listen(self, minimal_cover(pattern.subscription for pattern in patterns))

    @property
    def publisher(self) -> str | None:
        """The name of the key of all publishers; None after another peer was added."""
        return self._publisher

    def name_peers(self, wanted: bool) -> None:
        """State the name of the peer's key in each frame, unless all keys are equal."""
        self._names_peers = wanted
        names = wanted and self._curve is not None and self._publisher is None
        for reader in self.readers:
            reader.name_peers(NamedFrame.of if names else None)

    def leave(self) -> None:
        """Withdraw all subscriptions, including markers."""
        self.subscribe(())
        self._stated.leave()

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when ``publishers`` publishers have answered.

        Publishers answer the marker that follows the subscriptions. A publisher of a stated form never answers; it
        counts as soon as it is connected. Each endpoint with a stated form must have a connected publisher.
        """
        if not self._stated:
            return self.accounts.ready(publishers, state=state)
        return Deferred.fromCoroutine(self._ready(publishers, state=state))

    async def _ready(self, publishers: int | None, *, state: bool) -> None:
        while not self._listening or (publishers is None and self._stated.unconnected()):
            await self._wait(_ANSWERS)
        if publishers is None:
            await (self.accounts.ready(None, state=state) if self._recognised else succeed(None))
            return
        while self._answered(state=state) + self._stated.peers < publishers:
            await self._wait(_ANSWERS)

    def _answered(self, *, state: bool) -> int:
        return self.accounts.given if state else len(self.accounts.complete)

    def unready(self, *, state: bool) -> str:
        """Return the publishers that have answered, and the endpoints without an answer."""
        away = "".join(f"; {each} is not connected" for each in self._stated.unconnected())
        if not self._recognised:
            return f"{self._stated.peers} publishers are connected{away}; check that the publishers are running"
        return self._unanswered(state=state) + away

    def _unanswered(self, *, state: bool) -> str:
        answered = self.accounts.complete
        silent = "".join(f"; no answer from {each}" for each in self.silent(answered))
        names = f" ({', '.join(map(printable, answered))})" if answered else ""
        kept = ""
        if state and self.accounts.given < len(answered):
            not_given = len(answered) - self.accounts.given
            kept = (
                f"; {not_given} of these publishers have not sent all kept messages, or this app has not read all "
                "of them"
            )
        return (
            f"{len(answered)} publishers have answered{names}{kept}{silent}; check that the publishers are running "
            "and use "
            "wire='tracked'"
        )

    def summary(self) -> Iterator[tuple[int, str]]:
        """Yield log lines: the resolved endpoints, and warnings.

        An endpoint to which any program in the network can connect has a warning.
        """
        yield from self._lines(self._resolved())
        yield from self._stated.summary()

    def _lines(self, found: Iterable[tuple[Side, Endpoint, str]]) -> Iterator[tuple[int, str]]:
        """Yield the log lines about some endpoints."""
        name = self._request.app.name
        for side, endpoint, resolved in found:
            how = "bound to" if endpoint.bind else "connects to"
            form = "" if endpoint.form is None else f", reads {endpoint.form}"
            yield logging.INFO, f"{name}: {side.verb}, {how} {resolved}{form}"
            warning = self._request.ends.access.exposure(endpoint.resolved(resolved))
            if warning is not None:
                yield logging.WARNING, f"{name}: {warning}"

    def _resolved(self, before: Ends = _NONE) -> Iterator[tuple[Side, Endpoint, str]]:
        """Yield the side of each open endpoint, the endpoint, and its resolved address.

        The endpoints in ``before``, which are the first of each side, are omitted.
        """
        addresses = self.addresses
        for side in SIDES:
            found = zip(self._ends.of(side), addresses.of(side), strict=False)
            for endpoint, resolved in islice(found, len(before.of(side)), None):
                yield side, endpoint, resolved

    @property
    def addresses(self) -> ResolvedAddresses:
        """The addresses of the open endpoints, with the actual ports."""
        return ResolvedAddresses(
            sub=tuple(self._subscribed()),
            pub=tuple(self.pub.endpoints) if self.pub else (),
            rep=tuple(self._requests.rep),
            req=tuple(self._requests.req),
            jobs=self._jobs.jobs,
            work=self._jobs.work,
        )

    def _subscribed(self) -> Iterator[str]:
        """Yield the addresses of the SUB sockets, in the order of the endpoints."""
        addresses = self._stated.addresses() | {None: iter(self.subscribed if self.sub else ())}
        for endpoint in self._ends.sub:
            yield from islice(addresses[endpoint.form], 1)

    # -- changes of endpoints

    def add(self, ends: Ends) -> None:
        """Open further endpoints, all or none, and log them."""
        if self.guard is not None:
            for endpoint in ends:
                self.guard.check(endpoint)  # here, because the look-up of a host name would only log the fault
        if any(endpoint.bind or endpoint.peer != self._publisher for endpoint in ends.sub):
            # Before the endpoint is opened. For good, because messages of earlier endpoints may be unread.
            self._publisher = None
            self.name_peers(self._names_peers)
        opened: list[tuple[Callable[[Endpoint, str], None], Endpoint, str]] = []
        try:
            for endpoint in ends.sub:
                pair = self._pair_for(endpoint)
                opened.append((pair.drop_subscribed, endpoint, pair.add_subscribed(endpoint)))
            for endpoint in ends.pub:
                address = self.add_published(endpoint)
                opened.append((self.drop_published, endpoint, address))
        except EndpointError:
            for drop, endpoint, address in opened:
                drop(endpoint, address)
            raise
        before = self._ends
        self._ends += ends
        for level, text in self._lines(self._resolved(before)):
            _log.log(level, "%s", text)
        if any(endpoint.address.startswith("inproc://") for endpoint in ends.sub):
            self.accounts.rejoin()  # libzmq reports no connection

    def _pair_for(self, endpoint: Endpoint) -> SocketPair:
        pair = self if endpoint.form is None else self._stated.pair(endpoint.form)
        if pair is None or pair.sub is None:
            form = "" if endpoint.form is None else f" in the form {endpoint.form}"
            raise EndpointError(
                f"can't add {endpoint}: {self._request.app.name!r} was started without an endpoint to receive "
                f"from{form}, so it has no socket for this endpoint: set at least one such endpoint in App(sub=…)",
                endpoint=str(endpoint),
            )
        return pair

    def remove(self, addresses: ResolvedAddresses) -> Deferred[None]:
        """Close endpoints, after reading the messages that have arrived."""
        for address in addresses.pub:
            place = self.addresses.pub.index(address)
            endpoint = self._ends.pub[place]
            self._ends = attrs.evolve(self._ends, pub=_without(self._ends.pub, place))
            self.drop_published(endpoint, address)
            self._log_removed(endpoint, address)
        return Deferred.fromCoroutine(self._remove(addresses.sub))

    async def _remove(self, addresses: Sequence[str]) -> None:
        """Close endpoints after reading for up to `_CATCH_UP` seconds.

        A socket drops the queued messages of a peer that it disconnects. If reading is paused for this whole time, the
        queued messages are an unknown loss.
        """
        for address in addresses:
            endpoint = self._ends.sub[self.addresses.sub.index(address)]
            pair = self._pair_for(endpoint)
            unread = await self._caught_up(pair)
            if unread is None:
                return
            links = pair.links_at(address)
            # The place is looked up again, because endpoints may have changed during the wait.
            self._ends = attrs.evolve(self._ends, sub=_without(self._ends.sub, self.addresses.sub.index(address)))
            pair.drop_subscribed(endpoint, address)
            if endpoint.form is None:
                self.accounts.depart(links, address, unread=unread)
            self._log_removed(endpoint, address)

    async def _caught_up(self, pair: SocketPair) -> bool | None:
        """Read for up to `_CATCH_UP` seconds.

        Return True if messages are unread because reading is paused, or None if the app has stopped meanwhile.
        """
        clock = self._request.reactor.seconds
        end = clock() + _CATCH_UP
        await self._wait(0)  # this may be called inside a read
        while pair.sub is not None and pair.readable() and clock() < end:
            await self._wait(_ANSWERS)
        return None if pair.sub is None else pair.sub.paused and pair.readable()

    async def _leave_address(self, pair: SocketPair, address: str) -> None:
        """Disconnect an address to which its host name no longer resolves.

        The messages from the address are read first. While reading is paused, the address stays connected.
        """
        while pair.sub is not None and pair.sub.paused:
            await self._wait(_PAUSED)
        unread = await self._caught_up(pair)
        links = pair.links_at(address)
        if unread is not None and pair.hang_up(address):
            if pair is self:
                self.accounts.depart(links, address, unread=unread)
            _log.info("%s: no longer connected to %s", self._request.app.name, address)

    def _log_removed(self, endpoint: Endpoint, address: str) -> None:
        verb = "no longer bound to" if endpoint.bind else "no longer connected to"
        _log.info("%s: %s %s", self._request.app.name, verb, address)

    # -- reading at the stop

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read until all publishers have answered once more, or the time has run out.

        A SUB socket that unsubscribes drops its queued messages, so the messages must be read first. The answer of a
        publisher arrives after all messages that it sent before. If an answer does not arrive in time, the remaining
        messages are an unknown loss. If a publisher never answers, the stop reads at most the number of messages that
        libzmq queues for one publisher; any further messages were sent later.
        """
        return Deferred.fromCoroutine(self._finish(reader, left))

    async def _finish(self, reader: Reader, left: Callable[[], float]) -> int:
        unread = await self._finish_stated(reader, left)
        return unread + await self._finish_recognised(reader, left)

    async def _finish_stated(self, reader: Reader, left: Callable[[], float]) -> int:
        """Read the messages of stated forms that have arrived.

        Reading takes up to `_CATCH_UP` seconds. Messages that are still unread after that time were sent later.
        """
        stated, clock = self._stated, self._request.reactor.seconds
        end = clock() + min(_CATCH_UP, left())
        most = self._request.stats.received + self._request.app.receive_queue * max(stated.peers, 1)
        while reader.reads_on and stated.readable() and clock() < end:
            stated.read()
            await self._wait(0)
        stated.pause()
        unread = most - self._request.stats.received
        if not reader.reads_on or not stated.readable() or unread <= 0:
            return 0
        return self._dropped(stated.discard(unread), _CATCH_UP)

    async def _finish_recognised(self, reader: Reader, left: Callable[[], float]) -> int:
        accounts, stats, clock = self.accounts, self._request.stats, self._request.reactor.seconds
        before, number = stats.received, 0
        end, longest = clock() + _CATCH_UP, clock() + left() / 2
        arrived = self._request.app.receive_queue * max(self.peers, 1)
        answers = min(clock() + ANSWER_SECONDS, longest)
        if reader.reads_on:
            accounts.ask_last()
        while reader.reads_on and not accounts.has_read_all and (self._waits(reader) or accounts.awaited):
            unread = arrived - (stats.received - before)
            waits = clock() < (longest if self._waits(reader) else answers) and accounts.awaited
            if clock() >= end and not waits and not (self._waits(reader) and unread > 0 and left()):
                number = self._leave_unread(reader, unread, clock() - end + _CATCH_UP)
                break
            self.read()
            await self._wait(0 if self._waits(reader) else _ANSWERS)
        self.pause()
        return number

    def _waits(self, reader: Reader) -> bool:
        """Return True if a message is waiting in the socket or in a frame that was read."""
        return bool(reader.unpacked or self.readable())

    def _leave_unread(self, reader: Reader, most: int, seconds: float) -> int:
        """Discard up to ``most`` messages that the stop has no time to read.

        Return the number of discarded messages.
        """
        if not self._waits(reader):
            return 0
        return self._dropped(self.discard(most) if most > 0 else 0, seconds)

    def _dropped(self, number: int, seconds: float) -> int:
        text = "%s: %s messages were still unread %.1f s after the stop, and are dropped"
        _log.warning(text, self._request.app.name, number or "more", seconds)
        return number

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._request.reactor.callLater(seconds, turn.callback, None)
        return turn


def _without(endpoints: tuple[Endpoint, ...], place: int) -> tuple[Endpoint, ...]:
    return endpoints[:place] + endpoints[place + 1 :]
