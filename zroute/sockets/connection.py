"""Connection: a ZeroMQ socket in a Twisted reactor.

**The descriptor.** A ZeroMQ socket has one descriptor for reading and writing. A readable descriptor does not mean that
a message is waiting, but that libzmq's I/O thread has sent a command to this thread. The option EVENTS shows whether a
message can be read (POLLIN) or sent (POLLOUT).

The descriptor is edge-triggered: it signals a command once. Any call on the socket processes commands, and so can
consume the signal (zmq_getsockopt(3), ZMQ_FD). Two consequences:

- If `send` is called while a subscription is waiting to be read, the descriptor does not signal the subscription,
  although EVENTS contains POLLIN. With one `recv` per signal, a socket would read one of a hundred messages and then
  stall forever.
- The descriptor stays readable until commands are processed. A `doRead` that does not use the socket would be called in
  a busy loop.

**The rules.** These rules follow from the behaviour of the descriptor:

1. `doRead` reads until EAGAIN, or until its budget is used. Only EAGAIN guarantees that no message is left, and that
   libzmq will signal the next one.
2. In all other cases, the last call in `doRead` reads EVENTS. A `poke` follows if EVENTS contains POLLIN, and always if
   the budget ended the reading.
3. Any other call on the socket (a send, a subscription, an endpoint) is followed by a `poke`. A poke reads EVENTS in
   the reactor's next turn, and calls `doRead` if EVENTS contains POLLIN. Only one poke is scheduled at a time, so a
   thousand sends cost one check. A `doRead` that ends with EAGAIN needs no check, unless a sender is waiting or a
   poke is scheduled. A scheduled poke means that a handler may have sent a message.
4. A new connection begins with a poke, because libzmq signals only after a read that has found no message.

**Fairness.** One `doRead` delivers at most `READ_BUDGET` messages, and ends after about `READ_SECONDS`. `doRead` checks
the clock after each `READ_SLICE` messages, or after four slices while handlers are fast. The reactor then serves timers
and other descriptors, and the poke continues the reading in the next turn. Without this limit, a flood of messages
would delay each timer by seconds.

**Pause and resume.** A pause is a flag, never `removeReader`. libzmq processes the commands of a peer only in calls of
this thread. Without such calls, a restarted publisher would not receive the subscriptions. While paused, `doRead` only
reads EVENTS, which processes commands and thereby makes the descriptor unreadable. `resume` must poke, because the
signals of messages that arrived during the pause have been consumed. `resume` must also make `doRead` run without
POLLIN. A frame that was read before the pause may contain undelivered messages, which EVENTS does not report.

**Writing.** POLLOUT means that a peer can accept a message, so the Deferreds of `when_writable` fire after each check
that finds POLLOUT. On PUB and XPUB sockets, POLLOUT is set even if each send fails with EAGAIN. The queues of
publishers therefore also use a timer to retry.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from threading import get_ident
from time import perf_counter
from typing import Any, ClassVar, Protocol, cast
from weakref import WeakSet

import zmq
import zmq.backend
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from zroute.endpoints import Endpoint, parse_endpoint
from zroute.errors import EndpointError, ForkedContextError, NotRunningError, WrongThreadError
from zroute.options import IPC_MODE, LINGER_ABORT, LINGER_DRAIN, READ_BUDGET, READ_SECONDS, READ_SLICE, Option
from zroute.sockets.admissions import UnknownKeys
from zroute.sockets.events import OnEvent, SocketEvent, parse_event
from zroute.sockets.ipc import bind
from zroute.transport import Receive

__all__ = ["Connection", "Guard", "Guarded", "make_socket"]

_log = logging.getLogger("zroute.sockets")

_OLDEST_LIBZMQ = (4, 3, 5)  # the version that the algorithm and the options were tested with
_GONE = (zmq.ENOTSOCK, zmq.ETERM)
_SEND_ONLY = (zmq.PUSH, zmq.PUB)
_LAST = zmq.DONTWAIT.value  # a number, because an operation on an enum would create another enum
_POLLIN, _POLLOUT = zmq.PollEvent.POLLIN.value, zmq.PollEvent.POLLOUT.value
_MORE = zmq.DONTWAIT.value | zmq.SNDMORE.value

# The Cython methods, because pyzmq's Python layer would make each send 50 % slower.
_recv = zmq.backend.Socket.recv
_get = zmq.backend.Socket.get
_send = zmq.backend.Socket.send

if zmq.zmq_version_info() < _OLDEST_LIBZMQ:
    raise ImportError(
        f"zroute needs libzmq {'.'.join(map(str, _OLDEST_LIBZMQ))} or newer, but pyzmq {zmq.__version__} uses "
        f"{zmq.zmq_version()}: install the pyzmq wheel, or build pyzmq against a newer libzmq"
    )


class Guarded(Protocol):
    """A socket whose connections can be closed."""

    def end_accepted(self, name: str, why: str) -> int:
        """Close the connections of a key, and those without a known key.

        ``why`` is the reason, for the log. Return their number.
        """

    def end_dialled(self, name: str, why: str) -> None:
        """Close the connections to endpoints whose peer has this name.

        ``why`` is the reason, for the log.
        """

    def connections_of(self, name: str) -> int:
        """Return the number of accepted connections of a key."""

    def unnamed(self, host: str) -> list[int]:
        """Return up to two new connections from ``host`` whose key is unknown, by id."""

    def unknown_keys(self) -> UnknownKeys:
        """Return the number of accepted connections whose key is unknown."""

    def is_clear(self, host: str) -> bool:
        """Return True if no request of an ended connection can wait for an answer.

        The connection was from ``host``, and the request was about its key.
        """

    def name(self, id: int, name: str) -> None:
        """Record the key of a connection."""

    def dial_again(self, name: str) -> None:
        """Connect without further pauses to endpoints whose peer has this name."""


class Guard(Protocol):
    """Decides about the endpoints of an app; see `zroute.sockets.access`."""

    @property
    def secure(self) -> bool:
        """True if the app has keys."""

    def check(self, endpoint: Endpoint) -> None:
        """Raise EndpointError if the endpoint can't be opened."""

    def protect(self, socket: zmq.Socket[Any], endpoint: Endpoint) -> None:
        """Set the options of a socket for an endpoint, before it is bound or connected.

        Raises:
            EndpointError: The endpoint may not be opened.
        """

    def check_bound(self, endpoint: Endpoint, resolved: str) -> None:
        """Raise EndpointError if the resolved address must not stay bound."""

    def watch(self, connection: Guarded) -> None:
        """Close connections of ``connection`` when a key is revoked."""

    def fault(self, endpoint: Endpoint, event: SocketEvent) -> str | None:
        """Return the reason and the remedy for a failed handshake, or None."""

    def failed(self, event: SocketEvent) -> str | None:
        """Count the failed handshake of a peer that has connected to us.

        Return the cause and the remedy for the log, or None if no line is needed.
        """

    def limited(self) -> None:
        """Count a connection that was closed because of a limit."""

    def known(self, name: str) -> tuple[str, str] | None:
        """Record the key of a connection.

        Return a reason and a remedy if the key has too many connections, else None.
        """


def make_socket(context: zmq.Context[Any], kind: int, options: Iterable[Option]) -> zmq.Socket[Any]:
    """Return a socket of ``kind`` (``zmq.SUB`` …) with ``options`` set.

    libzmq requires most options to be set before the socket is bound or connected.
    """
    socket: zmq.Socket[Any] = context.socket(kind)
    for option in options:
        socket.set(getattr(zmq.SocketOption, option.name), option.value)
    return socket


@implementer(IReadDescriptor)
class Connection:
    """A ZeroMQ socket on a Twisted reactor.

    The connection owns ``socket``, and passes messages to the attribute ``receive``, which may be replaced. The owner
    of the connection must call `close`, and may call it more than once. All methods must be called on the reactor's
    thread.
    """

    binds: ClassVar[bool] = False
    """True if an endpoint without ``bind:`` or ``connect:`` is bound.

    This is the case for sockets that others connect to, such as PUB and REP.
    """

    def __init__(self, reactor: Any, socket: zmq.Socket[Any], receive: Receive) -> None:
        self._reactor = reactor
        self._base = copy_context()
        self.receive = self._receive_nothing if socket.type in _SEND_ONLY else receive
        self._poke: Any = None
        self._on_loop = isinstance(reactor, AsyncioSelectorReactor)
        self._poke_waits = False
        self._again = False
        self.paused = False
        self.emptied = False
        """True after all messages have been read. The code that reads this flag must clear it."""
        self.closed = False
        self.endpoints: list[str] = []
        self._prefix = "zroute []"  # made once, because Twisted asks for it whenever the descriptor is readable
        self.guard: Guard | None = None
        """Sets the keys of each endpoint, and may refuse to open it; None for sockets without a guard."""
        self.ipc_mode = IPC_MODE
        """The mode of the socket files of ipc paths that are bound from now on."""
        self._socket = socket
        self._recv = _recv.__get__(self._socket)
        self._send = _send.__get__(self._socket)
        self._fd: int = self._socket.FD
        self._monitor: Connection | None = None
        self._watchers: tuple[OnEvent, ...] = ()
        self._refused = 0
        self._thread = get_ident()
        self._waiting: list[Deferred[None]] = []
        _connections.add(self)
        reactor.addReader(self)
        self.poke()  # libzmq signals the descriptor only after a read that found no message

    # -- endpoints ------------------------------------------------------------------------------------

    def open(self, endpoint: Endpoint | str) -> str:
        """Bind or connect to an endpoint; return its resolved address.

        A port ``*`` is resolved to the port that the system has chosen. A connection may have several endpoints, both
        bound and connected.

        Args:
            endpoint: An address such as ``"tcp://127.0.0.1:5555"``, optionally after ``bind:`` or ``connect:``.

        Raises:
            EndpointError: The address is in use, not an address of this machine, or invalid. An ipc path is in use if a
                program serves it, or if a file at this path is not a socket. An unused socket file is replaced.
            NotRunningError: The connection is closed.
        """
        if self.closed:
            raise NotRunningError(f"this {type(self).__name__} is closed: create a new one")
        endpoint = self._parsed(endpoint)
        if self.guard is not None:
            self.guard.protect(self._socket, endpoint)
        if endpoint.bind:
            self._endpoint("bind", partial(bind, self._socket, mode=self.ipc_mode), endpoint)
        else:
            self._endpoint("connect", self._socket.connect, endpoint)
        last: Any = self._socket.get(zmq.SocketOption.LAST_ENDPOINT)
        resolved: str = last.rstrip(b"\0").decode()
        self.endpoints.append(resolved)
        self._prefix = f"zroute {self.endpoints}"
        if self.guard is not None and endpoint.bind:
            try:
                self.guard.check_bound(endpoint, resolved)
            except EndpointError:
                self.unbind(resolved)
                raise
        return resolved

    def _parsed(self, endpoint: Endpoint | str) -> Endpoint:
        return parse_endpoint(endpoint, bind=self.binds) if isinstance(endpoint, str) else endpoint

    def disconnect(self, address: str) -> None:
        """Disconnect from ``address``, the result of `open`.

        Messages that are queued for this peer are dropped.

        Raises:
            EndpointError: The address is not connected.
        """
        self._take_back("disconnect", self._socket.disconnect, Endpoint(address, bind=False))

    def unbind(self, address: str) -> None:
        """Stop listening at ``address``, the result of `open`, and disconnect its peers.

        libzmq (4.3.5) closes their connections at once, and messages that are queued for these peers may be lost.
        `watch` reports no event on this side. The peers see ``disconnected``, and try to reconnect without success.
        Peers at other addresses are not affected. To move to another address, open the new address first, and unbind
        the old address when the peers have connected to the new address.

        Raises:
            EndpointError: The address is not bound.
        """
        self._take_back("unbind", self._socket.unbind, Endpoint(address, bind=True))

    def _take_back(self, verb: str, change: Callable[[str], object], endpoint: Endpoint) -> None:
        if endpoint.address not in self.endpoints:  # libzmq would accept localhost for 127.0.0.1
            raise EndpointError(_explain(verb, endpoint.address, errno.ENOENT), endpoint=str(endpoint))
        self._drop_rest()
        self._endpoint(verb, change, endpoint)
        self.endpoints.remove(endpoint.address)
        self._prefix = f"zroute {self.endpoints}"

    def _drop_rest(self) -> None:
        """Read and drop the remaining parts of a message.

        The first part may already have been read. In this state, libzmq ends the process (an assertion in fq.cpp) if
        one of our calls disconnects the peer that sent the message.
        """
        with suppress(zmq.ZMQError):
            while self.more():
                self._recv(_LAST)

    def _endpoint(self, verb: str, change: Callable[[str], object], endpoint: Endpoint) -> None:
        failed: str | None = None
        try:
            with self._family(endpoint.address):
                change(endpoint.address)
        except zmq.ZMQError as error:
            # Raised below, outside this block: this error as a context would keep the frame, and so the socket, alive.
            failed = _explain(verb, endpoint.address, self._reason(error.errno or 0))
        if failed is not None:
            raise EndpointError(failed, endpoint=str(endpoint))
        self.poke()

    @contextmanager
    def _family(self, address: str) -> Iterator[None]:
        """Enable IPv6 in libzmq while an IPv6 address is bound or connected.

        IPv6 is disabled again afterwards, because libzmq would otherwise resolve the host names of other endpoints to
        IPv6 addresses.
        """
        change = self._needs_ipv6(address) and not self._socket.get(zmq.SocketOption.IPV6)
        if change:
            self._socket.set(zmq.SocketOption.IPV6, 1)
        try:
            yield
        finally:
            if change:
                self._socket.set(zmq.SocketOption.IPV6, 0)

    def _needs_ipv6(self, address: str) -> bool:
        return "[" in address

    def _reason(self, number: int) -> int:
        """Return the error number of a failed call of libzmq.

        libzmq may have overwritten ``number``; the monitor's event for the failure contains the correct number.
        """
        if self._monitor is None:
            return number
        self._refused = 0
        self._monitor.doRead()
        return self._refused or number

    def watch(self, on_event: OnEvent) -> None:
        """Call ``on_event`` with each `SocketEvent` of the connections from now on.

        To receive all events, call this method before `open`.

        Raises:
            NotRunningError: The connection is closed.
        """
        if self.closed:
            raise NotRunningError(f"this {type(self).__name__} is closed: create a new one")
        self._watchers += (on_event,)
        if self._monitor is not None:
            return
        address = f"inproc://zroute.monitor.{os.getpid()}.{next(_numbers)}"
        self._socket.monitor(address, zmq.Event.ALL)
        monitor: zmq.Socket[Any] = self._socket.context.socket(zmq.PAIR)
        monitor.set(zmq.SocketOption.RCVHWM, 0)  # no limit, because libzmq's own thread would wait for a slow reader
        monitor.connect(address)
        self._monitor = _Monitor(self._reactor, monitor, self._tell)
        self._monitor.owner = self

    def _read_events(self) -> None:
        """Pass all events that have arrived to the watchers, now."""
        monitor = self._monitor
        while monitor is not None and not monitor.closed and monitor._events() & _POLLIN:
            monitor.doRead()

    def _tell(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        before = None
        for _ in range(budget):
            first, second = recv(_LAST), recv(_LAST)
            if first == before:
                continue
            event = parse_event(first, second)
            # libzmq repeats this event in a busy loop, faster than functions that watch the socket could process it.
            before = first if event.name == "accept_failed" else None
            if event.name == "bind_failed":
                self._refused = event.value
            for on_event in self._watchers:
                try:
                    on_event(event)
                except Exception:
                    _log.exception("a function that watches the connections of %s failed", self.endpoints)

    # -- called by the reactor --------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed.

        See `twisted.internet.interfaces.IFileDescriptor`.
        """
        return -1 if self.closed else self._fd

    def logPrefix(self) -> str:  # noqa: N802  # Twisted's name
        """Return the name of this connection in Twisted's log."""
        return self._prefix

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802  # Twisted's name
        """Close the connection, because the reactor stops watching its descriptor."""
        self.close()

    def doRead(self) -> None:  # noqa: N802  # Twisted's name
        """Deliver messages for a limited time, then check EVENTS once more."""
        recv, more = self._recv, self.more
        run = self._base.copy().run  # context variables that handlers set are reset after this read
        began, left, size = perf_counter(), READ_BUDGET, READ_SLICE
        try:
            while left > 0 and not self.closed and not self.paused:
                run(self.receive, recv, more, size)
                left -= size
                spent = perf_counter() - began
                if spent > READ_SECONDS:
                    break
                if spent < READ_SECONDS / 32:  # fast handlers: a larger slice still ends in time
                    size = READ_SLICE * 4
            if not self.paused:
                self._read_again()  # a frame may be partly handled, and EVENTS does not report the rest of a frame
        except zmq.Again:
            self.emptied = True
            if self._poke is None and not self._waiting:  # no other call has used the socket since the last check
                return
        except zmq.ZMQError as error:
            self._failed(error)
        except BaseException:  # the reactor would drop the socket because of the error
            _log.exception("bug in zroute, please report it: reading a message failed. Reading continues")
        if not self.closed:
            self._look()

    def _receive_nothing(self, recv: Callable[[int], bytes], more: Callable[[], int], budget: int) -> None:
        """Read nothing; used as ``receive`` on sockets that only send.

        Reading EVENTS lets libzmq process commands.
        """
        self._events()
        raise zmq.Again

    def _look(self) -> None:
        events = self._events()
        if events & _POLLIN and not self.paused:
            self.poke()
        self._tell_writable(events)

    def _tell_writable(self, events: int) -> None:
        if self._waiting and events & _POLLOUT:
            ready, self._waiting = self._waiting, []
            for waiting in ready:
                if not waiting.called:  # an earlier callback may have cancelled this Deferred
                    waiting.callback(None)

    def _failed(self, error: zmq.ZMQError) -> None:
        """Process an error other than EAGAIN.

        Closes the connection if the socket or its context is closed; otherwise raises the error.
        """
        if error.errno not in _GONE:
            raise error
        self.close(LINGER_ABORT)

    def more(self) -> int:
        """Return 1 if another part of the last message follows, else 0.

        See zmq_getsockopt(3), ZMQ_RCVMORE.
        """
        return 0 if self.closed else int(_get(self._socket, zmq.SocketOption.RCVMORE.value))

    def _events(self) -> int:
        try:
            return int(_get(self._socket, zmq.SocketOption.EVENTS.value))
        except zmq.ZMQError as error:
            self._failed(error)
            return 0

    def readable(self) -> bool:
        """Return True if a message is waiting to be read, even while paused."""
        self.poke()  # reading EVENTS can consume the signal of the descriptor
        return not self.closed and bool(self._events() & _POLLIN)

    def discard(self, most: int) -> int:
        """Discard up to ``most`` waiting parts; return their number."""
        self.poke()
        number = 0
        with suppress(zmq.ZMQError):  # zmq.Again once all parts are read
            while not self.closed and number < most:
                self._recv(_LAST)
                number += 1
        return number

    # -- sending --------------------------------------------------------------------------------------

    def try_send(self, parts: Sequence[bytes]) -> bool:
        """Send the parts of a message: all of them or none.

        Returns False if no peer can accept the message now. The connection must be open.
        """
        # A single part needs no check: pyzmq converts or refuses it before anything is sent.
        if len(parts) > 1 and not all(isinstance(part, bytes) for part in parts):
            parts = [bytes(memoryview(part)) for part in parts]  # a TypeError is raised here, before any part is sent
        return self.try_send_bytes(parts)

    def try_send_bytes(self, parts: Sequence[bytes], *, poke: bool = True) -> bool:
        """Send parts that are known to be bytes, all or none; see `try_send`.

        A caller with ``poke=False`` must check the socket afterwards.
        """
        send, last = self._send, len(parts) - 1
        if poke:
            self.poke()
        try:  # parts are sent together (zmq_msg_send(3)): libzmq can refuse only the first
            for part in parts[:last]:
                send(part, _MORE)
            send(parts[last], _LAST)
        except zmq.Again:
            return False
        return True

    def when_writable(self) -> Deferred[None]:
        """Return a Deferred that fires when a peer can accept a message.

        The Deferred fires in the reactor's next turn at the earliest, and for all callers at the same time. Another
        caller may fill the queue first, so `try_send` can still return False. The Deferred fails with NotRunningError
        when the connection is closed. The caller may cancel the Deferred.
        """
        if self.closed:
            return fail(NotRunningError(f"this {type(self).__name__} is closed"))
        waiting: Deferred[None] = Deferred(self._waiting_no_more)
        self._waiting.append(waiting)
        self.poke()
        return waiting

    def _waiting_no_more(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def check(self) -> None:
        """Raise an error if the connection can't be used here.

        Raises:
            NotRunningError: The connection is closed.
            WrongThreadError: The caller is not on the thread that created the connection.
            ForkedContextError: This process is a fork of the process that created the connection.
        """
        if self.closed:
            if isinstance(self._socket, _Refusing):
                _refuse()
            raise NotRunningError(f"this {type(self).__name__} is closed: create a new one")
        if get_ident() != self._thread:
            raise WrongThreadError(
                f"this {type(self).__name__} was used in a thread other than the reactor's, but ZeroMQ sockets are not "
                "thread-safe: use reactor.callFromThread(connection.send, …) in that thread"
            )

    # -- state ----------------------------------------------------------------------------------------

    def poke(self, within: float = 0.0) -> None:
        """Check the socket soon, because a call has used it.

        ``within`` is the maximum delay in seconds; 0 schedules the check for the reactor's next turn.
        """
        if self.closed:
            return
        if self._poke is None:
            self._poke = self._soon() if self._on_loop and not within else self._reactor.callLater(within, self._poked)
            self._poke_waits = within > 0
        elif self._poke_waits and not within:
            self._poke_waits = False
            self._poke.reset(0)

    def _soon(self) -> Any:
        """Check the socket in the next turn of asyncio's loop.

        A timer of Twisted's asyncio reactor costs three times as much.
        """
        try:
            return asyncio.get_running_loop().call_soon(self._poked)
        except RuntimeError:  # the loop does not run yet
            return self._reactor.callLater(0, self._poked)

    def _poked(self) -> None:
        """Read messages if any have arrived.

        Usually no message has arrived, for example after a send. Reading EVENTS costs a third of a ``recv`` that finds
        no message.
        """
        self._poke = None
        events = self._events()
        if (events & _POLLIN or self._again) and not self.paused:
            self._again = False
            self.doRead()
            return
        if not (events & _POLLIN or self._again):
            self.emptied = True
        self._tell_writable(events)

    def pause(self) -> None:
        """Stop reading until `resume`.

        The socket still processes its peers' commands.
        """
        self.paused = True

    def resume(self) -> None:
        """Resume reading in the reactor's next turn."""
        self.paused = False
        self._read_again()

    def _read_again(self) -> None:
        """Call `doRead` in the next turn, even if the socket has no new message.

        EVENTS does not report the undelivered messages of a frame that was already read.
        """
        self._again = True
        self.poke()

    def close(self, linger: int = LINGER_DRAIN) -> None:
        """Close the socket.

        Queued messages may still be sent for up to ``linger`` milliseconds.
        """
        if self.closed:
            return
        # Set first, because the errbacks below may run code that uses this connection.
        self.closed = True
        self._reactor.removeReader(self)
        if self._poke is not None:
            self._poke.cancel()
            self._poke = None
        if self._monitor is not None:
            with suppress(zmq.ZMQError):  # the context may be terminated
                self._socket.disable_monitor()
            self._monitor.close(LINGER_ABORT)
        self._socket.close(linger)
        left, self._waiting = self._waiting, []
        for waiting in left:
            if waiting.called:  # an earlier errback may have cancelled this Deferred
                continue
            waiting.errback(NotRunningError(f"this {type(self).__name__} was closed"))

    def forked(self) -> None:
        """Refuse all calls, because this process is a fork of the socket's process.

        The child has copies of descriptors and memory, but not libzmq's threads. A send in the child would return, and
        the message would be lost. Removing the descriptor from an epoll set in the child would even remove it in the
        parent.
        """
        self.closed = True
        self._parents = self._socket  # a reference, so that the garbage collector does not close the socket here
        self._socket = cast("zmq.Socket[Any]", _Refusing())
        self._recv = self._send = _refuse


class _Monitor(Connection):
    """Reads the events of ``owner``'s connections.

    The owner first tells libzmq to send no more events, and then closes the monitor. Otherwise the thread that sends an
    event, ours or libzmq's own, would wait forever for a reader.
    """

    owner: Connection

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802  # Twisted's name
        """Close the owner first: a stopping reactor closes descriptors in any order."""
        self.owner.connectionLost(reason)


class _Refusing:
    def __getattr__(self, name: str) -> Any:
        return _refuse


def _refuse(*_args: Any) -> Any:
    raise ForkedContextError(
        f"process {os.getpid()} is a fork of the process that opened this socket, and can't use the socket: start "
        "processes before the app, or with multiprocessing's 'spawn', and create an app in each process"
    )


def _poison() -> None:
    for connection in tuple(_connections):
        connection.forked()


_connections: WeakSet[Connection] = WeakSet()
_numbers = count()

os.register_at_fork(after_in_child=_poison)  # comparing process ids in each send would cost a third of the send


def _explain(verb: str, address: str, number: int) -> str:
    reasons = {
        errno.EADDRINUSE: (
            "this address is in use, here or in another program: close the other socket, or choose another address"
        ),
        errno.EEXIST: "the file at this path is not a socket: move the file, or choose another path",
        errno.EADDRNOTAVAIL: "this machine does not have this address: bind an address of this machine, or 127.0.0.1",
        errno.ENODEV: "this machine does not have this address or interface: bind another one, or 127.0.0.1",
        errno.EACCES: "permission denied: choose a port above 1023, or a path that you can write to",
        errno.EINVAL: "the address is invalid: write tcp://host:port, ipc://path or inproc://name",
        errno.ENOENT: "the directory does not exist: create it, or choose another path",
        errno.ECONNREFUSED: "no socket of this context has bound this name: bind the name first, and share the context",
    }
    if verb.endswith(("disconnect", "unbind")):
        reasons[errno.ENOENT] = "this address is not open: pass the address that open() returned"
    return f"can't {verb} {address}: {reasons.get(number, 'libzmq refused it')} ({zmq.strerror(number)})"
