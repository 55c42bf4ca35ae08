"""Receipts as a pandas frame: a row each, a column for each member, of the type that the receipt's schema gives it."""

import types
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from receipts.document import Receipt

if TYPE_CHECKING:
    import pandas

# Missing values: an integer column with nulls would turn to doubles, which don't hold pico-dollars or nanoseconds.
_DTYPES: Final = {int: ("int64", "Int64"), float: ("float64", "float64"), bool: ("bool", "boolean")}
_TEXT: Final = "string"
_TIMES: Final = {
    "execution.start_unix_ns": "execution.start",
    "execution.end_unix_ns": "execution.end",
    "placement.accepted_unix_ns": "placement.accepted",
}


def receipts_frame(receipts: Iterable[dict[str, Any]]) -> "pandas.DataFrame":
    """A frame of receipts as JSON has them, in their order; without any, the same columns.

    Where a section is absent, as ``placement`` is on older receipts, its columns' values are missing.
    """
    import pandas

    columns = dict(_columns(Receipt))
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for receipt in receipts:
        for name, column in values.items():
            column.append(_member(receipt, name))
    frame = {}
    for name, dtype in columns.items():
        frame[name] = pandas.Series(values[name], dtype=dtype)
        if name in _TIMES:
            frame[_TIMES[name]] = pandas.to_datetime(frame[name], unit="ns", utc=True)
    return pandas.DataFrame(frame)


def _columns(model: type[BaseModel], prefix: str = "", *, may_be_absent: bool = False) -> Iterator[tuple[str, str]]:
    """The names of a section's members, with their sections before them, and the frame's type for each."""
    for name, field in model.model_fields.items():
        kind, is_optional = _kind(field.annotation)
        may_miss = is_optional or may_be_absent
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _columns(kind, f"{prefix}{name}.", may_be_absent=may_miss)
        else:
            yield prefix + name, _dtype(kind, is_optional=may_miss)


def _dtype(kind: object, *, is_optional: bool) -> str:
    if isinstance(kind, type) and kind in _DTYPES:
        return _DTYPES[kind][is_optional]
    return "object" if get_origin(kind) is tuple else _TEXT


def _kind(annotation: object) -> tuple[object, bool]:
    """The type inside ``Annotated`` and ``| None``, and whether None is allowed."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(annotation) if each is not types.NoneType)
        return _kind(kind)[0], True
    return annotation, False


def _member(receipt: dict[str, Any], path: str) -> Any:  # noqa: ANN401 - whatever JSON has there
    """None where it is absent, or the section that it is in: older receipts have fewer."""
    value: Any = receipt
    for name in path.split("."):
        if value is None:
            return None
        value = value.get(name)
    return value
