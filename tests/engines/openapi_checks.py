"""What schemathesis checks of every answer beside its own checks, and how its cases come further than the door.

It loads this file by itself (SCHEMATHESIS_HOOKS).
"""

from typing import Any

import schemathesis

_ERRORS_FROM = 400
_FAULT = 500
_MODEL = "auto"
_REGION = "local"
_ONE_IN = 4


@schemathesis.hook
def map_body(ctx, body: Any) -> Any:
    """Most requests ask for a model that is there, which no made-up name is."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % _ONE_IN:
        return {**body, "model": _MODEL}
    return body


@schemathesis.hook
def map_headers(ctx, headers: Any) -> Any:
    """Most requests are pinned to a region that is there."""
    region = (headers or {}).get("X-Region")
    if isinstance(region, str) and len(region) % _ONE_IN:
        return {**headers, "X-Region": _REGION}
    return headers


@schemathesis.check
def no_fault(ctx, response, case) -> None:
    """A fault of the mesh is 500; 502 to 504 have other causes, and say so."""
    if response.status_code == _FAULT:
        raise AssertionError("the mesh has a fault here")


@schemathesis.check
def error_envelope(ctx, response, case) -> None:
    """Every error names itself and its request, in the body and where the SDKs look."""
    if response.status_code < _ERRORS_FROM or case.method == "HEAD":
        return
    error = response.json()["error"]
    wrong = [name for name in ("message", "type", "code", "request_id") if not error.get(name)]
    if wrong:
        raise AssertionError(f"the error has no {', '.join(wrong)}")
    ids = response.headers.get("x-request-id")
    if ids != [error["request_id"]]:
        raise AssertionError(f"the error's request_id is {error['request_id']}, the header's {ids}")
