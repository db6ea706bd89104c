"""Host names that have only IPv6 addresses are detected; all others stay unchanged."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.task import Clock

from tests.running import reactor, turns
from tests.sockets.opened import bound
from tests.support import PATIENCE, Child
from zroute.errors import EndpointError
from zroute.sockets import names as module
from zroute.sockets.names import Lookups, Names, host_name, only_ipv6

FOUR, SIX = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("tcp://feed.test:5555", "feed.test"),
        ("tcp://eth0;feed.test:5555", "feed.test"),
        ("tcp://localhost:5555", "localhost"),
        ("tcp://127.0.0.1:5555", None),
        ("tcp://[::1]:5555", None),
        ("tcp://[fe80::1%eth0]:5555", None),
        ("ipc:///tmp/feed.test:1", None),
        ("inproc://feed.test:1", None),
    ],
)
def test_the_host_name_of_an_endpoint_is_found(address: str, host: str | None) -> None:
    """Only tcp endpoints have a host name, and an IPv4 or IPv6 address is none."""
    assert host_name(address) == host


@pytest.mark.parametrize(
    ("families", "only"), [([SIX], True), ([SIX, SIX], True), ([FOUR], False), ([SIX, FOUR], False), ([], False)]
)
def test_a_name_needs_ipv6_only_where_it_has_nothing_else(families: list[int], only: bool) -> None:
    """A name with both kinds of addresses does not need IPv6: the publisher may not listen there."""
    asked: list[Any] = []

    def getaddrinfo(host: str, port: None, **options: Any) -> list[tuple[int, str]]:
        asked.append(host)
        return [(family, "the rest") for family in families]

    assert only_ipv6("feed.test", getaddrinfo) is only
    assert asked == ["feed.test"]


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "no such name"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_resolved_may_be_later(error: Exception) -> None:
    """A name that can't be resolved is undecided."""

    def getaddrinfo(host: str, port: None, **options: Any) -> Any:
        raise error

    assert only_ipv6("feed.test", getaddrinfo) is None


class Later:
    """A reactor with a virtual clock and a stand-in for its threads."""

    def __init__(self) -> None:
        self.now = 0.0
        self.callFromThread = reactor.callFromThread

    def seconds(self) -> float:
        return self.now


@pytest_twisted.ensureDeferred
async def test_a_name_is_looked_up_again_until_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No new look-up within five seconds, during another one, or after the name is known or disconnected."""
    answers: list[bool | None] = [None, True]
    looks: list[str] = []
    found: list[str] = []

    def look(host: str) -> bool | None:
        looks.append(host)
        return answers.pop(0)

    monkeypatch.setattr(module, "only_ipv6", look)
    clock = Later()
    lookups = Lookups(clock, found.append)
    for address in ("tcp://feed.test:1", "tcp://127.0.0.1:1"):
        lookups.begin(address)
        lookups.begin(address)
    await turns(lambda: not lookups._under_way)
    clock.now = module.AGAIN / 2
    lookups.again("tcp://feed.test:1")
    assert looks == ["feed.test"]
    clock.now = module.AGAIN
    lookups.again("tcp://127.0.0.1:1")
    lookups.again("tcp://feed.test:1")
    await turns(lambda: found)
    clock.now *= 3
    lookups.again("tcp://feed.test:1")
    assert (looks, found, lookups._under_way) == (["feed.test"] * 2, ["tcp://feed.test:1"], set())
    answers.append(True)
    lookups.begin("tcp://gone.test:1")
    lookups.forget("tcp://gone.test:1")
    await turns(lambda: not lookups._under_way)
    assert found == ["tcp://feed.test:1"]


class Immediate(Clock):
    """A virtual clock, whose calls from threads are made at once."""

    def callFromThread(self, call: Callable[..., object], *given: Any) -> None:
        call(*given)


class Started:
    """A thread that runs when it is started, in the caller's thread."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...], **_: Any) -> None:
        self.start = lambda: target(*args)


@pytest.mark.parametrize("error", [EndpointError("no", endpoint=""), zmq.ZMQError(errno.EMFILE), OSError(errno.EMFILE)])
def test_an_address_that_cannot_be_connected_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """A lack of descriptors ends no look-ups: it is connected later, others are now, and one line is logged."""
    refused, connected, clock = {"tcp://10.0.0.1:1"}, list[str](), Immediate()

    def connect(address: str) -> None:
        if address in refused:
            raise error
        connected.append(address)

    monkeypatch.setattr(module, "addresses_of", lambda host, _: ["10.0.0.1", "10.0.0.2"])
    monkeypatch.setattr(module.threading, "Thread", Started)
    names = Names(clock, "app", connect, connected.remove)
    names.follow("tcp://feed.test:1")
    clock.pump([module.EVERY] * 3)
    assert connected == ["tcp://10.0.0.2:1"] == list(names.of("tcp://feed.test:1"))
    assert [each.getMessage().partition(":1, ")[0] for each in caplog.records if each.levelname == "WARNING"] == [
        "app: can't connect to tcp://10.0.0.1"
    ]
    refused.clear()
    clock.advance(module.EVERY)
    assert set(connected) == {"tcp://10.0.0.1:1", "tcp://10.0.0.2:1"} == set(names.of("tcp://feed.test:1"))
    names.close()
    assert clock.getDelayedCalls() == []


class Resolved:
    """A `Names` whose look-ups a test answers, and the addresses to which it is connected with their peers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[str]] = {}
        self.clock = Immediate()
        self.connected: dict[str, str | None] = {}
        monkeypatch.setattr(module, "addresses_of", lambda host, _: list(self.answers[host]))
        monkeypatch.setattr(module.threading, "Thread", Started)
        self.names = Names(self.clock, "app", self._connect, self.connected.pop)

    def _connect(self, address: str) -> None:
        self.connected[address] = self.names.endpoint_at(address).peer

    def answer(self, **answers: list[str]) -> None:
        """Change the addresses of names, and let all names be looked up again."""
        self.answers.update(answers)
        self.clock.advance(module.EVERY)
        self.clock.advance(module.EVERY)  # in the first round, one name may be looked up before another lets go


def test_two_names_with_different_peers_at_one_address_conflict(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first name connects with its key; the second one logs the conflict once, and connects when it is alone."""
    given = Resolved(monkeypatch)
    given.answers = {"one": ["10.0.0.1"], "two": ["10.0.0.1", "10.0.0.2"]}
    given.names.follow("tcp://one:1", "a")
    given.names.follow("tcp://two:1", "b")
    assert given.connected == {"tcp://10.0.0.1:1": "a", "tcp://10.0.0.2:1": "b"}
    given.answer()
    (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warning == (
        "app: can't connect to tcp://10.0.0.1:1, an address of the host name in tcp://two:1: tcp://one:1 has this "
        "address with the peer 'a' instead of 'b', but the program at an address has one key: correct the name of the "
        "peer, or remove one of the endpoints; trying again"
    )
    given.answer(one=["10.0.0.3"])
    assert given.connected == {"tcp://10.0.0.1:1": "b", "tcp://10.0.0.2:1": "b", "tcp://10.0.0.3:1": "a"}
    assert given.names.forget("tcp://two:1") == ("tcp://10.0.0.1:1", "tcp://10.0.0.2:1")
    given.names.close()


@pytest.mark.parametrize("peer", ["a", None])
def test_two_names_with_one_peer_share_an_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, peer: str | None
) -> None:
    """The address is connected once, and stays connected until no name has it."""
    given = Resolved(monkeypatch)
    given.answers = {"one": ["10.0.0.1"], "two": ["10.0.0.1"]}
    given.names.follow("tcp://one:1", peer)
    given.names.follow("tcp://two:1", peer)
    given.answer(one=["10.0.0.3"])
    assert given.connected == {"tcp://10.0.0.1:1": peer, "tcp://10.0.0.3:1": peer}
    assert not [each for each in caplog.records if each.levelname == "WARNING"]
    given.names.close()


def test_a_name_with_the_address_of_an_endpoint_needs_the_same_peer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The key of an endpoint is never replaced by that of a name, in either order."""
    given = Resolved(monkeypatch)
    given.answers = {"one": ["10.0.0.1"], "two": ["10.0.0.2"]}
    given.names.keep("tcp://10.0.0.1:1", "a")
    given.names.follow("tcp://one:1", "b")
    given.names.follow("tcp://two:1", "b")
    assert given.connected == {"tcp://10.0.0.2:1": "b"}
    assert "tcp://10.0.0.1:1 has this address with the peer 'a' instead of 'b'" in caplog.text
    with pytest.raises(EndpointError, match="tcp://two:1 has this address with the peer 'b' instead of 'a'"):
        given.names.check_peer("tcp://10.0.0.2:1", "a")
    given.names.release("tcp://10.0.0.1:1")
    given.answer()
    assert given.connected["tcp://10.0.0.1:1"] == "b"
    given.names.close()


# -- with a name of our own --------------------------------------------------------------------------------

RESOLVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int resolver(const char *, const char *, const struct addrinfo *, struct addrinfo **);

/* "feed.test" has the address that is in a file, if the file is there. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    resolver *real = (resolver *)dlsym(RTLD_NEXT, "getaddrinfo");
    char address[64] = "";
    if (node == NULL || strcmp(node, "feed.test") != 0)
        return real(node, service, hints, found);
    FILE *file = fopen(getenv("FEED_TEST"), "r");
    if (file == NULL)
        return EAI_NONAME;
    int there = fgets(address, sizeof address, file) != NULL;
    fclose(file);
    return there ? real(address, service, hints, found) : EAI_NONAME;
}
"""

READER = """
import sys
from twisted.internet import reactor
from zroute.sockets import names
from zroute.sockets.pubsub import SubConnection

names.AGAIN = 0.1
reader = SubConnection(reactor, lambda parts: print(*parts, flush=True))
reader.subscribe(b"")
reader.watch(lambda event: event.name == "connect_retried" and print("retried", flush=True))
for endpoint in sys.argv[1:]:
    reader.open(endpoint)
reactor.run()
"""


@pytest.fixture
def resolver(tmp_path: Path) -> Callable[[str | None], dict[str, str]]:
    """Gives ``feed.test`` an address or none; returns the environment of a child process that sees it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler to build a resolver with, or not Linux")
    source, library, address = tmp_path / "names.c", tmp_path / "names.so", tmp_path / "address"
    source.write_text(RESOLVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=PATIENCE)

    def give(text: str | None) -> dict[str, str]:
        if text is not None:
            address.write_text(text)
        return {"LD_PRELOAD": str(library), "FEED_TEST": str(address)}

    return give


def six(sockets: Any) -> tuple[Any, str]:
    """A publisher at [::1], and its port."""
    raw = sockets.raw(zmq.XPUB)
    raw.set(zmq.IPV6, 1)
    try:
        return raw, bound(raw, "tcp://[::1]:*").rpartition(":")[2]
    except zmq.ZMQError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("known", ["at once", "later"])
def test_a_host_with_an_ipv6_address_only_is_connected(sockets: Any, resolver: Any, known: str) -> None:
    """A subscriber connects to an IPv6-only name, also one that is known later; names with IPv4 keep it."""
    (raw, port), other = six(sockets), sockets.raw(zmq.XPUB)
    local = bound(other).replace("127.0.0.1", "localhost")
    environment = resolver("::1" if known == "at once" else None)
    with Child("-c", READER, f"tcp://feed.test:{port}", local, env=environment) as reader:
        assert other.recv() == b"\1"
        if known == "later":
            reader.line_with("retried")
            resolver("::1")
        assert raw.recv() == b"\1"
        raw.send(b"six")
        reader.line_with("b'six'")
        other.send(b"four")
        reader.line_with("b'four'")
