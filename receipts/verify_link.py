"""A verified receipt as its account's chain sees it, where it was found, and what can be wrong there."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a document was found."""

    file: str
    line: int | None
    receipt_id: str | None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A verified receipt in its account's chain; the hashes are of signed bytes, in hex."""

    seq: int
    prev_sha256: str | None
    sha256: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFault:
    """What is wrong, and with which document."""

    place: Place
    fault: str


def fault_between(last: Link, link: Link) -> str | None:
    """What is wrong with ``link`` where ``last`` came before it, no later one, and nothing is missing between them."""
    if link.seq == last.seq + 1:
        if link.prev_sha256 == last.sha256:
            return None
        return f"its prev_sha256 is not the hash of receipt {last.seq} ({last.place})"
    if link.seq < last.seq:
        return f"seq {link.seq} comes after seq {last.seq} of its account: out of order or given twice"
    if link.sha256 == last.sha256:
        return f"seq {link.seq} of its account is given twice, here and in {last.place}"
    return f"a different receipt with seq {link.seq} of its account is in {last.place}"
