"""What an engine gets of a client's body: all of it, but for what the mesh decides."""

import hashlib
from typing import Any

from serve.model_request import ModelRequest
from serve.shapes import Shape


def engine_body(request: ModelRequest, model: str, account: str) -> dict[str, Any]:
    """The client's body with the chosen model's name, usage always counted, and its account's part of the cache."""
    body = {**request.body, "model": model, "cache_salt": _cache_salt(account, request.body.get("cache_salt"))}
    if request.stream and request.shape is not Shape.MESSAGES:  # Anthropic's streams always have it
        body["stream_options"] = {"include_usage": True}
    return body


def _cache_salt(account: str, own: object) -> object:
    """Under which an engine's prefix cache keeps and finds a prompt.

    No other account may learn from its hits, by time or by ``cached_tokens``, that a prompt was asked before.
    ``own``, the client's, parts its account's prompts further.
    """
    if not isinstance(own, str | None) or own == "":
        return own  # the engine says what is wrong with it
    return hashlib.sha256(f"{account}\0{own or ''}".encode(errors="surrogatepass")).hexdigest()
