"""How log lines look: for people, for a terminal, for machines. Everything goes to standard error.

zroute logs through `logging`, below "zroute"; Twisted's own log is led there too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

__all__ = ["FORMATS", "LEVELS", "set_up_logging"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")


class _Json(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, and error with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str, form: str) -> None:
    """Lead the root logger to standard error in ``form`` (auto: colours on a terminal) from ``level`` on.

    NO_COLOR turns colours off (no-color.org). Where the program has given the root logger handlers of its
    own, and none comes from here, they stay as they are: a second one would say everything twice.
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
    if form == "auto" and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        from rich.console import Console
        from rich.logging import RichHandler

        return RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(_Json() if form == "json" else text)
    return handler


_led = False


def _lead_twisted_here() -> None:
    global _led
    if _led:
        return
    from twisted.logger import STDLibLogObserver, globalLogBeginner

    globalLogBeginner.beginLoggingTo([STDLibLogObserver("twisted")], redirectStandardIO=False, discardBuffer=True)
    logging.getLogger("twisted").setLevel(logging.WARNING)
    _led = True
