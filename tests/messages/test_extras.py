"""Types that an app teaches, and numbers that are not finite, in both engines and both codecs."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import attrs
import msgpack
import msgspec
import pytest

from tests.messages.bound import FORMATS
from tests.messages.kinds import Level
from zroute import App, Limits, Stamped
from zroute.errors import DecodeError, EncodeError, SchemaError, SetupError
from zroute.messages.bodies import body_decoder, body_encoder
from zroute.messages.codecs import JSON, MSGPACK, Codec
from zroute.messages.extras import Extras
from zroute.messages.schema import check_types, inspect
from zroute.testing import TestApp


class Symbol(str):
    __slots__ = ()


class Vector:
    """A class without a comparison."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers


@attrs.frozen
class Money:
    """A class that codecs know, taught in another form."""

    cents: int


@attrs.frozen
class Sub(Money):
    """A subclass that is not taught."""

    note: str = ""


@attrs.frozen
class Doc:
    file: Path
    symbol: Symbol
    vectors: list[Vector]
    by_path: dict[Path, int]
    maybe: Path | None = None


@attrs.frozen
class Slow:
    """A class for cattrs."""

    file: Path
    level: Level
    symbol: Symbol
    paths: tuple[Path, ...] = attrs.field(converter=tuple)
    doc: Doc | None = None
    sub: Sub | None = None


TYPES = {
    Path: (str, Path),
    Symbol: (str, Symbol),
    Vector: (lambda vector: list(vector.numbers), lambda numbers: Vector(*numbers)),
    Money: (lambda money: f"{money.cents} ct", lambda text: Money(int(text.removesuffix(" ct")))),
}
DOC = Doc(Path("/a"), Symbol("x"), [Vector(1.5)], {Path("b"): 1}, Path("c"))


def pair(schema: Any, codec: Codec, *, allow_nan: bool = False, types: Any = TYPES) -> tuple[Any, Any]:
    """Return the encoder and the decoder of a type, in an app with extras."""
    extras = Extras(check_types(types), allow_nan)
    _, encode = body_encoder(schema, codec=None, default=codec, extras=extras)
    return encode, body_decoder(schema, stated=codec, route=None, default=codec, extras=extras)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(
    ("schema", "message", "engine"),
    [
        (Path, Path("/a"), "msgspec"),
        (Symbol, Symbol("x"), "msgspec"),
        (list[Path], [Path("a"), Path("b")], "msgspec"),
        (set[Path], {Path("a")}, "msgspec"),
        (Path | None, None, "msgspec"),
        (Stamped[Path], Stamped(Path("a"), 1.0), "msgspec"),
        (Money, Money(5), "cattrs"),
        (dict[str, Money], {"a": Money(5)}, "cattrs"),
        (Sub, Sub(5, "n"), "msgspec"),
        (Slow, Slow(Path("a"), Level.LOW, Symbol("x"), (Path("b"),), sub=Sub(1)), "cattrs"),
    ],
    ids=repr,
)
def test_taught_types_arrive_as_they_were(schema: Any, message: Any, engine: str, codec: Codec) -> None:
    """A taught type arrives equal, and of the same type, wherever it stands in a message."""
    assert inspect(schema, Extras(check_types(TYPES))).engine == engine
    encode, decode = pair(schema, codec)
    arrived = decode(encode(message))
    assert arrived == message
    assert type(arrived) is type(message)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_taught_class_needs_no_comparison(codec: Codec) -> None:
    """Two values are the same if their plain data is."""
    encode, decode = pair(Doc, codec)
    arrived = decode(encode(DOC))
    assert attrs.evolve(arrived, vectors=[]) == attrs.evolve(DOC, vectors=[])
    assert [vector.numbers for vector in arrived.vectors] == [(1.5,)]
    assert type(arrived.symbol) is Symbol


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize("schema", [Doc, Slow])
def test_data_that_is_no_value_of_a_taught_type_is_refused(schema: Any, codec: Codec) -> None:
    """What the function for decoding raises refuses the message."""
    _, decode = pair(schema, codec)
    body = {"file": 3, "symbol": "x", "vectors": [], "by_path": {}, "level": 1, "paths": []}
    with pytest.raises(Exception, match=r"PathLike|str"):
        decode(json.dumps(body).encode() if codec is JSON else msgpack.packb(body))


class Amount:
    """A class whose functions raise errors that say nothing about the data."""

    def __init__(self, value: Decimal) -> None:
        self.value = value


AMOUNT = Extras(check_types({Amount: (lambda amount: str(amount.value), lambda data: Amount(Decimal(data)))}))


@attrs.frozen
class Bill:
    amount: Amount
    level: Level = Level.HIGH


@attrs.frozen
class ConvertedBill:
    """A class that cattrs makes."""

    amount: Amount
    count: int = attrs.field(default=1, converter=int)
    level: Level = Level.HIGH
    others: list[ConvertedBill] = attrs.field(factory=list)


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize(
    ("schema", "data", "says"),
    [
        (Bill, {"amount": "abc"}, ["expected Amount, got 'abc'", "ConversionSyntax", "`$.amount`"]),
        (Bill, {"amount": None}, ["expected Amount, got None", "`$.amount`"]),
        (list[Bill], [{"amount": {}}], ["expected Amount, got {}", "`$[0].amount`"]),
        (ConvertedBill, {"amount": "abc"}, ["ConvertedBill.amount: expected Amount, got 'abc'"]),
        (ConvertedBill, {"amount": "1", "count": "x"}, ["ConvertedBill.count: Expected `int`, got `str`"]),
        (ConvertedBill, {"amount": "1", "level": "x"}, ["ConvertedBill.level: "]),
        (ConvertedBill, {"amount": "1", "others": [{"amount": "1", "count": []}]}, ["ConvertedBill.count: Expected"]),
        (ConvertedBill, {"amount": "1", "others": [5]}, ["ConvertedBill.others: expected a map for ConvertedBill"]),
    ],
    ids=repr,
)
def test_a_refused_value_is_named_with_its_field(schema: Any, data: Any, says: list[str], codec: Codec) -> None:
    """The reason has the field, the expected type and the data, whatever the functions raise."""
    body = json.dumps(data).encode() if codec is JSON else msgpack.packb(data)
    with pytest.raises((DecodeError, msgspec.ValidationError)) as refused:
        body_decoder(schema, stated=codec, route=None, default=codec, extras=AMOUNT)(body)
    for text in says:
        assert text in str(refused.value)


def test_a_value_of_another_type_is_named_in_the_publisher() -> None:
    """Also if the class has converters, where writing fails with the error of a library."""
    _, encode = body_encoder(ConvertedBill, codec=None, default=MSGPACK, extras=AMOUNT)
    with pytest.raises(EncodeError, match=r"ConvertedBill\.level: expected Level, got str: 'high'"):
        encode(ConvertedBill(Amount(Decimal(1)), level="high"))  # type: ignore[arg-type]


def test_what_a_taught_type_may_return() -> None:
    """Data that would arrive as another type, or another value, is refused in the publisher."""
    encode, _ = pair(Path, JSON, types={Path: (lambda path: str(path).encode(), Path)})
    with pytest.raises(EncodeError, match="bytes would arrive as text in untyped JSON"):
        encode(Path("a"))
    encode, _ = pair(Path, JSON, types={Path: (lambda path: path.name, Path)})
    assert encode(Path("a")) == b'"a"'
    encode, _ = pair(list[Path], JSON, types={Path: (str, lambda text: Path(text + "x"))})
    with pytest.raises(EncodeError, match="would arrive as"):
        encode([Path("a")])
    encode, _ = pair(list[Path], JSON, types={Path: (str, str)})
    with pytest.raises(EncodeError, match=r"decode function of App\(types=…\) for Path returned str"):
        encode([Path("a")])
    encode, _ = pair(Doc, JSON)
    with pytest.raises(EncodeError, match="Doc"):
        encode(attrs.evolve(DOC, file="text"))


@pytest.mark.parametrize(
    ("types", "said"),
    [
        ([Path], "expected a dict such as"),
        ({"Path": (str, Path)}, "'Path' is not a class"),
        ({Any: (str, str)}, "Any is not a class"),
        ({Path: str}, "expected two functions"),
        ({Path: (str, Path, str)}, "expected two functions"),
        ({Path: (str, "Path")}, "expected two functions"),
        ({int: (str, int)}, "already support int"),
        ({list: (str, list)}, "already support list"),
        ({object: (str, str)}, "already support object"),
    ],
    ids=repr,
)
def test_types_that_cannot_be_taught_are_refused_with_the_line(types: Any, said: str) -> None:
    """The error of App(types=…) says what was expected, and where."""
    with pytest.raises(SchemaError, match=rf"test_extras\.py:\d+: types.*{said}"):
        App(types=types)


def test_each_app_has_its_own_types() -> None:
    """Two apps may teach one type differently; an app without it refuses the type and says what to do."""
    listed = {Path: (lambda path: [str(path)], lambda items: Path(*items))}
    for app, body in ((App(types={Path: (str, Path)}), b'"a"'), (App(types=listed), b'["a"]')):
        paths = app.publisher("p", Path, codec="json")
        app.add_route(lambda body: None, "p")
        with TestApp(app) as t:
            paths.publish(Path("a"))
            assert t.published("p", bytes) == [body]
    plain = App()
    plain.publisher("p", Path)
    with pytest.raises(SchemaError, match=r"App\(types=\{Path: \(encode, decode\)\}\)"):
        plain.compile()


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_an_app_handles_taught_types_everywhere(codec: str) -> None:
    """Handlers, publishers, app.publish, lists of a batch, T | bytes and the results of handlers take a taught type."""
    app, got = App(codec=codec, types=TYPES), list[Any]()
    typed = app.publisher("typed", Doc)

    @app.subscribe("typed")
    def on_doc(doc: Doc) -> None:
        got.append(doc.file)

    @app.subscribe("path")
    def on_path(path: Path) -> None:
        got.append(path)

    @app.subscribe("either")
    def either(path: list[Path] | bytes) -> None:
        got.append(path)

    @app.subscribe("many", batch=10)
    def many(paths: list[Path]) -> None:
        got.append(paths)

    @app.publisher("path")
    @app.subscribe("asked")
    def asked(name: str) -> Path:
        return Path(name)

    with TestApp(app) as t:
        typed.publish(DOC)
        app.publish("path", Path("one"))
        t.publish("asked", "two")
        t.receive(b"either", b"[1" if codec == "json" else b"\xc1")
        t.publish("many", Path("x"), Path("y"))
        t.advance(0)
        assert Path("one") in t.published("path")
    assert got[0] == Path("/a")
    assert {str(item) for item in got if isinstance(item, Path)} == {"/a", "one", "two"}
    assert [Path("x"), Path("y")] in got
    assert any(isinstance(item, bytes) for item in got)


# -- numbers that are not finite -----------------------------------------------------------------------------

NAN = math.nan


@attrs.frozen
class Reading:
    value: float
    many: list[float]
    label: str | None = None


@attrs.frozen
class Converted:
    value: float = attrs.field(converter=lambda value: value)
    loose: Any = None


@attrs.frozen
class Price:
    amount: Decimal
    by_name: dict[str, Decimal | None] = attrs.field(factory=dict)


@attrs.frozen
class Rounded:
    amount: Decimal = attrs.field(converter=lambda value: value)
    many: list[Decimal] = attrs.field(factory=list)
    prices: dict[Decimal, Price] = attrs.field(factory=dict)


NOT_FINITE = [
    (Decimal, Decimal("NaN")),
    (Decimal, Decimal("sNaN")),
    (Decimal, Decimal("-Infinity")),
    (list[Decimal], [Decimal(1), Decimal("Infinity")]),
    (dict[Decimal, str], {Decimal("Infinity"): "a"}),
    (Decimal | None, Decimal("NaN")),
    (Decimal | list[Decimal] | None, [Decimal("NaN")]),
    (Price, Price(Decimal("NaN"))),
    (Price, Price(Decimal(1), {"a": Decimal("Infinity"), "b": None})),
    (Annotated[Decimal, annotated_types.Gt(0)], Decimal("Infinity")),
    (Rounded, Rounded(Decimal("NaN"))),
    (Rounded, Rounded(Decimal(1), [Decimal("NaN")])),
    (Rounded, Rounded(Decimal(1), [], {Decimal("Infinity"): Price(Decimal(1))})),
    (Rounded, Rounded(Decimal(1), [], {Decimal(1): Price(Decimal("NaN"))})),
    (Stamped[Decimal], Stamped(Decimal("NaN"), 1.0)),
]


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(("schema", "message"), NOT_FINITE, ids=repr)
def test_a_decimal_that_is_not_finite_arrives_only_if_the_app_allows_it(
    schema: Any, message: Any, codec: Codec
) -> None:
    """Such a Decimal is refused like such a float, in the publisher and on receipt."""
    encode, decode = pair(schema, codec, allow_nan=True)
    body = encode(message)
    assert repr(decode(body)) == repr(message)
    encode, decode = pair(schema, codec)
    with pytest.raises(EncodeError) as refused:
        encode(message)
    with pytest.raises(DecodeError, match=r"not finite|must be finite"):
        decode(body)
    if schema in (Decimal, Price, list[Decimal]):
        assert "a Decimal must be finite; allow NaN and infinity with App(limits=Limits(allow_nan=True))" in str(
            refused.value
        )


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_decimal_of_a_pydantic_model_is_finite(codec: Codec) -> None:
    """A model that allows other Decimals needs allow_nan too."""
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", value=(Annotated[Decimal, pydantic.Field(allow_inf_nan=True)], ...))
    encode, decode = pair(model, codec, allow_nan=True)
    body = encode(model(value=Decimal("NaN")))
    assert decode(body).value.is_nan()
    encode, decode = pair(model, codec)
    with pytest.raises(EncodeError):
        encode(model(value=Decimal("NaN")))
    with pytest.raises(DecodeError, match="not finite"):
        decode(body)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (float, NAN),
        (float, -math.inf),
        (Reading, Reading(NAN, [math.inf, -math.inf, 1.0], None)),
        (Reading, Reading(1.0, [NAN], "null")),
        (Converted, Converted(NAN, [math.inf])),
        (Any, {"n": NAN, "inf": [math.inf], "none": None, "text": "NaN null"}),
        (dict[int, float], {1: NAN}),
        (Stamped[float], Stamped(NAN, 1.0)),
        (list[Any], [NAN]),
    ],
    ids=repr,
)
def test_nan_and_infinity_arrive_if_the_app_allows_them(schema: Any, message: Any, codec: Codec) -> None:
    """With allow_nan such floats arrive as they were; without, the error says how to allow them."""
    encode, decode = pair(schema, codec, allow_nan=True)
    assert repr(decode(encode(message))) == repr(message)
    encode, _ = pair(schema, codec)
    with pytest.raises(EncodeError) as refused:
        encode(message)
    if schema in (float, Reading, Any, dict[int, float]):
        assert "allow" in str(refused.value)
        assert "Limits(allow_nan=True)" in str(refused.value)


@pytest.mark.parametrize("codec", FORMATS, ids=repr)
def test_a_model_of_pydantic_keeps_nan_if_the_app_and_the_model_allow_it(codec: Codec) -> None:
    """pydantic writes NaN as null by default, which is refused in the publisher."""
    pydantic = pytest.importorskip("pydantic")
    named = pydantic.ConfigDict(ser_json_inf_nan="constants")
    model = pydantic.create_model("Model", __config__=named, value=(float, ...))
    encode, decode = pair(model, codec, allow_nan=True)
    assert math.isnan(decode(encode(model(value=NAN))).value)
    encode, _ = pair(model, codec)
    with pytest.raises(EncodeError):
        encode(model(value=NAN))


@pytest.mark.parametrize("schema", [dict, Any, Reading])
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_json_of_pythons_json_is_read_if_allowed(schema: Any, text: str) -> None:
    """Python's json writes these by default; they are read, or refused as malformed."""
    body = f'{{"value": {text}, "many": [{text}]}}'.encode()
    _, lenient = pair(schema, JSON, allow_nan=True)
    read = lenient(body)
    assert repr(read["value"] if isinstance(read, dict) else read.value) == repr(float(text))
    _, strict = pair(schema, JSON)
    with pytest.raises(Exception, match="malformed"):
        strict(body)


@pytest.mark.parametrize("body", [b'{"value": "NaN", "many": []}', b'{"value": Nan, "many": []}', b'{"many": [NaN]}'])
def test_other_faults_stay_faults(body: bytes) -> None:
    """allow_nan allows floats only: other types, other names and missing fields are refused."""
    _, decode = pair(Reading, JSON, allow_nan=True)
    with pytest.raises(Exception, match=r"Expected|malformed|missing|Expecting"):
        decode(body)


def test_integers_over_64_bits_stay_refused() -> None:
    """allow_nan does not change the bounds of integers."""
    for schema in (Any, dict[str, int], dict[str, Any]):
        _, decode = pair(schema, JSON, allow_nan=True)
        for body in (b'{"a": 36893488147419103232}', b'{"a": 36893488147419103232, "b": [NaN]}'):
            with pytest.raises((DecodeError, msgspec.ValidationError), match=r"64 bits|Expected `int`"):
                decode(body)
    encode, _ = pair(Any, MSGPACK, allow_nan=True)
    with pytest.raises(EncodeError, match="64 bits"):
        encode([2**70])


def test_a_null_stays_a_null() -> None:
    """A message with None and without NaN is the same JSON as without allow_nan."""
    for message in (Reading(1.0, [], None), Reading(1.5, [0.25, 2.0], 'null \u00fc \U0001f600 "\n')):
        assert pair(Reading, JSON, allow_nan=True)[0](message) == pair(Reading, JSON)[0](message)


def test_allow_nan_is_true_or_false() -> None:
    """Another value is refused with the line."""
    with pytest.raises(SetupError, match=r"test_extras\.py:\d+: allow_nan='yes': expected True or False"):
        App(limits=Limits(allow_nan="yes"))  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_an_app_with_allow_nan_handles_nan(codec: str) -> None:
    """A published NaN reaches the handler, typed and untyped."""
    app, got = App(codec=codec, limits=Limits(allow_nan=True)), list[Any]()
    readings = app.publisher("typed", Reading)

    @app.subscribe("typed")
    def on_reading(reading: Reading) -> None:
        got.append(reading)

    @app.subscribe("untyped")
    def untyped(body: dict) -> None:  # type: ignore[type-arg]
        got.append(body)

    with TestApp(app) as t:
        readings.publish(Reading(NAN, []))
        app.publish("untyped", {"a": NAN})
        t.receive(b"untyped", b'{"a": NaN}')
        t.advance(0)
    assert repr(got) == "[Reading(value=nan, many=[], label=None), {'a': nan}, {'a': nan}]"
