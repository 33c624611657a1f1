"""Is a film or a table of a data set's owner about to be committed? `python -m stages.pipeline.staged <path>...`.

A name that an owner gives (tables, archives, films), what DICOM and parquet files begin with, and films in an export's
folder are refused: nearly all licences allow no copy. Names are those of stages/datasets, so that a new data set is
guarded by its own file. What git ignores cannot be committed by accident; this is for `git add --force` and for other
folders.
"""

import fnmatch
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from stages.core import arguments, plugins
from stages.pipeline import lock

MAGIC = {b"PAR1": (0, "parquet"), b"DICM": (128, "DICOM")}  # content, and where in a file it stands
FILMS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
MAX_BYTES = 1_000_000


def names() -> Iterator[tuple[str, str]]:
    """(pattern of a file's name, data set) of tables and archives."""
    for dataset in plugins.names("datasets"):
        about = plugins.load("datasets", dataset)
        older = [name for names_ in getattr(about, "OLDER_NAMES", {}).values() for name in names_]
        known = (*about.TABLES, *getattr(about, "OPTIONAL_TABLES", {}), *getattr(about, "FILES", {}), *older)
        yield from ((Path(name).name, dataset) for name in known)
        yield from ((Path(pattern).name, dataset) for pattern in about.ARCHIVES)


def film_of(name: str) -> str | None:
    """The data set whose films have such a name."""
    for dataset in plugins.names("datasets"):
        if plugins.load("datasets", dataset).image_key(name) is not None:
            return dataset
    return None


def fault(path: Path, known: list[tuple[str, str]], made: Collection[str]) -> str | None:
    """Why a file may not be committed, if it may not.

    Args:
        path: of it.
        known: of `names`.
        made: what stages made, pictures of the report among them.
    """
    name = path.name.lower()
    owner = next((dataset for pattern, dataset in known if fnmatch.fnmatchcase(name, pattern.lower())), None)
    if owner:
        return f"has the name of a file of {owner}'s owner"
    is_film = path.suffix.lower() in FILMS and not any(one.as_posix() in made for one in (path, *path.parents))
    if is_film and (owner := film_of(path.with_suffix(path.suffix.lower()).as_posix())):
        return f"has the name of a film of {owner}"
    if path.is_file():
        with path.open("rb") as file:
            content = file.read(132)
        for magic, (place, kind) in MAGIC.items():
            if content[place : place + len(magic)] == magic:
                return f"is a {kind} file"
        if path.stat().st_size > MAX_BYTES:
            return f"has {path.stat().st_size:,} bytes: what a command makes again, DVC keeps"
    return None


def main(argv: list[str] | None = None) -> None:
    """Check each path, end with 1 where one is refused."""
    parser = arguments.parser(__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files that are to be committed")
    known, made = sorted(set(names())), lock.producers(lock.read(lock.LOCK)) if lock.LOCK.exists() else {}
    found = [f"{path} {reason}" for path in parser.parse_args(argv).paths if (reason := fault(path, known, made))]
    if found:
        sys.exit("\n".join([*found, "take it out: git restore --staged <path>"]))


if __name__ == "__main__":
    main()
