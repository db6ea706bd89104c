"""`JobQueue`, the result of ``app.job_queue``, and its compiled form.

A `JobQueue` is similar to a `zroute.publishing.publication.Publication`: both classes encode messages and fill captures
in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import get_ident
from typing import Any, Generic, Never, TypeVar

import attrs

from zroute.awaiting import awaitable_anywhere
from zroute.errors import EncodeError, NotRunningError, SignatureError, WrongThreadError
from zroute.functions import users_line
from zroute.jobs.owner import OwnedQueue, Settings
from zroute.messages.codecs import Codec
from zroute.messages.topics import Pattern
from zroute.options import TOPICS_NOTED
from zroute.publishing.headers import USE_HEADERS, WithHeaders
from zroute.publishing.publication import Encode, capture_values, filled
from zroute.stats import JobStats

__all__ = ["CompiledJobQueue", "JobQueue"]

T = TypeVar("T")


class JobQueue(Generic[T]):
    """The jobs of one type and pattern that an app distributes to workers.

    ``app.job_queue(pattern, schema)`` returns a job queue.

    Attributes:
        pattern: The pattern of the jobs' topics, without the prefixes of groups.
        schema: The type of the jobs; None if zroute encodes each job by the job's own type.
        codec: The codec of the jobs; None for the app's codec.
        settings: The attempts and the limits.
        dead: The pattern of the topics of dead letters; None without dead letters.
        where: The line of the declaration.
    """

    def __init__(
        self, pattern: Pattern, schema: Any, codec: Codec | None, settings: Settings, dead: Pattern | None, where: str
    ) -> None:
        self.pattern = pattern
        self.schema = schema
        self.codec = codec
        self.settings = settings
        self.dead = dead
        self.where = where
        self._outlets: tuple[CompiledJobQueue, ...] = ()
        self._stats = JobStats()

    async def put(self, job: T, /, *, headers: Mapping[str, Any] | None = None, **captures: object) -> None:
        """Add a job; if the queue is full, wait for room.

        This method returns when the job has been added, not when the job is done. The app keeps the job until a worker
        has done it, or until the last attempt has failed. If this process ends before that, the job is lost.

        Example:
            ```python
            await resize.put(Resize("cat.png", 640), kind="resize")
            ```

        Args:
            job: A job of the schema.
            headers: A small map with text keys, for the ``Envelope`` of the handler.
            captures: Values for the captures of the pattern. zroute reads a missing value from the attribute or key
                with the same name in the job.

        Raises:
            NotRunningError: No app that includes this queue is running, or the app stops while the job waits for room.
            TopicError: A capture is missing, or its value is not valid in a topic.
            EncodeError: The job does not match the schema, would not arrive unchanged, or exceeds ``max_message``.
            WrongThreadError: The caller is not in the reactor's thread; use `App.from_thread`.
        """
        for outlet in self._running():
            await awaitable_anywhere(outlet.owned.put(*outlet.encoded(job, captures), headers))

    def put_nowait(self, job: T, /, *, headers: Mapping[str, Any] | None = None, **captures: object) -> None:
        """Add a job if there is room.

        The arguments are those of `put`.

        Raises:
            HighWaterMarkError: The queue is full (option ``waiting``). Other errors are those of `put`.
        """
        for outlet in self._running():
            outlet.owned.put_nowait(*outlet.encoded(job, captures), headers)

    @property
    def stats(self) -> JobStats:
        """The counters of the current run, or of the last run.

        The same counters are in ``app.stats.jobs``. If several apps include this queue, the counters are those of the
        app that started last.
        """
        return self._stats

    def __call__(self, function: Never, /) -> None:
        """Raise SignatureError: a job queue is no decorator."""
        raise SignatureError(
            f"{self} is not a decorator: call put() to add jobs, and write @app.work({self.pattern.text!r}) above "
            "the function that does the jobs",
            where=users_line(function),
        )

    def _running(self) -> tuple[CompiledJobQueue, ...]:
        if not self._outlets:
            raise NotRunningError(
                f"cannot put a job into the job queue {self.pattern.text!r} ({self.where}): no running app includes "
                "this queue. Include the Routes of the queue in an app, and call put() while the app runs: in a "
                "handler, a timer, or a function under @app.on_startup"
            )
        return self._outlets

    def __repr__(self) -> str:
        return f"<JobQueue {self.pattern.text!r} at {self.where}>"


@attrs.define(eq=False)
class CompiledJobQueue:
    """A job queue as one app uses it, with whole patterns and a bound encoder.

    Attributes:
        queue: The queue that the user declared.
        pattern: The pattern, including the prefixes of groups.
        dead: The pattern of dead letters, including the prefixes of groups.
        encode: Returns the codec number and the body of a job.
        schema: The type of the jobs; None if the type is unknown.
    """

    queue: JobQueue[Any]
    pattern: Pattern
    dead: Pattern | None
    encode: Encode
    schema: Any
    _owned: OwnedQueue | None = attrs.field(init=False, default=None)
    _most: int = attrs.field(init=False, default=0)
    _thread: int = attrs.field(init=False, default=0)
    _topics: dict[tuple[object, ...], bytes] = attrs.field(init=False, factory=dict)

    @property
    def settings(self) -> Settings:
        """The settings of the queue, with the whole pattern as the name."""
        return attrs.evolve(self.queue.settings, name=self.pattern.text)

    @property
    def owned(self) -> OwnedQueue:
        """The queue of the running owner."""
        assert self._owned is not None
        return self._owned

    def open(self, owned: OwnedQueue, max_message: int) -> None:
        """Enable `JobQueue.put` for jobs of at most ``max_message`` bytes."""
        self._owned = owned
        self._most, self._thread = max_message, get_ident()
        self.queue._outlets, self.queue._stats = (*self.queue._outlets, self), owned.stats

    def close(self) -> None:
        """Disable `JobQueue.put`. A second call does nothing."""
        self._topics.clear()
        self.queue._outlets = tuple(outlet for outlet in self.queue._outlets if outlet is not self)

    def encoded(self, job: Any, captures: Mapping[str, object]) -> tuple[bytes, int, bytes]:
        """Return the topic, the codec number and the body of a job.

        Raises:
            EncodeError: The job can't be encoded, or is too large.
            TopicError: The topic can't be built.
            WrongThreadError: The caller is not in the reactor's thread.
        """
        if get_ident() != self._thread:
            raise WrongThreadError(
                f"{self.queue} was used on a thread other than the reactor's: call app.from_thread(queue.put, "
                "job) in that thread"
            )
        try:  # encode before building the topic: otherwise a job of a wrong type would look like a missing capture
            number, body = self.encode(job)
        except EncodeError as error:
            reason = USE_HEADERS if type(job) is WithHeaders else error
            error.args = (f"{self.queue} can't put this job: {reason}",)
            raise
        if len(body) > self._most:
            raise EncodeError(
                f"{self.queue} can't put this job: the body has {len(body)} bytes, more than "
                f"max_message={self._most}; store large data elsewhere, and put a reference to the data into the "
                "job",
                schema=self.schema,
            )
        values = capture_values(self.pattern, job, captures, call="put")
        if not all(type(value) is str for value in values):  # as keys of the cache, 1, True and 1.0 would be equal
            return filled(self.pattern, values), number, body
        topic = self._topics.get(values)
        if topic is None:
            topic = filled(self.pattern, values)
            if len(self._topics) >= TOPICS_NOTED:
                self._topics.clear()
            self._topics[values] = topic
        return topic, number, body
