"""`zroute replay`, with subscribers in processes of their own."""

from __future__ import annotations

import signal
from pathlib import Path

import msgpack
import pytest

from tests.cli.terminal import on_terminal
from tests.cli.test_pub import listener, received
from tests.commands import zroute
from tests.support import Child, free_endpoint, sized, spans
from zroute.messages.wire import Wire, framer
from zroute.recordings import Writer


def recording(path: Path, *messages: tuple[float, tuple[bytes, ...]]) -> str:
    """Write a recording with these messages, and return its path."""
    with Writer(path, began_at=0.0, source="connect:tcp://127.0.0.1:5555") as writer:
        for at, frames in messages:
            writer.write(at, frames)
    return str(path)


def many(path: Path, number: int) -> str:
    """Return ``count`` messages on ten topics at one time, and "end" as the last."""
    messages = [(0.0, (b"t.%d\0%d" % (index % 10, index),)) for index in range(number)]
    return recording(path, *messages, (0.0, (b"end\0",)))


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
def test_the_frames_are_those_that_were_recorded(tmp_path: Path, wire: Wire) -> None:
    """The frames are sent unchanged, with their old headers, also if they are malformed."""
    frame = framer(wire, epoch=7, next_sequence=iter(range(40, 99)).__next__, clock_ns=lambda: 123)
    headers = {"a": 1} if wire == "tracked" else None
    made = [frame(b"news.a", 2, b"%d" % number, headers) for number in range(3)]
    frames = [one if isinstance(one, tuple) else (one,) for one in made]
    odd: list[tuple[bytes, ...]] = [(b"no NUL",), (b"", b"")]
    file = recording(tmp_path / "r", *((index / 1000, parts) for index, parts in enumerate(frames + odd)))
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        done = zroute("replay", file, endpoint)
        assert done.returncode == 0, done.stderr
        assert received(child, 5) == frames + odd
    assert "contains 5 messages" in done.stderr
    assert "zroute: sent 5 messages\n" in done.stderr


def test_the_pauses_are_the_recorded_ones_at_the_speed_that_was_asked(tmp_path: Path) -> None:
    """A higher speed shortens the pauses.

    The time before the first message is skipped.
    """
    file = recording(tmp_path / "r", (100.0, (b"a\0",)), (100.1, (b"a\0",)), (101.0, (b"end\0",)))
    for _ in range(3):  # a machine that stands still makes pauses longer, and those of a late reader shorter
        slow, quick = _duration(file, "0.5x"), _duration(file, "10x")
        if 30 > slow > 3 * quick:
            break
    assert 30 > slow > 3 * quick  # 2 s and 0.1 s; without the speeds, both would be 1 s


def _duration(file: str, speed: str) -> float:
    """Return the seconds between the first and the last message of a replay."""
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        assert zroute("replay", file, endpoint, "--speed", speed).returncode == 0
        child.end(None)
        times = [float(line.split(" ")[0]) for line in child.out[1:]]
    return times[-1] - times[0]


def test_many_messages_to_a_slow_subscriber_arrive_in_order(tmp_path: Path) -> None:
    """At full speed, a slow subscriber loses no message, and memory stays limited."""
    total = sized(100_000, 10_000)
    file, endpoint = many(tmp_path / "r", total), free_endpoint()
    with listener(endpoint, "", 20) as child:
        done = zroute("replay", file, endpoint, "--speed", "max")
        assert (done.returncode, f"sent {total + 1} messages\n" in done.stderr) == (0, True), done.stderr
        child.end(None)
        got = [bytes.fromhex(line.split(" ")[1]).partition(b"\0")[2] for line in child.out[1:-1]]
    assert got == [b"%d" % index for index in range(total)]


def test_only_and_ignore_choose_topics(tmp_path: Path) -> None:
    """--only and --ignore choose topics, and a line counts the omitted messages."""
    file, endpoint = many(tmp_path / "r", 100), free_endpoint()
    with listener(endpoint) as child:
        done = zroute("replay", file, endpoint, "--only", "t.*", "--ignore", "t.3", "--ignore", "t.{n}.x")
        assert done.returncode == 0
        got = received(child, 90)
    assert "sent 90 messages" in done.stderr
    assert "contains 101 messages" in done.stderr
    assert "11 of them excluded by --only and --ignore" in done.stderr
    assert not [frames for frames in got if frames[0].startswith((b"t.3\0", b"end"))]


def test_only_and_ignore_with_slashes_choose_topics(tmp_path: Path) -> None:
    """With --separator / the patterns of --only and --ignore have levels between slashes."""
    names = ("/a/x", "/a/y.z", "/b/x", "/a/b/x")
    file = recording(tmp_path / "r", *((0.0, (f"{name}\0{name}".encode(),)) for name in names))
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        options = ("--only", "/a/*", "--ignore", "/*/x", "--separator", "/")
        assert zroute("replay", file, endpoint, *options).returncode == 0
        assert received(child, 1) == [(b"/a/y.z\0/a/y.z",)]


def test_a_torn_recording_is_replayed_up_to_the_tear(tmp_path: Path) -> None:
    """An incomplete last record is skipped, and a line says so."""
    path, endpoint = tmp_path / "r", free_endpoint()
    many(path, 10)
    path.write_bytes(path.read_bytes()[:-3])
    with listener(endpoint) as child:
        done = zroute("replay", str(path), endpoint)
        assert len(received(child, 10)) == 10
    assert done.returncode == 0
    assert "the last record is incomplete: " in done.stderr


def test_it_waits_for_a_subscriber_to_one_of_its_topics(tmp_path: Path) -> None:
    """A subscriber to another topic is not enough: nothing is sent, with exit 124."""
    file, endpoint = many(tmp_path / "r", 10), free_endpoint()
    with listener(endpoint, "other") as child:
        child.line_with("ready")
        for wait in spans(3):
            done = zroute("replay", file, endpoint, "--wait", f"{wait:g}s")
            if "'other'" in done.stderr:
                break
    assert done.returncode == 124
    assert "active subscriptions: 'other'" in done.stderr
    with listener(endpoint, "t.7") as child:
        done = zroute("replay", file, endpoint)
        assert received(child, 1) == [(b"t.7\x007",)]
    assert "sent 11 messages, 10 of them to topics without a subscriber" in done.stderr


def test_a_signal_ends_it_and_what_was_sent_arrives(tmp_path: Path) -> None:
    """Ctrl-C ends a replay with 0 and the number of sent messages, which arrive."""
    file = recording(tmp_path / "r", (0.0, (b"a\0",)), (3600.0, (b"a\0",)))
    endpoint = free_endpoint()
    with listener(endpoint) as child, Child("-m", "zroute", "replay", file, endpoint) as replay:
        received(child, 1)
        assert replay.end(signal.SIGINT) == 0
        assert replay.err[-1] == "zroute: sent 1 message"


def test_what_can_not_be_replayed(tmp_path: Path) -> None:
    """A missing file and a wrong option are usage errors; a file that is not a recording, or empty, is a failure."""
    endpoint, other, empty = free_endpoint(), tmp_path / "other", tmp_path / "empty"
    other.write_text("hello")
    empty.write_bytes(msgpack.packb({"format": "zroute recording", "version": 1, "began_at": 1.0, "source": ""}))
    for arguments, code, said in (
        ((str(tmp_path / "none"), endpoint), 2, "does not exist"),
        ((str(other), endpoint), 1, f"{other}: the file is not a recording: create recordings with 'zroute record'"),
        ((str(empty), endpoint), 1, "no messages to replay"),
        ((str(other), endpoint, "--speed", "0x"), 2, "write 10x, 0.5x or max"),
        ((str(other), endpoint, "--speed", "fast"), 2, "write 10x, 0.5x or max"),
        ((str(other), endpoint, "--only", "new*"), 2, "a wildcard must be a whole segment"),
    ):
        done = zroute("replay", *arguments)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    """A terminal shows a progress bar, without colours if NO_COLOR is set."""
    file, endpoint = many(tmp_path / "r", 10), free_endpoint()
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with listener(endpoint):
            shown, code = on_terminal("replay", file, endpoint, cwd=tmp_path, **env)
        assert code == 0
        assert "11/11" in shown
        assert ("\x1b[38" in shown or "\x1b[3" in shown) == coloured
