"""Recordings: files of received messages and their times.

This module reads and writes files of frames. It uses neither sockets nor clocks. A recording is a stream of msgpack
objects: a header, then an array ``[at, [frame, …]]`` for each message. A writer only appends to the file. If the writer
is killed, at most the last record is incomplete. docs/reference/wire.md specifies the format.
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
"""The maximum size of a record in bytes, enough for 16 parts of the default maximum size.

It also limits the memory for a record with a broken length.
"""


class RecordingError(UsageError, ValueError):
    """A file that is not a recording, is damaged, or has a newer version.

    ``path`` is the path of the file.
    """

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


@attrs.frozen
class Recorded:
    """A recorded message.

    ``at`` is in seconds since the recording began. ``frames`` contains the unchanged frames. ``topic`` is only valid
    for zroute's wires; if `Recording.frames` specifies another form, use that form to find the topic.
    """

    at: float
    frames: tuple[bytes, ...]

    @property
    def topic(self) -> bytes:
        """The topic in all wires of zroute: the first frame up to its first NUL."""
        return self.frames[0].partition(b"\0")[0]


@attrs.define
class Recording:
    """An open recording. Iterating over it yields each `Recorded` message.

    Each iteration reads the file from the start, in small portions. ``began_at`` is in seconds since the Unix epoch;
    ``source`` is the endpoint that was recorded. ``torn`` is the number of bytes after the last complete record, which
    are skipped. An iteration sets ``torn`` when it reaches the end of the file. The number is not 0 if the writer was
    killed during a write. ``frames`` is the form of the messages as in ``zroute record --frames``, or None for zroute's
    wires.

    Raises:
        RecordingError: An iteration has reached a damaged record. All complete records before it were yielded.
    """

    path: Path
    began_at: float
    source: str
    torn: int = 0
    frames: str | None = None

    def __iter__(self) -> Iterator[Recorded]:
        with self.path.open("rb") as file:
            unpacker = _unpacker(file)
            unpacker.skip()  # the header, which `read` has checked
            end = unpacker.tell()
            try:
                for record in unpacker:
                    yield _recorded(record)
                    end = unpacker.tell()
            except (ValueError, TypeError) as error:
                raise self._broken(end) from error
            if file.read(1):  # the record has a length above the maximum
                raise self._broken(end)
            self.torn = file.tell() - end

    def _broken(self, end: int) -> RecordingError:
        return RecordingError(
            f"the data at byte {end} is not a record: perhaps the file was changed, or the disk failed. All records "
            f"before byte {end} are intact; to extract these records, use 'head -c {end}'",
            path=self.path,
        )


def read(path: str | os.PathLike[str]) -> Recording:
    """Open a recording, and return it for iteration over its messages.

    The result can be iterated over several times. For example:

        for message in read("feed.zroute"):
            print(message.at, message.topic)

    Args:
        path: The path of the file.

    Raises:
        RecordingError: The file is not a recording, or has a newer version.
        OSError: The file can't be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            header = _unpacker(file).unpack()
        except msgpack.OutOfData:
            raise RecordingError(
                "the file is empty or contains only a part of a header, so no messages were recorded", path=path
            ) from None
        except (ValueError, TypeError):  # not msgpack: the same error as for msgpack of another program
            header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RecordingError("the file is not a recording: create recordings with 'zroute record'", path=path)
    version = header.get("version")
    if version != VERSION:
        remedy = f"this zroute reads version {VERSION}: update zroute"
        raise RecordingError(f"the recording has version {version!r:.48}, but {remedy}", path=path)
    try:
        frames = header.get("frames")
        return Recording(
            path, float(header["began_at"]), str(header["source"]), frames=None if frames is None else str(frames)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"the recording has an invalid header: {header!r:.200}", path=path) from error


def _unpacker(file: BinaryIO) -> Any:
    return msgpack.Unpacker(file, max_buffer_size=_RECORD_MAX)


def _recorded(record: Any) -> Recorded:
    """Return the message in a record ``[at, [frame, …]]``.

    Raises ValueError or TypeError for any other record.
    """
    at, frames = record
    if type(at) not in (float, int) or not isfinite(at):  # not isinstance: a bool is an int
        raise ValueError(f"the time is {at!r}, not a finite number")
    if type(frames) is not list or not frames or not all(type(frame) is bytes for frame in frames):
        raise ValueError("the frames are not a list of bytes")
    return Recorded(float(at), tuple(frames))


class Writer:
    """Writes a new recording. Use it in a ``with`` statement, which closes it.

    For example:

        with Writer("feed.zroute", began_at=time.time(), source="tcp://127.0.0.1:5555") as writer:
            writer.write(0.0, [b"topic", b"body"])

    The header is written with the first message. After `flush`, all messages are in the file. If no message was
    written, `close` removes a new file, and leaves an existing file unchanged. ``messages`` and ``bytes`` count the
    written messages and bytes.

    Args:
        path: The path of the file.
        began_at: The time of the beginning, in seconds since the Unix epoch.
        source: The origin of the messages, for example an endpoint.
        frames: The form of the messages as in ``zroute record --frames``, or None for zroute's wires.
        overwrite: True to replace an existing file.

    Raises:
        FileExistsError: The file exists, and ``overwrite`` is False.
        OSError: The file can't be written, for example because the disk is full. All methods raise this error; `close`
            closes the file nevertheless.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        began_at: float,
        source: str,
        frames: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self._path = Path(path)
        try:
            self._file = self._path.open("xb")
            self._made = True
        except FileExistsError:
            if not overwrite:
                raise
            self._file = self._path.open("ab")  # unchanged until the first message
            self._made = False
        self._header = {"format": FORMAT, "version": VERSION, "began_at": began_at, "source": source}
        if frames is not None:
            self._header["frames"] = frames
        self._pack = msgpack.Packer().pack
        self.messages = 0
        self.bytes = 0

    def write(self, at: float, frames: Sequence[bytes]) -> None:
        """Append a message that arrived ``at`` seconds after the beginning.

        Raises:
            ValueError: The message is larger than 64 MiB, the limit of readers. The message is not written.
        """
        record = self._packed([float(at), list(frames)])
        if not self.messages:
            self._begin()
        self._append(record)
        self.messages += 1

    def flush(self) -> None:
        """Pass all written messages to the operating system.

        After that, they are not lost if this process ends.
        """
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file. A second call has no effect."""
        # Before the file is closed, because fstat() needs the open file.
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
        # Called at the first message: without a message, a file to overwrite must stay unchanged.
        if S_ISREG(os.fstat(self._file.fileno()).st_mode):  # a pipe or a device can't be truncated
            self._file.truncate(0)
        self._append(self._packed(self._header))

    def _packed(self, record: object) -> bytes:
        packed: bytes = self._pack(record)
        if len(packed) > _RECORD_MAX:
            raise ValueError(
                f"the message has {len(packed)} bytes, but a recording can only contain messages of up to "
                f"{_RECORD_MAX} bytes"
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
