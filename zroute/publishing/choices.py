"""What an app chose for all that it publishes."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from zroute.messages.codecs import Codec
from zroute.messages.wire import Wire
from zroute.publishing.publication import Coalesce, Overflow, Publication

__all__ = ["Choices"]


@attrs.frozen
class Choices:
    """What holds for each publication of an app that says nothing else, and for `App.publish`; see `App`.

    ``codec`` is also what bodies are read with whose publisher does not say it, and ``max_message`` bounds both ways.
    """

    name: str
    codec: Codec
    wire: Wire
    overflow: Overflow
    coalesce: Coalesce | Literal[False]
    max_message: int

    def coalesces(self, publication: Publication[Any] | None = None) -> Coalesce | None:
        """How messages of ``publication``, or those of `publish`, travel together; None where each travels alone."""
        own = publication.coalesce if publication is not None else None
        return (self.coalesce if own is None else own) or None
