"""Key files: what is written, what is accepted, and what is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container
from pathlib import Path

import pytest
import zmq
import zmq.auth

from zroute.errors import KeyFileError
from zroute.sockets import keys
from zroute.sockets.keys import Key, create_keys, read_public, read_secret, write_public
from zroute.sockets.peers import Changed, PeerKeys


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Return the folder with the key pair of desk."""
    create_keys("desk", tmp_path)
    return tmp_path


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_a_secret_file(tmp_path: Path, umask: int) -> None:
    """The permissions of new files do not depend on the umask."""
    before = os.umask(umask)
    try:
        secret, public = create_keys("desk", tmp_path / "keys")
    finally:
        os.umask(before)
    assert (mode(secret), mode(public), mode(tmp_path / "keys")) == (0o600, 0o644, 0o700)


def test_a_key_is_read_as_it_was_written(desk: Path) -> None:
    """Both files have the same public key, and only one has the secret, which no repr shows."""
    own, known = read_secret(desk / "desk.key_secret"), read_public(desk / "desk.key")
    assert (own.name, own.public, known.secret) == ("desk", known.public, None)
    assert own.secret is not None
    assert own.secret.decode() not in repr(own)
    assert own.fingerprint == known.fingerprint
    assert own.fingerprint.startswith("SHA256:")


def test_pyzmq_reads_our_files_and_we_read_those_of_pyzmq(desk: Path) -> None:
    """The format is that of zmq.auth, in both directions."""
    own = read_secret(desk / "desk.key_secret")
    assert zmq.auth.load_certificate(desk / "desk.key_secret") == (own.public, own.secret)
    assert zmq.auth.load_certificates(desk) == {own.public: True}
    public, secret = map(Path, zmq.auth.create_certificates(desk, "alice", {"email": "a@example"}))
    secret.chmod(0o600)
    assert read_public(public) == Key("alice", *zmq.auth.load_certificate(public)[:1])
    assert read_secret(secret).public == read_public(public).public


def test_a_file_is_never_replaced(desk: Path) -> None:
    """A second key of a name is an error, and leaves both files as they were."""
    before = {path.name: path.read_bytes() for path in desk.iterdir()}
    with pytest.raises(KeyFileError, match=r"desk\.key exists already"):
        create_keys("desk", desk)
    (desk / "desk.key").unlink()
    with pytest.raises(KeyFileError, match=r"desk\.key_secret exists already"):
        create_keys("desk", desk)
    assert not (desk / "desk.key").exists()
    assert (desk / "desk.key_secret").read_bytes() == before["desk.key_secret"]


@pytest.mark.parametrize("name", ["", ".desk", "a/b", "../x", "a b", "ä", "x" * 65, "a\n", "desk.key"])
def test_a_name_is_one_of_a_file(tmp_path: Path, name: str) -> None:
    """A name that would lead out of the folder, or that a terminal would not show, is refused."""
    with pytest.raises(KeyFileError, match="is not a name of a key"):
        create_keys(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _swapped(folder: Path) -> None:
    create_keys("other", folder)
    lines = (folder / "desk.key_secret").read_text(), (folder / "other.key").read_text()
    ours, theirs = (text.split('public-key = "')[1][:40] for text in lines)
    _write(folder, lines[0].replace(ours, theirs))


def _write(folder: Path, text: str, permissions: int = 0o600) -> None:
    (folder / "desk.key_secret").write_text(text)
    (folder / "desk.key_secret").chmod(permissions)


SECRET_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "group reads": (lambda folder: (folder / "desk.key_secret").chmod(0o640), r"mode 0640\): run chmod 600"),
    "others read": (lambda folder: (folder / "desk.key_secret").chmod(0o604), r"mode 0604\): run chmod 600"),
    "others write": (lambda folder: (folder / "desk.key_secret").chmod(0o602), r"mode 0602\): run chmod 600"),
    "empty": (lambda folder: _write(folder, ""), "contains no public-key"),
    "rubbish": (lambda folder: _write(folder, "\x00\xff" * 50), "contains no public-key"),
    "short": (lambda folder: _write(folder, 'curve\n    public-key = "abc"\n'), "public-key is not a CURVE key"),
    "not Z85": (lambda folder: _write(folder, f'curve\n    public-key = "{"~" * 40}"\n'), "is not a CURVE key"),
    "large": (lambda folder: _write(folder, "x" * 70_000), "more than 65536 bytes"),
    "swapped": (_swapped, "does not belong to the secret key"),
    "public": (lambda folder: _write(folder, (folder / "desk.key").read_text(), 0o644), "contains no secret key"),
    "missing": (lambda folder: (folder / "desk.key_secret").unlink(), "No such file"),
    "two keys": (
        lambda folder: _write(folder, (folder / "desk.key_secret").read_text() + f'public-key = "{"0" * 40}"\n'),
        "two different values of public-key",
    ),
}


@pytest.mark.parametrize("fault", SECRET_FAULTS)
def test_a_secret_file_that_can_not_be_trusted_is_refused(desk: Path, fault: str) -> None:
    """The error names the file, the fault and the remedy."""
    change, text = SECRET_FAULTS[fault]
    change(desk)
    with pytest.raises(KeyFileError, match=text) as raised:
        read_secret(desk / "desk.key_secret")
    assert raised.value.path == desk / "desk.key_secret"


def test_a_folder_and_a_pipe_are_no_key_files(desk: Path) -> None:
    """Neither blocks the program."""
    os.mkfifo(desk / "pipe.key")
    for path in (desk, desk / "pipe.key"):
        with pytest.raises(KeyFileError, match=r"is not a file|Is a directory"):
            read_public(path)


def test_a_symbolic_link_leads_to_its_file(desk: Path) -> None:
    """Secrets are often mounted as links; the permissions of the file itself count."""
    link = desk / "link.key_secret"
    link.symlink_to(desk / "desk.key_secret")
    assert read_secret(link).name == "link"
    (desk / "desk.key_secret").chmod(0o644)
    with pytest.raises(KeyFileError, match="mode 0644"):
        read_secret(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_file_of_another_user_is_refused(desk: Path) -> None:
    """That user could replace the key."""
    os.chown(desk / "desk.key_secret", 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to the user 12345"):
        read_secret(desk / "desk.key_secret")


def test_a_secret_key_is_no_public_file(desk: Path) -> None:
    """The file that should have stayed with its owner is refused, and the error says what to do."""
    with pytest.raises(KeyFileError, match="let the owner create a new key"):
        read_public(desk / "desk.key_secret")


# -- a directory of peers ----------------------------------------------------------------------------------


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """Return a directory with the keys of alice and bob."""
    for name in ("alice", "bob"):
        create_keys(name, tmp_path / "own")
        write_public(tmp_path / "peers" / f"{name}.key", read_public(tmp_path / "own" / f"{name}.key"))
    return tmp_path / "peers"


def names(changed: Changed) -> tuple[list[str], list[str]]:
    """Return the sorted names of the keys that came, and of those that went."""
    return sorted(key.name for key in changed.came), sorted(key.name for key in changed.went)


def test_each_file_authorizes_one_key(peers: Path) -> None:
    """A key is known by its bytes, and by the name of its file."""
    known = PeerKeys(peers)
    alice = read_public(peers / "alice.key")
    assert (len(known), known.name_of(alice.raw), known.name_of(b"x" * 32)) == (2, "alice", None)
    assert known.key_of("alice") == alice
    with pytest.raises(KeyFileError, match=r"no key of 'eve' .*keys there: alice, bob.*zroute keys authorize eve\.key"):
        known.key_of("eve")


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a\nb", "a\udcff", "x" * 65])
def test_a_file_whose_name_is_no_name_of_a_key_authorizes_no_key(peers: Path, name: str) -> None:
    """The name would be that of the peer, which handlers may compare."""
    copied = peers / f"{name}.key"
    (peers / "alice.key").rename(copied)
    faults: list[str] = []
    known = PeerKeys(peers, faults.append)
    assert [key.name for key in known] == ["bob"]
    assert "is not a name of a key" in faults[0]


def test_changes_are_seen_at_the_next_look(peers: Path) -> None:
    """Files that were added, removed, renamed and replaced."""
    known = PeerKeys(peers)
    assert names(known.look()) == ([], [])
    (peers / "bob.key").rename(peers / "robert.key")
    assert names(known.look()) == (["robert"], ["bob"])
    (peers / "robert.key").unlink()
    assert names(known.look()) == ([], ["robert"])
    create_keys("alice", peers.parent / "new")
    os.replace(peers.parent / "new" / "alice.key", peers / "alice.key")
    assert names(known.look()) == (["alice"], ["alice"])


def test_a_broken_file_authorizes_no_key_and_is_reported_once(peers: Path) -> None:
    """The other keys stay."""
    faults: list[str] = []
    known = PeerKeys(peers, faults.append)
    (peers / "bob.key").write_text("rubbish")
    assert names(known.look()) == ([], ["bob"])
    known.look()
    assert len(faults) == 1
    assert "bob.key contains no public-key" in faults[0]
    (peers / "bob.key").symlink_to(peers / "nowhere") if (peers / "bob.key").unlink() is None else None
    known.look()
    assert "No such file" in faults[1]
    assert [key.name for key in known] == ["alice"]


def test_the_same_key_twice_is_reported(peers: Path) -> None:
    """The first name counts, since a key has one name."""
    faults: list[str] = []
    (peers / "carol.key").write_bytes((peers / "alice.key").read_bytes())
    known = PeerKeys(peers, faults.append)
    assert [key.name for key in known] == ["alice", "bob"]
    assert "carol.key contains the same key as alice.key" in faults[0]


def test_a_directory_that_is_away_for_a_moment_revokes_no_key(peers: Path) -> None:
    """It may be replaced, or mounted again."""
    faults: list[str] = []
    known = PeerKeys(peers, faults.append)
    peers.rename(peers.with_name("away"))
    assert names(known.look()) == ([], [])
    assert (len(known), len(faults)) == (2, 1)
    peers.with_name("away").rename(peers)
    (peers / "bob.key").unlink()
    assert names(known.look()) == ([], ["bob"])


def test_a_missing_directory_authorizes_no_key(tmp_path: Path) -> None:
    """It may be created later."""
    known = PeerKeys(tmp_path / "peers")
    assert len(known) == 0
    create_keys("alice", tmp_path / "peers")
    assert names(known.look()) == (["alice"], [])


def test_a_file_that_becomes_readable_authorizes_its_key(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After chmod the file is read again, although its content has not changed."""
    readable = False

    def read(path: Path, writers: Container[int]) -> Key:  # root can read all files, so the mode alone would not fail
        if path.name == "bob.key" and not readable:
            raise KeyFileError(f"can't read the key file {path}: Permission denied", path=path)
        return read_public(path, writers)

    monkeypatch.setattr("zroute.sockets.peers.read_public", read)
    (peers / "bob.key").chmod(0o600)
    known = PeerKeys(peers)
    assert [key.name for key in known] == ["alice"]
    readable = True
    (peers / "bob.key").chmod(0o644)
    assert names(known.look()) == (["bob"], [])


# -- who may write to the directory ------------------------------------------------------------------------


@pytest.mark.parametrize("permissions", [0o775, 0o757, 0o777, 0o1777])
def test_a_directory_to_which_others_write_is_refused(peers: Path, permissions: int) -> None:
    """Any user could let a key connect; the error has the command that mends it, and the command mends it."""
    peers.chmod(permissions)
    with pytest.raises(KeyFileError, match=rf"peers: its mode is {permissions:04o}: run chmod go-w {peers}$") as raised:
        PeerKeys(peers)
    assert raised.value.path == peers
    peers.chmod(permissions & ~0o022)
    assert len(PeerKeys(peers)) == 2


@pytest.mark.parametrize("permissions", [0o755, 0o700, 0o555, 0o1755, 0o2755])
def test_a_directory_to_which_only_its_owner_writes_is_accepted(peers: Path, permissions: int) -> None:
    """Others may read it, because public keys are no secret."""
    peers.chmod(permissions)
    assert len(PeerKeys(peers)) == 2


@pytest.mark.parametrize("permissions", [0o664, 0o646, 0o666])
def test_a_key_file_to_which_others_write_authorizes_no_key(peers: Path, permissions: int) -> None:
    """The other keys stay, and the key is authorized again after chmod."""
    (peers / "bob.key").chmod(permissions)
    faults: list[str] = []
    known = PeerKeys(peers, faults.append)
    assert [key.name for key in known] == ["alice"]
    assert f"because its mode is {permissions:04o}: run chmod go-w {peers / 'bob.key'}" in faults[0]
    with pytest.raises(KeyFileError, match="other users can replace the key in"):
        known.key_of("bob")
    (peers / "bob.key").chmod(0o644)
    assert names(known.look()) == (["bob"], [])


def test_a_read_only_file_system_protects_the_directory(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes mounts secrets with mode 1777, in a file system to which no program can write."""
    real = os.statvfs(peers)
    flags = os.ST_RDONLY

    class Mounted:
        @property
        def f_flag(self) -> int:
            return real.f_flag | flags

    monkeypatch.setattr(keys.os, "statvfs", lambda path: Mounted())
    peers.chmod(0o1777)
    (peers / "bob.key").chmod(0o666)
    assert len(PeerKeys(peers)) == 2
    flags = 0
    with pytest.raises(KeyFileError, match="its mode is 1777"):
        PeerKeys(peers)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_or_file_of_another_user_is_refused(peers: Path) -> None:
    """That user could change it at any time; an administrator's command accepts the owner of the directory."""
    (peers / "bob.key").chmod(0o644)
    os.chown(peers / "bob.key", 12345, 12345)
    faults: list[str] = []
    assert [key.name for key in PeerKeys(peers, faults.append)] == ["alice"]
    assert f"it belongs to the user 12345: run chown 0 {peers / 'bob.key'}" in faults[0]
    os.chown(peers, 12345, 12345)
    with pytest.raises(KeyFileError, match=rf"peers: it belongs to the user 12345: run chown 0 {peers}$"):
        PeerKeys(peers)
    assert len(PeerKeys(peers, administers=True)) == 2
    peers.chmod(0o777)
    with pytest.raises(KeyFileError, match="its mode is 0777"):
        PeerKeys(peers, administers=True)


def test_keys_are_only_removed_while_others_can_write_to_the_directory(peers: Path) -> None:
    """A running app keeps its peers, revokes keys, and adds none until the permissions are mended."""
    faults: list[str] = []
    known = PeerKeys(peers, faults.append)
    peers.chmod(0o777)
    create_keys("mallory", peers)
    (peers / "mallory.key_secret").unlink()
    assert names(known.look()) == ([], [])
    assert [text.partition(": its mode")[2] for text in faults] == [
        f" is 0777: run chmod go-w {peers}; until then, zroute adds no key"
    ]
    with pytest.raises(KeyFileError, match="other users can add keys"):
        known.key_of("mallory")
    os.replace(peers / "mallory.key", peers / "alice.key")  # the key of another program under a known name
    (peers / "bob.key").unlink()
    assert names(known.look()) == ([], ["alice", "bob"])
    peers.chmod(0o755)
    assert names(known.look()) == (["alice"], [])
    assert len(faults) == 1


# -- what a mistake in a name suggests ---------------------------------------------------------------------


def test_a_similar_name_is_suggested(peers: Path) -> None:
    """The error still says how to add a key, because the name may be right."""
    with pytest.raises(KeyFileError, match=r"keys there: alice, bob\): did you mean 'alice'\? Otherwise copy the file"):
        PeerKeys(peers).key_of("alcie")
    with pytest.raises(KeyFileError, match=r"keys there: alice, bob\): copy the file"):
        PeerKeys(peers).key_of("feed")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("anyon", "connect: did you mean 'anyone'? Otherwise run zroute keys authorize FILE --peers anyon for the key"),
        ("Anyone", "connect: did you mean 'anyone'? Otherwise run"),
        ("keys/peers", "connect: run zroute keys authorize FILE --peers keys/peers for the key of each peer"),
    ],
)
def test_a_directory_that_does_not_exist_is_reported_with_a_remedy(
    name: str, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The misspelt word "anyone" is taken for a directory, so it is suggested there."""
    monkeypatch.chdir(tmp_path)
    faults: list[str] = []
    PeerKeys(Path(name), faults.append)
    assert faults[0].startswith(f"the directory of peers {name} does not exist, so no program may {ends}")


def test_the_keys_of_a_directory_that_is_away_are_said_to_remain(peers: Path) -> None:
    """The line would otherwise look as if all keys were revoked."""
    faults: list[str] = []
    known = PeerKeys(peers, faults.append)
    peers.rename(peers.with_name("away"))
    known.look()
    assert faults == [
        f"can't read the directory of peers {peers}: No such file or directory; the 2 keys that were there remain "
        "authorized"
    ]
