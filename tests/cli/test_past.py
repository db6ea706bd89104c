"""`zroute tail --last`, `--since`, and `zroute record --from-start`, with a publisher that has a history."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.commands import zroute
from tests.support import Child, free_endpoint
from zroute.messages.wire import parse
from zroute.recordings import read

SOURCE = """
import sys
from zroute import App, History
app = App(pub=sys.argv[1], codec="json", name="feed")
orders = app.publisher("orders.{kind}", int, history=History(messages=1000))

@app.on_startup
def publish():
    for number in range(50):
        orders.publish(number, kind="ab"[number % 2])
    print("published", flush=True)

app.run()
"""


@contextmanager
def feed() -> Iterator[str]:
    """The endpoint of a publisher that has published 50 messages, and publishes no more."""
    endpoint = free_endpoint()
    with Child("-c", SOURCE, endpoint) as child:
        child.line_with("published")
        yield endpoint


def bodies(output: str) -> list[int]:
    """Return the numbers that the command printed with --json."""
    return [json.loads(line)["body"] for line in output.splitlines()]


def test_tail_shows_the_last_messages_first() -> None:
    """--last N shows the latest N messages in the history, and ends with -n."""
    with feed() as endpoint:
        done = zroute("tail", endpoint, "orders.>", "--last", "5", "--json", "-n", "5")
        assert (done.returncode, bodies(done.stdout)) == (0, [45, 46, 47, 48, 49]), done.stderr
        done = zroute("tail", endpoint, "orders.a", "--last", "2", "--json", "-n", "2")
        assert bodies(done.stdout) == [46, 48]
        done = zroute("tail", endpoint, "orders.>", "--last", str(10**20), "--json", "-n", "50")
        assert bodies(done.stdout) == list(range(50))
        first = json.loads(done.stdout.splitlines()[0])
        assert (first["topic"], first["origin"], first["peer"]) == ("orders.a", "replayed", None)


@pytest.mark.parametrize("since", ["1h", "{today}"])
def test_tail_shows_the_messages_since_a_time(since: str) -> None:
    """--since takes a duration, or a local time."""
    today = datetime.fromtimestamp(time.time() - 60).isoformat()
    with feed() as endpoint:
        done = zroute("tail", endpoint, "--since", since.format(today=today), "--json", "-n", "50")
        assert (done.returncode, bodies(done.stdout)) == (0, list(range(50))), done.stderr
        done = zroute(
            "tail", endpoint, "--since", since.format(today=today), "--format", "{origin} {peer} {body}", "-n", "1"
        )
        assert done.stdout == "replayed - 0\n"


def test_record_begins_with_the_history(tmp_path: Path) -> None:
    """With --from-start, the recording contains the frames of the history in order."""
    file = tmp_path / "r"
    with feed() as endpoint:
        done = zroute("record", endpoint, str(file), "--from-start", "-n", "50")
        assert done.returncode == 0, done.stderr
    found = [parse(message.frames, 0.0) for message in read(file)]
    assert [int(envelope.body) for envelope in found] == list(range(50))
    assert all(envelope.tracked for envelope in found)


@pytest.mark.parametrize("arguments", [("tail", "--last", "5"), ("tail", "--since", "1h"), ("record", "--from-start")])
def test_a_publisher_without_a_history_is_told(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """If a publisher has no history, a line on standard error names it, once."""
    command, *rest = arguments
    file = [str(tmp_path / "r")] * (command == "record")
    endpoint = free_endpoint()
    with (
        Child("-c", SOURCE.replace(", history=History(messages=1000)", ""), endpoint) as publisher,
        Child("-m", "zroute", command, endpoint, *file, *rest) as child,
    ):
        publisher.line_with("published")
        line = child.line_with("has no history", stream="err")
        assert f"INFO    zroute {command}: publisher feed@" in line
        assert child.end() == 0
    assert [each for each in child.err if "INFO" in each] == [line]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("tail", "--last", "5", "--since", "5s"), "--last and --since are mutually exclusive"),
        (("tail", "--since", "yesterday"), "'yesterday' is neither a duration nor a time"),
        (("tail", "--since", "0s"), "'0s' contains no messages: write a duration of more than 0"),
        (("tail", "--since", "5"), "'5' has no unit: write 60s, 5m or"),
        (("tail", "--since", "2100-01-01"), "'2100-01-01' is in the future"),
        (("tail", "--last", "5", "--frames", "plain"), "--last is not possible with --frames"),
        (("record", "r", "--from-start", "--frames", "plain"), "--from-start is not possible with --frames"),
    ],
)
def test_wrong_use_of_the_past_is_told(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    """Options that can't be combined, and wrong times, are usage errors."""
    command, *rest = arguments
    done = zroute(command, free_endpoint(), *rest, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr


def test_there_is_no_past_on_nats() -> None:
    """On NATS, --last is a usage error that says why."""
    done = zroute("tail", "nats://127.0.0.1:4222", "--last", "5")
    assert done.returncode == 2
    assert "--last is not possible on NATS" in done.stderr
