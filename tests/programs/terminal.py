"""Run the commands in a program's docstring, each in a process of its own.

A program runs on the ZeroMQ endpoints that it declares, or unchanged on a NATS server: the fixture ``network`` sets the
variable `NETWORK`, which `zroute run` reads. The other commands then get the address of the server as their endpoint.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import attrs

from tests.commands import patient
from tests.support import ROOT, Child

_LINE = re.compile(r"(?:\w+=\S* )*(?P<program>zroute|twistd) .*")
_START = {
    "zroute": ("-m", "zroute"),
    "twistd": ("-c", "from twisted.scripts.twistd import run; run()"),
}

NETWORK = "ZROUTE_NATS"
ENDPOINTS = ("ZROUTE_SUB", "ZROUTE_PUB")
"""Variables that `NETWORK` replaces."""


@attrs.frozen
class Network:
    """The network of a program.

    Attributes:
        nats: The address of the NATS server, or None if the program uses the ZeroMQ endpoints that it declares.
    """

    nats: str | None

    def flags(self, *given: str) -> tuple[str, ...]:
        """Return the options of endpoints for a program: those given, or none on NATS."""
        return given if self.nats is None else ()

    def address(self, otherwise: str) -> str:
        """Return the address of the NATS server, or ``otherwise`` on ZeroMQ.

        On NATS, it is the endpoint of each command that talks to the program, and the log of a program contains it.
        """
        return self.nats or otherwise


@attrs.frozen
class Command:
    """A command line and the variables that were exported before it."""

    line: str
    environment: dict[str, str]
    folder: Path

    def start(self, *more: str, **variables: str) -> Child:
        """Start the command in the parent folder of ``examples``, with ``more`` arguments and ``variables``."""
        words, environment = _on_network(shlex.split(self.line), self.environment)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = f"{value}{os.pathsep}{ROOT}" if name == "PYTHONPATH" else value
        program, *arguments = words
        given = patient(*arguments, *more) if program == "zroute" else (*arguments, *more)
        return Child(*_START[program], *given, cwd=self.folder, env={**environment, **variables})

    def run(self, *more: str) -> None:
        """Run the command to its end; fail unless it exits with 0."""
        with self.start(*more) as child:
            assert child.end(None) == 0, child.err


def _on_network(words: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return a command and its environment for the network of the test."""
    url = os.environ.get(NETWORK)
    if url is None:
        return words, dict(environment)
    if words[:2] in [["zroute", name] for name in ("pub", "tail", "request")]:
        # A message on NATS has one part.
        words = [*words[:2], url, *("plain" if word == "multipart" else word for word in words[3:])]
    return words, {name: value for name, value in environment.items() if name not in ENDPOINTS}


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
