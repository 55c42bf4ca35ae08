"""Following the pages of a long answer: one that does not come is asked for again, from where the last one ended."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mesh.retry import retried


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Receipts, a line each, and the path of the next page, or None at the end."""

    lines: bytes
    next_path: str | None


def receipt_pages(fetch: Callable[[str], Page], first_path: str, *, sleep: Callable[[float], None]) -> Iterator[bytes]:
    """The lines of each page that has any, from the one at ``first_path`` on; raises what `retried` does."""
    path: str | None = first_path
    was_there = False
    while path is not None:
        page = retried(partial(fetch, path), sleep, was_there=was_there)
        if page.lines:
            yield page.lines
        path, was_there = page.next_path, True
