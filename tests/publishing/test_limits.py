"""Limits without sockets: budgets, refusals, allowances and sorted names."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from zroute import App, Limits, SignatureError
from zroute.declarations import limits as module
from zroute.messages.control import pack_marker, pack_ping
from zroute.options import NetworkOptions
from zroute.publishing.ordered import Ordered, apart
from zroute.publishing.pacing import Allowance
from zroute.publishing.send_queue import SendQueue
from zroute.publishing.session import PublisherSession
from zroute.sockets.budgets import Budgets
from zroute.sockets.refusals import Refusals
from zroute.testing import TestApp

ALL = [b"", b"x"]  # a summary of all subscriptions


LEAST = {"max_message": 1, "send_queue": 1, "receive_queue": 1, "max_subscription_bytes": 4096}


@pytest.mark.parametrize("wrong", [-1, 0, 4096.0, "1 MiB", None, True, 2**31])
@pytest.mark.parametrize("name", LEAST)
def test_a_limit_that_is_none_is_refused_at_my_line(name: str, wrong: Any) -> None:
    """The error for an invalid limit names the parameter, the valid values and the line."""
    with pytest.raises(
        SignatureError, match=rf"test_limits\.py:\d+: {name}=.*a number of .* from {LEAST[name]:,} to"
    ) as caught:
        App(limits=Limits(**{name: wrong}))
    assert caught.value.parameter == name
    assert getattr(App(limits=Limits(**{name: LEAST[name]})).limits, name) == LEAST[name]


def test_limits_that_are_no_limits_are_refused() -> None:
    """A mapping is no `Limits`."""
    with pytest.raises(SignatureError, match=r"limits=\{\}: expected a Limits object") as caught:
        App(limits={})  # type: ignore[arg-type]
    assert caught.value.parameter == "limits"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tcp_keepalive": 2}, "tcp_keepalive=2: expected a whole number from -1 to 1"),
        ({"sndbuf": "1 MB"}, "sndbuf='1 MB': expected a whole number"),
        ({"ipv6": True}, "ipv6=True: expected a whole number from 0 to 1"),
        ({"reconnect_ivl": -1}, "reconnect_ivl=-1: expected a whole number from 100"),
        ({"ipc_mode": -1}, "ipc_mode=-0o1: expected the mode of a file from 0 to 0o777, such as 0o660"),
        ({"ipc_mode": 0o1600}, "ipc_mode=0o1600: expected the mode of a file from 0 to 0o777"),
        ({"ipc_mode": 660}, "ipc_mode=0o1224: expected the mode of a file from 0 to 0o777, did you mean 0o660?"),
        ({"ipc_mode": "660"}, "ipc_mode='660': expected the mode of a file"),
        ({"ipc_mode": True}, "ipc_mode=True: expected the mode of a file"),
        ({"IPV6": 1}, "'IPV6' must be written in lower case and without ZMQ_: use 'ipv6'"),
        ({"ZMQ_RCVHWM": 1}, r"'ZMQ_RCVHWM' can't be set in an app: use limits=Limits\(receive_queue=…\)"),
        ({"sndhwm": 1}, r"use limits=Limits\(send_queue=…\)"),
        ({"maxmsgsize": 1}, r"use limits=Limits\(max_message=…\)"),
        ({"heartbeat_ivl": 1000}, "with this option, .* ends the process if a publisher dies.*use tcp_keepalive_idle"),
        ({"conflate": 1}, r"use limits=Limits\(receive_queue=1\)"),
        ({"linger": 0}, "use the drain_timeout"),
        ({"curve_serverkey": b"k"}, r"use App\(keys="),
        ({"nodelay": 1}, "'nodelay' is unknown: use one of tcp_keepalive, "),
        ({1: 1}, "1 is unknown"),
        (7, "options=7: expected a mapping"),
    ],
)
def test_a_socket_option_that_is_none_is_refused_at_my_line(options: Any, says: str) -> None:
    """The error for an unknown, owned or invalid socket option says what to write, and names the line."""
    with pytest.raises(SignatureError, match=rf"test_limits\.py:\d+: .*{says}") as caught:
        App(options=options)
    assert caught.value.parameter == "options"


def test_each_socket_option_of_an_app_has_a_range() -> None:
    """Every option in the type has a range, and none of them is refused for another reason."""
    assert module._VALUES.keys() == NetworkOptions.__annotations__.keys()
    assert not module._VALUES.keys() & module._OWNED.keys()
    assert module._RANGES.keys() == {each.name for each in attrs.fields(Limits) if each.type == "int"}


def test_limits_are_given_by_name_and_do_not_change() -> None:
    """The default limit is 1 MiB, and TestApp accepts limits."""
    assert App().limits == Limits() == Limits(max_subscription_bytes=1 << 20)
    with pytest.raises(TypeError):
        Limits(4096)  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Limits().max_subscription_bytes = 1  # type: ignore[misc]
    app = App(pub="tcp://127.0.0.1:5555", limits=Limits(max_subscription_bytes=4096))
    with TestApp(app):
        app.publish("a", 1)


def test_a_prefix_is_on_the_account_of_the_connection_that_asked_first() -> None:
    """An active subscription uses at least 20 bytes of the budget; inproc uses none."""
    budgets = Budgets()
    assert budgets.add(b"a" * 30, 1) == 30
    assert budgets.add(b"b", 1) == 50
    assert budgets.add(b"c", 2) == 20
    assert budgets.add(b"d", None) == 0
    assert budgets.prefixes == {b"a" * 30, b"b", b"c", b"d"}
    assert (budgets.remove(b"a" * 30), budgets.remove(b"a" * 30)) == (True, False)
    assert budgets.add(b"e", 1) == 40
    assert budgets.add(b"e", 1) == 40
    assert budgets.links == {1, 2}
    budgets.close({1})
    assert budgets.links == {2}
    assert budgets.remove(b"b")
    assert budgets.add(b"f", 1) == 20


def test_an_endpoint_is_left_alone_when_it_ends_connections_soon_and_again() -> None:
    """The second refusal within 10 seconds starts pauses that grow to 30 seconds."""
    refusals = Refusals()
    pauses = []
    now = 0.0
    for _ in range(8):
        refusals.began("a", now)
        pauses.append(refusals.ended("a", now + 0.5))
        refusals.attempted("a")
        now += 1 + pauses[-1]
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    refusals.began("a", now)
    assert refusals.ended("a", now + 60) == 0  # the connection was stable, so the pauses start over
    refusals.attempted("a")
    refusals.began("a", now + 61)
    assert refusals.ended("a", now + 62) == 0


@pytest.mark.parametrize(("attempts", "between"), [(2, 0.3), (5, 3.0), (1, 12.0), (0, 1.0)])
def test_a_publisher_that_is_started_again_is_connected_to_at_once(attempts: int, between: float) -> None:
    """A connection that ends because the publisher restarts is not a refusal."""
    refusals = Refusals()
    refusals.began("a", 0.0)
    assert refusals.ended("a", 1.0) == 0
    for _ in range(attempts):
        refusals.attempted("a")
    refusals.began("a", 1.0 + between)
    assert refusals.ended("a", 1.5 + between) == 0


def test_an_allowance_is_there_again_after_its_period() -> None:
    """A timer renews the allowance, and unused units expire."""
    clock, renewed = Clock(), list[int]()
    allowance = Allowance(clock, 10, 0.5, lambda: renewed.append(allowance.left))
    assert not clock.getDelayedCalls()
    allowance.spend(4)
    allowance.spend(9)
    assert allowance.left == -3
    clock.advance(0.5)
    assert (allowance.left, renewed) == (7, [7])
    allowance.spend(1)
    allowance.close()
    assert not clock.getDelayedCalls()


def test_a_piece_of_work_that_is_larger_than_an_allowance_is_paid_for_later() -> None:
    """Work of 20 times the allowance uses up 20 periods."""
    clock, renewed = Clock(), list[int]()
    allowance = Allowance(clock, 10, 0.5, lambda: renewed.append(allowance.left))
    allowance.spend(205)
    clock.pump([0.5] * 19)
    assert (allowance.left, renewed) == (-5, [])
    clock.pump([0.5] * 2)
    assert (allowance.left, renewed) == (5, [5])
    assert not clock.getDelayedCalls()


NAMES = st.binary(max_size=3)


@given(
    st.lists(st.tuples(st.booleans(), NAMES), max_size=200),
    st.sets(NAMES),
    st.lists(NAMES, max_size=4),
    st.none() | NAMES,
)
def test_names_are_found_by_their_prefixes_in_order(
    steps: list[tuple[bool, bytes]], asked: set[bytes], prefixes: list[bytes], after: bytes | None
) -> None:
    """Ordered finds the same names as a search through a set, for random changes."""
    ordered, known = Ordered(), set[bytes]()
    for adds, name in steps:
        if name in known and not adds:
            ordered.discard(name)
            known.remove(name)
        elif adds and name not in known:
            ordered.add(name)
            known.add(name)
        if name in asked:
            assert set(ordered.below([b""])) == known
    found = [name for name in known if name.startswith(tuple(prefixes)) and (after is None or name > after)]
    assert list(ordered.below(apart(prefixes), after)) == sorted(found)


class Compared(bytes):
    """A name that counts comparisons."""

    times = 0

    def __lt__(self, other: bytes) -> bool:
        Compared.times += 1
        return super().__lt__(other)

    __hash__ = bytes.__hash__


def test_names_that_come_and_go_cost_nothing_until_they_are_asked_for() -> None:
    """10,000 additions and removals compare no names before the next search."""
    ordered = Ordered()
    names = [Compared(b"%06d" % number) for number in range(11_000)]
    for name in names[:1000]:
        ordered.add(name)
    assert len(list(ordered.below([b""]))) == 1000
    Compared.times = 0
    for oldest, newest in zip(names, names[1000:], strict=False):
        ordered.add(newest)
        ordered.discard(oldest)
        assert len(ordered._new) + len(ordered._gone) <= 2001
    assert Compared.times == 0
    assert list(ordered.below([b""])) == names[10_000:]


def ending(clock: Clock, sent: list[bytes], many: int = 2000) -> PublisherSession:
    """Return a publisher's session with ``many`` subscriptions that sends to ``sent``."""

    def send(frame: bytes) -> bool:
        sent.append(frame)
        return True

    send_queue = SendQueue(clock, limit=1000, timeout=30, lost=lambda *_: None)
    end = PublisherSession(clock, send_queue, send, lambda: 5, "app", "name", logging.getLogger("test"))
    for number in range(many):
        end.subscription(b"topic%06d" % number, True)
    return end


def test_many_markers_are_answered_a_little_at_a_time() -> None:
    """100 large joins are answered once each, at most three in a turn."""
    clock, sent = Clock(), list[bytes]()
    end = ending(clock, sent)
    for number in range(1, 101):
        end.subscription(pack_marker(number << 16, ALL), True)
        end.subscription(pack_marker(number << 16 | 1, ALL), True)  # only the newest marker of each subscriber waits
    per_turn = [len({frame.partition(b"\0")[0] for frame in sent})]
    while len({frame.partition(b"\0")[0] for frame in sent}) < 101:
        before = len(sent)
        clock.advance(0.01)
        per_turn.append(len({frame.partition(b"\0")[0] for frame in sent[before:]}))
    assert max(per_turn) <= 3
    end.goodbye().addErrback(lambda _: None)
    end.stop()


def topics(sent: list[bytes]) -> list[bytes]:
    """Return the answered subscribers in order."""
    return list(dict.fromkeys(frame.partition(b"\0")[0] for frame in sent))


def test_a_ping_overtakes_200_joins() -> None:
    """A ping is answered within two periods, before many joins."""
    clock, sent = Clock(), list[bytes]()
    end = ending(clock, sent)
    for number in range(1, 201):
        end.subscription(pack_marker(number << 16, ALL), True)
    end.subscription(pack_ping(999 << 16), True)
    clock.pump([0.01] * 2)
    assert topics(sent).index(pack_ping(999 << 16)) < 8
    clock.pump([0.01] * 200)
    assert len(topics(sent)) == 201
    end.stop()


def test_pings_hold_up_no_join_and_are_not_answered_once_they_are_withdrawn() -> None:
    """A join is answered among 10,000 pings, and withdrawn pings are not answered."""
    clock, sent = Clock(), list[bytes]()
    end = ending(clock, sent)
    pings = [pack_ping(number << 16) for number in range(1, 10_001)]
    for ping in pings:
        end.subscription(ping, True)
    answered = set(sent)
    assert len(answered) == 100
    join = pack_marker(99_999 << 16, [b"topic"])
    end.subscription(join, True)
    for ping in pings[5000:]:
        end.subscription(ping, False)
    clock.pump([0.01] * 4)
    assert topics(sent)[150] == join
    clock.pump([0.01] * 200)
    assert set(topics(sent)) == {join, *pings[:5000]}
    end.stop()


def test_many_subscribers_are_told_goodbye_a_little_at_a_time() -> None:
    """Each subscriber receives a goodbye in each round, at most three in a turn."""
    clock, sent = Clock(), list[bytes]()
    end = ending(clock, sent)
    for number in range(1, 51):
        end.subscription(pack_marker(number << 16, ALL), True)
    clock.pump([0.01] * 100)
    sent.clear()
    told = end.goodbye()
    most, seen = 0, set[bytes]()
    while len(seen) < 50:
        turn = {frame.partition(b"\0")[0] for frame in sent}
        most, seen = max(most, len(turn)), seen | turn
        sent.clear()
        clock.advance(0.01)
    assert most <= 3
    assert end.unread == 50
    told.addErrback(lambda _: None)
    told.cancel()


def test_large_goodbyes_are_told_one_in_each_period() -> None:
    """A large goodbye does not use up the allowance of later periods."""
    clock, sent = Clock(), list[bytes]()
    end = ending(clock, sent, 12_000)
    for number in range(1, 21):
        end.subscription(pack_marker(number << 16, ALL), True)
    clock.pump([0.01] * 80)
    assert len(topics(sent)) == 20
    sent.clear()
    told = end.goodbye()
    clock.pump([0.01] * 20)
    assert len(topics(sent)) == 20
    told.addErrback(lambda _: None)
    told.cancel()
