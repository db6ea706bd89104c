"""Names of publishers: unique, and equal in the next run."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.support import Child
from zroute.endpoints import Endpoint, parse_endpoints
from zroute.options import MAX_TOPIC
from zroute.publishing.instances import Instance, _address, publisher_name

HOST = socket.gethostname()
linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")

HOLDER = """
import os, sys
from zroute.publishing.instances import Instance
instance = Instance(sys.argv[1])
print(instance, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def app() -> str:
    """Return a name that no other app on this machine has."""
    return f"sensor-{secrets.token_hex(8)}"


@contextmanager
def numbered(app: str, *numbers: str) -> Iterator[list[Instance]]:
    """Hold instances with these numbers."""
    instances = [Instance(app) for _ in numbers]
    try:
        assert [str(each) for each in instances] == list(numbers)
        yield instances
    finally:
        for each in instances:
            each.release()


@linux
def test_the_lowest_free_number_is_taken(app: str) -> None:
    """Two runs in one process differ; the next run reuses the number of an ended run."""
    with numbered(app, "#1", "#2", "#3") as (_, second, _):
        with numbered(f"{app}x", "#1"):
            second.release()
            second.release()
        with numbered(app, "#2", "#4"):
            pass


@linux
def test_the_number_of_a_process_that_was_killed_is_free(app: str) -> None:
    """A number is exclusive until its process ends, even by SIGKILL."""
    for _ in range(2):
        with Child("-c", HOLDER, app) as child:
            child.line_with("#1")
            with numbered(app, "#2"):
                child.process.kill()
                child.process.wait()
    with numbered(app, "#1"):
        pass


@linux
def test_another_program_that_was_started_does_not_hold_the_number(app: str) -> None:
    """A child process with all descriptors of its parent does not keep the number."""
    with numbered(app, "#1"):
        program = [sys.executable, "-c", "print('here', flush=True); input()"]
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"  # the kernel closes descriptors during exec
        with numbered(app, "#1"):
            pass
    finally:
        child.communicate(b"\n")


@linux
def test_a_forked_child_does_not_hold_the_number_and_takes_one_of_its_own(app: str) -> None:
    """A forked child does not keep the number of its parent, and takes its own."""
    program = HOLDER + (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print('child', Instance(sys.argv[1]), flush=True)\n"
        "    sys.stdin.readline()\n"
        "    os._exit(0)\n"
        "sys.stdin.readline()\n"
    )
    with Child("-c", program, app) as parent:
        parent.line_with("#1")
        parent.write("fork\n")
        parent.line_with("child #2")
        parent.process.kill()
        parent.process.wait()
        with numbered(app, "#1"):
            parent.write("end\n")


def test_without_numbers_the_process_identifies_a_run(app: str) -> None:
    """Without abstract sockets the name has the pid, and two runs in one process differ."""
    first, second = Instance(app, 0), Instance(app, 0)
    other = Instance(f"{app}x", 0)
    assert [str(first), str(second)] == [f"pid {os.getpid()}", f"pid {os.getpid()}.2"]
    assert str(other) == str(first)
    first.release()
    third = Instance(app, 0)
    assert str(third) == f"pid {os.getpid()}"
    for each in (second, third, other):
        each.release()


@linux
def test_when_all_numbers_are_taken_the_process_identifies_a_run(app: str) -> None:
    """Beyond the maximum of numbers, the name has the pid."""
    with numbered(app, "#1", "#2"):
        further = Instance(app, 2)
        assert str(further) == f"pid {os.getpid()}"
        further.release()


def endpoints(*texts: str) -> tuple[Endpoint, ...]:
    """Return the endpoints of an app."""
    return parse_endpoints(texts, bind=True)


@pytest.mark.parametrize(
    ("given", "bound", "name"),
    [
        (["tcp://127.0.0.1:5555"], ["tcp://127.0.0.1:5555"], "tcp://127.0.0.1:5555"),
        (["tcp://127.0.0.1:5555", "connect:tcp://sink:1"], ["tcp://127.0.0.1:5555"], "tcp://127.0.0.1:5555"),
        (["ipc:///run/a", "inproc://a"], ["ipc:///run/a", "inproc://a"], "ipc:///run/a, inproc://a"),
        (["inproc://a"], ["inproc://a"], "inproc://a"),
    ],
)
def test_an_app_that_binds_is_known_by_its_addresses(app: str, given: list[str], bound: list[str], name: str) -> None:
    """A publisher with bound addresses needs no number."""
    assert publisher_name(app, endpoints(*given), bound) == (f"{app}@{HOST} {name}", None)


def test_an_app_that_only_connects_inside_its_process_has_no_name(app: str) -> None:
    """A publisher that only connects to inproc has no name."""
    assert publisher_name(app, endpoints("connect:inproc://a"), []) == ("", None)


@linux
@pytest.mark.parametrize("given", [["connect:tcp://sink:5555"], ["inproc://a", "connect:ipc:///run/a"]])
def test_an_app_that_connects_has_a_number(app: str, given: list[str]) -> None:
    """A publisher that connects has a number, even if it also binds inproc."""
    bound = [endpoint.address for endpoint in endpoints(*given) if endpoint.bind]
    name, instance = publisher_name(app, endpoints(*given), bound)
    assert instance is not None
    instance.release()
    assert name == f"{app}@{HOST} #1"


@linux
def test_a_long_name_is_cut_before_its_number() -> None:
    """A long app name is shortened so that the identity fits the wire."""
    long = f"{secrets.token_hex(8)}{'ü' * 300}"
    made = [publisher_name(long, endpoints("connect:tcp://sink:1"), []) for _ in range(2)]
    for _, instance in made:
        assert instance is not None
        instance.release()
    names = [name for name, _ in made]
    assert [name.rpartition("@")[2] for name in names] == [f"{HOST} #1", f"{HOST} #2"]
    assert all(len(name.encode()) <= MAX_TOPIC for name in names)


@linux
def test_nothing_can_be_sent_to_the_socket_that_holds_a_number(app: str) -> None:
    """The socket of a number refuses connections."""
    with (
        numbered(app, "#1"),
        closing(socket.socket(socket.AF_UNIX)) as stranger,
        pytest.raises(ConnectionRefusedError),
    ):
        stranger.connect(_address(app, 1))
