"""Options that several commands share, and the types of their values.

Options made with `option` can also be set by an environment variable: ``--app-dir`` by
``ZROUTE_APP_DIR``. The commands that load apps use them: run, check and routes.
"""

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
    """A length of time, converted to seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds for ``10s``, ``500ms``, ``2m``, ``1h``, or a number of seconds.

        Any other text is a usage error.
        """
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration: write 10s, 500ms, 2m, 1h, or a number of seconds", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


DURATION = _Duration()


class EndpointType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """An endpoint, converted to `Endpoint`.

    ``bind`` is the default: True binds and False connects, unless the value begins with ``bind:`` or
    ``connect:``.
    """

    name = "endpoint"

    def __init__(self, *, bind: bool) -> None:
        self._bind = bind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        """Return the `Endpoint`. An address that can't be parsed is a usage error."""
        try:
            return value if isinstance(value, Endpoint) else parse_endpoint(str(value).strip(), bind=self._bind)
        except EndpointError as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split the value of a variable into endpoints, at commas and white space."""
        return [part for part in re.split(r"[,\s]+", rv) if part]


class _PatternType(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A topic pattern, converted to `Pattern`."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pattern:
        """Return the `Pattern`. A pattern that can't be parsed is a usage error.

        ``startswith("news")`` has the same meaning as in Python.
        """
        try:
            prefix = _STARTSWITH.fullmatch(str(value))
            return parse(value) if prefix is None else startswith(prefix[2])
        except PatternError as error:
            self.fail(str(error), param, ctx)


PATTERN = _PatternType()


def option(flag: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Return a click option that can also be set by its ``ZROUTE_…`` variable.

    ``--help`` shows the name of the variable. ``names`` and ``attributes`` are those of `click.option`.
    """
    variable = "ZROUTE_" + flag.lstrip("-").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, show_envvar=True, **attributes)


def complete_target(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete file names, for arguments that name an app."""
    return [CompletionItem(incomplete, type="file")]


def _complete_folder(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the names of folders."""
    return [CompletionItem(incomplete, type="dir")]


def app_options(command: F) -> F:
    """Add the options that tell how to find an app, for commands that load one."""
    command = option("--factory", is_flag=True, help="The name is a function that returns the App.")(command)
    where = "Look for the module in this folder first."
    return option("--app-dir", default=".", metavar="DIR", help=where, shell_complete=_complete_folder)(command)


def endpoint_options(command: F) -> F:
    """Add ``--sub`` and ``--pub``, which replace the endpoints of an app."""
    pub = option("--pub", multiple=True, type=EndpointType(bind=True), help="Publish here instead; may be repeated.")
    sub = option("--sub", multiple=True, type=EndpointType(bind=False), help="Subscribe here instead; may be repeated.")
    return sub(pub(command))


def for_one_app(apps: tuple[str, ...], sub: tuple[Endpoint, ...], pub: tuple[Endpoint, ...]) -> None:
    """Raise a usage error if ``--sub`` or ``--pub`` is given for several apps.

    With several apps it would be unclear which app the endpoints belong to.
    """
    if len(apps) > 1 and (sub or pub):
        raise click.UsageError(
            "--sub and --pub can't be used with several apps: set the endpoints of each app in its code"
        )
