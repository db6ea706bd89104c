"""The control messages between subscribers and publishers on NATS.

A subscriber *asks* publishers, and a publisher answers with *statements* of its numbers. ``docs/reference/wire.md``
specifies the layout, with test vectors. This module only converts bytes.

=================== ============================================ ======================= ======================
subject             message                                      from                    to
=================== ============================================ ======================= ======================
``_zr.ask``         a join, a call (`AskKind.HERE`) or a leave   a subscriber            all publishers
``_zr.EPOCH.ask``   a join or a check                            a subscriber            one publisher
``_zr.EPOCH.ID``    a farewell; or a 503 of the server           a subscriber, a server  one publisher
``_zr.hello``       a statement without numbers                  a new publisher         all subscribers
the reply subject   statements, kept messages                    a publisher             one subscriber
=================== ============================================ ======================= ======================

EPOCH has 16 hexadecimal digits. ID has 12: the subscriber. The reply subject of a join, check or call is the inbox of
the subscriber, followed by a dot and 16 hexadecimal digits: the subscriber, and 16 bits that count its questions. It
identifies the question to which a statement belongs. A publisher sends to no other subject, so a forged question can't
make it publish elsewhere.

A statement is sent with ``_zr.EPOCH.ID`` as its own reply subject. If the subscriber has gone, the server answers there
with the status 503 at once.
"""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, Literal

import attrs

from zroute.errors import EnvelopeError
from zroute.messages.control import cut_name, entry, named_numbers
from zroute.messages.wire import FIXED, Kind, pack_head
from zroute.options import MAX_TOPIC, STATEMENT_MAX

__all__ = [
    "ASK",
    "ASK_MAX",
    "HELLO",
    "STATEMENT_ROOM",
    "Ask",
    "AskKind",
    "Says",
    "Statement",
    "StatementKind",
    "entry_size",
    "pack_ask",
    "pack_statement",
    "parse_ask",
    "parse_statement",
    "private_subject",
    "question_subject",
    "subscriber_of",
]

ASK: Final = b"_zr.ask"
"""The subject on which subscribers ask all publishers."""

HELLO: Final = b"_zr.hello"
"""The subject on which a publisher introduces itself when it has connected."""

ASK_MAX: Final = 60_000
"""The maximum size in bytes of the subjects in a join. If they exceed it, the subscriber asks for all topics."""

_MAGIC: Final = b"\xc1ZN"
_VERSION: Final = 1
_ASK: Final = Struct(">3sBBB6s")  # magic, version, kind, flags, subscriber
_TURN: Final = Struct(">I")
_STATEMENT: Final = Struct(">HBBIII")  # part, flags, length of the name, generation, turn, since
_NUMBER: Final = Struct(">Q")
_QUESTION = re.compile(rb"[^\0\s]+\.([0-9a-f]{12})[0-9a-f]{4}")
_AFRESH: Final = 0x01
_JOINED: Final = 0x02


class AskKind(IntEnum):
    """The kind of a question.

    JOIN asks for all numbers of the wanted subjects, and for the kept messages. CHECK asks for the numbers that have
    changed. HERE asks only publishers that do not know the subscriber to say so. LEAVE withdraws all subjects. FAREWELL
    confirms a goodbye.
    """

    JOIN = 0
    CHECK = 1
    HERE = 2
    LEAVE = 3
    FAREWELL = 4


class Says(IntFlag):
    """The flags of a statement.

    LAST: no part follows. CHANGES: the statement contains only numbers that have changed. FORGOTTEN: the publisher
    has dropped these counters, and the numbers are their last ones. ASK_ME: the publisher does not know the subscriber,
    which must join.
    """

    LAST = 0x01
    CHANGES = 0x02
    FORGOTTEN = 0x04
    ASK_ME = 0x08


StatementKind = Literal[Kind.JOIN, Kind.BEAT, Kind.GOODBYE]
"""JOIN for answers, BEAT for unasked statements, GOODBYE for the last one."""


@attrs.frozen(slots=True)
class Ask:
    """A question of a subscriber.

    Attributes:
        kind: the kind.
        subscriber: the 48 bits that identify the subscriber.
        subjects: the wanted subjects of a JOIN, as NATS writes them.
        afresh: True if the subscriber has lost its connection, so that it needs all kept messages again.
        joined: True if this publisher has answered before, so that it must answer a JOIN that does not concern it.
        turn: the `Statement.turn` that a CHECK has read; 0 if none.
    """

    kind: AskKind
    subscriber: int
    subjects: tuple[bytes, ...] = ()
    afresh: bool = False
    joined: bool = False
    turn: int = 0


@attrs.frozen(slots=True)
class Statement:
    """One part of a publisher's numbers.

    Attributes:
        part: the index of this part, from 0.
        says: the flags.
        name: the publisher's name, which is the same in its next run; "" if it has none.
        generation: the number of times that the publisher had dropped counters when it began the statement.
        turn: identifies the moment at which the statement began, for the next CHECK.
        since: of CHANGES: the turn after which the numbers have changed.
        numbers: topics, each with the number of its last message.
    """

    part: int
    says: Says
    name: str
    generation: int
    turn: int
    since: int = 0
    numbers: tuple[tuple[bytes, int], ...] = ()


# -- subjects


def private_subject(epoch: int, what: bytes | int) -> bytes:
    """Return a subject of one publisher: for ``b"ask"``, or for a subscriber."""
    return b"_zr.%016x.%b" % (epoch, b"%012x" % what if isinstance(what, int) else what)


def question_subject(inbox: bytes, subscriber: int, number: int) -> bytes:
    """Return the reply subject of a question."""
    return b"%b.%012x%04x" % (inbox, subscriber, number & 0xFFFF)


def subscriber_of(reply: bytes) -> int | None:
    """Return the subscriber in the reply subject of a question, or None."""
    found = _QUESTION.fullmatch(reply) if len(reply) <= MAX_TOPIC else None
    return int(found[1], 16) if found else None


# -- questions


def pack_ask(ask: Ask) -> bytes:
    """Return the payload of a question.

    If the subjects of a JOIN are too long together, the question is about all topics.
    """
    flags = _AFRESH * ask.afresh | _JOINED * ask.joined
    head = _ASK.pack(_MAGIC, _VERSION, ask.kind, flags, ask.subscriber.to_bytes(6))
    if ask.kind is AskKind.CHECK:
        return head + _TURN.pack(ask.turn)
    listed = b"".join([_entry(subject) for subject in sorted(ask.subjects)])
    return head + (listed if len(listed) <= ASK_MAX else _entry(b">"))


def _entry(subject: bytes) -> bytes:
    return bytes([len(subject)]) + subject


def parse_ask(payload: bytes) -> Ask:
    """Parse the payload of a question. Raises EnvelopeError if it is malformed."""
    if len(payload) < _ASK.size:
        raise EnvelopeError(f"a question of {len(payload)} bytes; expected at least {_ASK.size}")
    magic, version, kind, flags, subscriber = _ASK.unpack_from(payload)
    if magic != _MAGIC:
        raise EnvelopeError("a question that does not begin with C1 5A 4E")
    if version != _VERSION:
        raise EnvelopeError(f"a question of version {version}; expected version {_VERSION}")
    if kind not in AskKind.__members__.values():
        raise EnvelopeError(f"a question of the unknown kind {kind}")
    asker = int.from_bytes(subscriber)
    if kind == AskKind.CHECK:
        if len(payload) < _ASK.size + _TURN.size:
            raise EnvelopeError(f"a check of {len(payload)} bytes; expected {_ASK.size + _TURN.size}")
        return Ask(AskKind.CHECK, asker, turn=_TURN.unpack_from(payload, _ASK.size)[0])
    if kind != AskKind.JOIN:
        return Ask(AskKind(kind), asker)
    if len(payload) > _ASK.size + ASK_MAX:
        raise EnvelopeError(f"a join of {len(payload)} bytes; expected at most {_ASK.size + ASK_MAX}")
    return Ask(AskKind.JOIN, asker, _subjects(payload), bool(flags & _AFRESH), bool(flags & _JOINED))


def _subjects(payload: bytes) -> tuple[bytes, ...]:
    subjects, at = [], _ASK.size
    while at < len(payload):
        end = at + 1 + payload[at]
        if end > len(payload) or payload[at] == 0:
            raise EnvelopeError("a join that ends in the middle of a subject")
        subjects.append(payload[at + 1 : end])
        at = end
    return tuple(subjects)


# -- statements


def entry_size(topic: bytes) -> int:
    """Return the size in bytes of an entry of a statement."""
    return 1 + len(topic) + _NUMBER.size


def pack_statement(kind: StatementKind, statement: Statement, *, epoch: int, sent_at: int) -> bytes:
    """Return the payload of a statement: a tracked header, followed by the numbers.

    The name is cut to 255 bytes. ``sent_at`` is in nanoseconds since the Unix epoch.
    """
    name = cut_name(statement.name)
    fixed = FIXED.pack(pack_head(kind=kind, codec=0, epoch=epoch), 0, sent_at)
    facts = statement.part, statement.says, len(name), statement.generation, statement.turn, statement.since
    listed = [entry(topic, number) for topic, number in statement.numbers]
    return fixed + _STATEMENT.pack(*facts) + name + b"".join(listed)


STATEMENT_ROOM: Final = STATEMENT_MAX - _STATEMENT.size - MAX_TOPIC
"""The bytes for entries in a part of a statement."""


def parse_statement(body: bytes) -> Statement:
    """Parse a statement, without its tracked header.

    Raises EnvelopeError if it is incomplete, or if its name is not UTF-8.
    """
    if len(body) < _STATEMENT.size:
        raise EnvelopeError(f"a statement of {len(body)} bytes; expected at least {_STATEMENT.size}")
    part, flags, length, generation, turn, since = _STATEMENT.unpack_from(body)
    name, numbers = named_numbers(body, _STATEMENT.size, length)
    return Statement(part, Says(flags & 0x0F), name, generation, turn, since, numbers)
