"""The transfer of one file: over several tries, onto what is there, and checked before its first byte is kept."""

import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

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


def size_of(path: Path) -> int:
    """The bytes of a file that is there, or 0."""
    return path.stat().st_size if path.exists() else 0


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
    print(f"fetching {file}" + (f", from byte {size_of(part)}" if size_of(part) else ""), flush=True)
    tries, furthest = 0, size_of(part)
    while True:
        try:
            _transfer(url, file, part, session)
            break
        except (requests.RequestException, InterruptedTransferError) as error:
            reached = size_of(part)
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
    have, version = size_of(part), part.with_suffix(".version")
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
    if expected is not None and size_of(part) != expected:
        raise InterruptedTransferError(f"the transfer ended at byte {size_of(part)} of {expected}")


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
    """A session that follows redirects, but never from https to anything else, nor to what is no address of the web."""
    session = requests.Session()
    session.hooks["response"].append(_refuse_elsewhere)
    return session


def _refuse_elsewhere(response: requests.Response, *_: Any, **__: Any) -> None:
    source, target = urlsplit(response.url), urlsplit(urljoin(response.url, response.headers.get("Location", "")))
    allowed = ("https",) if source.scheme == "https" else ("http", "https")
    if response.is_redirect and target.scheme not in allowed:
        raise FetchError(f"{source.hostname} redirects from {source.scheme} to {target.scheme}: refused")


def _reason(error: Exception) -> str:
    """An error in words, without the address: it may hold a secret."""
    return type(error).__name__ if isinstance(error, requests.RequestException) else str(error)
