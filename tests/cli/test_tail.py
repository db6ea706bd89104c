"""`zroute tail`: lines for people, JSON for programs, and templates."""

from __future__ import annotations

import json
import re
import threading
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.feeding import feed, listening, ticker
from tests.cli.terminal import on_terminal
from tests.commands import zroute
from tests.pure import plain, tracked


def shown(*messages: bytes, options: tuple[str, ...] = ()) -> list[str]:
    """Return the lines that the command prints for these messages."""
    count = str(len(messages))
    with feed() as publisher, listening("tail", publisher, "a", "a.>", "-n", count, *options) as child:
        publisher.send(*messages)
        assert child.end(None) == 0, child.err
        return child.out


def told(*messages: bytes) -> list[dict[str, Any]]:
    """Return the objects that the command prints with --json."""
    return [json.loads(line) for line in shown(*messages, options=("--json",))]


@pytest.mark.parametrize("wire", ["tracked", "plain", "multipart"])
def test_every_wire_gives_the_same_message(tmp_path: Path, wire: str) -> None:
    """Each wire shows topic and body; fields that only the tracked wire has are null in others."""
    with ticker(tmp_path, wire) as endpoint:
        done = zroute("tail", endpoint, "stocks.ABC", "--json", "-n", "5")
    assert done.returncode == 0, done.stderr
    # The first messages may have no numbers: the publisher has not read the reader's marker yet.
    *_, first, second = map(json.loads, done.stdout.splitlines())
    assert (first["topic"], first["body"], first["codec"]) == ("stocks.ABC", {"price": 12.5, "who": "Ü"}, "json")
    assert first["tracked"] is (wire == "tracked")
    assert second["received_at"] >= first["received_at"] > 1e9
    if wire == "tracked":
        assert second["sequence"] == first["sequence"] + 1  # each subscription has numbers of its own
        assert re.fullmatch("[0-9a-f]{16}", first["publisher"])
        assert first["sent_at"] <= first["received_at"]
    else:
        assert (first["sequence"], first["publisher"], first["sent_at"]) == (None, None, None)


def test_piped_it_is_one_line_a_message() -> None:
    """A line has time, topic and body; line ends and control characters are escaped."""
    lines = shown(
        plain("a.map", {"x": [1, None, "Ü"]}),
        plain("a.text", body=b"two\nlines \x1b[31mred"),
        plain("a.bytes", body=b"\xff\0"),
        plain("a.nothing", body=b""),
    )
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} a\.", line) for line in lines)
    assert [line.split(" ", 2)[1:] for line in lines] == [
        ["a.map", '{"x": [1, null, "Ü"]}'],
        ["a.text", "two\\nlines \\u001b[31mred"],
        ["a.bytes", "b'\\xff\\x00'"],
        ["a.nothing", ""],
    ]


def test_a_body_is_decoded_as_the_header_says_or_as_it_looks() -> None:
    """The stated codec decodes the body; without one, it is guessed from the body."""
    found = told(
        tracked("a", 1, codec=1),
        tracked("a", body=b"[1]", codec=2),
        tracked("a", body=b"[1]", codec=3),
        tracked("a", body=b"[1]", codec=4),
        plain("a", body=b"[1]"),
        plain("a", body=b"[1"),
        plain("a", {"k": b"\xff", 1: datetime(1970, 1, 1, tzinfo=UTC)}),
        plain("a", body=b"12.5"),
        plain("a", body=b"\x81\xa1"),
        plain("a", body=b"\0\1"),
        tracked("a", body=b"own", codec=200),
    )
    assert [(one["codec"], one["body"]) for one in found] == [
        ("msgpack", 1),
        ("json", [1]),
        ("text", "[1]"),
        ("raw", {"base64": "WzFd"}),
        ("json", [1]),
        ("text", "[1"),
        ("msgpack", {"k": {"base64": "/w=="}, "1": "1970-01-01 00:00:00+00:00"}),
        ("text", "12.5"),
        ("raw", {"base64": "gaE="}),
        ("raw", {"base64": "AAE="}),
        ("200", {"base64": "b3du"}),
    ]
    assert not any("error" in one for one in found)


def test_a_body_that_is_not_what_its_publisher_says_is_shown_as_bytes() -> None:
    """A body that does not match its codec is shown as bytes, with the reason."""
    deep = b"[" * 150 + b"]" * 150
    broken = (tracked("a", body=b"\xc1\n", codec=1), tracked("a", body=deep, codec=2))
    one, two = told(*broken)
    assert one["body"] == {"base64": "wQo="}
    assert "not valid msgpack: " in one["error"]
    assert "deeper than 100 levels" in two["error"]
    (compressed,) = told(plain("a", body=zlib.compress(b"{}")))
    assert compressed["error"] == "the body looks compressed: add decompress=zlib to --frames"
    with feed() as publisher, listening("tail", publisher, "a", "-n", "2") as child:
        publisher.send(*broken)
        assert child.end(None) == 0
        assert "b'\\xc1\\n' (the body is not valid msgpack: " in child.out[0]
        assert "undecodable 2" in child.err[-1]


def test_json_keeps_what_is_no_text_and_stays_one_line() -> None:
    """Topics that are not UTF-8 have surrogate escapes, and no character breaks a line."""
    with feed() as publisher, listening("tail", publisher, "--json", "-n", "2") as child:
        publisher.send(tracked("a", body="\u2028\x85".encode(), codec=3, headers={"k": "\n"}).replace(b"a", b"\xff", 1))
        assert child.end(None) == 0
    last = json.loads(child.out[-1])
    assert len(child.out) == 2
    assert (last["topic"].encode("utf-8", "surrogateescape"), last["body"]) == (b"\xff", "\u2028\x85")
    assert last["headers"] == {"k": "\n"}


def test_a_template_says_what_i_want_to_see() -> None:
    """A template has fields, parts of body and headers, and formats; missing parts are a dash."""
    text = "{topic:<4}|{body[price]:.2f}|{headers[who]}|{sequence:03}|{sent_at}|{codec}|{body[no][no]}|{body}"
    lines = shown(
        tracked("a", {"price": 2}, headers={"who": "me"}),
        plain("a", {"price": "none"}),
        plain("a", body=b"[]"),
        options=("--format", text),
    )
    assert lines == [
        'a   |2.00|me|001|5.0|msgpack|-|{"price": 2}',
        'a   |none|-|-  |-|msgpack|-|{"price": "none"}',
        "a   |-|-|-  |-|json|-|[]",
    ]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{nope}", "unknown field 'nope': the fields are {topic}, {body}"),
        ("{topic", "expected '}'"),
        ("{}", "positional"),
        ("{topic:d}", "Unknown format code 'd'"),
        ("{body.price}", "write {body[name]}"),
    ],
)
def test_a_bad_template_is_a_usage_error_before_anything_opens(template: str, text: str) -> None:
    """An invalid template is reported before the endpoint is opened."""
    done = zroute("tail", "bind:tcp://192.0.2.1:5555", "--format", template)
    assert done.returncode == 2
    assert text in done.stderr
    assert "does not have this address" not in done.stderr


def test_only_topics_only_some_and_only_so_many() -> None:
    """--topics-only, --ignore, --sample and -n combine, and the summary counts the other messages."""
    options = ("--topics-only", "--ignore", "a.b.>", "--ignore", "a.c", "--sample", "3", "-n", "3")
    with feed() as publisher, listening("tail", publisher, "a.>", *options) as child:
        topics = [f"a.{n}" for n in range(1, 8)]
        publisher.send(plain("a.b.x", 1), plain("a.c", 1), *(plain(topic, 1) for topic in topics), plain("a.late", 1))
        assert child.end(None) == 0
        assert child.out == ["a.1", "a.4", "a.7"]
        assert child.err[-1] == "zroute: received 9, shown 3, sampled out 4, ignored 2, malformed 0, lost not counted"


def test_patterns_with_slashes_choose_topics() -> None:
    """With --separator / patterns have levels between slashes, wherever the option stands."""
    options = ("--topics-only", "--ignore", "/camera/*/raw", "-n", "2", "--separator", "/")
    with feed() as publisher, listening("tail", publisher, "/camera/{name}/*", *options) as child:
        topics = ("/camera/a/raw", "/camera/a.b/pose", "/camera/pose", "/camera/c/pose", "/camera/d/pose")
        publisher.send(*(plain(topic, 1) for topic in topics))
        assert child.end(None) == 0
        assert child.out == ["/camera/a.b/pose", "/camera/c/pose"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--json", "--topics-only"), "choose one"),
        (("/a//b", "--separator", "/"), "two slashes in a row"),
        (("/a/*",), "App(separator='/')"),
        (("--separator", "a"), "is not one of '.', '/'"),
        (("new*",), 'use startswith("new")'),
        (("--ignore", "a..b"), "two dots in a row"),
        (("--sample", "0"), "--sample"),
        (("-n", "0"), "--count"),
        (("--wait", "soon"), "not a duration"),
    ],
)
def test_wrong_use_is_told(arguments: tuple[str, ...], text: str) -> None:
    """A usage error names the wrong option or pattern."""
    done = zroute("tail", "tcp://127.0.0.1:1", *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_a_terminal_gets_colours_unless_i_do_not_want_them(tmp_path: Path) -> None:
    """A terminal shows topics and values in colours, unless NO_COLOR is set; lines are not folded."""
    with ticker(tmp_path) as endpoint:
        coloured, code = on_terminal("tail", endpoint, "stocks.ABC", "-n", "2", cwd=tmp_path)
        bare, _ = on_terminal("tail", endpoint, "stocks.ABC", "-n", "2", cwd=tmp_path, NO_COLOR="1", COLUMNS="20")
    assert code == 0
    assert "\x1b[1;36mstocks.ABC" in coloured
    assert "\x1b[1;36m12.5" in coloured
    assert "\x1b[3" not in bare
    assert 'stocks.ABC {"price": 12.5, "who": "Ü"}\r\n' in re.sub(r"\x1b\[\d*m", "", bare)


def test_a_body_can_not_command_my_terminal_nor_fill_it() -> None:
    """Escape sequences and markup are shown as text, and a large body is cut with a remark."""
    with feed() as publisher:

        def send() -> None:
            publisher.heard()
            publisher.send(
                plain("a", body=b"\x1b]0;title\x1b\\[red]x"), plain("a", body=b"x" * 5000), plain("a", body=b"\xff")
            )

        sender = threading.Thread(target=send)
        sender.start()
        seen, code = on_terminal("tail", publisher.endpoint, "a", "-n", "3", cwd=Path())
        sender.join()
    assert code == 0
    assert "\\u001b]0;title\\u001b\\[red]x" in seen
    assert "\x1b]" not in seen
    assert "… and 3000 characters more" in seen
    assert "b'\\xff'" in seen
