"""Several stages at a time: order, overlap, what is due, and what a failing stage leaves."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from stages.core import files
from stages.pipeline import lock, recovery, repro

ROOT = Path(__file__).parent.parent
PATHS = {**os.environ, "PYTHONPATH": str(ROOT)}
MEET = (
    "touch {0}.here; for i in $(seq 200); do test -e {1}.here && break; sleep 0.1; done; test -e {1}.here && cp a {0}"
)
STAGES = {
    "a": {"cmd": "cp source a", "deps": ["source"], "outs": ["a"]},
    "b": {"cmd": MEET.format("b", "c"), "deps": ["a"], "outs": ["b"]},  # ends only if c runs beside it
    "c": {"cmd": MEET.format("c", "b"), "deps": ["a"], "outs": ["c"]},
    "d": {"cmd": "cat b c > d", "deps": ["b", "c"], "outs": ["d"]},
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project of four stages: a, then b and c, then d."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    Path("source").write_text("1\n")
    write(STAGES)
    return tmp_path


def write(stages: object) -> None:
    """Write dvc.yaml."""
    with Path("dvc.yaml").open("w") as file:
        YAML(typ="safe").dump({"stages": stages}, file)


def locked() -> set[str]:
    """The stages in dvc.lock."""
    return set(YAML(typ="safe").load(Path("dvc.lock"))["stages"])


def test_stages_run_side_by_side_and_later_only_what_a_change_makes_due(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(repro.due()) == set("abcd")
    repro.run(repro.due(), lanes=2)
    assert (toy / "d").read_text() == "1\n1\n"
    assert locked() == set("abcd")
    assert not repro.due()
    write({**STAGES, "c": {**STAGES["c"], "cmd": "cp a c"}})
    assert set(repro.due()) == set("cd")
    capsys.readouterr()
    repro.run(repro.due(), lanes=2)
    said = capsys.readouterr().out
    assert "c: ran" in said
    assert "d: did not change" in said


def test_a_failing_stage_is_shown_and_what_ran_beside_it_is_kept(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = "touch b.here; echo no film; exit 3"
    write({**STAGES, "b": {**STAGES["b"], "cmd": failing}})
    with pytest.raises(subprocess.CalledProcessError):
        repro.run(repro.due(), lanes=2)
    said = capsys.readouterr().err
    assert "no film" in said
    assert "b failed" in said
    assert locked() == {"a", "c"}
    assert set(repro.due()) == {"b", "d"}
    assert not (toy / "d").exists()


def cut_off(name: str) -> None:
    """What a kill between DVC's emptying of a file and its writing leaves."""
    Path(name).write_text("")


@pytest.mark.usefixtures("toy")
def test_a_lock_that_a_kill_cut_off_is_put_back_and_nothing_runs_again() -> None:
    repro.run(repro.due(), lanes=2)
    whole = Path("dvc.lock").read_bytes()
    for name in ("dvc.lock", ".dvc/tmp/rwlock"):
        cut_off(name)
    assert [line.split(" was cut off")[0] for line in recovery.mend()] == ["dvc.lock", ".dvc/tmp/rwlock"]
    assert Path("dvc.lock").read_bytes() == whole
    assert not repro.due()
    assert recovery.mend() == []


def test_a_killed_writer_whose_number_another_process_has_got_blocks_nothing(toy: Path) -> None:
    """DVC goes by the number alone: after a reboot it is anybody's."""
    dead = {"pid": os.getppid(), "cmd": "dvc repro"}
    files.write_json({"write": {str(toy / "a"): dead}, "read": {}}, Path(".dvc/tmp/rwlock"))
    refused = subprocess.run(["dvc", "repro", "a"], capture_output=True, text=True, check=False)
    assert "is busy" in refused.stderr
    assert recovery.mend() == []
    repro.run(repro.due(), lanes=2)
    assert locked() == set("abcd")


def test_a_writer_that_lives_stays_in_the_table(toy: Path) -> None:
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "dvc"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        table = {"write": {str(toy / "d"): {"pid": process.pid, "cmd": "dvc repro"}}, "read": {}}
        files.write_json(table, Path(".dvc/tmp/rwlock"))
        assert recovery.mend() == []
        assert files.read_json(Path(".dvc/tmp/rwlock")) == table
        process.kill()


WRITER = """
import time
from pathlib import Path
from stages.pipeline import recovery
with recovery.still():
    whole = Path("dvc.lock").read_bytes()
    Path("dvc.lock").write_bytes(b"")
    print("emptied", flush=True)
    time.sleep(1.5)
    Path("dvc.lock").write_bytes(whole)
"""


@pytest.mark.parametrize("read", [recovery.mend, recovery.keep, lock.entries, lambda: lock.forged("a")])
def test_a_lock_that_another_process_is_writing_is_waited_for_and_not_called_cut_off(
    toy: Path, read: Callable[[], object]
) -> None:
    """DVC empties dvc.lock first, and writes it for seconds where it is long."""
    repro.run(repro.due(), lanes=2)
    whole = (toy / "dvc.lock").read_bytes()
    recovery.KEPT.write_bytes(b"stages: {}\n")
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True, env=PATHS) as writer:
        assert writer.stdout.readline() == "emptied\n"
        found = read()
        assert not found or set(found) == set("abcd")
        assert writer.wait() == 0
    assert (toy / "dvc.lock").read_bytes() == whole
    assert recovery.KEPT.read_bytes() in (whole, b"stages: {}\n")


def test_a_lock_that_a_kill_cut_off_beside_a_stage_is_said_in_a_line(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(_: str) -> list[str]:
        Path("dvc.lock").write_bytes(b"")
        return list(lock.entries())

    monkeypatch.setattr(lock, "forged", cut)
    with pytest.raises(subprocess.CalledProcessError):
        repro.run(repro.due(), lanes=2)
    assert "a kill cut dvc.lock off as a ended: run `make repro` again" in capsys.readouterr().err
    assert not (toy / "d").exists()


@pytest.mark.usefixtures("toy")
def test_half_a_lock_is_put_back_too() -> None:
    repro.run(repro.due(), lanes=2)
    whole = Path("dvc.lock").read_bytes()
    Path("dvc.lock").write_bytes(whole[: whole.index(b"md5:") + 3])
    assert recovery.mend()
    assert Path("dvc.lock").read_bytes() == whole


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "stages:\n<<<<<<< ours\n  a: 1\n=======\n  a: 2\n>>>>>>> theirs\n",
            "dvc.lock holds the conflicts of a merge: take",
        ),
        ("", "dvc.lock is cut off or damaged: `git checkout dvc.lock` brings the committed one back"),
    ],
)
def test_a_lock_that_cannot_be_put_back_is_refused_with_the_way_out(content: str, message: str) -> None:
    Path("dvc.lock").write_text(content)
    with pytest.raises(recovery.LockFileError, match=message):
        recovery.mend()
    assert Path("dvc.lock").read_text() == content


def test_a_git_repository_without_a_commit_is_refused_before_any_work(toy: Path) -> None:
    """DVCLive would end each training with "Empty git repo"."""
    recovery.require_commit()
    git = ["git", "-C", str(toy), "-c", "user.name=toy", "-c", "user.email=toy@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    with pytest.raises(recovery.NoCommitError, match="git commit"):
        recovery.require_commit()
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=first"], check=True)
    recovery.require_commit()


def test_a_folder_without_git_is_refused_in_a_line(toy: Path) -> None:
    """What an unpacked download is."""
    (toy / ".dvc/config").write_text("")
    with pytest.raises(recovery.NoCommitError, match="is not a git repository, which DVC asks for: clone"):
        recovery.mend()


@pytest.mark.parametrize("place", [".dvc/tmp", "data", ".dvc/cache"])
def test_a_folder_that_takes_no_writes_is_named_before_any_work(
    toy: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Root may write anywhere, so that a disk mounted for reading is played."""
    real = tempfile.TemporaryFile

    def refused(*, dir: Path) -> Any:  # noqa: A002 - as tempfile has it
        if (toy / place).resolve() == dir.resolve():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    check = repro.due if place == ".dvc/cache" else lambda: recovery.require_writable(*recovery.WRITTEN)
    with pytest.raises(recovery.ReadOnlyError, match=rf"{toy / place} cannot be written \(Read-only file system\)"):
        check()
    assert not (toy / "dvc.lock").exists()


RUN = """
import signal
from stages.pipeline import repro
for asked in (signal.SIGINT, signal.SIGTERM):  # a shell that starts this beside others lets it ignore an interrupt
    signal.signal(asked, repro.stop)
repro.run(repro.due(), 2)
"""


def started(toy: Path) -> subprocess.Popen[bytes]:
    """A run whose first stage waits for ever, once that stage is at work."""
    write({"a": {"cmd": "echo $$ > pid; sleep 1000; cp source a", "deps": ["source"], "outs": ["a"]}})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", RUN], cwd=toy, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: (toy / "pid").exists() and (toy / "pid").read_text().strip() != "")
    return process


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait a minute at most."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_takes_its_stages_with_it(toy: Path, asked: signal.Signals) -> None:
    process = started(toy)
    stage = int((toy / "pid").read_text())
    process.send_signal(asked)
    assert process.wait(60) != 0
    wait_until(lambda: not psutil.pid_exists(stage))
    assert recovery.left_running() == []


STOPPED = {1, -signal.SIGINT}  # Python gives the second where an import was just in an `exec` of text


@pytest.mark.parametrize("after_s", [0.02, 0.3, 0.8, 1.5])
def test_an_interrupt_at_any_moment_ends_in_a_line(toy: Path, after_s: float) -> None:
    for name in ("params.yaml", "requirements.lock"):
        shutil.copyfile(ROOT / name, toy / name)
    words = [sys.executable, "-m", "stages.pipeline.repro"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=toy, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: signal.SIGINT in caught_by(process.pid))
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode in STOPPED, "the toy's stages wait for one another longer than this"
    assert said.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in said


def caught_by(process: int) -> set[int]:
    """The signals that a process has a handler of its own for, Python's for an interrupt left out."""
    status = Path(f"/proc/{process}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return (
        {number for number in range(1, 32) if mask >> (number - 1) & 1} if mask >> (signal.SIGTERM - 1) & 1 else set()
    )


@pytest.mark.usefixtures("toy")
def test_an_interrupt_that_python_lost_stops_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a destructor is printed and forgotten, that of an interrupt as any other."""
    monkeypatch.setattr(repro, "STOPPED", [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        repro.run(repro.due(), lanes=2)
    assert recovery.left_running() == []


def test_what_a_killed_run_left_at_work_is_found_and_waited_for(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = started(toy)
    process.kill()
    process.wait()
    left = recovery.left_running()
    assert left[0].cmdline()[-3:] == ["repro", "--single-item", "a"]
    ended = threading.Timer(0.5, os.killpg, (left[0].pid, signal.SIGKILL))
    ended.start()
    recovery.wait_for(left)
    assert f"process {left[0].pid} of an earlier run is still at work here" in capsys.readouterr().out
    assert recovery.left_running() == []
