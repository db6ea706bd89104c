"""The page on troubleshooting quotes log lines that zroute writes, and commands that print what it shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, Child, free_endpoint
from tests.test_snippets import HOW_TO, blocks

PAGE = HOW_TO / "troubleshooting.md"
LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) +|Error: |zroute: |\w+Error: ")

THEIRS = (  # texts of the system, of Python, Twisted, msgspec and click that a line of ours quotes
    "Address already in use",
    "Cannot assign requested address",
    "No such device",
    "No such file or directory",
    "File exists",
    "Connection reset by peer",
    "ValidationError: Expected `str`, got `float`",
    "RuntimeError: no running event loop",
    "RuntimeError: Task got bad yield:",
    "builtins.RuntimeWarning: coroutine 'look_up' was never awaited",
    "Unhandled error in Deferred:",
    "Invalid value for '--sub' (env var: 'ZROUTE_SUB'):",
)
FACTS = re.compile(
    r"publisher \S+@\S+ \S+ \([0-9a-f]{16}\)|"
    r"(received|handled|failed|unrouted|malformed|lost|unmatched|control) \d+(,|$)"
)
"""The name of a publisher, and counters, which the steps of the page show as well."""
MOST = 3
"""Words in a row that may be facts, such as a name, an address and a number, and stand in no text of the code."""


def quoted_lines(page: Path) -> list[str]:
    """The log lines of a page, and the errors: what is neither a command nor its output."""
    lines = [line for block in blocks(page) if block.language == "text" for line in block.text.splitlines()]
    return [line for line in lines if LEVEL.match(line)]


def texts(folder: Path) -> Iterator[re.Pattern[str]]:
    """Every text in the code, with its literal parts as groups and anything in place of its facts."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = re.split(r"%[-+0 #]*\d*(?:\.\d+)?[sdrgfx]", node.value)
            else:
                continue
            parts = [part for part in parts if part]
            if len(re.findall(r"\w+", " ".join(parts))) > 1:  # one word is no text
                yield re.compile(".*?".join(f"({re.escape(part)})" for part in parts))


TEXTS = tuple({each.pattern: each for each in texts(ROOT / "zroute")}.values())


def unknown(line: str) -> list[str]:
    """The words of a line that are in no text of the code, as they follow each other."""
    line = FACTS.sub("", line[LEVEL.match(line).end() :])  # type: ignore[union-attr]
    known = [False] * len(line)
    for text in THEIRS:
        if (at := line.find(text)) >= 0:
            known[at : at + len(text)] = [True] * len(text)
    for text in TEXTS:
        for found in text.finditer(line):
            for group in range(1, text.groups + 1):
                begin, end = found.span(group)
                known[begin:end] = [True] * (end - begin)
    runs = [""]
    for word in re.finditer(r"\S+", line):
        if all(known[word.start() : word.end()]):
            runs.append("")
        else:
            runs[-1] += f" {word[0]}"
    return [run for run in runs if run]


@pytest.mark.parametrize("line", quoted_lines(PAGE))
def test_each_log_line_of_the_page_is_one_that_zroute_writes(line: str) -> None:
    """I search for a line of my log, and the page has it in the same words."""
    assert [run for run in unknown(line) if len(run.split()) > MOST] == []


def test_a_line_that_zroute_does_not_write_is_found() -> None:
    """The check above fails for a line in other words."""
    assert len(quoted_lines(PAGE)) > 50
    assert unknown("INFO    screen: the publisher at tcp://127.0.0.1:5555 does not want to talk to this app today")


def test_the_first_steps_print_what_the_page_says(tmp_path: Path) -> None:
    """I receive nothing, type the commands of the page, and see what it says I would see."""
    endpoint = free_endpoint()
    market = f"from zroute import App\napp = App(pub={endpoint!r}, name='market')\n"
    (tmp_path / "screen.py").write_text(
        f"from zroute import App\napp = App(sub={endpoint!r}, name='screen')\n\n"
        "@app.subscribe('stocks.{symbol}')\ndef show(price: str) -> None: ...\n"
    )
    (tmp_path / "market.py").write_text(
        f"{market}\n@app.publisher('stocks.ACME.bid', every=0.1)\ndef bid() -> float:\n    return 1.5\n"
    )
    (tmp_path / "quiet.py").write_text(f"{market}\nstocks = app.publisher('stocks.ACME', float)\n")
    said = " ".join(line for block in blocks(PAGE) for line in block.text.splitlines()) + PAGE.read_text()
    with Child("-m", "zroute", "check", "screen", cwd=tmp_path) as check:
        assert check.end(None) == 0
        assert check.out[0] in said
    with Child("-m", "zroute", "tail", endpoint, "--wait", "200ms") as tail:
        assert tail.end(None) == 124
        assert tail.err[-1].replace("0.2 s", "5 s") in said
    with Child("-m", "zroute", "run", "quiet", cwd=tmp_path) as quiet:
        quiet.line_with("bound to", stream="err")
        assert "nothing came within 1 s, except control" in last_line(endpoint, found="control")
    with (
        Child("-m", "zroute", "run", "market", cwd=tmp_path),
        Child("-m", "zroute", "run", "screen", "--log-level", "debug", cwd=tmp_path) as screen,
    ):
        seen = last_line(endpoint, "stocks.{symbol}", found="unmatched")
        assert re.fullmatch(r"zroute: nothing came within 1 s, except unmatched \d+, control \d+", seen)
        screen.line_with("has joined", stream="err")
        assert screen.end() == 0
        for event in ("connect_delayed", "connected", "handshake_succeeded"):
            assert any(line.endswith(f": {event}") for line in screen.err)
        assert "handled 0, failed 0, unrouted" in screen.err[-1]


def last_line(*arguments: str, found: str) -> str:
    """Run ``zroute tail``, again if it had no time to connect; return its last line."""
    line = ""
    for _ in range(int(PATIENCE)):
        with Child("-m", "zroute", "tail", *arguments, "--wait", "1s") as tail:
            assert tail.end(None) == 124
            line = tail.err[-1]
        if found in line:
            break
    return line
