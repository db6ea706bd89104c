"""Fixtures of the tests with NATS servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats.public import only_public
from tests.nats.servers import NatsServer
from tests.support import PATIENCE
from zroute import App


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ready() and requests wait longer than by default: a busy machine may not run the server for seconds."""
    monkeypatch.setattr(App.ready, "__defaults__", (None, PATIENCE))
    for ask in (App.request, App.request_stream, App.requester):
        monkeypatch.setitem(ask.__kwdefaults__, "timeout", PATIENCE)


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
