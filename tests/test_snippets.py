"""Snippets of the README and the documentation run, and their commands print what the pages show.

The Python blocks of a page run in order in one module, and every App in it is compiled. A block with a ``title`` is
a file or a part of one. The commands of such a page run beside these files, on free ports.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import attrs
import msgspec
import pytest
import pytest_twisted
from click.testing import CliRunner
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser
from twisted.internet.defer import CancelledError, Deferred

import zroute.options
from tests.commands import zroute as zroute_command
from tests.pure import Wired, plain
from tests.support import PATIENCE, ROOT, Child, free_port
from zroute import App, BadRequestError, RequestRefusedError, RequestTimeoutError, startswith
from zroute.cli import main
from zroute.messages.codecs import BUILTIN
from zroute.messages.topics import Pattern, matches, parse
from zroute.testing import TestApp

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = ROOT / "README.md"
HOW_TO = ROOT / "docs" / "how-to"
TUTORIAL = ROOT / "docs" / "tutorial.md"
_PORT = re.compile(r"(?<=tcp://127\.0\.0\.1:)\d+")
_TITLE = re.compile(r'^(```\w+) title="([^"]*)"', re.MULTILINE)
_FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@attrs.frozen
class Block:
    """A fenced block: its language, title, text and the line where the text begins."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text[: found.start("text")].count("\n")
        yield Block(found["language"], found["title"] or "", found["text"], line)


def ids(pages: list[Path]) -> list[Any]:
    """Return each page as a test parameter with its path as the name."""
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@contextmanager
def executed(page: Path) -> Iterator[ModuleType]:
    """Run the Python blocks of a page in order, as one module in which annotations can be looked up."""
    made = ModuleType("snippets_of_page")
    sys.modules[made.__name__] = made
    try:
        for block in blocks(page):
            if block.language == "python" and not block.title:
                exec(compile("\n" * block.line + block.text, str(page), "exec"), vars(made))
        yield made
    finally:
        del sys.modules[made.__name__]


def write_files(page: Path, folder: Path) -> dict[str, str]:
    """Write the Python files that a page shows, on free ports; return their texts.

    Blocks with the same title are parts of one file.
    """
    written: dict[str, str] = {}
    ports: dict[str, str] = {}
    for block in blocks(page):
        if block.language == "python" and block.title:
            text = _PORT.sub(lambda found: ports.setdefault(found[0], str(free_port())), block.text)
            written[block.title] = "\n\n".join(part for part in (written.get(block.title), text) if part)
    for title, text in written.items():
        (folder / title).parent.mkdir(parents=True, exist_ok=True)
        (folder / title).write_text(text)
    return written


@pytest.mark.parametrize("page", ids([page for page in PAGES if "```python" in page.read_text()]))
def test_the_python_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a page runs from top to bottom, and its apps compile."""
    monkeypatch.chdir(ROOT)
    with executed(page) as made:
        for value in list(vars(made).values()):
            if isinstance(value, App):
                value.compile()


@pytest.mark.parametrize("page", ids(PAGES))
def test_no_block_of_a_page_is_overlooked(page: Path) -> None:
    """A second Markdown parser finds the same blocks, so the tests run all of them."""
    text = _TITLE.sub(r"\1", page.read_text())
    for language in ("python", "console", "sh", "text", "yaml"):
        found = list(CodeBlockParser(language=language, evaluator=lambda _: None)(Document(text, str(page))))
        assert len(found) == sum(block.language == language for block in blocks(page))
    assert {block.language for block in blocks(page)} <= {"python", "console", "sh", "text", "yaml"}


def test_what_the_page_of_patterns_says_of_its_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """The messages on the page of patterns reach the handlers that the page names."""
    with executed(HOW_TO / "patterns.md") as page:
        app = Wired(page.app)
        for topic, printed in (
            ("orders.buy.7", "Side.BUY 7\norders.buy.7\norders.buy.7\n"),  # the last is from startswith("")
            ("orders.hold.7", "orders.hold.7\norders.hold.7\n"),
            ("desk.alerts.high", "high now\ndesk.alerts.high\n"),
            ("eu.desk.orders.sell", "Side.SELL\neu.desk.orders.sell\n"),
            ("", "\n"),
        ):
            app.feed(plain(topic, body=b"now"))
            assert capsys.readouterr().out == printed
        desk = Wired(page.desk)
        desk.feed(*(plain(topic, body=b"now") for topic in ("news.breaking", "news.sports", "news.local.harbour")))
        assert capsys.readouterr().out == "NOW\nnow\nno handler for news.local.harbour\n"
        assert desk.table.subscriptions == (b"news.",)


def test_what_the_page_of_foreign_publishers_says_of_its_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """Parts, undecodable topics and malformed messages are printed as the page says."""
    with executed(HOW_TO / "foreign-publishers.md") as page:
        app = Wired(page.app)
        app.feed((b"rawblock", b"abc", b"\x07\0\0\0"), b"\xff\x01\x02\0x", (b"a\0b", b"c"))
        out = capsys.readouterr().out.splitlines()
        assert out[:2] == ["7 3", "ff0102"]
        assert out[2].startswith("a message of several parts with a NUL")


def test_the_test_of_the_page_of_state_passes() -> None:
    """Timers count what handlers write; a fake replaces the database, and the real one opens and closes."""
    with executed(HOW_TO / "state.md") as page:
        page.test_quotes_are_counted()
        with TestApp(page.app) as t:
            t.publish("stocks.ACME", page.Quote("ACME", 990.5))
            t.advance(60)
            assert t.published("quotes.count") == [0, 1]


def test_what_the_page_of_async_handlers_says_of_them() -> None:
    """An async handler waits, a thread returns its result, and a hash is published from the reactor's thread."""
    with executed(HOW_TO / "async-and-threads.md") as page, TestApp(page.app, reactor="asyncio") as t:
        t.publish("invoices.7", {})
        assert t.results(page.on_invoice) == []
        t.advance(0.1)
        assert t.results(page.on_invoice) == [None]
        t.publish("jobs.a", {})
        assert page.app.stats.routes["on_job()"].handled == 1
        t.publish("images.7", b"abcd")
        assert t.published("resized.7") == [b"ac"]
        t.publish("blobs.7", b"abcd")
        assert t.published("hashes.7") == [hash(b"abcd")]


@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
def test_the_program_beside_another_main_loop_notices_how_the_start_went(tmp_path: Path, is_taken: bool) -> None:
    """The program publishes once the app has started, and exits if the app cannot start."""
    source = write_files(HOW_TO / "async-and-threads.md", tmp_path)["windows.py"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if is_taken:
            source = source.replace("App()", f"App(pub='tcp://127.0.0.1:{taken.getsockname()[1]}')")
        with Child("-c", source) as child:
            assert child.end(None) == (1 if is_taken else 0), child.err
    said = "\n".join(child.err)
    assert ("the app did not start" if is_taken else "published 1") in said
    assert "NotRunningError" not in said


def test_the_commands_and_files_of_the_page_of_keys_work(tmp_path: Path) -> None:
    """The keys are created as the page shows, its programs connect with them, and the revoked one is refused."""
    page = HOW_TO / "keys.md"
    write_files(page, tmp_path)
    create, revoke = (list(_transcript(page, *words)) for words in (("new", "authorize"), ("revoke",)))
    assert (len(create), len(revoke)) == (4, 1)
    for command, shown in create:
        assert _keys_command(command, tmp_path) == shown
    ((check, shown),) = [
        (block.text.partition("\n")[0], block.text.partition("\n")[2])
        for block in blocks(page)
        if block.text.startswith("$ zroute check")
    ]
    assert _keys_command(shlex.split(check)[2:], tmp_path) == shown
    with (
        Child("-m", "zroute", "run", "feed", cwd=tmp_path) as feed,
        Child("-m", "zroute", "run", "desk", cwd=tmp_path) as desk,
    ):
        desk.line_with("tick 1")
        with Child("reader.py", cwd=tmp_path) as reader:
            assert reader.end(None) == 0, reader.err
        assert "news.tick" in reader.out[0]
        for command, shown in revoke:
            assert _keys_command(command, tmp_path) == shown
        refused = desk.line_with("the peer refuses the key of desk", stream="err")
        assert refused.endswith("run there: zroute keys authorize desk.key --peers DIR")
        feed.line_with("feed: refused a connection from 127.0.0.1: its key", stream="err")


def test_the_handler_of_the_page_of_keys_decides_by_the_name(tmp_path: Path) -> None:
    """Only desk may cancel orders, and a request without a name is refused too."""
    source = write_files(HOW_TO / "keys.md", tmp_path)["ledger.py"]
    names: dict[str, Any] = {}
    exec(source, names)
    with TestApp(names["app"], raise_errors=False) as t:
        assert t.request("orders.cancel", 7, str, peer="desk") == "cancelled 7"
        for peer in ("feed", None):
            with pytest.raises(RequestRefusedError) as refused:
                t.request("orders.cancel", 7, str, peer=peer)
            assert refused.value.code == 403


def _transcript(page: Path, *words: str) -> Iterator[tuple[list[str], str]]:
    """Return the arguments of each ``zroute keys`` command with one of the words, and the output that follows it."""
    texts = (block.text for block in blocks(page) if block.language == "text")
    for part in [part for text in texts for part in text.split("$ ")[1:]]:
        command, _, shown = part.partition("\n")
        arguments = shlex.split(command)
        if arguments[:2] == ["zroute", "keys"] and arguments[2] in words:
            yield arguments[1:], shown


def _keys_command(arguments: list[str], folder: Path) -> str:
    """Run a command of zroute; return its output, with the fingerprints as the page shows them."""
    done = zroute_command(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return re.sub(r"SHA256:[\w+/]+", "SHA256:…", done.stdout)


@pytest_twisted.ensureDeferred
async def test_what_the_page_of_other_sockets_says_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs are done, questions answered and options accepted; the service starts and stops."""
    from tests.running import reactor, turns

    with executed(HOW_TO / "other-sockets.md") as page:
        worker = await page.pipeline(reactor)
        await turns(lambda: worker.received == 2)
        worker.close()
        assert await page.questions(reactor) == ["1.25", "unknown"]
        pull = page.impatient(reactor)
        page.watch(pull)
        service = page.service(reactor)
        service.startService()
        service.stopService()
        pull.close()
    assert capsys.readouterr().out == "done: b'one'\ndone: b'two'\n"


@pytest.mark.parametrize("reactor", ["twisted", "asyncio"])
def test_what_the_page_of_attached_handlers_says_of_them(capsys: pytest.CaptureFixture[str], reactor: Any) -> None:
    """A room's handler runs from entering to leaving, and a stream ends when a message says bye."""
    with executed(HOW_TO / "while-running.md") as page, TestApp(page.app, reactor=reactor) as t:
        t.publish("control.enter", "lobby")
        t.publish("rooms.lobby", "hello")
        t.publish("control.leave", "lobby")
        t.publish("rooms.lobby", "to nobody")
        t.publish("control.listen", "attic")
        t.publish("rooms.attic", "anybody here?")
        t.publish("rooms.attic", "bye")
        t.publish("rooms.attic", "to nobody")
        assert [envelope.topic for envelope in t.unheard] == ["rooms.lobby", "rooms.attic"]
    assert capsys.readouterr().out == "hello\nattic anybody here?\nattic bye\n"


def test_what_the_page_of_running_apps_says_of_endpoints(capsys: pytest.CaptureFixture[str]) -> None:
    """A message adds an endpoint and another removes it, and the first subscriber switches a camera on."""
    with executed(HOW_TO / "while-running.md") as page:
        screen = App(sub="tcp://127.0.0.1:5555", name="screen")
        screen.add_route(lambda frame: None, "frames")
        with TestApp(page.desk) as t:
            t.publish("feeds.started", "tcp://127.0.0.1:5556")
            assert page.desk.addresses.sub == ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556")
            t.publish("feeds.ended", "tcp://127.0.0.1:5556")
            assert page.desk.addresses.sub == ("tcp://127.0.0.1:5555",)
        with TestApp(page.camera, screen):
            assert page.frames.subscribers == 1
    assert capsys.readouterr().out == "publishing at tcp://127.0.0.1:*\ncamera on\n"


def test_the_tests_of_the_page_on_testing_pass(tmp_path: Path) -> None:
    """The test files of the page pass under pytest, also from another folder, and under trial."""
    folder = tmp_path / "shop"
    written = write_files(HOW_TO / "test-your-app.md", folder)
    number = written["test_quotes.py"].count("\ndef test_")
    assert number >= 12
    with Child(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "shop/test_quotes.py", fresh=True, cwd=tmp_path
    ) as child:
        assert child.end(None) == 0, child.out
        assert child.out[-1].startswith(f"{number} passed")
    anyio = ("-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "test_async.py")
    with Child("-m", "pytest", *anyio, fresh=True, cwd=folder) as child:
        assert child.end(None) == 0, child.out
        assert child.out[-1].startswith("1 passed")
    with Child("-m", "twisted.trial", "test_with_trial", fresh=True, cwd=folder) as child:
        assert child.end(None) == 0, child.out
        assert any("successes=1" in line for line in child.out)


def test_what_the_page_of_retries_says_of_its_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """The test of the page passes; four attempts are made, and a reader of dead letters prints the reason."""
    with executed(HOW_TO / "retries-and-dead-letters.md") as page:
        page.test_an_order_without_an_account_is_a_dead_letter()

        async def refuse(account: str, amount: int) -> None:
            raise ConnectionError("refused")

        page.charge = refuse
        with TestApp(page.app, page.watch) as t:
            t.publish("orders.book", {"account": "alice", "amount": 5})
            t.advance(36)
        assert capsys.readouterr().out.startswith("orders.book ConnectionError: refused 4 ")


COPYABLE = [
    HOW_TO / "ask-and-answer.md",
    HOW_TO / "from-one-machine-to-a-cluster.md",
    HOW_TO / "lost-messages.md",
    HOW_TO / "share-work.md",
    HOW_TO / "snapshots.md",
]
"""Pages whose blocks a reader can copy: each is a part of a file that the page names, or runs alone."""


@contextmanager
def imported(page: Path, folder: Path) -> Iterator[dict[str, ModuleType]]:
    """Write the files of a page, and import them, apart from its tests; return the modules by name."""
    written = write_files(page, folder)
    names = [title.removesuffix(".py") for title in written if not title.startswith("test_")]
    sys.path.insert(0, str(folder))
    invalidate_caches()
    try:
        yield {name: import_module(name) for name in names if name != "plain"}  # a script, not a module
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("page", ids(COPYABLE))
def test_each_block_of_a_page_can_be_copied(page: Path, tmp_path: Path) -> None:
    """I copy a block without a file name into an empty file, and it runs; the files of the page run and compile."""
    for block in blocks(page):
        if block.language == "python" and not block.title:
            made: dict[str, Any] = {"__name__": "copied"}
            exec(compile("\n" * block.line + block.text, str(page), "exec"), made)
            assert [value.compile() for value in made.values() if isinstance(value, App)]
    with imported(page, tmp_path) as modules:
        apps = [value for module in modules.values() for value in vars(module).values() if isinstance(value, App)]
        assert [app.compile() for app in apps]


@pytest.mark.parametrize("page", ids(COPYABLE))
def test_the_test_files_of_a_page_pass(page: Path, tmp_path: Path) -> None:
    """I copy the files of the page into a folder, and pytest passes there, with every test that the page shows."""
    written = write_files(page, tmp_path)
    number = sum(text.count("\ndef test_") for text in written.values())
    flags = ("-q", "-p", "no:cacheprovider")
    with Child("-m", "pytest", *flags, fresh=True, cwd=tmp_path) as child:
        assert child.end(None) == 0, child.out
        assert number > 0
        assert child.out[-1].startswith(f"{number} passed")


def test_what_the_page_of_requests_says_of_its_handlers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The middleware of the page refuses, a failed order prints why, and several requests at once get their replies."""
    with imported(HOW_TO / "ask-and-answer.md", tmp_path) as page:
        with TestApp(page["reports"].server) as t:
            assert t.request("reports.a", None, bytes, headers={"user": "ann"}) == b"a" * 1000
            with pytest.raises(RequestRefusedError, match="say who you are"):
                t.request("reports.a")
        for name in ("basket", "basket_twisted"):
            with TestApp(page["prices"].app, page[name].app):
                pass
        with TestApp(page["orders"].app, page["prices"].app) as t:
            t.publish("quotes.NONE", 3)
        with TestApp(page["broker"].app, page["prices"].app) as t:
            assert t.request("totals.ACME") == 990.5
            assert t.request("totals.NONE") == 0.0
    *printed, refused, no_price = capsys.readouterr().out.splitlines()
    assert set(printed) - {"first ACME", "first EURUSD"} == {"CancelledError", "total 2974.74"}
    assert refused == "no price for NONE: 409 no symbol NONE"
    assert no_price.startswith("no price for NONE: request to 'prices.NONE'")


def test_a_bad_request_has_the_reason_of_the_table() -> None:
    """Each form of ``reason`` on the page is the one that a caller gets for this fault."""
    pydantic = pytest.importorskip("pydantic")
    server = App()

    @attrs.frozen
    class Validated:
        size: int = attrs.field(validator=attrs.validators.gt(0))

    class Limited(msgspec.Struct):
        size: Annotated[int, msgspec.Meta(ge=1)]

    for topic, schema in (
        ("attrs", Validated),
        ("limit", Limited),
        ("pydantic", pydantic.create_model("Ask", size=(int, ...))),
    ):

        def answer(message: Any) -> int:
            return 1

        answer.__annotations__["message"] = schema
        server.reply(topic)(answer)
    with TestApp(server, raise_errors=False) as t:
        for topic, message, (_, said) in zip(
            ("attrs", "limit", "attrs", "attrs", "pydantic"),
            ({"size": "3"}, {"size": 0}, {}, {"size": -3}, {}),
            rows(HOW_TO / "ask-and-answer.md", "fault"),
            strict=True,
        ):
            with pytest.raises(BadRequestError) as refused:
                t.request(topic, message)
            assert refused.value.reason in said


def test_what_the_page_of_jobs_says_of_its_handlers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job in a thread uses a connection of its own, and an on_error function gets the job that was given up."""
    monkeypatch.chdir(tmp_path)
    with imported(HOW_TO / "share-work.md", tmp_path) as page:
        with TestApp(page["archive"].app) as t:
            t.put("pages.news", "https://example.com/")
        with closing(sqlite3.connect("archive.db")) as archive:
            assert archive.execute("select url from pages").fetchall() == [("https://example.com/",)]
        worker = App(work="tcp://127.0.0.1:5558")

        @worker.work("orders.{kind}", thread=False)
        def refuse(order: dict) -> None:
            raise page["orders"].Reject("no space left")

        with TestApp(page["orders"].app, worker, raise_errors=False) as t:
            page["orders"].orders.put_nowait({}, kind="buy")
            t.advance(0)
        assert capsys.readouterr().out == "orders.buy Reject: no space left 1 b'\\x80'\n"
        with TestApp(page["waiting"].owner):
            assert page["waiting"].resize.stats.put == 0


@pytest.mark.parametrize("reactor", ["twisted", "asyncio"])
def test_a_cancelled_handler_sees_the_errors_of_the_table(reactor: Any) -> None:
    """Each way to wait ends with the error that the page names, and only one of them is an Exception."""
    server, seen = App(), {}

    def note(name: str) -> None:
        kind = sys.exc_info()[0]
        assert kind is not None
        seen[name] = kind

    async def forever() -> None:
        await (Deferred() if reactor == "twisted" else asyncio.get_running_loop().create_future())

    @server.reply("function")
    async def function() -> int:
        try:
            await forever()
        except BaseException:
            note("await")
            raise
        return 1

    @server.reply("plain")
    def plain_generator() -> Iterator[int]:
        try:
            yield from range(1000)
        except BaseException:
            note("yield")
            raise

    @server.reply("async")
    async def async_generator() -> AsyncIterator[int]:
        try:
            for number in range(1000):
                yield number
        except BaseException:
            note("yield of async")
            raise

    @server.reply("waiting")
    async def waiting() -> AsyncIterator[int]:
        yield 1
        try:
            await forever()
        except BaseException:
            note("await of generator")
            raise

    client = App(req="tcp://127.0.0.1:5557", sub="tcp://127.0.0.1:5555")

    @client.subscribe("go")
    async def leave_early(topic: str) -> None:
        async for _ in client.request_stream(topic, None, int):
            break

    with TestApp(server, client, reactor=reactor) as t:
        with pytest.raises(RequestTimeoutError):
            t.request("function", timeout=1)
        for topic in ("plain", "async", "waiting"):
            t.publish("go", topic)
    cancelled = CancelledError if reactor == "twisted" else asyncio.CancelledError
    assert seen == {
        "await": cancelled,
        "yield": GeneratorExit,
        "yield of async": GeneratorExit,
        "await of generator": cancelled,
    }
    assert issubclass(cancelled, Exception) == (reactor == "twisted")


@pytest.mark.parametrize("name", ["middleware.md", "recipes-around-a-handler.md"])
def test_the_tests_of_the_pages_on_middleware_pass(name: str) -> None:
    """Each test on the page passes against the app above it."""
    with executed(HOW_TO / name) as page:
        tests = [value for key, value in vars(page).items() if key.startswith("test_")]
        assert len(tests) >= 2
        for test in tests:
            test()


def test_the_middleware_of_the_page_leaves_out_one_handler() -> None:
    """Plain and async handlers are timed, and the one that the factory leaves as it is is not."""
    with executed(HOW_TO / "middleware.md") as page, TestApp(page.app) as t:
        t.publish("quotes.ACME", 1.5)
        t.publish("orders.buy", {})
        t.publish("beat", 1)
        assert sorted(page.seconds) == ["on_order()", "on_quote()"]


def recipe(name: str) -> ModuleType:
    """Return a file of the page of recipes as a module."""
    (text,) = [block.text for block in blocks(HOW_TO / "recipes-around-a-handler.md") if block.title == name]
    made = ModuleType(name.removesuffix(".py"))
    exec(compile(text, name, "exec"), vars(made))
    return made


def test_the_recipe_with_structlog_logs_the_topic(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has the facts of its message, and those of no other."""
    structlog = pytest.importorskip("structlog")
    made = recipe("logged.py")
    try:
        with TestApp(made.app) as t:
            t.publish("orders.buy", 1, headers={"correlation-id": "c1"})
            t.publish("orders.sell", 2)
    finally:
        structlog.reset_defaults()
    facts = {"event": "booked", "handler": "on_order()"}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {**facts, "topic": "orders.buy", "order": 1, "request": "c1"},
        {**facts, "topic": "orders.sell", "order": 2, "request": None},
    ]


def test_the_recipe_with_prometheus_counts_and_times() -> None:
    """Each handler has its own histogram and counter of errors."""
    prometheus = pytest.importorskip("prometheus_client")
    made = recipe("timed.py")
    value = prometheus.REGISTRY.get_sample_value
    with TestApp(made.app, raise_errors=False) as t:
        t.publish("orders.a", 1)
        t.publish("orders.a", -1)
        t.publish("quotes.a", 1.5)
    assert value("handler_seconds_count", {"handler": "on_order()"}) == 2
    assert value("handler_errors_total", {"handler": "on_order()"}) == 1
    assert value("handler_seconds_count", {"handler": "on_quote()"}) == 1


def test_the_recipe_for_tracing_connects_three_programs(tmp_path: Path) -> None:
    """A quote makes four spans of one trace, in three processes, and each names the one that caused it."""
    write_files(HOW_TO / "recipes-around-a-handler.md", tmp_path)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def spans(child: Child, name: str) -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in child.out if line.startswith('{"name"')]
        return {each["trace"]: each for each in found if each["name"].split()[0] == name}

    with ExitStack() as programs:
        store, desk, feed = (
            programs.enter_context(Child("-m", "zroute", "run", name, cwd=tmp_path, env=environment))
            for name in ("store", "desk", "feed")
        )
        store.wait_for(lambda _: spans(store, "save()") and set(spans(store, "save()")) <= set(spans(store, "note()")))
        trace, save = next(iter(spans(store, "save()").items()))
        desk.wait_for(lambda _: trace in spans(desk, "double()"))
        feed.wait_for(lambda _: trace in spans(feed, "read()"))
        note, double, read = spans(store, "note()")[trace], spans(desk, "double()")[trace], spans(feed, "read()")[trace]
        assert (save["name"], note["name"]) == ("save() doubled.ACME", "note() audit.ACME")
        assert save["parent"] == note["parent"] == double["span"]
        assert double["parent"] == read["span"]
        assert read["parent"] is None
        for program in (feed, desk, store):
            assert program.end() == 0, program.err


def test_the_test_of_the_readme_passes() -> None:
    """The test in the README passes against the app in the README."""
    with executed(README) as page:
        page.test_a_high_quote_raises_an_alert()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["before", "one line", "after"])
def test_each_step_of_the_page_on_migration_does_the_same(tmp_path: Path, step: str) -> None:
    """The old program, the one with one changed line, and the App print the same for the same messages."""
    page = HOW_TO / "migrate-from-txzmq.md"
    written = write_files(page, tmp_path)
    endpoint = "tcp://127.0.0.1:" + str(_PORT.search(written["before.py"])[0])  # type: ignore[index]
    if step == "one line":
        (changed,) = [block.text for block in blocks(page) if "from zroute.txzmq" in block.text]
        source = written["before.py"].replace(changed.replace("zroute.txzmq", "txzmq"), changed)
        assert source.count("zroute") == 1
        (tmp_path / "before.py").write_text(source)
    command = ("-m", "zroute", "run", "after:app") if step == "after" else ("before.py",)
    with Child(*command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as program:
        for topic, price in (
            ("stocks.LOW", 10.5),
            ("stocks.HIGH", 1500.5),
            ("other.HIGH", 2000.5),
            ("stocks.TOP", 3000.5),
        ):
            sending = ("pub", endpoint, topic, f'{{"price": {price}}}', "--wire", "plain", "--wait", "30s")
            if not topic.startswith("stocks."):
                sending = (*sending[:-1], "0")
            with Child("-m", "zroute", *sending) as publisher:
                assert publisher.end(None) == 0, publisher.err
        program.line_with("TOP")
        assert program.out == ["HIGH at 1500.5", "TOP at 3000.5"]
        assert program.end() == (0 if step == "after" else program.process.returncode)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_units_of_the_page_on_systemd_are_sound(tmp_path: Path) -> None:
    """``systemd-analyze`` finds no fault in the unit files of the page."""
    texts = [block for block in blocks(HOW_TO / "deploy-under-systemd.md") if "[Service]" in block.text]
    assert len(texts) == 2
    for block in texts:
        unit = tmp_path / Path(block.title).name
        unit.write_text(block.text.replace("/srv/quotes/.venv/bin/zroute", sys.executable))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=PATIENCE
        )
        said = [line for line in done.stderr.splitlines() if "quotes" in line]
        assert (done.returncode, said) == (0, [])


def test_the_page_on_systemd_leaves_a_stop_its_time_and_names_what_there_is() -> None:
    """systemd waits longer than the drain takes, and every variable of the page exists."""
    text = (HOW_TO / "deploy-under-systemd.md").read_text()
    drains, stops = (re.findall(pattern, text) for pattern in (r"--drain-timeout (\d+)s", r"TimeoutStopSec=(\d+)"))
    assert len(drains) == len(stops) == 2
    for drain, stop in zip(drains, stops, strict=True):
        assert int(stop) >= int(drain) + 1 + zroute.options.LINGER_DRAIN / 1000
    options = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert all(f"`{variable}`" in options for variable in re.findall(r"ZROUTE_\w+", text))


UNHURRIED = {"ZROUTE_DRAIN_TIMEOUT": "100s"}

CONSOLES = ("async-and-threads.md", "newest-values.md", "from-one-machine-to-a-cluster.md")
"""Pages on which each console block is a command that runs until Ctrl+C."""


@pytest.mark.parametrize("page", ids([TUTORIAL, *(HOW_TO / name for name in CONSOLES)]))
def test_the_programs_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """The files and commands of a page print the output that the page shows, until Ctrl+C."""
    write_files(page, tmp_path)
    with ExitStack() as terminals:
        children: list[tuple[Child, signal.Signals | None]] = []
        for block in blocks(page):
            if block.language != "console":
                continue
            command, *shown = block.text.splitlines()
            assert command.startswith("$ zroute "), command
            # A busy machine may need longer than the default to handle its backlog, and then exits with 75.
            child = terminals.enter_context(Child("-m", *shlex.split(command[2:]), cwd=tmp_path, env=UNHURRIED))
            for line in shown:
                assert child.line_with(line) == line
            children.append((child, None if "--for" in command else signal.SIGINT))
        for child, number in children:
            assert child.end(number) == 0, child.err


def test_the_tests_of_the_tutorial_pass(tmp_path: Path) -> None:
    """The test file of the tutorial passes."""
    write_files(TUTORIAL, tmp_path)
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", fresh=True, cwd=tmp_path) as child:
        assert child.end(None) == 0, child.out


def test_what_the_readme_shows_of_the_shell_is_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README shows, line for line, the output of each command."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    consoles = [block for block in blocks(README) if block.language == "console"]
    assert consoles
    for block in consoles:
        command, _, shown = block.text.partition("\n")
        result = CliRunner().invoke(main, shlex.split(command.removeprefix("$ zroute ")), catch_exceptions=False)
        assert result.output.split() == shown.split()
        assert result.exit_code == 0


def test_the_first_code_of_the_readme_is_the_example_that_its_first_command_runs() -> None:
    """The first code block of the README is the example that its first command runs."""
    example = (ROOT / "examples" / "alerts.py").read_text()
    shown = next(block.text for block in blocks(README) if block.language == "python")
    assert shown in example
    command = next(block.text for block in blocks(README) if block.language == "sh")
    documented = re.search(r"zroute (run .*)", example)
    assert documented
    assert command.rstrip().endswith(documented[1])


def test_the_output_in_the_readme_has_the_shape_of_the_real_one() -> None:
    """The example can print every line that the README shows."""
    shown = next(block.text for block in blocks(README) if block.language == "text")
    known = (
        r"\d\d:\d\d:\d\d (INFO   |WARNING|ERROR  ) .*",
        r"(ACME|AAPL|NVR) +\d+\.\d\d  x \d+",
        r"  high alert: (ACME|AAPL|NVR) at \d+\.\d+",
        r"  the desk is well",
        r"…",
    )
    for line in shown.splitlines():
        assert any(re.fullmatch(each, line) for each in known), line


def test_the_readme_sets_up_and_tests_in_one_line_each() -> None:
    """The first two shell blocks of the README are one line each: an app, then the tests."""
    commands = [block.text for block in blocks(README) if block.language == "sh"]
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert "zroute run" in commands[0]
    assert "pytest" in commands[1]


# -- tables ------------------------------------------------------------------------------------------------


def rows(page: Path, first: str) -> list[list[str]]:
    """Return the rows of the table on a page whose first column is called ``first``."""
    found: list[list[str]] = []
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith(f"| {first} |"):
            inside = True
        elif inside and line.startswith("|"):
            found.append(cells)
        else:
            inside = False
    return [row for row in found if not set(row[0]) <= {"-"}]


def quoted(cell: str) -> list[str]:
    """Return the texts between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def pattern_of(text: str) -> Pattern:
    """Return the pattern that a table names."""
    prefix = re.fullmatch(r'startswith\("(.*)"\)', text)
    return startswith(prefix[1]) if prefix else parse(text)


@pytest.mark.parametrize("page", ids([README, HOW_TO / "patterns.md"]))
def test_the_tables_of_patterns_hold(page: Path) -> None:
    """Each pattern in the table matches the topics, and has the subscription, that the table shows."""
    table = rows(page, "pattern")
    assert len(table) >= 5
    for named, takes, refuses, *rest in table:
        pattern = pattern_of(quoted(named)[0])
        assert all(matches(pattern, topic.encode()) is not None for topic in quoted(takes)), named
        assert all(matches(pattern, topic.encode()) is None for topic in quoted(refuses)), named
        if rest:
            assert pattern.subscription.decode() == "".join(quoted(rest[0])), named


def test_the_tables_of_options_hold() -> None:
    """The page lists every option that zroute sets, with its value and its reason, and no other."""
    page = ROOT / "docs" / "reference" / "options.md"
    options = {option for kind in ("SUB", "XPUB", "PUSH", "ROUTER") for option in zroute.options.socket_options(kind)}
    shown = {tuple(row) for row in rows(page, "option")}
    assert shown == {(f"`{each.name}`", f"{each.value:,}", each.why) for each in options}
    for name, value, _what in rows(page, "limit"):
        assert f"{getattr(zroute.options, quoted(name)[0]):,}" == value


def test_the_tables_of_codecs_hold() -> None:
    """The page of codecs lists exactly the existing codecs."""
    table = rows(HOW_TO / "codecs.md", "codec")
    assert [quoted(row[0])[0].strip('"') for row in table] == list(BUILTIN)


def test_every_dependency_is_given_its_reason() -> None:
    """Every dependency has a written reason."""
    text = (ROOT / "docs" / "explanation" / "dependencies.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"([A-Za-z-]+)(?:\[\w+\])?[>=]=', project)
    named = [row[0] for row in rows(ROOT / "docs" / "explanation" / "dependencies.md", "package")]
    assert len(named) >= 8
    assert {name for name in needed if f"`{name}`" not in text and name != "hatchling"} == set()


def test_links_between_pages_lead_somewhere() -> None:
    """Every link in the README leads to an existing file."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target
