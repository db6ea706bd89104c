"""ZeroMQ: a pair of sockets, and the subscribing end of the tracked wire."""

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
"""Seconds a stop goes on reading; longer only for what had arrived by then: under a flood there is always more.

As long as any question has for the answers of publishers (`ANSWER_SECONDS`), and up to half of the drain timeout for
what they sent before, which is read first."""

_ANSWERS = 0.005
"""Seconds between two looks for the last answers of publishers, while nothing else is there to read."""


class ZmqTransport(SocketPair):
    """Moves frames by a SUB and an XPUB socket: see `zroute.transport.Transport`.

    Publishers are asked where they stand by subscriptions, so the accounts are those of `SubscriberSession`.
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
        """Subscribe to the fewest prefixes that cover all patterns: a SUB socket filters by nothing else."""
        if self._request.subscribe_to:
            self.accounts.listen(self, minimal_cover(pattern.subscription for pattern in patterns))

    def leave(self) -> None:
        """Withdraw all subscriptions, markers too."""
        self.subscribe(())

    def ready(self, publishers: int | None, *, state: bool) -> Deferred[None]:
        """Fires when this number of publishers has answered the marker that stands behind the subscriptions."""
        return self.accounts.ready(publishers, state=state)

    def unready(self, *, state: bool) -> str:
        """Who has answered, and which endpoints nothing was heard from."""
        answered = self.accounts.complete
        silent = "".join(f"; no answer from {each}" for each in self.silent(answered))
        names = f" ({', '.join(map(printable, answered))})" if answered else ""
        kept = ""
        if state and self.accounts.given < len(answered):
            not_given = len(answered) - self.accounts.given
            kept = f"; {not_given} of them have not sent all that they keep, or it waits to be read"
        return (
            f"{len(answered)} publishers have answered{names}{kept}{silent}; check that the publishers run and use "
            "wire='tracked'"
        )

    def summary(self) -> Iterator[tuple[int, str]]:
        """Each endpoint as it was resolved, and a warning for those that are open to the network."""
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

    # -- the end of reading

    def finish(self, reader: Reader, left: Callable[[], float]) -> Deferred[int]:
        """Read until all publishers have answered once more: a SUB socket that unsubscribes first drops what waits.

        Their answers come behind what they sent before. So reading ends with the last answer, or when the time is over;
        what is not answered then is an unknown loss. Of publishers that never answer it is at most what libzmq queues
        of each; what is more came later.
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
        """True if a message waits, in the socket or in a frame that was read."""
        return bool(reader.unpacked or self.readable())

    def _leave_unread(self, reader: Reader, most: int, seconds: float) -> int:
        """Throw away up to ``most`` messages that a stop had no time for; return how many that were."""
        if not self._waits(reader):
            return 0
        number = self.discard(most) if most > 0 else 0
        text = "%s: %s messages still waited %g s after the stop; they are left unread"
        _log.warning(text, self._request.plan.name, number or "more", seconds)
        return number

    def _wait(self, seconds: float) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._request.reactor.callLater(seconds, turn.callback, None)
        return turn
