"""Run the commands in a program's docstring, each in a process of its own."""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import attrs

from tests.support import ROOT, Child

_LINE = re.compile(r"(?:\w+=\S* )*(?P<program>zroute|twistd) .*")
_START = {
    "zroute": ("-m", "zroute"),
    "twistd": ("-c", "from twisted.scripts.twistd import run; run()"),
}


@attrs.frozen
class Command:
    """A command line and the variables that were exported before it."""

    line: str
    environment: dict[str, str]
    folder: Path

    def start(self, *more: str, **variables: str) -> Child:
        """Start the command in the parent folder of ``examples``, with ``more`` arguments and ``variables``."""
        words = shlex.split(self.line)
        environment = dict(self.environment)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = f"{value}{os.pathsep}{ROOT}" if name == "PYTHONPATH" else value
        program, *arguments = words
        return Child(*_START[program], *arguments, *more, cwd=self.folder, env={**environment, **variables})

    def run(self, *more: str) -> None:
        """Run the command to its end; fail unless it exits with 0."""
        with self.start(*more) as child:
            assert child.end(None) == 0, child.err


def commands(folder: Path, name: str) -> list[Command]:
    """Return the commands in the docstring of program ``name``, in order.

    ``folder`` is a copy of the examples.
    """
    docstring = ast.get_docstring(ast.parse((folder / name).read_text())) or ""
    environment: dict[str, str] = {}
    found = []
    for line in docstring.splitlines():
        if line.startswith("export "):
            environment.update(word.split("=", 1) for word in shlex.split(line)[1:])
        elif _LINE.fullmatch(line):
            found.append(Command(line, dict(environment), folder.parent))
    return found


def ended(child: Child) -> None:
    """Stop the child as Ctrl-C does; it must exit with 0."""
    assert child.end() == 0, child.err
