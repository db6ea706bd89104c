"""Fixtures for the tests of programs: copies of examples on free ports, and the network of a program."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nats.servers import NatsServer
from tests.programs.terminal import NETWORK, Network
from tests.support import ROOT, free_port

EXAMPLES = ROOT / "examples"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies an example and replaces its ports by free ones."""

    def copy(name: str) -> Path:
        ports: dict[str, str] = {}
        text = (EXAMPLES / f"{name}.py").read_text()
        text = re.sub(r"(?<=tcp://127\.0\.0\.1:)\d+", lambda found: ports.setdefault(found[0], str(free_port())), text)
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    return copy


@pytest.fixture(params=["zeromq", "nats"])
def network(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """The network of a program: the ZeroMQ endpoints that it declares, or a NATS server in their place.

    On NATS, a test runs once: with asyncio's reactor, and not for each way to connect.
    """
    if request.param == "zeromq":
        yield Network(None)
        return
    others = request.node.callspec.params
    if others.get("kind", "asyncio") != "asyncio":
        pytest.skip("NATS needs asyncio's reactor")
    if others.get("way", "address") != "address":
        pytest.skip("NATS connects in one way")
    with NatsServer(tmp_path) as server:
        monkeypatch.setenv(NETWORK, server.url)
        yield Network(server.url)
