"""`zroute routes`: what an app subscribes to and publishes, as table and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.terminal import on_terminal
from tests.cli.test_run import module
from tests.commands import zroute

APP = """
import attrs
from zroute import App, Routes, startswith
app = App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2", codec="json")

@attrs.frozen
class Quote:
    symbol: str
    size: int = attrs.field(converter=int)

@app.subscribe("stocks.{symbol}", "stocks.{symbol}.late")
def on_quote(quote: Quote, symbol: str): ...

@app.subscribe(startswith("raw"))
def on_raw(body: bytes): ...

@app.subscribe("ping")
def on_ping(): ...

app.publisher("alerts.{level}", Quote)

@app.publisher("beat", every=1.0, codec="msgpack")
def beat() -> dict: return {}

@app.every(5)
def tick(): ...
"""


def test_the_table_shows_every_route_with_its_line(tmp_path: Path) -> None:
    """A row has pattern, kind, handler with its place, type and codec; subscriptions follow."""
    done = zroute("routes", "quotes", cwd=module(tmp_path, APP))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["pattern", "kind", "handler", "type", "codec"]
    assert ["stocks.{symbol}", "segments", "on_quote()", "quotes.py:11", "Quote", "json"] in rows
    assert ["ping", "exact", "on_ping()", "quotes.py:17", "none", "json"] in rows
    assert ["alerts.{level}", "publishes", "publish()", "quotes.py:20", "Quote", "json"] in rows
    assert ["beat", "publishes", "beat()", "quotes.py:22", "dict", "msgpack"] in rows
    assert "every 5 s" in done.stdout
    assert done.stdout.splitlines()[-1] == "subscriptions: 'ping', 'raw', 'stocks.'"
    assert "engine" not in done.stdout


def test_the_topics_of_dead_letters_are_shown(tmp_path: Path) -> None:
    """Dead letters are published, so their pattern has a row; --json also has retry and timeout."""
    source = """
from zroute import App, Routes
app, desk = App(), Routes("desk")

@desk.subscribe("orders.{kind}", retry=(1, 2.5), dead="dead.{kind}", timeout=3)
async def on_order(order: dict): ...

app.include(desk)
"""
    folder = module(tmp_path, source)
    table = [line.split() for line in zroute("routes", "quotes", cwd=folder).stdout.splitlines()]
    assert ["desk.dead.{kind}", "dead", "letters", "on_order()", "quotes.py:5", "any"] in table
    order, dead = json.loads(zroute("routes", "quotes", "--json", cwd=folder).stdout)["routes"]
    assert (order["retry"], order["timeout"], order["kind"]) == ([1, 2.5], 3.0, "segments")
    assert (dead["pattern"], dead["kind"], "retry" in dead) == ("desk.dead.{kind}", "dead letters", False)


def test_requests_are_shown_with_the_types_of_their_replies(tmp_path: Path) -> None:
    """Handlers of requests and requesters have rows, with the type of message and reply."""
    source = """
from collections.abc import AsyncIterator
from zroute import App
app = App(req="tcp://127.0.0.1:1", rep="tcp://127.0.0.1:2", pub="tcp://127.0.0.1:3")

@app.reply("prices.{symbol}")
def price(size: int, symbol: str) -> float | None: ...

@app.reply("rows.{table}")
async def rows(query: str, table: str) -> AsyncIterator[dict]:
    yield {}

@app.reply("status", retry=(1,), dead="dead.status")
def status(): ...

stock = app.requester("stock.{part}", str, int)
"""
    folder = module(tmp_path, source)
    done = zroute("routes", "quotes", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for row in (
        "prices.{symbol} reply price() quotes.py:6 int -> float | None msgpack",
        "rows.{table} reply rows() quotes.py:9 str -> stream of dict text",
        "dead.status dead letters status() quotes.py:13",
        "status reply status() quotes.py:13 none -> any msgpack",
        "stock.{part} requests quotes.py:16 str -> int text",
    ):
        assert any(row in each for each in rows), (row, rows)
    assert rows[-1] == "subscriptions: none"
    shown = json.loads(zroute("routes", "quotes", "--json", cwd=folder).stdout)["routes"]
    assert [each["reply"] for each in shown if "reply" in each] == [
        "float | None",
        "stream of dict",
        "any",
        "int",
    ]
    done = zroute("check", "quotes", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "handlers of requests 3, requesters 1" in done.stdout


def test_verbose_says_which_engine_decodes_and_why(tmp_path: Path) -> None:
    """-v shows which types cattrs decodes, and why not msgspec."""
    done = zroute("routes", "quotes", "-v", cwd=module(tmp_path, APP))
    assert "engine" in done.stdout.splitlines()[0]
    assert "cattrs" in done.stdout
    assert "Quote.size has a converter, which msgspec ignores" in done.stdout


def test_json_is_for_programs(tmp_path: Path) -> None:
    """--json prints the same values in one document."""
    done = zroute("routes", "quotes", "--json", cwd=module(tmp_path, APP))
    told = json.loads(done.stdout)
    assert told["subscriptions"] == ["ping", "raw", "stocks."]
    by_pattern = {row["pattern"]: row for row in told["routes"]}
    assert by_pattern["stocks.{symbol}"]["engine"] == "cattrs"
    assert by_pattern['startswith("raw")']["engine"] == "raw"
    assert by_pattern["ping"]["type"] == "none"
    assert (by_pattern["ping"]["handler"], by_pattern["ping"]["where"]) == ("on_ping()", "quotes.py:17")


def test_what_the_module_prints_is_no_part_of_the_answer(tmp_path: Path) -> None:
    """Prints of a module during its import do not mix with the output of --json."""
    done = zroute("routes", "quotes", "--json", cwd=module(tmp_path, APP + "print('hello')\n"))
    assert json.loads(done.stdout)["subscriptions"]
    assert done.stderr == "hello\n"


def test_a_terminal_gets_a_table_in_which_brackets_stay(tmp_path: Path) -> None:
    """On a terminal, a type such as list[int] is not taken for markup."""
    folder = module(tmp_path, APP + "\n@app.subscribe('many')\ndef on_many(numbers: list[int]): ...\n")
    shown, _ = on_terminal("routes", "quotes", cwd=folder)
    assert "list[int]" in shown
    assert "quotes.py:11" in shown


def test_invalid_routes_are_one_line_and_4(tmp_path: Path) -> None:
    """A handler that can't be compiled is reported with its file and line."""
    source = "from zroute import App\napp = App()\n@app.publisher('a')\ndef f(): ...\n"
    done = zroute("routes", "quotes", cwd=module(tmp_path, source))
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "quotes.py:3" in done.stderr
    assert "nothing calls f()" in done.stderr


def test_handlers_of_lists_show_how_long_these_may_be(tmp_path: Path) -> None:
    """A batch handler shows list[…] as its type; --json has the batch size as a number."""
    source = (
        APP
        + """
@app.subscribe("rows", batch=500)
def on_rows(rows: list[Quote]): ...
"""
    )
    done = zroute("routes", "quotes", cwd=module(tmp_path, source))
    assert "list[Quote] up to 500" in done.stdout
    told = json.loads(zroute("routes", "quotes", "--json", cwd=tmp_path).stdout)
    assert [row["batch"] for row in told["routes"] if "batch" in row] == [500]


BRIDGE = """
from collections.abc import Iterator
from zroute import App, Routes
inside = App(sub="tcp://127.0.0.1:1", name="inside")
outside = App(pub="tcp://127.0.0.1:2", name="outside", codec="json")

@outside.publisher("public.{name}", int)
@inside.subscribe("private.{name}")
def bridge(value: int) -> int: return value

mixed = outside.publisher("mixed", int)

@mixed
@inside.subscribe("mixed")
def both(value: int) -> int: return value

@mixed
def tick() -> Iterator[int]:
    yield 1

outside.publisher("alone", int)
group = Routes()
inside.include(group)

@outside.publisher("grouped", int)
@group.subscribe("grouped")
def grouped(value: int) -> int: return value
"""


def test_a_bridge_is_shown_by_both_apps(tmp_path: Path) -> None:
    """The app inside says which pattern gets its results, and the one outside whose results it publishes."""
    where = module(tmp_path, BRIDGE)
    done = zroute("routes", "quotes:inside", "--json", cwd=where)
    rows = [(row["pattern"], row["kind"], row["handler"], row["type"]) for row in json.loads(done.stdout)["routes"]]
    assert rows == [
        ("private.{name}", "segments", "bridge()", "int"),
        ("public.{name}", "bridge", "bridge()", "int"),
        ("mixed", "exact", "both()", "int"),
        ("mixed", "bridge", "both()", "int"),
        ("grouped", "exact", "grouped()", "int"),
        ("grouped", "bridge", "grouped()", "int"),
    ]
    done = zroute("routes", "quotes:outside", "--json", cwd=where)
    rows = [(row["pattern"], row["kind"], row["handler"], row["type"]) for row in json.loads(done.stdout)["routes"]]
    assert rows == [
        ("public.{name}", "bridge", "bridge() of 'inside'", "int"),
        ("mixed", "publishes", "tick(), both() of 'inside'", "int"),
        ("alone", "publishes", "publish()", "int"),
        ("grouped", "bridge", "grouped() of another app", "int"),
    ]
    checked = zroute("check", "quotes:inside", "quotes:outside", cwd=where).stdout.splitlines()
    assert [line.endswith(", bridges to other apps 3") for line in checked] == [True, False]


def test_job_queues_and_handlers_of_jobs_are_shown(tmp_path: Path) -> None:
    """A job queue, its dead letters and a handler of jobs have rows, and `check` counts them."""
    source = """
from zroute import App
app = App(jobs="tcp://127.0.0.1:1", work="tcp://127.0.0.1:2", pub="tcp://127.0.0.1:3")
app.job_queue("jobs.{kind}", int, retry=(1, 5), dead="dead.{kind}")

@app.work("others.{kind}", timeout=5)
def run(number: int, kind: str) -> None: ...
"""
    folder = module(tmp_path, source)
    done = zroute("routes", "quotes", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["others.{kind}", "job", "run()", "quotes.py:6", "int", "msgpack"] in rows
    assert ["jobs.{kind}", "job", "queue", "quotes.py:4", "int", "msgpack"] in rows
    assert ["dead.{kind}", "dead", "letters", "job", "queue", "jobs.{kind}", "quotes.py:4", "any"] in rows
    assert rows[-1] == ["subscriptions:", "none"]
    shown = json.loads(zroute("routes", "quotes", "--json", cwd=folder).stdout)["routes"]
    assert next(row for row in shown if row["kind"] == "job queue")["retry"] == [1, 5]
    checked = zroute("check", "quotes", cwd=folder)
    assert "handlers of jobs 1, job queues 1" in checked.stdout


def test_recovery_and_histories_are_in_the_json(tmp_path: Path) -> None:
    """Routes that recover or replay, and publishers with a history or snapshots, say so in --json."""
    source = """
from datetime import timedelta
from zroute import App, History
app = App(pub="tcp://127.0.0.1:3", sub="tcp://127.0.0.1:4", recover=True)
app.publisher("orders.{kind}", int, history=History(seconds=30))
app.publisher("books.{kind}", int, snapshot=lambda kind: 1)

@app.subscribe("others.{kind}")
def run(number: int, kind: str) -> None: ...

@app.subscribe("more.{kind}", recover=False, since=timedelta(seconds=90))
def more(number: int, kind: str) -> None: ...

@app.subscribe("all.{kind}", since="all")
def all_of(number: int, kind: str) -> None: ...
"""
    folder = module(tmp_path, source)
    checked = zroute("check", "quotes", cwd=folder)
    assert (
        "handlers that recover lost messages 2, handlers with earlier messages 2, histories 1, snapshots 1"
        in checked.stdout
    )
    rows = json.loads(zroute("routes", "quotes", "--json", cwd=folder).stdout)["routes"]
    found = {row["pattern"]: row for row in rows}
    assert found["others.{kind}"]["recover"] is True
    assert "recover" not in found["more.{kind}"]
    assert found["books.{kind}"]["snapshot"] == "<lambda>()"
    assert "since" not in found["others.{kind}"]
    assert (found["more.{kind}"]["since"], found["all.{kind}"]["since"]) == ("90s", "all")
    assert found["orders.{kind}"]["history"] == {"messages": None, "seconds": 30, "bytes": None}
