"""How log lines look: for people, for a terminal, for machines. Everything goes to standard error.

zroute logs through `logging`, below "zroute"; Twisted's own log is led there too. No line holds a control
character: the texts of exceptions, and of log calls of the program, quote messages of peers.

A peer chooses its name, its topics, its bodies and its headers, and error messages quote them. Line feeds there would
forge log lines, escape sequences command the terminal, and bidirectional marks show a text that is not there. So every
text of a peer goes through `printable` where it is printed; handlers receive it as it was sent.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from zroute.errors import SetupError

__all__ = ["FORMATS", "LEVELS", "has_colors", "printable", "set_up_logging"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")


class _Text(logging.Formatter):
    """Lines for people. What is raised is quoted in one line, except the lists that a `SetupError` consists of."""

    def format(self, record: logging.LogRecord) -> str:
        return _clean(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        text = super().formatException(ei)
        for error in _chain(ei[1]):
            for before, said in _said(error):
                if not said.isprintable():
                    text = text.replace(before + said, before + printable(said))
        return text


_FAILURES = "failed|unrouted|malformed|lost|unknown_losses|stale|dropped_at_shutdown|publish_errors"
_PARTS = re.compile(
    rf"""
    ^(?P<time>\d\d:\d\d:\d\d)[ ]
    (?P<level>[A-Z]+)(?P<space>\ +)
    (?P<app>(?!stopping:)[\w.:-]+(?=:[ ]))?
    | (?P<failure>\b(?:{_FAILURES})[ ][1-9]\d*)
    """,
    re.VERBOSE,
)
_COLORS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class _Colored(_Text):
    """The same lines with three things in colour: the level, the app, and counters of failures that are not zero."""

    def format(self, record: logging.LogRecord) -> str:
        first, *more = super().format(record).split("\n")
        return "\n".join([_PARTS.sub(_in_color, first), *more])


def _in_color(part: re.Match[str]) -> str:
    if part["failure"]:
        return _color(part["failure"], "1;31")
    level = _color(part["level"], _COLORS.get(part["level"], "0"))
    app = _color(part["app"], "1") if part["app"] else ""
    return f"{_color(part['time'], '2')} {level}{part['space']}{app}"


def _color(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


_STANDARD = {*vars(logging.makeLogRecord({})), "asctime", "message", "taskName"}


class _Json(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, and error with the traceback.

    The `extra` fields of a log call follow. The last line of an app has its counters there, by their names in
    `app.stats`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return printable(json.dumps(extra | line if extra else line, ensure_ascii=False, default=str), None)


def set_up_logging(level: str, form: str) -> None:
    """Lead the root logger to standard error in ``form`` (auto: colours on a terminal) from ``level`` on.

    NO_COLOR turns colours off, and FORCE_COLOR on: see `has_colors`. If the program has given the root logger
    handlers of its own, and none of them is zroute's, they stay as they are: a second one would repeat each line.
    """
    if form not in FORMATS:
        raise ValueError(f"log format {form!r}: one of {', '.join(FORMATS)}")
    root = logging.getLogger()
    before = [handler for handler in root.handlers if getattr(handler, "of_zroute", False)]
    if before or not root.handlers:
        for handler in before:
            root.removeHandler(handler)
        handler = _handler(form)
        handler.of_zroute = True  # type: ignore[attr-defined]  # a second call replaces its own handler only
        root.addHandler(handler)
        root.setLevel(level.upper())
    _lead_twisted_here()


def _handler(form: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    lines = _Colored if form == "auto" and has_colors(sys.stderr) else _Text
    text = lines("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(_Json() if form == "json" else text)
    return handler


def has_colors(stream: TextIO) -> bool:
    """Return True if output to ``stream`` has colours: on a terminal, unless the environment decides it.

    NO_COLOR (no-color.org) turns them off, and FORCE_COLOR (force-color.org) turns them on, also in a pipe. Each
    counts if it is not empty; NO_COLOR comes first.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def _clean(text: str) -> str:
    """``text`` with its lines as they are, and no control character in them."""
    return "\n".join(printable(line, None) for line in text.replace("\t", "    ").split("\n"))


def _said(error: BaseException) -> Iterator[tuple[str, str]]:
    """The texts of ``error`` that a traceback shows, each with what is before it there."""
    if not isinstance(error, SetupError):
        with suppress(Exception):  # its own __str__, of which a traceback says that it failed
            yield ": ", str(error)
    for note in getattr(error, "__notes__", ()):
        yield "\n", str(note)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and all that its traceback shows besides: its causes, and the members of groups."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


_led = False


def _lead_twisted_here() -> None:
    global _led
    if _led:
        return
    from twisted.logger import STDLibLogObserver, globalLogBeginner

    globalLogBeginner.beginLoggingTo([STDLibLogObserver("twisted")], redirectStandardIO=False, discardBuffer=True)
    logging.getLogger("twisted").setLevel(logging.WARNING)
    _led = True


# -- texts of peers -------------------------------------------------------------------------------------

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLANES = 0x10000
_HARMLESS = frozenset(
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200c\u200d\u202f\u205f\u3000"
)
"""Spaces, and the two joiners that words of many languages are written with."""


def printable(text: object, most: int | None = 1000) -> str:
    r"""Return ``text`` in one line that no terminal obeys.

    Backslash escapes stand for control characters (C0, C1, DEL), bidirectional and other invisible marks, line and
    paragraph separators, and code points without a character: what `str.isprintable` refuses, except spaces and
    joiners. They are the escapes of JSON (``\n``, ``\u001b``), so a JSON document stays the same. Backslashes stay
    single.

    Args:
        text: Text, UTF-8 as bytes, or an object such as an exception, of which its text is taken. A byte that is no
            UTF-8 becomes ``\udc80`` to ``\udcff``, as in the `repr` of a topic.
        most: Characters of the result: of a longer one the beginning is returned, and how long ``text`` was. None
            stands for all.
    """
    given = _text_of(text)
    if most is None or len(given) <= most:
        shown = given if given.isprintable() else "".join(map(_escape, given))
        if most is None or len(shown) <= most:
            return shown
    return f"{_beginning(given, most)}… ({len(given)} characters)"


def _text_of(given: object) -> str:
    if isinstance(given, bytes):
        return given.decode("utf-8", "surrogateescape")
    try:
        return str(given)
    except Exception as error:  # an exception's own __str__, in the middle of reporting it
        return f"<{type(given).__name__}, whose text can't be made: {type(error).__name__}>"


def _beginning(text: str, most: int) -> str:
    """As much of ``text`` as has room in ``most`` characters, without half an escape."""
    shown, room = [], most
    for mark in text:
        escape = _escape(mark)
        room -= len(escape)
        if room < 0:
            break
        shown.append(escape)
    return "".join(shown)


def _escape(mark: str) -> str:
    if mark.isprintable() or mark in _HARMLESS:
        return mark
    code = ord(mark)
    if code < _PLANES:
        return _SHORT.get(mark) or f"\\u{code:04x}"
    high, low = divmod(code - _PLANES, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
