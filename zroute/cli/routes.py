"""``zroute routes``: show what an app receives, publishes, asks and answers."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from types import NoneType
from typing import TYPE_CHECKING, Any

import attrs
import click

from zroute.cli.loading import fail_of_setup, load
from zroute.cli.options import app_options, complete_target
from zroute.declarations.replies import replies_of
from zroute.declarations.signatures import NO_BODY
from zroute.errors import EndpointError, SchemaError, SetupError
from zroute.functions import name_of
from zroute.messages.codecs import Codec, is_own
from zroute.messages.extras import NO_EXTRAS, Extras
from zroute.messages.schema import describe, inspect
from zroute.messages.topics import minimal_cover
from zroute.nats.subjects import generalise, subject_of
from zroute.planning.compiler import bridges_from_outside
from zroute.planning.plan import CompiledTrigger, Parts
from zroute.publishing.publication import Bridge, Publication
from zroute.receiving.dispatch import CompiledRoute

if TYPE_CHECKING:
    from zroute.app import App

__all__ = ["command"]

_COLUMNS = ("pattern", "kind", "handler", "type", "codec")


@click.command("routes")
@click.argument("app", metavar="MODULE[:APP]", shell_complete=complete_target)
@app_options
@click.option("-v", "--verbose", is_flag=True, help="Also show the decoding engine, and the reason for the choice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--source", is_flag=True, help="Print the generated functions that receive and publish, as Python.")
def command(app: str, app_dir: str, factory: bool, verbose: bool, as_json: bool, source: bool) -> None:
    """Show the routes, publications, requests and subscriptions of an app.

    Also shows the specified forms of foreign messages. Opens no socket.
    """
    if source and (as_json or verbose):
        raise click.UsageError("--source prints only Python: omit --json and --verbose")
    try:
        with redirect_stdout(sys.stderr):  # the module's own output must not mix with the result
            loaded = load(app, app_dir=app_dir, factory=factory)
            plan = loaded.compile()
    except SetupError as error:
        fail_of_setup(error)
    compiled = plan.parts
    if source:
        from zroute.cli.source import generated

        click.echo("\n\n\n".join(map(str, generated(plan, on_nats=_is_on_nats(loaded)))))
        return
    rows = _routes(compiled) + _publications(compiled, bridges_from_outside(loaded))
    prefixes = minimal_cover(pattern.subscription for route in compiled.routes for pattern in route.patterns)
    subscriptions = [prefix.decode(errors="backslashreplace") for prefix in prefixes]
    subjects = _subjects(loaded, compiled)
    forms = {str(endpoint): str(endpoint.form) for endpoint in loaded.sub if endpoint.form is not None}
    if as_json:
        document = {"routes": rows, "subscriptions": subscriptions} | ({"forms": forms} if forms else {})
        document |= {"subjects": subjects} if subjects is not None else {}
        click.echo(json.dumps(document, indent=2))
        return
    _print_table(rows, (*_COLUMNS, "engine") if verbose else _COLUMNS)
    click.echo(f"\nsubscriptions: {', '.join(map(repr, subscriptions)) or 'none'}")
    if subjects is not None:
        click.echo(f"subjects of NATS: {', '.join(subjects) or 'none'}")
    for endpoint, form in forms.items():
        click.echo(f"{endpoint} is read as {form}")
    if verbose:
        for row in rows:
            for reason in row["reasons"]:
                click.echo(f"{row['handler']}: {reason}")


def _subjects(app: App, compiled: Parts) -> list[str] | None:
    """Return the subjects that an app on NATS subscribes to.

    Return None for an app on ZeroMQ.

    Raises:
        SystemExit: A pattern is not possible on NATS. The reason was printed.
    """
    if not _is_on_nats(app):
        return None
    found = generalise(subject_of(pattern) for route in compiled.routes for pattern in route.patterns)
    return [subject.decode() for subject in found]


def _is_on_nats(app: App) -> bool:
    """Return True if an app uses NATS.

    Raises:
        SystemExit: A pattern is not possible on NATS. The reason was printed.
    """
    try:
        return app.endpoints().nats is not None
    except EndpointError:  # no endpoint is needed to show the routes
        return False
    except SetupError as error:
        fail_of_setup(error)


def _routes(compiled: Parts) -> list[dict[str, Any]]:
    """Return a row for each pattern of each route.

    Rows for the route's dead letters and its bridges to other apps follow.
    """
    rows, codecs = [], compiled.codecs
    for route in compiled.handlers:
        options = route.route.options
        codec, batch = options.codec or codecs.default, options.batch
        for pattern in route.patterns:
            answers = route.route.kind == "reply"
            kind = {"reply": "reply", "work": "job"}.get(route.route.kind, pattern.kind)
            row = _row(pattern.text, kind, route.name, route.route.where, route.call.schema, codec, codecs.extras)
            if answers:
                row["reply"] = _reply_of(route)
            if batch is not None:
                row.update(type=f"list[{row['type']}] up to {batch}", batch=batch)
            if options.retry:
                row["retry"] = options.retry
            if options.timeout is not None:
                row["timeout"] = options.timeout
            if options.recover:
                row["recover"] = True
            if options.since is not None:
                row["since"] = options.since.text
            rows.append(row)
        if options.dead is not None:
            rows.append(_row(options.dead.text, "dead letters", route.name, route.route.where, None))
        for outlet in route.outlets:
            if isinstance(outlet, Bridge):
                one = outlet.publication
                rows.append(_row(one.pattern.text, "bridge", route.name, one.where, outlet.schema, one.codec))
    return rows


def _publications(compiled: Parts, bridged: list[tuple[Publication[Any], str]]) -> list[dict[str, Any]]:
    """Return a row for each publication and for each timer that publishes nothing.

    The handler of a publication is the list of functions whose return values are published. Without any function, the
    handler is ``publish()``. If only other apps call these functions (see ``bridged``), the kind is "bridge".
    Requesters and job queues have no handler.
    """
    rows, codecs = [], compiled.codecs
    for outlet in compiled.outlets:
        names = [trigger.name for trigger in compiled.triggers if outlet in trigger.outlets]
        names += [route.name for route in compiled.handlers if outlet in route.outlets]
        bridges = [name for publication, name in bridged if publication is outlet.publication]
        codec, where = outlet.publication.codec or codecs.default, outlet.publication.where
        handler, kind = ", ".join(names + bridges) or "publish()", "publishes" if names or not bridges else "bridge"
        row = _row(outlet.pattern.text, kind, handler, where, outlet.schema, codec, codecs.extras)
        if (history := outlet.publication.history) is not None:
            row["history"] = attrs.asdict(history)
        if (snapshot := outlet.publication.snapshot) is not None:
            row["snapshot"] = name_of(snapshot.make)
        rows.append(row)
    for each in compiled.requesters:
        asked = each.requester
        codec = asked.codec or codecs.default
        row = _row(each.pattern.text, "requests", "", asked.where, asked.schema, codec, codecs.extras)
        rows.append(row | {"reply": _described(asked.reply)})
    for queued in compiled.queues:
        queue, codec = queued.queue, queued.queue.codec or codecs.default
        row = _row(queued.pattern.text, "job queue", "", queue.where, queue.schema, codec, codecs.extras)
        rows.append(row | ({"retry": queue.settings.retry} if queue.settings.retry else {}))
        if queued.dead is not None:
            rows.append(_row(queued.dead.text, "dead letters", f"job queue {queued.pattern.text}", queue.where, None))
    timers = [trigger for trigger in compiled.triggers if not trigger.outlets]
    return rows + [_row(_period(timer), "timer", timer.name, timer.where, NO_BODY) for timer in timers]


def _period(timer: CompiledTrigger) -> str:
    """Return the period of a timer as text, or "" for a generator without a period."""
    return f"every {timer.schedule.every:g} s" if timer.schedule else ""


def _row(
    pattern: str,
    kind: str,
    handler: str,
    where: str,
    schema: Any,
    codec: Codec | None = None,
    extras: Extras = NO_EXTRAS,
) -> dict[str, Any]:
    """Return the fields of one row, as ``--json`` prints them.

    The type is ``none`` without a body, and ``any`` without a declared type. For bytes and text, the codec is always
    raw or text, regardless of the app's codec. ``engine`` is the engine that decodes the type, and ``reasons`` explain
    why the engine is not msgspec. For a user's own codec, the engine is ``codec``.
    """
    name = codec.name if codec else ""
    row: dict[str, Any] = {"pattern": pattern, "kind": kind, "handler": handler, "where": where, "codec": name}
    if schema is NO_BODY or schema is None:
        row.update(type="none" if schema is NO_BODY else "any", engine="", reasons=[])
        return row
    try:
        found = inspect(schema, extras) if codec is None or not is_own(codec) else None
    except SchemaError:  # a bridge to an app whose user-defined codec supports the type
        found = None
    if found is None:
        row.update(type=describe(schema), engine="codec", reasons=[])
        return row
    fixed = found.engine if found.engine in ("raw", "text") else name
    row.update(type=describe(schema), engine=found.engine, codec=fixed, reasons=list(found.reasons))
    return row


def _reply_of(route: CompiledRoute) -> str:
    """Return the type of the replies of a handler as text."""
    replies = replies_of(route.route)
    shown = _described(replies.type)
    if replies.are_stream:
        return f"stream of {shown}"
    return f"{shown} | None" if replies.may_be_none and replies.type not in (None, NoneType) else shown


def _described(schema: Any) -> str:
    return "any" if schema is None or schema is Any else describe(schema)


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cells of one line.

    The place in the code follows the handler, and the type of the reply follows the type of a request.
    """
    cells = row | {"handler": f"{row['handler']} {row['where']}".lstrip()}
    if "reply" in row:
        cells["type"] = f"{row['type']} -> {row['reply']}"
    return tuple(cells[column] for column in columns)


def _print_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print the rows as a table.

    On a terminal, headers are bold and long cells are wrapped. Otherwise, columns are separated by two or more spaces.
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
