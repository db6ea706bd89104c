"""The pages about the code match the code: pictures, paths of files, names of modules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.test_house import modules

PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs" / "explanation" / "architecture.md"]
PICTURES = {"house.svg", "path-in.svg", "path-out.svg"}


def test_the_pictures_are_what_the_code_draws(tmp_path: Path) -> None:
    """The pictures are up to date; after a change, `python -m docs.pictures` draws them again."""
    subprocess.run([sys.executable, "-m", "docs.pictures", tmp_path], cwd=ROOT, check=True, timeout=300)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(drawn) == PICTURES
    for name, picture in drawn.items():
        kept = (ROOT / "docs" / "explanation" / name).read_text()
        assert kept == picture, f"{name} is out of date: run `python -m docs.pictures`"


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    """Each file and folder that a page names exists."""
    named = re.findall(r"`((?:zroute|tests|docs|examples|benchmarks|chaos)/[\w./-]*)`", page.read_text())
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_the_links_of_a_page_lead_to_files(page: Path) -> None:
    """Each relative link leads to an existing file."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_sessions_that_are_named_exist() -> None:
    """Each session in a page's or `.ci/run`'s `nox -s` exists."""
    defined = set(re.findall(r"^def ([a-z]\w*)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    for page in (ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"):
        named = re.findall(r"nox -s \"?([a-z]+)", page.read_text())
        assert named
        assert set(named) <= defined


def test_every_module_of_the_table_of_old_names_is_where_it_says() -> None:
    """The table of old names leads to existing modules, and no old module is left."""
    rows = re.findall(r"^\| `zroute\.([\w.]+)` \| `zroute\.([\w.]+)` \|$", PAGES[0].read_text(), re.MULTILINE)
    assert rows
    known = modules()
    assert not [old for old, new in rows if old in known and old not in {new for _, new in rows}]
    assert not [new for _, new in rows if new not in known]
