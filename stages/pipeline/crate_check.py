"""Does each file of this folder have the SHA-256 that ro-crate-metadata.json names? `python check.py`, Python 3.9 on.

Exits with 1 where a file is missing, changed, or not named. The last line names the metadata's own hash: compare it
with what the maker published.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

METADATA = "ro-crate-metadata.json"


def sha256(path: Path) -> str:
    """Of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def faults(folder: Path) -> Iterator[str]:
    """Each in a line."""
    try:
        graph = json.loads((folder / METADATA).read_text(encoding="utf-8"))["@graph"]
        named = {unquote(one["@id"]): one["sha256"] for one in graph if "sha256" in one}
    except (OSError, ValueError, LookupError, TypeError) as error:
        yield f"{METADATA}: cannot be read ({error}): unpack the archive again"
        return
    entries = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    links = {path for path in entries if path.is_symlink() or not path.is_file()}
    yield from (f"{path.relative_to(folder)}: a link, or no file" for path in sorted(links))
    there = {path.relative_to(folder).as_posix() for path in entries if path not in links}
    for path in sorted(named.keys() | there - {METADATA}):
        if path not in named:
            yield f"{path}: no file that the metadata names"
        elif path not in there:
            yield f"{path}: not here"
        elif sha256(folder / path) != named[path]:
            yield f"{path}: other content than the metadata names"


def main() -> None:
    """Check, print, end with 1 where there is a fault."""
    folder = Path(__file__).resolve().parent
    found = list(faults(folder))
    for fault in found:
        print(fault)
    own = folder / METADATA
    named_by = f"by {METADATA} {sha256(own)}" if own.is_file() else ""
    print(f"{len(found)} faults" if found else "every file is as named", named_by)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
