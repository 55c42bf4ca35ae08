"""A client that knows every word of the answer to come, and takes nothing else for an answer."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import requests
from chat_load import ChatClient, Customer, Exchange

_TIMEOUT_S: Final = 90.0
_REQUEST_ID_DIGITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAnswer:
    """What an answer has to be: its text to the last character, the tokens that it counts, and how it finishes."""

    text: str
    tokens: int
    finish: str = "stop"


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
        body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": " ".join(words)}]}
        if kind == "stream" and len(words) % 2:
            body["stream_options"] = {"include_usage": True}
        known = KnownAnswer(text=" ".join([*words, ""]), tokens=len(words))
        return self.ask_known(customer, kind, body, known, hang_up_after=hang_up_after, has_begun=has_begun)

    def ask_known(
        self,
        customer: Customer,
        kind: str,
        body: Mapping[str, Any],
        known: KnownAnswer,
        *,
        hang_up_after: int = 0,
        has_begun: Callable[[Mapping[str, str]], None] = lambda _: None,
        has_event: Callable[[int], None] = lambda _: None,
    ) -> Exchange:
        """The same with this body; ``has_event`` is told of each event of a stream, how many there are."""
        began = Exchange(
            kind=kind,
            account=customer.account,
            words=known.tokens,
            begun_s=time.monotonic(),
            ended_s=0,
            outcome="no answer",
        )
        sent = {**body, "stream": kind != "unary"}
        headers = {"Authorization": f"Bearer {customer.key}"}
        try:
            with requests.post(self._url, json=sent, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
                has_begun(response.headers)
                ended = _read(began, response, sent, known, hang_up_after, has_event)
        except requests.RequestException as failure:
            ended = replace(began, detail=type(failure).__name__)
        return replace(ended, ended_s=time.monotonic())


def _read(
    began: Exchange,
    response: requests.Response,
    body: Mapping[str, Any],
    known: KnownAnswer,
    leave: int,
    has_event: Callable[[int], None],
) -> Exchange:
    seen = replace(began, status=response.status_code, receipt_id=response.headers.get("X-Receipt-Id"))
    try:
        if response.status_code != requests.codes.ok:
            return replace(seen, outcome="refused", detail=response.text[:300], receipt_id=None)
        if seen.kind == "unary":
            answer = json.loads(response.text, parse_float=Decimal)
            choice = answer["choices"][0]
            _must(choice["message"]["content"] == known.text, "it has other words")
            _must(choice["finish_reason"] == known.finish, f"it finished by {choice['finish_reason']}")
            _must(answer["usage"]["completion_tokens"] == known.tokens, f"it counts {answer['usage']}")
            return _answered(seen, answer["id"], answer["energy"])
        chunks = []
        for event in _events(response):
            chunk = event if event == "[DONE]" else json.loads(event, parse_float=Decimal)
            if isinstance(chunk, dict) and "error" in chunk:
                return replace(seen, outcome="broken", detail=chunk["error"]["message"])
            chunks.append(chunk)
            has_event(len(chunks))
            if leave and len(chunks) >= leave:
                return replace(seen, outcome="hung up")
        return _check_stream(seen, chunks, known, counts_usage="stream_options" in body)
    except requests.RequestException as failure:
        return replace(seen, outcome="broken", detail=f"{type(failure).__name__}: {failure}"[:300])
    except (ValueError, KeyError, TypeError, IndexError) as wrong:
        return replace(seen, outcome="malformed", detail=f"{type(wrong).__name__}: {wrong}"[:300])


def _events(response: requests.Response) -> Iterator[str]:
    for line in response.iter_lines(chunk_size=None, decode_unicode=True):
        if line:
            yield line.removeprefix("data: ")


def _check_stream(seen: Exchange, events: list[Any], known: KnownAnswer, *, counts_usage: bool) -> Exchange:
    """One unbroken stream: one id, one role, every word once, one end, usage and energy once and last."""
    _must(bool(events) and events[-1] == "[DONE]", "it ended without [DONE]")
    chunks = events[:-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    words = "".join(choice["delta"].get("content") or "" for choice in choices)
    _must(words == known.text, f"its words are {words[:120]!r}")
    _must(len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1, "its id or its time changed")
    roles = [index for index, choice in enumerate(choices) if "role" in choice["delta"]]
    _must(roles == [0], f"the role is in chunks {roles}")
    ends = [index for index, choice in enumerate(choices) if choice["finish_reason"]]
    _must(ends == [len(choices) - 1], f"it finished in chunks {ends} of {len(choices)}")
    _must(choices[-1]["finish_reason"] == known.finish, f"it finished by {choices[-1]['finish_reason']}")
    usages = [index for index, chunk in enumerate(chunks) if chunk.get("usage")]
    _must(usages == ([len(chunks) - 1] if counts_usage else []), f"usage is in chunks {usages}")
    if counts_usage:
        _must(chunks[-1]["usage"]["completion_tokens"] == known.tokens, f"it counts {chunks[-1]['usage']}")
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
