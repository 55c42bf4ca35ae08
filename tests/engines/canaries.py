"""Words that no one else says, told to a mesh in every way there is: each has to be in memory only."""

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import requests
from running_echo import EchoMesh

from serve.shapes import Shape

_TIMEOUT_S: Final = 60
_TOKENS: Final = 32
# Without a limit of its own a request may fill the model's context, which costs more than a new account has.
_LIMITED: Final = {"max_tokens": _TOKENS}
_STREAMS: Final = (Shape.CHAT, Shape.COMPLETION, Shape.MESSAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A word, how it was told, and what came back: ``text`` is the body or, of a stream, all that came of it."""

    word: str
    how: str
    expected: int
    status: int
    text: str


class Canaries:
    """Tells one word a request; ``stem`` is what they have in common, of letters and digits."""

    def __init__(self, mesh: EchoMesh, stem: str) -> None:
        self._mesh = mesh
        self._stem = stem
        self._numbers = itertools.count(1)
        self.sent: list[Sent] = []
        self.secrets: list[str] = [mesh.key]

    def word(self) -> str:
        return f"{self._stem}x{next(self._numbers)}"

    def tell_everything(self) -> None:
        """Every route that runs a model, answered and failed, streamed and not; then what only some of them have."""
        for shape in Shape:
            self._answered(shape)
            self._refused(shape)
            self._unreadable(shape)
        with ThreadPoolExecutor(len(Shape)) as threads:  # all at once: each is tried again, after a pause
            list(threads.map(self._failed, Shape))
        self._in_plans()
        self._with_a_repeated_key()
        self._make_a_key()
        self._in_every_member()
        self._in_a_stream_that_is_left()
        self._in_paths()
        self._past_a_crash()

    def _answered(self, shape: Shape) -> None:
        self._ask("answered", shape, "{}", 200)
        if shape in _STREAMS:
            self._ask("streamed", shape, "{}", 200, stream=True)

    def _refused(self, shape: Shape) -> None:
        self._ask("refused by the engine", shape, "!refuse {}", 400)
        self._post("with a wrong key", shape, self._body(shape, "{}"), 401, {"Authorization": "Bearer jc_LIVE_{}"})
        if shape is Shape.CHAT:  # the others have limits of their own
            self._post("with too small a balance", shape, self._body(shape, "{}", max_tokens=None), 402)
        self._ask("for a model that is not there", shape, "{}", 404, model="{}")
        self._ask("with a member of a wrong type", shape, "{}", 422, stream="{}")

    def _failed(self, shape: Shape) -> None:
        self._ask("broken off", shape, "!break now {}", 502)
        self._ask("quoted by the engine's own fault", shape, "!raise now {}", 502)
        if shape in _STREAMS:
            self._ask("broken off in a stream", shape, "!break after {}", 200, stream=True)
            self._ask("quoted in a stream", shape, "!raise after {}", 200, stream=True)

    def _unreadable(self, shape: Shape) -> None:
        self._post("half a JSON text", shape, '{"messages": "{}', 400)
        self._post("a key twice", shape, '{"{}": 1, "{}": 2}', 400)
        self._post("bad UTF-8", shape, '{"prompt": "{}\udcff"}', 400)
        self._post("a list", shape, '["{}"]', 400)

    def _in_plans(self) -> None:
        """What would be done with a request, of which nothing is run."""
        for body, expected in ((self._body(Shape.CHAT, "{}"), 200), ('{"messages": "{}', 400)):
            word = self.word()
            response = requests.post(
                f"{self._mesh.url}/v1/explain",
                data=body.replace("{}", word),
                headers={**self._mesh.headers, "Content-Type": "application/json"},
                timeout=_TIMEOUT_S,
            )
            self.sent.append(
                Sent(word=word, how="explain", expected=expected, status=response.status_code, text=response.text)
            )

    def _with_a_repeated_key(self) -> None:
        headers = {"Idempotency-Key": self.word()}
        for status in (200, 409):
            self._post("with a key for once", Shape.CHAT, self._body(Shape.CHAT, "{}"), status, headers)

    def _make_a_key(self) -> None:
        """A secret that is shown once, and used."""
        url = f"{self._mesh.url}/v1/keys"
        made = requests.post(url, json={"name": "second"}, headers=self._mesh.headers, timeout=_TIMEOUT_S)
        made.raise_for_status()
        self.secrets.append(made.json()["key"])
        named = {"Authorization": f"Bearer {self.secrets[-1]}"}
        self._post("with a new key", Shape.CHAT, self._body(Shape.CHAT, "{}"), 200, named)

    def _in_every_member(self) -> None:
        """Where else clients put what is theirs."""
        word = self.word()
        schema = {"type": "object", "properties": {word: {"type": "string", "description": word}}, "required": [word]}
        tool = {"type": "function", "function": {"name": word, "description": word, "parameters": schema}}
        earlier = [{"role": "system", "content": word}, {"role": "assistant", "content": word}]
        messages = [*earlier, {"role": "user", "content": f"say {word}"}]
        options = {
            "tools": [tool],
            "tool_choice": "required",
            "user": word,
            "metadata": {"their": word},
            "stop": [f"{word}!"],
        }
        self._tell(
            "in every member", Shape.CHAT, word, {"messages": messages, **options, "model": "auto", **_LIMITED}, 200
        )
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{word}"}}
        parts = [{"type": "text", "text": word}, image]
        asked = {"model": "auto", "messages": [{"role": "user", "content": parts}], **_LIMITED}
        self._tell("beside an image", Shape.CHAT, word, asked, 200)

    def _in_a_stream_that_is_left(self) -> None:
        word = self.word()
        body = {**self._shaped(Shape.CHAT, f"!slow {word} and on and on"), "stream": True}
        with self._request(Shape.CHAT, json.dumps(body).encode(), {}) as response:
            first = next(response.iter_lines(decode_unicode=True))
        self.sent.append(Sent(word=word, how="left", expected=200, status=response.status_code, text=first))

    def _in_paths(self) -> None:
        for path in ("models/{}", "receipts/{}", "{}", "chat/completions?prompt={}"):
            word = self.word()
            url = f"{self._mesh.url}/v1/{path.replace('{}', word)}"
            response = requests.get(url, headers=self._mesh.headers, timeout=_TIMEOUT_S)
            expected = 405 if "?" in path else 404
            self.sent.append(
                Sent(word=word, how=f"GET {path}", expected=expected, status=response.status_code, text=response.text)
            )

    def _past_a_crash(self) -> None:
        """Last, since the pool has to come back after it."""
        self._ask("hung until the deadline", Shape.CHAT, "!hang-once now {}", 200, stream=True)
        self._ask("cut by a crash and resumed", Shape.CHAT, "!crash-once now {}", 200, stream=True)

    def _ask(self, how: str, shape: Shape, text: str, expected: int, **more: object) -> None:
        self._post(how, shape, self._body(shape, text, **more), expected)

    def _post(self, how: str, shape: Shape, body: str, expected: int, headers: Mapping[str, str] | None = None) -> None:
        word = self.word()
        data = body.replace("{}", word).encode(errors="surrogateescape")
        named = {name: value.replace("{}", word) for name, value in (headers or {}).items()}
        with self._request(shape, data, named) as response:
            status, text = response.status_code, response.text
        self.sent.append(Sent(word=word, how=f"{shape}: {how}", expected=expected, status=status, text=text))

    def _tell(self, how: str, shape: Shape, word: str, body: Mapping[str, Any], expected: int) -> None:
        with self._request(shape, json.dumps(body).encode(), {}) as response:
            status, text = response.status_code, response.text
        self.sent.append(Sent(word=word, how=f"{shape}: {how}", expected=expected, status=status, text=text))

    def _request(self, shape: Shape, data: bytes, headers: Mapping[str, str]) -> requests.Response:
        return requests.post(
            f"{self._mesh.url}/v1/{shape}",
            data=data,
            headers={**self._mesh.headers, "Content-Type": "application/json", **headers},
            stream=True,
            timeout=_TIMEOUT_S,
        )

    def _body(self, shape: Shape, text: str, **more: object) -> str:
        members = {**self._shaped(shape, text), **more}
        return json.dumps({name: value for name, value in members.items() if value is not None})

    def _shaped(self, shape: Shape, text: str) -> dict[str, Any]:
        match shape:
            case Shape.COMPLETION:
                return {"model": "auto", "prompt": text, **_LIMITED}
            case Shape.EMBEDDING:
                return {"model": "auto", "input": text}
            case Shape.MESSAGES:
                return {"model": "auto", "system": text, "messages": [{"role": "user", "content": text}], **_LIMITED}
        return {"model": "auto", "messages": [{"role": "user", "content": text}], **_LIMITED}

    def unexpected(self) -> Iterator[str]:
        """What didn't come as it should have, so that nothing would be shown by it."""
        for each in self.sent:
            if each.status != each.expected:
                yield f"{each.how}: {each.status} in place of {each.expected}: {each.text[:300]}"
