"""What an account reads of itself over HTTP: its receipts by pages, the signed head of its chain, its entries."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlencode

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from starlette.responses import Response, StreamingResponse

from receipts.errors import InvalidMoment, LedgerError, ReadersBusy
from receipts.ledger_csv import csv_header
from receipts.ledger_reader import LedgerPosition
from receipts.members import MAX_INTEGER, Seq, Text
from receipts.moments import parse_moment
from receipts.receipt_query import ReceiptQuery, ReceiptsPage
from receipts.signing_errors import HeadRefused, QuorumUnavailable
from serve.authentication import Scope
from serve.errors import RequestRefused
from serve.openapi import documented

NDJSON: Final = "application/x-ndjson"
_MAX_LIMIT: Final = 1000
_CSV_PAGE: Final = 1000
_RETRY_AFTER_S: Final = 1
_RETRY_SIGNERS_AFTER_S: Final = 5
_CSV_WAITS_S: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Before each further try at a page that readers were too busy for; a download that has begun cannot say 503."""
_CURSOR: Final = re.compile(r"([1-9][0-9]{0,18})-([0-9]{1,19})-([0-9]{1,19})-([0-9]{1,19})-([0-9a-f]{16})", re.ASCII)

_TIME: Final = "RFC 3339, or how long back from now: s, m, h, d or w, as in `30d`."
_DIGEST_DIGITS: Final = 16
_WAIT_FOR_SIGNATURE_S: Final = 2.0
_OBJECT: Final = {"schema": {"type": "object"}}
_PAGES: Final = {
    "description": "A page of receipts.",
    "headers": {"Link": {"description": "The next page, where there is one.", "schema": {"type": "string"}}},
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["object", "data", "has_more", "next"],
                "properties": {
                    "object": {"const": "list"},
                    "data": {"type": "array", "items": {"type": "object"}},
                    "has_more": {"type": "boolean"},
                    "next": {"type": ["string", "null"]},
                },
            }
        },
        NDJSON: {"schema": {"type": "string"}},
    },
}
_HEAD: Final = {"description": "The head, signed.", "content": {"application/json": _OBJECT}}
_RECEIPT: Final = {
    "description": "The receipt's canonical bytes; while it waits for its signature, that is null.",
    "content": {"application/json": _OBJECT},
}
_CSV: Final = {"description": "One line a transaction.", "content": {"text/csv": {"schema": {"type": "string"}}}}

ReceiptName = Annotated[str, Path(max_length=256, description="As `receipt_id` in an answer.")]

_LOG = logging.getLogger(__name__)


class ReceiptsWanted(BaseModel):
    """The parameters of `/v1/receipts`. One that is not known is refused: misspelt, it would select everything."""

    model_config = ConfigDict(extra="forbid")

    since: str | None = Field(None, description=f"Those that ended then or later. {_TIME}")
    until: str | None = Field(None, description=f"Those that ended before. {_TIME}")
    model: Text | None = Field(None, description="`workload.model` is exactly this.")
    region: Text | None = Field(None, description="`silicon.region` is exactly this.")
    customer_tag: Text | None = Field(None, description="`workload.customer_tag` is exactly this.")
    first_seq: Seq | None = Field(None, description="`chain.seq` is this or more.")
    last_seq: Seq | None = Field(None, description="`chain.seq` is this or less.")
    after: str | None = Field(None, description="The cursor `next` of the page before.")
    limit: int = Field(100, ge=1, le=_MAX_LIMIT, description="Receipts in a page, at most.")
    order: Literal["asc", "desc"] = Field("asc", description="By `chain.seq`: oldest or newest first.")

    def digest(self) -> str:
        """The same for all pages of one walk, and another for another selection or order."""
        walk = self.model_dump_json(exclude={"after", "limit"})
        return hashlib.sha256(walk.encode()).hexdigest()[:_DIGEST_DIGITS]


class _Since(BaseModel):
    model_config = ConfigDict(extra="forbid")

    since: str | None = Field(None, description=f"From then on. {_TIME}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCursor:
    """Where a page ended, between which places of the chain the walk goes on (0: its end), and when it began: lengths
    of time count back from that moment, so that all pages of one walk select alike. ``digest`` is the selection's.
    """

    after_seq: int
    first_seq: int
    last_seq: int
    asked_unix_ns: int
    digest: str

    def __str__(self) -> str:
        return f"{self.after_seq}-{self.first_seq}-{self.last_seq}-{self.asked_unix_ns}-{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave.

        Raises:
            RequestRefused: anything else.
        """
        parts = _CURSOR.fullmatch(text)
        numbers = [int(each) for each in parts.groups()[:-1]] if parts else []
        if parts is None or max(numbers) > MAX_INTEGER:
            raise RequestRefused(
                HTTPStatus.BAD_REQUEST, "after takes the value `next` of the page before, unchanged", "after"
            )
        after_seq, first_seq, last_seq, asked_unix_ns = numbers
        return cls(
            after_seq=after_seq, first_seq=first_seq, last_seq=last_seq, asked_unix_ns=asked_unix_ns, digest=parts[5]
        )

    @classmethod
    def beyond(cls, page: ReceiptsPage, asked_unix_ns: int, digest: str) -> Self | None:
        """The place after a page; None when it was the last."""
        if page.next_after_seq is None:
            return None
        return cls(
            after_seq=page.next_after_seq,
            first_seq=page.first_seq or 0,
            last_seq=page.last_seq or 0,
            asked_unix_ns=asked_unix_ns,
            digest=digest,
        )


class ReceiptRoutes:
    """The routes `/v1/receipts`, `/v1/receipts/head`, `/v1/receipts/{receipt_id}` and `/v1/ledger.csv`.

    ``account`` says whose key a request carries; nothing of another account is ever read.
    """

    def __init__(
        self,
        account: Callable[[Request], Awaitable[str]],
        ledger: ActorHandle[Any],
        wall_clock_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._account = account
        self._ledger = ledger
        self._wall_clock_ns = wall_clock_ns
        self._sleep = sleep

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        there_is_none = HTTPStatus.NOT_FOUND
        app.add_api_route("/v1/receipts", self.receipts, response_model=None, **documented(Scope.READ, ok=_PAGES))
        app.add_api_route(
            "/v1/receipts/head", self.head, response_model=None, **documented(Scope.READ, there_is_none, ok=_HEAD)
        )
        app.add_api_route("/v1/ledger.csv", self.ledger_csv, response_model=None, **documented(Scope.READ, ok=_CSV))
        app.add_api_route(
            "/v1/receipts/{receipt_id}",
            self.receipt,
            response_model=None,
            **documented(Scope.READ, there_is_none, ok=_RECEIPT),
        )

    async def receipts(self, request: Request, wanted: Annotated[ReceiptsWanted, Query()]) -> Response:
        """The account's receipts in the order of its chain, by pages.

        Each is its canonical bytes, unchanged; while it waits for its signature, that is null. With
        `Accept: application/x-ndjson` the answer is a receipt a line. The header `Link` names the next page. A page
        may have fewer receipts than `limit`, even none, and another after it: `has_more` says so.
        """
        account = await self._account(request)
        refuse_repeated(request)
        cursor = None if wanted.after is None else PageCursor.parse(wanted.after)
        if cursor is not None and cursor.digest != wanted.digest():
            message = "after belongs to another selection or order: give the parameters of the page before, unchanged"
            raise RequestRefused(HTTPStatus.BAD_REQUEST, message, "after")
        asked_unix_ns = self._wall_clock_ns() if cursor is None else cursor.asked_unix_ns
        query = receipt_query(account, wanted, asked_unix_ns)
        if cursor is not None:
            query = replace(query, first_seq=cursor.first_seq or None, last_seq=cursor.last_seq or None)
        with _retriable():
            page: ReceiptsPage = await self._ledger.receipts_page.remote(
                query, 0 if cursor is None else cursor.after_seq, wanted.limit, newest_first=wanted.order == "desc"
            )
        following = PageCursor.beyond(page, asked_unix_ns, wanted.digest())
        headers = {"Vary": "Accept"} | ({} if following is None else {"Link": _link(request, following)})
        if _accepts_ndjson(request):
            return Response(page.lines, media_type=NDJSON, headers=headers)
        return Response(_list_body(page.lines, following), media_type="application/json", headers=headers)

    async def receipt(self, request: Request, receipt_id: ReceiptName) -> Response:
        """One receipt of the caller's account, waiting briefly for its signature."""
        account = await self._account(request)
        with _retriable():
            stored = await self._ledger.receipt.remote(receipt_id, account, _WAIT_FOR_SIGNATURE_S)
        if stored is None:
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"this account has no receipt {receipt_id!r}", "receipt_id")
        return Response(stored.document_bytes(), media_type="application/json")

    async def head(self, request: Request, wanted: Annotated[_Since, Query()]) -> Response:
        """The signers' word on how far the account's chain reaches now, from its first receipt since then."""
        account = await self._account(request)
        refuse_repeated(request)
        since_unix_ns = None if wanted.since is None else moment("since", wanted.since, self._wall_clock_ns())
        with _retriable():
            head: bytes | None = await self._ledger.account_head.remote(account, since_unix_ns)
        if head is None:
            when, param = ("", None) if wanted.since is None else (f" since {wanted.since}", "since")
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"the account has no signed receipt{when}", param)
        return Response(head, media_type="application/json")

    async def ledger_csv(self, request: Request, wanted: Annotated[_Since, Query()]) -> Response:
        """The account's entries, a transaction a line, with the balance after each."""
        account = await self._account(request)
        refuse_repeated(request)
        since_unix_ns = 0 if wanted.since is None else moment("since", wanted.since, self._wall_clock_ns())
        begin = LedgerPosition(since_unix_ns=since_unix_ns)
        with _retriable():
            lines, position = await self._ledger.ledger_lines.remote(account, begin, _CSV_PAGE)
        return StreamingResponse(
            self._csv(account, csv_header() + lines, position),
            media_type="text/csv; charset=utf-8; header=present",
            headers={"Content-Disposition": 'attachment; filename="ledger.csv"'},
        )

    async def _csv(self, account: str, lines: bytes, position: LedgerPosition | None) -> AsyncGenerator[bytes, None]:
        """The pages one by one, as the client takes them. One that fails ends the answer without its last chunk."""
        yield lines
        while position is not None:
            try:
                lines, position = await self._next_lines(account, position)
            except (LedgerError, RayActorError) as error:
                # What comes after an answer has begun is not told to the client, nor logged by what is further out.
                _LOG.error("a ledger.csv broke off: %s", _reason(error))
                raise
            yield lines

    async def _next_lines(self, account: str, position: LedgerPosition) -> tuple[bytes, LedgerPosition | None]:
        """One more page; readers that are busy are asked again for some seconds."""
        waits_s = iter(_CSV_WAITS_S)
        while True:
            try:
                lines, following = await self._ledger.ledger_lines.remote(account, position, _CSV_PAGE)
            except ReadersBusy:
                wait_s = next(waits_s, None)
                if wait_s is None:
                    raise
                await self._sleep(wait_s)
            else:
                return lines, following


def receipt_query(account: str, wanted: ReceiptsWanted, now_unix_ns: int) -> ReceiptQuery:
    """What is asked of the ledger.

    Raises:
        RequestRefused: a time that is none.
    """
    return ReceiptQuery(
        account=account,
        since_unix_ns=None if wanted.since is None else moment("since", wanted.since, now_unix_ns),
        until_unix_ns=None if wanted.until is None else moment("until", wanted.until, now_unix_ns),
        model=wanted.model,
        region=wanted.region,
        customer_tag=wanted.customer_tag,
        first_seq=wanted.first_seq,
        last_seq=wanted.last_seq,
    )


def moment(param: str, text: str, now_unix_ns: int) -> int:
    """As `parse_moment`.

    Raises:
        RequestRefused: names the parameter.
    """
    try:
        return parse_moment(text, now_unix_ns)
    except InvalidMoment as error:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"{param}: {error}", param) from error


def invalid_parameter(error: RequestValidationError) -> RequestRefused:
    """FastAPI's word that a parameter is wrong, as a refusal that names it."""
    fault = error.errors()[0]
    param = str(fault["loc"][-1])
    if fault["type"] == "extra_forbidden":
        message = f"there is no parameter {param[:64]!r} here; /openapi.json lists those that there are"
    else:
        message = f"{param}: {fault['msg']}"
    return RequestRefused(HTTPStatus.BAD_REQUEST, message, param)


def _list_body(lines: bytes, following: PageCursor | None) -> bytes:
    """OpenAI's list shape. Canonical JSON has no line break inside, so the lines' ends are the places for commas."""
    data = lines.removesuffix(b"\n").replace(b"\n", b",")
    rest = (
        json.dumps({"has_more": following is not None, "next": following and str(following)}).removeprefix("{").encode()
    )
    return b'{"object": "list", "data": [%s], %s' % (data, rest)


def _link(request: Request, following: PageCursor) -> str:
    """The next page (RFC 8288), relative to the one that was asked for, at whatever path it is behind a proxy."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return f'<?{urlencode([*kept, ("after", str(following))])}>; rel="next"'


def refuse_repeated(request: Request) -> None:
    """Of a name that stands twice one would be passed over in silence."""
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if times > 1:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, f"{name[:64]} is given {times} times; once is enough", name)


def _accepts_ndjson(request: Request) -> bool:
    accepted = request.headers.get("accept", "").split(",")
    return any(each.partition(";")[0].strip().lower() == NDJSON for each in accepted)


@contextmanager
def _retriable() -> Iterator[None]:
    """What passes by itself becomes 503, with the time after which to come again; so does a ledger that is away."""
    try:
        yield
    except ReadersBusy as error:
        raise _come_again(_reason(error), _RETRY_AFTER_S) from error
    except QuorumUnavailable as error:
        _LOG.warning("an account head is not signed: %s", _reason(error))
        message = "too few signers answer to sign the head; try again in a moment"
        raise _come_again(message, _RETRY_SIGNERS_AFTER_S) from error
    except HeadRefused as error:
        _LOG.warning("%s", _reason(error))
        message = f"{_reason(error)}; try again in a moment, and if that stays so, tell the operator"
        raise _come_again(message, _RETRY_SIGNERS_AFTER_S) from error


def _reason(error: Exception) -> str:
    """What the ledger said; Ray puts its traceback around it."""
    return str(getattr(error, "cause", None) or error)


def _come_again(message: str, retry_after_s: int) -> RequestRefused:
    return RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after_s=retry_after_s)
