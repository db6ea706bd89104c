"""Joins, readiness, kept messages and goodbyes on NATS, in a simulated cluster without faults."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.nats.network import Network, Publisher, Subscriber
from zroute.clock import TICK
from zroute.messages.topics import parse
from zroute.messages.wire import Kind
from zroute.nats import counters, publisher, tracker
from zroute.nats.asks import ASK, Ask, AskKind, Says, Statement, pack_ask, private_subject, question_subject
from zroute.nats.counters import TopicCounters
from zroute.nats.publisher import LEASE
from zroute.nats.tracker import CHECK_SECONDS, TopicTracker
from zroute.nats.wants import Wants
from zroute.receiving.events import DUPLICATE, Ended, Event, Gap, Joined, Overdue, UnknownLoss
from zroute.receiving.hearing import AWAY_SECONDS
from zroute.receiving.tracker import PUBLISHERS_MAX


def cluster(servers: int = 1, topics: int = 5) -> Network:
    """Return a cluster with some topics."""
    return Network(5, servers, [b"t.%d" % each for each in range(topics)])


def joined(net: Network, *declared: str) -> tuple[Publisher, Subscriber]:
    """Return a publisher and a subscriber that have joined."""
    one, other = Publisher(net, "p", declared or ("t.{n}",)), Subscriber(net, ["t.>"])
    net.publishers.append(one)
    net.subscribers.append(other)
    net.time.run(3.0)
    assert list(other.session.complete) == ["p"]
    return one, other


# -- counters


def test_each_topic_has_its_own_numbers() -> None:
    """A message carries the number of its topic, and a number that was taken back is used again."""
    numbers = TopicCounters()
    assert [numbers.count(topic)[0].number for topic in (b"a", b"b", b"a")] == [1, 1, 2]
    numbers.take_back(b"a")
    assert numbers.count(b"a", 3)[0].number == 4


def test_changes_are_found_without_looking_at_all_topics() -> None:
    """After a turn, only the topics that were used since are found."""
    numbers = TopicCounters()
    for topic in (b"a", b"b", b"c"):
        numbers.count(topic)
    turn = numbers.order()
    assert numbers.changed(turn) == []
    numbers.count(b"b")
    numbers.order()
    assert [each.prefix for each in numbers.changed(turn)] == [b"b"]
    assert {each.prefix for each in numbers.changed(0)} == {b"a", b"b", b"c"}


def test_the_counters_that_were_not_used_are_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher drops the topic that was used least recently, and a new generation begins."""
    monkeypatch.setattr(counters, "TOPICS_MAX", 3)
    numbers, dropped = TopicCounters(), []
    numbers.dropped = lambda counters: dropped.extend((each.prefix, each.number) for each in counters)
    for topic in (b"a", b"b", b"c"):
        numbers.count(topic)
    numbers.order()
    numbers.count(b"a")
    version = numbers.version
    assert numbers.count(b"d")[0].number == (1 << 40) + 1
    assert dropped == [(b"b", 1)]
    assert numbers.version > version
    assert len(numbers) == 3


# -- joins


def test_a_late_subscriber_misses_nothing_in_silence() -> None:
    """A message after the join that does not arrive is a gap, even if it is the first one of its topic."""
    net = cluster()
    one = Publisher(net, "p", ["t.{n}"])
    for _ in range(3):
        one.publish(b"t.0")
    net.publishers.append(one)
    other = Subscriber(net, ["t.>"])
    net.time.run(1.0)
    other.connection.down.send = lambda item: None  # type: ignore[method-assign]
    for topic in (b"t.0", b"t.1"):
        one.publish(topic)
    net.time.run(0.1)
    del other.connection.down.send
    for topic in (b"t.0", b"t.1"):
        one.publish(topic)
    net.time.run(0.1)
    assert other.found == [Gap(b"t.0", one.epoch, 4, 4), Gap(b"t.1", one.epoch, 1, 1)]


def test_only_joins_that_are_sent_again_are_retries() -> None:
    """The first join of a new publisher is no retry; a join whose answer is lost is repeated, and counted."""
    net = cluster()
    _, other = joined(net)
    net.publishers.append(Publisher(net, "q", ["t.{n}"]))
    net.time.run(60.0)
    assert sorted(other.session.complete) == ["p", "q"]
    assert other.stats.join_retries == 0
    other.connection.down.send = lambda item: None  # type: ignore[method-assign]
    other.listen(["t.1"])
    net.time.run(0.1)
    del other.connection.down.send
    net.time.run(5.0)
    assert sorted(other.session.complete) == ["p", "q"]
    assert other.stats.join_retries == 2


@pytest.mark.parametrize("publishers", [1, None])
def test_ready_waits_for_the_answers(publishers: int | None) -> None:
    """The Deferred fires after the answer of a publisher, and never without one."""
    net = cluster()
    other = Subscriber(net, ["t.>"])
    fired: list[float] = []
    other.session.ready(publishers).addCallback(lambda _: fired.append(net.time.now))
    net.time.run(5.0)
    assert not fired
    Publisher(net, "p", ["t.{n}"])
    net.time.run(1.0)
    assert fired


def test_a_publisher_answers_only_subscribers_that_it_concerns() -> None:
    """Before the first message of a topic that no publication declares, it introduces itself."""
    net = cluster()
    one, other = Publisher(net, "p", ["elsewhere"]), Subscriber(net, ["t.>"])
    net.time.run(5.0)
    assert not list(other.session.complete)
    one.publish(b"t.0")
    net.time.run(0.1)
    assert list(other.session.complete) == ["p"]
    assert other.received[one.epoch, b"t.0"] == [1]


def test_the_end_of_a_topic_is_found_by_a_check() -> None:
    """A lost message that no other follows is counted within `CHECK_SECONDS`."""
    net = cluster()
    one, other = joined(net)
    one.publish(b"t.0")
    net.time.run(1.0)
    other.connection.down.send = lambda item: None  # type: ignore[method-assign]
    one.publish(b"t.0")
    net.time.run(0.1)
    del other.connection.down.send
    net.time.run(CHECK_SECONDS + 1.0)
    assert other.found == [Gap(b"t.0", one.epoch, 2, 2)]


def test_the_publisher_knows_its_subscribers() -> None:
    """Subscribers are counted from the join to a leave, to a 503, or to the end of the lease."""
    net = cluster()
    one, other = joined(net)
    template, changes = parse("t.{n}"), []
    one.session.changed = lambda: changes.append(one.session.number(template))
    fired: list[None] = []
    one.session.wait_for(template, 2).addCallback(fired.append)
    third = Subscriber(net, ["t.1"])
    net.time.run(0.1)
    assert fired
    assert one.session.number(parse("elsewhere")) == 0
    third.session.close()
    third.session.leave()
    net.time.run(0.1)
    assert changes[-1] == one.session.number(template) == 1
    other.close()
    net.time.run(LEASE + 1.0)
    assert one.session.number(template) == 0


def test_a_subscriber_that_has_gone_does_not_delay_the_goodbye() -> None:
    """The server answers a goodbye without a subscriber with the status 503."""
    net = cluster()
    one, other = joined(net)
    other.close()
    net.time.run(1.5)
    begun, ended = net.time.now, []
    one.session.goodbye().addCallback(lambda _: ended.append(net.time.now))
    net.time.run(1.0)
    assert ended[0] - begun < 0.1
    assert one.session.unread == 0


def test_a_check_during_the_goodbye_does_not_revive_the_publisher() -> None:
    """The answer to a check is then a goodbye too, so the subscriber logs the end of the publisher once."""
    net = cluster()
    one, other = joined(net)
    one.publish(b"t.0")
    net.time.run(0.1)
    told: list[object] = []
    tell = other.session._tell

    def note(events: Iterable[Event]) -> None:
        noted = list(events)
        told.extend(each for each in noted if isinstance(each, Ended))
        tell(noted)

    other.session._tell = note  # type: ignore[method-assign]
    send, other.session._send = other.session._send, lambda *_: True  # no farewell yet
    one.stop()
    net.time.run(0.05)
    other.session._send = send
    other.session._check(one.epoch)
    net.time.run(3.0)
    assert len(told) == 1
    assert one.closed


def test_a_goodbye_states_the_last_numbers() -> None:
    """Losses before the end of a publisher are counted, and nothing is unknown."""
    net = cluster()
    one, other = joined(net)
    other.connection.down.send = lambda item: None  # type: ignore[method-assign]
    one.publish(b"t.0")
    one.stop()
    net.time.run(0.05)
    del other.connection.down.send
    net.time.run(1.0)
    assert other.found == [Gap(b"t.0", one.epoch, 1, 1)]
    assert one.closed, "the goodbye is repeated, and confirmed"


def test_a_crashed_publisher_leaves_an_unknown_loss() -> None:
    """It is reported at once if a new run has the same name, else after `AWAY_SECONDS`."""
    net = cluster()
    one, other = joined(net)
    one.crash()
    net.time.run(2.0)
    Publisher(net, "p", ["t.{n}"])
    net.time.run(5.0)
    assert [type(each) for each in other.found] == [UnknownLoss]
    net, other = (again := joined(cluster()))[0].net, again[1]
    again[0].crash()
    net.time.run(AWAY_SECONDS + CHECK_SECONDS + 10.0)
    assert [type(each) for each in other.found] == [UnknownLoss]


def test_more_topics_than_counters_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each topic is used once and then dropped, and still nothing is lost or unknown."""
    monkeypatch.setattr(counters, "TOPICS_MAX", 10)
    net = cluster(topics=100)
    one, other = joined(net)
    for topic in net.topics * 3:
        one.publish(topic)
        net.time.run(0.01)
    net.time.run(60.0)
    assert one.session.counters.generation > 50
    assert (other.found, other.stats.lost) == ([], 0)
    assert len(other.session._tracker._publishers[one.epoch].accounts) <= 10


def test_too_many_accounts_are_an_unknown_loss_and_never_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an eviction, a topic begins a new account without a claim."""
    monkeypatch.setattr(tracker, "ACCOUNTS_MAX", 20)
    net = cluster(topics=50)
    one, other = joined(net)
    for topic in net.topics * 3:
        one.publish(topic)
    net.time.run(1.0)
    for topic in net.topics:
        one.publish(topic)
    net.time.run(1.0)
    assert other.stats.lost == 0
    assert {type(each) for each in other.found} == {UnknownLoss}


def test_kept_messages_follow_the_join() -> None:
    """A subscriber receives the kept messages that it wants, and all of them again after a reconnect."""
    net = cluster()
    one = Publisher(net, "p", ["t.{n}", "other.{n}.x"])
    for topic in (b"t.0", b"t.1", b"other.1.x", b"other.1.y"):
        one.session.kept.keep(topic, 1, b"x", None, 5)
    other, fired = Subscriber(net, ["t.1", "other.*.x"]), []
    other.session.ready(1, state=True).addCallback(fired.append)
    net.time.run(1.0)
    assert sorted(topic for _, topic in other.kept) == [b"other.1.x", b"t.1"]
    assert fired
    other.cut()
    net.time.run(5.0)
    assert len(other.kept) == 4
    assert other.found == []


def test_parts_of_a_long_answer_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer about many topics takes several periods, and is complete."""
    monkeypatch.setattr(publisher, "_UNITS", 100)
    net = cluster(topics=2_000)
    one = Publisher(net, "p", ["t.{n}"])
    for topic in net.topics:
        one.publish(topic)
    other = Subscriber(net, ["t.>"])
    net.time.run(0.03)
    assert not list(other.session.complete)
    net.time.run(2.0)
    assert list(other.session.complete) == ["p"]
    for topic in net.topics:
        one.publish(topic)
    net.time.run(1.0)
    assert not net.faults(other)
    assert len(other.received) == 2_000


def test_the_subjects_of_all_joins_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A join that exceeds the limit is about all topics, and is still answered."""
    monkeypatch.setattr(publisher, "SUBJECTS_MAX", 20)
    net = cluster()
    one, _ = joined(net)
    sent: list[bytes] = []
    one.session._send = lambda subject, payload, reply: bool(sent.append(subject)) or True
    many = tuple(b"t.%d.%d" % (number, number) for number in range(15))
    for asker in (7, 8, 7):
        join = Ask(AskKind.JOIN, asker, many)
        one.session.asked(question_subject(b"_INBOX.y", asker, 1), pack_ask(join))
    kept = {asker: one.session._known[asker].marker.wanted for asker in (7, 8)}
    assert {asker: len(wanted) for asker, wanted in kept.items()} == {7: 15, 8: 1}
    assert b"anything" in one.session._known[8].marker.topics
    one.session.asked(b"", pack_ask(Ask(AskKind.LEAVE, 7)))
    one.session.asked(question_subject(b"_INBOX.y", 8, 2), pack_ask(Ask(AskKind.JOIN, 8, many)))
    assert len(one.session._known[8].marker.wanted) == 15


def test_a_status_for_no_subscriber_is_ignored() -> None:
    """Any client may publish the status 503 to a private subject of a publisher, with any last segment."""
    net = cluster()
    one, _ = joined(net)
    epoch = one.session.epoch
    for subject in (b"z" * 12, b"\xff" * 12, b"-00000000001", b"ask", b""):
        one.session.unheard(private_subject(epoch, subject))
    assert len(one.session._known) == 1


def test_malformed_questions_are_ignored() -> None:
    """A question that would make a publisher send elsewhere is not answered."""
    net = cluster()
    one, _ = joined(net)
    sent: list[bytes] = []
    one.session._send = lambda subject, payload, reply: bool(sent.append(subject)) or True
    join = Ask(AskKind.JOIN, 7, (b"t.>",))
    for reply, payload in [
        (b"orders", pack_ask(join)),
        (question_subject(b"_INBOX.y", 8, 1), pack_ask(join)),
        (b"", pack_ask(join)),
        (question_subject(b"_INBOX.y", 7, 1), b"?"),
        (question_subject(b"_INBOX.y", 7, 1), pack_ask(Ask(AskKind.JOIN, 7, (b"a..b",)))),
    ]:
        one.session.asked(reply, payload)
    assert not sent
    one.session.asked(question_subject(b"_INBOX.y", 7, 1), pack_ask(join))
    assert set(sent) == {b"_INBOX.y.0000000000070001"}


def test_a_call_finds_publishers_whose_hello_was_missed() -> None:
    """If join and hello were both lost, the sides find each other within some seconds."""
    net = cluster()
    other = Subscriber(net, ["t.>"])
    net.time.run(0.1)
    sending, Publisher.send = Publisher.send, lambda self, *args: True  # type: ignore[method-assign]
    try:
        Publisher(net, "p", ["t.{n}"])
    finally:
        Publisher.send = sending  # type: ignore[method-assign]
    net.time.run(1.0)
    assert not list(other.session.complete)
    net.time.run(6.0 + TICK)
    assert list(other.session.complete) == ["p"]


def test_subjects_of_other_programs_are_ignored() -> None:
    """A status of another subject forgets no subscriber."""
    net = cluster()
    one, other = joined(net)
    for subject in (
        ASK,
        private_subject(one.epoch + 1, other.session.subscriber),
        b"",
        private_subject(one.epoch, b"ask"),
        private_subject(one.epoch, b"no-subscribe"),  # as long as the number of a subscriber
        private_subject(one.epoch, b"\xff" * 12),
    ):
        one.session.unheard(subject)
    assert one.session.number(parse("t.{n}")) == 1


def test_the_publisher_states_its_numbers_after_its_own_reconnect() -> None:
    """Messages that were lost with the publisher's connection are counted at once, without a check."""
    net = cluster()
    one, other = joined(net)
    one.publish(b"t.0")
    net.time.run(0.1)
    other.session._check(one.epoch)
    net.time.run(0.1)
    one.publish(b"t.0")
    one.cut()
    net.time.run(4.0)
    assert other.found == [Gap(b"t.0", one.epoch, 2, 2)]


# -- the tracker


def tracked(*numbers: tuple[bytes, int], generation: int = 0) -> TopicTracker:
    """Return a tracker that wants all topics, and has the complete statement of publisher 7."""
    tracker = TopicTracker()
    tracker.want(Wants([parse(">")]))
    tracker.join(b"r.1", 0.0)
    statement = Statement(0, Says.LAST, "p", generation, 1, 0, numbers)
    assert [type(each) for each in tracker.stated(7, b"r.1", statement, Kind.JOIN, 0.0)] == [Joined, Overdue]
    return tracker


def admitted(tracker: TopicTracker, number: int, topic: bytes = b"a") -> object:
    """Pass a message to a tracker, and return what it finds."""
    account = tracker.account(7, topic)
    assert account is not None
    return tracker.admit(account, number)


def test_a_message_that_arrives_again_or_late_is_not_delivered() -> None:
    """Each number is either received or counted as lost, once."""
    tracker = tracked((b"a", 3))
    assert admitted(tracker, 4) is None
    assert admitted(tracker, 4) is DUPLICATE
    assert admitted(tracker, 6) == Gap(b"a", 7, 5, 5)
    assert admitted(tracker, 5) is DUPLICATE


def test_after_a_missed_statement_of_dropped_counters_no_number_is_claimed() -> None:
    """The loss is unknown once, and new topics begin without a claim until the next complete statement."""
    later = 3 << 40
    tracker = tracked()
    assert isinstance(admitted(tracker, later + 5), UnknownLoss)
    assert admitted(tracker, later + 9, b"b") is None
    statement = Statement(0, Says.LAST, "p", 3, 2, 0, ((b"a", later + 5), (b"b", later + 9)))
    tracker.join(b"r.2", 1.0)
    tracker.stated(7, b"r.2", statement, Kind.JOIN, 1.0)
    assert admitted(tracker, later + 3, b"c") == Gap(b"c", 7, later + 1, later + 2)


def test_the_accounts_of_former_topics_are_dropped() -> None:
    """A topic that is wanted again begins a new account, and an old one that the loop has stored is not used."""
    tracker = tracked((b"a", 3))
    stored = tracker.account(7, b"a")
    assert stored is not None
    tracker.want(Wants([parse("b")]))
    assert stored.expected == -1
    assert tracker.admit(stored, 4) is None
    tracker.want(Wants([parse(">")]))
    assert admitted(tracker, 5) is None
    assert admitted(tracker, 9) is None, "the messages between were not wanted"
    tracker.join(b"r.2", 1.0)
    tracker.stated(7, b"r.2", Statement(0, Says.LAST, "p", 0, 2, 0, ((b"a", 9),)), Kind.JOIN, 1.0)
    assert admitted(tracker, 11) == Gap(b"a", 7, 10, 10)


def test_a_lost_part_makes_a_statement_incomplete() -> None:
    """Nothing is concluded from the parts that follow."""
    tracker = TopicTracker()
    tracker.want(Wants([parse(">")]))
    tracker.join(b"r.1", 0.0)
    tracker.stated(7, b"r.1", Statement(0, Says(0), "p", 0, 1, 0, ((b"a", 1),)), Kind.JOIN, 0.0)
    assert not tracker.stated(7, b"r.1", Statement(2, Says.LAST, "p", 0, 1, 0, ((b"c", 1),)), Kind.JOIN, 0.0)
    assert not tracker.complete


def test_a_statement_stores_no_topics_without_an_account() -> None:
    """A publisher may send any number of parts, so only topics with an account are kept until the last one."""
    tracker = TopicTracker()
    tracker.want(Wants([parse("a")]))
    tracker.join(b"r.1", 0.0)
    for part in range(3):
        topics = tuple((b"x.%d.%d" % (part, number), 1) for number in range(100))
        tracker.stated(7, b"r.1", Statement(part, Says(0), "p", 0, 1, 0, (*topics, (b"a", 1))), Kind.JOIN, 0.0)
    assert tracker._publishers[7].named == {b"a"}


def test_invented_publishers_are_bounded_and_drive_out_no_real_one() -> None:
    """A joined publisher stays, and forged epochs are evicted first."""
    tracker = tracked((b"a", 3))
    for epoch in range(100, 100 + 2 * PUBLISHERS_MAX):
        tracker.account(epoch, b"a")
    assert tracker.complete == {7: "p"}
    assert len(tracker._publishers) == PUBLISHERS_MAX
