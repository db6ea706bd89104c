"""Fixtures for the tests of zroute.txzmq."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def factory() -> Iterator[Any]:
    """A factory on the reactor of the tests, shut down after the test."""
    from zroute.txzmq import ZmqFactory

    made = ZmqFactory()
    yield made
    made.shutdown()
