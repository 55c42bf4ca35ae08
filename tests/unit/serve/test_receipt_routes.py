"""What an account asks about its receipts, and what it is told, on a ledger of the test's own."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from starlette.responses import JSONResponse

from receipts.errors import ReadersBusy
from receipts.ledger_csv import csv_header
from receipts.ledger_reader import LedgerPosition
from receipts.receipt_query import ReceiptQuery, ReceiptsPage
from receipts.signing_errors import HeadRefused, QuorumUnavailable
from serve.errors import RequestRefused
from serve.receipt_routes import PageCursor, ReceiptRoutes, ReceiptsWanted, invalid_parameter, receipt_query

NOW_NS = 1_782_219_834_000_123_456
DAY_NS = 86_400 * 10**9
HEAD = b'{"typ":"joule-mesh.account-head/v1"}'


def as_ray_raises(error: Exception) -> Exception:
    """As an actor's caller gets it: of the error's class, and with a traceback for a text."""
    return RayTaskError("head", "Traceback: this and that", error).as_instanceof_cause()


class Remote:
    """An actor's method."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    async def remote(self, *arguments: Any, **named: Any) -> Any:
        return self._method(*arguments, **named)


class FakeLedger:
    """Seven receipts of acme; none of anybody else. ``asked`` keeps the queries."""

    def __init__(self) -> None:
        self.asked: list[tuple[ReceiptQuery, int, int, bool]] = []
        self.fails: Exception | None = None
        self.head: bytes | None = HEAD
        self.csv_pages = [b"one\r\n", b"two\r\n", b"three\r\n"]
        self.csv_fails_at: int | None = None
        self.csv_fails_times = 99
        self.heads_asked: list[tuple[str, int | None]] = []
        self.lines_asked: list[LedgerPosition] = []
        self.account_of = Remote({"jc_LIVE_acme": "acme"}.get)
        self.receipts_page = Remote(self._page)
        self.account_head = Remote(self._head)
        self.ledger_lines = Remote(self._lines)

    def _page(self, query: ReceiptQuery, after_seq: int, limit: int, *, newest_first: bool) -> ReceiptsPage:
        self.asked.append((query, after_seq, limit, newest_first))
        if self.fails is not None:
            raise self.fails
        order = range(7, 0, -1) if newest_first else range(1, 8)
        left = [seq for seq in order if not after_seq or (seq < after_seq if newest_first else seq > after_seq)]
        shown = left[:limit]
        lines = b"".join(b'{"chain":{"seq":%d},"note":"a, b"}\n' % seq for seq in shown)
        more = shown[-1] if len(left) > limit else None
        return ReceiptsPage(lines=lines, next_after_seq=more, first_seq=query.first_seq, last_seq=6)

    def _head(self, account: str, since_unix_ns: int | None) -> bytes | None:
        self.heads_asked.append((account, since_unix_ns))
        if self.fails is not None:
            raise self.fails
        return self.head

    def _lines(self, account: str, after: LedgerPosition, limit: int) -> tuple[bytes, LedgerPosition | None]:
        self.lines_asked.append(after)
        page = after.entries_read
        if page == self.csv_fails_at and self.csv_fails_times:
            self.csv_fails_times -= 1
            raise ReadersBusy("full")
        last = page == len(self.csv_pages) - 1
        return self.csv_pages[page], None if last else LedgerPosition(entries_read=page + 1)


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def waited_s() -> list[float]:
    return []


@pytest.fixture
def app(ledger: FakeLedger, waited_s: list[float]) -> FastAPI:
    """The routes with the handlers that the ingress gives them."""

    async def account(request: Request) -> str:
        known = await ledger.account_of.remote(request.headers["authorization"].removeprefix("Bearer "))
        if known is None:
            raise RequestRefused(HTTPStatus.UNAUTHORIZED, "unknown key")
        return known

    async def refused(_request: Request, refusal: RequestRefused) -> JSONResponse:
        headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
        return JSONResponse({"message": refusal.message, "param": refusal.param}, refusal.status, headers)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(request, invalid_parameter(error))

    async def sleep(seconds: float) -> None:
        waited_s.append(seconds)

    app = FastAPI()
    ReceiptRoutes(account, ledger, sleep=sleep).add_to(app)
    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    return app


async def get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    known = {"Authorization": "Bearer jc_LIVE_acme"}
    async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
        return await client.get(path, headers={**known, **headers})


async def test_a_page_is_openais_list_of_the_lines_as_they_are(app: FastAPI, ledger: FakeLedger) -> None:
    answer = await get(app, "/v1/receipts?limit=3")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["object", "data", "has_more", "next"]
    assert (body["object"], body["has_more"]) == ("list", True)
    assert [each["chain"]["seq"] for each in body["data"]] == [1, 2, 3]
    assert b'[{"chain":{"seq":1},"note":"a, b"},{"chain":{"seq":2},"note":"a, b"},' in answer.content
    assert ledger.asked == [(ReceiptQuery(account="acme"), 0, 3, False)]


async def test_following_next_walks_all_of_them_in_either_order(app: FastAPI) -> None:
    for order, expected in (("asc", [1, 2, 3, 4, 5, 6, 7]), ("desc", [7, 6, 5, 4, 3, 2, 1])):
        seqs, cursor = [], ""
        while cursor is not None:
            body = (await get(app, f"/v1/receipts?limit=2&order={order}{cursor and '&after=' + cursor}")).json()
            seqs += [each["chain"]["seq"] for each in body["data"]]
            cursor = body["next"]
            assert body["has_more"] == (cursor is not None)
        assert seqs == expected


async def test_as_lines_the_next_page_is_in_the_link(app: FastAPI) -> None:
    answer = await get(app, "/v1/receipts?limit=3&customer_tag=a%26b", Accept="application/x-ndjson")
    assert answer.headers["content-type"] == "application/x-ndjson"
    for expected in ([1, 2, 3], [4, 5, 6]):
        assert [json.loads(line)["chain"]["seq"] for line in answer.content.splitlines()] == expected
        query = answer.links["next"]["url"]
        assert query.startswith("?limit=3&customer_tag=a%26b&after="), "relative to wherever a proxy has it"
        assert query.count("after=") == 1
        answer = await get(app, f"/v1/receipts{query}", Accept="text/html, application/x-ndjson;q=0.9")
    assert [json.loads(line)["chain"]["seq"] for line in answer.content.splitlines()] == [7]
    assert "link" not in answer.headers


async def test_an_empty_page_is_an_empty_list(app: FastAPI) -> None:
    cursor = PageCursor(after_seq=7, first_seq=0, last_seq=0, asked_unix_ns=5, digest=ReceiptsWanted().digest())
    answer = await get(app, f"/v1/receipts?after={cursor}")
    assert answer.json() == {"object": "list", "data": [], "has_more": False, "next": None}


async def test_later_pages_count_back_from_when_the_first_was_asked(app: FastAPI, ledger: FakeLedger) -> None:
    first = await get(app, "/v1/receipts?since=30d&until=1d&limit=1&first_seq=2")
    await get(app, f"/v1/receipts?since=30d&until=1d&limit=1&first_seq=2&after={first.json()['next']}")
    (one, _, _, _), (two, after_seq, _, _) = ledger.asked
    assert after_seq == 1
    assert one.until_unix_ns - one.since_unix_ns == 29 * DAY_NS
    assert (two.since_unix_ns, two.until_unix_ns, two.first_seq) == (one.since_unix_ns, one.until_unix_ns, 2)
    assert (one.last_seq, two.last_seq) == (None, 6), "the place that the first page found is kept"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("since=yesterday", "since"),
        ("until=2026-02-30T00:00:00Z", "until"),
        ("since=2026-01-01T00:00:00+02:00", "since"),
        ("since=", "since"),
        ("order=up", "order"),
        ("after=7", "after"),
        ("after=1-0-0-1", "after"),
        (f"after=0-0-0-0-{'0' * 16}", "after"),
        (f"after=99999999999999999999-0-0-1-{'0' * 16}", "after"),
        (f"after=9999999999999999999-0-0-1-{'0' * 16}", "after"),
        ("limit=2&limit=3", "limit"),
        ("model=a&model=b", "model"),
        ("first_seq=0", "first_seq"),
        ("last_seq=9223372036854775808", "last_seq"),
        ("customer_tag=", "customer_tag"),
        ("customer_tag=%00", "customer_tag"),
        ("model=" + "x" * 257, "model"),
        ("custmer_tag=a", "custmer_tag"),
    ],
)
async def test_a_bad_value_is_named(app: FastAPI, ledger: FakeLedger, query: str, param: str) -> None:
    answer = await get(app, f"/v1/receipts?{query}")
    error = answer.json()
    assert (answer.status_code, error["param"]) == (400, param)
    assert param in error["message"]
    assert len(error["message"]) < 300
    assert ledger.asked == []


@pytest.mark.parametrize(
    "changed", ["first_seq=5", "last_seq=2", "order=desc", "since=0s", "customer_tag=red", "since=2d", "region=north"]
)
async def test_a_cursor_goes_with_the_parameters_that_it_came_with(app: FastAPI, ledger: FakeLedger, changed) -> None:
    cursor = (await get(app, "/v1/receipts?limit=2&since=1d")).json()["next"]
    answer = await get(app, f"/v1/receipts?{changed}&after={cursor}")
    assert (answer.status_code, answer.json()["param"]) == (400, "after")
    assert "another selection or order" in answer.json()["message"]
    assert len(ledger.asked) == 1
    assert (await get(app, f"/v1/receipts?limit=3&order=asc&since=1d&after={cursor}")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/receipts/head", "/v1/ledger.csv"])
async def test_a_time_is_given_once(app: FastAPI, path: str) -> None:
    answer = await get(app, f"{path}?since=1d&since=2d")
    assert (answer.status_code, answer.json()["param"]) == (400, "since")
    assert "2 times" in answer.json()["message"]


@pytest.mark.parametrize("path", ["/v1/receipts", "/v1/receipts/head", "/v1/ledger.csv"])
async def test_no_key_no_answer(app: FastAPI, ledger: FakeLedger, path: str) -> None:
    answer = await get(app, path, Authorization="Bearer jc_LIVE_other")
    assert answer.status_code == 401
    assert ledger.asked == ledger.heads_asked == ledger.lines_asked == []


async def test_too_many_readers_are_asked_to_come_again(app: FastAPI, ledger: FakeLedger) -> None:
    ledger.fails = ReadersBusy("the account reads too much at once; wait")
    answer = await get(app, "/v1/receipts")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["message"] == "the account reads too much at once; wait"


async def test_the_head_as_it_was_signed(app: FastAPI, ledger: FakeLedger) -> None:
    answer = await get(app, "/v1/receipts/head?since=1970-01-02T00:00:00Z")
    assert (answer.status_code, answer.content) == (200, HEAD)
    await get(app, "/v1/receipts/head")
    assert ledger.heads_asked == [("acme", DAY_NS), ("acme", None)]


async def test_no_head_without_a_signed_receipt_or_enough_signers(app: FastAPI, ledger: FakeLedger) -> None:
    ledger.head = None
    assert (await get(app, "/v1/receipts/head")).status_code == 404
    ledger.fails = QuorumUnavailable("2 of 5")
    answer = await get(app, "/v1/receipts/head")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "too few signers answer" in answer.json()["message"]
    assert (await get(app, "/v1/receipts/head?since=never")).status_code == 400


async def test_a_head_that_the_signers_refuse_says_why_and_what_to_do(app: FastAPI, ledger: FakeLedger, caplog) -> None:
    why = "the account head of acme is not signed: signer 1: its time is -90 s off this signer's clock"
    ledger.fails = as_ray_raises(HeadRefused(why))
    answer = await get(app, "/v1/receipts/head")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["message"] == f"{why}; try again in a moment, and if that stays so, tell the operator"
    assert caplog.messages == [why]


async def test_the_csv_comes_page_by_page(app: FastAPI, ledger: FakeLedger) -> None:
    answer = await get(app, "/v1/ledger.csv?since=1970-01-02T00:00:00Z")
    assert answer.content == csv_header() + b"one\r\ntwo\r\nthree\r\n"
    assert answer.headers["content-type"].startswith("text/csv")
    assert 'filename="ledger.csv"' in answer.headers["content-disposition"]
    assert ledger.lines_asked[0] == LedgerPosition(since_unix_ns=DAY_NS)
    assert [each.entries_read for each in ledger.lines_asked] == [0, 1, 2]


async def test_a_csv_that_cannot_begin_is_an_error_and_not_an_empty_file(app: FastAPI, ledger: FakeLedger) -> None:
    ledger.csv_fails_at = 0
    assert (await get(app, "/v1/ledger.csv")).status_code == 503


async def test_a_csv_outlasts_a_busy_moment(app: FastAPI, ledger: FakeLedger, waited_s: list[float]) -> None:
    ledger.csv_fails_at, ledger.csv_fails_times = 1, 3
    answer = await get(app, "/v1/ledger.csv")
    assert answer.content == csv_header() + b"one\r\ntwo\r\nthree\r\n"
    assert len(waited_s) == 3
    assert 1 < sum(waited_s) < 10


async def test_a_csv_that_breaks_off_does_not_end_as_if_it_were_whole(
    app: FastAPI, ledger: FakeLedger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.csv_fails_at = 2
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": "/v1/ledger.csv",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer jc_LIVE_acme")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("mesh", 80),
        "client": ("me", 1),
    }
    with pytest.raises(ReadersBusy):
        await app(scope, receive, send)
    assert caplog.messages == ["a ledger.csv broke off: full"]
    assert b"".join(each.get("body", b"") for each in sent).endswith(b"one\r\ntwo\r\n")
    assert sent[-1]["more_body"] is True, "the server cuts the connection of an answer that has not ended"


async def test_the_parameters_are_in_the_schema(app: FastAPI) -> None:
    paths = (await get(app, "/openapi.json")).json()["paths"]
    documented = {each["name"]: each for each in paths["/v1/receipts"]["get"]["parameters"]}
    assert list(documented) == list(ReceiptsWanted.model_fields)
    assert all(each["description"] for each in documented.values())
    assert (
        documented["limit"]["schema"] | {"maximum": 1000, "minimum": 1, "type": "integer", "default": 100}
        == (documented["limit"]["schema"])
    )
    assert "application/x-ndjson" in paths["/v1/receipts"]["get"]["responses"]["200"]["content"]
    for path in ("/v1/receipts/head", "/v1/ledger.csv"):
        assert [each["name"] for each in paths[path]["get"]["parameters"]] == ["since"]


@given(
    st.integers(1, 2**63 - 1), *[st.integers(0, 2**63 - 1)] * 3, st.text("0123456789abcdef", min_size=16, max_size=16)
)
def test_a_cursor_is_read_as_it_was_written(
    after_seq: int, first_seq: int, last_seq: int, asked_unix_ns: int, digest: str
) -> None:
    cursor = PageCursor(
        after_seq=after_seq, first_seq=first_seq, last_seq=last_seq, asked_unix_ns=asked_unix_ns, digest=digest
    )
    assert PageCursor.parse(str(cursor)) == cursor


@given(st.text())
def test_no_other_text_breaks_the_cursor(text: str) -> None:
    try:
        cursor = PageCursor.parse(text)
    except RequestRefused as refused:
        assert refused.param == "after"
    else:
        *numbers, digest = text.split("-")
        *expected, expected_digest = str(cursor).split("-")
        assert ([int(each) for each in numbers], digest) == ([int(each) for each in expected], expected_digest)


def test_the_account_is_the_keys_and_never_a_parameter() -> None:
    assert "account" not in ReceiptsWanted.model_fields
    wanted = ReceiptsWanted(since="1d", customer_tag="blue", last_seq=9)
    assert receipt_query("acme", wanted, NOW_NS) == ReceiptQuery(
        account="acme", since_unix_ns=NOW_NS - DAY_NS, customer_tag="blue", last_seq=9
    )


async def test_the_clock_is_read_once_for_a_walk() -> None:
    async def account(_request: Request) -> str:
        return "acme"

    ticks = iter([NOW_NS])
    app, ledger = FastAPI(), FakeLedger()
    ReceiptRoutes(account, ledger, lambda: next(ticks)).add_to(app)
    first = await get(app, "/v1/receipts?since=1d&limit=4")
    await get(app, f"/v1/receipts?since=1d&limit=4&after={first.json()['next']}")
    assert [query.since_unix_ns for query, *_ in ledger.asked] == [NOW_NS - DAY_NS] * 2
