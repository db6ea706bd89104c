"""Programs on NATS: `zroute run --nats`, and the page "Run on NATS".

Most examples run unchanged on ZeroMQ and on NATS, in the same tests of tests/programs: see the fixture ``network``. The
tables here contain the others.
"""

from __future__ import annotations

import ast
import asyncio
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from docs.examples import ALL
from tests.commands import zroute
from tests.nats.secrets import Operator, certificates
from tests.nats.servers import NatsServer
from tests.nats.test_security import needs_openssl
from tests.support import PATIENCE, ROOT, Child, spans
from tests.test_snippets import HOW_TO, write_files

TICKER = ("--app-dir", str(ROOT / "examples"), "ticker:feed", "ticker:screen")
LAST = re.compile(r"(\w+): received (\d+), handled (\d+), failed (\d+), unrouted (\d+), malformed (\d+), lost (\w+)")


def run_ticker(*given: str, **env: str) -> str:
    """Run an example for some seconds, and return its log. Its subscriber must receive messages, and lose none."""
    for seconds in spans(3):
        done = zroute("run", *TICKER, *given, "--for", f"{seconds:g}s", **env)
        assert done.returncode == 0, done.stderr
        received = [found for found in LAST.findall(done.stderr) if found[1] != "0"]
        if received:
            break
    (last,) = received
    assert last[2] != "0", done.stderr
    assert last[6] == "0", done.stderr
    return done.stderr + done.stdout


@pytest.mark.parametrize("by", ["option", "variable"])
def test_the_app_of_the_page_runs_on_nats(server: NatsServer, tmp_path: Path, by: str) -> None:
    """The app of the page runs on NATS by option and by variable, says so in one line, and answers other clients."""
    write_files(HOW_TO / "nats.md", tmp_path)
    url = server.url.replace("//", "//ann:secret@")
    given = ["--nats", url] if by == "option" else []
    env = {"ZROUTE_NATS": url} if by == "variable" else {"ZROUTE_SUB": "tcp://127.0.0.1:1"}

    async def ask() -> bytes:
        client = await nats.connect(server.url)
        heard = await client.subscribe("alerts.>")
        await client.publish("quotes.ACME", b"\x82\xa6symbol\xa4ACME\xa5price\xcb\x40\x9f\x40\x00\x00\x00\x00\x00")
        message = await heard.next_msg(timeout=PATIENCE)
        await client.close()
        return message.subject.encode() + b" " + message.data

    with Child("-m", "zroute", "run", "desk.py", *given, cwd=tmp_path, env=env) as child:
        child.wait_for(lambda lines: any("subscribes and publishes on NATS" in line for line in lines), stream="err")
        assert asyncio.run(ask()) == b"alerts.ACME ACME at 2000.0"
        assert child.end(signal.SIGTERM) == 0, child.err
    log = "\n".join(child.err)
    assert log.count("runs on NATS, so its endpoints are not used: connect:tcp://127.0.0.1:") == 1
    assert "secret" not in log
    assert "received 1, handled 1, failed 0, unrouted 0, malformed 0, lost not counted, published 1" in log


@needs_openssl
def test_an_app_connects_by_host_name_with_tls_and_a_password(tmp_path: Path) -> None:
    """The certificate of the host name is checked, the app runs without a loss, and no line shows the password."""
    authority, certificate, key = certificates(tmp_path)
    login = 'authorization { users: [{ user: "ann", password: "s3cret" }] }'
    with NatsServer(tmp_path, f"tls {{ cert_file: '{certificate}', key_file: '{key}' }}\n{login}") as server:
        url = f"tls://ann:s3cret@localhost:{server.port}"
        log = run_ticker("--nats", url, SSL_CERT_FILE=str(authority))
        assert f"connected to tls://localhost:{server.port}" in log
        assert "s3cret" not in log
        refused = zroute("run", *TICKER, "--nats", url)
    assert (refused.returncode, "its certificate is not valid" in refused.stderr) == (5, True), refused.stderr
    assert "s3cret" not in refused.stderr + refused.stdout


def test_an_app_logs_in_with_a_file_of_credentials(tmp_path: Path) -> None:
    """The permissions of the page "Run on NATS" are enough for an app, and the file comes from option or variable."""
    page = (HOW_TO / "nats.md").read_text()
    topics = ["stocks.*", "market.status"]
    subscribe, publish = ["_INBOX.>", "_zr.hello", "_zr.ask", "_zr.*.*"], ["_INBOX.>", "_zr.>"]
    assert all(f"`{subject}`" in page for subject in subscribe + publish)
    operator = Operator([*subscribe, *topics], [*publish, *topics])
    creds = str(operator.write(tmp_path / "desk.creds"))
    with NatsServer(tmp_path, operator.config) as server:
        for given, env in ((["--nats-creds", creds], {}), ([], {"ZROUTE_NATS_CREDS": creds})):
            log = run_ticker("--nats", server.url, *given, **env)
            assert "refuses" not in log, log
        refused = zroute("run", *TICKER, "--nats", server.url)
    assert (refused.returncode, "it does not accept the credentials" in refused.stderr) == (5, True), refused.stderr


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    """Two options together are a usage error; an option takes precedence over a variable."""
    (tmp_path / "one.py").write_text(
        "from zroute import App\napp = App(sub='tcp://127.0.0.1:1')\napp.add_route(print, 'a')\n"
    )
    url = "nats://127.0.0.1:1"
    both = zroute("check", "one.py", "--nats", url, "--sub", "tcp://127.0.0.1:1", cwd=tmp_path)
    assert (both.returncode, "--nats can't be combined with --sub" in both.stderr) == (2, True)
    keys = zroute("check", "one.py", "--nats", url, "--keys", "desk.key_secret", cwd=tmp_path)
    assert (keys.returncode, "--nats can't be combined with --keys" in keys.stderr) == (5, True)
    wrong = zroute("check", "one.py", "--nats", "nats://ann:secret@:x", cwd=tmp_path)
    assert (wrong.returncode, "secret" in wrong.stderr) == (2, False)
    on_nats = zroute("check", "one.py", cwd=tmp_path, ZROUTE_NATS=url)
    assert (on_nats.returncode, f"runs on {url}" in on_nats.stdout) == (0, True)
    on_zeromq = zroute("check", "one.py", "--sub", "tcp://127.0.0.1:2", cwd=tmp_path, ZROUTE_NATS=url)
    assert (on_zeromq.returncode, "runs on" in on_zeromq.stdout) == (0, False)
    reactor = zroute("run", "one.py", "--nats", url, "--reactor", "poll", cwd=tmp_path)
    assert (reactor.returncode, "NATS needs asyncio's reactor" in reactor.stderr) == (2, True)


def test_check_and_routes_know_nats(tmp_path: Path) -> None:
    """`zroute check` refuses a pattern that NATS can't filter, and `zroute routes` shows the merged subjects."""
    head = "from zroute import App, startswith\napp = App(nats='nats://127.0.0.1:1')\n"
    (tmp_path / "bad.py").write_text(f"{head}app.add_route(print, startswith('news'))\n")
    (tmp_path / "good.py").write_text(f"{head}app.add_route(print, 'news.*', '*.urgent')\n")
    bad = zroute("check", "bad.py", cwd=tmp_path)
    assert (bad.returncode, 'bad.py:3: pattern startswith("news") begins inside' in bad.stderr) == (4, True)
    assert zroute("routes", "bad.py", cwd=tmp_path).returncode == 4
    assert "subjects of NATS: *.*\n" in zroute("routes", "good.py", cwd=tmp_path).stdout


ONLY_ON_ZEROMQ = {
    "foreign": "its publishers send messages of several parts, and topics that are not text",
    "farm": "its jobs need retry= and dead=, which core NATS can't do; FARM below runs without them",
    "order_book": "publishers on NATS have no snapshots",
    "alarm": "its .tac file passes no address to app.service(), and twistd reads no variable of zroute",
}
"""Examples that can't run on NATS unchanged, and the reasons."""

OF_OTHER_THINGS = {
    "test_benchmarks": "it tests the benchmarks, some of which run on NATS anyway",
    "test_chaos": "it tests the failures of ZeroMQ; those of NATS are in tests/nats",
    "test_instruction_ratios": "it counts instructions of messages over ZeroMQ",
    "test_sessions": "it plays the sessions of the documentation, which show ZeroMQ",
    "test_farm": ONLY_ON_ZEROMQ["farm"],
    "test_order_book": ONLY_ON_ZEROMQ["order_book"],
    "test_twistd": ONLY_ON_ZEROMQ["alarm"],
}
"""Modules of tests/programs without a test on NATS, and the reasons."""


def found_on_both(module: Path) -> Iterator[ast.FunctionDef]:
    """Yield the tests of a module that use the fixture ``network``, so that they also run on NATS."""
    for test in ast.parse(module.read_text()).body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            used = [argument.arg for argument in test.args.args]
            marks = [ast.unparse(mark) for mark in test.decorator_list]
            if "network" in used or "pytest.mark.usefixtures('network')" in marks:
                yield test


def test_each_example_runs_on_nats_or_has_a_reason() -> None:
    """Each example and each module of tests/programs has a test on both networks, or a reason in the tables above."""
    modules = {path.stem: list(found_on_both(path)) for path in (ROOT / "tests" / "programs").glob("test_*.py")}
    assert {name for name, tests in modules.items() if not tests} == set(OF_OTHER_THINGS)
    texts = [
        node.value
        for tests in modules.values()
        for test in tests
        for node in ast.walk(test)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != ast.get_docstring(test)
    ]
    named = {found[1] for text in texts if (found := re.fullmatch(r"(?:examples/)?(\w+)(?:[./:]\S*)?", text))}
    assert set(ALL) - named == set(ONLY_ON_ZEROMQ)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["foreign"], "pattern startswith(b'\\xff\\x01') begins inside"),
        (["order_book:feed"], "has snapshot="),
        (["farm:office"], "has retry= or dead=, but on NATS a job is given to one worker once"),
    ],
)
def test_an_example_that_needs_zeromq_is_refused(server: NatsServer, given: list[str], reason: str) -> None:
    """An example that needs something of ZeroMQ does not start on NATS, and the error says why."""
    done = zroute("run", "--app-dir", str(ROOT / "examples"), *given, ZROUTE_NATS=server.url)
    assert done.returncode in (4, 5)
    assert reason in done.stderr, done.stderr


FARM = """
import zlib
from zroute import App

office = App(jobs="tcp://127.0.0.1:1", name="office")
queue = office.job_queue("jobs.{customer}", str)

@office.every(0.01)
async def order():
    if queue.stats.put < 300:
        await queue.put(f"order {queue.stats.put}", customer="ann")
    elif queue.stats.done == 300:
        office.stop()

worker = App(work="tcp://127.0.0.1:1", name="worker")

@worker.work("jobs.{customer}")
def compute(text: str, customer: str) -> None:
    print(f"{customer} {text} {zlib.crc32(text.encode())}\\n", end="", flush=True)  # one text: other threads print too
"""


def test_a_farm_runs_on_nats(server: NatsServer, tmp_path: Path) -> None:
    """Two workers in their own processes share the jobs of an office, and each job is done once."""
    (tmp_path / "farm.py").write_text(FARM)
    env = {"ZROUTE_NATS": server.url}
    given = ("-m", "zroute", "run")
    with (
        Child(*given, "farm:worker", cwd=tmp_path, env=env) as first,
        Child(*given, "farm:worker", cwd=tmp_path, env=env) as second,
        Child(*given, "farm:office", cwd=tmp_path, env=env) as office,
    ):
        assert office.process.wait(PATIENCE) == 0, office.err
        for worker in (first, second):
            assert worker.end(signal.SIGINT) == 0, worker.err
    lines = [line for worker in (first, second) for line in worker.out if line.startswith("ann order")]
    assert sorted(int(line.split()[2]) for line in lines) == list(range(300))
    (counters,) = [line for line in office.err if "jobs_put" in line]
    assert "jobs_put 300, jobs_done 300, jobs_failed 0" in counters
