"""Options and limits: each has a reason, and libzmq knows each option."""

from __future__ import annotations

import re
from typing import Any

import pytest
import zmq

from zroute import options
from zroute.options import MAX_TOPIC, SocketOptions, publisher_options, socket_options, subscriber_options, with_options

KINDS = ("PUB", "SUB", "XPUB", "XSUB", "PUSH", "PULL", "REQ", "REP", "ROUTER", "DEALER", "PAIR")
BOTH = pytest.mark.parametrize("chosen", [socket_options(kind) for kind in KINDS], ids=KINDS)


@BOTH
def test_each_option_is_libzmqs_and_has_its_reason(chosen: tuple[options.Option, ...]) -> None:
    """Each option has libzmq's name and a reason."""
    for option in chosen:
        assert hasattr(zmq.SocketOption, option.name)
        assert option.why
    names = [option.name for option in chosen]
    assert len(set(names)) == len(names)


@BOTH
def test_no_socket_lingers_forever(chosen: tuple[options.Option, ...]) -> None:
    """No linger is unlimited: a stop ends even if peers are unreachable."""
    assert all(isinstance(option.value, int) and option.value >= 0 for option in chosen)


def test_the_largest_message_fits_with_its_topic_and_header() -> None:
    """A message with a body of max_message bytes fits in MAXMSGSIZE."""
    assert options.frame_limit(1000) >= 1000 + MAX_TOPIC + 1 + 32 + options.HEADERS_MAX


def test_the_longest_subscription_fits_a_publishers_limit() -> None:
    """A subscription to the longest topic fits in a publisher's MAXMSGSIZE."""
    (limit,) = (option.value for option in publisher_options() if option.name == "MAXMSGSIZE")
    assert isinstance(limit, int)
    assert limit >= 10 + MAX_TOPIC


def test_subscriptions_are_never_dropped_by_the_subscriber() -> None:
    """A subscriber's queue of subscriptions is unlimited."""
    assert {option.name: option.value for option in subscriber_options()}["SNDHWM"] == 0


def test_each_keyword_is_an_option_of_libzmq() -> None:
    """Each keyword in capitals is an option of libzmq, except ``ipc_mode``, which libzmq does not have."""
    foreign = [name for name in SocketOptions.__annotations__ if not hasattr(zmq.SocketOption, name.upper())]
    assert foreign == list(options._NOT_LIBZMQS) == ["ipc_mode"]
    chosen = with_options(socket_options("PUSH"), {"ipc_mode": 0o666})
    assert chosen == with_options(socket_options("PUSH"), {})


def test_what_i_give_stands_in_place_of_the_default() -> None:
    """Given options replace their defaults; the others stay."""
    chosen = with_options(socket_options("PUSH"), {"sndhwm": 7, "identity": b"me"})
    values = {option.name: option.value for option in chosen}
    assert values == {option.name: option.value for option in socket_options("PUSH")} | {"SNDHWM": 7, "IDENTITY": b"me"}
    assert len(values) == len(chosen)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sendhwm": 1}, "unknown socket option 'sendhwm': use one of backlog, connect_timeout, handshake_ivl"),
        ({"sndhwm": "1"}, "socket option sndhwm: expected int, got '1'"),
        ({"identity": "me"}, "socket option identity: expected bytes, got 'me'"),
        ({"linger": -1}, "socket option linger: expected int of at least 0, got -1"),
        ({"ipc_mode": "600"}, "socket option ipc_mode: expected int, got '600'"),
        ({"ipc_mode": -1}, "socket option ipc_mode=-0o1: expected the mode of a file from 0 to 0o777, such as 0o660"),
        ({"ipc_mode": 0o1000}, "socket option ipc_mode=0o1000: expected the mode of a file from 0 to 0o777"),
        ({"ipc_mode": True}, "socket option ipc_mode=True: expected the mode of a file from 0 to 0o777"),
    ],
)
def test_an_option_that_is_none_says_what_there_is(given: Any, says: str) -> None:
    """An unknown option is an error that lists the known ones."""
    with pytest.raises(TypeError, match=re.escape(says)):
        with_options(socket_options("PUSH"), given)


@pytest.mark.parametrize(
    ("queue", "owed"),
    [
        (next(each.value for each in socket_options("ROUTER") if each.name == "SNDHWM"), options.REQUEST_WINDOW),
        (options.JOB_MESSAGES, options.CREDITS_MAX * options.OFFER_PATTERNS),
    ],
    ids=["replies", "jobs"],
)
def test_a_queue_has_room_for_all_that_a_peer_may_wait_for(queue: int, owed: int) -> None:
    """libzmq counts up to half a queue of sent messages as queued, so the other half is enough."""
    assert owed <= queue // 2


def test_libzmq_counts_sent_messages_as_queued() -> None:
    """A queue has no room for another message until its reader has taken half of its messages."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.set(zmq.SNDHWM, 5)
        pull.set(zmq.RCVHWM, 5)  # over inproc, both limits together are the size of the queue
        pull.bind("inproc://queue")
        push.connect("inproc://queue")

        def sent() -> int:
            for number in range(100):
                try:
                    push.send(b"", zmq.NOBLOCK)
                except zmq.Again:
                    return number
            return 100

        assert sent() == 10
        for taken, room in ((4, 0), (1, 5), (4, 0), (1, 5)):
            for _ in range(taken):
                pull.recv()
            push.get(zmq.EVENTS)  # processes the reader's report
            assert sent() == room
