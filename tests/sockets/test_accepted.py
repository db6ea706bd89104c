"""The limit of accepted connections: which connection is closed, and that no lack of descriptors spins."""

from __future__ import annotations

import errno
import json
import os
import resource
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.crowd import run
from tests.support import Child
from zroute.sockets import accepted
from zroute.sockets.accepted import AcceptedConnections
from zroute.sockets.descriptors import Identity

DESCRIPTORS = 80
MOST = 60
HALF_OPEN = 15


class Listener:
    """A socket that notes which connections are closed, and reports their ends unless ``late`` is True."""

    encrypts = False
    late = False

    def __init__(self, connections: AcceptedConnections) -> None:
        self._connections = connections
        self.refused: list[int] = []
        self.reasons: list[str] = []

    def refuse(self, id: int, reason: str, remedy: str) -> None:
        """Note the connection."""
        self.refused.append(id)
        self.reasons.append(reason)
        if not self.late:
            self._connections.ended(self, (id,))


class Kernel:
    """The state of connections as the system would tell it, by descriptor."""

    def __init__(self) -> None:
        self.received: dict[int, int] = {}
        self.gone: set[int] = set()


def identity(fd: int, host: str = "10.0.0.1") -> Identity:
    """Return the identity of a tcp connection."""
    return Identity(1, fd, ("10.0.0.9", 5555), (host, 40_000 + fd))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The system, which has `DESCRIPTORS` descriptors."""
    made = Kernel()
    monkeypatch.setattr(accepted, "_descriptors", lambda: DESCRIPTORS)
    monkeypatch.setattr(accepted, "bytes_received", lambda fd, _: made.received.get(fd, 0))
    monkeypatch.setattr(accepted, "is_open", lambda fd, _: fd not in made.gone)
    return made


@pytest.fixture
def connections() -> Iterator[AcceptedConnections]:
    """The connections of a process with one listening socket."""
    made = AcceptedConnections()
    made.begin(None)
    yield made
    for fd in made._spare:
        os.close(fd)


def fill(connections: AcceptedConnections, listener: Listener, ids: range, now: float = 0.0) -> None:
    """Accept connections whose descriptors are their ids."""
    for id in ids:
        connections.admit(listener, id, id, identity(id), now)


# -- which connection is closed ----------------------------------------------------------------------------


def test_the_oldest_half_open_connection_is_closed_first(connections: AcceptedConnections, kernel: Kernel) -> None:
    """At most a quarter of the connections may be in their handshake."""
    listener = Listener(connections)
    fill(connections, listener, range(HALF_OPEN + 3))
    assert listener.refused == [0, 1, 2]
    assert "15 connections are in their handshake" in listener.reasons[0]


def test_a_connection_that_talks_is_never_closed_for_a_newer_one(
    connections: AcceptedConnections, kernel: Kernel
) -> None:
    """Half-open connections are closed instead, even newer ones."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(10), 65)
    fill(connections, listener, range(200))
    assert not set(listener.refused) & set(range(10))
    assert len(listener.refused) == 200 - 10 - HALF_OPEN


def test_with_keys_a_first_command_is_still_a_handshake(connections: AcceptedConnections, kernel: Kernel) -> None:
    """A client that has sent its greeting and HELLO has shown no key yet."""
    listener = Listener(connections)
    listener.encrypts = True
    kernel.received = {0: 266, 1: 267}
    fill(connections, listener, range(HALF_OPEN + 3))
    assert listener.refused == [0, 2]


def test_beyond_the_limit_the_newest_connection_is_closed(connections: AcceptedConnections, kernel: Kernel) -> None:
    """Three quarters of the descriptors are for connections; those that talk stay."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(1000), 1000)
    fill(connections, listener, range(MOST + 2))
    assert listener.refused == [MOST, MOST + 1]
    assert f"{MOST} connections are open" in listener.reasons[0]
    connections.ended(listener, (3, 4))
    fill(connections, listener, range(500, 503))
    assert listener.refused == [MOST, MOST + 1, 502]


def test_the_limits_hold_for_all_sockets_together(connections: AcceptedConnections, kernel: Kernel) -> None:
    """Descriptors belong to the process."""
    first, second = Listener(connections), Listener(connections)
    fill(connections, first, range(HALF_OPEN))
    fill(connections, second, range(100, 103))
    assert first.refused == [0, 1, 2]
    connections.left(first)
    fill(connections, second, range(103, 103 + HALF_OPEN - 3))
    assert not second.refused


def test_after_its_time_a_connection_has_shaken_hands(connections: AcceptedConnections, kernel: Kernel) -> None:
    """libzmq ends slow handshakes, so a connection that is still there has finished it."""
    listener = Listener(connections)
    fill(connections, listener, range(HALF_OPEN))
    fill(connections, listener, range(100, 100 + HALF_OPEN), now=6.1)
    assert not listener.refused


def test_connections_that_libzmq_has_cut_silently_do_not_count(
    connections: AcceptedConnections, kernel: Kernel
) -> None:
    """libzmq sends no event for peers of an old protocol, so the limits would fill up."""
    listener = Listener(connections)
    for round in range(40):
        fds = range(round * 10, round * 10 + 10)
        fill(connections, listener, fds, now=round * 1.0)
        kernel.gone |= set(fds)
    assert not listener.refused
    assert connections._number < 100


def test_connections_in_their_handshake_are_found_by_host(connections: AcceptedConnections, kernel: Kernel) -> None:
    """A connection of which nothing is known may be from any host."""
    listener = Listener(connections)
    connections.admit(listener, 1, 1, identity(1, "10.0.0.1"), 0.0)
    connections.admit(listener, 2, 2, identity(2, "10.0.0.2"), 0.0)
    connections.admit(listener, 3, 3, None, 0.0)
    kernel.received = {1: 1000}  # it may still wait for our decision
    assert [each.id for each in connections.in_handshake(listener, "10.0.0.1")] == [1, 3]


def test_a_fork_begins_without_connections(connections: AcceptedConnections, kernel: Kernel) -> None:
    """The connections belong to the parent."""
    listener = Listener(connections)
    fill(connections, listener, range(HALF_OPEN))
    connections.forked()
    fill(connections, listener, range(100, 100 + HALF_OPEN))
    assert not listener.refused


# -- without descriptors -----------------------------------------------------------------------------------


def test_one_lack_of_descriptors_closes_one_connection(connections: AcceptedConnections, kernel: Kernel) -> None:
    """libzmq reports the same lack thousands of times until the connection has ended."""
    listener = Listener(connections)
    listener.late = True
    fill(connections, listener, range(5))
    for _ in range(1000):
        connections.exhausted(0.01)
    assert listener.refused == [0]
    connections.ended(listener, (0,))
    connections.exhausted(0.02)
    assert listener.refused == [0, 1]


def test_a_spare_descriptor_is_given_up_to_refuse_a_connection(
    connections: AcceptedConnections, kernel: Kernel
) -> None:
    """If all others talk, the new connection is accepted and closed, and the descriptor is taken back."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(100), 1000)
    fill(connections, listener, range(5))
    listener.late, spare = True, len(connections._spare)
    connections.exhausted(0.0)
    assert len(connections._spare) == spare - 1
    assert not listener.refused
    fill(connections, listener, range(5, 6))
    assert listener.refused == [5]
    connections.ended(listener, (5,))
    assert len(connections._spare) == spare


def test_a_connection_without_a_free_descriptor_behind_it_is_closed(
    connections: AcceptedConnections, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last descriptor is not used up, so that libzmq does not have to refuse the next connection."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(100), 1000)
    fill(connections, listener, range(5))

    def full(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", full)
    fill(connections, listener, range(5, 6))
    assert listener.refused == [5]
    assert listener.reasons == ["the process has no free descriptor"]


# -- real processes ----------------------------------------------------------------------------------------

LIMITS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
if sys.argv[1] == "select":
    from twisted.internet import selectreactor; selectreactor.install()
from twisted.internet import reactor
from zroute.sockets.pubsub import PubConnection
pub = PubConnection(reactor)
pub.open(sys.argv[2])
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("reactor", "address", "soft"),
    [
        ("default", "tcp://127.0.0.1:*", 2048),
        ("select", "tcp://127.0.0.1:*", 256),
        ("default", "connect:tcp://127.0.0.1:1", 256),
        ("default", "inproc://here", 256),
    ],
)
def test_a_socket_that_listens_raises_the_soft_limit(reactor: str, address: str, soft: int) -> None:
    """But not for select, which can't watch more than 1,024 descriptors, and not for sockets that only connect."""
    with Child("-c", LIMITS.format(hard=2048), reactor, address, fresh=True) as child:
        assert child.end(None) == 0
        assert child.out == [str(soft)]


@pytest.mark.slow
def test_thousands_of_silent_connections_cost_no_message(tmp_path: Path) -> None:
    """With 5,000 half-open connections, the publisher keeps about a thousand, and the reader loses nothing."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8_000:
        pytest.skip("this user may open too few descriptors")
    found = run("silent", many=5_000, seconds=1.0, folder=tmp_path)
    assert (found["lost"], found["unknown"], found["joins"]) == (0, 0, 1)
    assert found["opened"] == 5_000
    assert found["descriptors"] < 2_000
    assert found["refused"] > 1_000


@pytest.mark.slow
def test_strangers_cost_no_message(tmp_path: Path) -> None:
    """A flood of handshakes with unknown keys is refused, and the reader loses nothing."""
    found = run("strangers", many=0, seconds=3.0, folder=tmp_path)
    assert (found["lost"], found["unknown"], found["joins"]) == (0, 0, 1)
    assert found["refused"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("crowd", ["silent", "hoard"])
def test_nothing_spins_at_the_limit_of_descriptors(tmp_path: Path, crowd: str) -> None:
    """Without free descriptors, libzmq fails to accept only a few times for each connection.

    In a busy loop, it would fail more than 100,000 times a second.
    """
    found = run(crowd, many=400, seconds=4.0, folder=tmp_path, descriptors=150)
    assert (found["lost"], found["unknown"]) == (0, 0)
    assert found["refused"] > 100
    assert found["accept_failed"] < 50_000


FULL = """
import json, os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from twisted.internet import reactor
from zroute.sockets.pubsub import XPubConnection

came, failed = [], 0
pub = XPubConnection(reactor, lambda prefix, there: came.append(prefix.decode()))

def seen(event):
    global failed
    failed += event.name == "accept_failed"

pub.watch(seen)
address = pub.open("tcp://127.0.0.1:*")
files = []

def fill():
    try:
        while True:
            files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        print(address, flush=True)

def free():
    for fd in files:
        os.close(fd)
    print("freed", flush=True)

def say():
    print(json.dumps({"came": came, "failed": failed}), flush=True)
    reactor.callLater(0.1, say)

reactor.callLater(2.0, free)
reactor.callLater(0.0, say)
reactor.callWhenRunning(fill)
reactor.run()
"""


def test_files_that_use_all_descriptors_end_no_service(tmp_path: Path) -> None:
    """While the program holds all descriptors, connections are refused without a busy loop; later they are served."""
    import zmq

    with Child("-c", textwrap.dedent(FULL), fresh=True) as child, zmq.Context() as context:
        address = child.line_with("tcp://")
        caller = context.socket(zmq.SUB)
        caller.linger = 0
        caller.subscribe(b"news")
        caller.connect(address)
        child.line_with("freed")
        # The poll lets libzmq send the subscription again, after each connection.
        child.wait_for(lambda lines: not caller.poll(0) and '"news"' in lines[-1])
        last = json.loads(child.out[-1])
        caller.close()
        assert set(last["came"]) == {"news"}
        assert 0 < last["failed"] < 20_000
