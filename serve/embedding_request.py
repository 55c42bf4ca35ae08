"""Reading OpenAI's embedding requests."""

from typing import Any, Final

from placement.tiers import TierSigns
from serve.model_request import ModelRequest, check_count, check_model, wrong
from serve.prompt_list import PromptList
from serve.shapes import Shape

_FORMATS: Final = ("float", "base64")
_MOST_DIMENSIONS: Final = 65_536


def parse_embedding(body: dict[str, Any], body_bytes: int) -> ModelRequest:
    """Check what routing needs of a body that was so long in JSON. An embedding is answered with no tokens.

    Raises:
        RequestRefused: 422, naming the field.
    """
    model = check_model(body)
    if body.get("encoding_format", "float") not in _FORMATS:
        raise wrong("encoding_format", f"must be one of: {', '.join(_FORMATS)}")
    if body.get("stream"):
        raise wrong("stream", "is not supported for embeddings")
    check_count(body, "dimensions", _MOST_DIMENSIONS)
    prompts = PromptList.read(body.get("input"), "input")
    return ModelRequest(
        shape=Shape.EMBEDDING,
        model=model,
        stream=False,
        include_usage=False,
        choices=1,
        max_tokens=0,
        # No text of it: what an embedding model must be able to do doesn't hang on what it reads.
        signs=TierSigns(
            prompt="",
            earlier_turns=0,
            has_tools=False,
            has_schema=False,
            has_images=False,
            max_tokens=0,
            prompt_characters=sum(prompts.lengths),
        ),
        prompts=len(prompts.lengths),
        prompt_characters=sum(prompts.lengths),
        longest_characters=max(prompts.lengths),
        is_all_text=True,
        body_bytes=body_bytes,
        body=body,
    )
