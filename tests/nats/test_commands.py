"""`zroute pub`, `tail`, `top`, `record` and `request`, and the plugin of twist, with NATS servers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import pytest

from tests.commands import limited, patient, zroute
from tests.nats.secrets import Operator
from tests.nats.servers import NatsServer, known
from tests.nats.test_transport import LOGIN
from tests.support import PATIENCE, ROOT, Child
from zroute.recordings import read

TWIST = ("-m", "twisted")

SILENT = "nats://me:s3cret@127.0.0.1:1"
"""An address at which no server listens."""


@pytest.fixture
def url(server: NatsServer) -> str:
    """The address of the server, with credentials that no output may show."""
    return server.url.replace("//", "//me:s3cret@")


@contextmanager
def reading(command: str, *arguments: str) -> Iterator[Child]:
    """Run a command that reads messages; the block begins when it connects."""
    with Child("-m", "zroute", command, *arguments) as child:
        child.line_with("connects to nats://127", stream="err")
        yield child


def said(lines: Iterable[str]) -> list[str]:
    """Return the lines of a command on standard error, without attempts that a busy machine has delayed."""
    return [line for line in lines if not line.endswith("; trying again")]


def test_pub_reaches_tail(url: str) -> None:
    """`zroute pub` waits for the subscriber and sends body, headers and codec; all ends without a loss."""
    with reading("tail", url, "news.*", "*.urgent", "--json", "-n", "4") as tail:
        for given in (("news.a", '{"n": 1}', "-H", "user=ann"), ("news.urgent", "ü", "--codec", "text", "-n", "2")):
            sent = zroute(*patient("pub", url, *given))
            assert sent.returncode == 0, sent.stderr
            assert "s3cret" not in sent.stderr
        sent = zroute(*patient("pub", url, "news.b", "{}", "--wire", "plain"))
        assert sent.returncode == 0, sent.stderr
        assert tail.end(None) == 0, tail.err
    told = [json.loads(line) for line in tail.out]
    assert [(each["topic"], each["body"], each["codec"]) for each in told] == [
        ("news.a", {"n": 1}, "json"),
        *[("news.urgent", "ü", "text")] * 2,
        ("news.b", {}, "json"),
    ]
    assert [each["headers"] for each in told] == [{"user": "ann"}, {}, {}, {}]
    assert [each["tracked"] for each in told] == [True, True, True, False]
    assert "shown 4" in tail.err[-1]
    assert "lost 0" in tail.err[-1]
    assert not [line for line in said(tail.err) if "WARNING" in line or "s3cret" in line]


def test_pub_reaches_programs_without_zroute(server: NatsServer) -> None:
    """With --wait 0, a plain NATS client receives the body alone; without it, the command says why nothing was sent."""

    async def check() -> None:
        client = await nats.connect(server.url)
        heard = await client.subscribe("a.>")
        await known(client)
        loop = asyncio.get_running_loop()
        sent = await loop.run_in_executor(None, lambda: zroute("pub", server.url, "a.b", "[1]", "--wait", "0"))
        assert sent.returncode == 0, sent.stderr
        assert (await heard.next_msg(timeout=PATIENCE)).data == b"[1]"
        reason = "send to them with --wait 0"
        silent = await loop.run_in_executor(
            None, lambda: limited(reason, 0.3, "pub", server.url, "a.b", "[1]", "--wait", "{}")
        )
        assert (silent.returncode, reason in silent.stderr) == (124, True)
        await client.close()

    asyncio.run(check())


def test_record_and_top_read_from_nats(url: str, tmp_path: Path) -> None:
    """A recording contains the messages, and not the password; `zroute top` counts by topic."""
    file = tmp_path / "news.rec"
    with reading("record", url, str(file), "news.>", "-n", "2") as record:
        assert zroute(*patient("pub", url, "news.a", "1", "-n", "2")).returncode == 0
        assert record.end(None) == 0, record.err
    assert [each.topic for each in read(file)] == [b"news.a", b"news.a"]
    assert b"s3cret" not in file.read_bytes()
    with reading("top", url, "--json", "--interval", "200ms") as top:
        assert zroute(*patient("pub", url, "news.a", "1", "-n", "3")).returncode == 0
        top.line_with('"news.a"')
        assert top.end(signal.SIGINT) == 0, top.err
    assert "lost 0" in top.err[-1]


ANSWERING = """
from collections.abc import Iterator
from zroute import App, Envelope, RequestRefused

app = App(name="answering")

@app.reply("prices.{symbol}")
def price(envelope: Envelope, n: list, symbol: str) -> dict:
    if symbol == "NONE":
        raise RequestRefused(409, "no such symbol")
    return {"total": 2 * n[0], "user": dict(envelope.headers).get("user")}

@app.reply("rows.{number}")
def rows(number: int) -> Iterator[int]:
    yield from range(number)

@app.reply("forever")
async def forever():
    from twisted.internet.defer import Deferred

    print("asked", flush=True)
    try:
        await Deferred()
    finally:
        print("cancelled", flush=True)
"""


@contextmanager
def answering(url: str, folder: Path) -> Iterator[Child]:
    """Run an app that answers requests on NATS."""
    (folder / "answering.py").write_text(ANSWERING)
    with Child("-m", "zroute", "run", "answering:app", "--nats", url, cwd=folder) as child:
        child.line_with("answers requests on NATS", stream="err")
        yield child


def test_request_gets_replies_from_nats(url: str, tmp_path: Path) -> None:
    """`zroute request` prints the reply or the stream of an app, and the error of an app with exit code 1."""
    with answering(url, tmp_path):
        for given, expected in (
            (("prices.A", "[3]", "-H", "user=ann"), '{"total": 6, "user": "ann"}'),
            (("prices.A", "[3]", "--wire", "plain"), '{"total": 6, "user": null}'),
            (("rows.3", "--stream"), "0\n1\n2"),
        ):
            done = zroute(*patient("request", url, *given))
            assert (done.returncode, done.stdout.strip(), said(done.stderr.splitlines())) == (0, expected, [])
        refused = zroute(*patient("request", url, "prices.NONE", "[3]"))
        assert (refused.returncode, said(refused.stderr.splitlines())) == (1, ["zroute: 409: no such symbol"])
        unanswered = zroute(*patient("request", url, "other", "3"))
        assert (unanswered.returncode, "no server answers this topic" in unanswered.stderr) == (1, True)
        wrong = zroute("request", url, "_zr.a", "3")
        assert (wrong.returncode, "is reserved" in wrong.stderr) == (2, True), wrong.stderr


def test_request_gives_up_in_time(url: str, tmp_path: Path) -> None:
    """Without a NATS server, or without a reply, the exit code is 124; a signal cancels the request at the app."""
    away = zroute("request", "nats://me:s3cret@127.0.0.1:1", "a", "--timeout", "300ms")
    assert (away.returncode, away.stderr) == (
        124,
        "zroute: no server was connected within 0.3 s (nats://127.0.0.1:1)\n",
    )
    with answering(url, tmp_path) as app:
        late = limited(
            "no reply arrived within {} (nats://127.0.0.1:", 0.3, "request", url, "forever", "--timeout", "{}"
        )
        assert late.returncode == 124, late.stderr
        assert any(line.startswith("zroute: no reply arrived within ") for line in said(late.stderr.splitlines()))
        app.line_with("cancelled")
        with Child("-m", "zroute", "request", url, "forever") as asking:
            app.wait_for(lambda lines: lines.count("asked") == 2)
            assert asking.end(signal.SIGINT) == 130
        app.wait_for(lambda lines: lines.count("cancelled") == 2)


def test_what_is_not_possible_on_nats_is_a_usage_error(tmp_path: Path) -> None:
    """Options of ZeroMQ, patterns that NATS can't filter, and commands without NATS name the reason."""
    url, file = "nats://me:s3cret@127.0.0.1:1", tmp_path / "x.rec"
    file.write_bytes(b"")
    for given, fault in (
        (("tail", url, "--frames", "separator= "), "--frames can't be combined with an ENDPOINT on NATS"),
        (("tail", url, "--keys", "a.key_secret"), "--keys can't be combined with an ENDPOINT on NATS"),
        (("tail", url, 'startswith("q")'), "begins inside a segment"),
        (("tail", "tcp://127.0.0.1:1", "--nats-creds", "x"), "--nats-creds needs an ENDPOINT on NATS"),
        (("request", url, "a", "--keys", "a.key_secret"), "--keys can't be combined with an ENDPOINT on NATS"),
        (("pub", url, "a", "1", "--wire", "multipart"), "--wire multipart can't be sent over NATS"),
        (("replay", str(file), url), "is on NATS, which this command does not support"),
    ):
        done = zroute(*given)
        assert (done.returncode, fault in done.stderr, "s3cret" in done.stderr) == (2, True, False), done.stderr


def test_credentials_are_used_and_refused(tmp_path: Path) -> None:
    """Commands log in with --nats-creds or its variable, and end with exit code 5 if the server refuses them."""
    operator = Operator()
    creds = str(operator.write(tmp_path / "me.creds"))
    with NatsServer(tmp_path, operator.config) as server:
        for given, env in ((["--nats-creds", creds], {}), ([], {"ZROUTE_NATS_CREDS": creds})):
            done = zroute("pub", server.url, "news.a", "1", "--wait", "0", *given, **env)
            assert done.returncode == 0, done.stderr
            asked = zroute(*patient("request", server.url, "news.a", *given), **env)
            assert (asked.returncode, "no server answers this topic" in asked.stderr) == (1, True), asked.stderr
        missing = zroute("request", server.url, "news.a", "--nats-creds", str(tmp_path / "none"))
        assert (missing.returncode, "none can't be read" in missing.stderr) == (5, True), missing.stderr
        for command in (
            ("pub", server.url, "news.a", "1"),
            ("tail", server.url),
            ("request", server.url, "news.a", "1"),
        ):
            refused = zroute(*patient(*command))
            assert refused.returncode == 5, refused.stderr
            assert f"can't connect to {server.url}: it does not accept the credentials" in refused.stderr


def test_pub_names_what_the_server_forbids(tmp_path: Path) -> None:
    """Without a permission, the exit code is 5, and the command names the topic, or what finding subscribers needs."""
    for publish, subscribe, given, says in (
        ('["news.*", "_zr.>", "_INBOX.>"]', '">"', ("secret.a", "--wait", "0"), "for Publish to"),
        ('["news.*", "_zr.>", "_INBOX.>"]', '["_INBOX.>"]', ("news.a", "--wait", "{}"), "for Subscription to"),
        ('["news.*", "_zr.>", "_INBOX.>"]', '["_INBOX.>"]', ("news.a", "--wait", "0"), ""),
    ):
        with NatsServer(tmp_path, LOGIN.format(publish=publish, subscribe=subscribe)) as server:
            url = server.url.replace("//", "//ann:secret@")
            sent = limited(says, 0.3, "pub", url, given[0], "1", "-n", "3", *given[1:])
        assert sent.returncode == (5 if says else 0), sent.stderr
        assert says in sent.stderr
        assert "Traceback" not in sent.stderr
        if says == "for Publish to":
            assert "sent 0 messages\n" in sent.stderr
            assert f"3 messages were not published, because {server.url} refuses" in sent.stderr
        elif says:
            assert '"_zr.ask"' in sent.stderr
            assert "permissions to subscribe to _zr.ask" in sent.stderr
        else:
            assert "sent 3 messages" in sent.stderr


def test_pub_waits_for_a_server_no_longer_than_for_a_subscriber() -> None:
    """Without a server, --wait ends the command, with a line that says what is missing."""
    done = zroute("pub", SILENT, "news.a", "1", "--wait", "300ms")
    assert done.returncode == 124, done.stderr
    assert "nothing was sent: no server has answered within 0.3 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize("command", ["tail", "top", "record"])
def test_a_signal_ends_the_wait_for_a_server(command: str, tmp_path: Path) -> None:
    """Ctrl-C before a server has answered is a normal end, with the numbers and without a traceback."""
    file = [str(tmp_path / "news.rec")] if command == "record" else []
    with reading(command, SILENT, *file) as child:
        assert child.end(signal.SIGINT) == 0, child.err
    assert "received 0" in child.err[-1] or "recorded 0" in child.err[-1], child.err
    assert not [line for line in child.err if "Traceback" in line or "s3cret" in line]


def test_tail_gives_up_without_a_server() -> None:
    """With --wait, the command ends with its own exit code, also if no server has answered."""
    done = zroute("tail", SILENT, "--wait", "300ms")
    assert done.returncode == 124, done.stderr
    assert "no message arrived within 0.3 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_twist_runs_an_app_on_nats(url: str) -> None:
    """The plugin of twist has --nats; it needs asyncio's reactor, and says how to choose it."""
    given = ["zroute", "--app-dir", str(ROOT / "examples"), "--nats", url, "ticker:feed", "ticker:screen"]
    with Child(*TWIST, "--reactor", "asyncio", *given) as child:
        child.line_with("ticker:screen: subscribes on NATS")
        child.end(signal.SIGTERM)
    assert any("lost 0" in line for line in child.out), child.out
    assert not [line for line in child.out + child.err if "s3cret" in line]
    for program, fault in (
        ([*TWIST, *given], "NATS needs asyncio's reactor: write --reactor asyncio before zroute"),
        ([*TWIST, "--reactor", "asyncio", "zroute", "--nats", "http://a", "ticker:feed"], "--nats: address 'http://a'"),
    ):
        with Child(*program) as child:
            assert child.end(None) != 0
        assert any(fault in line for line in child.out + child.err), child.out + child.err
