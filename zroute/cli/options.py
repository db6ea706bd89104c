"""Options that commands share, and the types of their values. Every option has a ``ZROUTE_…`` variable."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from zroute.endpoints import Endpoint, parse_endpoint
from zroute.errors import EndpointError, PatternError
from zroute.messages.topics import Pattern, parse, startswith

__all__ = [
    "DURATION",
    "PATTERN",
    "EndpointType",
    "app_options",
    "complete_target",
    "endpoint_options",
    "for_one_app",
    "option",
]

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_STARTSWITH = re.compile(r"""startswith\((["'])(.*)\1\)""")


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds: ``10s``, ``500ms``, ``2m``, ``1h``, or a plain number of seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration: write 10s, 500ms, 2m, 1h, or a number of seconds", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


DURATION = _Duration()


class EndpointType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """An endpoint, parsed; ``bind`` says what it is without a ``bind:`` or ``connect:`` before it."""

    name = "endpoint"

    def __init__(self, *, bind: bool) -> None:
        self._bind = bind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        """Usage error for what can't be parsed."""
        try:
            return value if isinstance(value, Endpoint) else parse_endpoint(str(value).strip(), bind=self._bind)
        except EndpointError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Several endpoints in one variable, separated by commas or white space."""
        return [part for part in re.split(r"[,\s]+", rv) if part]


class _PatternType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pattern:
        """A pattern, parsed; ``startswith("news")`` is read as it is written in Python. Usage error for others."""
        try:
            prefix = _STARTSWITH.fullmatch(str(value))
            return parse(value) if prefix is None else startswith(prefix[2])
        except PatternError as error:
            self.fail(str(error), param, ctx)


PATTERN = _PatternType()


def option(flag: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option with its variable, which the help shows."""
    variable = "ZROUTE_" + flag.lstrip("-").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, show_envvar=True, **attributes)


def complete_target(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For arguments that name an app: the shell's own completion of files."""
    return [CompletionItem(incomplete, type="file")]


def _complete_folder(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def app_options(command: F) -> F:
    """How to find an app: for every command that loads one."""
    command = option("--factory", is_flag=True, help="The name is a function that returns the App.")(command)
    where = "Where the module is looked for first."
    return option("--app-dir", default=".", metavar="DIR", help=where, shell_complete=_complete_folder)(command)


def endpoint_options(command: F) -> F:
    """Endpoints in place of the app's: for every command that looks at those of one app."""
    pub = option("--pub", multiple=True, type=EndpointType(bind=True), help="Publish here instead; may be repeated.")
    sub = option("--sub", multiple=True, type=EndpointType(bind=False), help="Subscribe here instead; may be repeated.")
    return sub(pub(command))


def for_one_app(apps: tuple[str, ...], sub: tuple[Endpoint, ...], pub: tuple[Endpoint, ...]) -> None:
    """Usage error for endpoints that could be those of any of several apps."""
    if len(apps) > 1 and (sub or pub):
        raise click.UsageError("--sub and --pub go with one app: give several apps their endpoints in their code")
