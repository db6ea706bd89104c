"""The site of the documentation: what it shares with other files, what its search finds, and how wide its pages are.

Tests that build it are skipped if mkdocs is not installed (`pip install '.[docs]'`). `nox -s docs` runs them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from queue import Queue

import pytest

from docs.hooks import EXAMPLES, linked, part_of
from tests.support import PATIENCE, ROOT
from tests.test_snippets import README, blocks, rows

DOCS = ROOT / "docs"
PHONE = 390
"""CSS pixels of a usual phone."""


# -- shared text -------------------------------------------------------------------------------------------


def included() -> list[str]:
    """Return the names of the README's parts that the landing page includes, in order."""
    return re.findall(r"^<!-- include README\.md: (\S+) -->$", (DOCS / "index.md").read_text(), re.MULTILINE)


def test_the_landing_page_is_made_of_the_readme() -> None:
    """Every part of the README that has a name is on the landing page once, and its links are those of a page."""
    assert sorted(included()) == sorted(re.findall(r"^<!-- part: (\S+) -->$", README.read_text(), re.MULTILINE))
    for name in included():
        for target in re.findall(r"\]\(([^)#:]+)", linked(part_of("README.md", name))):
            generated = target in ("changelog.md", "security.md", "reference/mistakes.md")
            generated |= target == "examples/index.md" or Path(target).stem in sum(EXAMPLES.values(), ())
            assert generated or (DOCS / target).exists(), target


def test_the_readme_lists_every_how_to_page() -> None:
    """I look for a subject in the README's list of pages, and each how-to page is there."""
    listed = README.read_text().partition("\n## Documentation\n")[2]
    pages = {path.relative_to(ROOT).as_posix() for path in (DOCS / "how-to").glob("*.md")}
    assert {page for page in pages if f"]({page})" not in listed} == set()


def test_a_link_that_the_site_can_not_have_is_an_error() -> None:
    """I link to a file outside of docs/ in a shared text: the build says what to do."""
    with pytest.raises(ValueError, match=r"no page for the link to noxfile\.py: add it to _PAGES"):
        linked("see [the sessions](noxfile.py)")
    with pytest.raises(ValueError, match="has no part 'nothing'"):
        part_of("README.md", "nothing")


def test_the_output_beside_the_code_is_the_recorded_one() -> None:
    """What the README shows of its app is how the recorded session of that example begins."""
    shown = next(block.text for block in blocks(README) if block.language == "text").splitlines()
    (session,) = blocks(DOCS / "sessions" / "alerts.md")
    printed = shown[: shown.index("…")]
    assert len(printed) >= 8
    assert session.text.splitlines()[1:][: len(printed)] == printed


def test_each_reason_has_a_figure_that_is_on_the_page_it_links_to() -> None:
    """I follow the link beside a figure, and find it there, or in the README's own test."""
    reasons = rows(README, "figure")
    assert len(reasons) == 5
    own_test = next(block.text for block in blocks(README) if "def test_" in block.text)
    for figure, what, link in reasons:
        page = (ROOT / re.findall(r"\]\(([^)]+)\)", link)[0]).read_text()
        for number in re.findall(r"\d+(?:\.\d+)?", f"{figure} {what}"):
            if page.startswith("=== "):
                assert "over" in figure
                assert page.count("\n=== ") + 1 > int(number)
            else:
                assert _states(page + own_test, number), (number, link)


def _states(page: str, number: str) -> bool:
    """Return True if a page has ``number``, exact or with more digits, or in words."""
    found = {float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*(?:\.\d+)?", page)}
    digits = len(number.partition(".")[2])
    words = {"1": "One line changed"}
    return any(round(each, digits) == float(number) for each in found) or words.get(number, "\0") in page


def test_the_tables_of_performance_have_figures_of_all_tables() -> None:
    """Each ratio of the first tables of the performance page is one that the benchmarks wrote."""
    tables = (DOCS / "explanation" / "performance-tables.md").read_text()
    cells = {cell.strip() for line in tables.splitlines() for cell in line.split("|")}
    page = (DOCS / "explanation" / "performance.md").read_text()
    for name, ratios in (("received", (3, 5)), ("published", (3, 5)), ("others", (4,))):
        table = page.partition(f"<!-- begin: {name}, ")[2].partition(f"<!-- end: {name} -->")[0]
        lines = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
        assert len(lines) >= 5
        for line in lines:
            assert {line[at].strip() for at in ratios} <= cells, line


# -- the built site ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, strictly: a broken link is an error."""
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


WORDS = {
    "heartbeat": ("glossary/", "explanation/delivery/"),
    "last value cache": ("explanation/delivery/", "how-to/newest-values/"),
    "last-value cache": ("glossary/",),
    "slow joiner": ("glossary/", "explanation/delivery/", "how-to/troubleshooting/"),
    "back-pressure": ("glossary/", "explanation/delivery/", "how-to/async-and-threads/"),
    "at most once": ("glossary/", "explanation/delivery/"),
    "QoS": ("glossary/", "explanation/delivery/"),
    "HWM": ("glossary/", "reference/options/", "explanation/delivery/"),
    "dead letter": ("glossary/", "examples/bridge/", "examples/foreign/"),
    "retry": ("glossary/", "examples/enrich/"),
    "colours": ("how-to/logging/",),
    "proxy": ("how-to/many-to-many/",),
    "RPC": ("glossary/", "how-to/ask-and-answer/"),
    "work queue": ("glossary/", "how-to/share-work/"),
    "twistd": ("how-to/embed-in-twisted/", "examples/alarm/"),
}
"""Words that users search for, and the pages that answer."""


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_the_search_finds_the_words_that_users_use(site: Path, word: str) -> None:
    """I type the usual word for a thing, and the pages about it are found, by their texts or their tags."""
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    texts = {
        entry["location"]: unescape(
            re.sub(r"<[^>]+>", " ", f"{entry['title']} {entry['text']} {entry.get('tags', [])}")
        )
        for entry in index
    }
    found = {location.partition("#")[0] for location, text in texts.items() if word.lower() in text.lower()}
    assert set(WORDS[word]) <= found, sorted(found)


@pytest.mark.slow
def test_every_page_is_in_the_menu(site: Path) -> None:
    """I can reach each page from the menu: none is only linked."""
    page = (site / "tutorial" / "index.html").read_text()
    menu = set(re.findall(r'<a href="([^"#]*)" class="md-nav__link', page))
    here = {str(path.parent.relative_to(site)) for path in site.rglob("index.html")}
    reached = {os.path.normpath(os.path.join("tutorial", link)) for link in menu} | {"tutorial"}
    assert here <= reached, here - reached


# -- on a phone --------------------------------------------------------------------------------------------

_MEASURE = """<!DOCTYPE html><title>measure</title><script>
const pages = PAGES, widths = {};
async function measure(page) {
  const frame = document.createElement("iframe");
  frame.style.width = "PHONEpx";
  frame.style.height = "800px";
  frame.src = page;
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  widths[page] = frame.contentDocument.documentElement.scrollWidth;
  frame.remove();
}
onload = async () => {
  for (const page of pages) await measure(page);
  await fetch("/widths", { method: "POST", body: JSON.stringify(widths) });
};
</script><body></body>"""


@contextmanager
def served(folder: Path, posted: Queue[dict[str, int]]) -> Iterator[str]:
    """Serve a folder over HTTP, and put what is posted into ``posted``."""

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium(profile: Path, url: str) -> Iterator[None]:
    """Show a page in Chromium, without a window, until the block ends."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}")
    browser = subprocess.Popen(
        ["chromium", *flags, url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_no_page_is_wider_than_a_phone(site: Path, tmp_path: Path) -> None:
    """I read the site on a phone, and scroll down only."""
    pages = [f"/{path.relative_to(site)}" for path in sorted(site.rglob("*.html"))]
    posted: Queue[dict[str, int]] = Queue()
    (site / "measure.html").write_text(_MEASURE.replace("PAGES", json.dumps(pages)).replace("PHONE", str(PHONE)))
    try:
        with served(site, posted) as address, chromium(tmp_path, f"{address}/measure.html"):
            widths = posted.get(timeout=2 * PATIENCE)
    finally:
        (site / "measure.html").unlink()
    assert len(widths) == len(pages) >= 50
    assert {page: width for page, width in widths.items() if width > PHONE} == {}
