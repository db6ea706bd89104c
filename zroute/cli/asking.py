"""The client behind ``zroute request``.

`zroute.cli.asking_on_nats` contains the parts for NATS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import click
import zmq
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from zroute.cli.listening import say, while_read
from zroute.cli.options import reachable
from zroute.cli.showing import Body, decoded, one_line
from zroute.endpoints import Access, Endpoint
from zroute.errors import EndpointError, NoServerError, RequestError, RequestTimeoutError
from zroute.logs import set_up_logging
from zroute.messages.codecs import BUILTIN, MSGPACK, Codecs
from zroute.options import MAX_MESSAGE, SocketOptions, frame_limit
from zroute.requests.client import Client
from zroute.runtime.exit_codes import EXIT_ENDPOINT, EXIT_FAILED, EXIT_TIMED_OUT
from zroute.runtime.runner import install_reactor
from zroute.runtime.signals import StopSignals, run_reactor
from zroute.sockets.access import CurveGuard, guard_for
from zroute.sockets.connection import Guard
from zroute.sockets.names import host_name
from zroute.sockets.reqrep import Server
from zroute.sockets.router_dealer import DealerConnection
from zroute.stats import Stats

__all__ = ["MAX_REPLY", "Asking", "Question", "ask", "run_asking"]

MAX_REPLY = 16 * MAX_MESSAGE
"""The maximum size of a reply in bytes: more than the default `max_message`, because apps may raise that limit."""

_LINGER = 1000
"""The maximum time in milliseconds to send a cancellation to the server."""


@attrs.frozen
class Question:
    """A request that the command sends.

    Attributes:
        topic: The topic.
        codec: The name of the body's codec.
        body: The encoded body.
        headers: The headers.
        timeout: The seconds to wait for the reply, or for each reply of a stream.
        stream: True to ask for a stream.
        tracked: False to send the topic and the body without a header.
    """

    topic: bytes
    codec: str
    body: bytes
    headers: dict[str, str]
    timeout: float
    stream: bool
    tracked: bool


def ask(endpoint: Endpoint, question: Question, show: Callable[[Body], None], access: Access) -> int:
    """Send a request to an endpoint, and show the replies.

    Args:
        endpoint: The endpoint to connect or bind.
        question: The request.
        show: Prints a reply.
        access: The keys, or that the endpoint may be open.

    Returns:
        The exit code of `run_asking`.

    Raises:
        EncodeError: The headers are too large.
    """
    return run_asking(_AskingServer(install_reactor(None), question, show, endpoint, access))


def run_asking(asking: Asking) -> int:
    """Send a request, and show the replies.

    The first signal, with the number n, cancels the request on the server. A second signal ends the process at once.

    Returns:
        The exit code. 0: the reply or the end of the stream arrived. 1: the server refused the request, failed or
        disconnected, and the reason was printed. 5: the endpoint can't be opened. 124: no reply arrived in time.
        128 + n: the signal n arrived.

    Raises:
        Exception: The error of the request that is not the server's.
    """
    set_up_logging("warning", "auto")
    run_reactor(asking.reactor, asking.on_signal, asking.start)
    asking.end()
    if asking.failure is not None:
        with while_read():
            asking.failure.raiseException()
    return asking.code


class Asking:
    """The state of one request. A subclass connects to the server."""

    def __init__(self, reactor: Any, question: Question, show: Callable[[Body], None]) -> None:
        self.reactor = reactor
        self.code = 0
        self.failure: Failure | None = None
        self._question = question
        self._show = show
        self._signals = StopSignals(lambda: reactor.callFromThread(self.cancel), lambda number: os._exit(128 + number))
        self._work: Deferred[None] = Deferred()

    async def connect(self, client: Client) -> None:
        """Connect ``client``; raise EndpointError if that is not possible."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        """Disconnect, also if `connect` has failed.

        A cancellation still reaches the server.
        """
        raise NotImplementedError

    def fault(self, error: NoServerError | RequestTimeoutError) -> tuple[str, int]:
        """Return the line and the exit code for a request without an answer."""
        raise NotImplementedError

    def end(self) -> None:
        """Release what is left when the reactor has stopped."""

    def on_signal(self, number: int, frame: object) -> None:
        """Cancel the request at the first signal; end the process at the second."""
        if not self._signals.arrived:
            self.code = 128 + number
        self._signals(number, frame)

    def start(self) -> None:
        """Send the request in the running reactor; stop the reactor at the end."""
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._failed)
        self._work.addCallback(lambda _: self.reactor.stop())

    def cancel(self) -> None:
        """Cancel the request on the server."""
        if not self._work.called:
            self._work.cancel()

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):  # a signal cancels the request
            self.failure = failure

    async def _run(self) -> None:
        client = Client(
            self.reactor,
            Stats(),
            "zroute request",
            Codecs(MSGPACK, {}),
            max_message=MAX_MESSAGE,
            clock_ns=time.time_ns,
            later=self.reactor.callFromThread,
            is_plain=not self._question.tracked,
        )
        try:
            await self.connect(client)
            await self._ask(client)
        except EndpointError as error:
            say(error.text)
            self.code = EXIT_ENDPOINT
        except (NoServerError, RequestTimeoutError) as error:
            line, self.code = self.fault(error)
            say(line)
        except RequestError as error:
            say(one_line(str(error) if error.code is None else f"{error.code}: {error.reason}"))
            self.code = EXIT_FAILED
        finally:
            with suppress(Exception):
                client.close()
            await self.disconnect()

    def late(self, error: Exception, where: str, why: str = "") -> tuple[str, int]:
        """Return the line and the exit code for a request whose time is over."""
        what = "no server was connected" if isinstance(error, NoServerError) else "no reply arrived"
        return f"{what} within {self._question.timeout:g} s ({where}){why}", EXIT_TIMED_OUT

    async def _ask(self, client: Client) -> None:
        question = self._question
        given = question.topic, BUILTIN[question.codec].number, question.body, question.headers, _decode
        if not question.stream:
            self._show(await client.ask(*given, question.timeout).value())
            return
        async with client.stream(*given, question.timeout) as replies:
            async for reply in replies:
                self._show(reply)


class _AskingServer(Asking):
    """A request to a ZeroMQ endpoint."""

    def __init__(
        self,
        reactor: Any,
        question: Question,
        show: Callable[[Body], None],
        endpoint: Endpoint,
        access: Access,
    ) -> None:
        super().__init__(reactor, question, show)
        self._context: zmq.Context[Any] = zmq.Context()
        self._endpoint = endpoint
        self._access = access
        self._server: Server | None = None
        self._end_guard: Callable[[], object] = lambda: None

    async def connect(self, client: Client) -> None:
        """Open the socket; see `Asking`."""
        endpoint = reachable(self._endpoint)
        guard = guard_for(self.reactor, self._access, "zroute request", Stats())
        limit: SocketOptions = {"maxmsgsize": frame_limit(MAX_REPLY)}
        if isinstance(guard, CurveGuard):
            guard.begin(self._context, (endpoint,))
            self._end_guard = guard.end
        describe = partial(_describe, guard)
        server = Server(self.reactor, client.queue, endpoint, (), self._context, limit, describe)
        self._server = server
        if endpoint.bind:
            say(f"bound to {server.address}, waiting for a server")
            if (warning := self._access.exposure(endpoint.resolved(server.address))) is not None:
                say(warning)

    def fault(self, error: NoServerError | RequestTimeoutError) -> tuple[str, int]:
        """Add why the host's name has no address; see `Asking`."""
        server = self._server
        assert server is not None
        looks_up = isinstance(error, NoServerError) and host_name(server.address) is not None
        return self.late(error, server.address, f": {server.reason}" if looks_up and server.reason else "")

    async def disconnect(self) -> None:
        """Close the socket; see `Asking`."""
        if self._server is not None:
            self._server.close(_LINGER)
        self._end_guard()

    def end(self) -> None:
        """Wait until the socket has sent a cancellation."""
        self._context.term()


def _decode(number: int, body: bytes) -> Body:
    return decoded(body, number)


def _describe(guard: Guard, connection: DealerConnection) -> None:
    """Give a socket its guard, and the names for its log lines."""
    connection.guard = guard
    connection.log.name = click.get_current_context().command_path
    connection.endpoint_option, connection.size_option = "ENDPOINT", None
