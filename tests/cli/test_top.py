"""`zroute top`: the rates of messages and bytes per topic."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.feeding import feed, listening, ticker
from tests.cli.terminal import on_terminal
from tests.commands import zroute
from tests.pure import plain, tracked
from tests.support import spans
from zroute.cli.top import Measured, Traffic
from zroute.messages.wire import parse


class Stopwatch:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(traffic: Traffic, clock: Stopwatch, seconds: float, **messages: int) -> Measured:
    """Count these numbers of messages of 100 bytes by topic, and end the interval."""
    clock.now += seconds
    for topic, number in messages.items():
        for _ in range(number):
            traffic.take(parse((plain(topic, body=b"x" * (99 - len(topic))),), clock.now))
    return traffic.measure()


def test_rates_are_those_of_the_interval_and_totals_of_all_time() -> None:
    """The fastest topic is first; a silent one has a rate of 0, and keeps its total."""
    clock = Stopwatch()
    traffic = Traffic(clock=clock)
    first = measured(traffic, clock, 2, slow=1, fast=10)
    assert [(rate.topic, rate.messages_per_second, rate.bytes_per_second) for rate in first.topics] == [
        ("fast", 5, 500),
        ("slow", 0.5, 50),
    ]
    second = measured(traffic, clock, 1, slow=3)
    assert [(rate.topic, rate.messages_per_second, rate.messages, rate.bytes) for rate in second.topics] == [
        ("slow", 3, 4, 400),
        ("fast", 0, 10, 1000),
    ]
    assert [rate.last_seen for rate in second.topics] == [3, 2]
    assert second.others is None


def test_the_fastest_topics_are_kept_and_the_rest_is_counted_together() -> None:
    """Many topics take a limited memory, and the total still counts every message."""
    clock = Stopwatch()
    traffic = Traffic(2, clock=clock)
    first = measured(traffic, clock, 1, a=1, b=2, c=3, d=4, e=50)  # no room is left for e
    assert [rate.topic for rate in first.topics] == ["d", "c"]
    assert first.others is not None
    assert (first.others.messages, first.others.messages_per_second) == (53, 53)
    second = measured(traffic, clock, 1, e=50)
    assert [rate.topic for rate in second.topics] == ["e", "d"]
    assert second.others is not None
    assert (second.others.messages, second.others.messages_per_second) == (56, 0)
    assert sum(rate.messages for rate in second.topics) + second.others.messages == 110
    for number in range(1000):
        last = measured(traffic, clock, 1, **{f"t{number}": 1})
    assert len(last.topics) == 2
    assert last.others is not None
    assert sum(rate.messages for rate in last.topics) + last.others.messages == 1110


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
def test_once_prints_one_table(tmp_path: Path, wire: str) -> None:
    """--once prints a plain table of one interval for any wire, and ends."""
    with ticker(tmp_path, wire) as endpoint:
        for seconds in spans(0.5):
            done = zroute("top", endpoint, "--once", "--interval", f"{seconds:g}s")
            assert done.returncode == 0, done.stderr
            if "stocks.ABC" in done.stdout and "stocks.XYZ" in done.stdout:
                break
    head, first, second, total = (line.split() for line in done.stdout.splitlines())
    assert head == ["topic", "messages/s", "bytes/s", "messages", "bytes", "last", "seen"]
    assert (first[0], second[0], total[0]) == ("stocks.XYZ", "stocks.ABC", "total")
    assert int(first[4]) == pytest.approx(2 * int(second[4]), abs=2)
    assert int(first[4]) + int(second[4]) == int(total[4])
    assert float(first[1]) > float(second[1]) > 0
    assert "malformed 0" in done.stderr


def test_once_as_json_is_one_document(tmp_path: Path) -> None:
    """--json has exact numbers, and a pattern limits the counted topics."""
    with ticker(tmp_path) as endpoint:
        for seconds in spans(1):
            done = zroute("top", endpoint, "stocks.ABC", "--once", "--json", "--interval", f"{seconds:g}s")
            document = json.loads(done.stdout)
            if document["topics"]:
                break
    assert document["interval"] >= 1
    assert document["others"] is None
    (topic,) = document["topics"]
    assert topic["topic"] == "stocks.ABC"
    assert topic["messages_per_second"] == pytest.approx(topic["messages"] / document["interval"], rel=0.01)
    frame = tracked("stocks.ABC", body='{"price":12.5,"who":"Ü"}'.encode())
    assert topic["bytes"] == topic["messages"] * len(frame)
    assert document["time"] >= topic["last_seen"] > 1e9


def totals(line: str) -> dict[str, int]:
    """Return the number of messages by topic in a document of the command."""
    return {topic["topic"]: topic["messages"] for topic in json.loads(line)["topics"]}


def test_json_is_a_document_an_interval_until_i_end_it() -> None:
    """--json prints a line per interval with growing totals; Ctrl-C ends with 0 and a summary."""
    with feed() as publisher, listening("top", publisher, "--interval", "200ms", "--json") as child:
        publisher.send(plain("a", 1), plain(b"\xff", 1), b"broken")
        child.wait_for(lambda lines: any('"a"' in line for line in lines))
        publisher.send(plain("a", 1))
        child.wait_for(lambda lines: totals(lines[-1])["a"] == 2)
        seen = len(child.out)
        child.wait_for(lambda lines: len(lines) >= seen + 2)
        assert child.end() == 0
        topics = totals(child.out[-1])
        assert topics == {"sync": 1, "a": 2, "\udcff": 1}
        assert child.err[-1] == "zroute: received 5, malformed 1, lost not counted"


def test_piped_without_once_it_prints_table_after_table() -> None:
    """Without a terminal, each interval prints a table."""
    with feed() as publisher, listening("top", publisher, "--interval", "100ms") as child:
        child.wait_for(lambda lines: len([line for line in lines if line.startswith("sync")]) >= 2)
        assert child.end() == 0
        assert "" in child.out


def test_a_terminal_gets_one_table_that_is_renewed(tmp_path: Path) -> None:
    """A terminal refreshes one table; topics that do not fit are in the line `others`."""
    with ticker(tmp_path) as endpoint:
        table, code = on_terminal("top", endpoint, "--interval", "200ms", cwd=tmp_path, until="stocks.ABC")
        small, _ = on_terminal("top", endpoint, "--interval", "200ms", cwd=tmp_path, until="others", LINES="5")
    assert code == 0
    assert "stocks.XYZ" in table
    assert "\x1b[1A" in table  # the cursor moves up, to overwrite the previous table
    assert "Traceback" not in table
    assert "stocks.ABC" not in small


def test_a_narrow_terminal_keeps_the_topics(tmp_path: Path) -> None:
    """A narrow terminal shows topics and rates, and omits columns that do not fit."""
    with ticker(tmp_path) as endpoint:
        table, code = on_terminal(
            "top", endpoint, "--interval", "200ms", cwd=tmp_path, until="stocks.ABC", COLUMNS="44", NO_COLOR="1"
        )
    assert code == 0
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", table)
    assert re.search(r"topic +messages/s +bytes/s", shown)
    assert re.search(r"stocks\.ABC +[\d.]+ +[\d.]+ k?B/s", shown)
    assert "last seen" not in shown


@pytest.mark.parametrize(("interval", "text"), [("0", "too short"), ("often", "not a duration")])
def test_an_interval_has_to_be_long_enough(interval: str, text: str) -> None:
    """An interval that is too short or invalid is a usage error."""
    done = zroute("top", "tcp://127.0.0.1:1", "--interval", interval)
    assert (done.returncode, text in done.stderr) == (2, True)
