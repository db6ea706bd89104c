"""The values that an app carries in addition to those that the codecs support.

`App(types=…)` registers types that no built-in codec supports, and `Limits(allow_nan=True)` allows floats and Decimals
that are not finite. Both apply to msgpack and JSON. The additional values also work if a user's own codec calls a
built-in codec, because its ``encoder`` and ``decoder`` methods run while the app's extras are `current`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import attrs
import msgspec

__all__ = ["NO_EXTRAS", "Extras", "Taught", "current", "is_built"]


class Taught(NamedTuple):
    """The two functions that convert values of a registered type.

    Attributes:
        encode: A function that converts a value of the type to plain data, which an untyped message may contain.
        decode: A function that converts plain data back to a value. It may raise any exception if the data is invalid.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


@attrs.frozen(eq=False)
class Extras:
    """The additional values of one app.

    Attributes:
        types: The registered types.
        allow_nan: True to allow NaN and infinity.
        known: The cached results of `inspect`, by type. ``NO_EXTRAS.known`` holds the results for types that need no
            extras.
        formats: The built-in codecs with these extras, by name.
    """

    types: Mapping[type, Taught] = attrs.field(factory=dict)
    allow_nan: bool = False
    known: dict[Hashable, Any] = attrs.field(factory=dict)
    formats: dict[str, Any] = attrs.field(factory=dict)

    def kind_of(self, kind: type) -> type | None:
        """Return the registered type that handles instances of ``kind``, or None.

        A registered type also handles its subclasses, except those that the codecs support themselves.
        """
        found = next((base for base in kind.__mro__ if base in self.types), None)
        return None if found is not None and found is not kind and is_built(kind) else found

    def decode(self, kind: type, data: Any) -> Any:
        """Return the value of the registered type ``kind`` from its plain data.

        msgspec calls this method as its ``dec_hook``.
        """
        if kind not in self.types:
            # With this error, msgspec reports that it does not support the type.
            raise NotImplementedError
        try:
            value = self.types[kind].decode(data)
        except Exception as error:  # a ValueError, to which msgspec adds the field
            raise ValueError(
                f"expected {kind.__name__}, got {reprlib.repr(data)} ({type(error).__name__}: {error!s:.200})"
            ) from error
        if not isinstance(value, kind):
            raise TypeError(f"the decode function of App(types=…) for {kind.__name__} returned {type(value).__name__}")
        return value

    @contextmanager
    def used(self) -> Iterator[None]:
        """Make these extras `current` inside a ``with`` block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


NO_EXTRAS = Extras()
"""The extras of an app without additional values."""

_current: ContextVar[Extras] = ContextVar("zroute.extras", default=NO_EXTRAS)


def current() -> Extras:
    """Return the extras of the app that is calling a method of a user's codec.

    Outside such a call, return `NO_EXTRAS`.
    """
    return _current.get()


def is_built(kind: type) -> bool:
    """Return True if msgspec creates values of ``kind`` itself, without a hook."""
    try:
        return not isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType)
    except Exception:  # msgspec refuses the class
        return True
