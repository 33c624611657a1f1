"""`make fetch` against a server that drops, shortens, garbles, redirects and refuses; loopback only."""

import hashlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import requests

from stages import download
from stages.core import files, plugins
from stages.datasets import chestxray14, chexpert
from stages.pipeline import fetch, transfer
from stages.sources import raw

REPOSITORY = Path(__file__).parent.parent
NAME = "images_001.tar.gz"
DROP_AT = 400_000
PATIENCE_S = 30


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


CONTENT = noise(1_000_000)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.contents`; a path's next misdeed, if any, is taken from `server.misdeeds`."""

    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        misdeeds = self.server.misdeeds.get(path, [])
        misdeed = misdeeds.pop(0) if misdeeds else ""
        self.server.seen.append((self.path, self.headers.get("Range")))
        if misdeed.startswith("to "):
            self.answer(302, b"", Location=misdeed.removeprefix("to "))
        elif misdeed in ("404", "500"):
            self.answer(int(misdeed), b"")
        elif misdeed == "page":
            self.answer(200, b"<html>log in</html>", **{"Content-Type": "text/html; charset=utf-8"})
        elif path in self.server.contents:
            self.serve(self.server.contents[path], misdeed)
        else:
            self.answer(404, b"")

    def serve(self, content: bytes, misdeed: str) -> None:
        if misdeed == "garble":
            content = bytes(len(content))
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and misdeed != "no range" else 0
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        if start >= len(content):
            self.answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"ETag": tag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = len(content)
        if misdeed in ("drop", "stall", "short, no length"):
            end = start + DROP_AT if start + DROP_AT < end else end
        self.answer(206 if start else 200, content[start:], end - start, misdeed == "short, no length", **headers)
        if misdeed == "stall":
            self.server.release.wait(PATIENCE_S)

    def answer(
        self, status: int, body: bytes, send: int | None = None, is_lengthless: bool = False, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not is_lengthless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.sent += len(body[:send])  # before the write: the client may be done before the next line runs
        self.wfile.write(body[:send])
        self.wfile.flush()
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """What it serves, does wrong, was asked for and has sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {f"/{NAME}": CONTENT}
        self.misdeeds: dict[str, list[str]] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.sent = 0
        self.release = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error here."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No proxy and no waiting; the waits that were asked for."""
    monkeypatch.setenv("NO_PROXY", "*")
    asked: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=asked.append))
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=asked.append))
    return asked


def entry(server: Server, name: str = NAME, **changes: Any) -> dict[str, Any]:
    """A line of FILES that is true."""
    content = server.contents[f"/{name}"]
    checksum = f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"
    return {"bytes": len(content), "checksum": checksum, "url": f"{server.address}/{name}"} | changes


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Fetch a list of files, by default one true line, into a root."""

    def make(listed: dict[str, Any] | None = None, url: str = "", plugin: Any = chestxray14) -> Path:
        monkeypatch.setattr(plugin, "FILES", {NAME: entry(server)} if listed is None else listed)
        root = tmp_path / "root"
        fetch.main(["--dataset", plugin.__name__.split(".")[-1], "--root", str(root), "--url", url])
        return root

    return make


def test_a_file_comes_whole_and_a_second_call_asks_for_nothing(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    root = run()
    assert (root / NAME).read_bytes() == CONTENT
    assert list(raw.walk(root)) == [NAME]
    assert [path.name for path in (root / ".fetch").iterdir() if path.name != "lock"] == []
    run()
    assert len(server.seen) == 1
    assert capsys.readouterr().out.endswith("nothing to fetch\n")


def test_a_dropped_connection_goes_on_at_the_byte_where_it_broke(
    run: Callable[..., Path], server: Server, waits: list[float]
) -> None:
    server.misdeeds[f"/{NAME}"] = ["drop", "drop"]
    root = run()
    assert (root / NAME).read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for _, asked in server.seen if asked]
    assert DROP_AT - transfer.CHUNK_BYTES < starts[0] <= DROP_AT < starts[1]
    assert server.sent < len(CONTENT) + 2 * transfer.CHUNK_BYTES
    assert waits == [1, 1]  # each try brought something, so the wait does not grow


def test_a_server_that_ignores_ranges_sends_the_file_afresh(run: Callable[..., Path], server: Server) -> None:
    server.misdeeds[f"/{NAME}"] = ["drop", "no range"]
    assert (run() / NAME).read_bytes() == CONTENT
    assert server.sent == DROP_AT + len(CONTENT)


def test_a_file_that_changed_between_two_tries_is_not_mixed(run: Callable[..., Path], server: Server) -> None:
    server.contents[f"/{NAME}"] = noise(len(CONTENT), seed=1)
    server.misdeeds[f"/{NAME}"] = ["drop"] + ["500"] * transfer.TRIES
    unchecked = {NAME: {"bytes": len(CONTENT), "url": f"{server.address}/{NAME}"}}
    with pytest.raises(SystemExit):
        run(unchecked)
    server.contents[f"/{NAME}"] = CONTENT
    assert (run(unchecked) / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(("left", "sent"), [(CONTENT, 0), (CONTENT + b"x", len(CONTENT))], ids=["whole", "too long"])
def test_a_partial_file_that_is_no_part_is_renamed_or_fetched_afresh(
    run: Callable[..., Path], server: Server, tmp_path: Path, left: bytes, sent: int
) -> None:
    (tmp_path / "root/.fetch").mkdir(parents=True)
    (tmp_path / "root/.fetch" / f"{NAME}.part").write_bytes(left)
    assert (run() / NAME).read_bytes() == CONTENT
    assert server.sent == sent


def test_a_body_that_ends_early_without_a_stated_length_is_not_taken_for_the_whole(
    run: Callable[..., Path], server: Server
) -> None:
    server.misdeeds[f"/{NAME}"] = ["short, no length"]
    unchecked = {NAME: entry(server, checksum=None)}
    assert (run(unchecked) / NAME).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_without_any_size_or_checksum_a_stream_without_length_is_refused(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misdeeds[f"/{NAME}"] = ["short, no length"]
    with pytest.raises(SystemExit):
        run({NAME: {"about_bytes": len(CONTENT), "url": f"{server.address}/{NAME}"}})
    assert "states no size" in capsys.readouterr().err


def test_a_file_of_another_size_is_refused_before_its_first_byte(
    run: Callable[..., Path], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run({NAME: entry(server, bytes=len(CONTENT) + 1)})
    assert re.search(r"images_001.tar.gz: 127.0.0.1 offers 1000000 bytes, expected", capsys.readouterr().err)
    assert list((tmp_path / "root/.fetch").glob("*.part")) == []


def test_wrong_bytes_are_fetched_once_more(run: Callable[..., Path], server: Server) -> None:
    server.misdeeds[f"/{NAME}"] = ["garble"]
    assert (run() / NAME).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_bytes_that_are_wrong_twice_are_named_and_the_other_files_are_kept(
    run: Callable[..., Path], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.contents["/test_list.txt"] = b"00000001_000.png\n"
    server.misdeeds[f"/{NAME}"] = ["garble", "garble"]
    with pytest.raises(SystemExit, match=r"1 of 2 files failed \(images_001.tar.gz\)"):
        run({NAME: entry(server), "test_list.txt": entry(server, "test_list.txt")})
    told = capsys.readouterr().err
    expected = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    found = hashlib.md5(bytes(len(CONTENT)), usedforsecurity=False).hexdigest()
    assert re.search(f"{NAME}: wrong bytes, twice: .*{expected}.*{found}.*Try again later", told)
    assert not (tmp_path / "root" / NAME).exists()
    assert (tmp_path / "root/test_list.txt").read_bytes() == b"00000001_000.png\n"


def test_a_damaged_file_in_the_root_is_replaced(run: Callable[..., Path], server: Server) -> None:
    root = run()
    (root / NAME).write_bytes(bytes(len(CONTENT)))
    run()
    assert (root / NAME).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_redirect_is_followed_and_the_name_stays_the_lists(run: Callable[..., Path], server: Server) -> None:
    server.contents["/elsewhere/other.bin"] = CONTENT
    server.misdeeds[f"/{NAME}"] = ["to /elsewhere/other.bin"]
    root = run()
    assert (root / NAME).read_bytes() == CONTENT
    assert not list(root.glob("*other*"))


class Redirecting(requests.adapters.BaseAdapter):
    """In place of a TLS server: every request is redirected to `target`."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = 302, str(request.url), request
        answer.headers["Location"] = self.target
        answer.raw = io.BytesIO()
        return answer

    def close(self) -> None:
        pass


def test_a_redirect_from_https_to_http_is_refused(server: Server) -> None:
    with transfer.connection() as session:
        session.mount("https://", Redirecting(f"HTTP://{server.address.removeprefix('http://')}/{NAME}"))
        with pytest.raises(transfer.FetchError, match=r"example.org redirects from https to http: refused"):
            session.get("https://example.org/a")
        assert server.seen == []
        session.mount("https://example.org/b", Redirecting("/a"))
        session.mount("https://example.org/a", Redirecting("/b"))
        with pytest.raises(requests.TooManyRedirects):  # https to https is followed
            session.get("https://example.org/a")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/a", "data:,x"])
def test_a_redirect_to_what_is_no_address_of_the_web_is_refused_at_once(
    run: Callable[..., Path], server: Server, waits: list[float], capsys: pytest.CaptureFixture[str], target: str
) -> None:
    server.misdeeds[f"/{NAME}"] = [f"to {target}"]
    with pytest.raises(SystemExit):
        run()
    assert f"redirects from http to {target.split(':')[0]}: refused" in capsys.readouterr().err
    assert (len(server.seen), waits) == (1, [])


def test_a_passing_server_error_is_waited_out(run: Callable[..., Path], server: Server, waits: list[float]) -> None:
    server.misdeeds[f"/{NAME}"] = ["500", "500", "500"]
    assert (run() / NAME).read_bytes() == CONTENT
    assert waits == [1, 2, 4]


def test_a_lasting_server_error_ends_and_the_next_call_goes_on(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misdeeds[f"/{NAME}"] = ["drop"] + ["500"] * transfer.TRIES
    with pytest.raises(SystemExit):
        run()
    assert re.search(r"answered 500 .*, 6 times in a row at byte \d+", capsys.readouterr().err)
    before = server.sent
    assert (run() / NAME).read_bytes() == CONTENT
    assert server.sent - before < len(CONTENT) - DROP_AT + transfer.CHUNK_BYTES


@pytest.mark.parametrize(("misdeed", "words"), [("404", "answered 404"), ("page", "a web page")])
def test_what_no_retry_mends_is_told_at_once(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str], misdeed: str, words: str
) -> None:
    server.misdeeds[f"/{NAME}"] = [misdeed]
    with pytest.raises(SystemExit):
        run()
    assert words in capsys.readouterr().err
    assert len(server.seen) == 1


def test_a_full_disk_is_told_before_anything_is_fetched(
    run: Callable[..., Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=900_000))
    with pytest.raises(SystemExit, match=r"root has 900kB free, 1 files need 1.00MB: make room"):
        run()
    assert server.seen == []


def test_what_is_to_come_is_listed_with_its_size_before_the_first_byte(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9_000_000))
    server.contents["/test_list.txt"] = b"00000001_000.png\n"
    root = run({NAME: entry(server), "test_list.txt": entry(server, "test_list.txt")})
    told = capsys.readouterr().out
    listed = [f"to fetch, 1.00MB in all (9.00MB free in {root}):", f"  {NAME}, 1.00MB", "  test_list.txt, 17.0B"]
    assert told.splitlines()[:3] == listed


def test_a_checksum_that_nobody_publishes_is_noted_and_held(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {NAME: entry(server, checksum=None)}
    root = run(listed)
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert files.read_json(root / ".fetch/checksums.json") == {NAME: digest}
    assert f"no checksum is published; {digest} noted" in capsys.readouterr().out
    (root / NAME).write_bytes(bytes(len(CONTENT)))
    run(listed)
    assert (root / NAME).read_bytes() == CONTENT


FULL = {
    "CheXpert-v1.0 batch 1 (validate & csv).zip": {"about_bytes": 500_000},
    "CheXpert-v1.0 batch 2 (train 1).zip": {"about_bytes": 500_000},
    "CheXpert-v1.0-small.zip": {"about_bytes": 100_000, "alone": True},
}


def test_files_that_their_owner_hands_out_are_listed_with_size_and_where_to_ask(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/CheXpert-v1.0 batch 2 (train 1).zip").write_bytes(noise(500_000))
    with pytest.raises(SystemExit) as stop:
        run(FULL, plugin=chexpert)
    told = str(stop.value)
    assert "CheXpert-v1.0 batch 1 (validate & csv).zip, about 500kB (not there)" in told
    assert "train 1" not in told
    assert "or, alone: CheXpert-v1.0-small.zip, about 100kB" in told
    assert "registration with Stanford AIMI" in told
    assert "make fetch DATASET=chexpert" in told


def test_the_command_that_is_told_can_be_typed_whatever_the_root() -> None:
    root = "/x/lab's $HOME films"
    told = fetch.absent(Path(root), [], {}, "chexpert", chexpert.ACCESS)
    typed = re.search(r"make fetch .*?(?= \(of)", told)
    assert typed
    assert f"ROOT={root}" in shlex.split(typed[0])


def test_the_small_release_alone_is_enough(run: Callable[..., Path], tmp_path: Path, server: Server) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/CheXpert-v1.0-small.zip").write_bytes(noise(100_000))
    run(FULL, plugin=chexpert)
    assert server.seen == []


@pytest.mark.parametrize("shape", ["/share?sig=secret", "/share/{name}?sig=secret"])
def test_a_folders_address_brings_every_file_and_keeps_its_token(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    whole = [name for name, fields in FULL.items() if not fields.get("alone")]
    server.contents = {f"/share/{name}": noise(500_000, seed) for seed, name in enumerate(whole)}
    root = run(FULL, url=server.address + shape, plugin=chexpert)
    assert [(root / name).read_bytes() for name in whole] == list(server.contents.values())
    assert all(path.endswith("?sig=secret") for path, _ in server.seen)
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err + (root / ".fetch/checksums.json").read_text()


def test_a_files_address_brings_that_file(run: Callable[..., Path], server: Server) -> None:
    server.contents = {"/CheXpert-v1.0-small.zip": noise(100_000)}
    root = run(FULL, url=f"{server.address}/CheXpert-v1.0-small.zip", plugin=chexpert)
    assert (root / "CheXpert-v1.0-small.zip").read_bytes() == noise(100_000)
    assert len(server.seen) == 1


def test_an_error_does_not_tell_the_token(
    run: Callable[..., Path], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.server_close()
    with pytest.raises(SystemExit):
        run(FULL, url=f"{server.address}/CheXpert-v1.0-small.zip?sig=secret", plugin=chexpert)
    told = capsys.readouterr()
    assert "ConnectionError, 6 times in a row" in told.err
    assert "secret" not in told.out + told.err


def test_an_address_that_is_none_is_refused(run: Callable[..., Path]) -> None:
    with pytest.raises(SystemExit, match="URL must start with https://"):
        run(FULL, url="/somewhere", plugin=chexpert)


def test_a_second_writer_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    with fetch.only_writer(tmp_path / "root"), pytest.raises(SystemExit, match="another `make fetch` writes to"):
        run()


def test_a_killed_run_goes_on_where_it_was(run: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    server.misdeeds[f"/{NAME}"] = ["stall"]
    root, part = tmp_path / "root", tmp_path / "root/.fetch" / f"{NAME}.part"
    served = {NAME: entry(server)}
    code = (
        "from stages.pipeline import fetch; from stages.datasets import chestxray14; "
        f"chestxray14.FILES = {served!r}; "
        f"fetch.main(['--dataset', 'chestxray14', '--root', {str(root)!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE_S
    while not (part.exists() and part.stat().st_size > DROP_AT - transfer.CHUNK_BYTES) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    server.release.set()
    kept = part.stat().st_size
    assert kept > DROP_AT - transfer.CHUNK_BYTES
    run()
    assert (root / NAME).read_bytes() == CONTENT
    assert server.seen[1] == (f"/{NAME}", f"bytes={kept}-")
    assert list((root / ".fetch").glob("tmp*")) == []


@pytest.mark.parametrize(
    "dataset", [name for name in plugins.names("datasets") if hasattr(plugins.load("datasets", name), "FILES")]
)
def test_download_uses_every_file_that_a_plug_in_lists(dataset: str) -> None:
    plugin = plugins.load("datasets", dataset)
    shipped = fetch.listed(dataset, plugin)
    assert [file.name for file in shipped if not download.is_used(file.name, plugin)] == []
    assert [file.name for file in shipped if file.expected_bytes <= 0] == []
    for file in shipped:
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|", file.checksum or "")
        assert (file.url or "https:").startswith("https:")


def test_chestxray14_is_listed_whole() -> None:
    shipped = fetch.listed("chestxray14", chestxray14)
    assert {file.name for file in shipped} == {*chestxray14.TABLES, *(f"images_{n:03d}.tar.gz" for n in range(1, 13))}
    assert all(file.bytes and file.checksum and file.url for file in shipped)
    assert len({file.url for file in shipped}) == len(shipped)
