"""A program that is configured by the environment, with zroute's variables and its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.terminal import commands, ended
from zroute.testing import TestApp

Example = Callable[[str], Any]


def test_settings_of_the_test(test_app: Callable[..., TestApp], example: Example) -> None:
    """A test passes its own settings to the handler, without environment variables and endpoints."""
    program = example("from_environment")
    t = test_app(program.app, {program.Settings: program.Settings(limit=50.0, ignore=frozenset({"tmp"}))})
    for disk, percent in (("var", 50.0), ("var", 50.1), ("tmp", 99.0)):
        t.publish(f"disks.{disk}", program.Usage(percent))
    assert t.published() == [program.TooFull("var is 50.1 % full, over 50 %")]
    assert [envelope.topic for envelope in t.envelopes()] == ["warnings.var"]


def test_settings_of_the_environment(
    test_app: Callable[..., TestApp], example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are read at each start, not when the module is imported."""
    program = example("from_environment")
    monkeypatch.setenv("DISK_LIMIT", "90")
    monkeypatch.setenv("DISK_IGNORE", "tmp,scratch")
    t = test_app(program.app)
    for disk in ("tmp", "var", "scratch"):
        t.publish(f"disks.{disk}", program.Usage(93.5))
    assert t.published() == [program.TooFull("var is 93.5 % full, over 90 %")]


@pytest.mark.parametrize(
    ("limit", "error", "text"),
    [(None, SystemExit, "DISK_LIMIT is not set"), ("ninety", ValueError, "could not convert .* 'ninety'")],
)
def test_settings_that_are_missing_or_wrong(
    test_app: Callable[..., TestApp],
    example: Example,
    monkeypatch: pytest.MonkeyPatch,
    limit: str | None,
    error: type[BaseException],
    text: str,
) -> None:
    """With a missing or wrong setting the app does not start, and the error names the setting."""
    monkeypatch.delenv("DISK_LIMIT", raising=False)
    if limit is not None:
        monkeypatch.setenv("DISK_LIMIT", limit)
    with pytest.raises(error, match=text):
        test_app(example("from_environment").app)


@pytest.mark.usefixtures("network")
def test_as_its_docstring_says(folder: Path) -> None:
    """Exported variables set where the program listens and publishes, and its limit."""
    run, tail, disk = commands(folder, "from_environment.py")
    with run.start() as program, tail.start("--format", "{topic}: {body[text]}") as reader:
        with disk.start("--every", "100ms", "--wait", "60s") as told:  # repeats until the reader has joined
            reader.line_with("warnings.var: var is 93.5 % full, over 90 %")
            ended(told)
        ended(reader)
        ended(program)


@pytest.mark.parametrize(
    ("missing", "code", "says"),
    [
        ("DISK_LIMIT", 1, "from_environment did not start: DISK_LIMIT is not set"),
        ("ZROUTE_PUB", 5, "publisher('warnings.{disk}')"),
    ],
)
def test_a_variable_that_is_missing(folder: Path, missing: str, code: int, says: str) -> None:
    """A missing variable prints one line that names it, and sets the exit code of its kind."""
    run, *_ = commands(folder, "from_environment.py")
    del run.environment[missing]
    with run.start() as program:
        assert program.end(None) == code
    assert any(says in line for line in program.err), program.err
    assert not any("Traceback" in line for line in program.err), program.err


def test_without_any_endpoint(folder: Path) -> None:
    """Without endpoints the program does not start, and the error names the variables."""
    run, *_ = commands(folder, "from_environment.py")
    run.environment.clear()
    with run.start() as program:
        assert program.end(None) == 5
    assert any("in the environment ZROUTE_SUB" in line for line in program.err), program.err
