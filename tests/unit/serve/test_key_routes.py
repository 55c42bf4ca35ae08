"""An account's keys over HTTP, on a real ledger."""

from collections.abc import Iterator

import pytest
from account_desk import Desk, open_desk

from receipts.moments import rfc3339


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


async def made(desk: Desk, **wanted: object) -> dict:
    answer = await desk.ask("POST", "/v1/keys", wanted)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_key_is_shown_once_and_opens_what_its_scopes_say(desk):
    key = await made(desk, name="reader", scopes=["read"])
    assert key["key"].startswith("jc_LIVE_")
    listed = (await desk.ask("GET", "/v1/keys", key=key["key"])).json()["data"]
    assert [each["name"] for each in listed] == ["reader", "first"]
    assert all("key" not in each for each in listed)
    assert (await desk.ask("POST", "/v1/keys", {}, key=key["key"])).status_code == 403


async def test_a_new_key_is_kept_by_no_cache_and_has_no_more_scopes_than_it_was_given(desk):
    answer = await desk.ask("POST", "/v1/keys", {})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["scopes"] == ["inference", "read"]


async def test_a_revoked_key_opens_nothing_and_says_so(desk):
    key = await made(desk, scopes=["read"])
    revoked = await desk.ask("DELETE", f"/v1/keys/{key['id']}")
    assert revoked.json()["status"] == "revoked"
    assert revoked.json()["revoked_at"] is not None
    assert (await desk.ask("GET", "/v1/keys", key=key["key"])).status_code == 401
    assert (await desk.ask("DELETE", f"/v1/keys/{key['id']}")).status_code == 404


async def test_a_rotated_key_has_its_scopes_and_the_old_one_ends(desk):
    old = await made(desk, name="app", scopes=["read"])
    new = await desk.ask("POST", f"/v1/keys/{old['id']}/rotate", {"overlap_s": 0})
    assert new.status_code == 201
    assert (new.json()["name"], new.json()["scopes"]) == ("app", ["read"])
    assert (await desk.ask("GET", "/v1/keys", key=old["key"])).status_code == 401
    assert (await desk.ask("GET", "/v1/keys", key=new.json()["key"])).status_code == 200
    assert (await desk.ask("POST", f"/v1/keys/{old['id']}/rotate", {"overlap_s": 0})).status_code == 404


async def test_without_a_word_the_old_key_lives_on_for_a_day(desk):
    old = await made(desk, scopes=["read"])
    assert (await desk.ask("POST", f"/v1/keys/{old['id']}/rotate")).status_code == 201
    assert (await desk.ask("GET", "/v1/keys", key=old["key"])).status_code == 200


async def test_another_accounts_key_is_not_there(desk):
    theirs = (await desk.ask("POST", "/v1/keys", {}, of="other")).json()
    assert (await desk.ask("DELETE", f"/v1/keys/{theirs['id']}")).status_code == 404
    assert (await desk.ask("POST", f"/v1/keys/{theirs['id']}/rotate", {})).status_code == 404
    assert theirs["id"] not in (await desk.ask("GET", "/v1/keys")).text
    assert (await desk.ask("GET", "/v1/keys", key=theirs["key"], of="other")).status_code == 200


async def test_an_expiry_is_in_the_future(desk):
    key = await made(desk, expires_at=rfc3339(2_000_000_000 * 10**9))
    assert key["expires_at"] == "2033-05-18T03:33:20Z"
    for wrong in ("2020-01-01T00:00:00Z", "30d", "never"):
        answer = await desk.ask("POST", "/v1/keys", {"expires_at": wrong})
        assert (answer.status_code, answer.json()["param"]) == (422, "expires_at")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": []}, "scopes"),
        ({"name": 5}, "name"),
        ({"account": "other"}, "account"),
        ({"name": "x" * 257}, "name"),
    ],
)
async def test_a_wrong_member_is_named(desk, body, param):
    answer = await desk.ask("POST", "/v1/keys", body)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_name_that_the_ledger_refuses_is_the_clients_fault(desk):
    assert (await desk.ask("POST", "/v1/keys", {"name": "two\nlines"})).status_code == 422


async def test_what_is_no_json_object_is_a_bad_request(desk):
    for content in (b"[]", b"{", b"\xff", b'{"name": NaN}', b'{"name": "a", "name": "b"}'):
        answer = await desk.ask("POST", "/v1/keys", content=content)
        assert answer.status_code == 400, content
    assert (await desk.ask("POST", "/v1/keys", content=b'{"name": "%s"}' % (b"x" * 70_000))).status_code == 413
