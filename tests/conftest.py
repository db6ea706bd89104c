"""What every test runs under."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import ROOT, Way, free_port, has_ipv6

hypothesis.settings.register_profile("times", deadline=None)  # machines are busy: no example fails for its time
hypothesis.settings.load_profile("times")

EXAMPLES = ROOT / "examples"
_PORT = re.compile(r"(?<=//127\.0\.0\.1:)\d+|(?<=\"tcp:)\d+")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Undo what pytest-twisted does to a hypothesis test, which it would do again for each parameter."""
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    inner = handle.inner_test if handle else None
    try:
        return (yield)
    finally:
        if handle:
            handle.inner_test = inner


WAYS = os.environ.get("WAYS", "address name ipv6").split()
"""What is left out here is tested elsewhere: a run on another Python need not try each way to connect."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Run a test once for each way to connect: by address, by host name, by IPv6.

    For tests whose result may depend on the connection: joins, losses, restarts, stops, foreign peers. Tests of what
    a handler does with a message that has arrived (order, batches, failures, malformed messages), of timers, and of
    apps in one process over inproc or ipc take `free_endpoint()` and run once.
    """
    if request.param == "ipv6" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    return Way(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples in which every port is one that is free here."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    ports: dict[str, str] = {}
    for path in (*copy.rglob("*.py"), *copy.rglob("*.tac")):
        path.write_text(_PORT.sub(lambda found: ports.setdefault(found[0], str(free_port())), path.read_text()))
    return copy


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import examples as modules, and forget them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
