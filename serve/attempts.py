"""The attempts of one request: the next candidate when one fails, also in the middle of a stream."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Protocol, Self, assert_never

from placement.tiers import Tier
from receipts.draft import Attempt
from serve.deadlines import Deadlines, LimitAfter
from serve.engine_body import engine_body
from serve.errors import AttemptFailed, RequestRefused, SeamBroken
from serve.holds import Hold
from serve.messages import EngineTask, Payload, Refused, ReplicaItem, Settled, Started, Working
from serve.messages_seam import MessagesSeam
from serve.model_request import ModelRequest
from serve.pool_health import PoolHealth
from serve.pools import Pool
from serve.request_context import AskedRequest
from serve.seam import Seam, why_not_resumable
from serve.sent_events import SentEvents
from serve.shapes import Shape

_LOG = logging.getLogger(__name__)
_MICROJOULES_PER_JOULE = 10**6
_RETRY_AFTER_S = 2
# With the second pause doubled, longer than Ray Serve takes to find that a replica's engine is dead.
_AGAIN_AFTER_S = 2.0
MOST_KEPT_BYTES = 8 * 1024 * 1024
"""Of one stream, compressed; a hundred thousand tokens and more, with their log probabilities."""
_STATUSES = {
    "queue full": HTTPStatus.SERVICE_UNAVAILABLE,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "its receipt cannot be stored now": HTTPStatus.SERVICE_UNAVAILABLE,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
}


class Dispatch(Protocol):
    """Runs one attempt on a pool's replicas."""

    def __call__(
        self,
        pool: str,
        task: EngineTask,
        limit_after: LimitAfter,
    ) -> AsyncGenerator[ReplicaItem, None]:
        """Stream the attempt until `Settled` or `Refused`, each item in its time.

        Closing the iterator aborts the attempt, at its account's cost; an error that is thrown into it makes it fail,
        at the mesh's.

        Raises:
            AttemptFailed: the replica died, hung or could not be reached; nothing runs of it any more.
        """


class Load(Protocol):
    """The pools' load, as attempts make and find it; none of it fails."""

    def took(self, pool: str) -> None:
        """An attempt goes to it."""

    def gave_back(self, pool: str, service_s: float | None) -> None:
        """The attempt is over; ``service_s`` from its first item to its last when it finished."""

    def is_asleep(self, pool: str) -> bool:
        """Whether a request waits for its first replica to start."""

    def wake_s(self, pool: str) -> float:
        """How long that takes."""


class Lessons(Protocol):
    """What settled requests teach; none of it fails."""

    def learn(self, pool: str, tokens_in: int, tokens_out: int, microjoules: int | None) -> None:
        """What a request drew there, None where that isn't known."""

    def learn_length(self, tier: Tier, tokens_out: int, max_tokens: int | None) -> None:
        """How long an answer to a request of this tier was, and what its limit had been."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """First item of an answer: nothing of it has gone out before, and its pool no longer changes for the client.

    ``started`` is of the attempt that began to answer; a stream may be finished by another.
    """

    pool: Pool
    started: Started


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request with its ``pools`` in the order of its plan."""

    asked: AskedRequest
    request: ModelRequest
    pools: Sequence[Pool]
    hold: Hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An attempt that failed; ``is_full``: its pool took nothing in."""

    pool: Pool
    is_full: bool


def next_pool(
    pools: Sequence[Pool],
    tried: Sequence[Tried],
    most: int,
    answering: Pool | None,
    is_doubtful: Callable[[str], bool],
) -> Pool | None:
    """Where the next attempt goes; None when there is none.

    First each candidate in turn; then again those that failed and weren't full, for they may have other replicas or
    new ones. One that was full ran nothing, and is none of the ``most``. The first attempt goes where the plan says;
    after it, those that are doubtful at this moment come last among those that were tried as often: their client has
    waited already. An answer that a client has the beginning of (``answering`` gave it) goes on only where the same
    revision of the same model runs.
    """
    if sum(not each.is_full for each in tried) >= most:
        return None
    if not tried:
        return next(iter(pools), None)
    counts = Counter(each.pool.key for each in tried)
    full = {each.pool.key for each in tried if each.is_full}
    open_to = [
        pool for pool in pools if pool.key not in full and (answering is None or _generates_alike(pool, answering))
    ]
    return min(open_to, key=lambda pool: (counts[pool.key], is_doubtful(pool.key)), default=None)


def _generates_alike(pool: Pool, other: Pool) -> bool:
    return (pool.model, pool.model_revision) == (other.model, other.model_revision)


class Attempts:
    """Runs requests: at most ``most`` attempts for each, and one more for each pool that is full.

    ``clock`` counts seconds and never goes back; ``pause`` waits so many.
    """

    def __init__(
        self,
        *,
        dispatch: Dispatch,
        load: Load,
        lessons: Lessons,
        health: PoolHealth,
        deadlines: Deadlines,
        most: int,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]],
        most_kept_bytes: int = MOST_KEPT_BYTES,
    ) -> None:
        """A stream is resumed as long as keeping what was sent of it takes no more than ``most_kept_bytes``."""
        self._dispatch = dispatch
        self._load = load
        self._lessons = lessons
        self._health = health
        self._deadlines = deadlines
        self._most = most
        self._most_kept_bytes = most_kept_bytes
        self._clock = clock
        self._pause = pause

    async def items(self, job: Job) -> AsyncGenerator[Begun | Payload | Settled, None]:
        """`Begun`, the answer's events (or its one body) and `Settled`: one answer, however many attempts it took.

        The hold ends here, whatever becomes of the request.

        Raises:
            RequestRefused: the request is wrong, or no attempt gave the whole answer; where its client has some of it
                already, the message says that it broke off.
        """
        course = _Course(job, self._most, self._most_kept_bytes)
        try:
            while True:
                pool = course.next_pool(self._is_doubtful)
                if pause_s := course.pause_s(pool):
                    await self._pause(pause_s)
                try:
                    async with aclosing(self._attempt(course, pool)) as items:
                        async for item in items:
                            yield item
                except AttemptFailed as failure:
                    course.failed(pool, failure)
                else:
                    return
        except RequestRefused:
            job.hold.release()
            raise
        except Exception:
            if course.answering is None:
                job.hold.release()
            raise
        finally:
            # The client may have gone. What ran until then is charged, and the hold ends with that.
            job.hold.let_go()

    def _is_doubtful(self, pool: str) -> bool:
        return self._health.is_set_aside(pool) or self._load.is_asleep(pool)

    def _attempt(self, course: "_Course", pool: Pool) -> AsyncGenerator[Begun | Payload | Settled, None]:
        answer = _streamed if course.job.request.stream else _whole
        lesson = partial(_teach, self._lessons, course.job, pool, is_resumed=bool(course.delivered))
        visit = _Visit(pool.key, self._load, self._health, self._clock, lesson)
        return answer(course, pool, self._run(course, pool), visit)

    def _run(self, course: "_Course", pool: Pool) -> AsyncGenerator[ReplicaItem, None]:
        request = course.job.request
        wake_s = self._load.wake_s(pool.key) if self._load.is_asleep(pool.key) else 0.0
        asked = course.job.asked
        task = EngineTask(
            request_id=asked.request_id,
            shape=request.shape,
            context=asked.context(pool, course.attempts, len(course.delivered)).to_json(),
            body=engine_body(request, pool.model, asked.admission.account),
            delivered=tuple(course.delivered),
            allowance=None if request.shape is Shape.EMBEDDING else course.job.hold.allowance(pool.usd_per_kwh),
        )
        return self._dispatch(
            pool.key,
            task,
            partial(self._deadlines.limit, is_stream=request.stream, wake_s=wake_s),
        )


class _Course:
    """How far one request has come."""

    def __init__(self, job: Job, most: int, most_kept_bytes: int) -> None:
        self.job = job
        self.attempts: list[Attempt] = []
        self.answering: Pool | None = None
        self.sent = SentEvents()
        self.delivered: list[int] = []
        self._most = most
        self._most_kept_bytes = most_kept_bytes
        self._tried: list[Tried] = []
        self._unresumable = why_not_resumable(job.request.body) if job.request.stream else None

    def next_pool(self, is_doubtful: Callable[[str], bool]) -> Pool:
        """Where the next attempt goes.

        Raises:
            RequestRefused: there is none.
        """
        pool = next_pool(self.job.pools, self._tried, self._most, self.answering, is_doubtful)
        if pool is None:
            raise self._exhausted()
        return pool

    def pause_s(self, pool: Pool) -> float:
        """How long to wait before the attempt: at once, it would find the same broken replica that failed before."""
        times = sum(each.pool.key == pool.key for each in self._tried)
        return _AGAIN_AFTER_S * 2 ** (times - 1) if times else 0.0

    def send(self, data: bytes) -> Payload:
        """An event goes to the client; it is remembered where the answer could be resumed."""
        if self._unresumable is None:
            self.sent.add(data)
            if self.sent.kept_bytes > self._most_kept_bytes:
                self._unresumable = "too much of it was sent to keep it all"
                self.sent = SentEvents()
                self.delivered.clear()
        return Payload(data)

    def deliver(self, token_ids: tuple[int, ...]) -> None:
        """Tokens of the answer whose events go to the client."""
        if self._unresumable is None:
            self.delivered += token_ids

    def failed(self, pool: Pool, failure: AttemptFailed) -> None:
        """An attempt failed.

        Raises:
            RequestRefused: no other may follow.
        """
        request_id, number = self.job.asked.request_id, len(self._tried) + 1
        _LOG.warning("attempt %d of %s on %s failed: %s", number, request_id, pool.key, failure)
        if failure.may_be_charged:
            self.job.hold.expect_charge()
        self._tried.append(Tried(pool=pool, is_full=failure.is_full))
        self.attempts.append(
            Attempt(pool=pool.key, outcome=failure.outcome, energy_microjoules=failure.energy_microjoules)
        )
        if failure.is_charged:
            raise _broke_off(failure.outcome, "what it ran until then is on its receipt")
        if self.answering is not None and self._unresumable is not None:
            raise _broke_off(failure.outcome, f"it can't be resumed: {self._unresumable}")

    def _exhausted(self) -> RequestRefused:
        """Why there are no more attempts."""
        last = self.attempts[-1].outcome
        if self.answering is not None:
            return _broke_off(last, f"{len(self.attempts)} attempts failed")
        status = _STATUSES.get(last, HTTPStatus.BAD_GATEWAY)
        retry_after_s = _RETRY_AFTER_S if status is HTTPStatus.SERVICE_UNAVAILABLE else None
        message = f"no attempt of {len(self.attempts)} succeeded; the last: {last}"
        return RequestRefused(status, message, retry_after_s=retry_after_s)


class _Visit(AbstractContextManager["_Visit"]):
    """One attempt as the pool's load and health have it."""

    def __init__(
        self,
        pool: str,
        load: Load,
        health: PoolHealth,
        clock: Callable[[], float],
        lesson: Callable[[Settled], None],
    ) -> None:
        self._pool = pool
        self._load = load
        self._health = health
        self._clock = clock
        self._lesson = lesson
        self._is_probe = False
        self._begun_s: float | None = None
        self._service_s: float | None = None

    def __enter__(self) -> Self:
        self._is_probe = self._health.probe(self._pool)
        self._load.took(self._pool)
        return self

    def begun(self) -> None:
        """It began to answer."""
        self._is_probe = False
        self._begun_s = self._clock()
        self._health.begun(self._pool)

    def settled(self, settled: Settled) -> None:
        """It gave the whole answer."""
        self._health.succeeded(self._pool)
        if self._begun_s is not None:
            self._service_s = self._clock() - self._begun_s
        self._lesson(settled)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, AttemptFailed) and error.is_pools:
            self._health.failed(self._pool)
        elif self._is_probe:
            self._health.left(self._pool)
        self._load.gave_back(self._pool, self._service_s)


def _teach(lessons: Lessons, job: Job, pool: Pool, settled: Settled, *, is_resumed: bool) -> None:
    """What the receipt says; of a resumed answer it counts only the end, which is no answer's length."""
    joules, tokens = settled.document["energy"]["total_joules"], settled.document["workload"]["tokens"]
    microjoules = None if joules is None else round(joules * _MICROJOULES_PER_JOULE)
    # What was cached drew next to nothing, and would teach that reading a prompt does.
    lessons.learn(pool.key, tokens["input"] - tokens["cached"], tokens["output"], microjoules)
    if job.request.choices == 1 and job.request.max_tokens != 0 and not is_resumed:
        lessons.learn_length(job.asked.tier, tokens["output"], job.request.max_tokens)


async def _whole(
    course: _Course, pool: Pool, items: AsyncGenerator[ReplicaItem, None], visit: _Visit
) -> AsyncGenerator[Begun | Payload | Settled, None]:
    """A unary answer, which goes out only when it is whole and settled: until then any other pool can give it."""
    started: Started | None = None
    body: Payload | None = None
    with visit:
        async with aclosing(items):
            async for item in items:
                match item:
                    case Started():
                        visit.begun()
                        started = item
                    case Payload():
                        body = item
                    case Working():
                        pass
                    case Refused():
                        raise _refused(item)
                    case Settled():
                        assert started is not None, "a replica settled what it had not started"
                        assert body is not None, "a replica settled without an answer"
                        visit.settled(item)
                        course.job.hold.let_go()
                        yield Begun(pool=pool, started=started)
                        yield body
                        yield item
                    case _:
                        assert_never(item)


async def _streamed(
    course: _Course, pool: Pool, items: AsyncGenerator[ReplicaItem, None], visit: _Visit
) -> AsyncGenerator[Begun | Payload | Settled, None]:
    """The events of a stream, without those that its client has from an earlier attempt."""
    seam = None if course.answering is None else _seam(course)
    started: Started | None = None
    with visit:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Payload):
                    rest = (item.data,) if seam is None else await _beyond(seam, item.data, items)
                    course.deliver(item.token_ids)
                    if course.answering is None:
                        assert started is not None, "a replica answered before it had started"
                        course.answering = pool
                        yield Begun(pool=pool, started=started)
                    for event in rest:
                        yield course.send(event)
                elif isinstance(item, Started):
                    visit.begun()
                    started = item
                elif isinstance(item, Settled):
                    visit.settled(item)
                    course.job.hold.let_go()
                    yield item
                elif isinstance(item, Refused):
                    if course.answering is None:
                        raise _refused(item)
                    raise _broke_off("it can't be resumed", item.message)


def _seam(course: _Course) -> Seam | MessagesSeam:
    kind = MessagesSeam if course.job.request.shape is Shape.MESSAGES else Seam
    return kind(tuple(course.sent))


async def _beyond(
    seam: Seam | MessagesSeam, event: bytes, items: AsyncGenerator[ReplicaItem, None]
) -> tuple[bytes, ...]:
    """What the client doesn't have of it; an attempt that contradicts what it has fails."""
    try:
        return seam.beyond(event)
    except SeamBroken as broken:
        await items.athrow(broken)
        raise AssertionError("an attempt went on after an error was thrown into it") from broken


def _refused(refusal: Refused) -> RequestRefused:
    return RequestRefused(HTTPStatus(refusal.status), refusal.message, refusal.param)


def _broke_off(outcome: str, why: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.BAD_GATEWAY, f"the answer broke off: {outcome}; {why}")
