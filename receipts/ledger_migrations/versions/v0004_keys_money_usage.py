"""Keys with scopes and ends; payments, budgets and recharges; what usage is summed up from; idempotency keys."""

import hashlib
import json
from collections.abc import Iterable
from fractions import Fraction

import sqlalchemy as sa
from alembic import op

from receipts.errors import LedgerUnusable

revision = "0004"
down_revision = "0003"

_BATCH = 1000
_RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ALL_SCOPES = "inference,read,deploy,billing-admin"
_COPIES = (
    ("api_key_id", sa.String(20)),
    ("workload_name", sa.String(128)),
    ("input_tokens", sa.BigInteger()),
    ("output_tokens", sa.BigInteger()),
    ("energy_microjoules", sa.BigInteger()),
    ("carbon_picograms", sa.BigInteger()),
    ("usd_picos", sa.BigInteger()),
    ("idempotency_sha256", sa.String(64)),
)
_USAGE = (
    "account",
    "end_unix_ns",
    "energy_microjoules",
    "usd_picos",
    "carbon_picograms",
    "input_tokens",
    "output_tokens",
    "api_key_id",
    "workload_name",
    "model",
    "customer_tag",
)
_UNCHANGING = (
    "position",
    "receipt_id",
    "account",
    "request_id",
    "seq",
    "signed_bytes",
    "signed_sha256",
    "created_unix_ns",
    "statement",
    "statement_signature",
    "end_unix_ns",
    "model",
    "region",
    "customer_tag",
    *(name for name, _ in _COPIES),
)
_UNCHANGING_IN_A_KEY = ("sha256", "account", "name", "created_unix_ns", "key_id", "scopes")
_UNCHANGING_IN_A_PAYMENT = (
    "payment_id",
    "account",
    "kind",
    "usd_picos",
    "provider",
    "refunds",
    "reason",
    "created_unix_ns",
)
_SIGNED_ONCE = "a stored receipt gets its signature once and nothing else"
_KEYS_CHANGE = "an API key is revoked once, its end comes nearer, and otherwise it stays as it is"
_PAYMENTS_CHANGE = "a refund gets its reference once, and a payment otherwise stays as it is"
_RECEIPT_KEYS = (("account", "idempotency_sha256"), ("account", "request_id"), ("account", "seq"), ("receipt_id",))
_KEY_KEYS = (("key_id",), ("sha256",))
_NEW_TABLES: dict[str, tuple[tuple[str, ...], ...]] = {"budgets": (), "payments": (("payment_id",),), "recharges": ()}


def upgrade() -> None:
    """Add what is new and fill it from what is there: receipts from their signed bytes, keys with all scopes.

    Raises:
        LedgerUnusable: a receipt's bytes are damaged; names its place.
    """
    is_sqlite = op.get_context().dialect.name == "sqlite"
    of_table = "" if is_sqlite else " ON {table}"
    for table in ("receipts", "api_keys"):
        op.execute(f"DROP TRIGGER {table}_update{of_table.format(table=table)}")
    for name, its_type in _COPIES:
        op.add_column("receipts", sa.Column(name, its_type))
    if not op.get_context().as_sql:
        _fill_in(op.get_bind())
    op.create_index("receipts_usage", "receipts", list(_USAGE))
    has_key = sa.text("idempotency_sha256 IS NOT NULL")
    op.create_index(
        "receipts_by_idempotency",
        "receipts",
        ["account", "idempotency_sha256"],
        unique=True,
        sqlite_where=has_key,
        postgresql_where=has_key,
    )
    if is_sqlite:
        _make_keys_anew()
    else:
        _widen_keys()
    _make_tables()
    if is_sqlite:
        _forbid_on_sqlite()
    else:
        _forbid_on_postgresql()


def _fill_in(connection: sa.Connection) -> None:
    """A bounded number of receipts at a time, however many there are."""
    some = sa.text(
        "SELECT position, account, seq, signed_bytes FROM receipts WHERE position > :after "
        "ORDER BY position LIMIT :most"
    )
    fill = sa.text(
        "UPDATE receipts SET input_tokens = :input_tokens, output_tokens = :output_tokens, "
        "energy_microjoules = :energy_microjoules, carbon_picograms = :carbon_picograms, usd_picos = :usd_picos "
        "WHERE position = :position"
    )
    after = -1
    while rows := connection.execute(some, {"after": after, "most": _BATCH}).all():
        connection.execute(fill, [_members(row) for row in rows])
        after = rows[-1].position


def _members(row: "sa.Row[tuple[int, str, int, bytes]]") -> dict[str, object]:
    try:
        receipt = json.loads(row.signed_bytes)
        return {
            "position": row.position,
            "input_tokens": receipt["workload"]["tokens"]["input"],
            "output_tokens": receipt["workload"]["tokens"]["output"],
            "energy_microjoules": _scaled(receipt["energy"]["total_joules"], 10**6),
            "carbon_picograms": _scaled(receipt["carbon"]["gco2eq_total"], 10**12),
            "usd_picos": receipt["price"]["usd_picos"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerUnusable(
            f"receipt {row.seq} of account {row.account} is damaged: its bytes are no receipt. The ledger was left as "
            "it is: restore it from a copy"
        ) from error


def _scaled(figure: float | None, units_per_whole: int) -> int | None:
    """By the decimal number that the figure's shortest spelling shows."""
    return None if figure is None else round(Fraction(repr(figure)) * units_per_whole)


def _make_keys_anew() -> None:
    """SQLite adds no column that must have a value and be unique."""
    made = op.create_table(
        "new_api_keys",
        sa.Column("sha256", sa.LargeBinary(32), primary_key=True),
        sa.Column("account", sa.String(128), sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("revoked_unix_ns", sa.BigInteger),
        sa.Column("key_id", sa.String(20), nullable=False, unique=True),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("expires_unix_ns", sa.BigInteger),
    )
    if not op.get_context().as_sql:
        found = sa.text("SELECT sha256, account, name, created_unix_ns, revoked_unix_ns FROM api_keys ORDER BY rowid")
        rows = [
            {**row, "key_id": _key_id(row["sha256"]), "scopes": _ALL_SCOPES, "expires_unix_ns": None}
            for row in op.get_bind().execute(found).mappings()
        ]
        op.bulk_insert(made, rows)
    op.drop_table("api_keys")
    op.rename_table("new_api_keys", "api_keys")


def _widen_keys() -> None:
    op.add_column("api_keys", sa.Column("key_id", sa.String(20)))
    op.add_column("api_keys", sa.Column("scopes", sa.String(64)))
    op.add_column("api_keys", sa.Column("expires_unix_ns", sa.BigInteger))
    if not op.get_context().as_sql:
        connection = op.get_bind()
        fill = sa.text("UPDATE api_keys SET key_id = :key_id, scopes = :scopes WHERE sha256 = :sha256")
        for sha256 in connection.scalars(sa.text("SELECT sha256 FROM api_keys")).all():
            connection.execute(fill, {"sha256": sha256, "key_id": _key_id(sha256), "scopes": _ALL_SCOPES})
    op.alter_column("api_keys", "key_id", nullable=False)
    op.alter_column("api_keys", "scopes", nullable=False)
    op.create_unique_constraint(None, "api_keys", ["key_id"])


def _key_id(key_sha256: bytes) -> str:
    return f"key_{hashlib.sha256(bytes(key_sha256)).hexdigest()[:16]}"


def _make_tables() -> None:
    account = ("account", sa.String(128))
    op.create_table(
        "payments",
        sa.Column("payment_id", sa.String(64), primary_key=True),
        sa.Column(*account, sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("usd_picos", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.String(32)),
        sa.Column("reference", sa.String(256)),
        sa.Column("refunds", sa.String(64)),
        sa.Column("reason", sa.Text),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
        sa.CheckConstraint("kind IN ('top-up', 'refund', 'sla-credit', 'goodwill-credit')"),
        sa.CheckConstraint("usd_picos > 0"),
    )
    op.create_index("ix_payments_account", "payments", ["account"])
    op.create_index("ix_payments_refunds", "payments", ["refunds"])
    op.create_table(
        "budgets",
        sa.Column("position", _RowNumber, primary_key=True),
        sa.Column(*account, sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("microjoules", sa.BigInteger),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
        sa.CheckConstraint("kind IN ('key', 'workload')"),
        sa.CheckConstraint("period IN ('hour', 'day', 'month')"),
    )
    op.create_table(
        "recharges",
        sa.Column("position", _RowNumber, primary_key=True),
        sa.Column(*account, sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("threshold_usd_picos", sa.BigInteger),
        sa.Column("amount_usd_picos", sa.BigInteger),
        sa.Column("provider", sa.String(32)),
        sa.Column("customer_reference", sa.String(256)),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
    )


def _changed(names: Iterable[str], differs: str) -> str:
    return " OR ".join(f"OLD.{name} {differs} NEW.{name}" for name in names)


def _more_than_a_signature(differs: str) -> str:
    return f"OLD.signature IS NOT NULL OR length(NEW.signature) <> 64 OR {_changed(_UNCHANGING, differs)}"


def _more_than_an_end(differs: str) -> str:
    return (
        "OLD.revoked_unix_ns IS NOT NULL OR OLD.expires_unix_ns IS NOT NULL AND (NEW.expires_unix_ns IS NULL OR "
        f"NEW.expires_unix_ns > OLD.expires_unix_ns) OR {_changed(_UNCHANGING_IN_A_KEY, differs)}"
    )


def _more_than_a_reference(differs: str) -> str:
    return f"OLD.reference IS NOT NULL OR {_changed(_UNCHANGING_IN_A_PAYMENT, differs)}"


def _forbid_on_sqlite() -> None:
    another_row = "OLD.rowid IS NOT NEW.rowid OR "
    _abort("receipts", "UPDATE", another_row + _more_than_a_signature("IS NOT"), _SIGNED_ONCE)
    op.execute("DROP TRIGGER receipts_insert")
    _forbid_replacement("receipts", _RECEIPT_KEYS)
    _abort("api_keys", "DELETE", "1", "api_keys are append-only")
    _abort("api_keys", "UPDATE", another_row + _more_than_an_end("IS NOT"), _KEYS_CHANGE)
    _forbid_replacement("api_keys", _KEY_KEYS)
    for table, keys in _NEW_TABLES.items():
        _abort(table, "DELETE", "1", f"{table} are append-only")
        _forbid_replacement(table, keys)
    for table in ("budgets", "recharges"):
        _abort(table, "UPDATE", "1", f"{table} are append-only")
    _abort("payments", "UPDATE", another_row + _more_than_a_reference("IS NOT"), _PAYMENTS_CHANGE)


def _forbid_replacement(table: str, keys: Iterable[tuple[str, ...]]) -> None:
    same_key = [" AND ".join(f"{column} = NEW.{column}" for column in key) for key in keys]
    taken = [f"EXISTS (SELECT 1 FROM {table} WHERE {each})" for each in ("rowid = NEW.rowid", *same_key)]  # noqa: S608 - our own names
    _abort(table, "INSERT", " OR ".join([f"NEW.rowid <> -1 AND {taken[0]}", *taken[1:]]), f"{table} are append-only")


def _abort(table: str, change: str, condition: str, reason: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
    )


def _forbid_on_postgresql() -> None:
    _refuse("receipts", "UPDATE", _more_than_a_signature("IS DISTINCT FROM"), _SIGNED_ONCE)
    _refuse("api_keys", "UPDATE", _more_than_an_end("IS DISTINCT FROM"), _KEYS_CHANGE)
    for table in _NEW_TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION ledger_forbid('{table} are append-only')"
        )
        _refuse(table, "DELETE", "true", f"{table} are append-only")
    for table in ("budgets", "recharges"):
        _refuse(table, "UPDATE", "true", f"{table} are append-only")
    _refuse("payments", "UPDATE", _more_than_a_reference("IS DISTINCT FROM"), _PAYMENTS_CHANGE)


def _refuse(table: str, change: str, condition: str, reason: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} FOR EACH ROW WHEN ({condition}) "
        f"EXECUTE FUNCTION ledger_forbid('{reason}')"
    )
