"""What can go wrong while receipts are signed.

ReceiptsError
├── FrostError                a participant broke the protocol; names the culprits (receipts.frost.errors)
└── SigningError              a step that cannot be done; the message says why and what to do
    ├── PolicyViolation       a signer will not sign this message, whoever asks
    ├── ShareUnusable         a signer cannot use its key share: secret, file or group is wrong
    ├── SignerUnavailable     a signer does not answer; the coordinator takes another
    ├── MalformedAnswer       a signer answers with what no honest one does; the coordinator excludes it
    ├── QuorumUnavailable     fewer signers than the threshold; receipts stay pending, nothing is lost
    └── HeadRefused           enough signers answer, but too few sign this account head
"""

from receipts.errors import ReceiptsError


class SigningError(ReceiptsError):
    """Root of the signing errors."""


class PolicyViolation(SigningError):
    """A message that no honest signer signs; the text says which rule it breaks."""


class ShareUnusable(SigningError):
    """A signer's files cannot be used: missing or wrong secret, another group's share, a damaged file."""


class SignerUnavailable(SigningError):
    """A signer is dead, restarting, or silent past its deadline."""


class MalformedAnswer(SigningError):
    """What a signer answered is not of the form that every honest signer's answer has."""


class HeadRefused(SigningError):
    """Too few signers vouch for an account head; the text is each one's reason, which need not pass by itself."""


class QuorumUnavailable(SigningError):
    """Fewer signers than the threshold are able to sign; try again later with the same messages."""
