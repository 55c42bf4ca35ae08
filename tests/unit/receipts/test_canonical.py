"""One spelling per value, and a parser that lets nothing doubtful through."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.canonical import MAX_BYTES, MAX_DEPTH, canonical_bytes, parse_strict
from receipts.errors import InvalidDocument

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
# A whole double comes back as an integer; Python holds them equal, and below 2^53 they are.
EXACT_DOUBLES = st.floats(-(2.0**53), 2.0**53) | DOUBLES.filter(lambda number: not number.is_integer())
SCALARS = st.none() | st.booleans() | st.integers() | EXACT_DOUBLES | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    assert parse_strict(canonical_bytes(value)) == value


@given(VALUES)
def test_the_spelling_does_not_depend_on_how_the_value_came(value: object) -> None:
    once = canonical_bytes(value)
    assert canonical_bytes(parse_strict(once)) == once
    spread = json.dumps(json.loads(once), indent=2).encode()
    assert canonical_bytes(parse_strict(spread)) == once


@given(st.integers())
def test_an_integer_is_exact_at_any_size(number: int) -> None:
    assert canonical_bytes(number) == str(number).encode()


@pytest.mark.parametrize(
    ("number", "spelling"),
    [
        (1_782_219_834_000_123_456, "1782219834000123456"),
        (-0.0, "0"),
        (110.0, "110"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (-1.25e22, "-1.25e+22"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
    ],
)
def test_numbers_are_spelled_as_ecmascript_does(number: float, spelling: str) -> None:
    assert canonical_bytes(number).decode() == spelling


def test_names_are_sorted_by_utf16_units() -> None:
    # U+1F600 is D83D DE00 in UTF-16, which comes before U+FB33, though its code point is larger.
    assert canonical_bytes({"\ufb33": 1, "\U0001f600": 2, "a": 3}) == '{"a":3,"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "nan is not a JSON number"),
        (math.inf, "inf is not a JSON number"),
        ({1: 2}, "not a string"),
        ({1: 2, "a": 3}, "not a string"),
        ("\ud800", r"lone surrogate, U\+D800"),
        ({"\udfff": 1}, r"lone surrogate, U\+DFFF"),
        (b"bytes", "JSON has no bytes"),
        ({"set": {1}}, "JSON has no set"),
        pytest.param(10**5000, "too many digits", id="an integer of 5001 digits"),
    ],
)
def test_a_value_without_a_spelling_is_refused(value: object, says: str) -> None:
    with pytest.raises(InvalidDocument, match=says):
        canonical_bytes(value)


def nested(depth: int) -> bytes:
    return b'{"a":[' * (depth // 2) + b"1" + b"]}" * (depth // 2)


def test_nesting_has_a_limit_both_ways() -> None:
    assert canonical_bytes(parse_strict(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for deeper in (nested(MAX_DEPTH + 2), b"[" * 30_000, b"[" * 30_000 + b"]" * 30_000):
        with pytest.raises(InvalidDocument, match="nested deeper than 16 levels"):
            parse_strict(deeper)
    value: list[object] = []
    value.append(value)
    with pytest.raises(InvalidDocument, match="nested deeper than 16 levels"):
        canonical_bytes(value)


def test_brackets_in_strings_and_side_by_side_are_not_nesting() -> None:
    assert parse_strict(b'["' + b"[{" * 100 + b'\\"[["]') == ["[{" * 100 + '"[[']
    assert parse_strict(b"[" + b"[]," * 1000 + b"[]]") == [[]] * 1001


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":1,"b":{"c":1,"c":1}}', "the member 'c' is there twice"),
        (b'{"a":1,"\\u0061":1}', "the member 'a' is there twice"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1e999", "past the range of a double"),
        pytest.param(b"9" * 5000, "too many digits", id="an integer of 5000 digits"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\\ud83d"', r"lone surrogate, U\+D83D"),
        (b'{"\\udc00":1}', r"lone surrogate, U\+DC00"),
        (b"", "not JSON"),
        (b"{} {}", "not JSON: Extra data"),
        (b'{"a":1,}', "not JSON"),
        (b"[01]", "not JSON"),
        (b"'a'", "not JSON"),
        (b'"tab\there"', "not JSON"),
        pytest.param(b'"' + b"a" * MAX_BYTES + b'"', "larger than 65536 bytes", id="two bytes too many"),
    ],
)
def test_doubtful_json_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InvalidDocument, match=says):
        parse_strict(data)


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_strict(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(st.binary(max_size=200) | TEXT.map(str.encode) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        value = parse_strict(data)
    except InvalidDocument:
        return
    once = canonical_bytes(value)
    assert canonical_bytes(parse_strict(once)) == once
