"""Names that programs and tests of txZMQ import to support Python 2 and 3."""

from __future__ import annotations

__all__ = ["PY3", "binary_string_type", "is_nonstr_iter"]

PY3 = True

binary_string_type = bytes


def is_nonstr_iter(value: object) -> bool:
    """Return True if ``value`` is iterable, and neither text nor bytes."""
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
