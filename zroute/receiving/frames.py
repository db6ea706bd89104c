"""The frames of a received message.

A message consists of one frame, several parts, or one large frame in a buffer of libzmq.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import attrs

from zroute.messages.frames import StatedMessage
from zroute.messages.topics import Topic
from zroute.messages.wire import HEADER_MAX, NUL, NamedFrame
from zroute.options import LARGE_FRAME, MAX_TOPIC

__all__ = ["RawFrames", "ZeroCopyFrame", "first_part", "head_of", "raw_frames", "uncopied", "uncopied_body"]


@attrs.frozen(eq=False)
class ZeroCopyFrame:
    """A large frame in a buffer of libzmq.

    A slice copies only the selected bytes, which are usually the body.
    """

    _held: memoryview

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._held[part])

    @property
    def peer(self) -> str | None:
        """The name of the peer's key.

        The attribute is missing if the frame does not state a name.
        """
        if isinstance(self._held.obj, NamedFrame):
            return self._held.obj.peer
        raise AttributeError("peer")

    def view(self, start: int) -> memoryview:
        """Return the bytes from ``start`` to the end without copying them.

        The result keeps the frame in memory.
        """
        # Handlers share the bytes, and a buffer of libzmq can be written to.
        return self._held[start:].toreadonly()


RawFrames: TypeAlias = "bytes | ZeroCopyFrame | tuple[bytes, ...]"


def raw_frames(raw: RawFrames) -> tuple[bytes, ...]:
    """Return all parts of a message as a tuple."""
    return raw if isinstance(raw, tuple) else (raw[:],)


def first_part(frame: bytes | ZeroCopyFrame) -> bytes:
    """Return a frame as bytes, with its name if it has one."""
    if isinstance(frame, bytes):
        return frame
    return NamedFrame.of(frame[:], frame.peer) if hasattr(frame, "peer") else frame[:]


def head_of(raw: RawFrames, topic: Topic) -> bytes:
    """Return the beginning of a message of ``topic`` as one frame.

    The result contains at least the whole header. A message of a stated form has no header, so the result is empty.
    """
    if isinstance(raw, bytes):
        return raw
    if isinstance(raw, StatedMessage):
        return b""
    if isinstance(raw, tuple):
        return NUL.join(raw[:2])
    return raw[: max(len(topic.wire), MAX_TOPIC) + 1 + HEADER_MAX]


def uncopied(recv: Callable[..., Any]) -> Callable[[int], bytes | ZeroCopyFrame]:
    """Return a ``recv`` that does not copy large frames.

    A call takes half a microsecond longer, so use it only while several large frames arrive in succession.
    """
    return partial(_receive, recv)


def uncopied_body(raw: bytes | ZeroCopyFrame, start: int) -> memoryview:
    """Return the body that begins at ``start`` in a frame, without copying it."""
    return raw.view(start) if isinstance(raw, ZeroCopyFrame) else memoryview(raw)[start:]


def _receive(recv: Callable[..., Any], flags: int) -> bytes | ZeroCopyFrame:
    held = recv(flags, False)
    frame = memoryview(held)
    if len(frame) > LARGE_FRAME:
        return ZeroCopyFrame(frame)
    return held if isinstance(held, NamedFrame) else bytes(frame)
