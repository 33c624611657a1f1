"""Fetch what an owner ships: `python -m stages.pipeline.fetch --dataset <d> --root <folder> [--url <address>]`.

A command, not a stage of the pipeline: what depends on the network cannot be reproduced, so a user runs it once and the
stage `download` pins what it brought. The data set's plug-in lists the files, their sizes, checksums and addresses
(`FILES`, see `stages.datasets`); names are always the list's, never the server's.

Writes the files into the root. `<root>/.fetch` holds what is unfinished, so that a killed run goes on where it was, and
`checksums.json`: the SHA-256, when first seen, of each file whose owner publishes no checksum. A second call checks
size and checksum of every file and fetches nothing. Stops when the disk is too small; names every file that it could
not get, and keeps the others.
"""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pooch
import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from stages.core import arguments, files, plugins
from stages.pipeline.transfer import FetchError, File, connection, resume, size_of

WORK = ".fetch"  # `download` walks past it


def listed(dataset: str, plugin: ModuleType) -> list[File]:
    """The files that an owner ships.

    Raises:
        FetchError: the plug-in lists none.
    """
    if not hasattr(plugin, "FILES"):
        raise FetchError(f"stages/datasets/{dataset}.py lists no FILES: put them in place by hand. {plugin.ACCESS}.")
    return [File(name, **fields) for name, fields in plugin.FILES.items()]


def addressed(shipped: Sequence[File], url: str | None) -> list[File]:
    """The files to have, each with its address.

    Args:
        shipped: the plug-in's files.
        url: the address of one of them (it ends in the file's name), of a folder of all, or with ``{name}`` where a
            file's name belongs; what follows a ``?`` is kept. None: the addresses of the list.

    Raises:
        FetchError: the address is no web address.
    """
    whole = [file for file in shipped if not file.alone]
    if url is None:
        return whole
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError("URL must start with https:// or http:// and a host")
    last = unquote(PurePosixPath(parts.path).name)
    if single := [replace(file, url=url) for file in shipped if file.name == last]:
        return single
    if "{name}" in url:
        return [replace(file, url=url.replace("{name}", quote(file.name))) for file in whole]
    folder = parts.path.rstrip("/")
    return [replace(file, url=urlunsplit(parts._replace(path=f"{folder}/{quote(file.name)}"))) for file in whole]


def fault(path: Path, file: File, checksum: str | None) -> str | None:
    """What is wrong with a file that lies in the root, or None."""
    if not path.is_file():
        return "not there"
    size = path.stat().st_size
    if not file.allows(size):
        return f"it has {size} bytes"
    if checksum is not None:
        algorithm = checksum.split(":")[0]
        found = f"{algorithm}:{pooch.file_hash(path, algorithm)}"
        if found != checksum:
            by = "its owner" if file.checksum else f"{WORK}/checksums.json, when it was first seen"
            return f"it has {found}, expected {checksum} by {by}"
    return None


def require_space(root: Path, wanted: Sequence[File]) -> None:
    """List what is still to come, and check that it fits on the disk.

    Raises:
        FetchError: it does not.
    """
    need = sum(max(0, file.expected_bytes - size_of(_part(root, file))) for file in wanted)
    have = shutil.disk_usage(root).free
    needed, free = (tqdm.format_sizeof(size, "B") for size in (need, have))
    if wanted:
        listed = "".join(f"\n  {file}" for file in wanted)
        print(f"to fetch, {needed} in all ({free} free in {root}):{listed}", flush=True)
    if need > have:
        raise FetchError(f"{root} has {free} free, {len(wanted)} files need {needed}: make room, or name another ROOT")


def fetch(root: Path, file: File, session: requests.Session) -> str:
    """Bring one file into the root; its checksum.

    Raises:
        FetchError: it cannot be had, or has wrong bytes twice.
    """
    work = root / WORK
    source = pooch.create(work, "", registry={file.name: file.checksum}, urls={file.name: file.url}, retry_if_failed=1)
    downloader = partial(resume, file=file, part=_part(root, file), session=session)
    try:
        done = Path(source.fetch(file.name, downloader=downloader))
    except ValueError as error:
        raise FetchError(
            f"{file.name}: wrong bytes, twice: {error} Try again later, or fetch it with a browser and put it in ROOT"
        ) from error
    checksum = file.checksum or f"sha256:{pooch.file_hash(done)}"
    done.replace(root / file.name)
    return checksum


def absent(root: Path, shipped: Sequence[File], faults: dict[str, str], dataset: str, access: str) -> str:
    """What to tell a user of files that the list has no address for."""
    lines = [f"{root} lacks files that the owner of {dataset} hands out after registration:"]
    lines += [f"  {file} ({faults[file.name]})" for file in shipped if file.name in faults]
    lines += [f"or, alone: {file}" for file in shipped if file.alone]
    named = f'make fetch DATASET={dataset} ROOT={shlex.quote(str(root))} URL="<address>"'
    lines.append(
        f"{access}. Put the files in {root}, or name the address that you were given: "
        f"{named} (of a folder of all, or of one file). Where they lie unpacked in folders, nothing needs "
        "fetching."
    )
    return "\n".join(lines)


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """The root's working folder for this process alone; what a killed run left of pooch's temporary files goes.

    Raises:
        FetchError: another process holds it.
    """
    work = root / WORK
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            for left in work.glob("tmp*"):
                left.unlink()
            yield
    except Timeout:
        raise FetchError(f"another `make fetch` writes to {root}: wait for it, or end it") from None


class Noted:
    """Checksums of files whose owner publishes none, as they were when they were first seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checksums: dict[str, str] = files.read_json(path) if path.exists() else {}

    def of(self, file: File) -> str | None:
        """The checksum that a file must have, or None if it has never been seen."""
        return file.checksum or self.checksums.get(file.name)

    def note(self, file: File, checksum: str) -> None:
        """Keep a checksum for the next check."""
        self.checksums[file.name] = checksum
        with files.output(str(self.path)) as temporary:
            files.write_json(self.checksums, temporary)
        print(f"{file.name}: no checksum is published; {checksum} noted in {self.path}", flush=True)


def check(root: Path, wanted: Sequence[File], noted: Noted) -> dict[str, str]:
    """What is wrong with files in the root, by name; those that are right and were never seen are noted."""
    faults = {}
    for file in wanted:
        if found := fault(root / file.name, file, noted.of(file)):
            faults[file.name] = found
            continue
        print(f"there: {file}", flush=True)
        if noted.of(file) is None:
            noted.note(file, f"sha256:{pooch.file_hash(root / file.name)}")
    return faults


def complete(dataset: str, plugin: ModuleType, root: Path, url: str | None) -> None:
    """Check what is in the root and fetch what is not.

    Raises:
        FetchError: with all that is still missing.
    """
    shipped, noted = listed(dataset, plugin), Noted(root / WORK / "checksums.json")
    alone = [file for file in shipped if file.alone]
    if url is None and len(check(root, alone, noted)) < len(alone):
        print("nothing to fetch")
        return
    wanted = addressed(shipped, url)
    faults = check(root, wanted, noted)
    todo = [file for file in wanted if file.name in faults and file.url]
    require_space(root, todo)
    failed = []
    with connection() as session:
        for file in todo:
            try:
                checksum = fetch(root, file, session)
            except FetchError as error:
                failed.append(file.name)
                print(error, file=sys.stderr, flush=True)
                continue
            if file.checksum is None:
                noted.note(file, checksum)
    if failed:
        raise FetchError(
            f"{len(failed)} of {len(todo)} files failed ({', '.join(failed)}): see above for why. The others are kept, "
            "and the same command tries these again"
        )
    if len(todo) < len(faults):
        raise FetchError(absent(root, shipped, faults, dataset, plugin.ACCESS))
    print(f"fetched {len(todo)} files" if todo else "nothing to fetch")


def _part(root: Path, file: File) -> Path:
    return root / WORK / f"{file.name}.part"


def main(argv: list[str] | None = None) -> None:
    """Parse, fetch."""
    parser = arguments.parser(__doc__, "dataset", "root")
    parser.add_argument("--url", help="an address that the owner gave you")
    args = parser.parse_args(argv)
    if not args.root or args.dataset not in plugins.names("datasets"):
        known = ", ".join(plugins.names("datasets"))
        sys.exit(f"name data set and folder: make fetch DATASET=<{known}> ROOT=<folder> [URL=<address>]")
    pooch.get_logger().setLevel("WARNING")  # it tells whole addresses
    try:
        with only_writer(Path(args.root)):
            complete(args.dataset, plugins.load("datasets", args.dataset), Path(args.root), args.url or None)
    except (FetchError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on from here")


if __name__ == "__main__":
    main()
