"""The prompts of a completion or an embedding: text or token ids, one or many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from serve.model_request import wrong

MOST_PROMPTS: Final = 2048
_CHARACTERS_PER_TOKEN: Final = 4
_MOST_TOKEN_ID: Final = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptList:
    """How long each is in characters; token ids are reckoned at four each. ``first_text`` is empty for token ids."""

    lengths: tuple[int, ...]
    first_text: str

    @classmethod
    def read(cls, value: object, param: str) -> Self:
        """A text, a list of texts, a list of token ids, or a list of such lists.

        Raises:
            RequestRefused: 422, it is none of these, or there are more than `MOST_PROMPTS`.
        """
        prompts = value if isinstance(value, list) and not _are_tokens(value) else [value]
        if len(prompts) > MOST_PROMPTS:
            raise wrong(param, f"has {len(prompts)} texts; there may be {MOST_PROMPTS}")
        lengths = tuple(_length(each, param) for each in prompts)
        if not lengths:
            raise wrong(param, "must not be empty")
        return cls(lengths=lengths, first_text=prompts[0] if isinstance(prompts[0], str) else "")


def _are_tokens(value: Sequence[object]) -> bool:
    return bool(value) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)


def _length(prompt: object, param: str) -> int:
    if isinstance(prompt, str) and prompt:
        return len(prompt)
    if isinstance(prompt, list) and _are_tokens(prompt) and all(0 <= each < _MOST_TOKEN_ID for each in prompt):
        return _CHARACTERS_PER_TOKEN * len(prompt)
    raise wrong(param, "must be text that is not empty, token ids, or a list of either")
