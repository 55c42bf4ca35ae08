"""A request that runs: what is known of it between `begin` and its settlement."""

from dataclasses import dataclass

from metering.engine_steps import RequestWork
from metering.settlement import TokenCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdMark:
    """The integral of resident requests over time, and the time up to which it goes."""

    resident_ns: int
    at_ns: int


class Crowd:
    """How many requests are resident on a replica, over time."""

    def __init__(self) -> None:
        self._residents = 0
        self._integral_ns = 0
        self._reached_ns = 0

    def enter(self, now_ns: int) -> CrowdMark:
        """One request more, from now on."""
        mark = self._advance(now_ns)
        self._residents += 1
        return mark

    def leave(self, came: CrowdMark, now_ns: int) -> int | None:
        """One request less; the mean number of residents while it was here times 1000, if it was here at all."""
        mark = self._advance(now_ns)
        self._residents -= 1
        if mark.at_ns == came.at_ns:
            return None
        return (mark.resident_ns - came.resident_ns) * 1000 // (mark.at_ns - came.at_ns)

    def _advance(self, now_ns: int) -> CrowdMark:
        """Go on to now; a report that comes late counts from where the integral already is."""
        if now_ns > self._reached_ns:
            self._integral_ns += self._residents * (now_ns - self._reached_ns)
            self._reached_ns = now_ns
        return CrowdMark(resident_ns=self._integral_ns, at_ns=self._reached_ns)


@dataclass(slots=True, kw_only=True)
class RequestAccount:
    """One attempt at a request. ``serial`` rises with age; ``resident_from_ns`` is its first step, if it had one.

    ``spoiled`` is the reason why its energy isn't known whole, if it isn't; ``steps_lost`` says whether reports of
    its replica were dropped, ``shared`` whether its devices were ever a stranger's too, and ``has_neighbours`` whether
    another replica ever ran on them.
    """

    serial: int
    request_id: str
    replica: str
    context: bytes
    begun_monotonic_ns: int
    start_unix_ns: int
    resident_from_ns: int | None = None
    came: CrowdMark | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    peak_milliwatts: int | None = None
    spoiled: str | None = None
    steps_lost: bool = False
    shared: bool = False
    has_neighbours: bool = False

    def saw_first_step(self, work: RequestWork, at_monotonic_ns: int) -> int:
        """Take in the step that first lists the request; from when on it is resident."""
        self.resident_from_ns = max(at_monotonic_ns, self.begun_monotonic_ns)
        self.input_tokens = work.prompt_tokens
        self.cached_tokens = min(work.cached_tokens, work.prompt_tokens)
        return self.resident_from_ns

    def saw_later_step(self, work: RequestWork) -> None:
        """Take in a step that may have come to another one of several prompts: then they are longer together.

        Otherwise it tells nothing new: after a preemption the engine computes a prompt again that is counted already.
        """
        if work.prefill_tokens and work.prompt_tokens > self.input_tokens:
            self.input_tokens = work.prompt_tokens
            self.cached_tokens = min(self.cached_tokens + work.cached_tokens, work.prompt_tokens)

    @property
    def tokens(self) -> TokenCounts:
        """Tokens so far. Without a step the prompt was never seen."""
        return TokenCounts(input=self.input_tokens, cached=self.cached_tokens, output=self.output_tokens)

    def saw_power(self, milliwatts: int | None) -> None:
        """Remember the highest power of the devices while the request was resident."""
        if milliwatts is not None:
            self.peak_milliwatts = max(milliwatts, self.peak_milliwatts or 0)
