"""Canonical JSON bytes, and a parser that takes nothing doubtful.

RFC 8785 (JSON Canonicalization Scheme) with one difference: an integer is written exactly at any size, because
``start_unix_ns`` is above 2^53 and a receipt shows it as a number. A number written with a fraction or an exponent
is a double; a number written without is an integer. So a whole double comes back as an integer: the same number below
2^53, where the schema keeps every double, and always the same bytes.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Final

from receipts.errors import InvalidDocument

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

MAX_BYTES: Final = 65_536
"""Size of the largest document; a receipt has about 2,600 bytes, 1,700 of before there was placement; one with a full
list of attempts or long pins some thousands more."""
MAX_DEPTH: Final = 16
"""Arrays and objects inside each other; a receipt has 4."""

# RFC 8785 section 3.2.2.2 escapes exactly what Python's encoder escapes when it need not be ASCII.
_quoted: Final[Callable[[str], str]] = json.encoder.encode_basestring
# An unterminated string counts as one token to its end, so that the scan stays linear on any input.
_STRINGS_AND_BRACKETS: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
# Number::toString of ECMA-262, which RFC 8785 section 3.2.2.3 points to, has no exponent between these powers of ten.
_MAX_PLAIN_POINT: Final = 21
_MIN_PLAIN_POINT: Final = -6


def canonical_bytes(value: object) -> bytes:
    """The one spelling of a JSON value: None, bool, int, float, str, lists or tuples, dicts with string keys.

    Raises:
        InvalidDocument: anything else inside, a number that is not finite, a lone surrogate, or too deep.
    """
    written: list[str] = []
    _write(value, written.append, 0)
    try:
        return "".join(written).encode()
    except UnicodeEncodeError as error:
        raise InvalidDocument(f"a string has a lone surrogate, U+{ord(error.object[error.start]):04X}") from error


def _write(value: object, write: Callable[[str], None], depth: int) -> None:
    """Exact types only: a subclass could print as something else than it is."""
    kind = type(value)
    if kind is str:
        write(_quoted(value))  # type: ignore[arg-type]
    elif kind is dict:
        _write_object(value, write, depth + 1)  # type: ignore[arg-type]
    elif kind is int:
        write(_integer(value))  # type: ignore[arg-type]
    elif kind is float:
        write(_double(value))  # type: ignore[arg-type]
    elif value is None:
        write("null")
    elif value is True:
        write("true")
    elif value is False:
        write("false")
    elif kind is list or kind is tuple:
        _write_array(value, write, depth + 1)  # type: ignore[arg-type]
    else:
        raise InvalidDocument(f"JSON has no {kind.__name__}")


def _write_object(members: dict[str, object], write: Callable[[str], None], depth: int) -> None:
    _check_depth(depth)
    separator = "{"
    for name in _in_utf16_order(members):
        write(separator)
        write(_quoted(name))
        write(":")
        _write(members[name], write, depth)
        separator = ","
    write("}" if members else "{}")


def _write_array(items: Iterable[object], write: Callable[[str], None], depth: int) -> None:
    _check_depth(depth)
    write("[")
    for place, item in enumerate(items):
        if place:
            write(",")
        _write(item, write, depth)
    write("]")


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidDocument(f"nested deeper than {MAX_DEPTH} levels")


def _in_utf16_order(names: Iterable[str]) -> list[str]:
    """RFC 8785 section 3.2.3 sorts by UTF-16 code units; among ASCII names that is Python's order."""
    try:
        if "".join(names).isascii():
            return sorted(names)
        return sorted(names, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
    except (TypeError, AttributeError) as error:
        raise InvalidDocument("a member's name is not a string") from error


def _integer(value: int) -> str:
    try:
        return str(value)
    except ValueError as error:
        raise InvalidDocument("an integer has too many digits") from error


def _double(value: float) -> str:
    """The double as ECMA-262's Number::toString gives it.

    Python's repr has the same shortest digits; it differs in where it turns to an exponent and how it writes it.
    """
    if not math.isfinite(value):
        raise InvalidDocument(f"{value} is not a JSON number")
    text = repr(value)
    if "e" not in text and not text.endswith(".0"):
        return text
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).rstrip("0")
    # The value is 0.DIGITS times ten to the power of `point`; repr writes no leading zero beside an exponent.
    point = len(whole) + int(exponent or 0)
    if not digits.strip("0"):
        return "0"
    if len(digits) <= point <= _MAX_PLAIN_POINT:
        return sign + digits.ljust(point, "0")
    if 0 < point <= _MAX_PLAIN_POINT:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if _MIN_PLAIN_POINT < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def parse_strict(data: bytes) -> JsonValue:
    """The value of one JSON text (RFC 8259) in UTF-8, I-JSON's rules (RFC 7493) enforced.

    Raises:
        InvalidDocument: not JSON, a name twice in one object, NaN or Infinity, a number past the range of a double,
            invalid UTF-8, a lone surrogate, more than ``MAX_BYTES`` or deeper than ``MAX_DEPTH``.
    """
    if len(data) > MAX_BYTES:
        raise InvalidDocument(f"larger than {MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"not UTF-8 at byte {error.start}") from error
    _check_nesting(text)
    try:
        value: JsonValue = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidDocument(f"not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise InvalidDocument("an integer has too many digits") from error
    # Only an escape can make a surrogate, since UTF-8 has none.
    if "\\u" in text:
        _check_surrogates(value)
    return value


def _check_nesting(text: str) -> None:
    """Before parsing: a parser that recurses must not be the one to find out."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRINGS_AND_BRACKETS.finditer(text):
        if token[0] in "[{":
            depth += 1
            _check_depth(depth)
        elif token[0] in "]}":
            depth -= 1


def _check_surrogates(value: JsonValue) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidDocument(f"a string has a lone surrogate, U+{ord(value[error.start]):04X}") from error
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_surrogates(name)
            _check_surrogates(member)


def _members(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidDocument(f"the member {_first_repeated(name for name, _ in pairs)[:64]!r} is there twice")
    return members


def _first_repeated(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidDocument("a number is past the range of a double")
    return value


def _not_a_number(name: str) -> float:
    raise InvalidDocument(f"{name} is not a JSON number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_members, parse_float=_finite, parse_constant=_not_a_number)
