"""The frames of a received message.

A message consists of one frame, of several parts, or of one large frame in a buffer of libzmq.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import attrs

from zroute.options import LARGE_FRAME

__all__ = ["RawFrames", "ZeroCopyFrame", "raw_frames", "uncopied"]


@attrs.frozen(eq=False)
class ZeroCopyFrame:
    """A large frame in the buffer of libzmq.

    A slice copies only its part, which is the body in most cases.
    """

    _held: memoryview

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._held[part])


RawFrames: TypeAlias = "bytes | ZeroCopyFrame | tuple[bytes, ...]"


def raw_frames(raw: RawFrames) -> tuple[bytes, ...]:
    """Return all parts of a message as a tuple."""
    return raw if isinstance(raw, tuple) else (raw[:],)


def uncopied(recv: Callable[..., Any]) -> Callable[[int], bytes | ZeroCopyFrame]:
    """Return a ``recv`` that does not copy large frames.

    A call takes half a microsecond longer, so it pays for a succession of large frames.
    """
    return partial(_receive, recv)


def _receive(recv: Callable[..., Any], flags: int) -> bytes | ZeroCopyFrame:
    frame = memoryview(recv(flags, False))
    return ZeroCopyFrame(frame) if len(frame) > LARGE_FRAME else bytes(frame)
