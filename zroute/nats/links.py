"""One connection to one NATS server. This is the only module that knows nats-py.

nats-py connects, negotiates TLS, and authenticates; each connection has a new client of nats-py. `zroute.nats.client`
reconnects, because nats-py's own reconnecting has gaps:

- A refusal such as "authentication expired" closes its client for ever.
- An unexpected error, for example an INFO line of more than 32 KiB, ends its task in silence.
- It has no credentials for servers that the cluster names, if they are in the URL.
- If it times out after the connection, it leaves the old connection open, and messages arrive twice.

After the connection, a `DirectLink` receives with zroute's own parser in place of nats-py's, and writes to the socket
itself. A message then takes 2.3 instead of 6.2 µs of CPU, and a pause of the reader reaches the server. This needs some
private names of nats-py. If a version does not have them, a `PublicLink` does the same with nats-py's public functions.
It is slower, and reading can't be paused: messages are dropped, and counted as lost, when 64 MB wait.

**Order.** Losses are counted exactly only if messages keep their order over all subscriptions of a connection. nats-py
has a queue and a task for each subscription, which lose this order. A `PublicLink` therefore notes each message when
nats-py creates it, and delivers in this order.

Nothing here raises an error into the event loop: each fault ends the link, with a reason.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import nats.errors
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from zroute.errors import KeyFileError
from zroute.logs import printable
from zroute.nats.headers import fields_of
from zroute.nats.protocol import (
    PING,
    PONG,
    Failure,
    Info,
    Message,
    Operation,
    Oversized,
    Parser,
    Ping,
    Pong,
    ProtocolError,
    Take,
    publish_frame,
    subscribe_line,
    unsubscribe_line,
)
from zroute.nats.servers import Server, masked

__all__ = [
    "ERROR_MAX",
    "Hooks",
    "Link",
    "LinkOptions",
    "RefusedError",
    "missing_names",
    "open_link",
    "read_credentials",
]

CONNECT_SECONDS: Final = 2.0
"""The maximum time of each step of a connection: TCP, TLS, and the server's answers."""

PENDING_MAX: Final = 64 << 20
"""The maximum size in bytes of the messages that wait in a `PublicLink` to be delivered."""

CLOSE_SECONDS: Final = 1.0

ERROR_MAX: Final = 1_000
"""The maximum number of characters of a server's error, which may contain a topic."""

_FOREVER: Final = 1e9
"""An interval in seconds that never ends: `zroute.nats.client` sends the PINGs itself."""

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The server does not accept this client, or this client the server.

    A later attempt won't help.
    """


class Hooks(Protocol):
    """The owner of a link: what a link reports."""

    def lost(self, reason: str) -> None:
        """The connection has ended. This is the last call of a link.

        The link ends its PINGs afterwards.
        """

    def informed(self, fields: dict[str, Any]) -> None:
        """The server has sent INFO; the first one was received before the link existed."""

    def refused(self, text: str) -> None:
        """The server has sent an error."""

    def dropped(self, subject: bytes, size: int, *, may_have_number: bool = True) -> None:
        """A message was dropped because of its size, or because too many wait."""

    def gate(self) -> Awaitable[object] | None:
        """Return an awaitable for the end of a pause, or None."""

    def after_read(self) -> object:
        """All messages of one read were passed to their subscribers."""


@attrs.frozen(eq=False)
class LinkOptions:
    """The options of all connections of a client.

    Attributes:
        name: The name of this client in the server's monitoring.
        max_message: The maximum size in bytes of a received message with its headers.
        creds: The path of a file with a JWT and its seed, or None.
        tls: The TLS context, or None for Python's default.
        direct: False to use only the public functions of nats-py.
        echo: True to receive messages that this client sends itself.
    """

    name: str
    max_message: int
    creds: Path | None = None
    tls: ssl.SSLContext | None = None
    direct: bool = True
    echo: bool = True


class Link(Protocol):
    """A connection to a server.

    No method raises an error; those of a lost link do nothing.
    """

    server: Server
    max_payload: int
    info: dict[str, Any]

    @property
    def client(self) -> Any:
        """The client of nats-py."""

    @property
    def waiting(self) -> int:
        """The number of bytes that wait to be sent."""

    @property
    def backlog(self) -> int:
        """An upper bound of `waiting`, which takes less time to read."""

    def subscribe(self, sid: bytes, subject: bytes, queue: bytes | None, take: Take) -> None:
        """Subscribe to a subject."""

    def unsubscribe(self, sid: bytes) -> None:
        """Ask the server to end a subscription.

        Messages that it has already sent still arrive.
        """

    def forget(self, sid: bytes) -> None:
        """Drop all further messages of a subscription."""

    def publish(self, subject: bytes, payload: bytes, reply: bytes | None, headers: bytes | None) -> None:
        """Send a message."""

    def ping(self, answered: Callable[[bool], object]) -> None:
        """Call ``answered(True)`` when the server has answered.

        All earlier messages were then passed to their subscribers. If the connection ends before, the argument is
        False.
        """

    def end(self, reason: str) -> None:
        """End the connection at once, without sending what waits."""

    async def close(self) -> None:
        """End the connection, after messages that the server reads at once."""


def missing_names() -> list[str]:
    """Return the private names of nats-py that a `DirectLink` needs and misses."""
    client = NatsClient()
    return [name for name in ("_ps", "_transport", "_process_msg", "_process_info") if not hasattr(client, name)]


async def open_link(server: Server, options: LinkOptions, hooks: Hooks) -> Link:
    """Connect to a server.

    Raises:
        RefusedError: The credentials or the certificate are not accepted.
        Exception: The server does not answer, or does not answer as a NATS server.
    """
    link: DirectLink | PublicLink = (DirectLink if options.direct else PublicLink)(server, options, hooks)
    try:
        await link.open()
    except BaseException as error:
        link.dead = True
        await _close_client(link.client)
        if isinstance(error, Exception) and (why := _refusal(error)):
            raise RefusedError(why) from None
        raise
    return link


def _refusal(error: Exception) -> str:
    """Return why a later attempt won't help, or "" if it may help."""
    text = str(error)
    if "timeout" in text.lower():  # "Authentication Timeout": one of both sides is overloaded
        return ""
    if isinstance(error, RefusedError | KeyFileError):
        return text
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, nats.errors.AuthorizationError) or re.search(r"authori[sz]ation|authentication", text, re.I):
        return f"it does not accept the credentials ({text.removeprefix('nats: ')})"
    return ""


class _Client(NatsClient):
    """A client of nats-py with two corrections.

    If TLS is asked for, it sends neither credentials nor messages without TLS. nats-py itself believes the server's
    INFO, which anyone between the two can change.

    `flush` waits for all commands before it. The PING of nats-py overtakes those that wait in its buffer, so the end of
    a subscription, which calls `flush`, would lose messages that are on their way.
    """

    insists_on_tls = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.insists_on_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise RefusedError("it does not offer TLS: use nats:// for a connection without TLS")
            info["tls_required"] = True  # nats-py reads the same dict
        await super()._process_info(info, initial_connection)

    async def flush(self, timeout: int = DEFAULT_FLUSH_TIMEOUT) -> None:
        """Wait until the server has read everything."""
        for _ in range(2):  # the second PING follows what the first one has overtaken
            await super().flush(timeout)


class _BaseLink:
    """The parts that both kinds of links share: the connection and its end."""

    def __init__(self, server: Server, options: LinkOptions, hooks: Hooks) -> None:
        self.server = server
        self.max_payload = 0
        self.info: dict[str, Any] = {}
        self.dead = False
        self.client = _Client()
        self.client.insists_on_tls = server.tls
        self._options = options
        self._hooks = hooks
        self._refusal = ""  # the server's last error, which explains why it disconnects
        self._opened = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def _connect(self) -> None:
        server, given = self.server, self._options
        login: dict[str, Any] = {"user": server.user, "password": server.password, "token": server.token}
        if given.creds is not None:
            login = {
                "user_jwt_cb": lambda: read_credentials(given.creds)[0],
                "signature_cb": lambda nonce: _signature(given.creds, nonce),
            }
        await self.client.connect(
            [str(server)],
            name=given.name,
            no_echo=not given.echo,
            allow_reconnect=False,
            connect_timeout=CONNECT_SECONDS,  # type: ignore[arg-type]  # a float works
            ping_interval=_FOREVER,  # type: ignore[arg-type]
            error_cb=self._failed,
            closed_cb=self._closed,
            lame_duck_mode_cb=self._lame_duck,
            discovered_server_cb=self._discovered,
            tls=given.tls,
            tls_hostname=server.tls_name,
            pending_size=PENDING_MAX,
            **{name: value for name, value in login.items() if value is not None},
        )
        size: object = self.client.max_payload
        if not self.client.is_connected or not isinstance(size, int):
            raise ConnectionError("it does not answer as a NATS server")
        self._opened = True
        self.max_payload = size
        self.info = {"connect_urls": [uri.netloc for uri in self.client.discovered_servers]}

    async def _failed(self, error: Exception) -> None:
        if not self._opened:
            raise error  # else nats-py tries again for ever, without an end that a caller can see
        if isinstance(error, nats.errors.SlowConsumerError):
            self._hooks.dropped(error.subject.encode("utf-8", "surrogateescape"), 0)
        elif "permissions violation" in str(error).lower():
            self._hooks.refused(str(error).removeprefix("nats: "))
        else:
            # An end of the connection often follows from an error of the server.
            self._refusal = self._refusal or _text(self.client.last_error or error)

    async def _closed(self) -> None:
        last = self.client.last_error
        self.end(self._refusal or (_text(last) if last is not None else "the server has closed the connection"))

    async def _lame_duck(self) -> None:
        if not self.dead:
            self._hooks.informed({"ldm": True})

    async def _discovered(self) -> None:
        if not self.dead:
            self._hooks.informed({"connect_urls": [uri.netloc for uri in self.client.discovered_servers]})

    def end(self, reason: str) -> None:
        """End the connection at once."""
        if not self.dead and self._opened:
            self.dead = True
            self._spawn(_close_client(self.client))
            # First, because a function that waits for a PING may send a message, which this link would drop silently.
            self._hooks.lost(reason)
            self._ended()

    def _ended(self) -> None:
        """Release what waits for the server."""

    async def close(self) -> None:
        """End the connection."""
        self.dead = True
        self._ended()
        await _close_client(self.client)
        for task in tuple(self._tasks):
            with suppress(asyncio.CancelledError):
                await task

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class DirectLink(_BaseLink):
    """A connection that zroute reads and writes; nats-py has only opened it."""

    def __init__(self, server: Server, options: LinkOptions, hooks: Hooks) -> None:
        super().__init__(server, options, hooks)
        self._parser = Parser(options.max_message)
        self._out: list[bytes] = []
        self.backlog = 0
        self._written = 0  # the unsent bytes of the socket after the last write
        self._pings: deque[Callable[[bool], object]] = deque()
        self._socket: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Connect."""
        self._loop = asyncio.get_running_loop()
        self.client._ps = self  # type: ignore[assignment]
        await self._connect()
        self._socket = self.client._transport._io_writer.transport  # type: ignore[union-attr]

    # -- receiving: the two methods of nats-py's parser

    def reset(self) -> None:
        """Forget incomplete input; nats-py calls this at a fault."""
        self._parser.reset()

    async def parse(self, data: bytes = b"") -> None:
        """Parse what nats-py has read. It reads again when this coroutine ends."""
        if self.dead:
            return
        if not data:
            self.end(self._refusal or "the server has closed the connection")
            return
        try:
            operations = self._parser.feed(data)
            self._hooks.after_read()
        except ProtocolError as error:
            self.end(f"the server has sent {error}")
            return
        except Exception:
            # A subscriber's own fault; the rest of the input is lost, so the connection can't go on.
            _log.exception("an unexpected error while messages of %s were read", self.server)
            self.end("an unexpected error, see the log")
            return
        for operation in operations:
            await self._handle(operation)
        while not self.dead and (gate := self._hooks.gate()) is not None:
            await gate

    async def _handle(self, operation: Operation) -> None:
        match operation:
            case Ping():
                self._write(PONG)
            case Pong():
                if self._pings:
                    self._pings.popleft()(True)
            case Info(fields):
                if isinstance(size := fields.get("max_payload"), int):
                    self.max_payload = size
                self._hooks.informed(fields)
            case Failure(text):
                shown = printable(text.strip("'"), ERROR_MAX)
                # After other errors the server disconnects, or has only ignored the line.
                if "permissions violation" not in text.lower():
                    self._refusal = f"the server says {shown!r}"
                self._hooks.refused(shown)
            case Oversized(_, subject, size, has_headers):
                self._hooks.dropped(subject, size, may_have_number=has_headers)
            case Message(sid, subject, reply, headers, payload) if sid.isdigit():
                # A subscription that nats-py has made itself. The messages of ended subscriptions are dropped.
                try:
                    await self.client._process_msg(int(sid), subject, reply or b"", payload, headers or b"")
                except Exception as error:
                    _log.warning("a message of %s can't be read by nats-py: %s", self.server, _text(error))

    # -- sending

    @property
    def waiting(self) -> int:
        """The number of bytes that wait to be sent."""
        return 0 if self.dead else self.backlog - self._written + int(self._socket.get_write_buffer_size())

    def _write(self, data: bytes) -> None:
        """Send bytes at the end of the loop's turn, together with all others of the turn."""
        if self.dead:
            return
        if not self._out:
            self._loop.call_soon(self._flush)  # type: ignore[union-attr]
        self._out.append(data)
        self.backlog += len(data)

    def _flush(self) -> None:
        if self._out and not self.dead:
            data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._out.clear()
            self._socket.write(data)
            self.backlog = self._written = int(self._socket.get_write_buffer_size())

    def subscribe(self, sid: bytes, subject: bytes, queue: bytes | None, take: Take) -> None:
        """Subscribe to a subject."""
        self._parser.takes[sid] = take
        self._write(subscribe_line(subject, sid, queue))

    def unsubscribe(self, sid: bytes) -> None:
        """Ask the server to end a subscription."""
        self._write(unsubscribe_line(sid))

    def forget(self, sid: bytes) -> None:
        """Drop all further messages of a subscription."""
        self._parser.takes.pop(sid, None)

    def publish(self, subject: bytes, payload: bytes, reply: bytes | None, headers: bytes | None) -> None:
        """Send a message."""
        # The code of `_write`, because a call would cost each message 2 % of its time.
        if self.dead:
            return
        if not self._out:
            self._loop.call_soon(self._flush)  # type: ignore[union-attr]
        frame = publish_frame(subject, payload, reply, headers)
        self._out.append(frame)
        self.backlog += len(frame)

    def ping(self, answered: Callable[[bool], object]) -> None:
        """Call ``answered`` when the server has answered."""
        if self.dead:
            answered(False)
            return
        self._pings.append(answered)
        self._write(PING)

    async def close(self) -> None:
        """Send what waits, and end the connection."""
        self._flush()
        # Only an idle connection may end in order: nats-py would wait for a server that does not read.
        if self._socket is not None and not self.dead:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._sent(), CLOSE_SECONDS)
        await super().close()

    async def _sent(self) -> None:
        while self._socket.get_write_buffer_size():
            await asyncio.sleep(0.01)

    def _ended(self) -> None:
        self._out.clear()
        if self._socket is not None:
            self._socket.abort()
        while self._pings:
            self._pings.popleft()(False)


class _Arrived(Msg):
    """A received message.

    Attributes:
        subscription: The id of its subscription, to which nats-py passes the message in a later turn of the loop.
    """

    subscription: bytes | None = None


class PublicLink(_BaseLink):
    """A connection that uses only the public functions of nats-py."""

    def __init__(self, server: Server, options: LinkOptions, hooks: Hooks) -> None:
        super().__init__(server, options, hooks)
        self._takes: dict[bytes, Take] = {}
        self._subscriptions: dict[bytes, Any] = {}
        self._orders: asyncio.Queue[tuple[int, Callable[[], Awaitable[object]]]] = asyncio.Queue()
        self._size = 0
        self._arrived: asyncio.Queue[_Arrived | int] = asyncio.Queue()  # messages, and the numbers of answered pings
        self._arrived_size = 0
        self._pings: dict[int, tuple[Callable[[bool], object], asyncio.Task[None] | None]] = {}
        self._numbers = 0
        self._workers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect."""
        if not hasattr(self.client, "msg_class"):
            raise RefusedError("this version of nats-py can't keep the order of messages")
        self.client.msg_class = self._made  # type: ignore[assignment]  # nats-py only calls it
        await self._connect()
        loop = asyncio.get_running_loop()
        self._workers = [loop.create_task(self._work()), loop.create_task(self._deliver())]

    # -- receiving

    def _made(self, **fields: Any) -> _Arrived:
        """Return a message that nats-py has read, and note its place among all messages."""
        message = _Arrived(**fields)
        size = len(message.data)
        if self._arrived_size + size > PENDING_MAX:
            subject = message.subject.encode("utf-8", "surrogateescape")
            self._hooks.dropped(subject, 0, may_have_number=message.headers is not None)
        else:
            self._arrived_size += size
            self._arrived.put_nowait(message)
        return message

    async def _deliver(self) -> None:
        """Deliver messages in the order in which they have arrived."""
        while True:
            next_one = await self._arrived.get()
            while not self.dead and (gate := self._hooks.gate()) is not None:
                await gate
            if isinstance(next_one, int):
                self._hooks.after_read()  # the messages before the answer are handled first
                if next_one in self._pings:
                    self._pings.pop(next_one)[0](True)
                continue
            self._arrived_size -= len(next_one.data)
            for _ in range(2):  # the task of its subscription runs in the next turn
                if next_one.subscription is None:
                    await asyncio.sleep(0)
            # Else it belongs to a subscription that nats-py has made itself, or that has ended.
            take = self._takes.get(next_one.subscription or b"")
            if take is not None and not self.dead:
                headers = None if next_one.headers is None else _block(next_one.headers)
                try:
                    take(next_one.subject.encode(), next_one.reply.encode() or None, headers, next_one.data)
                except Exception:
                    _log.exception("an unexpected error while messages of %s were read", self.server)
                    self.end("an unexpected error, see the log")
            if self._arrived.empty():
                self._hooks.after_read()

    # -- sending

    async def _work(self) -> None:
        """Carry out the orders one by one, because nats-py's functions must be awaited."""
        while True:
            size, order = await self._orders.get()
            try:
                await order()
            except Exception as error:
                if not self.dead:
                    self._hooks.refused(_text(error))
            self._size -= size

    def _order(self, order: Callable[[], Awaitable[object]], size: int = 0) -> None:
        if not self.dead:
            self._size += size
            self._orders.put_nowait((size, order))

    @property
    def waiting(self) -> int:
        """The number of bytes that wait to be sent, without the buffer of asyncio.

        asyncio limits that buffer, except in Python 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 (CVE-2024-12254).
        """
        return 0 if self.dead else self._size + self.client.pending_data_size

    @property
    def backlog(self) -> int:
        """The number of bytes that wait to be sent."""
        return self.waiting

    def subscribe(self, sid: bytes, subject: bytes, queue: bytes | None, take: Take) -> None:
        """Subscribe to a subject."""

        async def arrived(message: Any) -> None:
            message.subscription = sid

        async def subscribe() -> None:
            made = await self.client.subscribe(subject.decode(), (queue or b"").decode(), cb=arrived)
            self._subscriptions[sid] = made

        self._takes[sid] = take
        self._order(subscribe)

    def unsubscribe(self, sid: bytes) -> None:
        """Ask the server to end a subscription.

        nats-py's function would drop what has arrived. So the subscription is drained.
        """

        async def unsubscribe() -> None:
            if sid in self._subscriptions:
                # Not awaited here: later orders need not wait for the server's answer.
                self._spawn(_quietly(self._subscriptions[sid].drain()))

        self._order(unsubscribe)

    def forget(self, sid: bytes) -> None:
        """Drop all further messages of a subscription."""
        self._takes.pop(sid, None)
        self._subscriptions.pop(sid, None)

    def publish(self, subject: bytes, payload: bytes, reply: bytes | None, headers: bytes | None) -> None:
        """Send a message."""
        named = None if headers is None else fields_of(headers)
        text = subject.decode("utf-8", "surrogateescape")
        order = partial(self.client.publish, text, payload, (reply or b"").decode(), named)
        self._order(order, len(payload))

    def ping(self, answered: Callable[[bool], object]) -> None:
        """Call ``answered`` when the server has answered and the messages are handled."""
        if self.dead:
            answered(False)
            return
        number = self._numbers = self._numbers + 1
        self._pings[number] = (answered, None)

        async def ping() -> None:
            # In order after the messages. Later orders need not wait for the answer.
            self._pings[number] = (answered, self._spawn(self._answer(number)))

        self._order(ping)

    async def _answer(self, number: int) -> None:
        try:
            await self.client.flush(timeout=_FOREVER)  # type: ignore[arg-type]
        except Exception as error:
            self._pings[number] = (self._pings[number][0], None)  # `end` must not cancel this task
            self.end(_text(error))
        else:
            self._arrived.put_nowait(number)

    def _ended(self) -> None:
        for worker in self._workers:
            worker.cancel()
        while self._pings:
            _, (answered, task) = self._pings.popitem()
            if task is not None:  # nats-py does not end the waiting of its `flush`
                task.cancel()
            answered(False)


# -- helpers ---------------------------------------------------------------------------------------------


async def _quietly(work: Awaitable[object]) -> None:
    """Await ``work``; its errors only mean that the connection has ended before."""
    with suppress(Exception):
        await work


async def _close_client(client: NatsClient) -> None:
    """Close a client of nats-py, which waits for ever if the server does not read."""
    with suppress(Exception):
        await asyncio.wait_for(client.close(), CLOSE_SECONDS)


def _text(error: BaseException) -> str:
    """Return the text of an error for a log line."""
    return masked(printable(str(error).removeprefix("nats: ") or type(error).__name__, 200))


def _block(headers: dict[str, str]) -> bytes:
    """Return the block of headers from which nats-py has made ``headers``."""
    named = dict(headers)
    # nats-py's description may contain the lines that follow it.
    description = named.pop("Description", "").partition("\n")[0].strip()
    status = f"{named.pop('Status', '')} {description}".strip()
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"NATS/1.0{' ' if status else ''}{status}\r\n{lines}\r\n".encode("utf-8", "surrogateescape")


_CREDS = re.compile(
    rb"BEGIN NATS USER JWT-*\s+(?P<jwt>\S+)\s+-*END NATS USER JWT.*BEGIN USER NKEY SEED-*\s+(?P<seed>\S+)\s+-*END",
    re.DOTALL,
)


def read_credentials(path: Path | None) -> tuple[bytes, bytes]:
    """Return the JWT and the seed of a file of credentials.

    ``nsc generate creds`` writes such files. nats-py's own function never returns if the file has another content.

    Raises:
        KeyFileError: The file can't be read, or has other content.
    """
    try:
        found = _CREDS.search(Path(path or "").read_bytes()[: 1 << 20])
    except OSError as error:
        raise KeyFileError(f"the credentials {path} can't be read: {error.strerror}", path=path) from None
    if found is None:
        raise KeyFileError(
            f"the credentials {path} have no user JWT and no seed: create the file with nsc generate creds", path=path
        )
    return found["jwt"], found["seed"]


def _signature(path: Path | None, nonce: str) -> bytes:
    """Return the signature of the server's nonce, in base64."""
    import nkeys

    try:
        pair = nkeys.from_seed(bytearray(read_credentials(path)[1]))
    except KeyFileError:
        raise
    except Exception as error:
        raise KeyFileError(
            f"the seed in the credentials {path} is invalid: {type(error).__name__}", path=path
        ) from None
    try:
        return base64.b64encode(pair.sign(nonce.encode()))
    finally:
        pair.wipe()
