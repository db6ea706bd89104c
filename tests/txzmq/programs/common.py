"""The common parts of the programs.

Usage: ``python FILE MODULE ROLE ENDPOINT…``. MODULE is txzmq or zroute.txzmq.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

LIBRARY: Any = importlib.import_module(sys.argv[1])
"""The imported module: txzmq or zroute.txzmq."""

ENDPOINTS = sys.argv[3:]
"""The endpoints of the role: ``bind:…`` or ``connect:…``."""


def endpoint(number: int = 0) -> Any:
    """Return a ZmqEndpoint."""
    kind, _, address = ENDPOINTS[number].partition(":")
    return LIBRARY.ZmqEndpoint(getattr(LIBRARY.ZmqEndpointType, kind), address)


def say(*words: object) -> None:
    """Print one line and flush it."""
    print(*words, flush=True)


def main(**roles: Callable[[Any, Any], object]) -> None:
    """Run a role with the reactor and a factory until a signal."""
    from twisted.internet import reactor

    factory = LIBRARY.ZmqFactory()
    factory.registerForShutdown()
    kept = roles[sys.argv[2]](reactor, factory)
    say("ready")
    reactor.run()  # type: ignore[attr-defined]
    del kept
