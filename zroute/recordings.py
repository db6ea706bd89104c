"""Recordings: what arrived, and when, in a file. Pure: a path and frames in, frames out; no sockets, no clock.

A recording is a stream of msgpack objects: a header, and one array ``[at, [frame, …]]`` a message. It is
written from the front to the back and never changed, so whatever ends the writer leaves a recording whose last
record may be torn. docs/reference/wire.md specifies it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Any, BinaryIO

import attrs
import msgpack

from zroute.errors import UsageError

__all__ = ["VERSION", "Recorded", "Recording", "RecordingError", "Writer", "read"]

FORMAT = "zroute recording"
VERSION = 1

_RECORD_MAX = 64 * 1024 * 1024
"""Bytes of one record: more than sixteen parts of the largest usual body, and a bound for a broken length."""


class RecordingError(UsageError, ValueError):
    """A file that is no recording, is of a newer version, or is broken; ``path`` names it."""

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


@attrs.frozen
class Recorded:
    """One message: ``at`` in seconds since the recording began, and its ``frames`` exactly as they arrived."""

    at: float
    frames: tuple[bytes, ...]

    @property
    def topic(self) -> bytes:
        """What stands before the first NUL of the first frame: the topic, in all wires."""
        return self.frames[0].partition(b"\0")[0]


@attrs.define
class Recording:
    """A recording that `read` has opened; each iteration reads the file from the start, a bit at a time.

    ``began_at`` is in seconds since the Unix epoch, ``source`` the endpoint it was recorded from. ``torn`` is
    the number of bytes after the last whole record, known when an iteration has come to the end: whoever wrote
    them was killed meanwhile. They are skipped.

    Iterating raises RecordingError at a record that is broken, after all that is whole before it.
    """

    path: Path
    began_at: float
    source: str
    torn: int = 0

    def __iter__(self) -> Iterator[Recorded]:
        with self.path.open("rb") as file:
            unpacker = _unpacker(file)
            unpacker.skip()  # the header, which `read` has seen
            end = unpacker.tell()
            try:
                for record in unpacker:
                    yield _recorded(record)
                    end = unpacker.tell()
            except (ValueError, TypeError) as error:
                raise self._broken(end) from error
            if file.read(1):  # a length that points beyond what one record may hold
                raise self._broken(end)
            self.torn = file.tell() - end

    def _broken(self, end: int) -> RecordingError:
        return RecordingError(
            f"what begins at byte {end} is no record, so the file was changed or its disk failed: what comes before "
            f"is whole, and 'head -c {end}' makes a recording of it",
            path=self.path,
        )


def read(path: str | os.PathLike[str]) -> Recording:
    """The recording at ``path``: iterate over it for its messages, as often as you like.

    Raises RecordingError for a file that is no recording or is of a newer version, OSError for one that can't
    be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            header = _unpacker(file).unpack()
        except msgpack.OutOfData:
            raise RecordingError("ends before a recording begins: nothing was recorded", path=path) from None
        except (ValueError, TypeError):
            header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RecordingError("is no recording: make one with 'zroute record'", path=path)
    version = header.get("version")
    if version != VERSION:
        remedy = f"this zroute reads version {VERSION}: update it"
        raise RecordingError(f"is a recording of version {version!r:.48}, and {remedy}", path=path)
    try:
        return Recording(path, float(header["began_at"]), str(header["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"is a recording whose header is broken: {header!r:.200}", path=path) from error


def _unpacker(file: BinaryIO) -> Any:
    return msgpack.Unpacker(file, max_buffer_size=_RECORD_MAX)


def _recorded(record: Any) -> Recorded:
    """Raises ValueError or TypeError for anything but ``[at, [frame, …]]``."""
    at, frames = record
    if type(at) not in (float, int) or not isfinite(at):
        raise ValueError(f"a time that is {at!r}")
    if type(frames) is not list or not frames or not all(type(frame) is bytes for frame in frames):
        raise ValueError("frames that are no bytes")
    return Recorded(float(at), tuple(frames))


class Writer:
    """Writes a new recording to ``path``. Use it in a ``with`` statement, which closes it.

    ``began_at`` is in seconds since the Unix epoch; ``source`` says where the messages come from. A file that
    is there already is a FileExistsError, unless ``overwrite`` is true. The header is written with the first message,
    and all messages are in the file at the latest when `flush` is called. Without a message there is no recording:
    `close` removes the new file, and leaves one that was to be overwritten as it was. ``messages`` and ``bytes`` count
    what was written.

    All methods raise the OSError of the file, such as for a full disk; `close` then has closed it all the same.
    """

    def __init__(self, path: str | os.PathLike[str], *, began_at: float, source: str, overwrite: bool = False) -> None:
        self._path = Path(path)
        try:
            self._file = self._path.open("xb")
            self._made = True
        except FileExistsError:
            if not overwrite:
                raise
            self._file = self._path.open("ab")  # as it was until the first message
            self._made = False
        self._header = {"format": FORMAT, "version": VERSION, "began_at": began_at, "source": source}
        self._pack = msgpack.Packer().pack
        self.messages = 0
        self.bytes = 0

    def write(self, at: float, frames: Sequence[bytes]) -> None:
        """Append one message that came ``at`` seconds after the beginning.

        Raises ValueError, and writes nothing, for one of more than 64 MiB, which no reader takes.
        """
        record = self._packed([float(at), list(frames)])
        if not self.messages:
            self._begin()
        self._append(record)
        self.messages += 1

    def flush(self) -> None:
        """Hand what was written to the system: from then on the end of this process costs none of it."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close; closing twice is nothing."""
        unused = self._made and not self.messages and not self._file.closed and self._is_in_place()
        self._file.close()
        if unused:
            self._path.unlink()

    def _is_in_place(self) -> bool:
        """Return True if the path still names the file that was opened."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _begin(self) -> None:
        if S_ISREG(os.fstat(self._file.fileno()).st_mode):  # a pipe or a device can't be cut
            self._file.truncate(0)
        self._append(self._packed(self._header))

    def _packed(self, record: object) -> bytes:
        packed: bytes = self._pack(record)
        if len(packed) > _RECORD_MAX:
            raise ValueError(
                f"a message of {len(packed)} bytes, and a recording holds messages of {_RECORD_MAX} at most"
            )
        return packed

    def _append(self, packed: bytes) -> None:
        self._file.write(packed)
        self.bytes += len(packed)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
