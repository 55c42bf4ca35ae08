"""Small units as decimals of whole ones, exactly."""


def exact_decimal(count: int, digits: int) -> str:
    """``count`` small units, of which 10 to the power of ``digits`` make a whole one: all digits, always."""
    whole, rest = divmod(abs(count), 10**digits)
    return f"{'-' if count < 0 else ''}{whole}.{rest:0{digits}d}"
