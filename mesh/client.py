"""Talking to a running mesh over HTTP: what `jc` uses, and what a notebook can.

from mesh.client import MeshClient

mesh = MeshClient("http://127.0.0.1:8000", "jc_LIVE_YOUR_KEY")
answer = mesh.openai().chat.completions.create(model="auto", messages=[...])
answer.model_extra["energy"]["joules"]
frame = mesh.receipts_frame(since="30d")
frame.groupby("workload.customer_tag")["energy.total_joules"].sum()
mesh.balance()["available_usd"]
mesh.usage_frame("model", since="7d")
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from urllib.parse import quote, urlencode, urlsplit

import requests

from mesh.errors import MeshAway, MeshError, NotRunning
from mesh.retry import retried
from receipts.moments import rfc3339

if TYPE_CHECKING:
    import pandas
    from openai import OpenAI

    from mesh.export import ExportSummary, ExportView

_TIMEOUT_S = 30
_NDJSON = {"Accept": "application/x-ndjson"}
_RECEIPTS = "/v1/receipts"
_PAGE = 1000
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_AWAY = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}

When = str | datetime
"""A moment: a datetime with a time zone, RFC 3339 text, or how long back from now, such as ``30d`` or ``12h``."""


class ReceiptFilter(TypedDict, total=False):
    """Which receipts are wanted; all that is given holds at once, None asks for no such thing."""

    since: When | None
    until: When | None
    model: str | None
    region: str | None
    customer_tag: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Receipts, a line each, and the path of the next page, or None at the end."""

    lines: bytes
    next_path: str | None


class MeshClient:
    """A mesh at ``base_url``; ``api_key`` may be None for what is public.

    Raises:
        MeshError: the key has characters that no key has, as a placeholder or half a line does.
    """

    def __init__(self, base_url: str, api_key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        if api_key and not _KEY.fullmatch(api_key):
            raise MeshError(
                "that is no API key: one has letters, digits, - and _ alone; "
                "give all of the one that `jc up` showed, or make one: jc keys new"
            )
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._sleep = sleep

    def openai(self) -> "OpenAI":
        """OpenAI's SDK, pointed at this mesh. Needs the package `openai`.

        Raises:
            MeshError: this client has no key.
            NotRunning: it has none, and there is no mesh to get one from.
        """
        if self._api_key is None:
            self.group_key()
            # Without one the SDK would send the user's own OpenAI key.
            raise MeshError("no API key; set JC_API_KEY to the one that `jc up` showed, or make one: jc keys new")
        from openai import OpenAI

        return OpenAI(base_url=f"{self._base_url}/v1", api_key=self._api_key, max_retries=0)

    def models(self) -> list[str]:
        """Names of the models that can be asked for."""
        return [model["id"] for model in json.loads(self._get("/v1/models"))["data"]]

    def explain(self, request: Mapping[str, Any], *, region: str | None = None) -> dict[str, Any]:
        """Where the mesh would run a chat completion at this moment, and why; nothing runs and nothing is charged.

        ``request`` is the body that the completion would have; ``region`` what its X-Region would say.
        """
        headers = {} if region is None else {"X-Region": region}
        with _Session(self._api_key) as session:
            return dict(self._answer(session, "/v1/explain", headers=headers, body=request).json())

    def pools(self) -> list[dict[str, Any]]:
        """Every pool as the mesh sees it at this moment."""
        return list(json.loads(self._get("/v1/pools"))["data"])

    def receipt(self, receipt_id: str) -> bytes:
        """One receipt, as the canonical bytes that the mesh serves."""
        return self._get(f"/v1/receipts/{receipt_id}")

    def receipts(self, **wanted: Unpack[ReceiptFilter]) -> Iterator[dict[str, Any]]:
        """The account's receipts, oldest first, as JSON has them. Filters: as `ReceiptFilter`, such as ``since="30d"``.

        They are fetched as they are taken. Those that wait for their signature are among them, with none.
        """
        for page in self.receipt_pages(**wanted):
            for line in page.splitlines():
                yield json.loads(line)

    def receipts_frame(self, **wanted: Unpack[ReceiptFilter]) -> "pandas.DataFrame":
        """The receipts, a row each, with columns such as ``energy.total_joules``. Needs the package `pandas`.

        Filters are those of `receipts`.

        Integers are integers; what is null is missing and in no sum. Beside the integers ``execution.start_unix_ns``
        and ``execution.end_unix_ns`` stand ``execution.start`` and ``execution.end``, timestamps in UTC.
        """
        from mesh.receipts_frame import receipts_frame

        return receipts_frame(self.receipts(**wanted))

    def receipt_pages(
        self,
        *,
        first_seq: int | None = None,
        last_seq: int | None = None,
        limit: int = _PAGE,
        newest_first: bool = False,
        **wanted: Unpack[ReceiptFilter],
    ) -> Iterator[bytes]:
        """The receipts as pages of lines, each line the canonical bytes of one; ``limit`` to a page.

        A page that does not come is asked for again, a few times. One without a receipt is not given.

        Raises:
            NotRunning, MeshAway: it did not come.
        """
        query = {
            **wanted,
            "since": _text(wanted.get("since")),
            "until": _text(wanted.get("until")),
            "first_seq": first_seq,
            "last_seq": last_seq,
            "limit": limit,
            "order": "desc" if newest_first else None,
        }
        given = {name: value for name, value in query.items() if value is not None}
        with _Session(self._api_key) as session:
            first = f"{_RECEIPTS}?{urlencode(given)}"
            yield from follow_pages(partial(self._page, session), first, sleep=self._sleep)

    def account_head(self, since_unix_ns: int | None = None) -> bytes:
        """The signers' word, of this moment, on how far the account's chain reaches, from its first receipt since.

        Raises:
            MeshAway: too few signers answer, or are willing to sign it now; the text says why.
            MeshError: the account has no signed receipt since then.
        """
        return self._get("/v1/receipts/head", {"since": None if since_unix_ns is None else rfc3339(since_unix_ns)})

    def export(
        self,
        output: Path,
        *,
        since: When | None = None,
        customer_tag: str | None = None,
        overwrite: bool = False,
        view: "ExportView | None" = None,
    ) -> "ExportSummary":
        """Write the account's receipts, with all that an auditor needs to check them, to a .tar, .tar.gz or .tgz.

        Raises:
            MeshError: it could not be done; then there is no file.
        """
        from mesh.export import write_export

        return write_export(
            self, output, since=_text(since), customer_tag=customer_tag, overwrite=overwrite, view=view, clock=time
        )

    def balance(self) -> dict[str, Any]:
        """What the account has left, in USD as decimal text and in pico-USD, and what of it is held."""
        return self._object("GET", "/v1/balance")

    def usage(
        self,
        by: str = "day",
        *,
        since: When | None = None,
        until: When | None = None,
        workload: str | None = None,
    ) -> dict[str, Any]:
        """Sums over the account's receipts, of the last 30 days if nothing is said: rows in ``data``, and a ``total``.

        ``by`` is day, model, key, tag, workload or region.
        """
        path = "/v1/usage" if workload is None else f"/v1/usage/workload/{quote(workload)}"
        return self._object("GET", path, query={"by": by, "since": _text(since), "until": _text(until)})

    def usage_frame(
        self,
        by: str = "day",
        *,
        since: When | None = None,
        until: When | None = None,
        workload: str | None = None,
    ) -> "pandas.DataFrame":
        """The rows of `usage`, with ``by`` as their index; days are timestamps in UTC. Needs the package `pandas`."""
        from mesh.usage_frame import usage_frame

        return usage_frame(self.usage(by, since=since, until=until, workload=workload))

    def payments(self) -> list[dict[str, Any]]:
        """The account's top-ups, refunds and credits, the newest first."""
        return list(self._object("GET", "/v1/top-ups")["data"])

    def top_up(
        self,
        usd: str,
        *,
        save_for_recharge: bool = False,
        account: str | None = None,
        reference: str | None = None,
    ) -> dict[str, Any]:
        """Begin a top-up, such as ``"25.00"``: ``pay_url`` or ``instructions`` say where to pay.

        The operator enters a transfer for an ``account``, by the ``reference`` that tells it from every other.
        """
        body = {"usd": usd, "save_for_recharge": save_for_recharge, "account": account, "reference": reference}
        return self._object("POST", "/v1/top-ups", body=body)

    def refund(
        self, payment: str, usd: str | None = None, *, account: str | None = None, reference: str | None = None
    ) -> dict[str, Any]:
        """Send a top-up back, or ``usd`` of it; of a transfer, which the operator sends back, see `jc refund`."""
        body = {"usd": usd, "account": account, "reference": reference}
        return self._object("POST", f"/v1/top-ups/{quote(payment, safe='')}/refund", body=body)

    def credit(self, account: str, usd: str, *, kind: str, reason: str, reference: str) -> dict[str, Any]:
        """Give an account credit, of the kind sla or goodwill. For the operator's keys."""
        body = {"account": account, "usd": usd, "kind": kind, "reason": reason, "reference": reference}
        return self._object("POST", "/v1/credits", body=body)

    def budgets(self) -> list[dict[str, Any]]:
        """The account's energy budgets, and what was drawn of each in its present window."""
        return list(self._object("GET", "/v1/budgets")["data"])

    def set_budget(self, kind: str, subject: str, joules: float, *, window: str) -> None:
        """Let a key (its id) or a workload draw at most so many joules in each hour, day or month of UTC."""
        self._object("PUT", _budget_path(kind, subject), body={"joules": joules, "window": window})

    def remove_budget(self, kind: str, subject: str, *, window: str) -> None:
        """Take such a budget away."""
        self._object("DELETE", _budget_path(kind, subject), query={"window": window})

    def group_key(self) -> dict[str, Any]:
        """The signer group's public key and what it is called."""
        return dict(json.loads(self._get("/v1/keys/group")))

    def _page(self, session: requests.Session, path: str) -> Page:
        response = self._answer(session, path, headers=_NDJSON)
        # Which receipts come next, but not where they are: the server does not know its place behind a proxy.
        following = urlsplit(response.links.get("next", {}).get("url", "")).query
        return Page(lines=response.content, next_path=f"{_RECEIPTS}?{following}" if following else None)

    def _get(self, path: str, query: Mapping[str, str | None] | None = None) -> bytes:
        with _Session(self._api_key) as session:
            return self._answer(session, path, query=query).content

    def _object(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        with _Session(self._api_key) as session:
            return dict(self._answer(session, path, method=method, query=query, body=body).json())

    def _answer(
        self,
        session: requests.Session,
        path: str,
        *,
        method: str | None = None,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> requests.Response:
        """Without a ``method``, a GET, or with a ``body`` a POST of it."""
        where = self._base_url + path.partition("?")[0]
        try:
            response = session.request(
                method or ("GET" if body is None else "POST"),
                self._base_url + path,
                params=query,
                headers=headers,
                json=body,
                timeout=_TIMEOUT_S,
            )
        except requests.ConnectionError as refused:
            raise NotRunning(f"no mesh answers at {self._base_url}; start one with `jc up`") from refused
        except requests.RequestException as broken:
            raise MeshAway(f"{where}: {broken}") from broken
        if not response.ok:
            kind = MeshAway if response.status_code in _AWAY else MeshError
            raise kind(f"{where}: {_message(response)}")
        return response


class _Session(requests.Session):
    """Signs in with the API key and nothing else; proxies are those of the environment.

    Left to itself, `requests` sends the password that ~/.netrc has for the host, in place of the key.
    """

    def __init__(self, api_key: str | None) -> None:
        super().__init__()
        self._api_key = api_key
        self.auth = self._sign_in

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """After a redirection: the key goes to the host that it was meant for, and nobody gets a password."""
        if self.should_strip_auth(response.request.url, prepared_request.url):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)

    def _sign_in(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def follow_pages(fetch: Callable[[str], Page], first_path: str, *, sleep: Callable[[float], None]) -> Iterator[bytes]:
    """The lines of each page that has any, from the one at ``first_path`` on; raises what `retried` does."""
    path: str | None = first_path
    was_there = False
    while path is not None:
        page = retried(partial(fetch, path), sleep, was_there=was_there)
        if page.lines:
            yield page.lines
        path, was_there = page.next_path, True


def _budget_path(kind: str, subject: str) -> str:
    return f"/v1/budgets/{quote(kind, safe='')}/{quote(subject)}"


def _text(when: When | None) -> str | None:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise MeshError(f"the time {when} has no time zone; give it one, such as datetime.now(UTC)")
        return when.isoformat()
    return when


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
