"""Silicon kinds as an operator declares them, and whether a machine is what its label says."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


class SiliconMismatch(Exception):
    """A machine's silicon is not what its label, or the pool that wants to run there, says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiliconKind:
    """A name for silicon, and how it is recognised.

    ``detected_as`` is a shell pattern (``*``, ``?``) against the model that the host's meter detected, in any case.
    ``simulated``: it is only a label, for trials on other silicon; receipts then say so.
    """

    kind: str
    detected_as: str
    simulated: bool

    def matches(self, detected: str) -> bool:
        """Whether a machine with this model may carry the label."""
        return self.simulated or fnmatchcase(detected.casefold(), self.detected_as.casefold())


def check_silicon(expected: SiliconKind | None, detected: str) -> None:
    """A replica may start here: its pool names no silicon, or names what the host's meter detected.

    Raises:
        SiliconMismatch: it does not; the message says what is here and what was expected.
    """
    if expected is not None and not expected.matches(detected):
        raise SiliconMismatch(
            f"the silicon here is {detected!r}, and {expected.kind!r} must be detected as {expected.detected_as!r}; "
            "correct the node's label, or declare the kind `simulated: true`"
        )
