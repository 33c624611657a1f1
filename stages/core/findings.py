"""The findings that the pipeline knows, and the facts that a data set states about one.

The table is `stages/findings.csv`: name, title, UMLS CUI, synonyms. Its order is the order everywhere. A stage that
needs it declares it as an input like any other: only those run again when a finding is added.
"""

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PRESENT = 1  # stated as there
ABSENT = 0  # stated as not there, or searched for by the labeller and not found
UNCERTAIN = -1  # stated as uncertain
BLANK = -2  # not mentioned, which is not a negative
IMPLIED = -3  # not mentioned, and absent because the film as a whole is called normal
MISSING = -4  # this data set never annotates it
FACTS = (PRESENT, ABSENT, UNCERTAIN, BLANK, IMPLIED, MISSING)

COLUMNS = ("name", "title", "cui", "synonyms")
TABLE = Path(__file__).parent.parent / "findings.csv"


@dataclass(frozen=True)
class Vocabulary:
    """The table.

    Attributes:
        titles: finding name -> its title for people, in the table's order.
        spellings: what a finding is called, in lower case with spaces for underscores -> its name.
    """

    titles: dict[str, str]
    spellings: dict[str, str]

    @property
    def names(self) -> list[str]:
        """All finding names, in the table's order."""
        return list(self.titles)

    def in_order(self, chosen: Iterable[str]) -> list[str]:
        """The chosen names in the table's order.

        Raises:
            ValueError: a name is not in the table.
        """
        wanted = set(chosen)
        if unknown := wanted - set(self.titles):
            raise ValueError(f"unknown finding {sorted(unknown)}: known are {', '.join(self.titles)} ({TABLE.name})")
        return [name for name in self.titles if name in wanted]

    def nearest(self, word: str) -> str | None:
        """The finding that a word that names none was probably meant for."""
        found = difflib.get_close_matches(plain(word), self.spellings, n=1)
        return self.spellings[found[0]] if found else None


def plain(word: str) -> str:
    """A word as `Vocabulary.spellings` has it."""
    return word.lower().replace("_", " ")


def vocabulary(path: Path = TABLE) -> Vocabulary:
    """Read the table (several synonyms of a finding join by |).

    Raises:
        ValueError: it has other columns, or a line with more or fewer.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = tuple(reader.fieldnames or ()), list(reader)
    if columns != COLUMNS or any(None in row.values() or None in row for row in rows):
        raise ValueError(
            f"{path} must have the columns {','.join(COLUMNS)} in each line: mend it, or `git checkout` it"
        )
    words = {row["name"]: [row["name"], row["title"], *filter(None, row["synonyms"].split("|"))] for row in rows}
    spellings = {plain(word): name for name, spelled in words.items() for word in spelled}
    return Vocabulary({row["name"]: row["title"] for row in rows}, spellings)


def in_order_of(columns: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """The chosen findings in the order of a label table's columns, which is the vocabulary's.

    Raises:
        ValueError: a finding has no column.
    """
    wanted, there = set(chosen), list(columns)
    if unknown := wanted - set(there):
        raise ValueError(f"the labels have no column {sorted(unknown)}: run `make repro`, which harmonizes them again")
    return [name for name in there if name in wanted]
