"""Socket options and limits as data, each with its reason.

This module does not use sockets: option names are those of libzmq, as text, and `zroute.sockets` sets the options.
Units are those of libzmq (milliseconds, bytes, messages) unless a docstring names another unit.
"""

from __future__ import annotations

from typing import TypedDict

import attrs

__all__ = [
    "APP_WINDOW",
    "BATCH_MAX",
    "BATCH_SECONDS",
    "CARRIED",
    "COALESCED",
    "COALESCED_BYTES",
    "COALESCED_MAX",
    "CREDITS_MAX",
    "DEAD_ERROR",
    "DRAIN_TIMEOUT",
    "ENVELOPE_MAX",
    "HEADERS_MAX",
    "IPC_MODE",
    "JOBS_HELD",
    "JOBS_WAITING",
    "JOB_LOSSES",
    "JOB_MESSAGES",
    "JOB_TEXT",
    "KEPT_MAX",
    "LARGE_FRAME",
    "LINGER_ABORT",
    "LINGER_DRAIN",
    "MAX_CREDIT",
    "MAX_IN_FLIGHT",
    "MAX_MESSAGE",
    "MAX_PARTS",
    "MAX_SUBSCRIPTIONS",
    "MAX_SUBSCRIPTION_BYTES",
    "MAX_SUBSCRIPTION_BYTES_LEAST",
    "MAX_TOPIC",
    "MAX_WORKERS",
    "OFFER_MAX",
    "OFFER_PATTERNS",
    "PUBLISHERS_KEPT",
    "READ_BUDGET",
    "READ_SECONDS",
    "READ_SLICE",
    "RECEIVED_MAX",
    "REFUSAL_TEXT",
    "REGROUP_SECONDS",
    "REGROUP_STEPS",
    "REPLIES_HELD",
    "REPLIES_HELD_BYTES",
    "REPLIES_HELD_TOTAL",
    "REPLIES_SENT",
    "REPLY_AGAIN",
    "REQUESTS_WAITING_BYTES",
    "REQUEST_FORGOTTEN",
    "REQUEST_TIMEOUT",
    "REQUEST_WINDOW",
    "RETRIES_MAX",
    "ROUTE_QUEUE",
    "SEND_QUEUE",
    "SEND_QUEUE_SECONDS",
    "SENT_MAX",
    "SILENT_AFTER",
    "STATEMENT_MAX",
    "STREAM_QUEUE",
    "STREAM_SILENCE",
    "STREAM_WINDOW",
    "SUBSCRIPTIONS_SEEN",
    "SUBSCRIPTIONS_SLICE",
    "SUBSCRIPTION_COST",
    "THREADS_IN_FLIGHT",
    "TOPICS_NOTED",
    "TOPIC_CACHE",
    "WORK_IN_FLIGHT",
    "NetworkOptions",
    "Option",
    "SocketOptions",
    "frame_limit",
    "publisher_options",
    "socket_options",
    "subscriber_options",
    "with_options",
    "wrong_mode",
]

MAX_TOPIC = 255
"""The maximum length in bytes of a pattern or a numbered topic.

On the wire, a counter contains the length of its prefix in one byte.
"""

MAX_PARTS = 16
"""The maximum number of parts of a received message. Known publishers send up to seven.

MAXMSGSIZE does not limit the number of parts.
"""

MAX_MESSAGE = 1024 * 1024
"""The default for the maximum size of a message body in bytes.

Larger data belongs in a file or an object store; send the name of the file or object in a message.
"""

HEADERS_MAX = 4096
"""The maximum size in bytes of the encoded headers of a message. MAXMSGSIZE of subscribers includes it."""

CARRIED = 16
"""The maximum number of counters in one message: one for each live subscription to the topic.

If more subscriptions cover the topic, those with the longest prefixes get no counter.
"""

STATEMENT_MAX = 4096
"""The maximum size in bytes of one part of an answer to a marker.

Such a part does not exceed the smallest MAXMSGSIZE of a subscriber.
"""

COALESCED = 100
"""The default for the maximum number of messages in one frame.

Nearly all of the gain is reached with 50 messages, and one turn of the reactor stays short.
"""

COALESCED_MAX = 1_000
"""The upper limit for the maximum number of messages in one frame.

The messages of a frame are decoded without a check of the clock, and are lost together.
"""

COALESCED_BYTES = 64_000
"""The maximum size in bytes of the messages in one frame, including separators.

The end of each message is stored in two bytes.
"""

LARGE_FRAME = 8192
"""The size in bytes from which a body no longer takes the fast path.

The size and nesting of a larger body are checked before it is decoded. 8 KiB can't nest deeply enough to exhaust the C
stack, which takes between 16,000 and 30,000 levels (measured with a stack of 8 MiB).
"""

TOPIC_CACHE = 128 * 1024 * 1024
"""The maximum size in bytes of an app's cache of received topics, and of its cache of published topics.

This is enough for more than 100,000 topics of a plain handler. When a cache is full, some of its topics are dropped.
The next message of a dropped topic creates its entry again. Topics of more than `MAX_TOPIC` bytes are not cached.
"""

PUBLISHERS_KEPT = 1_024
"""The maximum number of publishers of one topic whose headers a subscriber caches.

It is also the maximum number of publishers whose counters a subscriber stores.
"""

TOPICS_NOTED = 16_384
"""The maximum number of topics for which one fact is stored, for example the time of the latest message.

Each topic takes up to 500 bytes.
"""

MAX_SUBSCRIPTIONS = 100_000
"""The number of live subscriptions above which a publisher logs a warning about a flood.

Each subscription takes about 1 KiB in libzmq.
"""

MAX_SUBSCRIPTION_BYTES = 1024 * 1024
"""The default for the maximum size in bytes of the subscriptions of one connection.

libzmq needs about 50 times as much memory for these subscriptions.
"""

MAX_SUBSCRIPTION_BYTES_LEAST = 4096
"""The smallest value of ``max_subscription_bytes``.

It is several times the size of the markers of one subscriber.
"""

SUBSCRIPTION_COST = 20
"""The minimum size in bytes that is counted for a subscription.

A shorter subscription does not take less memory.
"""

KEPT_MAX = 100_000
"""The maximum number of topics whose latest message one app retains.

Beyond this number, the app drops the oldest topic, and logs a line the first time.
"""

SUBSCRIPTIONS_SLICE = 400
"""The maximum number of subscriptions that are sent again at a time.

A proxy drops more than 1,000 subscriptions at a time (SNDHWM of its XSUB).
"""

MAX_IN_FLIGHT = 100
"""The default for the maximum number of unfinished calls of one handler.

Most connection pools can serve this number.
"""

THREADS_IN_FLIGHT = 10
"""The default for the maximum number of unfinished calls of one handler that runs in threads.

A thread needs more memory than a call of an ``async`` function. A larger number must therefore be the user's choice.
"""

ROUTE_QUEUE = 1_000
"""The default for the number of messages that wait for one handler before reading pauses.

ZeroMQ itself queues the same number (RCVHWM).
"""

RETRIES_MAX = 20
"""The maximum number of retries of a handler with ``retry=``."""

DEAD_ERROR = 1024
"""The maximum size in bytes of the error in the headers of a dead letter, a quarter of `HEADERS_MAX`."""

WORK_IN_FLIGHT = 4
"""The default for the maximum number of jobs of one handler that run at the same time.

A job often takes longer than the handling of a message, and most jobs run in threads.
"""

JOBS_WAITING = 10_000
"""The default for the maximum number of jobs in a queue that wait for workers.

While the queue is full, ``put`` waits for room.
"""

SILENT_AFTER = 10.0
"""The default for the time in seconds without a sign of life after which an owner takes back the jobs of a worker.

A worker sends a sign of life each second; ten missing ones mean a frozen process or a dead connection.
"""

CREDITS_MAX = 1_000
"""The maximum number of unfinished jobs that one handler of a worker may have.

If the worker ends, all of these jobs must be done again.
"""

OFFER_PATTERNS = 100
"""The maximum number of patterns in the offer of one worker."""

OFFER_MAX = 8_192
"""The maximum size in bytes of the offer of one worker.

An offer is the largest message that an owner receives.
"""

JOB_MESSAGES = 2 * (CREDITS_MAX * OFFER_PATTERNS + 1_000)
"""The maximum number of messages that an owner or a worker queues for its peer.

Half of it is enough for all unfinished jobs of a worker, or all their reports, and some signs of life. The other half
is needed because libzmq counts sent messages as queued until its I/O thread has reported half a queue. If a peer does
not read, its queue becomes full, and the peer is dropped.
"""

MAX_WORKERS = 10_000
"""The maximum number of workers of one owner.

Each worker takes about 2 KiB.
"""

REGROUP_STEPS = 4_000
"""The number of steps in one slice, in which an owner compares the topics of waiting jobs with new patterns.

A topic without jobs takes one step. A topic with jobs takes one more step for each table of patterns that may contain
the topic, and for each kind of worker that accepts it: usually three steps in all.
"""

REGROUP_SECONDS = 0.02
"""The time in seconds between two slices of `REGROUP_STEPS`.

A slice takes about 5 ms, so new patterns use at most a quarter of the CPU time of an owner.
"""

JOB_TEXT = 1_024
"""The maximum size in bytes of the text with which a worker reports a failed job."""

JOBS_HELD = 64 << 20
"""The maximum size in bytes of the jobs that a worker on NATS has received and not begun, with 1 KiB for each job.

A full worker leaves its queue group, but a NATS server may already have sent it up to 64 MB. Above this limit, the
worker stops reading.
"""

JOB_LOSSES = 20
"""The maximum number of workers that may end or become silent while they have the same job.

After one more such worker, the owner gives up on the job. Otherwise, a job that ends the process of its worker would
end all workers, one after the other.
"""

BATCH_MAX = 10_000
"""The maximum number of messages in a batch of a handler with ``batch=``.

No database gains from larger batches.
"""

BATCH_SECONDS = 0.01
"""The maximum time in seconds for which a batch grows while messages keep arriving.

Because of this limit, a flood of messages does not hold a batch back.
"""

STREAM_QUEUE = 100
"""The default for the maximum number of messages that wait in one stream.

A loop that takes the messages one by one is rarely far behind.
"""

REQUEST_WINDOW = 64
"""The maximum number of unanswered requests to one server.

This is enough to keep the server busy, and few enough to be handled soon after a pause.
"""

APP_WINDOW = 1_024
"""The maximum number of unanswered requests from an app to one server.

A server refuses requests for which it has no room, so this limit only bounds the queue of libzmq.
"""

REQUEST_TIMEOUT = 10.0
"""The default for the time in seconds that an app waits for a reply."""

REFUSAL_TEXT = 1024
"""The maximum size in bytes of the text with which a server refuses a request."""

ENVELOPE_MAX = 1_024
"""The maximum size in bytes of the envelope of a request, which the server stores until the answer.

This is enough for the identities of three ROUTERs and an id.
"""

REQUESTS_WAITING_BYTES = 128 * 1024 * 1024
"""The maximum size in bytes of the requests that wait for the handlers of one app.

It is equal to `REPLIES_HELD_TOTAL`. A single request may be larger.
"""

REPLIES_SENT = 64
"""The maximum number of replies that libzmq queues for each client of an app.

libzmq limits only the number of replies, so further replies wait in the app, which also limits their size. With fewer
than 64 replies, a stream of small items would take a third more CPU time.
"""

REPLIES_HELD = 2 * APP_WINDOW
"""The maximum number of replies that a server holds for a client whose queue in libzmq is full.

An app has at most `APP_WINDOW` unanswered requests at one server, so each of them has room for a reply and for the end
of a stream. The queue in libzmq adds no room, because libzmq counts sent replies as queued until the I/O thread has
reported them.
"""

REPLIES_HELD_BYTES = 32 * 1024 * 1024
"""The maximum size in bytes of the replies that a server holds for one client.

This is enough for `REPLIES_HELD` replies of 32 KiB, or for 32 replies of `MAX_MESSAGE` bytes. A single reply may be
larger.
"""

REPLIES_HELD_TOTAL = 128 * 1024 * 1024
"""The maximum size in bytes of the replies that a server holds for all clients.

It is four times `REPLIES_HELD_BYTES`. A single reply may be larger.
"""

REPLY_AGAIN = 0.01
"""The time in seconds between two attempts of a server to send the replies that it holds.

libzmq does not report which peer of a ROUTER socket has room again.
"""

STREAM_WINDOW = 128
"""The maximum number of items of a stream that were sent but not consumed."""

MAX_CREDIT = 0xFFFF
"""The maximum number of items that a client can allow a server to send."""

STREAM_SILENCE = 20.0
"""The time in seconds after which a server ends a stream whose client gives no sign of life."""

REQUEST_FORGOTTEN = 60.0
"""The time in seconds after which a request whose caller gave up no longer counts as unanswered.

Its reply was then lost, or never sent.
"""

READ_BUDGET = 256
"""The maximum number of messages that are read in one turn of the reactor.

The limit costs no throughput, and lets timers run during a flood.
"""

READ_SECONDS = 0.005
"""The maximum time in seconds that reading takes in one turn of the reactor."""

READ_SLICE = 16
"""The number of messages between two checks of the clock.

A check takes about a tenth of the time of a message.
"""

SUBSCRIPTIONS_SEEN = 0.001
"""The time in seconds until a publisher that has sent a message checks for new subscriptions."""

DRAIN_TIMEOUT = 8.0
"""The default for the maximum time in seconds that a stop waits for unfinished handlers.

It is less than the 10 s that container runtimes wait before SIGKILL.
"""

RECEIVED_MAX = 1_000
"""The default for the maximum number of messages of each publisher that wait in a subscriber's socket.

The number is low, to bound the memory and to let the sender resume soon.
"""

SENT_MAX = 10_000
"""The default for the maximum number of frames that wait for each subscriber in a publisher's socket."""

SEND_QUEUE = 1_000
"""The maximum number of messages that wait for subscribers with ``overflow="wait"``.

ZeroMQ's own default for the queue of a subscriber is the same number (SNDHWM).
"""

SEND_QUEUE_SECONDS = 30.0
"""The longest time in seconds that a message waits with ``overflow="wait"``.

It is longer than a short pause of a subscriber.
"""

IPC_MODE = 0o600
"""The default mode of the socket file of a bound ``ipc://`` path: only the same user can connect.

Without a mode, the umask would decide, and often lets every user of the machine connect.
"""

LINGER_DRAIN = 3000
"""The maximum time in milliseconds for which a closed socket continues to send.

The value must not be -1, because `term` would not return while a peer is unreachable.
"""

LINGER_ABORT = 0
"""The maximum time in milliseconds for which a discarded socket continues to send."""


@attrs.frozen
class Option:
    """A socket option: its name without ``ZMQ_``, its value, and the reason."""

    name: str
    value: int | bytes
    why: str


_EVERY_SOCKET = (
    Option("HANDSHAKE_IVL", 5_000, "disconnects a peer that connects but sends nothing"),
    Option("RECONNECT_IVL", 100, "reconnects quickly after a restart"),
    Option("RECONNECT_IVL_MAX", 5_000, "reconnects less often to a host that stays unreachable"),
    Option("TCP_KEEPALIVE", 1, "NAT and firewalls forget silent connections"),
    Option("TCP_KEEPALIVE_IDLE", 60, "seconds of silence before the first probe"),
    Option("TCP_KEEPALIVE_INTVL", 15, "seconds between probes"),
    Option("TCP_KEEPALIVE_CNT", 4, "probes without an answer before the connection is closed"),
    Option("LINGER", LINGER_DRAIN, "sends queued messages for up to 3 s, and then lets `term` return"),
)


_ANSWERED = 17 + 1 + 32 + 5 + MAX_TOPIC + 12


def frame_limit(max_message: int = MAX_MESSAGE) -> int:
    """Return MAXMSGSIZE for message bodies of up to ``max_message`` bytes.

    The limit also allows frames of coalesced messages. Before the body, a frame holds a topic with a NUL, the tracked
    header with its length field, fifteen more counters of 9 bytes, and the headers. Each coalesced message takes three
    more bytes: two for its length, and a separator. An answer contains a whole frame, after the 322 bytes of a box, a
    header, a subscription and the entry of the message. A marker before a kept message is shorter.
    """
    body = max(max_message, COALESCED_BYTES + 3 * (COALESCED_MAX + 1))
    return body + _ANSWERED + MAX_TOPIC + 1 + 36 + 9 * (CARRIED - 1) + HEADERS_MAX


def subscriber_options() -> tuple[Option, ...]:
    """Return the options of a SUB or XSUB socket."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", 0, "subscriptions are sent as messages: a limit would silently drop the rest"),
        Option("RCVHWM", RECEIVED_MAX, "limits memory, and the sender can resume soon"),
        Option("MAXMSGSIZE", frame_limit(), "a giant frame cuts its connection instead of filling memory"),
        Option("HEARTBEAT_IVL", 0, "libzmq 4.3.5 aborts when it sends a PING to a dead peer while the queue is full"),
    )


def publisher_options() -> tuple[Option, ...]:
    """Return the options of a PUB or XPUB socket."""
    return (
        *_EVERY_SOCKET,
        Option("SNDHWM", SENT_MAX, "bounded memory per peer, in frames; sequence numbers reveal dropped ones"),
        Option(
            "RCVHWM", 1, "libzmq reads all waiting subscriptions in one call: 1,000 would block the reactor for seconds"
        ),
        Option("MAXMSGSIZE", 512, "bounds a subscription: 10 + 255 bytes, markers and CURVE need space"),
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
        Option("HEARTBEAT_IVL", 0, "libzmq 4.3.5 aborts when it sends a PING to a dead peer while the queue is full"),
    )
    if kind == "PUSH":
        options += (Option("IMMEDIATE", 1, "no message is queued for a peer that may never connect"),)
    if kind == "ROUTER":
        options += (
            Option(
                "ROUTER_MANDATORY",
                1,
                "a message to a disconnected peer causes an error instead of a silent loss",
            ),
        )
    return options


class NetworkOptions(TypedDict, total=False):
    """The network options that an app can set for its sockets.

    Except for ``ipc_mode``, names are libzmq's in lower case, and units are libzmq's (zmq_setsockopt(3)). The
    documentation has a table of the defaults. Values are whole numbers.
    """

    tcp_keepalive: int
    """1 enables TCP keepalive, 0 disables it, -1 uses the system's default."""
    tcp_keepalive_idle: int
    """Seconds of silence before the first probe; -1 uses the system's default."""
    tcp_keepalive_intvl: int
    """Seconds between two probes; -1 uses the system's default."""
    tcp_keepalive_cnt: int
    """Probes without an answer before the connection is ended; -1 uses the system's default."""
    tcp_maxrt: int
    """Milliseconds without an acknowledgement of sent bytes before the connection is ended; 0 is the system's default.
    """
    ipv6: int
    """With 1, bound addresses also accept IPv6, and host names are resolved to IPv6 addresses. The default is 0.

    Addresses in brackets, and host names that have only an IPv6 address, do not need this option.
    """
    sndbuf: int
    """The size in bytes of the system's send buffer of a connection; -1 is the system's default."""
    rcvbuf: int
    """The size in bytes of the system's receive buffer of a connection; -1 is the system's default."""
    tos: int
    """The type of service in the IP header, 0 to 255."""
    backlog: int
    """The maximum number of connections that wait in the system until libzmq accepts them."""
    connect_timeout: int
    """The timeout of a connection attempt in milliseconds; 0 is the system's default."""
    handshake_ivl: int
    """The time in milliseconds within which a peer must complete the handshake."""
    reconnect_ivl: int
    """The time in milliseconds until the first attempt to reconnect; -1 never reconnects."""
    reconnect_ivl_max: int
    """The maximum reconnect interval in milliseconds. The interval doubles with each attempt; 0 keeps it constant."""
    ipc_mode: int
    """The mode of the socket file of each bound ``ipc://`` path, from 0 to 0o777; the default is 0o600.

    To connect, a user needs the permission to write to the file, and to search its directory. The directory of
    ``ipc://*`` is always private, and an abstract name (``ipc://@…``) has no file. zroute itself sets the mode, not
    libzmq.
    """


class SocketOptions(NetworkOptions, total=False):
    """The options of a connection, as keyword arguments.

    Except for ``ipc_mode``, names are libzmq's in lower case, and units are libzmq's (zmq_setsockopt(3)). The
    documentation has a table of the defaults.
    """

    sndhwm: int
    """The maximum number of messages queued for each peer; 0 is unlimited."""
    rcvhwm: int
    """The maximum number of messages queued from each peer; 0 is unlimited."""
    linger: int
    """The time in milliseconds for which a closed socket continues to send.

    Negative values are refused, because they could prevent the program from ending.
    """
    maxmsgsize: int
    """The maximum size in bytes of a part that a peer may send; -1 is unlimited.

    libzmq closes the connection of a peer that sends a larger part.
    """
    heartbeat_ivl: int
    """The time in milliseconds between two PINGs; 0 sends no PINGs."""
    heartbeat_timeout: int
    """The time in milliseconds to wait for the answer to a PING before the connection is closed."""
    heartbeat_ttl: int
    """The time in milliseconds without a PING after which the peer closes the connection.

    libzmq sends this value in tenths of a second.
    """
    immediate: int
    """With 1, messages are queued only for completed connections; with 0, also while connecting.

    This option is only for PUSH and PUB. On a socket that receives, the value 1 is dangerous: libzmq 4.3.5 ends the
    process (``Assertion failed: !_more``, fq.cpp) if a connection is lost in the middle of a message of several parts.
    """
    identity: bytes
    """The identity of this socket at a ROUTER: 1 to 255 bytes, the first not 0.

    Each peer of a ROUTER needs a different identity.
    """


_NOT_LIBZMQS = ("ipc_mode",)


def wrong_mode(value: object) -> str:
    """Return the text about an invalid ``ipc_mode``, with octal digits.

    A value whose decimal digits are a mode was probably meant as octal.
    """
    if type(value) is not int:
        return f"{value!r}: expected the mode of a file from 0 to 0o777, such as 0o660"
    digits = str(value)
    meant = len(digits) == 3 and set(digits) <= set("01234567")
    advice = f"did you mean 0o{digits}?" if meant else "such as 0o660"
    return f"{value:#o}: expected the mode of a file from 0 to 0o777, {advice}"


def with_options(options: tuple[Option, ...], given: SocketOptions) -> tuple[Option, ...]:
    """Return ``options``, with the defaults replaced by the ``given`` options.

    The result contains only options of libzmq, so ``ipc_mode`` is checked, but left out.

    Raises:
        TypeError: A name is unknown, or a value has the wrong type.
    """
    known = SocketOptions.__annotations__
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"unknown socket option '{name}': use one of {', '.join(sorted(known))}")
        wanted = bytes if name == "identity" else int
        if not isinstance(value, wanted) or (name == "linger" and value < 0):  # type: ignore[operator]
            raise TypeError(
                f"socket option {name}: expected {wanted.__name__}{' of at least 0' * (name == 'linger')}, got "
                f"{value!r}"
            )
    mode = given.get("ipc_mode", IPC_MODE)
    if type(mode) is not int or not 0 <= mode <= 0o777:
        raise TypeError(f"socket option ipc_mode={wrong_mode(mode)}")
    chosen = {option.name: option for option in options}
    for name, value in given.items():
        if name not in _NOT_LIBZMQS:
            chosen[name.upper()] = Option(name.upper(), value, "set by the owner")  # type: ignore[arg-type]
    return tuple(chosen.values())
