"""Following pages: what does not come is asked for again, and what is not there is said at once."""

import pytest

from mesh.client import Page, follow_pages
from mesh.errors import MeshAway, MeshError, NotRunning
from mesh.retry import RETRY_WAITS_S


class Answers:
    """Answers by path, each the next of its list; an exception is raised."""

    def __init__(self, **answers: list[object]) -> None:
        self._answers = answers
        self.waited_s: list[float] = []

    def fetch(self, path: str) -> Page:
        answer = self._answers[path].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pages(self) -> list[bytes]:
        return list(follow_pages(self.fetch, "first", sleep=self.waited_s.append))


def page(lines: bytes, next_path: str | None = None) -> Page:
    return Page(lines=lines, next_path=next_path)


def test_pages_are_followed_to_the_end_and_empty_ones_left_out() -> None:
    answers = Answers(first=[page(b"1\n", "second")], second=[page(b"", "third")], third=[page(b"2\n")])
    assert answers.pages() == [b"1\n", b"2\n"]
    assert answers.waited_s == []


def test_a_page_is_fetched_when_it_is_wanted() -> None:
    answers = Answers(first=[page(b"1\n", "second")], second=[])
    assert next(follow_pages(answers.fetch, "first", sleep=answers.waited_s.append)) == b"1\n"


def test_a_page_that_does_not_come_is_asked_for_again() -> None:
    answers = Answers(
        first=[MeshAway("503"), page(b"1\n", "second")],
        second=[NotRunning("cut"), MeshAway("cut"), page(b"2\n")],
    )
    assert answers.pages() == [b"1\n", b"2\n"]
    assert answers.waited_s == [*RETRY_WAITS_S[:1], *RETRY_WAITS_S[:2]]


def test_a_mesh_that_never_was_there_is_not_waited_for() -> None:
    answers = Answers(first=[NotRunning("no mesh")])
    with pytest.raises(NotRunning, match="no mesh"):
        answers.pages()
    assert answers.waited_s == []


@pytest.mark.parametrize("away", [NotRunning("it is gone"), MeshAway("it is gone")])
def test_in_the_end_it_gives_up(away: MeshError) -> None:
    tries = len(RETRY_WAITS_S) + 1
    answers = Answers(first=[page(b"1\n", "second")], second=[away] * tries)
    with pytest.raises(type(away), match="it is gone"):
        answers.pages()
    assert answers.waited_s == list(RETRY_WAITS_S)


def test_a_refusal_is_final() -> None:
    answers = Answers(first=[MeshError("since: not a time")])
    with pytest.raises(MeshError, match="not a time"):
        answers.pages()
    assert answers.waited_s == []
