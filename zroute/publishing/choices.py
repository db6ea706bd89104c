"""The options of an app that concern publishing."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from zroute.messages.codecs import Codec
from zroute.messages.frames import Frames
from zroute.messages.wire import Wire
from zroute.publishing.headers import PROPAGATED
from zroute.publishing.publication import Coalesce, Overflow, Publication

__all__ = ["Choices"]


@attrs.frozen
class Choices:
    """The app's options for `App.publish`, and the defaults of publications.

    `App` explains each option. ``codec`` also decodes received bodies whose publisher does not name a codec, and
    ``max_message`` also limits received bodies. ``propagates`` contains the names of headers. Those headers are copied
    from a received message to the messages that its handler returns or yields.
    """

    name: str
    codec: Codec
    wire: Wire | Frames
    overflow: Overflow
    coalesce: Coalesce | Literal[False]
    max_message: int
    propagates: tuple[str, ...] = PROPAGATED

    @property
    def multipart(self) -> bool:
        """True if each message is sent in several parts."""
        return self.wire.sends_parts if isinstance(self.wire, Frames) else self.wire == "multipart"

    def coalesces(self, publication: Publication[Any] | None = None) -> Coalesce | None:
        """Return the coalescing settings of ``publication``, or of `App.publish`.

        Return None if each message is sent separately.
        """
        own = publication.coalesce if publication is not None else None
        return (self.coalesce if own is None else own) or None
