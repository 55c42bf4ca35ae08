from contextlib import ExitStack

from serve.engine_silence import EngineSilence


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
