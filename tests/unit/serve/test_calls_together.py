"""Calls that go together: alone at first, then with whoever came meanwhile; each gets its own answer or error."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.calls_together import MOST_TOGETHER, CallsTogether


class Remote:
    """Answers with ten times the number; what is in ``wrong`` fails by itself, and all of a call while ``away``."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.wrong: set[int] = set()
        self.away = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, asked: Sequence[int]) -> Sequence[int | BaseException]:
        self.calls.append(list(asked))
        await self.may_answer.wait()
        if self.away:
            raise ConnectionError("away")
        return [ValueError(each) if each in self.wrong else each * 10 for each in asked]


async def _begun(together: CallsTogether[int, int], numbers: Sequence[int]) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(_ask(together, number)) for number in numbers]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def _ask(together: CallsTogether[int, int], number: int) -> int:
    return await together(number)


async def test_one_alone_goes_at_once_by_itself():
    remote = Remote()
    together = CallsTogether(remote)
    assert [await together(1), await together(2)] == [10, 20]
    assert remote.calls == [[1], [2]]


async def test_those_that_come_while_two_calls_are_under_way_go_in_the_next():
    remote = Remote()
    remote.may_answer.clear()
    together = CallsTogether(remote)
    tasks = await _begun(together, [1])
    tasks += await _begun(together, [2])
    tasks += await _begun(together, range(3, 9))
    assert remote.calls == [[1], [2]]
    remote.may_answer.set()
    assert await asyncio.gather(*tasks) == [10 * n for n in range(1, 9)]
    assert remote.calls == [[1], [2], [3, 4, 5, 6, 7, 8]]


async def test_an_error_is_raised_where_it_belongs_and_a_calls_own_for_all_of_it():
    remote = Remote()
    remote.wrong = {2}
    together = CallsTogether(remote)
    tasks = await _begun(together, [1, 2, 3])
    with pytest.raises(ValueError, match="2"):
        await tasks[1]
    assert [await tasks[0], await tasks[2]] == [10, 30]
    remote.away = True
    answers = await asyncio.gather(*await _begun(together, [4, 5]), return_exceptions=True)
    assert [type(each) for each in answers] == [ConnectionError, ConnectionError]
    remote.away = False
    assert await together(6) == 60


async def test_answers_that_do_not_match_the_questions_are_nobodys():
    async def loses_one(asked: Sequence[int]) -> Sequence[int]:
        return asked[1:]

    together: CallsTogether[int, int] = CallsTogether(loses_one)
    answers = await asyncio.gather(*await _begun(together, [1, 2]), return_exceptions=True)
    assert [type(each) for each in answers] == [ValueError, ValueError]


async def test_whoever_is_gone_before_it_was_sent_has_not_asked():
    remote = Remote()
    remote.may_answer.clear()
    together = CallsTogether(remote)
    sent = await _begun(together, [1])
    sent += await _begun(together, [2])
    waiting = await _begun(together, [3, 4])
    waiting[0].cancel()
    sent[0].cancel()
    await asyncio.sleep(0)
    remote.may_answer.set()
    assert [await sent[1], await waiting[1]] == [20, 40]
    assert remote.calls == [[1], [2], [4]]


@given(
    waits=st.lists(st.integers(0, 3), min_size=1, max_size=3 * MOST_TOGETHER),
    wrong=st.sets(st.integers(0, 3 * MOST_TOGETHER)),
)
def test_everybody_gets_its_own_answer_whenever_it_comes(waits: list[int], wrong: set[int]):
    async def ask(together: CallsTogether[int, int], number: int, turns: int) -> int | str:
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            return await together(number)
        except ValueError as error:
            return str(error)

    async def run() -> None:
        remote = Remote()
        remote.wrong = wrong
        together: CallsTogether[int, int] = CallsTogether(remote)
        answers = await asyncio.gather(*(ask(together, number, turns) for number, turns in enumerate(waits)))
        assert answers == [str(n) if n in wrong else n * 10 for n in range(len(waits))]
        assert sorted(each for call in remote.calls for each in call) == list(range(len(waits)))
        assert max(map(len, remote.calls)) <= MOST_TOGETHER

    asyncio.run(run())
