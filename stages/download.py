"""Pin the files of a data set where they lie: nothing is copied and nothing is fetched.

Reads the data set's root. Writes `data/raw/<dataset>/manifest.json`: name, bytes and SHA-256 of each file that the
data set's plug-in uses, its source and its licence, and the names of files that it does not use. Stops when the root, a
table or the images are missing, saying what is expected and where to get it.
"""

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from tqdm import tqdm

from stages.core import arguments, files, plugins
from stages.sources import archives, raw


def is_used(name: str, plugin: ModuleType) -> bool:
    """Whether the data set's plug-in reads a file of this name: a table, an archive of images, or an image."""
    base = PurePosixPath(name).name
    is_table = base.removesuffix(".gz") in {*plugin.TABLES, *raw.optional_tables(plugin)}
    is_pack = archives.is_archive(base) and any(fnmatch(base, pattern) for pattern in plugin.ARCHIVES)
    return is_table or is_pack or raw.image_key(plugin, name) is not None


def require_complete(root: Path, used: list[str], dataset: str, plugin: ModuleType) -> None:
    """Check that every table, and some images, are there.

    Raises:
        FileNotFoundError: with everything that is missing.
    """
    there = raw.locate(root, used, plugin.TABLES)
    missing = [table for table in plugin.TABLES if table not in there]
    if all(PurePosixPath(name).name.removesuffix(".gz") in plugin.TABLES for name in used):
        missing.append(f"images (archives named {' or '.join(plugin.ARCHIVES)}, or image files in folders)")
    if missing:
        raise FileNotFoundError(f"{root} is no complete {dataset}: it lacks {', '.join(missing)}. {plugin.ACCESS}.")


def unused(names: list[str]) -> dict[str, Any]:
    """What lies in the root and is not read: names, or counts a folder where there are many."""
    folders = Counter(str(PurePosixPath(name).parent) for name in names)
    return {
        "files": [name for name in names if "/" not in name],
        "in_folders": {folder: count for folder, count in sorted(folders.items()) if folder != "."},
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
    used = [name for name in names if is_used(name, plugin)]
    require_complete(root, used, args.dataset, plugin)
    pinned = [
        {"name": name, "bytes": (root / name).stat().st_size, "sha256": files.sha256(root / name)}
        for name in tqdm(used, desc=f"pin {args.dataset}", unit="file", disable=None)
    ]
    manifest = {
        "dataset": args.dataset,
        "source": plugin.SOURCE,
        "licence": plugin.LICENCE,
        "files": pinned,
        "unused": unused(sorted(set(names) - set(used))),
    }
    with files.output(f"data/raw/{args.dataset}") as folder:
        files.write_json(manifest, folder / "manifest.json")


if __name__ == "__main__":
    main()
