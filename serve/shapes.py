"""The request shapes that run a model, and where each is asked for."""

from enum import StrEnum


class Shape(StrEnum):
    """Whose API a request and its answer follow; the value is the API's path behind ``/v1/``.

    The first three are OpenAI's; ``MESSAGES`` is Anthropic's.
    """

    CHAT = "chat/completions"
    COMPLETION = "completions"
    EMBEDDING = "embeddings"
    MESSAGES = "messages"
