"""Common behaviour of tail, top and record: received messages, and the end."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import zmq

from tests.cli.feeding import feed, listening, ticker
from tests.commands import zroute
from tests.interpreters import start
from tests.pure import plain, tracked
from tests.support import PATIENCE, Child, free_endpoint, spans
from zroute.messages.coalesced import coalesced_framer
from zroute.messages.control import FAREWELL, MARKER, pack_beat, pack_statements
from zroute.messages.wire import Kind
from zroute.receiving.tracker import PUBLISHERS_MAX


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_0_and_a_summary(number: signal.Signals) -> None:
    """SIGINT and SIGTERM end the command with exit 0 and the number of messages."""
    with feed() as publisher, listening("tail", publisher, "--ignore", "sync") as child:
        publisher.send(plain("news.a", 1), plain("news.b", 2))
        child.line_with("news.b")
        assert child.end(number) == 0
        assert child.err[-1] == "zroute: received 3, shown 2, ignored 1, malformed 0, lost not counted"


def test_patterns_are_exact_though_sockets_filter_by_prefix() -> None:
    """'news.*' does not show news.a.b, which the same subscription admits; it is counted."""
    wanted = ["news.a", "mail.{who}.>"]
    with feed() as publisher, listening("tail", publisher, "news.*", *wanted, subscriptions=2) as child:
        topics = ["news.a", "news.a.b", "newsletter", "news.b", "mail.x", "mail.x.y.z", "news.end"]
        publisher.send(*(plain(topic, 1) for topic in topics))
        child.line_with("news.end")
        assert [line.split()[1] for line in child.out] == ["news.a", "news.b", "mail.x.y.z", "news.end"]
        assert child.end() == 0
        assert "received 6, shown 4, unmatched 2," in child.err[-1]


def test_all_wires_are_read_and_more_parts_than_two() -> None:
    """Messages of other programs are shown, also with more parts than zroute sends."""
    with feed() as publisher, listening("tail", publisher, "-n", "4", "a.>") as child:
        publisher.send(plain("a.1", body=b"1"), tracked("a.2", 2), [b"a.3", b"3"], [b"a.4", b"4", b"more"])
        assert child.end(None) == 0
        assert [line.split()[1:] for line in child.out] == [[f"a.{n}", f"{n}"] for n in range(1, 5)]


def test_what_is_no_message_is_counted_said_and_skipped() -> None:
    """Malformed messages are counted, with few log lines, and the next valid one is shown."""
    broken = [b"no NUL", b"", [b"a\0b", b"c"], b"a\0" + tracked("a", 1)[2:20], [b"many"] * 17, [b"flood"] * 1000]
    with feed() as publisher, listening("tail", publisher, "--ignore", "sync") as child:
        publisher.send(*broken * 3, plain("good", 1))
        child.line_with("good")
        assert child.end() == 0
        assert len(child.out) == 1
        assert child.err[-1].endswith("malformed 18, lost not counted")
        log = "\n".join(child.err)
        assert log.count("malformed message refused") == 5
        assert "13 more lines like these" in log
        assert "no NUL after the topic" in log
        assert "more than 16 parts" in log


# A feed answers each subscription on "sync", which must not be the message that ends a command.
ENDS: dict[str, tuple[list[str], signal.Signals | None, int]] = {
    "count": (["tail", "{endpoint}", "good", "-n", "1"], None, 0),
    "count of a record": (["record", "{endpoint}", "{folder}/messages", "good", "-n", "1"], None, 0),
    "time": (["record", "{endpoint}", "{folder}/messages", "--force", "--for", "{seconds:g}s"], None, 0),
    "nothing came": (["tail", "{endpoint}", "other", "--wait", "{seconds:g}s"], None, 124),
    "signal": (["tail", "{endpoint}"], signal.SIGTERM, 0),
    "error": (["tail", "{endpoint}", "good"], None, 1),
}
FULL_DISK = """
import os, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
from zroute.__main__ import main
main()
"""


def refused(lines: list[str]) -> int:
    """Return the number of lines about single malformed messages."""
    return sum("malformed message refused" in line for line in lines)


@pytest.mark.parametrize("end", ENDS)
def test_what_the_log_held_back_is_told_however_a_command_ends(tmp_path: Path, end: str) -> None:
    """Of 18 equal faults the log shows five; the end of the command reports the other 13."""
    arguments, number, code = ENDS[end]
    topic = "other" if end == "nothing came" else "good"
    program = ["-c", FULL_DISK] if end == "error" else ["-m", "zroute"]
    for seconds in spans(5):
        with feed() as publisher:
            where = {"endpoint": publisher.endpoint, "folder": tmp_path, "seconds": seconds}
            with Child(*program, *[argument.format(**where) for argument in arguments]) as child:
                publisher.heard(by=child)
                publisher.send(*[[topic.encode()] * 17] * 18, *[plain("good", 1)] * (end != "nothing came"))
                child.wait_for(lambda lines: refused(lines) == 5 or child.process.poll() is not None, stream="err")
                if number is not None:
                    child.line_with("good")
                assert child.end(number) == code
        if refused(child.err) == 5:
            break
    assert any("13 more lines like these were not shown" in line for line in child.err), child.err


def test_frames_without_data_are_not_shown_as_messages() -> None:
    """A beat of a tracked publisher is counted as control."""
    beat = pack_beat(b"a", 1, epoch=7, next_ms=0, sent_at=5)
    with feed() as publisher, listening("tail", publisher, "a", "-n", "1") as child:
        publisher.send(beat, tracked("a", 1))
        assert child.end(None) == 0
        assert child.err[-1] == "zroute: received 2, shown 1, control 1, malformed 0, lost not counted"


COUNTING = """
from zroute import App
app = App(pub={endpoint!r}, codec="json", name="counting")

@app.every(0.02)
def tick():
    app.publish("a.b", 1)
"""


@pytest.mark.parametrize("command", ["tail", "top", "record"])
def test_connections_are_logged_in_the_words_of_the_command(tmp_path: Path, command: str) -> None:
    """Warnings about the socket at the other end name the command and its argument."""
    file = (str(tmp_path / "r"),) if command == "record" else ()
    with zmq.Context() as context, context.socket(zmq.PUSH) as wrong, context.socket(zmq.XPUB) as giant:
        endpoints = []
        for socket in (wrong, giant):
            socket.set(zmq.LINGER, 0)
            socket.bind("tcp://127.0.0.1:*")
            endpoints.append(socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
        with Child("-m", "zroute", command, endpoints[0], *file) as child:
            line = child.line_with("socket has an incompatible type", stream="err")
            assert f"zroute {command}: {endpoints[0]}: " in line
            assert line.endswith("check ENDPOINT")
            assert child.end() == 0
        with Child("-m", "zroute", command, endpoints[1], *file) as child:
            assert giant.poll(PATIENCE * 1000)
            giant.send(b"a\0" + bytes(20 << 20))
            line = child.line_with("connection closed", stream="err")
            assert f"zroute {command}: {endpoints[1]}: " in line
            assert line.endswith("or invalid ZMTP")
            assert child.end() == 0


class Joined(threading.Thread):
    """A tracked publisher of all topics, which sends the given sequence numbers."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        super().__init__(daemon=True)
        self._context = context
        self._frames: Queue[tuple[int, bytes] | None] = Queue()
        self._endpoint: Queue[str] = Queue()
        self.joined = threading.Event()
        self.start()
        self.endpoint = self._endpoint.get(timeout=PATIENCE)

    def send(self, topic: str, *numbers: int) -> None:
        """Send one message for each of these sequence numbers."""
        for number in numbers:
            self._frames.put((number, tracked(topic, number, sequence=number)))

    def flush(self) -> None:
        """Wait until all messages are sent."""
        self._frames.join()

    def end(self) -> None:
        """Wait for the end of the process."""
        self._frames.put(None)
        self.join(PATIENCE)

    def run(self) -> None:
        last = 0
        with self._context.socket(zmq.XPUB) as socket:
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SNDHWM, 0)
            socket.bind("tcp://127.0.0.1:*")
            self._endpoint.put(socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
            while True:
                while not self._frames.empty():
                    given = self._frames.get()
                    if given is None:
                        return
                    last = max(last, given[0])
                    socket.send(given[1])
                    self._frames.task_done()
                if socket.poll(5) and (heard := socket.recv()).startswith(b"\1" + MARKER):
                    facts: dict[str, Any] = {"epoch": 7, "name": "p", "partial": False, "sent_at": 5}
                    for frame in pack_statements(Kind.JOIN, heard[1:], [(b"", last)], **facts):
                        socket.send(frame)
                    self.joined.set()


@contextmanager
def answering(command: str, *arguments: str) -> Iterator[tuple[Child, Joined]]:
    """Start a command, and wait until it has joined the publisher."""
    with zmq.Context() as context:
        publisher = Joined(context)
        try:
            with Child("-m", "zroute", command, publisher.endpoint, *arguments) as child:
                assert publisher.joined.wait(PATIENCE)
                yield child, publisher
        finally:
            publisher.end()


@pytest.mark.parametrize("command", ["tail", "top", "record"])
def test_losses_are_logged_and_counted(tmp_path: Path, command: str) -> None:
    """A gap in the sequence numbers is logged at once, and counted in the last line."""
    file = (str(tmp_path / "r"),) if command == "record" else ()
    with answering(command, *file) as (child, publisher):
        publisher.send("a", 1, 2, 5, 6, 10)
        line = child.line_with("(numbers 7 to 9)", stream="err")
        assert f"zroute {command}: lost 3 messages of '' from publisher p (0000000000000007)" in line
        assert child.end() == 0
        assert child.err[-1].endswith("malformed 0, lost 5")


@pytest.mark.parametrize("command", ["tail", "record"])
def test_messages_after_the_last_wanted_one_are_no_loss(tmp_path: Path, command: str) -> None:
    """After -n messages, the command does not warn of gaps that the summary does not count."""
    file = (str(tmp_path / "r"),) if command == "record" else ()
    with answering(command, *file, "-n", "2") as (child, publisher):
        publisher.send("a", 1, 4, *range(9, 1000, 2))
        assert child.end(None) == 0
        assert child.err[-1].endswith("malformed 0, lost 2")
        (warning,) = (line for line in child.err if "WARNING" in line)
        assert "lost 2 messages of '' from publisher p" in warning


@pytest.mark.parametrize("shape", [(), ("--json",)])
def test_top_shows_how_many_were_lost(shape: tuple[str, ...]) -> None:
    """The last line of the table is the number of lost messages."""
    with answering("top", "--interval", "100ms", *shape) as (child, publisher):
        publisher.send("a", 1, 5)
        if shape:
            child.wait_for(lambda lines: any(json.loads(line)["lost"] == 3 for line in lines))
        else:
            child.wait_for(lambda lines: any(line.split() == ["lost", "3"] for line in lines))
        assert child.end() == 0


def test_a_message_that_comes_twice_is_shown_once() -> None:
    """A duplicate message is shown once and counted, as in an app."""
    with answering("tail", "--topics-only") as (child, publisher):
        publisher.send("a", 1, 1)
        publisher.send("b", 2)
        child.wait_for(lambda lines: "b" in lines)
        assert child.end() == 0  # asks the publisher for its last numbers, to count losses
        assert child.out == ["a", "b"]
        assert child.err[-1].endswith("malformed 0, lost 0, duplicate 1")


def test_all_that_was_sent_before_the_end_is_recorded_or_counted_as_lost(tmp_path: Path) -> None:
    """At a signal, unread messages are still recorded, and missing ones are counted."""
    for attempt in range(3):  # if the publisher stands still, the command does not wait long enough for its answer
        with answering("record", str(tmp_path / str(attempt))) as (child, publisher):
            publisher.send("a", *range(1, 5001), *range(5003, 5005))
            publisher.flush()
            assert child.end() == 0
        if "recorded 5002, " in child.err[-1] and child.err[-1].endswith("lost 2"):
            break
    assert "recorded 5002, " in child.err[-1]
    assert child.err[-1].endswith("lost 2")


def _goodbye(marker: bytes, epoch: int) -> bytes:
    return pack_statements(Kind.GOODBYE, marker, [], epoch=epoch, name="p", partial=False, sent_at=5)[0]


def test_invented_goodbyes_fill_no_memory() -> None:
    """If many publishers end together, only a few are answered at a time."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.set(zmq.LINGER, 0)
        publisher.set(zmq.RCVTIMEO, int(PATIENCE * 1000))
        publisher.set(zmq.SNDHWM, 0)
        publisher.bind("tcp://127.0.0.1:*")
        with Child("-m", "zroute", "tail", publisher.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()) as child:
            while not (heard := publisher.recv()).startswith(b"\1" + MARKER):
                continue
            for epoch in range(2 * PUBLISHERS_MAX):
                publisher.send(_goodbye(heard[1:], epoch))
            standing, most = set[bytes](), 0
            while standing or not most:
                change = publisher.recv()
                if change[1:].startswith(FAREWELL):
                    standing ^= {change[1:]}
                    most = max(most, len(standing))
            assert 100 < most <= PUBLISHERS_MAX
            assert child.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("patterns", [(), ("a.>",), ("a.>", "b")])
@pytest.mark.parametrize("command", ["tail", "top", "record"])
def test_a_publisher_knows_its_listeners_and_ends_with_them(
    tmp_path: Path, command: str, patterns: tuple[str, ...]
) -> None:
    """Commands track messages: an app does not warn of them, and its stop does not wait."""
    endpoint = free_endpoint()
    (tmp_path / "counting.py").write_text(COUNTING.format(endpoint=endpoint))
    file = (str(tmp_path / "r"),) if command == "record" else ()
    run = "-m", "zroute", "run", "counting", "--app-dir", str(tmp_path)
    with Child(*run) as publisher, Child("-m", "zroute", command, endpoint, *file, *patterns) as tool:
        with Child("-m", "zroute", "tail", endpoint, "-n", "130") as other:  # longer than the wait for a plain reader
            assert other.end(None) == 0
        assert publisher.end() == 0
        assert "does not use the tracked wire" not in "".join(publisher.err)
        assert "have not confirmed" not in "".join(publisher.err)
        assert tool.end() == 0
        assert "control" in tool.err[-1]


def test_topics_that_are_no_text_are_shown_when_i_ask_for_everything() -> None:
    """Without a pattern, all messages are shown, also those with an unusual topic."""
    with feed() as publisher, listening("tail", publisher, "-n", "3", "--topics-only") as child:
        publisher.send(plain(b"\xff.\x1b[31m", 1), plain("", 1))
        assert child.end(None) == 0
        assert child.out == ["sync", "\\udcff.\\u001b[31m", ""]


def test_a_prefix_is_a_pattern_too() -> None:
    """A pattern may be startswith("…"), as `zroute routes` shows it."""
    with feed() as publisher, listening("tail", publisher, 'startswith("new")', "-n", "2", "--topics-only") as child:
        publisher.send(plain("newsletter", 1), plain("new", 1))
        assert child.end(None) == 0
        assert child.out == ["newsletter", "new"]


def test_it_binds_where_i_say_so() -> None:
    """With bind: the command binds, and prints the port."""
    with Child("-m", "zroute", "tail", "bind:tcp://127.0.0.1:*", "-n", "1") as child, zmq.Context() as context:
        endpoint = child.line_with("bound to", stream="err").split()[-1]
        with context.socket(zmq.XPUB) as publisher:
            publisher.connect(endpoint)
            assert publisher.poll(PATIENCE * 1000)
            publisher.send(plain("a", 1))
            assert child.end(None) == 0


def test_wait_gives_124_when_nothing_came() -> None:
    """--wait ends with 124 if no wanted message arrives; the line counts the others."""
    done = zroute("tail", free_endpoint(), "--wait", "100ms")
    assert (done.returncode, done.stdout) == (124, "")
    assert done.stderr.splitlines()[-1] == "zroute: no message arrived within 0.1 s"
    with feed() as publisher:
        for wait in spans(2):
            done = zroute("tail", publisher.endpoint, "--wait", f"{wait:g}s", "--ignore", "sync")
            assert done.returncode == 124
            if "ignored" in done.stderr.splitlines()[-1]:
                break
    assert done.stderr.splitlines()[-1] == f"zroute: no message arrived within {wait:g} s, except ignored 1"


def test_wait_is_over_with_the_first_message(tmp_path: Path) -> None:
    """After the first message, --wait has no effect."""
    for wait in spans(1):
        with feed() as publisher, listening("tail", publisher, "--wait", f"{wait:g}s", "a") as child:
            publisher.send(tracked("a", 1))
            child.wait_for(lambda lines: lines or child.process.poll() is not None)
            if not child.out:  # too late
                continue
            with pytest.raises(subprocess.TimeoutExpired):
                child.process.wait(1.2 * wait)
            publisher.send(tracked("a", 2))
            child.line_with(" a 2")
            assert child.end() == 0
            break
    else:
        pytest.fail("no message arrived in time")


@pytest.mark.parametrize(
    ("endpoint", "code", "text"),
    [
        ("5555", 2, "has no transport"),
        ("bind:tcp://192.0.2.1:5555", 5, "does not have this address"),
        ("bind:tcp://0.0.0.0:5555", 5, "zroute: tcp://0.0.0.0:5555 is open to the network"),
        ("inproc://here", 5, "inside its own process"),
    ],
)
@pytest.mark.parametrize("command", ["tail", "top"])
def test_endpoints_that_do_not_work_are_told(command: str, endpoint: str, code: int, text: str) -> None:
    """An invalid endpoint is a usage error; one that can't be opened gives one line and 5."""
    words = ("--insecure",) if "this address" in text else ()
    done = zroute(command, endpoint, *words)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1


def test_a_bind_that_is_open_to_the_network_is_said(tmp_path: Path) -> None:
    """A bind to all interfaces is refused; with --insecure, it is reported."""
    refused = zroute("tail", "bind:tcp://*:*", "--wait", "10ms")
    assert (refused.returncode, "is open to the network" in refused.stderr) == (5, True)
    done = zroute("tail", "bind:tcp://*:*", "--wait", "10ms", "--insecure")
    assert "is reachable from the network" in done.stderr


def name_of_loopback() -> str:
    """Return a name that /etc/hosts gives to the loopback interface, other than localhost if there is one."""
    lines = [line.partition("#")[0].split() for line in Path("/etc/hosts").read_text().splitlines()]
    names = [name for address, *names in filter(None, lines) if address.startswith("127.") for name in names]
    return max(names, key=lambda name: "localhost" not in name, default="localhost")


@pytest.mark.parametrize(
    "command",
    [
        ("tail", "bind:tcp://{}:*", "--wait", "10ms"),
        ("pub", "tcp://{}:*", "a", "1", "--wait", "10ms"),
        ("run", "named", "--pub", "tcp://{}:*", "--for", "10ms"),
        ("bench", "--pub", "tcp://{}:*", "--wait", "10ms"),
    ],
    ids=["tail", "pub", "run", "bench"],
)
def test_a_name_of_the_loopback_interface_is_not_open_to_the_network(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A bind to a host name is judged by the address that the name has."""
    (tmp_path / "named.py").write_text("from zroute import App\napp = App(pub='tcp://127.0.0.1:*')\n")
    said = zroute(*(each.format(name_of_loopback()) for each in command), cwd=tmp_path).stderr
    assert re.search("(bound to|publishing to) tcp://127[.]", said)
    assert "is reachable from the network" not in said


def test_a_reader_that_goes_ends_it_quietly(tmp_path: Path) -> None:
    """`| head -n 1` ends the command silently, with exit 0."""
    for options in ((), ("--json",)):
        with ticker(tmp_path) as endpoint:
            child = start("-m", "zroute", "tail", endpoint, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdout.readline()
            child.stdout.close()
            child.stdout = None
            _, said = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0
        assert said.decode().splitlines() == [f"zroute: connects to {endpoint}"]


def test_a_second_signal_ends_it_when_nobody_takes_its_output() -> None:
    """A second Ctrl-C ends a command that is blocked in a write to its output."""
    with feed() as publisher:
        child = start("-m", "zroute", "tail", publisher.endpoint, "big", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout is not None
        try:
            publisher.heard()
            publisher.send(plain("big", body=b"x" * 500_000))
            deadline = time.monotonic() + PATIENCE
            while _waiting(child.stdout.fileno()) < fcntl.fcntl(child.stdout, fcntl.F_GETPIPE_SZ):
                assert time.monotonic() < deadline
                os.sched_yield()
            while child.poll() is None:
                assert time.monotonic() < deadline
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(0.3)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()
            child.communicate()
    assert child.returncode == 130


def _waiting(descriptor: int) -> int:
    """Return the number of unread bytes."""
    return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0])


def test_messages_that_travel_together_are_shown_one_by_one() -> None:
    """Coalesced messages have a line each, and -n counts messages."""
    together = coalesced_framer(epoch=7, count=lambda topic, many: ())(b"a.x", 2, [b"1", b"2", b"3"], 5)
    with feed() as publisher, listening("tail", publisher, "-n", "4", "a.>") as child:
        publisher.send(together[:-1], together, together)
        assert child.end(None) == 0
        assert [line.split()[1:3] for line in child.out] == [["a.x", number] for number in ("1", "2", "3", "1")]
        assert "received 5, shown 4" in child.err[-1]
        assert child.err[-1].endswith("malformed 1, lost not counted")
