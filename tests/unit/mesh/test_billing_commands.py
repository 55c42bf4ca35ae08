"""`jc balance`, `usage`, `top-up` and their like, and the client's methods below them, against an HTTP server here."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result

from mesh.client import MeshClient
from mesh.command import main

ROW = {
    "group": "2026-11-20",
    "requests": 1200,
    "unmetered_requests": 0,
    "input_tokens": 5,
    "output_tokens": 7,
    "joules": 1234.5,
    "microjoules": 1_234_500_000,
    "carbon_mg": 0.5,
    "usd": "0.000171458333",
    "usd_picos": 171_458_333,
}
USAGE = {
    "by": "day",
    "data": [ROW, {**ROW, "group": "2026-11-21"}],
    "total": {**ROW, "group": None, "requests": 2400},
    "is_cut": False,
}
BALANCE = {
    "account": "acme",
    "balance_usd": "5.00",
    "held_usd": "1.00",
    "held_usd_picos": 10**12,
    "available_usd": "4.00",
}
PAYMENT = {
    "id": "topup_1",
    "kind": "top-up",
    "usd": "25.00",
    "status": "done",
    "created_at": "2026-11-21T08:00:00Z",
    "reference": "pi_1",
    "refunds": None,
}
BUDGET = {
    "kind": "workload",
    "subject": "team/nightly",
    "window": "day",
    "joules": 1500.0,
    "used_joules": 2.5,
    "window_ends_at": "2026-11-22T00:00:00Z",
}


class FakeMesh(HTTPServer):
    """Answers what ``answers`` has by method and path; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Any] = {
            "GET /v1/balance": BALANCE,
            "GET /v1/usage": USAGE,
            "GET /v1/usage/workload/team/nightly build": USAGE,
            "GET /v1/top-ups": {"data": [PAYMENT]},
            "GET /v1/budgets": {"data": [BUDGET]},
            "PUT /v1/budgets/workload/team/nightly": {"data": [BUDGET]},
            "DELETE /v1/budgets/workload/team/nightly": {"data": []},
            "POST /v1/top-ups": {"pay_url": "https://pay.example/1", "instructions": None, "payment": None},
            "POST /v1/top-ups/topup_1/refund": {"usd": "5.00", "id": "refund_1"},
            "POST /v1/credits": {**PAYMENT, "id": "sla_1"},
        }
        self.refusal = "no such thing"
        self.asked: list[tuple[str, str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def jc(self, *arguments: str) -> Result:
        done = CliRunner().invoke(main, [*arguments, "--url", self.url, "--api-key", "jc_LIVE_x"])
        assert done.exit_code == 0, done.output
        return done


class _Handler(BaseHTTPRequestHandler):
    server: FakeMesh

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        asked = f"{self.command} {unquote(path)}"
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((asked, query, body))
        data = json.dumps(self.server.answers.get(asked, {"error": {"message": self.server.refusal}})).encode()
        self.send_response(200 if asked in self.server.answers else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with FakeMesh() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_balance_says_what_can_be_spent_and_what_is_held(mesh: FakeMesh) -> None:
    assert mesh.jc("balance").output.splitlines() == [
        "4.00 USD available to acme",
        "1.00 USD more are held for requests under way",
    ]
    assert json.loads(mesh.jc("balance", "--json").output) == BALANCE


def test_usage_is_a_table_with_its_total(mesh: FakeMesh) -> None:
    lines = mesh.jc("usage", "--since", "7d").output.splitlines()
    assert [line.split() for line in lines] == [
        ["day", "requests", "tokens", "in", "tokens", "out", "joules", "CO2", "mg", "USD"],
        ["2026-11-20", "1,200", "5", "7", "1,234.500", "0.500", "0.000171458333"],
        ["2026-11-21", "1,200", "5", "7", "1,234.500", "0.500", "0.000171458333"],
        ["total", "2,400", "5", "7", "1,234.500", "0.500", "0.000171458333"],
    ]
    assert mesh.asked == [("GET /v1/usage", "by=day&since=7d", None)]


def test_what_cost_nothing_for_want_of_a_meter_is_said(mesh: FakeMesh) -> None:
    mesh.answers["GET /v1/usage"] = {**USAGE, "total": {**USAGE["total"], "unmetered_requests": 3}, "is_cut": True}
    output = mesh.jc("usage").output
    assert "3 of the requests have no known energy, and cost nothing" in output
    assert "more groups are in the total only" in output


def test_a_workloads_usage_is_asked_for_by_its_name(mesh: FakeMesh) -> None:
    mesh.jc("usage", "--workload", "team/nightly build", "--json")
    assert mesh.asked[0][0] == "GET /v1/usage/workload/team/nightly build"


def test_a_top_up_prints_where_to_pay(mesh: FakeMesh) -> None:
    assert mesh.jc("top-up", "25.00", "--save-for-recharge").output == "https://pay.example/1\n"
    body = {"usd": "25.00", "save_for_recharge": True, "account": None, "reference": None}
    assert mesh.asked == [("POST /v1/top-ups", "", body)]


def test_the_operator_enters_a_transfer(mesh: FakeMesh) -> None:
    mesh.answers["POST /v1/top-ups"] = {"pay_url": None, "instructions": None, "payment": PAYMENT}
    done = mesh.jc("top-up", "25.00", "--account", "acme", "--reference", "SEPA 1")
    assert done.output == "25.00 USD entered for acme as topup_1\n"


def test_payments_refunds_and_credits(mesh: FakeMesh) -> None:
    assert mesh.jc("payments").output.splitlines()[1].split() == [
        *("topup_1", "top-up", "25.00", "done", "2026-11-21", "pi_1")
    ]
    assert mesh.jc("refund", "topup_1", "--usd", "5.00").output == "5.00 USD sent back as refund_1\n"
    credit = mesh.jc("credit", "25.00", "--account", "acme", "--why", "October", "--reference", "sla-10")
    assert credit.output == "25.00 USD entered for acme as sla_1\n"
    assert mesh.asked[-1][2] == {
        "account": "acme",
        "usd": "25.00",
        "kind": "sla",
        "reason": "October",
        "reference": "sla-10",
    }


def test_budgets_are_set_shown_and_removed(mesh: FakeMesh) -> None:
    assert (
        mesh.jc("budget", "set", "workload", "team/nightly", "1500").output == "workload team/nightly: 1,500 J a day\n"
    )
    assert mesh.asked[-1][2] == {"joules": 1500.0, "window": "day"}
    shown = mesh.jc("budget", "list").output.splitlines()[1].split()
    assert shown == ["workload", "team/nightly", "day", "1,500", "2.5", "2026-11-22T00:00:00Z"]
    mesh.jc("budget", "remove", "workload", "team/nightly", "--window", "hour")
    assert mesh.asked[-1][:2] == ("DELETE /v1/budgets/workload/team/nightly", "window=hour")


def test_a_refusal_is_a_line_and_exit_code_two(mesh: FakeMesh) -> None:
    del mesh.answers["GET /v1/balance"]
    done = CliRunner().invoke(main, ["balance", "--url", mesh.url, "--api-key", "jc_LIVE_x"])
    assert done.exit_code == 2
    assert "no such thing" in done.output


@pytest.mark.parametrize(
    ("command", "route"),
    [
        (("top-up", "25.00"), "POST /v1/top-ups"),
        (("credit", "25.00", "--why", "October"), "POST /v1/credits"),
    ],
)
def test_an_account_that_is_not_there_is_told_with_what_opens_it(
    mesh: FakeMesh, command: tuple[str, ...], route: str
) -> None:
    del mesh.answers[route]
    mesh.refusal = "there is no account 'acme'"
    where = ("--account", "acme", "--reference", "one", "--url", mesh.url, "--api-key", "jc_LIVE_x")
    done = CliRunner().invoke(main, [*command, *where])
    assert done.exit_code == 2
    assert done.stderr.endswith("there is no account 'acme'; `jc keys new --account acme` opens it\n")
    mesh.refusal = "no such thing"
    assert "keys new" not in CliRunner().invoke(main, [*command, *where]).stderr


def test_usage_as_a_frame(mesh: FakeMesh) -> None:
    frame = MeshClient(mesh.url, "jc_LIVE_x").usage_frame(since="7d")
    assert frame["joules"].sum() == 2469.0
    assert str(frame.index.dtype).startswith("datetime64")
    assert frame.index.name == "day"
    assert frame["usd_picos"].tolist() == [171_458_333, 171_458_333]
    assert frame.loc["2026-11-21", "requests"].tolist() in (1200, [1200])


def test_a_frame_of_nothing_has_the_same_columns(mesh: FakeMesh) -> None:
    full = MeshClient(mesh.url, "jc_LIVE_x").usage_frame()
    mesh.answers["GET /v1/usage"] = {**USAGE, "by": "model", "data": []}
    empty = MeshClient(mesh.url, "jc_LIVE_x").usage_frame("model")
    assert list(empty.columns) == list(full.columns)
    assert (len(empty), empty.index.name) == (0, "model")


def test_receipts_without_a_tag_have_a_row_of_their_own(mesh: FakeMesh) -> None:
    mesh.answers["GET /v1/usage"] = {**USAGE, "by": "tag", "data": [{**ROW, "group": None}, {**ROW, "group": "blue"}]}
    frame = MeshClient(mesh.url, "jc_LIVE_x").usage_frame("tag")
    assert frame.index.isna().tolist() == [True, False]
    assert "(none)" in mesh.jc("usage", "--by", "tag").output
