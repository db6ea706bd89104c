"""The connections of a socket, from recorded events of libzmq."""

from __future__ import annotations

from zroute.sockets.events import SocketEvent
from zroute.sockets.links import Link, Links

ADDRESS, NAME, OTHER, SIX = "tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://feed.test:5555", "tcp://[::1]:5555"


def told(links: Links, *events: tuple[str, str, int]) -> Link | None:
    """Feed events, each with name, address and value; return the last result."""
    link = None
    for name, address, value in events:
        link = links.seen(SocketEvent(name, address, value))
    return link


def dialled(*endpoints: str) -> Links:
    """Return the Links of a socket that connects to these endpoints."""
    links = Links()
    for endpoint in endpoints:
        links.dial(endpoint)
    return links


def up(text: str, fd: int) -> tuple[tuple[str, str, int], ...]:
    """Return the events of a connection that begins."""
    return ("connect_delayed", text, 115), ("connected", text, fd), ("handshake_succeeded", text, 0)


def test_an_address_is_connected_from_its_handshake_to_its_end() -> None:
    """A connection counts from its handshake to its end; the next one has a new id."""
    links = dialled(ADDRESS)
    link = told(links, *up(ADDRESS, 16)[:2])
    assert link is not None
    assert (links.ready, len(links), links.connected(ADDRESS), links.is_dialled(ADDRESS)) == ((), 0, False, True)
    assert told(links, *up(ADDRESS, 16)[2:]) is link
    assert (links.ready, links.connected(ADDRESS), links.at(16)) == ((link.id,), True, link)
    assert told(links, ("disconnected", ADDRESS, 16)) is link
    assert (links.ready, links.connected(ADDRESS), links.at(16), links.get(link.id)) == ((), False, None, None)
    assert links.attempted(ADDRESS) == ADDRESS
    told(links, ("closed", ADDRESS, 8), *up(ADDRESS, 11))
    assert links.ready == (link.id + 1,)


def test_a_name_is_one_endpoint_under_both_its_texts() -> None:
    """An endpoint with a host name is recognized when libzmq uses the resolved address."""
    links = dialled(NAME)
    first = told(links, *up(NAME, 16))
    assert first is not None
    told(links, ("disconnected", NAME, 16))
    assert links.attempted(ADDRESS) == NAME
    second = told(links, *up(ADDRESS, 11))
    assert second is not None
    assert (second.endpoint, second.address, links.connected(NAME)) == (NAME, ADDRESS, True)
    assert told(links, ("disconnected", ADDRESS, 11)) is second
    assert links.attempted(ADDRESS) == NAME
    third = told(links, *up(ADDRESS, 16))
    assert third is not None
    assert (third.endpoint, links.ready) == (NAME, (third.id,))


def test_two_names_of_one_port_are_two_endpoints() -> None:
    """If two names with the same address end, the first to be lost is the first that is tried again."""
    links = dialled(NAME, OTHER)
    told(links, *up(NAME, 26)[:2], *up(OTHER, 27)[:2], *up(OTHER, 27)[2:])
    assert (links.connected(NAME), links.connected(OTHER)) == (False, True)
    told(links, *up(NAME, 26)[2:], ("disconnected", OTHER, 27), ("disconnected", NAME, 26))
    assert [links.attempted(ADDRESS), links.attempted(ADDRESS)] == [OTHER, NAME]
    first, second = told(links, *up(ADDRESS, 28)), told(links, *up(ADDRESS, 30))
    assert first is not None
    assert second is not None
    assert [first.endpoint, second.endpoint, len(links)] == [OTHER, NAME, 2]


def test_a_resolved_text_tells_names_of_one_port_apart() -> None:
    """If the address of the peer is known, an attempt belongs to the name with this address."""
    links = dialled(NAME, OTHER)
    first, second = told(links, *up(NAME, 26)), told(links, *up(OTHER, 27))
    assert first is not None
    assert second is not None
    links.learn(first, ADDRESS)
    links.learn(second, "tcp://10.1.2.3:5555")
    told(links, ("disconnected", NAME, 26), ("disconnected", OTHER, 27))
    assert links.attempted("tcp://10.1.2.3:5555") == OTHER
    assert links.attempted("tcp://10.9.9.9:5555") is None
    assert links.attempted(ADDRESS) == NAME


def test_a_name_beside_its_own_address_takes_no_connection_of_it() -> None:
    """localhost and 127.0.0.1 as two endpoints: each has its own connection."""
    links = dialled(NAME, ADDRESS)
    told(links, *up(NAME, 26), *up(ADDRESS, 27), ("disconnected", NAME, 26))
    assert links.attempted(ADDRESS) == NAME
    link = told(links, *up(ADDRESS, 28))
    assert link is not None
    assert (link.endpoint, links.connected(NAME), links.connected(ADDRESS)) == (NAME, True, True)


def test_an_address_of_version_6_is_one_of_its_own() -> None:
    """The colons of an IPv6 address are no port; an IPv4 address with the same port is another endpoint."""
    links = dialled(SIX, ADDRESS)
    told(links, *up(SIX, 36))
    assert (links.connected(SIX), links.connected(ADDRESS)) == (True, False)
    told(links, ("disconnected", SIX, 36))
    assert links.attempted(SIX) == SIX


def test_accepted_connections_are_counted_and_have_no_endpoint() -> None:
    """The handshake of a wildcard address belongs to the oldest pending connection."""
    links = Links()
    first = told(links, ("listening", "tcp://0.0.0.0:5555", 9), ("accepted", "tcp://0.0.0.0:5555", 17))
    second = told(links, ("accepted", "tcp://0.0.0.0:5555", 18))
    assert first is not None
    assert second is not None
    assert (first.endpoint, len(links)) == (None, 0)
    assert told(links, ("handshake_succeeded", ADDRESS, 0)) is first
    assert told(links, ("handshake_succeeded", ADDRESS, 0)) is second
    assert (links.ready, links.connected("tcp://0.0.0.0:5555")) == ((first.id, second.id), True)
    told(links, ("disconnected", ADDRESS, 17))
    assert links.ready == (second.id,)
    links.unbind("tcp://0.0.0.0:5555")
    assert (links.ready, links.at(18)) == ((), None)


def test_a_handshake_is_that_of_the_endpoint_whose_text_it_has() -> None:
    """The younger of two pending handshakes may finish first; an event that fits none is ignored."""
    links = dialled(ADDRESS, SIX)
    first, second = told(links, *up(ADDRESS, 16)[:2]), told(links, *up(SIX, 17)[:2])
    assert first is not None
    assert second is not None
    assert told(links, *up(SIX, 17)[2:]) is second
    assert (links.ready, first.ready) == ((second.id,), False)
    assert told(links, ("handshake_succeeded", "tcp://127.0.0.9:1", 0)) is first
    assert told(links, ("handshake_succeeded", ADDRESS, 0)) is None


def test_the_event_of_a_handshake_may_follow_the_first_message() -> None:
    """An event that is read after a first message is still of its own connection."""
    links = dialled(ADDRESS, SIX)
    first, second = told(links, *up(ADDRESS, 16)[:2]), told(links, *up(SIX, 17)[:2])
    assert first is not None
    assert second is not None
    links.heard(second)
    assert (links.ready, links.greeting) == ((second.id,), 1)
    assert told(links, *up(SIX, 17)[2:]) is second
    assert (first.ready, links.greeting) == (False, 1)
    assert told(links, *up(ADDRESS, 16)[2:]) is first


def test_a_half_open_connection_does_not_take_the_events_of_others_for_good() -> None:
    """At a bound address, a message corrects whose handshake an event reported."""
    links, bound = Links(), "tcp://0.0.0.0:5555"
    told(links, ("accepted", bound, 16))  # sends nothing, like a check of the port
    second = told(links, ("accepted", bound, 17), ("handshake_succeeded", bound, 0)) and links.at(17)
    assert second is not None
    links.heard(second)
    third = told(links, ("accepted", bound, 18))
    assert third is not None
    assert told(links, ("handshake_succeeded", bound, 0)) is third
    told(links, ("disconnected", bound, 16))
    assert (links.ready, links.greeting) == ((second.id, third.id), 0)


def test_a_descriptor_that_is_used_again_is_another_connection() -> None:
    """A reused descriptor gets a new id, and is doubtful until all messages of the old one are read."""
    links = dialled(ADDRESS)
    first = told(links, *up(ADDRESS, 16))
    told(links, ("disconnected", ADDRESS, 16))
    second = told(links, *up(ADDRESS, 16))
    assert first is not None
    assert second is not None
    assert (first.id != second.id, first.doubtful, second.doubtful) == (True, False, True)
    links.read_all()
    assert not second.doubtful
    told(links, ("disconnected", ADDRESS, 16))
    links.read_all()
    third = told(links, *up(ADDRESS, 16))
    assert third is not None
    assert not third.doubtful


def test_an_end_that_was_not_told_leaves_nothing_behind() -> None:
    """A new connection replaces an older one with the same descriptor or endpoint."""
    links = dialled(ADDRESS)
    told(links, *up(ADDRESS, 16), *up(ADDRESS, 17))
    assert (len(links), links.at(16)) == (1, None)
    link = told(links, ("accepted", SIX, 17))
    assert (links.at(17), len(links)) == (link, 0)


def test_what_is_taken_back_is_forgotten() -> None:
    """A disconnected endpoint loses its connection without an event, and later events are ignored."""
    links = dialled(ADDRESS, SIX)
    told(links, *up(ADDRESS, 16), *up(SIX, 17))
    links.hang_up(ADDRESS)
    assert (len(links), links.connected(ADDRESS), links.is_dialled(ADDRESS)) == (1, False, False)
    assert told(links, ("connected", "tcp://10.0.0.1:1", 18)) is None
    assert told(links, ("disconnected", ADDRESS, 16)) is None
    assert links.attempted("tcp://10.0.0.1:1") is None
