"""Limits: how much peers may ask of an app."""

from __future__ import annotations

from typing import Any

import attrs

from zroute.errors import SignatureError
from zroute.options import MAX_SUBSCRIPTION_BYTES, MAX_SUBSCRIPTION_BYTES_LEAST

__all__ = ["DEFAULT_LIMITS", "Limits", "check_limits"]


@attrs.frozen(kw_only=True)
class Limits:
    """How much peers may ask of an app: `App(limits=Limits(…))`. Other values are refused by the app.

    Attributes:
        max_subscription_bytes: Bytes of the live subscriptions that reach a publisher over one connection (4,096 or
            more; default 1 MiB, which is 50,000 subscriptions of 20 bytes). Each counts as at least 20 bytes. Over it
            the publisher cuts the connection and logs a warning; the subscriber logs one too, and connects again
            less and less often, at last every 30 seconds. All subscribers behind a proxy share one connection.
    """

    max_subscription_bytes: int = MAX_SUBSCRIPTION_BYTES


DEFAULT_LIMITS = Limits()


def check_limits(limits: Any, where: str) -> Limits:
    """Return ``limits``. Raises SignatureError if they are none, or if one is out of range; ``where`` is file:line."""
    if not isinstance(limits, Limits):
        raise SignatureError(f"limits={limits!r}: Limits(…)", parameter="limits", where=where)
    most = limits.max_subscription_bytes
    if type(most) is not int or most < MAX_SUBSCRIPTION_BYTES_LEAST:
        raise SignatureError(
            f"max_subscription_bytes={most!r}: a number of bytes, {MAX_SUBSCRIPTION_BYTES_LEAST:,} or more",
            parameter="max_subscription_bytes",
            where=where,
        )
    return limits
