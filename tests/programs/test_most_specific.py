"""A router for a txZMQ publisher: most specific handler, stamped JSON or raw bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.terminal import commands, ended
from tests.support import Child, Way
from zroute.testing import TestApp

Example = Callable[[str], Any]


def stamped(data: object) -> bytes:
    """Return ``data`` as JSON with a time stamp, as publishers on txZMQ send it."""
    return json.dumps({"timestamp": 1767225600, "data": data}).encode()


MESSAGES = {
    (b"weather.oslo", stamped({"celsius": -3.5})): "oslo: -3.5 °C at 00:00:00",
    (b"weather.oslo", b"4;CRC=77"): "oslo, raw: 4;CRC=77",
    (b"weather.oslo", stamped({"kelvin": 270})): 'oslo, raw: {"timestamp": 1767225600, "data": {"kelvin": 270}}',
    (b"weather.oslo.west", b"4"): "somewhere else, weather.oslo.west: b'4'",
    (b"news.local", stamped({"title": "New crane"})): "news.local: New crane, at 00:00:00",
    (b"news.local", b"\xffcrane"): "news.local, raw: \ufffdcrane",
    (b"news.sports.final", stamped({"title": "We won"})): "Sports! We won",
    (b"news.sports", stamped({"title": "Rain"})): "news.sports: Rain, at 00:00:00",
    (b"newsletter", stamped([1, 2])): "somewhere else, newsletter: Stamped(data=[1, 2], timestamp=1767225600.0)",
    (b"", b"no tag"): "somewhere else, : b'no tag'",
}


@pytest.mark.parametrize(("sent", "shown"), MESSAGES.items())
@pytest.mark.parametrize("wire", ["one frame", "two frames"])
def test_each_message_reaches_its_most_specific_handler_only(
    test_app: Callable[..., TestApp],
    example: Example,
    capsys: pytest.CaptureFixture[str],
    sent: tuple[bytes, bytes],
    shown: str,
    wire: str,
) -> None:
    """Each message prints one line, from the handler with the most specific pattern."""
    t = test_app(example("most_specific").app)
    t.receive(*([b"\0".join(sent)] if wire == "one frame" else sent))
    assert capsys.readouterr().out == f"{shown}\n"
    assert t.unheard == []


def test_a_story_that_is_none_is_an_error_where_no_raw_bytes_are_asked_for(
    test_app: Callable[..., TestApp], example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that takes only stories refuses other bodies; no less specific handler gets them."""
    t = test_app(example("most_specific").app, raise_errors=False)
    t.receive(b"news.sports.final\0rain stopped play")
    assert [type(error).__name__ for error in t.failures] == ["DecodeError"]
    assert capsys.readouterr().out == ""


def test_a_real_txzmq_publisher(folder: Path, way: Way) -> None:
    """Messages that txZMQ sends over a socket arrive as in the table, in order."""
    bind, connect = way.meeting()
    router = commands(folder, "most_specific.py")[0]
    with Child("-m", "tests.acceptance.peers", "txzmq_publisher", bind) as publisher:
        publisher.line_with(bind)
        with router.start("--sub", connect) as child:
            child.line_with("somewhere else, sync: b''")
            publisher.write(json.dumps([[part.hex() for part in sent] for sent in MESSAGES]) + "\n")
            child.line_with("no tag")
            ended(child)
    assert [line for line in child.out if "sync" not in line] == list(MESSAGES.values())


@pytest.mark.usefixtures("network")
def test_as_its_docstring_says(folder: Path) -> None:
    """The commands for two terminals print what the docstring shows."""
    router, *messages = commands(folder, "most_specific.py")
    with router.start() as child:
        for message in messages:
            message.run()
        child.wait_for(lambda lines: len(lines) == 4)
        ended(child)
    assert child.out == [
        "oslo: -3.5 °C at 00:00:00",
        "oslo, raw: 4;CRC=77",
        "Sports! We won",
        "somewhere else, newsletter: Stamped(data=[1, 2], timestamp=1767225600.0)",
    ]
