"""Balance, usage and budgets over HTTP, on a real ledger."""

from collections.abc import Iterator

import pytest
from account_desk import Desk, open_desk

from receipts.ledger import OPENING_CREDIT_USD_PICOS
from serve.payments.money import USD_PICOS


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


async def test_a_balance_is_what_is_left_and_what_of_it_is_held(desk):
    desk.handle.held_usd_picos = USD_PICOS
    assert (await desk.ask("GET", "/v1/balance")).json() == {
        "object": "balance",
        "account": "acme",
        "balance_usd": "5.00",
        "balance_usd_picos": OPENING_CREDIT_USD_PICOS,
        "held_usd": "1.00",
        "held_usd_picos": USD_PICOS,
        "available_usd": "4.00",
        "available_usd_picos": 4 * USD_PICOS,
    }


async def test_an_account_without_receipts_has_used_nothing(desk):
    answer = (await desk.ask("GET", "/v1/usage?by=model&since=2026-01-01T00:00:00Z")).json()
    assert (answer["data"], answer["total"]["requests"], answer["total"]["usd"]) == ([], 0, "0.00")
    assert (answer["by"], answer["since"], answer["workload"]) == ("model", "2026-01-01T00:00:00Z", None)


@pytest.mark.parametrize(
    ("query", "param"),
    [("by=colour", "by"), ("since=yesterday", "since"), ("month=1", "month"), ("by=day&by=key", "by")],
)
async def test_a_wrong_parameter_is_named(desk, query, param):
    answer = await desk.ask("GET", f"/v1/usage?{query}")
    assert (answer.status_code, answer.json()["param"]) == (400, param)


async def test_a_workloads_name_may_have_slashes(desk):
    answer = await desk.ask("GET", "/v1/usage/workload/team/nightly:build")
    assert (answer.status_code, answer.json()["workload"]) == (200, "team/nightly:build")
    assert (await desk.ask("GET", "/v1/usage/workload/%00")).status_code == 400


async def test_a_budget_is_set_shown_replaced_and_removed(desk):
    path = "/v1/budgets/workload/team/nightly"
    one = await desk.ask("PUT", path, {"joules": 1500.5, "window": "day"})
    assert one.status_code == 200, one.text
    await desk.ask("PUT", path, {"joules": 10, "window": "hour"})
    await desk.ask("PUT", path, {"joules": 2000, "window": "day"})
    shown = {each["window"]: each for each in (await desk.ask("GET", path)).json()["data"]}
    assert {window: each["joules"] for window, each in shown.items()} == {"day": 2000.0, "hour": 10.0}
    assert shown["day"]["used_joules"] == 0
    assert shown["day"]["subject"] == "team/nightly"
    left = await desk.ask("DELETE", f"{path}?window=hour")
    assert [each["window"] for each in left.json()["data"]] == ["day"]
    assert (await desk.ask("DELETE", f"{path}?window=hour")).status_code == 404
    assert len((await desk.ask("GET", "/v1/budgets")).json()["data"]) == 1
    assert (await desk.ask("GET", "/v1/budgets", of="other")).json()["data"] == []


async def test_a_budget_is_for_a_key_of_the_account(desk):
    (mine,) = desk.ledger.list_keys("acme")
    (theirs,) = desk.ledger.list_keys("other")
    budget = {"joules": 1, "window": "month"}
    assert (await desk.ask("PUT", f"/v1/budgets/key/{mine.key_id}", budget)).status_code == 200
    assert (await desk.ask("PUT", f"/v1/budgets/key/{theirs.key_id}", budget)).status_code == 422


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"joules": -1, "window": "day"}, "joules"),
        ({"joules": 1e13, "window": "day"}, "joules"),
        ({"joules": "5", "window": "day"}, "joules"),
        ({"joules": 5, "window": "week"}, "window"),
        ({"joules": 5}, "window"),
    ],
)
async def test_a_wrong_budget_is_named(desk, body, param):
    answer = await desk.ask("PUT", "/v1/budgets/workload/nightly", body)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_key_that_may_only_read_sets_no_budget(desk):
    key = (await desk.ask("POST", "/v1/keys", {"scopes": ["read"]})).json()["key"]
    for method, path in (("PUT", "/v1/budgets/workload/a"), ("DELETE", "/v1/budgets/workload/a?window=day")):
        assert (await desk.ask(method, path, {"joules": 1, "window": "day"}, key=key)).status_code == 403
