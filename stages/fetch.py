"""Fetch what a data set's owner ships: `python -m stages.fetch --dataset <d> --root <folder> [--url <address>]`.

A command, not a stage of the pipeline: what depends on the network cannot be reproduced, so a user runs it once and the
stage `download` pins what it brought. The data set's plug-in lists the files, their sizes, checksums and addresses
(`FILES`, see `stages.datasets`); names are always the list's, never the server's.

Writes the files into the root. `<root>/.fetch` holds what is unfinished, so that a killed run goes on where it was, and
`checksums.json`: the SHA-256, when first seen, of each file whose owner publishes no checksum. A second call checks
size and checksum of every file and fetches nothing. Stops when the disk is too small; names every file that it could
not get, and keeps the others.
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import pooch
import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from stages.core import files, plugins

WORK = ".fetch"  # `download` walks past it
CHUNK_BYTES = 1 << 16
TIMEOUT_S = (20, 60)  # to connect, to wait for the next byte
TRIES = 6  # in a row that bring nothing new
FIRST_WAIT_S, LONGEST_WAIT_S = 1, 60
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that another try may mend
SMALLEST = 0.1  # of a size that is known about: what is smaller is an error message, not the file


class FetchError(RuntimeError):
    """A file that cannot be had by trying again; the message names it and the remedy."""


class InterruptedTransferError(RuntimeError):
    """A transfer ended early; the next try goes on from there."""


@dataclass(frozen=True)
class File:
    """A line of a plug-in's FILES (see `stages.datasets`)."""

    name: str
    bytes: int | None = None
    about_bytes: int = 0
    checksum: str | None = None
    url: str | None = None
    alone: bool = False

    @property
    def expected_bytes(self) -> int:
        """The exact size, or what is known about it."""
        return self.about_bytes if self.bytes is None else self.bytes

    def allows(self, size_bytes: int) -> bool:
        """Whether a file of this size can be it."""
        return size_bytes >= SMALLEST * self.about_bytes if self.bytes is None else size_bytes == self.bytes

    def __str__(self) -> str:
        about = "about " if self.bytes is None else ""
        return f"{self.name}, {about}{tqdm.format_sizeof(self.expected_bytes, 'B')}"


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
    need = sum(max(0, file.expected_bytes - _size(_part(root, file))) for file in wanted)
    have = shutil.disk_usage(root).free
    needed, free = (tqdm.format_sizeof(size, "B") for size in (need, have))
    if wanted:
        listed = "".join(f"\n  {file}" for file in wanted)
        print(f"to fetch, {needed} in all ({free} free in {root}):{listed}", flush=True)
    if need > have:
        raise FetchError(f"{root} has {free} free, {len(wanted)} files need {needed}: make room, or name another ROOT")


def resume(url: str, output: str, _: Any, *, file: File, part: Path, session: requests.Session) -> None:
    """A downloader for pooch that goes on where an earlier one stopped, and tries again while that helps.

    Args:
        url: where from.
        output: where pooch wants the finished file.
        file: what is expected.
        part: what is there already.
        session: how to connect.

    Raises:
        FetchError: the server has not this file, or several tries in a row brought nothing.
    """
    print(f"fetching {file}" + (f", from byte {_size(part)}" if _size(part) else ""), flush=True)
    tries, furthest = 0, _size(part)
    while True:
        try:
            _transfer(url, file, part, session)
            break
        except (requests.RequestException, InterruptedTransferError) as error:
            reached = _size(part)
            tries = 1 if reached > furthest else tries + 1
            furthest = max(furthest, reached)
            if tries == TRIES:
                raise FetchError(
                    f"{file.name}: {_reason(error)}, {TRIES} times in a row at byte {reached}: see to the connection; "
                    "the same command goes on from there"
                ) from error
            time.sleep(min(FIRST_WAIT_S * 2 ** (tries - 1), LONGEST_WAIT_S))
    part.replace(output)
    part.with_suffix(".version").unlink(missing_ok=True)


def _transfer(url: str, file: File, part: Path, session: requests.Session) -> None:
    """One request: append to the partial file what it lacks."""
    have, version = _size(part), part.with_suffix(".version")
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version.exists() and (known := version.read_text(encoding="utf-8")):
            headers["If-Range"] = known
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return  # complete: a run was killed before it could rename it
            part.unlink(missing_ok=True)
            raise InterruptedTransferError("the partial file is longer than the server's")
        _require_file(response, file)
        start, total = _extent(response)
        _require_expected(response, file, total)
        if start not in (0, have):
            part.unlink()
            raise InterruptedTransferError(f"the server sent bytes from {start}, asked from {have}")
        if start == 0:
            part.unlink(missing_ok=True)
            version.write_text(_version(response), encoding="utf-8")
        with (
            part.open("ab") as out,
            tqdm(total=total, initial=start, desc=file.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
    expected = file.bytes if total is None else total
    if expected is not None and _size(part) != expected:
        raise InterruptedTransferError(f"the transfer ended at byte {_size(part)} of {expected}")


def _require_file(response: requests.Response, file: File) -> None:
    """Check that the answer is a file."""
    host, status = urlsplit(response.url).hostname, response.status_code
    if status in PASSING:
        raise InterruptedTransferError(f"{host} answered {status} {response.reason}")
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise FetchError(
            f"{file.name}: {host} answered {status} {response.reason}: the address is wrong, or was valid for a time "
            "only; name a new one with URL=<address>"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise FetchError(
            f"{file.name}: {host} sent a web page instead: it asks you to log in, or the link has changed; fetch the "
            "file with a browser and put it in ROOT"
        )


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """(first byte that the answer holds, the file's whole size or None)."""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None:
            raise InterruptedTransferError("the server sent a part and did not say which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length")
    return 0, None if length is None else int(length)


def _require_expected(response: requests.Response, file: File, total: int | None) -> None:
    """Check what the server says of the file's size, before the first byte is written."""
    host = urlsplit(response.url).hostname
    if total is None:
        if file.bytes is None and file.checksum is None and response.headers.get("Transfer-Encoding") != "chunked":
            raise FetchError(
                f"{file.name}: {host} states no size and its owner publishes neither size nor checksum, so that a part "
                "would pass for the whole; fetch it by other means and put it in ROOT"
            )
    elif not file.allows(total):
        raise FetchError(
            f"{file.name}: {host} offers {total} bytes, expected {file}: the address is wrong, or its owner has "
            "changed the file (then its line in FILES of the data set's plug-in is to change too)"
        )


def _version(response: requests.Response) -> str:
    """What tells this version of a file from a later one (If-Range takes no weak ETag)."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def connection() -> requests.Session:
    """A session that follows redirects, but never from https to anything else."""
    session = requests.Session()
    session.hooks["response"].append(_refuse_downgrade)
    return session


def _refuse_downgrade(response: requests.Response, *_: Any, **__: Any) -> None:
    target = urlsplit(urljoin(response.url, response.headers.get("Location", "")))
    if response.is_redirect and response.url.startswith("https:") and target.scheme != "https":
        raise FetchError(f"{urlsplit(response.url).hostname} redirects from https to {target.scheme}: refused")


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
    lines.append(
        f"{access}. Put the files in {root}, or name the address that you were given: "
        f'make fetch DATASET={dataset} ROOT={root} URL="<address>" (of a folder of all, or of one file). '
        "Where they lie unpacked in folders, nothing needs fetching."
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """An error in words, without the address: it may hold a secret."""
    return type(error).__name__ if isinstance(error, requests.RequestException) else str(error)


def main(argv: list[str] | None = None) -> None:
    """Parse, fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--root", required=True)
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
