"""`zroute routes --source`: the generated functions, as they are in a run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import zmq

from tests.cli.test_routes import APP
from tests.cli.test_run import module
from tests.commands import zroute
from tests.publishing.joined import ADDRESS, joined
from tests.pure import Wired
from zroute import App, Envelope, History
from zroute.cli.source import generated
from zroute.codegen import source_of
from zroute.messages.codecs import JSON
from zroute.messages.wire import FIXED, Kind, pack_head


@attrs.frozen
class Quote:
    """A message."""

    symbol: str
    size: int


class Database:
    """A resource of a message."""


class Settings:
    """A resource of the app."""


def sources(app: App, *, on_nats: bool = False) -> dict[str, str]:
    """Return the generated source of an app, by the words after the place of its declaration."""
    return {each.title.partition("), ")[2]: each.source for each in generated(app.compile(), on_nats=on_nats)}


def test_the_command_prints_python(tmp_path: Path) -> None:
    """The output is Python: two functions for each handler, and one for each publication, with their places."""
    done = zroute("routes", "quotes", "--source", cwd=module(tmp_path, APP))
    assert done.returncode == 0, done.stderr
    names = [each.name for each in ast.parse(done.stdout).body if isinstance(each, ast.FunctionDef)]
    assert names == ["deliver"] * 6 + ["publish"] * 2
    assert "# on_quote() (quotes.py:11), stocks.{symbol}, stocks.{symbol}.late: a plain message\n" in done.stdout
    assert "# on_quote() (quotes.py:11), stocks.{symbol}, stocks.{symbol}.late: a tracked message\n" in done.stdout
    assert "# publish() (quotes.py:20), alerts.{level}\ndef publish(message, " in done.stdout


@pytest.mark.parametrize("other", ["--json", "--verbose"])
def test_source_goes_with_no_other_form_of_output(other: str, tmp_path: Path) -> None:
    """--source with --json or --verbose is refused, with what to do."""
    done = zroute("routes", "quotes", "--source", other, cwd=module(tmp_path, APP))
    assert done.returncode == 2
    assert "--source prints only Python: omit --json and --verbose" in done.stderr


def plain(app: App) -> None:
    """Subscribe a handler of a type."""

    @app.subscribe("a.{name}")
    def handle(quote: Quote, name: str) -> None: ...


def with_age_and_envelope(app: App) -> None:
    """Subscribe a handler that refuses stale messages, and takes an envelope."""

    @app.subscribe("a.{name}", stale_after=1)
    def handle(quote: Quote, envelope: Envelope) -> None: ...


def with_middleware(app: App) -> None:
    """Subscribe a handler with middleware, whose call is inlined."""
    app.middleware(lambda call, route: lambda message: call(message))
    plain(app)


def in_batches(app: App) -> None:
    """Subscribe a handler of lists."""

    @app.subscribe("a.{name}", batch=10)
    def handle(quotes: list[Quote]) -> None: ...


def waiting(app: App) -> None:
    """Subscribe a handler whose flow makes the calls."""

    @app.subscribe("a.{name}")
    async def handle(quote: Quote) -> None: ...


def of_text(app: App) -> None:
    """Subscribe a handler whose decoder accepts an empty body, which a plain message must not have."""

    @app.subscribe("a.{name}")
    def handle(text: str) -> None: ...


def without_body(app: App) -> None:
    """Subscribe a handler that takes nothing."""

    @app.subscribe("a.{name}")
    def handle() -> None: ...


@pytest.mark.parametrize(
    "declare", [plain, with_age_and_envelope, with_middleware, in_batches, waiting, of_text, without_body]
)
def test_the_shown_closures_are_those_of_a_run(declare: Callable[[App], None]) -> None:
    """A running app has closures with the same source, for a plain and for a tracked message."""
    app = App(codec="json")
    declare(app)
    shown = sources(app)
    wired, head = Wired(app), pack_head(kind=Kind.DATA, codec=JSON.number, span=2, epoch=1)
    body = b'{"symbol":"A","size":1}'
    for topic, rest in ((b"a.plain", body), (b"a.tracked", FIXED.pack(head, 0, 1) + body)):
        frame = iter([topic + b"\0" + rest])
        wired.table.receive(lambda _flags, frame=frame: next(frame), lambda: 0, 1)
    cache = wired.table._entries
    assert shown["a.{name}: a tracked message"] == source_of(cache.direct[b"a.tracked"])
    inner = cache.deliver(cache.of(b"a.plain"), 0, b"")  # some closures are inside one that is not generated
    assert shown["a.{name}: a plain message"] == (source_of(cache.direct[b"a.plain"]) or source_of(inner))
    wired.close()


def test_a_resource_of_a_message_is_not_opened() -> None:
    """An app with resources is shown without opening any of them."""
    app, opened = App(codec="json"), []

    @app.resource
    def settings() -> Iterator[Settings]:
        opened.append("app")
        yield Settings()

    @app.resource(scope="message")
    def database(settings: Settings) -> Iterator[Database]:
        opened.append("message")
        yield Database()

    @app.subscribe("a.{name}")
    def handle(quote: Quote, database: Database, settings: Settings) -> None: ...

    assert sources(app)["a.{name}: a tracked message"].startswith("def deliver(body, raw):\n    try:\n")
    assert not opened


@pytest.mark.sockets
@pytest.mark.parametrize("options", [{}, {"keep": "last"}, {"history": History(messages=10)}])
@pytest.mark.parametrize("pattern", ["a", "a.{symbol}"])
def test_the_shown_publish_is_that_of_a_run(pattern: str, options: dict[str, Any]) -> None:
    """A running app publishes with a function of the same source; showing it leaves no trace."""
    context: zmq.Context[Any] = zmq.Context()
    app = App(pub=ADDRESS, codec="json", context=context)
    publication = app.publisher(pattern, Quote, **options)
    shown = sources(app)[pattern]
    assert "publish" not in vars(publication)
    with joined(app, context):
        assert shown == source_of(publication.publish)
    assert "connection._send" in shown


def test_a_publication_without_a_generated_function_says_so() -> None:
    """Two captures take the general path; on NATS, the frame is sent by another function."""
    app = App()
    app.publisher("a.{one}.{two}", Quote)
    app.publisher("b", Quote)
    assert sources(app)["a.{one}.{two}"] == "# no generated function: the general path publishes these messages"
    assert "    send(frame)\n" in sources(app, on_nats=True)["b"]
    assert source_of(len) is None
    assert source_of(sources) is None
