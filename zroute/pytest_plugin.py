"""Pytest fixtures for tests of apps, available wherever zroute is installed.

Pytest loads this plugin in every run, so it imports zroute only when a fixture is used.
"""

from __future__ import annotations

import socket
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
def free_endpoint() -> str:
    """A free TCP endpoint on 127.0.0.1, for tests with real sockets."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"
