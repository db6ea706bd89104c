"""The format of log lines: for people, terminals and machines.

zroute logs to standard error through `logging`, with loggers below "zroute". Twisted's log is written there too. In a
program that ``twistd`` or ``twist`` runs, zroute's lines are written to Twisted's log instead. Control characters are
removed from every line, because the texts of exceptions and the program's own log calls may quote messages from peers.

A peer chooses its name, topics, bodies and headers, and error messages quote them. Line feeds in them would forge log
lines, escape sequences control the terminal, and bidirectional marks make a text look like another text. Each text from
a peer is therefore escaped by `printable` when it is printed. Handlers receive it unchanged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from zroute.errors import SetupError

__all__ = [
    "FORMATS",
    "LEVELS",
    "did_you_mean",
    "has_colors",
    "log_to_twisted",
    "peer_name",
    "printable",
    "set_up_logging",
    "text_of",
]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")


class _Text(logging.Formatter):
    """Formats lines for people.

    The text of an exception is quoted in one line, except for a `SetupError`, whose text may be a list of several
    lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        return _clean(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        text = super().formatException(ei)
        for error in _chain(ei[1]):
            for before, said in _said(error):
                if not said.isprintable():
                    text = text.replace(before + said, before + printable(said))
        return text


_FAILURES = "failed|unrouted|malformed|lost|unknown_losses|stale|dropped_at_shutdown|timed_out|dead|publish_errors"
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
    """Formats the same lines in colour.

    Three parts are coloured: the level, the app, and counters of failures that are not zero.
    """

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
    """Formats each record as a line with a JSON object.

    The fields are ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``error`` with the traceback, and the
    `extra` fields of the log call. In the last line of an app, the extra fields are its counters, with their names in
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
        extra = _extra(record)
        # The fixed fields replace `extra` fields of the same name.
        return printable(json.dumps(extra | line if extra else line, ensure_ascii=False, default=str), None)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return the `extra` fields of a log call."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def set_up_logging(level: str, form: str) -> None:
    """Send log records of at least ``level`` to standard error.

    The environment variables NO_COLOR and FORCE_COLOR turn colours off and on; see `has_colors`. If the program has its
    own handlers at the root logger, zroute does not add a handler, because each line would be logged twice.

    Args:
        level: One of `LEVELS`.
        form: One of `FORMATS`; "auto" uses colours on a terminal.

    Raises:
        ValueError: The format is unknown.
    """
    if form not in FORMATS:
        raise ValueError(f"log format {form!r} is unknown: use one of {', '.join(FORMATS)}")
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
    """Return True if output to ``stream`` is in colour.

    By default, only output to a terminal is in colour. NO_COLOR (no-color.org) turns colours off. FORCE_COLOR
    (force-color.org) turns them on, also in a pipe. Empty variables are ignored. If both are set, NO_COLOR takes
    precedence.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def _clean(text: str) -> str:
    """Return ``text`` without control characters, except line ends."""
    return "\n".join(printable(line, None) for line in text.replace("\t", "    ").split("\n"))


def _said(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield the texts of an error in a traceback, each with its prefix."""
    if not isinstance(error, SetupError):
        with suppress(Exception):  # its __str__ may fail; the traceback then says so
            yield ": ", str(error)
    for note in getattr(error, "__notes__", ()):
        yield "\n", str(note)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the members of groups."""
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
    if _led:  # Twisted's log can begin only once in a process
        return
    from twisted.logger import STDLibLogObserver, globalLogBeginner

    globalLogBeginner.beginLoggingTo([STDLibLogObserver("twisted")], redirectStandardIO=False, discardBuffer=True)
    logging.getLogger("twisted").setLevel(logging.WARNING)
    _led = True


_UNDER_TWISTD = ("twisted.scripts.twistd", "twisted.application.twist._twist")
"""The main modules of ``twistd`` and ``twist``. One of them is loaded in each process that they run."""


def log_to_twisted() -> None:
    """Send zroute's log records to Twisted's log under ``twistd`` and ``twist``.

    Each event has the level of its record, and the name of its logger as its namespace. The `extra` fields of a log
    call are fields of the event. The level of the logger "zroute" is set to INFO, unless the program has set a level.

    The function does nothing if the program has added a handler to the logger "zroute" or to the root logger. It also
    does nothing in processes that ``twistd`` or ``twist`` do not run.
    """
    log = logging.getLogger("zroute")
    if log.hasHandlers() or not any(name in sys.modules for name in _UNDER_TWISTD):
        return
    handler = _ToTwisted()
    handler.setFormatter(_Text())
    log.addHandler(handler)
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)


class _ToTwisted(logging.Handler):
    """Emits records as events of `twisted.logger`."""

    def emit(self, record: logging.LogRecord) -> None:
        from twisted.logger import Logger, LogLevel

        levels = (
            (logging.CRITICAL, LogLevel.critical),
            (logging.ERROR, LogLevel.error),
            (logging.WARNING, LogLevel.warn),
            (logging.INFO, LogLevel.info),
        )
        level = next((each for least, each in levels if record.levelno >= least), LogLevel.debug)
        try:
            # The line is a field, because Twisted would interpret braces in a format.
            Logger(record.name).emit(level, "{text}", **_extra(record) | {"text": self.format(record)})
        except Exception:
            self.handleError(record)


# -- texts of peers -------------------------------------------------------------------------------------

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLANES = 0x10000
_HARMLESS = frozenset(
    "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200c\u200d\u202f\u205f\u3000"
)
"""Spaces, and the two joiners that many languages use inside words."""


def printable(text: object, most: int | None = 1000) -> str:
    r"""Return ``text`` in one line that can't control a terminal.

    Control characters (C0, C1, DEL), bidirectional and other invisible marks, line and paragraph separators, and
    unassigned code points are replaced by backslash escapes. These are all characters that `str.isprintable` rejects,
    except spaces and joiners. The escapes are those of JSON (``\n``, ``\u001b``), so a JSON document keeps its meaning.
    Backslashes are not doubled.

    Args:
        text: A text, UTF-8 bytes, or an object such as an exception, whose ``str()`` is used. A byte that is not valid
            UTF-8 becomes ``\udc80`` to ``\udcff``, as in the `repr` of a topic.
        most: The maximum number of characters. A longer text is cut to this number, and the length of the original text
            is appended. With None, the whole text is returned.

    Returns:
        The printable text.
    """
    given = text_of(text)
    if most is None or len(given) <= most:
        shown = given if given.isprintable() else "".join(map(_escape, given))
        if most is None or len(shown) <= most:
            return shown
    return f"{_beginning(given, most)}… ({len(given)} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``": did you mean 'feed'?"`` with the most similar known word.

    If no known word is similar, the text is empty.
    """
    from difflib import get_close_matches  # seldom needed, and slow to import

    near = get_close_matches(word, known, 1)
    return f": did you mean {near[0]!r}?" if near else ""


def peer_name(identity: bytes) -> str:
    """Return the ZeroMQ identity of a peer as text.

    An identity that libzmq has chosen is a zero byte and a number. Such a number is returned in hexadecimal digits.
    """
    return identity[1:].hex() if identity[:1] == b"\0" else printable(identity)


def text_of(given: object) -> str:
    """Return the text of an object, such as an exception.

    Bytes are read as UTF-8. The ``__str__`` of an exception is the user's code: if it raises an error, the text names
    the type of that error.
    """
    if isinstance(given, bytes):
        return given.decode("utf-8", "surrogateescape")
    try:
        return str(given)
    except BaseException as error:  # any error: the exception must still be reported
        return f"<{type(given).__name__}, whose text can't be created: {type(error).__name__}>"


def _beginning(text: str, most: int) -> str:
    """Return the beginning of a text, escaped, in at most ``most`` characters.

    The result never ends in the middle of an escape.
    """
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
