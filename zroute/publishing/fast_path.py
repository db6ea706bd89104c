"""The fast path: one generated function that publishes most messages.

While one app runs a publication, `Publication.publish` is this function. It takes the topic, checks and encodes the
message, frames it, and sends the frame, without a call of another Python function of zroute. Each such call would take
a twentieth of the publishing time.

The function is generated for each publication. Its source contains the lines that check and encode the declared type,
and the lines that send a frame with the transport (`zroute.codegen.Inline`). `state.start`, `state.version` and so on
are values of one topic (`TopicState`), so a further topic needs no further function.

All rare cases leave the function for the general path, which raises the errors: headers, a message that does not match
its type, a body that is too large, a thread other than the reactor's, a topic that is kept, held or waiting
(`zroute.publishing.paths`), and a full queue. The function has sent nothing then, and has taken its number back.

A program may keep the function after the run, or while a second app runs the publication. `FastPath.end` therefore
makes the function pass all calls to the general path.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from textwrap import indent
from threading import get_ident
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import attrs

from zroute.codegen import Inline, define, define_maker
from zroute.publishing.counters import Counter, Cover

__all__ = [
    "NUMBERED",
    "FastPath",
    "Guard",
    "MakeFastPath",
    "PublicationPaths",
    "TopicState",
    "counting_header",
    "make_fast_path",
]

Guard: TypeAlias = Callable[[bytes], bool]
"""A function that takes a topic, and returns True while the topic is kept, held or waiting."""

_UNCOUNTED = Cover((), (), moved=True)
"""The counters of all topics that are not counted, or not yet. It never changes."""


@attrs.define(eq=False, slots=True)
class TopicState:
    """The values of one topic that the fast path reads.

    Attributes:
        topic: The topic.
        start: The topic and the NUL after it.
        guard: Takes the topic, and returns True while the topic must use the general path; None if it can always use
            the fast path.
        version: The version of the counters for which the following values are valid; -1 before the first message.
        cover: The counters of the topic.
        one: The only counter of the topic; None if it has none or several.
        head: The topic, and the constant part of the header.
        pack: Packs the topic and the header. With ``one``, it takes the head, the number and the time. Otherwise it
            takes the time, and also counts the message.
    """

    topic: bytes
    start: bytes
    guard: Guard | None
    version: int = attrs.field(init=False, default=-1)
    cover: Cover = attrs.field(init=False, default=_UNCOUNTED)
    one: Counter | None = attrs.field(init=False, default=None)
    head: bytes = attrs.field(init=False, default=b"")
    pack: Callable[..., bytes] = attrs.field(init=False, default=bytes)


class FastPath(NamedTuple):
    """A fast path that can be ended.

    Attributes:
        publish: The function, with the parameters of `Publication.publish`.
        end: Makes ``publish`` pass all calls to the general path.
    """

    publish: Callable[..., Awaitable[None]]
    end: Callable[[], None]


class PublicationPaths(NamedTuple):
    """The parts of a publication that its fast path uses.

    Attributes:
        write: The encoder of the messages.
        codec: The number of its codec.
        topic: The only topic; None if the pattern has a capture.
        capture: The name of the only capture; "" without a capture.
        states: The states of topics, by the value of the capture.
        general: The general path. It takes ``(message, headers, captures)``.
        to_topic: The general path to a known topic. It takes ``(message, topic)``.
        first: Publishes a message, and stores a state. It takes ``(message, captures, value of the capture)``.
    """

    write: Callable[[Any], bytes]
    codec: int
    topic: bytes | None
    capture: str
    states: Mapping[str, TopicState]
    general: Callable[[Any, Mapping[str, Any] | None, Mapping[str, object]], Awaitable[None]]
    to_topic: Callable[[Any, bytes], Awaitable[None]]
    first: Callable[[Any, Mapping[str, object], object], Awaitable[None]]


class MakeFastPath(NamedTuple):
    """The functions that make the fast path of a publication.

    Attributes:
        state: Returns the state of a topic.
        path: Returns the fast path.
    """

    state: Callable[[bytes], TopicState]
    path: Callable[[PublicationPaths], FastPath]


_CONSTANT = """\
if headers or captures or get_ident() != thread:
    return rare.general(message, headers, captures)
"""

_BY_CAPTURE = """\
if headers or get_ident() != thread:
    return rare.general(message, headers, captures)
value = captures.get({name}) if captures else getattr(message, {name}, None)
# Only text is a key, because 1, True and 1.0 would be equal. The general path refuses a second capture.
state = states.get(value) if type(value) is str and (not captures or len(captures) == 1) else None
if state is None:
    return rare.first(message, captures, value)
"""

_GUARD = """\
if state.guard is not None and state.guard(state.topic):
    return rare.to_topic(message, state.topic)
"""

_ENCODE = """\
m = message
try:
    {write}
except Exception:
    body = None
# The general path encodes a refused message again, and raises the error.
if body is None or len(body) > {limit}:
    return rare.to_topic(message, state.topic)
"""

NUMBERED = (
    "if state.version != counters.version:  # subscriptions have changed",
    "    rare.look(state)",
    "sent_at, pack, one = clock_ns(), state.pack, state.one",
    "if one is None:",
    "    frame = pack(sent_at) + body",
    "else:",
    "    one.number = number = one.number + 1",
    "    if not state.cover.moved:",
    "        rare.note(state.cover)",
    "    frame = pack(state.head, number, sent_at) + body",
)
"""The lines that number a message and assign ``frame``.

Most topics have at most one subscription, whose number is incremented here. CPython 3.11 calls a local variable faster
than an attribute that is not a method.
"""


@cache  # the number of counters has a limit; subscribers choose the lengths, so these are not part of the code
def counting_header(number: int) -> Callable[..., Callable[[int], bytes]]:
    """Return a maker of functions that count a message and pack its header.

    The message is of a topic with ``number`` counters. The maker takes ``pack``, ``head``, the cover, `Counters.note`,
    the counters, and the length of each counter's subscription. A made function takes the time. Its code is generated,
    because a loop over four counters would take twice as long.
    """
    counters, lengths = ([f"{name}{at}" for at in range(number)] for name in ("c", "length"))
    lines = [f"{counter}.number = n{at} = {counter}.number + 1" for at, counter in enumerate(counters)]
    further = "".join(f", length{at}, n{at}" for at in range(1, number))
    lines += ["if not cover.moved:", "    note(cover)", f"return pack(head, {'n0' if number else 0}, sent_at{further})"]
    source = "\n    ".join(("def header(sent_at):", *lines))
    return define_maker(source, "header", {}, ("pack", "head", "cover", "note", *counters, *lengths))


_COUNTED = """\
stats.published += 1
return DONE
"""


def make_fast_path(
    paths: PublicationPaths, state: Callable[[bytes], TopicState], limit: int, rest: Inline, seldom: Mapping[str, Any]
) -> FastPath:
    """Return the fast path of a publication.

    Args:
        paths: The parts of the publication.
        state: Returns the state of a topic.
        limit: The maximum size of a body in bytes.
        rest: The lines that frame and send ``body``. Its names include ``stats``, ``DONE``, and ``thread``, the thread
            that may publish.
        seldom: The objects that the lines refer to as attributes of ``rare``, by name.
    """
    encode: Inline = getattr(paths.write, "inline", Inline(("body = write(m)",), {"write": paths.write}))
    # Each name of its own would slow all calls.
    rare = SimpleNamespace(general=paths.general, to_topic=paths.to_topic, first=paths.first, **seldom)
    names = {**encode.names, **rest.names, "get_ident": get_ident, "rare": rare}
    encoding = _ENCODE.format(write="\n    ".join(encode.lines), limit=limit)
    if paths.topic is not None:
        only = names["state"] = state(paths.topic)
        begin = _CONSTANT if only.guard is None else _CONSTANT + _GUARD
    else:
        begin = _BY_CAPTURE.format(name=repr(paths.capture)) + _GUARD
        names["states"] = paths.states
    lines = "".join((begin, encoding, *(f"{line}\n" for line in rest.lines), _COUNTED))
    source = (
        f"def publish(message, /, *, headers=None, **captures):\n{indent(lines, '    ')}\n"
        "def end():\n    nonlocal thread\n    thread = 0\n\n"
        "fast_path = publish, end"
    )
    used = set(re.findall(r"\w+", source))
    return FastPath(*define(source, "fast_path", {name: each for name, each in names.items() if name in used}))
