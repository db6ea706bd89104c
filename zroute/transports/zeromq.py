"""The ZeroMQ transport: a pair of sockets, and the accounts of the tracked wire."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from twisted.internet.defer import Deferred

from zroute.logs import printable
from zroute.messages.topics import Pattern, minimal_cover
from zroute.options import RECEIVED_MAX
from zroute.planning.plan import Request
from zroute.receiving.hearing import ANSWER_SECONDS
from zroute.receiving.session import SubscriberSession
from zroute.sockets.pair import SocketPair
from zroute.transport import Reader

__all__ = ["ZmqTransport"]

_log = logging.getLogger("zroute")

_CATCH_UP = 1.0
"""Seconds for which a stop reads all messages.

After that it reads only messages that had arrived before, because publishers that never pause would keep it reading. It
waits `ANSWER_SECONDS` for the last answers of publishers, and up to half of the drain timeout for the messages that
arrive before those answers.
"""

_ANSWERS = 0.005
"""Seconds between two checks for the last answers of publishers, while no other message can be read."""


class ZmqTransport(SocketPair):
    """A `zroute.transport.Transport` with a SUB and an XPUB socket.

    A subscriber asks publishers for their counters by subscribing to special topics, so the accounts are those of
    `SubscriberSession`.
    """

    kept = None

    def __init__(self, request: Request) -> None:
        plan = request.plan
        super().__init__(
            request.reactor,
            plan.addresses.context,
            subscribe_to=request.subscribe_to,
            publish_to=request.publish_to,
            max_message=plan.choices.max_message,
            max_subscription_bytes=plan.limits.max_subscription_bytes,
            drops=plan.choices.overflow == "drop",
            name=plan.name,
        )
        self._request = request
        self.accounts = SubscriberSession(request.reactor, request.stats, _log, plan.name, request.found)
        self.accounts.ended = self.expect_end
        self.on_connected = self.accounts.rejoin

    def listen(self, patterns: Sequence[Pattern]) -> None:
        """Subscribe to the fewest prefixes that cover all patterns.

        A SUB socket can filter only by prefix.
        """
        if self._request.subscribe_to:
            self.accounts.listen(self, minimal_cover(pattern.subscription for pattern in patterns))

    def leave(self) -> None:
        """Withdraw all subscriptions, including markers."""
        self.subscribe(())

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Return a Deferred that fires when this number of publishers has answered.

        They answer the marker that follows the subscriptions.
        """
        return self.accounts.ready(publishers, state=state)

    def unready(self, *, state: bool) -> str:
        """Return the publishers that have answered, and the endpoints without an answer."""
        answered = self.accounts.complete
        silent = "".join(f"; no answer from {each}" for each in self.silent(answered))
        names = f" ({', '.join(map(printable, answered))})" if answered else ""
        kept = ""
        if state and self.accounts.given < len(answered):
            not_given = len(answered) - self.accounts.given
            kept = f"; {not_given} of them have not sent all of their kept messages, or these are not read yet"
        return (
            f"{len(answered)} publishers have answered{names}{kept}{silent}; check that the publishers run and use "
            "wire='tracked'"
        )

    def summary(self) -> Iterator[tuple[int, str]]:
        """Yield each endpoint as it was resolved, and a warning for each open one.

        An endpoint is open if other hosts can reach it without authentication.
        """
        name, request = self._request.plan.name, self._request
        for what, endpoints, connection in (
            ("subscribes", request.subscribe_to, self.sub),
            ("publishes", request.publish_to, self.pub),
        ):
            for endpoint, resolved in zip(endpoints, connection.endpoints if connection else (), strict=False):
                how = "bound to" if endpoint.bind else "connects to"
                yield logging.INFO, f"{name}: {what}, {how} {resolved}"
                if endpoint.is_open:
                    yield logging.WARNING, f"{name}: {resolved} is open to the network, without authentication"

    # -- reading at the stop

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read until all publishers have answered once more, or until the time is over.

        A SUB socket that unsubscribes drops its queued messages, so it must read first. An answer arrives after all
        messages that its publisher sent before. Messages without an answer in time are an unknown loss. If a publisher
        never answers, the stop reads at most as many messages as libzmq queues for one publisher; any others were sent
        later.
        """
        return Deferred.fromCoroutine(self._finish(reader, left))

    async def _finish(self, reader: Reader, left: Callable[[], float]) -> int:
        accounts, stats, clock = self.accounts, self._request.stats, self._request.reactor.seconds
        before, number = stats.received, 0
        end, longest, arrived = clock() + _CATCH_UP, clock() + left() / 2, RECEIVED_MAX * max(self.peers, 1)
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
        """Return True if a message waits in the socket or in a frame that was read."""
        return bool(reader.unpacked or self.readable())

    def _leave_unread(self, reader: Reader, most: int, seconds: float) -> int:
        """Discard up to ``most`` messages that the stop has no time for.

        Return the number of discarded messages.
        """
        if not self._waits(reader):
            return 0
        number = self.discard(most) if most > 0 else 0
        text = "%s: %s messages were still unread %g s after the stop, and are dropped"
        _log.warning(text, self._request.plan.name, number or "more", seconds)
        return number

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._request.reactor.callLater(seconds, turn.callback, None)
        return turn
