"""zroute: typed message handlers for brokerless publish/subscribe.

The public names are imported on first use (PEP 562). ``zroute --help``, and programs that need only the errors,
therefore load neither ZeroMQ nor Twisted. `_HOME` lists these names. Type checkers can't evaluate `_HOME`, and read the
imports above it instead; a test compares the two.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zroute.app import App as App
    from zroute.awaiting import as_awaitable as as_awaitable
    from zroute.declarations.limits import Limits as Limits
    from zroute.declarations.records import RouteInfo as RouteInfo
    from zroute.declarations.routes import Routes as Routes
    from zroute.errors import AppFrozenError as AppFrozenError
    from zroute.errors import BadRequestError as BadRequestError
    from zroute.errors import BusyError as BusyError
    from zroute.errors import DecodeError as DecodeError
    from zroute.errors import DuplicateRouteError as DuplicateRouteError
    from zroute.errors import EncodeError as EncodeError
    from zroute.errors import EndpointError as EndpointError
    from zroute.errors import EnvelopeError as EnvelopeError
    from zroute.errors import ForkedContextError as ForkedContextError
    from zroute.errors import HighWaterMarkError as HighWaterMarkError
    from zroute.errors import JobFailedError as JobFailedError
    from zroute.errors import KeyFileError as KeyFileError
    from zroute.errors import NoHandlerError as NoHandlerError
    from zroute.errors import NoServerError as NoServerError
    from zroute.errors import NotReadyError as NotReadyError
    from zroute.errors import NotRunningError as NotRunningError
    from zroute.errors import PatternError as PatternError
    from zroute.errors import PeerError as PeerError
    from zroute.errors import Reject as Reject
    from zroute.errors import RequestError as RequestError
    from zroute.errors import RequestLostError as RequestLostError
    from zroute.errors import RequestRefused as RequestRefused
    from zroute.errors import RequestRefusedError as RequestRefusedError
    from zroute.errors import RequestTimeoutError as RequestTimeoutError
    from zroute.errors import SchemaError as SchemaError
    from zroute.errors import ServerError as ServerError
    from zroute.errors import SignatureError as SignatureError
    from zroute.errors import TopicError as TopicError
    from zroute.errors import UnknownPeerError as UnknownPeerError
    from zroute.errors import UsageError as UsageError
    from zroute.errors import WrongThreadError as WrongThreadError
    from zroute.errors import ZrouteError as ZrouteError
    from zroute.jobs.queue import JobQueue as JobQueue
    from zroute.messages.codecs import Codec as Codec
    from zroute.messages.frames import Frames as Frames
    from zroute.messages.schema import Name as Name
    from zroute.messages.schema import Stamped as Stamped
    from zroute.messages.topics import Topic as Topic
    from zroute.messages.topics import startswith as startswith
    from zroute.messages.wire import Envelope as Envelope
    from zroute.publishing.headers import WithHeaders as WithHeaders
    from zroute.publishing.history import History as History
    from zroute.publishing.publication import Coalesce as Coalesce
    from zroute.publishing.publication import Publication as Publication
    from zroute.receiving.events import Gap as Gap
    from zroute.requests.client import ReplyStream as ReplyStream
    from zroute.requests.requester import Requester as Requester
    from zroute.runtime.streams import Attached as Attached
    from zroute.runtime.streams import Stream as Stream

_HOME = {
    name: f"zroute.{module}"
    for module, names in {
        "app": "App",
        "awaiting": "as_awaitable",
        "declarations.limits": "Limits",
        "declarations.records": "RouteInfo",
        "declarations.routes": "Routes",
        "errors": """
            AppFrozenError BadRequestError BusyError DecodeError DuplicateRouteError EncodeError
            EndpointError EnvelopeError ForkedContextError HighWaterMarkError JobFailedError KeyFileError NoHandlerError
            NoServerError NotReadyError NotRunningError PatternError PeerError Reject RequestError
            RequestLostError RequestRefused RequestRefusedError RequestTimeoutError SchemaError
            ServerError SignatureError TopicError UnknownPeerError UsageError WrongThreadError
            ZrouteError
        """,
        "jobs.queue": "JobQueue",
        "messages.codecs": "Codec",
        "messages.frames": "Frames",
        "messages.schema": "Name Stamped",
        "messages.topics": "Topic startswith",
        "messages.wire": "Envelope",
        "publishing.headers": "WithHeaders",
        "publishing.history": "History",
        "publishing.publication": "Coalesce Publication",
        "receiving.events": "Gap",
        "requests.client": "ReplyStream",
        "requests.requester": "Requester",
        "runtime.streams": "Attached Stream",
    }.items()
    for name in names.split()
}
"""The module of each public name."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zroute' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
