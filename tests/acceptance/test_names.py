"""A host name with several addresses: an app connects to each of them, and follows changes of the name.

A DNS server of the test answers. The last test uses the system's resolver with that server; the others replace the
function that asks the system.
"""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread
from twisted.names import client, dns

from tests.acceptance.zone import NAME, Zone
from tests.commands import zroute
from tests.running import Mailbox, reactor, running, turns
from tests.support import PATIENCE, ROOT, free_endpoint, free_port_of
from zroute import App, EndpointError, Frames, NotReadyError
from zroute.endpoints import parse_endpoint
from zroute.options import MAX_MESSAGE, SENT_MAX
from zroute.sockets import names as module
from zroute.sockets.names import addresses_of, has_addresses
from zroute.sockets.proxy import Proxy

TWO, THREE, FOUR = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    """A DNS server, which the look-ups of this test ask, and short intervals between look-ups."""
    served = Zone()
    port = reactor.listenUDP(0, served.protocol(), interface="127.0.0.1")
    resolver = client.Resolver(servers=[("127.0.0.1", port.getHost().port)])

    def ask(host: str, _prefer_ipv6: bool) -> list[str]:
        try:
            answers, _, _ = blockingCallFromThread(reactor, resolver.lookupAddress, host)
        except dns.DomainError:
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        return [each.payload.dottedQuad() for each in answers]

    monkeypatch.setattr(module, "addresses_of", ask)
    monkeypatch.setattr(module, "EVERY", 0.05)
    monkeypatch.setattr(module, "SOON", 0.05)
    yield served
    pytest_twisted.blockon(port.stopListening())


def free_port_of_all() -> int:
    """Return a port that is free at the three addresses of these tests."""
    return free_port_of(TWO, THREE, FOUR)


def feed(host: str, port: int) -> tuple[App, Any]:
    """Return an app that publishes numbers at an address, and its publication."""
    app = App(pub=f"tcp://{host}:{port}", name=f"feed{host[-1]}")
    return app, app.publisher("numbers", int)


def clerk(host: str, port: int) -> App:
    """Return an app that answers requests at an address with its own address."""
    app = App(rep=f"tcp://{host}:{port}", name=f"clerk{host[-1]}")

    @app.reply("where")
    def where() -> str:
        return host

    return app


@pytest_twisted.ensureDeferred
async def test_requests_go_to_each_address_of_a_name(zone: Zone) -> None:
    """Each address of a name is a server; a vanished one gets no further requests, and loses none."""
    port = free_port_of_all()
    zone.addresses = (TWO, THREE)
    asker = App(req=f"tcp://{NAME}:{port}", name="asker")

    async def answers(number: int) -> set[str]:
        return {await asker.request("where", None, str) for _ in range(number)}

    async with running(clerk(TWO, port)), running(clerk(THREE, port)), running(asker):
        assert asker.addresses.req == (f"tcp://{NAME}:{port}",)
        while await answers(4) != {TWO, THREE}:
            pass
        zone.addresses = (THREE,)
        while await answers(4) != {THREE}:
            pass
        assert asker.stats.requests_failed == 0


@pytest_twisted.ensureDeferred
async def test_jobs_come_from_each_address_of_a_name(zone: Zone) -> None:
    """Each address of a name is an owner of jobs; a vanished one gets the result of its running job, and no other."""
    zone.addresses, port = (TWO, THREE), free_port_of_all()
    owners = {host: App(jobs=f"tcp://{host}:{port}", name=f"owner{host[-1]}") for host in (TWO, THREE, FOUR)}
    queues = {host: owner.job_queue("where", str) for host, owner in owners.items()}
    worker, begun, held = App(work=f"tcp://{NAME}:{port}", name="worker"), Mailbox[str](), Deferred[None]()

    @worker.work("where", max_in_flight=2)
    async def where(job: str) -> None:
        begun.put(job)
        if job == "held":
            await held

    def counts(host: str) -> tuple[int, int, int]:
        stats = owners[host].stats
        return stats.workers, stats.jobs["where"].waiting, stats.jobs["where"].done

    async with running(owners[TWO]), running(owners[THREE]), running(owners[FOUR]), running(worker):
        assert worker.addresses.work == (f"tcp://{NAME}:{port}",)
        await turns(lambda: [counts(host)[0] for host in owners] == [1, 1, 0])
        await queues[TWO].put("held")
        await begun.until(1)
        zone.addresses = (FOUR,)
        await turns(lambda: [counts(host)[0] for host in (THREE, FOUR)] == [0, 1])
        await queues[TWO].put("of an address that has vanished")
        await queues[FOUR].put("of a new address")
        assert await begun.until(2) == ["held", "of a new address"]
        held.callback(None)
        await turns(lambda: counts(TWO) == (0, 1, 1))
        zone.addresses = (TWO,)
        assert (await begun.until(3))[2] == "of an address that has vanished"
        await turns(lambda: counts(TWO) == (1, 0, 2))


@pytest_twisted.ensureDeferred
async def test_a_stopping_worker_takes_no_jobs_from_a_new_address(zone: Zone) -> None:
    """During the stop of a worker, an address that its name gets is connected, and gives it nothing to do."""
    zone.addresses, port = (TWO,), free_port_of_all()
    owners = {host: App(jobs=f"tcp://{host}:{port}", name=f"owner{host[-1]}") for host in (TWO, THREE)}
    queues = {host: owner.job_queue("where", str) for host, owner in owners.items()}
    worker, begun, held = App(work=f"tcp://{NAME}:{port}", name="worker"), Mailbox[str](), Deferred[None]()

    @worker.work("where", max_in_flight=2)
    async def where(job: str) -> None:
        begun.put(job)
        await held

    async with running(owners[TWO], drain_timeout=0), running(owners[THREE], drain_timeout=0):
        async with running(worker) as service:
            await queues[TWO].put("held")
            await queues[THREE].put("of a new address")
            await begun.until(1)
            stopped = service.stopService()
            asked = zone.asked
            zone.addresses = (TWO, THREE)
            await turns(lambda: zone.asked > asked + 1)
            assert not stopped.called
            held.callback(None)
        assert begun.items == ["held"]
        assert owners[TWO].stats.jobs["where"].done == 1
        assert owners[THREE].stats.jobs["where"].waiting == 1


@pytest_twisted.ensureDeferred
async def test_each_address_is_connected_and_changes_are_followed(zone: Zone, caplog: pytest.LogCaptureFixture) -> None:
    """New addresses of a name are connected, vanished ones are left after reading, a failing look changes nothing."""
    port, box = free_port_of_all(), Mailbox[int]()
    endpoint = f"tcp://{NAME}:{port}"
    zone.addresses = (TWO, THREE)
    (a, ones), (b, twos), (c, threes) = (feed(host, port) for host in (TWO, THREE, FOUR))
    reader = App(sub=endpoint, name="reader")
    reader.add_route(box.put, "numbers")
    with caplog.at_level(logging.INFO):
        async with running(a), running(b), running(c), running(reader):
            await reader.ready(2)
            assert reader.addresses.sub == (endpoint,)
            for number in range(2000):
                ones.publish(number)
            twos.publish(-1)
            zone.addresses = (THREE, FOUR)
            await reader.ready(2)
            await turns(lambda: (ones.subscribers, twos.subscribers, threes.subscribers) == (0, 1, 1))
            threes.publish(-2)
            await box.until(2002)
            assert sorted(box.items) == [-2, -1, *range(2000)]
            zone.addresses = ()
            await turns(lambda: "can't be resolved" in caplog.text)
            asked = zone.asked
            twos.publish(-3)
            await box.until(2003)
            zone.addresses = (THREE, FOUR)
            await turns(lambda: zone.asked > asked)
            await reader.remove_endpoints(sub=endpoint)
            assert reader.addresses.sub == ()
            await turns(lambda: twos.subscribers == threes.subscribers == 0)
        stats = reader.stats
        assert (stats.lost, stats.unknown_losses, stats.duplicate) == (0, 0, 0)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("reader: ")]
    at = {host: f"tcp://{host}:{port}" for host in (TWO, THREE, FOUR)}
    for line in (
        f"reader: subscribes, connects to {endpoint}",
        f"reader: the host name in {endpoint} has 2 addresses: connecting to {at[TWO]}, {at[THREE]}",
        f"reader: the host name in {endpoint} has 2 addresses: connecting to {at[FOUR]}; disconnecting from {at[TWO]}",
        f"reader: no longer connected to {at[TWO]}",
        f"reader: no longer connected to {endpoint}",
    ):
        assert lines.count(line) == 1, (line, lines)
    failed = (
        f"the host name in {endpoint} can't be resolved: no such name; the connections to its 2 addresses remain open"
    )
    assert [failed in line for line in lines].count(True) == 1


@pytest_twisted.ensureDeferred
async def test_a_name_without_an_address_is_looked_up_until_it_has_one(zone: Zone) -> None:
    """ready() names the endpoint until the name has an address; each address is then an endpoint of its own."""
    port = free_port_of_all()
    reader, (a, _) = App(sub=f"tcp://{NAME}:{port}", name="reader"), feed(TWO, port)
    reader.add_route(print, "numbers")
    async with running(reader), running(a):
        with pytest.raises(NotReadyError, match=rf"no answer from connect:tcp://{NAME}:{port} \(not connected\)"):
            await reader.ready(1, timeout=0.2)
        zone.addresses = (TWO, THREE)
        await reader.ready(1)
        with pytest.raises(NotReadyError, match=rf"connect:tcp://{THREE}:{port} \(not connected\)"):
            await reader.ready(2, timeout=0.2)


@pytest_twisted.ensureDeferred
async def test_publishers_of_a_stated_form_are_found_by_name_too(zone: Zone) -> None:
    """An endpoint with a form connects to each address of its name."""
    port, box, context = free_port_of_all(), Mailbox[bytes](), zmq.Context()
    app = App(sub={f"tcp://{NAME}:{port}": Frames(separator=b" ")})

    @app.subscribe("a")
    def take(body: bytes) -> None:
        box.put(body)

    zone.addresses = (TWO, THREE)
    sockets = [context.socket(zmq.XPUB) for _ in range(2)]
    try:
        for each, host in zip(sockets, (TWO, THREE), strict=True):
            each.bind(f"tcp://{host}:{port}")
        async with running(app):
            await turns(lambda: all(each.poll(0) for each in sockets))
            await app.ready()
            for number, each in enumerate(sockets):
                each.recv()
                each.send(b"a %d" % number)
            assert sorted(await box.until(2)) == [b"0", b"1"]
    finally:
        for each in sockets:
            each.close(0)
        context.term()


@pytest_twisted.ensureDeferred
async def test_a_proxy_follows_the_name_of_its_publishers(zone: Zone) -> None:
    """A proxy that connects to a name forwards from each of its addresses, also from one that is new."""
    port, box = free_port_of_all(), Mailbox[int]()
    zone.addresses = (TWO,)
    (a, ones), (b, twos) = (feed(host, port) for host in (TWO, THREE))
    proxy = Proxy(reactor, "proxy", print, max_message=MAX_MESSAGE, send_queue=SENT_MAX)
    back = parse_endpoint(free_endpoint(), bind=True)
    proxy.open(parse_endpoint(f"tcp://{NAME}:{port}", bind=False), back)
    proxy.start()
    reader = App(sub=back.address)
    reader.add_route(box.put, "numbers")
    async with running(a), running(b), running(reader):
        await reader.ready(1)
        zone.addresses = (TWO, THREE)
        await reader.ready(2)
        ones.publish(1)
        twos.publish(2)
        assert sorted(await box.until(2)) == [1, 2]
        zone.addresses = (THREE,)
        await turns(lambda: ones.subscribers == 0)
        twos.publish(3)
        await box.until(3)
    await proxy.close()


@pytest.mark.parametrize("returns", [True, False])
@pytest_twisted.ensureDeferred
async def test_while_reading_is_paused_a_vanished_address_stays(zone: Zone, returns: bool) -> None:
    """Messages that wait are read before the address is left; an address that returns in time is never cut."""
    port, gate, handled = free_port_of_all(), Deferred[None](), Mailbox[int]()
    zone.addresses = (TWO, THREE)
    (a, ones), (b, _) = (feed(host, port) for host in (TWO, THREE))
    reader = App(sub=f"tcp://{NAME}:{port}", name="reader")

    async def handle(number: int) -> None:
        await gate
        handled.put(number)

    reader.add_route(handle, "numbers", queue=1, max_in_flight=1)
    async with running(a), running(b), running(reader) as service:
        await reader.ready(2)
        (connection,) = service.transport.readers  # type: ignore[union-attr]
        ended: list[str] = []
        connection.watch(lambda event: ended.append(event.name) if event.name == "disconnected" else None)
        for number in range(50):
            ones.publish(number)
        await turns(lambda: connection.paused)
        zone.addresses = (THREE,)
        asked = zone.asked
        await turns(lambda: zone.asked > asked + 2)
        assert ones.subscribers == 1
        if returns:
            zone.addresses = (TWO, THREE)
            asked = zone.asked
            await turns(lambda: zone.asked > asked + 2)
        gate.callback(None)
        await handled.until(50)
        if returns:
            ones.publish(50)
            await handled.until(51)
            assert (ones.subscribers, ended) == (1, [])
        else:
            await turns(lambda: ones.subscribers == 0)
    assert (reader.stats.lost, reader.stats.unknown_losses, reader.stats.duplicate) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_slow_name_server_does_not_block_the_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor turns while a name server does not answer, and a stop does not wait for it."""
    asked, answers = threading.Event(), threading.Event()

    def wait(_host: str, _prefer_ipv6: bool) -> list[str]:
        asked.set()
        answers.wait(PATIENCE)
        return [TWO]

    monkeypatch.setattr(module, "addresses_of", wait)
    app = App(sub="tcp://feeds.example:1")
    app.add_route(print, "numbers")
    async with running(app):
        await turns(asked.is_set)
    answers.set()


@pytest.mark.parametrize(
    ("endpoint", "followed"),
    [
        ("tcp://feeds:1", True),
        ("tcp://eth0;feeds.example:1", True),
        ("tcp://localhost:1", False),
        ("tcp://127.0.0.1:1", False),
        ("tcp://[::1]:1", False),
        ("ipc:///tmp/feeds:1", False),
        ("bind:tcp://feeds:1", False),
    ],
)
def test_only_names_that_are_dialled_are_followed(endpoint: str, followed: bool) -> None:
    """Addresses, localhost and bound endpoints are left to libzmq, and cost no look-up."""
    assert has_addresses(parse_endpoint(endpoint, bind=False)) is followed


def test_the_system_resolves_names_of_etc_hosts() -> None:
    """A name in /etc/hosts has the address that is there, without a name server."""
    lines = [line.partition("#")[0].split() for line in Path("/etc/hosts").read_text().splitlines()]
    known = {name: address for address, *names in filter(None, lines) for name in names if "." in address}
    for name, address in known.items():
        assert address in addresses_of(name, False)


@pytest.mark.parametrize(
    ("found", "prefer", "taken"),
    [
        (["10.0.0.1", "10.0.0.1", "fd00::1", "10.0.0.2"], False, ["10.0.0.1", "10.0.0.2"]),
        (["10.0.0.1", "fd00::1", "fd00::2"], True, ["fd00::1", "fd00::2"]),
        (["fd00::1"], False, ["fd00::1"]),
        (["10.0.0.1"], True, ["10.0.0.1"]),
    ],
)
def test_addresses_of_one_kind_are_taken(
    monkeypatch: pytest.MonkeyPatch, found: list[str], prefer: bool, taken: list[str]
) -> None:
    """A host with IPv4 and IPv6 is connected once: by IPv4, or with the option ipv6 by IPv6."""
    answer = [(socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, 0)) for each in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    assert addresses_of("feeds", prefer) == taken


@pytest_twisted.ensureDeferred
async def test_a_text_that_is_no_host_name_is_an_error_at_the_start() -> None:
    """Characters that no host name has are an EndpointError; the command exits with 5."""
    app = App(sub="tcp://feeds!:5555")
    app.add_route(print, "numbers")
    with pytest.raises(EndpointError, match="'feeds!' is not a host name"):
        async with running(app):
            pass
    done = zroute("tail", "tcp://feeds!:5555")
    assert done.returncode == 5
    assert "'feeds!' is not a host name" in done.stderr


@pytest_twisted.ensureDeferred
async def test_each_name_has_its_own_addresses(zone: Zone) -> None:
    """The source address of an endpoint stays, and each endpoint follows its name until it is closed."""
    changes: list[str] = []
    names = module.Names(
        reactor, "app", lambda each: changes.append(f"+{each}"), lambda each: changes.append(f"-{each}")
    )
    zone.addresses = (TWO,)
    first, second = f"tcp://{NAME}:1", f"tcp://lo;{NAME}:1"
    names.follow(first)
    await turns(lambda: changes)
    names.follow(second)
    await turns(lambda: names.of(second))
    assert changes == [f"+tcp://{TWO}:1", f"+tcp://lo;{TWO}:1"]
    zone.addresses = (THREE,)
    await turns(lambda: len(changes) == 6)
    names.close()
    assert names.of(first) == ()
    changed = (f"+tcp://{THREE}:1", f"-tcp://{TWO}:1")
    assert set(changes[2:]) == {*changed, *(each.replace("//", "//lo;") for each in changed)}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("side", ["sub", "req", "work"])
async def test_an_address_that_is_an_endpoint_too_stays_when_the_name_moves_away(zone: Zone, side: str) -> None:
    """A name that had the address of another endpoint for a while takes nothing away from this endpoint."""
    zone.addresses, port = (TWO,), free_port_of_all()
    own, moving, box = f"tcp://{TWO}:{port}", f"tcp://{NAME}:{port}", Mailbox[int]()
    peer = App(name="peer", **{{"sub": "pub", "req": "rep", "work": "jobs"}[side]: own})
    app = App(name="app", **{side: [own, moving]})
    if side == "sub":
        app.subscribe("numbers")(box.put)
        numbers = peer.publisher("numbers", int)
    elif side == "req":
        peer.reply("numbers")(lambda: box.put(1))
    else:
        app.work("numbers", thread=False)(box.put)
        jobs = peer.job_queue("numbers", int)

    async def hear() -> None:
        number = len(box.items) + 1
        if side == "sub":
            numbers.publish(1)
        elif side == "req":
            await app.request("numbers", None, None)
        else:
            await jobs.put(1)
        await box.until(number)

    async with running(peer), running(app):
        await turns(lambda: zone.asked > 1)
        if side == "sub":
            await app.ready(1)
        await hear()
        zone.addresses, asked = (THREE,), zone.asked
        await turns(lambda: zone.asked > asked + 2)
        await hear()
        await turns(lambda: zone.asked > asked + 4)
        assert len(box.items) == 2


@pytest_twisted.ensureDeferred
async def test_a_name_connects_an_address_whose_endpoint_was_closed(zone: Zone) -> None:
    """While an endpoint has the address, the name leaves it alone; then it is one of the name's again."""
    changes: list[str] = []
    names = module.Names(
        reactor, "app", lambda each: changes.append(f"+{each}"), lambda each: changes.append(f"-{each}")
    )
    zone.addresses = (TWO, THREE)
    names.keep(f"tcp://{TWO}:1")
    names.follow(f"tcp://{NAME}:1")
    await turns(lambda: changes)
    assert changes == [f"+tcp://{THREE}:1"]
    names.release(f"tcp://{TWO}:1")
    await turns(lambda: len(changes) > 1)
    names.close()
    assert changes[1:] == [f"+tcp://{TWO}:1"]


@pytest_twisted.ensureDeferred
async def test_an_address_of_two_names_is_connected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of one host: its address is connected once, until neither name has it."""
    answers, changes = {"a": [TWO], "b": [TWO]}, list[str]()
    monkeypatch.setattr(module, "addresses_of", lambda host, _: answers[host])
    monkeypatch.setattr(module, "EVERY", 0.02)
    names = module.Names(
        reactor, "app", lambda each: changes.append(f"+{each}"), lambda each: changes.append(f"-{each}")
    )
    for host in "ab":
        names.follow(f"tcp://{host}:1")
    await turns(lambda: names.of("tcp://a:1") and names.of("tcp://b:1"))
    answers["a"] = [THREE]
    await turns(lambda: names.of("tcp://a:1") == (f"tcp://{THREE}:1",))
    assert changes == [f"+tcp://{TWO}:1", f"+tcp://{THREE}:1"]
    answers["b"] = [THREE]
    await turns(lambda: names.of("tcp://b:1") == (f"tcp://{THREE}:1",))
    assert changes == [f"+tcp://{TWO}:1", f"+tcp://{THREE}:1", f"-tcp://{TWO}:1"]
    assert names.forget("tcp://a:1") == ()
    assert names.forget("tcp://b:1") == (f"tcp://{THREE}:1",)
    names.close()


SERVER = """
import sys
from twisted.internet import reactor
from tests.acceptance.zone import NAME, Zone

reactor.listenUDP(53, Zone(*sys.argv[1:]).protocol(), interface="127.0.0.1")
reactor.callWhenRunning(print, "serving", flush=True)
reactor.run()
"""

FEED = """
import sys
from zroute import App

app = App(pub=sys.argv[1], name=sys.argv[2])

@app.publisher("who", every=0.05)
def who() -> str:
    return sys.argv[2]

app.run()
"""

INSIDE = f"""
import subprocess, sys
from tests.support import Child

with (
    Child("-c", {SERVER!r}, "{TWO}", "{THREE}", fresh=True) as server,
    Child("-c", {FEED!r}, "tcp://{TWO}:5555", "two", fresh=True),
    Child("-c", {FEED!r}, "tcp://{THREE}:5555", "three", fresh=True),
):
    server.line_with("serving")
    with Child("-m", "zroute", "tail", "tcp://feeds:5555", "--json", fresh=True) as tail:
        for name in ("two", "three"):
            tail.line_with('"' + name + '"')
        tail.end()
        print(*tail.err, sep="\\n")
"""


def test_the_system_s_resolver_finds_all_addresses_of_a_short_name(tmp_path: Path) -> None:
    """`zroute tail tcp://feeds:5555` reads both publishers of a name in the search domain of /etc/resolv.conf."""
    unshare = shutil.which("unshare")
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch example\n")
    alone = [unshare or "unshare", "--map-root-user", "--user", "--net", "--mount", "sh", "-c"]
    set_up = f"ip link set lo up && mount --bind {conf} /etc/resolv.conf && "
    if unshare is None or subprocess.run([*alone, set_up + "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a network and a mount namespace of its own (unshare, ip)")
    done = subprocess.run(
        [*alone, set_up + 'exec "$0" -c "$1"', sys.executable, INSIDE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "zroute: connects to tcp://feeds:5555" in done.stdout
