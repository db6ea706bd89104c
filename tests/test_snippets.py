"""README and documentation say nothing that does not hold: snippets run, commands print what is shown.

Python blocks of a page are executed in order in one module, and every App in it is compiled. A block with a
``title`` is a file of its own; the commands of such a page are run beside these files, on free ports.
"""

from __future__ import annotations

import re
import shlex
import sys
import unittest
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser

import zroute.options
from tests.pure import Wired, plain
from tests.support import ROOT, Child, free_port
from zroute import App, startswith
from zroute.cli import main
from zroute.messages.codecs import BUILTIN
from zroute.messages.topics import Pattern, matches, parse

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = ROOT / "README.md"
_PORT = re.compile(r"(?<=tcp://127\.0\.0\.1:)\d+")
_TITLE = re.compile(r'^(```\w+) title="([^"]*)"', re.MULTILINE)
_FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@attrs.frozen
class Block:
    """A fenced block: its language, its title, its text and the line where the text begins."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text[: found.start("text")].count("\n")
        yield Block(found["language"], found["title"] or "", found["text"], line)


def ids(pages: list[Path]) -> list[Any]:
    """Each page as a test with its path as the name."""
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@contextmanager
def executed(page: Path) -> Iterator[ModuleType]:
    """The blocks of Python of a page, run in order as one module that annotations can be looked up in."""
    made = ModuleType("snippets_of_page")
    sys.modules[made.__name__] = made
    try:
        for block in blocks(page):
            if block.language == "python" and not block.title:
                exec(compile("\n" * block.line + block.text, str(page), "exec"), vars(made))
        yield made
    finally:
        del sys.modules[made.__name__]


@pytest.mark.parametrize("page", ids([page for page in PAGES if "```python" in page.read_text()]))
def test_the_python_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I copy the Python of a page from top to bottom, and it runs; its apps compile."""
    monkeypatch.chdir(ROOT)
    with executed(page) as made:
        for value in list(vars(made).values()):
            if isinstance(value, App):
                value.compile()


@pytest.mark.parametrize("page", ids(PAGES))
def test_no_block_of_a_page_is_overlooked(page: Path) -> None:
    """Another reader of Markdown finds the same blocks, so that none escapes the tests."""
    text = _TITLE.sub(r"\1", page.read_text())
    for language in ("python", "console", "sh", "text"):
        found = list(CodeBlockParser(language=language, evaluator=lambda _: None)(Document(text, str(page))))
        assert len(found) == sum(block.language == language for block in blocks(page))
    assert {block.language for block in blocks(page)} <= {"python", "console", "sh", "text"}


def test_what_the_page_of_patterns_says_of_its_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """The messages that the page of patterns speaks of reach the handlers that it says they reach."""
    with executed(ROOT / "docs" / "how-to" / "patterns.md") as page:
        app = Wired(page.app)
        for topic, printed in (
            ("orders.buy.7", "Side.BUY 7\norders.buy.7\norders.buy.7\n"),  # the last is that of startswith("")
            ("orders.hold.7", "orders.hold.7\norders.hold.7\n"),
            ("desk.alerts.high", "high now\ndesk.alerts.high\n"),
            ("eu.desk.orders.sell", "Side.SELL\neu.desk.orders.sell\n"),
            ("", "\n"),
        ):
            app.feed(plain(topic, body=b"now"))
            assert capsys.readouterr().out == printed
        desk = Wired(page.desk)
        desk.feed(*(plain(topic, body=b"now") for topic in ("news.breaking", "news.sports", "news.local.harbour")))
        assert capsys.readouterr().out == "NOW\nnow\nnobody takes news.local.harbour\n"
        assert desk.table.subscriptions == (b"news.",)


def test_what_the_page_of_foreign_publishers_says_of_its_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """Parts, topics that are no text and broken messages are printed as the page says."""
    with executed(ROOT / "docs" / "how-to" / "foreign-publishers.md") as page:
        app = Wired(page.app)
        app.feed((b"rawblock", b"abc", b"\x07\0\0\0"), b"\xff\x01\x02\0x", (b"a\0b", b"c"))
        out = capsys.readouterr().out.splitlines()
        assert out[:2] == ["7 3", "ff0102"]
        assert out[2].startswith("a part after one that was whole")


def test_the_tests_of_the_page_on_testing_pass(test_app: Any) -> None:
    """I copy the tests of the page, and they pass: the functions, the one with the fixture, and that for trial."""
    with executed(ROOT / "docs" / "how-to" / "test-your-app.md") as page:
        tests = [value for name, value in vars(page).items() if name.startswith("test_")]
        assert len(tests) == 6
        outcome = unittest.TestResult()
        page.Alerts("test_a_high_quote_raises_an_alert").run(outcome)
        assert (outcome.testsRun, outcome.errors, outcome.failures) == (1, [], [])
        for test in tests:  # the last takes the fixture, whose app runs until the end of this test
            test(*[test_app] * test.__code__.co_argcount)


def test_the_test_of_the_readme_passes() -> None:
    """What the README says of tests, it says of its own app."""
    with executed(README) as page:
        page.test_a_high_quote_raises_an_alert()


def test_the_tutorial_works(tmp_path: Path) -> None:
    """I write the files of the tutorial, type its commands in as many terminals, and see what it shows."""
    page = ROOT / "docs" / "tutorial.md"
    ports: dict[str, str] = {}
    for block in blocks(page):
        if block.language == "python" and block.title:
            text = _PORT.sub(lambda found: ports.setdefault(found[0], str(free_port())), block.text)
            (tmp_path / block.title).write_text(text)
    with Child("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path, env={"PYTEST_ADDOPTS": ""}) as child:
        assert child.end(None) == 0, child.out
    with ExitStack() as terminals:
        for block in blocks(page):
            if block.language != "console":
                continue
            command, *shown = block.text.splitlines()
            assert command.startswith("$ zroute "), command
            child = terminals.enter_context(Child("-m", *shlex.split(command[2:]), cwd=tmp_path))
            for line in shown:
                assert child.line_with(line) == line


def test_what_the_readme_shows_of_the_shell_is_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output below each command of the README is, line for line, what the command prints."""
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
    """The code that the README shows first is what its first command runs, not a prettier one."""
    example = (ROOT / "examples" / "alerts.py").read_text()
    shown = next(block.text for block in blocks(README) if block.language == "python")
    assert shown in example
    command = next(block.text for block in blocks(README) if block.language == "sh")
    documented = re.search(r"zroute (run .*)", example)
    assert documented
    assert command.rstrip().endswith(documented[1])


def test_the_output_in_the_readme_has_the_shape_of_the_real_one() -> None:
    """The lines that the README shows are ones that its example can print."""
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
    """The first two shell blocks of the README are one line each: the main job, then the tests."""
    commands = [block.text for block in blocks(README) if block.language == "sh"]
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert "zroute run" in commands[0]
    assert "pytest" in commands[1]


# -- tables ------------------------------------------------------------------------------------------------


def rows(page: Path, first: str) -> list[list[str]]:
    """The rows of the table on a page whose first column is called ``first``."""
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
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def pattern_of(text: str) -> Pattern:
    """The pattern that a table names."""
    prefix = re.fullmatch(r'startswith\("(.*)"\)', text)
    return startswith(prefix[1]) if prefix else parse(text)


@pytest.mark.parametrize("page", ids([README, ROOT / "docs" / "how-to" / "patterns.md"]))
def test_the_tables_of_patterns_hold(page: Path) -> None:
    """Each topic in the table is matched, or not matched, as it says; so is the subscription."""
    table = rows(page, "pattern")
    assert len(table) >= 5
    for named, takes, refuses, *rest in table:
        pattern = pattern_of(quoted(named)[0])
        assert all(matches(pattern, topic.encode()) is not None for topic in quoted(takes)), named
        assert all(matches(pattern, topic.encode()) is None for topic in quoted(refuses)), named
        if rest:
            assert pattern.subscription.decode() == "".join(quoted(rest[0])), named


def test_the_tables_of_options_hold() -> None:
    """Every option that zroute sets is on the page, with its value and its reason, and no other."""
    page = ROOT / "docs" / "reference" / "options.md"
    options = {*zroute.options.subscriber_options(), *zroute.options.publisher_options()}
    shown = {tuple(row) for row in rows(page, "option")}
    assert shown == {(f"`{each.name}`", f"{each.value:,}", each.why) for each in options}
    for name, value, _what in rows(page, "limit"):
        assert f"{getattr(zroute.options, quoted(name)[0]):,}" == value


def test_the_tables_of_codecs_hold() -> None:
    """The codecs on their page are those that there are."""
    table = rows(ROOT / "docs" / "how-to" / "codecs.md", "codec")
    assert [quoted(row[0])[0].strip('"') for row in table] == list(BUILTIN)


def test_every_dependency_is_given_its_reason() -> None:
    """No package is needed without a reason that can be read."""
    text = (ROOT / "docs" / "explanation" / "dependencies.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"([A-Za-z-]+)(?:\[\w+\])?[>=]=', project)
    named = [row[0] for row in rows(ROOT / "docs" / "explanation" / "dependencies.md", "package")]
    assert len(named) >= 8
    assert {name for name in needed if f"`{name}`" not in text and name != "hatchling"} == set()


def test_links_between_pages_lead_somewhere() -> None:
    """A link in the README leads to a file that is there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target
