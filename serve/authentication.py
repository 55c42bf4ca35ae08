"""Whose key a request carries, and what that key may do."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from ray.actor import ActorHandle

from receipts.api_keys import Scope, key_hash
from receipts.holds import Admission
from serve.errors import RequestRefused
from serve.request_labels import RequestLabels

__all__ = ["Authentication", "Caller", "Scope"]

_BEARER: Final = "bearer "
_KEY_HEADER: Final = "x-api-key"
_MOST_KEY_CHARACTERS: Final = 256
_REMEMBERED_S: Final = 10.0
_MOST_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: the account, and which of its keys. ``key_sha256`` is what the ledger knows the key by."""

    account: str
    key_id: str
    scopes: frozenset[str]
    key_sha256: bytes

    def admission(self, labels: RequestLabels) -> Admission:
        """As what the ledger admits a request with these labels."""
        return Admission(
            account=self.account,
            api_key_id=self.key_id,
            key_sha256=self.key_sha256,
            workload=labels.workload,
            idempotency_sha256=labels.idempotency_sha256,
        )


class Authentication:
    """Asks the ledger for the key that a request carries, as `Authorization: Bearer` or as `x-api-key`.

    ``clock`` counts seconds and never goes back.
    """

    def __init__(self, ledger: ActorHandle[Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    async def caller(self, request: Request, scope: Scope) -> Caller:
        """The key as the ledger has it now.

        Raises:
            RequestRefused: 401 without a live key, 403 for one without the scope.
        """
        key = _key(request)
        return _allowed(await self._asked(key, key_hash(key)), scope)

    async def caller_for_hold(self, request: Request) -> Caller:
        """As `caller` for `Scope.INFERENCE`, but from memory, where the key was asked for within ten seconds.

        It may have been revoked since. Only for what places a hold before any work: there the ledger looks again.
        """
        key = _key(request)
        key_sha256 = key_hash(key)
        found = self._remembered.get(key_sha256)
        if found is not None and self._clock() - found[0] < _REMEMBERED_S:
            return _allowed(found[1], Scope.INFERENCE)
        return _allowed(await self._asked(key, key_sha256), Scope.INFERENCE)

    def reader(self) -> Callable[[Request], Awaitable[str]]:
        """The account of a request whose key may `Scope.READ`, as routes that only read ask for it."""

        async def account(request: Request) -> str:
            return (await self.caller(request, Scope.READ)).account

        return account

    async def _asked(self, key: str, key_sha256: bytes) -> Caller:
        found = await self._ledger.key_of.remote(key)
        self._remembered.pop(key_sha256, None)
        if found is None:
            raise unknown_key()
        caller = Caller(
            account=found.account, key_id=found.key_id, scopes=frozenset(found.scopes), key_sha256=key_sha256
        )
        self._remembered[key_sha256] = (self._clock(), caller)
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return caller


def unknown_key() -> RequestRefused:
    """There is no key, or no live one."""
    return RequestRefused(
        HTTPStatus.UNAUTHORIZED,
        "missing, unknown, revoked or expired API key; send `Authorization: Bearer jc_LIVE_…` or it as `x-api-key`",
    )


def _key(request: Request) -> str:
    """The key as it was sent. Two different ones are none: either could be the one that is meant."""
    sent = {
        value[len(_BEARER) :].strip()
        for value in request.headers.getlist("authorization")
        if value.lower().startswith(_BEARER)
    }
    sent |= {value.strip() for value in request.headers.getlist(_KEY_HEADER)}
    key = next(iter(sent), "")
    if len(sent) != 1 or not 1 <= len(key) <= _MOST_KEY_CHARACTERS:
        raise unknown_key()
    return key


def _allowed(caller: Caller, scope: Scope) -> Caller:
    if scope.value not in caller.scopes:
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"this key lacks the scope {scope.value!r}, which is needed here")
    return caller
