"""What the engine's own request ids tell: whose request it is, and which of its prompts."""

import re
from collections import OrderedDict
from dataclasses import dataclass, field

_MESH_ID = re.compile(r"[0-9a-f]{32}")
# As vLLM names one of several prompts; a chat's id has a random end there.
_LISTED_PROMPT = re.compile(r"(?<!chat)(?:cmpl|embd)-([0-9a-f]{32})-(\d+)-")
_MOST_LISTS = 4096


def mesh_id(engine_id: str) -> str:
    """The mesh's 32 hex digits inside an engine request id (``chatcmpl-<id>-<suffix>``, ``0_chatcmpl-<id>``).

    A request that the mesh didn't send (vLLM's own warm-up) keeps its engine id.
    """
    found = _MESH_ID.search(engine_id)
    return found.group() if found else engine_id


@dataclass(slots=True)
class _PromptList:
    """Which prompts of a list were seen, by their place in it, and how long these are together."""

    seen: set[str] = field(default_factory=set)
    tokens: int = 0


class PromptTotals:
    """How long the prompts of a request are together, of those that its engine has come to: it may hold a list of them.

    What was seen last is kept of so many requests; one with more than that many others after it begins anew, which
    the meter, that keeps the largest total, takes no harm from.
    """

    def __init__(self, most: int = _MOST_LISTS) -> None:
        self._most = most
        self._lists: OrderedDict[str, _PromptList] = OrderedDict()

    def with_prompt(self, engine_id: str, prompt_tokens: int) -> int:
        """The tokens of this engine request's prompt and of the others of its list; each counts once."""
        found = _LISTED_PROMPT.search(engine_id)
        if found is None:
            return prompt_tokens
        prompts = self._lists.setdefault(found[1], _PromptList())
        self._lists.move_to_end(found[1])
        if len(self._lists) > self._most:
            self._lists.popitem(last=False)
        if found[2] not in prompts.seen:
            prompts.seen.add(found[2])
            prompts.tokens += prompt_tokens
        return prompts.tokens
