"""The limit of accepted connections: which connection is closed, and that no lack of descriptors spins."""

from __future__ import annotations

import errno
import json
import os
import resource
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.crowd import Figures, run
from tests.support import Child
from zroute.sockets import accepted
from zroute.sockets.accepted import AcceptedConnections
from zroute.sockets.descriptors import Identity, Passed

DESCRIPTORS = 80
MOST = 60
HALF_OPEN = 15


class Listener:
    """A socket that notes which connections are closed, and reports their ends unless ``late`` is True."""

    encrypts = False
    late = False
    cost = 1
    greeting = 1_000_000
    alive: frozenset[int] = frozenset(range(1_000))

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
        self.acknowledged: dict[int, int] = {}
        self.gone: set[int] = set()


def identity(fd: int, host: str = "10.0.0.1") -> Identity:
    """Return the identity of a tcp connection."""
    return Identity(1, fd, ("10.0.0.9", 5555), (host, 40_000 + fd))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The system, which has `DESCRIPTORS` descriptors."""
    made = Kernel()
    monkeypatch.setattr(accepted, "_descriptors", lambda: DESCRIPTORS)
    monkeypatch.setattr(
        accepted, "bytes_passed", lambda fd, _: Passed(made.acknowledged.get(fd, 0), made.received.get(fd, 0))
    )
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
        connections.admit(listener, id, id, identity(id), now, 6.0)


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


def test_with_keys_a_handshake_ends_with_our_last_command(connections: AcceptedConnections, kernel: Kernel) -> None:
    """What a client sends shows nothing: it may be the beginning of a long command."""
    listener = Listener(connections)
    listener.encrypts = True
    kernel.received = dict.fromkeys(range(100), 500)
    kernel.acknowledged = {0: 234, 1: 235}
    fill(connections, listener, range(HALF_OPEN + 3))
    assert listener.refused == [0, 2]


def test_without_bytes_the_handshakes_that_libzmq_reports_decide(
    connections: AcceptedConnections, kernel: Kernel
) -> None:
    """Over ipc, the system does not tell the bytes; honest peers that come at the same time stay."""
    listener = Listener(connections)
    listener.greeting = 3
    fill(connections, listener, range(MOST - 1))
    assert not listener.refused


def test_a_connection_that_has_sent_a_message_is_not_half_open(
    connections: AcceptedConnections, kernel: Kernel
) -> None:
    """The socket tells it, whatever the system says."""
    listener = Listener(connections)
    fill(connections, listener, range(5))
    for id in range(5):
        connections.proved(listener, id)
    fill(connections, listener, range(5, 5 + HALF_OPEN + 1))
    assert listener.refused == [5]


def test_a_connection_with_a_duplicate_counts_twice(connections: AcceptedConnections, kernel: Kernel) -> None:
    """A lossless publisher holds two descriptors for each connection."""
    listener = Listener(connections)
    listener.cost = 2
    kernel.received = dict.fromkeys(range(1000), 1000)
    fill(connections, listener, range(MOST // 2 + 1))
    assert listener.refused == [MOST // 2]


def test_beyond_the_limit_the_newest_connection_is_closed(connections: AcceptedConnections, kernel: Kernel) -> None:
    """Three quarters of the descriptors are for connections; those that talk stay."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(1000), 1000)
    fill(connections, listener, range(MOST + 2))
    assert listener.refused == [MOST, MOST + 1]
    assert f"connections use {MOST} descriptors" in listener.reasons[0]
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
    assert connections._used < 100


def test_connections_in_their_handshake_are_found_by_host(connections: AcceptedConnections, kernel: Kernel) -> None:
    """A connection that has sent enough is included, because it may still wait for our decision."""
    listener = Listener(connections)
    connections.admit(listener, 1, 1, identity(1, "10.0.0.1"), 0.0, 6.0)
    connections.admit(listener, 2, 2, identity(2, "10.0.0.2"), 0.0, 6.0)
    kernel.received = {1: 1000}
    assert list(connections.in_handshake(listener, "10.0.0.1")) == [1]


def test_a_key_is_not_assigned_while_a_request_of_an_ended_connection_may_wait(
    connections: AcceptedConnections, kernel: Kernel
) -> None:
    """For the time of a handshake after its end, the host is unclear; other hosts are not."""
    listener = Listener(connections)
    connections.note_unknown(listener, "10.0.0.1", 1.0, 6.0)
    assert not connections.is_clear(listener, "10.0.0.1", 6.9)
    assert connections.is_clear(listener, "10.0.0.2", 1.0)
    assert connections.is_clear(listener, "10.0.0.1", 7.1)


def test_too_many_hosts_make_all_hosts_unclear(connections: AcceptedConnections, kernel: Kernel) -> None:
    """The number of noted hosts is bounded, and no key is assigned wrongly because of it."""
    listener = Listener(connections)
    for number in range(accepted._HOSTS + 1):
        connections.note_unknown(listener, str(number), 1.0, 6.0)
    assert len(connections._unclear) == 1
    assert not connections.is_clear(listener, "10.0.0.1", 6.9)
    assert connections.is_clear(listener, "10.0.0.1", 7.1)


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


def test_a_descriptor_of_the_reserve_is_given_up_to_refuse_a_connection(
    connections: AcceptedConnections, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all others talk, the new connection is accepted and closed, and the descriptor is taken back."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(100), 1000)
    fill(connections, listener, range(5))
    reserve = len(connections._spare)
    connections.exhausted(0.0)
    assert len(connections._spare) == reserve - 1
    assert not listener.refused
    monkeypatch.setattr(os, "open", _full)
    fill(connections, listener, range(5, 6))
    assert listener.refused == [5]
    monkeypatch.undo()
    connections.ended(listener, ())
    assert len(connections._spare) == reserve


def _full(*_: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


def test_while_the_reserve_is_not_complete_new_connections_are_closed(
    connections: AcceptedConnections, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that talk are never closed for newer ones, however long the lack of descriptors lasts."""
    listener = Listener(connections)
    kernel.received = dict.fromkeys(range(100), 1000)
    fill(connections, listener, range(5))
    monkeypatch.setattr(os, "open", _full)
    for round in range(20):
        connections.exhausted(float(round))
        fill(connections, listener, range(10 + round, 11 + round), now=float(round))
    monkeypatch.undo()
    assert listener.refused == list(range(10, 30))
    assert set(listener.reasons) == {"the process has no free descriptor"}


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


def undisturbed(crowd: str, *, folder: Path, **options: Any) -> Figures:
    """Return the figures of a crowd; run it again if the machine did not run the publisher for a moment.

    The reader then asks for the numbers of the publisher once more, or makes its connection again and loses messages.
    """
    for attempt in range(3):
        found = run(crowd, folder=folder / str(attempt), **options)
        if (found["lost"], found["unknown"], found["joins"]) == (0, 0, 1) or found["late_ms"] < 500:
            break
    return found


@pytest.mark.slow
def test_thousands_of_silent_connections_cost_no_message(tmp_path: Path) -> None:
    """With 5,000 half-open connections, the publisher keeps about a thousand, and the reader loses nothing."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 8_000:
        pytest.skip("this user may open too few descriptors")
    found = undisturbed("silent", many=5_000, seconds=1.0, folder=tmp_path, refused=1)
    assert (found["lost"], found["unknown"], found["joins"]) == (0, 0, 1)
    assert found["opened"] == 5_000
    assert found["descriptors"] < 2_000
    # Not how many: of connections that come slowly, more end because the time for their handshake is over.
    assert found["refused"] > 0


@pytest.mark.slow
def test_strangers_cost_no_message(tmp_path: Path) -> None:
    """A flood of handshakes with unknown keys is refused, and the reader loses nothing."""
    found = undisturbed("strangers", many=0, seconds=3.0, folder=tmp_path, refused=101)
    assert (found["lost"], found["unknown"], found["joins"]) == (0, 0, 1)
    assert found["refused"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("crowd", ["silent", "hoard"])
def test_nothing_spins_at_the_limit_of_descriptors(tmp_path: Path, crowd: str) -> None:
    """Without free descriptors, libzmq fails to accept only a few times for each connection.

    In a busy loop, it would fail more than 100,000 times a second.
    """
    found = undisturbed(crowd, many=400, seconds=4.0, folder=tmp_path, descriptors=150, refused=11)
    assert (found["lost"], found["unknown"]) == (0, 0)
    assert found["refused"] > 10
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
    if event.name == "accept_failed":
        failed += 1
        if failed == 1:
            reactor.callLater(2.0, free)

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
