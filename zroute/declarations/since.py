"""The option ``since``: where the past of a handler begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

from zroute.errors import SignatureError
from zroute.messages.recovery import Since, SinceMode

__all__ = ["SinceOption", "check_since_option", "refuse_future"]

SinceOption: TypeAlias = "Literal['all', 'last'] | timedelta | datetime"
"""A value of ``since``."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX = 2**64 - 1

_AHEAD = 60
"""The seconds that a time may be in the future: it is a time of the publisher, whose clock may be ahead."""


def check_since_option(since: Any, where: str) -> Since | None:
    """Return the beginning of the past; None for None.

    A `Since` is returned unchanged: the command line has more ways to state it.

    Args:
        since: The value of the option.
        where: The user's line (``file:line``), for the error.

    Raises:
        SignatureError: The value has another type or is out of range.
    """
    if since is None or isinstance(since, Since):
        return since
    if since == "all":
        return Since(SinceMode.ALL)
    if since == "last":
        return Since(SinceMode.LAST, 1)
    fault = (
        'expected "all", "last", a timedelta such as timedelta(seconds=60), or a datetime with a time zone such as '
        "datetime.now(UTC)"
    )
    if isinstance(since, timedelta):
        if since > timedelta():
            return Since(SinceMode.AGE, min(_nanoseconds(since), _MAX))
        fault = "expected a timedelta of more than 0; remove since= to receive only live messages"
    elif isinstance(since, datetime):
        if since.utcoffset() is not None:
            return Since(SinceMode.TIME, min(max(_nanoseconds(since - _EPOCH), 0), _MAX))
        fault = "expected a datetime with a time zone, such as datetime.now(UTC)"
    raise SignatureError(f"since={since!r}: {fault}", parameter="since", where=where)


def refuse_future(since: Since | None, now: float, where: str) -> None:
    """Raise SignatureError if the past begins in the future, where no message is.

    Args:
        since: The beginning of the past.
        now: The time in seconds since the Unix epoch, of a test or of this machine.
        where: The user's line (``file:line``), for the error.
    """
    if since is not None and since.mode is SinceMode.TIME and since.value > (now + _AHEAD) * 1e9:
        clock = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        raise SignatureError(
            f"since={since.text}: expected a time in the past, because there are no messages of the future: it is "
            f"{clock} by the clock of the app. Check the date and the time zone, or remove since= to receive only "
            "live messages",
            parameter="since",
            where=where,
        )


def _nanoseconds(time: timedelta) -> int:
    return time // _MICROSECOND * 1000
