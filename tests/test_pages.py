"""The programs of the how-to pages that need more than their commands: services, foreign peers, several processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, Child
from tests.test_snippets import HOW_TO, blocks, rows, write_files

TWISTD = ("-c", "from twisted.scripts.twistd import run; run()")

# -- embed-in-twisted.md -----------------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """The folder with the files of the page."""
    write_files(HOW_TO / "embed-in-twisted.md", tmp_path)
    return tmp_path


def path(folder: Path) -> dict[str, str]:
    """Return the environment in which Python finds modules in ``folder``, and zroute."""
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")))}


def test_an_app_in_a_program_with_a_reactor_publishes_and_drains(embedded: Path) -> None:
    """A line to the TCP server is published by the app, and Ctrl+C runs on_shutdown."""
    listen = "tcp:0:interface=127.0.0.1"
    source = (embedded / "program.py").read_text()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (embedded / "program.py").write_text(source.replace(listen, listen.replace(":0:", f":{port}:")))
    endpoint = next(word for word in (embedded / "quotes.py").read_text().split('"') if word.startswith("tcp://"))
    with (
        Child("program.py", cwd=embedded, env=path(embedded)) as program,
        Child("-m", "zroute", "tail", endpoint, "--format", "{topic} {body}") as tail,
    ):
        program.line_with("started")
        tail.line_with("beats alive")
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"ACME 990.5\n")
            tail.line_with("stocks.ACME 990.5")
        program.end(signal.SIGINT)
        assert program.out[-1] == "quotes: closing"


def test_an_address_in_use_ends_the_program_with_its_reason(embedded: Path) -> None:
    """The same program a second time raises EndpointError."""
    with Child("program.py", cwd=embedded, env=path(embedded)) as first:
        first.line_with("started")
        with Child("program.py", cwd=embedded, env=path(embedded)) as second:
            assert second.end(None) == 1
            assert "EndpointError" in second.err[-1]


@pytest.mark.parametrize(
    "command",
    [
        (*TWISTD, "--pidfile=", "-ny", "quotes.tac"),
        (*TWISTD, "--pidfile=", "--reactor", "asyncio", "-ny", "quotes.tac"),
        (*TWISTD, "--pidfile=", "-n", "quotes", "--verbose"),
        ("-m", "twisted", "quotes"),
    ],
    ids=["tac", "tac on asyncio", "twistd plugin", "twist plugin"],
)
def test_an_app_under_twistd_publishes_and_drains(embedded: Path, command: tuple[str, ...]) -> None:
    """Each way of the page runs the app, and Ctrl+C ends it after on_shutdown; the .tac file shows its log."""
    endpoint = next(word for word in (embedded / "quotes.py").read_text().split('"') if word.startswith("tcp://"))
    with (
        Child(*command, cwd=embedded, env=path(embedded)) as program,
        Child("-m", "zroute", "tail", endpoint, "--format", "{topic} {body}", "-n", "1") as tail,
    ):
        tail.line_with("beats alive")
        program.end(signal.SIGINT)
        assert any("quotes: closing" in line for line in program.out), (program.out, program.err)


def test_the_log_of_a_daemon_has_the_lines_of_zroute(embedded: Path) -> None:
    """twistd goes to the background, and its file has what zroute logs."""
    tac = embedded / "quotes.tac"
    tac.write_text(tac.read_text().replace("logging.INFO", "logging.DEBUG"))
    log = embedded / "twistd.log"
    command = (*TWISTD, "--pidfile", "twistd.pid", "--logfile", str(log), "-y", "quotes.tac")
    with Child(*command, cwd=embedded, env=path(embedded)) as starter:
        assert starter.end(None) == 0, starter.err
    try:
        deadline = time.monotonic() + PATIENCE
        while "[zroute" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)  # the parent of the daemon is gone: its file is all there is
        assert "listening" in log.read_text()
    finally:
        os.kill(int((embedded / "twistd.pid").read_text()), signal.SIGKILL)


def test_several_apps_in_one_reactor_hear_each_other(embedded: Path) -> None:
    """The second app receives what the first publishes."""
    with Child("several.py", cwd=embedded, env=path(embedded)) as program:
        program.line_with("heard: alive")
        program.end(signal.SIGINT)
        assert "quotes: closing" in program.out


def test_a_service_takes_a_drain_timeout(embedded: Path) -> None:
    """The options of AppService are those of the page."""
    with Child("patient.py", cwd=embedded, env=path(embedded)) as program:
        assert program.end(None) == 0, program.err


# -- logging.md --------------------------------------------------------------------------------------------


@pytest.fixture
def logging_files(tmp_path: Path) -> Path:
    """The folder with the files of the page."""
    write_files(HOW_TO / "logging.md", tmp_path)
    return tmp_path


def test_the_log_as_text_has_the_lines_of_the_page(logging_files: Path) -> None:
    """Each line of text on the page is one of the program's, but for times, numbers and the place."""
    text = "\n".join(block.text for block in blocks(HOW_TO / "logging.md") if block.language == "text")
    shown = [line for line in text.splitlines() if line.startswith("14:")]
    assert len(shown) == 3
    options = ("--for", "500ms", "--log-format", "text")
    with Child("-m", "zroute", "run", "orders", *options, cwd=logging_files) as program:
        assert program.end(None) == 0
        for line in shown[:2]:
            assert any(seen[9:] == line[9:] for seen in program.err), program.err
        assert any(seen.endswith("INFO    one more order") for seen in program.err)


def test_the_log_as_json_has_the_fields_of_the_page(logging_files: Path) -> None:
    """Each line is an object with the fields of the table; one with a traceback has all of them."""
    fields = {row[0].strip("`") for row in rows(HOW_TO / "logging.md", "field")}
    options = ("--for", "500ms", "--log-format", "json")
    with Child("-m", "zroute", "run", "orders", *options, cwd=logging_files) as program:
        assert program.end(None) == 0
        *lines, last = map(json.loads, program.err)
    assert (last["app"], last["received"], last["failed"]) == ("orders", 1, 1)
    (line,) = (line for line in lines if line["level"] == "error")
    assert set(line) == fields
    assert (line["level"], line["logger"]) == ("error", "zroute")
    assert line["message"].startswith("on_order() at orders.py:")
    assert line["error"].endswith("ValueError: out of tea")


@pytest.mark.parametrize("name", ["script.py", "with_structlog.py"])
def test_a_program_with_a_log_of_its_own_keeps_it(logging_files: Path, name: str) -> None:
    """The lines of zroute and of the module have the format that the program has set up."""
    if "structlog" in name:
        pytest.importorskip("structlog")
    with Child(name, cwd=logging_files, env=path(logging_files)) as program:
        assert program.end(None) == 0, program.err
    lines = [line for line in program.err if "orders: received" in line or "one more order" in line]
    assert len(lines) >= 3
    for line in lines:
        logger = "orders" if "one more" in line else "zroute"
        assert (json.loads(line)["logger"] if "structlog" in name else line.split()[2]) == logger


# -- newest-values.md and many-to-many.md ------------------------------------------------------------------


def test_the_tests_of_the_page_on_newest_values_pass(tmp_path: Path) -> None:
    """I copy the files of the page, and its tests pass."""
    write_files(HOW_TO / "newest-values.md", tmp_path)
    alone = {"PYTEST_ADDOPTS": ""}
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_newest.py", cwd=tmp_path, env=alone) as child:
        assert child.end(None) == 0, child.out
        assert child.out[-1].startswith("2 passed")


def test_two_publishers_reach_a_subscriber_through_the_proxy_of_the_page(tmp_path: Path) -> None:
    """The proxy forwards both feeds, ready() waits for both, and a message of the shell arrives too."""
    page = HOW_TO / "many-to-many.md"
    proxy = write_files(page, tmp_path)["proxy.py"]
    front, back = (word for word in proxy.split('"') if word.startswith("tcp://"))
    first, second = (block.text.splitlines() for block in blocks(page) if block.language == "console")
    with Child("proxy.py", cwd=tmp_path) as forwarder:
        forwarder.line_with("forwarding")
        with (
            Child("-m", *shlex.split(first[0][2:]), cwd=tmp_path) as feeds,
            Child("-m", *shlex.split(second[0][2:]), cwd=tmp_path) as screen,
        ):
            for line in second[1:]:
                assert screen.line_with(line) == line
            with Child("-m", "zroute", "pub", f"connect:{front}", "wind.east", "4") as east:
                assert east.end(None) == 0, east.err
            screen.line_with("east: 4")
            with Child("-m", "zroute", "tail", back, "-n", "1") as tail:
                tail.line_with("wind.")
            assert screen.end() == 0
            assert " lost 0" in screen.err[-1]
            assert feeds.end() == 0


# -- from-pyzmq.md -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("publisher", ["pub_before.py", "pub_after"])
@pytest.mark.parametrize("subscriber", ["sub_before.py", "sub_after"])
def test_programs_of_pyzmq_and_zroute_understand_each_other(tmp_path: Path, publisher: str, subscriber: str) -> None:
    """Either side of the page may be the program before or the one after: the output is the same."""
    write_files(HOW_TO / "from-pyzmq.md", tmp_path)

    def start(name: str) -> Child:
        return Child(*((name,) if name.endswith(".py") else ("-m", "zroute", "run", name)), cwd=tmp_path)

    with start(publisher), start(subscriber) as reader:
        reader.line_with("NVR at 5800.0")
        assert set(reader.out) == {"NVR at 5800.0"}


# -- from-faststream.md ------------------------------------------------------------------------------------


def test_the_app_that_came_from_faststream_passes_its_test(tmp_path: Path) -> None:
    """The app of the page is accepted by zroute check, and its test passes."""
    write_files(HOW_TO / "from-faststream.md", tmp_path)
    alone = {"PYTEST_ADDOPTS": ""}
    with Child("-m", "zroute", "check", "after", cwd=tmp_path) as check:
        assert check.end(None) == 0, check.err
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_after.py", cwd=tmp_path, env=alone) as child:
        assert child.end(None) == 0, child.out


@pytest.mark.skipif(find_spec("faststream") is None, reason="FastStream is not installed")
def test_the_app_of_faststream_does_the_same(tmp_path: Path) -> None:
    """The program before answers a quote with the same alert."""
    write_files(HOW_TO / "from-faststream.md", tmp_path)
    program = """
import asyncio
from before import Quote, broker, page
from faststream.nats import TestNatsBroker

async def test():
    async with TestNatsBroker(broker) as test_broker:
        await test_broker.publish(Quote(symbol="ACME", price=1200.0), "stocks.ACME")
        page.mock.assert_called_once_with({"text": "ACME at 1200.0"})

asyncio.run(test())
"""
    with Child("-c", program, cwd=tmp_path, env=path(tmp_path)) as child:
        assert child.end(None) == 0, child.err
        assert child.out == ["ACME at 1200.0"]
