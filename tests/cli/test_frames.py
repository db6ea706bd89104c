"""`--frames`: commands that read and publish messages of a stated form."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from tests.cli.feeding import feed, listening
from tests.cli.test_pub import listener, received
from tests.commands import zroute
from tests.support import free_endpoint
from zroute import App, Topic
from zroute.recordings import read
from zroute.testing import TestApp


def test_tail_shows_topic_and_body_of_the_form() -> None:
    """`zroute tail --frames` subscribes to the topics of the form, and shows what it finds."""
    with feed() as publisher, listening("tail", publisher, "news.>", "--frames", "separator= ", "-n", "2") as child:
        publisher.send(b'news.a {"n": 1}', b"news.b", b"news.c text of it")
        assert child.end(None) == 0
    assert [line.split(" ", 1)[1] for line in child.out] == ['news.a {"n": 1}', "news.c text of it"]
    assert "malformed 1" in child.err[-1]


def test_tail_decompresses() -> None:
    """A fixed topic with compressed bodies is shown decompressed, in JSON too."""
    with (
        feed() as publisher,
        listening("tail", publisher, "--frames", "topic=eddn,decompress=zlib", "--json", "-n", "1") as child,
    ):
        publisher.send(zlib.compress(b'{"event":"Docked"}'))
        assert child.end(None) == 0
    shown = json.loads(child.out[0])
    assert (shown["topic"], shown["body"]) == ("eddn", {"event": "Docked"})


def test_top_counts_by_the_topics_of_the_form() -> None:
    """`zroute top --frames` has a line for each topic of the form."""
    with feed() as publisher, listening("top", publisher, "--frames", "topic=0,body=2", "--once", "--json") as child:
        publisher.send([b"cam\0a", b"", b"12345"], [b"b", b"", b"1"])
        assert child.end(None) == 0
    topics = {row["topic"]: row["messages"] for row in json.loads(child.out[0])["topics"]}
    assert topics == {"cam\\u0000a": 1, "b": 1} or topics == {"cam\0a": 1, "b": 1}


def test_a_recording_has_the_form_and_is_replayed_part_by_part(tmp_path: Path) -> None:
    """The head of a recording states the form; replay chooses by its topics, and sends the parts unchanged."""
    file, sent = tmp_path / "r", [[b"news.a", b"", b"1"], [b"news.b\0", b"x", b"2"], [b"sport", b"", b"3"]]
    with feed() as publisher, listening("record", publisher, str(file), "--frames", "body=2", "-n", "3") as child:
        publisher.send(*sent)
        assert child.end(None) == 0
    recording = read(file)
    assert recording.frames == "body=2"
    assert [list(message.frames) for message in recording] == sent
    again = free_endpoint()
    with listener(again) as child:
        done = zroute("replay", str(file), again, "--only", 'startswith("news.")')
        assert done.returncode == 0, done.stderr
        assert [list(parts) for parts in received(child, 2)] == sent[:2]
    app, got = App(sub={"tcp://feed:1": "tracked"}), list[tuple[bytes, bytes]]()

    @app.subscribe("news.a", "sport")
    def take(body: bytes, topic: Topic) -> None:
        got.append((topic.wire, body))

    with TestApp(app) as t:
        t.replay(file)
    assert got == [(b"news.a", b"1"), (b"sport", b"3")]


def test_a_recording_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    """A head whose form can't be read is an error with the file, and nothing is sent."""
    from zroute.recordings import Writer

    with Writer(tmp_path / "r", began_at=0.0, source="x", frames="shape=7") as writer:
        writer.write(0.0, [b"a"])
    done = zroute("replay", str(tmp_path / "r"), free_endpoint())
    assert done.returncode == 1
    assert "contains messages of an unknown form: 'shape=7' is not a message form" in done.stderr
    with Writer(tmp_path / "q", began_at=0.0, source="x", frames="body=3") as writer:
        writer.write(0.0, [b"a"])
    done = zroute("replay", str(tmp_path / "q"), free_endpoint())
    assert done.returncode == 1
    assert "no part 3 for the body" in done.stderr


def test_pub_sends_in_the_form() -> None:
    """`zroute pub --frames` sends topic and body as the form states."""
    endpoint = free_endpoint()
    with listener(endpoint) as child:
        done = zroute("pub", endpoint, "news.a", "1", "--frames", "topic=0,body=2")
        assert done.returncode == 0, done.stderr
        assert received(child, 1) == [(b"news.a", b"", b"1")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("tail", "tcp://127.0.0.1:1", "--frames", "sep= "), "'sep= ' is not a message form: write for example"),
        (("record", "tcp://127.0.0.1:1", "r", "--frames", "whole"), "whole=True: no part is left for the topic"),
        (("top", "tcp://127.0.0.1:1", "--frames", "decompress=gzip"), "use one of 'zlib', 'zstd', 'lz4'"),
        (
            ("pub", "tcp://127.0.0.1:1", "a", "1", "--frames", "topic=b"),
            "topic 'a' can't be published: with this app's",
        ),
        (("pub", "tcp://127.0.0.1:1", "a", "1", "--frames", "body=2", "-H", "a=b"), "omit --header, or omit --frames"),
        (("pub", "tcp://127.0.0.1:1", "a", "1", "--frames", "body=2", "--wire", "plain"), "are mutually exclusive"),
    ],
)
def test_a_form_that_is_wrong_is_a_usage_error(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    """The command ends with 2 and says what to write, without a place in zroute's code."""
    done = zroute(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())
    assert ".py:" not in done.stderr
