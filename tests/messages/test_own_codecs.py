"""A codec of the user overrules every rule of zroute about types and bodies."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support import ROOT
from tests.test_snippets import blocks
from zroute import App, Envelope, Limits
from zroute.cli import main
from zroute.errors import DecodeError, EncodeError, SchemaError
from zroute.messages.bodies import body_decoder, body_encoder, guarded, runtime_encoder
from zroute.messages.codecs import JSON, MSGPACK, Codec, find_codec
from zroute.testing import TestApp

PAGE = ROOT / "docs" / "how-to" / "codecs.md"


class Foreign:
    """A class that no built-in codec carries: it has no fields."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Foreign({self.number})"


@attrs.define
class Tagging:
    """Writes any value behind the name of its declared type. Its bodies look like msgpack arrays, or like JSON."""

    start: bytes = b"\x92"
    name: str = "tagging"
    number: int = 140
    seen: list[Any] = attrs.field(factory=list)

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        self.seen.append(schema)

        def encode(message: Any) -> bytes:
            value = message.number if isinstance(message, Foreign) else message
            return self.start + repr(value).encode()

        return encode

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        self.seen.append(schema)

        def decode(body: bytes) -> Any:
            if not body.startswith(self.start):
                raise ValueError("not tagged")
            value = json.loads(body.removeprefix(self.start).decode().replace("'", '"').removeprefix("b"))
            return Foreign(value) if schema in (Foreign, list[Foreign]) else value

        return decode


@pytest.mark.parametrize("of", ["app", "route and publisher"])
@pytest.mark.parametrize("start", [b"\x92", b"{", b"[", b""], ids=repr)
@pytest.mark.parametrize(
    ("schema", "message", "arrived"),
    [
        (Foreign, Foreign(7), Foreign(7)),
        (Foreign | bytes, Foreign(7), Foreign(7)),
        (str, "text", "text"),
        (bytes, b"raw", "raw"),
        (Any, [1, 2], [1, 2]),
        (dict, {"a": 1}, {"a": 1}),
        (float, 3, 3),
    ],
    ids=repr,
)
def test_no_rule_judges_the_type_or_the_body(schema: Any, message: Any, arrived: Any, start: bytes, of: str) -> None:
    """The codec gets every declared type, and every body however it begins, on an app, a route or a publisher."""
    codec, got = Tagging(start), list[Any]()
    app = App(codec=codec) if of == "app" else App()
    own = None if of == "app" else codec
    publisher = app.publisher("a", schema, codec=own)

    def handle(body: Any) -> None:
        got.append(body)

    handle.__annotations__["body"] = schema
    app.add_route(handle, "a", codec=own)
    with TestApp(app) as t:
        publisher.publish(message)
        t.receive(b"a", Tagging(start).encoder(schema)(message))
        t.advance(0)
    assert got == [arrived, arrived]
    assert set(map(repr, codec.seen)) == {repr(Foreign if schema == Foreign | bytes else schema)}


def test_a_message_without_a_declared_type_gives_its_class() -> None:
    """app.publish asks the codec for the class of the message, and for Any with plain data."""
    for message, schema in ((Foreign(1), Foreign), ("x", str), (b"x", bytes), ([1], Any), ({}, Any), (1, Any)):
        codec = Tagging()
        chosen, encode = runtime_encoder(message, codec=None, default=codec)
        encode(message)
        assert (chosen, codec.seen) == (codec, [schema])


def test_the_first_byte_does_not_decide_for_an_untyped_handler() -> None:
    """A body of the user's codec that begins like JSON or msgpack goes to that codec."""
    for start in (b"{", b"\x92"):
        decode = body_decoder(Any, stated=None, route=None, default=Tagging(start))
        assert decode(start + b"[1]") == [1]
        with pytest.raises(ValueError, match="not tagged"):
            decode(b"\xff")


def test_a_raw_body_arrives_where_the_type_is_t_or_bytes() -> None:
    """T | bytes works with every codec."""
    decode = body_decoder(Foreign | bytes, stated=None, route=Tagging(), default=MSGPACK)
    assert decode(b"\x927") == Foreign(7)
    assert decode(b"other") == b"other"


def test_a_built_in_codec_still_wins_where_it_is_named() -> None:
    """codec="json" on a route or a publisher, or in a header, is that codec in an app with another."""
    own = Tagging()
    assert body_encoder(str, codec=JSON, default=own)[0] is JSON
    assert body_decoder(int, stated=None, route=JSON, default=own)(b"7") == 7
    assert body_decoder(int, stated=JSON, route=None, default=own)(b"7") == 7
    assert body_decoder(bytes, stated=MSGPACK, route=None, default=own)(b"\x07") == b"\x07"


def test_a_built_in_codec_in_a_header_that_cannot_carry_the_type_is_a_decode_error() -> None:
    """A peer that sends JSON for a type that only the user's codec carries does not raise into the reactor."""
    app, got, refused = App(codec=Tagging()), list[Any](), list[DecodeError]()

    @app.subscribe("a")
    def handle(body: Foreign) -> None:
        got.append(body)

    @app.on_error(DecodeError)
    def on_error(error: DecodeError, envelope: Envelope) -> None:
        refused.append(error)

    with TestApp(app, raise_errors=False) as t:
        t.publish("a", {"number": 1}, codec="json")
        t.publish("a", Foreign(2))
        t.advance(0)
    assert got == [Foreign(2)]
    assert "the sender states the codec json, which can't carry Foreign" in refused[0].reason


def test_a_bytes_handler_of_another_app_gets_the_body() -> None:
    """A handler of bytes in an app with a built-in codec gets the bytes as sent, whatever codec the header names."""
    assert body_decoder(bytes, stated=Tagging(), route=None, default=MSGPACK)(b"\x92x") == b"\x92x"


class Failing(Tagging):
    def encoder(self, schema: Any) -> Any:
        if schema is Foreign:
            raise KeyError("no such schema")
        return lambda message: {"none": None, "text": "text"}[message]

    def decoder(self, schema: Any) -> Any:
        raise KeyError("no such schema")


class Wrapping:
    """A codec that is built on a codec of zroute, as in the docs."""

    name, number = "wrapping", 141

    def __init__(self, inner: Codec) -> None:
        self.inner = inner

    def encoder(self, schema: Any) -> Callable[[Any], bytes]:
        encode = self.inner.encoder(schema)
        return lambda message: b"<" + encode(message)

    def decoder(self, schema: Any) -> Callable[[bytes], Any]:
        decode = self.inner.decoder(schema)
        return lambda body: decode(body.removeprefix(b"<"))


@attrs.frozen
class Recording:
    file: Path
    seconds: float


@pytest.mark.parametrize("inner", [JSON, MSGPACK])
def test_a_codec_inside_a_codec_knows_the_types_of_the_app(inner: Codec) -> None:
    """Types and NaN that an app allows are carried in its publishers, handlers and undeclared messages."""
    codec = Wrapping(inner)
    app, got = App(codec=codec, types={Path: (str, Path)}, limits=Limits(allow_nan=True)), list[Any]()
    recordings = app.publisher("a", Recording)
    app.subscribe("a")(_appending(got, Recording))
    app.subscribe("b")(_appending(got, Path))
    sent = Recording(Path("a"), float("inf"))
    with TestApp(app) as t:
        recordings.publish(sent)
        t.publish("a", sent)
        app.publish("a", sent)
        t.publish("b", Path("c"))
        assert t.published("a") == [sent, sent]
    assert got == [sent, sent, sent, Path("c")]
    with pytest.raises(SchemaError, match=r"Recording\.file is Path"):  # without an app, there are no such types
        codec.encoder(Recording)
    other = App(codec=codec)
    other.publisher("a", Recording)
    with pytest.raises(SchemaError, match=r"codec 'wrapping' can't carry Recording: Recording\.file is Path, which no"):
        other.compile()


def _appending(got: list[Any], schema: Any) -> Callable[[Any], None]:
    def handler(body: Any) -> None:
        got.append(body)

    handler.__annotations__["body"] = schema
    return handler


def test_what_a_codec_raises_names_the_codec_and_the_line() -> None:
    """An error of the codec's functions is a SchemaError at the start, and an EncodeError in the publisher."""
    for declare in (lambda app: app.publisher("a", Foreign), lambda app: app.subscribe("a")(_takes_foreign)):
        app = App(codec=Failing())
        declare(app)
        with pytest.raises(SchemaError, match=r"test_own_codecs\.py:\d+: .*'tagging' can't carry Foreign: KeyError"):
            app.compile()
    _, encode = body_encoder(str, codec=None, default=Failing())
    with pytest.raises(EncodeError, match="codec 'tagging': KeyError"):
        encode("other")
    with pytest.raises(EncodeError, match="codec 'tagging' returned str; expected bytes"):
        encode("text")
    with pytest.raises(EncodeError, match="returned NoneType; expected bytes"):
        encode("none")
    with pytest.raises(SchemaError, match=r"codec=Tagging is a class: pass an instance, Tagging\(\)"):
        find_codec(Tagging)  # type: ignore[arg-type]


def _takes_foreign(body: Foreign) -> None: ...


def test_large_bodies_of_a_codec_are_not_read_as_msgpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large body that begins like a nest of msgpack arrays is no bomb in another codec."""
    monkeypatch.setattr(sys, "getrecursionlimit", lambda: 100_000)
    bomb = b"\x91" * 100_000
    assert guarded(bytes, _as_codec(Tagging()))(bomb) == bomb
    with pytest.raises(DecodeError, match="deeper"):
        guarded(lambda body: body, MSGPACK)(bomb)


def _as_codec(codec: Codec) -> Codec:
    return codec


def test_zroute_routes_shows_types_of_a_codec(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zroute routes` shows a route whose type only the user's codec carries."""
    from click.testing import CliRunner

    (tmp_path / "own_codec_app.py").write_text(
        "from tests.messages.test_own_codecs import Foreign, Tagging\n"
        "from zroute import App\n"
        "app = App(codec=Tagging())\n"
        "out = app.publisher('out', Foreign)\n"
        "@app.subscribe('in')\n"
        "def handle(body: Foreign) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(main, ["routes", "own_codec_app:app", "--verbose"])
    assert result.exit_code == 0, result.output
    assert result.output.count("Foreign") == 2
    assert "codec" in result.output


# -- the libraries of the page ------------------------------------------------------------------------------


def page(*titles: str) -> dict[str, Any]:
    """Run the Python of the page, and its blocks with these titles; return the names."""
    names: dict[str, Any] = {"__name__": __name__}
    for block in blocks(PAGE):
        if block.language == "python" and (not block.title or block.title in titles):
            exec(compile("\n" * block.line + block.text, str(PAGE), "exec"), names)
    return names


def delivered(app: App, topic: str, publish: Callable[[], Any]) -> Any:
    """Return what a handler of the app receives."""
    with TestApp(app) as t:
        publish()
        t.advance(0)
        (message,) = t.published(topic)
        assert app.stats.handled == 1
    return message


def test_protobuf() -> None:
    """Messages of protobuf travel in its own format; a wrong class and a bad body are refused."""
    timestamp = pytest.importorskip("google.protobuf.timestamp_pb2")
    names = page()
    message = timestamp.Timestamp(seconds=5)
    arrived = delivered(names["protobuf"], "moments", lambda: names["moments"].publish(message))
    assert arrived == message
    assert type(arrived) is timestamp.Timestamp
    _, encode = body_encoder(timestamp.Timestamp, codec=None, default=names["Protobuf"]())
    with pytest.raises(EncodeError, match="codec 'protobuf'"):
        encode("text")
    with TestApp(names["protobuf"], raise_errors=False) as t:
        t.receive(b"moments", b"\xff\xff")
        assert "DecodeError" in str(t.failures)


def test_fastavro() -> None:
    """Messages of a class travel as Avro; a value that does not fit its schema is refused."""
    pytest.importorskip("fastavro")
    names = page()
    weather, publisher = names["Weather"], names["avro_reports"]
    arrived = delivered(names["avro"], "weather.Oslo", lambda: publisher.publish(weather("Oslo", -3.5)))
    assert arrived == weather("Oslo", -3.5)
    with TestApp(names["avro"], raise_errors=False) as t:
        with pytest.raises(EncodeError, match="codec 'avro'"):
            publisher.publish(weather("Oslo", "cold"))
        t.receive(b"weather.Oslo", b"\x08Os")
        assert "DecodeError" in str(t.failures)


def test_a_numpy_array() -> None:
    """An array keeps its shape and its type; an array of objects, which would be a pickle, is refused."""
    numpy = pytest.importorskip("numpy")
    names = page()
    picture = numpy.arange(12, dtype="uint16").reshape(3, 4)
    app, publisher = names["camera"], names["pictures"]
    arrived = delivered(app, "pictures.door", lambda: publisher.publish(picture, name="door"))
    assert arrived.dtype == picture.dtype
    assert (arrived == picture).all()
    evil = io.BytesIO()
    numpy.save(evil, numpy.array([{}], dtype=object), allow_pickle=True)
    with TestApp(app, raise_errors=False) as t:
        with pytest.raises(EncodeError, match="codec 'npy'"):
            publisher.publish(numpy.array([{}], dtype=object), name="door")
        t.receive(b"pictures.door", evil.getvalue())
        assert "allow_pickle" in str(t.failures)


def test_an_arrow_record_batch() -> None:
    """A record batch arrives with its columns."""
    arrow = pytest.importorskip("pyarrow")
    names = page("arrow.py")
    batch = arrow.record_batch({"city": ["Oslo", "Rome"], "celsius": [-3.5, 21.0]})
    arrived = delivered(names["table"], "batches", lambda: names["batches"].publish(batch))
    assert arrived.equals(batch)


def test_numpy_scalars_in_fields_are_refused_with_the_remedy() -> None:
    """A numpy scalar in a field of a Python type is an error that names what to do."""
    numpy = pytest.importorskip("numpy")
    app = App()
    publisher = app.publisher("q", Quantity)
    with TestApp(app):
        for quantity, said in (
            (Quantity("a", numpy.float64(1.5), 1), r"publish float\(…\) instead"),
            (Quantity("a", numpy.float32(1.5), 1), r"convert the value with \.item\(\)"),
            (Quantity("a", 1.5, numpy.int64(3)), r"convert the value with \.item\(\)"),
            (Quantity(numpy.str_("a"), 1.5, 1), r"publish str\(…\) instead"),
            (Quantity("a", 1.5, numpy.arange(3)), r"convert the array with \.tolist\(\)"),
        ):
            with pytest.raises(EncodeError, match=said):
                publisher.publish(quantity)
        for value in (numpy.int64(3), numpy.float64(1.5)):
            with pytest.raises(EncodeError, match=r"convert the value with \.item\(\)"):
                app.publish("q", {"n": value})
        with pytest.raises(EncodeError, match=r"convert the array with \.tolist\(\)"):
            app.publish("q", [numpy.arange(3)])


@attrs.frozen
class Quantity:
    symbol: str
    price: float
    number: int


# -- bodies of other programs ---------------------------------------------------------------------------------


@attrs.frozen
class Amount:
    wei: Decimal


def test_each_body_of_the_page_has_its_way() -> None:
    """Bodies that are no JSON of RFC 8259 are refused by default, and arrive as the page says."""
    names = page()
    weather, trimmed = names["Weather"], names["Trimmed"]()
    good = b'{"city": "Oslo", "celsius": -3.5}'
    read = body_decoder(weather, stated=None, route=trimmed, default=MSGPACK)
    for body in (good, b"\xef\xbb\xbf" + good, good + b"\0", b"\xef\xbb\xbf" + good + b"\0", good + b"\n"):
        assert read(body) == weather("Oslo", -3.5)
    strict = body_decoder(weather, stated=None, route=None, default=JSON)
    for body in (b"\xef\xbb\xbf" + good, good + b"\0", b"{'city': 'Oslo', 'celsius': -3.5}", b"1.5", b"null"):
        with pytest.raises(Exception, match=r"malformed|Expected"):
            strict(body)
    wei = b'{"wei": 123456789012345678901234567890}'
    assert body_decoder(Amount, stated=None, route=None, default=JSON)(wei) == Amount(
        Decimal("123456789012345678901234567890")
    )
    for body in (pickle.dumps({"t": 1.5}), struct.pack("<d", 1.5)):
        with pytest.raises(Exception, match=r"."):
            body_decoder(dict, stated=None, route=None, default=JSON)(body)
