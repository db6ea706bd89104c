"""Fixtures for the tests of sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def sockets() -> Iterator[Any]:
    """The `Sockets` of this test."""
    from tests.sockets.opened import Sockets  # not above: it imports the reactor, which is not installed at that time

    made = Sockets()
    yield made
    made.close()
