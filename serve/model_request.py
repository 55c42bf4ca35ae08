"""What the door reads of a request that runs a model: the few fields that routing needs; the rest is the engine's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from placement.fleet import MOST_TOKENS
from placement.tiers import TierSigns
from serve.errors import RequestRefused
from serve.shapes import Shape

AUTO_MODEL: Final = "auto"
MAX_CHOICES: Final = 128
_MOST_NAME_CHARACTERS: Final = 256
_MOST_CHARACTERS_PER_TOKEN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A request of one of the `Shape`s. ``body`` is what the client sent, for the engine; never logged or stored.

    ``choices`` are all its answers together, each of ``max_tokens`` at most (None: as many as the context holds; 0: it
    is answered with no tokens). ``prompts`` are computed each by itself; the longest has ``longest_characters``, all
    together have ``prompt_characters``. ``body_bytes`` is the body's length in JSON, which bounds the prompts' tokens
    where ``is_all_text``.
    """

    shape: Shape
    model: str
    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    signs: TierSigns
    prompts: int
    prompt_characters: int
    longest_characters: int
    is_all_text: bool
    body_bytes: int
    body: Mapping[str, Any]

    @property
    def is_auto(self) -> bool:
        """Whether the mesh chooses the model."""
        return self.model == AUTO_MODEL

    @property
    def features(self) -> frozenset[str]:
        """What the model must be able to do."""
        task = "embed" if self.shape is Shape.EMBEDDING else "generate"
        signs = (("tools", self.signs.has_tools), ("images", self.signs.has_images))
        return frozenset({task, *(name for name, is_needed in signs if is_needed)})

    @property
    def least_tokens(self) -> int:
        """What a model's context must hold, or its engine refuses the request: the prompt with one token after it (no
        tokenizer packs more characters into a token on average), and ``max_tokens`` alone.
        """
        return max(self.longest_characters // _MOST_CHARACTERS_PER_TOKEN + 1, self.max_tokens or 0)


def wrong(param: str, message: str) -> RequestRefused:
    """The field has a value that it can't have."""
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{param} {message}", param)


def check_model(body: Mapping[str, Any]) -> str:
    """The name of the model that is asked for."""
    model = body.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= _MOST_NAME_CHARACTERS:
        raise wrong("model", f"must be the name of a model of at most {_MOST_NAME_CHARACTERS} characters, or 'auto'")
    return model


def check_stream(body: Mapping[str, Any]) -> bool:
    """Whether a stream of events is asked for."""
    stream = body.get("stream")
    # Not by equality: 1 is equal to true.
    if stream is not None and not isinstance(stream, bool):
        raise wrong("stream", "must be true or false")
    return bool(stream)


def check_include_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client wants the usage chunk of OpenAI's streams."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong("stream_options", "must be an object")
    if not body.get("stream"):
        raise wrong("stream_options", "is only allowed when stream is true")
    include_usage = options.get("include_usage")
    if include_usage is not None and not isinstance(include_usage, bool):
        raise wrong("stream_options.include_usage", "must be true or false")
    return bool(include_usage)


def check_count(body: Mapping[str, Any], name: str, most: int = MOST_TOKENS, *, least: int = 1) -> int | None:
    """A whole number; None where there is none."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, f"must be a whole number of at least {least} and at most {most}")
    return value


def check_objects(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects; empty where there is none."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise wrong(name, "must be a list of objects")
    return value


def check_choices(name: str, prompts: int, each: int) -> int:
    """The answers of several prompts together."""
    if prompts * each > MAX_CHOICES:
        raise wrong(name, f"asks for {prompts * each} answers; there may be {MAX_CHOICES}")
    return prompts * each


def is_text_parts(content: Iterable[Mapping[str, Any]], kinds: frozenset[str]) -> bool:
    """Whether all parts of a message's content are of these kinds, whose tokens their bytes bound."""
    return all(part.get("type") in kinds for part in content)
