"""`zroute record`, with publishers in processes of their own."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import on_terminal
from tests.cli.test_pub import listener, received
from tests.commands import zroute
from tests.support import Child, free_endpoint
from zroute import App
from zroute.messages.wire import parse
from zroute.recordings import read
from zroute.testing import TestApp


def recording(endpoint: str, file: Path, *flags: str) -> Child:
    """Start `zroute record`, and wait until it connects."""
    child = Child("-m", "zroute", "record", endpoint, str(file), *flags)
    child.line_with("connects to", stream="err")
    return child


def publish(endpoint: str, topic: str, *flags: str) -> None:
    """Publish some messages, after the recorder has subscribed."""
    done = zroute("pub", endpoint, topic, "1", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
def test_a_recording_holds_the_frames_as_they_came(tmp_path: Path, wire: str) -> None:
    """A recording has the frames of all messages in order, in each wire."""
    endpoint, file = free_endpoint(), tmp_path / "r"
    with recording(endpoint, file, "-n", "20") as child:
        # The first messages may have no numbers: the publisher has not read the recorder's marker yet.
        publish(endpoint, "news.a", "--wire", wire, "--count", "20", "--every", "20ms")
        assert child.end(None) == 0
        assert child.err[-1].startswith("zroute: recorded 20, bytes ")
        lost = "0" if wire == "tracked" else "not counted"
        assert child.err[-1].endswith(f", malformed 0, lost {lost}")
    messages = list(read(file))
    assert [message.topic for message in messages] == [b"news.a"] * 20
    assert [message.at for message in messages] == sorted(message.at for message in messages)
    assert {parse(message.frames, 0.0).tracked for message in messages} == {wire == "tracked"}
    assert {len(message.frames) for message in messages} == {2 if wire == "multipart" else 1}


def test_what_was_recorded_can_be_replayed_and_given_to_a_test(tmp_path: Path) -> None:
    """A recording can be replayed to `zroute tail`, and to an app under test."""
    endpoint, file = free_endpoint(), tmp_path / "r"
    with recording(endpoint, file, "-n", "3") as child:
        publish(endpoint, "news.a", "--count", "3")
        assert child.end(None) == 0
    frames = [message.frames for message in read(file)]
    again = free_endpoint()
    with listener(again) as child:
        assert zroute("replay", str(file), again).returncode == 0
        assert received(child, 3) == frames

    app, seen = App(), []

    @app.subscribe("news.*")
    def on_news(body: Any) -> None:
        seen.append(body)

    with TestApp(app) as t:
        t.replay(file)
    assert seen == [1, 1, 1]


def test_patterns_choose_and_ignore_leaves_out(tmp_path: Path) -> None:
    """Only matching messages are recorded; the last line counts the others."""
    endpoint, file = free_endpoint(), tmp_path / "r"
    with recording(endpoint, file, "news.>", "--ignore", "*.draft", "-n", "1") as child:
        child.line_with("connects", stream="err")
        publish(endpoint, "news.draft")
        publish(endpoint, "news.a")
        assert child.end(None) == 0
        assert "ignored 1" in child.err[-1]
    assert [message.topic for message in read(file)] == [b"news.a"]


def test_a_killed_recorder_leaves_what_it_had_received(tmp_path: Path) -> None:
    """After kill -9, at most the last record is lost."""
    endpoint, file = free_endpoint(), tmp_path / "r"
    with recording(endpoint, file) as child:
        publish(endpoint, "news.a", "--count", "500")

        def kept() -> int:
            return len(list(read(file)))

        while kept() < 500:
            assert child.process.poll() is None
        child.end(signal.SIGKILL)
    recorded = read(file)
    assert len(list(recorded)) == 500
    assert recorded.torn == 0


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """An existing file is kept, unless --force is given."""
    endpoint, file = free_endpoint(), tmp_path / "r"
    file.write_text("mine")
    done = zroute("record", endpoint, str(file))
    assert done.returncode == 2
    assert "already exists: choose another name, or replace the file with --force" in done.stderr
    assert file.read_text() == "mine"
    assert zroute("record", endpoint, str(file), "--force", "--for", "10ms").returncode == 0
    assert file.read_text() == "mine", "until a message comes"
    with recording(endpoint, file, "--force", "-n", "1") as child:
        publish(endpoint, "news.a")
        assert child.end(None) == 0
    assert len(list(read(file))) == 1


def test_nothing_within_the_wait_is_124(tmp_path: Path) -> None:
    """If no message arrives in time, the exit code is 124, and there is no file."""
    done = zroute("record", free_endpoint(), str(tmp_path / "r"), "--wait", "50ms")
    assert done.returncode == 124
    assert "no message arrived within 0.05 s" in done.stderr
    assert f"no message arrived, so {tmp_path / 'r'} was not written" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_place_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    """A missing folder and a full disk are reported in one line."""
    done = zroute("record", free_endpoint(), str(tmp_path / "no" / "r"))
    assert done.returncode == 1
    assert "can't be written: No such file or directory" in done.stderr
    endpoint = free_endpoint()
    with recording(endpoint, Path("/dev/full"), "--force") as full:
        publish(endpoint, "news.a")
        assert full.end(None) == 1
    assert "No space left on device" in full.err[-1]


def test_a_terminal_sees_the_count_grow(tmp_path: Path) -> None:
    """On a terminal, a line counts messages and bytes."""
    shown, code = on_terminal("record", free_endpoint(), "r", "--for", "600ms", cwd=tmp_path)
    assert "0 messages" in shown
    assert code == 0
