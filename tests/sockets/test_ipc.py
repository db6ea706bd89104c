"""Binding an ipc path replaces only an unused socket, never a socket in use or another file."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.running import Mailbox
from tests.sockets.life import KINDS
from tests.sockets.opened import Sockets, bound
from tests.support import PATIENCE, Child
from zroute.endpoints import parse_endpoint
from zroute.errors import EndpointError
from zroute.sockets import ipc
from zroute.txzmq import ZmqEndpoint, ZmqFactory, ZmqPubConnection

BINDS = """
import sys
from twisted.internet import reactor
from zroute.errors import EndpointError
from zroute.sockets import ipc
from zroute.sockets.pubsub import PubConnection
ipc._LOCKING = 60.0  # a busy machine may not run the program with the lock for more than a second
for line in sys.stdin:
    try:
        PubConnection(reactor, linger=0).open("bind:" + line.strip())
        print("bound", flush=True)
    except EndpointError as error:
        print(error, flush=True)
"""

APP = """
from zroute import App
app = App(pub={endpoint!r}, sub="connect:" + {endpoint!r}, name={name!r})
app.publisher("a", every=0.05)(lambda: {name!r})
@app.subscribe("a")
def on_name(name: str): print(name, flush=True)
app.run()
"""


def left_behind(path: Path) -> None:
    """Leave a socket at ``path``, as a program does that has ended."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()


def test_a_second_app_does_not_take_a_path_over(tmp_path: Path) -> None:
    """The second app exits with 5 and one line; the first keeps its path and its old and new subscribers."""
    endpoint = f"ipc://{tmp_path}/feed"
    with Child("-c", APP.format(endpoint=endpoint, name="first")) as first:
        first.line_with("first")
        with Child("-c", APP.format(endpoint=endpoint, name="second")) as second:
            assert second.end(None) == 5
        assert second.err[-1].endswith(
            f"can't bind {endpoint}: this address is in use, here or in another program: close the other socket, or "
            "choose another address "
            "(Address already in use)"
        )
        context = zmq.Context()
        with context.socket(zmq.SUB) as late:
            late.subscribe(b"")
            late.connect(endpoint)
            assert late.poll(PATIENCE * 1000)
        context.term()
        assert first.end(signal.SIGTERM) == 0
    with Child("-c", APP.format(endpoint=endpoint, name="third")) as third:
        third.line_with("third")
        third.end(signal.SIGKILL)
    with Child("-c", APP.format(endpoint=endpoint, name="fourth")) as fourth:
        fourth.line_with("fourth")  # the killed process has left its socket
        assert fourth.end(signal.SIGTERM) == 0


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to nothing", "fifo"])
async def test_what_is_no_socket_stays_where_it_is(sockets: Sockets, tmp_path: Path, kind: str) -> None:
    """A regular file at the path is not removed."""
    path = tmp_path / "mine"
    make: dict[str, Callable[[], Any]] = {
        "file": lambda: path.write_text("my only copy"),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(tmp_path),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
        "fifo": lambda: os.mkfifo(path),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(EndpointError, match=f"can't bind ipc://{path}: the file at this path is not a socket"):
        sockets.pub().open(parse_endpoint(f"ipc://{path}", bind=True))
    assert path.lstat() == before


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_connection_replaces_only_what_nobody_serves(
    sockets: Sockets, tmp_path: Path, kind: str
) -> None:
    """Each socket type replaces an unused socket; a second bind is an error and does not affect the first."""
    path = tmp_path / "s"
    left_behind(path)
    made = [sockets.make(KINDS[kind]) for _ in range(2)]
    made[0].open(f"bind:ipc://{path}")
    serving = path.stat().st_ino
    with pytest.raises(EndpointError, match="this address is in use"):
        made[1].open(f"bind:ipc://{path}")
    assert path.stat().st_ino == serving


@pytest_twisted.ensureDeferred
async def test_a_connection_of_txzmq_takes_no_path_over(tmp_path: Path) -> None:
    """Programs written for txZMQ get libzmq's own exception, as with tcp."""
    path, factory = tmp_path / "s", ZmqFactory()
    left_behind(path)
    first = ZmqPubConnection(factory, ZmqEndpoint("bind", f"ipc://{path}"))
    with pytest.raises(zmq.ZMQError) as caught:
        ZmqPubConnection(factory, ZmqEndpoint("bind", f"ipc://{path}"))
    assert caught.value.errno == errno.EADDRINUSE
    (tmp_path / "file").touch()
    with pytest.raises(zmq.ZMQError) as caught:
        first.addEndpoints([ZmqEndpoint("bind", f"ipc://{tmp_path}/file")])
    assert caught.value.errno == errno.EEXIST
    factory.shutdown()


@pytest_twisted.ensureDeferred
async def test_a_path_can_be_bound_again_as_soon_as_it_is_closed(
    sockets: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that restarts can bind its path, although libzmq closes the old socket later in a thread."""
    monkeypatch.setattr(ipc, "_CLOSING", PATIENCE)  # a busy machine may not run the thread for more than a second
    for _ in range(20):
        publisher = sockets.pub()
        publisher.open(parse_endpoint(f"ipc://{tmp_path}/s", bind=True))
        publisher.unbind(f"ipc://{tmp_path}/s")
        publisher.open(parse_endpoint(f"ipc://{tmp_path}/s", bind=True))
        publisher.close(0)


@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="abstract names are Linux's")
@pytest_twisted.ensureDeferred
async def test_an_abstract_name_is_given_once(sockets: Sockets, tmp_path: Path) -> None:
    """The system itself refuses a second bind of an abstract name, and no file is involved."""
    endpoint = parse_endpoint(f"ipc://@{tmp_path}", bind=True)
    sockets.pub().open(endpoint)
    with pytest.raises(EndpointError, match="this address is in use"):
        sockets.pub().open(endpoint)


@pytest_twisted.ensureDeferred
async def test_a_path_of_the_systems_choice_is_each_time_another(sockets: Sockets) -> None:
    """`ipc://*` gives a new path each time."""
    assert len({bound(sockets.pub(), "ipc://*") for _ in range(3)}) == 3


@pytest_twisted.ensureDeferred
async def test_closing_leaves_the_socket_of_a_successor(sockets: Sockets, tmp_path: Path) -> None:
    """If another library takes the path over, closing leaves its socket in place and in use."""
    endpoint, box = f"ipc://{tmp_path}/s", Mailbox[bytes]()
    first = sockets.pub()
    first.open(parse_endpoint(endpoint, bind=True))
    successor = sockets.raw(zmq.XPUB)
    successor.bind(endpoint)
    first.close(0)
    reader = sockets.sub(box)
    reader.subscribe(b"")
    reader.open(parse_endpoint(endpoint, bind=False))
    assert successor.poll(PATIENCE * 1000)
    assert successor.recv() == b"\1"
    successor.send(b"served")
    assert await box.until(1) == [b"served"]


MAY_NOT_ASK = """
import os, sys
from twisted.internet import reactor
from zroute.sockets.pubsub import PubConnection
publisher = PubConnection(reactor)
if os.geteuid() == 0:
    os.seteuid(65534)
publisher.open(sys.argv[1])
"""


def test_a_socket_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A socket that we have no right to connect to may be in use, so it is not replaced."""
    path = tmp_path / "s"
    left_behind(path)
    path.chmod(0)
    tmp_path.chmod(0o777)
    before = path.stat()
    with Child("-c", MAY_NOT_ASK, f"ipc://{path}") as child:
        assert child.end(None) == 1
        assert any(f"can't bind ipc://{path}: permission denied" in line for line in child.err)
    assert path.stat() == before


def test_one_of_many_that_start_at_once_gets_the_path(tmp_path: Path) -> None:
    """Of many that start at once and find an unused socket, exactly one replaces it; the others fail."""
    rounds, children = 20, [Child("-c", BINDS) for _ in range(4)]
    try:
        for number in range(rounds):
            path = tmp_path / str(number)
            left_behind(path)
            for child in children:
                child.write(f"ipc://{path}\n")
            for child in children:
                child.wait_for(lambda lines, number=number: len(lines) > number)  # type: ignore[misc]
            told = [child.out[number] for child in children]
            assert told.count("bound") == 1, told
            assert sum("this address is in use" in line for line in told) == 3
    finally:
        for child in children:
            child.__exit__()
