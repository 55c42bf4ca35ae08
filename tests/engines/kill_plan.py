"""What is killed in each round and when: drawn from a seed, so that a run can be repeated."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

TARGETS: Final = ("ledger", "signer", "ingress", "replica", "meter")
_MOST_SIGNERS: Final = 3
_FIRST_AFTER_S: Final = (0.2, 1.5)
_SECOND_CHANCE: Final = 0.45
_AGAIN_CHANCE: Final = 0.35
_GAPS_S: Final = (0.0, 0.02, 0.2, 0.8)
_AGAIN_WITHIN_S: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """Kill so many processes of a target, so long after the blow before it (or after the round began).

    ``successor``: the victim is the process that takes the dead one's place, that long after it has come up.
    """

    target: str
    count: int
    after_s: float
    successor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One or two blows."""

    number: int
    blows: tuple[Blow, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted({blow.target for blow in self.blows}))


def rounds(seed: int, count: int) -> Iterator[Round]:
    """So many rounds; within any five of them that begin a deck, each target is hit first once."""
    random = Random(f"{seed}/plan")
    deck: list[str] = []
    for number in range(1, count + 1):
        if not deck:
            deck = random.sample(TARGETS, len(TARGETS))
        first = _blow(random, deck.pop(), random.uniform(*_FIRST_AFTER_S))
        second: tuple[Blow, ...] = ()
        if random.random() < _SECOND_CHANCE:
            second = (_second(random, first.target),)
        yield Round(number=number, blows=(first, *second))


def _second(random: Random, first: str) -> Blow:
    if random.random() < _AGAIN_CHANCE:
        return Blow(target=first, count=1, after_s=random.uniform(0, _AGAIN_WITHIN_S), successor=True)
    others = [target for target in TARGETS if target != first]
    return _blow(random, random.choice(others), random.choice(_GAPS_S))


def _blow(random: Random, target: str, after_s: float) -> Blow:
    count = random.randint(1, _MOST_SIGNERS) if target == "signer" else 1
    return Blow(target=target, count=count, after_s=after_s)
