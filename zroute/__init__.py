"""zroute: decorated, typed handlers on brokerless publish/subscribe.

The public names are looked up when they are first used (PEP 562), so that ``zroute --help`` and whoever
needs only the errors load neither ZeroMQ nor Twisted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zroute.app import App
    from zroute.awaiting import as_awaitable
    from zroute.declarations.limits import Limits
    from zroute.declarations.routes import Routes
    from zroute.errors import (
        AppFrozenError,
        DecodeError,
        DuplicateRouteError,
        EncodeError,
        EndpointError,
        EnvelopeError,
        ForkedContextError,
        HighWaterMarkError,
        NotReadyError,
        NotRunningError,
        PatternError,
        PeerError,
        RequestLostError,
        RequestTimeoutError,
        SchemaError,
        SignatureError,
        TopicError,
        UnknownPeerError,
        UsageError,
        WrongThreadError,
        ZrouteError,
    )
    from zroute.messages.codecs import Codec
    from zroute.messages.schema import Stamped
    from zroute.messages.topics import Topic, startswith
    from zroute.messages.wire import Envelope
    from zroute.publishing.publication import Coalesce, Publication
    from zroute.receiving.events import Gap
    from zroute.runtime.streams import Attached, Stream

_HOME = {
    "App": "zroute.app",
    "AppFrozenError": "zroute.errors",
    "Attached": "zroute.runtime.streams",
    "Coalesce": "zroute.publishing.publication",
    "Codec": "zroute.messages.codecs",
    "DecodeError": "zroute.errors",
    "DuplicateRouteError": "zroute.errors",
    "EncodeError": "zroute.errors",
    "EndpointError": "zroute.errors",
    "Envelope": "zroute.messages.wire",
    "EnvelopeError": "zroute.errors",
    "ForkedContextError": "zroute.errors",
    "Gap": "zroute.receiving.events",
    "HighWaterMarkError": "zroute.errors",
    "Limits": "zroute.declarations.limits",
    "NotReadyError": "zroute.errors",
    "NotRunningError": "zroute.errors",
    "PatternError": "zroute.errors",
    "PeerError": "zroute.errors",
    "Publication": "zroute.publishing.publication",
    "RequestLostError": "zroute.errors",
    "RequestTimeoutError": "zroute.errors",
    "Routes": "zroute.declarations.routes",
    "SchemaError": "zroute.errors",
    "SignatureError": "zroute.errors",
    "Stamped": "zroute.messages.schema",
    "Stream": "zroute.runtime.streams",
    "Topic": "zroute.messages.topics",
    "TopicError": "zroute.errors",
    "UnknownPeerError": "zroute.errors",
    "UsageError": "zroute.errors",
    "WrongThreadError": "zroute.errors",
    "ZrouteError": "zroute.errors",
    "as_awaitable": "zroute.awaiting",
    "startswith": "zroute.messages.topics",
}

__all__ = [
    "App",
    "AppFrozenError",
    "Attached",
    "Coalesce",
    "Codec",
    "DecodeError",
    "DuplicateRouteError",
    "EncodeError",
    "EndpointError",
    "Envelope",
    "EnvelopeError",
    "ForkedContextError",
    "Gap",
    "HighWaterMarkError",
    "Limits",
    "NotReadyError",
    "NotRunningError",
    "PatternError",
    "PeerError",
    "Publication",
    "RequestLostError",
    "RequestTimeoutError",
    "Routes",
    "SchemaError",
    "SignatureError",
    "Stamped",
    "Stream",
    "Topic",
    "TopicError",
    "UnknownPeerError",
    "UsageError",
    "WrongThreadError",
    "ZrouteError",
    "as_awaitable",
    "startswith",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zroute' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
