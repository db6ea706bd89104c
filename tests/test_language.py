"""The language of the project: plain English, as CONTRIBUTING.md asks for. This file holds what can be counted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support import ROOT

IDIOMS = re.compile(r"\b(anew|so many|nobody|somebody|whoever|(?:is|are|was|were) (?:said|told))\b", re.IGNORECASE)
"""Phrases that mark a sentence without a concrete subject. Another sentence says the same with one."""

PLAIN = {
    "tests/test_language.py": "names the idioms that it counts",
    "tests/programs/test_enrich.py": "a customer is called so",
    "tests/test_snippets.py": "the text of a message in a room without members",
    "tests/acceptance/test_bad_input.py": "a pattern in the program of the test",
    "tests/acceptance/test_ready.py": "an endpoint without a publisher is called so",
}
"""Files and folders that may contain them, with the reason."""

FIRST_LINE = 79
"""Characters of a docstring's first line, which is all that an overview shows."""

FOLDERS = ("zroute", "docs", "examples", "tests", "benchmarks", "chaos")
TEXTS = sorted(
    path
    for folder in (*map(ROOT.joinpath, FOLDERS), ROOT)
    for path in (folder.rglob("*") if folder != ROOT else folder.glob("*"))
    if path.suffix in {".py", ".md", ".toml", ".yml"} and path.is_file() and "__pycache__" not in path.parts
)
PAGES = [path for path in TEXTS if path.suffix == ".md"]
MODULES = sorted((ROOT / "zroute").rglob("*.py"))
_LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ +(.*?)(?: *\{#(.+)\})?$", re.MULTILINE)
_ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


def place(path: Path) -> str:
    """Return the name of a file as the tests report it."""
    return path.relative_to(ROOT).as_posix()


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Return the line and the text of each docstring of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: those of its headings, as the documentation's builder makes them, and its own."""
    text = _FENCED.sub("", page.read_text())
    found = set(_ANCHOR.findall(text))
    for heading, own in _HEADING.findall(text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        found.add(own or re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def test_no_text_uses_an_idiom_without_a_subject() -> None:
    """Code, tests and documents contain none of the marker idioms, apart from the files with a reason."""
    found = {
        f"{place(path)}:{number}: {idiom[0]}"
        for path in TEXTS
        if not place(path).startswith(tuple(PLAIN))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for idiom in IDIOMS.finditer(line)
    }
    assert sorted(found) == []


def test_every_exception_is_needed() -> None:
    """Each file or folder that may contain an idiom contains one."""
    for name in PLAIN:
        assert any(IDIOMS.search(path.read_text()) for path in TEXTS if place(path).startswith(name)), name


SECTION = re.compile(r"^ *(?:Keyword )?(?:Args|Raises|Attributes|Returns|Yields): \S+:|\. [2-9]\. [A-Z`]", re.MULTILINE)


def test_sections_and_lists_of_docstrings_are_not_joined_to_paragraphs() -> None:
    """Each argument and each item of a numbered list begins a line: else the API page has no table of them."""
    joined = [f"{place(path)}:{line}" for path in MODULES for line, text in docstrings(path) if SECTION.search(text)]
    assert joined == []


def test_the_first_line_of_a_docstring_fits_an_overview() -> None:
    """The first line of each docstring has at most 79 characters."""
    long = [
        f"{place(path)}:{line}"
        for path in MODULES
        for line, text in docstrings(path)
        if len(text.splitlines()[0]) > FIRST_LINE
    ]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_link_between_pages_resolves(page: Path) -> None:
    """A relative link names a file that exists, and its fragment a heading of that file."""
    broken = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        file, _, fragment = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []
