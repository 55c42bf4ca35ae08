"""All meters' statements of a ledger, sorted on the disk and checked one meter after the other."""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from metering.errors import StatementInvalid
from metering.statements import SKIPPED_AFTER_A_LOSS, MeterStatement, SignedStatement, read_statement
from receipts.meter_audit import statement_findings

MOST_TALLIES: Final = 100


@dataclass(slots=True, kw_only=True)
class MeterTally:
    """How many statements name this key, 64 hex digits, and how many numbers between 1 and the last are missing.

    That a meter skips numbers at a reboot is left out of account.
    """

    meter: str
    statements: int = 0
    missing: int = 0


class StatementCheck:
    """Takes statements in any order, then says what does not fit. Memory does not grow with their number.

    ``tallies`` has the first `MOST_TALLIES` of the meters once all findings were taken.
    """

    def __init__(self) -> None:
        # SQLite's unnamed database: a temporary file that nobody else sees, and that is gone with the connection.
        self._sorted = sqlite3.connect("", isolation_level=None)
        self._sorted.execute("BEGIN")
        self._sorted.execute("CREATE TABLE s (meter TEXT, sequence INTEGER, statement TEXT, signature TEXT)")
        self.statements = 0
        self.meters = 0
        self.tallies: list[MeterTally] = []

    def add(self, signed: SignedStatement) -> MeterStatement | None:
        """Take one; gives what it says, None when it says nothing. Its signature is looked at later."""
        try:
            statement = read_statement(signed)
        except StatementInvalid:
            return None
        row = (statement.meter, statement.sequence, signed.statement, signed.signature)
        self._sorted.execute("INSERT INTO s VALUES (?, ?, ?, ?)", row)
        self.statements += 1
        return statement

    def findings(self) -> Iterator[tuple[str, str]]:
        """The meter's public key in hex and what is wrong; under the key that each meter's statements name."""
        rows = self._sorted.execute("SELECT * FROM s ORDER BY meter, sequence, rowid")
        for meter, of_meter in groupby(rows, key=itemgetter(0)):
            self.meters += 1
            tally = MeterTally(meter=meter)
            for finding in statement_findings(_tallied(of_meter, tally), bytes.fromhex(meter)):
                yield meter, str(finding)
            if len(self.tallies) < MOST_TALLIES:
                self.tallies.append(tally)

    def close(self) -> None:
        """Give the disk back."""
        self._sorted.close()


def _tallied(of_meter: Iterable[tuple[Any, ...]], tally: MeterTally) -> Iterator[SignedStatement]:
    last = 0
    for _, sequence, statement, signature in of_meter:
        tally.statements += 1
        tally.missing += max(0, sequence - last - 1) % SKIPPED_AFTER_A_LOSS
        last = sequence
        yield SignedStatement(statement=statement, signature=signature)
