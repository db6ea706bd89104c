"""Key files of CURVE, the encryption and authentication of ZeroMQ (RFC 26).

A key pair has two files: ``NAME.key_secret`` stays with its owner, and ``NAME.key`` is given to the peers. The files
have the format of pyzmq's certificates (``zmq.auth``), so pyzmq reads these files, and zroute reads those of pyzmq.

The name of a key is the name of its file without the suffix. Names inside a file are ignored: the owner of a key writes
the file, but the person who authorizes the key must choose the name.

pyzmq creates secret files that all users can read, and checks no permissions. This module refuses such a file, as ssh
does.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from base64 import b64encode
from collections.abc import Container
from pathlib import Path

import attrs
import zmq
from zmq.utils import z85

from zroute.errors import KeyFileError

__all__ = [
    "PUBLIC",
    "SECRET",
    "Key",
    "check_name",
    "create_keys",
    "read_public",
    "read_secret",
    "writable_by_others",
    "write_public",
]

PUBLIC = ".key"
"""The suffix of a file with a public key."""

SECRET = ".key_secret"
"""The suffix of a file with a secret and a public key."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELD = re.compile(r"""\s*(public-key|secret-key)\s*=\s*["']?([^"'\s]*)["']?\s*""")
_MAX_FILE = 1 << 16
"""The size in bytes of the largest key file. pyzmq writes less than 1 KiB, but metadata can be added."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITERS = stat.S_IWGRP | stat.S_IWOTH


@attrs.frozen
class Key:
    """A CURVE key.

    Attributes:
        name: The name of the file, without its suffix.
        public: The public key, as 40 characters of Z85.
        secret: The secret key, as 40 characters of Z85, or None if only the public key is known.
    """

    name: str
    public: bytes
    secret: bytes | None = attrs.field(default=None, repr=False)

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the public key, as ZAP passes them to a handler."""
        return bytes(z85.decode(self.public))

    @property
    def fingerprint(self) -> str:
        """A short text by which people can compare public keys, in the form of ssh."""
        return "SHA256:" + b64encode(hashlib.sha256(self.raw).digest()).decode().rstrip("=")


def check_name(name: str) -> str:
    """Return ``name`` if it is a valid name of a key.

    Raises:
        KeyFileError: The name contains a character that is not allowed, or is too long.
    """
    if not _NAME.fullmatch(name) or name.endswith((PUBLIC, SECRET)):
        raise KeyFileError(
            f"{name!r} is not a name of a key: expected 1 to 64 letters, digits, '.', '_' and '-', of which the first "
            f"is a letter or a digit, without {PUBLIC} at the end"
        )
    return name


def read_secret(path: Path) -> Key:
    """Return the key pair in a secret file.

    Raises:
        KeyFileError: The file can't be read, other users can read it, it belongs to another user, or it does not
            contain a key pair.
    """
    fields = _fields(path, secret=True)
    if "secret-key" not in fields:
        raise KeyFileError(f"{path} contains no secret key: give the file that ends with {SECRET}", path=path)
    key = Key(_name(path), fields["public-key"], fields["secret-key"])
    if zmq.curve_public(fields["secret-key"]) != key.public:
        raise KeyFileError(f"{path}: the public key does not belong to the secret key: restore the file", path=path)
    return key


def read_public(path: Path, writers: Container[int] | None = None) -> Key:
    """Return the public key in a file.

    ``writers`` contains the ids of the users that may be able to write to the file. None allows all users.

    Raises:
        KeyFileError: The file can't be read, contains no public key, or contains a secret key; or users that are not
            among the ``writers`` can write to it.
    """
    fields = _fields(path, secret=False, writers=writers)
    if "secret-key" in fields:
        raise KeyFileError(
            f"{path} contains a secret key, which only its owner may have: remove the file, ask the owner for the "
            f"file that ends with {PUBLIC}, and let the owner create a new key if others could read this one",
            path=path,
        )
    return Key(_name(path), fields["public-key"])


def create_keys(name: str, folder: Path) -> tuple[Path, Path]:
    """Create a key pair; return the paths of the secret and the public file.

    The folder is created if it does not exist, with permissions for its owner only.

    Raises:
        KeyFileError: The name is invalid, a file exists already, or a file can't be written.
    """
    secret, public = folder / (check_name(name) + SECRET), folder / (name + PUBLIC)
    if public.exists():
        raise _exists(public)
    public_key, secret_key = zmq.curve_keypair()
    # The secret first: if it can't be written, no public file is left that belongs to no key.
    _write(secret, Key(name, public_key, secret_key), 0o600, folder_mode=0o700)
    try:
        _write(public, Key(name, public_key), 0o644)
    except BaseException:
        secret.unlink()
        raise
    return secret, public


def write_public(path: Path, key: Key, *, replace: bool = False) -> None:
    """Write the public key of ``key`` into a file.

    With ``replace``, the new file replaces one that exists, at once: an app that reads the directory in the meantime
    finds the old key or the new one.

    Raises:
        KeyFileError: The file exists already and ``replace`` is False, or the file can't be written.
    """
    public = Key(key.name, key.public)
    if not replace:
        _write(path, public, 0o644)
        return
    new = path.with_name(f"{path.name}.{os.getpid()}.new")  # the suffix is not that of a key file
    _write(new, public, 0o644)
    try:
        os.replace(new, path)
    except OSError as error:
        new.unlink()
        raise KeyFileError(f"can't replace {path}: {error.strerror}", path=path) from None


def writable_by_others(path: Path, state: os.stat_result, writers: Container[int]) -> str | None:
    """Return why users other than the ``writers`` can write to a file or directory.

    The result is None if they can't. ``state`` is the result of stat(2). The text includes the command that mends the
    permissions.
    """
    if state.st_uid not in writers:
        return f"it belongs to the user {state.st_uid}: run chown {os.geteuid()} {path}"
    # Kubernetes mounts secrets in a directory with mode 1777, but read-only.
    if state.st_mode & _WRITERS and not os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"its mode is {stat.S_IMODE(state.st_mode):04o}: run chmod go-w {path}"
    return None


def _fields(path: Path, *, secret: bool, writers: Container[int] | None = None) -> dict[str, bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would block
        with os.fdopen(fd, "rb") as file:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode):
                raise KeyFileError(f"{path} is not a file", path=path)
            if writers is not None and (why := writable_by_others(path, state, writers)) is not None:
                raise KeyFileError(f"other users can replace the key in {path}, because {why}", path=path)
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"can't read the key file {path}: {error.strerror}", path=path) from None
    if len(content) > _MAX_FILE:
        raise KeyFileError(f"{path} has more than {_MAX_FILE} bytes: expected a key file", path=path)
    fields = _parsed(path, content)
    if secret and "secret-key" in fields:  # otherwise the file is public, and its permissions are not the fault
        _check_owner(path, state)
    return fields


def _check_owner(path: Path, state: os.stat_result) -> None:
    """Raise KeyFileError if other users can read or replace a secret file."""
    if state.st_mode & _OTHERS:
        raise KeyFileError(
            f"other users can read or write {path} (mode {stat.S_IMODE(state.st_mode):04o}): run chmod 600 {path}; "
            "create a new key if another user may have read this one",
            path=path,
        )
    if state.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(
            f"{path} belongs to the user {state.st_uid}, but this process runs as {os.geteuid()}: run "
            f"chown {os.geteuid()} {path}",
            path=path,
        )


def _parsed(path: Path, content: bytes) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        match = _FIELD.fullmatch(line)
        if match is None:
            continue
        name, text = match[1], match[2].encode()
        if not _is_key(text):
            raise KeyFileError(f"{path}: {name} is not a CURVE key: expected 40 characters of Z85", path=path)
        if fields.setdefault(name, text) != text:
            raise KeyFileError(f"{path} contains two different values of {name}: expected one key", path=path)
    if "public-key" not in fields:
        raise KeyFileError(f"{path} contains no public-key: expected a key file of zroute or pyzmq", path=path)
    return fields


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except Exception:  # struct.error, KeyError, … by version
        return False


def _name(path: Path) -> str:
    return path.name.removesuffix(SECRET).removesuffix(PUBLIC)


def _write(path: Path, key: Key, mode: int, *, folder_mode: int = 0o755) -> None:
    kind, use = ("SECRET", "Do not copy this file.") if key.secret else ("public", "Give this file to peers.")
    secret = f'    secret-key = "{key.secret.decode()}"\n' if key.secret else ""
    text = (
        f'# zroute: the {kind} key of {key.name}. {use}\nmetadata\ncurve\n    public-key = "{key.public.decode()}"\n'
        + secret
    )
    try:
        path.parent.mkdir(mode=folder_mode, parents=True, exist_ok=True)
        # O_EXCL also refuses a symbolic link, through which another user could choose the file that is written.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise KeyFileError(f"can't write {path}: {error.strerror}", path=path) from None
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, mode)  # the umask may have removed permissions of a public file
        file.write(text)


def _exists(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} exists already: choose another name, or remove the file first", path=path)
