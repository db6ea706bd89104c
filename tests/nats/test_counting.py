"""Losses on NATS: what subscribers count, compared with a cluster that knows every message and its fate."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.nats.network import Network, Publisher, Subscriber
from zroute.nats import counters
from zroute.receiving.hearing import AWAY_SECONDS

TOPICS = [b"a", b"a.b", b"a.c", b"a.b.c", b"b.x", b"b.y", b"c.x.y", b"d"]
PATTERNS = [["a.>"], [">"], ["*.x", "a.*"], ["a.b", "d"], ["b.*", "c.>"], ["*"]]


def weather(seed: int, *, many_topics: bool = False, crashes: bool = True) -> Network:
    """Run a cluster through random faults, heal it, and wait until all is known."""
    net = Network(seed, servers=1 + seed % 3, topics=TOPICS + [b"n.%d" % n for n in range(20 * many_topics)])
    random = net.random
    declared = [[">"], [], ["a.{x}", "b.{x}"]]
    names = iter(f"p{n}" for n in range(100))

    def publisher(name: str | None = None) -> None:
        chosen = [each for each in random.choice(declared) if each != ">"]
        net.publishers.append(Publisher(net, name or next(names), chosen))

    for _ in range(2):
        publisher()
    net.subscribers += [Subscriber(net, random.choice(PATTERNS)) for _ in range(2)]

    def step(kind: int) -> None:
        alive = [each for each in net.publishers if not (each.crashed or each.stopped)]
        if kind < 70:
            for each in alive:
                for _ in range(random.randrange(4)):
                    each.publish(random.choice(net.topics))
        elif kind < 76:
            random.choice([*net.subscribers, *alive]).cut()
        elif kind < 79:
            server = random.choice(net.servers)
            if server.up:
                net.kill(server)
                net.time.callLater(random.choice((0.01, 0.5, 5.0)), net.start, server)
        elif kind < 83 and len(net.servers) > 1:
            one, two = random.sample(net.servers, 2)
            net.split(one, two)
            net.time.callLater(random.choice((0.0, 0.3, 4.0)), net.join, one)
            net.time.callLater(5.0, net.join, two)
        elif kind < 86 and len(net.subscribers) < 5:
            net.subscribers.append(Subscriber(net, random.choice(PATTERNS)))
        elif kind < 90:
            random.choice(net.subscribers).listen(random.choice(PATTERNS))
        elif kind < 93:
            slow = random.choice(net.subscribers)
            slow.paused = not slow.paused
            slow.read()
        elif kind < 95 and crashes and alive:
            victim = random.choice(alive)
            if random.random() < 0.5:
                victim.crash()
            else:
                victim.stop()
            publisher(victim.name if random.random() < 0.7 else None)
        elif kind < 97 and len(alive) < 4:
            publisher()

    for _ in range(120):
        step(random.randrange(100))
        net.time.run(random.choice((0.0, 0.001, 0.01, 0.1, 1.0)))
    for server in net.servers:
        if not server.up:
            net.start(server)
        net.join(server)
    for each in net.subscribers:
        each.paused = False
        each.read()
    net.time.run(AWAY_SECONDS + 60.0)
    return net


def faults(net: Network) -> list[str]:
    """Return the faults of all subscribers."""
    return [fault for subscriber in net.subscribers for fault in net.faults(subscriber)]


def lost(net: Network) -> int:
    """Return the number of messages that subscribers have counted as lost."""
    return sum(subscriber.stats.lost for subscriber in net.subscribers)


@pytest.mark.parametrize("seeds", [range(at, at + 10) for at in range(0, 40, 10)], ids=str)
def test_each_loss_is_counted_once(seeds: Iterable[int]) -> None:
    """Received and counted messages are exactly those that were sent after the join, or the loss is unknown."""
    counted = 0
    for seed in seeds:
        net = weather(seed)
        assert not faults(net), seed
        counted += lost(net)
    assert counted > 100, "the faults of the network cause losses"


def test_publishers_that_stay_leave_no_unknown_loss() -> None:
    """Without crashes and dropped counters, every loss is a number."""
    for seed in range(1000, 1020):
        net = weather(seed, crashes=False)
        assert not faults(net), seed
        assert not any(subscriber.unknown for subscriber in net.subscribers), seed
        assert all(
            (publisher.epoch, topic) in subscriber.base
            for subscriber in net.subscribers
            for publisher in net.publishers
            for topic in TOPICS
            if topic in subscriber.wants and publisher.sent[topic]
        )


def test_topics_that_no_longer_fit_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that drops counters causes no wrong number, and no unknown loss unless its statement is lost."""
    monkeypatch.setattr(counters, "TOPICS_MAX", 10)
    monkeypatch.setattr(counters, "_DROPPED", 3)
    dropped = 0
    for seed in range(2000, 2015):
        net = weather(seed, many_topics=True)
        assert not faults(net), seed
        dropped += sum(publisher.session.counters.generation for publisher in net.publishers)
    assert dropped > 50


@pytest.mark.slow
def test_each_loss_is_counted_once_over_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further runs count every loss, half of them with too many topics."""
    for seed in range(10_000, 10_030):
        assert not faults(weather(seed)), seed
    monkeypatch.setattr(counters, "TOPICS_MAX", 10)
    monkeypatch.setattr(counters, "_DROPPED", 3)
    for seed in range(20_000, 20_030):
        assert not faults(weather(seed, many_topics=True)), seed
