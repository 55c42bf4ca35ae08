"""Accounts' chains over all that was given to verify: gaps, forks, repetitions, and what account heads promise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from receipts.document import AccountHead
from receipts.verify_heads import AccountHeads, GivenHead, shown_time
from receipts.verify_link import ChainFault, Link, fault_between

# Past so many pieces of one chain, gaps between them are reported without waiting for a file that might fill them:
# memory stays bounded whatever is given.
_MAX_PIECES: Final = 1024
# Past so many receipts that failed by themselves, the gaps that they leave are reported too.
_MAX_FAILED: Final = 65_536


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
    heads: AccountHeads = field(default_factory=AccountHeads)


class AccountChains:
    """Collects links as they come and joins them at the end; memory grows with accounts and gaps, not receipts.

    The lines of one file must ascend within each account; files may be given in any order.
    """

    def __init__(self) -> None:
        self._chains: dict[str, _Chain] = {}
        self._failed_count = 0

    def add(self, account: str, link: Link) -> Sequence[ChainFault]:
        """Take in a verified receipt; give the faults that are certain already, of the link itself one at most."""
        chain = self._chains.setdefault(account, _Chain())
        named = chain.heads.fault_of(link)
        faults = self._append(account, chain, link)
        return faults if named is None else (*faults, named)

    def _append(self, account: str, chain: _Chain, link: Link) -> Sequence[ChainFault]:
        if chain.current is None or chain.current_file != link.place.file:
            return self._begin_piece(account, chain, link)
        last = chain.current.last
        if link.seq > last.seq + 1:
            return self._begin_piece(account, chain, link)
        fault = fault_between(last, link)
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

    def add_head(self, given: GivenHead) -> Iterator[ChainFault]:
        """Take in a verified account head; give what is certain already."""
        chain = self._chains.setdefault(given.head.account, _Chain())
        yield from chain.heads.add(given)
        for seq in dict(given.named()):
            for piece in chain.pieces:
                yield from _compare(given, seq, piece, chain.heads)

    def fault_of_named(self, account: str, link: Link) -> ChainFault | None:
        """What is wrong with a receipt that stands alone, where a head of its account names it."""
        return self._chains.setdefault(account, _Chain()).heads.fault_of(link)

    def finish(self) -> Iterator[ChainFault]:
        """Join the pieces of every account; give what is wrong between them and against the heads."""
        for account, chain in self._chains.items():
            yield from _join(account, chain)
            for given in chain.heads:
                fault = None if given.is_of_selection else _missing_under(given.head, chain)
                if fault is not None:
                    yield ChainFault(place=given.place, fault=fault)

    def notes(self) -> Iterator[str]:
        """A line for each account, once all is joined: how far its receipts reach, and what of that was checked."""
        for account, chain in self._chains.items():
            head = chain.heads.newest()
            if chain.pieces:
                yield f"account {account}: {_reach(chain.pieces[0], head)}"
            elif head is not None:
                yield f"account {account}: no receipt; {_end_of(head)}"

    def _begin_piece(self, account: str, chain: _Chain, link: Link) -> Sequence[ChainFault]:
        chain.current = _Piece(first=link, last=link)
        chain.current_file = link.place.file
        chain.pieces.append(chain.current)
        if len(chain.pieces) <= _MAX_PIECES:
            return ()
        faults = tuple(_join(account, chain))
        chain.failed.clear()
        return faults


def _join(account: str, chain: _Chain) -> Iterator[ChainFault]:
    """Make one piece of all, in order of seq; it may have gaps, which are reported here."""
    if not chain.pieces:
        return
    joined, *others = sorted(chain.pieces, key=lambda piece: piece.first.seq)
    for piece in others:
        fault = _fault_of_pieces(account, joined, piece, chain.failed)
        if fault is not None:
            yield ChainFault(place=piece.first.place, fault=fault)
        if piece.last.seq > joined.last.seq:
            joined.last = piece.last
    chain.pieces = [joined]
    chain.current = None


def _fault_of_pieces(account: str, before: _Piece, after: _Piece, failed: set[int]) -> str | None:
    link = after.first
    if link.seq > before.last.seq + 1:
        missing = _missing(account, before.last.seq + 1, link.seq - 1, failed)
        return f"{missing} before seq {link.seq}" if missing else None
    if before.first.seq == link.seq != before.last.seq:
        return fault_between(before.first, link)
    if link.seq < before.last.seq:
        span = f"receipts {before.first.seq} to {before.last.seq} of account {account}"
        return f"seq {link.seq} is given twice: {span} are in {before.first.place} and after"
    return fault_between(before.last, link)


def _compare(given: GivenHead, seq: int, piece: _Piece, heads: AccountHeads) -> Iterator[ChainFault]:
    """Compare a head with the receipt that it names, where that was read before it."""
    end = {piece.first.seq: piece.first, piece.last.seq: piece.last}.get(seq)
    if end is not None:
        fault = heads.fault_of(end)
        if fault is not None:
            yield fault
    elif piece.first.seq < seq < piece.last.seq:
        # Of what lies between the ends of a piece, the hashes are gone.
        said = f"it cannot be compared with receipt {seq}, which was read before it: name this file first"
        yield ChainFault(place=given.place, fault=said)


def _missing_under(head: AccountHead, chain: _Chain) -> str | None:
    """Which of the receipts that the head covers are missing at the ends; gaps between them are found elsewhere."""
    if not chain.pieces:
        return _missing(head.account, head.first_seq, head.last_seq, chain.failed)
    first, last = chain.pieces[0].first, chain.pieces[0].last
    missing = _missing(head.account, head.first_seq, min(first.seq - 1, head.last_seq), chain.failed)
    return missing or _missing(head.account, max(last.seq + 1, head.first_seq), head.last_seq, chain.failed)


def _reach(piece: _Piece, head: AccountHead | None) -> str:
    first, last = piece.first.seq, piece.last.seq
    reach = f"receipt {first}" if first == last else f"receipts {first} to {last}"
    if head is None:
        return f"{reach}; ends not checked: no account head was given"
    parts = [reach, _end_of(head)]
    if last > head.last_seq:
        parts.append(f"whether more follow receipt {last} was not checked")
    if first > 1:
        parts.append(f"what came before receipt {first} was not given")
    return "; ".join(parts)


def _end_of(head: AccountHead) -> str:
    return f"its chain ended at receipt {head.last_seq} as of {shown_time(head.as_of_unix_ns)}"


def _missing(account: str, first: int, last: int, failed: set[int]) -> str | None:
    """In words, unless none is missing or all of them are there and failed by themselves."""
    count = last - first + 1
    if count <= 0 or (count <= len(failed) and all(seq in failed for seq in range(first, last + 1))):
        return None
    if count == 1:
        return f"receipt {first} of account {account} is missing"
    return f"receipts {first} to {last} of account {account} are missing"
