"""Compress bodies, and decompress received bodies without trusting stated sizes.

A compressed body can claim any size, and 1 MB of compressed data can expand to 1 GB. Each decompressor therefore
produces at most one byte more than the limit. A body must be exactly one compressed stream: a body that ends early, or
continues after the end of the stream, is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal, TypeAlias

from zroute.errors import EnvelopeError, SetupError

__all__ = ["COMPRESSIONS", "Compression", "compression_of", "compressor", "decompressor"]

Compression: TypeAlias = Literal["zlib", "zstd", "lz4"]

COMPRESSIONS: tuple[Compression, ...] = ("zlib", "zstd", "lz4")

_EITHER = 47  # zlib's window bits: the largest window; zlib and gzip are recognised by their headers
_LAST_BLOCK, _RLE, _BLOCK_HEADER, _CHECKSUM = 1, 1, 3, 4  # RFC 8878, 3.1.1

_NO_DATA = b"\1\0\0"  # a last block without data

_WINDOW, _WINDOW_MAX = 1 << 23, 1 << 31
"""The window size in bytes that every zstd decoder should accept (RFC 8878, 3.1.1.1.2), and libzstd's own limit."""

_BEGINNINGS: tuple[tuple[Compression, tuple[bytes, ...]], ...] = (
    ("zlib", (b"x\x01", b"x\x9c", b"x\xda", b"\x1f\x8b")),
    ("zstd", (b"\x28\xb5\x2f\xfd",)),
    ("lz4", (b"\x04\x22\x4d\x18",)),
)


def compression_of(data: bytes) -> Compression | None:
    """Return the compression that the first bytes of ``data`` indicate, or None."""
    return next((name for name, beginnings in _BEGINNINGS if data.startswith(beginnings)), None)


def compressor(name: Compression) -> Callable[[bytes], bytes]:
    """Return the function that compresses a body.

    Raises:
        SetupError: The package of this compression is not installed.
    """
    if name == "zlib":
        return zlib.compress
    if name == "zstd":
        try:
            import zstandard
        except ImportError as error:
            raise _missing(name, "zstandard") from error
        return zstandard.ZstdCompressor().compress
    try:
        import lz4.frame
    except ImportError as error:
        raise _missing(name, "lz4") from error
    compress: Callable[[bytes], bytes] = lz4.frame.compress
    return compress


def decompressor(name: Compression, most: int) -> Callable[[bytes], bytes]:
    """Return the function that decompresses bodies to at most ``most`` bytes.

    With "zlib", the function also accepts gzip. The function raises EnvelopeError if the body is too large, incomplete,
    followed by other data, or not in this format.

    Raises:
        SetupError: The package of this compression is not installed.
    """
    if name == "zlib":
        return _zlib(most)
    return _zstd(most) if name == "zstd" else _lz4(most)


def _zlib(most: int) -> Callable[[bytes], bytes]:
    def decompress(body: bytes) -> bytes:
        stream = zlib.decompressobj(_EITHER)
        try:
            # One byte more than allowed shows that the body is too large.
            found = stream.decompress(body, most + 1)
        except zlib.error as error:
            raise EnvelopeError(f"a body that is not zlib or gzip: {error}") from error
        return _checked("zlib", found, most, ended=stream.eof, rest=stream.unused_data)

    return decompress


def _lz4(most: int) -> Callable[[bytes], bytes]:
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError as error:
        raise _missing("lz4", "lz4") from error

    def decompress(body: bytes) -> bytes:
        stream = LZ4FrameDecompressor()
        try:
            found = stream.decompress(body, max_length=most + 1)
        except RuntimeError as error:
            raise EnvelopeError(f"a body that is not lz4: {error}") from error
        # `unused_data` is None if nothing follows the frame.
        return _checked("lz4", found, most, ended=stream.eof, rest=stream.unused_data or b"")

    return decompress


def _zstd(most: int) -> Callable[[bytes], bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise _missing("zstd", "zstandard") from error
    unknown = zstandard.CONTENTSIZE_UNKNOWN
    decompress_frame = zstandard.ZstdDecompressor(max_window_size=min(max(most, _WINDOW), _WINDOW_MAX)).decompress

    def decompress(body: bytes) -> bytes:
        try:
            frame = zstandard.get_frame_parameters(body)
            start = zstandard.frame_header_size(body)
            end = _end_of_zstd(body, start, has_checksum=frame.has_checksum)
            if not frame.content_size and not body.startswith(_NO_DATA, start):
                raise EnvelopeError("a zstd body that claims to be empty but has data")  # the library would return b""
            if most < frame.content_size != unknown:
                raise _too_large("zstd", most)  # the library would allocate the size that the frame claims
            # If the frame does not state its size, the buffer has `most` bytes, and a larger body is an error.
            found = decompress_frame(body[:end], max_output_size=most) if end <= len(body) else b""
        except (zstandard.ZstdError, MemoryError) as error:
            raise EnvelopeError(f"a body that is not zstd, or has more than {most} bytes: {error}") from error
        return _checked("zstd", found, most, ended=end <= len(body), rest=body[end:])

    return decompress


def _end_of_zstd(body: bytes, at: int, *, has_checksum: bool) -> int:
    """Return the offset of the end of a zstd frame whose blocks begin at ``at``.

    If the frame is incomplete, the result is larger than the body. This function is needed because the library does not
    always report data that follows a frame.
    """
    while at + _BLOCK_HEADER <= len(body):
        header = int.from_bytes(body[at : at + _BLOCK_HEADER], "little")
        # A block of type RLE is a single byte, which is repeated as often as its size says.
        size = 1 if header >> 1 & 3 == _RLE else header >> 3
        at += _BLOCK_HEADER + size
        if header & _LAST_BLOCK:
            return at + _CHECKSUM * has_checksum
    return len(body) + 1


def _checked(name: Compression, found: bytes, most: int, *, ended: bool, rest: bytes) -> bytes:
    """Return the decompressed body if it is complete and no data follows it."""
    if len(found) > most:
        raise _too_large(name, most)
    if not ended:
        raise EnvelopeError(f"an incomplete {name} body")
    if rest:
        raise EnvelopeError(f"a {name} body followed by {len(rest)} other bytes")
    return found


def _too_large(name: Compression, most: int) -> EnvelopeError:
    return EnvelopeError(f"a {name} body that decompresses to more than max_message={most} bytes")


def _missing(name: Compression, package: str) -> SetupError:
    return SetupError(
        f"decompress={name!r} needs the package {package}, which is not installed: run pip install 'zroute[{name}]'"
    )
