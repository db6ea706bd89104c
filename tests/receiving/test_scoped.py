"""Resources of a message: open during the call of its handler."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import pytest
from twisted.internet.defer import Deferred

from tests.receiving.test_middleware import KINDS, counted
from zroute import App, Envelope, Reject, RouteInfo, Routes, SignatureError, Topic
from zroute.awaiting import as_awaitable
from zroute.testing import TestApp

Seen = list[Any]
Reactor = Literal["twisted", "asyncio"]
REACTORS: tuple[Reactor, ...] = ("twisted", "asyncio")
both = pytest.mark.parametrize("reactor", REACTORS)
kinds = pytest.mark.parametrize("kind", KINDS)
variable: ContextVar[str | None] = ContextVar("variable", default=None)


class Session:
    """An object that is open for one message."""


class Database:
    """An object of the app."""


class Audit:
    """A second resource of a message, which needs the session."""


def session_of(app: Routes, seen: Seen, *, is_async: bool = False, note: Callable[[], object] | None = None) -> None:
    """Add a session that notes how it opens, ends and closes."""

    def text(word: str) -> object:
        return (word, note()) if note else word

    def session() -> Iterator[Session]:
        seen.append(text("open"))
        try:
            yield Session()
            seen.append(text("commit"))
        except Exception as error:
            seen.append(text(f"rollback {error}"))
            raise
        finally:
            seen.append(text("close"))

    async def later() -> AsyncIterator[Session]:
        seen.append(text("open"))
        await as_awaitable(fired())
        try:
            yield Session()
            await as_awaitable(fired())
            seen.append(text("commit"))
        except Exception as error:
            seen.append(text(f"rollback {error}"))
            raise
        finally:
            seen.append(text("close"))

    app.resource(scope="message")(later if is_async else session)


def fired() -> Deferred[None]:
    """Return a Deferred that has fired."""
    done: Deferred[None] = Deferred()
    done.callback(None)
    return done


def handler_of(kind: str, take: Callable[[Any], Any]) -> Any:
    """Return a handler of the kind that needs a session, and calls ``take`` with each message."""
    options = KINDS[kind]

    def each(message: Any) -> Any:
        return [take(one) for one in message][-1] if isinstance(message, list) else take(message)

    if kind.startswith("async") or kind == "timeout":

        async def handle(session: Session, message: Any) -> Any:
            assert type(session) is Session
            return each(message)

    elif kind == "deferred":

        def handle(message: Any, session: Session) -> Any:
            assert type(session) is Session
            return fired().addCallback(lambda _: each(message))

    else:

        def handle(message: Any, session: Session) -> Any:
            assert type(session) is Session
            return each(message)

    handle.__annotations__ = {"message": list[int] if "batch" in options else int, "session": Session}
    return handle


def fits(kind: str, is_async: bool) -> bool:
    """Return True if the kind of handler can have such a session."""
    return not (is_async and KINDS[kind].get("thread"))


SESSIONS = [(kind, is_async) for kind in KINDS for is_async in (False, True) if fits(kind, is_async)]
sessions = pytest.mark.parametrize(("kind", "is_async"), SESSIONS)


# -- one message -----------------------------------------------------------------------------------------


@both
@sessions
def test_it_opens_for_each_message_and_closes_before_its_result_is_published(
    kind: str, is_async: bool, reactor: Reactor
) -> None:
    """A handler finds an open session, which commits; only then the result is published."""
    app, seen = App(), Seen()
    session_of(app, seen, is_async=is_async)

    @app.publish_middleware
    def sent(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            seen.append(("publish", message))
            return call(message)

        return around

    def take(message: int) -> int:
        seen.append(message)
        return message

    app.publisher("out", int)(app.subscribe("a", **KINDS[kind])(handler_of(kind, take)))
    with TestApp(app, reactor=reactor) as t:
        for number in (1, 2):
            t.publish("a", number)
            assert seen == ["open", number, "commit", "close", ("publish", number)]
            seen.clear()
        assert t.published("out") == [1, 2]
        assert counted(app, "handle()") == {"handled": 2}


@both
@sessions
def test_an_error_of_the_handler_is_raised_in_it(kind: str, is_async: bool, reactor: Reactor) -> None:
    """The session rolls back, and the error reaches on_error and the counters."""
    app, seen, errors = App(), Seen(), Seen()
    session_of(app, seen, is_async=is_async)

    def take(message: int) -> None:
        raise Reject("bad")

    app.subscribe("a", **KINDS[kind])(handler_of(kind, take))

    @app.on_error(Reject)
    def on_error(error: Reject, envelope: Envelope) -> None:
        errors.append(str(error))

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        assert seen == ["open", "rollback bad", "close"]
        assert errors == ["bad"]
        assert counted(app, "handle()") == {"handler_error": 1}


@both
@sessions
def test_it_cannot_hide_an_error(kind: str, is_async: bool, reactor: Reactor) -> None:
    """A resource that catches the error of the handler does not make the message handled."""
    app, seen = App(), Seen()

    if is_async:

        @app.resource(scope="message")
        async def later() -> AsyncIterator[Session]:
            try:
                yield Session()
            except ValueError as error:
                seen.append(str(error))

    else:

        @app.resource(scope="message")
        def session() -> Iterator[Session]:
            try:
                yield Session()
            except ValueError as error:
                seen.append(str(error))

    def take(message: int) -> None:
        raise ValueError("bad")

    app.subscribe("a", **KINDS[kind])(handler_of(kind, take))
    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        t.publish("a", 1)
        t.advance(10)
        again = kind == "retry"
        assert seen == ["bad"] * (1 + again)
        assert [str(error) for error in t.failures] == ["bad"]
        assert counted(app, "handle()") == {"handler_error": 1} | ({"retried": 1} if again else {})


@both
@sessions
@pytest.mark.parametrize("fails", ["open", "commit", "never", "twice"])
def test_an_error_of_the_resource_is_an_error_of_the_handler(
    fails: str, kind: str, is_async: bool, reactor: Reactor
) -> None:
    """The result is not published if the session can't open or commit; a wrong generator is an error as well."""
    app, seen = App(), Seen()

    def session() -> Iterator[Session]:
        if fails == "open":
            raise Reject("open")
        if fails != "never":
            yield Session()
        if fails == "commit":
            raise Reject("commit")
        if fails == "twice":
            yield Session()

    async def async_session() -> AsyncIterator[Session]:
        for each in session():
            yield each

    app.resource(scope="message")(async_session if is_async else session)

    def take(message: int) -> int:
        seen.append(message)
        return message

    app.publisher("out", int)(app.subscribe("a", **KINDS[kind])(handler_of(kind, take)))
    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        t.publish("a", 1)
        t.advance(10)
        assert bool(seen) is (fails in ("commit", "twice"))
        assert t.published("out") == []
        (error,) = t.failures
        assert {"open": "open", "commit": "commit", "never": "yield", "twice": "stop"}[fails] in str(error)
        assert counted(app, "handle()")["handler_error"] == 1
        assert counted(app, "handle()").get("handled", 0) == 0


# -- several resources -----------------------------------------------------------------------------------


def nested(app: App, seen: Seen, *, async_session: bool, async_audit: bool) -> None:
    """Add a database of the app, a session that needs it, and an audit that needs both and a second session."""

    @app.resource
    def database() -> Iterator[Database]:
        seen.append("open database")
        yield Database()
        seen.append("close database")

    def session(database: Database) -> Iterator[Session]:
        assert isinstance(database, Database)
        seen.append("open session")
        try:
            yield Session()
        finally:
            seen.append("close session")

    async def later_session(database: Database) -> AsyncIterator[Session]:
        for each in session(database):
            yield each

    def audit(session: Session, database: Database) -> Iterator[Audit]:
        assert isinstance(session, Session)
        seen.append("open audit")
        try:
            yield Audit()
        finally:
            seen.append("close audit")

    async def later_audit(session: Session, database: Database) -> AsyncIterator[Audit]:
        for each in audit(session, database):
            yield each

    app.resource(scope="message")(later_audit if async_audit else audit)
    app.resource(scope="message")(later_session if async_session else session)


@both
@pytest.mark.parametrize("async_session", [False, True])
@pytest.mark.parametrize("async_audit", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_nested_ones_open_in_order_and_close_in_reverse(
    async_session: bool, async_audit: bool, is_async: bool, reactor: Reactor
) -> None:
    """A resource may need those of the app and of the message; each opens once, only if needed."""
    app, seen = App(), Seen()
    nested(app, seen, async_session=async_session, async_audit=async_audit)

    def both_of_them(message: int, audit: Audit, session: Session, database: Database) -> None:
        seen.append(message)

    async def later(message: int, audit: Audit, session: Session, database: Database) -> None:
        seen.append(message)

    app.subscribe("a")(later if is_async else both_of_them)

    @app.subscribe("b")
    def one(message: int, session: Session) -> None:
        seen.append(message)

    @app.subscribe("c")
    def none(message: int, database: Database) -> None:
        seen.append(message)

    opened, closed = ["open session", "open audit"], ["close audit", "close session"]
    with TestApp(app, reactor=reactor) as t:
        assert seen == ["open database"]
        for topic, around in (("a", (opened, closed)), ("b", (opened[:1], closed[1:])), ("c", ([], []))):
            seen.clear()
            t.publish(topic, 1)
            assert seen == [*around[0], 1, *around[1]]
        seen.clear()
    assert seen == ["close database"]


def test_an_outer_one_closes_with_the_error_of_an_inner_one() -> None:
    """A commit that fails rolls the outer resource back."""
    app, seen = App(), Seen()
    session_of(app, seen)

    @app.resource(scope="message")
    def audit(session: Session) -> Iterator[Audit]:
        yield Audit()
        raise Reject("audit")

    @app.subscribe("a")
    def handle(message: int, audit: Audit) -> None: ...

    with TestApp(app, raise_errors=False) as t:
        t.publish("a", 1)
        assert seen == ["open", "rollback audit", "close"]
        assert counted(app, "handle()") == {"handler_error": 1}


@both
def test_functions_under_contextmanager_work(reactor: Reactor) -> None:
    """They are unwrapped, as for resources of the app."""
    app, seen = App(), Seen()

    @app.resource(scope="message")
    @contextmanager
    def session() -> Iterator[Session]:
        yield Session()
        seen.append("close session")

    @app.resource(scope="message")
    @asynccontextmanager
    async def audit() -> AsyncIterator[Audit]:
        yield Audit()
        seen.append("close audit")

    @app.subscribe("a")
    def handle(message: int, session: Session, audit: Audit) -> None:
        seen.append((type(session), type(audit)))

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
    assert seen[0] == (Session, Audit)
    assert sorted(seen[1:]) == ["close audit", "close session"]


# -- other handlers --------------------------------------------------------------------------------------


@both
def test_each_list_and_each_attempt_has_its_own(reactor: Reactor) -> None:
    """A batch has one session for its list; an attempt that fails rolls its session back."""
    app, seen = App(), Seen()
    session_of(app, seen)

    @app.subscribe("batch", batch=10)
    def batched(messages: list[int], session: Session) -> None:
        seen.append(messages)

    fails = [ValueError("one")]

    @app.subscribe("retry", retry=(1,))
    def again(message: int, session: Session) -> None:
        if fails:
            raise fails.pop()
        seen.append(message)

    with TestApp(app, reactor=reactor) as t:
        t.publish("batch", 1, 2, 3)
        assert seen == ["open", [1, 2, 3], "commit", "close"]
        seen.clear()
        t.publish("retry", 1)
        t.advance(2)
        assert seen == ["open", "rollback one", "close", "open", 1, "commit", "close"]


@both
def test_a_thread_opens_and_closes_it(reactor: Reactor) -> None:
    """A session of a thread handler lives in the thread of the call, for objects that may not change threads."""
    app, seen = App(), Seen()
    session_of(app, seen, note=threading.get_ident)

    @app.subscribe("a", thread=True)
    def handle(message: int, session: Session) -> None:
        seen.append(("handle", threading.get_ident()))

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
    assert [name for name, _ in seen] == ["open", "handle", "commit", "close"]
    (thread,) = {thread for _, thread in seen}
    assert thread != threading.get_ident()


@both
@pytest.mark.parametrize("generator", ["plain", "async"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_keeps_it_open_until_its_last_value(generator: str, is_async: bool, reactor: Reactor) -> None:
    """Its values are published while the session is open; it commits after the last one, or rolls back."""
    app, seen = App(), Seen()
    session_of(app, seen, is_async=is_async)

    def values(message: int, session: Session) -> Iterator[int]:
        for number in range(message):
            seen.append(number)
            yield number
        if message == 1:
            raise ValueError("end")

    async def async_values(message: int, session: Session) -> AsyncIterator[int]:
        for number in values(message, session):
            yield number

    function: Any = async_values if generator == "async" else values
    app.publisher("out", int)(app.subscribe("a")(function))
    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        t.publish("a", 2)
        assert seen == ["open", 0, 1, "commit", "close"]
        seen.clear()
        t.publish("a", 1)
        assert seen == ["open", 0, "rollback end", "close"]
        assert t.published("out") == [0, 1, 0]
        assert [str(error) for error in t.failures] == ["end"]


@both
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("handler", ["async", "generator"])
def test_it_closes_if_a_stop_cancels_its_handler(handler: str, is_async: bool, reactor: Reactor) -> None:
    """A handler that does not end in time is cancelled, and its session closes without a commit."""
    app, seen = App(), Seen()

    def session() -> Iterator[Session]:
        try:
            yield Session()
            seen.append("commit")
        finally:
            seen.append("close")

    async def later() -> AsyncIterator[Session]:
        try:
            yield Session()
            seen.append("commit")
        finally:
            seen.append("close")

    app.resource(scope="message")(later if is_async else session)

    async def wait(message: int, session: Session) -> None:
        await as_awaitable(Deferred())

    async def values(message: int, session: Session) -> AsyncIterator[int]:
        yield message
        await as_awaitable(Deferred())

    function: Any = wait if handler == "async" else app.publisher("out", int)(values)
    app.subscribe("a")(function)
    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        t.publish("a", 1)
        assert seen == []
    assert seen == ["close"]


@both
@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_returns_a_deferred_keeps_it_open(is_async: bool, reactor: Reactor) -> None:
    """The session closes when the Deferred has fired, and rolls back if it fails."""
    app, seen, gates = App(), Seen(), list[Deferred[int]]()
    session_of(app, seen, is_async=is_async)

    @app.publisher("out", int)
    @app.subscribe("a")
    def handle(message: int, session: Session) -> Deferred[int]:
        gates.append(Deferred())
        return gates[-1]

    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        for _ in range(2):
            t.publish("a", 1)
            assert seen == ["open"]
            gates[-1].callback(7)
            t.advance(0)
            assert seen == ["open", "commit", "close"]
            seen.clear()
        t.publish("a", 1)
        gates[-1].errback(ValueError("late"))
        t.advance(0)
        assert seen == ["open", "rollback late", "close"]
        assert t.published("out") == [7, 7]
        assert counted(app, "handle()") == {"handled": 2, "handler_error": 1}


@both
def test_an_async_one_makes_a_plain_handler_wait(reactor: Reactor) -> None:
    """Messages of the topic take turns while the session opens, like those of an async handler."""
    app, seen, gates = App(), Seen(), list[Deferred[None]]()

    @app.resource(scope="message")
    async def session() -> AsyncIterator[Session]:
        gates.append(Deferred())
        await as_awaitable(gates[-1])
        yield Session()

    @app.subscribe("a")
    def handle(message: int, session: Session) -> None:
        seen.append(message)

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1, 2)
        assert (seen, len(gates)) == ([], 1)
        gates[0].callback(None)
        t.advance(0)
        assert (seen, len(gates)) == ([1], 2)
        gates[1].callback(None)
        t.advance(0)
        assert seen == [1, 2]


@both
def test_a_call_that_is_too_late_rolls_back(reactor: Reactor) -> None:
    """A timeout cancels the handler, and its session closes with that error."""
    app, seen = App(), Seen()

    @app.resource(scope="message")
    def session() -> Iterator[Session]:
        try:
            yield Session()
            seen.append("commit")
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    @app.subscribe("a", timeout=1.0)
    async def handle(message: int, session: Session) -> None:
        await as_awaitable(Deferred())

    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        t.publish("a", 1)
        t.advance(2)
        assert seen == ["CancelledError"]
        assert counted(app, "handle()") == {"handler_error": 1, "timed_out": 1}


def test_each_message_of_a_read_has_its_own_context() -> None:
    """A context variable that the resource sets is seen by its handler, and by no other message."""
    app, seen = App(), Seen()

    @app.resource(scope="message")
    def session() -> Iterator[Session]:
        seen.append(variable.get())
        variable.set("open")
        yield Session()

    @app.subscribe("a")
    def handle(message: int, session: Session) -> None:
        seen.append(variable.get())

    with TestApp(app) as t:
        t.publish("a", 1, 2)
    assert seen == [None, "open"] * 2


def test_handlers_with_topic_envelope_and_captures_get_it() -> None:
    """The session may stand anywhere among the parameters, also as the only one, and as Session | None."""
    app, seen = App(), Seen()
    session_of(app, Seen())

    @app.subscribe("a.{x}")
    def every(session: Session, topic: Topic, x: str, message: int, envelope: Envelope) -> None:
        seen.append((type(session), topic, x, message, envelope.topic))

    @app.subscribe("a.*")
    def alone(session: Session) -> None:
        seen.append(type(session))

    @app.subscribe("a.*")
    def optional(message: int, session: Session | None = None) -> None:
        seen.append((message, type(session)))

    @app.subscribe("a.{x}", batch=5)
    def several(session: Session, x: str, messages: list[int]) -> None:
        seen.append((type(session), x, messages))

    with TestApp(app) as t:
        t.publish("a.b", 1)
    assert seen == [(Session, "a.b", "b", 1, "a.b"), Session, (1, Session), (Session, "b", [1])]


def test_attached_handlers_have_it() -> None:
    """A handler that is attached while the app runs gets a session for each message."""
    app, seen = App(), Seen()
    session_of(app, seen)

    def handle(message: int, session: Session) -> None:
        seen.append(message)

    with TestApp(app) as t:
        app.attach("a", handle)
        t.publish("a", 1)
    assert seen == ["open", 1, "commit", "close"]


# -- in tests --------------------------------------------------------------------------------------------


class Fake(Session):
    """A replacement."""


@both
@pytest.mark.parametrize("is_async", [False, True])
def test_a_test_replaces_it(is_async: bool, reactor: Reactor) -> None:
    """The handler gets the object of the test, and the resources that only the replaced one needs stay closed."""
    app, seen = App(), Seen()
    nested(app, seen, async_session=is_async, async_audit=False)
    fake = Fake()

    @app.subscribe("a")
    def handle(message: int, session: Session) -> None:
        seen.append(session is fake)

    @app.subscribe("b")
    def audited(message: int, audit: Audit, session: Session) -> None:
        seen.append(session is fake)

    with TestApp(app, {Session: fake, Database: Database()}, reactor=reactor) as t:
        t.publish("a", 1)
        assert seen == [True]
        seen.clear()
        t.publish("b", 1)
        assert seen == ["open audit", True, "close audit"]
    seen.clear()
    with TestApp(app, {Session: fake, Audit: Audit()}, reactor=reactor) as t:
        t.publish("b", 1)
    assert seen == [True]


# -- with middleware -------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_it_is_open_around_middleware_that_takes_it(takes: bool, is_async: bool, reactor: Reactor) -> None:
    """Otherwise it is open around the handler only; handler and middleware get the same session."""
    app, seen, objects = App(), Seen(), Seen()
    session_of(app, seen)

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            seen.append("in")
            try:
                return call(message)
            finally:
                seen.append("out")

        def taking(message: int, session: Session) -> Any:
            objects.append(session)
            return around(message)

        async def around_async(message: int) -> Any:
            seen.append("in")
            try:
                return await call(message)
            finally:
                seen.append("out")

        async def taking_async(message: int, session: Session) -> Any:
            objects.append(session)
            return await around_async(message)

        if route.is_async:
            return taking_async if takes else around_async
        return taking if takes else around

    def handle(message: int, session: Session) -> None:
        objects.append(session)
        if message == 2:
            raise ValueError("two")

    async def handle_async(message: int, session: Session) -> None:
        handle(message, session)

    app.subscribe("a")(handle_async if is_async else handle)
    with TestApp(app, reactor=reactor, raise_errors=False) as t:
        for number, middle in ((1, "commit"), (2, "rollback two")):
            t.publish("a", number)
            inner = ["open", middle, "close"]
            assert seen == (["open", "in", "out", middle, "close"] if takes else ["in", *inner, "out"])
            seen.clear()
            assert len({id(each) for each in objects}) == 1
            assert len(objects) == 1 + takes
            objects.clear()


@both
@kinds
def test_middleware_takes_it_for_handlers_that_do_not(kind: str, reactor: Reactor) -> None:
    """A session opens if only around needs it; a message that is skipped commits."""
    from tests.receiving.test_middleware import handler_of as plain_handler_of

    app, seen = App(), Seen()
    session_of(app, seen)

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def passes(message: Any) -> bool:
            return message not in (9, [9])

        async def around_async(message: Any, session: Session) -> Any:
            seen.append(type(session))
            return await call(message) if passes(message) else None

        def around(message: Any, session: Session) -> Any:
            seen.append(type(session))
            return call(message) if passes(message) else None

        return around_async if route.is_async else around

    app.subscribe("a", **KINDS[kind])(plain_handler_of(kind, seen.append))
    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
        assert seen == ["open", Session, 1, "commit", "close"]
        seen.clear()
        t.publish("a", 9)
        assert seen == ["open", Session, "commit", "close"]
        assert counted(app, "handle()") == {"handled": 1, "skipped": 1}
    fake = Fake()
    seen.clear()
    with TestApp(app, {Session: fake}, reactor=reactor) as t:
        t.publish("a", 1)
    assert seen == [Fake, 1]


@both
def test_an_async_one_that_middleware_takes_makes_a_plain_handler_wait(reactor: Reactor) -> None:
    """The plain around of a plain handler runs while the async session is open."""
    app, seen = App(), Seen()
    session_of(app, seen, is_async=True)

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def around(message: int, session: Session) -> Any:
            seen.append(type(session))
            return call(message)

        return around

    @app.publisher("out", int)
    @app.subscribe("a")
    def handle(message: int) -> int:
        return message

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1, 2)
        assert seen == ["open", Session, "commit", "close"] * 2
        assert t.published("out") == [1, 2]
        assert counted(app, "handle()") == {"handled": 2}


@both
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("takes", [False, True])
def test_async_middleware_awaits_a_plain_handler_that_takes_an_async_one(
    takes: bool, replaced: bool, reactor: Reactor
) -> None:
    """It awaits call also if the session is open already, or if a test has replaced it."""
    app, seen = App(), Seen()
    session_of(app, seen, is_async=True)

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        assert route.is_async

        async def taking(message: int, session: Session) -> Any:
            return await call(message)

        async def around(message: int) -> Any:
            return await call(message)

        return taking if takes else around

    @app.publisher("out", int)
    @app.subscribe("a")
    def handle(message: int, session: Session) -> int:
        return message

    with TestApp(app, {Session: Fake()} if replaced else {}, reactor=reactor) as t:
        t.publish("a", 1, 2)
        assert t.published("out") == [1, 2]
        assert counted(app, "handle()") == {"handled": 2}
    assert seen == ([] if replaced else ["open", "commit", "close"] * 2)


@both
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_plain_middleware_creates_a_generator_that_takes_an_async_one(
    is_async: bool, replaced: bool, reactor: Reactor
) -> None:
    """The session opens when the generator runs, which is after the middleware."""
    app, seen = App(), Seen()
    session_of(app, seen, is_async=True)

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def around(message: int) -> Any:
            seen.append("around")
            return call(message)

        return around

    def values(message: int, session: Session) -> Iterator[int]:
        yield message

    async def async_values(message: int, session: Session) -> AsyncIterator[int]:
        yield message

    app.publisher("out", int)(app.subscribe("a")(async_values if is_async else values))
    with TestApp(app, {Session: Fake()} if replaced else {}, reactor=reactor) as t:
        t.publish("a", 1)
        assert t.published("out") == [1]
    assert seen == (["around"] if replaced else ["around", "open", "commit", "close"])


@both
def test_middleware_that_takes_an_async_one_leaves_the_facts_of_the_handler(reactor: Reactor) -> None:
    """The route of an on_error function is as async as that of the factory."""
    app, facts = App(), Seen()
    session_of(app, Seen(), is_async=True)

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def around(message: int, session: Session) -> Any:
            return call(message)

        facts.append(route)
        return around

    @app.on_error()
    def failed(error: Exception, envelope: Envelope, route: RouteInfo) -> None:
        facts.append(route)

    @app.subscribe("a")
    def handle(message: int) -> None:
        raise ValueError

    with TestApp(app, reactor=reactor) as t:
        t.publish("a", 1)
    assert len(facts) == 2
    assert facts[0] == facts[1]


# -- what is refused -------------------------------------------------------------------------------------


def asks(session: Session) -> None:
    """A hook that needs a session."""


def asks_and_yields(session: Session) -> Iterator[Database]:
    """A resource of the app that needs a session."""
    yield Database()


def asks_with_error(error: Exception, envelope: Envelope, session: Session) -> None:
    """An on_error function that needs a session."""


REFUSED: dict[str, tuple[Callable[[App], object], str]] = {
    "timer": (
        lambda app: app.every(1.0)(asks),
        r"'session' of asks\(\) needs .*Session, which is open .* \(scope='message'\)",
    ),
    "publisher": (lambda app: app.publisher("a", every=1.0)(asks), "open only while a handler handles a message"),
    "startup": (lambda app: app.on_startup(asks), "open only while .*: remove scope"),
    "shutdown": (lambda app: app.on_shutdown(asks), "open only while"),
    "on_error": (lambda app: app.on_error(Exception)(asks_with_error), r"'session' of asks_with_error\(\)"),
    "resource of the app": (
        lambda app: app.resource(asks_and_yields),
        r"asks_and_yields\(\) is open while the app runs, but needs .*: set scope='message' for asks_and_yields\(\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_without_a_message_cannot_have_it(name: str) -> None:
    """Timers, hooks and resources of the app are refused, with the line and a remedy."""
    add, text = REFUSED[name]
    app = App()
    session_of(app, Seen())
    add(app)
    with pytest.raises(SignatureError, match=text) as raised:
        app.compile()
    assert "tests/receiving/test_scoped.py:" in str(raised.value.where)


def test_an_async_one_cannot_be_in_a_thread() -> None:
    """A thread has no reactor to run it; also if only another resource, or middleware, needs it."""
    for through in ("handler", "resource", "middleware"):
        app = App()
        session_of(app, Seen(), is_async=True)

        @app.resource(scope="message")
        def audit(session: Session) -> Iterator[Audit]:
            yield Audit()

        if through == "middleware":

            @app.middleware
            def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
                def around(message: int, session: Session) -> Any:
                    return call(message)

                return around

        def handle(message: int, needed: Any) -> None: ...

        needed: Any = {"handler": Session, "resource": Audit}.get(through)
        handle.__annotations__["needed"] = needed
        function: Any = handle if needed else lambda message: None
        app.subscribe("a", thread=True)(function)
        with pytest.raises(SignatureError, match=r"runs in a thread, which .* async resource later\(\) at "):
            app.compile()


def test_a_generator_and_middleware_cannot_share_it() -> None:
    """The middleware of a generator ends before its values, so a session could not stay open."""
    app = App()
    session_of(app, Seen())

    @app.middleware
    def note(call: Callable[[Any], Any], route: RouteInfo) -> Any:
        def around(message: int, session: Session) -> Any:
            return call(message)

        return around

    @app.publisher("out", int)
    @app.subscribe("a")
    def values(message: int) -> Iterator[int]:
        yield message

    with pytest.raises(
        SignatureError,
        match=r"values\(\) is a generator .*: in the middleware, return call if route.is_generator is True",
    ):
        app.compile()


def test_the_scope_is_known() -> None:
    """Another word is refused at the line of the decorator."""
    with pytest.raises(SignatureError, match="scope='request': expected 'app' or 'message'"):
        App().resource(scope="request")  # type: ignore[call-overload]
