"""A mean that starts from a prior, follows slow change and is moved little by any one value."""

from dataclasses import dataclass, field

from placement.bounds import refuse_outside

_LAST_COUNTS = 100
_MOST_TIMES_THE_MEAN = 10.0


@dataclass(slots=True)
class RunningMean:
    """The mean of what was observed, of which the prior counts as so many; about the last hundred count.

    A value above ten times the mean counts as that, so that one wild value at most doubles it where the prior counts
    as ten, and later raises it by a tenth.
    """

    mean: float
    prior_counts_as: int = 10
    _count: int = field(init=False)

    def __post_init__(self) -> None:
        refuse_outside("a mean's prior", self.mean, 1e-9, 1e12)
        refuse_outside("prior_counts_as", self.prior_counts_as, 1, _LAST_COUNTS)
        self._count = self.prior_counts_as

    def observe(self, value: float) -> None:
        """Take in one value.

        Raises:
            ValueError: it is negative or not finite.
        """
        refuse_outside("a value", value, 0, 1e15)
        self._count = min(self._count + 1, _LAST_COUNTS)
        # Never zero, or nothing would raise it again.
        self.mean = max(self.mean + (min(value, _MOST_TIMES_THE_MEAN * self.mean) - self.mean) / self._count, 1e-9)
