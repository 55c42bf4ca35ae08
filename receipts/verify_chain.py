"""Accounts' chains over all that was given to verify: gaps, forks, repetitions, and what account heads promise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from receipts.document import AccountHead

# Past so many pieces of one chain, gaps between them are reported without waiting for a file that might fill them:
# memory stays bounded whatever is given.
_MAX_PIECES: Final = 1024
# Past so many receipts that failed by themselves, the gaps that they leave are reported too.
_MAX_FAILED: Final = 65_536


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


@dataclass(slots=True)
class _Piece:
    """Receipts without a gap between them."""

    first: Link
    last: Link


@dataclass(slots=True)
class _Chain:
    """What was given of one account. ``failed`` are places of receipts that failed by themselves: reported once."""

    pieces: list[_Piece] = field(default_factory=list)
    current: _Piece | None = None
    current_file: str | None = None
    failed: set[int] = field(default_factory=set)
    heads: list[tuple[AccountHead, Place]] = field(default_factory=list)


class AccountChains:
    """Collects links as they come and joins them at the end; memory grows with accounts and gaps, not receipts.

    The lines of one file must ascend within each account; files may be given in any order.
    """

    def __init__(self) -> None:
        self._chains: dict[str, _Chain] = {}
        self._failed_count = 0

    def add(self, account: str, link: Link) -> Sequence[ChainFault]:
        """Take in a verified receipt; give the faults that are certain already, the link's own first."""
        chain = self._chains.setdefault(account, _Chain())
        if chain.current is None or chain.current_file != link.place.file:
            return self._begin_piece(account, chain, link)
        last = chain.current.last
        if link.seq > last.seq + 1:
            return self._begin_piece(account, chain, link)
        fault = _fault_after(last, link)
        if link.seq == last.seq + 1:
            chain.current.last = link
        else:
            # It was given, only not here: the gap that it left is this fault and no other.
            chain.failed.add(link.seq)
        return () if fault is None else (ChainFault(place=link.place, fault=fault),)

    def add_failed(self, account: str, seq: int) -> None:
        """Note the place that a receipt claims which failed by itself, so that it is not reported as missing too."""
        if self._failed_count < _MAX_FAILED:
            self._failed_count += 1
            self._chains.setdefault(account, _Chain()).failed.add(seq)

    def add_head(self, head: AccountHead, place: Place) -> None:
        """Take in a verified account head."""
        self._chains.setdefault(head.account, _Chain()).heads.append((head, place))

    def finish(self) -> Iterator[ChainFault]:
        """Join the pieces of every account; give what is wrong between them and against the heads."""
        for account, chain in self._chains.items():
            yield from _join(account, chain)
            for head, place in chain.heads:
                fault = _head_fault(head, chain)
                if fault is not None:
                    yield ChainFault(place=place, fault=fault)

    def _begin_piece(self, account: str, chain: _Chain, link: Link) -> Sequence[ChainFault]:
        chain.current = _Piece(first=link, last=link)
        chain.current_file = link.place.file
        chain.pieces.append(chain.current)
        if len(chain.pieces) <= _MAX_PIECES:
            return ()
        faults = tuple(_join(account, chain))
        chain.failed.clear()
        return faults


def _fault_after(last: Link, link: Link) -> str | None:
    """What is wrong with ``link`` where ``last`` came before it, and no later one."""
    if link.seq == last.seq + 1:
        if link.prev_sha256 == last.sha256:
            return None
        return f"its prev_sha256 is not the hash of receipt {last.seq} ({last.place})"
    if link.seq < last.seq:
        return f"seq {link.seq} comes after seq {last.seq} of its account: out of order or given twice"
    if link.sha256 == last.sha256:
        return f"seq {link.seq} of its account is given twice, here and in {last.place}"
    return f"a different receipt with seq {link.seq} of its account is in {last.place}"


def _join(account: str, chain: _Chain) -> Iterator[ChainFault]:
    """Make one piece of all, in order of seq; it may have gaps, which are reported here."""
    if not chain.pieces:
        return
    joined, *others = sorted(chain.pieces, key=lambda piece: piece.first.seq)
    for piece in others:
        fault = _fault_between(account, joined, piece, chain.failed)
        if fault is not None:
            yield ChainFault(place=piece.first.place, fault=fault)
        if piece.last.seq > joined.last.seq:
            joined.last = piece.last
    chain.pieces = [joined]
    chain.current = None


def _fault_between(account: str, before: _Piece, after: _Piece, failed: set[int]) -> str | None:
    link = after.first
    if link.seq > before.last.seq + 1:
        missing = _missing(account, before.last.seq + 1, link.seq - 1, failed)
        return f"{missing} before seq {link.seq}" if missing else None
    if before.first.seq == link.seq != before.last.seq:
        return _fault_after(before.first, link)
    if link.seq < before.last.seq:
        span = f"receipts {before.first.seq} to {before.last.seq} of account {account}"
        return f"seq {link.seq} is given twice: {span} are in {before.first.place} and after"
    return _fault_after(before.last, link)


def _head_fault(head: AccountHead, chain: _Chain) -> str | None:
    if not chain.pieces:
        return _missing(head.account, head.first_seq, head.last_seq, chain.failed)
    first, last = chain.pieces[0].first, chain.pieces[0].last
    missing = _missing(head.account, head.first_seq, min(first.seq - 1, head.last_seq), chain.failed)
    missing = missing or _missing(head.account, max(last.seq + 1, head.first_seq), head.last_seq, chain.failed)
    if missing:
        return missing
    for link, seq, sha256 in ((first, head.first_seq, head.first_sha256), (last, head.last_seq, head.last_sha256)):
        if link.seq == seq and link.sha256 != sha256:
            return f"receipt {seq} of account {head.account} in {link.place} is not the one that the head names"
    return None


def _missing(account: str, first: int, last: int, failed: set[int]) -> str | None:
    """In words, unless none is missing or all of them are there and failed by themselves."""
    count = last - first + 1
    if count <= 0 or (count <= len(failed) and all(seq in failed for seq in range(first, last + 1))):
        return None
    if count == 1:
        return f"receipt {first} of account {account} is missing"
    return f"receipts {first} to {last} of account {account} are missing"
