"""A fault is told by its type and place."""

import re

from serve.fault_place import fault_place


def _fails(prompt: str) -> None:
    raise ValueError(f"cannot say {prompt}")


def test_a_fault_is_told_without_its_text():
    try:
        _fails("a secret")
    except ValueError as fault:
        told = fault_place(fault)
    assert re.fullmatch(r"ValueError at test_fault_place\.py:\d+ < test_fault_place\.py:\d+", told)
