"""Limits on the memory of an app, and the socket options that a user may set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from zroute.errors import SignatureError
from zroute.options import (
    MAX_MESSAGE,
    MAX_SUBSCRIPTION_BYTES,
    MAX_SUBSCRIPTION_BYTES_LEAST,
    RECEIVED_MAX,
    SENT_MAX,
    NetworkOptions,
    wrong_mode,
)

__all__ = ["DEFAULT_LIMITS", "Limits", "check_limits", "check_options"]

_NUMBER_MAX = 2**31 - 1
"""The largest value of a socket option or a size, because libzmq stores such a value as a C int."""

_QUEUE_MAX = 1_000_000


@attrs.frozen(kw_only=True)
class Limits:
    """Limits on message sizes, queues and subscriptions of an `App`.

    The limits bound the memory of an app. `App(limits=…)` checks the values, and raises SignatureError for a value out
    of range.

    Example:
        ```python
        app = App(sub="tcp://camera:5555", limits=Limits(max_message=4_000_000, receive_queue=2))
        ```

    Attributes:
        max_message: The maximum size of a message body in bytes, sent or received (1 to 2,000,000,000; default 1 MiB).
            Publishing a larger body raises EncodeError. A received message with a larger body is malformed. If its
            frame also exceeds the limit of the socket, which is at least 71 KB, libzmq closes the connection.
        send_queue: The maximum number of frames that wait in a publisher's socket for each subscriber (1 to 1,000,000;
            default 10,000), libzmq's ZMQ_SNDHWM. When the queue is full, ``overflow`` decides what happens to the next
            message. Answers to subscribers and retained messages also use this queue. A frame can contain several
            coalesced messages.
        receive_queue: The maximum number of messages that wait in a subscriber's socket for each publisher (1 to
            1,000,000; default 1,000), libzmq's ZMQ_RCVHWM. When the queue is full, further messages fill the network
            buffers and then the publisher's ``send_queue``. The value 0, which means an unlimited queue in libzmq, is
            refused for both queues.
        max_subscription_bytes: The maximum size in bytes of the active subscriptions on one connection to a publisher
            (4,096 or more; default 1 MiB, enough for 50,000 subscriptions of 20 bytes). Each subscription counts as
            at least 20 bytes. If the subscriptions exceed the limit, the publisher closes the connection and logs a
            warning. The subscriber also logs a warning, and reconnects with growing delays of up to 30 seconds. All
            subscribers behind a proxy share one connection.
        allow_nan: True to allow NaN and infinity in floats and Decimals, in messages that the app publishes and
            receives. Default False: such a number raises EncodeError in the publisher, and DecodeError on receipt. In
            JSON, floats are written as Python's ``json`` writes them: ``NaN``, ``Infinity`` and ``-Infinity``. Other
            JSON readers may refuse these texts. A Decimal is always text.
    """

    max_message: int = MAX_MESSAGE
    send_queue: int = SENT_MAX
    receive_queue: int = RECEIVED_MAX
    max_subscription_bytes: int = MAX_SUBSCRIPTION_BYTES
    allow_nan: bool = False


DEFAULT_LIMITS = Limits()

_RANGES: Final[Mapping[str, tuple[int, int, str]]] = {
    "max_message": (1, 2_000_000_000, "bytes"),
    "send_queue": (1, _QUEUE_MAX, "frames"),
    "receive_queue": (1, _QUEUE_MAX, "messages"),
    "max_subscription_bytes": (MAX_SUBSCRIPTION_BYTES_LEAST, _NUMBER_MAX, "bytes"),
}
"""The smallest and the largest value of each limit, and its unit."""


def check_limits(limits: Any, where: str) -> Limits:
    """Return ``limits`` unchanged if they are valid.

    ``where`` is the user's line (``file:line``), for the error.

    Raises:
        SignatureError: ``limits`` is not a `Limits`, or one of its values is out of range.
    """
    if not isinstance(limits, Limits):
        raise SignatureError(
            f"limits={limits!r}: expected a Limits object, as in limits=Limits(max_message=4_000_000)",
            parameter="limits",
            where=where,
        )
    for name, (least, most, unit) in _RANGES.items():
        value = getattr(limits, name)
        # Not isinstance, because a bool is an int.
        if type(value) is not int or not least <= value <= most:
            raise SignatureError(
                f"{name}={value!r}: expected a number of {unit} from {least:,} to {most:,}",
                parameter=name,
                where=where,
            )
    if type(limits.allow_nan) is not bool:
        raise SignatureError(
            f"allow_nan={limits.allow_nan!r}: expected True or False", parameter="allow_nan", where=where
        )
    return limits


_VALUES: Final[Mapping[str, tuple[int, int]]] = {
    "tcp_keepalive": (-1, 1),
    "tcp_keepalive_idle": (-1, _NUMBER_MAX),
    "tcp_keepalive_intvl": (-1, _NUMBER_MAX),
    "tcp_keepalive_cnt": (-1, _NUMBER_MAX),
    "tcp_maxrt": (0, _NUMBER_MAX),
    "ipv6": (0, 1),
    "sndbuf": (-1, _NUMBER_MAX),
    "rcvbuf": (-1, _NUMBER_MAX),
    "tos": (0, 255),
    "backlog": (1, _NUMBER_MAX),
    "connect_timeout": (0, _NUMBER_MAX),
    "handshake_ivl": (1, _NUMBER_MAX),  # 0 would wait forever for a peer that sends nothing
    "reconnect_ivl": (100, _NUMBER_MAX),  # zroute cuts a silent connection, and needs this time to reconnect by itself
    "reconnect_ivl_max": (0, _NUMBER_MAX),
    "ipc_mode": (0, 0o777),
}

_ABORTS = "with this option, libzmq 4.3.5 ends the process"
_HEARTBEAT = (
    f"{_ABORTS} if a publisher dies while a subscriber's queue is full. zroute detects silent "
    "publishers on the tracked wire; for other peers, use tcp_keepalive_idle"
)
_NO_KEYS = "use App(keys=…, peers=…) for CURVE; zroute does not support PLAIN and GSSAPI"
_SUBSCRIBE = "zroute subscribes to the patterns of handlers: use @app.subscribe"
_OVERFLOW = 'use App(overflow="raise") or App(overflow="wait")'
_OWNED: Final[Mapping[str, str]] = {
    "sndhwm": "use limits=Limits(send_queue=…)",
    "rcvhwm": "use limits=Limits(receive_queue=…)",
    "maxmsgsize": "zroute calculates the value from max_message: use limits=Limits(max_message=…)",
    "linger": "use the drain_timeout of run(), which limits how long zroute waits for unsent messages",
    "heartbeat_ivl": _HEARTBEAT,
    "heartbeat_timeout": _HEARTBEAT,
    "heartbeat_ttl": _HEARTBEAT,
    "conflate": "the option breaks messages of several parts, and drops messages without counting them: use "
    "limits=Limits(receive_queue=1); or use subscribe(stale_after=…)",
    "immediate": f"{_ABORTS} if a connection is lost while a message is read",
    "subscribe": _SUBSCRIBE,
    "unsubscribe": _SUBSCRIBE,
    "xpub_nodrop": _OVERFLOW,
    "xpub_verbose": "zroute must see each subscription exactly once",
    "xpub_verboser": "zroute must see each subscription exactly once",
    "xpub_manual": "zroute handles subscriptions itself",
    "xpub_welcome_msg": "use publisher(keep='last'), or publish in a function under @app.on_startup",
    "invert_matching": "handlers would receive the messages that their patterns do not match",
    "identity": "the PUB and SUB sockets of an app have no identity",
    "routing_id": "the PUB and SUB sockets of an app have no identity",
    "rcvtimeo": "the sockets of an app never block",
    "sndtimeo": "the sockets of an app never block",
}
"""The reason why each option is reserved for zroute, and the alternative to the option."""


def check_options(options: Any, where: str) -> NetworkOptions:
    """Return ``options``, the socket options of an app, if they are valid.

    ``where`` is the user's line (``file:line``), for the error.

    Raises:
        SignatureError: ``options`` is not a mapping, an option is unknown or reserved for zroute, or a value is out of
            range.
    """
    if not isinstance(options, Mapping):
        raise _refused(f"options={options!r}: expected a mapping, as in options={{'tcp_keepalive_idle': 30}}", where)
    for name, value in options.items():
        if name not in _VALUES:
            raise _refused(f"the socket option {name!r} {_advice(name)}", where)
        least, most = _VALUES[name]
        if type(value) is not int or not least <= value <= most:
            if name == "ipc_mode":
                raise _refused(f"ipc_mode={wrong_mode(value)}", where)
            raise _refused(
                f"the socket option {name}={value!r}: expected a whole number from {least} to {most:,}", where
            )
    return NetworkOptions(**options)  # type: ignore[typeddict-item]


def _advice(name: object) -> str:
    plain = name.lower().removeprefix("zmq_") if isinstance(name, str) else ""
    if plain in _OWNED:
        return f"can't be set in an app: {_OWNED[plain]}"
    if plain.startswith(("curve_", "plain_", "gssapi_", "zap_")):
        return f"can't be set in an app: {_NO_KEYS}"
    if plain in _VALUES:
        return f"must be written in lower case and without ZMQ_: use {plain!r}"
    return f"is unknown: use one of {', '.join(_VALUES)}"


def _refused(fault: str, where: str) -> SignatureError:
    return SignatureError(fault, parameter="options", where=where)
