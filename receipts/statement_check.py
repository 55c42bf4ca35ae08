"""All meters' statements of a ledger, sorted on the disk and checked one meter after the other."""

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from metering.errors import StatementInvalid
from metering.statements import MeterStatement, SignedStatement, read_statement
from receipts.meter_audit import statement_findings


class StatementCheck:
    """Takes statements in any order, then says what does not fit. Memory does not grow with their number."""

    def __init__(self) -> None:
        # SQLite's unnamed database: a temporary file that nobody else sees, and that is gone with the connection.
        self._sorted = sqlite3.connect("", isolation_level=None)
        self._sorted.execute("BEGIN")
        self._sorted.execute("CREATE TABLE s (meter TEXT, sequence INTEGER, statement TEXT, signature TEXT)")
        self.statements = 0
        self.meters = 0

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
        rows = self._sorted.execute("SELECT meter, statement, signature FROM s ORDER BY meter, sequence, rowid")
        for meter, of_meter in groupby(rows, key=itemgetter(0)):
            self.meters += 1
            signed = (SignedStatement(statement=each[1], signature=each[2]) for each in of_meter)
            for finding in statement_findings(signed, bytes.fromhex(meter)):
                yield meter, str(finding)

    def close(self) -> None:
        """Give the disk back."""
        self._sorted.close()
