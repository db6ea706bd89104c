"""Options and limits: data, each with its reason, and each known to libzmq."""

from __future__ import annotations

import pytest
import zmq

from zroute import options
from zroute.options import MAX_TOPIC, publisher_options, subscriber_options

BOTH = pytest.mark.parametrize("chosen", [subscriber_options(), publisher_options()], ids=["sub", "pub"])


@BOTH
def test_each_option_is_libzmqs_and_has_its_reason(chosen: tuple[options.Option, ...]) -> None:
    """I can look up every option by its name and read why it is set."""
    for option in chosen:
        assert hasattr(zmq.SocketOption, option.name)
        assert option.why
    names = [option.name for option in chosen]
    assert len(set(names)) == len(names)


@BOTH
def test_no_socket_lingers_forever(chosen: tuple[options.Option, ...]) -> None:
    """A stop ends, also with peers that can't be reached."""
    assert all(option.value >= 0 for option in chosen)


def test_the_largest_message_fits_with_its_topic_and_header() -> None:
    """A body as large as max_message is not cut by the socket."""
    (limit,) = (option.value for option in subscriber_options(1000) if option.name == "MAXMSGSIZE")
    assert limit >= 1000 + MAX_TOPIC + 1 + 32 + options.HEADERS_MAX


def test_the_longest_subscription_fits_a_publishers_limit() -> None:
    """A topic of full length can be subscribed to."""
    (limit,) = (option.value for option in publisher_options() if option.name == "MAXMSGSIZE")
    assert limit >= 10 + MAX_TOPIC


def test_subscriptions_are_never_dropped_by_the_subscriber() -> None:
    """Subscriptions are messages, and the queue for them is unlimited."""
    assert {option.name: option.value for option in subscriber_options()}["SNDHWM"] == 0
