"""The ledger's API keys: the rows, and which of them are live, in memory."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from receipts.api_keys import MOST_LIVE_KEYS, ApiKey
from receipts.errors import LedgerError
from receipts.ledger_schema import api_keys

_MOST_LISTED: Final = 10_000
_KEY_ID: Final = re.compile(r"key_[0-9a-f]{16}")


def insert_key(connection: Connection, key_sha256: bytes, key: ApiKey) -> None:
    """Store a new key.

    Raises:
        LedgerError: the account has as many as it may.
    """
    of_account = select(func.count()).where(api_keys.c.account == key.account, _is_live(key.created_unix_ns))
    if (connection.scalar(of_account) or 0) >= MOST_LIVE_KEYS:
        raise LedgerError(f"the account has {MOST_LIVE_KEYS} live keys already: revoke one first")
    row = {
        "sha256": key_sha256,
        "key_id": key.key_id,
        "account": key.account,
        "name": key.name,
        "scopes": ",".join(key.scopes),
        "created_unix_ns": key.created_unix_ns,
        "expires_unix_ns": key.expires_unix_ns,
        "revoked_unix_ns": None,
    }
    connection.execute(insert(api_keys), row)


def find_key(connection: Connection, account: str, key_id: str) -> tuple[bytes, ApiKey] | None:
    """A key of this account, by its id, with its hash."""
    if not _KEY_ID.fullmatch(key_id):  # what anybody asks for; not every text can be put to a database
        return None
    query = select(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.account == account)
    row = connection.execute(query).first()
    return None if row is None else (bytes(row.sha256), _key(row))


def keys_of(connection: Connection, account: str) -> Sequence[ApiKey]:
    """The account's keys, live or not, the newest first; at most the newest ten thousand."""
    query = select(api_keys).where(api_keys.c.account == account)
    rows = connection.execute(query.order_by(api_keys.c.created_unix_ns.desc(), api_keys.c.key_id).limit(_MOST_LISTED))
    return tuple(map(_key, rows))


def end_key(connection: Connection, key_sha256: bytes, *, revoked_unix_ns: int) -> None:
    """Revoke a key that isn't."""
    connection.execute(update(api_keys).where(api_keys.c.sha256 == key_sha256).values(revoked_unix_ns=revoked_unix_ns))


def expire_key(connection: Connection, key_sha256: bytes, *, expires_unix_ns: int) -> None:
    """Bring a live key's end nearer."""
    connection.execute(update(api_keys).where(api_keys.c.sha256 == key_sha256).values(expires_unix_ns=expires_unix_ns))


class LiveKeys:
    """All keys that are not revoked, by their hash. Written by one thread, read by any.

    About 700 bytes each, with at most `receipts.api_keys.MOST_LIVE_KEYS` of an account.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, ApiKey] | None = None

    def read(self, connection: Connection, now_ns: int) -> None:
        """Read them if they aren't known."""
        if self._keys is None:
            rows = connection.execute(select(api_keys).where(_is_live(now_ns)))
            self._keys = {bytes(row.sha256): _key(row) for row in rows}

    def look_up(self, key_sha256: bytes, now_ns: int) -> tuple[bool, ApiKey | None]:
        """Whether they are known (not until they were read once, nor after the database failed), and the key that is
        live at that moment.
        """
        keys = self._keys  # once: the writing thread may forget them meanwhile
        if keys is None:
            return False, None
        key = keys.get(key_sha256)
        return True, key if key is not None and key.is_live(now_ns) else None

    def committed(self, changed: Iterable[tuple[bytes, ApiKey]]) -> None:
        """These were stored as they are here."""
        if self._keys is None:
            return
        for key_sha256, key in changed:
            if key.revoked_unix_ns is None:
                self._keys[key_sha256] = key
            else:
                self._keys.pop(key_sha256, None)

    def forget(self) -> None:
        """What is in the ledger is not certain."""
        self._keys = None


def _is_live(now_ns: int) -> Any:  # noqa: ANN401 - SQLAlchemy's expression
    end = api_keys.c.expires_unix_ns
    return api_keys.c.revoked_unix_ns.is_(None) & or_(end.is_(None), end > now_ns)


def _key(row: "Row[*tuple[Any, ...]]") -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        account=row.account,
        name=row.name,
        scopes=tuple(row.scopes.split(",")),
        created_unix_ns=row.created_unix_ns,
        expires_unix_ns=row.expires_unix_ns,
        revoked_unix_ns=row.revoked_unix_ns,
    )
