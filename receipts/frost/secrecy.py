"""What every object that holds a secret has in common."""

from typing import NoReturn


class Redacted:
    """Base of objects that hold a secret: they show nothing of it and refuse to be copied or pickled.

    Python cannot wipe memory (bytes are immutable and copied freely), so this keeps a secret out of logs,
    tracebacks and Ray's object store; it does not keep it from who can read the process's memory.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} redacted>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and is never pickled or copied")
