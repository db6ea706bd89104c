"""The pytest plugin, in a separate run of pytest, as in a user's project."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from tests.support import PATIENCE


def pytest_run(folder: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Return the output of pytest for ``source`` in an empty project.

    pytest-asyncio is loaded only if the source uses it: without a configured scope of its loop, it warns.
    """
    (folder / "test_mine.py").write_text(source)
    disabled = () if "pytest_asyncio" in source else ("-p", "no:asyncio")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *disabled,
        "-W",
        "error",
        *flags,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def test_the_fixtures_are_there_without_a_line_of_set_up(tmp_path: Path) -> None:
    """test_app enters a TestApp and leaves it after the test; pytest does not collect TestApp."""
    source = """
from zroute import App
from zroute.testing import TestApp

app, log = App(), []

@app.subscribe("a")
def on_a(message: int):
    return message + 1

@app.on_shutdown
def end():
    log.append("stopped")

def test_it_runs(test_app):
    t = test_app(app)
    t.publish("a", 1)
    assert t.results(on_a) == [2]
    assert log == []

def test_it_was_stopped_after_the_test():
    assert log == ["stopped"]

def test_options_and_several_apps(test_app):
    t = test_app(App(), App(), raise_errors=False)
    assert len(t.apps) == 2

def test_an_endpoint_is_free(free_endpoint):
    other = App(pub=free_endpoint)
    assert free_endpoint.startswith("tcp://127.0.0.1:")
"""
    done = pytest_run(tmp_path, source)
    assert "4 passed" in done.stdout, done.stdout


def test_an_unfinished_handler_is_an_error_of_its_test(tmp_path: Path) -> None:
    """An error at the stop of the app is reported for the test that used it."""
    source = """
from twisted.internet.defer import Deferred
from zroute import App

app = App()

@app.subscribe("a")
def on_a(message: int):
    return Deferred()

def test_it(test_app):
    test_app(app).publish("a", 1)
"""
    done = pytest_run(tmp_path, source)
    assert "UnfinishedError: still running when the test ended: on_a(): 1" in done.stdout
    assert "1 passed, 1 error" in done.stdout


def test_a_pytest_without_zroute_in_it_pays_nothing(tmp_path: Path) -> None:
    """Until a fixture is used, the plugin imports neither ZeroMQ nor Twisted nor zroute."""
    source = """
import sys

def test_it():
    assert not {"zmq", "twisted", "zroute.app", "zroute.testing"} & set(sys.modules)
"""
    done = pytest_run(tmp_path, source, "-p", "no:pytest_twisted", "-p", "no:twisted")
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems would refuse the port to the program itself")
def test_a_free_endpoint_belongs_to_its_test(free_endpoint: str) -> None:
    """The system gives the port to no other socket, and ZeroMQ can bind it."""
    port = int(free_endpoint.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        publisher.bind(free_endpoint)
