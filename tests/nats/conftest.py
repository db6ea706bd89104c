"""Fixtures of the tests with NATS servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats.public import only_public
from tests.nats.servers import NatsServer
from tests.patience import wait_longer


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that give no timeout wait longer than by default."""
    wait_longer(monkeypatch)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without authentication."""
    with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture(params=[True, False], ids=["direct", "public"])
def direct(request: pytest.FixtureRequest) -> bool:
    """Whether a client uses zroute's parser, or only the public functions of nats-py."""
    return bool(request.param)


@pytest.fixture
def both_ways(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the apps of a test twice: with zroute's parser, and with only the public functions of nats-py."""
    if not direct:
        only_public(monkeypatch)
