"""What can go wrong in the receipts room.

ReceiptsError
├── InvalidDocument       a receipt, or what claims to be one, that is not as it must be; the message says where
├── CannotVerify          verification could not run: an unreadable file, a public key that is none
├── InvalidMoment         a text that should name a moment and does not
├── DamagedInput          a file to verify that is cut short or damaged (receipts.verify_input)
├── SettlementRefused     one settlement that cannot become a receipt; the others of its batch can
├── LedgerError
│   ├── LedgerInUse       another process is the ledger's writer
│   ├── ReadersBusy       too many want to read at once: try again in a moment
│   ├── LedgerUnavailable disk full, locked, unreachable: nothing was stored, the same call may be made again
│   └── LedgerUnusable    damaged, another program's, or of a later version: needs a person
│       └── DamagedReceipt   one stored receipt that cannot be read; other accounts' receipts can
├── FrostError            a participant broke the signing protocol (receipts.frost.errors)
└── SigningError          a signing step that cannot be done (receipts.signing_errors)
"""


class ReceiptsError(Exception):
    """Anything that the receipts room refuses or cannot do."""


class InvalidDocument(ReceiptsError):
    """Not strict JSON, not of a known type, figures that disagree, or not signed by the key; the message says which."""


class CannotVerify(ReceiptsError):
    """Verification could not run, which says nothing about any receipt."""


class InvalidMoment(ReceiptsError):
    """A text that names no moment; the message says what would."""


class SettlementRefused(ReceiptsError):
    """A settlement that cannot become a receipt, whenever it is offered; the meter keeps it for a person to see."""

    def __init__(self, request_id: str, reason: str) -> None:
        super().__init__(request_id, reason)
        self.request_id = request_id
        self.reason = reason

    def __str__(self) -> str:
        return f"settlement {self.request_id}: {self.reason}"


class LedgerError(ReceiptsError):
    """The ledger cannot do what it was asked to."""


class LedgerInUse(LedgerError):
    """Another process holds the ledger as its one writer."""


class ReadersBusy(LedgerError):
    """More wait to read the ledger than it lets wait; the same call may be made again in a moment."""


class LedgerUnavailable(LedgerError):
    """The database did not take the call: disk full, locked, unreachable. Nothing was stored; try again later."""


class LedgerUnusable(LedgerError):
    """The database is damaged, another program's, or of a version that this program does not know."""


class DamagedReceipt(LedgerUnusable):
    """A stored receipt that cannot be read, in the chain of ``account``; those of other accounts are not affected."""

    def __init__(self, account: str, seq: object) -> None:
        super().__init__(account, seq)
        self.account = account
        self.seq = seq

    def __str__(self) -> str:
        return (
            f"receipt {self.seq} of account {self.account} is damaged: its row cannot be read; restore the ledger from "
            "a copy, `jc ledger check` says what else is damaged"
        )
