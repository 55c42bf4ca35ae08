"""An account's API keys over HTTP: made, listed, revoked, rotated."""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from pydantic import Field
from ray.actor import ActorHandle
from starlette.responses import Response

from receipts.api_keys import ApiKey, NewKey
from receipts.errors import InvalidMoment
from receipts.moments import parse_moment, rfc3339_to_seconds
from serve.account_bodies import Body, Rfc3339, Shown, body_of, ledgers_word, read_body_as
from serve.authentication import Authentication, Scope
from serve.errors import RequestRefused
from serve.openapi import documented

_MOST_OVERLAP_S: Final = 30 * 86_400
_DAY_S: Final = 86_400

KeyScope = Literal["inference", "read", "deploy", "billing-admin"]
KeyId = Annotated[str, InPath(max_length=64, description="As `id` in the list of keys.")]


class KeyWanted(Body):
    """A key to be made. Of its account's own keys only those with `billing-admin` may make others, of any scope."""

    name: str = Field("", max_length=256, description="What it is for: a line.")
    scopes: list[KeyScope] = Field(["inference", "read"], min_length=1, max_length=16)
    expires_at: str | None = Field(None, max_length=64, description="RFC 3339, in the future; null: never.")


class Rotation(Body):
    """How long the old key goes on opening the account."""

    overlap_s: int = Field(_DAY_S, ge=0, le=_MOST_OVERLAP_S)


class KeyShown(Shown):
    """A key without its secret, of which the mesh keeps only a hash."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scopes: tuple[str, ...]
    status: Literal["live", "expired", "revoked"]
    created_at: Rfc3339
    expires_at: Rfc3339 | None
    revoked_at: Rfc3339 | None


class NewKeyShown(KeyShown):
    """A key that was just made, with its secret: this is the one time that it is seen."""

    key: str


class KeysShown(Shown):
    """An account's keys, the newest first."""

    object: Literal["list"] = "list"
    data: tuple[KeyShown, ...]


class KeyRoutes:
    """The routes under `/v1/keys`: each sees the keys of the caller's account alone."""

    def __init__(
        self,
        authentication: Authentication,
        ledger: ActorHandle[Any],
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._authentication = authentication
        self._ledger = ledger
        self._wall_clock_ns = wall_clock_ns

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        reading, admin = Scope.READ, Scope.BILLING_ADMIN
        gone = HTTPStatus.NOT_FOUND
        app.add_api_route("/v1/keys", self.list_keys, methods=["GET"], **documented(reading))
        app.add_api_route(
            "/v1/keys",
            self.create,
            methods=["POST"],
            status_code=HTTPStatus.CREATED,
            **documented(admin, takes_body=True, extra=body_of(KeyWanted)),
        )
        app.add_api_route("/v1/keys/{key_id}", self.revoke, methods=["DELETE"], **documented(admin, gone))
        app.add_api_route(
            "/v1/keys/{key_id}/rotate",
            self.rotate,
            methods=["POST"],
            status_code=HTTPStatus.CREATED,
            **documented(admin, gone, takes_body=True, extra=body_of(Rotation)),
        )

    async def list_keys(self, request: Request) -> KeysShown:
        """The account's keys, live or not."""
        caller = await self._authentication.caller(request, Scope.READ)
        keys: Sequence[ApiKey] = await self._ledger.list_keys.remote(caller.account)
        now_ns = self._wall_clock_ns()
        return KeysShown(data=tuple(KeyShown(**key_object(each, now_ns)) for each in keys))

    async def create(self, request: Request, response: Response) -> NewKeyShown:
        """Make a key. Its secret is in the answer, and never seen again."""
        caller = await self._authentication.caller(request, Scope.BILLING_ADMIN)
        wanted = await read_body_as(request, KeyWanted)
        expires_unix_ns = None if wanted.expires_at is None else self._expiry(wanted.expires_at)
        with ledgers_word():
            made: NewKey = await self._ledger.create_key.remote(
                caller.account, wanted.name, tuple(wanted.scopes), expires_unix_ns
            )
        return self._shown(made, response)

    async def revoke(self, request: Request, key_id: KeyId) -> KeyShown:
        """Revoke a key: it opens nothing from the next request on."""
        caller = await self._authentication.caller(request, Scope.BILLING_ADMIN)
        await self._one(caller.account, key_id)
        if not await self._ledger.revoke_key.remote(caller.account, key_id):
            raise _no_key(key_id)
        return await self._one(caller.account, key_id)

    async def rotate(self, request: Request, key_id: KeyId, response: Response) -> NewKeyShown:
        """Make a key like this one, which itself expires after `overlap_s` seconds, a day if nothing is said.

        It has the budgets of this one, and has drawn nothing of them yet.
        """
        caller = await self._authentication.caller(request, Scope.BILLING_ADMIN)
        rotation = await read_body_as(request, Rotation)
        if (await self._one(caller.account, key_id)).status != "live":
            raise _no_key(key_id)
        with ledgers_word():
            made: NewKey = await self._ledger.rotate_key.remote(caller.account, key_id, rotation.overlap_s)
        return self._shown(made, response)

    async def _one(self, account: str, key_id: str) -> KeyShown:
        keys: Sequence[ApiKey] = await self._ledger.list_keys.remote(account)
        found = next((each for each in keys if each.key_id == key_id), None)
        if found is None:
            raise _no_key(key_id)
        return KeyShown(**key_object(found, self._wall_clock_ns()))

    def _shown(self, made: NewKey, response: Response) -> NewKeyShown:
        response.headers["Cache-Control"] = "no-store"
        return NewKeyShown(**key_object(made.key, self._wall_clock_ns()), key=made.secret)

    def _expiry(self, text: str) -> int:
        now_ns = self._wall_clock_ns()
        try:
            unix_ns = parse_moment(text, now_ns)
        except InvalidMoment as error:
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"expires_at: {error}", "expires_at") from error
        if unix_ns <= now_ns:
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "expires_at is not in the future", "expires_at")
        return unix_ns


def key_object(key: ApiKey, now_ns: int) -> dict[str, Any]:
    """The members of `KeyShown`."""
    revoked, expires = key.revoked_unix_ns, key.expires_unix_ns
    status = "live" if key.is_live(now_ns) else "expired" if revoked is None else "revoked"
    return {
        "id": key.key_id,
        "name": key.name,
        "scopes": key.scopes,
        "status": status,
        "created_at": rfc3339_to_seconds(key.created_unix_ns),
        "expires_at": None if expires is None else rfc3339_to_seconds(expires),
        "revoked_at": None if revoked is None else rfc3339_to_seconds(revoked),
    }


def _no_key(key_id: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.NOT_FOUND, f"this account has no live key {key_id[:64]!r}", "key_id")
