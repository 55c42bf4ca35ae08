"""Usage, summed up by the database from the columns beside the receipts: exact, and in one walk along an index."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Double, Row, Select, cast, func, select

from receipts.ledger_books import HALF, halves, joined
from receipts.ledger_schema import receipts
from receipts.usage import MOST_GROUPS, Usage, UsageBy, UsageRow

_NS_PER_DAY: Final = 86_400 * 10**9
_SECONDS_PER_DAY: Final = 86_400
_SUMMED: Final = (
    "input_tokens",
    "output_tokens",
    "energy_microjoules",
    "carbon_picograms",
    "usd_picos",
)
_GROUPS: Final[Mapping[UsageBy, ColumnElement[Any]]] = {
    "day": receipts.c.end_unix_ns // _NS_PER_DAY,
    "model": receipts.c.model,
    "key": receipts.c.api_key_id,
    "tag": receipts.c.customer_tag,
    "workload": receipts.c.workload_name,
    "region": receipts.c.region,
}


def usage(
    connection: Connection,
    account: str,
    since_unix_ns: int,
    until_unix_ns: int,
    by: UsageBy,
    workload: str | None,
) -> Usage:
    """As `LedgerReader.usage`."""
    total = connection.execute(total_statement(account, since_unix_ns, until_unix_ns, workload)).one()
    rows = connection.execute(groups_statement(account, since_unix_ns, until_unix_ns, by, workload)).all()
    name = _day if by == "day" else _text
    return Usage(
        rows=tuple(_row(name(row.its_group), row) for row in rows[:MOST_GROUPS]),
        total=_row(None, total),
        is_cut=len(rows) > MOST_GROUPS,
    )


def total_statement(account: str, since_unix_ns: int, until_unix_ns: int, workload: str | None) -> Select[Any]:
    """The sums over all of these receipts."""
    return select(*_sums()).where(*_conditions(account, since_unix_ns, until_unix_ns, workload))


def groups_statement(
    account: str, since_unix_ns: int, until_unix_ns: int, by: UsageBy, workload: str | None
) -> Select[Any]:
    """The sums over each group, one more of them than are shown."""
    group = _GROUPS[by]
    high, low = halves(receipts.c.energy_microjoules)
    # As a double, which is enough for an order; and the databases differ in where they put null.
    drawn = func.coalesce(cast(high, Double) * HALF + low, -1)
    order = (group,) if by == "day" else (drawn.desc(), func.count().desc(), group.nulls_first())
    return (
        select(group.label("its_group"), *_sums())
        .where(*_conditions(account, since_unix_ns, until_unix_ns, workload))
        .group_by(group)
        .order_by(*order)
        .limit(MOST_GROUPS + 1)
    )


def _conditions(
    account: str, since_unix_ns: int, until_unix_ns: int, workload: str | None
) -> tuple[ColumnElement[bool], ...]:
    end = receipts.c.end_unix_ns
    within = (receipts.c.account == account, end >= since_unix_ns, end < until_unix_ns)
    return within if workload is None else (*within, receipts.c.workload_name == workload)


def _sums() -> list[ColumnElement[Any]]:
    sums: list[ColumnElement[Any]] = [
        func.count().label("requests"),
        func.count(receipts.c.energy_microjoules).label("metered"),
    ]
    for name in _SUMMED:
        high, low = halves(receipts.c[name])
        sums += [high.label(f"{name}_high"), low.label(f"{name}_low")]
    return sums


def _row(group: str | None, row: "Row[*tuple[Any, ...]]") -> UsageRow:
    found = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    sums = {name: joined(found[f"{name}_high"], found[f"{name}_low"]) for name in _SUMMED}
    return UsageRow(
        group=group,
        requests=found["requests"],
        unmetered_requests=found["requests"] - found["metered"],
        input_tokens=sums["input_tokens"],
        output_tokens=sums["output_tokens"],
        microjoules=sums["energy_microjoules"],
        carbon_picograms=sums["carbon_picograms"],
        usd_picos=sums["usd_picos"],
    )


def _day(number: int | None) -> str | None:
    if number is None:
        return None
    return datetime.fromtimestamp(number * _SECONDS_PER_DAY, UTC).date().isoformat()


def _text(name: str | None) -> str | None:
    return name
