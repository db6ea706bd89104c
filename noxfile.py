"""Every check of this project as a session, each in an environment of its own: `.ci/run` runs them all.

    .venv/bin/nox -l              list the sessions
    .venv/bin/nox -s lint types   run two of them
    .venv/bin/nox -s tests-3.12 -- tests/messages

Environments are kept in .nox/ and used again; -r is the default here.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "docs", "wheel"]
nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.11", "3.12", "3.13"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, and stop at the thirtieth failure; arguments behind -- are pytest's."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-q", "-n", "4", "--maxfail=30", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and spelling."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the code, and those that users of the API see."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python", "examples")
    session.run("pytest", "-q", "tests/test_typing.py", "-rs")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link is an error. Then look into it: its search, and its width on a phone."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", session.create_tmp())
    session.install("-e", ".[dev]")
    session.run("pytest", "-q", "tests/test_site.py", "-rs")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build what a release has, and try the wheel as a user would: installed, without this checkout."""
    session.install("build")
    folder = session.create_tmp()
    session.run("python", "-m", "build", "--quiet", "--outdir", folder, ".")
    session.run("python", "-m", "venv", "--clear", f"{folder}/user")
    wheel = session.run("python", "-c", _NEWEST, folder, silent=True)
    session.run(f"{folder}/user/bin/pip", "install", "-q", str(wheel).strip(), external=True)
    examples = str(session.invoked_from) + "/examples"
    with session.chdir(folder):
        session.run("user/bin/zroute", "--version", external=True)
        session.run("user/bin/zroute", "check", "--app-dir", examples, "alerts", external=True)
        session.run("user/bin/twist", "zroute", "--help", external=True)
        session.run("user/bin/python", "-c", _CONTENTS, external=True)


_NEWEST = """
import pathlib, sys
print(max(pathlib.Path(sys.argv[1]).glob("*.whl"), key=lambda path: path.stat().st_mtime).resolve())
"""

_CONTENTS = """
from importlib.metadata import files
names = {str(path) for path in files("zroute")}
assert "zroute/py.typed" in names, "type checkers would ignore the types"
assert "twisted/plugins/zroute_plugin.py" in names, "twist would not find the plugin"
assert any(name.endswith("licenses/LICENSE") for name in names), "the licence is missing"
assert not [name for name in names if name.startswith(("tests/", "docs/", "examples/"))], names
"""
