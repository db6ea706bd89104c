"""The client of a NATS server or cluster: one connection, restored for ever.

`zroute.nats.links` opens a connection. This module chooses the server, waits between attempts, subscribes again after a
reconnect, and reports what happens as events.

**Start.** A start waits until a server answers, as the sockets of ZeroMQ wait, and logs which servers do not. Only a
server that refuses the credentials or lacks a valid certificate ends the start with an error, because waiting would not
help. After the first connection of the app, such a refusal is only logged, because the credentials may be changing.

**Reconnect.** A lost connection is replaced at once by one to another server of the list, or to one that the cluster
has named. If no server answers, the waiting time grows to `RETRY_MAX` seconds. Messages that are published meanwhile
are refused, and not kept: they would reach the server before the subscribers have returned, and be lost there.

**Reading.** While `pause` is in effect, the socket is not read. The server cuts the connection if it can't write for 10
seconds, or if 64 MB wait. `ping` is the way to know that everything has arrived: the answer follows all messages that
the server had for this client.

All methods must be called in the thread of the asyncio loop; `Client.start` needs a running loop. Under Twisted's
asyncio reactor, that is the case in every call from the reactor, except in functions of ``callWhenRunning`` that are
called before the loop runs. No method raises an error of the network.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
from twisted.internet.defer import Deferred

from zroute.errors import EncodeError, EndpointError, NotRunningError
from zroute.logs import printable
from zroute.nats.links import ERROR_MAX, Link, LinkOptions, RefusedError, missing_names, open_link, read_credentials
from zroute.nats.protocol import Take
from zroute.nats.servers import Server, discovered, masked

__all__ = [
    "Client",
    "ClientOptions",
    "Connected",
    "Denied",
    "Dropped",
    "Event",
    "LameDuck",
    "Lost",
    "NoAnswer",
]

RETRY_MIN: Final = 0.05
RETRY_MAX: Final = 2.0
"""The shortest and longest time in seconds between two attempts to reach all servers."""

_CANCEL_AGAIN: Final = 0.05
"""The time in seconds after which an attempt to connect that was cancelled is cancelled again."""

SILENCE: Final = 2.0
"""The time in seconds without an answer after which the first log line says so. Each further line waits four times as
long.
"""

SEND_BUFFER: Final = 16 << 20
"""The default of the maximum number of bytes that wait to be sent."""

MAX_MESSAGE: Final = 64 << 20
"""The default of the maximum size of a received message in bytes."""

KEEPALIVE: Final = 10.0
"""The default time in seconds between two PINGs. The second PING without an answer ends the connection."""

_REFUSAL: Final = 10.0
"""The time in seconds between two log lines with the same error of a server."""

_REFUSALS: Final = 100
"""The number of errors of which these times are noted."""

_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class ClientOptions:
    """The options of a client.

    Attributes:
        servers: The servers to connect to, in any order; see `zroute.nats.servers.parse_servers`.
        name: The name of the app, for log lines and the server's monitoring.
        creds: The path of a file with credentials (a JWT and a seed), or None. They replace those in the addresses.
        tls: The TLS context, or None for Python's default, which trusts the system's certificates.
        max_message: The maximum size in bytes of a received message with its headers. Larger ones are skipped.
        send_buffer: The maximum number of bytes that may wait to be sent.
        keepalive: The time in seconds between two PINGs.
        direct: False to use only the public functions of nats-py, which is slower.
        echo: True to receive messages that this client publishes itself.
        purpose: What this connection of the app is for, such as "requests"; empty for messages. It follows the name.
        persists: True if the app runs already, so that a refusal does not end the start.
    """

    servers: tuple[Server, ...]
    name: str
    creds: Path | None = None
    tls: ssl.SSLContext | None = None
    max_message: int = MAX_MESSAGE
    send_buffer: int = SEND_BUFFER
    keepalive: float = KEEPALIVE
    direct: bool = True
    echo: bool = True
    purpose: str = ""
    persists: bool = False

    @property
    def label(self) -> str:
        """The name of this connection in log lines and in the server's monitoring."""
        return f"{self.name} ({self.purpose})" if self.purpose else self.name


# -- events ----------------------------------------------------------------------------------------------


@attrs.frozen
class Connected:
    """A server has accepted this client; the subscriptions were sent.

    ``again`` is True after a reconnect.
    """

    server: str
    again: bool


@attrs.frozen
class Lost:
    """The connection has ended."""

    server: str
    reason: str


@attrs.frozen
class NoAnswer:
    """No server can be reached; the client tries again.

    ``reasons`` has the last fault of each server.
    """

    reasons: dict[str, str]


@attrs.frozen
class Denied:
    """The server has refused something, for example a subject without permission."""

    server: str
    text: str

    @property
    def unpublished(self) -> bytes | None:
        """The topic that the user has no permission to publish, or None.

        It is in lower case if nats-py reads the connection.
        """
        found = _UNPUBLISHED.search(self.text)
        return found and found[1].encode()


@attrs.frozen
class Dropped:
    """A received message was dropped here.

    ``size`` exceeds ``max_message``; or it is 0, and too many messages wait (only without ``direct``). A message that
    ``may_have_number`` may be counted as lost by its number.
    """

    subject: bytes
    size: int
    may_have_number: bool = True


@attrs.frozen
class LameDuck:
    """The server is about to stop; it disconnects its clients one after the other."""

    server: str


_UNPUBLISHED = re.compile(r'permissions violation for publish to "([^"]*)"', re.IGNORECASE)

Event: TypeAlias = Connected | Lost | NoAnswer | Denied | Dropped | LameDuck


@attrs.frozen
class _Subscription:
    subject: bytes
    queue: bytes | None
    take: Take


class Client:
    """A client of NATS; see the module.

    Attributes:
        link: The connection; None while no server can receive messages.
        on_event: Called with each event. It must not raise an error.
        after_read: Called after each read, when all its messages were passed to their subscribers. It must not raise an
            error.
    """

    def __init__(self, options: ClientOptions) -> None:
        self.on_event: Callable[[Event], object] = lambda event: None
        self.after_read: Callable[[], object] = lambda: None
        self._options = options
        self._send_buffer = options.send_buffer
        self.link: Link | None = None
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._numbers = 0
        self._named: tuple[Server, ...] = ()
        self._paused = False
        self._resumed: asyncio.Future[None] | None = None
        self._ended: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started: Deferred[None] | None = None
        self._was_connected = False
        self._closing = False
        self._refusals: dict[str, float] = {}  # the times of logged errors of the server

    # -- the state

    @property
    def connected(self) -> bool:
        """True while a server can receive messages."""
        return self.link is not None

    @property
    def server(self) -> str | None:
        """The address of the connected server, or None."""
        return None if self.link is None else str(self.link.server)

    @property
    def max_payload(self) -> int | None:
        """The maximum size in bytes of a message with its headers, or None.

        The connected server states it.
        """
        return None if self.link is None else self.link.max_payload

    @property
    def waiting(self) -> int:
        """The number of bytes that wait to be sent."""
        return 0 if self.link is None else self.link.waiting

    @property
    def nats(self) -> Any:
        """The client of nats-py, or None. A reconnect replaces it."""
        return None if self.link is None else self.link.client

    # -- start and stop

    def start(self) -> Deferred[None]:
        """Connect; return a Deferred that fires at the first connection.

        It waits for a server as long as necessary. It fails with EndpointError if no server accepts this client, and
        with NotRunningError if `close` is called before a server has answered.

        Raises:
            EndpointError: The file of credentials is missing or has other content.
        """
        options = self._options
        if options.creds is not None:
            read_credentials(options.creds)
        direct = options.direct
        if direct and (missing := missing_names()):
            _log.warning(
                "%s: this version of nats-py has no %s, so messages of NATS cost about three times the CPU time: "
                "install a version that zroute[nats] names",
                options.label,
                " and no ".join(missing),
            )
            direct = False
        self._how = LinkOptions(options.label, options.max_message, options.creds, options.tls, direct, options.echo)
        self._started = Deferred()
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self._started

    def close(self, seconds: float = 0.0) -> Deferred[None]:
        """Disconnect, after up to ``seconds`` in which the server receives everything.

        The Deferred never fails. Later calls of other methods do nothing.
        """
        closed: Deferred[None] = Deferred()
        self._closing = True
        if self._task is None:
            closed.callback(None)
        else:
            self.resume()
            self._spawn(self._close(seconds, closed))
        return closed

    async def _close(self, seconds: float, closed: Deferred[None]) -> None:
        link = self.link
        if link is not None and seconds > 0:
            flushed = asyncio.Event()
            link.ping(lambda _: flushed.set())
            with suppress(TimeoutError):
                await asyncio.wait_for(flushed.wait(), seconds)
        self.link = None
        # One cancellation may have no effect: asyncio.wait_for in Python 3.11, which nats-py uses to connect, ignores
        # it if the attempt ends in the same turn of the loop.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_AGAIN)
        # The attempt may have ended with a new connection.
        for each in (link, self.link):
            if each is not None:
                with suppress(Exception):
                    await each.close()
        self.link = None
        if self._started is not None:
            self._fail_start(NotRunningError("the client was closed before a NATS server has answered"))
        closed.callback(None)

    # -- subscriptions

    def subscribe(self, subject: bytes, take: Take, queue: bytes | None = None) -> bytes:
        """Call ``take`` for each message; return the id of the subscription.

        The subscription is sent again after each reconnect. Two overlapping subscriptions receive a message twice; see
        `zroute.nats.subjects.generalise`.

        Args:
            subject: A valid subject, with or without wildcards.
            take: Called as ``take(subject, reply, headers, payload)``. It must not raise an error.
            queue: The name of a group: each message is delivered to one of its members.
        """
        self._numbers += 1
        # A letter distinguishes these ids from those of nats-py itself, which are numbers.
        sid = b"z%d" % self._numbers
        self._subscriptions[sid] = _Subscription(subject, queue, take)
        if self.link is not None:
            self.link.subscribe(sid, subject, queue, take)
        return sid

    def unsubscribe(self, sids: Iterable[bytes]) -> None:
        """End subscriptions.

        Messages that the server has already sent are still delivered.
        """
        ended = [sid for sid in sids if self._subscriptions.pop(sid, None) is not None]
        link = self.link
        if link is None or not ended:
            return
        for sid in ended:
            link.unsubscribe(sid)

        def forget(_: bool) -> None:
            for sid in ended:
                link.forget(sid)

        link.ping(forget)

    # -- sending

    def publish(self, subject: bytes, payload: bytes, reply: bytes | None = None, headers: bytes | None = None) -> bool:
        """Send a message at the end of the loop's turn.

        Args:
            subject: A topic that `zroute.nats.subjects.check_topic` accepts.
            payload: The body.
            reply: The subject for answers, or None.
            headers: A block of headers; see `zroute.nats.headers`.

        Returns:
            False if the message was not accepted, because no server is connected or too many bytes wait.

        Raises:
            EncodeError: The message is larger than the server accepts. The server would end the connection.
        """
        link = self.link
        if link is None:
            return False
        size = len(payload) if headers is None else len(headers) + len(payload)
        if size > link.max_payload:
            raise EncodeError(
                f"a message of {size} bytes with its headers; {link.server} accepts at most {link.max_payload}: raise "
                "max_payload in the server's configuration, or publish smaller messages"
            )
        # The usual case needs no more than the upper bound.
        if link.backlog + size > self._send_buffer and (waiting := link.waiting) and waiting + size > self._send_buffer:
            return False
        link.publish(subject, payload, reply, headers)
        return True

    def ping(self) -> Deferred[bool]:
        """Return a Deferred for the server's answer to a PING.

        It fires with True after all messages that the server had for this client, and after it has received all that
        was published before. It fires with False if no server is connected, or if the connection ends.
        """
        answered: Deferred[bool] = Deferred()
        if self.link is None:
            answered.callback(False)
        else:
            self.link.ping(answered.callback)
        return answered

    # -- back-pressure

    def pause(self) -> None:
        """Read no more from the server after the current read."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    # -- what a link reports: `zroute.nats.links.Hooks`

    def lost(self, reason: str) -> None:
        """Forget the connection."""
        link, self.link = self.link, None
        if link is not None:
            event = Lost(str(link.server), reason)
            _log.warning("%s: connection to %s lost: %s", self._options.label, event.server, event.reason)
            self._tell(event)
        if self._ended is not None:
            self._ended.set()

    def informed(self, fields: dict[str, Any]) -> None:
        """Note the servers of the cluster, and whether this server stops."""
        link = self.link
        if link is None:
            return
        if "connect_urls" in fields:
            self._named = discovered(fields["connect_urls"], link.server)
        if fields.get("ldm") is True:
            _log.info("%s: %s is about to stop (lame duck mode)", self._options.label, link.server)
            self._tell(LameDuck(str(link.server)))

    def refused(self, text: str) -> None:
        """Report an error of the server."""
        server = self.server or "the server"
        shown = masked(printable(text, ERROR_MAX))
        self._log_refusal(server, shown)
        self._tell(Denied(server, shown))

    def _log_refusal(self, server: str, text: str) -> None:
        """Log an error of the server, unless the same one was logged lately.

        There may be one for each message.
        """
        now = asyncio.get_running_loop().time()
        if now - self._refusals.get(text, -_REFUSAL) >= _REFUSAL:
            if len(self._refusals) >= _REFUSALS:
                self._refusals.clear()
            self._refusals[text] = now
            _log.warning("%s: %s refuses: %s", self._options.label, server, text)

    def dropped(self, subject: bytes, size: int, *, may_have_number: bool = True) -> None:
        """Report a message that was dropped here."""
        self._tell(Dropped(subject, size, may_have_number))

    def gate(self) -> Awaitable[object] | None:
        """Return a future for the end of a pause."""
        if not self._paused or self._closing:
            return None
        # A new future for each reader: nats-py cancels the reader of a connection that ends, and so its future.
        if self._resumed is None or self._resumed.done():
            self._resumed = asyncio.get_running_loop().create_future()
        return self._resumed

    # -- the connection

    async def _run(self) -> None:
        """Connect, wait for the end of the connection, and connect again."""
        last: Server | None = None
        try:
            while not self._closing:
                self._ended = asyncio.Event()
                link = await self._connect(last)
                last = link.server
                self._use(link)
                await self._keep_alive(link, self._ended)
        except _NoServerError as error:
            self._fail_start(EndpointError(str(error), endpoint=error.server))
        except Exception as error:  # a fault of this module must not end in silence
            _log.exception("%s: the client of NATS has failed", self._options.label)
            self._fail_start(EndpointError(f"the client of NATS has failed: {type(error).__name__}: {error}"))

    def _use(self, link: Link) -> None:
        self.link = link
        for sid, each in self._subscriptions.items():
            link.subscribe(sid, each.subject, each.queue, each.take)
        again, self._was_connected = self._was_connected, True
        _log.info("%s: %s to %s", self._options.label, "reconnected" if again else "connected", link.server)
        self.informed(link.info)
        self._tell(Connected(str(link.server), again))
        if self._started is not None:
            started, self._started = self._started, None
            started.callback(None)

    async def _keep_alive(self, link: Link, ended: asyncio.Event) -> None:
        """Return when the connection has ended; end it if the server does not answer."""
        unanswered = 0

        def answered(_: bool) -> None:
            nonlocal unanswered
            unanswered = 0

        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), self._options.keepalive)
            if ended.is_set() or self._paused:  # a paused client does not read answers
                unanswered = 0
            elif unanswered >= 2:
                link.end(f"no answer to PING for {unanswered * self._options.keepalive:g} s")
            else:
                unanswered += 1
                link.ping(answered)

    async def _connect(self, last: Server | None) -> Link:
        """Return a connection to the first server that accepts this client."""
        loop = asyncio.get_running_loop()
        began, silence, pause = loop.time(), SILENCE, RETRY_MIN
        while True:
            reasons: dict[Server, str] = {}
            refusals: dict[Server, str] = {}
            for server in self._candidates(last):
                try:
                    return await open_link(server, self._how, self)
                except RefusedError as error:
                    reasons[server] = refusals[server] = masked(str(error))
                except Exception as error:
                    reasons[server] = _reason(error)
            if refusals and not (self._was_connected or self._options.persists):
                raise _NoServerError(refusals)
            if loop.time() - began >= silence:
                silence *= 4
                shown = {str(server): reason for server, reason in reasons.items()}
                for address, reason in shown.items():
                    text = "%s: no answer from %s for %.1f s: %s; trying again"
                    _log.warning(text, self._options.label, address, loop.time() - began, reason)
                self._tell(NoAnswer(shown))
            # Many clients lose a server at the same moment, and must not return at the same moment.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, RETRY_MAX)

    def _candidates(self, last: Server | None) -> list[Server]:
        """Return the servers in random order, with the last one at the end."""
        known = {(server.host, server.port): server for server in (*self._named, *self._options.servers)}
        servers = list(known.values())
        random.shuffle(servers)
        servers.sort(key=lambda server: last is not None and (server.host, server.port) == (last.host, last.port))
        return servers

    def _fail_start(self, error: Exception) -> None:
        started, self._started = self._started, None
        if started is not None:
            started.errback(error)
        elif not isinstance(error, NotRunningError):
            _log.error("%s: %s", self._options.label, error)

    def _tell(self, event: Event) -> None:
        try:
            self.on_event(event)
        except Exception:
            _log.exception("%s: an event of NATS was not handled", self._options.label)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _NoServerError(Exception):
    """All servers have refused this client, or do not answer."""

    def __init__(self, refusals: dict[Server, str]) -> None:
        server, reason = next(iter(refusals.items()))
        self.server = str(server)
        remedy = (
            "use a host name that its certificate contains"
            if "mismatch" in reason
            else "set SSL_CERT_FILE to the certificate of its authority"
            if "certificate" in reason
            else "install the version that zroute[nats] names"
            if "nats-py" in reason
            else "change the address"
            if "TLS" in reason
            else "check the user and password in the address, or the file of --nats-creds"
        )
        super().__init__(f"can't connect to {server}: {reason}; {remedy}")


def _reason(error: Exception) -> str:
    """Return why a server can't be reached."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return masked(printable(str(error).removeprefix("nats: ") or type(error).__name__, 200))
