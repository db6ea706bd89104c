"""The page on troubleshooting quotes log lines that zroute writes, and commands that print what it shows."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, Child, free_endpoint
from tests.test_snippets import HOW_TO, TUTORIAL, UNHURRIED, blocks, write_files

PAGE = HOW_TO / "troubleshooting.md"
LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) +|Error: |zroute: |\w+Error: ")

THEIRS = (  # texts of the system, of Python, Twisted, msgspec and click that a line of ours quotes
    "Address already in use",
    "Cannot assign requested address",
    "No such device",
    "No such file or directory",
    "File exists",
    "Connection reset by peer",
    "Name or service not known",
    "ValidationError: Expected `str`, got `float`",
    "ValidationError: Object missing required field `size`",
    "SQLite objects created in a thread can only be used in that same thread",
    "no space left on device",
    "RuntimeError: no running event loop",
    "RuntimeError: Task got bad yield:",
    "builtins.RuntimeWarning: coroutine 'look_up' was never awaited",
    "Unhandled error in Deferred:",
    "'Authorization Violation'",
    "Permissions Violation for Subscription to",
    "unable to get local issuer certificate",
    "IP address mismatch, certificate is not valid for",
    "Invalid value for '--sub' (env var: 'ZROUTE_SUB'):",
)
FACTS = re.compile(
    r"publisher \S+@\S+ \S+ \([0-9a-f]{16}\)|"
    r"(received|handled|failed|unrouted|malformed|lost|unmatched|control|published|publish_errors) \d+(,|$)"
)
"""The name of a publisher, and counters, which the steps of the page show as well."""
MOST = 3
"""Words in a row that may be facts, such as a name, an address and a number, and stand in no text of the code."""


def quoted_lines(page: Path) -> list[str]:
    """Return the log lines of a page, and its errors, without their times."""
    lines = [line for block in blocks(page) if block.language == "text" for line in block.text.splitlines()]
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines]
    return [line for line in lines if LEVEL.match(line)]


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """The first words of every text in the code, and its pattern: literal parts as groups, anything for its facts."""
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
                yield parts[0], ".*?".join(f"({re.escape(part)})" for part in parts)


@cache
def own_texts() -> frozenset[tuple[str, str]]:
    """Every text in the code of zroute, once."""
    return frozenset(texts(ROOT / "zroute"))


def unknown(line: str) -> list[str]:
    """The words of a line that are in no text of the code, as they follow each other."""
    line = FACTS.sub("", line[LEVEL.match(line).end() :])  # type: ignore[union-attr]
    known = [False] * len(line)
    for text in THEIRS:
        if (at := line.find(text)) >= 0:
            known[at : at + len(text)] = [True] * len(text)
    for pattern in [pattern for first, pattern in own_texts() if first in line]:
        for found in re.finditer(pattern, line):
            for group in range(1, found.re.groups + 1):
                begin, end = found.span(group)
                known[begin:end] = [True] * (end - begin)
    runs = [""]
    for word in re.finditer(r"\S+", line):
        if all(known[word.start() : word.end()]):
            runs.append("")
        else:
            runs[-1] += f" {word[0]}"
    return [run for run in runs if run]


@pytest.mark.parametrize("line", [line for page in (PAGE, TUTORIAL) for line in quoted_lines(page)])
def test_each_log_line_of_the_pages_is_one_that_zroute_writes(line: str) -> None:
    """I search for a line of my log, and the page has it in the same words."""
    assert [run for run in unknown(line) if len(run.split()) > MOST] == []


def test_a_line_that_zroute_does_not_write_is_found() -> None:
    """The check above fails for a line in other words."""
    assert len(quoted_lines(PAGE)) > 50
    assert len(quoted_lines(TUTORIAL)) == 9
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
        assert "no message arrived within 1 s, except control" in last_line(endpoint, found="except control")
    with (
        Child("-m", "zroute", "run", "market", cwd=tmp_path),
        Child("-m", "zroute", "run", "screen", "--log-level", "debug", cwd=tmp_path) as screen,
    ):
        seen = last_line(endpoint, "stocks.{symbol}", found=r"except unmatched \d+, control \d+$")
        assert re.fullmatch(r"zroute: no message arrived within 1 s, except unmatched \d+, control \d+", seen)
        screen.line_with("has joined", stream="err")
        assert screen.end() == 0
        for event in ("connect_delayed", "connected", "handshake_succeeded"):
            assert any(line.endswith(f": {event}") for line in screen.err)
        assert "handled 0, failed 0, unrouted" in screen.err[-1]


def test_the_loss_of_the_page_is_seen(tmp_path: Path) -> None:
    """I run the two apps of the page, and the reader logs losses; its counters add up, or it says that they can't."""
    write_files(PAGE, tmp_path)
    with (
        Child("-m", "zroute", "run", "loss:market", cwd=tmp_path, env=UNHURRIED) as market,
        Child("-m", "zroute", "run", "loss:screen", cwd=tmp_path, env=UNHURRIED) as screen,
    ):
        lost = screen.line_with(": lost ", stream="err", patience=3 * PATIENCE)
        assert re.search(r"screen: lost \d+ messages of 'blobs' from publisher market@\S+ \S+ \(.*numbers", lost)
        assert market.end() == 0
        assert screen.end() == 0
    read, sent = (numbers(child.err[-1]) for child in (screen, market))
    assert read["unknown_losses"] or read["received"] + read["lost"] == sent["published"]


def numbers(line: str) -> Counter[str]:
    """Return the counters of a last line by name."""
    return Counter({name: int(number) for name, number in re.findall(r"(\w+) (\d+)(?:,|$)", line)})


def last_line(*arguments: str, found: str) -> str:
    """Run ``zroute tail``, again if it had no time to connect; return its last line."""
    line = ""
    for _ in range(int(PATIENCE)):
        with Child("-m", "zroute", "tail", *arguments, "--wait", "1s") as tail:
            assert tail.end(None) == 124
            line = tail.err[-1]
        if re.search(found, line):
            break
    return line
