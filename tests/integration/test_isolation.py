"""One account never sees another's receipts, usage, keys, money or tags: every route of the mesh, one by one.

An account has something of everything, and each of its words and ids is a canary. Another account's key asks every
route for exactly that; what it gets has none of the canaries that it didn't send itself, and changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from running_echo import EchoMesh

_ACCOUNT, _NOSY, _OPERATOR = "acme-7f3a", "nosy", "mesh-operator"
_TAG, _WORKLOAD, _REPEAT = "canary-tag-7f3a", "canary-workload-7f3a", "canary-idempotency-7f3a"
_KEY_NAME, _TRANSFER, _BACK = "canary-key-7f3a", "canary-transfer-7f3a", "canary-back-7f3a"
_REASON, _CREDIT = "canary-reason-7f3a", "canary-credit-7f3a"
_WORDS = (_ACCOUNT, _TAG, _WORKLOAD, _REPEAT, _KEY_NAME, _TRANSFER, _BACK, _REASON, _CREDIT)
_CHAT = {"model": "auto", "messages": [{"role": "user", "content": "say hi"}], "max_tokens": 5}


@dataclass(frozen=True)
class Filled:
    """The account that has something of everything."""

    mesh: EchoMesh
    receipt: str
    key: str
    top_up: str
    refund: str
    credit: str

    @property
    def canaries(self) -> tuple[str, ...]:
        return (*_WORDS, self.receipt, self.key, self.top_up, self.refund, self.credit)

    def ask(self, account: str, method: str, path: str, body: object = None, **headers: str) -> requests.Response:
        return _ask(self.mesh, account, method, path, body, **headers)

    def snapshot(self) -> dict[str, str]:
        """All that the account sees of itself."""
        return {path: self.ask(_ACCOUNT, "GET", path).text for path in _OWN}


_OWN = (
    "/v1/keys",
    "/v1/balance",
    "/v1/budgets",
    "/v1/top-ups",
    "/v1/auto-recharge",
    "/v1/receipts",
    "/v1/ledger.csv",
    *(
        f"/v1/usage?by={by}&since=1970-01-01T00:00:00Z&until=2100-01-01T00:00:00Z"
        for by in ("model", "key", "tag", "workload", "region")
    ),
)


def _ask(
    mesh: EchoMesh, account: str, method: str, path: str, body: object = None, **headers: str
) -> requests.Response:
    signed = {"Authorization": f"Bearer {mesh.account_keys[account]}", **headers}
    return requests.request(method, mesh.url + path, json=body, headers=signed, timeout=60)


@pytest.fixture(scope="module")
def filled(echo_mesh) -> Filled:
    def made(account: str, path: str, body: object, **headers: str) -> requests.Response:
        answer = _ask(echo_mesh, account, "POST", path, body, **headers)
        assert answer.ok, answer.text
        return answer

    labels = {"X-Customer-Tag": _TAG, "X-Workload": _WORKLOAD, "Idempotency-Key": _REPEAT}
    receipt = made(_ACCOUNT, "/v1/chat/completions", _CHAT, **labels).headers["X-Receipt-Id"]
    made(_NOSY, "/v1/chat/completions", _CHAT)
    key = made(_ACCOUNT, "/v1/keys", {"name": _KEY_NAME}).json()["id"]
    for kind, subject in (("workload", _WORKLOAD), ("key", key)):
        budget = {"joules": 1e6, "window": "day"}
        assert _ask(echo_mesh, _ACCOUNT, "PUT", f"/v1/budgets/{kind}/{subject}", budget).ok
    transfer = {"usd": "7.31", "account": _ACCOUNT, "reference": _TRANSFER}
    top_up = made(_OPERATOR, "/v1/top-ups", transfer).json()["payment"]["id"]
    back = {"usd": "1", "account": _ACCOUNT, "reference": _BACK}
    refund = made(_OPERATOR, f"/v1/top-ups/{top_up}/refund", back).json()["id"]
    credit = {"account": _ACCOUNT, "usd": "1", "kind": "sla", "reason": _REASON, "reference": _CREDIT}
    entered = made(_OPERATOR, "/v1/credits", credit).json()["id"]
    found = Filled(echo_mesh, receipt, key, top_up, refund, entered)
    for account in (_ACCOUNT, _NOSY):
        assert echo_mesh.wait_until(lambda: found.ask(account, "GET", "/v1/receipts/head").ok)  # noqa: B023 - called here
    return found


@dataclass(frozen=True)
class Case:
    """A request for another's things. ``shows``: asked by the account itself, canaries come; so the test can fail."""

    path: Callable[[Filled], str]
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    shows: bool = False


def at(path: str) -> Callable[[Filled], str]:
    return lambda _filled: path


_LABELS = {"X-Customer-Tag": "mine", "Idempotency-Key": _REPEAT}
_TRANSFER_BODY = {"usd": "1", "account": _ACCOUNT, "reference": "mine"}

CASES: dict[tuple[str, str], Case] = {
    ("get", "/healthz"): Case(at("/healthz"), 200),
    ("get", "/v1/keys/group"): Case(at("/v1/keys/group"), 200),
    ("get", "/v1/models"): Case(at("/v1/models"), 200),
    ("get", "/v1/models/{model}"): Case(at("/v1/models/auto"), 200),
    ("get", "/v1/pools"): Case(at("/v1/pools"), 200),
    ("get", "/v1/meters"): Case(at("/v1/meters"), 403),
    ("post", "/v1/explain"): Case(at("/v1/explain"), 200, _CHAT),
    # The other's idempotency key is no key of this account.
    ("post", "/v1/chat/completions"): Case(at("/v1/chat/completions"), 200, _CHAT, _LABELS),
    ("post", "/v1/completions"): Case(
        at("/v1/completions"), 200, {"model": "auto", "prompt": "say hi", "max_tokens": 5}
    ),
    ("post", "/v1/messages"): Case(at("/v1/messages"), 200, _CHAT),
    ("post", "/v1/embeddings"): Case(at("/v1/embeddings"), 200, {"model": "auto", "input": "hi"}),
    ("get", "/v1/receipts"): Case(at(f"/v1/receipts?customer_tag={_TAG}"), 200, shows=True),
    ("get", "/v1/receipts/head"): Case(at("/v1/receipts/head"), 200, shows=True),
    ("get", "/v1/receipts/{receipt_id}"): Case(lambda filled: f"/v1/receipts/{filled.receipt}", 404, shows=True),
    ("get", "/v1/ledger.csv"): Case(at("/v1/ledger.csv"), 200, shows=True),
    ("get", "/v1/balance"): Case(at("/v1/balance"), 200, shows=True),
    ("get", "/v1/usage"): Case(at("/v1/usage?by=tag"), 200, shows=True),
    ("get", "/v1/usage/workload/{name}"): Case(at(f"/v1/usage/workload/{_WORKLOAD}?by=key"), 200, shows=True),
    ("get", "/v1/keys"): Case(at("/v1/keys"), 200, shows=True),
    ("post", "/v1/keys"): Case(at("/v1/keys"), 201, {"name": "mine"}),
    ("delete", "/v1/keys/{key_id}"): Case(lambda filled: f"/v1/keys/{filled.key}", 404),
    ("post", "/v1/keys/{key_id}/rotate"): Case(lambda filled: f"/v1/keys/{filled.key}/rotate", 404, {}),
    ("get", "/v1/budgets"): Case(at("/v1/budgets"), 200, shows=True),
    ("get", "/v1/budgets/{kind}/{subject}"): Case(lambda filled: f"/v1/budgets/key/{filled.key}", 200, shows=True),
    ("put", "/v1/budgets/{kind}/{subject}"): Case(
        lambda filled: f"/v1/budgets/key/{filled.key}", 422, {"joules": 0, "window": "day"}
    ),
    ("delete", "/v1/budgets/{kind}/{subject}"): Case(at(f"/v1/budgets/workload/{_WORKLOAD}?window=day"), 404),
    ("get", "/v1/top-ups"): Case(at("/v1/top-ups"), 200, shows=True),
    ("post", "/v1/top-ups"): Case(at("/v1/top-ups"), 403, _TRANSFER_BODY),
    ("post", "/v1/top-ups/{payment_id}/refund"): Case(lambda filled: f"/v1/top-ups/{filled.top_up}/refund", 404, {}),
    ("post", "/v1/credits"): Case(at("/v1/credits"), 403, _TRANSFER_BODY | {"kind": "sla", "reason": "mine"}),
    ("get", "/v1/auto-recharge"): Case(at("/v1/auto-recharge"), 200),
    ("put", "/v1/auto-recharge"): Case(at("/v1/auto-recharge"), 409, {"threshold_usd": "5", "amount_usd": "5"}),
    ("delete", "/v1/auto-recharge"): Case(at("/v1/auto-recharge"), 200),
    ("post", "/v1/webhooks/stripe"): Case(at("/v1/webhooks/stripe"), 400, {"account": _ACCOUNT}),
}


def test_every_route_of_the_mesh_is_asked_here(filled):
    document = requests.get(f"{filled.mesh.url}/openapi.json", timeout=30).json()
    routes = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert set(CASES) == routes


@pytest.mark.parametrize("route", CASES, ids=" ".join)
def test_a_route_shows_and_changes_nothing_of_another_account(filled, route):
    case, (method, _) = CASES[route], route
    path, before = case.path(filled), filled.snapshot()
    answer = filled.ask(_NOSY, method.upper(), path, case.body, **case.headers)
    assert answer.status_code == case.status, answer.text
    asked = f"{path} {case.body} {case.headers}"
    shown = f"{answer.text} {answer.headers}"
    assert [canary for canary in filled.canaries if canary in shown and canary not in asked] == []
    assert filled.snapshot() == before


@pytest.mark.parametrize("route", [route for route, case in CASES.items() if case.shows], ids=" ".join)
def test_the_account_itself_does_see_it(filled, route):
    case = CASES[route]
    answer = filled.ask(_ACCOUNT, "GET", case.path(filled))
    assert answer.ok
    assert any(canary in answer.text for canary in filled.canaries)


def test_what_it_paid_for_is_in_no_header_or_error_of_another(filled):
    """Also by their ids in places where they don't belong."""
    for path in (
        f"/v1/receipts/{filled.top_up}",
        f"/v1/receipts?first_seq=1&customer_tag={_TAG}&model=smollm2-135m-instruct",
        "/v1/usage?by=workload&since=1970-01-01T00:00:00Z&until=2100-01-01T00:00:00Z",
        f"/v1/budgets/workload/{_WORKLOAD}",
    ):
        answer = filled.ask(_NOSY, "GET", path)
        shown = f"{answer.text} {answer.headers}"
        assert [canary for canary in filled.canaries if canary in shown and canary not in path] == []
