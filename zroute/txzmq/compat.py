"""Names that txZMQ's programs and tests import for the difference between Python 2 and 3."""

from __future__ import annotations

__all__ = ["PY3", "binary_string_type", "is_nonstr_iter"]

PY3 = True

binary_string_type = bytes


def is_nonstr_iter(value: object) -> bool:
    """Whether ``value`` can be iterated over and is not text or bytes."""
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
