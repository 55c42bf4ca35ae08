"""What the OpenAPI document says of the requests and answers of models: what the mesh reads and adds itself.

The rest of a body is the engine's, as OpenAI and Anthropic describe it: such objects are open.
"""

from collections.abc import Mapping
from typing import Any, Final

from placement.fleet import MOST_TOKENS
from serve.model_request import MAX_CHOICES
from serve.prompt_list import MOST_PROMPTS
from serve.request_labels import IDEMPOTENCY_HEADER, TAG_HEADER, WORKLOAD_HEADER
from serve.request_pins import REGION_HEADER
from serve.shapes import Shape

_Schema = dict[str, Any]

_TEXT: Final[_Schema] = {"type": "string"}
_NULL_TEXT: Final[_Schema] = {"type": ["string", "null"]}
_NULL_NUMBER: Final[_Schema] = {"type": ["number", "null"]}
_FLAG: Final[_Schema] = {"type": ["boolean", "null"]}
_TOKENS: Final[_Schema] = {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_TOKENS}
_CHOICES: Final[_Schema] = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHOICES}
_TOKEN_IDS: Final[_Schema] = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_OBJECTS: Final[_Schema] = {"type": ["array", "null"], "items": {"type": "object"}}
_MODEL: Final[_Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 256,
    "description": "One of `/v1/models`, or `auto`: the cheapest that is enough.",
}
_STREAM_OPTIONS: Final[_Schema] = {
    "type": ["object", "null"],
    "description": "Only with `stream`.",
    "properties": {"include_usage": _FLAG},
}
_PARTS: Final[_Schema] = {
    "type": "array",
    "items": {"type": "object", "required": ["type"], "properties": {"type": _TEXT, "text": _TEXT}},
}
_CONTENT: Final[_Schema] = {"anyOf": [_TEXT, _PARTS]}


def _object(required: list[str], properties: Mapping[str, _Schema]) -> _Schema:
    return {"type": "object", "required": required, "properties": dict(properties)}


def _messages(content: _Schema, role: _Schema) -> _Schema:
    return {"type": "array", "minItems": 1, "items": _object(["role", "content"], {"role": role, "content": content})}


_PROMPTS: Final[_Schema] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": {"type": "string", "minLength": 1}},
        _TOKEN_IDS,
        {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": _TOKEN_IDS},
    ]
}
_ASKED: Final[Mapping[Shape, _Schema]] = {
    Shape.CHAT: _object(
        ["model", "messages"],
        {
            "model": _MODEL,
            "messages": _messages({"anyOf": [_TEXT, _PARTS, {"type": "null"}]}, _TEXT),
            "stream": _FLAG,
            "stream_options": _STREAM_OPTIONS,
            "n": _CHOICES,
            "max_completion_tokens": _TOKENS,
            "max_tokens": _TOKENS,
            "tools": _OBJECTS,
        },
    ),
    Shape.COMPLETION: _object(
        ["model", "prompt"],
        {
            "model": _MODEL,
            "prompt": _PROMPTS,
            "stream": _FLAG,
            "stream_options": _STREAM_OPTIONS,
            "n": _CHOICES,
            "max_tokens": {**_TOKENS, "default": 16},
            "echo": _FLAG,
        },
    ),
    Shape.EMBEDDING: _object(
        ["model", "input"],
        {
            "model": _MODEL,
            "input": _PROMPTS,
            "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
            "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": 65_536},
        },
    ),
    Shape.MESSAGES: _object(
        ["model", "messages", "max_tokens"],
        {
            "model": _MODEL,
            "messages": _messages(_CONTENT, {"type": "string", "enum": ["user", "assistant", "system"]}),
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS},
            "system": {"anyOf": [_TEXT, _PARTS, {"type": "null"}]},
            "stream": _FLAG,
            "stop_sequences": {"type": ["array", "null"], "items": _TEXT},
            "tools": _OBJECTS,
        },
    ),
}
_ENERGY: Final[_Schema] = _object(
    ["joules", "method", "confidence", "carbon_mg", "receipt_id"],
    {
        "joules": {**_NULL_NUMBER, "description": "What the request drew at the silicon; null where it isn't known."},
        "method": {**_NULL_TEXT, "description": "How it was measured, as on the receipt."},
        "confidence": _NULL_TEXT,
        "carbon_mg": {**_NULL_NUMBER, "description": "Milligrams of CO2 equivalent."},
        "receipt_id": {**_TEXT, "pattern": "^rcpt_[0-9a-f]{32}$"},
        "estimated_joules": {**_NULL_NUMBER, "description": "The part of `joules` that was reckoned, not measured."},
        "scope": {"type": "array", "items": _TEXT, "description": "What was metered: cpu, dram, gpu."},
        "counter_period_ms": _NULL_NUMBER,
        "mean_batch": _NULL_NUMBER,
        "errors": {"type": "object"},
    },
)
_ANSWERED: Final[Mapping[Shape, _Schema]] = {
    Shape.CHAT: _object(
        ["id", "object", "choices", "usage", "energy"],
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
            "energy": _ENERGY,
        },
    ),
    Shape.COMPLETION: _object(
        ["id", "object", "choices", "usage", "energy"],
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
            "energy": _ENERGY,
        },
    ),
    Shape.EMBEDDING: _object(
        ["object", "data", "usage", "energy"],
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
            "energy": _ENERGY,
        },
    ),
    Shape.MESSAGES: _object(
        ["id", "type", "role", "content", "usage", "energy"],
        {
            "id": _TEXT,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "content": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
            "energy": _ENERGY,
        },
    ),
}
_HEADERS: Final = {
    "X-Receipt-Id": "The receipt of this answer, at `/v1/receipts/{receipt_id}`.",
    "X-Routed-To": "operator/region/silicon of what answers; of a stream, of what began it.",
    "X-Region": "The region of what answers.",
    "X-Tier": "How demanding the request was taken to be: L0 to L3.",
    "X-Energy-Method": "How its energy is measured, or `unavailable`.",
}
_UNARY_HEADERS: Final = {
    "X-Energy-Joules": "What it drew; `unavailable` where that isn't known. Not of a stream, as those below.",
    "X-Energy-Confidence": "How well that is known.",
    "X-Energy-Estimated-Joules": "The part of it that was reckoned, not measured.",
    "X-Energy-Scope": "What was metered.",
    "X-Energy-Counter-Period-ms": "How often the counters were read.",
    "X-Energy-Mean-Batch": "How many requests shared its steps, on average.",
    "X-Energy-Error-Percent": "The bounds of three errors.",
    "X-Carbon-mg": "Milligrams of CO2 equivalent.",
}
_STREAMS: Final = {
    Shape.MESSAGES: "Anthropic's events; `message_delta` has the member `energy`. An error in mid-stream is `error`.",
}
_CHUNKS: Final = (
    "OpenAI's chunks, and `[DONE]`. The usage chunk has the member `energy`, or without `include_usage` the last chunk "
    "with a `finish_reason`. An error in mid-stream is a chunk with `error`."
)
_ASKED_HEADERS: Final = (
    (REGION_HEADER, "^[A-Za-z0-9._-]{1,64}$", "Runs only there: a region, a prefix of one, or a country's code."),
    (TAG_HEADER, "^[ -~]{1,128}$", "Stands on the receipt."),
    (WORKLOAD_HEADER, "^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$", "Stands on the receipt, and may have an energy budget."),
    (
        IDEMPOTENCY_HEADER,
        "^[!-~]{1,255}$",
        "A second request of the account with the same key is refused (409) while the first runs or has its receipt.",
    ),
)


def asked_document(shape: Shape) -> _Schema:
    """The operation's parameters and body."""
    return {
        "parameters": [asked_header(name) for name, _, _ in _ASKED_HEADERS],
        "requestBody": request_body(shape),
    }


def asked_header(name: str) -> _Schema:
    """One of the headers that a request may carry."""
    pattern, description = next((form, said) for known, form, said in _ASKED_HEADERS if known == name)
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def request_body(shape: Shape) -> _Schema:
    """The body of a request of this shape."""
    return {"required": True, "content": {"application/json": {"schema": _ASKED[shape]}}}


def answer_document(shape: Shape) -> _Schema:
    """The good answer: whole, or where there is such a thing a stream of events."""
    content: _Schema = {"application/json": {"schema": _ANSWERED[shape]}}
    if shape is not Shape.EMBEDDING:
        # Without a type: readers of OpenAPI differ in whether it is the whole stream's or each event's.
        content["text/event-stream"] = {"schema": {"description": _STREAMS.get(shape, _CHUNKS)}}
    return {
        "description": "The answer, with what it drew.",
        "headers": {name: _header(said, required=True) for name, said in _HEADERS.items()}
        | {name: _header(said, required=False) for name, said in _UNARY_HEADERS.items()},
        "content": content,
    }


def _header(description: str, *, required: bool) -> _Schema:
    return {"description": description, "required": required, "schema": _TEXT}
