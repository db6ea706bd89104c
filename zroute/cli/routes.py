"""``zroute routes``: show the subscriptions and publications of a compiled app."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from zroute.cli.loading import fail_of_setup, load
from zroute.cli.options import app_options, complete_target
from zroute.declarations.signatures import NO_BODY
from zroute.errors import SetupError
from zroute.messages.schema import describe, inspect
from zroute.messages.topics import minimal_cover
from zroute.planning.plan import CompiledTrigger, Parts

__all__ = ["command"]

_COLUMNS = ("pattern", "kind", "handler", "type", "codec")


@click.command("routes")
@click.argument("app", metavar="MODULE[:APP]", shell_complete=complete_target)
@app_options
@click.option("-v", "--verbose", is_flag=True, help="Also show the decoding engine, and the reason for it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(app: str, app_dir: str, factory: bool, verbose: bool, as_json: bool) -> None:
    """Show the routes, publications and subscriptions of an app.

    Opens no socket.
    """
    try:
        with redirect_stdout(sys.stderr):  # prints of the module must not mix with the result
            loaded = load(app, app_dir=app_dir, factory=factory)
            compiled = loaded.compile().parts
    except SetupError as error:
        fail_of_setup(error)
    rows = _routes(compiled, loaded.codec.name) + _publications(compiled, loaded.codec.name)
    prefixes = minimal_cover(pattern.subscription for route in compiled.routes for pattern in route.patterns)
    subscriptions = [prefix.decode(errors="backslashreplace") for prefix in prefixes]
    if as_json:
        click.echo(json.dumps({"routes": rows, "subscriptions": subscriptions}, indent=2))
        return
    _print_table(rows, (*_COLUMNS, "engine") if verbose else _COLUMNS)
    click.echo(f"\nsubscriptions: {', '.join(map(repr, subscriptions)) or 'none'}")
    if verbose:
        for row in rows:
            for reason in row["reasons"]:
                click.echo(f"{row['handler']}: {reason}")


def _routes(compiled: Parts, default: str) -> list[dict[str, Any]]:
    """Return a row for each pattern of each route.

    ``default`` is the name of the app's codec.
    """
    rows = []
    for route in compiled.routes:
        options = route.route.options
        codec, batch = options.codec.name if options.codec else default, options.batch
        for pattern in route.patterns:
            row = _row(pattern.text, pattern.kind, route.name, route.route.where, route.call.schema, codec)
            if batch is not None:
                row.update(type=f"list[{row['type']}] up to {batch}", batch=batch)
            rows.append(row)
    return rows


def _publications(compiled: Parts, default: str) -> list[dict[str, Any]]:
    """Return a row for each publication and for each timer that publishes nothing.

    The handler of a publication is the list of functions whose return value it sends, or ``publish()`` if it
    is only called. ``default`` is the name of the app's codec.
    """
    rows = []
    for outlet in compiled.outlets:
        names = [trigger.name for trigger in compiled.triggers if outlet in trigger.outlets]
        names += [route.name for route in compiled.routes if outlet in route.outlets]
        codec = outlet.publication.codec.name if outlet.publication.codec else default
        handler = ", ".join(names) or "publish()"
        rows.append(_row(outlet.pattern.text, "publishes", handler, outlet.publication.where, outlet.schema, codec))
    timers = [trigger for trigger in compiled.triggers if not trigger.outlets]
    return rows + [_row(_period(timer), "timer", timer.name, timer.where, NO_BODY, "") for timer in timers]


def _period(timer: CompiledTrigger) -> str:
    """Return the period of a timer as text, or "" for a generator, which has none."""
    return f"every {timer.schedule.every:g} s" if timer.schedule else ""


def _row(pattern: str, kind: str, handler: str, where: str, schema: Any, codec: str) -> dict[str, Any]:
    """Return the fields of one row, as ``--json`` prints them.

    The type is ``none`` without a body, and ``any`` without a type. A raw or text body has that codec, whatever
    the codec of the app is. ``engine`` decodes the type, and ``reasons`` say why it is not msgspec.
    """
    row: dict[str, Any] = {"pattern": pattern, "kind": kind, "handler": handler, "where": where, "codec": codec}
    if schema is NO_BODY or schema is None:
        row.update(type="none" if schema is NO_BODY else "any", engine="", reasons=[])
        return row
    found = inspect(schema)
    fixed = found.engine if found.engine in ("raw", "text") else codec
    row.update(type=describe(schema), engine=found.engine, codec=fixed, reasons=list(found.reasons))
    return row


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cells of one line. The handler is followed by its place in the code."""
    return tuple(f"{row['handler']} {row['where']}" if column == "handler" else row[column] for column in columns)


def _print_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print the rows as a table.

    A terminal gets bold headers, and long cells are wrapped. Otherwise, columns are separated by two spaces or more.
    """
    lines = [_cells(row, columns) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for line in lines:
            table.add_row(*map(Text, line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    for line in (columns, *lines):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
