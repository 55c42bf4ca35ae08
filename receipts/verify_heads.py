"""An account's heads: against each other, and against the receipts that they name."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from receipts.document import AccountHead
from receipts.verify_link import ChainFault, Link, Place

# Each new one is compared with all before it, and all are remembered.
_MAX_HEADS: Final = 1024
_NS_PER_S: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenHead:
    """A verified head, and where it was found.

    ``is_of_selection`` marks one that came with some of the receipts between its ends, not all.
    """

    head: AccountHead
    place: Place
    is_of_selection: bool

    def named(self) -> Iterator[tuple[int, str]]:
        """The receipts that it names: ``seq`` and hash of the first and the last."""
        yield self.head.first_seq, self.head.first_sha256
        yield self.head.last_seq, self.head.last_sha256


class AccountHeads:
    """The heads that were given of one account."""

    def __init__(self) -> None:
        self._given: list[GivenHead] = []
        self._named: dict[int, tuple[str, Place]] = {}

    def __iter__(self) -> Iterator[GivenHead]:
        return iter(self._given)

    def add(self, given: GivenHead) -> Iterator[ChainFault]:
        """Take in a head; give what it contradicts among those before it."""
        if len(self._given) == _MAX_HEADS:
            fault = f"more than {_MAX_HEADS} heads of account {given.head.account}: this one was not compared"
            yield ChainFault(place=given.place, fault=fault)
            return
        for other in self._given:
            fault_of_both = _contradiction(other, given)
            if fault_of_both is not None:
                yield ChainFault(place=given.place, fault=fault_of_both)
                break
        self._given.append(given)
        for seq, sha256 in given.named():
            self._named.setdefault(seq, (sha256, given.place))

    def fault_of(self, link: Link) -> ChainFault | None:
        """What is wrong where a head names this receipt by another hash."""
        named = self._named.get(link.seq)
        if named is None or named[0] == link.sha256:
            return None
        return ChainFault(
            place=named[1], fault=f"receipt {link.seq} in {link.place} is not the one that the head names"
        )

    def newest(self) -> AccountHead | None:
        """The head with the latest time, selections' apart; None when there is none."""
        heads = [each.head for each in self._given if not each.is_of_selection]
        return max(heads, key=lambda head: (head.as_of_unix_ns, head.last_seq), default=None)


def shown_time(unix_ns: int) -> str:
    """A moment for people: RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(unix_ns // _NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _contradiction(one: GivenHead, other: GivenHead) -> str | None:
    """What two heads of one account can't both say: chains only grow, and each place has one receipt."""
    names = dict(one.named())
    for seq, sha256 in other.named():
        if names.get(seq, sha256) != sha256:
            return f"it names another receipt {seq} than the head in {one.place}"
    earlier, later = sorted((one.head, other.head), key=lambda head: head.as_of_unix_ns)
    if earlier.as_of_unix_ns < later.as_of_unix_ns and later.last_seq < earlier.last_seq:
        return (
            f"it contradicts the head in {one.place}: the chain cannot end at receipt {earlier.last_seq} "
            f"as of {shown_time(earlier.as_of_unix_ns)} and at receipt {later.last_seq} later, "
            f"as of {shown_time(later.as_of_unix_ns)}"
        )
    return None
