"""Addresses of servers: forms, faults, and hidden passwords."""

from __future__ import annotations

import pytest

from zroute.errors import EndpointError
from zroute.nats.servers import Server, discovered, is_nats, masked, parse_servers


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ("nats://a", [Server("a")]),
        ("nats://a:4223, tls://b/,nats://a:4223", [Server("a", 4223), Server("b", tls=True)]),
        ("nats://[::1]:5", [Server("::1", 5)]),
        ("nats://me:p%40ss%2F1@a", [Server("a", user="me", password="p@ss/1")]),
        ("nats://s3cret@a", [Server("a", token="s3cret")]),
        ("nats://me:@a", [Server("a", user="me", password="")]),
        (["nats://a", "nats://b"], [Server("a"), Server("b")]),
    ],
)
def test_addresses_are_parsed(given: str | list[str], servers: list[Server]) -> None:
    """One or several addresses are parsed, with ports, TLS and logins."""
    assert parse_servers(given) == tuple(servers)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("", "no address of a NATS server"),
        (" , ", "no address of a NATS server"),
        ("a:4222", "no nats:// or tls://"),
        ("tcp://a:1", "no nats:// or tls://"),
        ("ws://a", "WebSockets are not supported"),
        ("nats://", "no host"),
        ("nats://a:x", "Port could not be cast"),
        ("nats://a:99999", "Port out of range"),
        ("nats://[::1", "malformed"),
        ("nats://a/news", "a path after the port"),
        ("nats://a b", "white space"),
    ],
)
def test_faulty_addresses_are_refused(given: str, fault: str) -> None:
    """Each fault is named, with the form that is expected."""
    with pytest.raises(EndpointError, match=fault) as error:
        parse_servers(given)
    assert "nats://host:4222" in str(error.value)


@pytest.mark.parametrize(
    "given", ["nats://me:s3cret@a:x", "nats://s3cret@a/b", "tcp://me:s3cret@a", "nats://me:s3cret@", "ws://s3cret@a"]
)
def test_errors_do_not_show_passwords(given: str) -> None:
    """The error for a faulty address does not show its login."""
    with pytest.raises(EndpointError) as error:
        parse_servers(given)
    assert "s3cret" not in str(error.value) + str(error.value.endpoint)


def test_the_text_of_a_server_has_no_login() -> None:
    """Neither the text nor the repr of a server shows its password or token."""
    servers = parse_servers("nats://me:s3cret@a,tls://s3cret@[::1]")
    assert [str(each) for each in servers] == ["nats://a:4222", "tls://[::1]:4222"]
    assert "s3cret" not in repr(servers)
    assert masked("at nats://me:s3cret@a and tls://s3cret@b") == "at nats://***@a and tls://***@b"


def test_named_servers_have_the_login_of_the_one_that_names_them() -> None:
    """Servers of a cluster get the login, and addresses the name in the certificate; nonsense is ignored."""
    (by,) = parse_servers("tls://me:s3cret@hub:1")
    found = discovered(["b:2", "10.0.0.3:3", "[::1]:4", 5, None, "x:y", "u@v:1", "a\nb"], by)
    assert [str(each) for each in found] == ["tls://b:2", "tls://10.0.0.3:3", "tls://[::1]:4"]
    assert {each.password for each in found} == {"s3cret"}
    assert [each.tls_name for each in found] == [None, "hub", "hub"]
    assert discovered("a", by) == discovered(None, by) == ()
    assert len(discovered([f"a{number}" for number in range(5_000)], by)) == 1_000


def test_an_endpoint_of_nats_is_known_by_its_scheme() -> None:
    """The schemes nats:// and tls:// mean NATS."""
    assert is_nats("nats://a")
    assert is_nats("tls://a")
    assert not is_nats("tcp://a:1")
