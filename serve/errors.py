"""What can go wrong in the serving room.

ServeError
├── WeightsUnavailable   a model's weights cannot be made loadable
├── EngineStartFailed    the engine died before it was ready; the message is the engine's own reason
├── EngineBroke          the engine failed while it answered
├── NotBooked            a request whose energy or receipt could not be booked; not the engine's fault
├── SeamBroken           a resumed stream contradicts what the client has of the answer
├── AttemptFailed        a replica died, hung or could not be reached; another may be tried
├── PaymentRefused       whoever moves money says no; nothing was moved
├── PaymentUncertain     whoever moves money didn't say whether it did; the same call may be made again
├── WebhookRefused       what claims to come from the payment provider doesn't
└── RequestRefused       the client's request is wrong or cannot be served; becomes its API's error envelope
"""

from http import HTTPStatus


class ServeError(Exception):
    """Root of this room's errors."""


class WeightsUnavailable(ServeError):
    """A model's weights are missing or cannot be converted."""


class EngineStartFailed(ServeError):
    """The engine did not become ready; the message carries its own reason."""


class EngineBroke(ServeError):
    """The engine failed in the middle of a request; the message is its kind of failure, never a prompt."""


class SeamBroken(ServeError):
    """A resumed stream contradicts what was sent; the message says in which member, never a text."""


class NotBooked(ServeError):
    """The meter or the ledger could not take a request in, or its end; what it ran is booked as soon as they can."""


class PaymentRefused(ServeError):
    """The payment provider says no, and has moved nothing; the message is for the customer."""


class PaymentUncertain(ServeError):
    """The payment provider didn't answer, or with a fault of its own: it may have done it, or not."""


class WebhookRefused(ServeError):
    """A webhook that isn't the payment provider's, or says what it can't say."""


class RequestRefused(ServeError):
    """An answer other than 200, for the client.

    ``message`` is shown as it is, so it must never quote a prompt. ``retry_after_s`` is when it may be worth another
    try, None where nothing suggests it. ``receipt_id`` is that of the request which this one repeats.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        param: str | None = None,
        *,
        retry_after_s: int | None = None,
        receipt_id: str | None = None,
    ) -> None:
        super().__init__(status, message, param)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.receipt_id = receipt_id


class AttemptFailed(ServeError):
    """A replica died, hung or could not be reached; ``outcome`` is the word for it on the receipt.

    ``is_charged``: it was settled as one that ran, so no other may run; its receipt is there or comes later.
    ``may_be_charged``: that, or it isn't known. ``energy_microjoules`` is what it drew, None where that isn't known.
    ``is_full``: the pool's queue is, and it took nothing in. ``is_whole``: only the receipt of its answer was missing,
    which the meter and the ledger make.
    """

    def __init__(
        self,
        outcome: str,
        message: str,
        *,
        is_charged: bool = False,
        may_be_charged: bool = False,
        energy_microjoules: int | None = None,
        is_full: bool = False,
        is_whole: bool = False,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.is_charged = is_charged
        self.may_be_charged = may_be_charged or is_charged
        self.energy_microjoules = energy_microjoules
        self.is_full = is_full
        self.is_whole = is_whole

    @property
    def is_pools(self) -> bool:
        """Whether it speaks against the pool: a full one is at work, and one whose answer was whole did its part."""
        return not (self.is_full or self.is_whole)
