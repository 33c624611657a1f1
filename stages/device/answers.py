"""The answers to people's films in a folder: a line of JSON a film, a table, pictures; added to call by call.

A film is known by its resolved path. Lines are only added while films are answered, so that a kill loses little;
afterwards the last line of each film is kept, in the order in which films came first, and the table is made of them.
"""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from stages.device.running import FolderError

LINES, TABLE, MAPS, LOCK = "results.jsonl", "results.csv", "maps", ".lock"


class Answers:
    """The folder.

    Attributes:
        folder: its path.
        findings: the model's, in order.
        by: what each answer was made by, `model` and `population`.
        done: resolved paths of films that need no answer.
        same: SHA-256 of answered films -> the file that had it first.
        latest: resolved path of a film -> the number of its line that counts.
    """

    def __init__(self, folder: Path, findings: list[str], by: dict[str, str], with_maps: bool) -> None:
        """Read what earlier calls answered.

        Raises:
            FolderError: another model's answers are there, or for another population.
        """
        self.folder, self.findings, self.by = folder, findings, by
        self.done, self.same, self.latest = set[str](), dict[str, str](), dict[str, int]()
        for number, (_, facts) in enumerate(self._lines()):
            self.latest[facts["path"]] = number
            if "findings" not in facts:
                self.done.discard(facts["path"])
                continue
            if any(facts[key] != value for key, value in by.items()):
                raise FolderError(
                    f"{folder / LINES} holds answers by another model, or for films like those of "
                    f"{facts['population']}: name another --out, or remove that folder"
                )
            self.same.setdefault(facts["sha256"], facts["file"])
            is_whole = not with_maps or self._has_maps(facts)
            (self.done.add if _is_unchanged(facts) and is_whole else self.done.discard)(facts["path"])

    def _has_maps(self, facts: dict[str, Any]) -> bool:
        return "maps" in facts and all((self.folder / name).is_file() for name in facts["maps"].values())

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Lines and what they say of films, without those that a kill cut off or that another program wrote."""
        if (self.folder / LINES).exists():
            with (self.folder / LINES).open("rb") as log:
                yield from ((line, facts) for line in log if (facts := self._parsed(line)))

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            facts = json.loads(line)
        except ValueError:
            return None
        if not isinstance(facts, dict) or not all(isinstance(facts.get(key), str) for key in ("file", "path")):
            return None
        if "refused" in facts:
            return facts
        has_all = {"sha256", "bytes", "changed_ns", *self.by} <= facts.keys() and isinstance(
            facts.get("findings"), dict
        )
        return facts if has_all and list(facts["findings"]) == self.findings else None

    @contextmanager
    def added(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """What adds a film's line, while no other call adds to this folder; at the end all is put in order.

        Raises:
            FolderError: another call is at work here.
        """
        (self.folder / MAPS).mkdir(parents=True, exist_ok=True)
        try:
            lock = filelock.FileLock(self.folder / LOCK, timeout=0)
            with lock, (self.folder / LINES).open("ab+") as log:
                if log.tell() and (log.seek(-1, os.SEEK_END), log.read(1))[1] != b"\n":
                    log.write(b"\n")  # the end of a line that a kill cut off
                numbers = itertools.count(max(self.latest.values(), default=-1) + 1)

                def add(facts: dict[str, Any]) -> None:
                    log.write(json.dumps(facts).encode() + b"\n")  # in ASCII: names on disk may be no UTF-8
                    self.latest[facts["path"]] = next(numbers)

                try:
                    yield add
                finally:
                    log.flush()
                    self._tidy()
        except filelock.Timeout as error:
            raise FolderError(f"another call writes to {self.folder}: wait for it, or name another --out") from error

    def _tidy(self) -> None:
        """Keep the last line of each film, remove pictures that none names, write the table."""
        pictures = set[str]()
        with _replaced(self.folder / LINES) as lines, _replaced(self.folder / TABLE) as made:
            table = csv.writer(made, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            table.writerow(["file", "refused", "same_as", "called", *self.findings])
            for number, (line, facts) in enumerate(self._lines()):
                if self.latest[facts["path"]] == number:
                    lines.write(line.decode())
                    table.writerow(self._row(facts))
                    pictures |= set(facts.get("maps", {}).values())
        for path in (self.folder / MAPS).iterdir():
            if f"{MAPS}/{path.name}" not in pictures:
                path.unlink()
        if not pictures:
            (self.folder / MAPS).rmdir()

    def _row(self, facts: dict[str, Any]) -> list[Any]:
        found = facts.get("findings", {})
        called = ";".join(name for name, one in found.items() if one["called"])
        values = [found[name]["probability"] if found else None for name in self.findings]
        return [facts["file"], facts.get("refused"), facts.get("same_as"), called, *values]


@contextmanager
def _replaced(path: Path) -> Iterator[Any]:
    """A file that takes a path's place when the block ends well."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_unchanged(facts: dict[str, Any]) -> bool:
    """Whether a film is as it was when it was answered."""
    try:
        about = Path(facts["path"]).stat()
    except OSError:
        return False  # asked for again, it is refused; else its answer stays
    return (about.st_size, about.st_mtime_ns) == (facts["bytes"], facts["changed_ns"])
