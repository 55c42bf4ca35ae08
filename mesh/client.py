"""Talking to a running mesh over HTTP: what `jc` uses, and what a notebook can.

from mesh.client import MeshClient

mesh = MeshClient("http://127.0.0.1:8000", "jc_LIVE_…")
answer = mesh.openai().chat.completions.create(model="auto", messages=[...])
answer.model_extra["energy"]["joules"]
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import requests

from mesh.errors import MeshError, NotRunning

if TYPE_CHECKING:
    import pandas
    from openai import OpenAI

_TIMEOUT_S = 30


class MeshClient:
    """A mesh at ``base_url``; ``api_key`` may be None for what is public."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key

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

    def receipts_frame(self, receipt_ids: Iterable[str]) -> "pandas.DataFrame":
        """These receipts, a row each, with columns such as ``energy.total_joules``. Needs the package `pandas`."""
        import pandas

        return pandas.json_normalize([json.loads(self.receipt(each)) for each in receipt_ids])

    def group_key(self) -> dict[str, Any]:
        """The signer group's public key and what it is called."""
        return dict(json.loads(self._get("/v1/keys/group")))

    def _get(self, path: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        try:
            response = requests.get(self._base_url + path, headers=headers, timeout=_TIMEOUT_S)
        except requests.ConnectionError as refused:
            raise NotRunning(f"no mesh answers at {self._base_url}; start one with `jc up`") from refused
        except requests.RequestException as broken:
            raise MeshError(f"{self._base_url}{path}: {broken}") from broken
        if not response.ok:
            raise MeshError(f"{self._base_url}{path}: {_message(response)}")
        return response.content


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
