"""Strict conversion of plain data to objects, for types that msgspec would get wrong."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.messages.kinds import Aliased, Circle, Converted, Drawing, Mixed, Outer, Private, Square
from zroute.errors import SchemaError
from zroute.messages.cattrs_engine import structurer, unstructure


def test_an_object_becomes_data_by_field_names_and_back() -> None:
    """Aliased and private fields travel under their field names."""
    outer = Outer(Private("s"), [Converted(1, ("a",))], {7: Aliased("k", 2)}, (Private("t"), 3))
    data = unstructure(outer)
    assert data["private"] == {"_secret": "s", "open": True}
    assert data["mapped"] == {7: {"kind": "k", "size": 2}}
    assert structurer(Outer, str_keys=False)(data) == outer


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (Private, []),
        (Private, {"_secret": 1}),
        (Private, {"open": True}),
        (list[Private], {"_secret": "s"}),
        (list[Private], "s"),
        (tuple[Private, int], [{"_secret": "s"}]),
        (dict[str, Private], [["a", {"_secret": "s"}]]),
        (Circle | Square, {}),
        (Circle | Square, 3),
        (Circle | Square, {"radius": "3"}),
        (Mixed, 8),
        (Mixed, True),
        (Converted, {"count": "7"}),
        (Private | int, "x"),
    ],
    ids=str,
)
def test_nothing_is_coerced(schema: Any, data: Any) -> None:
    """A value of another type is refused, even if it could be converted."""
    with pytest.raises(Exception):  # noqa: B017, PT011  # msgspec or cattrs, depending on the type
        structurer(schema, str_keys=False)(data)


def test_classes_are_told_apart_by_their_fields() -> None:
    """A union of classes with different fields needs no tag, alone and with other types."""
    structure = structurer(Drawing, str_keys=True)
    drawing = Drawing([Circle(1.0), Square(2.0)], "n")
    assert structure(unstructure(drawing)) == drawing
    either = structurer(Private | int, str_keys=True)
    assert either({"_secret": "s"}) == Private("s")
    assert either(3) == 3


@attrs.define
class Disc:
    radius: float


def test_classes_of_the_same_fields_are_refused() -> None:
    """The error for an ambiguous union says what to do."""
    with pytest.raises(SchemaError, match="use a tag"):
        structurer(Circle | Disc, str_keys=True)
