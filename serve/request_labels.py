"""What a client's headers say of a request beside its body: for its receipt, its budgets, and to run it only once."""

import hashlib
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

from starlette.datastructures import Headers

from serve.errors import RequestRefused

TAG_HEADER: Final = "X-Customer-Tag"
WORKLOAD_HEADER: Final = "X-Workload"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"

_TAG: Final = re.compile(r"[ -~]{1,128}")
_WORKLOAD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLabels:
    """``customer_tag`` and ``workload`` go on the receipt; of the idempotency key only the hash (64 hex digits) is
    kept. None where a header wasn't sent.
    """

    customer_tag: str | None
    workload: str | None
    idempotency_sha256: str | None

    @classmethod
    def of(cls, headers: Headers) -> Self:
        """From the request's headers.

        Raises:
            RequestRefused: 400, naming a header that is malformed or was sent twice.
        """
        key = _only(headers, IDEMPOTENCY_HEADER, _IDEMPOTENCY_KEY, "1 to 255 visible ASCII characters without spaces")
        return cls(
            customer_tag=_only(headers, TAG_HEADER, _TAG, "1 to 128 visible ASCII characters"),
            workload=_only(
                headers,
                WORKLOAD_HEADER,
                _WORKLOAD,
                "1 to 128 letters, digits and . _ : @ / - and begin with a letter or digit",
            ),
            idempotency_sha256=None if key is None else hashlib.sha256(key.encode()).hexdigest(),
        )


def _only(headers: Headers, name: str, form: re.Pattern[str], must_be: str) -> str | None:
    values = headers.getlist(name)
    if len(values) > 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"{name} was sent {len(values)} times; send one", name)
    if values and form.fullmatch(values[0]) is None:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"{name} must be {must_be}", name)
    return values[0] if values else None
