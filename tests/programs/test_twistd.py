"""An app beside another service in a program for twistd."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.programs.terminal import commands, ended
from tests.support import PATIENCE, free_port
from zroute.testing import TestApp


@pytest.fixture
def alarm(example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the .tac file as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "twistd")
    return example("alarm")


def test_smoke_raises_the_alarm_and_shows_on_the_panel(test_app: Callable[..., TestApp], alarm: Any) -> None:
    """Only smoke above the limit raises the alarm, and the other service's panel shows it."""
    t = test_app(alarm.app)
    t.publish("smoke.hall", alarm.Smoke(0.1))
    t.publish("smoke.kitchen", alarm.Smoke(0.3))
    assert t.published() == [alarm.Alarm("smoke in the kitchen")]
    assert json.loads(alarm.Panel().render_GET(None)) == {"hall": "clear", "kitchen": "ALARM"}


def panel(folder: Path) -> Any:
    """Return the panel's HTTP response."""
    text = (folder / "twistd" / "alarm.tac").read_text()
    url = next(line.split()[1] for line in text.splitlines() if line.startswith("curl "))
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)


def test_as_its_docstring_says(folder: Path) -> None:
    """twistd runs both services, logs errors, and stops both at Ctrl-C."""
    run, tail, smoke = commands(folder, "twistd/alarm.tac")
    with run.start() as program, tail.start("--format", "{body[text]}") as reader:
        program.line_with("Site starting")
        assert panel(folder) == {}
        with smoke.start(
            "--wait", "60s", "--every", "100ms"
        ) as detector:  # repeats, because the alarm may not have joined yet
            reader.line_with("smoke in the kitchen")
            ended(detector)
        assert panel(folder) == {"kitchen": "ALARM"}
        with smoke.start("--wait", "60s", "--every", "100ms", "--codec", "raw") as broken:
            program.line_with("on_smoke(): body of 'smoke.kitchen' refused")
            ended(broken)
        ended(reader)
        assert program.end() == -signal.SIGINT  # Twisted stops the services, then raises the signal again
    assert any("Server Shut Down" in line for line in program.out), program.out


def test_a_start_that_fails_ends_the_program(folder: Path) -> None:
    """If the app cannot start, twistd logs the reason and exits, and the other service stops too."""
    module = folder / "twistd" / "alarm.py"
    module.write_text(
        module.read_text()
        + "\n\n@app.on_startup\nasync def calibrate() -> None:\n    raise RuntimeError('no detector answers')\n"
    )
    run, _tail, _smoke = commands(folder, "twistd/alarm.tac")
    with run.start() as program:
        program.end(None)
    assert any("alarm did not start: no detector answers" in line for line in (*program.out, *program.err))


@contextmanager
def daemon(pid_file: Path) -> Iterator[int]:
    """Yield the process id of the daemon, and kill the process afterwards."""
    pid = int(pid_file.read_text())
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_in_the_background(folder: Path, tmp_path: Path) -> None:
    """twistd without -n forks; the app's sockets belong to the child, and SIGTERM stops it cleanly."""
    run, tail, smoke = commands(folder, "twistd/alarm.tac")
    pid_file, log = tmp_path / "twistd.pid", tmp_path / "twistd.log"
    line = run.line.replace("-ny", f"--pidfile {pid_file} --logfile {log} -y")
    with type(run)(line, {}, run.folder).start() as starter:
        assert starter.end(None) == 0, starter.err
    with daemon(pid_file) as pid, tail.start("--format", "{body[text]}") as reader:
        with smoke.start("--wait", "60s", "--every", "100ms") as detector:
            reader.line_with("smoke in the kitchen")
            ended(detector)
        assert panel(folder) == {"kitchen": "ALARM"}
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # not a child of this process, so its end cannot be awaited
        ended(reader)
    assert "Server Shut Down" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_an_endpoint_that_is_taken(folder: Path) -> None:
    """A second program on the same endpoint names the address and exits."""
    run, *_ = commands(folder, "twistd/alarm.tac")
    with run.start() as first:
        first.line_with("Site starting")
        tac = folder / "twistd" / "alarm.tac"
        tac.write_text(re.sub(r'"tcp:\d+', f'"tcp:{free_port()}', tac.read_text()))  # another panel, the same alarm
        with run.start("--pidfile", str(folder / "second.pid")) as second:
            assert second.end(None) == 1
        said = "\n".join(second.out + second.err)
        assert re.search(r"EndpointError: .*can't bind .*tcp://127.0.0.1:\d+.*in use", said), said
        first.end()
