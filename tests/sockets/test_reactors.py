"""Run the tests of this folder and of the service on each of Twisted's reactors."""

from __future__ import annotations

import sys

import pytest

from tests.support import PATIENCE, THOROUGH, Child

MODULES = [
    "tests/sockets/test_connection.py",
    "tests/sockets/test_pair.py",
    "tests/runtime/test_service.py",
    "tests/runtime/test_service_attached.py",
    "tests/runtime/test_service_resources.py",
]
REACTORS = {
    "epoll": "EPollReactor",
    "poll": "PollReactor",
    "select": "SelectReactor",
    "asyncio": "AsyncioSelectorReactor",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REACTORS) if THOROUGH else ["asyncio"])
def test_everything_works_on_this_reactor(name: str) -> None:
    """On each reactor, messages arrive without a stall, and no resources are left."""
    from twisted.internet import reactor

    if type(reactor).__name__ == REACTORS[name]:
        pytest.skip("these tests run under this reactor already")
    if name == "epoll" and not sys.platform.startswith("linux"):
        pytest.skip("epoll is Linux's")
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio"]
    arguments = ["-q", *plugins, "-o", "addopts="]
    with Child("-m", "tests.sockets.on_reactor", name, *arguments, *MODULES, fresh=True) as child:
        code = child.end(None, PATIENCE * 10)  # some eighty tests
    report = "\n".join(child.out[-80:] + child.err[-20:])
    assert code == 0, report
    assert child.out[-1] == f"reactor: {REACTORS[name]}"
    assert " passed" in child.out[-2], report
