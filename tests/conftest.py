"""The environment of all tests."""

from __future__ import annotations

import compileall
import faulthandler
import gc
import importlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.interpreters import has_template, template
from tests.marks import marks_of
from tests.support import ROOT, THOROUGH, Way, end_at_once, free_port, has_ipv6, heed_interrupts

# No deadline: an example must not fail because the machine is busy.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=15)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=100)
hypothesis.settings.load_profile("thorough" if THOROUGH else "quick")

ALL_WAYS = ("address", "name", "ipv6")
EXAMPLES = ROOT / "examples"
_PORT = re.compile(r"(?<=//127\.0\.0\.1:)\d+|(?<=\"tcp:)\d+")


_HANGS_AFTER = 900.0
"""The time in seconds after which a test hangs. The slowest one takes three minutes on two busy cores."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepare signals, and compile the modules that many child processes import, even if bytecode is forbidden."""
    heed_interrupts()
    # A copy of the descriptor, because pytest redirects the original while a test runs. After the stacks of all
    # threads, the signal ends the process, even if it waits in a C function that ignores Python's signals.
    faulthandler.register(signal.SIGALRM, os.fdopen(os.dup(2), "w"), all_threads=True, chain=True)
    if not hasattr(config, "workerinput"):
        for folder in ("zroute", "tests", "benchmarks", "chaos"):
            compileall.compile_dir(ROOT / folder, quiet=2)


def pytest_sessionstart() -> None:
    """End at once on SIGTERM, with all child processes.

    Twisted would stop the reactor instead, and the other tests would fail.
    """
    from twisted.internet import reactor  # imported here, because pytest-twisted chooses the reactor

    reactor.callWhenRunning(signal.signal, signal.SIGTERM, end_at_once)  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the process if a test hangs, so that a run always ends, and names the test."""
    signal.setitimer(signal.ITIMER_REAL, _HANGS_AFTER)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by the names their code uses.

    Some variants with other ways to connect are left out. The quick profile also leaves out slow tests, unless the
    command names files or marks.
    """
    # The options of this run are not those of runs that a test starts: with `--cov`, each of these would also take the
    # data files of this run, and judge a coverage of its own. This hook runs only in processes that run tests, so
    # workers that start later still get the options.
    os.environ.pop("PYTEST_ADDOPTS", None)
    left_out: set[pytest.Item] = set()
    first: dict[str, dict[str, object]] = {}
    no_slow = not THOROUGH and runs_whole_suite(config)
    for item in [item for item in items if isinstance(item, pytest.Function)]:
        for mark in marks_of(item):
            item.add_marker(mark)
        if _repeats_a_way(item, first) or (no_slow and item.get_closest_marker("slow")):
            left_out.add(item)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _repeats_a_way(item: pytest.Function, first: dict[str, dict[str, object]]) -> bool:
    """Return True for a variant of a test whose way to connect is tested by another variant.

    The quick profile uses one way. The thorough profile uses the other ways only with the first values of the test's
    other parameters: what these change does not depend on the way, and the whole would take minutes longer. ``first``
    keeps these values.
    """
    params = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    if params.pop("way", None) not in ALL_WAYS:
        return False
    name = item.nodeid.partition("[")[0]
    is_first_way = item.callspec.params["way"] == ALL_WAYS[0]
    return not is_first_way and (not THOROUGH or first.setdefault(name, params) != params)


def runs_whole_suite(config: pytest.Config) -> bool:
    """Return True if the command names no files and no marks.

    A worker of pytest-xdist uses the answer of its controller.
    """
    if hasattr(config, "workerinput"):
        return bool(config.workerinput["runs_whole_suite"])
    return config.args_source == config.ArgsSource.TESTPATHS and not config.option.markexpr


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the command to a worker of pytest-xdist, which sees other arguments."""
    node.workerinput["runs_whole_suite"] = runs_whole_suite(node.config)


def pytest_collection_finish() -> None:
    """Exclude existing objects from garbage collection, which some tests run hundreds of times."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """End the process that programs are forked from."""
    if has_template():
        template().end()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Undo pytest-twisted's wrapper of a hypothesis test.

    Without this, the wrapper would be added again for each parameter.
    """
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    inner = handle.inner_test if handle else None
    try:
        return (yield)
    finally:
        if handle:
            handle.inner_test = inner


@pytest.fixture(params=ALL_WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Run a test once for each way to connect: by address, by host name, by IPv6.

    The quick profile uses only the first way; see also `_repeats_a_way`. Use this fixture for tests whose result may
    depend on the connection: joins, losses, restarts, stops and foreign peers. Other tests use `free_endpoint()` and
    run once: tests of handlers (order, batches, failures, malformed messages), of timers, and of apps in one process
    over inproc or ipc.
    """
    if request.param == "ipv6" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    return Way(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples with free ports."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    ports: dict[str, str] = {}
    for path in (*copy.rglob("*.py"), *copy.rglob("*.tac")):
        path.write_text(_PORT.sub(lambda found: ports.setdefault(found[0], str(free_port())), path.read_text()))
    return copy


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import examples as modules, and remove them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
