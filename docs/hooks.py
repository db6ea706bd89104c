"""Generate pages at each build of mkdocs, so that no text is written twice.

mkdocs.yml names this file under ``hooks``. There is a page for each program in examples/: the first paragraph of its
docstring, its session as ``python -m docs.examples`` has recorded it, and its code. The landing page includes parts of
README.md. Other pages are files of the checkout: the changelog, the guide for contributors, the common mistakes.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    "First steps": ("ticker", "alerts", "news_desk", "weather"),
    "Several apps": ("bars", "two_apps", "desk", "from_environment", "alarm"),
    "Requests and jobs": ("price_service", "farm"),
    "Publishers that are not zroute": ("foreign", "most_specific", "bridge"),
    "State, databases and HTTP": ("inventory", "quotes_db", "order_book", "webhook", "webhook_asyncio", "enrich"),
    "Devices, threads and people": ("sensor_gateway", "thumbnails", "chat"),
}
"""The examples, grouped by subject."""

_TITLES = {
    "desk": "Package of handlers",
    "from_environment": "Settings from outside",
    "alarm": "Twisted program",
    "foreign": "Foreign publishers",
    "quotes_db": "Quotes in a database",
    "webhook_asyncio": "Webhook on asyncio",
}
_FILES = {"desk": "desk/*.py", "alarm": "twistd/alarm.*"}
_NEEDS_HTTP = "An HTTP service answered on port 8080 while this was recorded."


def files_of(name: str) -> list[Path]:
    """Return the files of an example; the first one begins with its docstring."""
    found = (ROOT / "examples").glob(_FILES.get(name, f"{name}.py"))
    return sorted(found, key=lambda path: (path.suffix != ".tac", path.name))


def title_of(name: str) -> str:
    """Return the title of the page of an example."""
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def summary_of(name: str) -> str:
    """Return the first paragraph of an example's docstring."""
    docstring = ast.get_docstring(ast.parse(files_of(name)[0].read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def page_of(name: str) -> str:
    """Return the page of an example as Markdown."""
    session = (ROOT / "docs" / "sessions" / f"{name}.md").read_text()
    notes = ["Log lines, which go to standard error, are left out."]
    code = "\n".join(path.read_text() for path in files_of(name))
    notes += [_NEEDS_HTTP] if "127.0.0.1:8080" in code else []
    parts = [f"# {title_of(name)}", summary_of(name), "## What it prints", session, " ".join(notes), "## The code"]
    parts += [f'```python title="{path.relative_to(ROOT)}"\n{path.read_text()}```' for path in files_of(name)]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """Return the page that lists all examples."""
    parts = [
        "# Examples",
        "Each program is short and runs unchanged. Its page has the commands, their output, and the code. The output "
        "is recorded from real runs, and a test plays each session again.",
    ]
    for group, names in EXAMPLES.items():
        parts.append(f"## {group}")
        parts.append("\n".join(f"- [{title_of(name)}]({name}.md): {summary_of(name)}" for name in names))
    return "\n\n".join(parts) + "\n"


def mistakes() -> str:
    """Return the page of common mistakes, from a file that a test compares with the real output."""
    parts = [
        "# Mistakes and their messages",
        "This page shows common mistakes and the errors that zroute prints. A test compares these texts with the real "
        "output. Search this page for the text that you see.",
    ]
    for piece in f"\n{(ROOT / 'tests/data/mistakes.txt').read_text()}".split("\n=== ")[1:]:
        name, _, rest = piece.partition("\n")
        source, _, shown = rest.partition("\n$ zroute ")
        parts.append(f"## {name[0].upper()}{name[1:]}")
        parts += [f"```python\n{source.strip()}\n```"] * bool(source.strip())
        parts.append(f"```console\n$ zroute {shown.strip()}\n```")
    return "\n\n".join(parts) + "\n"


# -- pages that share their text with files beside docs/ ---------------------------------------------------

_INCLUDE = re.compile(r"^<!-- include (\S+): (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples": "examples/index.md",
    "examples/alerts.py": "examples/alerts.md",
    "tests/data/mistakes.txt": "reference/mistakes.md",
}
"""Files of the checkout, and the pages that have their contents."""

_WHOLE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""The files that become whole pages, with other links."""


def linked(text: str) -> str:
    """Return ``text``, from the root of the checkout, with its links changed for a page at the root of docs/."""

    def page(found: re.Match[str]) -> str:
        target = found[1]
        if not target.startswith("docs/") and target not in _PAGES:
            raise ValueError(
                f"the documentation has no page for the link to {target}: add it to _PAGES in docs/hooks.py"
            )
        return f"]({_PAGES.get(target, target.removeprefix('docs/'))}{found[2] or ''})"

    return _LINK.sub(page, text)


def part_of(file: str, name: str) -> str:
    """Return the part of a file between ``<!-- part: NAME -->`` and ``<!-- end -->``."""
    found = re.search(
        rf"^<!-- part: {name} -->\n(.*?)^<!-- end -->$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise ValueError(f"{file} has no part {name!r}")
    return found[1].strip()


# -- what mkdocs calls -------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Include parts of other files."""
    return _INCLUDE.sub(lambda found: linked(part_of(found[1], found[2])), markdown)


def on_config(config: Any) -> None:
    """Add the pages of the examples to the menu, below their index."""

    def filled(entry: Any) -> Any:
        match entry:
            case dict():
                return {title: filled(below) for title, below in entry.items()}
            case ["examples/index.md"]:
                pages = [f"examples/{name}.md" for names in EXAMPLES.values() for name in names]
                return ["examples/index.md", *pages]
            case list():
                return [filled(each) for each in entry]
        return entry

    config.nav = filled(config.nav)


def on_files(files: Any, config: Any) -> None:
    """Add the generated pages."""
    from mkdocs.structure.files import File  # in here: tests read this module without mkdocs

    pages = {f"examples/{name}.md": page_of(name) for names in EXAMPLES.values() for name in names}
    pages |= {"examples/index.md": index(), "reference/mistakes.md": mistakes()}
    pages |= {page: linked((ROOT / name).read_text()) for name, page in _PAGES.items() if name in _WHOLE}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
