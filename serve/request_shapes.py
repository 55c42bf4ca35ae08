"""One reader for each shape of requests."""

from typing import Any

from serve.chat_request import parse_chat
from serve.completion_request import parse_completion
from serve.embedding_request import parse_embedding
from serve.messages_request import parse_messages
from serve.model_request import ModelRequest
from serve.shapes import Shape

_READERS = {
    Shape.CHAT: parse_chat,
    Shape.COMPLETION: parse_completion,
    Shape.EMBEDDING: parse_embedding,
    Shape.MESSAGES: parse_messages,
}


def parse_request(shape: Shape, body: dict[str, Any], body_bytes: int) -> ModelRequest:
    """Check what routing needs of a body that was so long in JSON.

    Raises:
        RequestRefused: 422, naming the field.
    """
    return _READERS[shape](body, body_bytes)
