"""The ``zroute`` command: one module a subcommand, imported only when it is called.

Errors go to standard error, so that standard output is for data. Exit codes are those of
docs/reference/cli.md.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

__all__ = ["main"]

_COMMANDS = {
    "new": ("zroute.cli.new", "Start a project in a new folder."),
    "run": ("zroute.cli.run", "Run apps until a signal."),
    "check": ("zroute.cli.check", "Tell whether apps would start."),
    "routes": ("zroute.cli.routes", "Show what an app subscribes to and publishes."),
    "pub": ("zroute.cli.pub", "Publish messages from the shell."),
    "tail": ("zroute.cli.tail", "Show what a publisher sends."),
    "top": ("zroute.cli.top", "Show how much a publisher sends on which topics."),
    "record": ("zroute.cli.record", "Keep what a publisher sends in a file."),
    "replay": ("zroute.cli.replay", "Publish a recording again, in its own time."),
    "bench": ("zroute.cli.bench", "Measure rate, CPU time and latency of this machine or an endpoint."),
    "info": ("zroute.cli.info", "Show versions, for reports of faults."),
    "completion": ("zroute.cli.completion", "Print a script that completes zroute in a shell."),
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are called, and not for ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), "command")  # noqa: B009
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, _COMMANDS, 1)  # click compares with the commands that are imported: none
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_COMMANDS)}"
            ctx.fail(f"No such command {name!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _parameter: Any, wanted: bool) -> None:
    if wanted:
        click.echo(f"zroute {version('zroute')}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Decorated, typed handlers on brokerless publish/subscribe."""
