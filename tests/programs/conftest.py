"""Fixtures for the tests of programs: copies of examples on free ports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nats.servers import NatsServer
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
def network(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The network of a program: the ZeroMQ endpoints that it declares, or a NATS server in their place."""
    if request.param == "zeromq":
        yield request.param
        return
    with NatsServer(tmp_path) as server:
        monkeypatch.setenv("ZROUTE_NATS", server.url)
        yield request.param
