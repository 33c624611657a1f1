"""What a kill leaves of DVC's own files, mended before the next run; and the end of what a stopped run started.

DVC empties `dvc.lock`, and its table of who reads and writes what (`.dvc/tmp/rwlock`), before it writes them anew: a
kill in between leaves files without content, of which DVC says no more than that they are corrupt. So the runner keeps
the last whole `dvc.lock`. A killed `make repro` may leave its stages running: the next one waits for them.

Read while another process writes it, a `dvc.lock` looks the same as one that a kill cut off. So whoever judges it holds
DVC's own lock (`still`).
"""

import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.learning import checkpoints

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCK = Path("dvc.lock")
KEPT = checkpoints.ROOT / "dvc.lock"
WRITTEN = Path(), Path(".dvc/tmp"), checkpoints.ROOT, Path("data"), Path("reports")  # by every run
RUNNING = Path(".dvc/tmp/rwlock")
GUARD = "stages.pipeline.guard"
SCHEMA = "2.0"  # of dvc.lock
CONFLICT = b"<<<<<<<"
GRACE_S = 10  # for a process that was asked to end


class _Form(BaseModel):
    """What this DVC writes and nothing more: a field that nobody reads proves nothing."""

    model_config = ConfigDict(extra="forbid")


class _Item(_Form):
    path: StrictStr
    md5: StrictStr
    hash: StrictStr | None = None
    size: StrictInt | None = None
    nfiles: StrictInt | None = None
    isexec: StrictBool | None = None


class _Entry(_Form):
    cmd: StrictStr
    deps: list[_Item] = []
    params: dict[Literal["params.yaml"], dict[str, Any]] = {}
    outs: list[_Item] = []


class _Lock(_Form):
    version: StrictStr = Field(alias="schema")
    stages: dict[str, _Entry]


class LockFileError(ValueError):
    """dvc.lock is not whole and nothing is there to put in its place; the message says what to do."""


class NoCommitError(ValueError):
    """The project has no git repository, or an empty one."""


class ReadOnlyError(ValueError):
    """A folder that a run writes to takes no writes."""


def parsed(content: bytes) -> dict[str, Any] | None:
    """A lock file with its stages; None where it is not whole."""
    try:
        values = YAML(typ="safe").load(content)
    except (YAMLError, UnicodeDecodeError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("stages"), dict) else None


def is_whole(content: bytes) -> bool:
    """Whether this is a lock file with its stages."""
    return parsed(content) is not None


def require_known(lock: Path, values: dict[str, Any]) -> None:
    """Check the form of a whole lock file.

    Raises:
        LockFileError: it is not as this DVC writes it.
    """
    version = values.get("schema")
    if version != SCHEMA:
        raise LockFileError(
            f"{lock} was written by another version of DVC (form {version}, this one has {SCHEMA}): `make setup` "
            f"installs the pinned one; `git checkout {lock}` brings the committed file back"
        )
    try:
        _Lock.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ", ".join(map(str, first["loc"]))
        raise LockFileError(
            f"{lock} is not as DVC writes it ({place}: {first['msg']}): `git checkout {lock}` brings the committed one "
            "back"
        ) from error


def broken(lock: Path, content: bytes) -> LockFileError:
    """The error of a lock file that is not whole."""
    if CONFLICT in content:
        return LockFileError(
            f"{lock} holds the conflicts of a merge: take one side (`git checkout --ours {lock}`) and run again, "
            "which runs what differs"
        )
    return LockFileError(
        f"{lock} is cut off or damaged: `git checkout {lock}` brings the committed one back; without it all stages run"
    )


@contextmanager
def still() -> Iterator["Repo"]:
    """This project in DVC's hands, with DVC's lock held, after waiting for it: no other process writes DVC's files.

    It is no lock to take twice in one process.

    Raises:
        NoCommitError: the project is not in a git repository, where DVC looks for one.
    """
    from dvc.repo import Repo, lock_repo  # a quarter of a second
    from dvc.scm import SCMError

    try:
        repo = Repo(_wait_for_lock=True)
    except SCMError as error:
        raise NoCommitError(
            f"{error}, which DVC asks for: clone the project, or make it one (`git init && git add --all && git "
            "commit`), then run again"
        ) from error
    with lock_repo(repo):
        yield repo


def keep() -> None:
    """Keep dvc.lock as it is now, if it is there and whole."""
    with still():
        _keep()


def _keep() -> None:
    if LOCK.exists() and not _is_kept(content := LOCK.read_bytes()) and is_whole(content):
        checkpoints.write(KEPT, content)


def mend() -> list[str]:
    """Put back what a kill has cut off; what was done, in words.

    Raises:
        LockFileError: dvc.lock holds a merge's conflicts, or is cut off and no whole one was kept.
    """
    with still():
        done = [*_mend_lock(), *_mend_table()]
        _keep()
    return done


def _mend_lock() -> list[str]:
    if not LOCK.exists() or _is_kept(content := LOCK.read_bytes()) or is_whole(content):
        return []
    if CONFLICT in content or not KEPT.exists():
        raise broken(LOCK, content)
    checkpoints.write(LOCK, KEPT.read_bytes())
    return [f"{LOCK} was cut off by a kill: the last whole one is back, what ran after it runs again"]


def _mend_table() -> list[str]:
    if not RUNNING.exists() or (named := _named(RUNNING)) == set() or any(map(_is_dvc, named or ())):
        return []
    RUNNING.unlink()  # DVC goes by numbers of processes, and would wait for one that has got a dead one's
    return [] if named else [f"{RUNNING} was cut off by a kill and is gone: nothing that it named runs any more"]


def _is_kept(content: bytes) -> bool:
    return KEPT.exists() and KEPT.read_bytes() == content


def _named(table: Path) -> set[int] | None:
    """The processes in DVC's table of who reads and writes what; None if it is cut off."""
    try:
        values = json.loads(table.read_text(encoding="utf-8"))
        readers = [reader for readers in values.get("read", {}).values() for reader in readers]
        return {int(entry["pid"]) for entry in (*readers, *values.get("write", {}).values())}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _is_dvc(process: int) -> bool:
    """Whether this process runs, and is DVC, a stage, or what runs them."""
    try:
        words = psutil.Process(process).cmdline()
    except psutil.Error:
        return False
    return any(word.startswith("stages.pipeline.") or Path(word).name == "dvc" for word in words)


def require_writable(*folders: Path) -> None:
    """Check that a run can write where it must.

    Raises:
        ReadOnlyError: it cannot; the message names the folder.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ReadOnlyError(
                f"{folder.resolve()} cannot be written ({error.strerror}), and a run keeps its results there: give "
                "yourself the right to, or copy the project to a disk that takes writes"
            ) from error


def require_commit() -> None:
    """Check that the project's git repository, if it has one, has a commit, which trainings ask DVC for.

    Raises:
        NoCommitError: it has none.
    """
    asked = [
        "git",
        "rev-parse",
        "--quiet",
        "--verify",
        "HEAD",
    ]  # ends with 1 without one, with 128 where git may not look
    if Path(".git").exists() and subprocess.run(asked, check=False, capture_output=True).returncode == 1:
        raise NoCommitError("this git repository has no commit yet: `git add --all && git commit`, then run again")


def left_running() -> list[psutil.Process]:
    """Processes that an earlier run left at work in this folder: its DVC, or its stages."""
    here, found = Path.cwd().resolve(), []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            is_ours = GUARD in words or "dvc" in [Path(word).name for word in words[:2]]  # with or without its Python
            if is_ours and Path(process.cwd()).resolve() == here and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue
    return found


def wait_for(processes: Iterable[psutil.Process]) -> None:
    """Wait for these to end, and say which they are."""
    for process in processes:
        try:
            words = shlex.join(process.cmdline())
        except psutil.Error:
            continue
        print(f"process {process.pid} of an earlier run is still at work here: waiting for it ({words})", flush=True)
        psutil.wait_procs([process])


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes and all that they started, each the head of a session of its own."""
    alive = [process for process in processes if process.poll() is None]
    for asked in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            try:
                os.killpg(process.pid, asked)
            except ProcessLookupError:
                continue
        for process in alive:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue
