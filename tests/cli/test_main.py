"""The `zroute` command itself."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from tests.commands import zroute
from tests.support import PATIENCE, ROOT
from zroute.cli import main
from zroute.endpoints import SIDES


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_load_neither_zeromq_nor_twisted(argument: str) -> None:
    """--help imports none of the large modules, so it is fast."""
    program = f"""
import sys
from zroute.cli import main
try:
    main(["{argument}"])
except SystemExit:
    pass
loaded = {{name.partition(".")[0] for name in sys.modules}}
print("heavy:", sorted(loaded & {{"zmq", "twisted", "msgspec", "cattrs", "rich", "msgpack"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_help_lists_the_commands() -> None:
    """--help lists all commands."""
    done = zroute("--help")
    assert done.returncode == 0
    assert "run" in done.stdout
    assert "routes" in done.stdout


def test_help_of_a_command_names_its_variables() -> None:
    """The help of each option of run names its environment variable."""
    done = zroute("run", "--help")
    sides = [side.variable for side in SIDES]
    for variable in (*sides, "ZROUTE_FOR", "ZROUTE_LOG_LEVEL", "ZROUTE_DRAIN_TIMEOUT"):
        assert variable in done.stdout


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("rum", "did you mean 'run'?"),
        ("chekc", "did you mean 'check'?"),  # codespell:ignore chekc
        ("recrod", "did you mean 'record'?"),  # codespell:ignore recrod
        ("zzzz", "the commands are new, run, check, "),
    ],
)
def test_an_unknown_command_is_a_usage_error_that_suggests_the_nearest(typed: str, hint: str) -> None:
    """A typo ends with 2 and suggests a command; any other word gets the list of commands."""
    done = zroute(typed)
    assert done.returncode == 2
    assert f"No such command '{typed}': {hint}" in done.stderr


def test_an_unknown_option_is_not_taken_for_a_command() -> None:
    """An unknown option is reported as an option."""
    done = zroute("--verison")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_the_tables_of_the_page_show_each_default() -> None:
    """A default in the code, such as that of --timeout, is the one in the table of its command."""
    context, compared = click.Context(main), set()
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for name, text in re.findall(r"^## `?zroute (\w+)(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        command = main.get_command(context, name)
        assert command is not None
        defaults = {each.opts[-1]: each.to_info_dict()["default"] for each in command.params}
        for row in re.findall(r"^\| (`-[-\w].*) \|$", text, re.MULTILINE):
            first, *others = row.replace("`", "").split(" | ")
            option = re.findall(r"-[-\w]+", first)[-1]
            if default := defaults.get(option):
                assert (f"{default:g} s" if isinstance(default, float) else str(default)) in others, (name, row)
                compared.add((name, option))
    assert compared >= {("pub", "--wait"), ("request", "--timeout"), ("top", "--interval"), ("run", "--drain-timeout")}
