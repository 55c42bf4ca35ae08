"""One export archive: do its head and its receipts belong to its manifest, and a selection's receipts together?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from receipts.document import AccountHead, Receipt
from receipts.export_manifest import ExportManifest
from receipts.verify_heads import shown_time
from receipts.verify_link import ChainFault, Link, Place, fault_between


class ExportCheck:
    """What one export must be by its own account.

    The manifest is not signed. It can only add demands, but for one: of a selection by tag nobody can say whether it
    is whole, so there may be gaps, and that is said.
    """

    def __init__(self, manifest: ExportManifest, place: Place) -> None:
        self._manifest = manifest
        self._place = place
        self._head: AccountHead | None = None
        self._first: Link | None = None
        self._last: Link | None = None
        self._count = 0
        self._last_seq = 0

    @property
    def is_selection(self) -> bool:
        """Whether it holds some of the receipts between its head's ends, and not all."""
        return self._manifest.selection.customer_tag is not None

    def add_head(self, head: AccountHead) -> str | None:
        """Take in a verified head; give what is wrong with it here."""
        manifest = self._manifest
        if head.account != manifest.account:
            return f"it is account {head.account}'s, but this is an export of account {manifest.account}"
        if self._head is not None:
            return "the export holds a second account head"
        if self._last_seq:
            return "an export's account head comes before its receipts"
        self._head = head
        if manifest.selection.since_unix_ns is None and head.first_seq > 1:
            return f"the export says that it begins with the account's first receipt, but begins at {head.first_seq}"
        return None

    def fault_of(self, receipt: Receipt) -> str | None:
        """What is wrong with a verified receipt here."""
        manifest, head, seq = self._manifest, self._head, receipt.chain.seq
        wanted = manifest.selection
        if receipt.workload.account != manifest.account:
            return f"it is account {receipt.workload.account}'s, but this is an export of account {manifest.account}"
        if seq <= self._last_seq:
            return f"seq {seq} comes after seq {self._last_seq} of its account: out of order or given twice"
        self._last_seq = seq
        if head is not None and not head.first_seq <= seq <= head.last_seq:
            return f"seq {seq} is outside of the export's account head, {head.first_seq} to {head.last_seq}"
        if wanted.customer_tag is not None and receipt.workload.customer_tag != wanted.customer_tag:
            return "it has not the customer tag that the export says it selects"
        if head is not None and wanted.since_unix_ns is not None and seq == head.first_seq:
            return _fault_of_first(receipt, wanted.since_unix_ns)
        return None

    def add_selected(self, link: Link) -> str | None:
        """Take in the next receipt of a selection; gaps are the selection's own."""
        last, self._last = self._last, link
        self._first = self._first or link
        self._count += 1
        if last is None or link.seq > last.seq + 1:
            return None
        return fault_between(last, link)

    def finish(self, others: Iterable["SelectedSpan"]) -> Iterator[ChainFault]:
        """What only the end of the archive shows; ``others`` are the selections that were read before."""
        if self._head is None:
            fault = "the export holds no valid account head: its ends were not checked"
            yield ChainFault(place=self._place, fault=fault)
        mine = self.span()
        for other in others:
            if mine is not None and mine.overlaps(other):
                fault = f"its receipts and those in {other.file} overlap: some are given twice"
                yield ChainFault(place=self._place, fault=fault)

    def span(self) -> "SelectedSpan | None":
        """Where a selection's receipts lie; None for another export, or when there is none."""
        manifest, first, last = self._manifest, self._first, self._last
        tag = manifest.selection.customer_tag
        if tag is None or first is None or last is None:
            return None
        return SelectedSpan(
            account=manifest.account, customer_tag=tag, first_seq=first.seq, last_seq=last.seq, file=self._place.file
        )

    def notes(self) -> Iterator[str]:
        """What has to be known beside the findings."""
        manifest, head = self._manifest, self._head
        if self.is_selection:
            count = "1 receipt" if self._count == 1 else f"{self._count} receipts"
            span = "" if head is None else f" among {head.first_seq} to {head.last_seq}"
            end = "" if head is None else f", where its chain ended as of {shown_time(head.as_of_unix_ns)}"
            yield (
                f"account {manifest.account}: {count} with tag {manifest.selection.customer_tag}{span}{end}; "
                "whether these are all with that tag cannot be checked"
            )
        since_unix_ns = manifest.selection.since_unix_ns
        if since_unix_ns is not None and head is not None and head.first_seq > 1:
            yield (
                f"account {manifest.account}: that all before receipt {head.first_seq} ended before "
                f"{shown_time(since_unix_ns)} is the export's own word"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedSpan:
    """From which to which ``seq`` a selection's receipts lie, both in."""

    account: str
    customer_tag: str
    first_seq: int
    last_seq: int
    file: str

    def overlaps(self, other: "SelectedSpan") -> bool:
        """Whether both select the same, and their receipts lie across each other."""
        is_same = (self.account, self.customer_tag) == (other.account, other.customer_tag)
        return is_same and self.first_seq <= other.last_seq and other.first_seq <= self.last_seq


def _fault_of_first(receipt: Receipt, since_unix_ns: int) -> str | None:
    end_unix_ns = receipt.execution.end_unix_ns
    if end_unix_ns >= since_unix_ns:
        return None
    return (
        f"the export says that it begins at {shown_time(since_unix_ns)}, but its first receipt ended before, "
        f"at {shown_time(end_unix_ns)}"
    )
