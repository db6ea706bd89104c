"""The options of an app that concern publishing."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from zroute.messages.codecs import Codec
from zroute.messages.wire import Wire
from zroute.publishing.publication import Coalesce, Overflow, Publication

__all__ = ["Choices"]


@attrs.frozen
class Choices:
    """The app's options for `App.publish` and for publications without their own.

    `App` explains each option. ``codec`` also decodes received bodies whose publisher does not name a codec, and
    ``max_message`` also limits received bodies.
    """

    name: str
    codec: Codec
    wire: Wire
    overflow: Overflow
    coalesce: Coalesce | Literal[False]
    max_message: int

    def coalesces(self, publication: Publication[Any] | None = None) -> Coalesce | None:
        """Return how messages of ``publication``, or of `App.publish`, are coalesced.

        Return None if each message is sent separately.
        """
        own = publication.coalesce if publication is not None else None
        return (self.coalesce if own is None else own) or None
