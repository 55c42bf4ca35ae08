"""An account's usage as a pandas frame: a row for each group."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas

_DTYPES: Final = {
    "requests": "int64",
    "unmetered_requests": "int64",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "joules": "float64",
    "microjoules": "int64",
    "carbon_mg": "float64",
    "usd_picos": "int64",
}


def usage_frame(usage: dict[str, Any]) -> "pandas.DataFrame":
    """A frame of what `/v1/usage` answered, in its order; ``usd`` is a double, beside the exact ``usd_picos``."""
    import pandas

    by, rows = usage["by"], usage["data"]
    columns = {name: pandas.Series([row[name] for row in rows], dtype=dtype) for name, dtype in _DTYPES.items()}
    columns["usd"] = pandas.Series([float(row["usd"]) for row in rows], dtype="float64")
    groups: Any = pandas.Index([row["group"] for row in rows], dtype="string", name=by)
    if by == "day":
        groups = pandas.to_datetime(groups, utc=True)
    frame = pandas.DataFrame(columns)
    frame.index = groups
    frame.index.name = by
    return frame
