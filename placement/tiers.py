"""Cost tiers of a request: L0 lookup, L1 extraction, L2 aggregation, L3 reasoning.

A small model reads the prompt; the request's other signs only ever raise the tier. Sending a request too cheap costs
the customer an answer, sending it too dear costs a few joules: the cheapest tier is taken of which the model is sure
enough, and a prompt in which it knows hardly a word is taken for reasoning.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources

from placement.tier_features import features

_WEIGHTS = "tier_weights.json"
_FORMAT = 1
_LEAST_KNOWN = 3
_LONG_ANSWER_TOKENS = 4_096
_LONG_PROMPT_CHARACTERS = 1_000
_LONG_CONVERSATION_CHARACTERS = 24_000


class Tier(StrEnum):
    """A cost tier; later is dearer. Compare with `at_most`."""

    L0 = "L0"
    L1 = "L1"
    L2 = "L2"
    L3 = "L3"

    def at_most(self, other: "Tier") -> bool:
        """Whether this tier asks for no more than ``other``."""
        return self.value <= other.value


_TIERS = tuple(Tier)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSigns:
    """What of a request tells its tier. The texts stay in memory and are never kept.

    ``prompt`` is the last message, ``instructions`` the system or developer message, ``previous_prompt`` the user's
    message before the last; empty where there is none. ``prompt_characters`` counts the whole conversation.
    """

    prompt: str
    instructions: str = ""
    previous_prompt: str = ""
    earlier_turns: int
    has_tools: bool
    has_schema: bool
    has_images: bool
    max_tokens: int | None
    prompt_characters: int


class TierClassifier:
    """Multinomial logistic regression over `features`; plain floats, no dependency, no state."""

    def __init__(
        self, weights: Mapping[str, tuple[float, float, float, float]], bias: Sequence[float], confidence: float
    ) -> None:
        """``confidence`` is the least probability that a tier is enough, in (0, 1)."""
        self._weights = dict(weights)
        self._bias = tuple(bias)
        self._confidence = confidence

    @classmethod
    def load(cls) -> "TierClassifier":
        """The trained classifier that comes with this package.

        Raises:
            ValueError: the weights are damaged.
        """
        return parse_weights(resources.files(__package__).joinpath(_WEIGHTS).read_bytes())

    def classify(self, signs: TierSigns) -> Tier:
        """The cheapest tier that is surely enough. Deterministic; a further sign never makes it cheaper."""
        if signs.has_tools or signs.has_images:
            return Tier.L3
        text = f"{signs.instructions}\n\n{signs.prompt}" if signs.instructions else signs.prompt
        tier = max(_floor(signs), self.of_text(text))
        # A follow-up means little by itself ("And the second?"): it asks for no less than what it follows.
        if signs.previous_prompt and tier is not Tier.L3:
            tier = max(tier, self.of_text(signs.previous_prompt))
        return tier

    def of_text(self, text: str) -> Tier:
        """The tier of a prompt by its text alone."""
        probabilities, known = self.probabilities(features(text))
        return cheapest_enough(probabilities, known, self._confidence)

    def probabilities(self, names: Iterable[str]) -> tuple[tuple[float, ...], int]:
        """The probability of each tier, and how many words of the prompt the model knows."""
        a, b, c, d = self._bias
        known = 0
        find = self._weights.get
        for name in names:
            weight = find(name)
            if weight is not None:
                first, second, third, fourth = weight
                a += first
                b += second
                c += third
                d += fourth
                if ":" not in name:
                    known += 1
        top = max(a, b, c, d)
        powers = (math.exp(a - top), math.exp(b - top), math.exp(c - top), math.exp(d - top))
        total = sum(powers)
        return tuple(power / total for power in powers), known


def cheapest_enough(probabilities: Sequence[float], known: int, confidence: float) -> Tier:
    """The cheapest tier that is enough with this confidence, if the model knows enough words of the prompt."""
    if known < _LEAST_KNOWN:
        return Tier.L3
    enough = 0.0
    for tier, probability in zip(_TIERS, probabilities, strict=True):
        enough += probability
        if enough >= confidence:
            return tier
    return Tier.L3


def _floor(signs: TierSigns) -> Tier:
    """What the signs beside the text ask for at least."""
    if signs.prompt_characters > _LONG_CONVERSATION_CHARACTERS:
        return Tier.L2
    if (
        signs.has_schema
        or signs.earlier_turns > 0
        or len(signs.prompt) > _LONG_PROMPT_CHARACTERS
        or (signs.max_tokens or 0) > _LONG_ANSWER_TOKENS
    ):
        return Tier.L1
    return Tier.L0


def format_weights(
    weights: Mapping[str, Sequence[float]], bias: Sequence[float], confidence: float, about: Mapping[str, str]
) -> bytes:
    """Weights as `parse_weights` reads them: sorted, three decimals, with their own digest."""
    content = {
        "format": _FORMAT,
        "about": dict(about),
        "confidence": confidence,
        "bias": [round(value, 3) for value in bias],
        "weights": {name: [round(value, 3) for value in row] for name, row in sorted(weights.items())},
    }
    return (_line({"sha256": _digest(content)}) + "\n" + _lines(content)).encode()


def _line(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _lines(content: Mapping[str, object]) -> str:
    return _line(content).replace('],"', '],\n"') + "\n"


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(_line(content).encode()).hexdigest()


def parse_weights(data: bytes) -> TierClassifier:
    """A classifier from what `format_weights` wrote.

    Raises:
        ValueError: the bytes are damaged, or of another format.
    """
    try:
        stated, _, rest = data.decode().partition("\n")
        content = json.loads(rest)
        digest = json.loads(stated)["sha256"]
    except (ValueError, KeyError, TypeError) as wrong:
        raise ValueError(f"{_WEIGHTS} is damaged ({wrong}): install the package anew") from wrong
    if digest != _digest(content):
        raise ValueError(f"{_WEIGHTS} is damaged (its digest doesn't match): install the package anew")
    if content["format"] != _FORMAT:
        raise ValueError(f"{_WEIGHTS} has format {content['format']}, this release reads {_FORMAT}")
    if rest != _lines(content):
        raise ValueError(f"{_WEIGHTS} is damaged (it isn't as it was written): install the package anew")
    weights = {name: (row[0], row[1], row[2], row[3]) for name, row in content["weights"].items()}
    return TierClassifier(weights, content["bias"], content["confidence"])
