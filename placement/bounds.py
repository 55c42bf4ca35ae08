"""The refusal of numbers that can be no figure of a pool, a request or a rate."""


def refuse_outside(name: str, value: float, least: float, most: float) -> None:
    """Pass a number between ``least`` and ``most``, both included.

    Raises:
        ValueError: it is outside, or no number (NaN); the message names it.
    """
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least:g} and {most:g}, not {value!r}")
