"""Recordings: written sequentially, read in portions, intact up to the last written byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import sized
from zroute.errors import UsageError
from zroute.recordings import Recorded, RecordingError, Writer, read

MESSAGES = [
    Recorded(0.0, (b"news.a\0{}",)),
    Recorded(0.25, (b"news.b", b"\xff\x00body")),
    Recorded(1.5, (b"", b"", b"third")),
]
HEADER: dict[str, Any] = {"format": "zroute recording", "version": 1, "began_at": 1.0, "source": "here"}


def written(path: Path, messages: list[Recorded] = MESSAGES) -> Path:
    """Return a recording of these messages."""
    with Writer(path, began_at=1_700_000_000.5, source="connect:tcp://127.0.0.1:5555") as writer:
        for message in messages:
            writer.write(message.at, message.frames)
    return path


def packed(path: Path, *objects: object) -> Path:
    """Return a file of msgpack objects."""
    path.write_bytes(b"".join(map(msgpack.packb, objects)))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """The times, frames and header that were written are read."""
    recording = read(written(tmp_path / "a"))
    assert list(recording) == MESSAGES
    assert list(recording) == MESSAGES, "and a second time"
    assert (recording.began_at, recording.source) == (1_700_000_000.5, "connect:tcp://127.0.0.1:5555")
    assert recording.torn == 0
    assert [recorded.topic for recorded in recording] == [b"news.a", b"news.b", b""]


@settings(max_examples=sized(50, 10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Recorded,
            st.floats(allow_nan=False, allow_infinity=False),
            st.lists(st.binary(max_size=300), min_size=1, max_size=4).map(tuple),
        ),
        min_size=1,
    )
)
def test_any_frames_survive(tmp_path: Path, messages: list[Recorded]) -> None:
    """Frames of any bytes are read unchanged."""
    path = tmp_path / "a"
    path.unlink(missing_ok=True)
    assert list(read(written(path, messages))) == messages


def test_a_torn_end_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """If the writer is killed at any byte, complete records are read and the rest is counted."""
    full = written(tmp_path / "full").read_bytes()
    header = len(
        packed(
            tmp_path / "0", {**HEADER, "began_at": 1_700_000_000.5, "source": "connect:tcp://127.0.0.1:5555"}
        ).read_bytes()
    )
    ends = [header, *(len(written(tmp_path / str(count), MESSAGES[:count]).read_bytes()) for count in range(1, 4))]
    torn = tmp_path / "torn"
    for size in range(len(full) + 1):
        torn.write_bytes(full[:size])
        if size < ends[0]:
            with pytest.raises(RecordingError, match="is empty or contains only a part of a header"):
                read(torn)
            continue
        recording = read(torn)
        whole = sum(end <= size for end in ends) - 1
        assert list(recording) == MESSAGES[:whole]
        assert recording.torn == size - ends[whole]


def test_it_is_read_a_bit_at_a_time(tmp_path: Path) -> None:
    """A large recording is read in portions and in order, and reading may stop early."""
    messages = [Recorded(number / 10, (b"t\0" + bytes(3000),)) for number in range(1000)]
    recording = read(written(tmp_path / "a", messages))
    assert list(recording) == messages
    assert next(iter(recording)) == messages[0]


def test_a_flushed_message_is_in_the_file(tmp_path: Path) -> None:
    """After flush() the message is in the file, even if the writer is killed."""
    with Writer(tmp_path / "a", began_at=0, source="") as writer:
        writer.write(0.5, [b"a\0b"])
        writer.flush()
        assert list(read(tmp_path / "a")) == [Recorded(0.5, (b"a\0b",))]
        assert (writer.messages, writer.bytes) == (1, (tmp_path / "a").stat().st_size)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """An existing recording is not overwritten by default."""
    path = written(tmp_path / "a")
    with pytest.raises(FileExistsError):
        Writer(path, began_at=0, source="")
    assert list(read(path)) == MESSAGES
    with Writer(path, began_at=0, source="", overwrite=True) as writer:
        assert list(read(path)) == MESSAGES, "until there is something to replace it"
        writer.write(0.5, [b"a\0b"])
    assert list(read(path)) == [Recorded(0.5, (b"a\0b",))]


def test_without_a_message_nothing_is_left_and_nothing_is_replaced(tmp_path: Path) -> None:
    """Without messages the new file is removed, unless another file has its name by then."""
    path = tmp_path / "a"
    written(path, [])
    assert not path.exists()
    before = written(path).read_bytes()
    Writer(path, began_at=0, source="", overwrite=True).close()
    assert path.read_bytes() == before
    moved = Writer(tmp_path / "b", began_at=0, source="")
    (tmp_path / "b").rename(tmp_path / "c")
    path.rename(tmp_path / "b")
    moved.close()
    assert (tmp_path / "b").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no messages were recorded"),
        (b"hello, world\n", "is not a recording"),
        (b"\xc1", "is not a recording"),
        (b"\x81\xc0\xc0", "is not a recording"),
        (msgpack.packb({"format": "other"}), "is not a recording"),
        (msgpack.packb(HEADER | {"version": 2}), "version 2, but this zroute reads version 1: update zroute"),
        (msgpack.packb({"format": "zroute recording", "version": 1}), "an invalid header"),
        (msgpack.packb(HEADER | {"began_at": None}), "an invalid header"),
    ],
)
def test_what_is_no_recording_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    """A file that is not a recording, or is of a newer version, is an error."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=said) as caught:
        read(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    "broken",
    [
        msgpack.packb(1),
        msgpack.packb([1.0]),
        msgpack.packb(["1", [b"a"]]),
        msgpack.packb([True, [b"a"]]),
        msgpack.packb([float("nan"), [b"a"]]),
        msgpack.packb([1.0, []]),
        msgpack.packb([1.0, ["text"]]),
        msgpack.packb([1.0, b"ab"]),
        msgpack.packb(None),
        b"\xc1",
        b"\xdd\xff\xff\xff\xff more",
        bytes(100),
    ],
)
def test_a_broken_record_is_an_error_after_what_is_whole(tmp_path: Path, broken: bytes) -> None:
    """A broken record is an error that names its byte, and how to save the records before it."""
    path = packed(tmp_path / "a", HEADER, [0.5, [b"a\0"]])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + broken)
    records = iter(read(path))
    assert next(records) == Recorded(0.5, (b"a\0",))
    with pytest.raises(RecordingError, match=f"byte {size} .* 'head -c {size}'"):
        next(records)
    path.write_bytes(path.read_bytes()[:size])
    assert len(list(read(path))) == 1


def test_a_recording_of_another_language_may_have_whole_numbers_for_times(tmp_path: Path) -> None:
    """A time that is written as the integer 1 is read as a float."""
    (recorded,) = read(packed(tmp_path / "a", HEADER, [1, [b"a\0"]]))
    assert type(recorded.at) is float


def test_a_message_that_no_reader_would_take_is_refused(tmp_path: Path) -> None:
    """A message over 64 MiB, which can't be read, is an error in the writer."""
    with Writer(tmp_path / "a", began_at=0, source="") as writer:
        with pytest.raises(ValueError, match="of up to"):
            writer.write(0.0, [bytes(65 * 1024 * 1024)])
        writer.write(0.0, [b"a\0"])
    assert len(list(read(tmp_path / "a"))) == 1


def test_a_full_disk_is_the_callers_to_handle() -> None:
    """The OSError of a full disk is raised, and no file is left open."""
    writer = Writer("/dev/full", began_at=0, source="", overwrite=True)
    writer.write(0.0, [b"a\0"])
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    writer.close()
