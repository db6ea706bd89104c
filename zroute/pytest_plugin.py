"""Fixtures for tests of apps, known to pytest wherever zroute is installed.

Nothing of zroute is imported before a fixture is used: the plugin is loaded in every run of pytest.
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
    """`zroute.testing.TestApp`, entered when it is called and left after the test: ``t = test_app(app)``."""
    from zroute.testing import TestApp

    with ExitStack() as stack:

        def enter(*given: Any, **options: Any) -> TestApp:
            return stack.enter_context(TestApp(*given, **options))

        yield enter


@pytest.fixture
def free_endpoint() -> str:
    """A TCP endpoint of 127.0.0.1 that nobody uses, for tests over real sockets."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"
