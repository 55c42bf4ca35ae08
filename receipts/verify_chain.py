"""Accounts' chains over all that was given to verify: gaps, forks, repetitions, and what account heads promise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from receipts.document import AccountHead
from receipts.moments import rfc3339_to_seconds

# Gaps may be filled by a file that comes later, so pieces of a chain wait until the end; but memory stays bounded
# whatever is given: these take 40 to 70 MB. Of receipts in any order, about a quarter are pieces at the worst.
_MAX_PIECES: Final = 2**16
# So many are left when pieces that fit were joined, or there is no room for more without joining all the time.
_MAX_JOINED: Final = _MAX_PIECES // 2
# Past so many receipts that failed by themselves, the gaps that they leave are reported too.
_MAX_FAILED: Final = 65_536
# Each new one is compared with all before it, and all are remembered.
_MAX_HEADS: Final = 1024


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

    def follows(self, last: "Link") -> bool:
        """Whether it is the very next receipt after ``last``."""
        return self.seq == last.seq + 1 and self.prev_sha256 == last.sha256


@dataclass(slots=True)
class Piece:
    """Receipts of one account from ``first`` to ``last``; of a chain without a gap, of a selection with its gaps."""

    first: Link
    last: Link

    def overlaps(self, other: "Piece") -> bool:
        """Whether both reach over the same place of the chain."""
        return self.first.seq <= other.last.seq and other.first.seq <= self.last.seq


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFault:
    """What is wrong, and with which document. ``repeats`` are receipts behind that one with the same fault."""

    place: Place
    fault: str
    repeats: int = 0


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
            f"as of {rfc3339_to_seconds(earlier.as_of_unix_ns)} and at receipt {later.last_seq} later, "
            f"as of {rfc3339_to_seconds(later.as_of_unix_ns)}"
        )
    return None


@dataclass(slots=True)
class _Chain:
    """What was given of one account. ``failed`` are places of receipts that failed by themselves: reported once.

    ``selections`` are those of exports by tag, and where their manifests are. ``is_given_up`` when there were too
    many pieces.
    """

    pieces: list[Piece] = field(default_factory=list)
    current: Piece | None = None
    current_file: str | None = None
    selections: list[tuple[Place, Piece]] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    heads: AccountHeads = field(default_factory=AccountHeads)
    is_given_up: bool = False


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
        if chain.is_given_up:
            return ()
        if chain.current is None or chain.current_file != link.place.file:
            return _begin_piece(account, chain, link)
        last = chain.current.last
        if link.follows(last):
            chain.current.last = link
            return ()
        if link.seq > last.seq:
            return _begin_piece(account, chain, link)
        # It was given, only not here: the gap that it left is this fault and no other.
        self.add_failed(account, link.seq)
        fault = fault_between(last, link)
        return () if fault is None else (ChainFault(place=link.place, fault=fault),)

    def add_failed(self, account: str, seq: int) -> None:
        """Note the place that a receipt claims which failed by itself, so that it is not reported as missing too."""
        if self._failed_count < _MAX_FAILED:
            self._failed_count += 1
            self._chains.setdefault(account, _Chain()).failed.add(seq)

    def add_selection(self, account: str, place: Place, selected: Piece) -> None:
        """Note from where to where the receipts of an export by tag reach, whose manifest is at ``place``."""
        self._chains.setdefault(account, _Chain()).selections.append((place, selected))

    def add_head(self, given: GivenHead) -> Iterator[ChainFault]:
        """Take in a verified account head; give what is certain already."""
        chain = self._chains.setdefault(given.head.account, _Chain())
        yield from chain.heads.add(given)
        for seq in dict(given.named()):
            for piece in (*chain.pieces, *(selected for _, selected in chain.selections)):
                yield from _compare(given, seq, piece, chain.heads)

    def fault_of_named(self, account: str, link: Link) -> ChainFault | None:
        """What is wrong with a receipt that stands alone, where a head of its account names it."""
        return self._chains.setdefault(account, _Chain()).heads.fault_of(link)

    def finish(self) -> Iterator[ChainFault]:
        """Join the pieces of every account; give what is wrong between them and against the heads."""
        for account, chain in self._chains.items():
            if chain.is_given_up:
                continue
            yield from _not_compared(chain)
            yield from _join(account, chain)
            for given in chain.heads:
                fault = None if given.is_of_selection else _missing_under(given.head, chain)
                if fault is not None:
                    yield ChainFault(place=given.place, fault=fault)

    def notes(self) -> Iterator[str]:
        """A line for each account, once all is joined: how far its receipts reach, and what of that was checked."""
        for account, chain in self._chains.items():
            head = chain.heads.newest()
            if chain.is_given_up:
                yield f"account {account}: its chain was not checked"
            elif chain.pieces:
                yield f"account {account}: {_reach(chain.pieces[0], head)}"
            elif head is not None:
                yield f"account {account}: no receipt; {_end_of(head)}"


def _begin_piece(account: str, chain: _Chain, link: Link) -> Sequence[ChainFault]:
    chain.current = Piece(first=link, last=link)
    chain.current_file = link.place.file
    chain.pieces.append(chain.current)
    if len(chain.pieces) < _MAX_PIECES:
        return ()
    _join_those_that_fit(chain)
    if len(chain.pieces) <= _MAX_JOINED:
        return ()
    chain.is_given_up = True
    chain.pieces, chain.current = [], None
    fault = (
        f"too many gaps so far between the receipts of account {account}, which come in more than {_MAX_JOINED} "
        "pieces: its chain is not checked; give them in the order of seq"
    )
    return (ChainFault(place=replace(link.place, receipt_id=None), fault=fault),)


def _join_those_that_fit(chain: _Chain) -> None:
    """Make one piece of those that follow each other. What doesn't fit is left, and the piece that still grows."""
    joined: list[Piece] = []
    for piece in sorted(chain.pieces, key=lambda each: each.first.seq):
        if piece is not chain.current and joined and piece.first.follows(joined[-1].last):
            joined[-1] = Piece(first=joined[-1].first, last=piece.last)
        elif piece is not chain.current:
            joined.append(piece)
    assert chain.current is not None, "it has just begun"
    chain.pieces = [*joined, chain.current]


def _not_compared(chain: _Chain) -> Iterator[ChainFault]:
    """A finding for each selection that overlaps something else: with gaps between, nobody can tell a fork from a
    receipt that was given twice.
    """
    others = list(chain.pieces)
    for place, selected in chain.selections:
        other = next((each for each in others if each.overlaps(selected)), None)
        if other is not None:
            fault = (
                f"its receipts {selected.first.seq} to {selected.last.seq} cannot be compared with those in "
                f"{other.first.place.file}, which overlap them; verify them one at a time"
            )
            yield ChainFault(place=place, fault=fault)
        others.append(selected)


def _join(account: str, chain: _Chain) -> Iterator[ChainFault]:
    """Make one piece of all, in order of seq; it may have gaps, which are reported here."""
    if not chain.pieces:
        return
    first, *others = sorted(chain.pieces, key=lambda piece: piece.first.seq)
    before = first
    for piece in others:
        fault = _fault_of_pieces(account, before, piece, chain.failed)
        if fault is not None:
            yield fault
        if piece.last.seq > before.last.seq:
            before = piece
    chain.pieces = [Piece(first=first.first, last=before.last)]


def _fault_of_pieces(account: str, before: Piece, after: Piece, failed: set[int]) -> ChainFault | None:
    """What is wrong with ``after``, where no piece between the two begins, and none before it reaches further."""
    link = after.first
    repeats = max(0, min(before.last.seq, after.last.seq) - link.seq)
    fault: str | None
    if link.seq > before.last.seq + 1:
        missing = _missing(account, before.last.seq + 1, link.seq - 1, failed)
        fault = f"{missing} before seq {link.seq}" if missing else None
    elif link.seq >= before.last.seq:
        fault = fault_between(before.last, link)
    elif link.seq == before.first.seq and link.sha256 != before.first.sha256:
        fault = fault_between(before.first, link)
    else:
        receipts = _receipts(account, link.seq, link.seq + repeats)
        fault = (
            f"given twice: {receipts}, here and after {before.first.place}; of exports that overlap give the newest "
            "only"
        )
    return None if fault is None else ChainFault(place=link.place, fault=fault, repeats=repeats)


def _compare(given: GivenHead, seq: int, piece: Piece, heads: AccountHeads) -> Iterator[ChainFault]:
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


def _reach(piece: Piece, head: AccountHead | None) -> str:
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
    return f"its chain ended at receipt {head.last_seq} as of {rfc3339_to_seconds(head.as_of_unix_ns)}"


def _missing(account: str, first: int, last: int, failed: set[int]) -> str | None:
    """In words, unless none is missing or all of them are there and failed by themselves."""
    count = last - first + 1
    if count <= 0 or (count <= len(failed) and all(seq in failed for seq in range(first, last + 1))):
        return None
    return f"{_receipts(account, first, last)} {'is' if count == 1 else 'are'} missing"


def _receipts(account: str, first: int, last: int) -> str:
    return (
        f"receipt {first} of account {account}" if first == last else f"receipts {first} to {last} of account {account}"
    )
