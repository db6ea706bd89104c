"""What every test runs under."""

from __future__ import annotations

import compileall
import gc
import importlib
import re
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.marks import marks_of
from tests.support import ROOT, THOROUGH, Way, end_at_once, free_port, has_ipv6

# Machines are busy: no example fails for the time that it takes.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=15)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=100)
hypothesis.settings.load_profile("thorough" if THOROUGH else "quick")

ALL_WAYS = ("address", "name", "ipv6")
WAYS = ALL_WAYS if THOROUGH else ALL_WAYS[:1]
OTHER_WAYS = ALL_WAYS[len(WAYS) :]
EXAMPLES = ROOT / "examples"
_PORT = re.compile(r"(?<=//127\.0\.0\.1:)\d+|(?<=\"tcp:)\d+")


def pytest_configure(config: pytest.Config) -> None:
    """Compile once what many child processes import, also where they may write no bytecode."""
    if not hasattr(config, "workerinput"):
        for folder in ("zroute", "tests", "benchmarks", "chaos"):
            compileall.compile_dir(ROOT / folder, quiet=2)


def pytest_sessionstart() -> None:
    """End at once by SIGTERM, with the children: Twisted would stop the reactor, and the other tests would fail."""
    from twisted.internet import reactor  # not above: pytest-twisted chooses it

    reactor.callWhenRunning(signal.signal, signal.SIGTERM, end_at_once)  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what their code uses; the quick profile leaves out slow tests and other ways to connect.

    Slow tests run under the quick profile too if the command names files or marks.
    """
    left_out: set[pytest.Item] = set()
    no_slow = not THOROUGH and runs_whole_suite(config)
    for item in [item for item in items if isinstance(item, pytest.Function)]:
        for mark in marks_of(item):
            item.add_marker(mark)
        other_way = hasattr(item, "callspec") and item.callspec.params.get("way") in OTHER_WAYS
        if other_way or (no_slow and item.get_closest_marker("slow")):
            left_out.add(item)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def runs_whole_suite(config: pytest.Config) -> bool:
    """Return True if the command names no files and no marks. A worker of pytest-xdist asks its controller."""
    if hasattr(config, "workerinput"):
        return bool(config.workerinput["runs_whole_suite"])
    return config.args_source == config.ArgsSource.TESTPATHS and not config.option.markexpr


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist, which sees other arguments, what the command was."""
    node.workerinput["runs_whole_suite"] = runs_whole_suite(node.config)


def pytest_collection_finish() -> None:
    """Take what was made by now out of the garbage collector's way: some tests collect hundreds of times."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Run a test once for each way to connect: by address, by host name, by IPv6. The quick profile has the first.

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
