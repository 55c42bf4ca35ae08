"""Keys as requests carry them, and what they may do."""

import hashlib
from http import HTTPStatus
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from receipts.api_keys import SCOPES, ApiKey, key_hash
from serve.authentication import Authentication, Caller, Scope
from serve.errors import RequestRefused
from serve.request_labels import RequestLabels

_SECRET = "jc_LIVE_secret"


class Remote:
    def __init__(self, keys: dict[str, ApiKey]) -> None:
        self.keys = keys
        self.asked = 0

    async def remote(self, secret: str) -> ApiKey | None:
        self.asked += 1
        return self.keys.get(secret)


class Ledger:
    """Knows one key."""

    def __init__(self, *scopes: str) -> None:
        key = ApiKey(
            key_id="key_" + "1" * 16,
            account="acme",
            name="",
            scopes=scopes,
            created_unix_ns=1,
            expires_unix_ns=None,
            revoked_unix_ns=None,
        )
        self.key_of = Remote({_SECRET: key})


def authentication(ledger: Ledger, clock: Any = lambda: 0.0) -> Authentication:
    actor: Any = ledger
    return Authentication(actor, clock)


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "headers": raw})


BEARER = request(("Authorization", f"Bearer {_SECRET}"))


def test_the_scopes_are_the_ledgers():
    assert tuple(scope.value for scope in Scope) == SCOPES


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {_SECRET}")],
        [("authorization", f"bearer  {_SECRET} ")],
        [("X-Api-Key", _SECRET)],
        [("X-Api-Key", _SECRET), ("Authorization", f"Bearer {_SECRET}")],
        [("X-Api-Key", _SECRET), ("Authorization", "Basic eDp5")],
    ],
)
async def test_a_key_comes_as_openais_or_as_anthropics_clients_send_it(headers):
    caller = await authentication(Ledger("read")).caller(request(*headers), Scope.READ)
    assert (caller.account, caller.key_id, caller.scopes) == ("acme", "key_" + "1" * 16, {"read"})
    assert caller.key_sha256 == key_hash(_SECRET)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", _SECRET)],
        [("Authorization", "Bearer ")],
        [("Authorization", f"Basic {_SECRET}")],
        [("X-Api-Key", "")],
        [("X-Api-Key", "jc_LIVE_other")],
        [("X-Api-Key", _SECRET), ("Authorization", "Bearer jc_LIVE_other")],
        [("X-Api-Key", "caf\xe9")],
        [("X-Api-Key", "x" * 10_000)],
    ],
)
async def test_no_key_or_two_or_an_unknown_one_is_401(headers):
    with pytest.raises(RequestRefused) as refused:
        await authentication(Ledger("read")).caller(request(*headers), Scope.READ)
    assert refused.value.status == HTTPStatus.UNAUTHORIZED
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_without_the_scope_is_403_and_the_scope_is_named(scope):
    others = [each.value for each in Scope if each is not scope]
    with pytest.raises(RequestRefused, match=scope.value) as refused:
        await authentication(Ledger(*others)).caller(BEARER, scope)
    assert refused.value.status == HTTPStatus.FORBIDDEN


async def test_for_a_hold_the_ledger_is_asked_once_in_ten_seconds_and_for_the_rest_each_time():
    ledger, now = Ledger("inference", "read"), [0.0]
    known = authentication(ledger, lambda: now[0])
    for now[0] in (0.0, 9.9):
        await known.caller_for_hold(BEARER)
    assert ledger.key_of.asked == 1
    now[0] = 10.0
    await known.caller_for_hold(BEARER)
    assert ledger.key_of.asked == 2
    await known.caller(BEARER, Scope.READ)
    assert ledger.key_of.asked == 3


async def test_a_revoked_key_is_forgotten_where_it_was_asked_for():
    ledger = Ledger("inference")
    known = authentication(ledger)
    await known.caller_for_hold(BEARER)
    ledger.key_of.keys.clear()
    with pytest.raises(RequestRefused):
        await known.caller(BEARER, Scope.INFERENCE)
    with pytest.raises(RequestRefused):
        await known.caller_for_hold(BEARER)


async def test_a_key_without_inference_places_no_hold_from_memory_either():
    known = authentication(Ledger("read"))
    for _ in range(2):
        with pytest.raises(RequestRefused) as refused:
            await known.caller_for_hold(BEARER)
        assert refused.value.status == HTTPStatus.FORBIDDEN


def test_labels_are_read_and_of_the_idempotency_key_only_the_hash():
    headers = {"X-Customer-Tag": "team blue", "X-Workload": "etl/nightly@v2", "Idempotency-Key": "k-1"}
    labels = RequestLabels.of(Headers(headers))
    assert (labels.customer_tag, labels.workload) == ("team blue", "etl/nightly@v2")
    assert labels.idempotency_sha256 == hashlib.sha256(b"k-1").hexdigest()
    caller = Caller(account="acme", key_id="key_1", scopes=frozenset(), key_sha256=b"x")
    admission = caller.admission(labels)
    assert (admission.account, admission.workload) == ("acme", "etl/nightly@v2")
    assert admission.idempotency_sha256 == labels.idempotency_sha256


def test_labels_that_were_not_sent_are_none():
    assert RequestLabels.of(Headers({})) == RequestLabels(customer_tag=None, workload=None, idempotency_sha256=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Customer-Tag", ""),
        ("X-Customer-Tag", "x" * 129),
        ("X-Customer-Tag", "caf\xe9"),
        ("X-Workload", ""),
        ("X-Workload", "-x"),
        ("X-Workload", "a b"),
        ("X-Workload", "x" * 129),
        ("X-Workload", "a\n"),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "a b"),
        ("Idempotency-Key", "x" * 256),
    ],
)
def test_a_label_in_another_form_is_400_and_named(name, value):
    with pytest.raises(RequestRefused) as refused:
        RequestLabels.of(Headers(raw=[(name.lower().encode(), value.encode("latin-1"))]))
    assert (refused.value.status, refused.value.param) == (HTTPStatus.BAD_REQUEST, name)
    assert not value or value not in refused.value.message


def test_a_label_that_was_sent_twice_is_none():
    with pytest.raises(RequestRefused):
        RequestLabels.of(Headers(raw=[(b"x-workload", b"a"), (b"x-workload", b"a")]))
