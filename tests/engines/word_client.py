"""A client that knows every word of the answer to come, and takes nothing else for an answer."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import requests
from chat_load import ChatClient, Customer, Exchange

_TIMEOUT_S: Final = 90.0
_REQUEST_ID_DIGITS: Final = 32


class WordClient(ChatClient):
    """Asks for words that differ from each other, so that one that is lost, doubled or misplaced is seen."""

    def ask(self, customer: Customer, kind: str, words: int, hang_up_after: int = 0) -> Exchange:
        """As `ChatClient.ask`; an answer that isn't exactly right is "malformed"."""
        return self.ask_for(customer, kind, [f"w{index}" for index in range(words)], hang_up_after=hang_up_after)

    def ask_for(
        self,
        customer: Customer,
        kind: str,
        words: list[str],
        *,
        hang_up_after: int = 0,
        has_begun: Callable[[Mapping[str, str]], None] = lambda _: None,
    ) -> Exchange:
        """The same with these words; ``has_begun`` gets the headers as soon as they are there."""
        began = Exchange(
            kind=kind,
            account=customer.account,
            words=len(words),
            begun_s=time.monotonic(),
            ended_s=0,
            outcome="no answer",
        )
        body: dict[str, Any] = {
            "model": "auto",
            "messages": [{"role": "user", "content": " ".join(words)}],
            "stream": kind != "unary",
        }
        if kind == "stream" and len(words) % 2:
            body["stream_options"] = {"include_usage": True}
        headers = {"Authorization": f"Bearer {customer.key}"}
        try:
            with requests.post(self._url, json=body, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
                has_begun(response.headers)
                ended = _read(began, response, body, " ".join([*words, ""]), hang_up_after)
        except requests.RequestException as failure:
            ended = replace(began, detail=type(failure).__name__)
        return replace(ended, ended_s=time.monotonic())


def _read(began: Exchange, response: requests.Response, body: Mapping[str, Any], text: str, leave: int) -> Exchange:
    seen = replace(began, status=response.status_code, receipt_id=response.headers.get("X-Receipt-Id"))
    try:
        if response.status_code != requests.codes.ok:
            return replace(seen, outcome="refused", detail=response.text[:300], receipt_id=None)
        if seen.kind == "unary":
            answer = json.loads(response.text, parse_float=Decimal)
            _must(answer["choices"][0]["message"]["content"] == text, "it has other words")
            _must(answer["usage"]["completion_tokens"] == seen.words, f"it counts {answer['usage']}")
            return _answered(seen, answer["id"], answer["energy"])
        chunks = []
        for event in _events(response):
            chunk = event if event == "[DONE]" else json.loads(event, parse_float=Decimal)
            if isinstance(chunk, dict) and "error" in chunk:
                return replace(seen, outcome="broken", detail=chunk["error"]["message"])
            chunks.append(chunk)
            if leave and len(chunks) >= leave:
                return replace(seen, outcome="hung up")
        return _check_stream(seen, chunks, text, counts_usage="stream_options" in body)
    except requests.RequestException as failure:
        return replace(seen, outcome="broken", detail=f"{type(failure).__name__}: {failure}"[:300])
    except (ValueError, KeyError, TypeError, IndexError) as wrong:
        return replace(seen, outcome="malformed", detail=f"{type(wrong).__name__}: {wrong}"[:300])


def _events(response: requests.Response) -> Iterator[str]:
    for line in response.iter_lines(chunk_size=None, decode_unicode=True):
        if line:
            yield line.removeprefix("data: ")


def _check_stream(seen: Exchange, events: list[Any], text: str, *, counts_usage: bool) -> Exchange:
    """One unbroken stream: one id, one role, every word once, one end, usage and energy once and last."""
    _must(bool(events) and events[-1] == "[DONE]", "it ended without [DONE]")
    chunks = events[:-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    words = "".join(choice["delta"].get("content") or "" for choice in choices)
    _must(words == text, f"its words are {words[:120]!r}")
    _must(len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1, "its id or its time changed")
    roles = [index for index, choice in enumerate(choices) if "role" in choice["delta"]]
    _must(roles == [0], f"the role is in chunks {roles}")
    ends = [index for index, choice in enumerate(choices) if choice["finish_reason"]]
    _must(ends == [len(choices) - 1], f"it finished in chunks {ends} of {len(choices)}")
    usages = [index for index, chunk in enumerate(chunks) if chunk.get("usage")]
    _must(usages == ([len(chunks) - 1] if counts_usage else []), f"usage is in chunks {usages}")
    if counts_usage:
        _must(chunks[-1]["usage"]["completion_tokens"] == seen.words, f"it counts {chunks[-1]['usage']}")
    energies = [index for index, chunk in enumerate(chunks) if "energy" in chunk]
    _must(energies == [len(chunks) - 1], f"energy is in chunks {energies} of {len(chunks)}")
    return _answered(seen, chunks[0]["id"], chunks[-1]["energy"])


def _answered(seen: Exchange, answer_id: str, energy: Mapping[str, Any]) -> Exchange:
    _must(seen.receipt_id is not None, "it has no receipt")
    _must(energy["receipt_id"] == seen.receipt_id, f"its receipt is {energy['receipt_id']}, its header's another")
    _must(answer_id[-_REQUEST_ID_DIGITS:] == str(seen.receipt_id)[-_REQUEST_ID_DIGITS:], f"its id is {answer_id}")
    joules = energy["joules"]
    return replace(seen, outcome="answered", joules=None if joules is None else Decimal(joules))


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
