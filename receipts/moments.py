"""Moments in time as people write them: RFC 3339, or so long back from now; in the program, nanoseconds since 1970."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from receipts.errors import InvalidMoment
from receipts.members import MAX_INTEGER

NS_PER_S: Final = 10**9
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_BACK: Final = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
# RFC 3339, section 5.6; its space for the T, and lower case, are let through as its notes say.
_RFC_3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_HOW: Final = "give an RFC 3339 time such as 2026-01-31T08:00:00Z, or how long back from now, such as 30d, 12h or 90m"


def parse_moment(text: str, now_unix_ns: int) -> int:
    """The moment that ``text`` names, in nanoseconds since 1970, exact to the last digit given.

    A length of time (s, m, h, d, w) counts back from ``now_unix_ns``, and no further than to 1970.

    Raises:
        InvalidMoment: it names none, or one before 1970 or after 2262.
    """
    back = _BACK.fullmatch(text)
    if back is not None:
        return max(0, now_unix_ns - int(back[1]) * _UNIT_S[back[2]] * NS_PER_S)
    written = _RFC_3339.fullmatch(text)
    if written is None:
        # A bare + in a URL's query arrives as a space.
        escaped = "; write the + of an offset as %2B in a URL" if re.search(r":[0-9.]+ [0-9]{2}:", text) else ""
        raise InvalidMoment(f"{text[:40]!r} is not a time: {_HOW}{escaped}")
    day, clock, fraction, offset = written.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{clock}{offset.upper()}")
        seconds = (whole - _EPOCH) // timedelta(seconds=1)
    except (ValueError, OverflowError) as error:
        raise InvalidMoment(f"{text[:40]!r} is not a time: {error}") from error
    unix_ns = seconds * NS_PER_S + int((fraction or "").ljust(9, "0"))
    if not 0 <= unix_ns <= MAX_INTEGER:
        raise InvalidMoment(f"{text[:40]!r} is not between 1970 and 2262")
    return unix_ns


def parse_moment_to_come(text: str, now_unix_ns: int) -> int:
    """As `parse_moment`, but a length of time counts on from ``now_unix_ns``.

    Raises:
        InvalidMoment: as there.
    """
    ahead = _BACK.fullmatch(text)
    if ahead is None and _RFC_3339.fullmatch(text) is None:
        raise InvalidMoment(
            f"{text[:40]!r} is not a time: give an RFC 3339 time such as 2026-01-31T08:00:00Z, or how long from now, "
            "such as 90d, 12h or 30m"
        )
    if ahead is None:
        return parse_moment(text, now_unix_ns)
    return min(MAX_INTEGER, now_unix_ns + int(ahead[1]) * _UNIT_S[ahead[2]] * NS_PER_S)


def rfc3339(unix_ns: int) -> str:
    """The moment in UTC, to the nanosecond: ``2026-01-31T08:00:00.000000000Z``."""
    seconds, rest = divmod(unix_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def rfc3339_to_seconds(unix_ns: int) -> str:
    """The moment in UTC for people, its fraction of a second cut off: ``2026-01-31T08:00:00Z``."""
    return f"{datetime.fromtimestamp(unix_ns // NS_PER_S, UTC):%Y-%m-%dT%H:%M:%SZ}"
