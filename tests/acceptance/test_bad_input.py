"""Invalid input from a publisher process: each message is counted and logged, and calls no handler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.acceptance.conversation import Conversation, conversation
from tests.support import Way
from zroute.messages.wire import FIXED, HEADER_SIZE, MAGIC, Kind, pack_head

LIMIT = 300_000
LEVELS = 100_000

READER = f"""
from zroute import Limits
app = App(sub="tcp://127.0.0.1:1", codec="json", limits=Limits(max_message={LIMIT}))

@attrs.frozen
class Line:
    sku: str
    count: int
    weight: float = 0.0

@attrs.frozen
class Order:
    lines: list[Line]
    notes: dict[str, str] = {{}}

@app.subscribe("json")
def typed_json(order: Order):
    say("called", "typed_json")

@app.subscribe("msgpack", codec="msgpack")
def typed_msgpack(order: Order):
    say("called", "typed_msgpack")

@app.subscribe("any")
def untyped(body: Any):
    say("called", "untyped")

@app.subscribe("text")
def text(body: str):
    say("called", "text")

@app.subscribe("*.nobody")
def subscribe_to_everything():
    say("called", "subscribe_to_everything")

@app.subscribe("ask")
async def ask(number: int):
    from twisted.internet import reactor, task
    await task.deferLater(reactor, 0)  # "received" is counted when a turn of reading ends
    say("answer", number, app.stats.as_dict())

@app.on_error(EnvelopeError, DecodeError)
def refused(error, envelope):
    say("refused", type(error).__name__, error.reason, [len(frame) for frame in envelope.frames])
"""

EVERY_LINE = """
from zroute import throttle as reports
reports.BURST = 1_000_000  # so that the line of each case is there to be looked at
"""

LONG_WINDOW = """
from zroute import throttle
throttle.WINDOW = 3600.0  # so that no window ends in the test
"""

numbers = count(1)


class Nonsense:
    """A conversation that compares the counters before and after each set of messages."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self.before = self._ask()

    def _ask(self) -> dict[str, Any]:
        number = next(numbers)
        self.talk.send([f"ask\0{number}".encode()])
        line = self.talk.app.line_with(f'["answer", {number}, ')
        counters: dict[str, Any] = json.loads(line)[2]
        return counters

    def changes(self, *messages: list[bytes]) -> dict[str, int]:
        """Send these messages and then a good one; return the changed counters without the good one."""
        before, heard = self.before, len(self.talk.app.out)
        self.talk.send(*messages)
        self.before = now = self._ask()
        self.said = [json.loads(line) for line in self.talk.app.out[heard:-1]]
        moved = {name: now[name] - before[name] for name in ("received", "malformed", "unrouted", "control")}
        for route, counters in now["routes"].items():
            for name, value in counters.items():
                moved[f"{route}.{name}"] = value - before["routes"][route][name]
        moved["received"] -= 1
        moved[f"{here('ask')}.handled"] -= 1
        return {name: change for name, change in moved.items() if change}

    def lines(self, text: str) -> list[str]:
        """Return the log lines that contain ``text``; wait for the first."""
        self.talk.app.line_with(text, stream="err")
        return [line for line in self.talk.app.err if text in line]


def here(function: str) -> str:
    """Return the name of a handler of the reader."""
    return f"{function}()"


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nonsense]:
    """One app for all cases, since it has to survive them all."""
    with conversation(tmp_path_factory.mktemp("bad"), EVERY_LINE + READER) as talk:
        yield Nonsense(talk)


def tracked(body: bytes, *, codec: int = 2, topic: bytes = b"json", headers: bytes = b"", **head: Any) -> bytes:
    """Return a tracked frame with any header and body, valid or not."""
    flags = head.pop("flags", 1 if headers else 0)
    return topic + b"\0" + FIXED.pack(pack_head(codec=codec, flags=flags, epoch=7, **head), 1, 2) + headers + body


def with_byte(frame: bytes, offset: int, value: int) -> bytes:
    """Return ``frame`` with one byte of its header changed."""
    at = frame.index(MAGIC) + offset
    return frame[:at] + bytes([value]) + frame[at + 1 :]


GOOD = b'{"lines": [{"sku": "a", "count": 1, "weight": 0.5}], "notes": {"k": "v"}}'
GOOD_MSGPACK = msgpack.packb(json.loads(GOOD))
WHOLE = tracked(GOOD)

MALFORMED = {
    "an empty frame": ([b""], "an empty frame"),
    "no NUL": ([b"json{}"], "no NUL after the topic"),
    "a space in place of NUL": ([b"json {}"], "no NUL after the topic (if a space ends the topic"),
    "a head that is only its magic": ([b"json\0" + MAGIC], "a tracked header of 3 bytes"),
    "a head that ends early": ([WHOLE[: 5 + HEADER_SIZE - 1]], "a tracked header of 31 bytes"),
    "a version to come": ([with_byte(WHOLE, 3, 2)], "version 2"),
    "an unknown kind": ([with_byte(WHOLE, 4, 99)], "unknown kind 99"),
    "a batch that is none": (
        [tracked(b"\0\2\0\1", kind=Kind.COALESCED)],
        "a coalesced frame with an invalid number of messages: 2 in 4 bytes",
    ),
    "unknown flags": ([tracked(GOOD, flags=0x84)], "unknown flags 0x84"),
    "a length that is cut": ([tracked(b"\0\0", flags=1)], "ends in the middle of the length"),
    "headers past the end": ([tracked(GOOD, headers=b"\0\0\x03\xe8")], "headers with a length of 1000 bytes"),
    "headers that claim it all": (
        [tracked(GOOD, headers=b"\xff\xff\xff\xff")],
        "headers with a length of 4294967295 bytes",
    ),
    "headers that are not a map": ([tracked(GOOD, headers=b"\0\0\0\x01\x05")], "headers that are not a msgpack map"),
    "headers of nested arrays": ([tracked(GOOD, headers=b"\0\0\x0f\xa0" + b"\x91" * 4000)], "not a msgpack map"),
    "17 parts": ([b"json"] + [b"x"] * 16, "more than 16 parts"),
    "a whole part with another behind": ([b"fresh\0{}", b"admin.rm\0{}"], "a message of several parts with a NUL"),
    "a topic that is not UTF-8": ([b"js\xffon\0" + GOOD], "not UTF-8"),
    "a body over the limit": ([b"json\0" + b" " * (LIMIT + 1)], f"expected at most max_message={LIMIT}"),
    "a second part over the limit": ([b"json", b" " * (LIMIT + 1)], f"expected at most max_message={LIMIT}"),
    "a tracked body over the limit": ([tracked(b" " * (LIMIT + 1))], f"expected at most max_message={LIMIT}"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_message_is_counted_and_said(nonsense: Nonsense, case: str) -> None:
    """A frame that breaks the rules of the wire reaches no handler; one line says why, and the app continues."""
    parts, reason = MALFORMED[case]
    seen = len([line for line in nonsense.talk.app.err if reason in line])
    assert nonsense.changes(parts) == {"received": 1, "malformed": 1}
    assert [words[:2] for words in nonsense.said] == [["refused", "EnvelopeError"]]
    assert reason in nonsense.said[0][2]
    nonsense.talk.app.wait_for(lambda lines: sum(reason in line for line in lines) > seen, stream="err")
    (line,) = [line for line in nonsense.talk.app.err if reason in line][seen:]
    topic = parts[0].partition(b"\0")[0].decode(errors="surrogateescape")
    assert f"(topic {topic!r}, no route)" in line or not topic
    assert f"first bytes: {parts[0][:48]!r}" in line


NESTED = b"[" * LEVELS
NESTED_MSGPACK = b"\x91" * LEVELS

UNDECODABLE = {
    "an empty body": ("json", b""),
    "wrong type at depth": ("json", b'{"lines": [{"sku": "a", "count": 1}, {"sku": "b", "count": "2"}]}'),
    "wrong type in a map": ("json", b'{"lines": [], "notes": {"k": 5}}'),
    "a float for an int": ("json", b'{"lines": [{"sku": "a", "count": 1.5}]}'),
    "a field that is missing": ("json", b'{"notes": {}}'),
    "another shape": ("json", b"[1, 2]"),
    "something behind the end": ("json", GOOD + b"{}"),
    "nested arrays": ("json", NESTED),
    "nested arrays in a field": ("json", b'{"lines": ' + NESTED),
    "nested arrays in an unknown field": ("json", b'{"x": ' + NESTED + b"]" * LEVELS + b', "lines": []}'),
    "nested maps": ("json", b'{"x":' * 30_000),
    "NaN": ("json", b'{"lines": [{"sku": "a", "count": 1, "weight": NaN}]}'),
    "Infinity": ("json", b'{"lines": [{"sku": "a", "count": 1, "weight": -Infinity}]}'),
    "a float too large": ("json", b'{"lines": [{"sku": "a", "count": 1, "weight": 1e999}]}'),
    "an int over 64 bits": ("json", b'{"lines": [{"sku": "a", "count": 18446744073709551616}]}'),
    "an int below 64 bits": ("json", b'{"lines": [{"sku": "a", "count": -9223372036854775809}]}'),
    "a value that is not UTF-8": ("json", b'{"lines": [{"sku": "\xff", "count": 1}]}'),
    "a key that is not UTF-8": ("json", b'{"lines": [], "notes": {"\xff": "v"}}'),
    "msgpack: another type at depth": ("msgpack", msgpack.packb({"lines": [{"sku": 5, "count": 1}]})),
    "msgpack: nested arrays": ("msgpack", NESTED_MSGPACK),
    "msgpack: nested arrays in an unknown field": ("msgpack", b"\x82\xa5lines\x90\xa1x" + NESTED_MSGPACK + b"\x01"),
    "msgpack: NaN": ("msgpack", msgpack.packb({"lines": [{"sku": "a", "count": 1, "weight": float("nan")}]})),
    "msgpack: infinity": ("msgpack", msgpack.packb({"lines": [{"sku": "a", "count": 1, "weight": float("inf")}]})),
    "msgpack: an array that claims 2^32": ("msgpack", b"\x81\xa5lines\xdd\xff\xff\xff\xff"),
    "msgpack: a map that claims 2^32": ("msgpack", b"\xdf\xff\xff\xff\xff"),
    "msgpack: a text that claims 2^32": ("msgpack", b"\x81\xdb\xff\xff\xff\xff"),
    "msgpack: bytes that claim 2^32": ("msgpack", b"\x81\xa5lines\xc6\xff\xff\xff\xff"),
    "msgpack: a value that is not UTF-8": ("msgpack", b"\x81\xa5lines\x91\x82\xa3sku\xa1\xff\xa5count\x01"),
    "msgpack: a key that is not UTF-8": ("msgpack", b"\x82\xa5lines\x90\xa5notes\x81\xa1\xff\xa1v"),
    "msgpack: the byte it never uses": ("msgpack", b"\xc1"),
    "untyped: nested arrays": ("any", NESTED),
    "untyped: nested arrays, closed": ("any", NESTED + b"]" * LEVELS),
    "untyped: nested arrays of msgpack": ("any", NESTED_MSGPACK + b"\x01"),
    "untyped: NaN": ("any", b"[NaN]"),
    "untyped: NaN of msgpack": ("any", b"\x91" + msgpack.packb(float("nan"))),
    "untyped: an int over 64 bits": ("any", b"[18446744073709551616]"),
    "untyped: a huge claim": ("any", b"\xdd\xff\xff\xff\xff"),
    "untyped: a value that is not UTF-8": ("any", b'["\xff"]'),
    "untyped: a key that is not UTF-8": ("any", b"\x81\xa1\xff\x01"),
    "untyped: nothing": ("any", b""),
    "text that is not UTF-8": ("text", b"caf\xe9"),
}
ROUTES = {"json": "typed_json", "msgpack": "typed_msgpack", "any": "untyped", "text": "text"}


@pytest.mark.parametrize("case", UNDECODABLE)
def test_a_body_that_is_not_of_its_type_is_counted_and_said(nonsense: Nonsense, case: str) -> None:
    """A body that does not decode calls no handler; a line names topic, route, reason and first bytes."""
    topic, body = UNDECODABLE[case]
    route = here(ROUTES[topic])
    start = f"{route}: body of {topic!r} refused: "
    seen = sum(start in line for line in nonsense.talk.app.err)
    assert nonsense.changes([topic.encode() + b"\0" + body]) == {"received": 1, f"{route}.decode_error": 1}
    assert [words[:2] for words in nonsense.said] == [["refused", "DecodeError"]]
    nonsense.talk.app.wait_for(lambda lines: sum(start in line for line in lines) > seen, stream="err")
    (line,) = [line for line in nonsense.talk.app.err if start in line][seen:]
    reason, _, first = line.partition(start)[2].partition("; first bytes: ")
    assert reason == nonsense.said[0][2]
    assert first == repr(body[:48])


@pytest.mark.parametrize("codec", [5, 77, 200])
def test_a_codec_nobody_knows_is_said(nonsense: Nonsense, codec: int) -> None:
    """A body with an unknown codec is refused with the codec's number; other messages of the topic are read."""
    route = here("typed_json")
    assert nonsense.changes([tracked(GOOD, codec=codec)]) == {"received": 1, f"{route}.decode_error": 1}
    assert f"unknown codec {codec}: pass the codec to this app" in nonsense.said[0][2]
    assert nonsense.changes([WHOLE]) == {"received": 1, f"{route}.handled": 1}


@pytest.mark.parametrize(("topic", "body"), [("json", GOOD), ("msgpack", GOOD_MSGPACK)])
@pytest.mark.parametrize("parts", [1, 2])
def test_bodies_cut_at_every_byte_are_refused(nonsense: Nonsense, topic: str, body: bytes, parts: int) -> None:
    """A body cut at any byte is refused, in one frame or two; the whole body is handled."""
    route = here(ROUTES[topic])
    cuts = [[topic.encode(), body[:end]] for end in range(len(body) + 1)]
    if parts == 1:
        cuts = [[b"\0".join(cut)] for cut in cuts]
    changes = nonsense.changes(*cuts)
    assert changes == {"received": len(cuts), f"{route}.decode_error": len(body), f"{route}.handled": 1}
    assert nonsense.said[-1] == ["called", ROUTES[topic]]


def test_tracked_frames_cut_at_every_byte_are_refused(nonsense: Nonsense) -> None:
    """A tracked frame cut at any byte of topic, header or body calls no handler."""
    frame = tracked(GOOD, headers=b"\0\0\0\x05\x81\xa1k\xa1v")
    changes = nonsense.changes(*([frame[:end]] for end in range(len(frame) + 1)))
    refused = changes["malformed"] + changes[f"{here('typed_json')}.decode_error"]
    assert refused == len(frame)
    assert changes["malformed"] > 0
    assert changes == {**changes, "received": len(frame) + 1, f"{here('typed_json')}.handled": 1}
    assert nonsense.said[-1] == ["called", "typed_json"]


def test_the_app_is_alive_and_its_counters_balance(tmp_path: Path) -> None:
    """After a message of each kind, the counters balance, and the app stops cleanly."""
    with conversation(tmp_path, LONG_WINDOW + READER) as talk:
        nonsense = Nonsense(talk)
        bodies = [[topic.encode() + b"\0" + body] for topic, body in UNDECODABLE.values()]
        frames = [parts for parts, _ in MALFORMED.values()]
        changes = nonsense.changes(*bodies, *frames, [b"json\0" + GOOD])
        refused = sum(change for name, change in changes.items() if name.endswith("decode_error"))
        assert (changes["received"], changes["malformed"]) == (len(bodies) + len(frames) + 1, len(frames))
        assert (refused, changes[f"{here('typed_json')}.handled"]) == (len(bodies), 1)
        stats = talk.stats()
        shown = [line for line in talk.app.err if "malformed message refused" in line]
        held = next(line for line in talk.app.err if "more lines like these" in line and "malformed" in line)
    assert stats["hook_errors"] == 0
    assert len(shown) == 5
    assert f"{len(frames) - 5} more lines like these" in held


def test_bombs_do_not_end_the_stack_where_i_raised_the_recursion_limit(tmp_path: Path) -> None:
    """100,000 nested arrays do not end the process, even with a raised recursion limit."""
    with conversation(tmp_path, "import sys\nsys.setrecursionlimit(10_000_000)\n" + READER) as talk:
        nonsense = Nonsense(talk)
        bombs = [(topic, body) for topic, body in UNDECODABLE.values() if len(body) > 50_000]
        bombs += [("any", b" " * 10 + NESTED), ("json", b'{"x": "[",' + b'"y": ' + NESTED)]
        for topic, body in bombs:
            for frame in (topic.encode() + b"\0" + body, tracked(body, topic=topic.encode(), codec=2)):
                route = here(ROUTES[topic])
                assert nonsense.changes([frame]) == {"received": 1, f"{route}.decode_error": 1}, body[:20]
        assert len(bombs) >= 9


@pytest.mark.slow
def test_a_million_parts_are_one_refused_message(tmp_path: Path) -> None:
    """A message of 1,000,001 parts uses little memory and calls no handler; the next one is handled."""
    with conversation(tmp_path, READER, peer="million_parts") as talk:
        changes = Nonsense(talk).changes([b"million"])
    assert changes == {"received": 1, "malformed": 1}


def test_a_giant_frame_costs_its_publisher_the_connection_and_no_more(tmp_path: Path, way: Way) -> None:
    """For a frame far over the limit the app cuts the connection, connects again, and continues."""
    with conversation(tmp_path, READER, peer="watching_publisher", way=way) as talk:
        nonsense = Nonsense(talk)
        before = talk.publisher.out.count("subscribed")
        talk.send([b"json\0" + b" " * (4 * LIMIT)])
        talk.publisher.wait_for(lambda lines: lines.count("subscribed") > before)
        changes = nonsense.changes([b"json\0" + GOOD])
    assert changes["typed_json().handled"] == 1
