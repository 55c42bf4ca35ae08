"""A YAML file whose every place can be found again by its line, so that a fault is told where it stands."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import yaml

from mesh.errors import BadSettings

Place = tuple[str | int, ...]


class Fault(NamedTuple):
    """What is wrong at a place: keys and list positions from the top, as pydantic names it."""

    place: Place
    message: str


class YamlDocument:
    """One parsed file; ``value`` is what it says."""

    def __init__(self, name: str, text: str) -> None:
        """Parse ``text``; ``name`` is how a user knows the file.

        Raises:
            BadSettings: it is not YAML, or a key stands twice; with the lines.
        """
        self.name = name
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.value: object = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as unreadable:
            raise BadSettings(f"cannot read {name}: {unreadable}") from unreadable
        except (AttributeError, LookupError, RecursionError) as unreadable:
            # PyYAML's own slips, over `!!bool x` and what is nested a thousand times.
            raise BadSettings(f"cannot read {name}: it has a value that is none, or is nested too deep") from unreadable
        twice = [f"  line {line}: {key} stands twice" for line, key in _repeated_keys(self._root, set())]
        if twice:
            raise BadSettings("\n".join([f"{name} is not valid:", *twice]))

    def line(self, place: Place) -> int | None:
        """The line of a place, or of the nearest place above it that the file has; None for the file as a whole."""
        node, line = self._root, None
        for part in place:
            # A part that the file does not have is a member that is missing, or the name of a type that was tried.
            found = _child(node, part)
            if found is not None:
                node, line = found
        return line

    def refusal(self, faults: Iterable[Fault]) -> BadSettings:
        """The error that tells all faults, in the order of their lines."""
        lines = [(self.line(fault.place) or 0, fault) for fault in faults]
        told = [
            f"  {_where(line, fault.place)}: {fault.message}" for line, fault in sorted(lines, key=lambda it: it[0])
        ]
        return BadSettings("\n".join([f"{self.name} is not valid:", *told]))


def _where(line: int, place: Place) -> str:
    name = ".".join(map(str, place)) or "file"
    return f"line {line}, {name}" if line else name


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item, item.start_mark.line + 1
    return None


def _repeated_keys(node: yaml.Node | None, passed: set[int]) -> Iterator[tuple[int, str]]:
    if node is None or id(node) in passed:
        return
    passed.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, passed)
    if not isinstance(node, yaml.MappingNode):
        return
    keys: set[tuple[str, str]] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                yield key.start_mark.line + 1, key.value
            keys.add((key.tag, key.value))
        yield from _repeated_keys(value, passed)
