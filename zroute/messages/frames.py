"""The forms of other programs' messages: which parts contain topic and body.

zroute recognises its own wires by their bytes. Other formats are ambiguous, so an app specifies the form for each
endpoint with `Frames`. The parser of a form creates a `StatedMessage` from the parts of a received message, and its
framer creates the parts to send. This module opens no socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs

from zroute.errors import EnvelopeError, SignatureError, TopicError
from zroute.functions import is_coroutine_function, name_of, raised_at, users_line
from zroute.logs import printable
from zroute.messages.compression import COMPRESSIONS, Compression, compressor, decompressor
from zroute.options import MAX_PARTS

__all__ = ["NAMED_FORMS", "Frames", "Parse", "StatedMessage", "parse_form", "stated_form"]

TopicOf: TypeAlias = Callable[[tuple[bytes, ...]], str | bytes]
BodyOf: TypeAlias = Callable[[tuple[bytes, ...]], bytes]


class StatedMessage(tuple[bytes, ...]):
    """The parts of a message in a stated form, with its topic and body.

    Attributes:
        topic: The topic.
        body: The body, decompressed.
    """

    topic: bytes
    body: bytes

    @classmethod
    def of(cls, parts: tuple[bytes, ...], topic: bytes, body: bytes) -> StatedMessage:
        """Return a message with these parts, topic and body."""
        made = cls(parts)
        made.topic, made.body = topic, body
        return made


Parse: TypeAlias = Callable[[tuple[bytes, ...]], StatedMessage]
"""A function that takes the parts of a message and returns its topic and body.

The function raises EnvelopeError for a message in another form. The ``frames`` of that error are a `StatedMessage`.
This StatedMessage contains the topic and the body that the parser found before the error. If a user's function raises
SystemExit, the parser raises SystemExit too.
"""


@attrs.frozen(init=False, repr=False)
class Frames:
    """The message form of a program that does not use zroute.

    Pass a form for an endpoint to subscribe to, or as the ``wire`` of an app that publishes:

        app = App(sub={"tcp://feed:9500": Frames(topic="eddn", decompress="zlib"), "tcp://desk:5555": "tracked"})

    There are four forms:

    - ``Frames(separator=b" ")``: topic, separator and body in the first part.
    - ``Frames(topic=0, body=2)``: topic and body are separate parts, given by their indexes.
    - ``Frames(topic="weather")``: the messages have no topic, so all of them get the topic ``weather``. The body is the
      last part. With ``whole=True``, the body is all parts joined.
    - ``Frames(topic=function)``: a function takes the parts and returns the topic.

    The publisher can filter messages only if the topic is at the start of the first part. In the last two forms, or if
    another part is the topic, the app receives all messages and drops those without a route.

    Args:
        separator: The bytes between topic and body in the first part. The topic ends at the first separator. A message
            without a separator is malformed. Can't be combined with ``topic``, ``body`` or ``whole``.
        topic: The index of the part that is the topic (default 0), a fixed topic as text or bytes, or a function. The
            function takes the tuple of all parts and returns the topic as text or bytes.
        body: The index of the part that is the body (-1 is the last part), or a function. The function takes the tuple
            of all parts and returns bytes. The default is 1 if ``topic`` is an index, and otherwise -1.
        whole: True if all parts together are the body. Requires a fixed topic, or a function as ``topic``.
        decompress: The compression of the body: "zlib" (also for gzip), "zstd" or "lz4". The app's ``max_message``
            limits both the compressed and the decompressed body. "zstd" needs ``zroute[zstd]``, and "lz4" needs
            ``zroute[lz4]``.

    A message is malformed if the function for the topic or body raises an exception, a part is missing, or the body
    can't be decompressed. zroute counts and logs the message, and passes it to the app's ``on_error`` function for
    `EnvelopeError`.

    Raises:
        SignatureError: The arguments can't be combined, or one has an invalid value.
    """

    separator: bytes | None
    topic: int | str | bytes | TopicOf | None
    body: int | BodyOf | None
    whole: bool
    decompress: Compression | None

    def __init__(
        self,
        *,
        separator: bytes | None = None,
        topic: int | str | bytes | TopicOf | None = None,
        body: int | BodyOf | None = None,
        whole: bool = False,
        decompress: Compression | None = None,
    ) -> None:
        self.__attrs_init__(separator, topic, body, whole, decompress)
        problem = self._problem()
        if problem is not None:
            parameter, text = problem
            raise SignatureError(
                f"{parameter}={getattr(self, parameter)!r}: {text}", parameter=parameter, where=users_line()
            )

    def _problem(self) -> tuple[str, str] | None:
        """Return the name of an invalid argument, and the remedy; None if all are valid."""
        if self.decompress is not None and self.decompress not in COMPRESSIONS:
            return "decompress", f"use one of {', '.join(map(repr, COMPRESSIONS))}"
        if self.whole not in (True, False):
            return "whole", "expected True or False"
        return self._problem_of_separator() or self._problem_of_topic() or self._problem_of_body()

    def _problem_of_separator(self) -> tuple[str, str] | None:
        if self.separator is None:
            return None
        if not isinstance(self.separator, bytes) or not self.separator:
            expected = "bytes" if self.separator != b"" else "at least one byte"
            return "separator", f"expected {expected}, as in Frames(separator=b' ')"
        if self.topic is not None or self.body is not None or self.whole:
            return (
                "separator",
                "separator= can't be combined with topic=, body= or whole=: remove separator= or the other options",
            )
        return None

    def _problem_of_topic(self) -> tuple[str, str] | None:
        topic = self.topic
        if callable(topic) and is_coroutine_function(topic):
            return "topic", "expected a plain function that returns the topic, not an async function"
        if isinstance(topic, str) and topic.encode(errors="replace").decode() != topic:  # half of a surrogate pair
            return "topic", "the text can't be encoded as UTF-8: pass bytes instead"
        if topic is None or isinstance(topic, str | bytes) or callable(topic):
            return None
        if type(topic) is not int:
            return "topic", "expected the index of a part, a fixed topic, or a function that takes the parts"
        if not 0 <= topic < MAX_PARTS:
            return "topic", f"expected the index of a part, 0 to {MAX_PARTS - 1}"
        return None

    def _problem_of_body(self) -> tuple[str, str] | None:
        body = self.body
        if self.whole and not self._is_named:
            return "whole", "no part is left for the topic: set topic=, as in Frames(whole=True, topic='weather')"
        if self.whole and body is not None:
            return "whole", "all parts are the body, so body= can't be set: remove body="
        if callable(body) and is_coroutine_function(body):
            return "body", "expected a plain function that returns the body, not an async function"
        if callable(body) or self.whole or self.separator is not None:
            return None
        if body is not None and (type(body) is not int or not -MAX_PARTS <= body < MAX_PARTS):
            return "body", f"expected the index of a part, {-MAX_PARTS} to {MAX_PARTS - 1}, or a function of the parts"
        topic = self.topic or 0
        if isinstance(topic, int) and (1 if body is None else body) == topic:
            return "body", f"part {topic} is already the topic: set body= to another part"
        return None

    @property
    def _is_named(self) -> bool:
        """True if the topic is fixed or computed by a function."""
        return self.topic is not None and not isinstance(self.topic, int)

    @property
    def filters(self) -> bool:
        """True if the first part starts with the topic, so publishers can filter."""
        return self.separator is not None or self.topic in (None, 0)

    @property
    def fixed_topic(self) -> bytes | None:
        """The topic of all messages; None if each message has its own topic."""
        return self._topic_of()(()) if isinstance(self.topic, str | bytes) else None

    def problem_of_sending(self) -> str | None:
        """Return the reason why an app can't publish in this form; None if it can."""
        if callable(self.topic):
            return "a function for topic= can only read messages, not publish: set topic= to the index of a part"
        if callable(self.body):
            return "a function for body= can only read messages, not publish: set body= to the index of a part"
        return None

    @property
    def sends_parts(self) -> bool:
        """True if each message is sent in several parts."""
        return self.separator is None and len(self._sent_parts(b"", b"")) > 1

    def framer(self) -> Callable[[bytes, bytes], bytes | tuple[bytes, ...]]:
        """Return the function that creates a message from a topic and a body.

        Parts that are neither topic nor body are empty. The function returns a tuple if `sends_parts` is True, and
        otherwise bytes. The function raises TopicError for a topic that a reader could not recover from the message.
        """
        assert self.problem_of_sending() is None
        check = self.check_topic
        pack = bytes if self.decompress is None else compressor(self.decompress)
        separator = self.separator
        if separator is not None:

            def separated(topic: bytes, body: bytes) -> bytes:
                check(topic)
                return topic + separator + pack(body)

            return separated
        join, several = self._sent_parts, self.sends_parts

        def parts(topic: bytes, body: bytes) -> bytes | tuple[bytes, ...]:
            check(topic)
            made = join(topic, pack(body))
            return made if several else made[0]

        return parts

    def _sent_parts(self, topic: bytes, body: bytes) -> tuple[bytes, ...]:
        """Return the parts of a message that is sent without a separator."""
        at = None if self._is_named else int(self.topic or 0)  # type: ignore[arg-type]  # callable, text: named
        if self.whole or (self._is_named and self.body is None):
            return (body,)
        place = 1 if self.body is None else self.body
        assert isinstance(place, int)
        number = max((at or 0) + 1, place + 1, -place)
        if at is not None and place < 0 and number + place == at:
            number += 1
        made = [b""] * number
        made[place] = body
        if at is not None:
            made[at] = topic
        return tuple(made)

    def check_topic(self, topic: bytes) -> None:
        """Raise TopicError for a topic that a reader could not recover from a message."""
        shown = topic.decode(errors="backslashreplace")
        if self.separator is not None and self.separator in topic:
            raise TopicError(
                f"topic {shown!r} contains {self.separator!r}, which ends a topic in this app's wire={self}: use "
                "another topic",
                topic=shown,
            )
        named = self._topic_of()(()) if self._is_named else topic
        if topic != named:
            raise TopicError(
                f"topic {shown!r} can't be published: with this app's wire={self}, every message has the topic "
                f"{named.decode(errors='replace')!r}: publish to that topic, or change topic= of the wire",
                topic=shown,
            )

    def parser(self, max_message: int, place: str) -> Parse:
        """Return the function that extracts topic and body from the parts of a message.

        Args:
            max_message: The maximum size of a decompressed body in bytes.
            place: The endpoints that the messages come from, for error texts.

        Raises:
            SetupError: The package for this compression is not installed.
        """
        topic_of, body_of = self._topic_of(), self._body_of()
        separator, named = self.separator, self._named_topic
        decompress = None if self.decompress is None else decompressor(self.decompress, max_message)
        behind = f" (at {place}, read as {self})"

        def parse(parts: tuple[bytes, ...]) -> StatedMessage:
            topic, body = b"", parts[-1]
            try:
                if len(parts) > MAX_PARTS:
                    topic = named(parts)
                    raise EnvelopeError(f"more than {MAX_PARTS} parts")
                if separator is not None:
                    topic, body = _at_separator(parts[0], separator)
                else:
                    topic = topic_of(parts)  # set before the body is extracted, so that the log has the topic
                    body = body_of(parts)
                if decompress is not None:
                    body = decompress(body)
            except SystemExit:
                raise
            except BaseException as error:
                reason = error.reason if isinstance(error, EnvelopeError) else _told(error)
                raise EnvelopeError(reason + behind, frames=StatedMessage.of(parts, topic, body)) from error
            return StatedMessage.of(parts, topic, body)

        return parse

    def _named_topic(self, parts: tuple[bytes, ...]) -> bytes:
        """Return the topic of a message with too many parts, for the log.

        The topic is empty if a function returns the topic, because that function may need the missing parts.
        """
        if self.separator is not None:
            return parts[0].partition(self.separator)[0]
        return b"" if callable(self.topic) else self._topic_of()(parts)

    def _topic_of(self) -> Callable[[tuple[bytes, ...]], bytes]:
        topic = self.topic
        if topic is None or isinstance(topic, int):
            return _part("topic", topic or 0)
        if isinstance(topic, str | bytes):
            fixed = topic.encode() if isinstance(topic, str) else topic
            return lambda parts: fixed
        return lambda parts: _topic(topic(parts))

    def _body_of(self) -> Callable[[tuple[bytes, ...]], bytes]:
        body = self.body
        if self.whole:
            return b"".join
        if body is None:
            return _part("body", -1 if self._is_named else 1)
        if isinstance(body, int):
            return _part("body", body)
        return lambda parts: _body(body(parts))

    def __repr__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in attrs.fields(Frames))
        given = ((name, value) for name, value in values if value is not None and value is not False)
        shown = (f"{name}={name_of(value) if callable(value) else repr(value)}" for name, value in given)
        return f"Frames({', '.join(shown)})"


def _told(error: BaseException) -> str:
    """Return the text for an exception from a user's function, with the user's line."""
    where = raised_at(error)
    return f"{type(error).__name__}: {printable(error)}" + (f" at {where}" if where else "")


def _at_separator(part: bytes, separator: bytes) -> tuple[bytes, bytes]:
    topic, found, body = part.partition(separator)
    if not found:
        raise EnvelopeError(f"no separator {separator!r} in the first part")
    return topic, body


def _part(what: str, index: int) -> Callable[[tuple[bytes, ...]], bytes]:
    """Return the function that returns the part with this index."""

    def take(parts: tuple[bytes, ...]) -> bytes:
        try:
            return parts[index]
        except IndexError:
            raise EnvelopeError(
                f"no part {index} for the {what} in a message of {len(parts)} parts (the first part is 0)"
            ) from None

    return take


def _topic(found: Any) -> bytes:
    """Return the topic from a user's function as bytes, or raise EnvelopeError."""
    if isinstance(found, str):
        return found.encode("utf-8", "surrogateescape")
    if type(found) is not bytes:
        raise EnvelopeError(f"the topic= function returned {type(found).__name__}; expected text or bytes")
    return found


def _body(found: Any) -> bytes:
    """Return the body from a user's function as bytes, or raise EnvelopeError."""
    if isinstance(found, bytearray | memoryview):
        return bytes(found)
    if type(found) is not bytes:
        raise EnvelopeError(f"the body= function returned {type(found).__name__}; expected bytes")
    return found


NAMED_FORMS: Mapping[str, Frames | None] = {
    "tracked": None,
    "plain": Frames(separator=b"\0"),
    "multipart": Frames(topic=0, body=1),
}
"""The named forms. With "tracked", zroute recognises its own three wires by their bytes."""


def stated_form(value: Any) -> Frames | None:
    """Return the form for a name or a `Frames`; None for "tracked".

    Raises:
        SignatureError: The value is neither the name of a form nor a `Frames`.
        SetupError: The package that decompresses is not installed.
    """
    if isinstance(value, Frames):
        if value.decompress is not None:
            decompressor(value.decompress, 0)
        return value
    if isinstance(value, str) and value in NAMED_FORMS:
        return NAMED_FORMS[value]
    known = ", ".join(map(repr, NAMED_FORMS))
    raise SignatureError(f"{value!r} is not a message form: use one of {known}, or Frames(…)", parameter="sub")


_ARGUMENTS = re.compile(r",(?=(?:separator|topic|body|whole|decompress)(?:=|,|$))")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0abfnrtv\\])")
_ESCAPED = {"0": 0, "a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "\\": 92}


def parse_form(text: str) -> Frames | None:
    r"""Return the form for a text such as ``topic=eddn,decompress=zlib``.

    The text may also be the name of a form, such as "multipart". Numbers for ``topic`` and ``body`` are indexes of
    parts. ``separator`` may contain escapes such as ``\n`` and ``\x1f``. Functions can't be written as text.

    Raises:
        SignatureError: The text does not describe a form.
    """
    if text in NAMED_FORMS:
        return NAMED_FORMS[text]
    given: dict[str, Any] = {}
    for argument in _ARGUMENTS.split(text):
        name, equals, value = argument.partition("=")
        if (
            name not in {field.name for field in attrs.fields(Frames)}
            or name in given
            or bool(equals) == (name == "whole")
        ):
            raise SignatureError(
                f"{text!r} is not a message form: write for example 'separator= ', 'topic=0,body=2', "
                "'topic=eddn,decompress=zlib' or 'whole,topic=weather'"
            )
        given[name] = _argument(name, value)
    return Frames(**given)


def _argument(name: str, value: str) -> Any:
    if name == "whole":
        return True
    if name == "separator":
        return _ESCAPE.sub(_unescaped, value).encode("utf-8", "surrogateescape")
    if name in ("topic", "body") and re.fullmatch(r"-?\d+", value):
        return int(value)
    return value


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    number = int(code[1:], 16) if code.startswith("x") else _ESCAPED[code]
    return bytes([number]).decode("utf-8", "surrogateescape")
