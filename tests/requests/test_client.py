"""The client without sockets: replies and failures of callers, retries, late replies and streams."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Literal

import attrs
import msgspec
import pytest
from twisted.internet.defer import CancelledError

from tests.requests.wired import CANCEL, Wired, begun, result
from zroute.errors import (
    BadRequestError,
    BusyError,
    DecodeError,
    EncodeError,
    NoHandlerError,
    NoServerError,
    NotRunningError,
    RequestError,
    RequestLostError,
    RequestRefusedError,
    RequestTimeoutError,
    ServerError,
    UsageError,
)
from zroute.messages.requests import MAGIC, Kind, pack_cancel, pack_reply, parse, parse_request
from zroute.messages.wire import parse as parse_frames
from zroute.options import APP_WINDOW, REQUEST_FORGOTTEN, STREAM_SILENCE, STREAM_WINDOW

ID = bytes(16)


# -- single replies --------------------------------------------------------------------------------------


def test_a_request_has_topic_body_and_limits() -> None:
    """One frame has the time left and the message; there is no window."""
    wired = Wired()
    wired.ask(timeout=2.5)
    ((empty, frame),) = wired.sent
    seconds, window, message = parse_request(parse(frame))
    envelope = parse_frames((message,), 0.0)
    assert (empty, seconds, window) == (b"", 2.5, 0)
    assert (str(envelope.topic), envelope.codec, envelope.body) == ("a.b", 1, b"\x01")


def test_a_plain_request_has_topic_and_body() -> None:
    """For other servers there is no header, no time, no cancellation and no stream."""
    wired = Wired(plain=True)
    asked = wired.ask(timeout=2.5)
    ((id, *rest),) = wired.sent
    assert (len(id), rest) == (16, [b"", b"a.b", b"\x01"])
    wired.answer(b"\x05")
    assert result(asked) == 5
    wired.ask().cancel()
    assert len(wired.sent) == 2
    with pytest.raises(UsageError, match="plain requests have no streams"):
        wired.stream()
    failing = wired.ask()
    wired.answer(b"", b"409", b"no")
    with pytest.raises(RequestRefusedError):
        result(failing)
    assert (wired.client.unanswered, wired.notes()) == (0, [])


@pytest.mark.parametrize(("codec", "body"), [(1, b"\x05"), (2, b"5"), (0, b"\x05")])
def test_a_reply_is_decoded_by_its_codec(codec: int, body: bytes) -> None:
    """The codec is that of the reply, or else the app's."""
    wired = Wired()
    asked = wired.ask()
    assert wired.say(Kind.REPLY, codec, body)
    assert result(asked) == 5
    assert (wired.client.unanswered, wired.stats.requests_sent, wired.stats.requests_failed) == (0, 1, 0)


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (400, BadRequestError, "request to 'a.b': the server refused the request: why"),
        (404, NoHandlerError, "request to 'a.b': the server refused the request: why"),
        (500, ServerError, "request to 'a.b': the handler failed: why"),
        (503, BusyError, "request to 'a.b': the server is busy: why"),
        (409, RequestRefusedError, "request to 'a.b': the server refused the request with code 409: why"),
        (100, RequestRefusedError, "request to 'a.b': the server refused the request with code 100: why"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_each_code_has_its_error(code: int, kind: type[RequestError], text: str, streamed: bool) -> None:
    """The error names the topic; its reason is the text of the server. It is the same in a stream."""
    wired = Wired()
    asked = begun(wired.stream().__anext__()) if streamed else wired.ask()
    wired.refuse(code)
    with pytest.raises(kind) as raised:
        result(asked)
    assert (str(raised.value), raised.value.reason) == (text, "why")
    assert type(raised.value) is kind
    assert getattr(raised.value, "code", code) == code
    assert (wired.client.unanswered, wired.stats.requests_failed) == (0, 1)
    assert wired.notes() == []


def test_the_text_of_a_failure_is_escaped() -> None:
    """Control characters and other bytes of a server do not reach a terminal."""
    wired = Wired()
    asked = wired.ask()
    wired.answer(b"", b"500", b"\x1b[2J\xff")  # as a plain server fails
    with pytest.raises(ServerError) as raised:
        result(asked)
    assert "\x1b" not in str(raised.value)
    assert "\\u001b" in raised.value.reason


@pytest.mark.parametrize(
    ("parts", "kind", "reason"),
    [
        ((pack_reply(ID, Kind.REPLY, 1, b"\xa1x"),), DecodeError, "int"),
        ((pack_reply(ID, Kind.REPLY, 77, b"\x05"),), DecodeError, "unknown codec 77: pass"),
        ((b"\x05", b"?"), RequestError, "the server sent a reply of 2 parts; expected 1, or 3 for a failure"),
        ((b"", b"abc", b""), RequestError, "; expected three digits"),
        ((pack_cancel(ID),), RequestError, "the kind CANCEL, which only a client sends"),
        ((MAGIC + b"?",), RequestError, "a frame of 4 bytes"),
        ((pack_reply(ID, Kind.ITEM, 1, b"\x05"),), RequestError, "a stream: use app.request_stream"),
        ((pack_reply(ID, Kind.END, 0, b""),), RequestError, "a stream: use app.request_stream"),
    ],
)
def test_a_reply_that_is_none_is_an_error(parts: tuple[bytes, ...], kind: type[Exception], reason: str) -> None:
    """Another type, an unknown codec, garbage and a stream end the request at once."""
    wired = Wired()
    asked = wired.ask()
    wired.answer(*parts)
    with pytest.raises(kind, match=reason):
        result(asked)
    assert (wired.client.unanswered, wired.stats.requests_failed) == (0, 1)


def test_none_as_the_type_ignores_the_value() -> None:
    """A reply of any kind is accepted."""
    wired = Wired()
    asked = wired.ask(None)
    wired.reply(b"anything")
    assert result(asked) is None


def test_a_message_over_the_limit_is_not_sent() -> None:
    """It is an EncodeError, and nothing waits."""
    wired = Wired(max_message=10)
    with pytest.raises(EncodeError, match="11 bytes, more than max_message=10"):
        result(wired.ask(body=b"x" * 11))
    assert (wired.sent, wired.client.unanswered) == ([], 0)


# -- the end of time -------------------------------------------------------------------------------------


def test_a_timeout_says_if_a_server_was_there() -> None:
    """A sent request times out; an unsent one had no server, and is never sent."""
    wired, alone = Wired(), Wired()
    alone.lane.down = True
    late, lonely = wired.ask(timeout=1), alone.ask(timeout=1)
    wired.clock.advance(1)
    alone.clock.advance(1)
    with pytest.raises(RequestTimeoutError, match=r"request to 'a\.b': no reply within 1 s"):
        result(late)
    with pytest.raises(NoServerError, match="no server was connected within 1 s"):
        result(lonely)
    alone.lane.up()
    assert alone.sent == []
    assert wired.notes() == [], "the server knows the time itself"
    assert isinstance(NoServerError("x"), ConnectionError)
    assert isinstance(RequestTimeoutError("x"), TimeoutError)


def test_a_timeout_says_that_a_request_was_not_sent() -> None:
    """While the window is full, the cause is this app, which waits for too many replies, and not the server."""
    wired = Wired()
    sent = wired.ask(timeout=1)
    for _ in range(APP_WINDOW - 1):
        wired.ask(timeout=None)
    unsent = wired.ask(timeout=1)
    wired.ask(timeout=None)
    wired.clock.advance(1)
    facts = f"within 1 s: {APP_WINDOW} requests of this app are unanswered, and 2 unsent"
    with pytest.raises(RequestTimeoutError, match=f"request to 'a.b': no reply {facts}"):
        result(sent)
    with pytest.raises(RequestTimeoutError, match=f"request to 'a.b': not sent {facts}"):
        result(unsent)
    assert len(wired.ids()) == APP_WINDOW


@pytest.mark.parametrize(
    ("code", "kind"), [(500, RequestTimeoutError), (404, NoHandlerError), (503, BusyError), (409, RequestRefusedError)]
)
def test_only_a_failed_handler_is_a_timeout_in_the_last_millisecond(code: int, kind: type[RequestError]) -> None:
    """A server whose handler ran out of time answers 500; a refusal keeps its code until the timeout."""
    wired = Wired()
    asked = wired.ask(timeout=1)
    wired.clock.advance(0.9995)
    wired.refuse(code)
    with pytest.raises(kind) as raised:
        result(asked)
    assert type(raised.value) is kind


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_type_whose_constructor_raises_is_an_error_of_the_caller(error: Any, streamed: bool) -> None:
    """No error of a reply's type reaches the socket: the caller gets a DecodeError in each case."""

    @attrs.frozen
    class Odd:
        number: int

        def __attrs_post_init__(self) -> None:
            raise error

    wired = Wired()
    asked = begun(wired.stream(Odd).__anext__()) if streamed else wired.ask(Odd)
    kind = Kind.ITEM if streamed else Kind.REPLY
    assert wired.answer(pack_reply(wired.ids()[-1], kind, 2, b'{"number": 1}'))
    with pytest.raises(DecodeError, match="reply can't be decoded: ") as raised:
        result(asked)
    assert type(raised.value.__cause__) is (msgspec.ValidationError if error is ValueError else error)


def test_the_decoders_of_many_types_are_not_kept() -> None:
    """A program that creates a type for each request takes no more memory for its decoders than for 1,000 types."""
    client = Wired().client
    for number in range(1100):
        client.decoder(Literal[number])
    assert len(client._decoders) <= 1000
    assert client.decoder(int) is client.decoder(int)


def test_without_a_lane_there_is_no_server() -> None:
    """No endpoint is connected yet."""
    wired = Wired(lane=False)
    asked = wired.ask(timeout=1)
    wired.clock.advance(1)
    with pytest.raises(NoServerError):
        result(asked)


def test_late_replies_are_counted_as_they_arrive() -> None:
    """A reply after the timeout, a second one, and one to an unknown id are late."""
    wired = Wired()
    asked = wired.ask(timeout=1)
    wired.clock.advance(1)
    with pytest.raises(RequestTimeoutError):
        result(asked)
    assert not wired.reply(b"\x01")
    assert wired.stats.replies_late == 1
    answered = wired.ask()
    wired.reply(b"\x02")
    assert not wired.reply(b"\x03")
    assert not wired.lane.received(b"unknown", [b"\x01"])
    assert (result(answered), wired.stats.replies_late) == (2, 3)


def test_cancelling_tells_the_server_once() -> None:
    """The frames have the id of the request; an unsent request is only dropped."""
    wired = Wired()
    asked = wired.ask()
    asked.cancel()
    with pytest.raises(CancelledError):
        result(asked)
    assert wired.notes(wired.ids()[0]) == [CANCEL]
    assert wired.client.unanswered == 0
    wired.room = False
    unsent = wired.ask()
    unsent.cancel()
    wired.room = True
    wired.lane.writable()
    assert len(wired.sent) == 2


def test_a_task_that_is_cancelled_with_its_reply_counts_once() -> None:
    """The reply arrives, and the task is cancelled before it continues: the count of unanswered requests is exact."""
    wired = Wired()

    async def main() -> None:
        decode = wired.client.decoder(int)
        task = asyncio.ensure_future(wired.client.request(b"a.b", 1, b"\x01", None, decode, 10.0))
        await asyncio.sleep(0)
        wired.reply(b"\x01")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (wired.client.unanswered, wired.notes()) == (0, [])


def test_a_lost_server_fails_what_it_had() -> None:
    """Requests that were sent fail at once; those that wait go to another server."""
    wired = Wired()
    asked = wired.ask()
    wired.lane.lost(lambda: RequestLostError("gone"))
    with pytest.raises(RequestLostError, match=r"request to 'a\.b': gone"):
        result(asked)
    assert isinstance(RequestLostError("x"), ConnectionError)


def test_the_end_of_the_client_fails_what_is_left_and_tells_the_server() -> None:
    """Sent requests are cancelled at the server; new ones are refused."""
    wired = Wired()
    asked, stream = wired.ask(), wired.stream()
    wired.client.close()
    with pytest.raises(NotRunningError, match=r"request to 'a\.b': 'the app' stopped before the reply"):
        result(asked)
    with pytest.raises(NotRunningError):
        result(begun(stream.__anext__()))
    assert wired.notes() == [CANCEL, CANCEL]
    with pytest.raises(NotRunningError, match="can't send requests"):
        result(wired.ask())
    assert (wired.client.unanswered, wired.clock.getDelayedCalls()) == (0, [])


def test_idle_waits_for_the_last_reply() -> None:
    """It ends with the last answered, failed or cancelled request."""
    wired = Wired()
    assert result(begun(wired.client.idle())) is None
    first, second, third = wired.ask(), wired.ask(), wired.ask(timeout=1)
    idle = begun(wired.client.idle())
    wired.reply(b"\x01", number=0)
    second.cancel()
    assert not idle.called
    wired.clock.advance(1)
    wired.clock.advance(0)
    assert result(idle) is None
    assert result(first) == 1
    with pytest.raises(RequestTimeoutError):
        result(third)


# -- again -----------------------------------------------------------------------------------------------


def lose(wired: Wired) -> None:
    """Disconnect the server."""
    wired.lane.lost(lambda: RequestLostError("gone"))


@pytest.mark.parametrize("fail", [lose, lambda wired: wired.refuse(503)], ids=["lost", "busy"])
def test_lost_and_busy_are_tried_again(fail: Any) -> None:
    """The request is sent again after each delay, with the time that is left, and then fails."""
    wired = Wired()
    asked = wired.ask(timeout=10, retry=(1, 2))
    fail(wired)
    wired.clock.advance(0.9)
    assert len(wired.requests()) == 1
    wired.clock.advance(0.1)
    fail(wired)
    wired.clock.advance(2)
    assert [parse_request(parse(each[1]))[0] for each in wired.requests()] == [10, 9, 7]
    assert len(set(wired.ids())) == 3
    wired.reply(b"\x07")
    assert result(asked) == 7
    assert (wired.stats.requests_sent, wired.stats.requests_failed) == (3, 2)
    again = wired.ask(timeout=10, retry=(0,))
    fail(wired)
    wired.clock.advance(0)
    fail(wired)
    with pytest.raises(RequestLostError if fail is lose else BusyError):
        result(again)


@pytest.mark.parametrize("code", [400, 404, 409, 500])
def test_other_failures_are_final(code: int) -> None:
    """What the server has decided is not asked again."""
    wired = Wired()
    asked = wired.ask(retry=(0, 0))
    wired.refuse(code)
    with pytest.raises(RequestError):
        result(asked)
    wired.clock.advance(100)
    assert len(wired.requests()) == 1


def test_nothing_is_tried_after_the_timeout() -> None:
    """A delay that ends after the timeout is not waited for."""
    wired = Wired()
    asked = wired.ask(timeout=1, retry=(1,))
    wired.refuse(503)
    with pytest.raises(BusyError):
        result(asked)
    wired.clock.advance(1)
    assert len(wired.sent) == 1
    assert wired.clock.getDelayedCalls() == []


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_pause_ends_with_its_caller(end: str) -> None:
    """A caller that is cancelled while it pauses leaves no timer; a closed client sends nothing."""
    wired = Wired()
    asked = wired.ask(retry=(1,), timeout=None)
    wired.refuse(503)
    if end == "cancel":
        asked.cancel()
        with pytest.raises(CancelledError):
            result(asked)
        assert wired.clock.getDelayedCalls() == []
    else:
        wired.client.close()
        wired.clock.advance(1)
        with pytest.raises(NotRunningError):
            result(asked)
    assert len(wired.sent) == 1


# -- streams ---------------------------------------------------------------------------------------------


async def collected(stream: Any, into: list[Any]) -> list[Any]:
    """Read a stream to its end."""
    async for each in stream:
        into.append(each)  # noqa: PERF401  # after an error, it has the items before it
    return into


def test_a_stream_gives_its_items_and_ends() -> None:
    """Items that arrive before, during and after the wait are given in order, once each."""
    wired, seen = Wired(), list[int]()
    reading = wired.stream()
    assert parse_request(parse(wired.sent[0][1]))[:2] == (10.0, STREAM_WINDOW)
    wired.items(b"\x01", b"\x02")
    running = begun(collected(reading, seen))
    assert seen == [1, 2]
    wired.items(b"\x03")
    assert seen == [1, 2, 3]
    wired.end()
    assert result(running) == [1, 2, 3]
    assert (wired.client.unanswered, wired.stats.requests_failed, wired.notes()) == (0, 0, [])
    assert not wired.say(Kind.ITEM, 1, b"\x04")
    assert wired.stats.replies_late == 1, "items after the end are not delivered"


def test_a_single_reply_is_a_stream_of_one_item() -> None:
    """A handler that returns its reply also answers a stream."""
    wired, seen = Wired(), list[int]()
    running = begun(collected(wired.stream(), seen))
    wired.reply(b"\x05")
    assert result(running) == [5]


def test_credits_follow_the_items_that_were_taken() -> None:
    """Half a window of taken items is allowed again; items that wait are not."""
    wired, seen = Wired(), list[int]()
    stream = wired.stream()
    wired.items(*[b"\x01"] * STREAM_WINDOW)
    assert wired.notes() == []
    running = begun(collected(stream, seen))
    assert len(seen) == STREAM_WINDOW
    assert wired.notes() == [STREAM_WINDOW // 2] * 2
    wired.end()
    result(running)


def test_a_failure_in_the_middle_comes_after_the_items() -> None:
    """The loop gets all items that arrived, then the error."""
    wired, seen = Wired(), list[int]()
    stream = wired.stream()
    wired.items(b"\x01", b"\x02")
    wired.refuse(500)
    running = begun(collected(stream, seen))
    with pytest.raises(ServerError, match=r"request to 'a\.b': the handler failed: why"):
        result(running)
    assert seen == [1, 2]
    assert wired.client.unanswered == 0


@pytest.mark.parametrize("way", ["break", "aclose", "with", "error", "cancel", "forget"])
def test_leaving_the_loop_cancels_at_the_server(way: str) -> None:
    """However the loop is left, the server gets one cancellation, and the rest is late."""
    wired = Wired()
    streams = [wired.stream()]

    async def leave() -> None:
        if way == "with":
            async with streams[0] as stream:
                async for _ in stream:
                    break
        elif way in ("break", "error"):
            async for _ in streams.pop():
                if way == "error":
                    raise ValueError("left")
                break
        elif way == "cancel":
            await streams[0].__anext__()
            await streams[0].__anext__()
        else:
            await streams[0].__anext__()

    wired.items(b"\x01", b"\x02") if way != "cancel" else wired.items(b"\x01")
    running = begun(leave())
    if way == "cancel":
        running.cancel()
    if way == "aclose":
        begun(streams[0].aclose())
    if way in ("forget", "error"):
        streams.clear()
        running.addBoth(lambda _: None)
        del running
        gc.collect()
    wired.clock.advance(0)
    assert wired.notes() == [CANCEL]
    assert wired.client.unanswered == 0
    wired.items(b"\x03", b"\x04")
    assert wired.stats.replies_late == 2
    for stream in streams:
        with pytest.raises((StopAsyncIteration, CancelledError)):
            result(begun(stream.__anext__()))
    wired.clock.advance(STREAM_SILENCE)
    assert wired.notes() == [CANCEL]


def test_an_item_that_is_not_of_the_type_ends_the_stream() -> None:
    """It is a DecodeError, and the handler is closed."""
    wired, seen = Wired(), list[int]()
    running = begun(collected(wired.stream(), seen))
    wired.items(b"\x01", b"\xa1x")
    with pytest.raises(DecodeError):
        result(running)
    assert (seen, wired.notes(), wired.client.unanswered) == ([1], [CANCEL], 0)


def test_a_server_that_sends_too_much_is_cut_off() -> None:
    """More items than were allowed end the stream, and only that; the count is exact."""
    wired = Wired()
    stream, other = wired.stream(), wired.ask()
    id = wired.ids()[0]
    for _ in range(STREAM_WINDOW + 50):
        wired.lane.received(id, [pack_reply(id, Kind.ITEM, 1, b"\x01")])
    with pytest.raises(RequestError, match=r"request to 'a\.b': the server sent more than 128 items"):
        result(begun(stream.__anext__()))
    assert wired.notes(id) == [CANCEL]
    assert (wired.client.unanswered, wired.stats.replies_late, wired.stats.requests_failed) == (1, 49, 1)
    wired.reply(b"\x01")
    assert result(other) == 1


def test_garbage_in_a_stream_ends_it() -> None:
    """Parts that are no reply end the stream, after the good items, and cancel it at the server."""
    wired, seen = Wired(), list[int]()
    stream = wired.stream()
    wired.items(b"\x01")
    wired.answer(b"\x02", b"?")
    with pytest.raises(RequestError, match=r"request to 'a\.b': the server sent a reply of 2 parts"):
        result(begun(collected(stream, seen)))
    assert (seen, wired.notes(), wired.client.unanswered) == ([1], [CANCEL], 0)


def test_the_timeout_is_for_each_item() -> None:
    """It begins when the loop waits, and ends when an item arrives; then the request is cancelled."""
    wired, seen = Wired(), list[int]()
    stream = wired.stream(timeout=1)
    wired.items(b"\x01")
    wired.clock.advance(100)  # the item has arrived, and the loop has not begun
    running = begun(collected(stream, seen))
    for _ in range(5):
        wired.clock.advance(0.9)
        wired.items(b"\x02")
    assert len(seen) == 6
    wired.clock.advance(1)
    with pytest.raises(RequestTimeoutError, match="no reply within 1 s"):
        result(running)
    assert [note for note in wired.notes() if note == CANCEL] == [CANCEL]
    assert wired.client.unanswered == 0


@pytest.mark.parametrize("end", ["timeout", "cancel", "close"])
def test_streams_that_were_given_up_make_room(end: str) -> None:
    """A server that never answers them gets further requests after a while, and no timer is left."""
    wired = Wired()
    streams = [wired.stream(timeout=1.0) for _ in range(APP_WINDOW)]
    waiting = [begun(collected(each, [])) for each in streams]
    for stream, deferred in zip(streams, waiting, strict=True):
        if end == "cancel":
            deferred.cancel()
        elif end == "close":
            begun(stream.aclose())
    wired.clock.advance(1.0)
    wired.ask(timeout=None)
    assert (len(wired.ids()), wired.lane.given_up) == (APP_WINDOW, APP_WINDOW)
    wired.clock.advance(REQUEST_FORGOTTEN)
    assert (len(wired.ids()), wired.lane.given_up, wired.lane.load) == (APP_WINDOW + 1, 0, 1)
    assert wired.client.queue.timed == 0


def test_a_loop_that_is_slow_does_not_time_out() -> None:
    """No time passes while the caller works on an item."""
    wired = Wired()
    stream = wired.stream(timeout=1)
    wired.items(b"\x01")
    assert result(begun(stream.__anext__())) == 1
    wired.clock.advance(10)
    waiting = begun(stream.__anext__())
    wired.clock.advance(0.9)
    wired.items(b"\x02")
    assert result(waiting) == 2


def test_an_open_stream_gives_signs_of_life() -> None:
    """While the caller works on an item, the server hears from it; after the end it does not."""
    wired = Wired()
    stream = wired.stream(timeout=None)
    wired.items(b"\x01")
    result(begun(stream.__anext__()))
    wired.clock.pump([STREAM_SILENCE / 4] * 4)
    assert wired.notes() == [0] * 4
    wired.end()
    wired.clock.pump([STREAM_SILENCE / 4] * 4)
    assert len(wired.notes()) == 4
    assert wired.clock.getDelayedCalls() == []


def test_a_lost_server_ends_a_stream() -> None:
    """The items that arrived are given, then RequestLostError."""
    wired, seen = Wired(), list[int]()
    stream = wired.stream()
    wired.items(b"\x01")
    lose(wired)
    with pytest.raises(RequestLostError):
        result(begun(collected(stream, seen)))
    assert seen == [1]
