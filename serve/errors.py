"""What can go wrong in the serving room.

ServeError
├── WeightsUnavailable   a model's weights cannot be made loadable
├── EngineStartFailed    the engine died before it was ready; the message is the engine's own reason
├── EngineBroke          the engine failed while it answered
├── NotBooked            a request whose energy or receipt could not be booked; not the engine's fault
├── AttemptFailed        a replica died, hung or could not be reached; another may be tried
└── RequestRefused       the client's request is wrong or cannot be served; becomes OpenAI's error envelope
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


class NotBooked(ServeError):
    """The meter or the ledger could not take a request in, or its end; what it ran is booked as soon as they can."""


class RequestRefused(ServeError):
    """An answer other than 200, for the client.

    ``message`` is shown as it is, so it must never quote a prompt. ``retry_after_s`` is when it may be worth another
    try, None where nothing suggests it.
    """

    def __init__(
        self, status: HTTPStatus, message: str, param: str | None = None, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, message, param)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class AttemptFailed(ServeError):
    """A replica died, hung or could not be reached; ``outcome`` is the word for it on the receipt.

    ``may_be_charged``: it may have been settled as one that ran, and its receipt still come.
    """

    def __init__(self, outcome: str, message: str, *, may_be_charged: bool = False) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.may_be_charged = may_be_charged
