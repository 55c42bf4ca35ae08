"""What the mesh puts into a body on its way to an engine."""

import json
from typing import Any

import pytest

from serve.engine_body import engine_body
from serve.request_shapes import parse_request
from serve.shapes import Shape

_BODIES: dict[Shape, dict[str, Any]] = {
    Shape.CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    Shape.COMPLETION: {"prompt": "hello"},
    Shape.EMBEDDING: {"input": "hello"},
    Shape.MESSAGES: {"max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]},
}


def sent(shape: Shape = Shape.CHAT, account: str = "acme", **members: Any) -> dict[str, Any]:
    body = {"model": "auto", **_BODIES[shape], **members}
    return engine_body(parse_request(shape, body, len(json.dumps(body))), "some-model", account)


@pytest.mark.parametrize("shape", Shape)
def test_accounts_have_their_own_parts_of_the_cache_whatever_they_ask(shape: Shape):
    salts = [sent(shape, account)["cache_salt"] for account in ("acme", "other", "acme")]
    assert salts[0] == salts[2] != salts[1]
    assert "acme" not in salts[0]


def test_a_clients_own_salt_parts_its_accounts_prompts_and_finds_no_other_accounts():
    salts = {sent(account=account, cache_salt=own)["cache_salt"] for account in ("a", "b") for own in (None, "x", "y")}
    assert len(salts) == 6
    assert sent(cache_salt="\ud800")["cache_salt"] == sent(cache_salt="\ud800")["cache_salt"]


@pytest.mark.parametrize("own", ["", 5, ["a"], {}, False])
def test_a_salt_that_is_none_is_the_engines_to_refuse(own: object):
    assert sent(cache_salt=own)["cache_salt"] == own


@pytest.mark.parametrize(("shape", "counts"), [(Shape.CHAT, True), (Shape.COMPLETION, True), (Shape.MESSAGES, False)])
def test_usage_of_a_stream_is_always_counted(shape: Shape, counts: bool):
    assert sent(shape, stream=True).get("stream_options") == ({"include_usage": True} if counts else None)


def test_the_rest_is_the_clients():
    body = sent(temperature=0, whatever=[1])
    del body["cache_salt"]
    assert body == {"model": "some-model", **_BODIES[Shape.CHAT], "temperature": 0, "whatever": [1]}
