"""`jc receipts`: what a person sees of an account's receipts."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mesh.receipts_table import print_lines, show_receipts
from receipts.canonical import canonical_bytes

_RECEIPT = Path(__file__).parents[1] / "receipts" / "data" / "unsigned-receipt.json"


class FakeClient:
    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self.asked: list[dict[str, Any]] = []

    def receipt_pages(self, **wanted: Any) -> Iterator[bytes]:
        self.asked.append(wanted)
        for begin in range(0, len(self._lines), wanted["limit"]):
            yield b"".join(self._lines[begin : begin + wanted["limit"]])


def line(
    seq: int,
    *,
    signature: str | None = "ab" * 64,
    total_joules: float | None = 0.31,
    tag: str = "",
    retries: int = 0,
) -> bytes:
    document = json.loads(_RECEIPT.read_text())
    document["execution"]["retries"] = retries
    document["chain"]["seq"] = seq
    document["energy"]["total_joules"] = total_joules
    document["price"]["usd_picos"] = 43_056
    document["workload"]["customer_tag"] = tag or None
    document["execution"]["end_unix_ns"] = 1_782_219_834_000_123_456
    document["verification"]["signature"] = signature
    return canonical_bytes(document) + b"\n"


def shown(lines: list[bytes], limit: int = 20) -> tuple[str, FakeClient]:
    client, text = FakeClient(lines), io.StringIO()
    show_receipts(client, {"since": "1d"}, Console(file=text, width=200, highlight=False), limit=limit)
    return text.getvalue(), client


def test_a_line_each_and_the_sum() -> None:
    text, client = shown([line(2, tag="[red]blue"), line(1)])
    head, first, second, _, total = text.splitlines()
    assert head.split() == ["no.", "ended", "(UTC)", "model", "tag", "tokens", "joules", "USD", "receipt"]
    assert first.split()[:3] == ["2", "2026-06-23", "13:03:54"]
    assert "[red]blue" in first
    assert "0.310000" in second
    assert "0.000000043056" in second
    assert total == "2 shown, 0.620000 J, $0.000000086112"
    assert client.asked == [{"since": "1d", "limit": 20, "newest_first": True}]


def test_retries_have_a_column_where_there_are_any() -> None:
    text, _ = shown([line(3), line(2, retries=2), line(1)])
    head, *rows = text.splitlines()[:4]
    assert head.split()[-2:] == ["receipt", "retries"]
    assert [row.split()[-1] for row in rows] == ["0", "2", "0"]


def test_what_is_not_known_or_not_signed_yet_is_said() -> None:
    text, _ = shown([line(1, signature=None, total_joules=None)])
    assert "unavailable" in text
    assert "(not signed yet)" in text
    assert "1 shown, 0.000000 J" in text


def test_that_there_may_be_more_is_said() -> None:
    text, client = shown([line(seq) for seq in range(5, 0, -1)], limit=3)
    assert text.splitlines()[-1].startswith("3 shown")
    assert "there may be more" in text
    assert client.asked[0]["limit"] == 3


def test_none_is_said() -> None:
    assert shown([])[0] == "no receipts\n"


@pytest.mark.parametrize(("limit", "count"), [(None, 4), (3, 3), (9, 4)])
def test_as_lines_they_are_as_they_were_signed(limit: int | None, count: int) -> None:
    lines = [line(seq) for seq in range(1, 5)]
    out = io.BytesIO()
    print_lines(iter([b"".join(lines[:2]), b"".join(lines[2:])]), out, limit=limit)
    assert out.getvalue() == b"".join(lines[:count])


def test_a_narrow_terminal_gets_whole_lines() -> None:
    text = io.StringIO()
    show_receipts(FakeClient([line(1, tag="a team")]), {}, Console(file=text, width=40, highlight=False), limit=20)
    assert len(text.getvalue().splitlines()) == 4
    assert f"rcpt_{1:032x}" in text.getvalue()
