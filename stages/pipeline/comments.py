"""YAML comments by key: read from files, and laid beside values that are written anew.

A comment belongs to the key beside which, or below whose comment, it stands, or else to the key above which it stands.
Since it goes by the key, one of an entry that is no longer there is never written.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

COLUMN = 33  # where comments begin, if the line is not longer

KeyPath = tuple[str | int, ...]  # keys from the top, and places in lists


BREAKS = frozenset("\x85\u2028\u2029\ufeff")  # which only a double-quoted text holds as they are, escaped


class _Representer(SafeRepresenter):
    """Writes a value that stands twice as it is, without an anchor, and every text so that it is read back the same."""

    def ignore_aliases(self, data: Any) -> Literal[True]:  # noqa: ARG002
        """Every value is written out."""
        return True

    def represent_text(self, data: str) -> ScalarNode:
        """A text, escaped where it would else be read as several lines."""
        style = '"' if BREAKS.intersection(data) else None
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", data, style=style)
        return node


_Representer.add_representer(str, _Representer.represent_text)


def _yaml() -> YAML:
    """Block style, in the order given, a scalar a line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = sys.maxsize
    return yaml


@dataclass
class Note:
    """The comment of a key: lines above it, blank ones too, and lines beside it."""

    above: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)


def _entries(node: Node, path: KeyPath = ()) -> Iterator[tuple[int, KeyPath]]:
    """Every key and list item with its line, the outer before the inner."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key.start_mark.line, (*path, key.value)
            yield from _entries(value, (*path, key.value))
    if isinstance(node, SequenceNode):
        for place, item in enumerate(node.value):
            yield item.start_mark.line, (*path, place)
            yield from _entries(item, (*path, place))


def _by_line(text: str) -> dict[int, KeyPath]:
    """Line -> the outermost key or item that starts there."""
    found: dict[int, KeyPath] = {}
    for line, path in _entries(_yaml().compose(text)):
        found.setdefault(line, path)
    return found


def _ends(text: str) -> dict[int, int]:
    """Line -> column after what is no comment, for lines that hold more than one."""
    ends: dict[int, int] = {}
    for token in _yaml().scan(text):
        start, end = token.start_mark, token.end_mark
        if start.index < end.index:
            ends |= dict.fromkeys(range(start.line, end.line), sys.maxsize) | {end.line: end.column}
    return ends


def _notes(text: str) -> dict[KeyPath, Note]:
    """The comments of a YAML text by key; those above the first key are the file's own, under `()`."""
    keys, ends = _by_line(text), _ends(text)
    notes: dict[KeyPath, Note] = {}
    beside: list[str] = []
    above: list[str] = []
    column = -1
    for number, line in enumerate(text.split("\n")):
        comment = line[ends.get(number, 0) :].strip()
        if number in keys:
            if not notes:
                notes[()] = Note(above)
                above = []
            beside = [comment] if comment else []
            column = line.rfind(comment) if comment else -1
            notes[keys[number]] = Note(above, beside)
            above = []
        elif comment and line.find("#") == column:
            beside.append(comment)
        elif number not in ends:
            above.append(comment)
            column = -1
    return notes


def _note(path: KeyPath, first: dict[KeyPath, Note], second: dict[KeyPath, Note]) -> Note:
    """A key's comment: the second's where it has one; blank lines are those of the first."""
    to_list = tuple(takewhile(lambda part: isinstance(part, str), path))
    is_replaced = to_list != path and to_list in second  # what stood beside its items is about others
    old = Note() if is_replaced else first.get(path, Note())
    new = second.get(path, Note())
    comments = [line for line in new.above if line] or [line for line in old.above if line]
    return Note([line for line in old.above if not line] + comments, new.beside or old.beside)


def laid_on(values: Any, first: str, second: str) -> str:
    """Values as a YAML text in block style, with the comments that two texts have for its keys.

    Args:
        values: what is written.
        first: a YAML text; the comment above its first key heads the result.
        second: another, whose comment on a key replaces the first's; the one above its first key is left out.
    """
    stream = io.StringIO()
    _yaml().dump(values, stream)
    dumped = stream.getvalue()
    keys, old, new = _by_line(dumped), _notes(first), _notes(second)
    lines = [*old[()].above]
    for number, line in enumerate(dumped.rstrip("\n").split("\n")):
        note = _note(keys[number], old, new) if number in keys else Note()
        indent = " " * (len(line) - len(line.lstrip()))
        lines += [(indent + comment).rstrip() for comment in note.above]
        column = max(COLUMN, len(line) + 3)
        lines.append(line.ljust(column) + note.beside[0] if note.beside else line)
        lines += [" " * column + comment for comment in note.beside[1:]]
    return "\n".join(lines) + "\n"
