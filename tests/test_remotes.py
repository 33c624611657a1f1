"""Remotes: a folder, an S3 bucket and an SSH server, all on loopback; what is lost or changed there is named."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.extra
boto3 = pytest.importorskip("boto3", reason="make extra")

REPOSITORY = Path(__file__).parent.parent
STAGES = """stages:
  many:
    cmd: mkdir -p data/many && echo one > data/many/one && echo two > data/many/two && echo ran >> "$COUNT"
    outs: [data/many]
  joined:
    cmd: cat data/many/one data/many/two > data/joined && echo ran >> "$COUNT"
    deps: [data/many]
    outs: [data/joined]
  alone:
    cmd: echo alone > data/alone && echo ran >> "$COUNT"
    outs: [data/alone]
"""


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Machine:
    """A checkout, with the commands that a user types."""

    def __init__(self, folder: Path, count: Path, **environment: str) -> None:
        self.folder, self.count = folder, count
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "COUNT": str(count),
                                 "DVC_NO_ANALYTICS": "1"} | environment  # fmt: skip

    def do(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    def must(self, *words: str) -> str:
        status, told = self.do(*words)
        assert status == 0, told
        return told

    def remote(self, *words: str) -> tuple[int, str]:
        return self.do(sys.executable, "-m", "stages.pipeline.remote", *words)

    def runs(self) -> int:
        return len(self.count.read_text().splitlines()) if self.count.exists() else 0

    def contents(self) -> dict[str, str]:
        return {path.relative_to(self.folder).as_posix(): path.read_text()
                for path in sorted(self.folder.glob("data/**/*")) if path.is_file()}  # fmt: skip


WHOLE = {"data/alone": "alone\n", "data/joined": "one\ntwo\n", "data/many/one": "one\n", "data/many/two": "two\n"}


@contextmanager
def served(*words: str) -> Iterator[int]:
    """The port of a server of tests/servers.py."""
    command = [sys.executable, str(REPOSITORY / "tests/servers.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.kill()


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """An S3 server with a bucket; what a client must know."""
    with served("s3") as port:
        known = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "k",
                 "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
        client(known).create_bucket(Bucket="films")
        yield known


def client(known: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=known["AWS_ENDPOINT_URL"],
        aws_access_key_id=known["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
        region_name=known["AWS_DEFAULT_REGION"],
    )


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """An SFTP server's port, and the file that tells what it answers to writers."""
    refusal = tmp_path_factory.mktemp("ssh") / "refusal"
    with served("ssh", str(refusal)) as port:
        yield port, refusal


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a remote of the kind that a test asks for."""
    kind = request.param
    if kind == "folder":
        return str(tmp_path / "kept")
    if kind == "s3":
        return f"s3://films/{tmp_path.name}"
    (tmp_path / "kept").mkdir()
    return f"ssh://someone@127.0.0.1:{request.getfixturevalue('ssh')[0]}{tmp_path / 'kept'}"


@pytest.fixture
def first(tmp_path: Path, bucket: dict[str, str]) -> Machine:
    """A machine that ran everything."""
    folder = tmp_path / "first"
    folder.mkdir()
    machine = Machine(folder, tmp_path / "first.count", **bucket)
    machine.must("git", "init", "-q")
    machine.must("dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / ".gitignore").write_text("/data\n")
    machine.must("dvc", "repro", "-q")
    assert (machine.runs(), machine.contents()) == (3, WHOLE)
    machine.must("git", "add", "--all")
    machine.must("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "ran")
    return machine


def second(first: Machine) -> Machine:
    """A fresh clone with a cache of its own."""
    folder = first.folder.with_name("second")
    shutil.rmtree(folder, ignore_errors=True)
    first.must("git", "clone", "-q", str(first.folder), str(folder))
    known = {key: value for key, value in first.env.items() if key.startswith("AWS_")}
    return Machine(folder, folder.with_name("second.count"), **known)


@pytest.mark.parametrize("url", ["folder", "s3", "ssh"], indirect=True)
def test_what_one_machine_pushes_another_pulls_and_runs_nothing(first: Machine, url: str) -> None:
    assert first.remote("add", url)[0] == 0
    assert first.must("git", "status", "--porcelain") == "", "the remote is this checkout's own matter"
    status, told = first.remote("push")
    assert (status, told.strip().endswith("files sent")) == (0, True), told
    other = second(first)
    other.remote("add", url)
    assert "verify = true" in (other.folder / ".dvc/config.local").read_text()
    status, told = other.remote("pull")
    assert (status, told.strip()) == (0, "3 of 3 outputs are here, 3 of them new")
    assert other.contents() == WHOLE
    other.must("dvc", "repro", "-q")
    assert other.runs() == 0
    assert other.remote("pull")[1].strip() == "3 of 3 outputs are here, 0 of them new"


@pytest.mark.parametrize("url", ["s3", "ssh"], indirect=True)
def test_a_machine_with_the_same_inputs_restores_what_it_would_run(first: Machine, url: str) -> None:
    first.remote("add", url)
    first.remote("push")
    other = second(first)
    other.remote("add", url)
    (other.folder / "dvc.lock").unlink()
    assert other.remote("pull")[0] == 0
    other.must("dvc", "repro", "-q", "--pull")
    assert other.runs() == 2, "DVC keeps no run of the two stages that read nothing"
    assert other.contents() == WHOLE


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_lost_and_a_changed_object_are_named_and_all_else_comes(
    first: Machine, url: str, bucket: dict[str, str]
) -> None:
    first.remote("add", url)
    first.remote("push")
    prefix = url.removeprefix("s3://films/")
    lost, changed = ([md5(text)[:2], md5(text)[2:]] for text in ("two\n", "alone\n"))
    client(bucket).delete_object(Bucket="films", Key=f"{prefix}/files/md5/{'/'.join(lost)}")
    client(bucket).put_object(Bucket="films", Key=f"{prefix}/files/md5/{'/'.join(changed)}", Body=b"other\n")
    other = second(first)
    other.remote("add", url)
    status, told = other.remote("pull")
    assert status == 1
    assert "data/many/two (many): the remote has no such object, or another content under its name" in told
    assert "data/alone (alone): the remote has no such object" in told
    assert "1 of 3 outputs are here" in told
    assert other.contents() == {"data/joined": "one\ntwo\n"}
    client(bucket).delete_object(Bucket="films", Key=f"{prefix}/files/md5/{'/'.join(changed)}")
    other.must("dvc", "repro", "-q")
    assert (other.runs(), other.contents()) == (2, WHOLE)
    assert other.remote("push")[0] == 0
    third = second(first)
    third.remote("add", url)
    assert third.remote("pull")[1].strip() == "3 of 3 outputs are here, 3 of them new"


@pytest.mark.parametrize("url", ["folder"], indirect=True)
def test_a_file_that_was_changed_here_is_not_overwritten(first: Machine, url: str) -> None:
    first.remote("add", url)
    first.remote("push")
    mine = first.folder / "data/alone"
    mine.unlink()
    mine.write_text("mine")
    status, told = first.remote("pull")
    assert status == 1
    assert "A file that was changed here stays" in told
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(("kind", "said"), [("denied", "Permission denied"), ("full", "No space left on device")])
@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_remote_that_takes_nothing_is_told_and_nothing_here_changes(
    first: Machine, url: str, kind: str, said: str, ssh: tuple[int, Path]
) -> None:
    first.remote("add", url)
    ssh[1].write_text(kind)
    status, told = first.remote("push")
    assert status == 1
    assert "the remote took not everything" in told
    assert said in told
    assert first.contents() == WHOLE
    ssh[1].unlink()
    assert first.remote("push")[0] == 0


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_remote_that_does_not_answer_is_told_and_what_is_here_stays(first: Machine, url: str) -> None:
    first.remote("add", "ssh://someone@127.0.0.1:9/nowhere")
    status, told = first.remote("pull")
    assert (status, "the remote does not answer" in told) == (1, True), told
    assert first.contents() == WHOLE
    assert first.remote("push")[0] == 1
    first.remote("add", url)
    assert first.remote("push")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("push",), "no remote is named: make remote URL="),
        (("pull",), "no remote is named: make remote URL="),
        (("add", ""), "a URL is needed"),
        (("add", "azure://x/y"), "results are kept in a folder, or at s3://, ssh://, gs://, got azure://x/y"),
        (("add", "dvc.yaml"), "dvc.yaml is a file, where a folder is needed"),
        (("add", "gs://bucket/x"), "DVC reaches gs:// by dvc-gs, which is not installed: `pip install dvc-gs`"),
    ],
)
def test_what_cannot_be_is_refused(first: Machine, words: tuple[str, ...], said: str) -> None:
    status, told = first.remote(*words)
    assert status == 1
    assert said in told


IS_COMPLETE = all((REPOSITORY / name).is_dir() for name in ("data/export", "data/replicates", ".dvc/cache"))


@pytest.mark.skipif(not IS_COMPLETE, reason="the whole loop is tried after `make repro`: this checkout has no data")
def test_the_whole_loop_of_this_checkout_takes_less_than_two_minutes(tmp_path: Path, bucket: dict[str, str]) -> None:
    """Clone, pull, repro, audit, with an empty cache, on what `make repro` left here."""
    machine = Machine(tmp_path / "first", tmp_path / "count", **bucket)
    subprocess.run(["git", "clone", "-q", REPOSITORY, machine.folder], check=True)
    for name in ("dvc.lock", "reports", "README.md"):  # as this run left them
        (shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy)(
            REPOSITORY / name, machine.folder / name, **({"dirs_exist_ok": True} if name == "reports" else {})
        )
    machine.must("git", "add", "--all")
    machine.must("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "ran")
    machine.must("dvc", "cache", "dir", "--local", str(REPOSITORY / ".dvc/cache"))
    machine.env["PYTHONPATH"] = str(machine.folder)
    machine.remote("add", "s3://films/loop")
    status, told = machine.remote("push")
    assert status == 0, told
    start = time.monotonic()
    other = second(machine)
    other.env["PYTHONPATH"] = str(other.folder)
    other.remote("add", "s3://films/loop")
    status, told = other.remote("pull")
    assert status == 0, told
    assert "nothing to run" in other.must(sys.executable, "-m", "stages.pipeline.repro")
    told = other.must(sys.executable, "-m", "stages.pipeline.audit")
    took = time.monotonic() - start
    assert ": all as recorded" in told
    assert (other.folder / "reports/index.html").is_file()
    print(f"the whole loop took {took:.0f} s")
    assert took < 120
