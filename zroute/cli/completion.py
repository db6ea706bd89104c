"""``zroute completion``: print a completion script for a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and their values in SHELL.

    Set up completion once. For bash, write eval "$(zroute completion bash)" in ~/.bashrc. For zsh, write eval "$(zroute
    completion zsh)" in ~/.zshrc. For fish, run zroute completion fish > ~/.config/fish/completions/zroute.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None
    # `source()` would start bash to check its version, and warn if the first bash on the path is an old one.
    script = completion(ctx.find_root().command, {}, "zroute", "_ZROUTE_COMPLETE")
    click.echo(script.source_template % script.source_vars())
