"""Pin the files of a data set where they lie: nothing is copied and nothing is fetched.

Reads the data set's root. Writes `data/raw/<dataset>/manifest.json`: name, bytes and SHA-256 of each file that the
data set's plug-in uses, its source and its licence, and the names of files that it does not use. An archive is used if
it has an owner's name, or if a table or a film lies in it; what else could hold films is counted, and three are named.
Stops when the root, a table or the images are missing, saying what is expected and where to get it.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from tqdm import tqdm

from stages.core import arguments, files, plugins
from stages.sources import archives, raw


@dataclass
class Sorted:
    """The files below a root.

    Attributes:
        tables: those of which the data set's plug-in reads tables, archives among them.
        films: those that hold films, archives among them.
        unread: archives without films -> what they hold, or why that cannot be seen.
        others: all that is left.
    """

    tables: set[str] = field(default_factory=set)
    films: set[str] = field(default_factory=set)
    unread: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def like_films(self) -> list[str]:
        """Images whose names are no film's."""
        return [name for name in self.others if raw.is_like_image(name) and not archives.is_of_system(name)]


def has_owners_name(base: str, plugin: ModuleType) -> bool:
    """Whether an owner's archive of images bears this name."""
    return archives.has_suffix(base) and any(fnmatch(base, pattern) for pattern in plugin.ARCHIVES)


def is_table(name: str, plugin: ModuleType) -> bool:
    """Whether the data set's plug-in reads a table of this name."""
    return any(raw.is_table(name, option) for options in raw.table_names(plugin).values() for option in options)


def is_used(name: str, plugin: ModuleType) -> bool:
    """Whether the data set's plug-in reads a file of this name: a table, an archive of images, or an image."""
    is_pack = has_owners_name(PurePosixPath(name).name, plugin)
    return is_pack or is_table(name, plugin) or raw.image_key(plugin, name) is not None


def sort_out(root: Path, names: Iterable[str], plugin: ModuleType) -> Sorted:
    """Which files below a root hold what."""
    found = Sorted()
    for name in names:
        if raw.image_key(plugin, name) is not None:
            found.films.add(name)
        elif has_owners_name(PurePosixPath(name).name, plugin):
            found.films.add(name)  # a tar of gigabytes is not read to know it; ingest says what lacks
        elif raw.is_like_image(name) or not archives.is_archive(root / name):
            (found.tables.add if is_table(name, plugin) else found.others.append)(name)
        else:
            look_into(root, name, plugin, found)
    return found


def look_into(root: Path, name: str, plugin: ModuleType, found: Sorted) -> None:
    """Sort out an archive whose name is not the owner's, by its members up to the first film."""
    rest = []
    try:
        for member in archives.members(root / name):
            if raw.image_key(plugin, member.name) is not None:
                found.films.add(name)
                return
            if is_table(member.name, plugin):
                found.tables.add(name)
            elif not archives.is_of_system(member.name):
                rest.append(member.name)
    except archives.ArchiveError as error:
        found.unread[name] = str(error).replace(str(root / name), name)
        return
    if name not in found.tables:
        found.unread[name] = f"{name} holds no table and no film of this data set (members: {raw.few(rest)})"
    elif any(raw.may_hold_films(member) for member in rest):
        found.unread[name] = f"{name} holds tables but no film of this data set (other members: {raw.few(rest)})"


def require_complete(root: Path, found: Sorted, dataset: str, plugin: ModuleType) -> dict[str, tuple[str, str]]:
    """Check that every table, and some images, are there; where each table lies.

    Raises:
        FileNotFoundError: with everything that is missing, and what was not understood.
    """
    there = raw.locate(root, sorted(found.tables | found.films), raw.table_names(plugin))
    missing = [table for table in plugin.TABLES if table not in there]
    if not found.films:
        missing.append(f"images (archives named {' or '.join(plugin.ARCHIVES)}, or image files in folders)")
    if missing:
        rest = [name for name in found.others if name not in found.like_films]
        told = [*unread(found), *([f"other files: {raw.few(rest)}"] if rest else [])]
        left = f" Left unread: {'; '.join(told)}." if told else ""
        raise FileNotFoundError(
            f"{root} is no complete {dataset}: it lacks {', '.join(missing)}. {plugin.ACCESS}.{left}"
        )
    return there


def unread(found: Sorted) -> list[str]:
    """What could hold films and is not read, in words."""
    told = list(found.unread.values())
    return [*told, f"image files of other names: {raw.few(found.like_films)}"] if found.like_films else told


def unused(names: list[str], found: Sorted, of_system: int) -> dict[str, Any]:
    """What lies in the root and is not read: names, or counts a folder where there are many; oddities if any."""
    folders = Counter(str(PurePosixPath(name).parent) for name in names)
    like_films = {"count": len(found.like_films), "first": found.like_films[: raw.NAMED]}
    return {
        "files": [name for name in names if "/" not in name],
        "in_folders": {folder: count for folder, count in sorted(folders.items()) if folder != "."},
        **({"archives": found.unread} if found.unread else {}),
        **({"images": like_films} if found.like_films else {}),
        **({"of_operating_systems": of_system} if of_system else {}),
    }


def main(argv: list[str] | None = None) -> None:
    """Parse, walk, hash, write."""
    args = arguments.parser(__doc__, "dataset", "root").parse_args(argv)
    plugin = plugins.load("datasets", args.dataset)
    if not Path(args.root).is_dir():
        raise FileNotFoundError(
            f"no folder {args.root} (params.yaml: datasets.{args.dataset}.root): it holds {', '.join(plugin.TABLES)} "
            f"and {' or '.join(plugin.ARCHIVES)} or image files. {plugin.ACCESS}."
        )
    root = files.input(args.root)
    names = list(raw.walk(root))
    found = sort_out(root, names, plugin)
    there = require_complete(root, found, args.dataset, plugin)
    for text in unread(found):
        print(f"{args.dataset}: left unread: {text}", file=sys.stderr)
    used = sorted(found.films | {name for name, _ in there.values()})
    pinned = [
        {"name": name, "bytes": (root / name).stat().st_size, "sha256": files.sha256(root / name)}
        for name in tqdm(used, desc=f"pin {args.dataset}", unit="file", disable=None)
    ]
    manifest = {
        "dataset": args.dataset,
        "source": plugin.SOURCE,
        "licence": plugin.LICENCE,
        "files": pinned,
        "unused": unused(sorted(set(names) - set(used)), found, raw.count_of_system(root)),
    }
    with files.output(f"data/raw/{args.dataset}") as folder:
        files.write_json(manifest, folder / "manifest.json")


if __name__ == "__main__":
    main()
