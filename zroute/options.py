"""Socket options and limits, as data, each with its reason.

Nothing here touches a socket: option names are libzmq's own, as text, and `zroute.sockets` sets them.
Units are libzmq's (milliseconds, bytes, messages) unless said otherwise.
"""

from __future__ import annotations

import attrs

__all__ = [
    "DRAIN_TIMEOUT",
    "HEADERS_MAX",
    "LARGE_FRAME",
    "LINGER_ABORT",
    "LINGER_DRAIN",
    "MAX_IN_FLIGHT",
    "MAX_MESSAGE",
    "MAX_PARTS",
    "MAX_SUBSCRIPTIONS",
    "MAX_TOPIC",
    "READ_BUDGET",
    "READ_SECONDS",
    "READ_SLICE",
    "ROUTE_QUEUE",
    "STREAM_QUEUE",
    "TOPIC_CACHE",
    "Option",
    "publisher_options",
    "subscriber_options",
]

MAX_TOPIC = 255
"""Bytes of a topic: a counter on the wire names a prefix by its length, in one byte."""

MAX_PARTS = 16
"""Parts of a received message: known publishers send up to seven; MAXMSGSIZE does not bound their number."""

MAX_MESSAGE = 1024 * 1024
"""Bytes of a body, by default: larger data belongs in a file or an object store, with its name in a message."""

HEADERS_MAX = 4096
"""Bytes of the encoded headers of one message, so that a reader's MAXMSGSIZE has a bound."""

LARGE_FRAME = 8192
"""Bytes from which on a body leaves the short way: its size and its nesting are checked before it is decoded.

No 8 KiB can nest deep enough to exhaust the C stack (measured: between 16,000 and 30,000 levels on 8 MiB)."""

TOPIC_CACHE = 16_384
"""Topics whose compiled deliveries are kept; the oldest is dropped first and found again through the trie."""

MAX_SUBSCRIPTIONS = 100_000
"""Live subscriptions at one publisher before it says that somebody floods it (about 1 KiB each in libzmq)."""

MAX_IN_FLIGHT = 100
"""Unfinished calls of one handler at a time: as many as most connection pools and thread pools bear."""

ROUTE_QUEUE = 1_000
"""Messages that wait for one handler before reading pauses: as many as ZeroMQ itself holds (RCVHWM)."""

STREAM_QUEUE = 100
"""Messages that wait in one stream: a loop that takes them one by one is seldom far behind."""

READ_BUDGET = 256
"""Messages read in one turn of the reactor: costs nothing in throughput, and a flood starves no timer."""

READ_SECONDS = 0.005
"""Seconds of one turn that reading may take, whatever the handlers do."""

READ_SLICE = 16
"""Messages between two looks at the clock, which costs about a tenth of a message."""

DRAIN_TIMEOUT = 8.0
"""Seconds a stop waits for what was received: below the 10 s that container runtimes allow before SIGKILL."""

LINGER_DRAIN = 3000
"""Milliseconds a closed socket may go on sending. Never -1: with an unreachable peer `term` would hang."""

LINGER_ABORT = 0
"""For a socket that is thrown away."""


@attrs.frozen
class Option:
    """One socket option: libzmq's ``name`` without ``ZMQ_``, its ``value``, and ``why`` it is set."""

    name: str
    value: int
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


def subscriber_options(max_message: int = MAX_MESSAGE) -> tuple[Option, ...]:
    """What a SUB socket is given; ``max_message`` is the limit of a body in bytes."""
    # Topic, NUL, the tracked header with its length field, and the headers may stand before the body.
    ceiling = max_message + MAX_TOPIC + 1 + 64 + HEADERS_MAX
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 0, "subscriptions are messages: at 1,000 the rest is dropped in silence"),
        Option("RCVHWM", 1_000, "bounded memory, and input restarts soon enough"),
        Option("MAXMSGSIZE", ceiling, "a giant frame cuts its connection instead of filling memory"),
        Option("HEARTBEAT_IVL", 0, "libzmq 4.3.5 aborts over a PING to a dead peer while the queue is full"),
    )


def publisher_options() -> tuple[Option, ...]:
    """What an XPUB socket is given."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 10_000, "bounded memory per peer; what is dropped is seen by the sequence"),
        Option("MAXMSGSIZE", 512, "bounds a subscription: 10 + 255 bytes, markers and CURVE need room"),
        Option("HEARTBEAT_IVL", 0, "a subscriber at its high-water mark answers no PING"),
    )
