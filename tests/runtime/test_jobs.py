"""Job queues and handlers of jobs in apps, on virtual time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import pytest

from zroute import App, Envelope, Limits, RouteInfo, Routes, Topic, startswith
from zroute.errors import (
    DecodeError,
    DuplicateRouteError,
    EncodeError,
    EndpointError,
    HighWaterMarkError,
    JobFailedError,
    NotRunningError,
    PatternError,
    Reject,
    SignatureError,
    TopicError,
    UsageError,
)
from zroute.stats import JobStats
from zroute.testing import TestApp, UnfinishedError

JOBS, PUB = "tcp://127.0.0.1:5558", "tcp://127.0.0.1:5556"


class Database(dict[str, int]):
    """A resource."""


@attrs.frozen
class Resize:
    """A job."""

    path: str
    size: int = 1


def farm(**options: Any) -> tuple[App, Any]:
    """Return an owner with a queue that puts each message of ``put``."""
    owner = App(jobs=JOBS, pub=PUB, sub="tcp://127.0.0.1:1", name="owner")
    queue = owner.job_queue("jobs.{kind}", Resize, **options)

    @owner.subscribe("put.{kind}")
    async def put(job: Resize, kind: str, envelope: Envelope) -> None:
        await queue.put(job, kind=kind, headers=envelope.headers or None)

    return owner, queue


# -- sharing ---------------------------------------------------------------------------------------------


def test_a_job_reaches_a_handler_with_its_parameters() -> None:
    """Parameters are those of a subscription: body, captures, topic, envelope, resources."""
    owner, queue = farm()
    worker, seen = App(work=JOBS), []

    @worker.resource
    def database() -> Iterator[Database]:
        yield Database(a=1)

    @worker.work("jobs.{kind}")
    async def run(job: Resize, kind: str, topic: Topic, envelope: Envelope, db: Database) -> None:
        seen.append((job, kind, topic, envelope.headers, envelope.body != b"", db))

    with TestApp(owner, worker) as t:
        t.publish("put.resize", Resize("a.png"), headers={"trace": "7"})
        assert seen == [(Resize("a.png"), "resize", "jobs.resize", {"trace": "7"}, True, {"a": 1})]
        assert queue.stats == owner.stats.jobs["jobs.{kind}"] == JobStats(put=1, done=1)
        assert owner.stats.workers == 1
        assert worker.stats.routes["run()"].handled == 1


@pytest.mark.parametrize("shape", ["thread", "reactor", "async", "asyncio"])
def test_handlers_of_each_shape_do_jobs(shape: str) -> None:
    """Plain functions run in threads unless they say otherwise, and async ones on the reactor."""
    import threading

    worker, seen = App(work=JOBS), []

    def plain(job: int) -> None:
        seen.append((job, threading.current_thread() is threading.main_thread()))

    async def later(job: int) -> None:
        seen.append((job, threading.current_thread() is threading.main_thread()))

    if shape in ("thread", "reactor"):
        worker.work("jobs", thread=None if shape == "thread" else False)(plain)
    else:
        worker.work("jobs")(later)
    with TestApp(worker, reactor="asyncio" if shape == "asyncio" else None) as t:
        t.put("jobs", *range(20))
    assert sorted(seen) == [(number, shape != "thread") for number in range(20)]


def test_an_app_without_endpoints_does_its_own_jobs() -> None:
    """A loop inside the process, which also works off its jobs at the stop."""
    app, seen = App(), []
    queue = app.job_queue("jobs", int)

    @app.on_startup
    def begin() -> None:
        for number in range(3):
            queue.put_nowait(number)

    @app.work("jobs")
    async def run(number: int) -> None:
        seen.append(number)
        if number == 2:
            await queue.put(3)

    with TestApp(app):
        pass
    assert seen == [0, 1, 2, 3]


def test_workers_of_a_process_that_stops_work_off_the_jobs_of_its_owners() -> None:
    """All apps of a program stop at once, and the jobs of the owner are done first."""
    owner, worker, seen = App(jobs="tcp://*:5558"), App(work="tcp://localhost:5558"), []
    queue = owner.job_queue("jobs", int, waiting=5)

    @owner.on_startup
    def begin() -> None:
        for number in range(5):
            queue.put_nowait(number)

    @worker.work("jobs", max_in_flight=1)
    async def run(number: int) -> None:
        from twisted.internet.defer import Deferred
        from twisted.internet.task import deferLater

        waiting: Deferred[None] = deferLater(bed._services[0].reactor, 0.5, lambda: None)
        await waiting
        seen.append(number)

    bed = TestApp(worker, owner)
    with bed:
        pass
    assert seen == [0, 1, 2, 3, 4]
    assert queue.stats == JobStats(put=5, done=5)


def test_the_most_specific_handler_gets_the_job() -> None:
    """A job is done once, even if several patterns match."""
    worker, seen = App(work=JOBS), []
    worker.work("jobs.{kind}")(lambda body: seen.append("capture"))
    worker.work("jobs.resize")(lambda body: seen.append("exact"))
    worker.work(startswith("jobs"))(lambda body: seen.append("prefix"))
    with TestApp(worker) as t:
        for topic in ("jobs.resize", "jobs.crop", "jobs.a.b"):
            t.put(topic, 1)
    assert seen == ["exact", "capture", "prefix"]


def test_results_are_published_and_middleware_surrounds() -> None:
    """A handler of jobs is a handler: publishers take its results, and middleware knows its kind."""
    worker, around = App(work=JOBS, pub=PUB), []

    @worker.middleware
    def noted(call: Any, route: RouteInfo) -> Any:
        def inner(message: Any) -> Any:
            around.append((route.kind, message))
            return call(message)

        return inner

    @worker.publisher("done.{kind}", str)
    @worker.work("jobs.{kind}")
    def run(job: int, kind: str) -> str:
        return f"{job} {kind}"

    with TestApp(worker) as t:
        t.put("jobs.resize", 5)
        assert t.published("done.>") == ["5 resize"]
    assert around == [("work", 5)]


def test_a_list_of_jobs_is_done_or_fails_together() -> None:
    """A handler with ``batch`` gets lists; each job of a failed one is tried again."""
    worker, lists = App(work=JOBS), []

    @worker.work("jobs", batch=3, max_in_flight=1)
    def run(jobs: list[int]) -> None:
        lists.append(jobs)
        if len(lists) == 1:
            raise ValueError("once")

    with TestApp(worker) as t:
        t.put("jobs", 1, 2, 3, 4, retry=(1,))
        t.advance(1)
        assert worker.stats.routes["run()"].handled == 4
    assert lists[0] == [1, 2, 3]
    assert sorted(number for each in lists[1:] for number in each) == [1, 2, 3, 4]


# -- failures --------------------------------------------------------------------------------------------


def test_attempts_delays_and_the_dead_letter() -> None:
    """A job is tried after each delay; then its body is published with the reason."""
    owner, queue = farm(retry=(1, 5), dead="dead.{kind}")
    worker, calls = App(work=JOBS), []

    @worker.work("jobs.{kind}")
    def run(job: Resize) -> None:
        calls.append(job)
        raise OSError("no space left")

    with TestApp(owner, worker) as t:
        t.publish("put.resize", Resize("a.png"), headers={"trace": "7"})
        for seconds, number in ((0.9, 1), (0.1, 2), (4.9, 2), (0.1, 3), (100, 3)):
            t.advance(seconds)
            assert len(calls) == number
        (letter,) = t.envelopes("dead.>")
        assert t.published("dead.resize", Resize) == [Resize("a.png")]
        assert letter.topic == "dead.resize"
        assert letter.headers == {
            "trace": "7",
            "zr-topic": "jobs.resize",
            "zr-error": "OSError: no space left",
            "zr-attempts": 3,
        }
        assert queue.stats == JobStats(put=1, failed=1, retried=2, dead=1)
        assert worker.stats.routes["run()"].handler_error == 3


@pytest.mark.parametrize("fault", ["reject", "decode"])
def test_some_jobs_are_given_up_at_once(fault: str) -> None:
    """A rejected job and one that can't be read are not tried again."""
    owner, queue = farm(retry=(1, 5), dead="dead.{kind}")
    worker = App(work=JOBS)

    def reject(job: Resize) -> None:
        raise Reject("no such file")

    worker.work("jobs.{kind}")(reject if fault == "reject" else _takes_int)
    with TestApp(owner, worker) as t:
        t.publish("put.resize", Resize("a.png"))
        t.advance(10)
        (letter,) = t.envelopes("dead.>")
        expected = "Reject: no such file" if fault == "reject" else "DecodeError: "
        assert letter.headers["zr-error"].startswith(expected)
        assert letter.headers["zr-attempts"] == 1
    assert queue.stats.retried == 0


def test_a_job_without_a_dead_topic_reaches_on_error_of_its_owner() -> None:
    """The worker's function gets each error, and the owner's the end of the job."""
    owner, _ = farm(retry=(1,))
    worker, at_owner, at_worker = App(work=JOBS), [], []

    @owner.on_error()
    def given_up(error: Exception, envelope: Envelope, attempts: int) -> None:
        at_owner.append((error, envelope.topic, attempts))

    @worker.on_error()
    def failed(error: Exception, envelope: Envelope, route: RouteInfo, attempts: int) -> None:
        at_worker.append((str(error), envelope.topic, route.kind, attempts))

    @worker.work("jobs.{kind}")
    async def run(job: Resize) -> None:
        raise OSError("no")

    with TestApp(owner, worker) as t:
        t.publish("put.resize", Resize("a.png"))
        t.advance(1)
    assert at_worker == [("no", "jobs.resize", "work", 1), ("no", "jobs.resize", "work", 2)]
    ((error, topic, attempts),) = at_owner
    assert isinstance(error, JobFailedError)
    assert (error.reason, error.topic, error.attempts) == ("OSError: no", "jobs.resize", 2)
    assert (topic, attempts) == ("jobs.resize", 2)


def test_a_test_that_puts_a_job_gets_the_error_of_its_last_attempt() -> None:
    """An earlier attempt raises nothing in the test."""
    worker, calls = App(work=JOBS), []

    @worker.work("jobs")
    def run(job: int) -> None:
        calls.append(job)
        if job or len(calls) < 2:
            raise ValueError(f"bad {job}")

    with TestApp(worker) as t:
        t.put("jobs", 0, retry=(5,))
        assert len(calls) == 1
        t.advance(5)
        assert len(calls) == 2
        t.put("jobs", 1, retry=(5,))
        with pytest.raises(ValueError, match="bad 1"):
            t.advance(5)
        with pytest.raises(UsageError, match="no app of the test works on this topic"):
            t.put("other", 1)


@pytest.mark.parametrize("batch", [None, 2])
def test_system_exit_stops_the_worker_and_is_no_failure_there(batch: int | None) -> None:
    """As for messages, no hook is called, and the job counts as handled; at its owner, it has failed."""
    worker, hooked = App(work=JOBS, name="worker"), list[object]()

    def leave(jobs: Any) -> None:
        raise SystemExit(3)

    async def one(job: Resize) -> None:
        leave(job)

    async def several(jobs: list[Resize]) -> None:
        leave(jobs)

    worker.work("jobs.{kind}", batch=batch)(several if batch else one)
    worker.on_error(BaseException)(lambda error, envelope: hooked.append(error))
    with TestApp(worker, raise_errors=False) as t:
        t.put("jobs.a", Resize("x.png"), Resize("y.png"))
        t.advance(1)
        assert t.exit_code == 3
        exits = [error for error in t.failures if isinstance(error, SystemExit)]
    assert hooked == []
    assert (worker.stats.handled, worker.stats.failed) == (2, 0)
    assert len(exits) == (1 if batch else 2)


def test_a_timeout_is_a_failure() -> None:
    """An async call that takes too long is cancelled, and the job is tried again."""
    worker, calls = App(work=JOBS), []

    @worker.work("jobs", timeout=2.0)
    async def run(job: int) -> None:
        from twisted.internet.defer import Deferred

        calls.append(job)
        if len(calls) == 1:
            await Deferred()

    with TestApp(worker) as t:
        t.put("jobs", 1, retry=(0,))
        t.advance(2)
        assert worker.stats.routes["run()"].timed_out == 1
    assert calls == [1, 1]


def test_a_body_that_can_not_be_decoded_is_not_a_call() -> None:
    """It is counted and logged where it is read."""
    worker = App(work=JOBS)
    worker.work("jobs")(_takes_int)
    with TestApp(worker) as t, pytest.raises(DecodeError):
        t.put("jobs", "text")
    assert worker.stats.routes["_takes_int()"].decode_error == 1


def _takes_int(job: int) -> None:
    raise AssertionError("not called")


# -- putting ---------------------------------------------------------------------------------------------


def test_errors_of_a_put_are_raised_before_anything_is_sent() -> None:
    """A wrong job, a wrong topic and a large job are errors of the caller."""
    owner = App(jobs=JOBS)
    queue = owner.job_queue("jobs.{kind}", Resize, waiting=1)
    errors: list[Exception] = []

    @owner.on_startup
    async def put() -> None:
        wrong: Any = 5
        for job, captures in ((wrong, {"kind": "a"}), (Resize("a"), {}), (Resize("a"), {"kind": "a.b"})):
            with pytest.raises((EncodeError, TopicError)) as caught:
                await queue.put(job, **captures)
            errors.append(caught.value)
        with pytest.raises(EncodeError, match="more than max_message=1048576"):
            await queue.put(Resize("x" * 2_000_000), kind="a")
        await queue.put(Resize("a"), kind="a")
        with pytest.raises(HighWaterMarkError, match=r"the job queue .* is full"):
            queue.put_nowait(Resize("a"), kind="a")

    with pytest.raises(UnfinishedError, match=r"jobs of .jobs.\{kind\}. that were not done: 1"), TestApp(owner):
        pass
    assert "call put(..., kind=…)" in str(errors[1])
    assert "can't put this job" in str(errors[0])


def test_a_queue_of_no_running_app_says_so() -> None:
    """A put before the start or after the stop is an error."""
    owner, queue = farm()
    with pytest.raises(NotRunningError, match="no running app includes this queue"):
        queue.put_nowait(Resize("a"), kind="a")
    with TestApp(owner):
        pass
    with pytest.raises(NotRunningError):
        queue.put_nowait(Resize("a"), kind="a")


def test_queues_and_handlers_of_a_group_have_its_prefix() -> None:
    """Jobs, handlers and dead letters of a group are under its prefix."""
    group, seen = Routes("desk"), []
    queue = group.job_queue("jobs.{kind}", int, dead="dead.{kind}")
    group.work("jobs.{kind}")(lambda body, kind: seen.append((body, kind)))

    @group.every(10, initial_delay=1)
    async def put() -> None:
        await queue.put(1, kind="a")

    app = App()
    app.include(group)
    with TestApp(app) as t:
        t.advance(1)
        assert list(app.stats.jobs) == ["desk.jobs.{kind}"]
    assert seen == [(1, "a")]


# -- set-up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"retry": (1,)}, "only the owner of the jobs retries a job, with app.job_queue"),
        ({"dead": "dead"}, "only the owner of the jobs publishes dead letters"),
        ({"ordered": True}, "jobs have no order"),
        ({"stale_after": 1.0}, "a job has no maximum age"),
        ({"queue": 5}, "only the owner of the jobs limits waiting jobs"),
        ({"copy": True}, "only one handler receives each job"),
    ],
)
def test_work_refuses_options_that_do_not_fit_jobs(options: Mapping[str, Any], reason: str) -> None:
    """The error names the option, the reason, and what to do."""
    with pytest.raises(SignatureError, match=f"work does not accept {next(iter(options))}=: .*{reason}"):
        App(work=JOBS).work("jobs", **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"waiting": 0}, "waiting=0: expected a number of jobs"),
        ({"silent_after": 0}, "silent_after=0: expected a number of seconds"),
        ({"silent_after": float("inf")}, "silent_after=inf"),
        ({"retry": 5}, "retry=5: expected a tuple of delays"),
        (
            {"dead": "dead.{other}"},
            r"nothing fills {other}, because 'jobs.{kind}' has no such capture: .* of that pattern",
        ),
        ({"dead": "dead.*"}, "use a capture of 'jobs.{kind}' instead"),
    ],
)
def test_a_job_queue_refuses_options_out_of_range(options: Mapping[str, Any], text: str) -> None:
    """The error names the option and what was expected."""
    with pytest.raises(SignatureError, match=text):
        App(jobs=JOBS).job_queue("jobs.{kind}", int, **options)


def test_a_job_queue_is_no_decorator() -> None:
    """Neither a queue nor a call without a pattern decorates; the errors show the two lines to write."""
    app = App(jobs=JOBS)
    queue: Any = app.job_queue("jobs.{kind}", int)
    with pytest.raises(SignatureError, match=r"is not a decorator: .*@app\.work\('jobs\.{kind}'\) above") as caught:
        queue(_takes_int)
    assert caught.value.where
    for wrong, text in (
        (_takes_int, r"can't be used as a decorator: write jobs = app\.job_queue\('jobs\.{kind}', Job\)"),
        (
            Resize,
            r"expected the pattern .* as the first argument, as in app\.job_queue\('resize\.{kind}', Resize\)",
        ),
    ):
        with pytest.raises(PatternError, match=text):
            App(jobs=JOBS).job_queue(wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize(("name", "advice"), [("publisher", "'news.{name}'"), ("requester", "be used as a decorator")])
def test_advice_about_a_missing_pattern_can_be_followed(name: str, advice: str) -> None:
    """Publishers and requesters refuse wildcards, so no example for them has one."""
    with pytest.raises(PatternError, match=f"^[^*]*{name} needs a pattern[^*]*{advice}[^*]*$"):
        getattr(App(), name)(_takes_int)


def test_a_put_with_a_timeout_says_how_to_limit_the_time() -> None:
    """``timeout`` is no option of put(), and no capture."""
    owner, queue = farm()
    errors: list[str] = []

    @owner.on_startup
    def put() -> None:
        with pytest.raises(TopicError) as caught:
            queue.put_nowait(Resize("a"), kind="a", timeout=2)
        errors.append(str(caught.value))

    with TestApp(owner):
        pass
    assert "has no capture 'timeout'; it has kind; put() has no timeout option: to limit" in errors[0]
    assert "asyncio.timeout" in errors[0]


def test_an_invalid_job_is_an_error_whether_or_not_there_is_room() -> None:
    """A full queue does not hide a wrong type, a missing capture or wrong headers."""
    owner, queue = farm(waiting=1)

    @owner.on_startup
    async def put() -> None:
        queue.put_nowait(Resize("a"), kind="a")
        for kind, job, given in (
            (EncodeError, 5, {"kind": "a"}),
            (TopicError, Resize("a"), {}),
            (EncodeError, Resize("a"), {"kind": "a", "headers": {"a": object()}}),
        ):
            with pytest.raises(kind):
                queue.put_nowait(job, **given)
            with pytest.raises(kind):
                await queue.put(job, **given)

    with pytest.raises(UnfinishedError), TestApp(owner):
        pass


def test_a_job_queue_refuses_wildcards() -> None:
    """A job has one topic."""
    with pytest.raises(PatternError, match="can't put a job to several topics"):
        App(jobs=JOBS).job_queue("jobs.*", int)


def test_two_equal_handlers_of_jobs_are_refused() -> None:
    """A job is given to one handler; a subscription of the same pattern is no duplicate."""
    app = App(work=JOBS, sub="tcp://127.0.0.1:1")
    app.work("jobs.{a}")(lambda body: None)
    app.subscribe("jobs.{a}")(lambda body: None)
    app.compile()
    app = App(work=JOBS)
    app.work("jobs.{a}")(lambda body: None)
    app.work("jobs.{b}")(lambda message: None)
    with pytest.raises(DuplicateRouteError, match="only one handler gets a job"):
        app.compile()


def test_two_equal_job_queues_are_refused() -> None:
    """They would share the name of their counters; the error names both lines."""
    app = App(jobs=JOBS)
    app.job_queue("jobs.{a}", int)
    routes = Routes("jobs")
    routes.job_queue("{a}", str)
    app.include(routes)
    with pytest.raises(
        DuplicateRouteError, match=r"test_jobs\.py:\d+.*'jobs\.\{a\}' is declared twice.*test_jobs\.py:\d+"
    ):
        app.compile()


def test_a_side_without_an_endpoint_is_refused() -> None:
    """The error says which endpoint is missing, and what to write."""
    app = App(sub="tcp://127.0.0.1:1")
    app.job_queue("jobs", int)
    with pytest.raises(EndpointError, match="no endpoint to send jobs from: write App\\(jobs="):
        app.endpoints()
    app = App(sub="tcp://127.0.0.1:1")
    app.work("jobs")(_takes_int)
    with pytest.raises(EndpointError, match="no endpoint to receive jobs from: write App\\(work="):
        app.endpoints()
    app = App(jobs=JOBS)
    app.job_queue("jobs", int, dead="dead")
    with pytest.raises(EndpointError, match="has no endpoint to publish to"):
        app.endpoints()
    app = App(jobs=JOBS, pub=PUB, wire="plain")
    app.job_queue("jobs", int, dead="dead")
    with pytest.raises(SignatureError, match="needs wire='tracked'"):
        app.compile()


def test_the_last_line_has_the_counters_of_jobs(caplog: pytest.LogCaptureFixture) -> None:
    """The counters of all queues are added up."""
    from zroute.runtime.reports import log_counters

    caplog.set_level(logging.INFO)
    owner, _ = farm()
    worker = App(work=JOBS, name="worker")
    worker.work("jobs.{kind}")(lambda body: None)
    with TestApp(owner, worker) as t:
        t.publish("put.a", Resize("a"))
        for service in t._services:
            log_counters(service)
    lines = [record.getMessage() for record in caplog.records]
    assert any("jobs_put 1, jobs_done 1, jobs_failed 0" in line for line in lines)
    assert any(line.startswith("worker: handled 1, failed 0") for line in lines)


def test_a_job_whose_topic_has_another_type_is_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """The owner, the worker's log, its counters and the dead letter say which capture does not fit."""
    owner, queue = farm(retry=(1,), dead="dead.{kind}")
    worker = App(work=JOBS)

    @worker.work("jobs.{kind}")
    def run(job: Resize, kind: int) -> None: ...

    with TestApp(owner, worker) as t:
        t.publish("put.x", Resize("a.png"))
        (letter,) = t.envelopes("dead.>")
        assert letter.headers["zr-error"] == "DecodeError: capture {kind}: expected int, got 'x'"
        assert worker.stats.routes["run()"].decode_error == 1
    assert "run(): job 'jobs.x' refused: capture {kind}: expected int, got 'x'" in caplog.text
    assert queue.stats == JobStats(put=1, failed=1, dead=1)
    with TestApp(worker) as t, pytest.raises(DecodeError, match="expected int, got 'x'"):
        t.put("jobs.x", Resize("a.png"))


def test_a_job_over_the_limit_of_the_worker_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A worker may accept smaller jobs than its owner."""
    owner, _ = farm(dead="dead.{kind}")
    worker = App(work=JOBS, limits=Limits(max_message=50))

    @worker.work("jobs.{kind}")
    def run(job: Resize) -> None: ...

    with TestApp(owner, worker) as t:
        t.publish("put.x", Resize("a" * 100))
        (letter,) = t.envelopes("dead.>")
        assert letter.headers["zr-error"].startswith("DecodeError: a body of ")
        assert worker.stats.routes["run()"].decode_error == 1
    assert "run(): job 'jobs.x' refused: a body of " in caplog.text


@pytest.mark.parametrize(
    ("body", "reason"), [(1, "Reject: no"), (2, "ValueError: bad"), ("text", "DecodeError: "), (3, "RuntimeError: ")]
)
def test_dead_letters_of_jobs_and_messages_have_the_same_reason(body: object, reason: str) -> None:
    """The header ``zr-error`` does not depend on the kind of the handler."""
    app = App(jobs=JOBS, work=JOBS, pub=PUB, sub="tcp://127.0.0.1:1")
    queue = app.job_queue("jobs", dead="dead.job")

    def run(number: int) -> None:
        if number == 3:
            raise RuntimeError("no running event loop")
        raise Reject("no") if number == 1 else ValueError("bad")

    app.work("jobs")(run)
    app.subscribe("messages", dead="dead.message")(run)

    @app.subscribe("put")
    async def put(job: Any) -> None:
        await queue.put(job)

    with TestApp(app) as t:
        t.publish("put", body)
        t.publish("messages", body)
        first, second = [letter.headers["zr-error"] for letter in t.envelopes("dead.>")]
    assert first == second
    assert first.startswith(reason)


def test_an_app_without_endpoints_logs_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    """The only worker is the app itself: no line says that it joins, leaves or sees its owner stop."""
    import asyncio

    caplog.set_level(logging.INFO)
    app = App()
    queue = app.job_queue("jobs", int)
    app.work("jobs")(lambda body: None)

    async def main() -> None:
        async with app.running():
            await queue.put(1)

    asyncio.run(main())
    assert queue.stats.done == 1
    assert not [line for line in caplog.messages if "worker" in line or "owner" in line]


# -- tests of owners -------------------------------------------------------------------------------------


def test_a_test_of_an_owner_sees_its_jobs_without_a_worker() -> None:
    """``t.jobs`` has the jobs of the apps as envelopes, and lets the test end while these jobs wait."""
    owner, queue = farm()
    with TestApp(owner) as t:
        t.publish("put.a", Resize("a.png"), headers={"trace": "7"})
        t.publish("put.b", Resize("b.png"))
        assert [job.topic for job in t.jobs()] == ["jobs.a", "jobs.b"]
        (job,) = t.jobs("jobs.a")
        assert (job.headers, b"a.png" in job.body) == ({"trace": "7"}, True)
        t.clear()
        assert t.jobs() == []
    assert queue.stats == JobStats(put=2, dropped_at_shutdown=2)


def test_a_test_that_does_not_look_at_the_jobs_of_an_owner_says_what_is_missing() -> None:
    """The error names the topic and both remedies."""
    owner, _ = farm()

    def whole() -> None:
        with TestApp(owner) as t:
            t.publish("put.a", Resize("a.png"))

    with pytest.raises(
        UnfinishedError, match=r"no app .* accepts jobs .* 'jobs\.a': add a .*TestApp\(owner, .* t\.jobs\(\)"
    ):
        whole()


def test_jobs_of_a_worker_in_the_test_must_end_although_the_test_looks_at_them() -> None:
    """Only jobs that no app works on may be left; jobs of the test itself are not among those of the apps."""
    owner, _ = farm()
    worker = App(work=JOBS)

    @worker.work("jobs.slow")
    async def run(job: Resize) -> None:
        from twisted.internet.defer import Deferred

        forever: Deferred[None] = Deferred()
        await forever

    worker.work("jobs.fast")(lambda body: None)

    def whole() -> None:
        with TestApp(owner, worker) as t:
            t.put("jobs.fast", Resize("a.png"))
            t.publish("put.slow", Resize("a.png"))
            t.publish("put.other", Resize("a.png"))
            assert [job.topic for job in t.jobs()] == ["jobs.slow", "jobs.other"]

    with pytest.raises(
        UnfinishedError, match=r"jobs of 'jobs\.{kind}' that were not done: 1, run\(\): 1; wait until they end"
    ):
        whole()
