"""Handlers in threads: concurrency limit, order, progress messages and a full queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.terminal import commands, ended
from zroute import App
from zroute.testing import TestApp

Example = Callable[[str], Any]


def test_a_thumbnail_and_how_far_it_is(test_app: Callable[..., TestApp], example: Example) -> None:
    """The picture shrinks by the scale, each point is a mean, and four messages report progress."""
    program = example("thumbnails")
    t = test_app(program.app)
    t.publish("pictures.door", program.Picture(64, bytes(64 * 32) + bytes([80]) * 64 * 32))
    assert t.published("thumbnails.door") == [program.Picture(8, bytes(8 * 4) + bytes([80]) * 8 * 4)]
    assert t.published("progress.door") == [program.Progress(percent) for percent in (0, 25, 50, 75)]


def burst(program: Any, *cameras: str) -> App:
    """Return an app that sends a picture of each camera at once, on command."""
    app = App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2")
    pictures = app.publisher("pictures.{camera}", program.Picture)

    @app.subscribe("now")
    def now() -> None:
        for number, camera in enumerate(cameras):
            pictures.publish(program.Picture(32, bytes([number]) * 32 * 32), camera=camera)

    return app


def test_two_cameras_at_a_time_and_one_camera_in_order(
    test_app: Callable[..., TestApp], example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three cameras, at most two pictures are in work, and each camera's pictures stay in order."""
    program = example("thumbnails")
    lock, together = threading.Lock(), threading.Barrier(2)
    working, most = set[int](), 0
    shade = program.shade

    def watched(picture: Any, left: int, top: int) -> Any:
        nonlocal most
        if (left, top) == (0, 0):
            with lock:
                working.add(threading.get_ident())
                most = max(most, len(working))
            together.wait(120)  # passes only if two run at the same time
        shaded = shade(picture, left, top)
        if (left, top) == (24, 24):
            with lock:
                working.discard(threading.get_ident())
        return shaded

    monkeypatch.setattr(program, "shade", watched)
    t = test_app(program.app, burst(program, "a", "b", "c", "a", "b", "c"))
    t.publish("now", None)
    for camera, numbers in (("a", (0, 3)), ("b", (1, 4)), ("c", (2, 5))):
        small = t.published(f"thumbnails.{camera}")
        assert [picture.pixels[0] for picture in small] == list(numbers)
    assert most == 2
    assert threading.get_ident() not in working


def test_more_than_can_wait_pauses_reading_and_loses_nothing(
    test_app: Callable[..., TestApp], example: Example, caplog: pytest.LogCaptureFixture
) -> None:
    """Forty pictures at once fill the queue of eight: reading pauses with a log line, and none is lost."""
    program = example("thumbnails")
    with caplog.at_level(logging.WARNING, "zroute"):
        t = test_app(program.app, burst(program, *["door"] * 40))
        t.publish("now", None)
    assert [picture.pixels[0] for picture in t.published("thumbnails.door")] == list(range(40))
    assert any("shrink() at" in text and "queue full (8 messages)" in text for text in caplog.messages)


def test_a_picture_that_is_none_fails_alone(test_app: Callable[..., TestApp], example: Example) -> None:
    """An error in a thread is reported like any handler's error, and the next picture is handled."""
    program = example("thumbnails")
    t = test_app(program.app, raise_errors=False)
    t.publish("pictures.door", program.Picture(0, b"123"))
    assert [type(error) for error in t.failures] == [ZeroDivisionError]
    t.publish("pictures.door", program.Picture(32, bytes(32 * 32)))
    assert len(t.published("thumbnails.door")) == 1


def test_the_cameras(test_app: Callable[..., TestApp], example: Example) -> None:
    """Each camera publishes two pictures of 640 by 480 points every 200 ms."""
    program = example("thumbnails")
    t = test_app(program.cameras)
    t.advance(0.2)
    assert {(picture.width, picture.height) for picture in t.published("pictures.*")} == {(640, 480)}
    assert len(t.published()) >= 2


@pytest.mark.usefixtures("network")
def test_as_its_docstring_says(folder: Path) -> None:
    """An app that is stopped during work finishes the pictures that it has begun, and exits with 0."""
    run, tail, cameras = commands(folder, "thumbnails.py")
    with (
        run.start("--drain-timeout", "100s") as app,
        tail.start("--topics-only") as reader,
        cameras.start("--for", "60s") as feed,
    ):
        reader.wait_for(lambda lines: {"progress.door", "progress.yard"} <= set(lines))
        ended(app)
        ended(feed)
        ended(reader)
    (counters,) = [line for line in app.err if "handled" in line]
    received, handled = (int(counters.partition(f"{name} ")[2].split(",")[0]) for name in ("received", "handled"))
    assert received == handled > 0
    assert "failed 0" in counters
