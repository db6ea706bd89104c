"""``zroute keys``: keys are created, shown, authorized and revoked from the shell."""

from __future__ import annotations

from pathlib import Path

from tests.commands import zroute


def test_a_key_is_created_authorized_listed_and_revoked(tmp_path: Path) -> None:
    """The way of one key, as the how-to shows it."""
    done = zroute("keys", "new", "desk", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    wrote = [line.partition(" (")[0] for line in done.stdout.splitlines()]
    assert wrote[:2] == ["wrote keys/desk.key_secret", "wrote keys/desk.key"]
    fingerprint = done.stdout.rpartition(" ")[2].strip()
    for file, kind in (("desk.key_secret", "secret"), ("desk.key", "public")):
        shown = zroute("keys", "show", f"keys/{file}", cwd=tmp_path).stdout.split()
        assert (shown[:2], shown[3]) == (["desk", kind], fingerprint)
    done = zroute("keys", "authorize", "keys/desk.key", "--name", "risk", cwd=tmp_path)
    assert done.stdout == f"authorized risk ({fingerprint}): wrote keys/peers/risk.key\n"
    assert zroute("keys", "list", cwd=tmp_path).stdout.split()[::2] == ["risk", fingerprint]
    assert zroute("keys", "revoke", "risk", cwd=tmp_path).stdout == "revoked risk: removed keys/peers/risk.key\n"
    done = zroute("keys", "list", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no keys in keys/peers: no peer may connect\n")


def test_a_key_may_be_authorized_again(tmp_path: Path) -> None:
    """A script that sets a machine up can run twice."""
    zroute("keys", "new", "desk", cwd=tmp_path)
    first, again = (zroute("keys", "authorize", "keys/desk.key", cwd=tmp_path) for _ in range(2))
    assert (first.returncode, again.returncode, again.stderr) == (0, 0, "")
    assert again.stdout.startswith("desk is authorized already (SHA256:")


def test_a_key_is_replaced_only_if_the_user_says_so(tmp_path: Path) -> None:
    """The error has the flag, and the flag replaces the file without another one beside it."""
    for folder in ("old", "new"):
        zroute("keys", "new", "desk", "--dir", folder, cwd=tmp_path)
    zroute("keys", "authorize", "old/desk.key", cwd=tmp_path)
    done = zroute("keys", "authorize", "new/desk.key", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "")
    assert "keys/peers/desk.key exists already, with another key. To replace the key of desk, add --repl" in done.stderr
    done = zroute("keys", "authorize", "new/desk.key", "--replace", cwd=tmp_path)
    assert (done.returncode, done.stdout.split(" (")[0]) == (0, "replaced the key of desk")
    shown = [zroute("keys", "show", path, cwd=tmp_path).stdout for path in ("new/desk.key", "keys/peers/desk.key")]
    assert shown[0] == shown[1]
    assert [path.name for path in (tmp_path / "keys" / "peers").iterdir()] == ["desk.key"]
    assert oct((tmp_path / "keys" / "peers" / "desk.key").stat().st_mode)[-3:] == "644"


def test_no_secret_key_is_printed(tmp_path: Path) -> None:
    """The text of the secret key is only in its file."""
    done = zroute("keys", "new", "desk", cwd=tmp_path)
    secret = (tmp_path / "keys" / "desk.key_secret").read_text().partition('secret-key = "')[2][:40]
    shown = zroute("keys", "show", "keys/desk.key_secret", cwd=tmp_path)
    assert len(secret) == 40
    for each in (done, shown):
        assert secret not in each.stdout + each.stderr


def test_what_a_command_can_not_do_is_said_in_one_line(tmp_path: Path) -> None:
    """Each error has the exit code 5, one line, and changes no file."""
    zroute("keys", "new", "desk", cwd=tmp_path)
    zroute("keys", "authorize", "keys/desk.key", cwd=tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    cases = {
        ("new", "desk"): "keys/desk.key exists already",
        ("new", "a/b"): "'a/b' is not a name of a key",
        ("new", "eve.key"): "'eve.key' is not a name of a key",
        ("show", "keys/eve.key"): "can't read the key file keys/eve.key: No such file",
        (
            "authorize",
            "keys/desk.key",
            "--name",
            "other",
        ): "this key is already authorized, as desk (keys/peers/desk.key)",
        ("authorize", "keys/desk.key_secret"): "keys/desk.key_secret contains a secret key",
        ("revoke", "eve"): "no key of 'eve' in keys/peers (keys there: desk)",
        ("revoke", "desk-2"): "no key of 'desk-2' in keys/peers (keys there: desk): nothing was removed, or the key "
        "was revoked before\n",
        ("revoke", "../desk"): "'../desk' is not a name of a key",
    }
    for words, text in cases.items():
        done = zroute("keys", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1), words
        assert done.stderr.startswith(f"zroute: {text}"), done.stderr
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_broken_file_among_the_peers_is_listed_as_a_fault(tmp_path: Path) -> None:
    """The other keys are listed, and the exit code is 1."""
    zroute("keys", "new", "desk", cwd=tmp_path)
    zroute("keys", "authorize", "keys/desk.key", cwd=tmp_path)
    (tmp_path / "keys" / "peers" / "old.key").write_text("")
    done = zroute("keys", "list", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[0]) == (1, "desk")
    assert "keys/peers/old.key contains no public-key" in done.stderr
