"""The commands with keys: a proxy, a reader, a publisher and a requester, each with a key of its own."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.commands import limited, patient, zroute
from tests.keyed import Keys
from tests.support import Child, free_endpoint, free_port

SERVER = """
import sys
from zroute import App

app = App(rep=sys.argv[1], keys=sys.argv[2], name="hub")

@app.reply("double")
def double(number: int) -> int:
    return 2 * number

@app.on_startup
def begun():
    print("ready", flush=True)

app.run()
"""

APP = """
from zroute import App

app = App(pub={pub!r}, name="feed")
app.every(0.1)(app.publisher("news.tick", int)(lambda: 1))
"""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of hub, which knows all others, and of eve, which hub does not know."""
    made = Keys(tmp_path)
    made.introduce("hub", "feed", "desk")
    made.authorize("eve", "hub")
    return made


def own(keys: Keys, name: str) -> tuple[str, str]:
    """Return the option with the key of a program."""
    return "--keys", str(keys.secret(name))


def test_messages_pass_a_proxy_with_keys(keys: Keys) -> None:
    """`zroute pub` and `zroute tail` meet at a proxy; a reader with an unknown key gets nothing."""
    front, back = free_endpoint(), free_endpoint()
    with Child("-m", "zroute", "proxy", front, back, *own(keys, "hub")) as proxy:
        proxy.line_with("for subscribers", stream="err")
        with (
            Child("-m", "zroute", "tail", f"hub@{back}", "-n", "3", *own(keys, "desk")) as tail,
            Child("-m", "zroute", "tail", f"hub@{back}", *own(keys, "eve")) as eve,
        ):
            eve.line_with("the peer refuses the key of eve", stream="err")
            sent = zroute("pub", f"connect:hub@{front}", "news.a", "1", "--count", "3", *own(keys, "feed"))
            assert sent.returncode == 0, sent.stderr
            assert tail.end(None) == 0
            assert [line.split(maxsplit=1)[1] for line in tail.out] == ["news.a 1"] * 3
            assert eve.end(signal.SIGINT) == 0
            assert eve.out == []
        proxy.line_with("zroute proxy: refused a connection from 127.0.0.1", stream="err")
        assert proxy.end() == 0


def test_a_proxy_closes_the_connections_of_a_revoked_key(keys: Keys) -> None:
    """The revoked reader is refused from then on; another one connects again, and gets later messages."""
    front, back = free_endpoint(), free_endpoint()
    keys.authorize("hub", "eve")

    def publish(topic: str) -> None:
        done = zroute("pub", f"connect:hub@{front}", topic, "1", *own(keys, "feed"))
        assert done.returncode == 0, done.stderr

    with Child("-m", "zroute", "proxy", front, back, *own(keys, "hub")) as proxy:
        proxy.line_with("for subscribers", stream="err")
        with (
            Child("-m", "zroute", "tail", f"hub@{back}", "before", "after", *own(keys, "eve")) as eve,
            Child("-m", "zroute", "tail", f"hub@{back}", "after", *own(keys, "desk")) as desk,
        ):
            desk.line_with("connects to", stream="err")
            publish("before")
            eve.line_with("before 1")
            keys.revoke("hub", "eve")
            proxy.line_with("the key of eve was revoked", stream="err")
            eve.line_with("the peer refuses the key of eve", stream="err")
            publish("after")
            desk.line_with("after 1")
            assert eve.end(signal.SIGINT) == 0
            assert [line.split(maxsplit=1)[1] for line in eve.out] == ["before 1"]


def test_a_request_with_keys_gets_its_reply(keys: Keys) -> None:
    """`zroute request` connects with the key of its peer; an unknown key, and no key, get no reply."""
    endpoint = free_endpoint()
    with Child("-c", SERVER, endpoint, str(keys.secret("hub"))) as server:
        server.line_with("ready")
        done = zroute(*patient("request", f"hub@{endpoint}", "double", "21", *own(keys, "desk")))
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
        refusal = "the peer refuses the key of eve"
        ask = ("request", f"hub@{endpoint}", "double", "21", "--timeout", "{}", *own(keys, "eve"))
        done = limited(refusal, 0.5, *ask)
        assert (done.returncode, done.stdout) == (124, "")
        assert refusal in done.stderr
        done = zroute("request", f"hub@{endpoint}", "double", "21", "--timeout", "0.5s")
        assert (done.returncode, done.stdout) == (5, "")
        assert "names the peer 'hub', but the app has no key" in done.stderr
        assert server.end() == 0


def test_keys_can_come_from_the_environment(keys: Keys) -> None:
    """ZROUTE_KEYS has the same effect as --keys."""
    endpoint = free_endpoint()
    with Child("-c", SERVER, endpoint, str(keys.secret("hub"))) as server:
        server.line_with("ready")
        ask = patient("request", f"hub@{endpoint}", "double", "4")
        done = zroute(*ask, ZROUTE_KEYS=str(keys.secret("desk")))
        assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


def test_a_secret_file_that_others_read_stops_a_command(keys: Keys, tmp_path: Path) -> None:
    """Each command ends with exit code 5, and prints the command that mends the file."""
    (tmp_path / "feed.py").write_text(APP.format(pub="tcp://127.0.0.1:*"))
    secret = keys.secret("feed")
    secret.chmod(0o644)
    commands = [
        ("run", "feed"),
        ("pub", "tcp://127.0.0.1:*", "a", "1"),
        ("tail", "hub@tcp://127.0.0.1:1"),
        ("request", "hub@tcp://127.0.0.1:1", "a", "1"),
        ("proxy", "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
    ]
    for words in commands:
        done = zroute(*words, "--keys", str(secret), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (5, ""), (words, done.stderr)
        assert f"(mode 0644): run chmod 600 {secret}" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_open_address_needs_keys_or_a_word(keys: Keys, tmp_path: Path) -> None:
    """`zroute run` refuses the address, unless it has keys, --insecure or ZROUTE_INSECURE=1."""
    (tmp_path / "feed.py").write_text(APP.format(pub=f"tcp://0.0.0.0:{free_port()}"))
    done = zroute("run", "feed", "--for", "0.1s", cwd=tmp_path)
    assert done.returncode == 5
    assert "is open to the network, and without keys any program" in done.stderr
    for words, env in ((own(keys, "feed"), {}), (("--insecure",), {}), ((), {"ZROUTE_INSECURE": "1"})):
        done = zroute("run", "feed", "--for", "0.1s", *words, cwd=tmp_path, **env)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [("pub", "tcp://0.0.0.0:*", "a", "1", "--wait", "0"), ("tail", "bind:tcp://0.0.0.0:*")]
)
def test_a_command_refuses_an_open_address_too(words: tuple[str, ...]) -> None:
    """The error names the options."""
    done = zroute(*words)
    assert (done.returncode, done.stdout) == (5, "")
    assert "--insecure, ZROUTE_INSECURE=1" in done.stderr


# -- zroute check ------------------------------------------------------------------------------------------

DESK = """
from zroute import App

app = App({options}, name="desk")
app.subscribe("news.tick")(print)
"""
OWN = 'keys="desk/desk.key_secret"'
KNOWN = f'sub="hub@tcp://127.0.0.1:1", {OWN}'

FAULTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no name": (f'sub="tcp://127.0.0.1:1", {OWN}', (), "does not name its peer, but the app has keys"),
    "no keys": ('sub="hub@tcp://127.0.0.1:1"', (), "names the peer 'hub', but the app has no key"),
    "open": ('sub="bind:tcp://*:5555"', (), "tcp://*:5555 is open to the network"),
    "peers without keys": ('sub="tcp://127.0.0.1:1"', ("--peers", "desk/peers"), "has no effect without keys"),
    "unknown peer": (f'sub="hup@tcp://127.0.0.1:1", {OWN}', (), "no key of 'hup' in desk/peers (keys there: hub): did"),
    "no secret file": (KNOWN, ("--keys", "desk/no.key_secret"), "can't read the key file desk/no.key_secret"),
    "open peers": (KNOWN, ("--peers", "shared"), "other users can add keys to the directory of peers shared"),
}


OF_FLAGS = ("no secret file", "open peers")
"""The faults whose error names the flag instead of the line of the app."""


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_what_would_stop_the_start(keys: Keys, tmp_path: Path, fault: str) -> None:
    """`zroute check` and `zroute run` give the same error, with the line of the app."""
    options, words, text = FAULTS[fault]
    (tmp_path / "app.py").write_text(DESK.format(options=options))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    checked, run = (zroute(command, "app", *words, cwd=tmp_path) for command in ("check", "run"))
    assert (checked.returncode, run.returncode) == (5, 5)
    error = checked.stderr.removeprefix("zroute: ")
    assert error.startswith("app.py:4: " if fault not in OF_FLAGS else f"{words[0]}: ")
    assert text in error
    assert run.stderr.endswith(f"ERROR   {error}" if fault not in OF_FLAGS else f"zroute: {error}")
    assert "Traceback" not in checked.stderr + run.stderr


def test_an_error_of_a_key_file_names_the_flag_or_the_variable(keys: Keys, tmp_path: Path) -> None:
    """The line of the app has no fault, so it is not named."""
    (tmp_path / "app.py").write_text(DESK.format(options=KNOWN))
    for words in (("check", "app"), ("run", "app"), ("tail", "hub@tcp://127.0.0.1:1")):
        for variable in ("KEYS", "PEERS"):
            files = {"KEYS": "no.key_secret", "PEERS": str(tmp_path / "shared")}
            (tmp_path / "shared").mkdir(exist_ok=True)
            (tmp_path / "shared").chmod(0o777)
            given = {"ZROUTE_KEYS": str(keys.secret("desk"))} | {f"ZROUTE_{variable}": files[variable]}
            done = zroute(*words, cwd=tmp_path, **given)
            assert (done.returncode, done.stdout) == (5, ""), words
            assert done.stderr.startswith(f"zroute: ZROUTE_{variable}: "), done.stderr
            given.pop(f"ZROUTE_{variable}")
            done = zroute(*words, f"--{variable.lower()}", files[variable], cwd=tmp_path, **given)
            assert done.stderr.startswith(f"zroute: --{variable.lower()}: "), done.stderr


def test_a_switch_in_the_environment_names_its_values(tmp_path: Path) -> None:
    """ZROUTE_INSECURE=maybe is neither true nor false."""
    done = zroute("pub", "tcp://127.0.0.1:*", "a", "1", ZROUTE_INSECURE="maybe")
    assert done.returncode == 2
    assert "'maybe' is not a switch: write 1, true, yes or on; or 0, false, no or off" in done.stderr


def test_check_shows_the_key_and_who_may_connect(keys: Keys, tmp_path: Path) -> None:
    """A second line has the name and the fingerprint of the key, and the names of the peers."""
    (tmp_path / "app.py").write_text(DESK.format(options=KNOWN))
    key = keys.key("desk")
    done = zroute("check", "app", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        f"app encrypts as desk ({key.fingerprint}); connects only to: hub (desk/peers)"
    ]
    done = zroute("check", "app", "--sub", "bind:tcp://*:5555", "--peers", "anyone", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (
        0,
        [f"app encrypts as desk ({key.fingerprint}); accepts any key (peers='anyone')"],
    )
    assert done.stderr.startswith("app: warning: tcp://*:5555 is reachable from the network, and any program may")


def test_check_warns_of_faults_that_do_not_stop_the_start(keys: Keys, tmp_path: Path) -> None:
    """A missing directory of peers, and a file in it that authorizes no key."""
    (tmp_path / "app.py").write_text(APP.format(pub="tcp://127.0.0.1:1"))
    done = zroute("check", "app", *own(keys, "feed"), "--peers", "anyon", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("app: warning: the directory of peers anyon does not exist")
    assert "did you mean 'anyone'?" in done.stderr
    (keys.peers("feed") / "old.key").write_text("")
    (keys.peers("feed") / "own.key_secret").write_bytes(keys.secret("feed").read_bytes())
    done = zroute("check", "app", *own(keys, "feed"), cwd=tmp_path)
    assert (done.returncode, done.stdout.count("may connect: hub (")) == (0, 1)
    ignored = re.findall(r"feed/peers/(\S+) .*ignored", done.stderr)
    assert ignored == ["old.key", "own.key_secret"], done.stderr


# -- the last line -----------------------------------------------------------------------------------------


def test_the_last_line_counts_refused_connections_by_name(keys: Keys) -> None:
    """A refused request is not a refused connection; both commands name what they have refused, if anything."""
    front, back = free_endpoint(), free_endpoint()
    with Child("-m", "zroute", "proxy", front, back, *own(keys, "hub")) as proxy:
        proxy.line_with("for subscribers", stream="err")
        with (
            Child("-m", "zroute", "tail", f"hub@{back}", *own(keys, "eve")) as eve,
            Child("-m", "zroute", "tail", back) as keyless,
        ):
            eve.line_with("the peer refuses the key of eve", stream="err")
            keyless.line_with("the peer requires authentication", stream="err")
            proxy.line_with("has failed", stream="err")
        assert proxy.end() == 0
        assert re.search(r", connections_refused [1-9]\d*, handshakes_failed [1-9]\d*$", proxy.err[-1]), proxy.err[-1]
