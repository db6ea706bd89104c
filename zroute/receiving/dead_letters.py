"""Create dead letters: failed messages that are published with the reason.

The body and its codec number stay unchanged. The headers of the message are kept, and these headers are added:

- ``zr-topic``: the topic of the message.
- ``zr-error``: the error, such as ``ValueError: no such account``. The text may quote a peer, so it is escaped and cut.
- ``zr-attempts``: the number of calls of the handler; 0 for a body that could not be decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from zroute.awaiting import loop_hint
from zroute.errors import DecodeError, EncodeError, JobFailedError, UsageError
from zroute.logs import printable
from zroute.messages.topics import Pattern, segment_bytes
from zroute.messages.topics import matches as match
from zroute.messages.wire import Envelope, pack_headers
from zroute.options import DEAD_ERROR, MAX_TOPIC

__all__ = ["DeadLetter", "error_text", "make_dead_letter"]

_TOPIC, _ERROR, _ATTEMPTS = "zr-topic", "zr-error", "zr-attempts"


@attrs.frozen
class DeadLetter:
    """A message to publish; ``codec`` is the number of its codec."""

    topic: bytes
    codec: int
    body: bytes
    headers: Mapping[str, Any]


def make_dead_letter(
    envelope: Envelope, pattern: Pattern, captures: Mapping[str, str], error: BaseException, attempts: int
) -> DeadLetter:
    """Return the dead letter of a message.

    Args:
        envelope: The message as it arrived.
        pattern: The pattern of the dead letter's topic.
        captures: The captured segments of the message's topic.
        error: The error of the last attempt.
        attempts: The number of attempts.

    Raises:
        UsageError: The message is already a dead letter of this pattern, or from the topic to which it would be
            published, so it would loop forever.
        TopicError: A captured segment can't be published.
    """
    if _TOPIC in envelope.headers and match(pattern, envelope.topic.wire) is not None:
        raise UsageError(
            "the message is itself a dead letter of this topic, so publishing it would cause an endless loop"
        )
    topic = pattern.topic({name: segment_bytes(name, captures[name], pattern.separator) for name in pattern.captures})
    if envelope.headers.get(_TOPIC) == printable(topic, MAX_TOPIC):
        raise UsageError("the message is a dead letter from that topic, so publishing it would cause an endless loop")
    reason = {
        _TOPIC: printable(envelope.topic, MAX_TOPIC),
        _ERROR: _cut(error_text(error)),
        _ATTEMPTS: attempts,
    }
    headers = {**envelope.headers, **reason}
    try:
        pack_headers(headers)
    except EncodeError:  # the headers are too long together, and the reason is more important
        headers = reason
    return DeadLetter(topic, envelope.codec, envelope.body, headers)


def error_text(error: BaseException) -> str:
    """Return the text of an error for ``zr-error``, and for a worker's report."""
    if isinstance(error, JobFailedError):  # the text of the worker names the error already
        return printable(error.reason)
    reason = error.reason if isinstance(error, DecodeError) else error  # without the topic, which has its own header
    return f"{type(error).__name__}: {printable(reason)}{loop_hint(error)}"


def _cut(text: str) -> str:
    """Return ``text``, cut to at most `DEAD_ERROR` bytes of UTF-8."""
    # "ignore" drops a character that the cut has divided.
    return text.encode("utf-8", "backslashreplace")[:DEAD_ERROR].decode("utf-8", "ignore")
