"""The findings that the pipeline knows, and the facts that a data set states about one.

The table is `findings.csv` beside this file: name, title, UMLS CUI, synonyms. Its order is the order everywhere.
"""

import csv
from functools import cache
from pathlib import Path

PRESENT = 1  # stated as there
ABSENT = 0  # stated as not there, or searched for by the labeller and not found
UNCERTAIN = -1  # stated as uncertain
BLANK = -2  # not mentioned, which is not a negative
IMPLIED = -3  # not mentioned, and absent because the film as a whole is called normal
MISSING = -4  # this data set never annotates it
FACTS = (PRESENT, ABSENT, UNCERTAIN, BLANK, IMPLIED, MISSING)

TABLE = Path(__file__).with_suffix(".csv")


@cache
def titles() -> dict[str, str]:
    """Finding name -> its title for people, in the table's order."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["title"] for row in csv.DictReader(file)}


def names() -> list[str]:
    """All finding names, in the table's order."""
    return list(titles())


@cache
def spellings() -> dict[str, str]:
    """What a finding is called, in lower case with spaces for underscores -> its name (several synonyms join by |)."""
    found: dict[str, str] = {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            words = [row["name"], row["title"], *filter(None, row["synonyms"].split("|"))]
            found |= dict.fromkeys((word.lower().replace("_", " ") for word in words), row["name"])
    return found


def in_order(chosen: set[str]) -> list[str]:
    """The chosen names in the table's order.

    Raises:
        ValueError: a name is not in the table.
    """
    unknown = chosen - set(names())
    if unknown:
        raise ValueError(f"unknown finding {sorted(unknown)}: known are {', '.join(names())} ({TABLE.name})")
    return [name for name in names() if name in chosen]
