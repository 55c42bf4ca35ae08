"""Microjoules per input token and per output token of each pool, learned from settled requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from placement.bounds import refuse_outside
from placement.fleet import MOST_TOKENS, Floats
from placement.live_figures import MOST_MICROJOULES_PER_TOKEN

OUTPUT_OVER_INPUT = 10.0
"""Prior: an output token draws ten times what an input token does.

A decode step reads the model's weights for one token of each request, prefill for a whole prompt; from 3 to 30 times
occur. It is only where learning starts.
"""

MOST_STEP = 2.0
"""One settled figure, however wild, moves a rate by no more than this factor, up or down."""

_WIDEST = 1e4
"""A learned rate stays within its prior over and times this."""

_PRIOR_VARIANCE = 1.0
_NOISE_VARIANCE = 0.3**2
_DRIFT_VARIANCE = _NOISE_VARIANCE * 0.02**2
"""Of the natural logarithms: a prior is right within a factor of e, a request's energy within 30 %; and what true
rates drift from one request to the next, set so that about the last fifty requests count.
"""

_MOST_RESIDUAL = 3.0
_LEAST_MICROJOULES_PER_TOKEN = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRates:
    """What one token draws, in microjoules of IT energy."""

    microjoules_per_input_token: float
    microjoules_per_output_token: float

    @property
    def larger_microjoules_per_token(self) -> float:
        """The rate of the dearer kind of token: what no mixture draws more than."""
        return max(self.microjoules_per_input_token, self.microjoules_per_output_token)

    def microjoules(self, input_tokens: float, output_tokens: float) -> float:
        """Expected energy of a request with so many."""
        return input_tokens * self.microjoules_per_input_token + output_tokens * self.microjoules_per_output_token


def prior_rates(microjoules_per_token: float) -> TokenRates:
    """The prior of a pool whose settings say one figure: the mean over as many input as output tokens, divided
    between them by `OUTPUT_OVER_INPUT`.

    Raises:
        ValueError: it isn't above zero, or beyond its limit.
    """
    refuse_outside(
        "prior_microjoules_per_token",
        microjoules_per_token,
        _LEAST_MICROJOULES_PER_TOKEN,
        MOST_MICROJOULES_PER_TOKEN / _WIDEST / 2,
    )
    per_input = 2 * microjoules_per_token / (1 + OUTPUT_OVER_INPUT)
    return TokenRates(microjoules_per_input_token=per_input, microjoules_per_output_token=per_input * OUTPUT_OVER_INPUT)


class EnergyRates:
    """Learns both rates of each pool, in the order in which its priors were given.

    A Kalman filter on the two logarithms: a rate can't become negative, and a step is a factor. The residual it
    follows is (drawn - expected) / expected, not a difference of logarithms, so that it settles on the mean energy,
    which is what many requests cost, and not on the lower geometric one. Residuals above `_MOST_RESIDUAL` count as
    that, so that a wild figure passes and a lasting change is followed all the same. How unsure a rate is never
    grows above its prior's: many requests of one shape, which tell the sum of two rates but not each, leave the
    filter able to learn from the next shape, and no more.
    """

    def __init__(self, priors_microjoules_per_token: Mapping[str, float]) -> None:
        """Raises ValueError where a prior isn't above zero, or beyond its limit."""
        self._places = {pool: place for place, pool in enumerate(priors_microjoules_per_token)}
        self._filters = [_Filter(prior_rates(prior)) for prior in priors_microjoules_per_token.values()]
        self._columns = np.array([each.rates for each in self._filters], dtype=np.float64).reshape(-1, 2).T

    def observe(self, pool: str, input_tokens: int, output_tokens: int, microjoules: int | None) -> None:
        """Take in one settled request of a known pool: tokens prefilled (input less cached), tokens generated and
        what they drew. One without metered energy or without tokens teaches nothing.

        Raises:
            ValueError: a figure is negative or beyond a limit.
        """
        refuse_outside("input_tokens", input_tokens, 0, MOST_TOKENS)
        refuse_outside("output_tokens", output_tokens, 0, MOST_TOKENS)
        if microjoules is None or input_tokens + output_tokens == 0:
            return
        refuse_outside("microjoules", microjoules, 0, math.inf)
        place = self._places[pool]
        self._filters[place].observe(input_tokens, output_tokens, microjoules)
        self._columns[:, place] = self._filters[place].rates

    def rates(self, pool: str) -> TokenRates:
        """The present rates of a known pool."""
        per_input, per_output = self._filters[self._places[pool]].rates
        return TokenRates(microjoules_per_input_token=per_input, microjoules_per_output_token=per_output)

    @property
    def microjoules_per_input_token(self) -> Floats:
        """A column of every pool's present rate, which changes as more is observed."""
        return _unwritable(self._columns[0])

    @property
    def microjoules_per_output_token(self) -> Floats:
        """A column of every pool's present rate, which changes as more is observed."""
        return _unwritable(self._columns[1])


@dataclass(slots=True)
class _Filter:
    """One pool's two logarithms and their covariance (``first``, ``second`` on the diagonal, ``cross`` beside it)."""

    prior: TokenRates
    logarithms: tuple[float, float] = field(init=False)
    first: float = _PRIOR_VARIANCE
    second: float = _PRIOR_VARIANCE
    cross: float = 0.0

    def __post_init__(self) -> None:
        self.logarithms = self._prior_logarithms()

    @property
    def rates(self) -> tuple[float, float]:
        return math.exp(self.logarithms[0]), math.exp(self.logarithms[1])

    def observe(self, input_tokens: int, output_tokens: int, microjoules: int) -> None:
        self._drift()
        per_input, per_output = self.rates
        of_input, of_output = input_tokens * per_input, output_tokens * per_output
        expected = of_input + of_output
        residual = min(microjoules / expected - 1.0, _MOST_RESIDUAL)
        gains = self._take_in(of_input / expected, of_output / expected)
        self._move(gains[0] * residual, gains[1] * residual)

    def _drift(self) -> None:
        """Forget a little, but never so much as to be less sure than the prior."""
        self.first += _DRIFT_VARIANCE
        self.second += _DRIFT_VARIANCE
        shrink_first = min(1.0, math.sqrt(_PRIOR_VARIANCE / self.first))
        shrink_second = min(1.0, math.sqrt(_PRIOR_VARIANCE / self.second))
        self.first *= shrink_first**2
        self.second *= shrink_second**2
        self.cross *= shrink_first * shrink_second

    def _take_in(self, share_input: float, share_output: float) -> tuple[float, float]:
        """The gains of a request whose expected energy is so divided; the covariance after it.

        The expectation's relative change with each logarithm is that token kind's share of it.
        """
        towards_first = self.first * share_input + self.cross * share_output
        towards_second = self.cross * share_input + self.second * share_output
        variance = share_input * towards_first + share_output * towards_second + _NOISE_VARIANCE
        gains = towards_first / variance, towards_second / variance
        self.first -= gains[0] * towards_first
        self.second -= gains[1] * towards_second
        self.cross -= gains[0] * towards_second
        return gains

    def _move(self, of_first: float, of_second: float) -> None:
        longest = max(abs(of_first), abs(of_second))
        shorten = min(1.0, math.log(MOST_STEP) / longest) if longest > 0 else 1.0
        middle, reach = self._prior_logarithms(), math.log(_WIDEST)
        self.logarithms = (
            min(max(self.logarithms[0] + of_first * shorten, middle[0] - reach), middle[0] + reach),
            min(max(self.logarithms[1] + of_second * shorten, middle[1] - reach), middle[1] + reach),
        )

    def _prior_logarithms(self) -> tuple[float, float]:
        return (
            math.log(self.prior.microjoules_per_input_token),
            math.log(self.prior.microjoules_per_output_token),
        )


def _unwritable(column: Floats) -> Floats:
    seen = column.view()
    seen.setflags(write=False)
    return seen
