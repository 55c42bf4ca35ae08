"""The processes of a mesh: which they are, which of them live, and on which addresses they accept connections."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

_LISTENS = "0A"
_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def descendants(root: int) -> set[int]:
    """The process and all under it."""
    process = psutil.Process(root)
    return {each.pid for each in (process, *process.children(recursive=True))}


def command_of(pid: int) -> str:
    """Its command line, parted by spaces; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def alive(pids: Iterable[int]) -> dict[int, str]:
    """Those that still run, and their commands."""
    return {pid: command_of(pid) for pid in pids if _lives(pid)}


def _lives(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) not in "ZX"
    except OSError:
        return False


def listening(root: int) -> dict[str, set[str]]:
    """Local addresses (hexadecimal, as /proc has them) of this process and all under it, and who accepts there.

    A socket may be several processes': a program that reloads hands it to its follower.
    """
    programs: dict[str, set[str]] = {}
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            program = command_of(pid).partition(" ")[0]
            for each in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    programs.setdefault(str(each.readlink()), set()).add(program)
    found: dict[str, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            who = programs.get(f"socket:[{fields[9]}]")
            if fields[3] == _LISTENS and who is not None:
                found.setdefault(fields[1], set()).update(who)
    return found


def off_loopback(addresses: dict[str, set[str]]) -> dict[str, set[str]]:
    """Those that other machines may reach."""
    return {each: who for each, who in addresses.items() if each.partition(":")[0] not in _LOOPBACK}
