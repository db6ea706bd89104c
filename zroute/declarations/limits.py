"""Limits on the resources that peers may use in an app."""

from __future__ import annotations

from typing import Any

import attrs

from zroute.errors import SignatureError
from zroute.options import MAX_SUBSCRIPTION_BYTES, MAX_SUBSCRIPTION_BYTES_LEAST

__all__ = ["DEFAULT_LIMITS", "Limits", "check_limits"]


@attrs.frozen(kw_only=True)
class Limits:
    """Limits on the resources that peers may use, set as `App(limits=Limits(…))`.

    The app checks the values and raises SignatureError for a value out of range.

    Example:
        ```python
        app = App(pub="tcp://0.0.0.0:5556", limits=Limits(max_subscription_bytes=64_000))
        ```

    Attributes:
        max_subscription_bytes: The maximum size in bytes of the active subscriptions on one connection to a publisher
            (4,096 or more; default 1 MiB, enough for 50,000 subscriptions of 20 bytes). Each subscription counts as
            at least 20 bytes. Beyond the limit the publisher closes the connection and logs a warning. The subscriber
            logs a warning too and reconnects with growing delays of up to 30 seconds. All subscribers behind a proxy
            share one connection.
    """

    max_subscription_bytes: int = MAX_SUBSCRIPTION_BYTES


DEFAULT_LIMITS = Limits()


def check_limits(limits: Any, where: str) -> Limits:
    """Return ``limits`` unchanged if they are valid.

    ``where`` is the user's line (``file:line``), for the error.

    Raises:
        SignatureError: ``limits`` is not a `Limits`, or one of its values is out of range.
    """
    if not isinstance(limits, Limits):
        raise SignatureError(f"limits={limits!r}: expected Limits(…)", parameter="limits", where=where)
    most = limits.max_subscription_bytes
    if type(most) is not int or most < MAX_SUBSCRIPTION_BYTES_LEAST:
        raise SignatureError(
            f"max_subscription_bytes={most!r}: expected a number of bytes, {MAX_SUBSCRIPTION_BYTES_LEAST:,} or more",
            parameter="max_subscription_bytes",
            where=where,
        )
    return limits
