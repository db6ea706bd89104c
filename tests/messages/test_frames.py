"""The stated form of a message: its arguments, its parser, and what it refuses."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from zroute import Frames
from zroute.errors import EnvelopeError, SetupError, SignatureError, TopicError
from zroute.messages.compression import compressor, decompressor
from zroute.messages.frames import NAMED_FORMS, StatedMessage, parse_form, stated_form
from zroute.messages.wire import parse, sent_at, split
from zroute.options import MAX_PARTS

LIMIT = 1000
PARTS = (b"a b c", b"body", b"last")


def read(form: Frames, *parts: bytes) -> tuple[bytes, bytes]:
    """Return the topic and the body of a message."""
    found = form.parser(LIMIT, "tcp://feed:1")(parts)
    assert tuple(found) == parts
    return found.topic, found.body


@pytest.mark.parametrize(
    ("form", "topic", "body"),
    [
        (Frames(), b"a b c", b"body"),
        (Frames(separator=b" "), b"a", b"b c"),
        (Frames(separator=b" b "), b"a", b"c"),
        (Frames(topic=0), b"a b c", b"body"),
        (Frames(body=2), b"a b c", b"last"),
        (Frames(topic=1, body=0), b"body", b"a b c"),
        (Frames(topic=0, body=-1), b"a b c", b"last"),
        (Frames(topic="weather"), b"weather", b"last"),
        (Frames(topic=b"\xff"), b"\xff", b"last"),
        (Frames(topic="weather", body=0), b"weather", b"a b c"),
        (Frames(topic="weather", whole=True), b"weather", b"a b cbodylast"),
        (Frames(topic=lambda parts: parts[1].upper()), b"BODY", b"last"),
        (Frames(topic=lambda parts: f"n.{len(parts)}", body=1), b"n.3", b"body"),
        (Frames(topic=lambda parts: "é", whole=True), "é".encode(), b"a b cbodylast"),
        (Frames(body=lambda parts: parts[1] + parts[2]), b"a b c", b"bodylast"),
        (Frames(body=lambda parts: memoryview(parts[1])), b"a b c", b"body"),
    ],
    ids=str,
)
def test_a_form_says_what_topic_and_body_are(form: Frames, topic: bytes, body: bytes) -> None:
    """Each form takes topic and body from the bytes that it names."""
    assert read(form, *PARTS) == (topic, body)


@pytest.mark.parametrize(
    ("form", "parts", "reason"),
    [
        (Frames(separator=b"; "), PARTS, "no separator b'; ' in the first part"),
        (Frames(), (b"alone",), "no part 1 for the body in a message of 1 parts (the first part is 0)"),
        (Frames(topic=4, body=0), PARTS, "no part 4 for the topic in a message of 3 parts (the first part is 0)"),
        (Frames(topic="t", body=-4), PARTS, "no part -4 for the body"),
        (
            Frames(topic=lambda parts: parts[7]),
            PARTS,
            "IndexError: tuple index out of range at tests/messages/test_frames.py:",
        ),
        (Frames(topic=lambda parts: parts[0].decode("ascii")), (b"\xff",), "UnicodeDecodeError"),
        (Frames(topic=lambda parts: "\ud800"), PARTS, "UnicodeEncodeError"),
        (Frames(topic=lambda parts: 7), PARTS, "the topic= function returned int; expected text or bytes"),
        (Frames(body=lambda parts: "text"), PARTS, "the body= function returned str; expected bytes"),
        (Frames(body=lambda parts: None), PARTS, "the body= function returned NoneType"),
        (Frames(decompress="zlib"), PARTS, "a body that is not zlib or gzip"),
        (Frames(), (b"x",) * (MAX_PARTS + 1), "more than 16 parts"),
    ],
    ids=str,
)
def test_a_message_of_another_form_is_refused_with_the_place(
    form: Frames, parts: tuple[bytes, ...], reason: str
) -> None:
    """The error names what is wrong, the endpoint and the form, and keeps the parts."""
    with pytest.raises(EnvelopeError) as raised:
        read(form, *parts)
    assert reason in raised.value.reason
    assert f"(at tcp://feed:1, read as {form})" in raised.value.reason
    assert tuple(raised.value.frames) == parts


def test_an_exit_of_a_function_is_no_fault_of_the_message() -> None:
    """SystemExit leaves the parser."""
    with pytest.raises(SystemExit):
        read(Frames(topic=lambda parts: sys.exit(3)), b"a")


@pytest.mark.parametrize(
    ("given_arguments", "parameter", "remedy"),
    [
        (
            {"separator": b" ", "topic": 0},
            "separator",
            "can't be combined with topic=, body= or whole=: remove separator= or the other options",
        ),
        ({"separator": b" ", "topic": "a"}, "separator", "remove"),
        ({"separator": b" ", "body": 1}, "separator", "remove"),
        ({"separator": b" ", "whole": True}, "separator", "remove"),
        ({"separator": b""}, "separator", "expected at least one byte"),
        ({"separator": " "}, "separator", "expected bytes"),
        ({"whole": True}, "whole", "Frames(whole=True, topic='weather')"),
        ({"whole": True, "topic": 0}, "whole", "no part is left for the topic: set topic="),
        ({"whole": True, "topic": "a", "body": 1}, "whole", "body= can't be set: remove body="),
        ({"whole": "yes", "topic": "a"}, "whole", "True or False"),
        ({"topic": -1}, "topic", "0 to 15"),
        ({"topic": 16}, "topic", "0 to 15"),
        ({"topic": True}, "topic", "a fixed topic, or a function"),
        ({"topic": 1.5}, "topic", "a fixed topic, or a function"),
        ({"topic": "\ud800"}, "topic", "pass bytes instead"),
        ({"topic": 2, "body": 2}, "body", "set body= to another part"),
        ({"body": 0}, "body", "set body= to another part"),
        ({"topic": 1}, "body", "set body= to another part"),
        ({"body": 16}, "body", "-16 to 15"),
        ({"body": "1"}, "body", "-16 to 15"),
        ({"decompress": "gzip"}, "decompress", "'zlib', 'zstd', 'lz4'"),
    ],
    ids=str,
)
def test_arguments_that_contradict_each_other_are_refused_at_their_line(
    given_arguments: dict[str, Any], parameter: str, remedy: str
) -> None:
    """The error names the argument, the user's line, and what to do."""
    with pytest.raises(SignatureError) as raised:
        Frames(**given_arguments)
    assert raised.value.parameter == parameter
    assert remedy in str(raised.value)
    assert str(raised.value.where).startswith("tests/messages/test_frames.py:")


@pytest.mark.parametrize("parameter", ["topic", "body"])
def test_an_async_function_is_refused(parameter: str) -> None:
    """A message is read at once, so nothing can await its topic or body."""

    async def later(parts: tuple[bytes, ...]) -> bytes:
        return parts[0]

    with pytest.raises(SignatureError, match="expected a plain function") as raised:
        Frames(**{parameter: later})  # type: ignore[arg-type]
    assert raised.value.parameter == parameter


def test_a_form_is_shown_as_it_is_written() -> None:
    """The text of a form has only the arguments that were given, and the names of functions."""
    assert str(Frames()) == "Frames()"
    assert str(Frames(topic=0, body=2)) == "Frames(topic=0, body=2)"
    assert str(Frames(separator=b" ", decompress="zlib")) == "Frames(separator=b' ', decompress='zlib')"
    assert str(Frames(topic=test_a_form_is_shown_as_it_is_written, whole=True)) == (
        "Frames(topic=test_a_form_is_shown_as_it_is_written(), whole=True)"
    )


def test_equal_forms_are_equal_keys() -> None:
    """Endpoints of one form share a socket, so forms can be compared and hashed."""
    assert {Frames(separator=b" "), Frames(separator=b" "), Frames(separator=b",")} == {
        Frames(separator=b" "),
        Frames(separator=b","),
    }


@pytest.mark.parametrize(
    ("form", "filters"),
    [
        (Frames(), True),
        (Frames(separator=b" "), True),
        (Frames(topic=0, body=2), True),
        (Frames(topic=1, body=0), False),
        (Frames(topic="a"), False),
        (Frames(topic=lambda parts: parts[0]), False),
    ],
    ids=str,
)
def test_a_publisher_filters_only_a_topic_at_the_start(form: Frames, filters: bool) -> None:
    """A prefix of the first part is all that a publisher can compare."""
    assert form.filters == filters


def test_forms_have_names() -> None:
    """ "tracked" is the form that is recognised; another name is an error that lists all."""
    assert [stated_form(name) for name in ("tracked", "plain", "multipart")] == [
        None,
        Frames(separator=b"\0"),
        Frames(topic=0, body=1),
    ]
    assert stated_form(Frames(topic="a")) == Frames(topic="a")
    assert set(NAMED_FORMS) == {"tracked", "plain", "multipart"}
    for wrong in ("json", None, b" "):
        with pytest.raises(SignatureError, match="'tracked', 'plain', 'multipart', or Frames"):
            stated_form(wrong)


def test_a_stated_message_is_never_taken_for_a_tracked_one() -> None:
    """Its envelope has the topic and the body of the form, also with a body like a tracked header."""
    message = StatedMessage.of((b"a\0b", b"\xc1ZR"), b"a\0b", b"\xc1ZR" + bytes(40))
    envelope = parse(message, 5.0)
    assert (envelope.topic.wire, envelope.body, envelope.tracked) == (b"a\0b", b"\xc1ZR" + bytes(40), False)
    assert envelope.frames == (b"a\0b", b"\xc1ZR")
    assert type(envelope.frames) is tuple
    assert split(message) == (b"a\0b", message.body)
    assert sent_at(message) is None


# -- compressed bodies -----------------------------------------------------------------------------------


def streamed_zstd(body: bytes) -> bytes:
    """Return a zstd frame that does not state its size."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(body) + stream.flush()


def checked_zstd(body: bytes) -> bytes:
    """Return a zstd frame with a checksum."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


WAYS: list[tuple[Any, Callable[[bytes], bytes]]] = [
    ("zlib", zlib.compress),
    ("zlib", gzip.compress),
    ("zstd", compressor("zstd")),
    ("zstd", streamed_zstd),
    ("zstd", checked_zstd),
    ("lz4", compressor("lz4")),
    ("lz4", lambda body: lz4.frame.compress(body, content_checksum=True, store_size=False)),
]


@pytest.mark.parametrize(("name", "compress"), WAYS)
@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_a_compressed_body_up_to_the_limit_is_read(name: Any, compress: Callable[[bytes], bytes], size: int) -> None:
    """A body of exactly max_message bytes is read."""
    body = bytes(range(256)) * 4
    assert decompressor(name, LIMIT)(compress(body[:size])) == body[:size]


@pytest.mark.parametrize(("name", "compress"), WAYS)
def test_a_compressed_body_above_the_limit_costs_no_more_than_the_limit(
    name: Any, compress: Callable[[bytes], bytes]
) -> None:
    """A small body that expands to 100 MB is refused, and takes about max_message bytes of memory."""
    bomb = compress(bytes(100_000_000))
    most = 100_000
    decompress = decompressor(name, most)
    tracemalloc.start()
    try:
        with pytest.raises(EnvelopeError, match=r"more than (max_message=)?100000 bytes"):
            decompress(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * most + len(bomb)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "compress"), WAYS)
def test_a_compressed_body_is_exactly_one_stream(name: Any, compress: Callable[[bytes], bytes]) -> None:
    """A body that ends early, and data after the end, are refused, also a second stream."""
    decompress, packed = decompressor(name, LIMIT), compress(b"body" * 10)
    for wrong in (b"", packed[:-1], packed[: len(packed) // 2], packed + b"x", packed + packed, b"{}", bytes(50)):
        with pytest.raises(EnvelopeError):
            decompress(wrong)


def test_a_size_that_a_zstd_frame_claims_is_not_allocated() -> None:
    """A header that claims 1 TB is refused before anything is decompressed."""
    header = bytes.fromhex("28b52ffd") + bytes([0b11100000]) + (1 << 40).to_bytes(8, "little")
    with pytest.raises(EnvelopeError, match="more than max_message=1000 bytes"):
        decompressor("zstd", LIMIT)(header + b"\x01\0\0")


@pytest.mark.parametrize(("claimed", "text"), [(0, "claims to be empty"), (5, "is not zstd"), (2, "is not zstd")])
def test_a_wrong_size_in_a_zstd_frame_is_refused(claimed: int, text: str) -> None:
    """A frame that states another size than that of its data is malformed, never cut."""
    frame = bytes.fromhex("28b52ffd") + bytes([0b00100000, claimed]) + (3 << 3 | 1).to_bytes(3, "little") + b"abc"
    with pytest.raises(EnvelopeError, match=text):
        decompressor("zstd", LIMIT)(frame)


@pytest.mark.parametrize("name", ["zlib", "zstd", "lz4"])
@given(body=st.binary(max_size=60))
def test_no_bytes_raise_another_error(name: Any, body: bytes) -> None:
    """Any bytes are decompressed or refused, also behind a valid beginning."""
    decompress = decompressor(name, LIMIT)
    for each in (body, compressor(name)(b"a" * 50)[:12] + body):
        with suppress(EnvelopeError):
            assert len(decompress(each)) <= LIMIT


@pytest.mark.parametrize(("name", "package"), [("zstd", "zstandard"), ("lz4", "lz4.frame")])
def test_a_missing_package_is_named_with_its_extra(name: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the line that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SetupError, match=rf"pip install 'zroute\[{name}\]'"):
        stated_form(Frames(decompress=name))
    with pytest.raises(SetupError, match=rf"pip install 'zroute\[{name}\]'"):
        compressor(name)


# -- messages to send ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        (Frames(), (b"t", b"body")),
        (Frames(separator=b" "), (b"t body",)),
        (Frames(separator=b"\0"), (b"t\0body",)),
        (Frames(body=2), (b"t", b"", b"body")),
        (Frames(topic=1, body=0), (b"body", b"t")),
        (Frames(topic=2, body=0), (b"body", b"", b"t")),
        (Frames(topic=0, body=-1), (b"t", b"body")),
        (Frames(topic=1, body=-1), (b"", b"t", b"body")),
        (Frames(topic=0, body=-2), (b"t", b"body", b"")),
        (Frames(topic=1, body=-3), (b"body", b"t", b"")),
        (Frames(topic="t"), (b"body",)),
        (Frames(topic=b"t", whole=True), (b"body",)),
        (Frames(topic="t", body=1), (b"", b"body")),
        (Frames(topic="t", body=-2), (b"body", b"")),
        (Frames(topic=0, decompress="zlib"), (b"t", zlib.compress(b"body"))),
    ],
    ids=str,
)
def test_a_message_is_sent_so_that_its_reader_finds_it(form: Frames, parts: tuple[bytes, ...]) -> None:
    """The parts have topic and body where the form states them, and the parser finds both again."""
    made = form.framer()(b"t", b"body")
    assert isinstance(made, tuple) == form.sends_parts
    assert (made if isinstance(made, tuple) else (made,)) == parts
    assert read(form, *parts) == (b"t", b"body")


@pytest.mark.parametrize("name", ["zlib", "zstd", "lz4"])
@given(body=st.binary(max_size=LIMIT))
def test_a_compressed_body_is_read_as_it_was_sent(name: Any, body: bytes) -> None:
    """What `decompress` of a wire compresses, `decompress` of a subscriber reads."""
    form = Frames(separator=b" ", decompress=name)
    assert read(form, bytes(form.framer()(b"t", body))) == (b"t", body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "topic", "reason"),
    [
        (Frames(separator=b"."), b"a.b", "contains b'.', which ends a topic in this app's wire=Frames"),
        (Frames(topic="t"), b"u", "topic 'u' can't be published: with this app's wire="),
        (Frames(topic="t", whole=True), b"", "topic '' can't be published: with this app's wire="),
    ],
    ids=str,
)
def test_a_topic_that_its_reader_would_not_find_is_refused(form: Frames, topic: bytes, reason: str) -> None:
    """TopicError says why the form can't carry the topic."""
    with pytest.raises(TopicError) as raised:
        form.framer()(topic, b"body")
    assert reason in str(raised.value)
    assert raised.value.topic == topic.decode()


# -- forms as text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("separator= ", Frames(separator=b" ")),
        ("separator=,", Frames(separator=b",")),
        ("separator=,,decompress=zlib", Frames(separator=b",", decompress="zlib")),
        (r"separator=\n\n", Frames(separator=b"\n\n")),
        (r"separator=\xff\0\\", Frames(separator=b"\xff\0\\")),
        ("separator=→", Frames(separator="→".encode())),
        ("topic=0,body=2", Frames(topic=0, body=2)),
        ("topic=1,body=-1", Frames(topic=1, body=-1)),
        ("topic=eddn,decompress=zlib", Frames(topic="eddn", decompress="zlib")),
        ("whole,topic=weather", Frames(topic="weather", whole=True)),
        ("plain", Frames(separator=b"\0")),
        ("multipart", Frames(topic=0, body=1)),
        ("tracked", None),
    ],
)
def test_a_form_is_read_from_text(text: str, form: Frames | None) -> None:
    """The text of a flag has the arguments of `Frames`, or the name of a form."""
    assert parse_form(text) == form


@pytest.mark.parametrize("text", ["", "json", "topic", "whole=1,topic=a", "topic=a,topic=b", "a=b"])
def test_another_text_is_refused_with_examples(text: str) -> None:
    """The error shows how a form is written."""
    with pytest.raises(SignatureError, match=r"'topic=0,body=2', 'topic=eddn,decompress=zlib'|expected the index"):
        parse_form(text)
