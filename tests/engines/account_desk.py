"""The account routes on a real ledger in a file, without Ray: keys of three accounts, and a provider of the test's."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from opened_ledger import opened
from starlette.responses import JSONResponse

from receipts.holds import AccountBalance
from receipts.ledger import Ledger
from receipts.ledger_reader import LedgerReader
from serve.account_routes import AccountRoutes
from serve.authentication import Authentication
from serve.errors import PaymentRefused, PaymentUncertain, RequestRefused, WebhookRefused
from serve.payments.money import CENT_PICOS
from serve.payments.protocol import Charge, Paid, PaymentProvider, RefundFailed, RefundWanted, WhereToPay
from serve.receipt_routes import invalid_parameter

OPERATOR = "mesh-operator"
SIGNED = b"signed"


class Remote:
    """An actor's method."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    async def remote(self, *arguments: Any, **named: Any) -> Any:
        return self._method(*arguments, **named)


class LedgerHandle:
    """What the routes have of the ledger actor. ``held_usd_picos`` is what requests under way hold of any account."""

    def __init__(self, ledger: Ledger, reader: LedgerReader) -> None:
        self._ledger = ledger
        self._reader = reader
        self.held_usd_picos = 0
        self.account_balance = Remote(self._balance)
        self.usage = Remote(reader.usage)

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self._ledger, name))

    def _balance(self, account: str) -> AccountBalance:
        return AccountBalance(
            balance_usd_picos=self._ledger.balance_usd_picos(account), held_usd_picos=self.held_usd_picos
        )


@dataclass
class FakeProvider:
    """A provider by the name ``stripe``: it does what it is asked to, or fails as it is told to."""

    name: str = "stripe"
    smallest_usd_picos: int = CENT_PICOS
    fails: Exception | None = None
    told: Paid | RefundFailed | None = None
    means: dict[str, str] = field(default_factory=dict)
    refunds: dict[str, RefundWanted] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)

    async def start(self, account: str, usd_picos: int, *, save: bool) -> WhereToPay:
        self._fail()
        return WhereToPay(pay_url=f"https://pay.example/{account}/{usd_picos}/{save}", instructions=None)

    async def confirm(self, body: bytes, signature: str) -> Paid | RefundFailed | None:
        if signature.encode() != SIGNED:
            raise WebhookRefused("not signed")
        return self.told

    async def refund(self, wanted: RefundWanted) -> str:
        self._fail()
        self.refunds.setdefault(wanted.refund_id, wanted)
        return f"re_{wanted.refund_id}"

    async def saved_means(self, reference: str) -> str | None:
        self._fail()
        return self.means.get(reference)

    async def charge(self, wanted: Charge) -> Paid | None:
        self._fail()
        self.charges.setdefault(wanted.charge_id, wanted)
        return Paid(account=wanted.account, usd_picos=wanted.usd_picos, reference=f"pi_{wanted.charge_id}")

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails


REFUSES = PaymentRefused("the card was declined")
SILENT = PaymentUncertain("no answer")


@dataclass
class Desk:
    """The application, and keys of ``acme``, ``other`` and the operator with every scope."""

    app: FastAPI
    ledger: Ledger
    handle: LedgerHandle
    provider: FakeProvider
    keys: dict[str, str]

    async def ask(
        self, method: str, path: str, body: object = None, *, of: str = "acme", key: str | None = None, **more: Any
    ) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        headers = {"Authorization": f"Bearer {key or self.keys[of]}", **more.pop("headers", {})}
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
            sent = {} if body is None else {"json": body}
            return await client.request(method, path, headers=headers, **sent, **more)


@contextmanager
def open_desk(folder: Path, provider: PaymentProvider | None = None) -> Iterator[Desk]:
    """A desk on a new ledger in the folder."""
    url = f"sqlite:///{folder / 'ledger.sqlite3'}"
    ledger = opened(url, wall_clock_ns=time.time_ns)
    reader = LedgerReader.open(url)
    handle, chosen = LedgerHandle(ledger, reader), provider or FakeProvider()
    app = FastAPI()
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    AccountRoutes(
        authentication=Authentication(handle), ledger=handle, provider=chosen, operator_account=OPERATOR
    ).add_to(app)
    keys = {account: ledger.create_key(account, "first").secret for account in ("acme", "other", OPERATOR)}
    try:
        yield Desk(app=app, ledger=ledger, handle=handle, provider=chosen, keys=keys)
    finally:
        reader.close()
        ledger.close()


async def _refused(_request: Request, refusal: RequestRefused) -> JSONResponse:
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return JSONResponse({"message": refusal.message, "param": refusal.param}, refusal.status, headers)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return await _refused(request, invalid_parameter(error))
