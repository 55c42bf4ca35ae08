"""The JSON of the account routes: bodies read strictly, and the parts that their answers have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from receipts.errors import LedgerError, LedgerInUse, LedgerUnavailable, LedgerUnusable, ReadersBusy
from serve.errors import PaymentRefused, PaymentUncertain, RequestRefused
from serve.payments.money import USD_PATTERN, usd_to_picos
from serve.request_body import BodyLimits, check_content, parse_json_object, read_body

MICROJOULES: Final = 10**6
_LIMITS: Final = BodyLimits(most_bytes=64 * 1024, within_s=20.0)
_BUSY_RETRY_AFTER_S: Final = 1
_PROVIDER_RETRY_AFTER_S: Final = 60
_MOST_INPUT: Final = 64

Picos = Annotated[int, Field(description="Pico-USD: a millionth of a millionth of a dollar.")]
Usd = Annotated[str, Field(description="US dollars, exact, such as `12.34`.")]
Rfc3339 = Annotated[str, Field(description="RFC 3339, in UTC.")]


def _some(usd: str) -> str:
    if usd_to_picos(usd) == 0:
        raise ValueError("must be more than nothing")
    return usd


UsdWanted = Annotated[
    str,
    Field(
        pattern=USD_PATTERN,
        description=f"US dollars in a string, such as `25.00`; below {10**6:,}.",
        examples=["25.00"],
    ),
    AfterValidator(_some),
]


class Body(BaseModel):
    """What a client sends: of exactly these types, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Shown(BaseModel):
    """What the mesh answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_Model = TypeVar("_Model", bound=Body)


async def read_body_as(request: Request, kind: type[_Model]) -> _Model:
    """The request's body; none at all is an empty object.

    Raises:
        RequestRefused: 400 for what is no JSON object, 413, 422 naming the member that is wrong.
    """
    check_content(request.headers)
    data = await read_body(request.stream(), request.headers.get("content-length"), _LIMITS)
    try:
        return kind.model_validate(parse_json_object(data or b"{}"))
    except ValidationError as wrong:
        raise _refusal(wrong) from None


def _refusal(wrong: ValidationError) -> RequestRefused:
    fault = wrong.errors(include_input=False, include_url=False)[0]
    member = ".".join(map(str, fault["loc"]))[:_MOST_INPUT]
    if fault["type"] == "extra_forbidden":
        message = f"there is no member {member!r} here; /openapi.json lists those that there are"
    else:
        message = f"{member}: {fault['msg']}"
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, message, member)


def body_of(kind: type[Body]) -> dict[str, Any]:
    """The body, as OpenAPI's operation has it."""
    schema = kind.model_json_schema()
    assert "$defs" not in schema, "a body is flat, so that it stands by itself"
    return {
        "requestBody": {"required": bool(schema.get("required")), "content": {"application/json": {"schema": schema}}}
    }


@contextmanager
def ledgers_word() -> Iterator[None]:
    """What the ledger refuses is the client's fault: 422 in its words. What passes by itself stays a 503."""
    try:
        yield
    except ReadersBusy as error:
        raise RequestRefused(
            HTTPStatus.SERVICE_UNAVAILABLE, _reason(error), retry_after_s=_BUSY_RETRY_AFTER_S
        ) from error
    except (LedgerInUse, LedgerUnavailable, LedgerUnusable):
        raise
    except LedgerError as error:
        raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, _reason(error)) from error


@contextmanager
def providers_word(refused: HTTPStatus = HTTPStatus.UNPROCESSABLE_ENTITY) -> Iterator[None]:
    """What the payment provider refuses is the client's to mend; where it doesn't answer, 502."""
    try:
        yield
    except PaymentRefused as error:
        raise RequestRefused(refused, str(error)) from error
    except PaymentUncertain as error:
        raise RequestRefused(HTTPStatus.BAD_GATEWAY, str(error), retry_after_s=_PROVIDER_RETRY_AFTER_S) from error


def _reason(error: Exception) -> str:
    """What the ledger said; Ray puts its traceback around it."""
    return str(getattr(error, "cause", None) or error)


def joules(microjoules: int) -> float:
    """As JSON's number: exact up to 9 GJ."""
    return microjoules / MICROJOULES
