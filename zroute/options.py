"""Socket options and limits, as data, each with its reason.

Nothing here touches a socket: option names are libzmq's own, as text, and `zroute.sockets` sets them.
Units are libzmq's (milliseconds, bytes, messages) unless said otherwise.
"""

from __future__ import annotations

from typing import TypedDict

import attrs

__all__ = [
    "BATCH_MAX",
    "BATCH_SECONDS",
    "CARRIED",
    "COALESCED",
    "COALESCED_BYTES",
    "COALESCED_MAX",
    "DRAIN_TIMEOUT",
    "HEADERS_MAX",
    "KEPT_MAX",
    "LARGE_FRAME",
    "LINGER_ABORT",
    "LINGER_DRAIN",
    "MAX_IN_FLIGHT",
    "MAX_MESSAGE",
    "MAX_PARTS",
    "MAX_SUBSCRIPTIONS",
    "MAX_SUBSCRIPTION_BYTES",
    "MAX_SUBSCRIPTION_BYTES_LEAST",
    "MAX_TOPIC",
    "PUBLISHERS_KEPT",
    "READ_BUDGET",
    "READ_SECONDS",
    "READ_SLICE",
    "RECEIVED_MAX",
    "REQUEST_FORGOTTEN",
    "REQUEST_WINDOW",
    "ROUTE_QUEUE",
    "SEND_QUEUE",
    "SEND_QUEUE_SECONDS",
    "STATEMENT_MAX",
    "STREAM_QUEUE",
    "SUBSCRIPTIONS_SEEN",
    "SUBSCRIPTIONS_SLICE",
    "SUBSCRIPTION_COST",
    "TOPICS_NOTED",
    "TOPIC_CACHE",
    "Option",
    "SocketOptions",
    "frame_limit",
    "publisher_options",
    "socket_options",
    "subscriber_options",
    "with_options",
]

MAX_TOPIC = 255
"""Bytes of a topic: a counter on the wire names a prefix by its length, in one byte."""

MAX_PARTS = 16
"""Parts of a received message: known publishers send up to seven; MAXMSGSIZE does not bound their number."""

MAX_MESSAGE = 1024 * 1024
"""Bytes of a body, by default: larger data belongs in a file or an object store, with its name in a message."""

HEADERS_MAX = 4096
"""Bytes of the encoded headers of one message, so that a reader's MAXMSGSIZE has a bound."""

CARRIED = 16
"""Counters that one message carries: as many live subscriptions may cover one topic; the longest go without."""

STATEMENT_MAX = 4096
"""Bytes of one part of an answer to a marker, so that it passes the smallest MAXMSGSIZE of a reader."""

COALESCED = 100
"""Messages that one frame brings by default: at 50 nearly all of the gain is there, and a turn stays short."""

COALESCED_MAX = 1_000
"""Messages that one frame brings at most: what is decoded without a look at the clock, and lost with one frame."""

COALESCED_BYTES = 64_000
"""Bytes of the messages in one frame: where each ends is written in two bytes, and separators count."""

LARGE_FRAME = 8192
"""Bytes from which on a body leaves the short way: its size and its nesting are checked before it is decoded.

No 8 KiB can nest deep enough to exhaust the C stack (measured: between 16,000 and 30,000 levels on 8 MiB)."""

TOPIC_CACHE = 128 * 1024 * 1024
"""Bytes of what an app knows about the topics it receives, and as many about those it publishes: some 50,000 topics.

Beyond that a part is dropped, and made again with the next message. Topics over `MAX_TOPIC` bytes are not kept."""

PUBLISHERS_KEPT = 1_024
"""Publishers of one topic whose headers a reader knows: as many as it keeps accounts of."""

TOPICS_NOTED = 16_384
"""Topics of which one fact is noted, such as when their latest message was sent: up to 500 bytes each."""

MAX_SUBSCRIPTIONS = 100_000
"""Live subscriptions at one publisher before it says that somebody floods it (about 1 KiB each in libzmq)."""

MAX_SUBSCRIPTION_BYTES = 1024 * 1024
"""Bytes of live subscriptions by one connection, by default: libzmq needs about 50 times as much memory for them."""

MAX_SUBSCRIPTION_BYTES_LEAST = 4096
"""The smallest value that may be given: the markers of one subscriber have room, a few times over."""

SUBSCRIPTION_COST = 20
"""Bytes that a subscription counts at least: a shorter one costs no less memory here."""

KEPT_MAX = 100_000
"""Topics whose latest message one app keeps; beyond that it gives up the one that came first, and logs it."""

SUBSCRIPTIONS_SLICE = 400
"""Subscriptions that are sent again at a time: a proxy drops them beyond 1,000 on their way (its XSUB's SNDHWM)."""

MAX_IN_FLIGHT = 100
"""Unfinished calls of one handler at a time: as many as most connection pools and thread pools bear."""

ROUTE_QUEUE = 1_000
"""Messages that wait for one handler before reading pauses: as many as ZeroMQ itself holds (RCVHWM)."""

BATCH_MAX = 10_000
"""Messages that one list of a handler with ``batch=`` holds at most: no database takes more at once with any gain."""

BATCH_SECONDS = 0.01
"""Seconds that a list grows at most while there is always more to read, so that a flood to others holds up nobody."""

STREAM_QUEUE = 100
"""Messages that wait in one stream: a loop that takes them one by one is seldom far behind."""

REQUEST_WINDOW = 64
"""Requests sent to one server and not answered: enough to keep it busy, and few to find when it wakes up."""

REQUEST_FORGOTTEN = 60.0
"""Seconds after which a sent request that was given up counts no more: its reply was lost, or never given."""

READ_BUDGET = 256
"""Messages read in one turn of the reactor: costs nothing in throughput, and a flood starves no timer."""

READ_SECONDS = 0.005
"""Seconds of one turn that reading may take, whatever the handlers do."""

READ_SLICE = 16
"""Messages between two looks at the clock, which costs about a tenth of a message."""

SUBSCRIPTIONS_SEEN = 0.001
"""Seconds until a publisher looks for subscriptions that it may have missed over a message that it sent."""

DRAIN_TIMEOUT = 8.0
"""Seconds a stop waits for what was received: below the 10 s that container runtimes allow before SIGKILL."""

RECEIVED_MAX = 1_000
"""Messages of each publisher that wait in a subscriber's socket: bounded memory, and input restarts soon enough."""

SEND_QUEUE = 1_000
"""Messages that wait for subscribers with ``overflow="wait"``: as many as ZeroMQ itself queues for a reader."""

SEND_QUEUE_SECONDS = 30.0
"""Seconds that one of them waits: longer than any pause that is none."""

LINGER_DRAIN = 3000
"""Milliseconds a closed socket may go on sending. Never -1: with an unreachable peer `term` would hang."""

LINGER_ABORT = 0
"""For a socket that is thrown away."""


@attrs.frozen
class Option:
    """One socket option: libzmq's ``name`` without ``ZMQ_``, its ``value``, and ``why`` it is set."""

    name: str
    value: int | bytes
    why: str


_EVERY_SOCKET = (
    Option("HANDSHAKE_IVL", 5_000, "a peer that connects and says nothing is dropped"),
    Option("RECONNECT_IVL", 100, "back quickly after a restart"),
    Option("RECONNECT_IVL_MAX", 5_000, "and without hammering a host that stays away"),
    Option("TCP_KEEPALIVE", 1, "NAT and firewalls forget silent connections"),
    Option("TCP_KEEPALIVE_IDLE", 60, "seconds of silence before the first probe"),
    Option("TCP_KEEPALIVE_INTVL", 15, "seconds between probes"),
    Option("TCP_KEEPALIVE_CNT", 4, "probes without an answer before the connection is given up"),
    Option("LINGER", LINGER_DRAIN, "no hang in term, and time to flush"),
)


def frame_limit(max_message: int = MAX_MESSAGE) -> int:
    """MAXMSGSIZE for bodies of up to ``max_message`` bytes, and for frames that bring many small ones.

    Before the body may stand: a marker and a topic, each with its NUL; the tracked header with its length field,
    fifteen further counters of 9 bytes, and the headers. Beside each of the messages that travel together stand three
    bytes: its length, and what separates it from the next.
    """
    body = max(max_message, COALESCED_BYTES + 3 * (COALESCED_MAX + 1))
    return body + 2 * (MAX_TOPIC + 1) + 36 + 9 * (CARRIED - 1) + HEADERS_MAX


def subscriber_options() -> tuple[Option, ...]:
    """What a SUB or XSUB socket is given."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 0, "subscriptions are messages: at 1,000 the rest is dropped in silence"),
        Option("RCVHWM", RECEIVED_MAX, "bounded memory, and input restarts soon enough"),
        Option("MAXMSGSIZE", frame_limit(), "a giant frame cuts its connection instead of filling memory"),
        Option("HEARTBEAT_IVL", 0, "libzmq 4.3.5 aborts over a PING to a dead peer while the queue is full"),
    )


def publisher_options() -> tuple[Option, ...]:
    """What a PUB or XPUB socket is given."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 10_000, "bounded memory per peer, in frames; what is dropped is seen by the sequence"),
        Option("RCVHWM", 1, "libzmq reads subscriptions in one call as long as more come: 1,000 are seconds of a turn"),
        Option("MAXMSGSIZE", 512, "bounds a subscription: 10 + 255 bytes, markers and CURVE need room"),
        Option("HEARTBEAT_IVL", 0, "a subscriber at its high-water mark answers no PING"),
    )


def socket_options(kind: str) -> tuple[Option, ...]:
    """What a socket of ``kind`` (``"PUSH"`` …) is given, before the options of its owner."""
    if kind in ("SUB", "XSUB"):
        return subscriber_options()
    if kind in ("PUB", "XPUB"):
        return publisher_options()
    options: tuple[Option, ...] = (
        *_EVERY_SOCKET,
        Option("SNDHWM", 1_000, "bounded memory per peer; a full queue is an error at the sender"),
        Option("RCVHWM", 1_000, "bounded memory per peer"),
        Option("MAXMSGSIZE", MAX_MESSAGE, "a giant part cuts its connection instead of filling memory"),
        Option("HEARTBEAT_IVL", 0, "libzmq 4.3.5 aborts over a PING to a dead peer while the queue is full"),
    )
    if kind == "PUSH":
        options += (Option("IMMEDIATE", 1, "nothing is queued for a peer that may never come"),)
    if kind == "ROUTER":
        options += (Option("ROUTER_MANDATORY", 1, "a message to a peer that has gone is an error, not a silence"),)
    return options


class SocketOptions(TypedDict, total=False):
    """Options of a connection, as keywords: libzmq's names in lower case, and its units (zmq_setsockopt(3)).

    What is not given has the value of the table in the documentation.
    """

    sndhwm: int
    """Messages queued for each peer; 0 is unlimited."""
    rcvhwm: int
    """Messages queued from each peer; 0 is unlimited."""
    linger: int
    """Milliseconds that a closed socket goes on sending; not negative, since ending would then hang."""
    maxmsgsize: int
    """Bytes of the largest part taken from a peer, whose connection is cut for a larger one; -1 is unlimited."""
    handshake_ivl: int
    """Milliseconds for a peer to complete the handshake."""
    heartbeat_ivl: int
    """Milliseconds between two PINGs; 0 is none."""
    heartbeat_timeout: int
    """Milliseconds without an answer to a PING until the connection is cut."""
    heartbeat_ttl: int
    """Milliseconds without a PING until the peer cuts the connection; counted in tenths of a second."""
    reconnect_ivl: int
    """Milliseconds until the first attempt to connect again; -1 is never."""
    reconnect_ivl_max: int
    """Milliseconds to which that grows, doubling."""
    tcp_keepalive: int
    """1 for TCP's keepalive, 0 for none, -1 for the system's choice."""
    tcp_keepalive_idle: int
    """Seconds of silence before the first probe."""
    tcp_keepalive_intvl: int
    """Seconds between two probes."""
    tcp_keepalive_cnt: int
    """Probes without an answer until the connection is given up."""
    immediate: int
    """1 queues for completed connections only, 0 also for those that are being made.

    For PUSH and PUB: libzmq 4.3.5 ends the process (``Assertion failed: !_more``, fq.cpp) when a connection of a socket
    with 1 is lost while a message of several parts is read from it.
    """
    identity: bytes
    """How a ROUTER names this socket: 1 to 255 bytes, the first not 0, no two alike at one ROUTER."""


def with_options(options: tuple[Option, ...], given: SocketOptions) -> tuple[Option, ...]:
    """``options``, those ``given`` in place of theirs. Raises TypeError for a name or value that is none."""
    known = SocketOptions.__annotations__
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no socket option '{name}': choose from {', '.join(sorted(known))}")
        wanted = bytes if name == "identity" else int
        if not isinstance(value, wanted) or (name == "linger" and value < 0):  # type: ignore[operator]
            raise TypeError(
                f"the socket option {name} is {wanted.__name__}{' from 0' * (name == 'linger')}, not {value!r}"
            )
    chosen = {option.name: option for option in options}
    chosen.update({name.upper(): Option(name.upper(), value, "as its owner wants it") for name, value in given.items()})  # type: ignore[arg-type]
    return tuple(chosen.values())
