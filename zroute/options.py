"""Socket options and limits as data, each with its reason.

Nothing here uses a socket: option names are libzmq's own, as text, and `zroute.sockets` sets them. Units are libzmq's
(milliseconds, bytes, messages) unless a docstring names another.
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
"""Bytes of the longest pattern or numbered topic.

On the wire a counter names its prefix by the length, in one byte.
"""

MAX_PARTS = 16
"""Parts of the largest received message: known publishers send up to seven.

MAXMSGSIZE does not limit the number of parts.
"""

MAX_MESSAGE = 1024 * 1024
"""Bytes of the largest message body, by default.

Larger data belongs in a file or an object store; send its name in a message.
"""

HEADERS_MAX = 4096
"""Bytes of the encoded headers of a message; bounds MAXMSGSIZE of subscribers."""

CARRIED = 16
"""Counters that one message carries: one for each live subscription to its topic.

If more subscriptions cover the topic, those with the longest prefixes get no counter.
"""

STATEMENT_MAX = 4096
"""Bytes of one part of an answer to a marker.

It passes the smallest MAXMSGSIZE of a subscriber.
"""

COALESCED = 100
"""Messages that one frame carries by default.

At 50 nearly all of the gain is reached, and one turn of the reactor stays short.
"""

COALESCED_MAX = 1_000
"""Messages that one frame may carry.

They are decoded without a look at the clock, and are lost together.
"""

COALESCED_BYTES = 64_000
"""Bytes of the messages in one frame, including separators.

The end of each message is written in two bytes.
"""

LARGE_FRAME = 8192
"""Bytes from which a body leaves the fast path.

Its size and nesting are then checked before it is decoded. 8 KiB can't nest deeply enough to exhaust the C stack: that
takes between 16,000 and 30,000 levels (measured with a stack of 8 MiB).
"""

TOPIC_CACHE = 128 * 1024 * 1024
"""Bytes of an app's cache of received topics, and of its cache of published ones.

That is some 50,000 topics. When a cache is full, a part of its topics is dropped; their entries are made again with
their next message. Topics over `MAX_TOPIC` bytes are not cached.
"""

PUBLISHERS_KEPT = 1_024
"""Publishers of one topic whose headers a subscriber caches.

It is also the number of publishers that a subscriber keeps counters of.
"""

TOPICS_NOTED = 16_384
"""Topics of which one fact is kept, for example the time of the latest message.

Each takes up to 500 bytes.
"""

MAX_SUBSCRIPTIONS = 100_000
"""Live subscriptions at one publisher before it logs a warning about a flood.

Each takes about 1 KiB in libzmq.
"""

MAX_SUBSCRIPTION_BYTES = 1024 * 1024
"""Bytes of live subscriptions of one connection, by default.

libzmq needs about 50 times as much memory for them.
"""

MAX_SUBSCRIPTION_BYTES_LEAST = 4096
"""The smallest value of ``max_subscription_bytes``.

It has room for the markers of one subscriber, several times over.
"""

SUBSCRIPTION_COST = 20
"""The minimum bytes that a subscription is charged.

A shorter one takes no less memory here.
"""

KEPT_MAX = 100_000
"""Topics whose latest message one app retains.

Beyond that it drops the topic that came first, and logs that.
"""

SUBSCRIPTIONS_SLICE = 400
"""Subscriptions that are sent again at a time.

A proxy drops them beyond 1,000 (SNDHWM of its XSUB).
"""

MAX_IN_FLIGHT = 100
"""Unfinished calls of one handler at a time.

Most connection pools and thread pools can serve that number.
"""

ROUTE_QUEUE = 1_000
"""Messages that wait for one handler before reading pauses.

ZeroMQ itself queues the same number (RCVHWM).
"""

BATCH_MAX = 10_000
"""Messages in the largest batch of a handler with ``batch=``.

No database gains from larger ones.
"""

BATCH_SECONDS = 0.01
"""Seconds that a batch may grow while messages keep arriving.

So a flood of messages does not delay other handlers.
"""

STREAM_QUEUE = 100
"""Messages that wait in one stream.

A loop that takes them one by one is rarely far behind.
"""

REQUEST_WINDOW = 64
"""Requests sent to one server and not answered.

Enough to keep it busy, and few enough to work off after a pause.
"""

REQUEST_FORGOTTEN = 60.0
"""Seconds after which a request whose caller gave up no longer counts.

Its reply was lost, or never sent.
"""

READ_BUDGET = 256
"""Messages read in one turn of the reactor.

The limit costs no throughput, and lets timers run during a flood.
"""

READ_SECONDS = 0.005
"""Seconds of one turn of the reactor that reading may take."""

READ_SLICE = 16
"""Messages between two looks at the clock.

A look costs about a tenth of a message.
"""

SUBSCRIPTIONS_SEEN = 0.001
"""Seconds until a publisher that has sent a message looks for subscriptions."""

DRAIN_TIMEOUT = 8.0
"""Seconds that a stop waits for received messages to be handled.

It is less than the 10 s that container runtimes wait before SIGKILL.
"""

RECEIVED_MAX = 1_000
"""Messages of each publisher that wait in a subscriber's socket.

Few enough to bound memory and to resume the sender soon.
"""

SEND_QUEUE = 1_000
"""Messages that wait for subscribers with ``overflow="wait"``.

ZeroMQ itself queues a similar number for a subscriber.
"""

SEND_QUEUE_SECONDS = 30.0
"""Seconds that such a message waits at most.

It is longer than a short pause of a subscriber.
"""

LINGER_DRAIN = 3000
"""Milliseconds that a closed socket may continue to send.

Never -1: with an unreachable peer, `term` would not return.
"""

LINGER_ABORT = 0
"""Milliseconds that a discarded socket may continue to send."""


@attrs.frozen
class Option:
    """A socket option: its name without ``ZMQ_``, its value, and the reason."""

    name: str
    value: int | bytes
    why: str


_EVERY_SOCKET = (
    Option("HANDSHAKE_IVL", 5_000, "a peer that connects and sends nothing is dropped"),
    Option("RECONNECT_IVL", 100, "reconnects quickly after a restart"),
    Option("RECONNECT_IVL_MAX", 5_000, "reconnects rarely to a host that stays away"),
    Option("TCP_KEEPALIVE", 1, "NAT and firewalls forget silent connections"),
    Option("TCP_KEEPALIVE_IDLE", 60, "seconds of silence before the first probe"),
    Option("TCP_KEEPALIVE_INTVL", 15, "seconds between probes"),
    Option("TCP_KEEPALIVE_CNT", 4, "probes without an answer before the connection is closed"),
    Option("LINGER", LINGER_DRAIN, "sends queued messages, and lets term return"),
)


def frame_limit(max_message: int = MAX_MESSAGE) -> int:
    """Return MAXMSGSIZE for message bodies of up to ``max_message`` bytes.

    It also allows frames of coalesced messages. A frame holds these parts before the body: a marker and a topic, each
    with a NUL; the tracked header with its length field; fifteen more counters of 9 bytes; the headers. Each coalesced
    message takes three more bytes: two for its length, and a separator.
    """
    body = max(max_message, COALESCED_BYTES + 3 * (COALESCED_MAX + 1))
    return body + 2 * (MAX_TOPIC + 1) + 36 + 9 * (CARRIED - 1) + HEADERS_MAX


def subscriber_options() -> tuple[Option, ...]:
    """Return the options of a SUB or XSUB socket."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 0, "subscriptions are messages: a limit would drop the rest silently"),
        Option("RCVHWM", RECEIVED_MAX, "bounded memory, and the sender resumes soon"),
        Option("MAXMSGSIZE", frame_limit(), "a giant frame cuts its connection instead of filling memory"),
        Option("HEARTBEAT_IVL", 0, "libzmq 4.3.5 aborts over a PING to a dead peer while the queue is full"),
    )


def publisher_options() -> tuple[Option, ...]:
    """Return the options of a PUB or XPUB socket."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 10_000, "bounded memory per peer, in frames; sequence numbers reveal dropped ones"),
        Option(
            "RCVHWM", 1, "libzmq reads all waiting subscriptions in one call: 1,000 would block the reactor for seconds"
        ),
        Option("MAXMSGSIZE", 512, "bounds a subscription: 10 + 255 bytes, markers and CURVE need room"),
        Option("HEARTBEAT_IVL", 0, "a subscriber at its high-water mark answers no PING"),
    )


def socket_options(kind: str) -> tuple[Option, ...]:
    """Return the default options of a socket of ``kind`` (``"PUSH"`` …)."""
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
        options += (Option("IMMEDIATE", 1, "no message is queued for a peer that may never connect"),)
    if kind == "ROUTER":
        options += (
            Option("ROUTER_MANDATORY", 1, "a message to a disconnected peer is an error, and not dropped silently"),
        )
    return options


class SocketOptions(TypedDict, total=False):
    """The options of a connection, as keywords.

    Names are libzmq's in lower case, and units are libzmq's (zmq_setsockopt(3)). The documentation has a table of the
    defaults.
    """

    sndhwm: int
    """Messages queued for each peer; 0 is unlimited."""
    rcvhwm: int
    """Messages queued from each peer; 0 is unlimited."""
    linger: int
    """Milliseconds that a closed socket continues to send.

    Not negative: the program could not end then.
    """
    maxmsgsize: int
    """Bytes of the largest part that a peer may send; -1 is unlimited.

    A larger part ends the connection of the peer.
    """
    handshake_ivl: int
    """Milliseconds that a peer has to complete the handshake."""
    heartbeat_ivl: int
    """Milliseconds between two PINGs; 0 sends none."""
    heartbeat_timeout: int
    """Milliseconds to wait for the answer to a PING before the connection is ended."""
    heartbeat_ttl: int
    """Milliseconds without a PING after which the peer ends the connection.

    libzmq sends it in tenths of a second.
    """
    reconnect_ivl: int
    """Milliseconds until the first attempt to reconnect; -1 never reconnects."""
    reconnect_ivl_max: int
    """The maximum of that interval, which doubles with each attempt."""
    tcp_keepalive: int
    """1 enables TCP keepalive, 0 disables it, -1 uses the system's default."""
    tcp_keepalive_idle: int
    """Seconds of silence before the first probe."""
    tcp_keepalive_intvl: int
    """Seconds between two probes."""
    tcp_keepalive_cnt: int
    """Probes without an answer before the connection is ended."""
    immediate: int
    """1 queues messages only for completed connections, 0 also during connecting.

    Only for PUSH and PUB. With 1, libzmq 4.3.5 ends the process (``Assertion failed: !_more``, fq.cpp) if a connection
    is lost while a message of several parts is read from it.
    """
    identity: bytes
    """The identity of this socket at a ROUTER: 1 to 255 bytes, the first not 0.

    Each peer of a ROUTER needs its own.
    """


def with_options(options: tuple[Option, ...], given: SocketOptions) -> tuple[Option, ...]:
    """Return ``options`` with the ``given`` ones in place of the defaults.

    Raises:
        TypeError: A name is unknown, or a value has the wrong type.
    """
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
    chosen.update({name.upper(): Option(name.upper(), value, "set by the owner") for name, value in given.items()})  # type: ignore[arg-type]
    return tuple(chosen.values())
