"""A directory of public keys: the peers that an app knows.

Each file ``NAME.key`` authorizes one key. The directory is read again while the app runs, so files can be added and
removed. Two rules make changes safe:

- A file that can't be read, or that is not a public key, authorizes no peer. The directory reports the fault once.
- A directory that can't be read at all changes nothing: while it is replaced or mounted again, it revokes no key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from zroute.errors import KeyFileError
from zroute.sockets.keys import PUBLIC, Key, read_public

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
    """

    def __init__(
        self, path: Path, fault: Callable[[str], object] = lambda text: None, *, optional: bool = False
    ) -> None:
        self.path = path
        self._fault = fault
        self._optional = optional
        self._keys: dict[bytes, Key] = {}
        self._seen: object = None
        self._faults: set[str] = set()
        self.look()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(sorted(self._keys.values(), key=lambda key: key.name))

    def look(self) -> Changed:
        """Read the directory if it has changed. With ten files, this takes about 50 µs."""
        try:
            with os.scandir(self.path) as entries:
                seen = sorted(_state(entry) for entry in entries if entry.name.endswith(PUBLIC))
        except OSError as error:
            if self._optional and isinstance(error, FileNotFoundError):
                return _NOTHING
            self._report({f"can't read the directory of peers {self.path}: {error.strerror}"})
            return _NOTHING
        if seen == self._seen:
            return _NOTHING
        # The names are sorted, so if two files contain one key, the same file wins at each look.
        before, self._seen = self._keys, seen
        self._keys, faults = {}, set()
        for name, *_ in seen:
            try:
                key = read_public(self.path / name)
            except KeyFileError as error:
                faults.add(str(error))
                continue
            same = self._keys.setdefault(key.raw, key)
            if same is not key:
                faults.add(f"{self.path / name} contains the same key as {same.name}{PUBLIC}: remove one of the files")
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
        path = self.path / (name + PUBLIC)
        if path.exists():
            return read_public(path)  # raises the error of the file, or is newer than the last look
        known = ", ".join(sorted(key.name for key in self._keys.values())) or "none"
        raise KeyFileError(
            f"no key of {name!r} in {self.path} (keys there: {known}): copy the file {name}{PUBLIC} of that program "
            f"into this directory, with zroute keys authorize {name}{PUBLIC} --peers {self.path}",
            path=path,
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
