"""What can go wrong in the metering room.

MeteringError
├── CounterUnavailable          this machine doesn't offer the counter; the next method is tried
│   └── CounterPermissionDenied it does, but not to this user; the message says how to grant it
├── CounterLost                 a counter that worked cannot be read now
├── ReplayUnusable              the recording to be replayed cannot be read or is malformed
├── ProcessGone                 no such process to meter
├── UnknownReplica              a request names a replica that nobody registered
├── UnknownRequest              a request that never began here, or was acknowledged long ago
├── RequestAlreadySettled       a request begins again although its answer was complete
├── SettlementBacklogFull       too many settlements wait for the ledger; take no more work
├── SettlementMalformed         bytes that are not a settlement
├── CalibrationRefused          a calibration record is malformed, or for another model or silicon
├── FitFailed                   measured shapes from which no weights can be fitted
├── MeterKeyUnusable            the meter's signing key is damaged, exposed, or cannot be read or made
├── StatementInvalid            a meter's statement that is not signed by its key, or not well formed
├── SocketUnusable              the step socket's path cannot be listened on
├── JournalUnusable             the journal cannot be opened: locked by another meter, or damaged
└── JournalUnwritable           the journal's disk is full or gone
"""


class MeteringError(Exception):
    """Root of this room's errors."""


class CounterUnavailable(MeteringError):
    """The machine doesn't offer this counter; the message is the reason that operators are shown."""


class CounterPermissionDenied(CounterUnavailable):
    """The counter exists but may not be read; the message says how to grant it."""


class CounterLost(MeteringError):
    """A counter that was found cannot be read any more: the device fell off, or its driver is being reloaded."""


class ReplayUnusable(MeteringError):
    """The recording to be replayed cannot be read or is malformed; the message names the file and the line."""


class ProcessGone(MeteringError):
    """The process to be metered doesn't exist."""


class UnknownReplica(MeteringError):
    """The named replica isn't registered with this meter."""


class UnknownRequest(MeteringError):
    """This meter holds neither the open request nor its settlement."""


class RequestAlreadySettled(MeteringError):
    """The request was settled as finished or aborted; only a failed attempt may begin again."""


class SettlementBacklogFull(MeteringError):
    """The ledger hasn't acknowledged for so long that no further request may begin."""


class SettlementMalformed(MeteringError):
    """The bytes are not a settlement of this version."""


class CalibrationRefused(MeteringError):
    """A calibration record is malformed, or is for another model or silicon; the message names it and why."""


class FitFailed(MeteringError):
    """No weights can be fitted to these measurements; the message says why."""


class MeterKeyUnusable(MeteringError):
    """The file of the meter's signing key cannot be used; the message names it and says what to do."""


class StatementInvalid(MeteringError):
    """Not a statement of that meter: unsigned, malformed, or contradicting itself; the message says which."""


class SocketUnusable(MeteringError):
    """The step socket cannot be listened on; the message names the path and why."""


class JournalUnusable(MeteringError):
    """The journal cannot be opened; the message names the file, and the line where one is damaged."""


class JournalUnwritable(MeteringError):
    """A journal record could not be written; the journal is as it was before."""
