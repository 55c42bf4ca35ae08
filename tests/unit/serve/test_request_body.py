import asyncio
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from serve.errors import RequestRefused
from serve.request_body import MAX_BODY_BYTES, MOST_NESTED, BodyLimits, parse_json_object, read_body

_LIMITS = BodyLimits()


async def _chunks(*chunks: bytes):
    for chunk in chunks:
        yield chunk


async def test_a_body_of_exactly_the_limit_is_read():
    half = b" " * (MAX_BODY_BYTES // 2)
    assert len(await read_body(_chunks(half, half), None, _LIMITS)) == MAX_BODY_BYTES


@pytest.mark.parametrize("declared", [None, "5"])
async def test_a_body_over_the_limit_is_refused_whatever_its_length_header_says(declared):
    with pytest.raises(RequestRefused) as refused:
        await read_body(_chunks(b" " * MAX_BODY_BYTES, b" "), declared, _LIMITS)
    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read():
    async def untouchable():
        raise AssertionError("the body was read")
        yield b""

    with pytest.raises(RequestRefused):
        await read_body(untouchable(), str(MAX_BODY_BYTES + 1), _LIMITS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "line 1 column 2"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "twice in one object"),
        (b'{"a": {"b": 1, "b": 1}}', "twice in one object"),
        (b"\xff{}", "bad byte at 0"),
        (b"[]", "must be a JSON object"),
        (b"", "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_json_is_400_and_says_where(data, says):
    with pytest.raises(RequestRefused) as refused:
        parse_json_object(data)
    assert refused.value.status == HTTPStatus.BAD_REQUEST
    assert says in refused.value.message


@given(st.binary(max_size=300))
def test_no_bytes_make_the_json_reader_raise_anything_else(data):
    try:
        value = parse_json_object(data)
    except RequestRefused:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize("opens", [b"[", b'{"a":'])
def test_nesting_is_bounded_where_json_itself_would_read_on(opens):
    closes = b"]" if opens == b"[" else b"}"

    def nested(levels: int) -> bytes:
        return b'{"a":' + opens * (levels - 2) + b"{}" + closes * (levels - 2) + b"}"

    assert parse_json_object(nested(MOST_NESTED))
    with pytest.raises(RequestRefused, match="nested too deeply"):
        parse_json_object(nested(MOST_NESTED + 1))


def test_many_brackets_side_by_side_are_no_nesting():
    assert len(parse_json_object(b'{"a":[' + b"[]," * 1000 + b"[]]}")["a"]) == 1001


def test_a_whole_surrogate_pair_is_text_and_half_of_one_is_not():
    assert parse_json_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    for half in (b'{"a": "\\ud83d"}', b'{"\\uDE00": 1}'):
        with pytest.raises(RequestRefused, match="surrogate"):
            parse_json_object(half)


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 21, b"-" + b"9" * 5000])
def test_a_number_that_nothing_behind_could_hold_is_refused(number):
    with pytest.raises(RequestRefused) as refused:
        parse_json_object(b'{"a": ' + number + b"}")
    assert refused.value.status == HTTPStatus.BAD_REQUEST


async def test_a_body_that_does_not_come_in_time_is_given_up():
    async def stuck():
        yield b"{"
        await asyncio.sleep(60)

    with pytest.raises(RequestRefused) as refused:
        await read_body(stuck(), None, BodyLimits(within_s=0.01))
    assert refused.value.status == HTTPStatus.REQUEST_TIMEOUT


async def test_a_client_that_goes_in_the_middle_of_its_body_is_no_fault_of_ours():
    async def gone():
        yield b"{"
        raise ClientDisconnect

    with pytest.raises(RequestRefused) as refused:
        await read_body(gone(), None, _LIMITS)
    assert refused.value.status == HTTPStatus.BAD_REQUEST
