"""A forged number while messages are recovered: the recovery ends when the publisher corrects the account.

Both ends are the real ones, as in `tests.receiving.test_replay`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from tests.pure import packed
from tests.receiving.test_replay import PREFIXES, Network, Publisher
from zroute.messages.recovery import BOX
from zroute.messages.wire import counted_framer

FORGED = -1
AHEAD = 1_000
TOPIC = b"a.1"


@attrs.frozen
class _Counted:
    """A number of a subscription."""

    length: int
    number: int


def quiet_network() -> Network:
    """Return the network of an app that recovers, which loses nothing."""
    net = Network(random.Random(1), None, suffices=True, recover=True)
    net.lost = net.answers_lost = net.requests_lost = net.doubled = 0
    return net


def until(net: Network, true: Callable[[], Any]) -> None:
    """Let the time pass until a condition is true."""
    for _ in range(2_000):
        if true():
            return
        net.step()
    raise AssertionError("never")


def forge(net: Network, publisher: Publisher) -> None:
    """Send a message in the name of a publisher, with a number far ahead."""
    numbers = [_Counted(2, AHEAD)]
    frame = counted_framer(epoch=publisher.epoch, count=lambda topic: numbers, clock_ns=net.now_ns)
    made = frame(TOPIC, 1, packed(FORGED), None)
    assert isinstance(made, bytes)
    net.live.append(made)


@pytest.mark.parametrize("answered", [True, False])
def test_a_correction_ends_the_recovery_that_a_forged_number_began(answered: bool) -> None:
    """The app asks for messages that were never sent; after the correction, the counters are exact, and all goes on.

    Without answers, the recovery is still under way when the correction arrives.
    """
    net = quiet_network()
    publisher = net.start()
    net.session.listen(net, PREFIXES)
    until(net, lambda: net.session.complete)
    key = f"{publisher.epoch:016x}", TOPIC
    for _ in range(5):
        publisher.publish(TOPIC, 1)
    until(net, lambda: len(net.handled[key]) == 5)
    net.answers_lost = 0 if answered else 1
    forge(net, publisher)
    until(net, lambda: net.recoveries.busy or net.wired.stats.lost)
    if answered:
        until(net, lambda: net.wired.stats.lost == AHEAD - 6)
    else:
        assert net.wired.stats.lost == 0
    account = net.session.account(publisher.epoch, TOPIC, b"a.")
    assert account.expected == AHEAD + 1
    sent = 5
    while account.expected > AHEAD:
        publisher.publish(TOPIC, 1)
        sent += 1
        net.step()
        assert sent < 100, "the account was never corrected"
    assert not net.recoveries.recovers(publisher.epoch)
    net.answers_lost = 0
    until(net, lambda: net.idle)
    for _ in range(10):
        publisher.publish(TOPIC, 1)
        publisher.publish(b"b.1", 1)
        sent += 1
        net.step()
    until(net, lambda: net.idle)
    stats, handled = net.wired.stats, [number for number in net.handled[key] if number != FORGED]
    assert handled == sorted(set(handled))
    assert handled[-10:] == list(range(sent - 9, sent + 1))
    assert net.handled[key].count(FORGED) == 1
    assert len(net.handled[key[0], b"b.1"]) == 10
    assert len(handled) + stats.lost == sent
    # With answers, the messages after the forged one are refused. Without, they fill what seems to be a gap.
    assert (stats.lost > 0) == answered
    assert (stats.unknown_losses, stats.malformed) == (0, 0)
    assert net.wired.balanced()
    # A real loss is recovered again.
    net.lost = 1
    publisher.publish(TOPIC, 3)
    net.lost = 0
    publisher.publish(TOPIC, 1)
    before = stats.lost
    until(net, lambda: net.handled[key][-1] == sent + 4)
    assert net.handled[key][-4:] == list(range(sent + 1, sent + 5))
    assert stats.lost == before
    assert not any(frame.startswith(BOX) for frame in net.live)
