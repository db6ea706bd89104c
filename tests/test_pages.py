"""The programs of the how-to pages that need more than their commands: services, foreign peers, several processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.commands import patient
from tests.support import PATIENCE, ROOT, Child, free_port
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
    port = free_port()
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
        (*TWISTD, "--pidfile=", "-n", "zroute", "quotes:app"),
        ("-m", "twisted", "zroute", "quotes:app"),
    ],
    ids=[
        "tac",
        "tac on asyncio",
        "twistd plugin",
        "twist plugin",
        "zroute's plugin of twistd",
        "zroute's plugin of twist",
    ],
)
def test_an_app_under_twistd_publishes_and_drains(embedded: Path, command: tuple[str, ...]) -> None:
    """Each way of the page runs the app, and Ctrl+C ends it after on_shutdown; the .tac file shows its log."""
    endpoint = next(word for word in (embedded / "quotes.py").read_text().split('"') if word.startswith("tcp://"))
    with (
        Child(*command, cwd=embedded, env=path(embedded)) as program,
        Child("-m", "zroute", "tail", endpoint, "--format", "{topic} {body}", "-n", "2") as tail,
    ):
        # The first one may come before the reactor runs, and so before Twisted handles signals.
        tail.wait_for(lambda lines: lines.count("beats alive") == 2)
        program.end(signal.SIGINT)
        assert any("quotes: closing" in line for line in program.out), "\n".join((*program.out, *program.err))


def test_the_log_of_a_daemon_has_the_lines_of_zroute(embedded: Path) -> None:
    """twistd goes to the background, and its file has what zroute logs."""
    log = embedded / "twistd.log"
    command = (*TWISTD, "--pidfile", "twistd.pid", "--logfile", str(log), "-y", "quotes.tac")
    with Child(*command, cwd=embedded, env=path(embedded)) as starter:
        assert starter.end(None) == 0, starter.err
    try:
        deadline = time.monotonic() + PATIENCE
        while "[zroute" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)  # the parent of the daemon is gone: its file is all there is
        assert "[zroute#info] quotes: routes 0" in log.read_text()
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
    options = ("--max-messages", "1", "--log-format", "text")
    with Child("-m", "zroute", "run", "orders", *options, cwd=logging_files) as program:
        assert program.end(None) == 0
        for line in shown[:2]:
            assert any(seen[9:] == line[9:] for seen in program.err), program.err
        assert any(seen.endswith("INFO    one more order") for seen in program.err)


def test_the_log_as_json_has_the_fields_of_the_page(logging_files: Path) -> None:
    """Each line is an object with the fields of the table; one with a traceback has all of them."""
    fields = {row[0].strip("`") for row in rows(HOW_TO / "logging.md", "field")}
    options = ("--max-messages", "1", "--log-format", "json")
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
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_newest.py", fresh=True, cwd=tmp_path) as child:
        assert child.end(None) == 0, child.out
        assert child.out[-1].startswith("2 passed")


def test_two_publishers_reach_a_subscriber_through_the_proxy_of_the_page(tmp_path: Path) -> None:
    """The proxy forwards both feeds, ready() waits for both, and a message of the shell arrives too."""
    page = HOW_TO / "many-to-many.md"
    write_files(page, tmp_path)
    (front,) = set(re.findall(r"connect:(tcp://127[^\"]*)", (tmp_path / "feeds.py").read_text()))
    (back,) = set(re.findall(r"tcp://127[^\"]*", (tmp_path / "screen.py").read_text()))
    started, first, second, _ = (block.text.splitlines() for block in blocks(page) if block.language == "console")
    command = started[0].replace("tcp://127.0.0.1:5559", front).replace("tcp://127.0.0.1:5560", back)
    with Child("-m", *shlex.split(command[2:])) as proxy:
        proxy.line_with("for subscribers", stream="err")
        with (
            Child("-m", *shlex.split(first[0][2:]), cwd=tmp_path) as feeds,
            Child("-m", *shlex.split(second[0][2:]), cwd=tmp_path) as screen,
        ):
            for line in second[1:]:
                assert screen.line_with(line) == line
            with Child("-m", "zroute", *patient("pub", f"connect:{front}", "wind.east", "4")) as east:
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


# -- foreign-publishers.md ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("weather", "10001 23 60", "10001 warm 60"),
        ("weather_json", '10001 {"celsius": 23, "humidity": 60}', "10001 {}"),
    ],
)
def test_an_app_reads_a_topic_and_a_body_with_a_space_between(tmp_path: Path, name: str, good: str, bad: str) -> None:
    """The programs of the page print the weather of one place, and a broken text does not stop them."""
    source = write_files(HOW_TO / "foreign-publishers.md", tmp_path)[f"{name}.py"]
    endpoint = next(word for word in source.split('"') if word.startswith("tcp://"))
    with zmq.Context() as context, context.socket(zmq.XPUB) as station:
        station.bind(endpoint)
        with Child("-m", "zroute", "run", name, cwd=tmp_path) as app:
            assert station.poll(PATIENCE * 1000)
            assert station.recv() == b"\x0110001"  # its only subscription
            for text in (bad, "10002 25 60", good):
                station.send_string(text)
            assert app.line_with("°C") == "10001: 23 °C, 60 %"
            assert "show" in app.line_with("10001", stream="err")
            assert app.end() == 0


def test_the_test_of_the_page_of_foreign_publishers_passes(tmp_path: Path) -> None:
    """The page's test passes without a port."""
    write_files(HOW_TO / "foreign-publishers.md", tmp_path)
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", fresh=True, cwd=tmp_path) as child:
        assert child.end(None) == 0, child.out
        assert child.out[-1].startswith("1 passed")


def test_a_topic_that_ends_at_a_space_has_the_line_of_the_page(tmp_path: Path) -> None:
    """A handler that subscribes to the place is not called, and the log has the line of the page."""
    page = HOW_TO / "foreign-publishers.md"
    (shown,) = [line for block in blocks(page) for line in block.text.splitlines() if line.startswith("WARNING")]
    source = "from zroute import App, startswith\napp = App()\napp.subscribe(startswith('10001'))(print)\n"
    (tmp_path / "place.py").write_text(source)
    with zmq.Context() as context, context.socket(zmq.XPUB) as station:
        port = station.bind_to_random_port("tcp://127.0.0.1")
        endpoint = f"tcp://127.0.0.1:{port}"
        with Child("-m", "zroute", "run", "place", "--sub", endpoint, cwd=tmp_path) as app:
            assert station.poll(PATIENCE * 1000)  # its subscription
            station.send_string("10001 23 60")
            assert app.line_with("no NUL", stream="err")[9:] == shown
            assert app.end() == 0


# -- from-faststream.md ------------------------------------------------------------------------------------


def test_the_app_that_came_from_faststream_passes_its_test(tmp_path: Path) -> None:
    """The app of the page is accepted by zroute check, and its test passes."""
    write_files(HOW_TO / "from-faststream.md", tmp_path)
    with Child("-m", "zroute", "check", "after", cwd=tmp_path) as check:
        assert check.end(None) == 0, check.err
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_after.py", fresh=True, cwd=tmp_path) as child:
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


# -- in-fastapi.md -----------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The folder with the files of the page."""
    write_files(HOW_TO / "in-fastapi.md", tmp_path)
    return tmp_path


def address_of(folder: Path, parameter: str) -> str:
    """Return the address that the page's App has for ``sub`` or ``pub``."""
    return (folder / "shop.py").read_text().partition(f'{parameter}="')[2].partition('"')[0]


def get(url: str, method: str = "GET") -> str:
    """Return the body of a response; retry until the server answers with 200."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method)) as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


SERVE_AIOHTTP = """
from aiohttp import web
from site_of_aiohttp import site
web.run_app(site, host="127.0.0.1", port=PORT, print=None)
"""


@pytest.mark.parametrize("server", ["asyncio", "uvloop", "aiohttp"])
def test_a_web_application_reads_and_publishes(shop: Path, server: str) -> None:
    """A price reaches an endpoint of the server, an order is published, and Ctrl+C drains both."""
    for name in ("fastapi", "uvicorn") if server != "aiohttp" else ("aiohttp", "fastapi"):
        pytest.importorskip(name)
    port = free_port()
    uvicorn = ("-m", "uvicorn", "shop:web", "--host", "127.0.0.1", "--port", str(port), "--loop", server)
    command = ("-c", SERVE_AIOHTTP.replace("PORT", str(port))) if server == "aiohttp" else uvicorn
    publish = ("pub", address_of(shop, "sub"), "stocks.ACME", "990.5", "--wait", "60s")
    with (
        Child(*command, cwd=shop, env=path(shop)) as program,
        Child("-m", "zroute", "tail", address_of(shop, "pub"), "--format", "{topic} {body}") as tail,
    ):
        with Child("-m", "zroute", *publish) as publisher:
            assert publisher.end(None) == 0, publisher.err
        assert get(f"http://127.0.0.1:{port}/prices/ACME") == "990.5"
        if server != "aiohttp":
            order = f"http://127.0.0.1:{port}/orders/ACME?quantity=3"
            tail.wait_for(lambda lines: get(order, "POST") and "orders.ACME 3" in lines)  # until the tail has joined
        assert program.end(signal.SIGINT) == 0, program.err
    assert not [line for line in program.err if "Traceback" in line]


def test_a_server_does_not_start_if_its_app_does_not(shop: Path) -> None:
    """An address in use is the reason that uvicorn logs."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    host, _, port = address_of(shop, "pub").removeprefix("tcp://").partition(":")
    command = ("-m", "uvicorn", "shop:web", "--port", str(free_port()))
    with socket.create_server((host, int(port))), Child(*command, cwd=shop, env=path(shop)) as program:
        assert program.end(None) == 3
        assert any("EndpointError" in line for line in program.err)
        assert any("startup failed" in line for line in program.err)


def test_a_server_ends_with_its_app(shop: Path) -> None:
    """The task of the page sees the app stop, and the server ends as after a signal."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    source = (shop / "shop.py").read_text()
    (shop / "shop.py").write_text(source + "\n@app.every(0.05)\ndef end() -> None: app.stop(3)\n")
    command = ("-m", "uvicorn", "together:web", "--port", str(free_port()))
    with Child(*command, cwd=shop, env=path(shop)) as program:
        program.end(None)
        assert any("Application shutdown complete" in line for line in program.err), program.err


def test_a_server_of_ones_own_ends_with_the_code_of_its_app(shop: Path) -> None:
    """The program of the page exits with 3 after app.stop(3)."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    source = (shop / "shop.py").read_text()
    (shop / "shop.py").write_text(source + "\n@app.every(0.05)\ndef end() -> None: app.stop(3)\n")
    serve = (shop / "serve.py").read_text()
    (shop / "serve.py").write_text(serve.replace("(web, ", f"(web, port={free_port()}, "))
    with Child("serve.py", cwd=shop, env=path(shop)) as program:
        assert program.end(None) == 3, program.err


def test_a_program_of_asyncio_ends_with_the_code_of_its_app(shop: Path) -> None:
    """The program of the page prints its beat and exits with 3."""
    with Child("program.py", cwd=shop, env=path(shop)) as program:
        assert program.end(None) == 3, program.err
        assert "beat" in program.out


def test_the_test_of_a_web_application_passes(shop: Path) -> None:
    """The test file of the page passes with anyio's plugin."""
    for name in ("fastapi", "httpx", "anyio"):
        pytest.importorskip(name)
    flags = ("-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "test_shop.py")
    with Child("-m", "pytest", *flags, fresh=True, cwd=shop, env=path(shop)) as program:
        assert program.end(None) == 0, program.out


# -- in-a-notebook.md --------------------------------------------------------------------------------------


def test_the_cells_of_the_page_run_in_a_notebook() -> None:
    """A kernel of Jupyter executes the cells of the page, twice, and shows what they describe."""
    pytest.importorskip("ipykernel")
    manager = pytest.importorskip("jupyter_client.manager")
    cells = [block.text for block in blocks(HOW_TO / "in-a-notebook.md") if block.title.startswith("cell")]
    kernel, client = manager.start_new_kernel(PATIENCE, "python3", env=path(ROOT))
    try:

        def run(cell: str) -> str:
            shown: list[str] = []

            def show(message: dict[str, Any]) -> None:
                content = message["content"]
                if message["msg_type"] == "stream":
                    shown.append(content["text"])
                elif message["msg_type"] == "execute_result":
                    shown.append(content["data"]["text/plain"])
                elif message["msg_type"] == "error":
                    shown.append(f"{content['ename']}: {content['evalue']}")

            client.execute_interactive(cell, output_hook=show, timeout=PATIENCE)
            return "".join(shown)

        declare, start, look, late, publish, stop = cells
        assert "await asyncio.sleep(0.5)\n" in look
        waits = look.replace("await asyncio.sleep(0.5)", "while not prices:\n    await asyncio.sleep(0.01)")
        refused = run(declare + "\napp.run()")
        assert refused.startswith("UsageError: ")
        assert "async with app.running()" in refused
        for _ in range(2):
            assert run(start) == ""
            assert "UsageError" in run(start)
            assert "already running" in run(start)  # and it goes on
            assert run(waits) == "('ACME', 990.5)"
            assert "streamed: 990.5" in run(late)
            assert run(publish) == "True"
            assert "AppFrozenError" in run("@app.subscribe('b')\ndef on(n: int): ...")
            assert run(stop) == ""
        assert "True" in run("import sys; print('twisted.internet.reactor' not in sys.modules)")
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
        pytest.importorskip("jupyter_core.utils").ensure_event_loop().close()  # the client keeps its loop open
        asyncio.set_event_loop(None)


# -- ask-and-answer.md -------------------------------------------------------------------------------------


def test_two_programs_ask_and_answer_and_so_does_a_plain_socket(tmp_path: Path) -> None:
    """The trader and the plain REQ socket of the page print what the page shows, and so does the shell."""
    page = HOW_TO / "ask-and-answer.md"
    written = write_files(page, tmp_path)
    shown = {block.title: block.text.splitlines() for block in blocks(page) if block.language == "console"}
    (endpoint,) = re.findall(r"tcp://[\d.:]+", written["prices.py"])
    with Child("-m", "zroute", "run", "prices", cwd=tmp_path) as prices:
        prices.line_with("answers requests", stream="err")
        with Child("-m", "zroute", "run", "trader", cwd=tmp_path) as trader:
            trader.wait_for(lambda lines: len(lines) >= 2)
            assert trader.end() == 0, trader.err
            assert trader.out[:2] == shown["second terminal"][1:]
        command, expected = shown[""]
        words = [
            endpoint if word.startswith("tcp:") else word for word in shlex.split(command.removeprefix("$ zroute "))
        ]
        with Child("-m", "zroute", *patient(*words)) as shell:
            assert shell.end(None) == 0, shell.err
            assert shell.out == [expected]
        with Child("plain.py", cwd=tmp_path) as plain:
            assert plain.end(None) == 0, plain.err
        (expected_lines,) = [block.text for block in blocks(page) if block.text.startswith("{'symbol'")]
        assert plain.out == expected_lines.splitlines()
        assert prices.end() == 0, prices.err


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_a_program_in_node_asks(tmp_path: Path) -> None:
    """The Node program of the page gets a reply; it needs zeromq from npm, in NODE_PATH or beside it."""
    page = HOW_TO / "ask-and-answer.md"
    folder = os.environ.get("ZROUTE_NODE_MODULES", "")
    if not (Path(folder) / "zeromq").is_dir():
        pytest.skip("set ZROUTE_NODE_MODULES to a folder with zeromq from npm")
    (tmp_path / "node_modules").symlink_to(folder)
    written = write_files(page, tmp_path)
    (endpoint,) = re.findall(r"tcp://[\d.:]+", written["prices.py"])
    (source,) = [block.text for block in blocks(page) if block.title == "plain.mjs"]
    (tmp_path / "plain.mjs").write_text(re.sub(r"tcp://[\d.:]+", endpoint, source))
    with Child("-m", "zroute", "run", "prices", cwd=tmp_path) as prices:
        prices.line_with("answers requests", stream="err")
        done = subprocess.run(
            ["node", "plain.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stdout) == (0, "{ symbol: 'ACME', total: 2971.5 }\n"), done.stderr


# -- share-work.md -----------------------------------------------------------------------------------------


def test_the_worker_of_the_page_does_the_jobs_of_the_owner(tmp_path: Path) -> None:
    """I save the file of the page, run its commands, and the worker prints what the page shows."""
    page = HOW_TO / "share-work.md"
    farm = write_files(page, tmp_path)["farm.py"]
    one_at_a_time = farm.replace("max_in_flight=4", "max_in_flight=1")  # threads print into each other's lines
    assert one_at_a_time != farm
    (tmp_path / "farm.py").write_text(one_at_a_time)
    owner, worker = (block.text.splitlines() for block in blocks(page) if block.language == "console")
    with (
        Child("-m", *shlex.split(owner[0][2:]), cwd=tmp_path) as putting,
        Child("-m", *shlex.split(worker[0][2:]), cwd=tmp_path) as working,
    ):
        for line in worker[1:]:
            assert working.line_with(line) == line
        assert working.end() == 0, working.err
        assert putting.end() == 0, putting.err


def test_the_owner_of_the_page_waits_for_a_watcher(tmp_path: Path) -> None:
    """The owner puts jobs once a program that reads its dead letters has joined, and does not start without one."""
    written = write_files(HOW_TO / "share-work.md", tmp_path)
    (letters,) = re.findall(r'pub="(tcp://[^"]*)"', written["waiting.py"])
    put = '\n\n@owner.every(60.0)\nasync def put() -> None:\n    await resize.put({}, kind="a")\n    print("put")\n'
    (tmp_path / "waiting.py").write_text(written["waiting.py"].replace("timeout=60", "timeout=0.1") + put)
    with Child("-m", "zroute", "run", "waiting:owner", cwd=tmp_path) as alone:
        assert alone.end(None) == 1
        assert alone.out == []
        assert "did not start" in alone.err[0]
    (tmp_path / "waiting.py").write_text(written["waiting.py"] + put)
    with (
        Child("-m", "zroute", "run", "waiting:owner", "--drain-timeout", "1s", cwd=tmp_path) as owner,
        Child("-m", "zroute", "tail", letters, "dead.>"),
    ):
        assert owner.line_with("put") == "put"
        assert owner.end() == 75  # no worker has done the job
