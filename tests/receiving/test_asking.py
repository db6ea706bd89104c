"""SubscriberSession: which questions a subscriber sends to its publishers, and when."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from itertools import pairwise

import pytest
from twisted.internet.task import Clock

from tests.pure import LOG
from zroute.clock import TICK
from zroute.messages.control import FAREWELL, GRACE, MARKER, Statement, pack_statements, parse_marker
from zroute.messages.wire import NUL, Kind, pack_kept, parse_header
from zroute.options import SUBSCRIPTIONS_SLICE
from zroute.receiving.events import LostKept, UnknownLoss
from zroute.receiving.hearing import ANSWER_SECONDS, QUIET_SECONDS
from zroute.receiving.session import SubscriberSession
from zroute.receiving.tracker import PUBLISHERS_MAX
from zroute.stats import Stats

EPOCH = 7


class Network:
    """A transport that records each call; the test decides what it receives."""

    def __init__(self, *links: int) -> None:
        self.links = frozenset(links)
        self.told: list[tuple[bytes, ...]] = []
        self.again: list[list[bytes]] = []
        self.cuts: list[int] = []
        self.closely = False
        self.came_by: int | None = None
        self._heard: set[int] = set()

    @property
    def peers(self) -> int:
        return len(self.links)

    def subscribe(self, subscriptions: Iterable[bytes]) -> None:
        self.told.append(tuple(subscriptions))

    def resubscribe(self, subscriptions: Collection[bytes]) -> None:
        self.again.append(list(subscriptions))

    def emptied(self) -> bool:
        return True

    def listen_closely(self, closely: bool) -> None:
        self.closely = closely

    def heard(self) -> set[int]:
        heard, self._heard = self._heard, set()
        return heard

    def hear(self, link: int) -> None:
        if self.closely:
            self.came_by = link
            self._heard.add(link)

    def dialled(self, link: int) -> str | None:
        return f"tcp://127.0.0.1:{5000 + link % 10}" if link in self.links else None

    def cut(self, link: int) -> str | None:
        """Cut a connection; the new one to the same endpoint has another number."""
        self.cuts.append(link)
        address = self.dialled(link)
        self.links = self.links - {link} | {link + 10}
        return address


class Talk:
    """A subscriber on a virtual clock, and the frames that publishers send to it."""

    def __init__(self, *subscriptions: bytes, links: tuple[int, ...] = (1,)) -> None:
        self.clock, self.network, self.stats = Clock(), Network(*links), Stats()
        self.found: list[object] = []
        self.end = SubscriberSession(self.clock, self.stats, LOG, "app", self.found.append)
        self.end._tracker._chance = lambda: 0.0  # a quiet publisher is pinged after the full time
        self.end.listen(self.network, subscriptions)
        self.subscriptions = subscriptions
        self.clock.advance(0)

    @property
    def marker(self) -> bytes:
        return self.network.told[-1][-1]

    def asked(self) -> list[bytes]:
        """Return the markers and pings that are subscribed to now."""
        return [each for each in self.network.told[-1] if each.startswith(MARKER)]

    def pings(self) -> list[bytes]:
        return [each for each in self.asked() if parse_marker(each).is_ping]

    def answer(
        self, marker: bytes, known: Iterable[bytes], *, link: int = 1, epoch: int = EPOCH, name: str = "p"
    ) -> None:
        """Receive a publisher's answer to a marker or a ping on connection ``link``."""
        self.network.hear(link)
        numbers = [(each, 0) for each in known]
        for frame in pack_statements(Kind.JOIN, marker, numbers, epoch=epoch, name=name, partial=False, sent_at=5):
            topic, _, body = frame.partition(NUL)
            header = parse_header(body)
            self.end.control(header, topic, body[header.size :])

    def keep(self, marker: bytes, number: int, topic: bytes = b"", *, epoch: int = EPOCH) -> None:
        """Receive a kept message or, without a topic, the end of the kept messages."""
        frame = pack_kept(marker, number, topic, 0, b"", None, epoch=epoch, sent_at=5)
        self.end.kept(parse_header(frame.partition(NUL)[2]), marker, topic)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.clock.advance(TICK)


@pytest.fixture
def talk() -> Talk:
    """A subscriber of one prefix; one publisher has answered its marker on connection 1."""
    talk = Talk(b"a")
    talk.answer(talk.marker, [b"a"])
    talk.wait(1)
    assert talk.stats.joins == 1
    return talk


def test_a_subscription_that_gives_way_is_given_up_with_the_publisher_that_needed_it() -> None:
    """A publisher that is given up before it answers about a new pattern no longer keeps the old one subscribed."""
    talk = Talk(b"a.b")
    end, told = talk.end, talk.network.told
    talk.answer(talk.marker, [b"a.b"], epoch=1)
    end.listen(talk.network, [b"a"])
    talk.clock.advance(0)
    assert told[-1][:2] == (b"a", b"a.b")
    for epoch in range(PUBLISHERS_MAX):
        end._tracker.stated(10 + epoch, end._sent[0], Statement(0, 1, f"q{epoch}", False, ((b"a", 0),)))
    talk.clock.advance(TICK)
    assert told[-1][0] == b"a"
    assert b"a.b" not in told[-1]
    end.close()


def test_whoever_connects_during_a_stop_is_not_subscribed_to() -> None:
    """An app that waits for its own goodbyes does not ask a publisher that connects meanwhile."""
    talk = Talk(b"a")
    talk.end.rejoin()
    talk.clock.advance(0)
    told = len(talk.network.told)
    assert told == 3
    talk.end.close()
    talk.end.rejoin()
    talk.clock.advance(10)
    assert len(talk.network.told) == told
    assert not talk.clock.getDelayedCalls()


def test_a_quiet_publisher_is_pinged_now_and_then_and_read_closely_only_meanwhile(talk: Talk) -> None:
    """If nothing is published, pings go out every 20 seconds, and connections are watched only until the answer."""
    pinged, answered = 0, set[bytes]()
    for _ in range(round(95 / TICK)):
        talk.clock.advance(TICK)
        for ping in set(talk.pings()) - answered:
            assert talk.network.closely
            pinged += 1
            answered.add(ping)
            talk.answer(ping, [])
    assert 5 <= pinged <= 9
    talk.wait(2 * GRACE)
    assert not talk.network.closely
    assert (talk.stats.join_retries, talk.network.cuts) == (0, [])
    assert len(talk.asked()) == 1
    talk.end.close()


def test_a_dead_connection_is_cut_once_and_the_new_one_is_left_alone(talk: Talk) -> None:
    """A connection that leaves two pings unanswered is cut; the new one, on which nothing has arrived, is not."""
    talk.wait(QUIET_SECONDS + 2 * ANSWER_SECONDS + 2)
    assert talk.network.cuts == [1]
    talk.end.rejoin()
    talk.wait(60)
    assert talk.network.cuts == [1]
    talk.end.close()
    assert talk.stats.unknown_losses == 1


REVOKED = "is disconnected, because the key of p was revoked"


def test_a_publisher_whose_connection_was_closed_is_not_called_silent(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    """The log gives the reason for the closed connection, and so does the unknown loss at the end."""
    talk.end.closed(frozenset({1}), "the key of p was revoked")
    talk.network.links = frozenset()
    talk.wait(QUIET_SECONDS + 2 * ANSWER_SECONDS + 2)
    assert [text.partition(") ")[2] for text in caplog.messages] == [REVOKED]
    talk.end.close()
    assert [each.why for each in talk.found if isinstance(each, UnknownLoss)] == [
        "was disconnected, because the key of p was revoked"
    ]


@pytest.mark.parametrize("links", [(1, 2), (2,)])
def test_a_reason_applies_only_if_it_closed_all_connections(
    talk: Talk, links: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher that has answered over another connection since then may be silent for another reason."""
    talk.end.closed(frozenset({1}), "the key of p was revoked")
    talk.network.links = frozenset(links)
    talk.end.rejoin()
    talk.clock.advance(0)
    for marker in talk.asked():
        talk.answer(marker, [b"a"], link=2)
    talk.wait(1)
    talk.network.links = frozenset()
    talk.wait(QUIET_SECONDS + 2 * ANSWER_SECONDS + 2)
    talk.end.close()
    assert "is silent: the process is frozen or dead" in caplog.text
    assert REVOKED not in caplog.text
    assert [each.why for each in talk.found if isinstance(each, UnknownLoss)] == [
        "disconnected without sending a goodbye"
    ]


def test_a_reason_for_one_of_two_connections_is_not_that_of_the_other(talk: Talk) -> None:
    """The publisher was heard over the second connection too, which has ended without a known reason."""
    talk.network.links = frozenset({1, 2})
    talk.end.rejoin()
    talk.clock.advance(0)
    for marker in talk.asked():
        talk.answer(marker, [b"a"], link=2)
    talk.wait(1)
    talk.end.closed(frozenset({1}), "the key of p was revoked")
    talk.network.links = frozenset()
    talk.wait(1)
    talk.end.close()
    assert [each.why for each in talk.found if isinstance(each, UnknownLoss)] == [
        "disconnected without sending a goodbye"
    ]


def test_a_connection_by_which_another_publisher_answers_is_not_cut(talk: Talk) -> None:
    """If one of two publishers behind a proxy dies, the connection to the proxy works and is never cut."""
    talk.end.rejoin()
    talk.clock.advance(0)
    talk.answer(talk.marker, [b"a"], epoch=EPOCH)
    talk.answer(talk.marker, [b"a"], epoch=8)
    answered = set()
    for _ in range(round(100 / TICK)):
        talk.clock.advance(TICK)
        for each in set(talk.asked()) - answered:
            answered.add(each)
            talk.answer(each, [] if parse_marker(each).is_ping else [b"a"], epoch=8)
    assert talk.network.cuts == []
    talk.end.close()
    assert talk.stats.unknown_losses == 1


def test_between_two_cuts_of_an_endpoint_the_pause_doubles() -> None:
    """If a connection dies again and again, the pauses between the cuts double, up to 60 seconds."""
    talk = Talk(b"a", links=(1,))
    at: list[float] = []
    link = 1
    talk.answer(talk.marker, [b"a"])
    for _ in range(round(900 / TICK)):
        talk.clock.advance(TICK)
        if len(talk.network.cuts) > len(at):
            at.append(talk.clock.seconds())
            (link,) = talk.network.links
            talk.end.rejoin()
            talk.clock.advance(0)
            talk.answer(talk.marker, [b"a"], link=link)
    pauses = [after - before for before, after in pairwise(at)]
    assert len(pauses) > 10
    assert min(pauses[5:]) >= 60
    talk.end.close()


def test_what_a_publisher_does_not_know_is_sent_again_in_slices() -> None:
    """If a proxy drops 900 subscriptions, they are sent again in slices of 400, each after the answer to the last."""
    wanted = [b"t.%05d" % number for number in range(2_000)]
    talk = Talk(*wanted)
    talk.answer(talk.marker, wanted[:1_100])
    assert talk.stats.joins == 0
    marker = talk.marker
    slices = []
    for _ in range(5):
        talk.clock.advance(0)
        if len(talk.network.again) > len(slices):
            slices.append(talk.network.again[-1])
            talk.clock.advance(ANSWER_SECONDS / 2)
            assert len(talk.network.again) == len(slices)  # not before the answer to the last slice
            for ping in talk.pings():
                talk.answer(ping, [])
    assert [len(each) for each in slices] == [SUBSCRIPTIONS_SLICE, SUBSCRIPTIONS_SLICE, 100]
    assert [each for some in slices for each in some] == wanted[1_100:]
    talk.clock.advance(0)
    assert talk.marker != marker
    talk.answer(talk.marker, wanted)
    assert talk.stats.joins == 1
    talk.end.close()


def test_peers_that_name_nothing_disturb_others_a_bounded_number_of_times() -> None:
    """If invented publishers know no subscription, all are sent again at most ten times in ten minutes."""
    talk = Talk(b"a", b"b")
    for epoch in range(100, 150):
        talk.answer(talk.marker, [], epoch=epoch)
        talk.wait(1)
    assert len(talk.network.again) <= 10
    talk.end.close()


def test_a_publisher_that_never_names_what_it_was_sent_is_sent_it_three_times() -> None:
    """Subscriptions that a publisher never learns are sent to it three times, and then no more."""
    wanted = [b"t.%05d" % number for number in range(1_000)]
    talk = Talk(*wanted)
    answered = set[bytes]()
    for _ in range(round(200 / TICK)):
        for each in set(talk.asked()) - answered:
            answered.add(each)
            talk.answer(each, [])
        talk.clock.advance(TICK)
    assert sum(map(len, talk.network.again)) == 3 * len(wanted)
    talk.end.close()


def test_a_ping_that_is_dropped_does_not_end_the_mending() -> None:
    """If the answer to a slice is lost, the next slice is sent after a timeout."""
    wanted = [b"t.%05d" % number for number in range(1_000)]
    talk = Talk(*wanted)
    talk.answer(talk.marker, wanted[:100])
    talk.wait(4 * ANSWER_SECONDS)
    assert sum(map(len, talk.network.again)) == 900
    talk.end.close()


def test_a_marker_that_a_proxy_may_have_dropped_is_sent_again() -> None:
    """With thousands of subscriptions and no answer, the app is not ready after two seconds, but asks again."""
    talk = Talk(*(b"t.%05d" % number for number in range(1_000)))
    ready: list[object] = []
    talk.end.ready(None).addCallback(ready.append)
    talk.wait(GRACE + 1)
    assert ready == []
    assert talk.marker.startswith(MARKER)
    talk.answer(talk.marker, talk.subscriptions)
    assert ready == [None]
    talk.end.close()


def test_one_that_is_ready_may_cancel_another() -> None:
    """The code that awaits ready() in one place ends the waiting in another."""
    talk = Talk(b"a")
    served: list[object] = []
    first, second = talk.end.ready(None), talk.end.ready(None)
    second.addErrback(served.append)
    first.addCallback(lambda _: second.cancel())
    talk.answer(talk.marker, talk.subscriptions)
    assert first.called
    assert len(served) == 1
    talk.end.close()


def test_a_publisher_that_answers_nothing_is_taken_for_one_without_numbers() -> None:
    """With few subscriptions, one connection and no answer, the app is ready after two seconds."""
    talk = Talk(b"a")
    ready: list[object] = []
    talk.end.ready(None).addCallback(ready.append)
    talk.wait(GRACE - TICK)
    assert ready == []
    talk.wait(2 * TICK)
    assert ready == [None]
    talk.end.close()


def test_a_publisher_whose_marker_was_dropped_is_found_by_a_ping() -> None:
    """A late publisher behind a proxy answers a ping, is asked for its numbers, and joins."""
    talk = Talk(b"a")
    talk.answer(talk.marker, [b"a"], epoch=8)
    answered = set[bytes]()
    for _ in range(round(90 / TICK)):
        talk.clock.advance(TICK)
        for each in set(talk.asked()) - answered:
            answered.add(each)
            is_ping = parse_marker(each).is_ping
            talk.answer(each, [] if is_ping else [b"a"], epoch=8)
            if talk.clock.seconds() > 20:  # the late publisher
                talk.answer(each, [] if is_ping else [b"a"], epoch=9)
    assert talk.end._tracker.complete.keys() == {8, 9}
    talk.end.close()


def test_an_answer_to_a_ping_that_comes_late_disturbs_nothing() -> None:
    """An answer to a ping after the repair has ended, or after the subscriptions have changed, has no effect."""
    wanted = [b"t.%05d" % number for number in range(500)]
    talk = Talk(*wanted)
    talk.answer(talk.marker, [])
    talk.clock.advance(0)
    pings = talk.pings()
    talk.wait(3 * ANSWER_SECONDS)
    for ping in pings:
        talk.answer(ping, [])
    talk.end.listen(talk.network, [b"x"])
    talk.clock.advance(0)
    for ping in pings:
        talk.answer(ping, [])
    talk.end.close()


def test_at_the_end_everybody_is_asked_once_more(talk: Talk) -> None:
    """When the app stops, a publisher that answers the last question has reported all; no loss is unknown."""
    talk.end.ask_last()
    assert talk.end.awaited
    talk.clock.advance(0)
    assert talk.end.awaited
    assert not talk.end.has_read_all
    talk.answer(talk.marker, [b"a"])
    assert talk.end.has_read_all
    talk.end.close()
    assert talk.stats.unknown_losses == 0


def test_a_publisher_that_does_not_answer_the_last_question_has_an_unknown_tail(talk: Talk) -> None:
    """A publisher that does not answer the last question is an unknown loss, not zero."""
    talk.end.ask_last()
    talk.clock.advance(0)
    talk.end.close()
    assert talk.stats.unknown_losses == 1


def test_forged_numbers_are_logged_and_taken_back(talk: Talk, caplog: pytest.LogCaptureFixture) -> None:
    """The counters show what was lost, not what a forged message claimed."""
    account = talk.end.account(EPOCH, b"ab", b"a")
    assert talk.end.admit(account, 1000)
    assert not talk.end.admit(account, 1)
    assert talk.stats.lost == 999
    talk.wait(TICK)
    talk.clock.advance(0)
    with caplog.at_level(logging.WARNING):
        talk.network.hear(1)
        talk.end._tell(talk.end._tracker.stated(EPOCH, talk.marker, Statement(0, 1, "p", False, ((b"a", 1),))))
    assert "the losses of 'a' that the frame implied are no longer counted" in caplog.text
    assert (talk.stats.lost, talk.stats.unknown_losses) == (1, 0)
    talk.end.close()


# -- kept messages --------------------------------------------------------------------------------------------


def waiting_for_state(talk: Talk, publishers: int | None = None) -> list[object]:
    """Return a list that is filled when ready(state=True) has ended."""
    ready: list[object] = []
    talk.end.ready(publishers, state=True).addCallback(ready.append)
    return ready


def test_the_state_is_there_with_the_end_for_the_last_marker() -> None:
    """The state is complete at the end for the last marker: not at the answer, a message, or an earlier end."""
    talk = Talk(b"a")
    before = talk.marker
    talk.end.listen(talk.network, (b"a", b"b"))
    talk.clock.advance(0)
    ready = waiting_for_state(talk)
    talk.answer(talk.marker, (b"a", b"b"))
    talk.keep(before, 1, b"a")
    talk.keep(before, 2)
    talk.keep(talk.marker, 2, b"b")
    assert ready == []
    talk.keep(talk.marker, 3)
    assert ready == [None]
    assert waiting_for_state(talk) == [None]
    assert talk.stats.lost == 0
    talk.end.close()


def test_all_that_are_connected_have_to_give_all() -> None:
    """ready(state=True) waits for all publishers, or for the given number of them that have sent everything."""
    talk = Talk(b"a", links=(1, 2))
    ready, one = waiting_for_state(talk), waiting_for_state(talk, 1)
    for epoch in (1, 2):
        talk.answer(talk.marker, (b"a",), link=epoch, epoch=epoch, name=f"p{epoch}")
    talk.keep(talk.marker, 1, epoch=2)
    assert (ready, one, talk.end.given) == ([], [None], 1)
    talk.keep(talk.marker, 1, epoch=1)
    assert (ready, talk.end.given) == ([None], 2)
    talk.end.close()


def test_an_end_that_was_dropped_is_asked_for_less_and_less_often() -> None:
    """A lost end of kept messages is asked for again, only while ready() waits, and less and less often."""
    talk = Talk(b"a")
    first = talk.marker
    talk.answer(first, (b"a",))
    talk.wait(2 * ANSWER_SECONDS)
    assert talk.marker == first
    ready, asked = waiting_for_state(talk), [0.0]
    began = talk.clock.seconds()
    for step in range(400):
        before = talk.marker
        if step < 20:
            talk.keep(before, step + 1, b"a.%d" % step)  # it is still sending
        talk.wait(TICK)
        if talk.marker != before and not parse_marker(talk.marker).is_ping:
            talk.answer(talk.marker, (b"a",))
            asked.append(talk.clock.seconds() - began)
        for ping in talk.pings():
            talk.answer(ping, ())
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses[0] >= 20 * TICK + ANSWER_SECONDS
    assert pauses[1:5] == sorted(pauses[1:5])
    assert 3 <= len(pauses) <= 6
    markers = [each for each in talk.asked() if not parse_marker(each).is_ping]
    talk.keep(markers[-1], 21)
    assert ready == [None]
    assert talk.stats.lost == 0
    talk.end.close()


def test_what_was_lost_of_kept_messages_is_counted_at_their_end() -> None:
    """Lost kept messages are counted when their end arrives, and ready() does not wait for them."""
    talk = Talk(b"a")
    ready = waiting_for_state(talk)
    talk.answer(talk.marker, (b"a",))
    talk.keep(talk.marker, 1, b"a.1")
    talk.keep(talk.marker, 5)
    assert ready == [None]
    assert (talk.stats.lost, talk.found) == (3, [LostKept(EPOCH, 3)])
    talk.keep(talk.marker, 5)  # the end is repeated
    talk.keep(talk.marker, 5, b"a.2")  # and a message that is kept later has the next number
    assert talk.stats.lost == 3
    talk.end.close()


def test_invented_goodbyes_are_answered_up_to_a_bound() -> None:
    """The number of goodbyes that are answered at one time is bounded, and no answer stays subscribed to."""
    talk = Talk(b"a")
    marker = talk.marker
    for epoch in range(2 * PUBLISHERS_MAX):
        frame = pack_statements(Kind.GOODBYE, marker, [], epoch=epoch, name="p", partial=False, sent_at=5)[0]
        body = frame.partition(NUL)[2]
        header = parse_header(body)
        talk.end.control(header, marker, body[header.size :])
    assert PUBLISHERS_MAX // 2 < len(talk.network.told[-1]) <= PUBLISHERS_MAX + 2
    talk.wait(20)
    assert not any(each.startswith(FAREWELL) for each in talk.network.told[-1])
    talk.end.close()


def test_a_publisher_that_has_ended_is_not_waited_for() -> None:
    """ready(state=True) does not wait for a publisher that has said goodbye before its end of kept messages."""
    talk = Talk(b"a", links=(1, 2))
    ready = waiting_for_state(talk)
    for epoch in (1, 2):
        talk.answer(talk.marker, (b"a",), link=epoch, epoch=epoch, name=f"p{epoch}")
    talk.keep(talk.marker, 1, epoch=2)
    frames = pack_statements(Kind.GOODBYE, talk.marker, [], epoch=1, name="p1", partial=False, sent_at=5)
    talk.network.links = frozenset({2})
    for frame in frames:
        body = frame.partition(NUL)[2]
        header = parse_header(body)
        talk.end.control(header, talk.marker, body[header.size :])
    talk.wait(TICK)
    assert ready == [None]
    talk.end.close()
