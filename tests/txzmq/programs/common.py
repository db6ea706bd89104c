"""What the programs share: ``python FILE MODULE ROLE ENDPOINT…``, where MODULE is txzmq or zroute.txzmq."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

LIBRARY: Any = importlib.import_module(sys.argv[1])
"""txzmq or zroute.txzmq."""

ENDPOINTS = sys.argv[3:]
"""``bind:…`` or ``connect:…``, as many as the role takes."""


def endpoint(number: int = 0) -> Any:
    """A ZmqEndpoint."""
    kind, _, address = ENDPOINTS[number].partition(":")
    return LIBRARY.ZmqEndpoint(getattr(LIBRARY.ZmqEndpointType, kind), address)


def say(*words: object) -> None:
    """One line on the terminal, now."""
    print(*words, flush=True)


def main(**roles: Callable[[Any, Any], object]) -> None:
    """Run the role that was asked for, with the reactor and a factory, until a signal."""
    from twisted.internet import reactor

    factory = LIBRARY.ZmqFactory()
    factory.registerForShutdown()
    kept = roles[sys.argv[2]](reactor, factory)
    say("ready")
    reactor.run()  # type: ignore[attr-defined]
    del kept
