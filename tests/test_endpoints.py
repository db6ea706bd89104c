"""Endpoints: texts are parsed, or are errors with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from zroute import App, EndpointError
from zroute.endpoints import Endpoint, parse_endpoint, parse_endpoints


@pytest.mark.parametrize(
    ("text", "bind", "address", "binds"),
    [
        ("tcp://127.0.0.1:5555", False, "tcp://127.0.0.1:5555", False),
        ("tcp://127.0.0.1:5555", True, "tcp://127.0.0.1:5555", True),
        ("bind:tcp://*:*", False, "tcp://*:*", True),
        ("connect:tcp://host.example:1", True, "tcp://host.example:1", False),
        ("tcp://[::1]:5555", False, "tcp://[::1]:5555", False),
        ("tcp://eth0;10.0.0.1:5555", False, "tcp://eth0;10.0.0.1:5555", False),
        ("tcp://127.0.0.1:0", True, "tcp://127.0.0.1:0", True),
        ("ipc:///tmp/a", False, "ipc:///tmp/a", False),
        ("ipc://*", True, "ipc://*", True),
        ("inproc://a", True, "inproc://a", True),
    ],
)
def test_an_endpoint_says_where_and_whether_to_bind(text: str, bind: bool, address: str, binds: bool) -> None:
    """bind: and connect: before an address override the default of the side."""
    assert parse_endpoint(text, bind=bind) == Endpoint(address, binds)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("127.0.0.1:5555", "'tcp://127.0.0.1:5555'"),
        ("", "has no transport"),
        ("bind:", "has no transport"),
        ("http://x:1", "unknown transport 'http'"),
        ("nats://x:4222", "servers of NATS belong in App(nats=…) or --nats"),
        ("tcp://", "no usable address"),
        ("tcp://a b:1", "no usable address"),
        ("ipc://a\0", "no usable address"),
        ("tcp://127.0.0.1", "does not have the form 'tcp://host:port'"),
        ("tcp://::1:5", "does not have the form 'tcp://host:port'"),
        ("tcp://127.0.0.1:x", "does not have the form 'tcp://host:port'"),
        ("tcp://127.0.0.1:65536", "at most 65535"),
        ("tcp://*:5555", "has no specific host or port"),
        ("tcp://127.0.0.1:*", "has no specific host or port"),
        ("tcp://127.0.0.1:0", "has no specific host or port"),
        ("ipc://*", "connects to '*'"),
        ("ipc://" + "x" * 108, "at most 107"),
        ("tcp://feed@127.0.0.1:1", "has the name of a peer after tcp://: write 'feed@tcp://127.0.0.1:1'"),
        ("connect:tcp://feed@a:1", "write 'feed@tcp://a:1'"),
        ("feed@connect:tcp://a:1", "has 'connect:' after the name of the peer: write 'connect:feed@tcp://a:1'"),
        ("feed@bind:tcp://a:1", "write 'bind:tcp://a:1', because an endpoint that binds names no peer"),
        ("feed@@tcp://a:1", "has two '@' after the name of the peer: write 'feed@tcp://a:1'"),
    ],
)
def test_what_would_never_deliver_is_refused(text: str, says: str) -> None:
    """The error of an invalid endpoint quotes it and names the remedy."""
    with pytest.raises(EndpointError) as caught:
        parse_endpoint(text, bind=False)
    assert says in str(caught.value)
    assert caught.value.endpoint == text


@pytest.mark.parametrize("given", [5, b"tcp://127.0.0.1:1", None])
def test_what_is_no_text_is_refused(given: Any) -> None:
    """An endpoint that is not text is an error."""
    with pytest.raises(EndpointError, match="an endpoint must be text"):
        parse_endpoint(given, bind=True)


def test_one_or_several_are_kept_in_order() -> None:
    """A string is one endpoint, a list is several."""
    assert parse_endpoints("tcp://h:1", bind=False) == (Endpoint("tcp://h:1", False),)
    assert [str(e) for e in parse_endpoints(["tcp://h:2", "bind:tcp://h:1"], bind=False)] == [
        "connect:tcp://h:2",
        "bind:tcp://h:1",
    ]
    assert parse_endpoints((), bind=False) == ()


def test_the_same_one_twice_is_refused() -> None:
    """A repeated address is an error; a repeated port `*` means two ports."""
    with pytest.raises(EndpointError, match="is given twice"):
        parse_endpoints(["tcp://h:1", "tcp://h:1"], bind=False)
    assert len(parse_endpoints(["tcp://127.0.0.1:*"] * 2, bind=True)) == 2


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("bind:tcp://*:1", True),
        ("bind:tcp://0.0.0.0:1", True),
        ("bind:tcp://127.0.0.1:1", False),
        ("bind:tcp://localhost:1", False),
        ("bind:tcp://[::1]:1", False),
        ("bind:tcp://[::ffff:127.0.0.1]:1", False),
        ("bind:tcp://[::ffff:10.0.0.1]:1", True),
        ("bind:tcp://127.1.2.3:1", False),
        ("bind:tcp://lo:1", False),
        ("bind:tcp://lo0:*", False),
        ("bind:tcp://lowlands:1", True),
        ("bind:tcp://localhost.example.org:1", True),
        ("bind:tcp://eth0:1", True),
        ("connect:tcp://10.0.0.1:1", False),
        ("bind:ipc://x", False),
    ],
)
def test_what_other_hosts_can_reach_is_known(text: str, is_open: bool) -> None:
    """An address that other hosts can reach is recognized."""
    assert parse_endpoint(text, bind=True).is_open is is_open


def test_a_bound_name_is_judged_by_its_address() -> None:
    """A host name is open or not by the address that the socket has bound for it."""
    endpoint = parse_endpoint("tcp://desk:*", bind=True)
    assert not endpoint.resolved("tcp://127.0.0.1:5555").is_open
    assert endpoint.resolved("tcp://10.0.0.1:5555").is_open
    assert not parse_endpoint("tcp://desk:1", bind=False).resolved("tcp://10.0.0.1:1").is_open


def test_one_address_has_one_peer() -> None:
    """The program there has one key, and libzmq would connect only once."""
    with pytest.raises(
        EndpointError, match="has the address of 'a@tcp://h:1', but another peer: remove one of the two"
    ):
        parse_endpoints(["a@tcp://h:1", "b@tcp://h:1"], bind=False)
    with pytest.raises(EndpointError, match="is given twice"):
        parse_endpoints(["a@tcp://h:1", "a@tcp://h:1"], bind=False)
    assert len(parse_endpoints(["a@tcp://h:1", "b@tcp://h:2", "a@tcp://i:1"], bind=False)) == 3


@pytest.mark.parametrize(
    ("text", "surely"),
    [
        ("tcp://*:1", True),
        ("tcp://0.0.0.0:*", True),
        ("tcp://10.0.0.1:1", True),
        ("tcp://[::]:1", True),
        ("tcp://desk:1", False),  # may be a name of 127.0.0.1
        ("tcp://eth0:1", False),
        ("tcp://127.0.0.1:1", False),
        ("connect:tcp://10.0.0.1:1", False),
        ("ipc://x", False),
    ],
)
def test_an_open_address_is_known_before_the_bind_unless_it_is_a_name(text: str, surely: bool) -> None:
    """Only an address that can't turn out to be loopback is refused before the start."""
    assert parse_endpoint(text, bind=True).is_surely_open is surely


@pytest.mark.parametrize(
    ("rep", "pub", "clashes"),
    [
        ("tcp://127.0.0.1:7514", "tcp://127.0.0.1:7514", True),
        ("tcp://127.0.0.1:7514", "tcp://*:7514", True),
        ("tcp://0.0.0.0:7514", "tcp://*:7514", True),
        ("tcp://LOCALHOST:7514", "tcp://127.0.0.1:07514", True),
        ("ipc:///tmp/a", "ipc:///tmp/a", True),
        ("inproc://a", "inproc://a", True),
        ("tcp://127.0.0.1:7514", "tcp://127.0.0.1:7515", False),
        ("tcp://127.0.0.1:7514", "tcp://127.0.0.2:7514", False),
        ("tcp://[::1]:7514", "tcp://*:7514", False),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", False),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", False),
        ("ipc://*", "ipc://*", False),
        ("ipc:///tmp/a", "inproc:///tmp/a", False),
        ("tcp://127.0.0.1:7514", "connect:tcp://127.0.0.1:7514", False),
    ],
)
def test_two_sides_that_bind_one_address_are_told_apart(rep: str, pub: str, clashes: bool) -> None:
    """An app that would take its own address is refused before it starts, with both parameters."""
    app = App(rep=rep, pub=pub)
    if clashes:
        with pytest.raises(EndpointError, match="pub= and rep= both bind") as error:
            app.endpoints()
        assert error.value.where == app.where
    else:
        app.endpoints()


def test_sub_and_pub_that_both_bind_one_address_are_refused() -> None:
    """Sides that bind only because of `bind:` are compared, too; an app may still receive its own messages."""
    address = "tcp://127.0.0.1:7514"
    with pytest.raises(EndpointError, match="sub= and pub= both bind"):
        App(sub=f"bind:{address}", pub=address).endpoints()
    App(sub=address, pub=address).endpoints()
