"""Cost tiers of a request: L0 lookup, L1 extraction, L2 aggregation, L3 reasoning.

A small set of stated rules, local and deterministic. Sending a request too cheap costs the customer an answer,
sending it too dear costs a few joules, so whatever no rule recognises is taken for reasoning.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_SHORT_QUESTION_CHARS = 160
_LONG_CONTEXT_CHARS = 6_000
_READ_CHARS = 8_000

_REASONING = re.compile(
    r"```|\b(?:prove|proof|derive|solve|calculat\w*|comput\w*|debug\w*|implement\w*|refactor\w*|algorithm\w*|"
    r"step[ -]by[ -]step|explain (?:how|why)|why (?:do|does|did|is|are|would|should)|how (?:many|much)|"
    r"write (?:a|an|the|some) (?:\w+ ){0,3}(?:function|program|script|class|query|essay|story|poem|email|letter)|"
    r"plan|design|optimi[sz]e\w*|trade-?offs?|pros and cons|regex|sql|python|javascript|code)\b|"
    r"\d\s*[-+*/^=]\s*\d",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+")
_WORD_PROBLEM_NUMBERS = 2
_AGGREGATION = re.compile(
    r"\b(?:summari[sz]e\w*|summary|compare\w*|comparison|contrast|overview|outline|report|review|analy[sz]e\w*|"
    r"combine|aggregate|across|key points|main points|based on the (?:following|passage|text|context|document)s?)\b",
    re.IGNORECASE,
)
_EXTRACTION = re.compile(
    r"\b(?:extract|translat\w*|classif\w*|convert|rewrite|rephrase|paraphrase|correct|proofread|reformat|"
    r"identify|list the|find the|tag|label|sentiment)\b",
    re.IGNORECASE,
)
_LOOKUP = re.compile(
    r"^\W*(?:who|whom|whose|what|when|where|which|define|name|is|are|was|were|did|does|do|"
    r"how (?:old|tall|far|long|big))\b",
    re.IGNORECASE,
)


class Tier(StrEnum):
    """A cost tier; later is dearer. Compare with `at_most`."""

    L0 = "L0"
    L1 = "L1"
    L2 = "L2"
    L3 = "L3"

    def at_most(self, other: "Tier") -> bool:
        """Whether this tier asks for no more than ``other``."""
        return self.value <= other.value


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSigns:
    """What of a request tells its tier. ``prompt`` stays in memory and is never kept."""

    prompt: str
    earlier_turns: int
    has_tools: bool
    has_schema: bool
    has_images: bool


def classify(signs: TierSigns) -> Tier:
    """The cheapest tier that no sign speaks against."""
    text = signs.prompt[:_READ_CHARS]
    if signs.has_tools or signs.has_images or _REASONING.search(text) or _is_word_problem(text):
        return Tier.L3
    if _AGGREGATION.search(text) or len(signs.prompt) > _LONG_CONTEXT_CHARS or signs.earlier_turns > 1:
        return Tier.L2
    if _EXTRACTION.search(text) or signs.has_schema:
        return Tier.L1
    if len(text) <= _SHORT_QUESTION_CHARS and _LOOKUP.match(text):
        return Tier.L0
    return Tier.L3


def _is_word_problem(text: str) -> bool:
    return "?" in text and len(_NUMBER.findall(text)) >= _WORD_PROBLEM_NUMBERS
