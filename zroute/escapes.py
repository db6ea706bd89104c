"""Text that a peer wrote, made fit for a log line or a terminal.

A peer chooses its name, its topics, its bodies and its headers, and error messages quote them. Line feeds there would
forge log lines, escape sequences command the terminal, and bidirectional marks show a text that is not there. So every
text of a peer goes through `printable` where it is printed; handlers receive it as it was sent.
"""

from __future__ import annotations

__all__ = ["printable"]

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
