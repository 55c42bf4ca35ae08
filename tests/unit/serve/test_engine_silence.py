from contextlib import ExitStack

import pytest

from serve.engine_silence import EngineSilence
from serve.errors import EngineBroke


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def test_an_idle_engine_is_not_silent():
    clock = FakeClock()
    silence = EngineSilence(clock)
    clock.now_s += 1000
    assert silence.seconds == 0


def test_silence_is_the_time_since_any_of_its_requests_got_something():
    clock = FakeClock()
    silence = EngineSilence(clock)
    with silence.listened_to(), silence.listened_to():
        clock.now_s += 10
        assert silence.seconds == 10
        silence.end()
        assert silence.seconds == 0
        clock.now_s += 3
        assert silence.seconds == 3


def test_what_was_given_up_in_silence_counts_on_and_the_time_between_does_not():
    clock = FakeClock()
    silence = EngineSilence(clock)
    for _ in range(3):
        with silence.listened_to():
            clock.now_s += 20
        clock.now_s += 1000
    assert silence.seconds == 60
    with silence.listened_to():
        silence.end()
    assert silence.seconds == 0


def test_a_request_that_comes_or_goes_does_not_end_the_silence_of_the_others():
    clock = FakeClock()
    silence = EngineSilence(clock)
    with ExitStack() as requests:
        requests.enter_context(silence.listened_to())
        clock.now_s += 5
        with silence.listened_to():
            clock.now_s += 5
        clock.now_s += 5
        assert silence.seconds == 15


class FakeEngine:
    """One that has computed so many ``steps``; None where nobody knows. ``asked`` counts the questions."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.asked = 0

    async def count(self) -> int | None:
        self.asked += 1
        return self.steps


async def test_an_engine_that_reads_a_long_prompt_is_not_stalled_however_often_it_is_given_up():
    clock, engine = FakeClock(), FakeEngine(steps=7)
    silence = EngineSilence(clock)
    for _ in range(3):
        with silence.listened_to():
            for second in range(125):
                clock.now_s += 1
                engine.steps += second % 40 == 0
                await silence.check(120, engine.count)
    await silence.check(120, engine.count)


@pytest.mark.parametrize("steps", [7, None])
async def test_one_that_computes_nothing_either_is_stalled_and_stays_so_when_it_was_given_up(steps: int | None):
    clock, engine = FakeClock(), FakeEngine(steps)
    silence = EngineSilence(clock)
    with silence.listened_to():
        for _ in range(120):
            clock.now_s += 1
            await silence.check(120, engine.count)
        clock.now_s += 1
    with pytest.raises(EngineBroke, match="nothing for 121 s"):
        await silence.check(120, engine.count)


async def test_an_engine_that_answers_is_not_asked_what_it_computes():
    clock, engine = FakeClock(), FakeEngine(steps=7)
    silence = EngineSilence(clock)
    with silence.listened_to():
        clock.now_s += 60
        await silence.check(120, engine.count)
        assert engine.asked == 0
