"""Pytest fixtures for tests of apps, available wherever zroute is installed.

Pytest loads this plugin in every run, so it imports zroute only when a fixture is used.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zroute.testing import TestApp

__all__ = ["free_endpoint", "test_app"]


@pytest.fixture(name="test_app")
def test_app() -> Iterator[Callable[..., TestApp]]:
    """A function that starts a `zroute.testing.TestApp`, which ends after the test.

    The function takes the arguments of `TestApp`:

        def test_alert(test_app):
            t = test_app(app)
            t.publish("stocks.AAPL", Quote("AAPL", 1200.0, 5))
            assert t.published("alerts.>") == [Alert("AAPL at 1200.0")]
    """
    from zroute.testing import TestApp

    with ExitStack() as stack:

        def enter(*given: Any, **options: Any) -> TestApp:
            return stack.enter_context(TestApp(*given, **options))

        yield enter


@pytest.fixture
def free_endpoint() -> Iterator[str]:
    """A free TCP endpoint on 127.0.0.1, for tests with real sockets.

    On Linux, no test that runs at the same time gets the same endpoint. There, a server that binds it needs the option
    SO_REUSEADDR, which those of ZeroMQ, Twisted, asyncio and ``http.server`` set.
    """
    with socket.socket() as held:
        # A bound socket keeps the port: Linux does not choose it for another socket. Programs can bind the port
        # if their sockets have SO_REUSEADDR too, as those of ZeroMQ and Twisted do. Other systems would refuse that.
        if sys.platform == "linux":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield f"tcp://127.0.0.1:{port}"
