"""Reading OpenAI's (text) completion requests."""

from typing import Any, Final

from placement.fleet import MOST_TOKENS
from placement.tiers import TierSigns
from serve.model_request import (
    MAX_CHOICES,
    ModelRequest,
    check_choices,
    check_count,
    check_include_usage,
    check_model,
    check_stream,
    wrong,
)
from serve.prompt_list import PromptList
from serve.shapes import Shape

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's own for completions, and vLLM's."""


def parse_completion(body: dict[str, Any], body_bytes: int) -> ModelRequest:
    """Check what routing needs of a body that was so long in JSON.

    Raises:
        RequestRefused: 422, naming the field.
    """
    model, stream, include_usage = check_model(body), check_stream(body), check_include_usage(body)
    for name in ("prompt_embeds", "suffix"):
        if body.get(name) is not None:
            raise wrong(name, "is not supported")
    prompts = PromptList.read(body.get("prompt"), "prompt")
    each, best_of = check_count(body, "n", MAX_CHOICES) or 1, check_count(body, "best_of", MAX_CHOICES)
    if best_of is not None and best_of != each:
        raise wrong("best_of", "is only supported when it equals n")
    max_tokens = check_count(body, "max_tokens", MOST_TOKENS, least=0 if body.get("echo") else 1)
    max_tokens = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    return ModelRequest(
        shape=Shape.COMPLETION,
        model=model,
        stream=stream,
        include_usage=include_usage,
        choices=check_choices("n", len(prompts.lengths), each),
        max_tokens=max_tokens,
        signs=TierSigns(
            prompt=prompts.first_text,
            earlier_turns=0,
            has_tools=False,
            has_schema=isinstance(body.get("response_format"), dict),
            has_images=False,
            max_tokens=max_tokens,
            prompt_characters=sum(prompts.lengths),
        ),
        prompts=len(prompts.lengths),
        prompt_characters=sum(prompts.lengths),
        longest_characters=max(prompts.lengths),
        is_all_text=True,
        body_bytes=body_bytes,
        body=body,
    )
