"""`zroute routes`: what an app subscribes to and publishes, as table and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.terminal import on_terminal
from tests.cli.test_run import module, zroute

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
