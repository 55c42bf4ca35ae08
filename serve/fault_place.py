"""Where a fault lies, told without its text."""

import traceback
from pathlib import Path
from typing import Final

_INNERMOST: Final = 4


def fault_place(fault: BaseException) -> str:
    """Type and place, such as ``KeyError at seam.py:12 < replica.py:90``: a fault's text could quote a prompt."""
    frames = traceback.extract_tb(fault.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-_INNERMOST:]))
    return f"{type(fault).__name__} at {where}"
