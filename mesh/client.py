"""Talking to a running mesh over HTTP: what `jc` uses, and what a notebook can.

from mesh.client import MeshClient

mesh = MeshClient("http://127.0.0.1:8000", "jc_LIVE_…")
answer = mesh.openai().chat.completions.create(model="auto", messages=[...])
answer.model_extra["energy"]["joules"]
frame = mesh.receipts_frame(since="30d")
frame.groupby("workload.customer_tag")["energy.total_joules"].sum()
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import requests

from mesh.errors import MeshAway, MeshError, NotRunning
from mesh.receipt_pages import Page, receipt_pages
from receipts.moments import rfc3339

if TYPE_CHECKING:
    import pandas
    from openai import OpenAI

    from mesh.export import ExportSummary, ExportView

_TIMEOUT_S = 30
_NDJSON = {"Accept": "application/x-ndjson"}
_PAGE = 1000
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


class MeshClient:
    """A mesh at ``base_url``; ``api_key`` may be None for what is public."""

    def __init__(self, base_url: str, api_key: str | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._sleep = sleep

    def openai(self) -> "OpenAI":
        """OpenAI's SDK, pointed at this mesh. Needs the package `openai`.

        Raises:
            MeshError: this client has no key.
        """
        if self._api_key is None:
            # Without one the SDK would send the user's own OpenAI key.
            raise MeshError("no API key; set JC_API_KEY to the one that `jc up` showed, or make one: jc keys new")
        from openai import OpenAI

        return OpenAI(base_url=f"{self._base_url}/v1", api_key=self._api_key, max_retries=0)

    def models(self) -> list[str]:
        """Names of the models that can be asked for."""
        return [model["id"] for model in json.loads(self._get("/v1/models"))["data"]]

    def receipt(self, receipt_id: str) -> bytes:
        """One receipt, as the canonical bytes that the mesh serves."""
        return self._get(f"/v1/receipts/{receipt_id}")

    def receipts(
        self,
        *,
        since: When | None = None,
        until: When | None = None,
        model: str | None = None,
        region: str | None = None,
        customer_tag: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The account's receipts, oldest first, as JSON has them; all that is given holds at once.

        They are fetched as they are taken. Those that wait for their signature are among them, with none.
        """
        pages = self.receipt_pages(since=since, until=until, model=model, region=region, customer_tag=customer_tag)
        for page in pages:
            for line in page.splitlines():
                yield json.loads(line)

    def receipts_frame(
        self,
        *,
        since: When | None = None,
        until: When | None = None,
        model: str | None = None,
        region: str | None = None,
        customer_tag: str | None = None,
    ) -> "pandas.DataFrame":
        """The receipts, a row each, with columns such as ``energy.total_joules``. Needs the package `pandas`.

        Integers are integers; what is null is missing and in no sum. Beside the integers ``execution.start_unix_ns``
        and ``execution.end_unix_ns`` stand ``execution.start`` and ``execution.end``, timestamps in UTC.
        """
        from mesh.receipts_frame import receipts_frame

        return receipts_frame(
            self.receipts(since=since, until=until, model=model, region=region, customer_tag=customer_tag)
        )

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
        first = requests.Request("GET", self._base_url + "/v1/receipts", params=query).prepare().path_url
        with requests.Session() as session:
            yield from receipt_pages(lambda path: self._page(session, path), first, sleep=self._sleep)

    def account_head(self, since_unix_ns: int | None = None) -> bytes:
        """The signers' word, of this moment, on how far the account's chain reaches, from its first receipt since.

        Raises:
            MeshAway: too few signers answer.
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

    def group_key(self) -> dict[str, Any]:
        """The signer group's public key and what it is called."""
        return dict(json.loads(self._get("/v1/keys/group")))

    def _page(self, session: requests.Session, path: str) -> Page:
        response = self._answer(path, headers=_NDJSON, session=session)
        return Page(lines=response.content, next_path=response.links.get("next", {}).get("url"))

    def _get(self, path: str, query: Mapping[str, str | None] | None = None) -> bytes:
        return self._answer(path, query=query).content

    def _answer(
        self,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        session: requests.Session | None = None,
    ) -> requests.Response:
        key = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        where = self._base_url + path.partition("?")[0]
        try:
            response = (session or requests).get(
                self._base_url + path, params=query, headers={**key, **(headers or {})}, timeout=_TIMEOUT_S
            )
        except requests.ConnectionError as refused:
            raise NotRunning(f"no mesh answers at {self._base_url}; start one with `jc up`") from refused
        except requests.RequestException as broken:
            raise MeshAway(f"{where}: {broken}") from broken
        if not response.ok:
            kind = MeshAway if response.status_code in _AWAY else MeshError
            raise kind(f"{where}: {_message(response)}")
        return response


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
