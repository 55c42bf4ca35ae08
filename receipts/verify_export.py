"""One export archive: do its head and its receipts belong to its manifest, and a selection's receipts together?"""

from collections.abc import Iterator

from receipts.document import AccountHead, Receipt
from receipts.export_manifest import ExportManifest
from receipts.moments import rfc3339, rfc3339_to_seconds
from receipts.verify_chain import Link, Piece, Place, fault_between


class ExportCheck:
    """What one export must be by its own account.

    The manifest is not signed. It can only add demands, but for one: of a selection by tag nobody can say whether it
    is whole, so there may be gaps, and that is said. ``selected`` is from where to where its receipts reach.
    """

    def __init__(self, manifest: ExportManifest, place: Place) -> None:
        self._manifest = manifest
        self.place = place
        self.selected: Piece | None = None
        self._head: AccountHead | None = None
        self._count = 0
        self._last_seq = 0

    @property
    def account(self) -> str:
        """Whose receipts it says it holds."""
        return self._manifest.account

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
        self._count += 1
        if self.selected is None:
            self.selected = Piece(first=link, last=link)
            return None
        last, self.selected.last = self.selected.last, link
        return None if link.seq > last.seq + 1 else fault_between(last, link)

    def fault_of_all(self) -> str | None:
        """What only the end of the archive shows."""
        return "the export holds no valid account head: its ends were not checked" if self._head is None else None

    def notes(self) -> Iterator[str]:
        """What has to be known beside the findings."""
        manifest, head = self._manifest, self._head
        if self.is_selection:
            count = "1 receipt" if self._count == 1 else f"{self._count} receipts"
            span = "" if head is None else f" among {head.first_seq} to {head.last_seq}"
            end = "" if head is None else f", where its chain ended as of {rfc3339_to_seconds(head.as_of_unix_ns)}"
            yield (
                f"account {manifest.account}: {count} with tag {manifest.selection.customer_tag!r}{span}{end}; "
                "whether these are all with that tag cannot be checked"
            )
        since_unix_ns = manifest.selection.since_unix_ns
        if since_unix_ns is not None and head is not None and head.first_seq > 1:
            yield (
                f"account {manifest.account}: that all before receipt {head.first_seq} ended before "
                f"{rfc3339_to_seconds(since_unix_ns)} is the export's own word"
            )


def _fault_of_first(receipt: Receipt, since_unix_ns: int) -> str | None:
    end_unix_ns = receipt.execution.end_unix_ns
    if end_unix_ns >= since_unix_ns:
        return None
    return (
        f"the export says that it begins at {rfc3339(since_unix_ns)}, but its first receipt ended before, "
        f"at {rfc3339(end_unix_ns)}"
    )
