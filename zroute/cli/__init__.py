"""The ``zroute`` command.

Each subcommand has its own module, which is imported only when the subcommand is called. Commands write data to
standard output, and errors and notes to standard error. docs/reference/cli.md lists the exit codes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from zroute.runtime.collector import importing

__all__ = ["main"]

_COMMANDS = {
    "new": ("zroute.cli.new", "Start a project in a new folder."),
    "run": ("zroute.cli.run", "Run apps until a signal."),
    "check": ("zroute.cli.check", "Check that apps can start."),
    "routes": ("zroute.cli.routes", "Show the subscriptions and publications of an app."),
    "pub": ("zroute.cli.pub", "Publish messages from the shell."),
    "request": ("zroute.cli.request", "Send a request from the shell, and print the reply."),
    "tail": ("zroute.cli.tail", "Show the messages of a publisher."),
    "top": ("zroute.cli.top", "Show the rate of messages and bytes per topic."),
    "record": ("zroute.cli.record", "Write the messages of a publisher to a file."),
    "replay": ("zroute.cli.replay", "Publish a recording again, with its original pauses."),
    "keys": ("zroute.cli.keys", "Create keys, and decide which keys may connect."),
    "proxy": ("zroute.cli.proxy", "Forward messages from many publishers to many subscribers."),
    "bench": ("zroute.cli.bench", "Measure message rate, CPU time and latency."),
    "info": ("zroute.cli.info", "Show versions, for bug reports."),
    "completion": ("zroute.cli.completion", "Print a completion script for a shell."),
}


class _Lazy(click.Group):
    """A group that imports each command only when it is called.

    ``zroute --help`` imports no command, because ``_COMMANDS`` contains the one-line help texts.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        with importing():
            command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), "command")  # noqa: B009
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, _COMMANDS, 1)  # click compares only with imported commands: none
            hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(_COMMANDS)}"
            ctx.fail(f"No such command {name!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _parameter: Any, wanted: bool) -> None:
    """Print the version and exit, as the callback of ``--version``."""
    if wanted:
        from importlib.metadata import version

        click.echo(f"zroute {version('zroute')}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Typed message handlers for brokerless publish/subscribe."""
