"""What the tests of sockets are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def sockets() -> Iterator[Any]:
    """`Sockets` of this test's own."""
    from tests.sockets.opened import Sockets  # not above: it imports the reactor, which is not chosen by then

    made = Sockets()
    yield made
    made.close()
