"""A socket knows the keys of its accepted connections, so it ends only the right ones."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq

from tests.keyed import Caller, Keys
from tests.running import reactor, turns
from tests.sockets.opened import Sockets
from tests.support import PATIENCE
from zroute.endpoints import Access
from zroute.sockets import accepted
from zroute.sockets.access import CurveGuard
from zroute.sockets.peers import Changed
from zroute.sockets.router_dealer import RouterConnection
from zroute.stats import Stats


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of hub, and of alice and bob, which hub knows."""
    made = Keys(tmp_path)
    made.introduce("hub", "alice", "bob")
    return made


class Hub:
    """A ROUTER with a guard, and its raw clients; ``handshake`` is the limit of a handshake in milliseconds."""

    def __init__(self, sockets: Sockets, keys: Keys, handshake: int) -> None:
        self._sockets, self._keys = sockets, keys
        self.stats = Stats()
        self.guard = CurveGuard(reactor, Access(keys.secret("hub")), "hub", self.stats)
        self.guard.begin(sockets.context)
        self.received: list[list[bytes]] = []
        self.router = sockets.make(
            RouterConnection,
            lambda who, parts: self.received.append(list(parts)),
            handshake_ivl=handshake,
        )
        self.router.guard = self.guard
        self.address = self.router.open("tcp://127.0.0.1:*")
        self.clients: list[Caller] = []

    def call(self, name: str, message: bytes = b"hello") -> Caller:
        """Connect with the key of a program, and send a message unless it is empty."""
        caller = Caller(self._keys.use(self._sockets.raw(zmq.DEALER), name, "hub"), self.address)
        self.clients.append(caller)
        if message:
            caller.socket.send(message)
        return caller

    @property
    def names(self) -> list[str]:
        """The names of the keys of all connections, sorted; "?" for one that is not known."""
        return sorted(self.router.keys.get(id, "?") for id in self.router.links.alive)

    def close(self) -> None:
        """Close the clients, and end the guard."""
        for client in self.clients:
            client.close()
        self.guard.end()


@pytest.fixture
def hub(request: pytest.FixtureRequest, sockets: Sockets, keys: Keys) -> Iterator[Hub]:
    """A `Hub`, which is closed after the test; its handshakes have no limit unless a test gives one."""
    made = Hub(sockets, keys, getattr(request, "param", int(PATIENCE * 1000)))
    yield made
    made.close()


def test_a_message_that_is_read_before_its_event_tells_the_key(hub: Hub) -> None:
    """The events of a socket come over another socket, and may be read later than the first message."""
    hub.call("alice")
    handler: Any = hub.guard._handler
    while not hub.router._events() & zmq.POLLIN:
        handler.doRead()
    hub.router.doRead()
    assert hub.received == [[b"hello"]]
    assert hub.names == ["alice"]


@pytest_twisted.ensureDeferred
async def test_a_connection_with_the_descriptor_of_an_earlier_one_tells_its_key(hub: Hub) -> None:
    """The system gives the number of a closed descriptor to the next connection."""
    descriptors = set()
    for number in range(1, 7):
        descriptors.add(await _called(hub, ("alice", "bob")[number % 2], number))
    assert len(descriptors) < 6  # so at least one was used again


async def _called(hub: Hub, name: str, number: int) -> int:
    """Connect, send the message with this number and disconnect; return the descriptor of the connection."""
    caller = hub.call(name)
    await turns(lambda: len(hub.received) == number)
    await turns(lambda: hub.names == [name])
    (link,) = map(hub.router.links.get, hub.router.links.alive)
    assert link is not None
    hub.clients.remove(caller)
    caller.close()
    await turns(lambda: hub.names == [])
    return link.fd


@pytest_twisted.ensureDeferred
async def test_only_the_connections_of_the_key_and_silent_ones_end(hub: Hub) -> None:
    """Of two connections of a key both end, and a silent one of another key; that of the other key stays."""
    handler: Any = hub.guard._handler
    handler.pause()
    callers = [hub.call("alice"), hub.call("alice"), hub.call("bob"), hub.call("bob", b"")]
    await turns(lambda: len(hub.names) == 4)  # all are in their handshake, so no handshake tells a key
    hub.router.pause()  # nor does a message, before all keys are admitted
    handler.resume()
    await turns(lambda: [caller.outcome for caller in callers] == ["open"] * 4)
    hub.router.resume()
    await turns(lambda: hub.names == ["?", "alice", "alice", "bob"])
    assert hub.router.end_accepted("alice", "") == 3
    await turns(lambda: [caller.count("disconnected") for caller in callers] == [1, 1, 0, 1])
    await turns(lambda: len(hub.router.links.alive) == 4)  # the keys are still authorized, so all return


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_revoked_during_its_handshake_does_not_connect(hub: Hub, keys: Keys) -> None:
    """The connection was accepted by the system, and its key is looked up after the revocation."""
    handler: Any = hub.guard._handler
    handler.pause()
    caller = hub.call("alice")
    await turns(lambda: hub.names == ["?"])
    keys.revoke("hub", "alice")
    handler.resume()
    await turns(lambda: caller.outcome)
    await turns(lambda: caller.count("handshake_failed_auth"))
    assert caller.count("handshake_succeeded") <= 1
    await turns(lambda: hub.names == [])


@pytest_twisted.ensureDeferred
async def test_a_thousand_keys_are_read_and_revoked(hub: Hub, keys: Keys) -> None:
    """With 1,000 files in the directory, a look without changes is short, and a revoked key ends."""
    known = keys.peers("hub")
    for number in range(1_000):
        public, _ = zmq.curve_keypair()
        (known / f"peer-{number:04}.key").write_text(f'curve\n    public-key = "{public.decode()}"\n')
    await turns(lambda: len(hub.guard.peers) == 1_002)
    caller = hub.call("alice")
    await turns(lambda: hub.names == ["alice"])
    keys.revoke("hub", "alice")
    await turns(lambda: caller.count("handshake_failed_auth"))


@pytest_twisted.ensureDeferred
async def test_a_flood_of_unknown_keys_does_not_read_the_directory_each_time(
    hub: Hub, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many refusals in a row cost few looks into the directory, and a key that is added meanwhile connects."""
    looks: list[float] = []
    look = hub.guard.peers.look

    def counted() -> Changed:
        looks.append(reactor.seconds())
        return look()

    monkeypatch.setattr(hub.guard.peers, "look", counted)
    began = reactor.seconds()
    flood = [hub.call("mallory") for _ in range(40)]
    await turns(lambda: all(caller.count("handshake_failed_auth") for caller in flood))
    passed = reactor.seconds() - began
    assert len(looks) <= passed / 0.1 + passed / 0.5 + 2  # with those that are made every half second
    keys.authorize("hub", "carol")
    await turns(lambda: reactor.seconds() - looks[-1] > 0.1)
    carol = hub.call("carol")
    await turns(lambda: carol.outcome)
    assert carol.outcome == "open"


# -- the key of a connection that has sent nothing ---------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_single_handshake_from_a_host_tells_the_key(hub: Hub) -> None:
    """The connection has sent no frame, but no other connection from its host was in its handshake."""
    for number, name in enumerate(("alice", "bob"), 1):
        hub.call(name, b"")
        await turns(lambda number=number: len(hub.names) == number and "?" not in hub.names)
    assert hub.names == ["alice", "bob"]
    assert hub.router.end_accepted("alice", "") == 1
    await turns(lambda: [caller.count("disconnected") for caller in hub.clients] == [1, 0])


@pytest_twisted.ensureDeferred
async def test_a_half_open_connection_is_never_taken_for_that_of_a_key(hub: Hub) -> None:
    """While a stranger from the same host is in its handshake, the key belongs to neither until it sends a frame."""
    with socket.create_connection(("127.0.0.1", int(hub.address.rpartition(":")[2]))):
        await turns(lambda: hub.names == ["?"])
        caller = hub.call("alice", b"")
        await turns(lambda: caller.outcome == "open")
        assert hub.names == ["?", "?"]
        caller.socket.send(b"hello")
        await turns(lambda: hub.names == ["?", "alice"])


@pytest_twisted.ensureDeferred
async def test_a_request_of_an_ended_connection_names_no_other(hub: Hub) -> None:
    """The connection ends while its request waits; the next one from the host must not get its name."""
    handler: Any = hub.guard._handler
    handler.pause()
    alice = hub.call("alice", b"")
    await turns(lambda: hub.names == ["?"])
    await turns(lambda: handler.readable())
    hub.clients.remove(alice)
    alice.close()
    await turns(lambda: hub.names == [])
    bob = hub.call("bob", b"")
    await turns(lambda: hub.names == ["?"])
    handler.resume()
    await turns(lambda: bob.outcome == "open")
    assert hub.names == ["?"]
    assert hub.router.end_accepted("bob", "") == 1


@pytest_twisted.ensureDeferred
async def test_a_key_has_a_limited_number_of_connections(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The third connection waits until another one has ended, and another key is not affected."""
    monkeypatch.setattr(accepted, "PER_KEY", 2)
    first, _ = hub.call("alice"), hub.call("alice")
    await turns(lambda: hub.names == ["alice", "alice"])
    third = hub.call("alice")
    await turns(lambda: third.count("disconnected") + third.count("closed"))
    assert third.outcome != "open"
    assert hub.stats.refused > 0
    assert "its key alice has 2 connections: give further programs a key of their own" in caplog.text
    hub.call("bob")
    await turns(lambda: "bob" in hub.names)
    first.close()
    hub.clients.remove(first)
    await turns(lambda: third.outcome == "open")


@pytest_twisted.ensureDeferred
async def test_connections_beyond_the_limit_of_a_key_end_when_they_are_known(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several handshakes at the same time pass before the connections can be counted."""
    monkeypatch.setattr(accepted, "PER_KEY", 2)
    for _ in range(6):
        hub.call("alice")
    await turns(lambda: hub.names.count("alice") >= 2)
    await turns(lambda: hub.stats.refused)
    await turns(lambda: hub.names.count("alice") == 2)


@pytest.mark.parametrize("hub", [5_000], indirect=True)  # admissions count during the time of a handshake
@pytest_twisted.ensureDeferred
async def test_the_limit_holds_for_connections_that_begin_together_and_send_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection tells its key, so the admissions count; a key that has ended its connections may connect again."""
    monkeypatch.setattr(accepted, "PER_KEY", 3)
    handler: Any = hub.guard._handler
    handler.pause()
    callers = [hub.call("alice", b"") for _ in range(8)]
    await turns(lambda: len(hub.names) == 8)
    handler.resume()
    await turns(lambda: [caller.outcome for caller in callers].count("open") == 3)
    await turns(lambda: hub.stats.refused >= 5)
    assert [caller.outcome for caller in callers].count("open") == 3
    assert hub.router.connections_of("alice") <= 1
    bob = hub.call("bob")
    await turns(lambda: bob.outcome == "open")
    for caller in callers:
        hub.clients.remove(caller)
        caller.close()
    await turns(lambda: hub.names == ["bob"])
    again = [hub.call("alice", b"") for _ in range(3)]
    await turns(lambda: [caller.outcome for caller in again] == ["open"] * 3)
