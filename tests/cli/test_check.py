"""`zroute check`, `zroute info` and `zroute completion`: answers without a socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_run import module, zroute
from tests.support import ROOT

GOOD = """
from zroute import App
print("imported")
app = App(sub="tcp://127.0.0.1:1", pub="tcp://127.0.0.1:2")

@app.publisher("b", int)
@app.subscribe("a")
def on_a(message: int) -> int: return message
"""


def test_an_app_that_would_start_is_fine(tmp_path: Path) -> None:
    """Exit 0 and one line an app; what the module prints does not mix with it, and nothing is opened."""
    done = zroute("check", "quotes", "quotes:app", cwd=module(tmp_path, GOOD))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{target} is fine: routes 1, publications 1, timers and generators 0, resources 0"
        for target in ("quotes", "quotes:app")
    ]


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("import nothing_of_that_name", 3, "can't be loaded"),
        ("app = 1", 3, "not a zroute App"),
        ("import sys\ndef create_app(): sys.exit('no configuration')", 3, "no configuration"),
        (GOOD + "@app.subscribe('a.')\ndef two(x: int): ...\n", 4, "quotes.py:"),
        (GOOD + "@app.subscribe('c')\ndef two(x: int, y: int): ...\n", 4, "parameters 'x' and 'y'"),
        (
            GOOD
            + "from typing import Iterator\nclass A: ...\n@app.resource\ndef a(b: 'App2') -> Iterator[A]: yield A()\n",
            4,
            "App2",
        ),
        (
            "from zroute import App\napp = App(pub='tcp://127.0.0.1:2')\n@app.subscribe('a')\ndef a(): ...\n",
            5,
            "App(sub=",
        ),
    ],
)
def test_a_fault_is_said_with_the_exit_code_of_its_kind(tmp_path: Path, source: str, code: int, says: str) -> None:
    """3 can't be loaded, 4 invalid, 5 endpoints: what zroute run would end with."""
    done = zroute("check", "quotes", cwd=module(tmp_path, source))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def test_endpoints_that_zroute_run_would_be_given_are_given_here_too(tmp_path: Path) -> None:
    """An app that has its endpoints from the environment is fine where the environment has them."""
    source = "from zroute import App\napp = App(loop=False)\n@app.publisher('b')\n@app.subscribe('a')\ndef a(): ...\n"
    folder = module(tmp_path, source)
    done = zroute("check", "quotes", cwd=folder)
    assert done.returncode == 5
    assert "`zroute run` also takes --sub and --pub (in the environment ZROUTE_SUB and ZROUTE_PUB)" in done.stderr
    done = zroute("check", "quotes", cwd=folder, ZROUTE_SUB="tcp://127.0.0.1:1")
    assert done.returncode == 5
    assert "publisher('b') at quotes.py:3 has no endpoint" in done.stderr
    done = zroute("check", "quotes", "--pub", "tcp://127.0.0.1:2", cwd=folder, ZROUTE_SUB="tcp://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    done = zroute("check", "quotes", "quotes:app", cwd=folder, ZROUTE_SUB="tcp://127.0.0.1:1")
    assert done.returncode == 2
    assert "--sub and --pub go with one app" in done.stderr


def test_all_apps_are_checked_and_the_first_fault_counts(tmp_path: Path) -> None:
    """A CI job sees every fault in one run."""
    module(tmp_path, "app = 1", "third")
    module(tmp_path, "from zroute import App\napp = App()\n@app.subscribe('a')\ndef a(x, y): ...\n", "second")
    done = zroute("check", "quotes", "second", "third", cwd=module(tmp_path, GOOD))
    assert done.returncode == 4
    assert "quotes is fine" in done.stdout
    assert "second.py:" in done.stderr
    assert "third:app is a int" in done.stderr


def test_ctrl_c_ends_the_whole_check(tmp_path: Path) -> None:
    """Interrupted in the first app, it does not go on to the next."""
    module(tmp_path, "raise KeyboardInterrupt", "first")
    done = zroute("check", "first", "quotes", cwd=module(tmp_path, GOOD))
    assert (done.returncode, done.stdout) == (130, "")


def test_info_tells_what_a_report_needs() -> None:
    """Versions of everything it stands on, for people and for programs."""
    done = zroute("info")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[:5] == ["zroute", "Python", "executable", "platform", "libzmq"]
    rows = json.loads(zroute("info", "--json").stdout)
    assert set(rows) == set(names)
    assert rows["Python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert {"select", "asyncio"} <= set(rows["reactors"])
    assert rows["default_reactor"] in rows["reactors"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_for_completion_are_printed(shell: str) -> None:
    """One for each shell, that calls zroute for the answers."""
    done = zroute("completion", shell)
    assert done.returncode == 0
    assert f"_ZROUTE_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    """In a real bash: `zroute re<TAB>`, `zroute run --re<TAB>`, `zroute run --reactor a<TAB>`."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    (tmp_path / "zroute").write_text(f'#!/bin/sh\nexec {sys.executable} -m zroute "$@"\n')
    (tmp_path / "zroute").chmod(0o755)
    script = """
eval "$(zroute completion bash)"
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _zroute_completion zroute; echo "${COMPREPLY[@]}"; }
try zroute re
try zroute run --re
try zroute run --reactor a
try zroute completion ""
"""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["record replay", "--reactor --reload", "asyncio", "bash zsh fish"], done.stderr


@pytest.mark.parametrize(
    ("typed", "kind"), [("zroute run qu", "file"), ("zroute check a qu", "file"), ("zroute run --app-dir qu", "dir")]
)
def test_names_of_files_are_left_to_the_shell(typed: str, kind: str) -> None:
    """`zroute run exa<TAB>` completes the path of a file, and --app-dir that of a folder."""
    program = "from zroute.cli import main; main(prog_name='zroute')"
    variables = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_ZROUTE_COMPLETE": "bash_complete"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"{kind},qu", done.stderr
