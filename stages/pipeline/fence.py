"""A second net below `doors`, the kernel's own: `make repro STRICT=1` (Landlock, Linux 5.13 or newer).

A stage, with the processes and programs that it starts, can then open for reading only those files of the project that
`dvc.yaml` declares for it, whoever opens them: readers in C too, which Python does not hear of. What is refused is a
"Permission denied" where it is opened. Temporary files go to `.ckpt/tmp`. Three kinds of files are still open to it:
those beside its outputs (an unfinished output has a name that nobody knows before), those in DVC's cache, and those
outside the project. Interface: https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

WISH = "STRICT"  # the environment's variable that asks for the fence
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, on every architecture
ASK_VERSION = 1
PATH_BENEATH = 1
READ_FILE = 1 << 2
NO_NEW_PRIVILEGES = 38  # of prctl

_C = ctypes.CDLL(None, use_errno=True)


class FenceError(RuntimeError):
    """The system has no Landlock, or refused it."""


def is_offered() -> bool:
    """Whether this system has Landlock."""
    return os.name == "posix" and hasattr(_C, "syscall") and int(_C.syscall(CREATE_RULESET, None, 0, ASK_VERSION)) > 0


def put_up(root: Path, readable: Iterable[Path], scratch: Path) -> None:
    """Let this process, and what it starts, read of a project what is named, and all that lies outside; for good.

    Args:
        root: the project's folder, without links on the way.
        readable: files and folders below it.
        scratch: a folder below it for temporary files.

    Raises:
        FenceError: the system does not offer this.
    """
    if not is_offered():
        raise FenceError(
            f"{WISH}=1 needs Landlock, which Linux 5.13 or newer has, and this system has not: leave it out"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch.resolve())
    rules = _called(CREATE_RULESET, struct.pack("=Q", READ_FILE), 8, 0)
    for place in (*_outside(root), *readable, scratch):
        _allow(rules, place)
    _C.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _called(RESTRICT_SELF, rules, 0)
    os.close(rules)


def _outside(root: Path) -> Iterator[Path]:
    """All that does not lie below the root: what lies beside it and beside each folder above it."""
    for folder in (root, *root.parents[:-1]):
        yield from (place for place in folder.parent.iterdir() if place != folder)


def _allow(rules: int, place: Path) -> None:
    """Let what lies at or below a place be read; a link counts by where it leads, which has a rule of its own."""
    try:
        opened = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone meanwhile, or not ours to see
    try:
        if not place.is_symlink():
            _called(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", READ_FILE, opened), 0)
    finally:
        os.close(opened)


def _called(*words: int | bytes) -> int:
    """What a system call gave."""
    given = int(_C.syscall(*words))
    if given < 0:
        raise FenceError(f"Landlock refused ({os.strerror(ctypes.get_errno())}): leave {WISH}=1 out")
    return given
