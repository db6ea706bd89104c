"""The sockets for jobs.

An owner has one ROUTER. A worker has a DEALER for each owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Unpack

import zmq

from zroute.endpoints import Endpoint
from zroute.errors import EnvelopeError, HighWaterMarkError, UnknownPeerError
from zroute.options import JOB_MESSAGES, LINGER_ABORT, OFFER_MAX, SocketOptions
from zroute.sockets.connection import Guard
from zroute.sockets.events import OnEvent, SocketEvent
from zroute.sockets.reopening import Reopening
from zroute.sockets.router_dealer import DealerConnection, RouterConnection

__all__ = ["JobsConnection", "WorkConnection"]

_PROBES = (0.005, 0.1)
"""The delays in seconds, after the end of a connection, at which the owner searches for the lost worker.

There are two delays, because libzmq reports the end of the connection before it removes the connection from the socket.
"""


class Owner(Protocol):
    """An owner of jobs; see `zroute.jobs.owner.JobOwner`."""

    def received(self, id: bytes, parts: Sequence[bytes]) -> object:
        """Process a message from the worker ``id``."""

    def probe(self) -> None:
        """Send to all workers, to find connections that have ended."""


class Worker(Protocol):
    """The connection to one owner; see `zroute.jobs.worker.JobWorker`."""

    def connected(self) -> None:
        """Make an offer."""

    def disconnected(self) -> None:
        """Forget all jobs, because the owner assigns these jobs to other workers."""

    def received(self, parts: Sequence[bytes]) -> None:
        """Process a message from the owner."""


class JobsConnection(RouterConnection):
    """The socket of an owner of jobs.

    A worker never gets more jobs than its credits, so the queue to a worker is full only if the worker reads nothing.
    Binds each endpoint, or connects if the endpoint begins with ``connect:``. Set ``owner`` before `open`.

    Args:
        reactor: The Twisted reactor that reads the socket.
        context: The ZeroMQ context; the default is the context of the process.
        options: Other options of the socket.
    """

    owner: Owner

    def __init__(
        self, reactor: Any, *, context: zmq.Context[Any] | None = None, **options: Unpack[SocketOptions]
    ) -> None:
        given: SocketOptions = {"sndhwm": JOB_MESSAGES, "maxmsgsize": OFFER_MAX, **options}
        super().__init__(reactor, lambda id, parts: self.owner.received(id, parts), context=context, **given)
        self.size_option = None
        self.endpoint_option = "jobs="
        self._probes: list[Any] = []
        self.watch(self._ended)

    def tell(self, id: bytes, parts: Sequence[bytes]) -> None:
        """Send the parts of a message to a worker.

        Raises:
            UnknownPeerError: The worker has disconnected.
            HighWaterMarkError: The queue to the worker is full.
        """
        try:
            if not self.try_send_bytes((id, *parts)):
                raise HighWaterMarkError(f"the queue to a worker at {', '.join(self.endpoints)} is full")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise UnknownPeerError(f"a worker at {', '.join(self.endpoints)} has disconnected") from None

    def _identified(self, parts: list[bytes]) -> object:
        if len(parts) < 2:
            raise EnvelopeError("expected an identity and at least one part, got only an identity")
        return self.owner.received(parts[0], parts[1:])

    def close(self, linger: int | None = None) -> None:
        """Close the socket; see `Connection.close`."""
        probes, self._probes = self._probes, []
        for probe in probes:
            probe.cancel()
        super().close(linger)

    def _ended(self, event: SocketEvent) -> None:
        if event.name == "disconnected" and not self.closed and len(self._probes) < len(_PROBES):
            # libzmq does not say which worker has gone. A probe that is still scheduled serves this event, too.
            for seconds in _PROBES[len(self._probes) :]:
                self._probes.append(self._reactor.callLater(seconds, self._probe))

    def _probe(self) -> None:
        del self._probes[0]
        if not self.closed:
            self.doRead()  # first process the reports that the lost worker has sent
            self.owner.probe()


class WorkConnection:
    """The socket of a worker that takes jobs from one owner.

    Each connection gets a new DEALER. If libzmq reconnected an old DEALER, libzmq would first send the reports in the
    old queue, before the worker's offer.

    Args:
        reactor: The Twisted reactor that reads the sockets.
        endpoint: The endpoint of the owner.
        name: The name of the connection in logs.
        watchers: Functions that are called with each event of a connection.
        context: The ZeroMQ context; the default is the context of the process.
        options: Other options of the sockets.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: Endpoint,
        *,
        name: str = "WorkConnection",
        watchers: Sequence[OnEvent] = (),
        context: zmq.Context[Any] | None = None,
        **options: Unpack[SocketOptions],
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._name = name
        self._watchers = watchers
        self._context = context
        self._options: SocketOptions = {"sndhwm": JOB_MESSAGES, **options}
        self._told = not endpoint.address.startswith("inproc://")  # over inproc, libzmq sends no events
        self._reopening = Reopening(reactor, endpoint, self.open)
        self._dealer: DealerConnection | None = None
        self._connected = self._connected_before = False
        self.closed = False
        self.guard: Guard | None = None
        self.worker: Worker

    def open(self) -> str:
        """Connect to the owner; return the address.

        Set ``worker`` before this call.

        Raises:
            EndpointError: The endpoint can't be opened.
        """
        dealer = DealerConnection(self._reactor, self._received, context=self._context, **self._options)
        dealer.log.name, dealer.endpoint_option, dealer.guard = self._name, "work=", self.guard
        dealer.names_sender = self._endpoint.bind  # otherwise, the endpoint states the name
        dealer.size_option = "App(limits=Limits(max_message=…))"
        try:
            dealer.watch(lambda event: self._seen(dealer, event))
            for on_event in self._watchers:
                dealer.watch(on_event)
            address = dealer.open(self._endpoint)
        except BaseException:
            dealer.close(LINGER_ABORT)
            raise
        self._dealer = dealer
        self._connected = False
        if self._connected_before:
            dealer.log.connected_before(address)
        if not self._told:
            self.worker.connected()
        return address

    def peer(self) -> str | None:
        """Return the name of the key of the owner that sent the current message, or None."""
        if self._endpoint.bind:
            return None if self._dealer is None else self._dealer.sender
        return self._endpoint.peer

    def tell(self, parts: Sequence[bytes]) -> bool:
        """Send the parts of a message to the owner; return False if the send fails."""
        dealer = self._dealer
        return dealer is not None and not dealer.closed and dealer.try_send_bytes(parts)

    def reconnect(self) -> None:
        """Close the socket, and reconnect with a new socket."""
        if self._dealer is not None:
            self._drop(self._dealer)

    def close(self, linger: int | None = None) -> None:
        """Close the socket, and do not reconnect."""
        self.closed = True
        self._reopening.cancel()
        if self._dealer is not None:
            self._dealer.close(linger)

    def _received(self, parts: list[bytes]) -> None:
        self._reopening.reset()
        self.worker.received(parts)

    def _seen(self, dealer: DealerConnection, event: SocketEvent) -> None:
        # A late event of an earlier socket must not end the connection of the current one.
        if dealer is not self._dealer or dealer.closed:
            return
        if event.name == "handshake_succeeded":
            self._connected = self._connected_before = True
            self.worker.connected()
        elif (
            event.name == "disconnected" and self._connected
        ):  # otherwise `PersistentConnection` logs the reason, and reconnects
            dealer.doRead()  # process messages that have arrived, such as the owner's stop
            self.worker.disconnected()
            if self._endpoint.bind:
                return
            self._drop(dealer)

    def _drop(self, dealer: DealerConnection) -> None:
        dealer.close(LINGER_ABORT)
        if not self.closed:
            self._reopening.later()
