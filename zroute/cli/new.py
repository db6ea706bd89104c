"""``zroute new``: write a small project that runs and passes its tests."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template

import click

__all__ = ["command"]

_SUFFIX = ".template"
"""The suffix of template files. Without it, tools would treat them as modules of zroute."""


@click.command("new")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def command(folder: Path) -> None:
    """Write a small project into DIR: an app, its test and a README.

    DIR must be new or empty.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if names := sorted(path.name for path in folder.iterdir()):
            some = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
            raise click.UsageError(f"{folder} is not empty (it contains {some}): choose a new or empty folder")
        for name, text in _contents(folder.resolve().name).items():
            (folder / name).write_text(text, encoding="utf-8")
            click.echo(f"wrote {folder / name}")
    except OSError as error:
        raise click.ClickException(f"can't write to {folder}: {error.strerror}") from None
    click.echo(f"next: cd {folder}, then zroute run app")


def _contents(project: str) -> dict[str, str]:
    """Return the text of each file of a project, by file name."""
    templates = sorted(files("zroute.cli").joinpath("project").iterdir(), key=lambda each: each.name)
    return {
        each.name.removesuffix(_SUFFIX): Template(each.read_text(encoding="utf-8")).substitute(project=project)
        for each in templates
        if each.name.endswith(_SUFFIX)
    }
