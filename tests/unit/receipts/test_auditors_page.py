"""`receipts/README.md` against the code: a row for every member of a receipt and a head, and no row for another."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import receipts

FOLDER = Path(receipts.__file__).parent
PAGE = (FOLDER / "README.md").read_text()


def members(schema: dict[str, Any], of: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all members without members of their own, ``[]`` for each item of an array of objects."""
    for name, member in of["properties"].items():
        inner, place = member, f"{path}{name}"
        if "items" in inner and "$ref" in inner["items"]:
            inner, place = inner["items"], f"{place}[]"
        if "$ref" in inner:
            yield from members(schema, schema["$defs"][inner["$ref"].rpartition("/")[2]], f"{place}.")
        else:
            yield place


def rows(section: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its two head lines."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def named(cell: str) -> list[str]:
    """The members in a row's first cell; one that begins with a dot has the same parents as the one before."""
    names: list[str] = []
    for name in re.findall(r"`([^`]+)`", cell):
        names.append(f"{names[-1].rpartition('.')[0]}{name}" if name.startswith(".") else name)
    return names


@pytest.mark.parametrize(
    ("section", "file"),
    [("Every field", "receipt.schema.json"), ("An account head", "account-head.schema.json")],
)
def test_every_member_has_a_row(section: str, file: str) -> None:
    schema = json.loads((FOLDER / file).read_text())
    explained = [name for row in rows(section) for name in named(row[0])]
    assert sorted(explained) == sorted(members(schema, schema))


def test_every_row_says_what_it_is_and_where_it_is_from() -> None:
    for field, _unit, what, source in rows("Every field"):
        assert what, field
        assert source or field in {"`typ`", "`verification.signature_algo`"} or "attestation" in field, field


def test_figures_have_their_unit() -> None:
    units = {name: row[1] for row in rows("Every field") for name in named(row[0])}
    for name, unit in units.items():
        for ending, expected in (("joules", "J"), ("_watts", "W"), ("_ms", "ms"), ("_percent", "%"), ("_ns", "ns")):
            if name.endswith(ending):
                assert unit.startswith(expected), name
