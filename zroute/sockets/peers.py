"""A directory of public keys: the peers that an app knows.

Each file ``NAME.key`` authorizes one key. The directory is read again while the app runs, so files can be added and
removed. Three rules make changes safe:

- A file that can't be read, or that is not a public key, authorizes no peer. The directory reports the fault once.
- A directory that can't be read at all changes nothing: while it is replaced or mounted again, it revokes no key.
- A directory or file to which other users can write authorizes no peer, as with StrictModes of ssh: such a user could
  let any key connect. The folders above the directory are not checked: another user who can write to them could only
  put another directory of ours in its place. While other users can write to the directory, keys can still be removed
  from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import attrs

from zroute.errors import KeyFileError
from zroute.logs import did_you_mean
from zroute.sockets.keys import PUBLIC, SECRET, Key, check_name, read_public, writable_by_others

__all__ = ["Changed", "PeerKeys"]


@attrs.frozen
class Changed:
    """The keys that were added and removed between two readings of a directory."""

    came: tuple[Key, ...] = ()
    went: tuple[Key, ...] = ()


_NOTHING = Changed()


class PeerKeys:
    """The public keys in a directory.

    Args:
        path: The directory. It may be missing; it then authorizes no peer.
        fault: Called with a text for each file that can't be used, and again when the file has changed.
        optional: True if a missing directory is no fault.
        administers: True if the owner of the directory may write to it, because an administrator runs this process for
            that user.

    Raises:
        KeyFileError: Other users can write to the directory.
    """

    def __init__(
        self,
        path: Path,
        fault: Callable[[str], object] = lambda text: None,
        *,
        optional: bool = False,
        administers: bool = False,
    ) -> None:
        self.path = path
        self._fault = fault
        self._optional = optional
        self._administers = administers
        self._writers = {os.geteuid(), 0}
        self._keys: dict[bytes, Key] = {}
        self._seen: object = None
        self._faults: set[str] = set()
        self._refuse_writers()
        self.look()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(sorted(self._keys.values(), key=lambda key: key.name))

    def look(self) -> Changed:
        """Read the directory if it has changed. With ten files, this takes about 50 µs."""
        try:
            fault = self._fault_of_directory()
            with os.scandir(self.path) as entries:
                files = sorted(_state(entry) for entry in entries if entry.name.endswith((PUBLIC, SECRET)))
        except OSError as error:
            if not (self._optional and isinstance(error, FileNotFoundError)):
                self._report({self._unreadable(error)})
            return _NOTHING
        if (fault, files) == self._seen:
            return _NOTHING
        # The names are sorted, so if two files contain one key, the same file wins at each look.
        before, self._seen = self._keys, (fault, files)
        self._keys, faults = {}, set()
        for name, *_ in files:
            if name.endswith(SECRET):
                faults.add(
                    f"{self.path / name} is a secret file in the directory of peers, so this file is ignored: move it "
                    f"out of the directory, and if it belongs to another program, create a new key there"
                )
                continue
            try:
                check_name(name.removesuffix(PUBLIC))
                key = read_public(self.path / name, self._writers)
            except KeyFileError as error:
                faults.add(f"{error} (this file is ignored)")
                continue
            same = self._keys.setdefault(key.raw, key)
            if same is not key:
                faults.add(f"{self.path / name} contains the same key as {same.name}{PUBLIC}: remove one of the files")
        if fault is not None:
            self._keys = {raw: key for raw, key in self._keys.items() if before.get(raw) == key}
            faults.add(f"{fault}; until then, zroute adds no key")
        self._report(faults)
        return Changed(
            tuple(key for raw, key in self._keys.items() if before.get(raw) != key),
            tuple(key for raw, key in before.items() if self._keys.get(raw) != key),
        )

    def name_of(self, public: bytes) -> str | None:
        """Return the name of a public key of 32 bytes, or None if it is not authorized."""
        key = self._keys.get(public)
        return None if key is None else key.name

    def key_of(self, name: str) -> Key:
        """Return the key with a name.

        Raises:
            KeyFileError: The directory contains no such key.
        """
        found = next((key for key in self._keys.values() if key.name == name), None)
        if found is not None:
            return found
        self._refuse_writers()
        path = self.path / (name + PUBLIC)
        if path.exists():
            return read_public(path, self._writers)  # raises the error of the file, or is newer than the last look
        near = self.nearest(name)
        raise KeyFileError(
            f"no key of {name!r} in {self.path} ({self.names}){f'{near} Otherwise' if near else ':'} copy the file "
            f"{name}{PUBLIC} of that program into this directory, with zroute keys authorize {name}{PUBLIC} --peers "
            f"{self.path}",
            path=path,
        )

    @property
    def names(self) -> str:
        """The names of the keys, for the text of an error."""
        return f"keys there: {', '.join(key.name for key in self) or 'none'}"

    def nearest(self, name: str) -> str:
        """Return the question whether a similar name was meant, or an empty text."""
        return did_you_mean(name, [key.name for key in self])

    def _refuse_writers(self) -> None:
        """Raise KeyFileError if other users can write to the directory."""
        with suppress(OSError):  # `look` reports a directory that can't be read
            fault = self._fault_of_directory()
            if fault is not None:
                raise KeyFileError(fault, path=self.path)

    def _fault_of_directory(self) -> str | None:
        """Return why other users can write to the directory, or None if they can't."""
        state = os.stat(self.path)
        if self._administers:
            self._writers.add(state.st_uid)
        why = writable_by_others(self.path, state, self._writers)
        return None if why is None else f"other users can add keys to the directory of peers {self.path}: {why}"

    def _unreadable(self, error: OSError) -> str:
        if self._seen is not None:
            kept = f"; the {len(self)} keys that were there remain authorized" if self._keys else ""
            return f"can't read the directory of peers {self.path}: {error.strerror}{kept}"
        if not isinstance(error, FileNotFoundError):
            return (
                f"can't read the directory of peers {self.path}: {error.strerror}; until then, no program may connect"
            )
        near = did_you_mean(str(self.path).lower(), ["anyone"])
        return (
            f"the directory of peers {self.path} does not exist, so no program may "
            f"connect{f'{near} Otherwise' if near else ':'} run zroute keys authorize FILE --peers {self.path} for the "
            "key of each peer"
        )

    def _report(self, faults: set[str]) -> None:
        for text in sorted(faults - self._faults):
            self._fault(text)
        self._faults = faults


def _state(entry: os.DirEntry[str]) -> tuple[str, int, int, int, int]:
    try:
        state = entry.stat()
    except OSError:  # a broken symbolic link, or a file that was just removed
        return entry.name, 0, 0, 0, 0
    return entry.name, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size  # chmod changes only ctime
