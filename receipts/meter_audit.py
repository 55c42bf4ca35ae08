"""Whether a meter's statements fit together, for an auditor with access to the ledger. Base install only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from metering.errors import StatementInvalid
from metering.statements import MeterStatement, SignedStatement, check_statement

# So far back a statement is known as the one that another goes on from; its sums are compared all the same.
_MOST_REMEMBERED: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementFinding:
    """What does not fit: ``place`` counts the given statements from 1; ``sequence`` is None where it can't be known."""

    place: int
    sequence: int | None
    fault: str

    def __str__(self) -> str:
        name = f"item {self.place}" if self.sequence is None else f"statement {self.sequence}"
        return f"{name}: {self.fault}"


def check_statements(statements: Iterable[SignedStatement], public_key: bytes) -> list[StatementFinding]:
    """Check one meter's statements, in the order of their ``sequence``: each by itself, and with those before it.

    A gap in the sequence is no finding. ``public_key`` is the meter's, 32 bytes.
    """
    return list(statement_findings(statements, public_key))


def statement_findings(statements: Iterable[SignedStatement], public_key: bytes) -> Iterator[StatementFinding]:
    """As `check_statements`, one after the other; memory does not grow with their number."""
    known: dict[str | None, MeterStatement] = {}
    last: MeterStatement | None = None
    for place, signed in enumerate(statements, start=1):
        try:
            statement = check_statement(signed, public_key)
        except StatementInvalid as error:
            yield StatementFinding(place=place, sequence=None, fault=str(error))
            continue
        if last is not None and statement.sequence <= last.sequence:
            faults = [f"it comes after statement {last.sequence}: out of order, or its number was used twice"]
        else:
            linked = known.get(statement.previous_sha256)
            faults = [*_link_faults(statement, linked, last), *_sum_faults(statement, linked, last)]
            known[statement.sha256] = last = statement
            if len(known) > _MOST_REMEMBERED:
                del known[next(iter(known))]
        for each in faults:
            yield StatementFinding(place=place, sequence=statement.sequence, fault=each)


def _link_faults(
    statement: MeterStatement, linked: MeterStatement | None, last: MeterStatement | None
) -> Iterable[str]:
    """``linked`` is the statement that this one names as the one before it, ``last`` the one that lies before it."""
    if last is None or linked is last:
        return
    if linked is not None:
        yield f"it goes on from statement {linked.sequence}, as if none had been made since; {last.sequence} was"
    elif statement.sequence == last.sequence + 1:
        yield f"its previous_sha256 is not the hash of statement {last.sequence}"


def _sum_faults(statement: MeterStatement, linked: MeterStatement | None, last: MeterStatement | None) -> Iterable[str]:
    """The totals rise by what is billed; over a gap, at least by that."""
    before = linked or last
    charged_before = 0 if before is None else before.charged_microjoules
    counted_before = 0 if before is None else before.counted_microjoules
    least = charged_before + (statement.microjoules or 0)
    has_gap = linked is None and statement.sequence != (0 if last is None else last.sequence) + 1
    if statement.charged_microjoules < least or (statement.charged_microjoules != least and not has_gap):
        bound = "at least " if has_gap else ""
        yield f"it says that {statement.charged_microjoules} microjoules were billed so far; it must be {bound}{least}"
    if statement.counted_microjoules < counted_before:
        yield f"its count fell from {counted_before} to {statement.counted_microjoules} microjoules"
